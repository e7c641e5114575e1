"""What an index over the keys of one layer does.

Shapes: K key-value heads, Q queries per head, N tokens, D head dim, B blocks of `block_size` tokens.
"""

from typing import Protocol

import numpy as np
import torch

from hsokv_ray.errors import StoreError


class BlockIndex(Protocol):
    """Finds the blocks of tokens whose keys have the largest products with some queries.

    The keys belong to the caller's store; an index keeps what it derives from them. Searching changes nothing and may
    happen in several threads at once, also while a fork grows.
    """

    name: str
    block_size: int
    num_tokens: int
    """Tokens indexed, whole blocks."""

    @property
    def nbytes(self) -> int:
        """Bytes held by the index itself, those it shares with forks included."""
        ...

    def add(self, keys_KND: torch.Tensor, all_keys_KND: torch.Tensor) -> None:
        """Append the keys [K, n, D] of n new tokens, whole blocks; any float type, device and strides.

        `all_keys_KND` is the store's view [K, N, D] of every token, the new ones last: compressed indexes encode it in
        large steps, some of it long after it was added.
        """
        ...

    def block_logits(self, queries_KQD: torch.Tensor, keys_KND: torch.Tensor, num_blocks: int) -> torch.Tensor:
        """Return the largest query-key product of each block or its estimate: float32 [K, Q, B] where the queries are.

        `queries_KQD` are unscaled, in the frame of `keys_KND`, the store's view of the tokens indexed; a view of the
        first of them alone gives their blocks. An index that does not look everywhere looks for `num_blocks` blocks per
        query and leaves -inf elsewhere.
        """
        ...

    def fork(self) -> "BlockIndex":
        """Return an independent index of the same tokens; what both hold is shared until one grows."""
        ...

    def first(self, keys_KND: torch.Tensor) -> "BlockIndex":
        """Return an index for reading of the first tokens alone, whose keys [K, n, D] these are.

        A view finds blocks among all tokens and drops those it does not see; where much was added since, an index that
        does not look everywhere would find too few.
        """
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Return the index in arrays, from which `restore_index` makes it again."""
        ...

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take over a `state`, while empty; raises `StoreError` where it is damaged or does not fit."""
        ...


def count_new_tokens(keys_KND: torch.Tensor, *, num_heads: int, head_dim: int, block_size: int) -> int:
    """Return n of keys [K, n, D] after asserting that they fit the index."""
    assert keys_KND.ndim == 3, f"keys are [K, n, D], got {tuple(keys_KND.shape)}"
    num_new = keys_KND.shape[1]
    assert (keys_KND.shape[0], keys_KND.shape[2]) == (num_heads, head_dim), (tuple(keys_KND.shape), num_heads, head_dim)
    assert num_new % block_size == 0, f"{num_new} tokens are no whole blocks of {block_size}"
    return num_new


def restored_count(state: dict[str, np.ndarray], name: str, block_size: int) -> int:
    """Return the number of tokens in a `state`; raises `StoreError` where it is damaged or of other blocks."""
    try:
        num_tokens, stored_block_size = (int(state[key]) for key in ("num_tokens", "block_size"))
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"the stored {name} index is damaged ({error!r}); encode the text again") from error
    if stored_block_size != block_size:
        raise StoreError(
            f"the stored {name} index has blocks of {stored_block_size} tokens, asked for {block_size}; "
            f"use --block-size {stored_block_size} or encode the text again"
        )
    return num_tokens


def counts(num_tokens: int, block_size: int) -> dict[str, np.ndarray]:
    """Return the part of a `state` that `restored_count` reads."""
    return {"num_tokens": np.array(num_tokens, np.int64), "block_size": np.array(block_size, np.int64)}
