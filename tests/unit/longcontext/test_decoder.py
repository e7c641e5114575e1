"""Decoder-only models: equal to the plain model where that is defined, and to full attention past the window."""

import gc
import threading
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext import LongContext, LongContextConfig

from .conftest import WINDOW, make_model

BLOCK = 4
ALL = 100_000


def config(**settings: Any) -> LongContextConfig:
    return LongContextConfig(**({"enabled": True, "block_size": BLOCK, "sink_tokens": 4} | settings))


def exact(**settings: Any) -> LongContextConfig:
    """Everything is fetched, and stands where it was: full attention."""
    return config(positions="native", budget_tokens=ALL, **settings)


def plain_ids(model: Any, ids: torch.Tensor, num_new: int, **options: Any) -> list[int]:
    output = model.generate(
        ids[None], attention_mask=torch.ones_like(ids)[None], max_new_tokens=num_new, do_sample=False, **options
    )
    return output[0, len(ids) :].tolist()


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
    return model(ids[None], past_key_values=cache, use_cache=cache is not None).logits[0]


def test_inside_the_window_ids_and_logits_are_the_plain_models(family: Any, text: torch.Tensor):
    prompt = text[:40]
    expected_ids, expected = plain_ids(family, prompt, 20), logits(family, prompt)
    with LongContext(family, config=config()) as lc:
        assert lc.generate(prompt=prompt, max_new_tokens=20, do_sample=False).token_ids == expected_ids
        memory = lc.encode(prompt[:30])
        answer = lc.generate(memory, prompt=prompt[30:], max_new_tokens=20, do_sample=False)
        assert answer.token_ids == expected_ids
        torch.testing.assert_close(logits(family, prompt, lc.cache()), expected, atol=1e-4, rtol=0)
        after = logits(family, prompt[30:], lc.cache(memory))
        torch.testing.assert_close(after, expected[30:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_disabled_registers_nothing_and_closing_gives_the_model_back(implementation: str, text: torch.Tensor):
    model = make_model("llama-gqa", implementation=implementation)
    before = dict(model.__dict__)
    off = LongContext(model)
    assert model.config._attn_implementation == implementation
    assert model.__dict__ == before
    assert off.generate(prompt=text[:40], max_new_tokens=5, do_sample=False).token_ids == plain_ids(model, text[:40], 5)
    first, second = LongContext(model, config=config()), LongContext(model, config=config())
    first.close()
    assert "hsokv" in model.config._attn_implementation
    second.close()
    second.close()
    assert model.config._attn_implementation == implementation


def test_disabled_says_what_the_window_cannot_hold(llama: Any, text: torch.Tensor):
    lc = LongContext(llama)
    memory = lc.encode(text[:60])
    with pytest.raises(ConfigError, match="70 tokens.*window is 64.*enabled"):
        lc.generate(memory, prompt=text[60:70])
    with pytest.raises(ConfigError, match="500 tokens"):
        lc.encode(text)


@pytest.mark.parametrize("index", ["auto", "flat", "pq", "block_mean", "block_minmax", "ivf"])
def test_with_everything_fetched_the_output_is_full_attention_for_every_index(
    llama: Any, text: torch.Tensor, index: str
):
    expected = logits(llama, text)
    with LongContext(llama, config=exact(index=index)) as lc:
        torch.testing.assert_close(logits(llama, text, lc.cache()), expected, atol=1e-4, rtol=0)
        memory = lc.encode(text[:333])
        after = logits(llama, text[333:], lc.cache(memory))
        torch.testing.assert_close(after, expected[333:], atol=1e-4, rtol=0)


def test_with_everything_fetched_every_family_equals_its_full_attention(family: Any, text: torch.Tensor):
    if getattr(family.config, "sliding_window", None):
        pytest.skip("its plain form has no full attention to compare with")
    expected_ids = plain_ids(family, text[:200], 10)
    with LongContext(family, config=exact()) as lc:
        memory = lc.encode(text[:150])
        assert lc.generate(memory, prompt=text[150:200], max_new_tokens=10, do_sample=False).token_ids == expected_ids


@pytest.mark.parametrize("positions", ["contiguous", "fixed", "native"])
def test_a_limited_budget_answers_past_the_window_with_every_kind_of_positions(
    llama: Any, text: torch.Tensor, positions: Any
):
    with LongContext(llama, config=config(positions=positions)) as lc:
        answer = lc.generate(lc.encode(text), prompt=text[:7], max_new_tokens=WINDOW, do_sample=False)
        assert len(answer.token_ids) == WINDOW


def test_rows_of_a_padded_batch_are_what_each_is_alone(llama: Any, text: torch.Tensor):
    prompts = [text[:30].tolist(), text[30:37].tolist(), text[40:140].tolist()]
    with LongContext(llama, config=config()) as lc:
        for memory in (None, lc.encode(text[200:230]), lc.encode(text[200:400])):
            batch = lc.generate(memory, prompt=prompts, max_new_tokens=12, do_sample=False)
            alone = [lc.generate(memory, prompt=each, max_new_tokens=12, do_sample=False) for each in prompts]
            assert [answer.token_ids for answer in batch] == [answer.token_ids for answer in alone]


def test_generate_given_a_padded_batch_and_an_empty_cache_equals_the_plain_model(llama: Any, text: torch.Tensor):
    ids = torch.stack([text[:40], torch.cat([torch.zeros(15, dtype=torch.int64), text[50:75]])])
    mask = torch.ones_like(ids)
    mask[1, :15] = 0
    expected = llama.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False, pad_token_id=0)
    with LongContext(llama, config=config()) as lc:
        got = llama.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=10,
            do_sample=False,
            pad_token_id=0,
            past_key_values=lc.cache(batch_size=2),
        )
    assert torch.equal(got, expected)


def test_beams_equal_the_plain_models_inside_the_window_and_full_attention_past_it(llama: Any, text: torch.Tensor):
    for length, settings in ((40, config()), (200, exact())):
        expected = plain_ids(llama, text[:length], 12, num_beams=4)
        with LongContext(llama, config=settings) as lc:
            memory = lc.encode(text[: length - 10])
            prompt = text[length - 10 : length]
            got = lc.generate(memory, prompt=prompt, max_new_tokens=12, do_sample=False, num_beams=4)
            assert got.token_ids == expected


def test_sampling_draws_what_the_plain_model_draws_from_the_same_seed(llama: Any, text: torch.Tensor):
    options: dict[str, Any] = {"max_new_tokens": 15, "do_sample": True, "top_k": 20, "num_return_sequences": 3}
    torch.manual_seed(3)
    expected = llama.generate(text[None, :40], attention_mask=torch.ones(1, 40, dtype=torch.int64), **options)
    with LongContext(llama, config=config()) as lc:
        torch.manual_seed(3)
        answers = lc.generate(prompt=text[:40], **options)
    assert [answer.token_ids for answer in answers] == expected[:, 40:].tolist()


def test_assisted_generation_takes_refused_tokens_back(llama: Any, text: torch.Tensor):
    repeated = torch.cat([text[:20]] * 6)
    for prompt, settings in ((repeated[:40], config()), (repeated, exact())):
        expected = plain_ids(llama, prompt, 20)
        with LongContext(llama, config=settings) as lc:
            got = lc.generate(prompt=prompt, max_new_tokens=20, do_sample=False, prompt_lookup_num_tokens=3)
        assert got.token_ids == expected


def test_requests_in_threads_on_one_model_do_not_mix(llama: Any, text: torch.Tensor):
    with LongContext(llama, config=config()) as lc:
        memories = [lc.encode(text[begin : begin + 150]) for begin in (0, 100, 200)]
        ask = [(memory, text[i : i + 9]) for i, memory in enumerate(memories)] + [(None, text[:30])]
        expected = [lc.generate(m, prompt=p, max_new_tokens=20, do_sample=False).token_ids for m, p in ask]
        got: dict[int, list[int]] = {}

        def run(number: int) -> None:
            memory, prompt = ask[number]
            got[number] = lc.generate(memory, prompt=prompt, max_new_tokens=20, do_sample=False).token_ids

        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(ask))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [got[number] for number in range(len(ask))] == expected


def test_the_first_generated_token_sees_what_only_the_memory_holds(llama: Any, text: torch.Tensor):
    expected = logits(llama, text[:300])[-1]
    with LongContext(llama, config=exact()) as lc:
        answer = lc.generate(lc.encode(text[:290]), prompt=text[290:300], max_new_tokens=1, do_sample=False)
    assert answer.token_ids == [int(expected.argmax())]


def test_two_questions_on_one_memory_encode_only_themselves(llama: Any, text: torch.Tensor):
    seen: list[int] = []
    with LongContext(llama, config=config()) as lc:
        memory = lc.encode(text[:400])
        handle = llama.model.embed_tokens.register_forward_hook(lambda *args: seen.append(args[1][0].numel()))
        first = lc.generate(memory, prompt=text[:6], max_new_tokens=5, do_sample=False)
        assert sum(seen) == 6 + 4
        second = lc.generate(memory, prompt=text[:6], max_new_tokens=5, do_sample=False)
        assert second.token_ids == first.token_ids
        seen.clear()
        lc.append(memory, text[400:450])
        assert sum(seen) == 50
        handle.remove()
        assert len(memory) == 450


def test_appending_at_a_chunks_end_equals_encoding_at_once(llama: Any, text: torch.Tensor):
    with LongContext(llama, config=config()) as lc:
        chunk = lc.decoder().settings.chunk
        whole, grown = lc.encode(text), lc.encode(text[: 10 * chunk])
        lc.append(grown, text[10 * chunk : 20 * chunk])
        lc.append(grown, text[20 * chunk :])
        question = text[3:9]
        torch.testing.assert_close(
            logits(llama, question, lc.cache(grown)), logits(llama, question, lc.cache(whole)), atol=1e-5, rtol=0
        )


def test_a_request_goes_on_with_what_it_began_with_while_its_memory_grows(llama: Any, text: torch.Tensor):
    with LongContext(llama, config=config()) as lc:
        memory = lc.encode(text[:200])
        expected = logits(llama, text[400:440], lc.cache(memory))
        cache = lc.cache(memory)
        first = logits(llama, text[400:424], cache)  # where a chunk ends: (200 + 24) % 16 = 0
        lc.append(memory, text[200:400])
        with torch.no_grad():
            second = llama(text[None, 424:440], past_key_values=cache).logits[0]
        torch.testing.assert_close(torch.cat([first, second]), expected, atol=1e-5, rtol=0)


def test_a_prefix_stays_in_sight_when_the_request_outgrows_the_local_part(llama: Any, text: torch.Tensor):
    prefix, prompt = text[450:458], text[:100]
    with LongContext(llama, config=config()) as lc:
        memory = lc.encode(text[200:400])
        cache = lc.cache(memory)
        cache.pin(len(prefix))
        lc.prefill(cache, [torch.cat([prefix, prompt])])
        row = cache.rows(0)[0]
        assert len(row.sinks) == 4 + len(prefix)
        keys = row.rope.turn_back(llama_keys(llama, prefix), 0)
        torch.testing.assert_close(row.sinks.keys[:, 4:], keys, atol=1e-5, rtol=0)
        with pytest.raises(ConfigError, match="prefix: 60 tokens, at most"):
            lc.generate(memory, prefix=text[:60], prompt=text[:5])


@torch.no_grad()
def llama_keys(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the first layer's keys [K, T, D] of tokens at the beginning of a text: they depend on nothing before."""
    return model(ids[None], use_cache=True).past_key_values.layers[0].keys[0]


def test_layers_outside_the_range_keep_only_their_window(llama: Any, text: torch.Tensor):
    with LongContext(llama, config=config(layer_begin=1, layer_end=2)) as lc:
        memory = lc.encode(text)
        assert [len(row.far) for row in memory.rows] == [0, 1, 0]
        assert len(lc.generate(memory, prompt=text[:5], max_new_tokens=5, do_sample=False).token_ids) == 5
    with pytest.raises(ConfigError, match="--layer-end 9: the model has 3 layers"):
        LongContext(llama, config=config(layer_end=9))


def test_a_family_that_is_not_served_is_named_with_those_that_are():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=10))
    with pytest.raises(ConfigError, match="'gpt2'.*llama, mistral, qwen2, qwen3, hmst, bart, t5"):
        LongContext(model, config=config())


def test_rotary_positions_that_change_with_the_length_are_refused(llama: Any):
    llama.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(ConfigError, match="'dynamic'"):
        LongContext(llama, config=config())


def test_a_cache_used_after_its_long_context_was_closed_says_so(llama: Any, text: torch.Tensor):
    lc = LongContext(llama, config=config())
    cache = lc.cache()
    lc.close()
    logits(llama, text[:10], cache)
    with pytest.raises(ConfigError, match="no longer"):
        logits(llama, text[:10], cache)


def test_positions_that_do_not_count_the_requests_tokens_are_refused(llama: Any, text: torch.Tensor):
    with (
        LongContext(llama, config=config()) as lc,
        pytest.raises(ConfigError, match="ends at 19, its tokens count to 9"),
    ):
        llama(text[None, :10], past_key_values=lc.cache(), position_ids=torch.arange(10, 20)[None])


@pytest.mark.parametrize("before", [0, 2, 3, 4, 5, 30, 60, 64, 200])
@pytest.mark.parametrize("num_pinned", [1, 2, 4, 8])
def test_pinned_tokens_join_the_sinks_once_whatever_stood_before_them(
    llama: Any, text: torch.Tensor, before: int, num_pinned: int
):
    request = text[200:320]
    with LongContext(llama, config=config()) as lc:
        cache = lc.cache(lc.encode(text[:before]) if before else None)
        cache.pin(num_pinned)
        lc.prefill(cache, [request])
        row = cache.rows(0)[0]
        held = len(row.sinks) + len(row.local) + sum(len(segment.span) for segment in row.far)
        assert held == row.length == before + len(request)
        keys = row.rope.turn_back(llama_keys(llama, torch.cat([text[:before], request])), 0)
        kept = [*range(4), *range(max(4, before), before + num_pinned)]
        torch.testing.assert_close(row.sinks.keys, keys[:, kept], atol=1e-5, rtol=0)
        newest = row.rope.turn_back(row.local.keys, row.first_local)
        torch.testing.assert_close(newest, keys[:, -len(row.local) :], atol=1e-5, rtol=0)


def test_native_positions_refuse_a_prefix(llama: Any, text: torch.Tensor):
    with LongContext(llama, config=config(positions="native")) as lc, pytest.raises(ConfigError, match="stays where"):
        lc.generate(lc.encode(text), prefix=text[:4], prompt=text[:4])


def test_what_would_not_reach_the_cache_is_refused_and_the_memory_stays(llama: Any, text: torch.Tensor):
    lc = LongContext(llama, config=config())
    memory = lc.encode(text[:200])
    llama.set_attn_implementation("eager")
    with pytest.raises(ConfigError, match="without its cache.*'eager'"):
        lc.encode(text[:50])
    with pytest.raises(ConfigError, match="without its cache"):
        lc.append(memory, text[:30])
    llama.set_attn_implementation("hsokv_retrieval_sdpa")
    llama.train()
    with pytest.raises(ConfigError, match=r"model\.eval\(\)"):
        lc.encode(text[:50])
    llama.eval()
    with pytest.raises(ConfigError, match="use_cache=False"):
        lc.generate(memory, prompt=text[:5], use_cache=False)
    lc.close()
    for call in (lambda: lc.encode(text), lambda: lc.append(memory, text), lambda: lc.generate(memory, prompt=[1])):
        with pytest.raises(ConfigError, match="was closed"):
            call()
    assert len(memory) == memory.rows[0].length == 200


def test_options_of_a_generation_config_are_heard(llama: Any, text: torch.Tensor):
    repeated = torch.cat([text[:20]] * 6)
    expected = plain_ids(llama, repeated, 12)
    with LongContext(llama, config=exact()) as lc:
        for extra in ({}, {"prompt_lookup_num_tokens": 3}):
            generation = GenerationConfig(max_new_tokens=12, do_sample=False, **extra)
            assert lc.generate(prompt=repeated, generation_config=generation).token_ids == expected
        assert len(lc.generate(prompt=text[:10], max_length=15, do_sample=False).token_ids) == 5


def test_a_row_ends_with_its_end_token_and_padding_is_not_counted(llama: Any, text: torch.Tensor):
    prompts = [text[:30].tolist(), text[60:100].tolist()]
    with LongContext(llama, config=config()) as lc:
        free = lc.generate(prompt=prompts[0], max_new_tokens=12, do_sample=False).token_ids
        end = free[2]
        alone = [lc.generate(prompt=p, max_new_tokens=12, do_sample=False, eos_token_id=end) for p in prompts]
        batch = lc.generate(prompt=prompts, max_new_tokens=12, do_sample=False, eos_token_id=end)
    assert [answer.token_ids for answer in batch] == [answer.token_ids for answer in alone]
    assert batch[0].token_ids == free[: free.index(end) + 1]
    assert batch[0].report.num_new_tokens == sum(len(answer.token_ids) for answer in alone)


@pytest.mark.parametrize("before", [0, 20, 63, 64, 65])
def test_a_prompt_of_one_token_is_enough(llama: Any, text: torch.Tensor, before: int):
    expected = plain_ids(llama, text[: before + 1], 3) if before < 60 else None
    with LongContext(llama, config=config()) as lc:
        memory = lc.encode(text[:before]) if before else None
        answer = lc.generate(memory, prompt=text[before : before + 1], max_new_tokens=3, do_sample=False)
    assert len(answer.token_ids) == 3
    assert expected is None or answer.token_ids == expected


def test_answers_to_one_long_prompt_share_it(llama: Any, text: torch.Tensor):
    long = torch.cat([text] * 4)
    with LongContext(llama, config=config()) as lc:
        cache = lc.cache()
        lc.prefill(cache, [long[:-1]])
        cache.seal()
        before = cache.nbytes
        llama.generate(
            long[None],
            attention_mask=torch.ones_like(long)[None],
            past_key_values=cache,
            max_new_tokens=24,
            do_sample=True,
            num_return_sequences=4,
        )
        assert cache.nbytes < 1.2 * before


def test_masks_that_hide_more_than_padding_are_refused(llama: Any, text: torch.Tensor):
    mask = torch.ones(1, 1, 20, 20, dtype=torch.bool).tril()
    with LongContext(llama, config=config()) as lc, torch.no_grad():
        llama(text[None, :20], attention_mask=mask, past_key_values=lc.cache())
        mask[..., 10:, :5] = False
        with pytest.raises(ConfigError, match="hides more than padding"):
            llama(text[None, :20], attention_mask=mask, past_key_values=lc.cache())


def test_gradients_and_inference_mode_leave_no_trace_in_a_memory(llama: Any, text: torch.Tensor):
    with LongContext(llama, config=config()) as lc:
        with torch.inference_mode():
            memory = lc.encode(text[:300])
        lc.append(memory, text[300:400])
        expected = lc.generate(memory, prefix=text[:4], prompt=text[:90], max_new_tokens=4, do_sample=False)
        cache = lc.cache(memory)
        llama(text[None, :90], past_key_values=cache)
        assert not cache.rows(0)[0].local.keys.requires_grad
        with torch.inference_mode():
            again = lc.generate(memory, prefix=text[:4], prompt=text[:90], max_new_tokens=4, do_sample=False)
    assert again.token_ids == expected.token_ids


def test_positions_start_again_before_angles_lose_their_precision(
    llama: Any, text: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("hsokv_ray.longcontext.prefill.PIECE_TOKENS", 16)
    with LongContext(llama, config=config()) as lc:
        expected = lc.encode(text)
        monkeypatch.setattr("hsokv_ray.longcontext.prefill._LARGEST_POSITION", 150)
        memory = lc.encode(text)
        assert memory.rows[0].position < 200 <= expected.rows[0].position
        for ours, theirs in zip(memory.rows, expected.rows, strict=True):
            torch.testing.assert_close(ours.far[0].span.keys, theirs.far[0].span.keys, atol=1e-4, rtol=0)


def test_adapters_of_peft_are_part_of_the_model(llama: Any, text: torch.Tensor):
    torch.manual_seed(0)
    adapted = get_peft_model(llama, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    expected = plain_ids(adapted, text[:40], 10)
    with LongContext(adapted, config=config()) as lc:
        answer = lc.generate(lc.encode(text[:30]), prompt=text[30:40], max_new_tokens=10, do_sample=False)
    assert answer.token_ids == expected


def test_dropping_a_long_context_gives_the_model_back(llama: Any):
    lc = LongContext(llama, config=config())
    assert "hsokv" in llama.config._attn_implementation
    del lc
    gc.collect()
    assert llama.config._attn_implementation == "sdpa"
