"""A small search as a process of its own: `python search_process.py FOLDER BACKEND EXPLOIT [resume]`."""

import sys
from pathlib import Path

from search_audit import config

from hsokv_ray.swarm.search import search
from hsokv_ray.swarm.simulated import SimulatedTask

TASK = SimulatedTask(step_s=0.01)
SEED = 4


def main() -> None:
    folder, backend, exploit = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    search(
        TASK, config(exploit), folder=folder, seed=SEED, backend=backend, num_workers=1, cpus_per_agent=0.25,
        resume="resume" in sys.argv,
    )  # type: ignore[arg-type]  # fmt: skip


if __name__ == "__main__":
    main()
