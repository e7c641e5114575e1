"""Encoded texts shared by processes of a real Ray: attached without copies, whoever dies."""

import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import segment_process
import segment_reading
import synthetic_segments
import torch
from segment_process import MIB, SegmentProcess, connect_to
from segment_reading import as_memory, read
from synthetic_segments import encoded
from transformers import LlamaConfig, LlamaForCausalLM

from hsokv_ray.errors import StoreError
from hsokv_ray.longcontext import LongContext, LongContextConfig
from hsokv_ray.longcontext.recorder import Recorder
from serve.actors import end_actors
from serve.registry_link import node_id
from serve.shared_prefixes import SharedPrefixes

pytestmark = pytest.mark.usefixtures("ray_cluster")
CALL_S = 120.0

for module in (segment_process, segment_reading, synthetic_segments, sys.modules[__name__]):
    ray.cloudpickle.register_pickle_by_value(module)  # Ray's workers do not have the tests' path


@pytest.fixture
def name() -> Iterator[str]:
    """The name of an application of its own, whose registry runs."""
    app = f"test-{uuid.uuid4().hex[:8]}"
    ray.get(connect_to(app)().stats.remote(), timeout=CALL_S)
    yield app
    end_actors(app)


@pytest.fixture
def start(name: str) -> Iterator[Callable[..., Any]]:
    """Start processes, ended with the test."""
    started = []

    def start_one(**arguments: Any) -> Any:
        actor = ray.remote(SegmentProcess).options(num_cpus=0, max_concurrency=4)
        process = actor.remote(connect_to(name), **arguments)
        started.append(process)
        return process

    yield start_one
    for process in started:
        ray.kill(process)


def ask(ref: Any) -> Any:
    return ray.get(ref, timeout=CALL_S)


def pid_of(actor: Any) -> int:
    return ask(actor.__ray_call__.remote(lambda self: os.getpid()))


def until(condition: Callable[[], Any], deadline_s: float = 60.0) -> Any:
    """Return the first true value of `condition`."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)
    return value


def test_a_text_is_attached_by_another_process_without_copies(start: Any):
    writer, reader = start(), start()
    digest = ask(writer.publish.remote([1, 2, 3], 40 * MIB))
    expected = int(encoded([1, 2, 3], num_bytes=40 * MIB).segments[0].arrays["far.keys"].sum(dtype="int64"))
    attached = ask(reader.attach.remote(digest))
    assert attached["sum"] == expected
    assert "plasma" in attached["mapping"] or "/dev/shm" in attached["mapping"] or "/tmp" in attached["mapping"]
    assert not attached["writeable"]
    assert attached["private_bytes"] < 4 * MIB
    assert ask(reader.attach.remote(digest))["address"] == attached["address"]
    # the writer, too, holds what is shared and no longer its own
    assert ask(writer.attach.remote(digest))["mapping"] == attached["mapping"]
    assert ask(reader.find.remote(["unknown", digest])) == [1, 2, 3]


def test_a_text_outlives_the_process_that_read_it(start: Any):
    writer, reader = start(), start()
    ask(reader.pid.remote())
    digest = ask(writer.publish.remote([1, 2], 5 * MIB))
    os.kill(ask(writer.pid.remote()), signal.SIGKILL)
    until(lambda: _is_dead(writer))
    assert ask(reader.find.remote([digest])) == [1, 2]
    assert ask(start().find.remote([digest])) == [1, 2]


def _is_dead(actor: Any) -> bool:
    try:
        ray.get(actor.pid.remote(), timeout=CALL_S)
    except ray.exceptions.RayActorError:
        return True
    return False


@pytest.mark.parametrize("how", ["killed for good", "killed and restarted"])
def test_all_goes_on_when_the_registry_dies(name: str, start: Any, how: str):
    writer, reader = start(), start()
    digest = ask(writer.publish.remote([1, 2], MIB))
    ask(reader.pid.remote())
    registry = connect_to(name)()
    if how == "killed for good":
        ray.kill(registry, no_restart=True)
    else:
        os.kill(pid_of(registry), signal.SIGKILL)
    assert ask(writer.find.remote([digest])) == [1, 2]  # from its own
    assert ask(reader.find.remote([digest])) in (None, [1, 2])  # nobody waits, nothing is raised
    assert ask(reader.claim.remote("anything", 5)) in (True, False)
    # a fresh registry takes new texts, and this one again
    again = until(lambda: _published_again(writer, reader))
    assert again == [7, 8]


def _published_again(writer: Any, reader: Any) -> list[int] | None:
    digest = ask(writer.publish.remote([7, 8], MIB))
    return ask(reader.find.remote([digest]))


def test_nobody_waits_for_a_registry_that_hangs(name: str, start: Any):
    writer, reader = start(), start()
    digest = ask(writer.publish.remote([1, 2], MIB))
    ask(reader.pid.remote())
    pid = pid_of(connect_to(name)())
    os.kill(pid, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        assert ask(reader.find.remote([digest])) is None
        assert ask(reader.claim.remote("anything", 300)) is True
        assert ask(writer.find.remote([digest])) == [1, 2]
        assert time.monotonic() - begin < 100
    finally:
        os.kill(pid, signal.SIGCONT)
    assert until(lambda: ask(reader.find.remote([digest]))) == [1, 2]


def test_lost_arrays_are_forgotten_everywhere_and_may_be_published_again(name: str, start: Any):
    writer, reader = start(), start(local_bytes=MIB)  # which holds nothing of this size
    digest = ask(writer.publish.remote([1, 2], 5 * MIB))
    registry = connect_to(name)()
    [keeper] = ask(registry.keeper.remote(node_id()))
    assert ask(reader.find.remote([digest])) == [1, 2]
    os.kill(ask(writer.pid.remote()), signal.SIGKILL)
    os.kill(pid_of(keeper), signal.SIGKILL)  # the objects' owner, and the last who looked at them
    assert until(lambda: ask(reader.find.remote([digest])) is None)
    assert ask(reader.stats.remote()).lost == 1
    assert ask(registry.stats.remote())["lost"] == 1
    assert ask(registry.find.remote([digest])) is None
    ask(reader.publish.remote([1, 2], 5 * MIB))
    assert until(lambda: ask(start().find.remote([digest]))) == [1, 2]


def test_evicted_texts_leave_the_object_store(start: Any, ray_session_dir: Path):
    writer, reader = start(), start()
    digests = [ask(writer.publish.remote([number], 40 * MIB)) for number in range(12)]  # more than the store holds
    found = [ask(reader.find.remote([digest])) is not None for digest in digests]
    assert found == [False] * 9 + [True] * 3  # of 150 MiB
    assert list(ray_session_dir.rglob("ray_spilled_objects*/*")) == []


@pytest.fixture
def ray_session_dir() -> Path:
    """Where this Ray writes; what it spills goes there, too."""
    return Path(ray._private.worker._global_node.get_session_dir_path())  # pyright: ignore[reportAttributeAccessIssue]


def test_a_dropped_text_leaves_every_process_within_a_beat(name: str, start: Any):
    writer, reader = start(), start()
    digest = ask(writer.publish.remote([1, 2], MIB))
    assert ask(reader.find.remote([digest])) == [1, 2]
    assert ask(reader.drop.remote(digest)) == 1
    assert ask(reader.find.remote([digest])) is None
    assert until(lambda: ask(writer.find.remote([digest])) is None)
    assert ask(connect_to(name)().stats.remote())["num_segments"] == 0


def test_of_two_processes_one_reads_a_text_and_the_other_waits_for_it(start: Any):
    first, second = start(), start()
    text = encoded([5, 6])
    assert ask(first.claim.remote(text.digest, 5)) is True
    waiting = second.claim.remote(text.digest, 60)
    assert ask(first.publish.remote([5, 6], 0)) == text.digest
    ask(first.release.remote(text.digest))
    assert ask(waiting) is False
    assert ask(second.find.remote([text.digest])) == [5, 6]


def test_a_claim_given_up_goes_to_who_waits(start: Any):
    first, second = start(), start()
    assert ask(first.claim.remote("d", 5)) is True
    waiting = second.claim.remote("d", 60)
    ask(first.release.remote("d"))
    assert ask(waiting) is True


def test_a_dead_process_s_claim_goes_to_who_waits_and_a_living_one_s_does_not(name: str, start: Any):
    lease = connect_to(f"{name}-short", lease_s=2.0)
    try:
        ask(lease().stats.remote())
        processes = [ray.remote(SegmentProcess).options(num_cpus=0).remote(lease) for _ in range(2)]
        first, second = processes
        assert ask(first.claim.remote("d", 5)) is True
        assert ask(second.claim.remote("d", 5)) is False  # longer than the lease: it is renewed
        ray.kill(first)
        assert ask(second.claim.remote("d", 60)) is True
        ray.kill(second)
    finally:
        end_actors(f"{name}-short")


def test_pins_and_drops_say_where_there_is_no_registry(name: str):
    prefixes = SharedPrefixes(connect_to(name), local_bytes=MIB)
    try:
        text = encoded([1, 2])
        prefixes.add(text)
        prefixes.flush()
        assert prefixes.pin(text.digest) is True
        assert prefixes.unpin("unknown") is False
        pid = pid_of(connect_to(name)())
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(StoreError, match="does not answer"):
                prefixes.drop(text.digest)
            with pytest.raises(StoreError, match="did not answer a moment ago"):
                prefixes.pin(text.digest)
        finally:
            os.kill(pid, signal.SIGCONT)
    finally:
        prefixes.close()


class Gated:
    """The registry's handle; calls of `missing` wait for the gate."""

    def __init__(self, handle: Any, gate: threading.Event) -> None:
        self._handle, self._gate = handle, gate

    def __getattr__(self, name: str) -> Any:
        if name == "missing":
            assert self._gate.wait(CALL_S)
        return getattr(self._handle, name)


def test_a_late_release_leaves_what_was_claimed_since(name: str):
    gate = threading.Event()
    first = SharedPrefixes(lambda: Gated(connect_to(name)(), gate), local_bytes=MIB)
    second = SharedPrefixes(connect_to(name), local_bytes=MIB)
    try:
        assert first.claim("d", 5)
        first.add(encoded([1, 2]))  # publishing it waits, and the release behind it
        first.release("d")
        assert first.claim("d", 5)
        gate.set()
        first.flush()
        assert not second.claim("d", 0.5)
        first.release("d")
        assert second.claim("d", 60)
        second.release("d")
    finally:
        gate.set()
        first.close()
        second.close()


class ModelProcess(SegmentProcess):
    """Reads with a model."""

    def read(self, ids: np.ndarray) -> str:
        """Read a text and publish it; return its digest."""
        with LongContext(tiny_llama(), config=CONFIG) as lc:
            text = read(lc.decoder(), ids, marks=[96])
        self.prefixes.add(text)
        self.prefixes.flush(60)
        return text.digest


CONFIG = LongContextConfig(enabled=True, block_size=4, sink_tokens=4, chunk_size=16, index="pq")


def tiny_llama() -> Any:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 97,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
    }
    return LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16).eval()


def test_a_model_reads_on_where_another_process_stopped(name: str):
    ids = np.random.default_rng(0).integers(0, 97, 900)
    prefixes = SharedPrefixes(connect_to(name), local_bytes=100 * MIB)
    process = ray.remote(ModelProcess).options(num_cpus=0).remote(connect_to(name))
    try:
        digest = ask(process.read.remote(ids))
        with LongContext(tiny_llama(), config=CONFIG) as lc:
            reader = lc.decoder()
            text = prefixes.find([digest])
            assert text is not None
            row = Recorder(reader.make, reader.digest, text).rows()[1]
            keys = text.segments[0].arrays["far.keys"]
            assert np.shares_memory(row.far[0].span.keys.view(torch.int16).numpy(), keys[1])
            prompt = torch.from_numpy(ids[:9])
            answers = [
                lc.generate(memory, prompt=prompt, max_new_tokens=8, do_sample=False).token_ids
                for memory in (as_memory(reader, text), lc.encode(torch.from_numpy(ids)))
            ]
        assert answers[0] == answers[1]
    finally:
        prefixes.close()
        ray.kill(process)
