"""A store whose process is killed at any moment, 200 times over: nothing acknowledged is lost, nothing else appears."""

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


def test_nothing_acknowledged_is_lost_in_200_kills(tmp_path) -> None:
    spec = importlib.util.spec_from_file_location("store_kill", Path(__file__).with_name("store_kill.py"))
    assert spec is not None
    assert spec.loader is not None
    store_kill = sys.modules["store_kill"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(store_kill)
    seed = random.randrange(2**20)
    print(f"seed {seed}")
    oracle = store_kill.kill_rounds(tmp_path / "store", 200, seed, most_lines=600)
    assert oracle.num_done > 200


def test_nothing_acknowledged_is_lost_by_death_at_any_file_operation(tmp_path) -> None:
    script = Path(__file__).with_name("store_dies_everywhere.py")
    done = subprocess.run([sys.executable, script, tmp_path, "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
