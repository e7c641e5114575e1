"""FAISS, where it is installed."""

from typing import Any

from hsokv_ray.errors import ConfigError


def load_faiss() -> Any:
    """Return FAISS; raises `ConfigError` where it cannot be imported."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            f"--index pq and ivf need FAISS, which cannot be imported ({error}); install faiss-cpu or use --index flat"
        ) from error
    return faiss
