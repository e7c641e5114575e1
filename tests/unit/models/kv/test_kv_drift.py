"""Versions of keys, and what drift costs: measured by the rate at which the right entry is found."""

import math

import pytest
import torch

from hsokv_ray.errors import ConfigError, DataError
from hsokv_ray.models.kv_drift import HitRateOverTime, follow, key_drift, weights_digest


def learn(model, num_steps: int, ids: torch.Tensor) -> None:
    """Steps towards random states, which have nothing to do with the memory."""
    targets = torch.randn(len(ids), 16, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.SGD(model.encoder.parameters(), lr=0.5)
    for _ in range(num_steps):
        optimizer.zero_grad()
        (model.encoder(ids, None, None).pooled_BD - targets).square().mean().backward()
        optimizer.step()


def test_the_version_is_that_of_the_weights_that_make_keys_and_of_no_others(kv_model) -> None:
    model = kv_model()
    before = model.encoder_id()
    assert kv_model().encoder_id() == before
    assert kv_model(seed=1).encoder_id() != before
    with torch.no_grad():
        model.classifier.weight.add_(1)
        model.gated_read.gate[0].weight.add_(1)
    assert model.encoder_id() == before
    with torch.no_grad():
        model.key_proj.weight[0, 0] += 1e-3
    assert model.encoder_id() != before


def test_a_digest_depends_on_names_values_shapes_types_and_facts_and_not_on_order() -> None:
    a, b = torch.zeros(2, 3), torch.ones(4)
    digests = [
        weights_digest(each, facts=facts)
        for each, facts in (
            ({"a": a, "b": b}, ""),
            ({"a": a, "c": b}, ""),
            ({"a": a + 1, "b": b}, ""),
            ({"a": a.view(3, 2), "b": b}, ""),
            ({"a": a.double(), "b": b}, ""),
            ({"a": a, "b": b}, "4 heads"),
        )
    ]
    assert len(set(digests)) == 6
    assert weights_digest({"b": b, "a": a.T.contiguous().T}) == digests[0]


def test_entries_fall_behind_when_the_encoder_learns_and_are_brought_up_to_date(kv_model, some_ids) -> None:
    model = kv_model()
    model.write(some_ids(3), labels=torch.arange(3))
    assert key_drift(model).num_behind == 0
    learn(model, 2, some_ids())
    assert (key_drift(model).num_behind, key_drift(model).num_entries) == (3, 3)
    model.write(some_ids(2, seed=8), labels=torch.arange(2))
    assert key_drift(model).num_behind == 3
    done = model.reencode(batch_size=2)
    assert (done.done, done.left) == (3, [])
    assert key_drift(model).num_behind == 0
    model.eval()
    torch.testing.assert_close(model.memory.keys[:3], model.keys(some_ids(3)).detach(), atol=1e-6, rtol=1e-5)


def test_reencoding_a_language_model_gives_the_keys_of_a_fresh_write(kv_model, some_ids) -> None:
    model, ids, mask = kv_model(head="language_model"), some_ids(2, 6), torch.tensor([[1] * 6, [0, 0, 0, 1, 1, 1]])
    model.write(ids, mask, labels=ids)
    learn_on = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids, labels=ids).loss.backward()
    learn_on.step()
    model.reencode()
    fresh = kv_model(head="language_model")
    fresh.load_state_dict(model.state_dict())
    fresh.write(ids, mask, labels=ids)
    torch.testing.assert_close(model.memory.keys, fresh.memory.keys, atol=1e-5, rtol=1e-5)


def test_a_memory_that_leaves_stale_keys_out_refuses_to_mix_versions(kv_model, some_ids) -> None:
    model = kv_model(memory={"exclude_stale": True})
    model.write(some_ids(3), labels=torch.arange(3))
    learn(model, 1, some_ids())
    before = model.memory.digest()
    with pytest.raises(DataError, match=r"call reencode\(\) first"):
        model.write(some_ids(2, seed=8), labels=torch.arange(2))
    assert model.memory.digest() == before
    model.reencode()
    model.write(some_ids(2, seed=8), labels=torch.arange(2))
    assert model.eval()(some_ids(3)).retrieval.hit.all()


def test_a_version_may_be_named_by_the_caller(kv_model, some_ids) -> None:
    model = kv_model()
    model.write(some_ids(), labels=torch.arange(5), encoder_id="step 7")
    assert model.memory.encoder_id == "step 7"
    assert model.memory.num_stale == 0


def test_frozen_keys_do_not_fall_behind_until_they_are_moved(kv_model, some_ids) -> None:
    model = kv_model(key_encoder="frozen")
    model.write(some_ids(), labels=torch.arange(5))
    learn(model, 3, some_ids())
    assert key_drift(model).num_behind == 0
    model.update_key_encoder()
    assert key_drift(model).num_behind == 5
    for name, weight in model.frozen.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    model.reencode()
    assert key_drift(model).num_behind == 0
    with pytest.raises(ConfigError, match="got 'live'"):
        kv_model().update_key_encoder()


def test_a_follower_is_the_exponential_moving_average_of_its_leader() -> None:
    torch.manual_seed(0)
    leader, follower = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    expected = {name: p.detach().clone().double() for name, p in follower.named_parameters()}
    for _ in range(4):
        with torch.no_grad():
            leader.weight.normal_()
        follow(follower, leader, 0.9)
        for name, p in leader.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * p.detach().double()
    for name, p in follower.named_parameters():
        torch.testing.assert_close(p.detach().double(), expected[name], atol=1e-6, rtol=1e-5)
    for decay in (-0.1, 1.0):
        with pytest.raises(DataError, match="decay"):
            follow(follower, leader, decay)


def test_the_hit_rate_over_time_falls_with_drift_and_comes_back_with_reencoding(kv_model, some_ids) -> None:
    model, ids = kv_model(memory={"capacity": 64}), some_ids(40)
    right = model.write(ids, labels=torch.arange(40) % 7).ids
    before = model.memory.digest()
    log = HitRateOverTime()
    first = log.measure(model, 0, right, input_ids=ids)
    assert (first.top_1, first.top_k, first.num_queries, first.num_behind) == (1.0, 1.0, 40, 0)
    learn(model, 30, some_ids(40, seed=9))
    drifted = log.measure(model, 30, right, input_ids=ids)
    assert drifted.num_behind == 40
    assert drifted.top_1 < 0.9
    assert math.isclose(log.lost, 1.0 - drifted.top_1)
    assert model.memory.digest() == before
    assert model.training
    model.reencode()
    assert log.measure(model, 31, right, input_ids=ids).top_1 == 1.0
    assert log.lost == 0.0
    with pytest.raises(DataError, match="steps must rise"):
        log.measure(model, 31, right, input_ids=ids)


def test_an_entry_that_is_gone_is_a_miss(kv_model, some_ids) -> None:
    model = kv_model()
    right = model.write(some_ids(4), labels=torch.arange(4)).ids
    model.memory.remove(right[:1])
    assert HitRateOverTime().measure(model, 0, right, input_ids=some_ids(4)).top_1 == 0.75
    assert HitRateOverTime().lost == 0.0
