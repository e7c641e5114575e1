"""What every benchmark shares: fair timing, ratios against targets, results as files.

Variants run in turns within one process, so what slows the machine slows them all: only ratios within one run mean
something. `interleave` measures, `write_result` records machine, versions and command beside the numbers.
"""

import datetime
import importlib.metadata
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch",
    "transformers",
    "ray",
    "datasets",
    "tokenizers",
    "tiktoken",
    "numpy",
    "pyarrow",
    "optuna",
    "gymnasium",
)
CLOCKS = {"process": time.process_time, "wall": time.perf_counter}


@dataclass(frozen=True)
class Timing:
    """Seconds of one variant over its repeats."""

    median_s: float
    lower_quartile_s: float
    upper_quartile_s: float
    repeats: int


@dataclass(frozen=True, kw_only=True)
class Target:
    """A number that was promised: `name` is at most, or at least, `bound`."""

    name: str
    value: float
    bound: float
    kind: Literal["at most", "at least"]

    @property
    def met(self) -> bool:
        return self.value <= self.bound if self.kind == "at most" else self.value >= self.bound


def interleave(
    variants: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    clock: Literal["process", "wall"] = "process",
    warmup: int = 1,
) -> dict[str, Timing]:
    """Time `variants` in turns, `repeats` times each after `warmup` rounds that do not count.

    Args:
        clock: `process` is CPU time of this process, all threads together, blind to other processes' turns on a core;
            `wall` is what a user waits.
    """
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(warmup + repeats):
        for name, run in variants.items():
            start = now()
            run()
            if turn >= warmup:
                seconds[name].append(now() - start)
    return {name: _timing(values) for name, values in seconds.items()}


def ratios(timings: Mapping[str, Timing], *, to: str) -> dict[str, float]:
    """Return each variant's median time divided by that of the variant `to`."""
    return {name: timing.median_s / timings[to].median_s for name, timing in timings.items()}


def write_result(
    name: str, *, tables: Mapping[str, Sequence[Mapping[str, Any]]], targets: Sequence[Target], quick: bool
) -> Path:
    """Write `tables` (lists of rows) and `targets` to benchmarks/results/NAME.json and print them as Markdown.

    A quick run proves only that the benchmark works; it goes to NAME.quick.json, which is not committed.
    """
    promised = [{**asdict(target), "met": target.met} for target in targets]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / (f"{name}.quick.json" if quick else f"{name}.json")
    path.write_text(json.dumps({"run": _run(), "targets": promised, "tables": tables}, indent=1) + "\n")
    for title, rows in tables.items():
        print(f"\n### {title}\n\n{markdown(rows)}")
    for target in targets:
        verdict = "met" if target.met else "MISSED"
        print(f"{verdict}: {target.name} is {target.value:.3g}, promised {target.kind} {target.bound:g}")
    print(f"\nwritten to {path}")
    return path


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows with equal keys as a Markdown table; floats get three digits."""
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([_cell(row[key]) for key in header] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _timing(values: list[float]) -> Timing:
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Timing(median, lower, upper, len(values))


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _run() -> dict[str, Any]:
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "revision": _revision(),
        "machine": {
            "cpu": _cpu(),
            "cores": psutil.cpu_count(logical=True),
            "memory_bytes": psutil.virtual_memory().total,
            "load_at_end": psutil.getloadavg()[0],
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "amx": torch.cpu._is_amx_tile_supported(),
            "torch_threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str:
    """The git revision, with a + where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
