"""One forward pass for all answers that are being generated, each with rows of its own.

Every row takes exactly one token, so nothing is padded and no mask is needed; positions come from the rows.

Shapes: B choices, H query heads, K key-value heads, D head size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hsokv_ray.inference.engine.choice import Choice
from hsokv_ray.longcontext.cache import RetrievalCache, RetrievalLayer
from hsokv_ray.longcontext.report import Stopwatch
from hsokv_ray.longcontext.row import Row


class Batch:
    """Steps a changing set of choices; its cache is kept while the set stays the same."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._choices: list[Choice] = []
        self._cache = _BatchCache([])

    def keep(self, choices: Sequence[Choice]) -> None:
        """Step these from now on; what the others held is let go."""
        if [*choices] != self._choices:
            self._choices = list(choices)
            self._cache = _BatchCache(self._choices)

    @property
    def errors(self) -> dict[int, Exception]:
        """Number of the choice -> what its rows raised in the last step; its logits mean nothing."""
        return self._cache.errors

    def step(self) -> torch.Tensor:
        """Take the next token of each choice; return the logits [B, V] behind it.

        Raises `ConfigError` where the model has lost its retrieval attention.
        """
        self._cache.errors.clear()
        device = self._model.device
        ids_B1 = torch.tensor([[choice.token] for choice in self._choices], device=device)
        positions_B1 = torch.tensor([[choice.rows[0].position] for choice in self._choices], device=device)
        output = self._model(input_ids=ids_B1, position_ids=positions_B1, past_key_values=self._cache, use_cache=True)
        self._cache.check()
        for choice in self._choices:
            choice.watch.lap()
        return output.logits[:, -1]


class _BatchCache(RetrievalCache):
    def __init__(self, choices: list[Choice]) -> None:
        self.errors: dict[int, Exception] = {}
        watches = [choice.watch for choice in choices]
        layers = [
            _BatchLayer(list(rows), watches, self.errors)
            for rows in zip(*(choice.rows for choice in choices), strict=True)
        ]
        super().__init__(list(layers), Stopwatch())

    def check(self) -> None:
        """Raise `ConfigError` where the model attended past the rows."""
        for layer in self.retrieval_layers:
            layer.check_attended()


class _BatchLayer(RetrievalLayer):
    """Rows of different requests: a row that raises takes no other with it."""

    def __init__(self, rows: list[Row], watches: list[Stopwatch], errors: dict[int, Exception]) -> None:
        super().__init__(rows, Stopwatch(), is_first=False)
        self._watches, self._errors = watches, errors

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
        """Return the output [B, 1, H, D]."""
        assert attention_mask is None, attention_mask.shape
        assert query_BHTD.shape[2] == 1, query_BHTD.shape
        self._attended = True
        outputs = [
            self._attend_row(number, query_BHTD[number], key[number], value[number], scaling)
            for number in range(len(self.rows))
        ]
        return torch.stack(outputs).transpose(1, 2)

    def _attend_row(
        self, number: int, query_H1D: torch.Tensor, key_K1D: torch.Tensor, value_K1D: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        if number not in self._errors:
            try:
                return self.rows[number].extend(query_H1D, key_K1D, value_K1D, scaling, self._watches[number])
            except Exception as error:  # its request fails; the others know nothing of it
                self._errors[number] = error
        return torch.zeros_like(query_H1D)
