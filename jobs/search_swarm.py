#!/usr/bin/env python
"""Search training recipes of a memory-augmented transformer by a swarm of agents.

    jobs/search_swarm.py --preset quick_test --visualize               one-shot words, under two minutes
    ray job submit --working-dir . -- jobs/search_swarm.py --benchmark glue --glue-task sst2 --glue-data-dir DATA
    jobs/search_swarm.py --task language_model --lm-corpus corpus.txt --flops-budget 1e12
    jobs/search_swarm.py --name search_swarm --resume                  after Ctrl-C, SIGKILL or a power cut
    jobs/search_swarm.py --mode test --load-pretrained outputs/best    measure a saved model, train nothing

Outputs: $HSOKV_RUNS_DIR (default ~/hsokv_runs)/<name>.
"""

import sys

from hsokv_ray.config import parse
from hsokv_ray.swarm.search_config import SearchSwarmConfig


def main() -> int:
    """Parse the command line, then import what the work needs."""
    config = parse(SearchSwarmConfig, prog="search_swarm.py")
    from hsokv_ray.swarm.job import run

    return run(config)


if __name__ == "__main__":
    from hsokv_ray.cli import guard

    sys.exit(guard(main))
