"""Text that comes token by token is the text of all tokens at once."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.inference.engine.detokenise import Detokenizer, decoder_of
from hsokv_ray.inference.loading import LoadedModel

TOKENS = st.lists(st.integers(0, 280), max_size=120)


def pieces(decode: Any, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(decode)
    return [*(detokenizer.step(token) for token in ids), detokenizer.end()]


@settings(max_examples=300)
@given(ids=TOKENS)
def test_any_tokens_come_out_as_they_decode_at_once(loaded: LoadedModel, ids: list[int]):
    assert "".join(pieces(decoder_of(loaded.tokenizer), ids)) == loaded.tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=300)
@given(text=st.text(max_size=60))
def test_characters_of_many_bytes_are_never_split(loaded: LoadedModel, text: str):
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    got = pieces(decoder_of(loaded.tokenizer), ids)
    assert "".join(got) == loaded.tokenizer.decode(ids, skip_special_tokens=True)
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in got)


def test_broken_bytes_for_ever_are_given_as_they_come_and_the_next_character_is_whole(loaded: LoadedModel):
    (byte,) = loaded.tokenizer.convert_tokens_to_ids(["Ģ"])  # 0x80, which begins no character
    whole = loaded.tokenizer("é", add_special_tokens=False)["input_ids"]
    ids = [byte] * 45 + whole
    got = pieces(decoder_of(loaded.tokenizer), ids)
    assert "".join(got) == loaded.tokenizer.decode(ids)
    assert "".join(got[:40])


def test_the_work_of_a_step_does_not_grow_with_the_text(loaded: LoadedModel):
    decode, sizes = decoder_of(loaded.tokenizer), []

    def counting(ids: Any) -> str:
        sizes.append(len(ids))
        return decode(ids)

    detokenizer = Detokenizer(counting)
    special, broken = loaded.tokenizer.eos_token_id, loaded.tokenizer.convert_tokens_to_ids("Ģ")
    for token in [5, 9, 200] * 100 + [special] * 100 + [broken] * 100:
        detokenizer.step(token)
    assert max(sizes) <= 40


def test_the_slow_path_gives_the_same_text(loaded: LoadedModel):
    class Slow:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return loaded.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    ids = loaded.tokenizer("naïve – 漢字 ✓", add_special_tokens=False)["input_ids"]
    assert pieces(decoder_of(Slow()), ids) == pieces(decoder_of(loaded.tokenizer), ids)
