"""How well similarities to probe words agree with people's: the mean over nonces of Spearman's correlation."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from hsokv_ray.data.tasks.chimera import Chimera
from hsokv_ray.errors import DataError
from hsokv_ray.evaluation.intervals import Score, over_seeds


def chimera_score(chimeras: Sequence[Chimera], similarities: Sequence[Sequence[float]]) -> Score:
    """Return the mean of Spearman's rho over nonces, with the t interval over them (Lazaridou et al. 2017).

    Args:
        chimeras: n nonces.
        similarities: for each the model's similarity to each probe. A constant row, which ranks nothing, counts 0.

    Raises `DataError` where the numbers do not fit the probes or are not finite.
    """
    if len(chimeras) != len(similarities) or not chimeras:
        raise DataError(f"chimera: got similarities of {len(similarities)} for {len(chimeras)} nonces; one row each")
    rhos = [
        _rho(chimera, np.asarray(row, dtype=np.float64)) for chimera, row in zip(chimeras, similarities, strict=True)
    ]
    found = over_seeds(rhos)
    return Score(found.mean, found.low, found.high, n=len(rhos))


def _rho(chimera: Chimera, row: np.ndarray) -> float:
    if row.shape != (len(chimera.probes),) or not np.isfinite(row).all():
        got = f"{row.tolist()}"
        raise DataError(f"chimera {chimera.id}: got {got}; a finite number for each of {len(chimera.probes)} probes")
    if np.ptp(row) == 0 or np.ptp(chimera.ratings) == 0:
        return 0.0
    return float(np.corrcoef(stats.rankdata(row), stats.rankdata(chimera.ratings))[0, 1])
