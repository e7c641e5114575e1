"""Finding a memory's actors and calling them: lost ones are found again, full ones are given time.

link = Link("notes", shard=0)
link.call("count", caller, None)          # survives a restart of the actor in between
"""

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from hsokv_ray.errors import Overloaded, StoreError
from hsokv_ray.memory.shared.config import PROTOCOL, MemoryConfig
from hsokv_ray.memory.shared.messages import ShardInfo
from hsokv_ray.runtime import NAMESPACE

PATIENCE_S = 30.0
"""How long a call waits for an actor that restarts or is full, unless told otherwise."""
_LONGEST_PAUSE_S = 1.0
GROUP_OF: dict[str, str] = {
    **dict.fromkeys(("upsert", "delete", "delete_where", "drop", "optimize", "snapshot", "close"), "write"),
    **dict.fromkeys(("search", "get", "count", "scroll", "version", "exists", "collections", "status"), "read"),
    **dict.fromkeys(("update", "segment_files"), "wait"),
}
"""What an actor can be asked, and the group of its threads that does it."""


def actor_name(memory: str, shard: int, replica: int | None = None) -> str:
    """Return the name under which a shard's writer, or one of its replicas, is found."""
    return f"memory/{memory}/{shard}" if replica is None else f"memory/{memory}/{shard}/{replica}"


class Link:
    """The way to one actor of the memory `memory`. Safe to use from several threads.

    Args:
        replica: one of the shard's replicas; None: its writer.
        patience_s: how long a call is tried again while the actor restarts or is full.
    """

    def __init__(self, memory: str, shard: int, replica: int | None = None, *, patience_s: float = PATIENCE_S) -> None:
        self.memory, self.shard = memory, shard
        self._name = actor_name(memory, shard, replica)
        self._patience_s = patience_s
        self._handle: Any = None

    def describe(self, *, timeout_s: float | None = None) -> ShardInfo:
        """Return how the actor introduces itself. Raises `StoreError`: none runs, or it is of another version."""
        info = self._try(lambda handle: handle.describe.remote(), timeout_s)
        return check_version(info, self.memory)

    def call(self, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        """Return what the actor's `method` returns; the method must bear being called twice.

        Raises what the method raises; `Overloaded` where the actor stays full, `StoreError` where it does not answer.
        """
        return self._try(lambda handle: _send(handle, method, args), timeout_s)

    def start(self, method: str, *args: Any) -> Callable[[], Any]:
        """Begin a call; return what waits for its result, as `call` would have returned it."""
        try:
            reference = _send(self._actor(), method, args)
        except StoreError:
            return lambda: self.call(method, *args)

        def finish() -> Any:
            try:
                return ray.get(reference, timeout=self._patience_s)
            except RayTaskError as error:
                if not isinstance(error.cause, Overloaded):
                    raise error.cause from None
            except (RayActorError, GetTimeoutError):
                self._handle = None
            return self.call(method, *args)

        return finish

    def _try(self, send: Callable[[Any], Any], timeout_s: float | None) -> Any:
        patience_s = self._patience_s if timeout_s is None else timeout_s
        end, pause_s, last = time.monotonic() + patience_s, 0.02, ""
        while True:
            try:
                return ray.get(send(self._actor()), timeout=max(end - time.monotonic(), 0.1))
            except RayTaskError as error:
                if not isinstance(error.cause, Overloaded):
                    raise error.cause from None
                pause_s = error.cause.retry_after_s
                if time.monotonic() + pause_s > end:
                    raise error.cause from None
            except (RayActorError, ActorUnavailableError) as error:
                self._handle, last = None, " ".join(str(error).split())[:200]
            except GetTimeoutError:
                raise StoreError(f"{self._name} gave no answer in {patience_s:g} s; {_hint(self.memory)}") from None
            if time.monotonic() + pause_s > end:
                raise StoreError(f"{self._name} is away for more than {patience_s:g} s ({last}); {_hint(self.memory)}")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _actor(self) -> Any:
        handle = self._handle
        if handle is None:
            handle = self._handle = find_actor(self._name, self.memory)
        return handle


def _send(handle: Any, method: str, args: tuple[Any, ...]) -> Any:
    return getattr(handle, GROUP_OF[method]).remote(method, *args)


def find_actor(name: str, memory: str) -> Any:
    """Return the handle of the named actor. Raises `StoreError` where none runs."""
    try:
        return ray.get_actor(name, NAMESPACE)
    except ValueError:
        raise StoreError(
            f"no memory {memory!r} runs on this cluster; start it: hsokv memory start {memory} --root DIR"
        ) from None


def check_version(info: ShardInfo, memory: str) -> ShardInfo:
    """Return `info`. Raises `StoreError` where the actor speaks another version of the protocol."""
    if info.protocol != PROTOCOL:
        raise StoreError(
            f"memory {memory!r} runs hsokv_ray {info.package_version} (protocol {info.protocol}), this client speaks "
            f"protocol {PROTOCOL}; start it anew with this version, nothing is lost: hsokv memory restart {memory}"
        )
    return info


def read_config(info: ShardInfo) -> MemoryConfig:
    """Return the settings of the memory that introduced itself so."""
    return MemoryConfig.model_validate_json(info.memory)


def _hint(memory: str) -> str:
    return f"look: hsokv memory status {memory}"
