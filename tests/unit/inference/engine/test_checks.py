"""What may not be asked is said at once, beginning with the option's name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from hsokv_ray.errors import ConfigError
from hsokv_ray.inference.engine import Engine, EngineConfig, Finished
from hsokv_ray.inference.engine.checks import plan
from hsokv_ray.inference.engine.room import free_bytes
from hsokv_ray.longcontext.prefixes import LocalPrefixes

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


def test_a_wrong_value_is_said_again_in_short(engine: Engine, text: list[int]):
    wrong = {"logit_bias": {token: 1.0 for token in range(299)} | {10**9: 1.0}, "stop": ("x" * 1000,) * 17}
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=rf"^{name}: got .*\.\.\., allowed: ") as caught:
            engine.submit(generation(text[:5], **{name: value}))
        assert len(str(caught.value)) < 300


def test_no_more_tokens_than_openai_takes_can_be_biased(engine: Engine, text: list[int]):
    with pytest.raises(ConfigError, match=r"^logit_bias: .* allowed: up to 300 tokens"):
        engine.submit(generation(text[:5], logit_bias=dict.fromkeys(range(301), 1.0)))


@pytest.mark.parametrize("length", [WINDOW + 1, WINDOW + 70, 300])
@pytest.mark.parametrize("document", [0, 10, 100])
def test_no_mark_copies_a_text_that_is_local_as_a_whole(
    make_engine: Callable[..., Engine], text: list[int], length: int, document: int
):
    engine = make_engine(prefix_stride=16)
    after = engine.encode(text[:document]).result(60) if document else None
    asked = generation(text[document : document + length], after=after)
    marks = plan(engine.served, engine.config, asked).marks
    assert list(marks) == [at for at in range(16, document + length, 16) if at > max(document, WINDOW)]


@pytest.mark.parametrize(
    ("free", "expected"), [(10**15, 2_000_000), (4 * 1000 * 256, 1000), (1, WINDOW)], ids=["plenty", "some", "none"]
)
def test_the_longest_input_is_what_a_quarter_of_the_free_memory_holds(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, text: list[int], free: int, expected: int
):
    monkeypatch.setattr("hsokv_ray.inference.engine.served.free_bytes", lambda device: free)
    engine = make_engine()
    assert engine.served.bytes_per_token == 256
    assert engine.served.max_input_tokens == expected
    assert make_engine(max_input_tokens=123).served.max_input_tokens == 123


def test_a_tokens_bytes_are_those_of_the_keys_and_values_that_are_kept(engine: Engine, text: list[int]):
    encoded = engine.encode(text[:400]).result(60)
    far = [array for name, array in encoded.segments[0].arrays.items() if name.startswith("far.")]
    num_far = far[0].shape[2]
    assert num_far > 300
    assert sum(array.nbytes for array in far) == num_far * engine.served.bytes_per_token


def test_free_memory_is_what_the_container_may_still_take(tmp_path: Path):
    cpu = torch.device("cpu")
    assert free_bytes(cpu, tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.5)
    for name, content in {"max": "5000", "current": "3000", "stat": "anon 9\ninactive_file 500\n"}.items():
        (tmp_path / f"memory.{name}").write_text(content)
    assert free_bytes(cpu, tmp_path) == 2500
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(cpu, tmp_path) > 2500


@pytest.mark.parametrize(
    "changed",
    [{"local_tokens": 12}, {"budget_tokens": 8}, {"positions": "fixed"}, {"chunk_size": 8}, {"store_dtype": "float16"}],
    ids=lambda changed: next(iter(changed)),
)
def test_texts_read_with_other_settings_are_not_shared(
    make_engine: Callable[..., Engine], text: list[int], changed: dict[str, Any]
):
    store = LocalPrefixes(10**9)
    before = make_engine(prefixes=store)
    list(before.submit(generation(text[:300])))
    assert before.drain(60)
    again, other = make_engine(prefixes=store), make_engine(prefixes=store, long_context={"enabled": True, **changed})
    cached = [list(engine.submit(generation(text[:300])))[0].cached_tokens for engine in (again, other)]
    assert cached == [256, 0]


def test_configurations_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="max-choices"):
        EngineConfig(max_running=2)
    with pytest.raises(ConfigError, match="unlimited"):
        EngineConfig(long_context={"enabled": False})
