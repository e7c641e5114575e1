"""Requests: attachment, threads, rows, errors."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel, PegasusConfig
from transformers import PegasusForConditionalGeneration as Pegasus

from hsokv_ray.errors import CheckpointError, ConfigError
from hsokv_ray.longcontext.encoder_decoder import cross_cache, encode_text, generate_kwargs
from hsokv_ray.longcontext.report import Stopwatch


def test_two_threads_on_one_model_get_what_they_get_alone(pair: Any, ids: Any) -> None:
    settings = pair.settings(budget_tokens=16)
    texts = [encode_text(pair.attached, ids(n, seed=n), settings) for n in (130, 95, 130, 20)]

    def ask(text: Any) -> list[int]:
        inputs = generate_kwargs(pair.attached, text, settings)
        return pair.attached.generate(**inputs, max_new_tokens=20, do_sample=False)[0].tolist()

    alone = [ask(text) for text in texts]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, texts * 3)) == alone * 3


def test_two_questions_on_one_text_encode_nothing(bart_pair: Any, ids: Any) -> None:
    settings = bart_pair.settings(budget_tokens=16)
    text = encode_text(bart_pair.attached, ids(130), settings)
    calls: list[Any] = []
    hook = bart_pair.attached.get_encoder().register_forward_pre_hook(lambda *args: calls.append(args))
    answers = [
        bart_pair.attached.generate(
            **generate_kwargs(bart_pair.attached, text, settings),
            decoder_input_ids=torch.tensor([[2, question]]),
            max_new_tokens=5,
            do_sample=False,
        )
        for question in (5, 6, 5)
    ]
    hook.remove()
    assert not calls
    assert torch.equal(answers[0], answers[2])


def test_an_attached_model_without_a_text_is_the_plain_model(pair: Any, ids: Any) -> None:
    source = torch.from_numpy(ids(60))[None]
    arguments = {"max_new_tokens": 9, "do_sample": False, "num_beams": 2}
    assert pair.attached.generate(source, **arguments).tolist() == pair.plain.generate(source, **arguments).tolist()


def test_encoding_registers_nothing_on_the_model(pair: Any, ids: Any) -> None:
    modules = [pair.plain, *pair.plain.modules()]
    before = [(sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules]
    implementation = pair.plain.config._attn_implementation
    settings = pair.settings()
    text = encode_text(pair.plain, ids(20), settings)
    pair.plain.generate(**generate_kwargs(pair.plain, text, settings), max_new_tokens=3)
    encode_text(pair.plain, ids(130), settings)
    assert [(sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules] == before
    assert pair.plain.config._attn_implementation == implementation


def test_retrieval_on_a_model_that_is_not_attached_is_refused(pair: Any, ids: Any) -> None:
    settings = pair.settings()
    text = encode_text(pair.plain, ids(130), settings)
    with pytest.raises(ConfigError, match="attach it"):
        generate_kwargs(pair.plain, text, settings)


def test_a_model_detached_in_the_middle_answers_nan_and_no_nonsense(pair: Any, ids: Any) -> None:
    settings = pair.settings()
    text = encode_text(pair.attached, ids(130), settings)
    inputs = generate_kwargs(pair.attached, text, settings)
    with torch.no_grad():
        assert pair.plain(decoder_input_ids=torch.tensor([[2, 5]]), **inputs).logits.isnan().all()


def test_a_text_of_another_model_is_refused(bart_pair: Any, other_bart: Any, ids: Any) -> None:
    for count in (20, 130):
        text = encode_text(other_bart, ids(count), bart_pair.settings())
        with pytest.raises(CheckpointError, match="encode the text again with this model"):
            generate_kwargs(bart_pair.attached, text, bart_pair.settings())


def test_texts_must_divide_the_batch(bart_pair: Any, ids: Any) -> None:
    settings = bart_pair.settings()
    texts = [encode_text(bart_pair.attached, ids(n), settings) for n in (130, 50)]
    inputs = generate_kwargs(bart_pair.attached, texts, settings)
    with pytest.raises(ConfigError, match="3 rows for 2 encoded texts"):
        bart_pair.attached(
            decoder_input_ids=torch.full((3, 1), 2),
            encoder_outputs=(torch.zeros(3, 1, 48),),
            past_key_values=inputs["past_key_values"],
        )
    with pytest.raises(ConfigError, match="no encoded text"):
        generate_kwargs(bart_pair.attached, [], settings)


def test_a_cache_follows_repeats_choices_and_reset(bart_pair: Any, ids: Any) -> None:
    settings = bart_pair.settings(budget_tokens=16)
    texts = [encode_text(bart_pair.attached, ids(n), settings) for n in (130, 50)]

    def answer(cache: Any, num_rows: int) -> torch.Tensor:
        hidden = (torch.zeros(num_rows, 1, 48),)
        with torch.no_grad():
            start = torch.full((num_rows, 1), 2)
            return bart_pair.attached(decoder_input_ids=start, encoder_outputs=hidden, past_key_values=cache).logits

    of_each = answer(cross_cache(bart_pair.attached, texts, settings), 2)
    cache = cross_cache(bart_pair.attached, texts, settings)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0, 1]))
    cache.reset()
    torch.testing.assert_close(answer(cache, 3), of_each[[1, 0, 0]], atol=1e-5, rtol=0)


def test_the_watch_counts_one_lap_per_forward_pass(bart_pair: Any, ids: Any) -> None:
    settings = bart_pair.settings(budget_tokens=16)
    text = encode_text(bart_pair.attached, ids(130), settings)
    ticks = iter(range(10_000))
    watch = Stopwatch(clock=lambda: float(next(ticks)))
    inputs = generate_kwargs(bart_pair.attached, text, settings, watch=watch)
    bart_pair.attached.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert watch.laps_s == [3.0] * 6  # three layers, one tick each


def test_other_families_are_refused_with_the_list(ids: Any, bart_pair: Any) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertConfig(vocab_size=9, **small)
    models = [EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert))]
    models.append(
        Pegasus(
            PegasusConfig(
                vocab_size=9, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8, decoder_ffn_dim=8
            )
        )
    )
    for model in models:
        with pytest.raises(ConfigError, match=f"'{model.config.model_type}' is not served; served are bart, t5"):
            encode_text(model.eval(), ids(5), bart_pair.settings())


def test_projections_that_are_no_plain_layers_are_refused(ids: Any, other_bart: Any, bart_pair: Any) -> None:
    other_bart.get_decoder().layers[1].encoder_attn.k_proj = torch.nn.Identity()
    with pytest.raises(ConfigError, match="k_proj of cross attention is a Identity.*merge adapters"):
        encode_text(other_bart, ids(5), bart_pair.settings())


def test_a_transformers_whose_t5_cannot_be_reached_is_refused(
    ids: Any, bart_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("transformers.models.bart.modeling_bart.ALL_ATTENTION_FUNCTIONS")
    with pytest.raises(ConfigError, match="computes attention by itself.*install a newer transformers"):
        generate_kwargs(
            bart_pair.attached, encode_text(bart_pair.attached, ids(5), bart_pair.settings()), bart_pair.settings()
        )
