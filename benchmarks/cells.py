"""A long benchmark in pieces: each cell runs in a process of its own, and what is done is not done again.

    args = cells_parser(__doc__, "x").parse_args()
    if args.cell:
        return print(json.dumps(run_cell(args.data_dir, **json.loads(args.cell))))
    cells = run_cells(__file__, wanted, args)

The script is called with `--cell JSON` for each cell that is not in the file, and prints its result, a JSON object, as
its last line; the file holds cell and result together, a line each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import RESULTS


def cells_parser(description: str, result: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark in cells.

    Args:
        description: the script's docstring.
        result: the name of what it writes.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("HSOKV_DATA_DIR", "data"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cells", type=Path, default=RESULTS / f"{result}.cells.jsonl", help="finished runs")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="two seeds of next to nothing, to see that it works")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser


def run_cells(script: str, wanted: Sequence[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return all cells of `wanted` with their results, running those that the file of finished ones lacks."""
    path: Path = Path(tempfile.mkdtemp()) / "cells.jsonl" if args.quick else args.cells
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    todo = [cell for cell in wanted if not any(_is(each, cell) for each in done)]
    print(f"{len(wanted) - len(todo)} of {len(wanted)} runs are there, {len(todo)} to do; {path}", flush=True)
    running: dict[subprocess.Popen[str], dict[str, Any]] = {}
    while todo or running:
        while todo and len(running) < args.processes:
            command = [sys.executable, script, "--data-dir", str(args.data_dir), "--cell", json.dumps(todo[0])]
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
