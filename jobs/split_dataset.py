#!/usr/bin/env python
"""Split a source by document into training and validation text, chosen by content and seed.

    jobs/split_dataset.py --source corpus/ --output-folder split --val-split 0.1 --seed 0
    jobs/split_dataset.py --source tokens --pretokenized --output-folder split    a folder of jobs/pretokenize.py

Text becomes train.jsonl and val.jsonl, token shards become the folders train/ and val/. Copies of a document fall on
the same side; the sides are those that training takes itself with the same `--val-split` and `--seed`.
"""

import sys

from hsokv_ray.config import parse
from hsokv_ray.data.jobs_config import SplitDatasetConfig


def main() -> int:
    """Parse the command line, then import what the work needs."""
    config = parse(SplitDatasetConfig, prog="split_dataset.py")
    from hsokv_ray.data.preparation import split_dataset

    split_dataset(config)
    return 0


if __name__ == "__main__":
    from hsokv_ray.cli import guard

    sys.exit(guard(main))
