"""The generated rare words: nothing but the alignment of two vocabularies tells which word is meant."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.data.tasks import MIN_WORDS, Episode, RareWordConfig, RareWords, WordTokenizer
from hsokv_ray.data.tasks.lexicon import Lexicon
from hsokv_ray.data.tasks.word_tokenizer import NUM_SPECIAL
from hsokv_ray.data.tasks.words import BLANK, FUNCTION_WORDS, content_words, shares_form, words
from hsokv_ray.errors import ConfigError
from hsokv_ray.evaluation import wilson
from hsokv_ray.evaluation.baselines import (
    attribute_oracle,
    majority,
    random_embedding_nearest,
    string_match,
    tfidf_logistic_regression,
    tfidf_nearest,
)

CONFIGS = {
    "english": RareWordConfig(),
    "sampled": RareWordConfig(vocabulary="sampled"),
    "nameless": RareWordConfig(form="removed"),
    "large": RareWordConfig(vocabulary="sampled", num_attributes=4, num_values=12, num_synonyms=2),
}

BASELINES = {
    "majority": majority,
    "string match": string_match,
    "random embedding": lambda train, test: random_embedding_nearest(train, test, seed=0),
    "TF-IDF 1-NN": tfidf_nearest,
    "TF-IDF + LR": tfidf_logistic_regression,
}


@pytest.fixture(params=list(CONFIGS))
def task(request: pytest.FixtureRequest) -> RareWords:
    return RareWords(CONFIGS[request.param], seed=3)


def test_an_evaluation_has_200_different_words_of_which_none_was_seen(task: RareWords) -> None:
    episodes = task.evaluation("test", seed=0)
    asked = [_meaning(task.lexicon, text) for episode in episodes for text in episode.definitions]
    assert len(asked) == len(set(asked)) >= MIN_WORDS
    seen = {
        pair
        for episode in task.episodes("train", num_episodes=150, seed=0)
        for text in episode.definitions
        for pair in [_meaning(task.lexicon, text)[:2]]
    }
    assert not seen & {meaning[:2] for meaning in asked}
    assert {value for value, _ in seen} == set(range(task.config.num_values)), "every value is met in training"
    assert {value for _, value in seen} == set(range(task.config.num_values))


def test_the_splits_share_no_pair_of_the_first_two_attributes() -> None:
    task = RareWords(seed=1)
    grid = np.array(list(itertools.product(range(8), range(8), [0], [0], [0], [0])))
    splits = task.split_of(grid)
    assert [splits.count(name) for name in ("train", "validation", "test")] == [48, 8, 8]
    for name, expected in (("validation", 8), ("test", 8)):
        cells = grid[[split == name for split in splits]][:, :2]
        assert len(set(cells[:, 0])) == len(set(cells[:, 1])) == expected, "each value is held out once"


@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(sorted(CONFIGS)), split=st.sampled_from(["train", "test"]))
@settings(max_examples=20)
def test_no_query_shows_its_word_or_shares_a_content_word_with_its_definition(seed: int, name: str, split) -> None:
    (episode,) = RareWords(CONFIGS[name], seed=seed % 5).episodes(split, num_episodes=1, seed=seed)
    names = {name.lower() for name in episode.words}
    assert len(names) == episode.num_candidates
    for context in episode.contexts:
        assert words(context).count(BLANK) == 1
        assert not names & set(words(context)), "the surface form is absent"
    assert episode.shared_words() == [set()] * len(episode.labels)
    assert sorted(episode.labels.tolist()) == list(range(episode.num_candidates))


@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_the_two_vocabularies_share_no_content_word_and_no_form(seed: int) -> None:
    for name, config in CONFIGS.items():
        lexicon = RareWords(config, seed=seed).lexicon
        assert not lexicon.definition_vocabulary & lexicon.context_vocabulary
        assert not FUNCTION_WORDS & lexicon.meanings.keys()
        values = [value for attribute in lexicon.attributes for value in attribute.values]
        assert len(lexicon.meanings) == sum(len(v.definition_words) + len(v.context_words) for v in values), (
            f"{name}: a word for two values would make an answer ambiguous"
        )


def test_no_english_word_of_a_context_has_the_form_of_a_word_of_a_definition() -> None:
    lexicon = RareWords(seed=0).lexicon
    said, shown = ({word for word in lexicon.meanings if word in side} for side in _sides(lexicon))
    assert not [(a, b) for a in said for b in shown if shares_form(a, b)]
    templates = content_words(" ".join(text for a in lexicon.attributes for text in a.context_clauses))
    assert not templates & lexicon.meanings.keys(), "a carrier word that means a value would mislead"


def test_definitions_show_the_nonce_or_nothing(task: RareWords) -> None:
    (episode,) = task.episodes("train", num_episodes=1, seed=1)
    for name, text in zip(episode.words, episode.definitions, strict=True):
        assert (name in words(text)) == (task.config.form == "nonce")


def test_trivial_baselines_are_at_chance_and_the_oracle_is_perfect(task: RareWords) -> None:
    episodes = task.evaluation("test", seed=0, num_words=600)
    num_words = sum(len(episode.labels) for episode in episodes)
    for name, baseline in BASELINES.items():
        num_right = sum(int((baseline(e.support, e.queries) == e.labels).sum()) for e in episodes)
        # 1 in 20 by chance; the interval is wide enough that one in a million runs falls outside.
        score = wilson(num_right, num_words, level=1 - 1e-6)
        assert score.low < 0.05 < score.high, (name, score)
        assert score.mean < 0.1, (name, score)
    oracle = [attribute_oracle(e.support, e.queries, lexicon=task.lexicon) == e.labels for e in episodes]
    assert np.concatenate(oracle).all()


def test_string_match_finds_the_word_where_the_blank_is_filled_in() -> None:
    """The baseline can see a leak: otherwise being at chance would say nothing."""
    for episode in RareWords(seed=0).episodes("test", num_episodes=10, seed=0):
        leaked = [
            text.replace(BLANK, episode.words[label])
            for text, label in zip(episode.contexts, episode.labels.tolist(), strict=True)
        ]
        queries = type(episode.queries)("texts", np.array(leaked), episode.labels.copy())
        assert (string_match(episode.support, queries) == episode.labels).all()


def test_the_alignment_can_be_learnt_from_training_episodes() -> None:
    """Counting which words go together in training episodes answers most of the test: no meaning is needed for it."""
    task = RareWords(seed=0)
    train = task.episodes("train", num_episodes=600, seed=1)
    tokenizer = WordTokenizer.fit((t for e in train for t in (*e.definitions, *e.contexts)), min_count=20)
    assert tokenizer.vocab_size < 400, "nonces are left out"
    said, shown = (np.concatenate(bags) for bags in zip(*(_aligned(tokenizer, e) for e in train), strict=True))
    expected = shown.sum(axis=0)[:, None] * said.mean(axis=0)
    affinity = np.log((shown.T @ said + 1) / (expected + 1))
    right = []
    for episode in task.evaluation("test", seed=2):
        said, shown = _bags(tokenizer, episode)
        right.append(np.argmax(shown @ affinity @ said.T, axis=1) == episode.labels)
    assert np.concatenate(right).mean() > 0.8


def test_the_same_seed_gives_the_same_episodes_and_another_one_others() -> None:
    def digests(seed: int, task_seed: int = 0) -> list[str]:
        episodes = RareWords(CONFIGS["sampled"], seed=task_seed).evaluation("test", seed=seed)
        return [digest for e in episodes for digest in (e.support.digest, e.queries.digest)]

    assert digests(1) == digests(1)
    assert not set(digests(1)) & set(digests(2))
    assert not set(digests(1)) & set(digests(1, task_seed=1))


def test_nonces_are_new_in_every_episode() -> None:
    episodes = RareWords(seed=0).episodes("train", num_episodes=40, seed=0)
    names = [name for episode in episodes for name in episode.words]
    assert len(set(names)) > 0.97 * len(names)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_values": 9}, "give --vocabulary sampled"),
        ({"context_attributes": 7}, "at most as many as there are"),
        ({"num_candidates": 1}, "greater than or equal to 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(values, message) -> None:
    with pytest.raises(ConfigError, match=message):
        RareWordConfig(**values)


def test_too_few_words_to_measure_with_are_refused() -> None:
    with pytest.raises(ConfigError, match="give more --num-values"):
        RareWords(RareWordConfig(vocabulary="sampled", num_attributes=3, num_values=8), seed=0)
    with pytest.raises(ConfigError, match="an evaluation takes 200 to"):
        RareWords(seed=0).evaluation("test", seed=0, num_words=20)


def _meaning(lexicon: Lexicon, text: str) -> tuple[int, ...]:
    read = lexicon.read(text)
    return tuple(read[a] for a in range(len(lexicon.attributes)))


def _sides(lexicon: Lexicon) -> tuple[set[str], set[str]]:
    return lexicon.definition_vocabulary, lexicon.context_vocabulary


def _aligned(tokenizer: WordTokenizer, episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    said, shown = _bags(tokenizer, episode)
    return said[episode.labels], shown


def _bags(tokenizer: WordTokenizer, episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Return which words each definition and each context holds, [texts, vocabulary] of 0 and 1."""
    sides = []
    for texts in (episode.definitions, episode.contexts):
        ids = tokenizer.encode(texts).input_ids
        bags = np.zeros((len(ids), tokenizer.vocab_size))
        bags[np.arange(len(ids))[:, None], ids] = 1
        bags[:, :NUM_SPECIAL] = 0
        sides.append(bags)
    return sides[0], sides[1]
