"""One forward pass for all answers that are being generated, each with rows of its own.

Shapes: B choices, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch

from hsokv_ray.inference.engine.choice import Choice
from hsokv_ray.longcontext.side_by_side import Sequenced, SideBySideCache


class Batch:
    """Steps a changing set of choices; its cache is kept while the set stays the same."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._choices: list[Choice] = []
        self._cache = SideBySideCache([])

    def keep(self, choices: Sequence[Choice]) -> None:
        """Step these from now on; what the others held is let go."""
        if [*choices] != self._choices:
            self._choices = list(choices)
            self._cache = SideBySideCache([Sequenced(choice.rows, choice.watch) for choice in self._choices])

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
