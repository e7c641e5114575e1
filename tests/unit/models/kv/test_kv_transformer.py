"""The gated read inside the model: what comes back, where gradients go, and that evaluation changes nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel

from hsokv_ray.errors import DataError, StoreError
from hsokv_ray.memory.key_value import KeyValueMemory
from hsokv_ray.models import BaselineTransformer, KVTransformerConfig, TransformerWithKV

BLEND = {"capacity": 32, "top_k": 3, "learning_recall": "blend", "threshold": -1.0}


def filled(model: TransformerWithKV, some_ids, num: int = 6) -> TransformerWithKV:
    model.write(some_ids(num, seed=5), labels=torch.arange(num))
    return model.eval()


def baseline_of(model: TransformerWithKV) -> BaselineTransformer:
    baseline = BaselineTransformer(model.config)
    own = model.state_dict()
    baseline.load_state_dict({name: own[name] for name in baseline.state_dict()})
    return baseline.eval()


def softmax_read(memory: KeyValueMemory, query: np.ndarray) -> np.ndarray:
    """The value of one query by loops: softmax of cosine / temperature over the nearest three, all equally strong."""
    keys, values = memory.keys.double().numpy(), memory.values.double().numpy()
    cosines = keys[: len(memory)] @ query / np.linalg.norm(query)
    nearest = np.argsort(-cosines)[: memory.config.top_k]
    weights = np.exp(cosines[nearest] / memory.config.temperature)
    return sum(w / weights.sum() * values[slot] for w, slot in zip(weights, nearest, strict=True))


def test_a_forced_gate_of_one_scores_the_softmax_over_the_nearest_entries_alone(kv_model, some_ids) -> None:
    model, ids = filled(kv_model(memory=BLEND), some_ids), some_ids()
    output = model(ids, gate=1.0)
    weight, bias = (p.detach().double().numpy() for p in (model.classifier.weight, model.classifier.bias))
    for query, logits in zip(model.keys(ids).detach().double().numpy(), output.logits, strict=True):
        expected = softmax_read(model.memory, query) @ weight.T + bias
        np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    assert output.gate.eq(1).all()


def test_a_token_level_read_gives_each_token_the_softmax_over_its_nearest_entries(kv_model, some_ids) -> None:
    model, ids = kv_model(head="language_model", memory=BLEND), some_ids(2, 6)
    model.memory.write(torch.randn(9, 16), torch.randn(9, 16))
    output = model.eval()(ids)
    queries = model.keys(ids).detach().double().numpy()
    assert output.logits.shape == (2, 6, 61)
    assert output.gate.shape == (2, 6)
    for b in range(2):
        for t in range(6):
            expected = softmax_read(model.memory, queries[b, t])
            np.testing.assert_allclose(output.retrieval.values[b, t].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["classification", "language_model"])
def test_without_the_memory_the_logits_are_the_baseline_s(kv_model, some_ids, head) -> None:
    model, ids = kv_model(head=head, memory={"capacity": 50}), some_ids()
    expected = baseline_of(model)(ids).logits
    assert torch.equal(model.eval()(ids).logits, expected)  # an empty memory
    model.train().write(ids, labels=ids if head == "language_model" else torch.arange(5))
    model.eval()
    assert torch.equal(model(ids, gate=0.0).logits, expected)
    assert torch.equal(model(ids, use_memory=False).logits, expected)
    assert not torch.equal(model(ids).logits, expected)


def test_the_loss_is_the_cross_entropy_of_the_labels_given_and_of_the_next_tokens_in_a_language_model(
    kv_model, some_ids
) -> None:
    ids, labels = some_ids(), torch.tensor([0, 6, -100, 2, 3])
    output = kv_model().eval()(ids, labels=labels)
    rows = [output.logits[i].log_softmax(-1)[labels[i]] for i in (0, 1, 3, 4)]
    torch.testing.assert_close(output.loss, -torch.stack(rows).mean())
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    output = kv_model(head="language_model").eval()(ids, mask, labels=ids)
    log_probs = output.logits.log_softmax(-1)
    rows = [log_probs[b, t, ids[b, t + 1]] for b in range(5) for t in range(8) if b != 1 or t < 3]
    torch.testing.assert_close(output.loss, -torch.stack(rows).mean())


@pytest.mark.parametrize("recall", ["top1", "blend"])
def test_gradients_reach_encoder_and_gate_through_the_read_and_only_through_it_when_the_gate_is_one(
    kv_model, some_ids, recall
) -> None:
    model = filled(kv_model(memory=BLEND | {"learning_recall": recall}), some_ids)
    model(some_ids(), labels=torch.arange(5)).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.gated_read.parameters())
    model.zero_grad()
    model(some_ids(), labels=torch.arange(5), gate=1.0).loss.backward()
    for name in ("key_proj.weight", "encoder.embed_tokens.weight", "encoder.layers.0.attention.qkv_proj.weight"):
        assert model.get_parameter(name).grad.abs().sum() > 0, name
    model.zero_grad()
    model(some_ids(), labels=torch.arange(5), gate=0.0).loss.backward()
    grad = model.key_proj.weight.grad
    assert grad is None or not grad.any()


def test_the_gradient_of_the_read_is_the_one_of_finite_differences(kv_model, some_ids) -> None:
    model = filled(kv_model(memory=BLEND), some_ids).double()
    weight, labels = model.key_proj.weight, torch.arange(5)

    def loss() -> torch.Tensor:  # in float64, which the model's own loss is not
        return torch.nn.functional.cross_entropy(model(some_ids()).logits, labels)

    loss().backward()
    for row, column in ((0, 0), (3, 7), (15, 2)):
        losses = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight[row, column] += step
                losses.append(float(loss()))
                weight[row, column] -= step
        assert float(weight.grad[row, column]) == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-3, abs=1e-9)


def test_frozen_keys_have_no_gradient_and_stay_while_the_live_encoder_learns(kv_model, some_ids) -> None:
    model = kv_model(key_encoder="frozen", dropout=0.5).train()
    before = model.keys(some_ids())
    assert torch.equal(model.keys(some_ids()), before)  # without dropout, though the model is in training
    assert not before.requires_grad
    model.write(some_ids(6), labels=torch.arange(6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(some_ids(), labels=torch.arange(5)).loss.backward()
    optimizer.step()
    torch.testing.assert_close(model.keys(some_ids()), before, rtol=0, atol=0)
    assert model.key_proj.weight.grad is None


@settings(max_examples=20)
@given(
    steps=st.lists(st.sampled_from(["forward", "labels", "no memory", "forced", "keys", "top_k"]), max_size=6),
    head=st.sampled_from(["classification", "language_model"]),
)
def test_evaluation_never_changes_the_memory(steps, head) -> None:
    torch.manual_seed(0)
    ids = torch.randint(1, 30, (4, 6))
    labels = ids if head == "language_model" else torch.arange(4)
    model = TransformerWithKV(
        KVTransformerConfig(
            vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, head=head, num_labels=4
        )
    )
    model.write(ids, labels=labels)
    model(ids)  # in training a read counts
    model.eval()
    before = model.memory.digest()
    calls = {
        "forward": lambda: model(ids),
        "labels": lambda: model(ids, labels=labels),
        "no memory": lambda: model(ids, use_memory=False),
        "forced": lambda: model(ids, gate=1.0),
        "keys": lambda: model.keys(ids),
        "top_k": lambda: model(ids, top_k=1),
    }
    for step in steps:
        calls[step]()
    with pytest.raises(StoreError, match="read-only"):
        model.write(ids, labels=labels)
    assert model.memory.digest() == before


def test_a_read_in_training_counts_and_one_of_padding_does_not(kv_model, some_ids) -> None:
    model = kv_model(head="language_model")
    ids, mask = some_ids(2, 6), torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]])
    model.write(ids, mask, labels=ids)
    assert model.memory.lifecycle.retrievals.sum() == 0
    found = model(ids, mask).retrieval
    assert model.memory.lifecycle.retrievals.sum() == int(found.hits.sum()) > 0
    assert not found.hits[~mask.bool()].any()


def test_fewer_entries_are_retrieved_when_asked_for(kv_model, some_ids) -> None:
    model = filled(kv_model(), some_ids)
    assert model(some_ids()).retrieval.indices.shape == (5, 3)
    assert model(some_ids(), top_k=1).retrieval.indices.shape == (5, 1)


def test_a_label_s_value_is_read_as_that_label_before_any_training(kv_model, some_ids) -> None:
    model = kv_model()
    labels = torch.tensor([6, 2, 0, 5, 1])
    model.write(some_ids(), labels=labels)
    assert model.eval()(some_ids(), gate=1.0).logits.argmax(-1).tolist() == labels.tolist()


@pytest.mark.parametrize("head", ["classification", "language_model", "none"])
def test_gate_and_frozen_keys_start_as_the_configuration_says(kv_model, head) -> None:
    model = kv_model(head=head, gate_init=2.5, key_encoder="frozen", memory={"value_dim": 5})
    assert model.gated_read.gate[-1].bias.item() == 2.5
    identity = model.key_proj.weight @ model.key_proj.weight.T
    torch.testing.assert_close(identity, torch.eye(16), atol=1e-5, rtol=0)
    for name, weight in model.frozen.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name  # a copy of the live weights


def test_a_model_without_a_head_gives_mixed_states(kv_model, some_vectors) -> None:
    model = kv_model(head="none", input="vectors", input_dim=12)
    model.write(vectors=some_vectors(), values=torch.randn(5, 16))
    output = model(vectors=some_vectors())
    assert output.logits is None
    assert not torch.equal(output.mixed, output.pooled)
    with pytest.raises(DataError, match="no head"):
        model(vectors=some_vectors(), labels=torch.arange(5))


def test_half_precision_runs_and_stays_near(kv_model, some_ids) -> None:
    model = filled(kv_model(initializer_range=0.02), some_ids)
    expected = model(some_ids(), gate=0.5).logits
    half = model.bfloat16()(some_ids(), gate=0.5).logits
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.arange(4), "whole numbers"),
        (torch.zeros(5), "whole numbers"),
        (torch.tensor([0, 1, 2, 3, 7]), "got 7; 0 to 6"),
        (torch.tensor([0, 1, 2, 3, -1]), "got -1; 0 to 6"),
    ],
)
def test_labels_that_do_not_fit_are_refused(kv_model, some_ids, labels, said) -> None:
    with pytest.raises(DataError, match=said):
        kv_model()(some_ids(), labels=labels)


def test_what_needs_a_memory_says_so_without_one(kv_model, some_ids) -> None:
    model = kv_model(memory=None)
    for call in (lambda: model.keys(some_ids()), lambda: model.write(some_ids(), labels=torch.arange(5))):
        with pytest.raises(DataError, match="no memory"):
            call()
    assert type(AutoModel.from_config(model.config)) is TransformerWithKV
