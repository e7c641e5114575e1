"""Parallel encoding: pieces in any order, anywhere, give one memory."""

import random
from typing import Any

import pytest
import torch

from hsokv_ray.longcontext import LongContext, LongContextConfig
from hsokv_ray.longcontext.parallel import assemble, encode_piece, pieces

from .conftest import WINDOW


def config(**settings: Any) -> LongContextConfig:
    parallel = {"enabled": True, "block_size": 4, "sink_tokens": 4, "encoding": "parallel"}
    return LongContextConfig(**(parallel | settings))


def test_pieces_cover_the_text_once_and_fit_the_window_with_their_context(llama: Any, text: torch.Tensor):
    with LongContext(llama, config=config(chunk_size=20)) as lc:
        make = lc.decoder().make
    ids = text.numpy()
    for length in (1, WINDOW - 1, WINDOW, WINDOW + 1, 300):
        cut = list(pieces(ids[:length], make.settings))
        assert [token for piece in cut for token in piece.token_ids] == ids[:length].tolist()
        assert all(len(piece.context) + len(piece.token_ids) <= WINDOW for piece in cut)
        for piece in cut[1:]:
            assert len(piece.token_ids) <= 20
            before = ids[piece.begin - make.settings.local : piece.begin]
            assert piece.context.tolist() == [*ids[:4], *before]


def test_a_text_inside_the_window_is_encoded_as_by_the_plain_model(llama: Any, text: torch.Tensor):
    with torch.no_grad():
        expected = llama(text[None, :60]).logits[0, 50:]
    with LongContext(llama, config=config()) as lc, torch.no_grad():
        memory = lc.encode(text[:50])
        got = llama(text[None, 50:60], past_key_values=lc.cache(memory)).logits[0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_the_first_layers_keys_equal_those_of_stream_encoding(llama: Any, text: torch.Tensor):
    # the first layer's keys depend on their token alone, so both ways must agree on them, and on their order
    with LongContext(llama, config=config()) as lc:
        parallel = lc.encode(text).rows[0]
    with LongContext(llama, config=config(encoding="stream")) as lc:
        stream = lc.encode(text).rows[0]
    assert len(parallel.far[0].span) == len(stream.far[0].span)
    for ours, theirs in ((parallel.sinks, stream.sinks), (parallel.far[0].span, stream.far[0].span)):
        torch.testing.assert_close(ours.keys, theirs.keys, atol=1e-5, rtol=0)
    torch.testing.assert_close(parallel.local.values, stream.local.values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("positions", ["contiguous", "native"])
def test_pieces_encoded_in_any_order_are_put_together_in_theirs(llama: Any, text: torch.Tensor, positions: Any):
    with LongContext(llama, config=config(positions=positions)) as lc:
        make = lc.decoder().make
        whole = lc.encode(text)
        cut = list(pieces(text.numpy(), make.settings))
        random.Random(0).shuffle(cut)
        done = sorted((encode_piece(llama, make, piece) for piece in cut), key=lambda piece: piece.begin)
        rows = assemble(make.rows(), done, lambda num_tokens: None)
        for ours, theirs in zip(rows, whole.rows, strict=True):
            torch.testing.assert_close(ours.far[0].span.keys, theirs.far[0].span.keys)
            torch.testing.assert_close(ours.local.keys, theirs.local.keys)
        lc.append(whole, text[:40])
        assert len(whole) == 540
        assert len(lc.generate(whole, prompt=text[:5], max_new_tokens=5, do_sample=False).token_ids) == 5
