"""GLUE examples from files or through `datasets`: the published 16-shot splits, TSV folders, parquet, a data set."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsokv_ray.data.tasks.base import Examples, text_examples
from hsokv_ray.data.tasks.files import find, read_json_lines, read_tsv
from hsokv_ray.data.tasks.glue_tasks import GlueTask
from hsokv_ray.errors import DataError

HUB_NAME = "nyu-mll/glue"
PUBLISHED_FOLDER = "glue_16shot"
PUBLISHED_FILES = ("kshot16.jsonl", "official_dev.jsonl")


@dataclass(frozen=True, eq=False)
class Pools:
    """Where few-shot examples are drawn from, and what they are tested on."""

    train: Examples
    test: Examples
    source: str


def published_folder(folder: Path) -> Path | None:
    """Return the folder with the published splits: `folder` or its glue_16shot; None where neither has them."""
    places = (folder, folder / PUBLISHED_FOLDER)
    return next((place for place in places if all(find(place, name) for name in PUBLISHED_FILES)), None)


def read_published(folder: Path, task: GlueTask) -> dict[tuple[int, str], Examples]:
    """Return (seed, "train" or "dev") -> examples, as LM-BFF (Gao et al. 2021) drew them."""
    path = find(folder, PUBLISHED_FILES[0])
    assert path is not None
    rows: dict[tuple[int, str], list[tuple[Any, int]]] = {}
    for row in read_json_lines(path, fields=("task", "seed", "split", "text_a", "label")):
        if row["task"] == task.name:
            rows.setdefault((int(row["seed"]), row["split"]), []).append(_row(row, task, path))
    return {key: _examples(found) for key, found in rows.items()}


def read_published_test(folder: Path, task: GlueTask) -> Examples | None:
    """Return GLUE's development set as it stands beside the published splits; None where this task's is not there."""
    path = find(folder, PUBLISHED_FILES[1])
    assert path is not None
    rows = [
        _row(row, task, path)
        for row in read_json_lines(path, fields=("task", "text_a", "label"))
        if row["task"] == task.name
    ]
    return _examples(rows) if rows else None


def read_tsv_pools(folder: Path, task: GlueTask) -> Pools | None:
    """Return what GLUE's TSV files hold, in `folder` or one named after the task; None: not there."""
    for place in (folder, *(folder / name for name in task.folders)):
        train, dev = find(place, *task.train_files), find(place, *task.dev_files)
        if train and dev:
            return Pools(
                read_tsv_examples(train, task), read_tsv_examples(dev, task), f"GLUE TSV files in {place.name}"
            )
    return None


def read_tsv_test(folder: Path, task: GlueTask) -> Examples | None:
    """Return the development set of `read_tsv_pools` alone; None where it is not there."""
    for place in (folder, *(folder / name for name in task.folders)):
        if dev := find(place, *task.dev_files):
            return read_tsv_examples(dev, task)
    return None


def read_tsv_examples(path: Path, task: GlueTask) -> Examples:
    """Read one TSV file of a task. Raises `DataError` where columns are missing, rows short or labels unknown."""
    rows = read_tsv(path, num_columns=task.num_columns)
    if task.headless is None:
        label_place, text_places = _headed(path, task, rows)
    else:
        label_place, text_place = task.headless
        text_places = (text_place,)
    found = []
    for number, row in enumerate(rows, start=1 if task.headless else 2):
        texts = tuple(row[place] for place in text_places)
        label = task.label(row[label_place], where=f"{path}:{number}")
        found.append((texts[0] if len(text_places) == 1 else texts, label))
    return _examples(found)


def read_parquet_pools(folder: Path, task: GlueTask) -> Pools | None:
    """Return what parquet files named as in nyu-mll/glue hold, such as train-00000-of-00001.parquet; None: not there.

    They may be in a folder named after the task, as in a clone of it, in `folder` itself, or in its data.

    Raises:
        DataError: they cannot be read, or lack columns or labels.
    """
    for place in (*(folder / name for name in (task.hub_config, *task.folders)), folder, folder / "data"):
        train, test = (sorted(place.glob(f"{split}-*.parquet")) for split in ("train", task.hub_test))
        if train and test:
            source = f"parquet files in {place.name}"
            return Pools(_parquet_examples(train, task), _parquet_examples(test, task), source)
    return None


def read_hub_pools(task: GlueTask, source: str) -> Pools:
    """Read a task through `datasets`.

    Args:
        source: name on the hub, or a local folder with the splits train and validation (validation_matched).

    Raises `DataError` where it cannot be loaded, or lacks splits, columns or labels.
    """
    import datasets

    try:
        local = Path(source).expanduser().is_dir()
        if local and any(Path(source).expanduser().glob("dataset_dict.json")):
            loaded: Any = datasets.load_from_disk(str(Path(source).expanduser()))
        else:
            loaded = datasets.load_dataset(source, None if local else task.hub_config)
        where = f"{task.name} of datasets"
        train, test = (_hub_rows(loaded[split], task, where) for split in ("train", task.hub_test))
        return Pools(_examples(train), _examples(test), f"datasets: {source}")
    except DataError:
        raise
    # The hub's libraries raise their own, their HTTP client's and plain KeyErrors, with no common base.
    except Exception as error:
        cause = " ".join(str(error).split())[:200]
        raise DataError(
            f"{task.name}: cannot load {source!r} ({type(error).__name__}: {cause}); give a local folder with GLUE's "
            f"{task.name}/{task.train_files[0]} and {task.dev_files[0]}"
        ) from error


def _headed(path: Path, task: GlueTask, rows: Iterator[list[str]]) -> tuple[int, tuple[int, ...]]:
    """Return the columns of label and texts, as the heading says."""
    head = next(rows, [])
    # GLUE's dev and train files name the columns alike, but the heading of the first may carry a byte order mark.
    names = [name.removeprefix("\ufeff").strip() for name in head]
    missing = [name for name in (*task.columns, task.label_column) if name not in names]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)} but {', '.join(names)}; get GLUE's {task.name} file")
    return names.index(task.label_column), tuple(names.index(name) for name in task.columns)


def _parquet_examples(paths: list[Path], task: GlueTask) -> Examples:
    return _examples([row for path in paths for row in _hub_rows(_parquet_columns(path, task), task, str(path))])


def _parquet_columns(path: Path, task: GlueTask) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [*task.hub_columns, "label"]
    try:
        return pq.read_table(path, columns=names).select(names).to_pydict()
    except (OSError, pa.ArrowException, KeyError) as error:
        cause = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: cannot be read ({cause}); parquet with {', '.join(names)} is needed (in a clone that holds "
            "pointers only: git lfs pull)"
        ) from None


def _hub_rows(table: Any, task: GlueTask, where: str) -> list[tuple[Any, int]]:
    columns = [table[name] for name in task.hub_columns]
    texts = columns[0] if len(columns) == 1 else zip(*columns, strict=True)
    labels = [task.label(str(label), where=where) for label in table["label"]]
    return list(zip(texts, labels, strict=True))


def _row(row: dict[str, Any], task: GlueTask, path: Path) -> tuple[Any, int]:
    label = task.label(str(row["label"]), where=f"{path}: {task.name}")
    second = row.get("text_b")
    return (row["text_a"] if second is None else (row["text_a"], second)), label


def _examples(rows: list[tuple[Any, int]]) -> Examples:
    return text_examples([text for text, _ in rows], [label for _, label in rows])
