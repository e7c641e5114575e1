"""Long inputs for decoder-only models: encode a text into a memory, append to it, begin requests on it.

Shapes: B rows, T tokens, N tokens of the text.
"""

from typing import Any

import numpy as np
import torch

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.cache import RetrievalCache
from hsokv_ray.longcontext.config import LongContextConfig
from hsokv_ray.longcontext.digest import model_digest
from hsokv_ray.longcontext.families import decoder_shape
from hsokv_ray.longcontext.memory import Memory, layout_of
from hsokv_ray.longcontext.parallel import encode_parallel
from hsokv_ray.longcontext.prefill import feed
from hsokv_ray.longcontext.requests import OnTokens, Request
from hsokv_ray.longcontext.row import Row
from hsokv_ray.longcontext.rows import RowMaker


class DecoderReader:
    """Reads texts with one decoder-only model."""

    def __init__(self, model: Any, config: LongContextConfig) -> None:
        self.model, self.config = model, config
        self.make = RowMaker(model, decoder_shape(model), config)
        self.digest = model_digest(model)

    @property
    def settings(self) -> Any:
        return self.make.settings

    def describe(self) -> str:
        """Return settings and placement in one line."""
        return f"{self.settings.describe()}; {self.make.placements[0].describe()}"

    def encode(self, token_ids: np.ndarray, on_tokens: OnTokens) -> Memory:
        """Return the memory of the text `token_ids` [N]."""
        rows = self.make.rows()
        for row in rows:
            row.reserve(len(token_ids))
        if self.config.encoding == "parallel":
            encode_parallel(self.model, self.make, rows, token_ids, on_tokens)
        else:
            rows = self._read(rows, token_ids, on_tokens)
        return self.memory(token_ids, rows)

    def memory(self, token_ids: np.ndarray, rows: list[Row], num_truncated_tokens: int = 0) -> Memory:
        """Return the memory of a text that has been read into `rows`."""
        return Memory(token_ids, self.digest, layout_of(self.settings), rows, num_truncated_tokens)

    def append(self, memory: Memory, token_ids: np.ndarray, on_tokens: OnTokens) -> None:
        """Read `token_ids` behind the text of `memory`. Requests that run on it go on with what they began with."""
        self.take(memory)
        with memory.lock:
            memory.rows = self._read([row.fork() for row in memory.rows], token_ids, on_tokens)
            memory.token_ids = np.concatenate([memory.token_ids, token_ids])

    def cache(self, memory: Memory | None, batch_size: int = 1) -> RetrievalCache:
        """Return the cache of a new request that begins with `memory`."""
        if memory is not None:
            self.take(memory)
        rows = [self.make.rows() if memory is None else memory.attached(self.settings) for _ in range(batch_size)]
        return RetrievalCache.of(rows)

    def request(
        self,
        memory: Memory | None,
        prompts: list[list[int]],
        *,
        num_prefix_tokens: int,
        pad_token: int,
        reads_prompts: bool = True,
    ) -> Request:
        """Return a request on `memory`. Raises `ConfigError` where a prompt is empty.

        Args:
            prompts: token ids of each row, the prefix included.
            num_prefix_tokens: first tokens of every prompt, kept in sight for good.
            reads_prompts: whether to read them here in pieces, up to the last token, rather than in `generate`.
        """
        if not all(prompts):
            raise ConfigError("the prompt is empty; give at least one token to continue from")
        cache = self.cache(memory, len(prompts))
        if num_prefix_tokens:
            cache.pin(num_prefix_tokens)
        ids_BT, mask_BT = left_padded(prompts, pad_token, self.model.device)
        if reads_prompts:
            feed(self.model, cache, [ids_T[mask_T.bool()][:-1] for ids_T, mask_T in zip(ids_BT, mask_BT, strict=True)])
            cache.seal()
        return Request(
            arguments={"input_ids": ids_BT, "attention_mask": mask_BT, "past_key_values": cache},
            watch=cache.watch,
            num_given=ids_BT.shape[1],
            num_memory_tokens=0 if memory is None else len(memory),
            num_prompt_tokens=sum(map(len, prompts)),
            memory_bytes=cache.nbytes,
            index_bytes=cache.index_nbytes,
        )

    def _read(self, rows: list[Row], token_ids: np.ndarray, on_tokens: OnTokens) -> list[Row]:
        cache = RetrievalCache.of([rows])
        feed(self.model, cache, [torch.from_numpy(token_ids).to(self.model.device)], on_tokens)
        return cache.rows(0)

    def take(self, memory: Memory) -> None:
        """Make sure that `memory` is this model's and on its devices. Raises `ConfigError`."""
        if not isinstance(memory, Memory):
            raise ConfigError(
                f"a decoder-only model reads a Memory, got {type(memory).__name__}; encode the text with it"
            )
        memory.check(self.digest, self.settings)
        memory.place(self.make)


def left_padded(prompts: list[list[int]], pad_token: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask [B, T]."""
    longest = max(map(len, prompts))
    ids_BT = torch.full((len(prompts), longest), pad_token, dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.int64)
        mask_BT[row, longest - len(prompt) :] = 1
    return ids_BT.to(device), mask_BT.to(device)
