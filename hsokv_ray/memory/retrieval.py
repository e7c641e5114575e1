"""Reading a key-value memory as one differentiable function, and the gate that mixes the result into hidden states.

    retrieval = memory.read(queries)                       # [B, d] or [B, T, d]
    mixed = gate(hidden, retrieval)                        # GatedRead(hidden_size, value_dim)

Shapes: B any leading dimensions, C slots, K top_k, D key_dim, V value_dim.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Retrieval:
    """What each query got."""

    values: Tensor
    """[B, V] in the queries' dtype; zeros where nothing hit."""
    weights: Tensor
    """[B, K], each row adds up to 1; zeros where nothing hit."""
    indices: Tensor
    """int64 [B, K] slots, nearest first; -1 beyond the entries there are. Ties stand in no particular order."""
    scores: Tensor
    """[B, K] cosines; -inf where the index is -1."""
    hits: Tensor
    """bool [B, K]: entries at or above the threshold."""
    clock: int
    """The memory's time of this read; given to `feedback` so that an entry written since is not judged for it."""

    @property
    def hit(self) -> Tensor:
        """bool [B]: whether anything hit."""
        return self.hits.any(-1)


def retrieve(
    queries: Tensor,
    keys_CD: Tensor,
    values_CV: Tensor,
    *,
    valid_C: Tensor,
    log_strength_C: Tensor,
    alone_C: Tensor,
    top_k: int,
    temperature: float,
    threshold: float,
    clock: int = 0,
) -> Retrieval:
    """Return the softmax-weighted values of the nearest keys: weight ~ strength * exp(cosine / temperature).

    Gradients reach `queries`, `keys_CD` and `values_CV`. A NaN in a query comes out as NaN.

    Args:
        queries: [B, D], normalised here; a zero query has cosine 0 with everything.
        keys_CD: at unit length.
        values_CV: float.
        valid_C: bool, slots that may be retrieved.
        log_strength_C: added to the softmax' logits.
        alone_C: bool; where the nearest hit is such a slot it takes the whole weight, with the blend's gradient
            (straight-through, arXiv:1308.3432).
        top_k: columns of the result.
        temperature: above 0.
        threshold: cosine below which nothing hits.
        clock: passed on.
    """
    unit = F.normalize(queries.to(keys_CD.dtype), dim=-1)
    cosines = (unit @ keys_CD.T).masked_fill(~valid_C, -torch.inf)
    scores, indices = cosines.topk(min(top_k, len(keys_CD)), dim=-1)
    absent = scores == -torch.inf
    hits = ~(absent | (scores < threshold))
    logits = scores / temperature + log_strength_C[indices]
    soft = F.softmax(logits.masked_fill(~hits, torch.finfo(logits.dtype).min), dim=-1) * hits
    weights = _recall_alone(soft, (alone_C[indices[..., :1]] & hits[..., :1]))
    values = torch.einsum("...k,...kv->...v", weights, values_CV[indices])
    padding = (0, top_k - scores.shape[-1])
    return Retrieval(
        values=values.to(queries.dtype),
        weights=F.pad(weights, padding),
        indices=F.pad(indices.masked_fill(absent, -1), padding, value=-1),
        scores=F.pad(scores, padding, value=-torch.inf),
        hits=F.pad(hits, padding, value=False),
        clock=clock,
    )


def _recall_alone(soft: Tensor, alone: Tensor) -> Tensor:
    first = F.one_hot(torch.zeros_like(alone[..., 0], dtype=torch.long), soft.shape[-1]).to(soft.dtype)
    return torch.where(alone, first + soft - soft.detach(), soft)


@dataclass(frozen=True, eq=False)
class Mixed:
    """Hidden states after a read."""

    output: Tensor
    """[B, H]; the hidden state itself where nothing hit."""
    gate: Tensor
    """[B] in [0, 1]: share of the memory; 0 where nothing hit."""


class GatedRead(nn.Module):
    """Mix a retrieval into hidden states: output = g W v + (1 - g) h, g = sigmoid(MLP([h, W v])) where something hit.

    W is the identity where values are as wide as hidden states. The gate sees the retrieved value, so that it can
    refuse one that does not fit.

    Args:
        hidden_size: H.
        value_dim: V.
        gate_hidden_size: width of the gate's hidden layer.
    """

    def __init__(self, hidden_size: int, value_dim: int, *, gate_hidden_size: int = 64) -> None:
        super().__init__()
        same = hidden_size == value_dim
        self.value_proj = nn.Identity() if same else nn.Linear(value_dim, hidden_size, bias=False)
        self.gate = nn.Sequential(
            nn.Linear(2 * hidden_size, gate_hidden_size), nn.GELU(), nn.Linear(gate_hidden_size, 1)
        )

    def forward(self, hidden: Tensor, retrieval: Retrieval, *, force: float | None = None) -> Mixed:
        """Mix `retrieval` [B] into `hidden` [B, H].

        Args:
            force: a gate for every hit in place of the learned one (0 and 1 are the ablations); None learns.
        """
        value = self.value_proj(retrieval.values)
        if force is None:
            gate = torch.sigmoid(self.gate(torch.cat([hidden, value], dim=-1)))
        else:
            gate = torch.full_like(hidden[..., :1], force)
        gate = gate * retrieval.hit[..., None]
        return Mixed(output=gate * value + (1 - gate) * hidden, gate=gate[..., 0])
