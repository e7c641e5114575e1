"""Stop strings are found however the text is cut."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.inference.engine.stops import StopStrings

LETTERS = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4).map(tuple)


def brute_force(text: str, stops: tuple[str, ...]) -> str:
    """Return the text before the stop string that is complete first; of those, before the one that begins first."""
    for end in range(len(text) + 1):
        places = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if places:
            return text[: min(places)]
    return text


@settings(max_examples=500)
@given(parts=st.lists(LETTERS, max_size=8), stops=STOPS)
def test_the_text_ends_before_the_first_stop_string(parts: list[str], stops: tuple[str, ...]):
    watch, shown = StopStrings(stops), ""
    for part in parts:
        shown += watch.step(part)
        assert not any(stop in shown for stop in stops)
        if watch.found:
            break
    shown += watch.end()
    text = "".join(parts)
    assert watch.found == any(stop in text for stop in stops)
    # within one part several may be complete at once: then the one that begins first counts
    allowed = {text[: text.find(stop)] for stop in stops if stop in text} or {text}
    assert shown in allowed
    if all(len(part) == 1 for part in parts):
        assert shown == brute_force(text, stops)


@settings(max_examples=300)
@given(text=LETTERS, stops=STOPS)
def test_what_is_held_back_is_no_more_than_a_stop_string_needs(text: str, stops: tuple[str, ...]):
    watch, shown = StopStrings(stops), ""
    for letter in text:
        shown += watch.step(letter)
        if watch.found:
            return
    held = text[len(shown) :]
    assert shown + held == text
    assert not held or any(stop.startswith(held) for stop in stops)


def test_without_stop_strings_everything_passes_at_once():
    assert StopStrings(()).step("abc") == "abc"
