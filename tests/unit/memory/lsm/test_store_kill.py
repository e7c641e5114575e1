"""A store whose process is killed at any moment, 20 short rounds; `make chaos` runs 200 longer ones."""

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

CHAOS = Path(__file__).parents[3] / "chaos"


def test_nothing_acknowledged_is_lost_in_20_kills(tmp_path) -> None:
    spec = importlib.util.spec_from_file_location("store_kill", CHAOS / "store_kill.py")
    assert spec is not None
    assert spec.loader is not None
    store_kill = sys.modules["store_kill"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(store_kill)
    seed = random.randrange(2**20)
    print(f"seed {seed}")
    oracle = store_kill.kill_rounds(tmp_path / "store", 20, seed, most_lines=150)
    assert oracle.num_done > 20


def test_nothing_acknowledged_is_lost_by_death_at_some_file_operations(tmp_path) -> None:
    script = CHAOS / "store_dies_everywhere.py"
    done = subprocess.run([sys.executable, script, tmp_path, "37"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3
