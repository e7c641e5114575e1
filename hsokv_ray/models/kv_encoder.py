"""The encoder of the key-value transformer: token ids, or ready vectors, to the states that are read with.

Pre-norm layers (Xiong 2020, arXiv:2002.04745) on learnt positions, bidirectional and pooled by the masked mean, or
causal for the language-model head. Padding is kept out of attention, positions and pooling, so a sequence gives the
same states however long its batch is.

Shapes: B batch, T time, H heads, D hidden size, d dimensions of a head.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsokv_ray.errors import DataError
from hsokv_ray.models.configuration_kv_transformer import KVTransformerConfig


@dataclass(frozen=True, eq=False)
class States:
    """What the encoder made of a batch."""

    hidden_BTD: Tensor | None
    """Of every token; None for ready vectors."""
    pooled_BD: Tensor | None
    """Of every sequence or ready vector; None for the language model."""
    mask_BT: Tensor | None
    """bool, True at tokens; None for ready vectors."""

    @property
    def read_with(self) -> Tensor:
        """What the memory is asked with: [B, D], or [B, T, D] for the language model."""
        state = self.hidden_BTD if self.pooled_BD is None else self.pooled_BD
        assert state is not None, "an encoder pools, or is a language model's"
        return state


class KVAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: KVTransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout = config.dropout
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BTD: Tensor, allowed: Tensor) -> Tensor:
        """Return [B, T, D]; `allowed` bool, broadcast to [B, H, T, T], is True where a query sees a key."""
        batch, time, size = hidden_BTD.shape
        parts = self.qkv_proj(hidden_BTD).view(batch, time, 3, self.num_heads, size // self.num_heads)
        q_BHTd, k_BHTd, v_BHTd = parts.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        out_BHTd = F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, attn_mask=allowed, dropout_p=dropout)
        return self.out_proj(out_BHTd.transpose(1, 2).reshape(batch, time, size))


class KVLayer(nn.Module):
    """Attention, then a feed-forward, each after a norm and added to the residual stream."""

    def __init__(self, config: KVTransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = KVAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, config.intermediate_size),
            nn.GELU(),
            nn.Linear(config.intermediate_size, config.hidden_size),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_BTD: Tensor, allowed: Tensor) -> Tensor:
        hidden_BTD = hidden_BTD + self.dropout(self.attention(self.attention_norm(hidden_BTD), allowed))
        return hidden_BTD + self.dropout(self.mlp(self.mlp_norm(hidden_BTD)))


class KVEncoder(nn.Module):
    """Token ids, or ready vectors, to `States`."""

    def __init__(self, config: KVTransformerConfig) -> None:
        super().__init__()
        self.config = config
        if config.input == "vectors":
            assert config.input_dim is not None, "the configuration checks it"
            self.input_proj = nn.Linear(config.input_dim, config.hidden_size)
        else:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
            self.embed_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.layers = nn.ModuleList(KVLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor | None, attention_mask: Tensor | None, vectors: Tensor | None) -> States:
        """Encode a batch.

        Args:
            input_ids: int [B, T]; for input "tokens".
            attention_mask: [B, T], 0 at padding; None: padding is where the id is `pad_token_id`.
            vectors: float [B, input_dim]; for input "vectors".

        Raises:
            DataError: what is needed is missing or does not fit, or a sequence is nothing but padding.
        """
        if self.config.input == "vectors":
            projected = self.input_proj(self._check_vectors(input_ids, vectors))
            return States(None, self.dropout(self.norm(projected)), None)
        ids_BT, mask_BT = self._check_tokens(input_ids, attention_mask, vectors)
        hidden_BTD = self._encode(ids_BT, mask_BT)
        causal = self.config.head == "language_model"
        return States(hidden_BTD, None if causal else masked_mean(hidden_BTD, mask_BT), mask_BT)

    def _encode(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        embedded = self.embed_tokens(ids_BT) + self.embed_positions(positions_BT)
        hidden_BTD = self.dropout(self.embed_norm(embedded))
        allowed = allowed_pairs(mask_BT, causal=self.config.head == "language_model")
        for layer in cast("Iterable[KVLayer]", self.layers):
            hidden_BTD = layer(hidden_BTD, allowed)
        return self.norm(hidden_BTD)

    def _check_vectors(self, input_ids: Tensor | None, vectors: Tensor | None) -> Tensor:
        if vectors is None or input_ids is not None:
            raise DataError("input: this model takes vectors; give vectors [B, input_dim] and no input_ids")
        if vectors.ndim != 2 or vectors.shape[1] != self.config.input_dim or not vectors.is_floating_point():
            got = f"{vectors.dtype} {list(vectors.shape)}"
            raise DataError(f"vectors: got {got}; floats [B, {self.config.input_dim}] are needed")
        return vectors

    def _check_tokens(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, vectors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if input_ids is None or vectors is not None:
            raise DataError("input: this model takes tokens; give input_ids [B, T] and no vectors")
        longest, vocab_size = self.config.max_position_embeddings, self.config.vocab_size
        if input_ids.ndim != 2 or not 1 <= input_ids.shape[1] <= longest:
            raise DataError(f"input_ids: got {list(input_ids.shape)}; [B, T] with 1 to {longest} tokens is needed")
        if input_ids.numel() and (int(input_ids.min()) < 0 or int(input_ids.max()) >= vocab_size):
            got = f"{int(input_ids.min())} to {int(input_ids.max())}"
            raise DataError(f"input_ids: got ids from {got}; the vocabulary is 0 to {vocab_size - 1}")
        mask_BT = input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()
        if mask_BT.shape != input_ids.shape:
            raise DataError(f"attention_mask: got {list(mask_BT.shape)} for input_ids {list(input_ids.shape)}")
        if not mask_BT.any(-1).all():
            row = int((~mask_BT.any(-1)).nonzero()[0])
            raise DataError(f"attention_mask: sequence {row} is all padding; at least one token is needed")
        return input_ids, mask_BT


def allowed_pairs(mask_BT: Tensor, *, causal: bool) -> Tensor:
    """Return which key each query may see, bool [B, 1, 1 or T, T]."""
    allowed = mask_BT[:, None, None, :]
    if not causal:
        return allowed
    square = torch.ones(mask_BT.shape[1], mask_BT.shape[1], dtype=torch.bool, device=mask_BT.device)
    # Padding on the left would see nothing, and a softmax over nothing is NaN: it sees itself, and nobody sees it.
    return allowed & square.tril() | torch.eye(mask_BT.shape[1], dtype=torch.bool, device=mask_BT.device)


def masked_mean(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the mean over the tokens of each sequence, [B, D]."""
    weight_BT1 = mask_BT[..., None].to(hidden_BTD.dtype)
    return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)
