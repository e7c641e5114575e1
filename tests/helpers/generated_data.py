"""Small data in the form of real sets, from which something can be learnt: GLUE's TSV, CIFAR-10's batches."""

from pathlib import Path

import numpy as np

SAID = (("dull", "poor", "flat"), ("bright", "fine", "warm"))
OTHERS = ("film", "story", "actor", "scene", "music", "night", "town", "voice", "light", "street")


def sentence(label: int, rng: np.random.Generator) -> str:
    """Return six words, two of which tell the label."""
    words = [*rng.choice(OTHERS, 4), *rng.choice(SAID[label], 2)]
    return " ".join(rng.permutation(words))


def write_glue(folder: Path) -> Path:
    """Write SST-2 and RTE, 300 examples to train and 100 to develop; return `folder`."""
    rng = np.random.default_rng(0)
    for name, head in (("SST-2", "sentence\tlabel"), ("RTE", "index\tsentence1\tsentence2\tlabel")):
        (folder / name).mkdir()
        for file, count in (("train.tsv", 300), ("dev.tsv", 100)):
            rows = [head]
            for i in range(count):
                first, second = sentence(i % 2, rng), sentence(i % 2, rng)
                said = ("entailment", "not_entailment")[i % 2]
                rows.append(f"{first}\t{i % 2}" if name == "SST-2" else f"{i}\t{first}\t{second}\t{said}")
            (folder / name / file).write_text("\n".join(rows) + "\n")
    return folder


def write_cifar(folder: Path, *, per_class: int, test_per_class: int) -> Path:
    """Write the six batches below `folder`; return the folder of the batches."""
    whole = folder / "cifar-10-batches-bin"
    whole.mkdir()
    rng = np.random.default_rng(0)
    for i in range(1, 6):
        write_images(whole / f"data_batch_{i}.bin", np.repeat(np.arange(10), per_class // 5), rng)
    write_images(whole / "test_batch.bin", np.repeat(np.arange(10), test_per_class), rng)
    return whole


def write_images(path: Path, labels: np.ndarray, rng: np.random.Generator) -> None:
    """Write rows of a binary batch: every class has its own stripes, under noise."""
    place = np.arange(32 * 32).reshape(32, 32)
    stripes = np.stack([np.sin(place % 32 * (1 + label % 5) / 4 + place // 32 * (label // 5)) for label in range(10)])
    planes = 128 + 60 * stripes[labels][:, None] + rng.normal(0, 40, (len(labels), 3, 32, 32))
    pixels = planes.clip(0, 255).astype(np.uint8).reshape(len(labels), -1)
    np.concatenate([labels.astype(np.uint8)[:, None], pixels], axis=1).tofile(path)
