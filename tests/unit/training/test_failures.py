import math
import subprocess
import sys

import pytest
import torch

from hsokv_ray.errors import RunError
from hsokv_ray.training.failures import check_finite, explain_failure

RAY_LOST_A_WORKER = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. There are some potential root causes. (1) The "
    "process is killed by SIGKILL by OOM killer due to high memory usage. (2) ray stop --force is called."
)
RAY_MONITOR = "1 worker(s) were killed due to the node running low on memory."


class WorkerGroupError(Exception):
    """Has the shape of Ray Train's error of that name."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("Training failed due to worker errors")
        self.worker_failures = failures


def test_a_real_process_killed_by_the_kernel_is_explained():
    code = subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]).returncode
    line = explain_failure(code, memory="1.50 GiB")
    assert "exit code 137" in line
    assert "memory (estimate per worker: 1.50 GiB); lower --batch-size" in line
    assert line == explain_failure(137, memory="1.50 GiB")


def test_a_real_failure_of_torch_to_allocate_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert explain_failure(caught.value).startswith("out of memory; lower --batch-size")


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (WorkerGroupError({0: RuntimeError(RAY_MONITOR)}), "out of memory"),
        (WorkerGroupError({0: RuntimeError("Connection closed by peer"), 1: RuntimeError(RAY_LOST_A_WORKER)}),
         "a worker was killed (SIGKILL, exit code 137)"),
        (OSError(28, "No space left on device"), "the disk is full"),
        (WorkerGroupError({0: ZeroDivisionError("division by zero")}),
         "training failed: ZeroDivisionError: division by zero; the same command resumes"),
    ],
)  # fmt: skip
def test_each_kind_of_end_has_its_line(error, start):
    outer = RuntimeError("outer")
    outer.__cause__ = error
    for failure in (error, outer):
        line = explain_failure(failure)
        assert line.startswith(start)
        assert "\n" not in line


def test_any_other_exit_code_is_given_as_it_is():
    assert explain_failure(2) == "the process ended with exit code 2; see its output above"


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_a_number_names_step_batch_and_checkpoint(loss):
    with pytest.raises(RunError, match=rf"the loss is {loss} at step 7 \(batch ab12\); the last good .* /run/step-5;"):
        check_finite(loss, step=7, batch_digest="ab12", last_checkpoint="/run/step-5")
    with pytest.raises(RunError, match="there is no checkpoint yet"):
        check_finite(loss, step=7, batch_digest="ab12", last_checkpoint=None)


def test_a_finite_loss_passes():
    check_finite(1e30, step=1, batch_digest="", last_checkpoint=None)
