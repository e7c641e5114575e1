"""Generation is transformers' own, measured; seeds reproduce it and leave the caller's random state alone."""

import signal

import pytest
import torch

from hsokv_ray.errors import ConfigError
from hsokv_ray.inference.config import SamplingConfig
from hsokv_ray.inference.generation import Generator

PROMPT = "The quick"
GREEDY = SamplingConfig(temperature=0, max_length=20)


def reference(generator: Generator, prompt: str, **arguments: object) -> str:
    """What `model.generate` and the tokenizer give when called directly."""
    model, tokenizer = generator.loaded.model, generator.loaded.tokenizer
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=20, pad_token_id=0, **arguments)
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_temperature_0_is_greedy(generator: Generator) -> None:
    assert generator.generate(PROMPT, GREEDY).text == reference(generator, PROMPT, do_sample=False)


def test_greedy_takes_the_likeliest_token_at_every_step(generator: Generator) -> None:
    model, tokenizer = generator.loaded.model, generator.loaded.tokenizer
    ids = tokenizer(PROMPT)["input_ids"]
    length = len(ids)
    for _ in range(GREEDY.max_length):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert generator.generate(PROMPT, GREEDY).text == tokenizer.decode(ids[length:], skip_special_tokens=True)


def test_beams_equal_those_of_generate_and_come_in_one_piece(generator: Generator) -> None:
    pieces: list[str] = []
    sampling = SamplingConfig(temperature=0, num_beams=3, max_length=20)
    completion = generator.generate(PROMPT, sampling, on_text=pieces.append)
    assert pieces == [completion.text] == [reference(generator, PROMPT, do_sample=False, num_beams=3)]
    assert completion.first_token_s is None


def test_sampling_equals_generate_under_the_same_seed(generator: Generator) -> None:
    sampling = SamplingConfig(temperature=0.7, top_p=0.8, top_k=30, seed=11, max_length=20)
    torch.manual_seed(11)
    expected = reference(generator, PROMPT, do_sample=True, temperature=0.7, top_p=0.8, top_k=30)
    assert generator.generate(PROMPT, sampling).text == expected


def test_a_seed_reproduces_and_another_one_does_not(generator: Generator) -> None:
    texts = [generator.generate(PROMPT, SamplingConfig(seed=seed)).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_seed_that_was_not_given_is_told_and_reproduces(generator: Generator) -> None:
    first = generator.generate(PROMPT, SamplingConfig())
    second = generator.generate(PROMPT, SamplingConfig())
    assert first.seed != second.seed
    assert generator.generate(PROMPT, SamplingConfig(seed=first.seed)).text == first.text


def test_the_random_state_of_the_caller_is_left_alone(generator: Generator) -> None:
    before = torch.get_rng_state()
    generator.generate(PROMPT, SamplingConfig(seed=3))
    assert torch.equal(torch.get_rng_state(), before)


def test_top_k_1_and_a_tiny_top_p_both_leave_only_the_likeliest(generator: Generator) -> None:
    greedy = generator.generate(PROMPT, GREEDY).text
    for narrow in ({"top_k": 1, "top_p": 1.0}, {"top_k": 0, "top_p": 1e-6}):
        assert generator.generate(PROMPT, SamplingConfig(seed=5, max_length=20, **narrow)).text == greedy


def test_what_is_streamed_adds_up_to_the_text(generator: Generator) -> None:
    pieces: list[str] = []
    completion = generator.generate("def add(a, b):", SamplingConfig(seed=1, max_length=40), on_text=pieces.append)
    assert len(pieces) > 1
    assert "".join(pieces) == completion.text


def test_times_come_from_the_clock_that_was_handed_in(generator: Generator) -> None:
    ticks = iter(range(100))
    completion = Generator(generator.loaded, clock=lambda: next(ticks)).generate(PROMPT, GREEDY)
    # start is tick 0, the first token tick 1, the end tick 2
    assert (completion.first_token_s, completion.seconds) == (1, 2)
    assert completion.tokens_per_s == completion.num_tokens / 2 == 10
    assert "20 tokens in 2.00 s (10.0 tokens/s), first token after 1000 ms, end: length" in completion.describe()


def test_a_prompt_that_fills_the_window_is_refused_with_the_numbers(generator: Generator) -> None:
    window = generator.loaded.window_tokens
    assert window == 64
    fits = generator.loaded.tokenizer.decode([65] * (window - 1))
    assert generator.encode(fits).shape == (1, window - 1)
    with pytest.raises(ConfigError, match=r"the prompt has 64 tokens, the model's window is 64"):
        generator.encode(generator.loaded.tokenizer.decode([65] * window))


def test_generation_ends_at_the_window_and_says_so(generator: Generator) -> None:
    prompt = generator.loaded.tokenizer.decode([65] * 60)
    completion = generator.generate(prompt, SamplingConfig(temperature=0, max_length=50))
    assert (completion.num_prompt_tokens, completion.num_tokens, completion.finish) == (60, 4, "window")


def test_the_end_of_text_token_ends_it_and_is_not_shown(generator: Generator) -> None:
    tokens = generator.loaded.model.generation_config
    text = generator.generate(PROMPT, GREEDY).text
    third = generator.loaded.tokenizer(text)["input_ids"][2]
    before, tokens.eos_token_id = tokens.eos_token_id, [third]
    try:
        completion = generator.generate(PROMPT, GREEDY)
    finally:
        tokens.eos_token_id = before
    assert completion.finish == "stop"
    assert completion.num_tokens <= 3


def test_an_empty_prompt_begins_a_text(generator: Generator) -> None:
    assert generator.encode("").tolist() == [[generator.loaded.tokenizer.eos_token_id]]
    assert generator.generate("", GREEDY).num_tokens == 20


def test_ctrl_c_keeps_what_there_is(generator: Generator) -> None:
    whole = generator.generate(PROMPT, SamplingConfig(seed=1, max_length=40)).text

    completion = generator.generate(
        PROMPT, SamplingConfig(seed=1, max_length=40), on_text=lambda text: signal.raise_signal(signal.SIGINT)
    )
    assert completion.finish == "interrupted"
    assert 0 < completion.num_tokens < 40
    assert whole.startswith(completion.text.rstrip("\N{REPLACEMENT CHARACTER}"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"num_beams": 0},
        {"max_length": 0},
        {"seed": -1},
    ],
)
def test_a_value_out_of_range_names_its_flag_and_the_range(wrong: dict[str, float]) -> None:
    [name] = wrong
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}: got .* (greater|less) than"):
        SamplingConfig(**wrong)  # type: ignore[arg-type]
