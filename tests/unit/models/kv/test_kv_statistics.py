"""What the statistics say, against loops over single queries."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.errors import DataError
from hsokv_ray.memory.retrieval import Retrieval
from hsokv_ray.models.kv_statistics import accuracy, gate_statistics, hit_rate, memory_bytes, memory_utility

slots = st.integers(-1, 5)


def retrieval_of(indices: list[list[int]], hits: list[list[bool]]) -> Retrieval:
    index, hit = torch.tensor(indices), torch.tensor(hits)
    nothing = torch.zeros(index.shape)
    return Retrieval(values=nothing, weights=nothing, indices=index, scores=nothing, hits=hit, clock=0)


@given(st.lists(st.tuples(st.lists(st.tuples(slots, st.booleans()), min_size=3, max_size=3), slots), min_size=1))
def test_a_hit_is_the_right_entry_at_or_above_the_threshold(queries) -> None:
    found = [row for row, _ in queries]
    rate = hit_rate(
        retrieval_of([[i for i, _ in row] for row in found], [[h for _, h in row] for row in found]),
        [None if right == -1 else right for _, right in queries],
    )
    first = sum(row[0] == (right, True) and right >= 0 for row, right in queries)
    within = sum((right, True) in row and right >= 0 for row, right in queries)
    assert rate.top_1 == pytest.approx(first / len(queries))
    assert rate.top_k == pytest.approx(within / len(queries))
    assert rate.num_queries == len(queries)


def test_any_of_several_right_entries_will_do() -> None:
    found = retrieval_of([[3, 1], [2, 0], [-1, -1]], [[True, True], [True, True], [False, False]])
    rate = hit_rate(found, torch.tensor([[0, 3], [0, -1], [-1, 4]]))
    assert (rate.top_1, rate.top_k) == pytest.approx((1 / 3, 2 / 3))


def test_a_hit_rate_of_nothing_or_of_other_queries_is_refused() -> None:
    with pytest.raises(DataError, match="right: got 2 for 1"):
        hit_rate(retrieval_of([[1]], [[True]]), [0, 1])
    with pytest.raises(DataError, match="right: got 0"):
        hit_rate(retrieval_of([[1]], [[True]]), [])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_gate_statistics_are_mean_and_binary_entropy(gates) -> None:
    found = gate_statistics(torch.tensor(gates, dtype=torch.float64))
    entropies = [-sum(p * math.log2(p) for p in (g, 1 - g) if p > 0) for g in gates]
    assert found.mean == pytest.approx(sum(gates) / len(gates))
    assert found.entropy_bits == pytest.approx(sum(entropies) / len(gates), abs=1e-9)
    assert found.num_reads == len(gates)


def test_gates_of_padding_are_left_out() -> None:
    found = gate_statistics(torch.tensor([[0.5, 1.0], [0.0, 0.9]]), torch.tensor([[1, 1], [1, 0]]))
    assert (found.mean, found.entropy_bits, found.num_reads) == (0.5, pytest.approx(1 / 3), 3)
    with pytest.raises(DataError, match="no reads"):
        gate_statistics(torch.ones(2), torch.zeros(2))


def test_utility_is_the_accuracy_with_minus_without_and_changes_nothing(kv_model, some_ids) -> None:
    model, labels = kv_model(gate_init=60.0, memory={"threshold": 0.5}), torch.arange(5)
    model.write(some_ids(), labels=labels)
    before = model.memory.digest()
    found = memory_utility(model, labels, input_ids=some_ids())
    model.eval()
    without = model(some_ids(), use_memory=False).logits.argmax(-1).eq(labels).float().mean()
    assert found.with_memory == 1.0
    assert found.without_memory == pytest.approx(float(without))
    assert found.gain == pytest.approx(1.0 - float(without))
    assert model.memory.digest() == before


def test_accuracy_of_other_shapes_or_of_nothing_is_refused() -> None:
    assert accuracy(torch.eye(4), torch.tensor([0, 1, 0, 0])) == 0.5
    for logits, labels in ((torch.eye(4), torch.arange(3)), (torch.zeros(0, 4), torch.zeros(0))):
        with pytest.raises(DataError, match="labels: got"):
            accuracy(logits, labels)


def test_memory_is_counted_in_bytes_of_what_it_holds(kv_model, some_ids) -> None:
    model = kv_model(memory={"key_dim": 6, "value_dim": 5})
    model.write(some_ids(), labels=torch.arange(5))
    held = [tensor[:5].numpy().nbytes for tensor in (model.memory.keys, model.memory.values)]
    assert memory_bytes(model.memory) == sum(held)
