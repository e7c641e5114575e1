"""A tiny random Llama with a window of 64, its tokenizer, and what it answers when nothing else runs."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hsokv_ray.inference.checkpoints import resolve
from hsokv_ray.inference.engine import Engine, EngineConfig, Event, Generation, Piece, Sampling
from hsokv_ray.inference.loading import LoadedModel, load
from hsokv_ray.longcontext import LongContext, LongContextConfig

WINDOW = 64
STRIDE = 64
GREEDY = Sampling(temperature=0, max_tokens=10)


@pytest.fixture(scope="session")
def loaded(llama: Path) -> LoadedModel:
    """The model of every test here; engines leave it as it was."""
    return load(resolve(str(llama)), device="cpu")


@pytest.fixture(scope="session")
def text(loaded: LoadedModel) -> list[int]:
    """600 token ids, none of which ends a text."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, len(loaded.tokenizer), (600,), generator=generator).tolist()


@pytest.fixture
def make_engine(loaded: LoadedModel) -> Iterator[Callable[..., Engine]]:
    """`make_engine(prefixes=None, clock=..., **settings)`; closed at the end."""
    engines: list[Engine] = []

    def make(prefixes: Any = None, clock: Any = None, **settings: Any) -> Engine:
        config = EngineConfig(**{"prefix_stride": STRIDE} | settings)
        engines.append(Engine(loaded, config, prefixes, **({} if clock is None else {"clock": clock})))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    """An engine with defaults."""
    return make_engine()


@pytest.fixture(scope="session")
def alone(loaded: LoadedModel) -> Callable[..., list[int]]:
    """`alone(prompt_ids, max_tokens, document_ids=None)`: greedy ids of `LongContext.generate`."""
    known: dict[Any, list[int]] = {}

    def generate(prompt: list[int], max_tokens: int, document: list[int] | None = None) -> list[int]:
        key = (tuple(prompt), max_tokens, None if document is None else tuple(document))
        if key not in known:
            with LongContext(loaded.model, loaded.tokenizer, LongContextConfig(enabled=True)) as lc:
                memory = None if document is None else lc.encode(document)
                answer = lc.generate(memory, prompt=prompt, max_new_tokens=max_tokens, do_sample=False)
                known[key] = answer.token_ids
        return known[key]

    return generate


def generation(prompt: list[int], sampling: Sampling = GREEDY, *, name: str = "r", **options: Any) -> Generation:
    changes = {key: options.pop(key) for key in list(options) if key in Sampling.__dataclass_fields__}
    return Generation(name, prompt, sampling=replace(sampling, **changes), **options)


def ids_of(events: list[Event], choice: int = 0) -> list[int]:
    pieces = [event for event in events if isinstance(event, Piece) and event.choice == choice]
    return [token for piece in pieces for token in piece.token_ids]


def text_of(events: list[Event], choice: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece) and event.choice == choice)
