"""The metrics of a run: speed, metrics.jsonl, TensorBoard, gauges of the Ray dashboard, and the progress line.

A row is a flat or nested mapping with at least `step`; the keys this module and the plot know are `loss`, `val_loss`
(nats per token), `lr`, `tokens_per_s`. Steps never go back: a resumed run cuts the rows past its checkpoint.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class MetricsWriter:
    """Writes rows to `<folder>/metrics.jsonl` and `<folder>/tensorboard`, and to Ray's gauges where Ray runs.

    Args:
        folder: the run's folder; must exist.
        resume_step: the step training goes on from; rows past it are cut. 0: a fresh start.
    """

    def __init__(self, folder: str | Path, *, resume_step: int) -> None:
        folder = Path(folder)
        self.num_cut = cut_after(folder / METRICS, resume_step)
        """Rows that were removed because they lie past `resume_step` or were torn by a crash."""
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        # tensorboardX names its file by the second, so a quick restart would overwrite the one before.
        starts = len([*(folder / TENSORBOARD).glob("events.*")])
        self._board = SummaryWriter(
            str(folder / TENSORBOARD), purge_step=resume_step + 1, filename_suffix=f".start-{starts:04d}"
        )
        self._gauges = RayGauges(run=folder.name) if _ray_runs() else None

    def write(self, row: Mapping[str, Any]) -> None:
        """Append `row`; numbers that are not finite become null and are named under `not_finite`."""
        scalars = dict(flatten(row))
        bad = [name for name, value in scalars.items() if not math.isfinite(value)]
        self._file.write(json.dumps(_finite({**row, "not_finite": bad} if bad else row), allow_nan=False) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            if name != "step":
                self._board.add_scalar(name.replace(".", "/"), value, row["step"])
        self._board.flush()
        if self._gauges is not None:
            self._gauges.set(scalars)

    def close(self) -> None:
        """Flush and close every file."""
        self._file.close()
        self._board.close()


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Rates of the steps since the last reading; None where no measured step lies in between."""

    tokens_per_s: float | None
    """Trained tokens per second, over all workers."""
    flops_per_s: float | None
    """Forward and backward FLOPs per second by analytic count, over all workers."""
    mfu: float | None
    """Share of the devices' peak; None where the peak is not known."""
    wait_share: float | None
    """Share of the time spent waiting for data."""
    step_ms: float | None
    """Milliseconds per optimiser step."""


class Throughput:
    """Measures training steps; the first ones (compilation, caches) and paused stretches do not count.

    Args:
        clock: returns seconds; monotonic.
        skip_steps: first steps that are not measured.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, *, skip_steps: int = 2) -> None:
        self._clock, self._skip = clock, skip_steps
        self._origin = self._mark = clock()
        self._num_steps = 0
        self._tokens, self._steps, self._seconds, self._wait_s = 0, 0, 0.0, 0.0

    def step(self, num_tokens: int, *, wait_s: float = 0.0) -> None:
        """Count a step that ended now and trained `num_tokens`, `wait_s` of it waiting for data."""
        now = self._clock()
        self._num_steps += 1
        if self._num_steps > self._skip:
            self._tokens += num_tokens
            self._steps += 1
            self._seconds += now - self._mark
            self._wait_s += wait_s
        self._mark = now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside out of the rates (validation, saving); `eta_s` counts it."""
        before = self._clock()
        try:
            yield
        finally:
            self._mark += self._clock() - before

    def rates(self, *, flops_per_token: float | None = None, peak_flops: float | None = None) -> Rates:
        """Return the rates since the last call and begin a new reading.

        Args:
            flops_per_token: forward and backward FLOPs of one token.
            peak_flops: FLOP/s of all devices together, where known.
        """
        tokens, steps, seconds, wait_s = self._tokens, self._steps, self._seconds, self._wait_s
        self._tokens, self._steps, self._seconds, self._wait_s = 0, 0, 0.0, 0.0
        if not seconds:
            return Rates(tokens_per_s=None, flops_per_s=None, mfu=None, wait_share=None, step_ms=None)
        flops_per_s = tokens / seconds * flops_per_token if flops_per_token else None
        return Rates(
            tokens_per_s=tokens / seconds,
            flops_per_s=flops_per_s,
            mfu=flops_per_s / peak_flops if flops_per_s and peak_flops else None,
            wait_share=wait_s / seconds,
            step_ms=1e3 * seconds / steps,
        )

    def eta_s(self, steps_left: int) -> float | None:
        """Return the seconds `steps_left` will take at the pace so far, pauses included; None before the first step."""
        if not self._num_steps:
            return None
        return (self._clock() - self._origin) / self._num_steps * steps_left


class RayGauges:
    """One `ray.util.metrics` gauge per number, named `hsokv_<number>` and tagged with the run."""

    def __init__(self, *, run: str) -> None:
        self._run, self._gauges = run, {}

    def set(self, scalars: Mapping[str, float]) -> None:
        """Set the gauge of each number; those of the experts' loads are lists and have none."""
        from ray.util.metrics import Gauge

        for name, value in scalars.items():
            if name not in self._gauges:
                gauge = Gauge(f"hsokv_{name.replace('.', '_')}", f"{name} of the last row", tag_keys=("run",))
                self._gauges[name] = gauge
            self._gauges[name].set(float(value), tags={"run": self._run})


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl."""
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def cut_after(path: Path, step: int) -> int:
    """Rewrite `path` without the rows past `step` and without a torn last line; return how many were cut."""
    if not path.exists():
        return 0
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if (row_step := _step_of(line)) is not None and row_step <= step]
    if len(kept) < len(lines):
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    return len(lines) - len(kept)


def flatten(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a nested row as (`outer.inner`, value); lists, text and None are left out."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def progress_line(row: Mapping[str, Any], *, val_loss: float | None = None, eta_s: float | None = None) -> str:
    """Return `row` as `step 120/1,200  loss 4.81  val 5.02  3,912 tok/s  ETA 2m10s`.

    Args:
        row: `step` and `loss`; `max_steps`, `val_loss`, `tokens_per_s`, `eta_s` where known.
        val_loss: last validation loss, where the row has none.
        eta_s: seconds to the end, where the row has none.
    """
    val_loss = _first(row.get("val_loss"), val_loss)
    eta_s = _first(row.get("eta_s"), eta_s)
    of = f"/{row['max_steps']:,}" if row.get("max_steps") else ""
    parts = [f"step {row['step']:,}{of}", f"loss {row['loss']:.2f}"]
    if val_loss is not None:
        parts.append(f"val {val_loss:.2f}")
    if row.get("tokens_per_s") is not None:
        parts.append(f"{row['tokens_per_s']:,.0f} tok/s")
    if eta_s is not None:
        parts.append(f"ETA {duration(eta_s)}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Return a length of time in its two largest units: `45s`, `2m10s`, `1h05m`, `2d03h`."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86_400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86_400}d{s % 86_400 // 3600:02d}h"


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step_of(line: str) -> int | None:
    """Return the step of a line, or None where a crash tore it."""
    if not line.endswith("\n"):
        return None
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None


def _ray_runs() -> bool:
    # A plain torch process has no reason to import Ray just to learn that it is not there.
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()
