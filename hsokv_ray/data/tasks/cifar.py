"""CIFAR-10 (Krizhevsky 2009) out of a folder: JPEG streams in npz, the binary batches, or a folder of `datasets`."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hsokv_ray.data.tasks.base import Examples, check_labels
from hsokv_ray.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_BINARY = "cifar-10-batches-bin"
_ROW_BYTES = 1 + 3 * 32 * 32
_HOW = (
    f"give a folder with cifar10_train_jpeg.npz and cifar10_test_jpeg.npz, with {_BINARY} (unpack "
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz), or with a data set of `datasets` (cifar10)"
)


@dataclass(frozen=True, eq=False)
class Cifar10:
    """The images, uint8 [n, 32, 32, 3], and labels 0 to 9."""

    train: Examples
    test: Examples
    source: str
    """How they were stored; JPEG streams are slightly other images than the original ones."""


def load_cifar10(
    folder: str | Path, *, train_per_class: int | None = None, test_per_class: int | None = None
) -> Cifar10:
    """Read CIFAR-10 from `folder`.

    Args:
        folder: holds the npz files with JPEG streams (keys prefix, jpeg, offset, label), or `cifar-10-batches-bin` (or
            is it), or is a folder of `datasets` with the splits train and test.
        train_per_class, test_per_class: the first so many images of each class in the order of the files; None: all.

    Raises `DataError` where there is nothing to read, a file is damaged, or a class has fewer images than asked for.
    """
    folder = Path(folder).expanduser()
    source, read = _reader(folder)
    sets = {}
    for split, per_class in (("train", train_per_class), ("test", test_per_class)):
        try:
            sets[split] = read(folder, split, per_class)
        except DataError:
            raise
        # Readers of zip files, images and parquet raise their own exceptions, with no common base.
        except Exception as error:
            cause = " ".join(str(error).split())[:200]
            raise DataError(f"{folder}: CIFAR-10 {split} cannot be read ({cause}); {_HOW}") from error
    return Cifar10(**sets, source=source)


def first_of_each(labels: np.ndarray, per_class: int | None, *, where: str) -> np.ndarray:
    """Return the positions of the first `per_class` examples of each class, in their order; None: of all.

    Raises `DataError` for a label outside 0 to 9 or a class with too few examples.
    """
    check_labels(labels, len(CLASSES), where=where)
    if per_class is None:
        return np.arange(len(labels))
    counts = np.bincount(labels, minlength=len(CLASSES))
    if counts.min() < per_class:
        short = int(counts.argmin())
        got = f"{counts[short]} images of {CLASSES[short]}"
        raise DataError(f"{where}: got {got}, {per_class} are asked for; ask for fewer images per class")
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(len(CLASSES))]))


def _reader(folder: Path) -> tuple[str, Any]:
    if not folder.is_dir():
        raise DataError(f"CIFAR-10: there is no folder {str(folder)!r}; {_HOW}")
    if (folder / "cifar10_train_jpeg.npz").is_file():
        return "JPEG streams", _from_npz
    if folder.name == _BINARY or (folder / _BINARY).is_dir():
        return "binary batches", _from_binary
    if any(folder.glob("dataset_*.json")) or any(folder.rglob("*.parquet")):
        return "datasets folder", _from_datasets
    raise DataError(f"CIFAR-10: {str(folder)!r} holds none of the forms of the data; {_HOW}")


def _from_npz(folder: Path, split: str, per_class: int | None) -> Examples:
    path = folder / f"cifar10_{split}_jpeg.npz"
    with np.load(path, allow_pickle=False) as file:
        prefix, jpeg, offset, labels = (file[name] for name in ("prefix", "jpeg", "offset", "label"))
    labels = labels.astype(np.int64)
    if len(offset) != len(labels) + 1 or offset[0] != 0 or offset[-1] != len(jpeg) or (np.diff(offset) <= 0).any():
        raise DataError(f"{path}: offsets do not fit {len(labels)} labels and {len(jpeg)} bytes; get the file again")
    picked = first_of_each(labels, per_class, where=str(path))
    head = prefix.tobytes()
    images = [_decode(head + jpeg[offset[i] : offset[i + 1]].tobytes()) for i in picked]
    return _examples(images, labels[picked])


def _from_binary(folder: Path, split: str, per_class: int | None) -> Examples:
    folder = folder if folder.name == _BINARY else folder / _BINARY
    names = ["test_batch.bin"] if split == "test" else [f"data_batch_{i}.bin" for i in range(1, 6)]
    rows = np.concatenate([_rows(folder / name) for name in names])
    labels = rows[:, 0].astype(np.int64)
    picked = first_of_each(labels, per_class, where=f"{folder} {split}")
    # Stored as the red, the green and the blue plane.
    images = rows[picked, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return _examples(images, labels[picked])


def _rows(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"{path}: missing; {_HOW}")
    content = np.fromfile(path, dtype=np.uint8)
    if not len(content) or len(content) % _ROW_BYTES:
        raise DataError(f"{path}: {len(content)} bytes are no whole number of images; get the file again")
    return content.reshape(-1, _ROW_BYTES)


def _from_datasets(folder: Path, split: str, per_class: int | None) -> Examples:
    import datasets

    saved = any(folder.glob("dataset_*.json"))
    table: Any = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder))
    if split not in table:
        raise DataError(f"{folder}: there is no split {split!r} but {', '.join(table)}; {_HOW}")
    columns = table[split].column_names
    label_column = next((name for name in ("label", "labels", "fine_label") if name in columns), None)
    image_column = next((name for name in ("img", "image") if name in columns), None)
    if label_column is None or image_column is None:
        raise DataError(f"{folder}: got the columns {', '.join(columns)}; img and label are needed")
    labels = np.array(table[split][label_column], dtype=np.int64)
    picked = first_of_each(labels, per_class, where=f"{folder} {split}")
    return _examples(_decoded(table[split].select(picked)[image_column]), labels[picked])


def _decoded(images: Any) -> Iterator[np.ndarray]:
    for image in images:
        yield np.asarray(image.convert("RGB"))


def _decode(data: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _examples(images: Any, labels: np.ndarray) -> Examples:
    stacked = np.ascontiguousarray(images if isinstance(images, np.ndarray) else np.stack(list(images)))
    if stacked.shape[1:] != (32, 32, 3):
        raise DataError(f"CIFAR-10: got images of shape {list(stacked.shape[1:])}; 32 x 32 x 3 is needed; {_HOW}")
    return Examples("images", stacked.astype(np.uint8, copy=False), labels)
