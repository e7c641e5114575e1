"""What a batch offers to be written: keys, values, and the inputs from which the keys can be encoded again.

Shapes: B batch, T time, N candidates, K key_dim, V value_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hsokv_ray.errors import DataError
from hsokv_ray.memory.records import stable_id
from hsokv_ray.models.kv_encoder import States
from hsokv_ray.models.kv_output import Batch
from hsokv_ray.models.loss import IGNORE_INDEX

TOKENS = "input_ids"
VECTOR = "vector"


@dataclass(frozen=True, eq=False)
class Candidates:
    """Entries that a policy may choose from."""

    keys_NK: Tensor
    values_NV: Tensor
    inputs: list[dict[str, Any]]
    """What each key is made from, as `collate` takes it."""
    ids: list[str]
    metadata: list[dict[str, Any]]
    where: Tensor | None = None
    """bool [B, T], True at the tokens that became candidates; None where examples did."""

    def of(self, chosen_N: Tensor) -> "Candidates":
        """Return those where `chosen_N` is True."""
        rows = chosen_N.nonzero().flatten().tolist()
        inputs, ids, metadata = ([each[row] for row in rows] for each in (self.inputs, self.ids, self.metadata))
        return Candidates(self.keys_NK[rows], self.values_NV[rows], inputs, ids, metadata)


def sequence_candidates(
    batch: Batch,
    states: States,
    keys_BK: Tensor,
    values_BV: Tensor,
    targets_B: Tensor | None,
    *,
    ids: Sequence[str] | None,
    metadata: Sequence[dict[str, Any]] | None,
) -> Candidates:
    """Return one candidate per example. Raises `DataError`: not as many values, ids or metadata, or a label missing."""
    num = len(keys_BK)
    for name, given in {"values": values_BV, "ids": ids, "metadata": metadata}.items():
        if given is not None and len(given) != num:
            raise DataError(f"{name}: got {len(given)} for {num} examples; one per example is needed")
    inputs = _inputs_of(batch, states)
    facts = [dict(each) for each in metadata] if metadata is not None else [{} for _ in range(num)]
    if targets_B is not None:
        if targets_B.eq(IGNORE_INDEX).any():
            raise DataError(f"labels: got {IGNORE_INDEX}, which has no value; leave such examples out")
        facts = [fact | {"label": label} for fact, label in zip(facts, targets_B.tolist(), strict=True)]
    # The label is no part of the id: the same input again, with another label, replaces what was said of it.
    names = list(ids) if ids is not None else [stable_id(each) for each in inputs]
    return Candidates(keys_BK, values_BV, inputs, names, facts)


def token_candidates(
    batch: Batch, states: States, keys_BTK: Tensor, values_BTV: Tensor, targets_BT: Tensor | None
) -> Candidates:
    """Return one candidate per token that has a target: the key of the tokens so far, the value of the next one."""
    assert batch.input_ids is not None, "the encoder has checked it"
    assert states.mask_BT is not None, "tokens have a mask"
    assert targets_BT is not None, "values were made from them"
    ids_BT, mask_BT, inputs = batch.input_ids, states.mask_BT, []
    where_BT = targets_BT.ne(IGNORE_INDEX) & mask_BT
    for row, last in where_BT.nonzero().tolist():
        inputs.append({TOKENS: ids_BT[row, : last + 1][mask_BT[row, : last + 1]].tolist()})
    facts = [{"label": label} for label in targets_BT[where_BT].tolist()]
    names = [stable_id(each) for each in inputs]
    return Candidates(keys_BTK[where_BT], values_BTV[where_BT], inputs, names, facts, where_BT)


def _inputs_of(batch: Batch, states: States) -> list[dict[str, Any]]:
    """Return each example as JSON: its tokens without padding, or its vector."""
    if batch.vectors is not None:
        return [{VECTOR: row} for row in batch.vectors.detach().float().tolist()]
    assert batch.input_ids is not None, "the encoder has checked it"
    assert states.mask_BT is not None, "tokens have a mask"
    return [{TOKENS: ids[mask].tolist()} for ids, mask in zip(batch.input_ids, states.mask_BT, strict=True)]


def collate(inputs: Sequence[Any], device: torch.device) -> Batch:
    """Return stored inputs as a batch, padded on the right. Raises `DataError`: they are others'."""
    kind = VECTOR if inputs and isinstance(inputs[0], dict) and VECTOR in inputs[0] else TOKENS
    for each in inputs:
        if not isinstance(each, dict) or kind not in each:
            raise DataError(f"input: got {str(each)[:80]!r}; an entry that the model wrote, with {kind!r}, is needed")
    if kind == VECTOR:
        return Batch(None, None, torch.tensor([each[VECTOR] for each in inputs], device=device))
    rows = [torch.tensor(each[TOKENS], dtype=torch.long) for each in inputs]
    ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths_B = torch.tensor([len(row) for row in rows])
    mask_BT = torch.arange(ids_BT.shape[1])[None] < lengths_B[:, None]
    return Batch(ids_BT.to(device), mask_BT.to(device), None)
