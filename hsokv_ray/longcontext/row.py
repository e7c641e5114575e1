"""One sequence in one layer: its first tokens, its newest, and what lies between; and attention over them.

While the sequence fits the window everything is local, and attention is the plain model's. Past it, the first tokens
stay as sinks, the newest as the local part, and what leaves the local part goes to the far segments in whole blocks.
A query then sees sinks, the blocks it fetches, and the local part, in this order.

Frames: local keys are rotated as the model rotated them. Far keys and sinks are kept without rotation, so that they
can be placed anywhere; for `native` positions they are kept at their place in the whole text, `origin` tokens after
the model's count.

Shapes: H query heads, K key-value heads, G = H/K, T new tokens, M tokens seen, D head size.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch

from hsokv_ray.longcontext.config import Resolved
from hsokv_ray.longcontext.far import FarSegment, choose, fetch
from hsokv_ray.longcontext.grouped import grouped_attention
from hsokv_ray.longcontext.growable import KVSpan
from hsokv_ray.longcontext.report import Stopwatch
from hsokv_ray.longcontext.rope import Rope, rotate

_REPRESENTATIVES = 8
"""Queries that choose for a chunk, at most: its queries are averaged in as many runs."""

_MASKED_TOKENS = 1024
"""New tokens attended at once inside the window, at most, where others came before."""

_EXACT_QUERIES = 16
"""Chunks up to this choose with every query."""


class Observer(Protocol):
    """Told what a query past the window saw."""

    def __call__(
        self, row: "Row", query_HTD: torch.Tensor, keys_KMD: torch.Tensor, blocks_KB: torch.Tensor, scaling: float
    ) -> None:
        """Take the queries of the newest tokens and the keys they see: sinks, then the blocks numbered, then local."""
        ...


@dataclass
class Row:
    """The kept tokens of one sequence in one layer."""

    settings: Resolved
    rope: Rope
    sinks: KVSpan
    local: KVSpan
    far: list[FarSegment]
    """What the sequence began with (read only), then its own; empty where the layer does not retrieve."""
    length: int = 0
    """Tokens there have been, in all."""
    position: int = 0
    """The model's position of the next token."""
    origin: int = 0
    """Tokens before position 0."""
    num_pinned: int = 0
    """Own tokens from position 0 that join the sinks when they would leave the local part."""
    num_first: int = 0
    """First tokens that became sinks."""
    observer: Observer | None = None
    """Watches what is fetched; forks share it."""

    @property
    def first_local(self) -> int:
        """The model's position of the first local token; negative where it came before the request."""
        return self.position - len(self.local)

    @property
    def is_long(self) -> bool:
        """Whether tokens have left the local part."""
        return self.length > len(self.local)

    def fork(self) -> "Row":
        """Return a sequence with the same tokens that goes its own way from here."""
        far = [*(segment.view() for segment in self.far[:-1]), *(segment.fork() for segment in self.far[-1:])]
        return replace(self, sinks=self.sinks.fork(), local=self.local.fork(), far=far)

    def extend(
        self,
        query_HTD: torch.Tensor,
        key_KTD: torch.Tensor,
        value_KTD: torch.Tensor,
        scaling: float,
        watch: Stopwatch,
    ) -> torch.Tensor:
        """Take T new tokens; return what their queries attend to, [H, T, D].

        Chunks end at multiples of the chunk size of the whole sequence, however it is cut into calls.
        """
        outputs, done, num_new = [], 0, key_KTD.shape[1]
        while done < num_new:
            end = done + self._next_chunk(num_new - done)
            self.absorb(key_KTD[:, done:end], value_KTD[:, done:end])
            outputs.append(self._attend(query_HTD[:, done:end], scaling, watch))
            done = end
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def absorb(self, key_KTD: torch.Tensor, value_KTD: torch.Tensor) -> None:
        """Take a chunk of new tokens without attending."""
        num_new = key_KTD.shape[1]
        if self.length + num_new > self.settings.window or self.is_long:
            self._make_room()
        self.local.append(key_KTD, value_KTD)
        self.length += num_new
        self.position += num_new

    def take(self, key_KTD: torch.Tensor, value_KTD: torch.Tensor) -> None:
        """Take tokens that were encoded elsewhere; their keys are not rotated."""
        begin, num_new = 0, key_KTD.shape[1]
        while begin < num_new:
            end = begin + self._next_chunk(num_new - begin)
            self.absorb(self.rope.turn(key_KTD[:, begin:end], self.position), value_KTD[:, begin:end])
            begin = end

    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens` at once, so that growing does not move what is there."""
        for segment in self.far[-1:]:
            if self.length + num_tokens > self.settings.window:
                segment.span.reserve(num_tokens)

    def forget(self, num_tokens: int) -> bool:
        """Take the newest tokens back; return whether they were all still local."""
        if num_tokens > len(self.local):
            return False
        self.local.drop_last(num_tokens)
        self.length -= num_tokens
        self.position -= num_tokens
        return True

    def attached(self, settings: Resolved) -> "Row":
        """Return a new request that begins with this sequence: it shares the far tokens, and counts positions anew."""
        row = replace(self, settings=settings, sinks=self.sinks.copy())
        row.seal()
        row.rebase()
        return row

    def seal(self) -> None:
        """Leave the far tokens as they are and begin a segment of their own for those to come, so forks share them."""
        shared = [segment.view() for segment in self.far]
        self.far = [*shared, *(segment.empty() for segment in shared[-1:])]

    def rebase(self) -> None:
        """Count positions from 0 again: the tokens so far come before the request."""
        keys, values = self.rope.shift(self.local.keys, -self.position), self.local.values
        self.local = self.local.empty_like(len(self.local) + self.settings.block + self.settings.chunk)
        self.local.append(keys, values)
        self.origin += self.position
        self.position = 0

    def _next_chunk(self, num_new: int) -> int:
        if self.length and self.length < self.settings.window:  # the mask of many over many is large
            num_new = min(num_new, max(self.settings.chunk, _MASKED_TOKENS))
        if self.length + num_new <= self.settings.window:
            return num_new
        if self.length < self.settings.window and not self.is_long:
            return min(num_new, self.settings.window - self.length)
        return min(num_new, self.settings.chunk - self.length % self.settings.chunk)

    def _make_room(self) -> None:
        """Move whole blocks out of the local part until less than a block is too many."""
        if not self.is_long:
            self._fill_sinks()
        self._pin()
        block = self.settings.block
        num_leaving = (len(self.local) - self.settings.local) // block * block
        if num_leaving <= 0:
            return
        keys, values = self.local.keys[:, :num_leaving], self.local.values[:, :num_leaving]
        if self.far:
            self.far[-1].add(self._kept(keys, self.first_local), values)
        self.local.drop_first(num_leaving)

    def _fill_sinks(self) -> None:
        self.num_first = count = min(self.settings.sink, len(self.local))
        self.sinks.append(self._kept(self.local.keys[:, :count], self.first_local), self.local.values[:, :count])
        self.local.drop_first(count)

    def _pin(self) -> None:
        """Move the pinned tokens to the sinks once some of them would leave; close the gap they leave behind."""
        if not 0 < self.num_pinned <= self.position:
            return
        # where the text before the request was shorter than the sinks, the first sinks are request tokens already
        begin, end = max(0, -self.first_local), max(0, self.num_pinned - self.first_local)
        keys, values = self.local.keys, self.local.values
        self.sinks.append(self._kept(keys[:, begin:end], begin + self.first_local), values[:, begin:end])
        before = self.rope.shift(keys[:, :begin], end - begin)
        rest = self.local.empty_like(len(self.local))
        rest.append(torch.cat([before, keys[:, end:]], dim=1), torch.cat([values[:, :begin], values[:, end:]], dim=1))
        self.local, self.num_pinned = rest, 0

    def _kept(self, keys_KTD: torch.Tensor, begin: int) -> torch.Tensor:
        """Return local keys, the first at the model's position `begin`, in the store's frame."""
        if self.settings.positions == "native":
            return self.rope.shift(keys_KTD, self.origin)
        return self.rope.turn_back(keys_KTD, begin)

    def _attend(self, query_HTD: torch.Tensor, scaling: float, watch: Stopwatch) -> torch.Tensor:
        """Return the output [H, T, D] of the queries of the newest T tokens, which are in the local part already."""
        keys, values = self.local.keys, self.local.values
        if self.is_long:
            with watch:
                keys, values = self._seen(query_HTD, scaling)
        return grouped_attention(query_HTD, keys, values, scaling)

    def _seen(self, query_HTD: torch.Tensor, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys, in the model's frame, and values [K, M, D] that the queries see."""
        blocks_KB = self._chosen(query_HTD, scaling)
        far_keys, far_values = self._fetched(blocks_KB)
        local = self.local
        num_heads, num_far, head_dim = far_keys.shape
        num_sinks = len(self.sinks)
        cut = num_sinks + num_far
        shape = (num_heads, cut + len(local), head_dim)
        keys = torch.empty(shape, dtype=local.keys.dtype, device=local.keys.device)
        values = torch.empty_like(keys)
        cos, sin = self._placed(cut)
        if num_sinks:
            self._place(self.sinks.keys, cos[:num_sinks], sin[:num_sinks], keys[:, :num_sinks])
            values[:, :num_sinks] = self.sinks.values
        if num_far:
            self._place(far_keys, cos[num_sinks:], sin[num_sinks:], keys[:, num_sinks:cut])
            values[:, num_sinks:cut] = far_values
        keys[:, cut:], values[:, cut:] = local.keys, local.values
        if self.observer is not None and blocks_KB is not None:
            self.observer(self, query_HTD, keys, blocks_KB, scaling)
        return keys, values

    def _placed(self, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rotation [num_tokens or 1, D/2] that brings kept tokens into the model's frame."""
        if self.settings.positions == "contiguous":
            return self.rope.between(self.first_local - num_tokens, self.first_local)
        by = self.first_local - 1 if self.settings.positions == "fixed" else -self.origin
        cos, sin = self.rope.between(by, by + 1)
        return cos.expand(num_tokens, -1), sin.expand(num_tokens, -1)

    def _place(self, kept: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
        if self.settings.positions == "native" and self.origin == 0:
            out.copy_(kept)
        else:
            rotate(kept.to(out.device, non_blocking=True), cos, sin, out)

    def _chosen(self, query_HTD: torch.Tensor, scaling: float) -> torch.Tensor | None:
        """Return the numbers [K, B] of the blocks to fetch; None where there are none."""
        num_blocks = self.settings.num_blocks
        if self.settings.positions == "contiguous":  # pinned tokens take room of the fetched ones
            num_blocks -= -(-(len(self.sinks) - self.num_first) // self.settings.block)
        if num_blocks <= 0 or not any(segment.num_blocks for segment in self.far):
            return None
        return choose(self.far, self._choosing(query_HTD), num_blocks, scaling)

    def _fetched(self, blocks_KB: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if blocks_KB is None:
            nothing = self.local.keys[:, :0]
            return nothing, nothing
        return fetch(self.far, blocks_KB)

    def _choosing(self, query_HTD: torch.Tensor) -> torch.Tensor:
        """Return the queries [K, Q, D], in the store's frame, that choose blocks for their key-value head."""
        num_new = query_HTD.shape[1]
        kept = self._kept(query_HTD, self.position - num_new)
        if num_new > _EXACT_QUERIES:
            runs = kept.tensor_split(_REPRESENTATIVES, dim=1)
            kept = torch.stack([run.mean(dim=1) for run in runs], dim=1)
        num_heads = self.local.keys.shape[0]
        return kept.unflatten(0, (num_heads, -1)).flatten(1, 2)
