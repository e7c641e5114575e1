"""The share of the time in which inputs are read."""

from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.inference.engine.turns import Turns

SECONDS = st.floats(0.001, 0.3)


@given(share=st.floats(0.05, 1), pieces=st.lists(SECONDS, min_size=80, max_size=80), step=SECONDS)
def test_pieces_take_their_share_of_the_time_up_to_a_piece_and_a_step(share: float, pieces: list[float], step: float):
    turns, reading, stepping = Turns(share), 0.0, 0.0
    for _ in range(5000):
        if not pieces:
            break
        if turns.is_reading(has_steps=True, has_pieces=True):
            reading += pieces[0]
            turns.read(pieces.pop(0))
        else:
            stepping += step
            turns.stepped(step)
    total = reading + stepping
    # the last piece is not paid back yet, and a step is longer than what is owed by less than a step for each piece
    assert reading <= share * total + 0.3 + 1e-9
    assert stepping <= (1 - share) * total + 80 * step


def test_whoever_is_alone_never_waits():
    turns = Turns(0.01)
    for _ in range(10):
        assert turns.is_reading(has_steps=False, has_pieces=True)
        turns.read(1.0)
        assert not turns.is_reading(has_steps=True, has_pieces=False)
        turns.stepped(0.1)


def test_what_was_read_while_nobody_waited_is_not_paid_back():
    turns = Turns(0.5)
    assert turns.is_reading(has_steps=False, has_pieces=True)
    turns.read(100.0)
    assert turns.is_reading(has_steps=True, has_pieces=True)
    turns.read(1.0)
    assert not turns.is_reading(has_steps=True, has_pieces=True)
