"""Which parts of the input an answer drew on: the attention that fetched blocks get.

Shapes: H query heads, K key-value heads, G = H/K, T new tokens, M tokens seen, B blocks, D head size.
"""

import numpy as np
import torch

from hsokv_ray.inference.engine.events import Passage
from hsokv_ray.longcontext.row import Row


class AttentionMass:
    """Adds up the attention mass of each block that is fetched. It is the observer of a request's rows."""

    def __init__(self) -> None:
        self._masses = np.zeros(0)
        self._num_queries = 0
        self._first = 0
        self._block = 1

    def __call__(
        self, row: Row, query_HTD: torch.Tensor, keys_KMD: torch.Tensor, blocks_KB: torch.Tensor, scaling: float
    ) -> None:
        num_heads, num_new, _ = query_HTD.shape
        if num_new > 1:  # reading; answers come token by token
            return
        self._first, self._block = row.num_first, row.settings.block
        query_KGD = query_HTD.view(keys_KMD.shape[0], -1, query_HTD.shape[-1])
        weights_KGM = (query_KGD @ keys_KMD.transpose(1, 2) * scaling).float().softmax(dim=-1)
        begin = len(row.sinks)
        fetched_KGN = weights_KGM[..., begin : begin + blocks_KB.shape[1] * self._block]
        masses_KB = fetched_KGN.sum(dim=1).unflatten(-1, (-1, self._block)).sum(dim=-1)
        self._add(blocks_KB.cpu().numpy(), masses_KB.cpu().numpy())
        self._num_queries += num_heads

    def passages(self, most: int, end: int) -> tuple[Passage, ...]:
        """Return the `most` heaviest blocks, neighbours as one passage, heaviest first.

        Args:
            end: tokens of the input; what was generated behind it is no passage, though answers draw on it, too.
        """
        masses = self._masses[: max(0, -(-(end - self._first) // self._block))]
        heaviest = np.argsort(-masses, kind="stable")[:most]
        chosen = np.sort(heaviest[masses[heaviest] > 0])
        runs = np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1) if len(chosen) else []
        return tuple(sorted((self._passage(run, end) for run in runs), key=lambda passage: -passage.mass))

    def _passage(self, run: np.ndarray, end: int) -> Passage:
        first, last = (self._first + int(number) * self._block for number in (run[0], run[-1] + 1))
        return Passage(first, min(last, end), float(self._masses[run].sum()) / self._num_queries)

    def _add(self, blocks: np.ndarray, masses: np.ndarray) -> None:
        missing = int(blocks.max()) + 1 - len(self._masses)
        if missing > 0:
            self._masses = np.concatenate([self._masses, np.zeros(missing + len(self._masses))])
        np.add.at(self._masses, blocks, masses)
