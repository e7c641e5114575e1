"""Memories on disk, and what is refused."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from hsokv_ray.errors import CheckpointError, ConfigError, DataError, RunError
from hsokv_ray.longcontext import LongContext, LongContextConfig, Memory

from .conftest import make_model


def config(**settings: Any) -> LongContextConfig:
    return LongContextConfig(**({"enabled": True, "block_size": 4, "sink_tokens": 4} | settings))


def answer(lc: LongContext, memory: Memory, text: torch.Tensor) -> list[int]:
    return lc.generate(memory, prompt=text[:7], max_new_tokens=12, do_sample=False).token_ids


@pytest.mark.parametrize("index", ["flat", "pq", "block_mean", "block_minmax", "ivf"])
@pytest.mark.parametrize("length", [30, 500])
def test_a_saved_memory_answers_as_the_one_in_memory_did(
    llama: Any, text: torch.Tensor, tmp_path: Path, index: str, length: int
):
    with LongContext(llama, config=config(index=index)) as lc:
        memory = lc.encode(text[:length])
        expected = answer(lc, memory, text)
        memory.save(tmp_path / "m")
    with LongContext(llama, config=config(index=index)) as lc:
        loaded = Memory.load(tmp_path / "m")
        assert loaded.nbytes == memory.nbytes
        assert answer(lc, loaded, text) == expected
        assert loaded.nbytes == memory.nbytes
        assert loaded.index_nbytes <= memory.index_nbytes  # the other may have room to grow
        lc.append(loaded, text[:80])
        lc.append(memory, text[:80])
        assert answer(lc, loaded, text) == answer(lc, memory, text)


def test_saving_again_replaces_and_never_touches_a_folder_of_other_things(
    llama: Any, text: torch.Tensor, tmp_path: Path
):
    with LongContext(llama, config=config()) as lc:
        memory = lc.encode(text[:100])
        memory.save(tmp_path / "m")
        lc.append(memory, text[100:200])
        memory.save(tmp_path / "m")
        assert len(Memory.load(tmp_path / "m")) == 200
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.tex").write_text("years of work")
        with pytest.raises(RunError, match="other files"):
            memory.save(tmp_path / "other")
        assert (tmp_path / "other" / "thesis.tex").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "other"]


def test_another_models_memory_is_refused(llama: Any, text: torch.Tensor, tmp_path: Path):
    with LongContext(llama, config=config()) as lc:
        lc.encode(text).save(tmp_path / "m")
    other = make_model("llama-gqa", seed=1)
    with LongContext(other, config=config()) as lc:
        with pytest.raises(ConfigError, match="encoded by another model"):
            lc.load(tmp_path / "m")
        with pytest.raises(ConfigError, match="encoded by another model"):
            answer(lc, Memory.load(tmp_path / "m"), text)


def test_settings_that_do_not_fit_are_named_and_others_may_change(llama: Any, text: torch.Tensor, tmp_path: Path):
    with LongContext(llama, config=config()) as lc:
        lc.encode(text).save(tmp_path / "m")
    with (
        LongContext(llama, config=config(block_size=8)) as lc,
        pytest.raises(ConfigError, match="block_size: 4 -> 8"),
    ):
        lc.load(tmp_path / "m")
    with LongContext(llama, config=config(budget_tokens=8, local_tokens=20, positions="fixed")) as lc:
        assert len(answer(lc, lc.load(tmp_path / "m"), text)) == 12


def test_a_loaded_memory_is_placed_once_whoever_comes_first(llama: Any, text: torch.Tensor, tmp_path: Path):
    with LongContext(llama, config=config()) as lc:
        lc.encode(text).save(tmp_path / "m")
        for _ in range(5):
            memory, failed = Memory.load(tmp_path / "m"), []
            threads = [threading.Thread(target=_use, args=(lc, memory, failed)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not failed
            assert not memory.stored


def _use(lc: LongContext, memory: Memory, failed: list[Exception]) -> None:
    try:
        lc.cache(memory)
    except Exception as error:  # a thread's would be lost
        failed.append(error)


def test_two_who_append_to_one_memory_take_turns(llama: Any, text: torch.Tensor):
    with LongContext(llama, config=config()) as first, LongContext(llama, config=config()) as second:
        memory = first.encode(text[:100])
        threads = [threading.Thread(target=lc.append, args=(memory, text[100:150])) for lc in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(memory) == memory.rows[0].length == 200


def test_damage_is_noticed(llama: Any, text: torch.Tensor, tmp_path: Path):
    with LongContext(llama, config=config()) as lc:
        lc.encode(text).save(tmp_path / "m")
    tensors = tmp_path / "m" / "tensors.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"tensors\.safetensors is damaged .*checksum"):
        Memory.load(tmp_path / "m")
    tensors.write_bytes(whole[:1000])
    with pytest.raises(CheckpointError, match="1000 bytes where"):
        Memory.load(tmp_path / "m")
    tensors.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        Memory.load(tmp_path / "m")
    with pytest.raises(CheckpointError, match="is no folder"):
        Memory.load(tmp_path / "nowhere")
    manifest = tmp_path / "m" / "manifest.json"
    facts = json.loads(manifest.read_text())
    tensors.write_bytes(whole)
    facts["extra"]["kind"] = "checkpoint"
    manifest.write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="holds 'checkpoint'"):
        Memory.load(tmp_path / "m")


def test_too_long_an_input_is_an_error_or_is_cut_and_counted(llama: Any, text: torch.Tensor):
    with LongContext(llama, config=config(max_source_length=100)) as lc:
        with pytest.raises(ConfigError, match="500 tokens, max_source_length allows 100"):
            lc.encode(text)
        memory = lc.encode(text[:90])
        with pytest.raises(ConfigError, match="110 tokens"):
            lc.append(memory, text[:20])
        assert len(memory) == 90
    with LongContext(llama, config=config(eval_max_source_length=100, on_too_long="truncate")) as lc:
        memory = lc.encode(text)
        assert (len(memory), memory.num_truncated_tokens) == (100, 400)
        lc.append(memory, text[:20])
        assert (len(memory), memory.num_truncated_tokens) == (100, 420)


def test_inputs_may_be_ids_arrays_or_chunks_of_them(llama: Any, text: torch.Tensor):
    with LongContext(llama, config=config()) as lc:
        ids = text[:40].tolist()
        chunks = (ids[begin : begin + 7] for begin in range(0, 40, 7))
        for source in (ids, text[:40], text[:40].numpy(), chunks):
            assert lc.encode(source).token_ids.tolist() == ids
        with pytest.raises(DataError, match="empty"):
            lc.encode([])
        with pytest.raises(DataError, match=r"array \(2, 10\); give one sequence"):
            lc.encode(text[:20].view(2, 10))
        with pytest.raises(DataError, match="input_ids"):
            lc.encode({"input_ids": ids})  # pyright: ignore[reportArgumentType]
        with pytest.raises(DataError, match="token id 97 is not the model's, which are 0 to 96"):
            lc.encode([5, 97])
        with pytest.raises(ConfigError, match="no tokenizer"):
            lc.encode("words")
        with pytest.raises(ConfigError, match="the prompt is empty"):
            lc.generate(lc.encode(ids))


def test_the_store_may_be_smaller_than_the_model(llama: Any, text: torch.Tensor):
    with LongContext(llama, config=config(store_dtype="float16")) as lc:
        half = lc.encode(text)
    with LongContext(llama, config=config()) as lc:
        full = lc.encode(text)
    far_half, far_full = (memory.rows[1].far[0].span for memory in (half, full))
    assert far_half.nbytes * 2 == far_full.nbytes
    torch.testing.assert_close(far_half.keys.float(), far_full.keys, atol=2e-2, rtol=0)


def test_a_gpu_that_is_not_there_gives_one_warning_and_the_cpu(
    llama: Any, text: torch.Tensor, caplog: pytest.LogCaptureFixture
):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with LongContext(llama, config=config(gpu_datastore=True)) as lc:
        assert len(answer(lc, lc.encode(text), text)) == 12
    assert [record.getMessage() for record in caplog.records if "gpu_datastore" in record.getMessage()] == [
        f"gpu_datastore: PyTorch {torch.__version__} finds no GPU; the datastore is in main memory"
    ]
