#!/usr/bin/env python
"""Train an HMST language model on text.

    jobs/train_hmst.py                                          the embedded corpus, a micro model, one worker
    ray job submit --working-dir . -- jobs/train_hmst.py --size tiny --source hf://roneneldan/TinyStories
    jobs/train_hmst.py --config run.yaml --learning-rate 1e-3   a YAML file first, flags win
    jobs/train_hmst.py --dry-run                                what it would cost; starts nothing

The same command again resumes the run. Outputs: $HSOKV_RUNS_DIR (default ~/hsokv_runs)/<name>.
"""

import sys

from hsokv_ray.config import parse
from hsokv_ray.training.config import TrainHMSTConfig


def main() -> int:
    """Parse the command line, then import what the work needs."""
    config = parse(TrainHMSTConfig, prog="train_hmst.py")
    if config.run.dry_run:
        from hsokv_ray.training.dry_run import dry_run

        print(dry_run(config))
        return 0
    from hsokv_ray.training.job import run

    return run(config)


if __name__ == "__main__":
    from hsokv_ray.cli import guard

    sys.exit(guard(main))
