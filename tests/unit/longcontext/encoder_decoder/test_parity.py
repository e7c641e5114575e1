"""Cross attention through retrieval against the unmodified model given the same hidden states."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import BaseModelOutput

from hsokv_ray.longcontext.attention import register
from hsokv_ray.longcontext.encoder_decoder import append_text, encode_text, generate_kwargs

INDEXES = ("auto", "flat", "pq", "block_mean", "block_minmax", "ivf")
LENGTHS_PAST = (33, 48, 49, 100, 129)


def everything(*texts: Any) -> dict[str, Any]:
    """Return the plain model's inputs with all hidden states of `texts`."""
    states = [text.hidden_NM for text in texts]
    hidden = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
    mask = torch.tensor([[int(n < len(text)) for n in range(hidden.shape[1])] for text in texts])
    return {"encoder_outputs": BaseModelOutput(last_hidden_state=hidden), "attention_mask": mask}


def answer_ids(num_rows: int = 1) -> torch.Tensor:
    return torch.randint(3, 97, (num_rows, 7), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def logits(model: Any, decoder_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    return model(decoder_input_ids=decoder_ids, **inputs).logits


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_tokens", [1, 3, 31, 32])
def test_within_the_window_the_answer_is_the_plain_models(pair: Any, ids: Any, num_tokens: int) -> None:
    settings = pair.settings()
    text = encode_text(pair.attached, ids(num_tokens), settings)
    source = {"input_ids": torch.from_numpy(ids(num_tokens))[None]}
    close(
        logits(pair.attached, answer_ids(), **generate_kwargs(pair.attached, text, settings)),
        logits(pair.plain, answer_ids(), **source),
    )
    ours = pair.attached.generate(**generate_kwargs(pair.attached, text, settings), max_new_tokens=12, do_sample=False)
    assert ours.tolist() == pair.plain.generate(**source, max_new_tokens=12, do_sample=False).tolist()


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("num_tokens", LENGTHS_PAST)
def test_a_budget_for_everything_is_plain_cross_attention(pair: Any, ids: Any, num_tokens: int, index: str) -> None:
    settings = pair.settings(index=index, budget_tokens=132)
    text = encode_text(pair.attached, ids(num_tokens), settings)
    close(
        logits(pair.attached, answer_ids(), **generate_kwargs(pair.attached, text, settings)),
        logits(pair.plain, answer_ids(), **everything(text)),
    )


@pytest.mark.parametrize("num_tokens", [100, 129])
def test_greedy_decoding_past_the_window_gives_the_ids_of_plain_cross_attention(
    pair: Any, ids: Any, num_tokens: int
) -> None:
    settings = pair.settings(budget_tokens=132)
    text = encode_text(pair.attached, ids(num_tokens), settings)
    arguments = {"max_new_tokens": 12, "do_sample": False}
    ours = pair.attached.generate(**generate_kwargs(pair.attached, text, settings), **arguments)
    assert ours.tolist() == pair.plain.generate(**everything(text), **arguments).tolist()


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("budget", [4, 16, 32])
def test_with_a_budget_every_query_sees_exactly_the_blocks_it_chose(
    pair: Any, ids: Any, index: str, budget: int
) -> None:
    settings = pair.settings(index=index, budget_tokens=budget)
    text = encode_text(pair.attached, ids(130), settings)
    ours = logits(pair.attached, answer_ids(), **generate_kwargs(pair.attached, text, settings))
    masked = _masked_model_logits(pair, text, settings.num_blocks)
    close(ours, masked)


def _masked_model_logits(pair: Any, text: Any, num_blocks: int) -> torch.Tensor:
    """Run the plain model with cross attention in which each query, head and layer is masked to its best blocks."""

    def masked_attention(
        module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **kwargs: Any
    ) -> Any:
        scores = query @ key.transpose(2, 3) * scaling
        if not module.is_causal and module.is_decoder:
            weight = getattr(module, "k_proj", getattr(module, "k", None)).weight
            queries = torch.einsum("bhtd,hdm->bhtm", query * scaling, weight.view(query.shape[1], -1, weight.shape[1]))
            best = text.block_logits(queries.flatten(0, 2), num_blocks).topk(num_blocks).indices
            blocks = torch.arange(key.shape[2]) // text.block_size
            seen = (best[:, :, None] == blocks).any(dim=1).view(scores.shape)
            scores = scores.masked_fill(~seen, float("-inf"))
        else:
            bias = kwargs.get("position_bias")
            scores = scores if bias is None else scores + bias
            scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
        return (scores.softmax(dim=-1) @ value).transpose(1, 2), None

    AttentionInterface.register("masked_for_a_test", masked_attention)
    AttentionMaskInterface.register("masked_for_a_test", sdpa_mask)
    before = pair.plain.config._attn_implementation
    pair.plain.set_attn_implementation("masked_for_a_test")
    try:
        # the library leaves the causal mask out where a flag does; a mask of ones with one row padded keeps it
        padded = torch.cat([answer_ids(), answer_ids()])
        decoder_mask = torch.ones_like(padded)
        decoder_mask[1, -1] = 0
        return logits(pair.plain, padded, **everything(text, text), decoder_attention_mask=decoder_mask)[:1]
    finally:
        pair.plain.set_attn_implementation(before)


def test_tokens_that_come_one_at_a_time_see_what_they_see_together(pair: Any, ids: Any) -> None:
    settings = pair.settings(budget_tokens=16)
    text = encode_text(pair.attached, ids(130), settings)
    together = logits(pair.attached, answer_ids(), **generate_kwargs(pair.attached, text, settings))
    inputs = generate_kwargs(pair.attached, text, settings)
    alone = [logits(pair.attached, answer_ids()[:, [n]], **inputs, use_cache=True) for n in range(7)]
    close(torch.cat(alone, dim=1), together)


def test_layers_outside_the_range_see_the_first_window(pair: Any, ids: Any) -> None:
    settings = pair.settings(budget_tokens=200)
    text = encode_text(pair.attached, ids(130), settings)
    only_first = pair.settings(budget_tokens=200, layer_begin=2)
    inputs = generate_kwargs(pair.attached, text, only_first)
    inputs["past_key_values"].cross_attention_cache.layers[2]._retrieves = False
    cut = {"encoder_outputs": BaseModelOutput(last_hidden_state=text.hidden_NM[None, :32])}
    close(logits(pair.attached, answer_ids(), **inputs), logits(pair.plain, answer_ids(), **cut))
    partly = logits(pair.attached, answer_ids(), **generate_kwargs(pair.attached, text, only_first))
    assert not torch.allclose(partly, logits(pair.plain, answer_ids(), **cut), atol=1e-3)


def test_the_first_token_is_answered_from_the_far_end_of_the_text(pair: Any, ids: Any) -> None:
    settings = pair.settings(budget_tokens=200)
    one, other = ids(130), ids(130)
    other[100:] = ids(30, seed=9)
    start = torch.tensor([[pair.plain.config.decoder_start_token_id]])
    answers = []
    for tokens in (one, other):
        text = encode_text(pair.attached, tokens, settings)
        answers.append(logits(pair.attached, start, **generate_kwargs(pair.attached, text, settings)))
    assert not torch.allclose(*answers, atol=1e-3)


@pytest.mark.parametrize(
    "options", [{"num_beams": 4}, {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5}]
)
def test_beams_are_those_of_plain_cross_attention(pair: Any, ids: Any, options: dict[str, Any]) -> None:
    settings = pair.settings(budget_tokens=132)
    texts = [encode_text(pair.attached, ids(n, seed=n), settings) for n in (129, 50, 20)]
    arguments = {"max_new_tokens": 9, "do_sample": False, **options}
    ours = pair.attached.generate(**generate_kwargs(pair.attached, texts, settings), **arguments)
    assert ours.tolist() == pair.plain.generate(**everything(*texts), **arguments).tolist()


@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 3}, {"top_p": 0.8, "temperature": 0.7}])
def test_sampling_with_a_seed_is_that_of_plain_cross_attention(pair: Any, ids: Any, options: dict[str, Any]) -> None:
    settings = pair.settings(budget_tokens=132)
    texts = [encode_text(pair.attached, ids(n, seed=n), settings) for n in (100, 70)]
    arguments = {"max_new_tokens": 9, "do_sample": True, **options}
    torch.manual_seed(3)
    ours = pair.attached.generate(**generate_kwargs(pair.attached, texts, settings), **arguments)
    torch.manual_seed(3)
    assert ours.tolist() == pair.plain.generate(**everything(*texts), **arguments).tolist()


def test_drafted_tokens_are_checked_several_at_once(pair: Any, ids: Any) -> None:
    settings = pair.settings(budget_tokens=16)
    text = encode_text(pair.attached, ids(130), settings)
    arguments = {"max_new_tokens": 14, "do_sample": False}
    one_by_one = pair.attached.generate(**generate_kwargs(pair.attached, text, settings), **arguments)
    drafted = pair.attached.generate(
        **generate_kwargs(pair.attached, text, settings), **arguments, prompt_lookup_num_tokens=3
    )
    assert drafted.tolist() == one_by_one.tolist()


def test_a_row_does_not_depend_on_its_batch(pair: Any, ids: Any) -> None:
    settings = pair.settings(budget_tokens=16)
    texts = [encode_text(pair.attached, ids(n, seed=n), settings) for n in (130, 61, 20, 1)]
    rows = [texts[0], texts[1], texts[0], texts[2], texts[3]]
    together = logits(pair.attached, answer_ids(5), **generate_kwargs(pair.attached, rows, settings))
    for row, text in enumerate(rows):
        alone = generate_kwargs(pair.attached, text, settings)
        close(together[row : row + 1], logits(pair.attached, answer_ids(5)[row : row + 1], **alone))


def test_short_texts_together_are_the_plain_models_batch(pair: Any, ids: Any) -> None:
    settings = pair.settings()
    texts = [encode_text(pair.attached, ids(n, seed=n), settings) for n in (32, 5)]
    inputs = generate_kwargs(pair.attached, texts, settings)
    assert type(inputs["past_key_values"].cross_attention_cache) is DynamicCache
    for row, count in enumerate((32, 5)):
        source = torch.from_numpy(ids(count, seed=count))[None]
        inputs = generate_kwargs(pair.attached, texts, settings)
        close(
            logits(pair.attached, answer_ids(2), **inputs)[row],
            logits(pair.plain, answer_ids(2)[row : row + 1], input_ids=source)[0],
        )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_any_attention_below_gives_the_same(bart_pair: Any, ids: Any, attention: str) -> None:
    settings = bart_pair.settings(budget_tokens=132)
    model = bart_pair.attached
    before = model.config._attn_implementation
    model.set_attn_implementation(register(attention))
    try:
        text = encode_text(model, ids(100), settings)
        ours = logits(model, answer_ids(), **generate_kwargs(model, text, settings))
    finally:
        model.set_attn_implementation(before)
    close(ours, logits(bart_pair.plain, answer_ids(), **everything(text)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_hidden_states_may_be_kept_in_half_precision(pair: Any, ids: Any, dtype: torch.dtype) -> None:
    settings = pair.settings(budget_tokens=16)
    whole = encode_text(pair.attached, ids(130), settings)
    half = encode_text(pair.attached, ids(130), settings, store_dtype=dtype)
    assert torch.equal(half.hidden_NM, whole.hidden_NM.to(dtype))
    assert half.nbytes - half.token_ids.nbytes == (whole.nbytes - whole.token_ids.nbytes) // 2
    everything_settings = pair.settings(budget_tokens=200)
    ours = logits(pair.attached, answer_ids(), **generate_kwargs(pair.attached, half, everything_settings))
    rounded = {"encoder_outputs": BaseModelOutput(last_hidden_state=half.hidden_NM.float()[None])}
    close(ours, logits(pair.plain, answer_ids(), **rounded))


def test_a_model_in_half_precision_is_as_near_to_exact_as_plain_cross_attention(pair: Any, ids: Any) -> None:
    plain, attached = deepcopy(pair.plain).bfloat16(), deepcopy(pair.attached).bfloat16()
    settings = pair.settings(budget_tokens=200)
    text = encode_text(attached, ids(130), settings)
    exact_inputs = {"encoder_outputs": BaseModelOutput(last_hidden_state=text.hidden_NM[None].float())}
    exact = logits(deepcopy(plain).float(), answer_ids(), **exact_inputs)
    ours = logits(attached, answer_ids(), **generate_kwargs(attached, text, settings)).float()
    theirs = logits(plain, answer_ids(), **everything(text)).float()
    assert (ours - exact).norm() <= 1.5 * (theirs - exact).norm()


def test_appending_continues_a_text_for_the_decoder_too(pair: Any, ids: Any) -> None:
    settings = pair.settings(budget_tokens=16)
    tokens = ids(150)
    appended = append_text(pair.attached, encode_text(pair.attached, tokens[:90], settings), tokens[90:], settings)
    at_once = encode_text(pair.attached, tokens, settings)
    close(
        logits(pair.attached, answer_ids(), **generate_kwargs(pair.attached, appended, settings)),
        logits(pair.attached, answer_ids(), **generate_kwargs(pair.attached, at_once, settings)),
    )
    assert np.array_equal(appended.token_ids, tokens)
