"""Names, missing FAISS, missing GPUs."""

import logging
import subprocess
import sys
import types

import faiss
import numpy as np
import pytest
import torch

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.index import coded, devices, make_index, making, restore_index

SHAPE = {"num_heads": 2, "head_dim": 8, "block_size": 4}


@pytest.fixture(autouse=True)
def said_nothing_yet():
    devices.find_gpu.cache_clear()
    making._say_once.cache_clear()
    yield
    devices.find_gpu.cache_clear()
    making._say_once.cache_clear()


@pytest.fixture
def no_faiss(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)


@pytest.fixture
def keys() -> torch.Tensor:
    return torch.randn(2, 1000, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["auto", "flat", "pq", "block_mean", "block_minmax", "ivf"])
def test_an_index_says_the_name_it_was_asked_for_by(name: str) -> None:
    index = make_index(name, **SHAPE)
    assert (index.name, index.num_tokens, index.block_size) == (name, 0, 4)
    assert index.fork().name == name


def test_names_of_the_index_are_those_of_the_config() -> None:
    from typing import get_args

    from hsokv_ray.longcontext.config import IndexName

    assert sorted(making.NAMES) == sorted(get_args(IndexName))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'hnsw' is unknown; give one of auto, flat"):
        make_index("hnsw", **SHAPE)


@pytest.mark.parametrize("name", ["block_mean", "block_minmax"])
def test_summaries_of_single_tokens_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--granularity token use flat, pq or ivf"):
        make_index(name, **{**SHAPE, "block_size": 1})


@pytest.mark.parametrize("name", ["pq", "ivf"])
def test_an_odd_head_dim_is_refused_where_pairs_are_coded(name: str) -> None:
    with pytest.raises(ConfigError, match="head dim 7 is odd"):
        make_index(name, **{**SHAPE, "head_dim": 7})


def test_auto_stays_exact_with_an_odd_head_dim_and_for_keys_on_a_gpu(caplog, keys) -> None:
    with caplog.at_level(logging.INFO, "hsokv_ray"):
        odd = make_index("auto", **{**SHAPE, "head_dim": 7}, flat_below=100)
        for _ in range(3):
            make_index("auto", **SHAPE, device="cuda:0", flat_below=100)
    odd.add(keys[..., :7], keys[..., :7])
    assert odd.nbytes == 0
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "the head dim 7 is odd",
        "the keys are on cuda",
    ]


def test_the_package_imports_without_faiss() -> None:
    code = (
        "import sys; sys.modules['faiss'] = None; from hsokv_ray.longcontext.index import make_index; "
        "make_index('flat', num_heads=1, head_dim=8, block_size=4)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_without_faiss_auto_scores_exactly_and_says_so_once(no_faiss, caplog, keys) -> None:
    queries = keys[:, :3]
    with caplog.at_level(logging.INFO, "hsokv_ray"):
        indexes = [make_index("auto", **SHAPE, flat_below=100) for _ in range(3)]
    exact = make_index("flat", **SHAPE)
    for index in (*indexes, exact):
        index.add(keys, keys)
    assert torch.equal(indexes[0].block_logits(queries, keys, 2), exact.block_logits(queries, keys, 2))
    assert [record.getMessage() for record in caplog.records] == [
        "index auto scores every token exactly, however long the text: FAISS is not installed"
    ]


@pytest.mark.parametrize("name", ["pq", "ivf"])
def test_without_faiss_an_index_that_needs_it_says_what_to_do(no_faiss, name: str) -> None:
    with pytest.raises(ConfigError, match="install faiss-cpu or use --index flat"):
        make_index(name, **SHAPE)


def test_a_stored_auto_index_opens_without_faiss(monkeypatch, keys) -> None:
    index = make_index("auto", **SHAPE, flat_below=700)
    index.add(keys, keys)
    state = index.state()
    assert "head_0" in state
    monkeypatch.setitem(sys.modules, "faiss", None)
    restored = restore_index("auto", state, **SHAPE, flat_below=700)
    exact = (keys[:, :2] @ keys.transpose(1, 2)).unflatten(2, (-1, 4)).amax(3)
    torch.testing.assert_close(restored.block_logits(keys[:, :2], keys, 2), exact)


@pytest.mark.parametrize("name", ["flat", "ivf"])
def test_a_gpu_that_faiss_cannot_use_is_one_warning_and_the_cpu(name: str, caplog, keys) -> None:
    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this FAISS has GPU support")
    with caplog.at_level(logging.WARNING, "hsokv_ray"):
        indexes = [make_index(name, **SHAPE, gpu=0) for _ in range(3)]
    plain = make_index(name, **SHAPE)
    for index in (indexes[0], plain):
        index.add(keys, keys)
    assert torch.equal(indexes[0].block_logits(keys[:, :2], keys, 2), plain.block_logits(keys[:, :2], keys, 2))
    [record] = caplog.records
    assert "--gpu-index" in record.getMessage()
    assert "searching on the CPU" in record.getMessage()


def test_a_gpu_without_faiss_is_a_warning(no_faiss, caplog) -> None:
    with caplog.at_level(logging.WARNING, "hsokv_ray"):
        make_index("flat", **SHAPE, gpu=0)
    assert "FAISS is not installed; searching on the CPU" in caplog.text


@pytest.mark.parametrize("name", ["pq", "auto", "block_mean"])
def test_an_index_that_no_gpu_searches_says_so_once(name: str, caplog) -> None:
    with caplog.at_level(logging.WARNING, "hsokv_ray"):
        for _ in range(2):
            make_index(name, **SHAPE, gpu=0)
    [record] = caplog.records
    assert f"--index {name}; use flat or ivf" in record.getMessage()


class FakeGpuIndex:
    """Searches like the CPU index it was made from, through the only call that FAISS's GPU indexes share with it."""

    def __init__(self, index, number: int) -> None:
        self.index, self.number, self.largest = index, number, 0

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        self.largest = max(self.largest, k)
        return self.index.search(queries, k)


@pytest.fixture
def fake_gpus(monkeypatch):
    """A FAISS with two GPUs, as far as ours calls it: what is put there is kept to be looked at."""
    put: list[FakeGpuIndex] = []

    def index_cpu_to_gpu(resources, number: int, index) -> FakeGpuIndex:
        put.append(FakeGpuIndex(faiss.clone_index(index), number))
        return put[-1]

    fake = types.ModuleType("faiss")
    fake.__dict__.update(vars(faiss))
    fake.__dict__.update(
        StandardGpuResources=object,
        get_num_gpus=lambda: 2,
        index_cpu_to_gpu=index_cpu_to_gpu,
        index_gpu_to_cpu=lambda index: faiss.clone_index(index.index),
    )
    monkeypatch.setitem(sys.modules, "faiss", fake)
    monkeypatch.setattr(coded, "TAIL_TOKENS", 64)
    monkeypatch.setattr(coded, "LEAST_CANDIDATES", 32)
    monkeypatch.setattr(coded, "SCANNED_TOKENS_PER_QUERY", 1)
    return put


@pytest.mark.parametrize("name", ["flat", "ivf"])
def test_where_faiss_has_gpus_the_one_asked_for_searches(name: str, fake_gpus, keys) -> None:
    index = make_index(name, **SHAPE, gpu=1)
    for end in (700, 900, 1000):
        index.add(keys[:, index.num_tokens : end], keys[:, :end])
    found = index.fork().block_logits(keys[:, :2], keys, 2)
    exact = (keys[:, :2] @ keys.transpose(1, 2)).unflatten(2, (-1, 4)).amax(3)
    looked = found.isfinite()
    assert (found[looked] <= exact[looked] + 1e-4).all()
    assert looked.gather(2, exact.argmax(2, keepdim=True)).all()
    assert {each.number for each in fake_gpus} == {1}
    assert sum(each.largest > 0 for each in fake_gpus) == 2, "one search in each head's index"
    restored = restore_index(name, index.state(), **SHAPE, gpu=1)
    assert torch.equal(restored.block_logits(keys[:, :2], keys, 2), found)


def test_a_gpu_number_too_high_is_a_warning(fake_gpus, caplog) -> None:
    with caplog.at_level(logging.WARNING, "hsokv_ray"):
        make_index("flat", **SHAPE, gpu=2)
    assert "FAISS sees 2 GPUs, --index-devices asks for number 2" in caplog.text
