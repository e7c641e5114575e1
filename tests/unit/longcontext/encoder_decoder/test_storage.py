"""Encoded texts on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hsokv_ray.errors import CheckpointError, RunError
from hsokv_ray.longcontext.encoder_decoder import append_text, encode_text, generate_kwargs, load_encoded, save_encoded


@pytest.mark.parametrize("index", ["auto", "flat", "pq", "block_mean", "block_minmax", "ivf"])
@pytest.mark.parametrize("num_tokens", [5, 130])
def test_a_text_read_back_answers_as_before(pair: Any, ids: Any, tmp_path: Path, index: str, num_tokens: int) -> None:
    settings = pair.settings(index=index, budget_tokens=16)
    text = encode_text(pair.attached, ids(num_tokens), settings, num_truncated_tokens=3)
    read = load_encoded(save_encoded(text, tmp_path / "text"), model=pair.attached)
    assert torch.equal(read.hidden_NM, text.hidden_NM)
    assert np.array_equal(read.token_ids, text.token_ids)
    assert (read.num_truncated_tokens, read.nbytes) == (3, text.nbytes)
    answers = [
        pair.attached.generate(**generate_kwargs(pair.attached, each, settings), max_new_tokens=8, do_sample=False)
        for each in (text, read)
    ]
    assert torch.equal(*answers)


def test_a_text_read_back_can_be_continued(bart_pair: Any, ids: Any, tmp_path: Path) -> None:
    settings = bart_pair.settings(index="block_mean")
    text = encode_text(bart_pair.attached, ids(130), settings, store_dtype=torch.bfloat16)
    read = load_encoded(save_encoded(text, tmp_path / "text"))
    continued = [append_text(bart_pair.attached, each, ids(70, seed=1), settings) for each in (text, read)]
    assert torch.equal(continued[0].hidden_NM, continued[1].hidden_NM)
    assert continued[1].hidden_NM.dtype == torch.bfloat16


def test_saving_again_replaces_and_leaves_nothing_else(bart_pair: Any, ids: Any, tmp_path: Path) -> None:
    for count in (40, 130):
        save_encoded(encode_text(bart_pair.attached, ids(count), bart_pair.settings()), tmp_path / "text")
    assert len(load_encoded(tmp_path / "text")) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_another_model_is_refused(bart_pair: Any, other_bart: Any, ids: Any, tmp_path: Path) -> None:
    save_encoded(encode_text(bart_pair.attached, ids(40), bart_pair.settings()), tmp_path / "text")
    with pytest.raises(CheckpointError, match="was encoded by the model"):
        load_encoded(tmp_path / "text", model=other_bart)


@pytest.mark.parametrize("name", ["tensors.safetensors", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_folder_is_refused(bart_pair: Any, ids: Any, tmp_path: Path, name: str, harm: str) -> None:
    folder = save_encoded(encode_text(bart_pair.attached, ids(40), bart_pair.settings()), tmp_path / "text")
    path = folder / name
    content = path.read_bytes()
    if harm == "remove":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(content[:-9])
    else:
        path.write_bytes(content[:20] + bytes([content[20] ^ 255]) + content[21:])
    with pytest.raises(CheckpointError, match=str(folder)):
        load_encoded(folder)


def test_a_manifest_of_something_else_is_refused(tmp_path: Path) -> None:
    from hsokv_ray.manifest import write_manifest

    write_manifest(tmp_path, extra={"kind": "decoder"})
    with pytest.raises(CheckpointError, match="holds 'decoder'"):
        load_encoded(tmp_path)


def test_a_disk_that_refuses_leaves_the_old_text(bart_pair: Any, ids: Any, tmp_path: Path, monkeypatch: Any) -> None:
    folder = save_encoded(encode_text(bart_pair.attached, ids(40), bart_pair.settings()), tmp_path / "text")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hsokv_ray.longcontext.folder.write_manifest", full)
    with pytest.raises(RunError, match="No space left"):
        save_encoded(encode_text(bart_pair.attached, ids(50), bart_pair.settings()), folder)
    assert len(load_encoded(folder)) == 40
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
