"""Real words as episodes: their form is hidden, what is lost is counted, damage is one clear line."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from hsokv_ray.data.tasks import (
    DefinedWord,
    RealWords,
    chimera_episode,
    make_episode,
    read_chimera,
    read_definitional_nonces,
    read_rare_words,
)
from hsokv_ray.data.tasks.episodes import Episode, dealt
from hsokv_ray.data.tasks.real_words import hide_form
from hsokv_ray.data.tasks.words import blank_out, content_words, shares_form, words
from hsokv_ray.errors import DataError
from hsokv_ray.evaluation import chimera_score


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("abatement", "abating", True),
        ("linear", "curvilinear", True),
        ("Jefferson", "jefferson's", True),
        ("berry", "berries", True),
        ("waxing", "wax", False),  # shorter than a stem: nothing is told from three letters
        ("cat", "category", False),
        ("ship", "stern", False),
    ],
)
def test_forms_are_shared_by_stem(a: str, b: str, expected: bool) -> None:
    assert shares_form(a, b) is shares_form(b, a) is expected


def test_content_words_leave_out_function_words_blanks_and_punctuation() -> None:
    assert content_words("The ___ of a SHIP's deck, don't!") == {"ship's", "deck", "don't"}
    assert words("a___b _c_ x-y") == ["a", "___", "b", "c", "x", "y"]


def test_the_form_is_hidden_in_definition_and_context() -> None:
    word = hide_form(
        "abatement", "the act of abating something", ["noise abatement laws", "it was abated at night", "no"]
    )
    assert word == DefinedWord("abatement", "the act of ___ something", ("noise ___ laws", "it was ___ at night"))
    assert hide_form("abatement", "abating", ["noise abatement"]) is None
    assert hide_form("abatement", "the act of stopping", ["no such word"]) is None
    assert blank_out("Abated? abatement's end", "abate", by="X") == "X? X end"


def _write_rare(path: Path, num_words: int = 60) -> None:
    rows = [
        {
            "word": _name(i),
            "senses": [{"definition": f"meaning number{i}", "examples": [f"here {_name(i)} stands {i}{i}"]}],
        }
        for i in range(num_words)
    ]
    rows.append({"word": "lost", "senses": [{"definition": "meaning", "examples": ["nothing here"]}]})
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _name(i: int) -> str:
    return "".join("bdfgklmnpr"[int(c)] + "aeiouaeiou"[int(c)] for c in f"{i:03d}")


def test_real_words_become_episodes_split_by_word(tmp_path: Path) -> None:
    _write_rare(tmp_path / "rare_words.jsonl.gz")
    found = read_rare_words(tmp_path)
    assert (len(found.words), found.num_dropped) == (60, 1)
    task = RealWords(found.words, name="rare_words", seed=0, num_candidates=6)
    asked = {split: {w.word for w in task.words(split)} for split in ("train", "validation", "test")}
    assert [len(names) for names in asked.values()] == [36, 12, 12]
    assert len(set.union(*asked.values())) == 60
    episodes = task.episodes("test", seed=1)
    assert {name for e in episodes for name in e.words} == asked["test"]
    for episode in episodes:
        for text, label in zip(episode.contexts, episode.labels.tolist(), strict=True):
            number = text.rsplit(maxsplit=1)[-1]
            assert episode.definitions[label].endswith(f"number{number[: len(number) // 2]}")
            assert not {name for name in episode.words if name in text}
    with pytest.raises(DataError, match="18 words are asked for, 12 are there"):
        task.episodes("test", seed=1, num_words=13)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "rare_words.jsonl:1: not JSON"),
        ('{"word": "a"}', "an object with word, senses"),
        ('{"word": "a", "senses": []}', "a sense with definition and examples"),
        ('{"word": "a", "senses": [{"definition": "x", "examples": []}]}', "no word can be used"),
    ],
)
def test_damaged_words_are_named_with_the_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "rare_words.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        read_rare_words(tmp_path)


def test_missing_folders_say_how_to_get_the_data(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"rare_words\.jsonl\.gz.*en-word\.net"):
            read_rare_words(folder)
        with pytest.raises(DataError, match="ALaCarte, data-nonces"):
            read_definitional_nonces(folder, "test")
        with pytest.raises(DataError, match="ALaCarte, data-chimeras"):
            read_chimera(folder, num_sentences=2, part="test")


def test_definitional_nonces_lose_words_whose_form_shows(tmp_path: Path) -> None:
    (tmp_path / "n2v.definitional.dataset.test.txt").write_text(
        "#comment\n\nusk\t___ is a small town in monmouthshire on the river \nhttps\t___ http over tls or httpsecure\n"
    )
    found = read_definitional_nonces(tmp_path, "test")
    assert ([n.word for n in found.nonces], found.num_dropped) == (["usk"], 1)
    assert found.halves() == [DefinedWord("usk", "is a small town", ("___ in monmouthshire on the river",))]
    (tmp_path / "n2v.definitional.dataset.train.txt").write_text("usk\n")
    with pytest.raises(DataError, match="'usk' has no definition"):
        read_definitional_nonces(tmp_path, "train")


def _write_chimera(folder: Path, *rows: str) -> Path:
    (folder / "chimera.l2.fixed.test.txt").write_text("\n".join(rows) + "\n")
    return folder


def test_chimeras_are_read_scored_and_made_into_an_episode(tmp_path: Path) -> None:
    rows = (
        "1\teat ___ raw @@ green___ grow\tapple,car,pear\t4,1,3.5",
        "2\tdrive ___ @@ the ___ stops\tbus,car,pear\t5,4,1",
        "3\tcook ___ @@ fry ___ now\tapple,car,pear\t4,1,3",
    )
    chimeras = read_chimera(_write_chimera(tmp_path, *rows), num_sentences=2, part="test")
    assert chimeras[0].sentences == ("eat ___ raw", "green___ grow")
    perfect, wrong = [c.ratings for c in chimeras], [[-r for r in c.ratings] for c in chimeras]
    assert chimera_score(chimeras, perfect).mean == pytest.approx(1)
    assert chimera_score(chimeras, wrong).mean == pytest.approx(-1)
    assert chimera_score(chimeras, [[0.5] * 3] * 3).mean == 0, "a constant ranks nothing"
    half = chimera_score(chimeras, [[1, 2, 3], perfect[1], perfect[2]])  # ranks 1 2 3 against 3 1 2: rho -0.5
    assert (half.mean, half.n) == (pytest.approx((-0.5 + 2) / 3), 3)
    with pytest.raises(DataError, match="for each of 3 probes"):
        chimera_score(chimeras, [[1, 2]] * 3)
    episode = chimera_episode(chimeras, seed=0)
    assert episode.num_candidates == 2, "two nonces with the same probes stand for one concept"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1\teat ___\tapple,car\t4", "2 probes, 1 ratings"),
        ("1\teat it\tapple\t4", "sentences with ___"),
        ("1\teat ___\tapple\thigh", "a rating is no number"),
        ("1\teat ___", "got 2 columns, 4 are needed"),
    ],
)
def test_damaged_chimeras_are_named_with_the_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_chimera(_write_chimera(tmp_path, row), num_sentences=2, part="test")


def test_an_episode_that_shows_its_word_or_asks_for_none_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="shows the word it asks for"):
        make_episode(["usk", "dax"], ["a town", "a dog"], [["see Usk now"], ["a ___"]], rng=rng)
    good = make_episode(["usk", "dax"], ["a town", "a dog"], [["see ___ now", "the ___"], []], rng=rng)
    assert sorted(good.contexts) == ["see ___ now", "the ___"]
    assert {good.words[label] for label in good.labels} == {"usk"}
    with pytest.raises(DataError, match="one text for each word"):
        Episode(good.words[:1], good.support, good.queries)


def test_words_are_dealt_once_each() -> None:
    groups = dealt(10, 3, num_words=None, rng=np.random.default_rng(0))
    assert [len(group) for group in groups] == [3, 3, 3]
    assert len(set(np.concatenate(groups).tolist())) == 9
    with pytest.raises(DataError, match="3 words are asked for, 2 are there"):
        dealt(2, 3, num_words=None, rng=np.random.default_rng(0))
