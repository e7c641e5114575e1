"""Text in, text out: tokenizers, streams, several prompts, encoder-decoder models through the same methods."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext import LongContext, LongContextConfig

TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 12
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, with a token that begins a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    bytes_ = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    bytes_.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bytes_, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 258}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(
        LlamaConfig(**shape, **heads, bos_token_id=0, eos_token_id=None, initializer_range=0.2)
    ).eval()


@pytest.fixture(scope="module", params=["bart", "t5"])
def seq2seq(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    if request.param == "bart":
        config = BartConfig(
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            vocab_size=258,
            max_position_embeddings=64,
            init_std=0.3,
            eos_token_id=1,
            bos_token_id=0,
            pad_token_id=0,
            decoder_start_token_id=0,
            forced_eos_token_id=None,
        )
        return BartForConditionalGeneration(config).eval()
    config = T5Config(
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        vocab_size=258,
        n_positions=64,
        eos_token_id=1,
        pad_token_id=0,
        decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
    )
    return T5ForConditionalGeneration(config).eval()


def test_a_text_and_a_prompt_are_tokenized_as_one_text(model: Any, tokenizer: Any):
    whole = tokenizer(TEXT[:50], return_tensors="pt")["input_ids"]
    expected = model.generate(whole, attention_mask=torch.ones_like(whole), **GREEDY)[0, whole.shape[1] :]
    with LongContext(model, tokenizer, LongContextConfig(enabled=True)) as lc:
        memory = lc.encode(TEXT[:35])
        for pieces in ({"prompt": TEXT[35:50]}, {"prefix": TEXT[35:40], "prompt": TEXT[40:45], "suffix": TEXT[45:50]}):
            answer = lc.generate(memory, **pieces, **GREEDY)
            assert answer.token_ids == expected.tolist()
            assert str(answer) == answer.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_streamed_text_is_the_generated_text_and_leaving_the_loop_ends_the_generation(model: Any, tokenizer: Any):
    reports = []
    with LongContext(model, tokenizer, LongContextConfig(enabled=True)) as lc:
        memory = lc.encode(TEXT)
        expected = lc.generate(memory, prompt="April", **GREEDY)
        pieces = list(lc.stream(memory, prompt="April", on_report=reports.append, **GREEDY))
        assert "".join(pieces) == expected.text
        assert reports[0].num_new_tokens == 12
        assert reports[0].num_memory_tokens == len(memory) == len(TEXT) + 1
        assert 0 < reports[0].retrieval_share < 1
        steps = []
        handle = model.model.norm.register_forward_hook(lambda *args: steps.append(1))
        for _ in lc.stream(memory, prompt="April", max_new_tokens=5000, do_sample=True):
            break
        handle.remove()
        assert len(steps) < 100


def test_an_error_in_a_stream_reaches_who_reads_it(model: Any, tokenizer: Any):
    with LongContext(model, tokenizer, LongContextConfig(enabled=True)) as lc:
        memory = lc.encode(TEXT)
        with pytest.raises(ValueError, match="streamer"):
            list(lc.stream(memory, prompt="April", num_beams=2, max_new_tokens=5))
        with pytest.raises(ConfigError, match="no tokenizer"):
            next(LongContext(model, None, LongContextConfig(enabled=True)).stream(memory, prompt=[5, 6]))


def test_several_prompts_give_several_answers_in_order(model: Any, tokenizer: Any):
    prompts = ["the clocks", "it was", "a bright cold day"]
    with LongContext(model, tokenizer, LongContextConfig(enabled=True)) as lc:
        memory = lc.encode(TEXT)
        answers = lc.generate(memory, prompt=prompts, **GREEDY)
        assert [answer.text for answer in answers] == [lc.generate(memory, prompt=p, **GREEDY).text for p in prompts]
        assert len(lc.generate(memory, prompt=prompts[:1], **GREEDY)) == 1


def test_an_encoder_decoder_in_the_window_is_the_plain_model(seq2seq: Any, tokenizer: Any):
    ids = tokenizer(TEXT[:50], return_tensors="pt")["input_ids"]
    expected = seq2seq.generate(ids, attention_mask=torch.ones_like(ids), num_beams=2, **GREEDY)[0, 1:].tolist()
    off = LongContext(seq2seq, tokenizer)
    assert off.generate(off.encode(TEXT[:30]), prompt=TEXT[30:50], num_beams=2, **GREEDY).token_ids == expected
    with LongContext(seq2seq, tokenizer, LongContextConfig(enabled=True, context_window_size=64)) as lc:
        assert lc.generate(lc.encode(TEXT[:50]), num_beams=2, **GREEDY).token_ids == expected
        assert lc.generate(lc.encode(TEXT[:30]), prompt=TEXT[30:50], num_beams=2, **GREEDY).token_ids == expected


def test_an_encoder_decoder_reads_past_the_window_saves_appends_and_streams(
    seq2seq: Any, tokenizer: Any, tmp_path: Path
):
    with LongContext(seq2seq, tokenizer, LongContextConfig(enabled=True, context_window_size=64)) as lc:
        memory = lc.encode(TEXT)
        expected = lc.generate(memory, **GREEDY)
        assert len(memory) == len(TEXT) + 1
        assert "".join(lc.stream(memory, **GREEDY)) == expected.text
        memory.save(tmp_path / "m")
        loaded = lc.load(tmp_path / "m")
        assert lc.generate(loaded, **GREEDY).token_ids == expected.token_ids
        lc.append(loaded, TEXT[:100])
        assert len(loaded) == len(memory) + 100
        several = lc.generate(memory, prompt=["clocks", "April"], **GREEDY)
        assert [a.token_ids for a in several] == [
            lc.generate(memory, prompt=prompt, **GREEDY).token_ids for prompt in ("clocks", "April")
        ]
        with pytest.raises(ConfigError, match="decoder-only"):
            lc.cache()
