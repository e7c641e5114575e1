"""What a search came to."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from hsokv_ray.swarm.messages import Best


@dataclass(frozen=True)
class Summary:
    """The end of a search; summary.json holds the same."""

    name: str
    """Of the run."""
    task: str
    best: Best
    flops: dict[str, int]
    """By kind: useful, wasted, repeated, evaluation; the last is the final test."""
    flops_budget: int | None
    told: int
    """Outcomes, failures included."""
    failed: int
    lost: int
    """Attempts that ended with their worker."""
    failures: list[str] = field(default_factory=list)
    """The last ones, a line each."""
    seconds: float = 0.0
    """Of all drivers of this search together."""
    workers: int = 0
    utilisation: float = 0.0
    """Share of the workers' time spent in orders, in [0, 1]."""
    test: dict[str, Any] = field(default_factory=dict)
    """What `learner.test()` said of the best model; empty where the learner has none."""
    test_failure: str = ""
    """Why the best model could not be tested or saved; "" where it was."""
    saved: str | None = None
    """Folder of the best model, where the learner has `save`."""

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from what `to_json` returned."""
        return cls(**{**values, "best": Best.from_json(values["best"])})
