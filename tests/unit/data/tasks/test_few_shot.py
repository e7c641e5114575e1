"""Few-shot GLUE from every form of the data, generated small; what is missing or damaged is one clear line."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hsokv_ray.data.tasks import PUBLISHED_SEEDS, FewShotGlue
from hsokv_ray.data.tasks.glue_tasks import GLUE_TASKS
from hsokv_ray.errors import DataError

HEADS = {
    "SST-2": "sentence\tlabel",
    "MNLI": "index\tsentence1\tsentence2\tgold_label",
    "RTE": "index\tsentence1\tsentence2\tlabel",
    "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "CoLA": "",
}


def _row(name: str, i: int, label: int) -> str:
    said = GLUE_TASKS[name].labels[label]
    return {
        "SST-2": f'a "film {i}\t{label}',
        "MNLI": f"{i}\tpremise {i}\thypothesis {i}\t{said}",
        "RTE": f"{i}\tpremise {i}\thypothesis {i}\t{said}",
        "MRPC": f"{label}\t1\t2\tfirst {i}\tsecond {i}",
        "CoLA": f"gj04\t{label}\t*\tsentence {i}",
    }[name]


def _write_tsv(folder: Path, name: str, *, num_train: int = 60, num_test: int = 12) -> None:
    task = GLUE_TASKS[name]
    folder.mkdir(parents=True, exist_ok=True)
    for file, start, count in ((task.train_files[0], 0, num_train), (task.dev_files[0], 1000, num_test)):
        rows = [_row(name, start + i, i % len(task.labels)) for i in range(count)]
        (folder / file).write_text("\n".join(filter(None, [HEADS[name], *rows])) + "\n", encoding="utf-8")


def _write_published(folder: Path, *, name: str = "SST-2", with_test: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)

    def row(text: str, label: int) -> dict[str, object]:
        return {"task": name, "text_a": text, "text_b": None, "label": str(label)}

    rows = [
        row(f"{seed} {split} {i}", i % 2) | {"seed": seed, "split": split}
        for seed in PUBLISHED_SEEDS
        for split in ("train", "dev")
        for i in range(32)
    ]
    tests = [row(f"test {i}", 1) for i in range(9)]
    for file, content in (("kshot16.jsonl", rows), ("official_dev.jsonl", tests if with_test else [])):
        with gzip.open(folder / f"{file}.gz", "wt") as out:
            out.writelines(json.dumps(row) + "\n" for row in content)


@pytest.mark.parametrize("name", list(GLUE_TASKS))
def test_glues_own_files_give_k_examples_per_class_that_differ_from_the_test(tmp_path: Path, name: str) -> None:
    _write_tsv(tmp_path / name, name)
    task = FewShotGlue(name.lower(), tmp_path, shots=4)
    splits = task.splits(7)
    for examples in (splits.train, splits.validation):
        assert np.bincount(examples.labels).tolist() == [4] * task.num_labels
    assert len(splits.test) == 12
    assert splits.train.kind == ("texts" if name in ("SST-2", "CoLA") else "pairs")
    numbers = [int(str(np.ravel(text)[0]).split()[-1]) for text in splits.test.inputs]
    assert numbers == list(range(1000, 1012)), "the text is that of the text's column"
    assert splits.test.labels.tolist() == [i % task.num_labels for i in range(12)]
    assert task.splits(7).train.digest == splits.train.digest != task.splits(8).train.digest


def test_the_published_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    _write_published(tmp_path / "glue_16shot")
    for folder in (tmp_path, tmp_path / "glue_16shot"):
        task = FewShotGlue("SST-2", folder)
        assert task.source == "published LM-BFF splits"
        splits = task.splits(42)
        assert splits.train.inputs.tolist() == [f"42 train {i}" for i in range(32)]
        assert splits.validation.inputs.tolist() == [f"42 dev {i}" for i in range(32)]
        assert len(splits.test) == 9
    with pytest.raises(DataError, match="got seed 1; splits are published for 13, 21, 42, 87, 100"):
        task.splits(1)


def test_published_splits_without_a_test_set_say_where_to_put_one(tmp_path: Path) -> None:
    _write_published(tmp_path / "glue_16shot", with_test=False)
    with pytest.raises(DataError, match=r"put GLUE's dev\.tsv into .*SST-2"):
        FewShotGlue("SST-2", tmp_path)
    _write_tsv(tmp_path / "glue_sst2", "SST-2")
    assert len(FewShotGlue("SST-2", tmp_path).splits(13).test) == 12


def test_other_numbers_of_shots_are_drawn_from_glue(tmp_path: Path) -> None:
    _write_published(tmp_path / "glue_16shot")
    _write_tsv(tmp_path / "SST-2", "SST-2")
    assert FewShotGlue("SST-2", tmp_path, shots=8).source == "GLUE TSV files in SST-2"


def test_a_folder_of_datasets_is_read(tmp_path: Path) -> None:
    import datasets

    tables = {
        split: datasets.Dataset.from_dict(
            {"sentence": [f"{split} {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}
        )
        for split in ("train", "validation")
    }
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "saved"))
    splits = FewShotGlue("SST-2", tmp_path / "saved", shots=5).splits(0)
    assert (len(splits.train), len(splits.test)) == (10, 40)


def _write_parquet(folder: Path, name: str, *, num_shards: int = 1) -> None:
    task = GLUE_TASKS[name]
    folder.mkdir(parents=True, exist_ok=True)
    for split, label in (("train", 0), (task.hub_test, 0), ("test", -1)):
        for shard in range(num_shards):
            texts = {column: [f"{split} {column} {shard} {i}" for i in range(24)] for column in task.hub_columns}
            labels = [label or i % len(task.labels) for i in range(24)]
            table = pa.table({"idx": list(range(24)), **texts, "label": labels})
            pq.write_table(table, folder / f"{split}-{shard:05d}-of-{num_shards:05d}.parquet")


@pytest.mark.parametrize("place", ["{name}", "", "data"])
@pytest.mark.parametrize("name", list(GLUE_TASKS))
def test_parquet_is_read_where_a_clone_of_the_hubs_data_set_has_it(tmp_path: Path, name: str, place: str) -> None:
    folder = tmp_path / place.format(name=GLUE_TASKS[name].hub_config)
    _write_parquet(folder, name, num_shards=2)
    task = FewShotGlue(name, tmp_path, shots=4)
    splits = task.splits(0)
    assert task.source == f"parquet files in {folder.name}"
    assert np.bincount(splits.train.labels).tolist() == [4] * task.num_labels
    assert all(str(np.ravel(text)[0]).startswith("train ") for text in splits.train.inputs)
    test = [np.ravel(text).tolist() for text in splits.test.inputs]
    columns, split = GLUE_TASKS[name].hub_columns, GLUE_TASKS[name].hub_test
    assert test == [[f"{split} {column} {n} {i}" for column in columns] for n in range(2) for i in range(24)]


def test_a_clone_holds_its_tasks_side_by_side(tmp_path: Path) -> None:
    for name in GLUE_TASKS:
        _write_parquet(tmp_path / GLUE_TASKS[name].hub_config, name)
    assert FewShotGlue("RTE", tmp_path, shots=4).source == "parquet files in rte"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "cannot be read .*git lfs pull"),
        ({"text": ["fine"], "label": [1]}, "cannot be read .*parquet with sentence, label is needed"),
        ({"sentence": ["fine"], "label": [-1]}, r"train-00000-of-00001\.parquet: label '-1' is none of negative"),
    ],
)
def test_damaged_parquet_is_named(tmp_path: Path, content: bytes | dict[str, list], message: str) -> None:
    _write_parquet(tmp_path / "sst2", "SST-2")
    path = tmp_path / "sst2" / "train-00000-of-00001.parquet"
    path.write_bytes(content) if isinstance(content, bytes) else pq.write_table(pa.table(content), path)
    with pytest.raises(DataError, match=message):
        FewShotGlue("SST-2", tmp_path)


def test_repeated_sentences_and_those_of_the_test_are_never_drawn(tmp_path: Path) -> None:
    folder = tmp_path / "SST-2"
    _write_tsv(folder, "SST-2", num_train=0)
    rows = [f"{text}\t{label}" for text, label in [("x", 0), ("y", 1), ("z", 0), ("w", 1)] for _ in range(5)]
    (folder / "train.tsv").write_text("\n".join(["sentence\tlabel", *rows, 'a "film 1000\t0']) + "\n")
    splits = FewShotGlue("SST-2", tmp_path, shots=1).splits(0)
    assert sorted([*splits.train.inputs, *splits.validation.inputs]) == ["w", "x", "y", "z"]
    with pytest.raises(DataError, match="give fewer --shots"):
        FewShotGlue("SST-2", tmp_path, shots=2).splits(0)


def test_missing_data_says_how_to_get_it(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere", None):
        with pytest.raises(DataError, match=r"SST-2/train\.tsv and dev\.tsv .*--allow-download"):
            FewShotGlue("SST-2", folder)


def test_an_unreachable_hub_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot load 'nyu-mll/glue'.*give a local folder") as caught:
        FewShotGlue("RTE", tmp_path, allow_download=True)
    assert "\n" not in str(caught.value)


def test_unknown_tasks_and_no_shots_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give one of SST-2, MNLI"):
        FewShotGlue("QQP", tmp_path)
    with pytest.raises(DataError, match="at least 1 example per class"):
        FewShotGlue("SST-2", tmp_path, shots=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence\tlabel\nfine\t2\n", r"train\.tsv:2: label '2' is none of negative \(0\), positive \(1\)"),
        ("sentence\tlabel\nno label\n", r"train\.tsv:2: got 1 columns, 2 are needed"),
        ("text\tlabel\nfine\t1\n", "no column sentence but text, label"),
        (b"sentence\tlabel\n\xff\xfe\t1\n", "cannot be read"),
    ],
)
def test_damaged_files_are_named_with_the_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    _write_tsv(tmp_path / "SST-2", "SST-2")
    path = tmp_path / "SST-2" / "train.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        FewShotGlue("SST-2", tmp_path)


def test_a_truncated_archive_and_rows_without_fields_are_named(tmp_path: Path) -> None:
    _write_published(tmp_path)
    path = tmp_path / "kshot16.jsonl.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="kshot16.*cannot be read"):
        FewShotGlue("SST-2", tmp_path)
    with gzip.open(path, "wt") as file:
        file.write('{"task": "SST-2"}\n')
    with pytest.raises(DataError, match="kshot16.jsonl.gz:1: an object with task, seed"):
        FewShotGlue("SST-2", tmp_path)
