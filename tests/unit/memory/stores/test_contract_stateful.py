"""Random work on every driver, step by step beside a dictionary searched row by row."""

import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hsokv_ray.memory.stores import Hit

IDS = ("a", "b", "c", "d'", "e\x00", "日本", "\\", "h", "i", "j")
DIM = 3

_vectors = st.lists(st.integers(-3, 3), min_size=DIM, max_size=DIM).filter(any)
_some_ids = st.lists(st.sampled_from(IDS), max_size=6)


def make_machine(new_driver, new_oracle, random):
    """Return the machine's class for one driver."""

    class StoreBesideOracle(RuleBasedStateMachine):
        @initialize(metric=st.sampled_from(["cosine", "dot", "l2"]))
        def open(self, metric):
            self.folder = tempfile.TemporaryDirectory()
            self.metric = metric
            self.driver = new_driver(Path(self.folder.name))
            self.store = self.driver.open(metric=metric)
            self.oracle = new_oracle(metric)

        @rule(rows=st.lists(st.tuples(st.sampled_from(IDS), _vectors, random.metadata), max_size=12))
        def upsert(self, rows):
            ids, vectors, metadata = ([row[i] for row in rows] for i in range(3))
            assert self.store.upsert(ids, vectors, metadata) == self.oracle.upsert(ids, vectors, metadata)

        @rule(vectors=st.lists(_vectors, min_size=1, max_size=20))
        def upsert_many(self, vectors):
            ids = [f"many-{i}" for i in range(len(vectors))]
            metadata = [{"a": i, "b": {"a": i % 3}} for i in range(len(vectors))]
            assert self.store.upsert(ids, vectors, metadata) == self.oracle.upsert(ids, vectors, metadata)

        @rule(queries=st.lists(_vectors, min_size=1, max_size=3), top_k=st.integers(1, 12))
        def query(self, queries, top_k):
            for query, hits in zip(queries, self.store.query(queries, top_k), strict=True):
                self.oracle.check_hits(hits, query, top_k, None)

        @rule(query=_vectors, top_k=st.integers(1, 12), filter=random.filters)
        def query_with_a_filter(self, query, top_k, filter):
            self.oracle.check_hits(self.store.query(query, top_k, filter)[0], query, top_k, filter)

        @rule(ids=_some_ids)
        def get(self, ids):
            for id, record in zip(ids, self.store.get(ids), strict=True):
                self.oracle.check_record(record, id)

        @rule(ids=_some_ids)
        def delete(self, ids):
            assert self.store.delete(ids) == self.oracle.delete(ids)

        @rule(filter=random.filters)
        def delete_what_passes(self, filter):
            if len(self.oracle.passing(filter)) <= 6:  # seldom everything
                assert self.store.delete(filter=filter) == self.oracle.delete(self.oracle.passing(filter))

        @rule(filter=random.filters)
        def count(self, filter):
            assert self.store.count(filter) == len(self.oracle.passing(filter))

        @rule(filter=st.none() | random.filters, page_size=st.integers(1, 9))
        def scroll(self, filter, page_size):
            records = list(self.store.records(filter, page_size=page_size))
            assert sorted(record.id for record in records) == sorted(self.oracle.passing(filter))
            for record in records:
                self.oracle.check_record(record, record.id)

        @rule()
        def reopen(self):
            self.store.close()
            self.store = self.driver.open(metric=self.metric)
            self.oracle.check_store(self.store)

        @precondition(lambda self: self.oracle.rows)
        @rule()
        def optimize(self):
            self.store.optimize()
            self.oracle.check_store(self.store)

        @invariant()
        def as_many_as_there_should_be(self):
            assert self.store.count() == len(self.oracle.rows)

        def teardown(self):
            if hasattr(self, "store"):
                self.store.close()
                self.folder.cleanup()

    return StoreBesideOracle


def test_any_sequence_of_calls_gives_what_a_dictionary_gives(new_driver, new_oracle, random):
    settings = hypothesis.settings(
        max_examples=30,
        stateful_step_count=25,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    run_state_machine_as_test(make_machine(new_driver, new_oracle, random), settings=settings)


@pytest.mark.parametrize(
    "hits", [[], [Hit("b", 0.0, "{}")], [Hit("a", 0.9, "{}")], [Hit("a", 1.0, '{"x": 1}')]], ids=repr
)
def test_the_measure_finds_wrong_hits(new_oracle, hits):
    oracle = new_oracle("dot")
    oracle.upsert(["a", "b"], np.eye(2), [{}, {}])
    oracle.check_hits([Hit("a", 1.0, "{}")], [1, 0], 1, None)
    with pytest.raises(AssertionError):
        oracle.check_hits(hits, [1, 0], 1, None)
