"""Arguments as `serve run` gives them, and which model is served where none is named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hsokv_ray.errors import CheckpointError, ConfigError
from hsokv_ray.inference.engine.config import EngineConfig
from hsokv_ray.manifest import NAME as MANIFEST
from serve import newest
from serve.args import Autoscaling, Limits, ServeArgs


def test_words_of_serve_run_fill_nested_arguments() -> None:
    args = ServeArgs.model_validate({"engine.max_running": "4", "limits.json_depth": "9", "unlimited": "false"})
    assert (args.engine.max_running, args.limits.json_depth, args.unlimited) == (4, 9, False)


@pytest.mark.parametrize("key", ["modle", "engin.max_running", "num_replica"])
def test_a_misspelt_argument_is_refused_with_a_suggestion(key: str) -> None:
    with pytest.raises(ValueError, match="did you mean"):
        ServeArgs.model_validate({key: 1})


def test_a_misspelt_argument_of_a_section_is_refused() -> None:
    with pytest.raises(ValueError, match="max_runing"):
        ServeArgs.model_validate({"engine.max_runing": 1})


def test_fewest_replicas_are_not_more_than_most() -> None:
    with pytest.raises(ConfigError, match="min_replicas 3 is above max_replicas 2"):
        ServeArgs(autoscaling={"min_replicas": 3, "max_replicas": 2})


def test_every_argument_is_described() -> None:
    for cls in (ServeArgs, Limits, Autoscaling, EngineConfig):
        for name, field in cls.model_fields.items():
            assert field.description, f"{cls.__name__}.{name}"


def test_arguments_and_errors_are_imported_without_torch_and_ray() -> None:
    code = "import sys, serve.args, serve.errors, serve.calls; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def checkpoint(runs: Path, run: str, step: int, *, written_at: int, model_type: str = "hmst") -> Path:
    folder = runs / run / "checkpoints" / f"step-{step:08d}"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / MANIFEST).write_text("{}")
    os.utime(folder / MANIFEST, (written_at, written_at))
    return folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HSOKV_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(newest, "_REPOSITORY", tmp_path / "repository")
    return tmp_path / "runs"


def test_the_newest_finished_checkpoint_of_an_hmst_model_is_served(runs: Path, tmp_path: Path) -> None:
    checkpoint(runs, "old", 5, written_at=100)
    expected = checkpoint(tmp_path / "repository" / "runs", "demo", 1, written_at=200)
    checkpoint(runs, "other", 9, written_at=300, model_type="llama")
    (checkpoint(runs, "unfinished", 9, written_at=400) / MANIFEST).unlink()
    assert newest.model_path(None) == str(expected)
    assert newest.model_name(str(expected)) == "demo"


def test_without_any_checkpoint_it_says_what_to_do(runs: Path) -> None:
    with pytest.raises(ConfigError, match="make demo"):
        newest.model_path(None)


def test_a_path_is_made_absolute_and_a_hub_name_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert newest.model_path("./model") == str(tmp_path / "model")
    assert newest.model_path("org/name") == "org/name"
    assert newest.model_name("org/name") == "name"
    with pytest.raises(CheckpointError):
        newest.model_path("./none")
