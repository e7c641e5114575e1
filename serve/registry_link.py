"""Calls to the registry's actor that end in time, whatever became of it."""

import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from hsokv_ray.errors import StoreError

_PATIENCE_S = 2.0
_INSIST_S = 15.0
_PAUSE_S = 2.0
"""After a call that failed, so that requests need not wait for one after the other."""
_START_S = 30.0
"""A keeper's process starts, perhaps on a busy machine."""
_BYTES_PER_S = 50e6
"""Arrays are moved at least so fast."""


def moving_s(nbytes: int) -> float:
    """Return how long to wait for arrays of so many bytes."""
    return 10 + nbytes / _BYTES_PER_S


class RegistryLink:
    """The way to one registry, which may end and begin anew. Thread-safe."""

    def __init__(self, connect: Callable[[], Any], patience_s: float = _PATIENCE_S) -> None:
        """Args: `connect` returns the actor's handle, and starts it where there is none."""
        self._connect, self._patience_s = connect, patience_s
        self._handle: Any = None
        self._quiet_until = 0.0
        self._lock = threading.Lock()

    def ask(self, method: str, *args: Any) -> Any:
        """Return what the registry answers. Raises `StoreError`: it does not, or did not a moment ago."""
        if time.monotonic() < self._quiet_until:
            raise StoreError("the registry of segments did not answer a moment ago; it is asked again soon")
        return self._call(self._patience_s, method, args)

    def insist(self, method: str, *args: Any) -> Any:
        """As `ask`, where nobody waits: longer, and where that fails once more, of the one that took its place."""
        try:
            return self._call(_INSIST_S, method, args)
        except StoreError:
            return self._call(_INSIST_S, method, args)

    def keep(self, arrays: dict[str, Any], nbytes: int) -> Any:
        """Return the reference to the arrays in this node's object store, which outlives this process.

        Raises `StoreError`: the keeper ended or has no room.
        """
        [keeper] = self.insist("keeper", node_id())  # each time: it ends with the registry
        try:
            [ref] = ray.get(keeper.keep.remote(arrays), timeout=_START_S + moving_s(nbytes))
        except RayError as error:
            raise StoreError(f"a segment of {nbytes:,} bytes cannot be published ({_first_line(error)})") from None
        return ref

    def _call(self, patience_s: float, method: str, args: tuple[Any, ...]) -> Any:
        if not ray.is_initialized():  # a call would start a cluster
            raise StoreError("the registry of segments cannot be reached: this process has left Ray")
        try:
            return ray.get(getattr(self._connected(), method).remote(*args), timeout=patience_s)
        except RayTaskError:  # it answered, and the fault is ours
            raise
        except RayError as error:
            self._lose()
            raise StoreError(f"the registry of segments does not answer ({_first_line(error)})") from None

    def _connected(self) -> Any:
        with self._lock:
            if self._handle is None:
                self._handle = self._connect()
            return self._handle

    def _lose(self) -> None:
        with self._lock:
            self._handle = None
            self._quiet_until = time.monotonic() + _PAUSE_S


def node_id() -> str:
    """Return the id of this process's node."""
    return ray.get_runtime_context().get_node_id()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
