"""Causal attention of the newest tokens with grouped query heads.

Shapes: H query heads, K key-value heads, T new tokens, M tokens seen, D head size.
"""

import torch
import torch.nn.functional as F


def grouped_attention(
    query_HTD: torch.Tensor, keys_KMD: torch.Tensor, values_KMD: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Return causal attention [H, T, D] of the newest T of M tokens over all M.

    A key-value head and its group of query heads are a batch of their own, so keys are not repeated.
    """
    num_heads, num_new, head_dim = query_HTD.shape
    num_kv_heads, num_seen = keys_KMD.shape[:2]
    group = num_heads // num_kv_heads
    if num_new == 1:  # the group's queries side by side; heads as heads of one row, which is faster than as rows
        output = F.scaled_dot_product_attention(
            query_HTD.view(1, num_kv_heads, group, head_dim), keys_KMD[None], values_KMD[None], scale=scaling
        )
        return output.view(num_heads, 1, head_dim)
    causal = num_new == num_seen
    output = F.scaled_dot_product_attention(
        query_HTD.unflatten(0, (num_kv_heads, group)),
        keys_KMD[:, None].expand(-1, group, -1, -1),
        values_KMD[:, None].expand(-1, group, -1, -1),
        attn_mask=None if causal else _newest(num_new, num_seen, query_HTD.device),
        is_causal=causal,
        scale=scaling,
    )
    return output.flatten(0, 1)


def _newest(num_new: int, num_seen: int, device: torch.device) -> torch.Tensor:
    """Return the mask [T, M] by which each of the newest tokens sees all before it and itself."""
    return torch.ones(num_new, num_seen, dtype=torch.bool, device=device).tril(num_seen - num_new)
