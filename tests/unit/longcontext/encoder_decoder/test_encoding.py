"""Windows, what is kept of them, and appending."""

from contextlib import contextmanager
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.errors import CheckpointError, ConfigError, DataError
from hsokv_ray.longcontext.config import LongContextConfig
from hsokv_ray.longcontext.encoder_decoder import WINDOW, append_text, encode_text, resolve
from hsokv_ray.longcontext.encoder_decoder.encoding import windows
from hsokv_ray.longcontext.encoder_decoder.text import GrowingRows


@contextmanager
def counted(model: Any) -> Any:
    """Count the tokens that go through the encoder."""
    sizes: list[int] = []
    hook = model.get_encoder().register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    yield sizes
    hook.remove()


@given(num_tokens=st.integers(1, 500), size=st.integers(8, 70))
def test_windows_keep_every_token_once_with_a_quarter_window_of_context(num_tokens: int, size: int) -> None:
    found = list(windows(num_tokens, size))
    assert [w.keep_begin for w in found[1:]] == [w.keep_end for w in found[:-1]]
    assert (found[0].keep_begin, found[-1].keep_end) == (0, num_tokens)
    for window in found:
        assert 0 <= window.begin <= window.keep_begin < window.keep_end <= window.end <= num_tokens
        assert window.end - window.begin <= size
        assert window.begin == 0 or window.keep_begin - window.begin >= size // 4
        assert window.end == num_tokens or window.end - window.keep_end >= size // 4
    assert [w.is_last for w in found] == [False] * (len(found) - 1) + [True]


@pytest.mark.parametrize("num_tokens", [1, 31, 32, 33, 47, 48, 49, 64, 130])
def test_kept_states_are_those_the_plain_encoder_gives_each_window(pair: Any, ids: Any, num_tokens: int) -> None:
    tokens = ids(num_tokens)
    text = encode_text(pair.attached, tokens, pair.settings())
    expected = []
    with torch.no_grad():
        for window in windows(num_tokens, 32):
            source = torch.from_numpy(tokens[window.begin : window.end])[None]
            states = pair.plain.get_encoder()(source).last_hidden_state[0]
            expected.append(states[window.keep_begin - window.begin : window.keep_end - window.begin])
    torch.testing.assert_close(text.hidden_NM, torch.cat(expected), atol=1e-5, rtol=0)
    assert len(text) == num_tokens
    assert text.num_blocks == -(-num_tokens // 4)
    assert text.index.num_tokens == text.settled.length


def test_encoding_says_how_far_it_is(bart_pair: Any, ids: Any) -> None:
    done: list[int] = []
    encode_text(bart_pair.attached, ids(100), bart_pair.settings(), on_tokens=done.append)
    assert done == sorted(set(done))
    assert done[-1] == 100


@pytest.mark.parametrize("index", ["flat", "pq", "block_minmax"])
@hypothesis.settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 90), min_size=2, max_size=4), block=st.sampled_from([1, 3, 4, 8]))
def test_a_text_appended_in_pieces_is_the_text_at_once(
    bart_pair: Any, lengths: list[int], block: int, index: str
) -> None:
    if block == 1 and index.startswith("block_"):
        return
    settings = bart_pair.settings(index=index, block_size=block)
    tokens = np.random.default_rng(sum(lengths)).integers(3, 97, sum(lengths))
    at_once = encode_text(bart_pair.attached, tokens, settings)
    text, done = encode_text(bart_pair.attached, tokens[: lengths[0]], settings), lengths[0]
    for length in lengths[1:]:
        text = append_text(bart_pair.attached, text, tokens[done : done + length], settings)
        done += length
    assert torch.equal(text.hidden_NM, at_once.hidden_NM)
    assert text.settled.length == at_once.settled.length == text.index.num_tokens
    queries = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(text.block_logits(queries, 9999), at_once.block_logits(queries, 9999))


@pytest.mark.parametrize("num_before", [20, 32, 33, 100, 1000])
@pytest.mark.parametrize("num_new", [1, 10, 100])
def test_appending_reads_the_last_window_again_and_the_new_tokens(
    bart_pair: Any, ids: Any, num_before: int, num_new: int
) -> None:
    settings = bart_pair.settings()
    text = encode_text(bart_pair.attached, ids(num_before), settings)
    with counted(bart_pair.attached) as sizes:
        append_text(bart_pair.attached, text, ids(num_new, seed=1), settings)
    # windows overlap by half, so a token goes through the encoder twice, appended or not
    num_again = 32 + 16 if (num_before - 32) % 16 else 16
    assert sum(sizes) <= num_again + 2 * num_new
    with counted(bart_pair.attached) as sizes:
        encode_text(bart_pair.attached, ids(num_before + num_new), settings)
    assert sum(sizes) <= 2 * (num_before + num_new)


def test_appending_leaves_the_text_it_continues_as_it_was(bart_pair: Any, ids: Any) -> None:
    settings = bart_pair.settings(index="block_mean")
    first = encode_text(bart_pair.attached, ids(100), settings)
    states, tokens = first.hidden_NM.clone(), first.token_ids.copy()
    branches = [append_text(bart_pair.attached, first, ids(80, seed=seed), settings) for seed in (1, 2)]
    for seed, branch in zip((1, 2), branches, strict=True):
        whole = encode_text(bart_pair.attached, np.concatenate([ids(100), ids(80, seed=seed)]), settings)
        assert torch.equal(branch.hidden_NM, whole.hidden_NM)
    assert torch.equal(first.hidden_NM, states)
    assert np.array_equal(first.token_ids, tokens)
    assert first.index.num_tokens == first.settled.length


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=12))
def test_rows_that_share_a_buffer_never_see_each_others_tokens(steps: list[tuple[int, int]]) -> None:
    rows = [GrowingRows.empty(2, torch.float32, "cpu", capacity=7)]
    expected = [torch.empty(0, 2)]
    for number, (parent, count) in enumerate(steps):
        new = torch.full((count, 2), float(number))
        parent %= len(rows)
        rows.append(rows[parent].extended(new))
        expected.append(torch.cat([expected[parent], new]))
    for ours, theirs in zip(rows, expected, strict=True):
        assert torch.equal(ours.rows_NM, theirs)


def test_rows_grow_in_place_while_there_is_room() -> None:
    rows = GrowingRows.empty(2, torch.float32, "cpu", capacity=8)
    grown = rows.extended(torch.ones(5, 2))
    assert grown.extended(torch.ones(3, 2)).rows_NM.data_ptr() == grown.rows_NM.data_ptr()


def test_the_window_is_the_models_own(pair: Any) -> None:
    assert WINDOW(pair.plain) == {"bart": 64, "t5": 512}[pair.plain.config.model_type]
    assert resolve(LongContextConfig(enabled=True), pair.plain).window == WINDOW(pair.plain)


def test_a_budget_may_exceed_the_window_and_is_the_window_by_default(pair: Any) -> None:
    assert pair.settings().budget == 32
    assert pair.settings(budget_tokens=400).budget == 400
    assert pair.settings(granularity="token").block == 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"budget_tokens": 3}, "less than one block of 4"),
        ({"layer_begin": 3}, "the decoder has 3 layers"),
        ({"layer_end": 4}, "the decoder has 3 layers"),
        ({"context_window_size": 65}, "has 64 positions"),
    ],
)
def test_settings_that_do_not_fit_say_why(bart_pair: Any, values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        bart_pair.settings(**values)


@pytest.mark.parametrize("tokens", [[], [[1, 2]], [0.5]])
def test_what_is_no_row_of_ids_is_refused(bart_pair: Any, tokens: Any) -> None:
    with pytest.raises(DataError, match="give integers in a row"):
        encode_text(bart_pair.attached, tokens, bart_pair.settings())


def test_a_model_in_training_is_refused(ids: Any, other_bart: Any, bart_pair: Any) -> None:
    with pytest.raises(ConfigError, match="call model.eval"):
        encode_text(other_bart.train(), ids(40), bart_pair.settings())


def test_appending_with_another_model_or_window_is_refused(bart_pair: Any, ids: Any, other_bart: Any) -> None:
    text = encode_text(bart_pair.attached, ids(40), bart_pair.settings())
    with pytest.raises(CheckpointError, match="encode the text again with this model"):
        append_text(other_bart, text, ids(3), bart_pair.settings())
    with pytest.raises(ConfigError, match="a window of 32 and blocks of 4"):
        append_text(bart_pair.attached, text, ids(3), bart_pair.settings(context_window_size=40))
