"""Rotary positions (Su et al., arXiv 2104.09864), applied and taken back outside the model.

The model rotates queries and keys before the cache sees them. Kept keys are turned back, and turned again to wherever
they are to stand. Rotations add up, so turning back by `position` undoes the model's own.

Shapes: K heads, T tokens, D head size; the halves of D belong together, as in transformers.
"""

import torch

_KEPT = 8
_KEPT_TOKENS = 16_384
"""Longer rotations are made anew each time."""


class Rope:
    """The rotations of one model: angle of pair i at position p is `p * inv_freq[i]`."""

    def __init__(self, inv_freq: torch.Tensor) -> None:
        self.inv_freq = inv_freq.detach().float()
        self._known: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def between(self, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines [end - begin, D/2] of the positions from `begin`; they may be negative."""
        known = self._known.get((begin, end))  # all layers of a step ask for the same
        if known is not None:
            return known
        positions = torch.arange(begin, end, device=self.inv_freq.device, dtype=torch.float32)
        angles = positions[:, None] * self.inv_freq
        found = (angles.cos(), angles.sin())
        if end - begin <= _KEPT_TOKENS:
            if len(self._known) >= _KEPT:
                self._known = {}  # a new one: other threads may be reading
            self._known[begin, end] = found
        return found

    def turn(self, x_KTD: torch.Tensor, begin: int) -> torch.Tensor:
        """Return `x` rotated by the positions `begin`, `begin + 1`, ... of its tokens."""
        return rotate(x_KTD, *self.between(begin, begin + x_KTD.shape[-2]))

    def turn_back(self, x_KTD: torch.Tensor, begin: int) -> torch.Tensor:
        """Undo `turn(x, begin)`."""
        cos, sin = self.between(begin, begin + x_KTD.shape[-2])
        return rotate(x_KTD, cos, -sin)

    def shift(self, x_KTD: torch.Tensor, by: int) -> torch.Tensor:
        """Return `x` with every token rotated by the same `by` positions."""
        return x_KTD if by == 0 else rotate(x_KTD, *self.between(by, by + 1))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return `x` [..., T, D] rotated by the angles [T or 1, D/2]; in float32 inside, in x's dtype outside.

    Args:
        out: written and returned instead of a new tensor; not `x` itself.
    """
    half = x.shape[-1] // 2
    first, second = x[..., :half].float(), x[..., half:].float()
    if out is None:
        out = torch.empty_like(x)
    if out.dtype == torch.float32:
        torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    else:
        out[..., :half] = first * cos - second * sin
        out[..., half:] = second * cos + first * sin
    return out
