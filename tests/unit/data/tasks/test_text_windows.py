"""Windows of text: next tokens as labels, documents in one split, few documents cut by position."""

import re
from pathlib import Path

import numpy as np
import pytest

from hsokv_ray.data.tasks import SPLITS, TextWindows, WindowConfig
from hsokv_ray.errors import DataError

SMALL = {"vocab_size": 320, "seq_len": 16}


def test_labels_are_the_next_tokens_and_windows_spell_the_text(corpus: Path) -> None:
    task = TextWindows(WindowConfig(source=str(corpus), **SMALL))
    assert not task.is_by_position
    for split in SPLITS:
        examples = task.splits(0).of(split)
        assert examples.inputs.shape == examples.labels.shape == (len(examples), 16)
        assert (examples.inputs[:, 1:] == examples.labels[:, :-1]).all()
    text = corpus.read_text()
    pieces = task.tokenizer.decode(task.splits(0).test.inputs[0]).split("<|endoftext|>")
    assert all(piece in text for piece in pieces)


def test_documents_lie_in_one_split(corpus: Path) -> None:
    config = WindowConfig(source=str(corpus), held_out=0.2, vocab_size=320, seq_len=200)
    task = TextWindows(config)
    documents = {split: set() for split in SPLITS}
    for split in SPLITS:
        for row in task.splits(0).of(split).inputs:
            # Each document begins with its own number; the first and the last one of a window are cut.
            parts = task.tokenizer.decode(row).split("<|endoftext|>")[1:-1]
            documents[split] |= {part.split()[0] for part in parts}
    assert all(documents.values())
    assert not documents["train"] & documents["test"]
    assert not documents["validation"] & documents["test"]


def test_a_few_documents_are_each_cut_by_position(tmp_path: Path) -> None:
    (tmp_path / "page.txt").write_text(" ".join(f"word{i:04d}" for i in range(400)))
    task = TextWindows(WindowConfig(source=str(tmp_path / "page.txt"), **SMALL))
    assert task.is_by_position
    numbers = {}
    for split in SPLITS:
        text = " ".join(task.tokenizer.decode(row) for row in task.splits(0).of(split).inputs)
        numbers[split] = [int(word[4:]) for word in text.split() if re.fullmatch(r"word\d{4}", word)]
    assert max(numbers["train"]) <= 320 <= min(numbers["validation"])
    assert max(numbers["validation"]) <= 360 <= min(numbers["test"])


def test_overlapping_windows_are_for_training_only(corpus: Path) -> None:
    plain = TextWindows(WindowConfig(source=str(corpus), **SMALL)).splits(0)
    dense = TextWindows(WindowConfig(source=str(corpus), stride=8, **SMALL)).splits(0)
    assert len(dense.train) > 1.5 * len(plain.train)
    assert dense.test.digest == plain.test.digest
    few = TextWindows(WindowConfig(source=str(corpus), max_windows=10, **SMALL)).splits(0)
    assert (len(few.train), len(few.test)) == (10, 1)
    assert plain.train.digest == TextWindows(WindowConfig(source=str(corpus), **SMALL)).splits(0).train.digest


def test_too_little_text_and_missing_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("only a few words here")
    with pytest.raises(DataError, match="a window takes 17|no text falls"):
        TextWindows(WindowConfig(source=str(path), **SMALL))
    with pytest.raises(DataError, match=r"nowhere\.txt"):
        TextWindows(WindowConfig(source=str(tmp_path / "nowhere.txt"), **SMALL))


def test_a_split_without_any_document_is_named(corpus: Path) -> None:
    with pytest.raises(DataError, match="no text falls into (validation|test)"):
        TextWindows(WindowConfig(source=str(corpus), held_out=1e-6, **SMALL))


def test_arrays_are_64_bit_integers(corpus: Path) -> None:
    splits = TextWindows(WindowConfig(source=str(corpus), **SMALL)).splits(1)
    assert splits.train.inputs.dtype == splits.train.labels.dtype == np.int64
    assert splits.num_labels > splits.train.inputs.max()
