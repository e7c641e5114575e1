"""Key-value memories of several agents that meet in one store."""

import inspect
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.config import parse
from hsokv_ray.errors import ConfigError, DataError, StoreError
from hsokv_ray.memory.config import KeyValueConfig
from hsokv_ray.memory.key_value import KeyValueMemory
from hsokv_ray.memory.stores import open_store
from hsokv_ray.models.kv_candidates import TOKENS
from hsokv_ray.swarm.job import SearchJob
from hsokv_ray.swarm.learners.language import LanguageTask
from hsokv_ray.swarm.learners.recipe import DEFAULT_STRATEGY
from hsokv_ray.swarm.pretrained import PretrainedTask
from hsokv_ray.swarm.search_config import SearchSwarmConfig
from hsokv_ray.swarm.sharing import COUNTS, Row, SharedEntries, SharingTask, merge
from hsokv_ray.swarm.tune import TaskTrainable, task_trainable

CONFIG = KeyValueConfig(key_dim=4, value_dim=3, capacity=8, top_k=2)


def memory(**changes: int) -> KeyValueMemory:
    return KeyValueMemory(CONFIG.model_copy(update=changes), encoder_id="e1")


def write(into: KeyValueMemory, name: str, direction: int) -> None:
    key = torch.eye(4)[direction : direction + 1]
    into.write(key, torch.full((1, 3), float(direction)), ids=[name], inputs=[name], metadata=[{"from": name}])


def standing(of: KeyValueMemory, name: str) -> list[float]:
    [slot] = of.slots_of([name])
    assert slot is not None
    return [float(getattr(of.lifecycle, count)[slot]) for count in COUNTS]


def test_what_one_agent_publishes_another_reads(tmp_path: Path) -> None:
    with open_store(f"faiss:{tmp_path}/s") as store:
        ann, bob = memory(), memory()
        write(ann, "x", 0)
        ann.read(torch.eye(4)[:1])
        ann.feedback([0], [1.0])
        assert SharedEntries(store, "ann").publish(ann, {}, version=1) == 1
        SharedEntries(store, "bob").merge_into(bob)
        assert torch.equal(
            bob.read(torch.eye(4)[:1], record=False).values, ann.read(torch.eye(4)[:1], record=False).values
        )
        assert standing(bob, "x") == standing(ann, "x") == [1.0, 1.0, 1.0]
        assert bob.lifecycle.confidence[0] == pytest.approx(ann.lifecycle.confidence[0])
        assert bob.check_integrity() == []


def test_contributions_of_all_add_up_and_each_counts_once(tmp_path: Path) -> None:
    with open_store(f"faiss:{tmp_path}/s") as store:
        first = memory()
        write(first, "x", 0)
        SharedEntries(store, "a0").publish(first, {}, version=1)
        for agent, version in itertools.product(("a0", "a1", "a2"), (2, 3)):
            mine, shared = memory(), SharedEntries(store, agent)
            baseline = shared.merge_into(mine)
            mine.read(torch.eye(4)[:1].repeat(2, 1))  # two retrievals
            mine.feedback([0, 0], [1.0, 0.0])
            shared.publish(mine, baseline, version=version)
            shared.publish(mine, baseline, version=version)  # the same order again, as after a lost worker
        late = memory()
        SharedEntries(store, "late").merge_into(late)
        assert standing(late, "x") == [12.0, 12.0, 6.0]


def test_an_older_version_changes_nothing(tmp_path: Path) -> None:
    with open_store(f"faiss:{tmp_path}/s") as store:
        shared, mine = SharedEntries(store, "a0"), memory()
        write(mine, "x", 0)
        shared.publish(mine, {}, version=5)
        before = shared.rows()
        write(mine, "x", 1)
        assert shared.publish(mine, {}, version=4) == 0
        [row], [was] = shared.rows(), before
        assert row.version == was.version == 5
        assert np.array_equal(row.key, was.key)


def test_the_newest_version_gives_key_and_value(tmp_path: Path) -> None:
    with open_store(f"faiss:{tmp_path}/s") as store:
        for agent, version in (("a0", 3), ("a1", 7), ("a2", 5)):
            mine = memory()
            write(mine, "x", version % 4)
            SharedEntries(store, agent).publish(mine, {}, version=version)
        late = memory()
        SharedEntries(store, "late").merge_into(late)
        assert torch.equal(late.keys[0], torch.eye(4)[7 % 4])
        assert late.values[0].tolist() == [3.0, 3.0, 3.0]


rows = st.builds(
    lambda entry, writer, version, counts: Row(
        entry, writer, version, np.full(4, version, np.float32), np.zeros(3, np.float32), "e1", None, {},
        dict(zip(COUNTS, counts, strict=True)), dict.fromkeys(COUNTS, 0.0),
    ),
    st.sampled_from("xyz"), st.sampled_from(["a0", "a1", "a2"]), st.integers(1, 9), st.tuples(*[st.integers(0, 5)] * 3),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(rows, max_size=9, unique_by=lambda row: row.id), st.randoms())
def test_the_merge_does_not_depend_on_the_order_of_rows(given_rows: list[Row], world) -> None:
    shuffled = list(given_rows)
    world.shuffle(shuffled)
    one, other = merge(given_rows), merge(shuffled)
    assert list(one) == list(other)
    for entry, merged in one.items():
        mine = [row for row in given_rows if row.entry == entry]
        assert merged.counts == other[entry].counts == {n: sum(row.counts[n] for row in mine) for n in COUNTS}
        assert merged.newest is other[entry].newest is max(mine, key=lambda row: (row.version, row.writer))


def test_more_entries_than_fit_keep_the_most_retrieved(tmp_path: Path) -> None:
    with open_store(f"faiss:{tmp_path}/s") as store:
        ann = memory()
        for i in range(4):
            write(ann, f"w{i}", i)
        for i in range(4):
            ann.read(torch.eye(4)[i : i + 1].repeat(i + 1, 1), top_k=1)
        SharedEntries(store, "ann").publish(ann, {}, version=1)
        small = memory(capacity=2)
        SharedEntries(store, "bob").merge_into(small)
        assert sorted(small.ids) == ["w2", "w3"]


def test_keys_of_another_encoder_come_in_as_stale_ones_that_can_be_encoded_again(tmp_path: Path) -> None:
    with open_store(f"faiss:{tmp_path}/s") as store:
        ann = memory()
        write(ann, "x", 0)
        SharedEntries(store, "ann").publish(ann, {}, version=1)
        bob = KeyValueMemory(CONFIG, encoder_id="e2")
        SharedEntries(store, "bob").merge_into(bob)
        assert bob.num_stale == 1
        assert not bob.read(torch.eye(4)[:1]).hits.any()
        bob.reencode("e2", lambda inputs: torch.eye(4)[1:2].repeat(len(inputs), 1))
        assert bob.read(torch.eye(4)[1:2]).hits.any()


def test_a_collection_of_something_else_is_refused_in_one_line(tmp_path: Path) -> None:
    with open_store(f"faiss:{tmp_path}/s") as store:
        store.upsert(["a"], np.ones((1, 4), np.float32), [{"text": "no entry"}])
        with pytest.raises(DataError, match="collection of its own"):
            SharedEntries(store, "a0").merge_into(memory())


@pytest.mark.parametrize("writer", ["", "a/b"])
def test_a_writer_needs_a_name(tmp_path: Path, writer: str) -> None:
    with open_store(f"faiss:{tmp_path}/s") as store, pytest.raises(DataError, match="without '/'"):
        SharedEntries(store, writer)


def searched(folder: Path, name: str, *more: str) -> SearchJob:
    """Two agents have searched a recipe for a language model."""
    config = parse(
        SearchSwarmConfig,
        ["--task", "language_model", "--lm-corpus", str(corpus(folder)), "--lm-seq-length", "8", "--size", "tiny",
         "--iterations", "2", "--agent-steps", "2", "--num-managers", "1", "--agents-per-manager", "2",
         "--distributed-backend", "local", "--output-dir", str(folder), "--name", name, "--exploit", "none", *more],
    )  # fmt: skip
    job = SearchJob(config, show=False)
    job.search()
    return job


def test_agents_of_a_language_model_read_what_the_others_wrote(tmp_path: Path) -> None:
    job = searched(tmp_path, "lm", "--share-memory", f"faiss:{tmp_path / 'shared'}")
    with open_store(f"faiss:{tmp_path / 'shared'}") as store:
        rows = SharedEntries(store, "look").rows()
    assert {row.writer for row in rows} == {"lm-0-a0", "lm-0-a1"}
    first = {row.entry for row in rows if row.writer == "lm-0-a0"}
    learner = job.best_learner()
    memory = learner.memory  # pyright: ignore[reportAttributeAccessIssue]
    assert set(memory.ids) - first, "the best model holds entries that a0 never wrote"
    assert memory.check_integrity() == []


def test_agents_that_begin_from_a_saved_model_share_too(tmp_path: Path) -> None:
    saved = searched(tmp_path, "first").save_best(tmp_path / "saved")
    more = ["--share-memory", f"faiss:{tmp_path / 'shared'}", "--load-pretrained", str(saved)]
    job = searched(tmp_path, "lm", *more)
    with open_store(f"faiss:{tmp_path / 'shared'}") as store:  # it is refused while another holds it
        rows = SharedEntries(store, "look").rows()
    assert {row.writer for row in rows} == {"lm-0-a0", "lm-0-a1"}
    learner: Any = job.task.learner()
    try:
        for name in ("begins", "close"):  # so that Python 3.12 finds them too, which asks no `__getattr__`
            assert callable(inspect.getattr_static(learner, name))
        with pytest.raises(StoreError):
            open_store(f"faiss:{tmp_path / 'shared'}")
    finally:
        learner.close()
    open_store(f"faiss:{tmp_path / 'shared'}").close()


def test_trials_of_tune_are_refused_a_shared_memory_however_the_task_is_wrapped(tmp_path: Path) -> None:
    shared = SharingTask(LanguageTask(source=str(corpus(tmp_path)), total_steps=4), f"faiss:{tmp_path / 'shared'}")
    for task in (shared, PretrainedTask(shared, str(tmp_path))):
        with pytest.raises(ConfigError, match="trials cannot share a memory"):
            task_trainable(task)
    assert not (tmp_path / "shared").exists()


def test_a_trial_of_tune_closes_its_learner() -> None:
    class Closing:
        is_closed = False

        def close(self) -> None:
            self.is_closed = True

    learner = Closing()
    task: Any = type("Made", (), {"learner": lambda self: learner})()
    trial = TaskTrainable.__new__(TaskTrainable)
    trial.setup({}, task, steps=1, seed=0)
    trial.cleanup()
    assert learner.is_closed


def test_what_others_wrote_is_encoded_anew(tmp_path: Path) -> None:
    task = LanguageTask(source=str(corpus(tmp_path)), seq_len=8, total_steps=4, capacity=64)
    one, other = task.learner(), task.learner()
    for seed, learner in enumerate((one, other)):
        learner.configure(DEFAULT_STRATEGY, seed=seed)
        learner.reset()
        learner.train(2)
    with open_store(f"faiss:{tmp_path}/s") as store:
        assert one.memory is not None
        assert other.memory is not None
        SharedEntries(store, "a0").publish(one.memory, {}, version=1)
        with other.memory.writable():
            SharedEntries(store, "a1").merge_into(other.memory)
    other.bring_up_to_date()
    assert other.memory.num_stale == 0
    entry = next(entry for entry in other.memory.entries if entry is not None and entry.id in one.memory.ids)
    ids = torch.tensor([entry.input[TOKENS]])
    key = other.model.keys(ids, torch.ones_like(ids))[0, -1]
    [slot] = other.memory.slots_of([entry.id])
    assert torch.allclose(other.memory.keys[slot], torch.nn.functional.normalize(key, dim=-1), atol=1e-5)
    expected = other.model.values_of(torch.tensor([entry.metadata["label"]]))[0]
    assert torch.allclose(other.memory.values[slot], expected, atol=1e-5)


@pytest.mark.parametrize("words", [["--benchmark", "cifar"], [], ["--task", "language_model", "--no-use-kv"]])
def test_where_there_is_nothing_to_share_it_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(SearchSwarmConfig, [*words, "--share-memory", "faiss:x"])
    assert "--task language_model" in " ".join(capsys.readouterr().err.split())


def corpus(folder: Path) -> Path:
    """A text with something to learn."""
    path = folder / "corpus.txt"
    world = np.random.default_rng(0)
    words = [f"w{i}" for i in range(40)]
    lines = [" ".join(words[(start + i) % 40] for i in range(20)) for start in world.integers(0, 40, 400).tolist()]
    path.write_text("\n\n".join(lines))
    return path
