"""Every environment variable the project reads, in one place."""

import os
import warnings
from pathlib import Path

from hsokv_ray.errors import ConfigError

DATA_DIR = "HSOKV_DATA_DIR"
"""Folder with real data sets for the tests that need them; such tests are skipped where it is unset."""

RUNS_DIR = "HSOKV_RUNS_DIR"
"""Where runs are written when `--output-dir` is not given; default `~/hsokv_runs`."""

RUN_TESTS_STRICT = "HSOKV_NO_SKIPS"
"""Set by CI: a test that needs `HSOKV_DATA_DIR` and is skipped counts as a failure."""

QDRANT_API_KEY = "QDRANT_API_KEY"
"""API key of a Qdrant server."""

QDRANT_URL = "QDRANT_URL"
"""Address of a Qdrant server on which the tests run the store contract too; skipped where it is unset."""

MEMORY_KEY = "HSOKV_MEMORY_KEY"
"""A tenant's key to a shared memory."""

API_KEYS = "HSOKV_API_KEYS"
"""API keys of the HTTP server: lines `name:key`."""


def memory_key() -> str | None:
    """Return the tenant's key, or None where it is not set."""
    return os.environ.get(MEMORY_KEY) or None


def api_keys() -> list[str]:
    """Return the lines of the HTTP server's API keys, none where they are not set."""
    return os.environ.get(API_KEYS, "").splitlines()


def runs_dir() -> Path:
    """Return the absolute folder that holds all runs."""
    return Path(os.environ.get(RUNS_DIR) or Path.home() / "hsokv_runs").expanduser().absolute()


def data_dir() -> Path | None:
    """Return the folder of real data sets, or None where it is not set.

    Raises `ConfigError` when the variable names something that is not a folder.
    """
    value = os.environ.get(DATA_DIR)
    if not value:
        return None
    path = Path(value)
    if not path.is_dir():
        raise ConfigError(f"{DATA_DIR}: got {value!r}, which is not a folder; set it to a folder or unset it")
    return path.absolute()


def hub_token(variable: str = "HF_TOKEN") -> str | None:
    """Return the Hugging Face token held in `variable`; the old name is read with a warning."""
    if token := os.environ.get(variable):
        return token
    old = "HUGGING_FACE_HUB_TOKEN"
    if token := os.environ.get(old):
        warnings.warn(f"{old} is deprecated by Hugging Face; set HF_TOKEN instead", FutureWarning, stacklevel=2)
        return token
    return None
