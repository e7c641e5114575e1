import itertools
import json
import logging
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hsokv_ray.errors import CheckpointError, RunError
from hsokv_ray.manifest import NAME as MANIFEST
from hsokv_ray.training.checkpoint import CheckpointStore
from hsokv_ray.training.snapshot import Snapshot


def snapshot(step: int, *, width: int = 64) -> Snapshot:
    generator = torch.Generator().manual_seed(step)
    return Snapshot(
        step=step,
        model={"weight": torch.randn(width, width, generator=generator)},
        optimizer={
            "state.weight.exp_avg": torch.randn(width, width, generator=generator),
            "state.weight.step": torch.tensor(float(step)),
            "param_groups.weight.lr": 0.25,
            "param_groups.weight.betas": (0.9, 0.95),
            "param_groups.weight.foreach": None,
        },
        state={"cursor": [[step, 2, 3]], "best": None},
        rng_state=generator.get_state(),
    )


def assert_same(left: Snapshot, right: Snapshot) -> None:
    assert (left.step, left.state) == (right.step, right.state)
    assert torch.equal(left.rng_state, right.rng_state)
    for ours, theirs in ((left.model, right.model), (left.optimizer, right.optimizer)):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            same = torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
            assert same, name


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_snapshot_comes_back_as_it_was(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    path = store.save(snapshot(200))
    assert path.name == "step-00000200"
    assert_same(store.load(path), snapshot(200))


def test_names_that_share_a_tensor_share_it_in_the_file_and_both_come_back(tmp_path):
    weight = torch.randn(8, 8)
    tied = Snapshot(step=1, model={"b": weight, "a": weight}, optimizer={}, state={}, rng_state=torch.get_rng_state())
    loaded = CheckpointStore(tmp_path, keep=1).load(CheckpointStore(tmp_path, keep=1).save(tied))
    assert torch.equal(loaded.model["a"], weight)
    assert loaded.model["a"].data_ptr() == loaded.model["b"].data_ptr()


def test_the_auto_classes_load_a_checkpoint(tmp_path):
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, eos_token_id=7
    )
    model = LlamaForCausalLM(config)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    whole = Snapshot(
        step=1,
        model=model.state_dict(),
        optimizer={},
        state={},
        rng_state=torch.get_rng_state(),
        model_config=model.config,
        tokenizer=tmp_path / "tokenizer",
    )
    path = CheckpointStore(tmp_path / "checkpoints", keep=1).save(whole)
    loaded = AutoModelForCausalLM.from_pretrained(path)
    assert isinstance(loaded, LlamaForCausalLM)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert json.loads((path / "generation_config.json").read_text())["eos_token_id"] == 7
    assert (path / "tokenizer.json").read_text() == "{}"


def test_an_empty_folder_has_no_latest_and_no_best(tmp_path):
    store = CheckpointStore(tmp_path / "none", keep=1)
    assert (store.latest(), store.best(), store.last_saved) == (None, None, None)


def test_the_newest_and_the_best_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (100, 200, 300, 400, 500):
        store.save(snapshot(step), best=step in (100, 200))
    assert store.steps() == [200, 400, 500]
    latest, best = store.latest(), store.best()
    assert latest is not None
    assert best is not None
    assert (latest.step, best.step) == (500, 200)
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 200
    assert store.last_saved == store.path_of(500)


def test_without_a_best_the_latest_stands_in(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    store.save(snapshot(100))
    best = store.best()
    assert best is not None
    assert best.step == 100


FILES = ["model.safetensors", "optimizer.safetensors", "trainer_state.json", MANIFEST]


@pytest.mark.parametrize(("damage", "name"), [*itertools.product(["flipped", "cut", "missing"], FILES)])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_taken(damage, name, tmp_path, caplog):
    store = CheckpointStore(tmp_path, keep=2)
    store.save(snapshot(100))
    path = store.save(snapshot(200)) / name
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        flip_a_byte(path)
    # A flipped checksum in the manifest shows as damage of the file it belongs to.
    named = "step-00000200" if (damage, name) == ("flipped", MANIFEST) else name
    with caplog.at_level(logging.WARNING):
        found = store.latest()
    assert found is not None
    assert (found.step, len(found.damaged)) == (100, 1)
    assert named in found.damaged[0]
    assert found.damaged[0] in caplog.text
    with pytest.raises(CheckpointError, match=named):
        store.load(store.path_of(200))


def test_only_damaged_checkpoints_stop_the_run_instead_of_starting_it_again(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    flip_a_byte(store.save(snapshot(100)) / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint that is whole: .*model\.safetensors is damaged"):
        store.latest()


def test_going_on_from_an_older_checkpoint_replaces_the_damaged_later_ones(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(snapshot(100), best=True)
    flip_a_byte(store.save(snapshot(200), best=True) / "model.safetensors")
    store.save(snapshot(150))
    assert store.steps() == [150]
    shutil.copytree(store.path_of(150), store.path_of(200))
    flip_a_byte(store.path_of(200) / "model.safetensors")
    store.save(snapshot(200))
    assert_same(store.load(store.path_of(200)), snapshot(200))


def test_what_a_killed_process_left_half_written_is_removed_and_never_chosen(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    store.save(snapshot(100))
    shutil.copytree(store.path_of(100), tmp_path / ".tmp-step-00000200-77")
    shutil.copytree(store.path_of(100), tmp_path / ".old-step-00000050-77")
    found = store.latest()
    assert found is not None
    assert found.step == 100
    store.save(snapshot(300))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000100", "step-00000300"]


def test_a_folder_that_cannot_be_written_ends_with_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*step-00000001 .*there is no earlier checkpoint"):
        CheckpointStore(tmp_path / "file", keep=1).save(snapshot(1))


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 4 MB; needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(small_disk):
    store = CheckpointStore(small_disk, keep=1)
    good = store.save(snapshot(100))
    with pytest.raises(RunError, match=rf"needs 8\.4 MB and .* has 4\.\d MB free.*last good checkpoint is {good}"):
        store.save(snapshot(200, width=1024))
    assert [path.name for path in small_disk.iterdir()] == ["step-00000100"]


@pytest.mark.parametrize("room_bytes", [0, 20_000, 60_000])
def test_a_disk_that_fills_up_while_writing_leaves_the_last_good_checkpoint(small_disk, room_bytes, monkeypatch):
    store = CheckpointStore(small_disk, keep=3)
    good = store.save(snapshot(100))
    hog = small_disk / "hog"
    hog.write_bytes(bytes(shutil.disk_usage(small_disk).free - room_bytes))
    # The check beforehand sees a disk that another process fills up a moment later.
    monkeypatch.setattr("hsokv_ray.training.checkpoint._SMALL_FILES_BYTES", -(10**9))
    with pytest.raises(RunError, match=rf"disk is full: .*step-00000200 needs .*last good checkpoint is {good}"):
        store.save(snapshot(200, width=128))
    assert sorted(path.name for path in small_disk.iterdir()) == ["hog", "step-00000100"]
    assert_same(store.load(good), snapshot(100))
    hog.unlink()
    store.save(snapshot(200, width=128))
    assert store.steps() == [100, 200]
