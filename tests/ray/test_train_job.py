"""The training job on a real Ray: the README's commands, several workers, resume, errors that end a run."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from hsokv_ray.config import parse
from hsokv_ray.errors import DataError, RunError
from hsokv_ray.training.config import TrainHMSTConfig
from hsokv_ray.training.job import run
from hsokv_ray.training.metrics import read_rows

ROOT = Path(__file__).parents[2]
SMALL = ["--vocab-size", "300", "--seq-len", "32", "--num-experts", "2", "--log-every", "1", "--eval-tokens", "512"]

pytestmark = pytest.mark.usefixtures("ray_cluster")


def job(folder: Path, corpus: Path, *flags: str, name: str) -> TrainHMSTConfig:
    argv = ["--source", str(corpus), "--output-dir", str(folder), "--name", name, *SMALL, *flags]
    return parse(TrainHMSTConfig, argv)


def losses(folder: Path, name: str) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_rows(folder / name / "metrics.jsonl")}


def test_two_workers_walk_the_curve_of_one_and_a_change_of_workers_resumes_on_it(
    tmp_path: Path, corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--save-every", "3", "--eval-every", "6", "--cpus-per-worker", "0.5", "--schedule", "constant"]
    one, two = ["--batch-size", "4"], ["--batch-size", "2", "--num-workers", "2"]
    assert run(job(tmp_path, corpus, *flags, *one, "--max-steps", "6", name="one")) == 0
    assert run(job(tmp_path, corpus, *flags, *two, "--max-steps", "6", name="two")) == 0
    assert losses(tmp_path, "two") == pytest.approx(losses(tmp_path, "one"), abs=1e-4)
    for name in ("loss.png", "README.md", "checkpoints/best.json", "tokenizer/tokenizer.json", "config.yaml"):
        assert (tmp_path / "two" / name).exists(), name
    assert "unigram entropy" in capfd.readouterr().out

    # the same command finds the run finished
    assert run(job(tmp_path, corpus, *flags, *one, "--max-steps", "6", name="two")) == 0
    assert "resumed from step 6" in capfd.readouterr().out


def test_a_loss_that_is_not_a_number_ends_the_run_at_once_with_its_reason(tmp_path: Path, corpus: Path) -> None:
    flags = ["--learning-rate", "1e30", "--grad-clip", "0", "--max-steps", "20", "--num-workers", "2"]
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step"):
        run(job(tmp_path, corpus, *flags, "--cpus-per-worker", "0.5", "--batch-size", "1", name="nan"))


def test_a_damaged_shard_met_on_the_way_ends_the_run_naming_it(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(4):
        lines = [json.dumps({"text": f"{i} {j} " + "what a swarm of agents looks for " * 9}) for j in range(60)]
        (folder / f"{i}.jsonl").write_text("\n".join(lines) + "\n")
    lines = (folder / "2.jsonl").read_text().splitlines()
    lines[30] = lines[30][:-3] + "!!!"
    (folder / "2.jsonl").write_text("\n".join(lines) + "\n")
    again = job(tmp_path, folder, "--max-steps", "60", "--batch-size", "4", "--val-split", "0", name="bad")
    with pytest.raises(DataError, match=r"2\.jsonl"):
        run(again)


def test_more_workers_than_cpus_are_refused_with_the_numbers(tmp_path: Path, corpus: Path) -> None:
    flags = ["--num-workers", "12", "--cpus-per-worker", "1", "--max-steps", "2"]
    with pytest.raises(RunError, match=r"13 CPUs, there are 4; lower --num-workers"):
        run(job(tmp_path, corpus, *flags, name="many"))


def test_a_size_that_does_not_fit_is_refused_with_the_estimate_before_any_work(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(
        RunError, match=r"training size large .*weights .* GiB.* needs about .* GiB, there are .*--size"
    ):
        run(job(tmp_path, corpus, "--size", "large", "--max-steps", "2", name="large"))
    assert not (tmp_path / "large" / "plan.json").exists()


@pytest.fixture
def submit_environment(runs_dir: Path) -> dict[str, str]:
    shutil.rmtree(runs_dir / "train_hmst", ignore_errors=True)
    url = ray._private.worker.get_dashboard_url()  # no public call tells it
    return {**os.environ, "RAY_API_SERVER_ADDRESS": f"http://{url}"}


@pytest.fixture
def submitted(submit_environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        ["ray", "job", "submit", "jobs/train_hmst.py"],
        cwd=ROOT,
        env=submit_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)


def test_the_job_runs_as_written_until_it_is_stopped(
    submitted: subprocess.Popen[str], submit_environment: dict[str, str]
) -> None:
    seen: list[str] = []
    assert submitted.stdout is not None
    for line in submitted.stdout:
        seen.append(line)
        if re.match(r"step \d+", line):
            break
    text = "".join(seen)
    assert re.search(r"step 10/\d+  loss \d", text), text
    job_id = re.search(r"raysubmit_\w+", text)
    assert job_id, text
    stop = ["ray", "job", "stop", job_id[0]]
    done = subprocess.run(stop, env=submit_environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "was stopped" in done.stdout


def test_the_uploaded_form_runs_with_size_and_source(
    submit_environment: dict[str, str], runs_dir: Path, tmp_path: Path, corpus: Path
) -> None:
    dataset = tmp_path / "stories"
    dataset.mkdir()
    (dataset / "train.jsonl").write_text("".join(corpus.read_text().splitlines(keepends=True)[:40]))
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "jobs/train_hmst.py"]
    done = subprocess.run(
        [*command, "--size", "tiny", "--source", f"hf://{dataset}"],
        cwd=ROOT,
        env=submit_environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "succeeded" in done.stdout
    assert (runs_dir / "train_hmst" / "checkpoints" / "best.json").exists()
