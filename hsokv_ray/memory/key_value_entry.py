"""What a key-value memory stores beside key and value, and the checks of what is written."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hsokv_ray.errors import DataError
from hsokv_ray.memory.records import ID_BYTES, stable_id
from hsokv_ray.memory.stores.checks import check_ids, encode_metadata


@dataclass(frozen=True)
class Entry:
    """One entry without its tensors."""

    id: str
    metadata: dict[str, Any]
    input: Any
    """What the key was encoded from, any JSON value; None where it was not given, and it cannot be encoded again."""
    encoder_id: str


def check_entries(
    keys: Tensor,
    values: Tensor,
    *,
    ids: Sequence[str] | None,
    metadata: Sequence[dict[str, Any]] | None,
    inputs: Sequence[Any] | None,
    encoder_id: str,
) -> list[Entry]:
    """Return one entry per key, named as `KeyValueMemory.write` says. Raises `DataError`."""
    num = len(keys)
    for name, given in {"values": values, "ids": ids, "metadata": metadata, "inputs": inputs}.items():
        if given is not None and len(given) != num:
            raise DataError(f"{name}: got {len(given)} for {num} keys; one per key is needed")
    facts = [_json(each) for each in metadata] if metadata is not None else [{} for _ in range(num)]
    raw = [_json({"input": each})["input"] for each in inputs] if inputs is not None else [None] * num
    if ids is not None:
        names = check_ids(ids)
    elif inputs is None and metadata is None:
        rows = torch.cat([keys, values], dim=1).cpu().numpy()
        names = [hashlib.blake2b(row.tobytes(), digest_size=ID_BYTES).hexdigest() for row in rows]
    else:
        names = [stable_id(raw[i], facts[i]) for i in range(num)]
    return [Entry(names[i], facts[i], raw[i], encoder_id) for i in range(num)]


def check_matrix(name: str, given: Any, dim: int, *, device: torch.device) -> Tensor:
    """Return `given` as finite float32 [n, dim] on `device`, without its graph. Raises `DataError`."""
    try:
        matrix = torch.as_tensor(given).detach().to(device=device, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: cannot be read as numbers ({error}); floats [n, {dim}] are needed") from None
    if matrix.ndim != 2 or matrix.shape[1] != dim:
        raise DataError(f"{name}: got shape {list(matrix.shape)}; [n, {dim}] is needed")
    if not torch.isfinite(matrix).all():
        raise DataError(f"{name}: holds NaN or infinity; finite numbers are needed")
    return matrix


def _json(value: dict[str, Any]) -> Any:
    return json.loads(encode_metadata(value))
