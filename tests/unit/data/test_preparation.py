import json
import subprocess
import sys
from pathlib import Path

import pytest

from hsokv_ray.data import DataConfig, ReadCounts, load_tokenizer, open_token_set, read_documents, resolve_plan
from hsokv_ray.data.jobs_config import PretokenizeConfig, SplitDatasetConfig
from hsokv_ray.data.preparation import pretokenize, split_dataset
from hsokv_ray.errors import ConfigError, DataError

JOBS = Path(__file__).parents[3] / "jobs"


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"a story, number {i}"}) for i in range(200)))
    return path


def job(name, *flags):
    return subprocess.run(
        [sys.executable, JOBS / name, *map(str, flags)], capture_output=True, text=True, timeout=120, check=False
    )


def texts(path):
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_split_is_complete_and_the_one_that_training_takes(corpus, tmp_path):
    done = job(
        "split_dataset.py", "--source", corpus, "--output-folder", tmp_path / "out", "--val-split", 0.2, "--seed", 3
    )
    assert done.returncode == 0, done.stderr
    train, val = (texts(tmp_path / "out" / f"{side}.jsonl") for side in ("train", "val"))
    assert sorted(train + val) == sorted(texts(corpus))
    plan = resolve_plan(DataConfig(source=str(corpus), val_split=0.2), seed=3)
    held_out = [
        document.text
        for part in plan.parts
        for document in read_documents(plan, part, split="val", epoch=0, counts=ReadCounts())
    ]
    assert sorted(held_out) == sorted(val)


def test_pretokenize_then_split_the_shards_by_document(corpus, tmp_path):
    done = job("pretokenize.py", "--source", corpus, "--output-folder", tmp_path / "tokens", "--vocab-size", 300)
    assert done.returncode == 0, done.stderr
    assert "200 documents" in done.stdout
    say = []
    config = SplitDatasetConfig(
        output_folder=str(tmp_path / "split"), data=DataConfig(source=str(tmp_path / "tokens"), pretokenized=True)
    )
    split_dataset(config, say=say.append)
    sides = [open_token_set(tmp_path / "split" / side) for side in ("train", "val")]
    whole = open_token_set(tmp_path / "tokens")
    assert sum(side.num_documents for side in sides) == whole.num_documents == 200
    assert sum(side.num_tokens for side in sides) == whole.num_tokens
    assert sides[0].num_documents > sides[1].num_documents > 0


def test_a_given_tokenizer_is_used(corpus, tmp_path):
    first = pretokenize(
        PretokenizeConfig(output_folder=str(tmp_path / "a"), data=DataConfig(source=str(corpus), vocab_size=300)),
        say=lambda line: None,
    )
    data = DataConfig(source=str(corpus), tokenizer_path=str(first.tokenizer_path))
    second = pretokenize(PretokenizeConfig(output_folder=str(tmp_path / "b"), data=data), say=lambda line: None)
    assert second.tokenizer_fingerprint == first.tokenizer_fingerprint
    assert load_tokenizer(second.tokenizer_path).vocab_size <= 300


def test_errors_are_one_line_and_leave_nothing(corpus, tmp_path):
    done = job("pretokenize.py", "--source", tmp_path / "missing", "--output-folder", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_split_with_an_empty_side_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"text": "the only document"}')
    config = SplitDatasetConfig(
        output_folder=str(tmp_path / "out"), data=DataConfig(source=str(tmp_path / "one.jsonl"))
    )
    with pytest.raises(DataError, match="no document falls on the side of"):
        split_dataset(config, say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["one.jsonl"]


def test_contradictions_are_refused():
    with pytest.raises(ConfigError, match="--val-split: got 0"):
        SplitDatasetConfig(output_folder="out", data=DataConfig(val_split=0))
    with pytest.raises(ConfigError, match="--pretokenized"):
        PretokenizeConfig(output_folder="out", data=DataConfig(pretokenized=True))


@pytest.mark.parametrize("name", ["pretokenize.py", "split_dataset.py"])
def test_help_needs_neither_torch_nor_ray_and_the_script_is_executable(name):
    code = (
        f"import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_path({str(JOBS / name)!r}, run_name='__main__')\n"
        f"except SystemExit: pass\n"
        f"assert not {{'torch', 'ray', 'numpy'}} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--output-folder" in done.stdout
    assert (JOBS / name).stat().st_mode & 0o111
