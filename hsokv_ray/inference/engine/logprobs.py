"""How likely a token was, and what else was.

Shapes: V vocabulary.
"""

from collections.abc import Callable

import torch

from hsokv_ray.inference.engine.events import TokenLogprob


def token_logprob(logits_V: torch.Tensor, token: int, num_top: int, text_of: Callable[[int], str]) -> TokenLogprob:
    """Return the log-probability of `token` under the model itself, with the `num_top` likeliest tokens."""
    logprobs_V = logits_V.float().log_softmax(dim=-1)
    values, tokens = logprobs_V.topk(min(num_top, len(logprobs_V)))
    top = tuple(
        TokenLogprob(other, text_of(other), value)
        for other, value in zip(tokens.tolist(), values.tolist(), strict=True)
    )
    return TokenLogprob(token, text_of(token), float(logprobs_V[token]), top)
