"""Examples and splits: what fits, what leaks, what a digest depends on."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.data.tasks.base import Examples, Splits, text_examples, without_inputs_of
from hsokv_ray.errors import DataError


def _splits(train: Examples, validation: Examples, test: Examples, num_labels: int = 2) -> Splits:
    return Splits(name="toy", num_labels=num_labels, train=train, validation=validation, test=test)


def test_an_input_in_two_splits_is_refused_even_with_another_label_case_and_spacing() -> None:
    a, b = text_examples(["one", "two words"], [0, 1]), text_examples(["three"], [0])
    with pytest.raises(DataError, match="1 inputs occur in both train and test"):
        _splits(a, b, text_examples(["Two   WORDS "], [0]))


def test_pairs_leak_only_as_pairs() -> None:
    a, b = text_examples([("ab", "c")], [0]), text_examples([("a", "bc")], [0])
    splits = _splits(a, b, text_examples([("c", "ab")], [1]))
    with pytest.raises(DataError, match="both train and validation"):
        _splits(a, a, splits.test)


def test_labels_out_of_range_are_refused_with_their_place() -> None:
    a, b, c = (text_examples([text], [0]) for text in "abc")
    with pytest.raises(DataError, match=r"toy test: label 2 of example 1 is outside \[0, 1\]"):
        _splits(a, b, text_examples(["c", "d"], [0, 2]))
    with pytest.raises(DataError, match="labels count from 0"):
        text_examples(["c"], [-1])
    assert len(_splits(a, b, c).of("test")) == 1


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("texts", np.zeros(2)),
        ("pairs", np.array(["a", "b"])),
        ("tokens", np.zeros((2, 3))),
        ("vectors", np.zeros((2, 3), int)),
        ("images", np.zeros((2, 4, 4), np.uint8)),
    ],
)
def test_inputs_of_another_kind_are_refused(kind, inputs) -> None:
    with pytest.raises(DataError, match=f"{kind} are "):
        Examples(kind, inputs, np.zeros(2, np.int64))


def test_a_label_is_needed_for_every_input() -> None:
    with pytest.raises(DataError, match="one for each of the 2 inputs"):
        Examples("texts", np.array(["a", "b"]), np.zeros(3, np.int64))


@given(st.lists(st.text(min_size=1), min_size=2, max_size=8), st.data())
def test_a_digest_depends_on_order_and_labels_and_on_nothing_else(texts: list[str], data) -> None:
    labels = data.draw(st.lists(st.integers(0, 3), min_size=len(texts), max_size=len(texts)))
    examples = text_examples(texts, labels)
    assert examples.digest == text_examples(list(texts), list(labels)).digest
    assert examples.digest != text_examples(texts, [label + 1 for label in labels]).digest
    turned = examples.select(np.arange(len(texts))[::-1])
    assert turned.digests() == examples.digests()[::-1]


def test_inputs_of_others_can_be_taken_out() -> None:
    left = without_inputs_of(text_examples(["a", "b", "c"], [0, 1, 0]), text_examples(["B"], [0]))
    assert left.inputs.tolist() == ["a", "c"]
    assert left.labels.tolist() == [0, 0]


def test_arrays_cannot_be_changed() -> None:
    examples = text_examples(["a"], [0])
    with pytest.raises(ValueError, match="read-only"):
        examples.labels[0] = 1


def test_a_pair_of_vectors_becomes_both_their_difference_and_their_product() -> None:
    vectors = {"a": [1.0, 2.0], "b": [3.0, -1.0]}
    a, b, c = (text_examples([pair], [0]) for pair in [("a", "b"), ("b", "a"), ("a", "a")])
    encoded = _splits(a, b, c).with_vectors(lambda texts: np.array([vectors[text] for text in texts]))
    assert encoded.train.inputs.tolist() == [[1, 2, 3, -1, 2, 3, 3, -2]]
    with pytest.raises(DataError, match="only texts"):
        encoded.with_vectors(lambda texts: np.zeros((len(texts), 2)))


def test_texts_are_those_of_all_splits_each_once() -> None:
    a, b, c = (text_examples([pair], [0]) for pair in [("a", "b"), ("b", "a"), ("a", "c")])
    splits = _splits(a, b, c)
    assert splits.texts() == ["a", "b", "c"]
    assert _splits(text_examples(["x", "x"], [0, 0]), text_examples(["y"], [0]), text_examples(["z"], [0])).texts() == [
        "x", "y", "z",
    ]  # fmt: skip
    with pytest.raises(DataError, match="got vectors; only texts"):
        splits.with_vectors(lambda texts: np.array([[ord(text)] for text in texts])).texts()


def test_importing_the_tasks_loads_neither_torch_nor_ray_nor_scikit_learn() -> None:
    code = "import sys, hsokv_ray.data.tasks; print({'torch', 'ray', 'sklearn', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
