"""The model's own paths against one another: experts, caches, masks, checkpoints, precision."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from hsokv_ray.models import HMSTConfig, HMSTForCausalLM, HMSTModel, LoadBalancer
from hsokv_ray.models.modeling_hmst import HMSTAttention
from hsokv_ray.models.router import HMSTRouter

CONFIG = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "max_position_embeddings": 128,
}


def make_model(**change) -> HMSTForCausalLM:
    """A small model with weights large enough that a wrong path shows."""
    torch.manual_seed(0)
    return HMSTForCausalLM(HMSTConfig(**(CONFIG | {"initializer_range": 0.2} | change))).eval()


def some_ids(batch: int = 2, length: int = 24) -> torch.Tensor:
    return torch.randint(1, 97, (batch, length), generator=torch.Generator().manual_seed(1))


def gradients(model: HMSTForCausalLM, **inputs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("change", [{}, {"num_experts": 1, "num_experts_per_tok": 1}, {"tie_word_embeddings": False}])
def test_a_saved_model_comes_back_bit_for_bit_through_the_auto_classes(change, tmp_path):
    model, ids = make_model(**change), some_ids()
    for module in model.modules():
        if isinstance(module, HMSTRouter):
            torch.nn.init.normal_(module.expert_bias)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is HMSTForCausalLM
    assert isinstance(AutoConfig.from_pretrained(tmp_path), HMSTConfig)
    assert type(AutoModel.from_pretrained(tmp_path)) is HMSTModel
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    with torch.no_grad():
        assert (loaded(ids).logits - model(ids).logits).abs().max() == 0


@pytest.mark.parametrize("implementation", ["hmst_sorted", "grouped_mm", "batched_mm"])
def test_every_experts_implementation_gives_the_eager_loss_and_gradients(implementation):
    model, ids = make_model(shared_expert_intermediate_size=16), some_ids()
    model.set_experts_implementation("eager")
    expected_logits, expected = model(ids).logits, gradients(model, input_ids=ids, labels=ids)
    model.set_experts_implementation(implementation)
    assert model.config._experts_implementation == implementation
    torch.testing.assert_close(model(ids).logits, expected_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients(model, input_ids=ids, labels=ids), expected, rtol=1e-3, atol=1e-5)


def test_the_sorted_experts_are_used_unless_others_are_asked_for():
    assert make_model().config._experts_implementation == "hmst_sorted"
    assert make_model(experts_implementation="eager").config._experts_implementation == "eager"


def test_eager_attention_gives_the_logits_of_sdpa():
    model, ids = make_model(), some_ids()
    expected = model(ids).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_logits_with_a_cache_are_those_without():
    model, ids = make_model(), some_ids()
    with torch.no_grad():
        expected = model(ids).logits
        cache = model(ids[:, :10], use_cache=True).past_key_values
        steps = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(10, 24)]
    torch.testing.assert_close(torch.cat(steps, dim=1), expected[:, 10:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_with_a_cache_gives_the_tokens_without(num_beams):
    model, ids = make_model(), some_ids(length=8)
    settings = {"max_new_tokens": 12, "do_sample": False, "num_beams": num_beams, "pad_token_id": 0}
    assert torch.equal(
        model.generate(ids, use_cache=True, **settings), model.generate(ids, use_cache=False, **settings)
    )


def test_beam_search_finds_a_text_at_least_as_likely_as_greedy_search():
    model, ids = make_model(), some_ids(batch=1, length=8)

    def log_likelihood(tokens: torch.Tensor) -> float:
        with torch.no_grad():
            log_probs = model(tokens).logits.log_softmax(dim=-1)[:, 7:-1]
        return log_probs.gather(-1, tokens[:, 8:, None]).sum().item()

    greedy = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    beam = model.generate(ids, max_new_tokens=6, do_sample=False, num_beams=8, pad_token_id=0)
    assert log_likelihood(beam) >= log_likelihood(greedy) - 1e-5


def test_left_padding_leaves_the_generated_tokens_as_they_are():
    model, ids = make_model(), some_ids(batch=1, length=8)
    alone = model.generate(ids, max_new_tokens=10, do_sample=False, pad_token_id=0)[0, 8:]
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], dim=1)
    batch = torch.cat([padded, some_ids(batch=1, length=13)])
    mask = torch.ones_like(batch)
    mask[0, :5] = 0
    together = model.generate(batch, attention_mask=mask, max_new_tokens=10, do_sample=False, pad_token_id=0)[0, 13:]
    assert torch.equal(together, alone)


def test_logits_to_keep_gives_the_last_logits():
    model, ids = make_model(), some_ids()
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, model(ids).logits[:, -3:])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [True, False])
def test_packed_documents_do_not_see_one_another(attention, training):
    model, ids = make_model().train(training), some_ids(batch=1, length=20)
    model.set_attn_implementation(attention)
    positions = torch.cat([torch.arange(7), torch.arange(13)])[None]
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    packed = model(inputs_embeds=embeds, position_ids=positions, labels=ids).logits
    packed[:, 7:].square().sum().backward()
    assert embeds.grad[:, :7].abs().max() == 0
    assert embeds.grad[:, 7:].abs().min() > 0
    alone = torch.cat([model(part, use_cache=False).logits for part in (ids[:, :7], ids[:, 7:])], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)


def test_one_document_takes_the_causal_path_without_a_mask():
    model, ids, masks = make_model().train(), some_ids(), []
    for module in model.modules():
        if isinstance(module, HMSTAttention):
            module.register_forward_pre_hook(
                lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
            )
    model(ids, labels=ids)
    model(ids, labels=ids, position_ids=torch.arange(24).expand(2, -1))
    assert masks == [None] * 6
    model(ids, labels=ids, position_ids=torch.arange(12).repeat(2, 2))
    assert masks[-1].shape == (2, 1, 24, 24)


def test_gradient_checkpointing_gives_the_same_gradients_and_counts_each_token_once():
    plain, ids = make_model().train(), some_ids()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    expected = gradients(plain, input_ids=ids, labels=ids)
    torch.testing.assert_close(gradients(checkpointed, input_ids=ids, labels=ids), expected, rtol=0, atol=0)
    for layer, other in zip(plain.model.layers, checkpointed.model.layers, strict=True):
        assert layer.mlp.router.tokens_per_expert.sum() == ids.numel() * 2
        assert torch.equal(layer.mlp.router.tokens_per_expert, other.mlp.router.tokens_per_expert)


def test_tokens_are_counted_in_training_only():
    model, ids = make_model(), some_ids()
    model(ids)
    assert LoadBalancer(model).step(0.0) is None


def test_bf16_weights_keep_the_router_in_fp32_and_the_logits_near(tmp_path):
    model, ids = make_model(initializer_range=0.02), some_ids()
    model.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.lm_head.weight.dtype == torch.bfloat16
    assert half.model.layers[0].mlp.router.weight.dtype == torch.float32
    assert half.model.layers[0].mlp.router.expert_bias.dtype == torch.float32
    with torch.no_grad():
        expected = model(ids).logits
        assert (half(ids).logits.float() - expected).abs().max() < 0.05 * expected.abs().max()
    loss = half.train()(input_ids=ids, labels=ids).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in half.parameters())


def test_autocast_trains_near_fp32():
    model, ids = make_model(initializer_range=0.02).train(), some_ids()
    expected = model(input_ids=ids, labels=ids).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    assert loss.item() == pytest.approx(expected.item(), rel=5e-3)


def test_hidden_states_attentions_and_router_logits_come_out_when_asked_for():
    model, ids = make_model(), some_ids()
    model.set_attn_implementation("eager")
    out = model(ids, output_hidden_states=True, output_attentions=True, output_router_logits=True)
    assert [h.shape for h in out.hidden_states] == [(2, 24, 64)] * 4
    assert [a.shape for a in out.attentions] == [(2, 4, 24, 24)] * 3
    assert [r.shape for r in out.router_logits] == [(48, 8)] * 3
    assert model(ids).router_logits is None


def test_embeddings_may_be_given_instead_of_ids_and_not_beside_them():
    model, ids = make_model(), some_ids()
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(input_ids=ids, inputs_embeds=embeds)


def test_residual_projections_start_smaller_by_the_root_of_twice_the_layers():
    model = make_model(initializer_range=0.02, num_hidden_layers=8)
    experts = model.model.layers[0].mlp.experts
    assert experts.gate_up_proj.std().item() == pytest.approx(0.02, rel=0.05)
    assert experts.down_proj.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert model.model.layers[0].self_attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.model.layers[0].self_attn.o_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def test_the_compiled_model_gives_the_same_loss_and_gradients():
    model, ids = make_model(num_hidden_layers=1).train(), some_ids()
    expected = gradients(model, input_ids=ids, labels=ids)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        gradients(compiled, input_ids=ids, labels=ids),
        {"_orig_mod." + name: value for name, value in expected.items()},
        rtol=1e-4,
        atol=1e-5,
    )
