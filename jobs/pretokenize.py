#!/usr/bin/env python
"""Tokenise a source once, into token shards that `--pretokenized` training maps into memory.

    jobs/pretokenize.py --source corpus/ --output-folder tokens             trains a tokenizer on the source
    jobs/pretokenize.py --source corpus/ --output-folder tokens --tokenizer-path runs/demo/tokenizer
    jobs/train_hmst.py --pretokenized --source tokens                       trains from them

Every document is written; `--val-split` applies when the shards are read.
"""

import sys

from hsokv_ray.config import parse
from hsokv_ray.data.jobs_config import PretokenizeConfig


def main() -> int:
    """Parse the command line, then import what the work needs."""
    config = parse(PretokenizeConfig, prog="pretokenize.py")
    from hsokv_ray.data.preparation import pretokenize

    pretokenize(config)
    return 0


if __name__ == "__main__":
    from hsokv_ray.cli import guard

    sys.exit(guard(main))
