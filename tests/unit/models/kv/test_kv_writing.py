"""What is written, under which policy, and what is stored with it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.errors import ConfigError, DataError, StoreError
from hsokv_ray.models.kv_writing import WritePolicy, always, novelty, policy_of, surprise

finite = st.floats(-10, 10)


@given(st.lists(finite, max_size=20), st.floats(0, 5))
def test_surprise_is_a_loss_above_the_bound(losses, bound) -> None:
    chosen = surprise(torch.tensor(losses, dtype=torch.float64), bound).tolist()
    assert chosen == [loss > bound for loss in losses]


@given(st.lists(st.floats(-1, 1), max_size=20), st.floats(0, 2))
def test_novelty_is_a_distance_above_the_bound(cosines, bound) -> None:
    chosen = novelty(torch.tensor(cosines, dtype=torch.float64), bound).tolist()
    assert chosen == [1 - cosine > bound for cosine in cosines]


def test_the_edges_of_the_policies() -> None:
    assert always(3).tolist() == [True] * 3
    assert surprise(torch.tensor([torch.nan, torch.inf]), 0.5).tolist() == [False, True]
    assert novelty(torch.tensor([-torch.inf]), 2.0).tolist() == [True]
    assert policy_of("novelty") == WritePolicy(name="novelty")
    for wrong in ("never", ""):
        with pytest.raises(ConfigError, match="policy: got"):
            policy_of(wrong)
    with pytest.raises(ConfigError, match="min-distance"):
        WritePolicy(min_distance=3)


def test_surprise_writes_those_whose_loss_with_the_memory_is_above_the_bound(kv_model, some_ids) -> None:
    model, ids, labels = kv_model(), some_ids(), torch.arange(5)
    model.encoder.eval()  # without dropout, as the write measures it
    losses = torch.stack([model(ids[i : i + 1], labels=labels[i : i + 1]).loss.detach() for i in range(5)])
    bound = float(losses.median())
    written = model.write(ids, labels=labels, policy=WritePolicy(name="surprise", min_loss=bound))
    chosen = [entry.metadata["label"] for entry in model.memory.entries if entry is not None]
    assert chosen == (losses > bound).nonzero().flatten().tolist()
    assert len(written.ids) == 2
    model.write(ids, labels=labels)
    with torch.no_grad():
        model.gated_read.gate[-1].bias.fill_(50.0)
        model.classifier.weight.mul_(50.0)
    before = len(model.memory)
    assert model.write(some_ids(), labels=labels, policy="surprise").ids == []  # known by now
    assert len(model.memory) == before


def test_novelty_writes_what_is_far_from_every_entry(kv_model, some_ids) -> None:
    model, ids = kv_model(), some_ids()
    assert len(model.write(ids[:2], labels=torch.arange(2), policy="novelty").ids) == 2
    model.encoder.eval()
    keys = model.keys(ids).detach()
    nearest = (keys @ keys[:2].T).max(-1).values
    bound = float((1 - nearest)[2:].median())
    written = model.write(ids, labels=torch.arange(5), policy=WritePolicy(name="novelty", min_distance=bound))
    labels = [model.memory.entries[slot].metadata["label"] for slot in written.slots]
    assert labels == ((1 - nearest) > bound).nonzero().flatten().tolist() == sorted(labels)
    assert 0 < len(labels) < 3


@pytest.mark.parametrize("policy", ["always", "surprise", "novelty"])
def test_a_write_counts_as_no_retrieval_and_leaves_dropout_and_modes_as_they_were(kv_model, some_ids, policy) -> None:
    model = kv_model(dropout=0.5)
    model.write(some_ids(), labels=torch.arange(5))
    model.write(some_ids(seed=2), labels=torch.arange(5), policy=policy)
    assert model.memory.lifecycle.retrievals.sum() == 0
    assert all(module.training for module in model.modules())
    keys = model.memory.keys[:5].clone()
    torch.testing.assert_close(keys, model.eval().keys(some_ids()).detach(), atol=1e-6, rtol=1e-5)


def test_the_same_input_again_replaces_its_value_and_keeps_its_standing(kv_model, some_ids) -> None:
    model = kv_model()
    model.write(some_ids(), labels=torch.zeros(5, dtype=torch.long))
    written = model.write(some_ids().flip(0), labels=torch.arange(5).flip(0))
    assert (written.replaced, len(model.memory)) == (5, 5)
    assert torch.equal(model.memory.values[:5], model.label_values[:5])
    assert [entry.metadata for entry in model.memory.entries if entry] == [{"label": i} for i in range(5)]


def test_padding_is_no_part_of_an_entry(kv_model, some_ids) -> None:
    model, ids = kv_model(), some_ids(2, 4)
    first = model.write(ids, labels=torch.arange(2))
    wider = torch.nn.functional.pad(ids, (3, 2))
    second = model.write(wider, wider.ne(0), labels=torch.arange(2))
    assert first.ids == second.ids
    assert model.memory.entries[0].input == {"input_ids": ids[0].tolist()}


def test_given_values_ids_and_metadata_are_stored(kv_model, some_vectors) -> None:
    model = kv_model(head="none", input="vectors", input_dim=12, memory={"value_dim": 3})
    values = torch.randn(5, 3)
    facts = [{"word": "murngale"}] * 5
    model.write(vectors=some_vectors(), values=values, ids=list("abcde"), metadata=facts)
    assert model.memory.ids == list("abcde")
    assert torch.equal(model.memory.values[:5], values)
    assert model.memory.entries[2].metadata == {"word": "murngale"}
    assert model.memory.entries[2].input == {"vector": some_vectors()[2].tolist()}


def test_a_language_model_writes_the_next_token_under_the_tokens_so_far(kv_model, some_ids) -> None:
    model, ids = kv_model(head="language_model"), some_ids(2, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    written = model.write(ids, mask, labels=ids)
    assert len(written.ids) == 4 + 2
    found = {tuple(e.input["input_ids"]): e.metadata["label"] for e in model.memory.entries if e is not None}
    rows = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
    assert found == {tuple(row[:i]): row[i] for row in rows for i in range(1, len(row))}
    embedding = torch.nn.functional.normalize(model.encoder.embed_tokens.weight, dim=-1) * 4.0
    torch.testing.assert_close(model.memory.values[0], embedding[ids[0, 1]].detach())
    model.eval()
    keys = model.keys(ids, mask)
    torch.testing.assert_close(model.memory.keys[4], keys[1, 2].detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "neither values nor labels"),
        ({"labels": torch.arange(4)}, "labels: got"),
        ({"labels": torch.tensor([0, 1, 2, 3, -100])}, "which has no value"),
        ({"labels": torch.tensor([0, 1, 2, 3, 9])}, "got 9"),
        ({"values": torch.randn(4, 16)}, "values: got 4 for 5"),
        ({"values": torch.randn(5, 15)}, r"values: got shape \[5, 15\]"),
        ({"values": torch.full((5, 16), torch.nan)}, "values: holds NaN"),
        ({"labels": torch.arange(5), "ids": ["a"]}, "ids: got 1 for 5"),
        ({"labels": torch.arange(5), "metadata": [{}]}, "metadata: got 1 for 5"),
        ({"values": torch.randn(5, 16), "policy": "surprise"}, "surprise is the loss"),
    ],
)
def test_a_write_that_does_not_fit_is_refused_and_changes_nothing(kv_model, some_ids, given, said) -> None:
    model = kv_model()
    before = model.memory.digest()
    with pytest.raises(DataError, match=said):
        model.write(some_ids(), **given)
    assert model.memory.digest() == before


def test_in_evaluation_nothing_is_written_and_the_version_stays(kv_model, some_ids) -> None:
    model = kv_model().eval()
    before = model.memory.digest()
    with pytest.raises(StoreError, match="read-only"):
        model.write(some_ids(), labels=torch.arange(5))
    assert model.memory.digest() == before
    with model.memory.writable():
        model.write(some_ids(), labels=torch.arange(5))
    assert len(model.memory) == 5


def test_a_language_model_takes_labels_alone(kv_model, some_ids) -> None:
    model = kv_model(head="language_model")
    with pytest.raises(DataError, match="labels alone"):
        model.write(some_ids(), labels=some_ids(), metadata=[{}] * 5)
    narrow = kv_model(head="language_model", memory={"value_dim": 3})
    with pytest.raises(DataError, match="need value_dim 16"):
        narrow.write(some_ids(), labels=some_ids())
