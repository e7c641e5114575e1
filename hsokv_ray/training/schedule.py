"""The learning rate as a pure function of the optimiser step: nothing to save, nothing to restore."""

import math
from typing import Literal

ScheduleKind = Literal["cosine", "wsd", "constant"]

WSD_DECAY_FRACTION = 0.2


def learning_rate(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    max_steps: int,
    kind: ScheduleKind,
    final_fraction: float = 0.1,
) -> float:
    """Return the learning rate of the update that follows `step` finished updates.

    Warm-up is linear and its first update already moves: (step + 1) / (warmup_steps + 1) of the peak. After it:

    - cosine: half a cosine down to `final_fraction` of the peak at `max_steps`;
    - wsd: the peak, then the last fifth of all steps falls to `final_fraction` by 1 - sqrt(share of the decay done),
      which ends lower than a linear decay in every setting of Haegele et al. 2024 (arXiv 2405.18392, section 4);
    - constant: the peak.

    Args:
        step: optimiser steps finished, from 0; past `max_steps` the last value holds.
        peak: learning rate at the end of warm-up.
        warmup_steps: steps of warm-up.
        max_steps: steps of the whole run, warm-up included.
        kind: shape after warm-up.
        final_fraction: last learning rate as a share of the peak.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if kind == "constant":
        return peak
    decay_start = warmup_steps
    if kind == "wsd":
        decay_start = max(warmup_steps, max_steps - round(WSD_DECAY_FRACTION * max_steps))
    done = min(1.0, max(0, step - decay_start) / max(1, max_steps - decay_start))
    left = 0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else 1 - math.sqrt(done)
    return peak * (final_fraction + (1 - final_fraction) * left)
