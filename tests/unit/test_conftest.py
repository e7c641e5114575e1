"""A test of real data that is skipped has failed where skips are forbidden."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.real_data
def test_needs_data(real_data):
    assert real_data.is_dir()

@pytest.mark.skip(reason="always")
def test_other():
    raise AssertionError
"""


@pytest.mark.parametrize(
    ("environment", "outcome"),
    [
        ({}, "2 skipped"),
        ({"HSOKV_NO_SKIPS": "1"}, "1 skipped, 1 error"),
        ({"HSOKV_NO_SKIPS": "1", "HSOKV_DATA_DIR": "."}, "1 passed, 1 skipped"),
    ],
)
def test_only_skips_of_real_data_count_as_failures(tmp_path: Path, environment: dict[str, str], outcome: str) -> None:
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    real_data: x\n")
    (tmp_path / "test_it.py").write_text(TESTS)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HSOKV_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=inherited | environment,
        capture_output=True,
        text=True,
    )
    assert outcome in done.stdout.splitlines()[-1]
