"""A folder of vectors in an encoder's place."""

import json
from pathlib import Path

import numpy as np
import pytest

from hsokv_ray.errors import ConfigError, DataError
from hsokv_ray.memory import stored_vectors
from hsokv_ray.memory.encoders import open_encoder
from hsokv_ray.memory.stored_vectors import write_vectors

TEXTS = ["tea", "Tea ", "", "two\nlines", "é 🧠 \ud800 \u2028", "x" * 200]
VECTORS = np.random.default_rng(0).normal(size=(len(TEXTS), 5)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_vectors(tmp_path / "vectors", TEXTS, VECTORS)
    return tmp_path / "vectors"


def test_vectors_come_back_bit_for_bit_in_the_order_they_are_asked_for(folder: Path) -> None:
    encoder = open_encoder(f"vectors:{folder}")
    assert encoder.dim == 5
    order = [3, 1, 1, 5, 0, 4, 2]
    found = encoder.encode([TEXTS[i] for i in order])
    assert (type(found), found.dtype) == (np.ndarray, np.float32)
    np.testing.assert_array_equal(found, VECTORS[order])
    assert encoder([]).shape == (0, 5)
    assert encoder.count_tokens(["a b  c", ""]) == [3, 0]
    found += 1  # a copy: the file is not written
    np.testing.assert_array_equal(open_encoder(f"vectors:{folder}").encode(TEXTS), VECTORS)


def test_a_fingerprint_is_that_of_texts_and_vectors_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    before = open_encoder(f"vectors:{folder}").fingerprint
    changed = VECTORS.copy()
    changed[5, 4] += 1
    for name, texts, vectors in (
        ("same", TEXTS, VECTORS.astype(np.float64)),
        ("texts", [*TEXTS[:5], "y"], VECTORS),
        ("numbers", TEXTS, changed),
    ):
        write_vectors(tmp_path / name, texts, vectors)
        assert (open_encoder(f"vectors:{tmp_path / name}").fingerprint == before) == (name == "same")


def test_texts_without_a_vector_are_named_and_counted(folder: Path) -> None:
    encoder = open_encoder(f"vectors:{folder}")
    with pytest.raises(DataError, match=r"/vectors: no vector for 'TEA'; .* among 6: write a folder") as one:
        encoder.encode(["tea", "TEA", "TEA"])
    with pytest.raises(DataError, match=r"no vector for 'a\\nb' and 2 others") as three:
        encoder.encode(["a\nb", "tea", "b", "c", "b"])
    assert not any("\n" in str(error.value) for error in (one, three))


def arrays(folder: Path, value: np.ndarray) -> None:
    np.save(folder / "vectors.npy", value)


def lines(folder: Path, number: int, line: str) -> None:
    texts = (folder / "texts.jsonl").read_text().splitlines()
    (folder / "texts.jsonl").write_text("\n".join([*texts[:number], line, *texts[number + 1 :]]) + "\n")


NOT_FINITE = VECTORS.copy()
NOT_FINITE[4, 0] = np.nan
DAMAGE = {
    r"vectors\.npy: no such file; make the folder with": lambda folder: (folder / "vectors.npy").unlink(),
    r"texts\.jsonl: no such file": lambda folder: (folder / "texts.jsonl").unlink(),
    r"vectors\.npy: cannot be read": lambda folder: (folder / "vectors.npy").write_bytes(b"\x93NUMPY"),
    r"vectors\.npy: cannot be read .*object": lambda folder: arrays(folder, np.array([{}], dtype=object)),
    r"vectors\.npy: got float64; one array of float32": lambda folder: arrays(folder, VECTORS.astype(np.float64)),
    r"vectors\.npy: got shape \[30\]; \[n, dim\]": lambda folder: arrays(folder, VECTORS.reshape(-1)),
    r"vectors\.npy: got shape \[6, 0\]": lambda folder: arrays(folder, VECTORS[:, :0]),
    r"vectors\.npy: row 4 has a number that is not finite": lambda folder: arrays(folder, NOT_FINITE),
    r"texts\.jsonl: got 6 texts for 5 vectors": lambda folder: arrays(folder, VECTORS[:5]),
    r"texts\.jsonl:3: got b'nothing'; \{\"text\": \.\.\.\} is needed": lambda folder: lines(folder, 2, "nothing"),
    r"texts\.jsonl:3: got b'\[1\]'": lambda folder: lines(folder, 2, "[1]"),
    r"texts\.jsonl: row 2 has 3; a text is needed": lambda folder: lines(folder, 2, '{"text": 3}'),
    r"texts\.jsonl: rows 0 and 2 have the same text 'tea'": lambda folder: lines(folder, 2, '{"text": "tea"}'),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_folder_is_one_clear_line(folder: Path, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_vectors, "_ROWS", 3)
    DAMAGE[message](folder)
    with pytest.raises(DataError, match=message) as caught:
        open_encoder(f"vectors:{folder}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "vectors", "message"),
    [
        (TEXTS[:5], VECTORS, "5 texts for 6 vectors"),
        ([*TEXTS[:5], "tea"], VECTORS, "rows 0 and 5 have the same text 'tea'"),
        (TEXTS, VECTORS[0], r"shape \[5\]"),
        ([], VECTORS[:0], r"shape \[0, 5\]"),
        (TEXTS, NOT_FINITE, "row 4 has a number that is not finite"),
        (TEXTS, VECTORS * np.float64(1e300), "row 0 has a number that is not finite in float32"),
    ],
)
def test_what_cannot_be_read_again_is_not_written(
    tmp_path: Path, texts: list[str], vectors: np.ndarray, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write_vectors(tmp_path / "new", texts, vectors)
    assert not (tmp_path / "new").exists()


def test_vectors_that_are_there_are_not_overwritten(folder: Path) -> None:
    with pytest.raises(DataError, match="give a new one, or remove it"):
        write_vectors(folder, TEXTS, VECTORS + 1)
    np.testing.assert_array_equal(open_encoder(f"vectors:{folder}").encode(TEXTS), VECTORS)


def test_the_files_are_plain_numpy_and_json(tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", np.asfortranarray(VECTORS[:2]))
    (tmp_path / "texts.jsonl").write_text('{"text": "a", "id": 7}\n' + json.dumps({"text": "é"}))
    np.testing.assert_array_equal(open_encoder(f"vectors:{tmp_path}").encode(["é", "a"]), VECTORS[[1, 0]])


def test_no_folder_is_no_encoder() -> None:
    with pytest.raises(ConfigError, match="or vectors:FOLDER"):
        open_encoder("vectors:")
