"""Why a run ended: one line a person can act on, from an exit code, an exception, or a loss that is not a number."""

import math
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from hsokv_ray.errors import RunError

_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemory|running low on memory|can(no|')t allocate memory|MemoryError|bad_alloc",
    re.IGNORECASE,
)
# Ray's text for any process it lost names the kernel's memory killer among "potential root causes".
_KILLED = re.compile(r"SIGKILL|OOM killer|exit code:? 137|exit status 137|exit_code=137|signal 9\b")
_DISK_FULL = re.compile(r"No space left on device|OutOfDisk|Disk quota exceeded", re.IGNORECASE)
_KILL_CODES = (128 + signal.SIGKILL, -signal.SIGKILL)


def explain_failure(failure: BaseException | int, *, memory: str | None = None) -> str:
    """Return why a worker or job ended and what to do, in one line.

    Known are a full disk, out of memory (Python, torch, CUDA, Ray's monitor) and a killed process (exit code 137);
    of anything else the line gives the innermost error.

    Args:
        failure: an exception, searched with its causes and Ray Train's per-worker failures, or an exit code as the
            shell (137) or `subprocess` (-9) gives it.
        memory: the estimate of what a worker needs, as text for the line.
    """
    needs = f" (estimate per worker: {memory})" if memory else ""
    lower = f"{needs}; lower --batch-size, --seq-len, --num-workers or --size, or give --gradient-checkpointing"
    killed = f"a worker was killed (SIGKILL, exit code 137), as a rule for lack of memory{lower}"
    if isinstance(failure, int):
        return killed if failure in _KILL_CODES else f"the process ended with exit code {failure}; see its output above"
    texts = [f"{type(error).__name__}: {error}" for error in causes(failure)]
    if any(_DISK_FULL.search(text) for text in texts):
        return "the disk is full; free some space, lower --keep or give another --output-dir, then run the same command"
    if any(_OUT_OF_MEMORY.search(text) for text in texts):
        return f"out of memory{lower}"
    if any(_KILLED.search(text) for text in texts):
        return killed
    return f"training failed: {_last_line(texts[-1])}; the same command resumes from the last checkpoint"


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error`, what it was raised from, and the failures it carries per worker (Ray Train), each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += [current.__cause__, current.__context__, getattr(current, "cause", None)]
        waiting += list(getattr(current, "worker_failures", {}).values())


def check_finite(loss: float, *, step: int, batch_digest: str, last_checkpoint: Path | str | None) -> None:
    """Raise `RunError` where `loss` is not a number, before the optimiser step can spoil the weights.

    Args:
        loss: loss of the step.
        step: the optimiser step it belongs to.
        batch_digest: digest of the step's tokens, to find the batch again.
        last_checkpoint: the last good checkpoint, if any.
    """
    if math.isfinite(loss):
        return
    kept = f"the last good checkpoint is {last_checkpoint}" if last_checkpoint else "there is no checkpoint yet"
    raise RunError(
        f"the loss is {loss} at step {step} (batch {batch_digest}); {kept}; "
        "lower --learning-rate or --grad-clip, or raise --warmup-steps, under another --name"
    )


def _last_line(text: str) -> str:
    # Ray hands a worker's error over as its whole traceback, whose last line is the error.
    return text.strip().splitlines()[-1].strip()
