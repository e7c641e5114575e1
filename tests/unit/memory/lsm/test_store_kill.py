"""A store whose process is killed at any moment, 20 short rounds; `make chaos` runs 200 longer ones."""

import importlib.util
import random
import sys
from pathlib import Path

FILE = Path(__file__).parents[3] / "chaos" / "store_kill.py"


def test_nothing_acknowledged_is_lost_in_20_kills(tmp_path) -> None:
    spec = importlib.util.spec_from_file_location("store_kill", FILE)
    assert spec is not None
    assert spec.loader is not None
    store_kill = sys.modules["store_kill"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(store_kill)
    seed = random.randrange(2**20)
    print(f"seed {seed}")
    oracle = store_kill.kill_rounds(tmp_path / "store", 20, seed, most_lines=150)
    assert oracle.num_done > 20
