"""What the folder of a run holds, read into lists and arrays for whoever shows it.

    record = read_record("~/hsokv_runs/words")
    record.steps_N, record.scores_N              # one entry per outcome, in the order they were told; NaN: failed
    record.metric_N(HIT_RATE)                    # NaN where an outcome says nothing about it

N is the number of outcomes. Reading changes nothing, so a run that goes on may be read too.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hsokv_ray.errors import DataError
from hsokv_ray.swarm.eyes.tally import Lost, Tally, Told
from hsokv_ray.swarm.ledger import Kind
from hsokv_ray.swarm.messages import Event
from hsokv_ray.swarm.space import Space

JOURNAL, EVENTS, SEARCH = "journal.jsonl", "events.jsonl", "search.json"

# Names in `Outcome.metrics` that are shown where a learner reports them.
GATE_ENTROPY = "gate_entropy_bits"
"""Mean binary entropy of the gate in bits: 0 every gate is open or shut, 1 every gate is half open."""
RETENTION = "retention"
"""Accuracy now on what was learnt earlier, in [0, 1]. Of Split-CIFAR: the mean class-IL accuracy on the validation
images of the tasks before the current one; not reported during the first task, which has none before it."""
MEMORY_ENTRIES = "memory_entries"
"""Entries that the memory holds; of rare words, whose episodes have one each, the mean over the queries asked."""
HIT_RATE = "hit_rate"
"""Share of reads whose nearest entry is the right one, in [0, 1]."""


@dataclass(frozen=True)
class Record:
    """A run as far as it went."""

    name: str
    told: list[Told]
    """Outcomes as the swarm counted them: each order once, in the order they were told."""
    lost: list[Lost]
    events: list[Event]
    """Each number once, ascending."""
    flops_by_kind: dict[Kind, int]
    best: Told | None
    num_torn: int
    """Last lines that a crash tore and that are left out."""
    space: Space | None
    """None: there is no search.json, as where the folder is not of `Drive`."""
    seed: int | None

    def __len__(self) -> int:
        return len(self.told)

    @cached_property
    def agents_N(self) -> np.ndarray:
        """Agent of each outcome, int64."""
        return self._column(lambda told: told.order.agent, np.int64)

    @cached_property
    def managers_N(self) -> np.ndarray:
        """Manager of each outcome, int64."""
        return self._column(lambda told: told.order.manager, np.int64)

    @cached_property
    def steps_N(self) -> np.ndarray:
        """Steps that each outcome's model has trained, int64."""
        return self._column(lambda told: told.order.end_step, np.int64)

    @cached_property
    def scores_N(self) -> np.ndarray:
        """Score of each outcome, float64; NaN: it failed."""
        return self._column(lambda told: told.score, np.float64)

    @cached_property
    def flops_N(self) -> np.ndarray:
        """FLOPs that the whole swarm had spent with each outcome, lost ones included, float64."""
        return self._column(lambda told: told.flops, np.float64)

    @cached_property
    def best_N(self) -> np.ndarray:
        """Best score up to each outcome, float64; NaN: none so far."""
        lowest_N = np.where(np.isnan(self.scores_N), -np.inf, self.scores_N)
        best_N = np.maximum.accumulate(lowest_N)
        return np.where(np.isneginf(best_N), np.nan, best_N)

    def metric_N(self, name: str) -> np.ndarray:
        """Return a metric of each outcome, float64; NaN where there is none or it is no number."""
        return self._column(lambda told: _number(told.outcome.metrics.get(name)), np.float64)

    @cached_property
    def by_id(self) -> dict[str, Told]:
        """Order -> its outcome."""
        return {told.order.order_id: told for told in self.told}

    def _column(self, value_of: Callable[[Told], float], dtype: Any) -> np.ndarray:
        return np.array([value_of(told) for told in self.told], dtype=dtype)


def read_record(folder: str | Path) -> Record:
    """Read the folder of a run, finished or not.

    Raises:
        DataError: there is no such folder, or a line other than the last one is damaged.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder}: got no such folder; the folder of a run is needed, with a {JOURNAL} in it")
    lines, torn = read_lines(folder / JOURNAL)
    events, torn_event = read_lines(folder / EVENTS)
    tally = Tally()
    counted = [tally.take(line) for line in lines]
    space, seed = _identity(folder)
    return Record(
        name=folder.name,
        told=[each for each in counted if isinstance(each, Told)],
        lost=[each for each in counted if isinstance(each, Lost)],
        events=_events(events),
        flops_by_kind=dict(tally.ledger.totals),
        best=tally.best,
        num_torn=torn + torn_event,
        space=space,
        seed=seed,
    )


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of a JSON lines file, and how many torn last ones were left out (0 or 1); no file: none.

    Raises:
        DataError: a line before the last is no JSON object.
    """
    if not path.exists():
        return [], 0
    *whole, rest = path.read_bytes().split(b"\n")
    values = []
    for number, line in enumerate(whole, start=1):
        value = _parsed(line)
        if value is None and number == len(whole) and not rest:
            return values, 1
        if value is None:
            raise DataError(f"{path}:{number}: got {line[:60]!r}; a JSON object is needed: restore the file or cut it")
        values.append(value)
    return values, int(bool(rest))


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _events(lines: list[dict[str, Any]]) -> list[Event]:
    events = {line["number"]: Event.from_json({k: v for k, v in line.items() if k != "time"}) for line in lines}
    return [events[number] for number in sorted(events)]


def _identity(folder: Path) -> tuple[Space | None, int | None]:
    """Return space and seed of the run, as far as it says."""
    path = folder / SEARCH
    if not path.exists():
        return None, None
    try:
        config = json.loads(path.read_bytes())
        return Space.from_json(config["space"]), int(config["seed"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: got no configuration of a search; restore it from a copy") from None


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else math.nan
