"""How much an episode matters, in [0, 1]: a weighted mean of use, novelty and recency.

use = u / (u + half_use)              u: how often a search returned it
novelty = 1 - max(0, cosine)          to the nearest long-term memory; 1 where there is none
recency = decay_per_hour ** hours     since it was last returned, else added

Recency with 0.995 per hour is that of generative agents (Park et al. 2023, arXiv:2304.03442, section 4.1), who add it
to importance and relevance in the same way. Novelty is the distance to the nearest neighbour, novelty search with k = 1
(Lehman and Stanley 2011). That use saturates is this project's choice: the tenth use says less than the first.
"""

import numpy as np

from hsokv_ray.memory.config import ConsolidationConfig


def importance(config: ConsolidationConfig, uses: np.ndarray, nearest: np.ndarray, age_s: np.ndarray) -> np.ndarray:
    """Return the importance of n episodes, float64 [n].

    Args:
        uses: counts [n].
        nearest: cosine to the nearest long-term memory [n]; -1 where there is none.
        age_s: seconds since the last use [n], at least 0.
    """
    use = uses / (uses + config.half_use)
    novelty = 1 - np.clip(nearest, 0, 1)
    recency = config.decay_per_hour ** (age_s / 3600)
    weights = np.array([config.use_weight, config.novelty_weight, config.recency_weight])
    return weights / weights.sum() @ np.stack([use, novelty, recency])
