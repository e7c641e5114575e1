"""Run independent pieces of work as Ray tasks."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from hsokv_ray import runtime
from hsokv_ray.errors import HsokvError

T = TypeVar("T")


def run_everywhere(work: Callable[..., T], arguments: Sequence[tuple[Any, ...]], *, cpus: float) -> list[T]:
    """Return `work(*each)` for each of `arguments`, in their order; as many at a time as the CPUs allow.

    Args:
        work: a function of a module that workers can import.
        cpus: reserved by one piece.

    Raises whatever `work` raises.
    """
    runtime.connect()
    task = ray.remote(num_cpus=cpus, max_retries=3)(work)
    try:
        return ray.get([task.remote(*each) for each in arguments])
    except RayTaskError as error:
        if isinstance(error.cause, HsokvError):
            raise error.cause from None
        raise
