"""GPUs that search, reached through FAISS."""

import logging
import threading
from functools import cache
from typing import Any

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.index.faiss_library import load_faiss

MOST_CANDIDATES = 2048
"""FAISS's limit per query on a GPU."""

logger = logging.getLogger(__name__)


class GpuSearcher:
    """One GPU. Its scratch memory serves one search at a time, so searches take turns."""

    def __init__(self, faiss: Any, number: int) -> None:
        self._faiss, self._number = faiss, number
        self._resources = faiss.StandardGpuResources()
        self.lock = threading.Lock()

    def put(self, index: Any) -> Any:
        """Return a copy of a CPU index on the GPU."""
        return self._faiss.index_cpu_to_gpu(self._resources, self._number, index)

    def take(self, index: Any) -> Any:
        """Return a copy of a GPU index in main memory."""
        return self._faiss.index_gpu_to_cpu(index)


@cache
def find_gpu(number: int) -> GpuSearcher | None:
    """Return GPU `number` where FAISS can search on it; else None after one warning per process."""
    reason = _why_not(number)
    if reason is None:
        return GpuSearcher(load_faiss(), number)
    logger.warning("--gpu-index: %s; searching on the CPU", reason)
    return None


def _why_not(number: int) -> str | None:
    try:
        faiss = load_faiss()
    except ConfigError:
        return "FAISS is not installed"
    if not hasattr(faiss, "StandardGpuResources"):
        return "the installed FAISS has no GPU support (faiss-gpu has)"
    if number >= faiss.get_num_gpus():
        return f"FAISS sees {faiss.get_num_gpus()} GPUs, --index-devices asks for number {number}"
    return None
