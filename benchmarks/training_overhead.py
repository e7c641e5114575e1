#!/usr/bin/env python
"""What Ray costs a training step: the job as users run it, beside a plain torch loop over the same model and shapes.

    python benchmarks/training_overhead.py [--quick]

Both run in processes of their own, in turns, with the same threads. The plain loop is the lower bound: one batch made
beforehand, forward, backward, clipping, fused AdamW, nothing else. Wall clock per optimiser step, median over steps.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Target, write_result

from hsokv_ray.config import parse
from hsokv_ray.training.config import TrainHMSTConfig
from hsokv_ray.training.metrics import read_rows

ROOT = Path(__file__).parents[1]
SKIPPED_STEPS = 4


def job_rows(folder: Path, name: str, flags: list[str]) -> list[dict]:
    """Run the job on Ray and return its metrics after the first steps."""
    command = [sys.executable, "jobs/train_hmst.py", "--output-dir", str(folder), "--name", name, *flags]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return [row for row in read_rows(folder / name / "metrics.jsonl") if row["step"] > SKIPPED_STEPS]


def plain_steps_ms(folder: Path, flags: list[str], num_steps: int) -> list[float]:
    """Run the plain loop in a process and return the milliseconds of each step after the first ones."""
    command = [sys.executable, __file__, "--plain", str(folder), "--steps", str(num_steps), *flags]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])[SKIPPED_STEPS:]


def run_plain(tokenizer_folder: Path, config: TrainHMSTConfig, num_steps: int) -> list[float]:
    """Train on one random batch without Ray, data, metrics or checkpoints; return milliseconds per step."""
    import torch

    from hsokv_ray.data import load_tokenizer
    from hsokv_ray.training.build import build_model
    from hsokv_ray.training.optimizers import build_optimizer
    from hsokv_ray.training.place import set_threads

    set_threads(1)
    tokenizer = load_tokenizer(tokenizer_folder)
    model = build_model(config, tokenizer, device=torch.device("cpu"), bf16=False).train()
    optimizer = build_optimizer(model, config.optim, device_type="cpu")
    tokens = torch.randint(tokenizer.vocab_size, (config.optim.batch_size, config.data.seq_len + 1))
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    milliseconds = []
    for _ in range(num_steps):
        start = time.perf_counter()
        model(input_ids=inputs, shift_labels=labels, num_items_in_batch=labels.numel(), use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return milliseconds


def compare(*, repeats: int, num_steps: int) -> tuple[list[dict], list[float]]:
    """Return a row per repeat, and the share of each job's time spent waiting for data."""
    flags = ["--seq-len", "256", "--max-steps", str(num_steps), "--val-split", "0", "--log-every", "1"]
    flags += ["--save-every", str(num_steps)]
    rows, waits = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(repeats):
            measured = job_rows(folder, f"job-{i}", flags)
            plain = plain_steps_ms(folder / f"job-{i}" / "tokenizer", flags, num_steps)
            job_ms, plain_ms = statistics.median(r["step_ms"] for r in measured), statistics.median(plain)
            waits.append(statistics.fmean(r["wait_share"] for r in measured))
            rows.append({"repeat": i, "job ms": job_ms, "plain ms": plain_ms, "job / plain": job_ms / plain_ms})
    return rows, waits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short repeat; proves that it works")
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    known, flags = parser.parse_known_args()
    if known.plain:
        print(json.dumps(run_plain(known.plain, parse(TrainHMSTConfig, flags), known.steps)))
        return
    rows, waits = compare(repeats=1 if known.quick else 2, num_steps=12 if known.quick else 30)
    ratio = statistics.median(row["job / plain"] for row in rows)
    targets = [
        Target(name="step of the Ray job / plain torch loop", value=ratio, bound=1.05, kind="at most"),
        Target(name="share of a step spent waiting for data", value=max(waits), bound=0.02, kind="at most"),
    ]
    write_result("training_overhead", tables={"micro, 8 x 256 tokens": rows}, targets=targets, quick=known.quick)


if __name__ == "__main__":
    main()
