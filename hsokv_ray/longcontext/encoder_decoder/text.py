"""A text as the encoder left it: hidden states, and the index over them that serves every decoder layer and head.

The last window's states change when text is appended; they are the tail, which is not indexed but scored directly.
Everything before is settled, in whole blocks.

Shapes: N tokens, M model width, B blocks, S tokens per block, Q queries, U chosen blocks.
"""

import threading
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from hsokv_ray.longcontext.index import BlockIndex


class _Room:
    """Rows for several readers; whoever holds the newest may write behind them."""

    def __init__(self, rows_NM: torch.Tensor, capacity: int) -> None:
        num_used, width = rows_NM.shape
        self.rows = torch.empty(capacity, width, dtype=rows_NM.dtype, device=rows_NM.device)
        self.rows[:num_used] = rows_NM
        self.num_used = num_used
        self.lock = threading.Lock()


@dataclass(frozen=True)
class GrowingRows:
    """The first `length` rows of a buffer. `extended` leaves it as it is and copies nothing where there is room."""

    room: _Room
    length: int

    @classmethod
    def empty(cls, width: int, dtype: torch.dtype, device: torch.device | str, *, capacity: int = 0) -> "GrowingRows":
        """Return no rows, with room for `capacity`."""
        return cls(_Room(torch.empty(0, width, dtype=dtype, device=device), capacity), 0)

    @property
    def rows_NM(self) -> torch.Tensor:
        """[N, M], a view."""
        return self.room.rows[: self.length]

    def extended(self, rows_NM: torch.Tensor) -> "GrowingRows":
        """Return these rows and `rows_NM` behind them, converted to the buffer's dtype and device."""
        length = self.length + rows_NM.shape[0]
        with self.room.lock:
            if self.room.num_used == self.length and length <= self.room.rows.shape[0]:
                self.room.rows[self.length : length] = rows_NM
                self.room.num_used = length
                return GrowingRows(self.room, length)
        room = _Room(self.rows_NM, length + length // 2)
        room.rows[self.length : length] = rows_NM
        room.num_used = length
        return GrowingRows(room, length)


@dataclass(frozen=True)
class EncodedText:
    """What an encoder made of a text. It never changes; appending returns another one that shares what it can."""

    token_ids: np.ndarray
    """[N] int64."""
    settled: GrowingRows
    """Hidden states of the first tokens, whole blocks; the index covers exactly these."""
    tail_NM: torch.Tensor
    """Hidden states of the rest."""
    index: BlockIndex
    window: int
    """Tokens the encoder read at once."""
    block_size: int
    model_digest: str
    num_truncated_tokens: int = 0
    """Tokens that were cut off before encoding."""
    _tail_BSM: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        padded = F.pad(self.tail_NM, (0, 0, 0, -self.tail_NM.shape[0] % self.block_size))
        object.__setattr__(self, "_tail_BSM", padded.unflatten(0, (-1, self.block_size)))

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def hidden_NM(self) -> torch.Tensor:
        """All hidden states, [N, M]: a copy."""
        return torch.cat([self.settled.rows_NM, self.tail_NM])

    @property
    def num_blocks(self) -> int:
        """Blocks, the last of which may not be full."""
        return -(-len(self) // self.block_size)

    @property
    def nbytes(self) -> int:
        """Bytes of token ids and hidden states."""
        return self.token_ids.nbytes + len(self) * self.tail_NM.shape[1] * self.tail_NM.element_size()

    @property
    def index_nbytes(self) -> int:
        """Bytes of the index."""
        return self.index.nbytes

    def first(self, num_tokens: int) -> list[torch.Tensor]:
        """Return the hidden states of the first tokens in parts [n, M], views."""
        settled = self.settled.rows_NM[:num_tokens]
        rest = self.tail_NM[: num_tokens - settled.shape[0]]
        return [part for part in (settled, rest) if len(part)]

    def block_logits(self, queries_QM: torch.Tensor, num_blocks: int) -> torch.Tensor:
        """Return the largest logit in each block, or the index's estimate of it, [Q, B] float32.

        -inf where the index did not look for the `num_blocks` best.
        """
        queries = queries_QM.to(self.tail_NM.device)
        # float16 and bfloat16 products are slow on a CPU, and the tail is short
        tail = (queries.float() @ self._tail_BSM.flatten(0, 1).float().T).unflatten(1, (-1, self.block_size))
        padded = len(self.tail_NM) % self.block_size
        if padded:
            tail[:, -1, padded:] = float("-inf")
        tail = tail.amax(dim=2) if tail.shape[1] else tail.flatten(1)
        if not self.settled.length:
            return tail
        settled = self.index.block_logits(queries[None], self.settled.rows_NM[None], num_blocks)[0]
        return torch.cat([settled.to(tail.device), tail], dim=1)

    def blocks(self, ids_U: torch.Tensor) -> torch.Tensor:
        """Return the hidden states of blocks, whose numbers ascend, [U, S, M]; zeros behind the last token."""
        num_settled = self.settled.length // self.block_size
        cut = int(torch.searchsorted(ids_U, num_settled))
        settled_BSM = self.settled.rows_NM.unflatten(0, (num_settled, self.block_size))
        # index_select copies whole blocks, at twice the speed of indexing
        settled = settled_BSM.index_select(0, ids_U[:cut])
        if cut == len(ids_U):
            return settled
        return torch.cat([settled, self._tail_BSM.index_select(0, ids_U[cut:] - num_settled)])
