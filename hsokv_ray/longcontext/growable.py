"""Keys and values that grow at the end without copying what is there, and may be shared by several readers.

Shapes: K key-value heads, N tokens, D head size.
"""

from dataclasses import dataclass

import torch

_LEAST_TOKENS = 64


class KVBuffer:
    """Room for `capacity` tokens or a few more, of which `used` have been written by somebody.

    The capacity is a multiple of `block`, so that blocks of all heads can be numbered in one row.
    """

    def __init__(
        self, num_heads: int, capacity: int, head_dim: int, dtype: torch.dtype, device: torch.device, block: int = 1
    ) -> None:
        self.block = block
        shape = (num_heads, -(-capacity // block) * block, head_dim)
        with torch.inference_mode(False):  # or they could only ever be written in that mode
            self.keys = torch.empty(shape, dtype=dtype, device=device)
            self.values = torch.empty(shape, dtype=dtype, device=device)
        self.used = 0

    @classmethod
    def over(cls, keys_KND: torch.Tensor, values_KND: torch.Tensor, block: int = 1) -> "KVBuffer":
        """Return a full buffer over contiguous keys and values of whole blocks: not copied, never written."""
        num_heads, capacity, head_dim = keys_KND.shape
        assert capacity % block == 0, f"{capacity} tokens are no whole blocks of {block}"
        assert keys_KND.is_contiguous(), keys_KND.stride()
        assert values_KND.is_contiguous(), values_KND.stride()
        buffer = cls(num_heads, 0, head_dim, keys_KND.dtype, keys_KND.device, block)
        buffer.keys, buffer.values, buffer.used = keys_KND, values_KND, capacity
        return buffer

    @property
    def capacity(self) -> int:
        return self.keys.shape[1]

    def empty_like(self, capacity: int) -> "KVBuffer":
        """Return a buffer of the same kind with nothing in it."""
        num_heads, _, head_dim = self.keys.shape
        return KVBuffer(num_heads, capacity, head_dim, self.keys.dtype, self.keys.device, self.block)

    def blocks(self, heads: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return copies of blocks, one per row: keys and values [R, block * D].

        Args:
            heads: integers that broadcast with `numbers` to R entries in all.
            numbers: which block of the head.
        """
        # whole rows are copied at once, several times faster than an index per head and block
        rows_R = (heads * (self.capacity // self.block) + numbers).flatten().to(self.keys.device)
        width = self.block * self.keys.shape[2]
        return self.keys.view(-1, width).index_select(0, rows_R), self.values.view(-1, width).index_select(0, rows_R)


@dataclass
class KVSpan:
    """Tokens `begin` to `end` of a buffer.

    Forks of a span share the buffer. Whoever appends first after the last written token does so in place; the others
    move to a buffer of their own. Written tokens never change, so readers need no lock; of those who append, only one
    thread at a time may use a buffer.
    """

    buffer: KVBuffer
    begin: int = 0
    end: int = 0

    @classmethod
    def empty(
        cls, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device, *, block: int = 1
    ) -> "KVSpan":
        """Return a span of no tokens."""
        return cls(KVBuffer(num_heads, _LEAST_TOKENS, head_dim, dtype, device, block))

    def empty_like(self, capacity: int = _LEAST_TOKENS) -> "KVSpan":
        """Return a span of no tokens in a buffer of the same kind."""
        return KVSpan(self.buffer.empty_like(capacity))

    def __len__(self) -> int:
        return self.end - self.begin

    @property
    def keys(self) -> torch.Tensor:
        """[K, N, D], a view."""
        return self.buffer.keys[:, self.begin : self.end]

    @property
    def values(self) -> torch.Tensor:
        """[K, N, D], a view."""
        return self.buffer.values[:, self.begin : self.end]

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens, not of the room behind them."""
        return 2 * self.keys.numel() * self.buffer.keys.element_size()

    def fork(self) -> "KVSpan":
        """Return a span of the same tokens that goes its own way from here."""
        return KVSpan(self.buffer, self.begin, self.end)

    def copy(self) -> "KVSpan":
        """Return a span of the same tokens in a buffer of its own."""
        span = self.empty_like(max(_LEAST_TOKENS, len(self)))
        span.append(self.keys, self.values)
        return span

    def append(self, keys_KTD: torch.Tensor, values_KTD: torch.Tensor) -> None:
        """Add T tokens at the end, converted to the buffer's dtype and device."""
        num_new = keys_KTD.shape[1]
        self.reserve(num_new)
        self.buffer.keys[:, self.end : self.end + num_new] = keys_KTD
        self.buffer.values[:, self.end : self.end + num_new] = values_KTD
        self.end += num_new
        self.buffer.used = self.end

    def reserve(self, num_new: int) -> None:
        """Make sure that `num_new` tokens can be appended without moving."""
        buffer = self.buffer
        if buffer.used == self.end and self.end + num_new <= buffer.capacity:
            return
        room = max(_LEAST_TOKENS, len(self) // 2)
        fresh = buffer.empty_like(len(self) + num_new + room)
        fresh.keys[:, : len(self)] = self.keys
        fresh.values[:, : len(self)] = self.values
        fresh.used = len(self)
        self.buffer, self.begin, self.end = fresh, 0, len(self)

    def drop_first(self, num_tokens: int) -> None:
        """Forget the first tokens."""
        self.begin += num_tokens

    def drop_last(self, num_tokens: int) -> None:
        """Forget the last tokens."""
        self.end -= num_tokens
