"""Every kind of task from the command line to its report, and flags that only the job has; small, in this process."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from generated_data import write_cifar, write_glue

from hsokv_ray.config import parse
from hsokv_ray.models import TransformerWithKV
from hsokv_ray.swarm import job
from hsokv_ray.swarm.choose_task import plain_task
from hsokv_ray.swarm.rollouts import config as rollouts
from hsokv_ray.swarm.search_config import SearchSwarmConfig

SMALL = "--distributed-backend local --iterations 2 --agent-steps 3 --num-managers 1 --agents-per-manager 2 --size tiny"


def flags(folder: Path, words: str) -> SearchSwarmConfig:
    return parse(SearchSwarmConfig, [*SMALL.split(), "--output-dir", str(folder), *words.split()])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "glue": str(write_glue(folder)),
        "cifar": str(write_cifar(folder, per_class=100, test_per_class=6).parent),
    }


@pytest.fixture
def data(folders: dict[str, str], corpus: Path) -> dict[str, str]:
    """Places to put into flags."""
    return folders | {"corpus": str(corpus)}


LANGUAGE = "--task language_model --lm-corpus {corpus} --lm-seq-length 10 --lm-max-sequences 60"


@pytest.mark.parametrize(
    ("words", "headline", "rows"),
    [
        ("--benchmark glue --glue-data-dir {glue}", "accuracy", ["majority", "TF-IDF + logistic regression"]),
        ("--benchmark glue --glue-data-dir {glue} --glue-task rte --no-use-kv", "accuracy", ["majority"]),
        ("--benchmark cifar --cifar-data-dir {cifar}", "class-IL accuracy", ["chance"]),
        ("--benchmark cifar --cifar-data-dir {cifar} --no-use-kv", "class-IL accuracy", ["chance"]),
        (LANGUAGE, "minus loss, nats per token", []),
        (f"{LANGUAGE} --no-use-kv --no-use-swarm", "minus loss, nats per token", []),
        ("--no-use-kv", "accuracy", ["chance", "string match"]),
        ("--no-use-swarm --best-known 0.9", "accuracy", ["chance", "string match"]),
    ],
)
def test_every_task_ends_in_a_report_and_is_measured_the_same_again(
    words: str, headline: str, rows: list[str], data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words.format(**data)
    assert job.run(flags(tmp_path, words)) == 0
    folder = tmp_path / "search_swarm"
    report = (folder / "report.md").read_text()
    assert f"test {headline}" in report
    for row in rows:
        assert f"| {row} |" in report
    summary = json.loads((folder / "summary.json").read_text())
    has_memory = "without_memory" in summary["test"] or summary["test"].get("memory_bytes", 0) > 0
    assert has_memory != ("--no-use-kv" in words)
    if "--no-use-swarm" in words:
        agents = {json.loads(line)["order"]["agent"] for line in (folder / "journal.jsonl").read_text().splitlines()}
        assert agents == {0}
    capsys.readouterr()
    assert job.run(parse(SearchSwarmConfig, ["--mode", "test", "--output-dir", str(tmp_path)])) == 0
    (measured,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| **")]
    (found,) = [line for line in report.splitlines() if line.startswith("| **")]
    assert measured.split("|")[2] == found.split("|")[2]


def test_flags_reach_the_task(data: dict[str, str], tmp_path: Path) -> None:
    def fields(words: str) -> dict[str, Any]:
        return vars(plain_task(flags(tmp_path, words.format(**data))))

    assert fields("--definition-max-length 20 --kv-confidence-threshold 0.5").items() >= {
        "max_length": 20, "confidence_threshold": 0.5,
    }.items()  # fmt: skip
    language = f"{LANGUAGE} --lm-stride 7 --kv-confidence-threshold 0.4"
    assert fields(language).items() >= {
        "source": data["corpus"], "seq_len": 10, "stride": 7, "max_windows": 60, "confidence_threshold": 0.4,
    }.items()  # fmt: skip
    for words in ("--benchmark cifar --cifar-data-dir {cifar}", "--benchmark glue --glue-data-dir {glue} --shots 8"):
        assert fields(f"{words} --kv-confidence-threshold 0.3")["confidence_threshold"] == 0.3
    glue = "--benchmark glue --glue-data-dir {glue} --shots 8 --allow-download"
    assert fields(glue).items() >= {"shots": 8, "allow_download": True}.items()


def test_hf_train_writes_model_and_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert job.run(flags(tmp_path, f"--hf-train --hf-output-dir {out}")) == 0
    summary = json.loads((out / "summary.json").read_text())
    printed = capsys.readouterr().out
    assert summary["test_metrics"] == json.loads(printed[printed.index("\n{\n") :])
    assert summary["test_metrics"]["n"] >= 200
    assert summary["flops_estimate"] == sum(summary["flops"].values()) > 0
    assert TransformerWithKV.from_pretrained(out / "model").memory is not None


def test_run_distributed_prints_its_table_and_says_why_there_is_no_speed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = functools.partial(
        rollouts.RolloutConfig, pairs_per_order=2, evaluation_episodes=10, max_training_steps=4000, num_seeds=2,
        scaling_orders=10, kill_after=3, random_episodes=5, num_workers=(1, 2),
    )  # fmt: skip
    monkeypatch.setattr(rollouts, "RolloutConfig", small)
    assert job.run(flags(tmp_path, "--run-distributed --visualize")) == 0
    table = capsys.readouterr().out.split("| workers |")[1]
    assert "\n| 1 |" in table
    assert "\n| 2 |" not in table
    assert str(tmp_path / "search_swarm" / "distributed.json") in table
    assert json.loads((tmp_path / "search_swarm" / "distributed.json").read_text())["notes"][0] in table
    assert not (tmp_path / "search_swarm" / "plots" / "speed_up.png").exists()
