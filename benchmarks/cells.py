"""A long benchmark in pieces: each cell runs in a process of its own, and what is done is not done again.

    cells = run_cells(__file__, wanted, Path("results/x.cells.jsonl"), arguments=["--data-dir", "data"], processes=2)

The script is called with `--cell JSON` for each cell that is not in the file, and prints its result, a JSON object, as
its last line; the file holds cell and result together, a line each.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_cells(
    script: str, wanted: Sequence[dict[str, Any]], path: Path, *, arguments: Sequence[str], processes: int
) -> list[dict[str, Any]]:
    """Return all cells of `wanted` with their results, running those that `path` lacks."""
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    todo = [cell for cell in wanted if not any(_is(each, cell) for each in done)]
    print(f"{len(wanted) - len(todo)} of {len(wanted)} runs are there, {len(todo)} to do; {path}", flush=True)
    running: dict[subprocess.Popen[str], dict[str, Any]] = {}
    while todo or running:
        while todo and len(running) < processes:
            command = [sys.executable, script, *arguments, "--cell", json.dumps(todo[0])]
            running[subprocess.Popen(command, stdout=subprocess.PIPE, text=True)] = todo.pop(0)
        for process in [each for each in running if each.poll() is not None]:
            done.append(_ended(process, running.pop(process)))
            with path.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
        time.sleep(0.2)
    return [each for each in done if any(_is(each, cell) for cell in wanted)]


def _ended(process: subprocess.Popen[str], cell: dict[str, Any]) -> dict[str, Any]:
    out = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{cell} ended with {process.returncode}")
    print(json.dumps(cell), out.splitlines()[-1][:200], flush=True)
    return cell | json.loads(out.splitlines()[-1])


def _is(done: dict[str, Any], cell: dict[str, Any]) -> bool:
    return all(done.get(name) == value for name, value in cell.items())
