"""The actors that outlive replicas: documents, segments, board. Whoever needs one first creates it."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from hsokv_ray.runtime import NAMESPACE

logger = logging.getLogger(__name__)

_ANSWER_S = 30.0
"""An actor that starts, perhaps on a busy machine, answers in time."""
KINDS = ("documents", "segments", "board")


def actor_name(app: str, kind: str) -> str:
    """Return the name of an actor of the application `app`."""
    return f"serve:{app}:{kind}"


def get_or_create(cls: type[Any], app: str, kind: str, **arguments: Any) -> Any:
    """Return the handle of an actor of class `cls`, which is created where it is not there.

    Args:
        arguments: of its constructor; paths and numbers only, because a restart gets them again.
    """
    import ray

    return (
        ray.remote(cls)
        .options(
            name=actor_name(app, kind),
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=1,
        )
        .remote(**arguments)
    )


class ActorLink:
    """The way to one actor, which may end and be made anew. Thread-safe.

    Args:
        connect: returns the actor's handle, and makes the actor where there is none.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self.connect = connect
        self._handle: Any = None
        self._lock = threading.Lock()

    @property
    def known(self) -> Any:
        """Return the actor's handle, None where it has to be looked for."""
        return self._handle

    def handle(self) -> Any:
        """Return the actor's handle; waits for the cluster where there is none yet, or the last one was lost."""
        with self._lock:
            if self._handle is None:
                self._handle = self.connect()
            return self._handle

    def lose(self, handle: Any) -> None:
        """Say that `handle` did not answer: the next call looks for its actor again."""
        with self._lock:
            if self._handle is handle:
                self._handle = None

    def tell(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Call `method` and wait for nothing."""
        getattr(self.handle(), method).remote(*args, **kwargs)


def link_of(actor: Any) -> ActorLink:
    """Return `actor`, a link or a handle, as a link."""
    return actor if isinstance(actor, ActorLink) else ActorLink(lambda: actor)


def arguments_of(handle: Any) -> dict[str, Any] | None:
    """Return what an actor says it was made with; {} where it cannot say, None where it does not answer just now."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    if not hasattr(handle, "arguments"):
        return {}
    try:
        return ray.get(handle.arguments.remote(), timeout=_ANSWER_S)
    except RayTaskError:
        return {}
    except RayError:
        return None


def renewed(connect: Callable[[], Any], arguments: dict[str, Any]) -> Any:
    """Return the actor's handle; one that an older deployment made with other arguments is ended first."""
    import ray

    old = connect()
    if arguments_of(old) in (arguments, None):
        return old
    logger.warning("an actor of an older deployment is ended: this one wants it with %s", arguments)
    ray.kill(old, no_restart=True)
    end_s = time.monotonic() + _ANSWER_S
    while (new := connect()) == old and time.monotonic() < end_s:  # until its name is free
        time.sleep(0.05)
    return new


def end_actors(app: str) -> list[str]:
    """End the actors of the application `app`; return the names of those that were there."""
    import ray

    ended = []
    for kind in KINDS:
        try:
            handle = ray.get_actor(actor_name(app, kind), namespace=NAMESPACE)
        except ValueError:
            continue
        ray.kill(handle, no_restart=True)
        ended.append(actor_name(app, kind))
    return ended
