"""What of a stream is sent together, and how often."""

import os

from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.inference.engine.events import ChoiceEnded, Event, Piece, Started, TokenLogprob
from serve.gathering import merged, rest_s

PIECES = st.builds(
    lambda choice, token: Piece(choice, f"<{token}>", (token,), (TokenLogprob(token, f"<{token}>", -1.0),)),
    st.integers(0, 2),
    st.integers(0, 9),
)


@given(st.lists(PIECES, max_size=30), st.lists(st.integers(0, 2), unique=True))
def test_pieces_of_a_choice_become_one_and_nothing_is_lost(pieces: list[Piece], ended: list[int]) -> None:
    events: list[Event] = [Started(1, 0, 0, 0.0), *pieces, *(ChoiceEnded(choice, "stop") for choice in ended)]
    result = merged(events)
    assert [event for event in result if not isinstance(event, Piece)] == [
        event for event in events if not isinstance(event, Piece)
    ]
    whole = [event for event in result if isinstance(event, Piece)]
    assert len({piece.choice for piece in whole}) == len(whole)
    for choice in {piece.choice for piece in pieces}:
        [one] = [piece for piece in whole if piece.choice == choice]
        its = [piece for piece in pieces if piece.choice == choice]
        assert one.text == "".join(piece.text for piece in its)
        assert one.token_ids == tuple(token for piece in its for token in piece.token_ids)
        assert one.logprobs == tuple(score for piece in its for score in piece.logprobs or ())
    assert all(
        result.index(event) > result.index(piece) for event in result[len(result) - len(ended) :] for piece in whole
    )


@given(st.floats(0.001, 2), st.integers(0, 10_000))
def test_streams_share_the_messages_and_none_waits_past_a_quarter_of_a_second_for_the_others(
    interval_s: float, num_streams: int
) -> None:
    found = rest_s(interval_s, num_streams)
    assert interval_s <= found <= max(interval_s, 0.25)
    assert found == interval_s or found == 0.25 or num_streams / found <= 31.3 * (os.cpu_count() or 1)


def test_without_an_interval_nothing_gathers() -> None:
    assert rest_s(0, 100) == 0
