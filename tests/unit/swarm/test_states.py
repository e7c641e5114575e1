"""States on disk: what was packed comes back, damage is named, a killed writer leaves nothing behind."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.errors import CheckpointError, RunError
from hsokv_ray.swarm.learner import State
from hsokv_ray.swarm.states import States, pack, unpack

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]


def state(seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return State({"a": torch.randn(3, 4, generator=generator), "b": torch.arange(5)}, {"step": 7})


@given(
    values=st.dictionaries(st.text(), JSON, max_size=3), shape=st.lists(st.integers(0, 3), max_size=3), data=st.data()
)
def test_what_was_packed_comes_back(values: dict[str, object], shape: list[int], data: st.DataObject):
    dtype = data.draw(st.sampled_from(DTYPES))
    tensor = (torch.rand(torch.Size(shape)) * 8).to(dtype)
    back = unpack(pack(State({"ü.weight": tensor}, values)))
    assert back.tensors["ü.weight"].dtype == dtype
    assert torch.equal(back.tensors["ü.weight"], tensor)
    assert repr(back.values) == repr(values)  # by repr, for NaN is not equal to itself


def test_tensors_that_share_memory_or_are_strided_come_back_as_they_were():
    base = torch.arange(12.0).reshape(3, 4)
    given_ = {"tied": base, "again": base, "turned": base.T, "part": base[1:], "grad": base.clone().requires_grad_()}
    back = unpack(pack(State(given_, {}))).tensors
    assert all(torch.equal(back[name], tensor) for name, tensor in given_.items())
    back["tied"].zero_()
    assert torch.equal(back["again"], base)


def test_values_that_are_no_json_are_refused():
    with pytest.raises(RunError, match="a learner's State.values must be"):
        pack(State({}, {"rng": object()}))


def test_a_state_on_disk_is_whole_or_refused(tmp_path: Path):
    states = States(tmp_path / "states")
    assert states.names() == set()
    states.write("a3.17", pack(state()))
    data = states.path("a3.17").read_bytes()
    assert torch.equal(states.read("a3.17").tensors["a"], state().tensors["a"])
    for size in range(len(data)):
        states.path("a3.17").write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"a3\.17\.safetensors: damaged state"):
            states.read("a3.17")
    with pytest.raises(CheckpointError, match=r"a3\.18\.safetensors cannot be read"):
        states.read("a3.18")


def test_a_writer_killed_half_way_leaves_the_state_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    states = States(tmp_path)
    states.write("a0.1", pack(state(0)))

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            states.write("a0.1", pack(state(1)))
    assert len(list(tmp_path.iterdir())) == 2
    states.clean()
    assert [path.name for path in tmp_path.iterdir()] == ["a0.1.safetensors"]
    assert torch.equal(states.read("a0.1").tensors["a"], state(0).tensors["a"])


def test_a_full_disk_is_one_line(tmp_path: Path):
    (tmp_path / "states").write_text("a file where a folder should be")
    with pytest.raises(RunError, match=r"a0\.1\.safetensors cannot be written \(.*\); make room"):
        States(tmp_path / "states").write("a0.1", pack(state()))


def test_dropping_removes_these_and_no_others(tmp_path: Path):
    states = States(tmp_path)
    for number in range(4):
        states.write(f"a0.{number}", pack(state()))
    states.drop({"a0.0", "a0.2", "a0.9"})
    assert states.names() == {"a0.1", "a0.3"}
