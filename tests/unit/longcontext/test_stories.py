"""A trained model (260,000 parameters, TinyStories, 512 tokens) with a long text behind it still tells its stories."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from llama2c import load_model, load_tokenizer

from hsokv_ray.longcontext import LongContext, LongContextConfig

pytestmark = pytest.mark.real_data
BOS, EOS, WINDOW = 1, 2, 512


class Storyteller(NamedTuple):
    model: Any
    tokenizer: Any
    stories: torch.Tensor
    """[N] ids of some 60 stories it told, one after the other; fewer than 20,000 tokens."""


@pytest.fixture(scope="module")
def teller(real_data: Path) -> Storyteller:
    folder = real_data / "stories260K"
    model = load_model(folder / "stories260K.bin").eval()
    begin = torch.full((64, 1), BOS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        told = model.generate(
            begin,
            attention_mask=torch.ones_like(begin),
            max_new_tokens=300,
            do_sample=True,
            temperature=0.8,
            top_k=None,
            pad_token_id=EOS,
        )
    stories = [token for row in told.tolist() for token in _until_the_end(row)]
    return Storyteller(model, load_tokenizer(folder / "tok512.bin"), torch.tensor(stories))


def _until_the_end(story: list[int]) -> list[int]:
    ends = [number for number, token in enumerate(story) if token in (BOS, EOS) and number]
    return story[: ends[0]] if ends else story


@torch.no_grad()
def losses_in_the_window(model: Any, ids: torch.Tensor, begin: int) -> torch.Tensor:
    """Return the loss of each token from `begin`, given at least half a window before it and at most a whole one."""
    losses = []
    for start in range(begin, len(ids), WINDOW // 2):
        end = min(start + WINDOW // 2, len(ids))
        seen = ids[max(0, end - WINDOW) : end]
        every = _losses(model(seen[None]).logits[0, :-1], seen[1:])
        losses.append(every[-(end - start) :])
    return torch.cat(losses)


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


@torch.no_grad()
def losses_with_retrieval(model: Any, ids: torch.Tensor, begin: int, config: LongContextConfig) -> torch.Tensor:
    with LongContext(model, config=config) as lc:
        cache = lc.cache(lc.encode(ids[: begin - 1]))
        logits = [model(piece[None], past_key_values=cache).logits[0] for piece in ids[begin - 1 : -1].split(128)]
    return _losses(torch.cat(logits), ids[begin:])


def test_a_story_after_a_long_prefix_is_predicted_no_worse_than_from_the_plain_window(teller: Storyteller):
    begin = len(teller.stories) * 2 // 3
    plain = losses_in_the_window(teller.model, teller.stories, begin)
    config = LongContextConfig(enabled=True, local_tokens=256, chunk_size=64)
    ours = losses_with_retrieval(teller.model, teller.stories, begin, config)
    assert len(plain) == len(ours) > 5000
    difference = ours - plain
    half_interval = 1.96 * difference.std() / len(difference) ** 0.5
    assert difference.mean() <= half_interval
    assert half_interval < 0.005


def test_with_100_000_tokens_in_memory_it_tells_a_story_that_the_plain_model_finds_likely(teller: Storyteller):
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0)).tolist()
    parts = teller.stories.tensor_split(6)
    long = torch.cat([parts[number] for number in order] * 6)[:100_000]
    prompt = torch.tensor(teller.tokenizer("Once upon a time, there was a little girl named")["input_ids"])
    with LongContext(teller.model, teller.tokenizer, LongContextConfig(enabled=True)) as lc:
        memory = lc.encode(long)
        assert len(memory) == 100_000
        answer = lc.generate(memory, prompt=prompt, max_new_tokens=150, do_sample=False, eos_token_id=None)
    told = torch.cat([prompt, torch.tensor(answer.token_ids)])
    loss = losses_in_the_window(teller.model, told, len(prompt)).mean()
    usual = losses_in_the_window(teller.model, teller.stories, 1).mean()
    assert loss < usual
    shuffled = torch.cat([prompt, torch.tensor(answer.token_ids)[torch.randperm(150)]])
    assert losses_in_the_window(teller.model, shuffled, len(prompt)).mean() > usual + 1
    assert len(set(answer.text.split())) > 40, "it repeats itself"
