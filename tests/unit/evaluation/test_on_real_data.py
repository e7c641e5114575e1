"""Reference figures on real data, each from a table or another measurement; the folder is named by HSOKV_DATA_DIR."""

from pathlib import Path

import numpy as np
import pytest

from hsokv_ray.data.tasks import (
    SPLITS,
    FewShotGlue,
    RealWords,
    SplitCifar,
    TextWindows,
    WindowConfig,
    read_chimera,
    read_definitional_nonces,
    read_rare_words,
)
from hsokv_ray.data.tasks.words import form_words
from hsokv_ray.evaluation import chimera_score, over_seeds, wilson
from hsokv_ray.evaluation.baselines import (
    majority,
    random_embedding_nearest,
    string_match,
    tfidf_logistic_regression,
)
from hsokv_ray.evaluation.scenarios import streaming_ridge_over_stream

pytestmark = pytest.mark.real_data


@pytest.mark.parametrize(
    ("name", "expected", "spread", "most_frequent"),
    [("SST-2", 57.2, 0.5, 50.9), ("MNLI", 34.3, 0.8, 35.4), ("RTE", 51.6, 2.4, 52.7), ("MRPC", 52.0, 1.6, 68.4)],
)
def test_tfidf_on_the_published_splits_gives_what_was_measured_elsewhere(
    real_data: Path, name: str, expected: float, spread: float, most_frequent: float
) -> None:
    task = FewShotGlue(name, real_data)
    assert task.source == "published LM-BFF splits"
    scores = []
    for seed in task.seeds:
        splits = task.splits(seed)
        assert np.bincount(splits.train.labels).tolist() == [16] * task.num_labels
        scores.append(100 * float((tfidf_logistic_regression(splits.train, splits.test) == splits.test.labels).mean()))
    score = over_seeds(scores)
    assert score.mean == pytest.approx(expected, abs=0.3)
    assert np.std(scores, ddof=1) == pytest.approx(spread, abs=0.3)
    labels = task.splits(task.seeds[0]).test
    assert 100 * (majority(labels, labels) == labels.labels).mean() == pytest.approx(most_frequent, abs=0.05)


@pytest.mark.parametrize(("name", "num_test"), [("SST-2", 872), ("MNLI", 9815), ("RTE", 277), ("CoLA", 1043)])
def test_few_shot_examples_are_drawn_from_glues_files(real_data: Path, name: str, num_test: int) -> None:
    splits = FewShotGlue(name, real_data, shots=8).splits(0)
    assert splits.source.startswith("GLUE TSV files")
    assert len(splits.test) == num_test
    assert len(splits.train) == len(splits.validation) == 8 * splits.num_labels


def test_the_streaming_ridge_on_patches_reaches_its_level_with_300_images_a_class(real_data: Path) -> None:
    """The reference (100 filters, 1,000 training images per class, 10,000 test images) is 61.2 class-IL, 88.1 task-IL.

    Here 300 per class and 2,000 test images: fewer images give less, but far more than chance, 10 and 50.
    """
    stream = SplitCifar.from_folder(real_data / "cifar10", train_per_class=300, test_per_class=200).experiences(0)
    found = streaming_ridge_over_stream(stream, seed=0, num_filters=100)
    assert 0.52 < found.class_il.average_accuracy < 0.62
    assert 0.83 < found.task_il.average_accuracy < 0.89
    assert found.class_il.backward_transfer < -0.1, "the set of labels grows"
    assert abs(found.task_il.backward_transfer) < 0.1


def test_real_rare_words_hide_their_form_and_trivial_baselines_find_little(real_data: Path) -> None:
    found = read_rare_words(real_data)
    assert len(found.words) + found.num_dropped == 6419
    assert len(found.words) > 6000
    for word in found.words[::10]:
        assert not any(form_words(text, word.word) for text in (word.definition, *word.contexts))
    episodes = RealWords(found.words, name="rare_words", seed=0).episodes("test", seed=0, num_words=1000)
    # Chance is 5 %; frozen MiniLM vectors give 35.9 % (1 of 20), with the word left in 93.8 %.
    for baseline in (string_match, lambda a, b: random_embedding_nearest(a, b, seed=0)):
        num_right = sum(int((baseline(e.support, e.queries) == e.labels).sum()) for e in episodes)
        assert wilson(num_right, 1000).high < 0.2


def test_chimera_and_definitional_nonce_have_their_published_sizes(real_data: Path) -> None:
    for num_sentences in (2, 4, 6):
        sizes = {p: len(read_chimera(real_data, num_sentences=num_sentences, part=p)) for p in ("train", "test")}
        assert sizes == {"train": 220, "test": 110}
    nonces = {part: read_definitional_nonces(real_data, part) for part in ("train", "test")}
    assert [len(n.nonces) + n.num_dropped for n in nonces.values()] == [700, 300]
    test = read_chimera(real_data, num_sentences=4, part="test")
    rng = np.random.default_rng(0)
    score = chimera_score(test, [rng.random(len(c.probes)) for c in test])
    assert score.low < 0 < score.high, "random similarities agree with nobody"


def test_windows_of_shakespeare(real_data: Path) -> None:
    config = WindowConfig(source=str(real_data / "tinyshakespeare"), vocab_size=1024, max_windows=2000)
    splits = TextWindows(config).splits(0)
    assert [len(splits.of(split)) for split in SPLITS][0] == 2000
    assert len(splits.test) > 50
