"""FLOPs of the key-value transformer: the matrix products alone, a multiply and an add being two.

    forward_flops(config, batch_size=32, num_tokens=48, num_entries=400)

A backward pass costs a product once for each side that has a gradient: twice the forward where both sides learn, once
where one is stored (keys and values of the memory, ready vectors), nothing in a frozen key encoder. Attention is
counted in full, also where a mask hides half of it; recomputation inside a kernel is not. These are the numbers of
`torch.utils.flop_counter.FlopCounterMode`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from hsokv_ray.errors import DataError
from hsokv_ray.memory.config import KeyValueConfig
from hsokv_ray.models.configuration_kv_transformer import KVTransformerConfig

GATE_HIDDEN_SIZE = 64
"""Width of the gate's hidden layer."""


@dataclass(frozen=True)
class Product:
    """A matrix product."""

    flops: int
    """Of the forward pass."""
    num_learnt: int = 2
    """Sides a gradient goes to: 0, 1 or 2."""


def forward_flops(config: KVTransformerConfig, batch_size: int, num_tokens: int, num_entries: int = 0) -> int:
    """Return the FLOPs of a forward pass.

    Args:
        config: as the model's.
        batch_size: sequences or ready vectors.
        num_tokens: of each sequence, padding included; not looked at for ready vectors.
        num_entries: in the memory (the highest slot in use, where entries were removed); not looked at without one.

    Raises:
        DataError: a number is negative, or there is nothing in the batch.
    """
    return sum(product.flops for product in _products(config, batch_size, num_tokens, num_entries))


def step_flops(config: KVTransformerConfig, batch_size: int, num_tokens: int, num_entries: int = 0) -> int:
    """Return the FLOPs of a forward and a backward pass; arguments and errors as for `forward_flops`."""
    products = _products(config, batch_size, num_tokens, num_entries)
    return sum(product.flops * (1 + product.num_learnt) for product in products)


def write_flops(config: KVTransformerConfig, batch_size: int, num_tokens: int) -> int:
    """Return the FLOPs of making the keys that `write` stores under the policy "always".

    Raises:
        DataError: as for `forward_flops`, or the model has no memory.
    """
    _check(batch_size, num_tokens, 0)
    if config.memory is None:
        raise DataError("write_flops: this model has no memory to write to")
    encoders = 2 if config.key_encoder == "frozen" else 1
    encoder = sum(product.flops for product in _encoder(config, batch_size, num_tokens))
    key_dim = KeyValueConfig(**config.memory).key_dim
    return encoders * encoder + 2 * _num_reads(config, batch_size, num_tokens) * config.hidden_size * key_dim


def _products(config: KVTransformerConfig, batch_size: int, num_tokens: int, num_entries: int) -> list[Product]:
    _check(batch_size, num_tokens, num_entries)
    products = list(_encoder(config, batch_size, num_tokens))
    reads = _num_reads(config, batch_size, num_tokens)
    if config.memory is not None:
        memory = KeyValueConfig(**config.memory)
        if config.key_encoder == "frozen":
            products += [Product(each.flops, 0) for each in products]
        products += _read(config, memory, reads, num_entries)
    if config.head == "none":
        return products
    outputs = config.vocab_size if config.head == "language_model" else config.num_labels or 0
    return [*products, Product(2 * reads * config.hidden_size * outputs)]


def _encoder(config: KVTransformerConfig, batch_size: int, num_tokens: int) -> Iterator[Product]:
    size = config.hidden_size
    if config.input == "vectors":
        yield Product(2 * batch_size * (config.input_dim or 0) * size, 1)
        return
    tokens = batch_size * num_tokens
    for _ in range(config.num_hidden_layers):
        yield Product(2 * tokens * size * 3 * size)  # queries, keys and values
        yield Product(2 * 2 * tokens * num_tokens * size)  # scores, and the weighted sum
        yield Product(2 * tokens * size * size)
        yield Product(2 * 2 * tokens * size * config.intermediate_size)


def _read(config: KVTransformerConfig, memory: KeyValueConfig, reads: int, num_entries: int) -> Iterator[Product]:
    learns = config.key_encoder == "live"
    entries = max(num_entries, 1)  # an empty memory compares with one empty slot
    yield Product(2 * reads * config.hidden_size * memory.key_dim, 2 * learns)
    yield Product(2 * reads * entries * memory.key_dim, 1 * learns)
    yield Product(2 * reads * min(memory.top_k, entries) * memory.value_dim, 1 * learns)
    if memory.value_dim != config.hidden_size:
        yield Product(2 * reads * memory.value_dim * config.hidden_size, 1 + learns)
    yield Product(2 * reads * 2 * config.hidden_size * GATE_HIDDEN_SIZE)
    yield Product(2 * reads * GATE_HIDDEN_SIZE)


def _num_reads(config: KVTransformerConfig, batch_size: int, num_tokens: int) -> int:
    return batch_size * num_tokens if config.head == "language_model" else batch_size


def _check(batch_size: int, num_tokens: int, num_entries: int) -> None:
    if batch_size < 1 or num_tokens < 1 or num_entries < 0:
        got = f"batch_size {batch_size}, num_tokens {num_tokens}, num_entries {num_entries}"
        raise DataError(f"flops: got {got}; at least 1, 1 and 0 are needed")
