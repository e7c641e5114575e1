"""How many outcomes there were, what failed, and where the workers' time went."""

from dataclasses import asdict, dataclass, field
from typing import Any

KEPT_FAILURES = 20


@dataclass
class Counts:
    """Sums over all drivers of a search; times in seconds."""

    told: int = 0
    failed: int = 0
    lost: int = 0
    failures: list[str] = field(default_factory=list)
    """The last ones."""
    busy_s: float = 0.0
    """Workers' time in orders: training and evaluation, without loading and storing states."""
    seconds: float = 0.0
    worker_s: float = 0.0
    """Seconds times workers."""

    @property
    def utilisation(self) -> float:
        """Share of the workers' time spent in orders."""
        return min(self.busy_s / self.worker_s, 1.0) if self.worker_s else 0.0

    def count(self, record: dict[str, Any]) -> None:
        """Take in a line of journal.jsonl."""
        order_id = record["order"]["order_id"]
        if record["what"] == "lost":
            self.lost += 1
            return self._note(f"{order_id}: {record['why']}")
        outcome = record["outcome"]
        self.told += 1
        self.busy_s += outcome["seconds"]
        if outcome["failure"]:
            self.failed += 1
            self._note(f"{order_id}: {outcome['failure']}")
        return None

    def pass_time(self, seconds: float, workers: int) -> None:
        """Note that so many workers had so many seconds more."""
        self.seconds += max(seconds, 0.0)
        self.worker_s += max(seconds, 0.0) * workers

    def to_json(self) -> dict[str, Any]:
        """Return what the constructor takes."""
        return asdict(self)

    def _note(self, failure: str) -> None:
        self.failures = [*self.failures, failure][-KEPT_FAILURES:]
