"""What may not be asked is said at once, beginning with the option's name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hsokv_ray.errors import ConfigError
from hsokv_ray.inference.engine import Engine, EngineConfig, Finished

from .conftest import WINDOW, generation


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 5000),
        ("n", 0),
        ("n", 5),
        ("logprobs", -1),
        ("logprobs", 21),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("frequency_penalty", 2.5),
        ("presence_penalty", float("nan")),
        ("stop", ("",)),
        ("stop", ("a",) * 17),
        ("logit_bias", {100_000: 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: float("nan")}),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(engine: Engine, text: list[int], option: str, value: Any):
    with pytest.raises(ConfigError, match=f"^{option}: got .*allowed: "):
        engine.submit(generation(text[:5], **{option: value}))


@pytest.mark.parametrize("prompt", [[], [-1], [300_000], [1.5], ["a"], [[1, 2]], [True, False]])
def test_a_prompt_that_is_no_list_of_the_models_ids_is_refused(engine: Engine, prompt: Any):
    with pytest.raises(ConfigError, match=r"^prompt: "):
        engine.submit(generation(prompt))
    with pytest.raises(ConfigError, match=r"^token_ids: "):
        engine.encode(prompt)


def test_ids_may_come_as_an_array(engine: Engine, text: list[int]):
    events = list(engine.submit(generation(np.array(text[:9], dtype=np.int32))))  # type: ignore[arg-type]
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize("length", [WINDOW, WINDOW + 1, 500])
def test_an_input_past_the_window_is_refused_where_it_may_not_be(engine: Engine, text: list[int], length: int):
    with pytest.raises(ConfigError, match=rf"^prompt: the input has {length} tokens, the model's window is {WINDOW}"):
        engine.submit(generation(text[:length], unlimited=False))


def test_the_engines_default_says_whether_inputs_may_pass_the_window(
    make_engine: Callable[..., Engine], text: list[int]
):
    engine = make_engine(unlimited=False)
    with pytest.raises(ConfigError, match="window"):
        engine.submit(generation(text[:100]))
    assert isinstance(list(engine.submit(generation(text[:100], unlimited=True)))[-1], Finished)


def test_an_input_longer_than_the_server_takes_is_refused(make_engine: Callable[..., Engine], text: list[int]):
    engine = make_engine(max_input_tokens=100)
    with pytest.raises(ConfigError, match=r"^prompt: the input has 101 tokens, the server takes 100"):
        engine.submit(generation(text[:101]))
    document = engine.encode(text[:60]).result(60)
    with pytest.raises(ConfigError, match=r"^prompt: the input has 110 tokens"):
        engine.submit(generation(text[:50], after=document))
    with pytest.raises(ConfigError, match=r"^token_ids: the input has 110 tokens"):
        engine.encode(text[:50], after=document)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 2}, "settings: 'block_size' cannot be chosen per request"),
        ({"no_such": 2}, "settings: 'no_such' cannot be chosen per request"),
        ({"positions": "native"}, "settings: positions 'native'"),
        ({"budget_tokens": 10_000}, "^settings: .*exceed the window"),
        ({"local_tokens": -3}, "^settings: .*local.tokens: got -3"),
    ],
)
def test_settings_that_a_request_cannot_choose_are_named(
    engine: Engine, text: list[int], settings: dict[str, Any], message: str
):
    with pytest.raises(ConfigError, match=message):
        engine.submit(generation(text[:5], settings=settings))


def test_configurations_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="max-choices"):
        EngineConfig(max_running=2)
    with pytest.raises(ConfigError, match="unlimited"):
        EngineConfig(long_context={"enabled": False})
