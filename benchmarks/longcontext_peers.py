"""What long context is measured against, and our own, behind one interface: read a context, then write token by token.

All stand on the same weights. `full` is transformers' own path (SDPA, DynamicCache, whose every step copies the cache);
`sliding` is Mistral's window of it; `streaming` is StreamingLLM (Xiao et al., arXiv 2309.17453), the floor in time and
memory; the others are ours, named after their index.

Shapes: B rows (1), K key-value heads, T tokens of a call, N tokens kept, D head size, W window, S sinks.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.cache_utils import CacheLayerMixin

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext import LongContext, LongContextConfig, Memory

STREAMING_SINKS = 4
"""First tokens kept, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model with random weights: speed does not depend on them."""

    num_layers: int = 6
    hidden_size: int = 512
    intermediate_size: int = 1408
    num_heads: int = 8
    num_key_value_heads: int = 8
    vocab_size: int = 1024
    window: int = 1024
    dtype: str = "float32"

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def config(self) -> dict[str, Any]:
        """Return what `LlamaConfig` takes."""
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.window,
            "tie_word_embeddings": False,
        }

    def kv_bytes_per_token(self) -> int:
        """Return the bytes of one token's keys and values, all layers together."""
        size = torch.finfo(getattr(torch, self.dtype)).bits // 8
        return 2 * self.num_layers * self.num_key_value_heads * self.head_dim * size


def random_model(shape: Shape, device: str = "cpu") -> LlamaForCausalLM:
    """Return a LLaMA of `shape` with seeded weights."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape.config(), attn_implementation="sdpa"))
    return model.to(device=device, dtype=getattr(torch, shape.dtype)).eval()


def windowed(model: LlamaForCausalLM, window: int) -> MistralForCausalLM:
    """Return the same weights as a Mistral that sees `window` tokens: the library's own sliding window."""
    config = model.config.to_dict()
    kept = {key: config[key] for key in (*Shape().config(), "rms_norm_eps", "rope_parameters", "head_dim")}
    mistral = MistralForCausalLM(MistralConfig(**kept, sliding_window=window, attn_implementation="sdpa"))
    mistral.load_state_dict(model.state_dict())
    return mistral.to(device=model.device, dtype=model.dtype).eval()


class Reader(Protocol):
    """One system with one context."""

    def clear(self) -> None:
        """Forget the context."""
        ...

    def fill(self, num_tokens: int, seed: int) -> None:
        """Be as after reading `num_tokens`, with random keys and values: speed does not depend on them."""
        ...

    def reserve(self, num_tokens: int) -> None:
        """Say how long the context is going to be; reading it whole would have told."""
        ...

    def read(self, ids_1T: Tensor) -> None:
        """Read a part of the context."""
        ...

    def forward(self, ids_1T: Tensor) -> Tensor:
        """Read the question, or the token just written; return the logits [V] of what comes next."""
        ...

    def fork(self) -> "Reader":
        """Return a reader of the same context that goes its own way from here."""
        ...

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values held."""
        ...

    @property
    def index_bytes(self) -> int:
        """Bytes that searching needs besides."""
        ...


class CacheReader:
    """A transformers model and one of its caches."""

    def __init__(self, model: Any, make_cache: Callable[[], Cache], *, chunk: int) -> None:
        self.model, self.make_cache, self.chunk = model, make_cache, chunk
        self.clear()

    def clear(self) -> None:
        self.cache = self.make_cache()

    def fill(self, num_tokens: int, seed: int) -> None:
        self.clear()
        generator = torch.Generator().manual_seed(seed)
        for layer in self.cache.layers:
            fill_layer(layer, self.model, num_tokens, generator)

    def reserve(self, num_tokens: int) -> None:
        pass

    def read(self, ids_1T: Tensor) -> None:
        for ids in ids_1T.split(self.chunk, dim=1):
            self.model.model(ids, past_key_values=self.cache, use_cache=True)

    def forward(self, ids_1T: Tensor) -> Tensor:
        return self.model(ids_1T, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[0, -1]

    def fork(self) -> "CacheReader":
        other = copy.copy(self)
        other.cache = copy.deepcopy(self.cache)
        return other

    @property
    def kv_bytes(self) -> int:
        return sum(x.nbytes for layer in self.cache.layers for x in (layer.keys, layer.values) if x is not None)

    @property
    def index_bytes(self) -> int:
        return 0


def fill_layer(layer: Any, model: Any, num_tokens: int, generator: torch.Generator) -> None:
    """Put random keys and values of `num_tokens` into a cache layer, as far as it keeps them."""
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    held = num_tokens
    if isinstance(layer, StreamingLayer):
        held = layer.window
    elif layer.is_sliding:
        held = min(num_tokens, layer.sliding_window - 1)

    def fresh() -> Tensor:
        # on the CPU for all devices: the seed then means the same everywhere
        x = torch.randn(1, config.num_key_value_heads, held, head_dim, generator=generator)
        return x.to(device=model.device, dtype=model.dtype)

    keys, values = fresh(), fresh()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    if isinstance(layer, StreamingLayer):
        layer.num_seen = num_tokens
        layer.sinks = keys[:, :, : layer.num_sinks].clone()
    elif layer.is_sliding:
        layer.cumulative_length = num_tokens


class StreamingLayer(CacheLayerMixin):
    """StreamingLLM's cache: the first S tokens and the newest, W in all, at positions counted inside the cache.

    Only differences of rotary positions count, so instead of turning all newest keys back at every step, as the paper
    writes it, the S sinks are turned along behind them: the same logits for less work. A chunk of T tokens sees the
    W - T newest before it, as in the paper's code. Token t >= S lies in slot S + (t - S) mod (W - S).
    """

    is_sliding = False

    def __init__(self, inv_freq: Tensor, *, window: int, num_sinks: int = STREAMING_SINKS) -> None:
        super().__init__()
        self.inv_freq, self.window, self.num_sinks, self.num_seen = inv_freq, window, num_sinks, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shape = (*key_states.shape[:2], self.window, key_states.shape[-1])
        self.keys, self.values = key_states.new_empty(shape), value_states.new_empty(shape)
        self.sinks = key_states.new_empty((*shape[:2], self.num_sinks, shape[-1]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        seen, num_new = self.num_seen, key_states.shape[-2]
        kept = self._kept(num_new)
        if seen < self.num_sinks:
            self.sinks[:, :, seen : seen + num_new] = key_states[:, :, : self.num_sinks - seen]
        take = self._take_one if num_new == 1 else self._take_chunk
        keys, values = take(key_states, value_states, kept)
        if kept < seen:
            keys[:, :, : self.num_sinks] = self._turned(seen - kept)
        self.num_seen += num_new
        return keys, values

    def _take_one(self, key: Tensor, value: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        """Write over the oldest; order does not matter to the newest query, which sees all."""
        slot = self._slot(self.num_seen)
        self.keys[:, :, slot], self.values[:, :, slot] = key[:, :, 0], value[:, :, 0]
        return self.keys[:, :, : kept + 1], self.values[:, :, : kept + 1]

    def _take_chunk(self, keys: Tensor, values: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        """Return what the chunk sees in order, as the causal mask wants it."""
        seen, sinks = self.num_seen, min(self.num_sinks, self.num_seen)
        tokens = [*range(sinks), *range(seen - kept + sinks, seen)]
        old = [self._slot(token) for token in tokens]
        new = [self._slot(token) for token in range(seen, seen + keys.shape[2])]
        seen_keys = torch.cat((self.keys[:, :, old], keys), dim=2)
        seen_values = torch.cat((self.values[:, :, old], values), dim=2)
        self.keys[:, :, new], self.values[:, :, new] = keys, values
        return seen_keys, seen_values

    def _kept(self, num_new: int) -> int:
        if num_new > self.window - self.num_sinks:
            raise ConfigError(f"a chunk of {num_new} tokens does not fit beside the sinks into {self.window}")
        return min(self.num_seen, self.window - num_new)

    def _slot(self, token: int) -> int:
        if token < self.num_sinks:
            return token
        return self.num_sinks + (token - self.num_sinks) % (self.window - self.num_sinks)

    def _turned(self, by: int) -> Tensor:
        """Return the sinks' keys, `by` positions later."""
        angle = by * self.inv_freq.float()
        cos, sin = angle.cos(), angle.sin()
        first, second = self.sinks.float().chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(self.sinks.dtype)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        kept = self._kept(query_length)
        return kept + query_length, self.num_seen - kept

    def get_seq_length(self) -> int:
        return self.num_seen

    def get_max_length(self) -> int:
        return -1


def full(model: LlamaForCausalLM, *, chunk: int) -> CacheReader:
    """Return full attention as transformers does it."""
    return CacheReader(model, lambda: DynamicCache(config=model.config), chunk=chunk)


def sliding(model: LlamaForCausalLM, *, window: int, chunk: int) -> CacheReader:
    """Return the library's own sliding window over the same weights."""
    mistral = windowed(model, window)
    return CacheReader(mistral, lambda: DynamicCache(config=mistral.config), chunk=chunk)


def streaming(model: LlamaForCausalLM, *, window: int, chunk: int) -> CacheReader:
    """Return StreamingLLM over the same weights."""
    inv_freq = model.model.rotary_emb.inv_freq

    def make_cache() -> Cache:
        return Cache(layers=[StreamingLayer(inv_freq, window=window) for _ in range(model.config.num_hidden_layers)])

    return CacheReader(model, make_cache, chunk=chunk)


FILL_TOKENS = 4096
"""Random tokens made at once."""
SPARE_TOKENS = 16_384
"""Room that a filled store has behind its tokens, so that reading on does not move them."""


class RetrievalReader:
    """Ours, as a user has it: a memory that is read only, and a cache for the question asked of it."""

    def __init__(self, model: LlamaForCausalLM, config: LongContextConfig) -> None:
        self.model, self.lc = model, LongContext(model, None, config)
        self.clear()

    def clear(self) -> None:
        self.memory: Memory | None = None
        self.cache: Cache | None = None
        self.num_reserved = 0

    def reserve(self, num_tokens: int) -> None:
        self.num_reserved = num_tokens

    def fill(self, num_tokens: int, seed: int) -> None:
        self.clear()
        decoder, config = self.lc.decoder(), self.model.config
        rows, generator = decoder.make.rows(), torch.Generator().manual_seed(seed)
        for row in rows:
            row.reserve(num_tokens + SPARE_TOKENS)
            for begin in range(0, num_tokens, FILL_TOKENS):
                shape = (2, config.num_key_value_heads, min(FILL_TOKENS, num_tokens - begin), config.head_dim)
                keys, values = torch.randn(shape, generator=generator).to(self.model.device, self.model.dtype)
                row.take(keys, values)
        self.memory = decoder.memory(np.zeros(num_tokens, np.int64), rows)

    def read(self, ids_1T: Tensor) -> None:
        self.cache, ids_1T = None, ids_1T.cpu()
        if self.memory is None:
            self.memory = self.lc.encode(ids_1T)
            for row in self.memory.rows:
                row.reserve(self.num_reserved)
        else:
            self.lc.append(self.memory, ids_1T)

    def forward(self, ids_1T: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = self.lc.cache(self.memory)
        return self.model(ids_1T, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[0, -1]

    def fork(self) -> "RetrievalReader":
        other = copy.copy(self)
        other.cache = None
        return other

    @property
    def kv_bytes(self) -> int:
        return 0 if self.memory is None else self.memory.nbytes

    @property
    def index_bytes(self) -> int:
        return 0 if self.memory is None else self.memory.index_nbytes


INDEXES = ("flat", "pq", "block_mean", "block_minmax")
SYSTEMS = ("full", "sliding", "streaming", *INDEXES)
GROWING = ("full", *INDEXES)
"""Systems that keep every token."""


def make_reader(name: str, model: LlamaForCausalLM, *, chunk: int) -> Reader:
    """Return the system `name` over `model`, whose window is the model's positions."""
    window = model.config.max_position_embeddings
    if name == "full":
        return full(model, chunk=chunk)
    if name == "sliding":
        return sliding(model, window=window, chunk=chunk)
    if name == "streaming":
        return streaming(model, window=window, chunk=chunk)
    # the store beside the model: in main memory on a CPU, on the GPU on a GPU
    return RetrievalReader(model, LongContextConfig(enabled=True, index=name, use_datastore=False))
