"""CIFAR-10 out of every form it comes in, and the stream of five tasks."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hsokv_ray.data.tasks import SplitCifar, load_cifar10
from hsokv_ray.errors import DataError

COUNTS = {"train": 200, "test": 30}


@pytest.fixture
def images() -> dict[str, np.ndarray]:
    """Smooth images, which JPEG keeps well; all different."""
    rng = np.random.default_rng(0)
    corners = {split: rng.integers(256, size=(n, 2, 2, 3), dtype=np.uint8) for split, n in COUNTS.items()}
    return {
        split: np.stack([np.asarray(Image.fromarray(c).resize((32, 32), Image.Resampling.BILINEAR)) for c in rows])
        for split, rows in corners.items()
    }


def _labels(split: str) -> np.ndarray:
    return np.arange(COUNTS[split]) % 10


def _write_npz(folder: Path, images: dict[str, np.ndarray], *, offset: int = 0) -> Path:
    for split, rows in images.items():
        streams = []
        for row in rows:
            out = io.BytesIO()
            Image.fromarray(row).save(out, "JPEG", quality=95)
            streams.append(out.getvalue())
        shared = 2  # every JPEG begins alike
        ends = np.cumsum([0] + [len(stream) - shared for stream in streams]) + offset
        np.savez(
            folder / f"cifar10_{split}_jpeg.npz",
            prefix=np.frombuffer(streams[0][:shared], np.uint8),
            jpeg=np.frombuffer(b"".join(stream[shared:] for stream in streams), np.uint8),
            offset=ends,
            label=_labels(split).astype(np.uint8),
        )
    return folder


def _write_binary(folder: Path, images: dict[str, np.ndarray]) -> Path:
    place = folder / "cifar-10-batches-bin"
    place.mkdir()
    for split, rows in images.items():
        content = np.c_[_labels(split).astype(np.uint8), rows.transpose(0, 3, 1, 2).reshape(len(rows), -1)]
        names = ["test_batch.bin"] if split == "test" else [f"data_batch_{i}.bin" for i in range(1, 6)]
        for name, part in zip(names, np.split(content, len(names)), strict=True):
            part.tofile(place / name)
    return folder


def _write_datasets(folder: Path, images: dict[str, np.ndarray]) -> Path:
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    tables = {
        split: datasets.Dataset.from_dict(
            {"img": [Image.fromarray(row) for row in rows], "label": _labels(split)}, features=features
        )
        for split, rows in images.items()
    }
    datasets.DatasetDict(tables).save_to_disk(str(folder / "cifar10"))
    return folder / "cifar10"


@pytest.mark.parametrize(
    ("write", "tolerance"),
    [(_write_npz, 12), (_write_binary, 0), (_write_datasets, 0)],
    ids=["npz", "binary", "datasets"],
)
def test_every_form_gives_the_same_images_in_the_same_order(tmp_path: Path, images, write, tolerance: int) -> None:
    cifar = load_cifar10(write(tmp_path, images))
    for split, examples in (("train", cifar.train), ("test", cifar.test)):
        assert np.abs(examples.inputs.astype(int) - images[split]).max() <= tolerance
        assert (examples.labels == _labels(split)).all()


def test_the_first_images_of_each_class_are_taken(tmp_path: Path, images) -> None:
    cifar = load_cifar10(_write_binary(tmp_path, images), train_per_class=3, test_per_class=1)
    assert (cifar.train.inputs == images["train"][:30]).all()
    assert np.bincount(cifar.test.labels).tolist() == [1] * 10
    with pytest.raises(DataError, match="got 20 images of airplane, 21 are asked for"):
        load_cifar10(tmp_path, train_per_class=21)


def test_five_tasks_of_two_classes_partition_every_split(tmp_path: Path, images) -> None:
    stream = SplitCifar.from_folder(_write_binary(tmp_path, images))
    experiences = stream.experiences(0)
    assert [e.classes for e in experiences] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    whole = stream.splits(0)
    for split, per_class in (("train", 18), ("validation", 2), ("test", 3)):
        assert np.bincount(whole.of(split).labels).tolist() == [per_class] * 10
        for e in experiences:
            assert set(e.splits.of(split).labels.tolist()) == set(e.classes)
        parts = [digest for e in experiences for digest in e.splits.of(split).digests()]
        assert sorted(parts) == sorted(whole.of(split).digests())
    assert stream.splits(0).train.digest == whole.train.digest != stream.splits(1).train.digest
    assert stream.splits(1).test.digest == whole.test.digest, "the test does not depend on the seed"


def test_images_of_the_test_and_of_validation_are_not_learnt(tmp_path: Path, images) -> None:
    images["train"][:5] = images["test"][:5]
    images["train"][100:110] = images["train"][:10]
    splits = SplitCifar.from_folder(_write_binary(tmp_path, images)).splits(0)  # raises where splits overlap
    assert len(splits.test) == 30
    assert not set(splits.train.digests()) & set(splits.test.digests())


def test_ten_classes_divide_into_1_2_5_or_10_tasks(tmp_path: Path, images) -> None:
    cifar = load_cifar10(_write_binary(tmp_path, images))
    assert SplitCifar(cifar, num_tasks=2).classes(1) == (5, 6, 7, 8, 9)
    with pytest.raises(DataError, match="got 3"):
        SplitCifar(cifar, num_tasks=3)


def test_missing_data_says_how_to_get_it(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz"):
            load_cifar10(folder)


def test_damaged_files_are_one_line(tmp_path: Path, images) -> None:
    path = _write_binary(tmp_path, images) / "cifar-10-batches-bin" / "test_batch.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="no whole number of images"):
        load_cifar10(tmp_path)
    path.write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(DataError, match=r"label 10 of example 0 is outside \[0, 9\]"):
        load_cifar10(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="test_batch.bin: missing"):
        load_cifar10(tmp_path)


def test_damaged_streams_are_one_line(tmp_path: Path, images) -> None:
    _write_npz(tmp_path, images, offset=1)
    with pytest.raises(DataError, match="offsets do not fit"):
        load_cifar10(tmp_path)
    (tmp_path / "cifar10_train_jpeg.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DataError, match="CIFAR-10 train cannot be read") as caught:
        load_cifar10(tmp_path)
    assert "\n" not in str(caught.value)
