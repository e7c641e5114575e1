"""The search job on Ray, as a user starts it."""

import json
from pathlib import Path

import pytest

from hsokv_ray.config import parse
from hsokv_ray.errors import RunError
from hsokv_ray.swarm import job
from hsokv_ray.swarm.search_config import SearchSwarmConfig

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_the_job_searches_on_ray_and_tests_the_best_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = parse(
        SearchSwarmConfig,
        ["--iterations", "4", "--agent-steps", "30", "--num-managers", "2", "--agents-per-manager", "2",
         "--size", "tiny", "--num-workers", "2", "--cpus-per-agent", "0.25", "--output-dir", str(tmp_path),
         "--name", "words"],
    )  # fmt: skip
    assert job.run(config) == 0
    shown = capsys.readouterr()
    assert "4 agents share 2 workers" in shown.err
    assert "| **best model of the search** |" in shown.out
    journal = [json.loads(line) for line in (tmp_path / "words" / "journal.jsonl").read_text().splitlines()]
    assert len({line["worker"] for line in journal}) == 2, "training takes longer than the second worker's start"
    assert len({line["order"]["order_id"] for line in journal if line["what"] == "tell"}) == len(journal)


def test_a_start_for_which_there_is_no_room_leaves_no_folder(tmp_path: Path) -> None:
    config = parse(SearchSwarmConfig, ["--cpus-per-agent", "64", "--output-dir", str(tmp_path), "--name", "words"])
    with pytest.raises(RunError, match="64 CPU"):
        job.run(config)
    assert not (tmp_path / "words").exists()
