"""The loop without Ray: what a checkpoint must carry for a resumed run to be the unbroken one, and how runs end."""

import json
from pathlib import Path
from typing import Any

import pytest

from hsokv_ray.config import parse
from hsokv_ray.errors import ConfigError, DataError, RunError
from hsokv_ray.training.build import build_trainer
from hsokv_ray.training.checkpoint import CheckpointStore
from hsokv_ray.training.config import TrainHMSTConfig
from hsokv_ray.training.loop import RunSummary
from hsokv_ray.training.metrics import read_rows
from hsokv_ray.training.place import Place
from hsokv_ray.training.prepare import prepare
from hsokv_ray.training.run_folder import RunFolder

SMALL = ["--vocab-size", "300", "--seq-len", "32", "--batch-size", "2", "--num-experts", "2", "--log-every", "1"]


class Recorder:
    """A host that remembers, and stops the process's loop when told to."""

    def __init__(self, *, stop_at: int | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self._stop_at = stop_at

    def event(self, kind: str, **values: Any) -> None:
        self.events.append({"kind": kind, **values})
        if kind == "row" and values["step"] == self._stop_at:
            raise InterruptedError(f"killed at step {self._stop_at}")

    def report(self, metrics: dict[str, float]) -> None:
        self.events.append({"kind": "report", **metrics})


def run(tmp_path: Path, corpus: Path, *flags: str, name: str = "run", host: Recorder | None = None) -> RunSummary:
    argv = ["--source", str(corpus), "--output-dir", str(tmp_path / "runs"), "--name", name, *SMALL, *flags]
    config = parse(TrainHMSTConfig, argv)
    folder = RunFolder.of(config.run)
    with folder.claim(config):
        prepared = prepare(config, folder, say=lambda text: None)
        return build_trainer(
            config,
            max_steps=prepared.length.max_steps,
            step_limit=prepared.length.step_limit,
            epochs=prepared.length.epochs,
            folder=folder,
            place=Place(),
            host=host or Recorder(),
            use_ray_data=False,
        ).run()


def losses(tmp_path: Path, name: str) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_rows(tmp_path / "runs" / name / "metrics.jsonl")}


def last_row(tmp_path: Path, name: str) -> dict[str, Any]:
    return read_rows(tmp_path / "runs" / name / "metrics.jsonl")[-1]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_killed_between_checkpoints_resumes_on_the_unbroken_loss_curve(
    tmp_path: Path, corpus: Path, optimizer: str
) -> None:
    flags = ["--max-steps", "8", "--save-every", "3", "--eval-every", "4", "--optimizer", optimizer]
    run(tmp_path, corpus, *flags, name="unbroken")
    with pytest.raises(InterruptedError):
        run(tmp_path, corpus, *flags, name="broken", host=Recorder(stop_at=5))
    host = Recorder()
    run(tmp_path, corpus, *flags, name="broken", host=host)
    assert {"kind": "note", "text": "resumed from step 4"} in host.events  # the best validation was saved at step 4
    assert losses(tmp_path, "broken") == losses(tmp_path, "unbroken")
    assert list(losses(tmp_path, "broken")) == list(range(1, 9))
    assert last_row(tmp_path, "broken")["counts"] == last_row(tmp_path, "unbroken")["counts"]


def test_the_loss_of_a_step_does_not_depend_on_how_its_blocks_are_divided(tmp_path: Path, corpus: Path) -> None:
    flags = ["--max-steps", "4", "--eval-every", "100"]
    run(tmp_path, corpus, *flags, "--batch-size", "4", name="whole")
    run(tmp_path, corpus, *flags, "--batch-size", "1", "--gradient-accumulation-steps", "4", name="parts")
    whole, parts = losses(tmp_path, "whole"), losses(tmp_path, "parts")
    assert parts == pytest.approx(whole, abs=1e-5)


def test_one_epoch_predicts_every_training_token_once(tmp_path: Path, corpus: Path) -> None:
    summary = run(tmp_path, corpus, "--epochs", "1", "--val-split", "0", "--logical-ranks", "3")
    folder = tmp_path / "runs" / "run"
    counts = read_rows(folder / "metrics.jsonl")[-1]["counts"]
    assert counts["documents"] == 160
    assert summary.reason == "every document was read"
    from hsokv_ray.data import load_tokenizer

    tokenizer = load_tokenizer(folder / "tokenizer")
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    num_tokens = sum(len(tokenizer.encode(text)) + 1 for text in texts)
    assert summary.tokens == num_tokens - 3  # the first token of each of 3 streams is predicted by nothing


def test_training_lowers_the_validation_loss_and_keeps_best_and_last(tmp_path: Path, corpus: Path) -> None:
    flags = ["--max-steps", "30", "--eval-every", "5", "--save-every", "7", "--keep", "1", "--learning-rate", "3e-3"]
    summary = run(tmp_path, corpus, *flags)
    rows = [row for row in read_rows(tmp_path / "runs" / "run" / "metrics.jsonl") if row["val_loss"] is not None]
    assert rows[-1]["val_loss"] < rows[0]["val_loss"] - 0.5
    store = CheckpointStore(tmp_path / "runs" / "run" / "checkpoints", keep=1)
    best = store.best()
    assert best is not None
    assert best.step == summary.best_step
    assert set(store.steps()) == {summary.best_step, 30}
    assert summary.best_loss == min(row["val_loss"] for row in rows)


def test_validation_does_not_change_the_training(tmp_path: Path, corpus: Path) -> None:
    run(tmp_path, corpus, "--max-steps", "6", "--eval-every", "1", name="often")
    run(tmp_path, corpus, "--max-steps", "6", "--eval-every", "100", name="never")
    assert losses(tmp_path, "often") == losses(tmp_path, "never")


def test_patience_ends_a_run_that_no_longer_improves(tmp_path: Path, corpus: Path) -> None:
    flags = ["--max-steps", "40", "--eval-every", "1", "--patience", "2", "--learning-rate", "1e-12"]
    summary = run(tmp_path, corpus, *flags, "--warmup-steps", "0")
    assert summary.reason == "no better validation loss in 2 validations"
    assert summary.step < 40


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path, corpus: Path) -> None:
    flags = ["--max-steps", "30", "--save-every", "2", "--learning-rate", "1e30", "--grad-clip", "0"]
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step \d+ \(batch [0-9a-f]{16}\)"):
        run(tmp_path, corpus, *flags, "--warmup-steps", "10", "--eval-every", "100")
    store = CheckpointStore(tmp_path / "runs" / "run" / "checkpoints", keep=2)
    if store.steps():
        assert store.latest() is not None


def test_documents_are_masked_from_one_another_on_request(tmp_path: Path, corpus: Path) -> None:
    flags = ["--max-steps", "1", "--seq-len", "128"]
    run(tmp_path, corpus, *flags, name="joined")
    run(tmp_path, corpus, *flags, "--document-mask", name="masked")
    assert losses(tmp_path, "joined")[1] != losses(tmp_path, "masked")[1]


def test_rows_say_everything_the_documentation_promises(tmp_path: Path, corpus: Path) -> None:
    run(tmp_path, corpus, "--max-steps", "5", "--eval-every", "5", "--gradient-checkpointing")
    row = read_rows(tmp_path / "runs" / "run" / "metrics.jsonl")[-1]
    assert row["step"] == 5
    assert row["tokens"] == 5 * 2 * 32
    for name in ("loss", "val_loss", "aux_loss", "lr", "grad_norm", "tokens_per_s", "flops_per_s", "memory_bytes"):
        assert row[name] > 0, name
    assert row["data"]["blocks"] == 10
    assert sum(row["router"]["load"][0]) == pytest.approx(1)
    assert row["mfu"] is None  # the peak of a CPU is not known, so no share of it is claimed


@pytest.fixture
def bad_runs(tmp_path: Path, corpus: Path) -> Any:
    def attempt(*flags: str, source: Path = corpus) -> RunSummary:
        return run(tmp_path, source, "--max-steps", "2", *flags)

    return attempt


def test_a_second_run_with_another_configuration_is_refused_naming_the_fields(bad_runs: Any) -> None:
    bad_runs()
    with pytest.raises(ConfigError, match=r"optim.learning_rate: 0.002 -> 0.1.*--name"):
        bad_runs("--learning-rate", "0.1")


def test_a_source_that_changed_since_the_run_began_is_refused(bad_runs: Any, corpus: Path) -> None:
    bad_runs()
    corpus.write_text(corpus.read_text() + '{"text": "one more"}\n')
    with pytest.raises(DataError, match="changed since this run began"):
        bad_runs()


def test_a_corpus_shorter_than_a_block_is_refused_with_the_numbers(bad_runs: Any, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("only a few words")
    with pytest.raises(DataError, match=r"one block needs 33; lower --seq-len"):
        bad_runs("--val-split", "0", source=path)


def test_a_warm_up_longer_than_the_run_is_refused(bad_runs: Any) -> None:
    with pytest.raises(ConfigError, match="--warmup-steps: got 5, and the run has 2 steps"):
        bad_runs("--warmup-steps", "5")
