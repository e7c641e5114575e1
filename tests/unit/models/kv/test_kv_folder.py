"""A model in a folder: it comes back whole with its memory, and a memory that does not belong to it is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from hsokv_ray.data.tokenizer import train_tokenizer
from hsokv_ray.errors import CheckpointError, ConfigError, DataError
from hsokv_ray.memory.key_value import KeyValueMemory
from hsokv_ray.models import BaselineTransformer, TransformerWithKV

VARIANTS = {
    "classification": {},
    "language model": {"head": "language_model", "memory": {"capacity": 64}},
    "frozen": {"key_encoder": "frozen"},
    "vectors": {"input": "vectors", "input_dim": 12},
    "other widths": {"memory": {"key_dim": 6, "value_dim": 5}},
    "no memory": {"memory": None},
    "no head": {"head": "none"},
}


def inputs_of(model, some_ids, some_vectors) -> dict[str, torch.Tensor]:
    return {"vectors": some_vectors()} if model.config.input == "vectors" else {"input_ids": some_ids()}


def filled(model, given) -> TransformerWithKV:
    if model.memory is not None and model.config.head == "none":
        model.write(**given, values=torch.randn(5, model.memory.config.value_dim))
    elif model.memory is not None:
        model.write(**given, labels=given["input_ids"] if model.config.head == "language_model" else torch.arange(5))
    return model


def one_step(model, given) -> None:
    model.train()(**given).mixed.square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    model.zero_grad()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_model_comes_back_bit_for_bit_with_its_memory(variant, kv_model, some_ids, some_vectors, tmp_path):
    model = kv_model(**VARIANTS[variant])
    given = inputs_of(model, some_ids, some_vectors)
    filled(model, given)(**given)
    model.eval().save_pretrained(tmp_path / "model")
    loaded = AutoModel.from_pretrained(tmp_path / "model")
    assert type(loaded) is TransformerWithKV
    assert not loaded.training
    before, after = model(**given), loaded(**given)
    assert torch.equal(before.mixed, after.mixed)
    assert before.logits is None or torch.equal(before.logits, after.logits)
    if model.memory is not None:
        assert len(model.memory) > 0
        assert loaded.memory.digest() == model.memory.digest()
        assert loaded.encoder_id() == model.encoder_id()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_model_that_learnt_on_after_its_last_write_comes_back_as_it_was(kv_model, some_ids, tmp_path) -> None:
    model = filled(kv_model(), {"input_ids": some_ids()})
    one_step(model, {"input_ids": some_ids()})
    assert model.memory.encoder_id != model.encoder_id()
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(some_ids()).logits, model(some_ids()).logits)
    assert loaded.memory.digest() == model.memory.digest()
    loaded.save_pretrained(tmp_path)
    assert TransformerWithKV.from_pretrained(tmp_path).memory.digest() == model.memory.digest()


@pytest.fixture
def foreign(kv_model, some_ids, tmp_path) -> Path:
    """A folder whose memory was made by other weights."""
    filled(kv_model(seed=0), {"input_ids": some_ids()}).save_pretrained(tmp_path / "own")
    filled(kv_model(seed=1), {"input_ids": some_ids()}).save_pretrained(tmp_path / "other")
    shutil.rmtree(tmp_path / "own" / "memory")
    shutil.copytree(tmp_path / "other" / "memory", tmp_path / "own" / "memory")
    return tmp_path / "own"


def test_a_memory_of_another_encoder_is_refused_in_one_line_that_says_what_to_do(foreign) -> None:
    with pytest.raises(CheckpointError, match="stale_memory='reencode'") as caught:
        TransformerWithKV.from_pretrained(foreign)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="stale_memory: got 'maybe'"):
        TransformerWithKV.from_pretrained(foreign, stale_memory="maybe")


def test_weights_of_another_save_beside_a_memory_that_had_drifted_are_refused(kv_model, some_ids, tmp_path) -> None:
    model = filled(kv_model(), {"input_ids": some_ids()})
    one_step(model, {"input_ids": some_ids()})
    model.save_pretrained(tmp_path / "a")
    one_step(model, {"input_ids": some_ids()})
    model.save_pretrained(tmp_path / "b")
    shutil.copy(tmp_path / "b" / "model.safetensors", tmp_path / "a" / "model.safetensors")
    with pytest.raises(CheckpointError, match="its keys were made by the encoder"):
        TransformerWithKV.from_pretrained(tmp_path / "a")


def test_a_memory_of_another_encoder_is_encoded_again_kept_or_left_out_when_asked(foreign, kv_model, some_ids) -> None:
    own = filled(kv_model(seed=0), {"input_ids": some_ids()})
    again = TransformerWithKV.from_pretrained(foreign, stale_memory="reencode")
    torch.testing.assert_close(again.memory.keys, own.memory.keys)
    assert again.memory.encoder_id == again.encoder_id() == own.encoder_id()
    assert again.memory.num_stale == 0
    kept = TransformerWithKV.from_pretrained(foreign, stale_memory="keep")
    assert kept.memory.digest() == KeyValueMemory.load(foreign / "memory").digest()
    assert len(TransformerWithKV.from_pretrained(foreign, stale_memory="empty").memory) == 0


def test_entries_without_a_stored_input_cannot_be_encoded_again(kv_model, foreign) -> None:
    memory = KeyValueMemory.load(foreign / "memory")
    memory.write(torch.randn(1, 16), torch.randn(1, 16), ids=["bare"])
    memory.save(foreign / "memory")
    with pytest.raises(CheckpointError, match=r"1 entries \(first 'bare'\)"):
        TransformerWithKV.from_pretrained(foreign, stale_memory="reencode")
    memory.write(torch.randn(1, 16), torch.randn(1, 16), ids=["text"], inputs=["a text"])
    memory.save(foreign / "memory")
    with pytest.raises(DataError, match="an entry that the model wrote"):
        TransformerWithKV.from_pretrained(foreign, stale_memory="reencode")


def test_a_missing_or_damaged_memory_and_one_of_other_dimensions_are_refused(kv_model, some_ids, tmp_path) -> None:
    filled(kv_model(), {"input_ids": some_ids()}).save_pretrained(tmp_path)
    [state] = (tmp_path / "memory").iterdir()
    arrays = state / "arrays.safetensors"
    data = arrays.read_bytes()
    arrays.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="is damaged"):
        TransformerWithKV.from_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "memory")
    with pytest.raises(CheckpointError, match="holds no saved memory"):
        TransformerWithKV.from_pretrained(tmp_path)
    filled(kv_model(memory={"key_dim": 6}), {"input_ids": some_ids()}).memory.save(tmp_path / "memory")
    with pytest.raises(CheckpointError, match="have 6 and 16 dimensions"):
        TransformerWithKV.from_pretrained(tmp_path)


def test_saving_over_a_folder_takes_the_place_of_what_was_there_and_leaves_other_files(
    kv_model, some_ids, tmp_path
) -> None:
    first = kv_model(seed=0)
    first.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    (tmp_path / "notes.txt").write_text("mine")
    second = filled(kv_model(seed=1), {"input_ids": some_ids()}).eval()
    second.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert torch.equal(TransformerWithKV.from_pretrained(tmp_path)(some_ids()).logits, second(some_ids()).logits)


def test_a_save_that_fails_leaves_the_folder_as_it_was(kv_model, some_ids, tmp_path) -> None:
    class Refuses:
        def save_pretrained(self, folder: str) -> None:
            raise OSError("no space left")

    model = filled(kv_model(), {"input_ids": some_ids()}).eval()
    model.save_pretrained(tmp_path / "model")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(OSError, match="no space"):
        kv_model(seed=1).save_pretrained(tmp_path / "model", tokenizer=Refuses())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(CheckpointError, match="is a file"):
        model.save_pretrained(tmp_path / "model" / "config.json")


def test_a_tokenizer_travels_in_the_folder(kv_model, tmp_path) -> None:
    tokenizer = train_tokenizer(["a murngale is a small grey boat", "she rowed the murngale"], 280)
    kv_model(vocab_size=280).save_pretrained(tmp_path / "model", tokenizer=tokenizer)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert loaded.encode("a murngale", add_special_tokens=False) == tokenizer.encode("a murngale").tolist()
    kv_model(vocab_size=280).save_pretrained(tmp_path / "again", tokenizer=loaded)
    assert (tmp_path / "again" / "tokenizer.json").is_file()


def test_a_baseline_loads_the_shared_weights_and_is_saved_without_a_memory(kv_model, some_ids, tmp_path) -> None:
    model = filled(kv_model(), {"input_ids": some_ids()}).eval()
    model.save_pretrained(tmp_path / "model")
    baseline = BaselineTransformer.from_pretrained(tmp_path / "model")
    assert baseline.memory is None
    assert torch.equal(baseline(some_ids()).logits, model(some_ids(), use_memory=False).logits)
    baseline.save_pretrained(tmp_path / "baseline")
    assert not (tmp_path / "baseline" / "memory").exists()
    assert json.loads((tmp_path / "baseline" / "config.json").read_text())["memory"] is None


def test_a_live_checkpoint_loaded_with_frozen_keys_freezes_the_weights_it_brings(kv_model, some_ids, tmp_path) -> None:
    model = filled(kv_model(), {"input_ids": some_ids()}).eval()
    model.save_pretrained(tmp_path)
    frozen = TransformerWithKV.from_pretrained(tmp_path, key_encoder="frozen")
    assert torch.equal(frozen(some_ids()).logits, model(some_ids()).logits)


def test_pushing_while_saving_is_refused(kv_model, tmp_path) -> None:
    with pytest.raises(ConfigError, match="upload_folder"):
        kv_model().save_pretrained(tmp_path, push_to_hub=True)
