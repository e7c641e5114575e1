"""Tokens of several sequences in one forward pass, each sequence attending to itself only.

The model sees them as one batch of any layout, (B, T) or (1, N); attention splits it into sequences again. Nothing is
padded and no mask is needed; positions come from the rows.

Shapes: B batch rows, T tokens of each, N = B*T tokens of all sequences, n tokens of one sequence, H query heads,
K key-value heads, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hsokv_ray.longcontext.cache import RetrievalCache, RetrievalLayer
from hsokv_ray.longcontext.report import Stopwatch
from hsokv_ray.longcontext.row import Row


@dataclass(frozen=True)
class Sequenced:
    """One of the sequences: its rows, layer by layer, and how many tokens it takes in a pass."""

    rows: Sequence[Row]
    watch: Stopwatch
    num_tokens: int = 1


class SideBySideCache(RetrievalCache):
    """The cache of a pass, or of several with the same sequences. A sequence that raises takes no other with it."""

    def __init__(self, sequences: Sequence[Sequenced]) -> None:
        self.errors: dict[int, Exception] = {}
        """Number of the sequence -> what its rows raised; what the model returns for it means nothing."""
        layers = [
            _SideBySideLayer(list(rows), sequences, self.errors)
            for rows in zip(*(sequence.rows for sequence in sequences), strict=True)
        ]
        super().__init__(list(layers), Stopwatch())

    def check(self) -> None:
        """Raise `ConfigError` where the model attended past the rows."""
        for layer in self.retrieval_layers:
            layer.check_attended()


class _SideBySideLayer(RetrievalLayer):
    def __init__(self, rows: list[Row], sequences: Sequence[Sequenced], errors: dict[int, Exception]) -> None:
        super().__init__(rows, Stopwatch(), is_first=False)
        self._watches = [sequence.watch for sequence in sequences]
        self._sizes = [sequence.num_tokens for sequence in sequences]
        self._errors = errors

    def _expand(self, batch_size: int) -> None:
        """Nothing to do: rows are sequences, not batch rows."""

    def attend(
        self,
        module: nn.Module,
        query_BHTD: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the output [B, T, H, D]; the mask, of one sequence over all tokens, is none of ours."""
        self._attended = True
        batch_shape = (query_BHTD.shape[0], query_BHTD.shape[2])
        queries, keys, values = (_tokens(states).split(self._sizes, dim=1) for states in (query_BHTD, key, value))
        outputs = [
            self._attend_one(number, queries[number], keys[number], values[number], scaling)
            for number in range(len(self.rows))
        ]
        return torch.cat(outputs, dim=1).transpose(0, 1).unflatten(0, batch_shape)

    def _attend_one(
        self, number: int, query_HnD: torch.Tensor, key_KnD: torch.Tensor, value_KnD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        if number not in self._errors:
            try:
                return self.rows[number].extend(query_HnD, key_KnD, value_KnD, scaling, self._watches[number])
            except Exception as error:  # its request fails; the others know nothing of it
                self._errors[number] = error
        return torch.zeros_like(query_HnD)


def _tokens(states_BHTD: torch.Tensor) -> torch.Tensor:
    """Return the heads of all tokens [H, B*T, D]."""
    return states_BHTD.transpose(0, 1).flatten(1, 2)
