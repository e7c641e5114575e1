"""The actor that keeps the documents of an application: a thin shell around `Documents`, on the node of its folder.

documents = documents_actor("hsokv", root="~/documents")
ray.get(documents.get.remote(id, owner))
"""

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hsokv_ray.errors import ConfigError, StoreError
from hsokv_ray.runtime import NAMESPACE
from serve.actors import ActorLink, actor_name, arguments_of
from serve.args import Limits
from serve.documents.disk import read_json, write_json
from serve.documents.limits import DocumentLimits
from serve.documents.store import Documents

KIND = "documents"
NUM_THREADS = 32
"""Calls at once; each waits for the disk most of its time."""
_LIMITS = "limits.json"
_PATIENCE_S = 20.0
_SWEEP_EVERY_S = 600.0


class DocumentsActor(Documents):
    """`Documents` that waits for a predecessor to leave, and removes old uploads by itself.

    Args:
        root: the folder.
        limits: of `DocumentLimits`.
    """

    def __init__(self, root: str, limits: dict[str, Any]) -> None:
        end_s = time.monotonic() + _PATIENCE_S
        while True:
            try:
                super().__init__(root, _newest_limits(root, limits))
                break
            except StoreError:  # a killed process holds its lock until the system has cleared it away
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.1)
        threading.Thread(target=self._keep_sweeping, name="sweep", daemon=True).start()

    def arguments(self) -> dict[str, Any]:
        """Return its folder and the limits it holds to now."""
        return {"root": str(self.root), "limits": self.limits.model_dump()}

    def change_limits(self, limits: dict[str, Any]) -> None:
        """Hold to other limits, also after a restart."""
        self.set_limits(DocumentLimits(**limits))
        write_json(self.root / _LIMITS, limits)

    def process_id(self) -> int:
        """Return the id of this process."""
        return os.getpid()

    def _keep_sweeping(self) -> None:
        while True:
            time.sleep(_SWEEP_EVERY_S)
            self.sweep()


def _newest_limits(root: str, limits: dict[str, Any]) -> DocumentLimits:
    """Return `limits`, or those that were set later, of which Ray does not know when it restarts the actor."""
    import ray

    path = Path(root) / _LIMITS
    if ray.get_runtime_context().was_current_actor_reconstructed:
        if path.exists():
            limits = read_json(path)
    else:
        path.unlink(missing_ok=True)
    return DocumentLimits(**limits)


def document_limits(limits: Limits) -> DocumentLimits:
    """Return what the application's limits mean for documents."""
    return DocumentLimits(
        document_bytes=limits.document_bytes,
        documents_per_owner=limits.documents_per_owner,
        bytes_per_owner=limits.documents_bytes_per_owner,
        upload_expiry_s=limits.upload_expiry_s,
    )


def documents_actor(app: str, *, root: str | Path, limits: Limits | DocumentLimits | None = None) -> Any:
    """Return the handle of the documents of the application `app`; its actor is created on this node if missing."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return (
        ray.remote(DocumentsActor)
        .options(
            name=actor_name(app, KIND),
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=NUM_THREADS,
            scheduling_strategy=here,
        )
        .remote(**_arguments(root, limits))
    )


def documents_link(app: str, *, root: str | Path, limits: Limits | DocumentLimits | None = None) -> ActorLink:
    """Return the way to the documents, for a process that begins: an actor that runs already takes its `limits`.

    Raises `ConfigError`: the actor has another folder.
    """
    connect = partial(documents_actor, app, root=root, limits=limits)
    _settle(connect, _arguments(root, limits))
    return ActorLink(connect)


def _settle(connect: Callable[[], Any], wanted: dict[str, Any]) -> None:
    import ray

    handle = connect()
    told = arguments_of(handle)
    if not told or told == wanted:  # whoever calls one that does not answer now waits for it, or makes another
        return
    if told["root"] != wanted["root"]:
        raise ConfigError(
            f"documents_dir: got {wanted['root']}, the documents of this application are in {told['root']}; end it "
            "first with `python -m serve stop`, or keep that folder"
        )
    ray.get(handle.change_limits.remote(wanted["limits"]))


def _arguments(root: str | Path, limits: Limits | DocumentLimits | None) -> dict[str, Any]:
    given = document_limits(limits) if isinstance(limits, Limits) else limits or DocumentLimits()
    return {"root": str(Path(root).expanduser().absolute()), "limits": given.model_dump()}
