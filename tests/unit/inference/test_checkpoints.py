"""What a user names is found, and what was never finished is never chosen."""

import json
from pathlib import Path

import pytest

from hsokv_ray.errors import CheckpointError
from hsokv_ray.inference.checkpoints import resolve
from hsokv_ray.manifest import write_manifest


def step(run: Path, number: int, *, finished: bool = True) -> Path:
    folder = run / "checkpoints" / f"step-{number:08d}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    if finished:
        write_manifest(folder, extra={"step": number})
    return folder


def test_a_run_gives_its_newest_finished_checkpoint_and_the_tokenizer_above_it(tmp_path: Path) -> None:
    step(tmp_path, 9)
    newest = step(tmp_path, 10)
    step(tmp_path, 11, finished=False)
    (tmp_path / "checkpoints" / "step-old").mkdir()
    (tmp_path / "tokenizer").mkdir()
    source = resolve(str(tmp_path))
    assert (source.model, source.tokenizer, source.folder) == (str(newest), str(tmp_path / "tokenizer"), newest)
    assert resolve(str(tmp_path / "checkpoints")) == source == resolve(str(newest))


def test_a_run_gives_its_best_checkpoint_where_one_is_marked(tmp_path: Path) -> None:
    best = step(tmp_path, 9)
    newest = step(tmp_path, 10)
    (tmp_path / "checkpoints" / "best.json").write_text(json.dumps({"step": 9}))
    assert resolve(str(tmp_path)).folder == best
    (tmp_path / "checkpoints" / "best.json").write_text(json.dumps({"step": 8}))
    assert resolve(str(tmp_path)).folder == newest


def test_a_checkpoint_with_its_own_tokenizer_keeps_it(tmp_path: Path) -> None:
    folder = step(tmp_path, 1)
    (tmp_path / "tokenizer").mkdir()
    (folder / "tokenizer.json").write_text("{}")
    assert resolve(str(tmp_path)).tokenizer == str(folder)


@pytest.mark.parametrize("name", ["gpt2", "org/name", "org/name-1.5_x"])
def test_what_is_no_path_here_may_be_a_name_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = resolve(name)
    assert (source.model, source.tokenizer, source.folder) == (name, name, None)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "../nothing", "a/b/c", "", "runs/x y"])
def test_a_path_that_is_not_there_is_said_to_be_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    with pytest.raises(CheckpointError, match="does not exist|holds no model"):
        resolve(name)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model: no config\.json"):
        resolve(str(tmp_path))


def test_a_run_with_only_unfinished_checkpoints_is_refused(tmp_path: Path) -> None:
    step(tmp_path, 1, finished=False)
    with pytest.raises(CheckpointError, match="no finished checkpoint"):
        resolve(str(tmp_path))


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        resolve(str(tmp_path / "model.safetensors"))


def test_a_damaged_mark_is_said(tmp_path: Path) -> None:
    step(tmp_path, 1)
    (tmp_path / "checkpoints" / "best.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"best\.json is damaged"):
        resolve(str(tmp_path))
