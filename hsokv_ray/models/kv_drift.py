"""Key drift: a key is made by the weights of its day, and the encoder learns on while the key stays.

Keys carry a version, the digest of the weights that made them. What can be done about drift: encode the stored inputs
again (`TransformerWithKV.reencode`), or make keys with a copy of the encoder that does not learn (`key_encoder`
"frozen"), or follows slowly (`follow`, the momentum encoder of MoCo, arXiv:1911.05722, eq. 2). How much it matters is
measured: `HitRateOverTime`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from hsokv_ray.errors import DataError
from hsokv_ray.models.kv_statistics import HitRate, hit_rate

if TYPE_CHECKING:
    from hsokv_ray.models.kv_transformer import TransformerWithKV


@dataclass(frozen=True)
class KeyDrift:
    """How far the memory has fallen behind the weights."""

    encoder_id: str
    """Version of the keys that the weights make now."""
    num_entries: int
    num_behind: int
    """Entries whose key another version made."""


@dataclass(frozen=True)
class DriftPoint:
    """One measurement."""

    step: int
    encoder_id: str
    num_entries: int
    num_behind: int
    top_1: float
    """Share of queries whose nearest entry was the right one."""
    top_k: float
    num_queries: int


def weights_digest(weights: Mapping[str, Tensor], *, facts: str = "") -> str:
    """Return a digest of tensors by name, the same in every process and on every device.

    Args:
        weights: by name.
        facts: what beside the weights decides what they compute.
    """
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, {"facts": facts})
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def key_drift(model: "TransformerWithKV") -> KeyDrift:
    """Return how many entries of the model's memory were made by other weights than those it has now.

    Raises:
        DataError: it has no memory.
    """
    memory, now = model.required_memory(), model.encoder_id()
    behind = sum(entry is not None and entry.encoder_id != now for entry in memory.entries)
    return KeyDrift(now, len(memory), behind)


@torch.no_grad()
def follow(follower: nn.Module, leader: nn.Module, decay: float) -> None:
    """Set every parameter of `follower` to decay * its own + (1 - decay) * the leader's; decay 0 copies.

    Raises:
        DataError: `decay` is outside [0, 1).
    """
    if not 0 <= decay < 1:
        raise DataError(f"decay: got {decay}; a number in [0, 1) is needed")
    for own, new in zip(follower.parameters(), leader.parameters(), strict=True):
        own.lerp_(new.to(own), 1.0 - decay)


@dataclass
class HitRateOverTime:
    """The hit rate of the same questions as training goes on: the measure of key drift.

    log = HitRateOverTime()
    log.measure(model, step, right_ids, input_ids=questions)
    log.lost                                    # best top-1 so far minus the latest
    """

    points: list[DriftPoint] = field(default_factory=list)

    def measure(self, model: "TransformerWithKV", step: int, right_ids: Sequence[str], **inputs: Any) -> DriftPoint:
        """Ask the memory, without changing it, and note how often the right entry came.

        Args:
            model: with a memory that is read once per example (not a language model's).
            step: training steps so far, larger than at the last measurement.
            right_ids: the id of the entry each example should find; one that is gone is a miss.
            inputs: what the model's `keys` takes.
        """
        if self.points and step <= self.points[-1].step:
            raise DataError(f"step: got {step} after {self.points[-1].step}; steps must rise")
        rate, drift = _ask(model, right_ids, inputs), key_drift(model)
        self.points.append(DriftPoint(step, **asdict(drift), **asdict(rate)))
        return self.points[-1]

    @property
    def lost(self) -> float:
        """The best top-1 hit rate so far minus the latest; 0 before the second measurement."""
        rates = [point.top_1 for point in self.points]
        return max(rates) - rates[-1] if rates else 0.0


@torch.no_grad()
def _ask(model: "TransformerWithKV", right_ids: Sequence[str], inputs: dict[str, Any]) -> HitRate:
    memory, was_training = model.required_memory(), model.training
    model.eval()
    try:
        found = memory.read(model.keys(**inputs), record=False)
    finally:
        model.train(was_training)
    return hit_rate(found, memory.slots_of(right_ids))
