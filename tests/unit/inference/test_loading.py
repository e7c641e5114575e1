"""A model that is damaged, incomplete or has another's tokenizer is refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hsokv_ray.errors import CheckpointError, ConfigError
from hsokv_ray.inference.checkpoints import resolve
from hsokv_ray.inference.loading import choose_device, load
from hsokv_ray.manifest import write_manifest


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may damage."""
    return shutil.copytree(llama, tmp_path / "copy")


def test_loaded_weights_are_those_that_were_saved(llama: Path, tiny_llama: Callable) -> None:
    loaded = load(resolve(str(llama)), device="cpu")
    expected = tiny_llama(loaded.model.config.vocab_size).state_dict()
    actual = loaded.model.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert loaded.window_tokens == 64
    assert not loaded.model.training


def test_a_flipped_byte_under_a_manifest_is_refused_and_the_file_named(copy: Path) -> None:
    write_manifest(copy, extra={})
    load(resolve(str(copy)), device="cpu")
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load(resolve(str(copy)), device="cpu")


def test_a_truncated_file_is_refused_without_a_manifest(copy: Path) -> None:
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(CheckpointError, match="cannot load the model in"):
        load(resolve(str(copy)), device="cpu")


def test_weights_that_lack_a_tensor_are_refused_not_filled_in_at_random(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"its weights lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load(resolve(str(copy)), device="cpu")


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(CheckpointError, match="copy"):
        load(resolve(str(copy)), device="cpu")


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot load the model"):
        load(resolve(str(copy)), device="cpu")


@pytest.mark.parametrize("embeddings", [299, 400])
def test_a_tokenizer_of_another_size_is_refused_with_both_numbers(
    tmp_path: Path, save_model: Callable, embeddings: int
) -> None:
    save_model(tmp_path, vocab_size=300, embeddings=embeddings)
    with pytest.raises(CheckpointError, match=rf"has 300 entries, the model in .* has {embeddings}"):
        load(resolve(str(tmp_path)), device="cpu")


def test_a_vocabulary_padded_by_a_few_entries_is_accepted(tmp_path: Path, save_model: Callable) -> None:
    save_model(tmp_path, vocab_size=300, embeddings=307)
    assert load(resolve(str(tmp_path)), device="cpu").model.config.vocab_size == 307


def test_a_folder_without_a_tokenizer_says_so(copy: Path) -> None:
    for path in copy.glob("token*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="cannot load the tokenizer"):
        load(resolve(str(copy)), device="cpu")


def test_a_hub_name_that_cannot_be_had_says_both_things_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"nobody/nothing is neither a folder here nor a model that the hub gave"):
        load(resolve("nobody/nothing"), device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="--device cuda"):
        choose_device("cuda")
