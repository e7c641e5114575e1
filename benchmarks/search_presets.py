"""How long a search takes that somebody starts to look at it: `jobs/search_swarm.py --preset quick_test` and `demo`.

    python benchmarks/search_presets.py --repeats 2

Each run is a process with a Ray of its own, from the command to its exit: start, search, test, report. Nothing else
should run on the machine. The accuracy is the final test's, one-shot words of 20, chance 0.05.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import Target, write_result

ROOT = Path(__file__).parents[1]
LIMITS = {"quick_test": 120, "demo": 900}
"""Seconds on two cores that a preset promises."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="quick_test alone, once")
    args = parser.parse_args()
    presets = ["quick_test"] if args.quick else list(LIMITS)
    seeds = range(1 if args.quick else args.repeats)
    runs = {preset: [run(preset, seed) for seed in seeds] for preset in presets}
    rows, targets = [], []
    for preset, found in runs.items():
        slowest = max(each["seconds"] for each in found)
        rows.append(
            {
                "preset": preset,
                "s, median": round(statistics.median(each["seconds"] for each in found), 1),
                "s, slowest": round(slowest, 1),
                "accuracy by seed": ", ".join(f"{each['accuracy']:.3f}" for each in found),
                "GFLOP": round(statistics.mean(each["flops"] for each in found) / 1e9),
                "runs": len(found),
            }
        )
        targets.append(
            Target(name=f"s of --preset {preset}, slowest run", value=slowest, bound=LIMITS[preset], kind="at most")
        )
    write_result("search_presets", tables={"Searches from command to exit": rows}, targets=targets, quick=args.quick)


def run(preset: str, seed: int) -> dict[str, Any]:
    """Run one search in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "jobs" / "search_swarm.py"), "--preset", preset, "--seed", str(seed)]
        begin = time.perf_counter()
        subprocess.run(
            [*command, "--output-dir", folder, "--name", preset], check=True, cwd=ROOT, stdout=subprocess.DEVNULL,
            env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        summary = json.loads((Path(folder) / preset / "summary.json").read_text(encoding="utf-8"))
    return {"seconds": seconds, "accuracy": summary["test"]["accuracy"], "flops": sum(summary["flops"].values())}


if __name__ == "__main__":
    main()
