"""A replica fed by updates shows what the shard shows, whatever was sealed, merged or deleted in between."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hsokv_ray.memory.shared.messages import PackedHits, shard_of
from hsokv_ray.memory.shared.updates import Replica, update_for
from hsokv_ray.memory.stores import FaissConfig
from hsokv_ray.memory.stores.lsm.store import FaissStore

DIM = 4
IDS = [f"id {i}" for i in range(60)]


class ReplicaMachine(RuleBasedStateMachine):
    """Random writes, seals, merges and restarts; two replicas that catch up at random times."""

    folder: Path

    @initialize(seed=st.integers(0, 2**32 - 1))
    def start(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.path = Path(tempfile.mkdtemp(dir=self.folder))  # a new one for every run of the same history
        self.store = FaissStore(self.config())
        self.replicas = [Replica(), Replica()]

    def config(self) -> FaissConfig:
        return FaissConfig(path=str(self.path), seal_rows=16, durability="async")

    @rule(ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=30, unique=True))
    def upsert(self, ids: list[str]) -> None:
        self.store.upsert(ids, self.rng.normal(size=(len(ids), DIM)), [{"n": len(id)} for id in ids])

    @rule(ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=10))
    def delete(self, ids: list[str]) -> None:
        self.store.delete(ids)

    @rule()
    def optimize(self) -> None:
        self.store.optimize()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = FaissStore(self.config())

    @rule(which=st.sampled_from([0, 1]))
    def forget(self, which: int) -> None:
        self.replicas[which] = Replica()

    @precondition(lambda self: self.store.dim is not None)
    @rule(which=st.sampled_from([0, 1]))
    def catch_up(self, which: int) -> None:
        replica, view = self.replicas[which], self.store.view()
        copy = replica.apply(update_for(view, replica.state))
        assert copy.version == view.version
        assert copy.alive_count == view.alive_count == self.store.count()
        queries = self.rng.normal(size=(3, DIM)).astype(np.float32)
        assert copy.search(queries, 5).hits() == view.search(queries, 5).hits()
        assert [r.id for r in copy.scroll(None, 100, None).records] == [
            r.id for r in view.scroll(None, 100, None).records
        ]
        assert copy.get(IDS) == view.get(IDS)

    @invariant()
    def views_of_replicas_never_change_by_themselves(self) -> None:
        for replica in getattr(self, "replicas", []):
            if replica.view is not None:
                assert len(replica.view.scroll(None, 1000, None).records) == replica.view.alive_count

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()


def test_replicas_follow_any_history(tmp_path: Path):
    machine: Callable[[], RuleBasedStateMachine] = type("Machine", (ReplicaMachine,), {"folder": tmp_path})
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(machine, settings=settings(max_examples=30, stateful_step_count=25, deadline=None))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FaissStore]:
    with FaissStore(FaissConfig(path=str(tmp_path / "store"), seal_rows=64)) as store:
        yield store


def test_an_update_carries_only_what_the_reader_lacks(store: FaissStore):
    rng = np.random.default_rng(0)
    store.upsert([str(i) for i in range(40)], rng.normal(size=(40, DIM)))
    replica = Replica()
    replica.apply(update_for(store.view(), replica.state))
    store.upsert(["40", "41"], rng.normal(size=(2, DIM)))
    [news] = update_for(store.view(), replica.state).growing
    assert (news.start, news.rows.ids, news.alive) == (40, ["40", "41"], None)
    replica.apply(update_for(store.view(), replica.state))
    store.delete(["7"])
    [news] = update_for(store.view(), replica.state).growing
    assert news.rows.ids == []
    assert news.alive is not None
    replica.apply(update_for(store.view(), replica.state))
    [news] = update_for(store.view(), replica.state).growing
    assert (news.rows.ids, news.alive) == ([], None)


def test_hits_survive_packing(store: FaissStore):
    rng = np.random.default_rng(1)
    store.upsert([f"é{i}" for i in range(20)], rng.normal(size=(20, DIM)), [{"i": i} for i in range(20)])
    hits = store.query(rng.normal(size=(4, DIM)), top_k=3)
    assert PackedHits.of(hits).unpack() == hits
    matches = store.view().search(rng.normal(size=(7, DIM)).astype(np.float32), 5)
    assert PackedHits.of_matches(matches).unpack() == matches.hits()
    assert PackedHits.of([[], hits[0], []]).unpack() == [[], hits[0], []]
    assert PackedHits.of([]).unpack() == []


def test_shards_are_chosen_by_a_fixed_rule_and_evenly():
    assert shard_of("123456789", 1000) == 0xCBF43926 % 1000  # the check value that the CRC-32 standard publishes
    counts = np.bincount([shard_of(f"document {i}", 8) for i in range(8000)], minlength=8)
    assert counts.min() > 850
    assert counts.max() < 1150
