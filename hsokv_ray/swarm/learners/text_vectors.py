"""Texts as vectors of a frozen encoder. Its FLOPs are not counted: each text is encoded once in a process."""

from collections.abc import Iterable

import torch
from torch import Tensor

from hsokv_ray.data.tasks import Examples
from hsokv_ray.memory.encoders import Encoder


class TextVectors:
    """The vectors of a set of texts.

    All are encoded at once, in one order: the last bits of a vector hang on its batch, and a training that is resumed
    in another process has to see the same ones.

    Args:
        encoder: see `open_encoder`.
        texts: all that will be asked for.
    """

    def __init__(self, encoder: Encoder, texts: Iterable[str]) -> None:
        distinct = sorted(set(texts))
        self._rows = {text: row for row, text in enumerate(distinct)}
        self._vectors_ND = torch.from_numpy(encoder.encode(distinct))

    @property
    def dim(self) -> int:
        """D."""
        return self._vectors_ND.shape[1]

    def of(self, texts: list[str]) -> Tensor:
        """Return float32 [n, D]."""
        return self._vectors_ND[[self._rows[text] for text in texts]]

    def examples(self, examples: Examples) -> Examples:
        """Return examples of kind texts as vectors."""
        return Examples("vectors", self.of(examples.inputs.tolist()).numpy(), examples.labels)
