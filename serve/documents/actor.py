"""The actor that keeps the documents of an application: a thin shell around `Documents`, on the node of its folder.

documents = documents_actor("hsokv", root="~/documents")
ray.get(documents.get.remote(id, owner))
"""

import os
import threading
import time
from pathlib import Path
from typing import Any

from hsokv_ray.errors import StoreError
from hsokv_ray.runtime import NAMESPACE
from serve.actors import actor_name
from serve.args import Limits
from serve.documents.limits import DocumentLimits
from serve.documents.store import Documents

KIND = "documents"
NUM_THREADS = 32
"""Calls at once; each waits for the disk most of its time."""
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
                super().__init__(root, DocumentLimits(**limits))
                break
            except StoreError:  # a killed process holds its lock until the system has cleared it away
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.1)
        threading.Thread(target=self._keep_sweeping, name="sweep", daemon=True).start()

    def process_id(self) -> int:
        """Return the id of this process."""
        return os.getpid()

    def _keep_sweeping(self) -> None:
        while True:
            time.sleep(_SWEEP_EVERY_S)
            self.sweep()


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

    if isinstance(limits, Limits):
        limits = document_limits(limits)
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
        .remote(str(Path(root).expanduser().absolute()), (limits or DocumentLimits()).model_dump())
    )
