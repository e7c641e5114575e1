"""Named sizes of the model and what each costs: parameters, FLOPs, memory. Imports neither torch nor transformers.

shape = model_shape(ModelConfig(size="micro"), vocab_size=8192, seq_len=512)
count_parameters(shape)          # ParameterCount(total=..., active=..., embedding=...)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from hsokv_ray.errors import ConfigError
from hsokv_ray.models.config import ModelConfig, Size

Shape = Mapping[str, Any]
"""Arguments of `HMSTConfig`, or the part of them that says how large the model is."""

PRESETS: dict[Size, dict[str, Any]] = {
    "micro": {
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts": 8,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 32_768,
        "hidden_size": 512,
        "intermediate_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_experts": 8,
        "tie_word_embeddings": True,
    },
    "small": {
        "vocab_size": 32_768,
        "hidden_size": 1024,
        "intermediate_size": 1536,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "num_experts": 8,
        "tie_word_embeddings": True,
    },
    "base": {
        "vocab_size": 65_536,
        "hidden_size": 2048,
        "intermediate_size": 3584,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "num_experts": 16,
        "tie_word_embeddings": False,
    },
    "large": {
        "vocab_size": 65_536,
        "hidden_size": 3072,
        "intermediate_size": 6144,
        "num_hidden_layers": 32,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "num_experts": 16,
        "tie_word_embeddings": False,
    },
}
"""Shapes by name. The names are counted parameters with the size's own vocabulary: 10M, 100M, 1B, 12B (2B active per
token, for which 16 experts are needed) and 30B."""

NUM_EXPERTS_PER_TOK = 2
"""Experts each token is sent to, in every size."""

FUSED_LOSS_VOCAB_SIZE = 32_000
"""Vocabulary from which on training computes the loss without holding the logits."""

LOSS_CHUNK_TOKENS = 512
"""Tokens whose logits are held at once where the logits of all are not."""


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model."""

    total: int
    """All of them, tied weights once."""
    active: int
    """Those that work on one token: all but the experts it is not sent to."""
    embedding: int
    """Those of the input embedding, which is a look-up and costs no FLOPs (unless tied, when it is the head too)."""


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one training worker, in bytes."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int

    @property
    def total_bytes(self) -> int:
        """All four together."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes + self.activations_bytes


def default_vocab_size(size: Size) -> int:
    """Return the vocabulary a preset is counted with, in entries."""
    return PRESETS[size]["vocab_size"]


def model_shape(config: ModelConfig, *, vocab_size: int | None = None, seq_len: int) -> dict[str, Any]:
    """Return the arguments of `HMSTConfig` for `config`.

    Args:
        config: size and changes to it.
        vocab_size: entries of the tokenizer; None: the size's own.
        seq_len: longest sequence the model is trained on, in tokens; becomes `max_position_embeddings`.

    Raises:
        ConfigError: the dimensions do not fit one another.
    """
    shape = dict(PRESETS[config.size])
    num_experts = config.num_experts or shape["num_experts"]
    shape.update(
        vocab_size=vocab_size or shape["vocab_size"],
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        max_position_embeddings=seq_len,
        num_experts=num_experts,
        num_experts_per_tok=config.num_experts_per_tok or min(NUM_EXPERTS_PER_TOK, num_experts),
        shared_expert_intermediate_size=shape["intermediate_size"] if config.shared_expert else 0,
        router_z_loss_coef=config.z_loss,
        router_aux_loss_coef=config.switch_loss if config.balance == "switch" else 0.0,
    )
    if config.experts_implementation is not None:
        shape["experts_implementation"] = config.experts_implementation
    check_shape(shape)
    return shape


SHAPE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "num_experts",
    "num_experts_per_tok",
)


def check_shape(shape: Shape) -> None:
    """Raise `ConfigError` where dimensions are not positive or do not fit one another."""
    for name in SHAPE_FIELDS:
        if shape[name] < 1:
            raise ConfigError(f"{name}: got {shape[name]}; at least 1 is needed")
    if shape["shared_expert_intermediate_size"] < 0:
        raise ConfigError(
            f"shared_expert_intermediate_size: got {shape['shared_expert_intermediate_size']}; give 0 for none"
        )
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    if heads % kv_heads:
        raise ConfigError(f"num_key_value_heads: got {kv_heads}, which does not divide num_attention_heads {heads}")
    if shape["head_dim"] % 2:
        raise ConfigError(f"head_dim: got {shape['head_dim']}; rotary positions need an even number")
    experts, per_token = shape["num_experts"], shape["num_experts_per_tok"]
    if per_token > experts:
        raise ConfigError(f"--num-experts-per-tok: got {per_token}; at most --num-experts {experts}")
    if experts == 1 and shape["shared_expert_intermediate_size"]:
        raise ConfigError("--shared-expert needs --num-experts of at least 2; a dense model has nothing to share with")


@dataclasses.dataclass(frozen=True)
class _Parts:
    """Parameters by what they are, the whole model unless said otherwise."""

    embedding: int
    head: int
    attention: int
    norms: int
    router: int
    experts: int
    always_on: int
    """Dense feed-forward or shared expert."""


def _parts(shape: Shape) -> _Parts:
    layers, hidden = shape["num_hidden_layers"], shape["hidden_size"]
    query_size = shape["num_attention_heads"] * shape["head_dim"]
    key_size = shape["num_key_value_heads"] * shape["head_dim"]
    one_expert = 3 * hidden * shape["intermediate_size"]
    experts = shape["num_experts"]
    sparse = experts > 1
    embedding = shape["vocab_size"] * hidden
    return _Parts(
        embedding=embedding,
        head=0 if shape["tie_word_embeddings"] else embedding,
        attention=layers * 2 * hidden * (query_size + key_size),
        norms=(2 * layers + 1) * hidden,
        router=layers * experts * hidden if sparse else 0,
        experts=layers * experts * one_expert if sparse else 0,
        always_on=layers * (3 * hidden * shape["shared_expert_intermediate_size"] if sparse else one_expert),
    )


def count_parameters(shape: Shape) -> ParameterCount:
    """Return the parameters of the model that `shape` describes, without building it."""
    parts = _parts(shape)
    total = sum(dataclasses.astuple(parts))
    idle = parts.experts - parts.experts * shape["num_experts_per_tok"] // shape["num_experts"]
    return ParameterCount(total=total, active=total - idle, embedding=parts.embedding)


def flops_per_token(shape: Shape, seq_len: int) -> float:
    """Return the FLOPs of forward and backward per token, as torchtitan counts them.

    6 per active parameter of a matrix that multiplies (so with the head, without the embedding look-up) and 12 per
    layer, head dimension and position of attention, the half that the causal mask hides included.
    """
    looked_up = 0 if shape["tie_word_embeddings"] else _parts(shape).embedding
    multiplying = count_parameters(shape).active - looked_up - _parts(shape).norms
    attention = shape["num_hidden_layers"] * shape["num_attention_heads"] * shape["head_dim"] * seq_len
    return 6.0 * multiplying + 12.0 * attention


def estimate_memory(
    shape: Shape,
    *,
    batch_size: int,
    seq_len: int,
    optimizer: Literal["adamw", "muon", "adamw8bit"] = "adamw",
    num_workers: int = 1,
    parallel: Literal["ddp", "fsdp", "ep"] = "ddp",
    expert_parallel_size: int | None = None,
    mixed_precision: bool = False,
    gradient_checkpointing: bool = False,
) -> MemoryEstimate:
    """Return the memory one worker needs at the peak of a training step, without the libraries' own.

    Args:
        shape: as `model_shape` returns it.
        batch_size: sequences in one forward pass of one worker.
        seq_len: tokens in a sequence.
        num_workers: all training workers.
        expert_parallel_size: workers that share one set of experts; None: all of them.
    """
    parts = _parts(shape)
    total = sum(dataclasses.astuple(parts))
    held, gathered = float(total), 0.0
    if parallel == "ep":
        held = total - parts.experts + parts.experts / (expert_parallel_size or num_workers)
    elif parallel == "fsdp":
        held = total / num_workers
        # the root's weights stay gathered through the step, and two layers' at a time
        root = parts.embedding + parts.head
        gathered = root + 2 * (total - root) / shape["num_hidden_layers"] if num_workers > 1 else 0.0
    matrices = held * (total - parts.embedding - parts.head - parts.norms) / total
    optimizer_bytes = {"adamw": 8.0 * held, "adamw8bit": 2.03 * held, "muon": 8.0 * held - 4.0 * matrices}
    # autocast keeps a bf16 copy of the weights beside the fp32 ones until the step's forward pass is over
    copies = 2.0 * max(held, gathered) if mixed_precision else 0.0
    return MemoryEstimate(
        weights_bytes=int(4.0 * (held + gathered) + copies),
        gradients_bytes=int(4.0 * (held + gathered)),
        optimizer_bytes=int(optimizer_bytes[optimizer]),
        activations_bytes=_activation_bytes(
            shape,
            num_tokens=batch_size * seq_len,
            mixed_precision=mixed_precision,
            gradient_checkpointing=gradient_checkpointing,
        ),
    )


def _activation_bytes(shape: Shape, *, num_tokens: int, mixed_precision: bool, gradient_checkpointing: bool) -> int:
    """What autograd holds at the end of the forward pass, and the logits with their gradient."""
    hidden, experts, layers = shape["hidden_size"], shape["num_experts"], shape["num_hidden_layers"]
    width = 2 if mixed_precision else 4
    # two norms: input and output of each
    norms = hidden * (2 * 4 + 2 * 4 + 2 * (width if mixed_precision else 0))
    # query, key and value (repeated to the query's heads), output and its copy in the order the projection wants
    attention = 5 * shape["num_attention_heads"] * shape["head_dim"] * width
    # a SwiGLU holds both halves, the activated gate and the product
    feed_forward = (
        4 * (shape["intermediate_size"] if experts == 1 else shape["shared_expert_intermediate_size"]) * width
    )
    if experts > 1:
        per_expert = 2 * hidden + 4 * shape["intermediate_size"]
        feed_forward += shape["num_experts_per_tok"] * per_expert * width + 4 * experts * 4
    layer = norms + attention + feed_forward
    head = 2 * 4 * hidden * num_tokens + _loss_bytes(shape, num_tokens=num_tokens, mixed_precision=mixed_precision)
    if gradient_checkpointing:  # the layers are computed again after the logits are gone
        return int(num_tokens * layers * 4 * hidden + max(head, num_tokens * layer))
    return int(num_tokens * layers * layer + head)


def _loss_bytes(shape: Shape, *, num_tokens: int, mixed_precision: bool) -> int:
    """Logits, their log-softmax and its gradient; from 32,000 entries on only a chunk of them (see `loss.py`)."""
    vocab_size, hidden = shape["vocab_size"], shape["hidden_size"]
    whole = (3 * 4 + mixed_precision * 2) * vocab_size * num_tokens
    if vocab_size < FUSED_LOSS_VOCAB_SIZE:
        return whole
    chunk = min(num_tokens, LOSS_CHUNK_TOKENS)
    if mixed_precision:
        return (3 * 4 + 2) * vocab_size * chunk
    # the fused loss computes the head's gradient in the forward pass; the backward pass adds the embedding's to it
    return 4 * vocab_size * (2 * hidden + 2 * chunk)
