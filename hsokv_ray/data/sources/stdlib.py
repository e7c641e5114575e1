"""The embedded corpus: modules of the running Python's standard library and the topics of its reference manual."""

import functools
import hashlib
import importlib
import os
import platform
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from hsokv_ray.data.uri import STDLIB_URI
from hsokv_ray.errors import DataError

_SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
# Its text is read as the topics.
_TOPICS_MODULE = "pydoc_data/topics.py"
_TOPIC = "topic/"


@functools.cache
def stdlib_sizes() -> Mapping[str, int]:
    """Return the bytes of each document by URI: `python://stdlib/<module path>` and `python://stdlib/topic/<name>`."""
    sizes = {}
    root = _root()
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
        for path in (Path(folder, name) for name in sorted(names) if name.endswith(".py")):
            if size := path.stat().st_size:
                sizes[path.relative_to(root).as_posix()] = size
    sizes.pop(_TOPICS_MODULE, None)
    sizes |= {_TOPIC + name: len(text.encode()) for name, text in sorted(_topics().items())}
    return {f"{STDLIB_URI}/{name}": size for name, size in sizes.items()}


@functools.cache
def stdlib_revision() -> str:
    """Return the Python version and a digest of the names and sizes, which a worker must share with the driver."""
    listing = "\n".join(f"{name} {size}" for name, size in stdlib_sizes().items())
    return f"python-{platform.python_version()}-{hashlib.sha256(listing.encode()).hexdigest()[:16]}"


def read_stdlib(uri: str) -> bytes:
    """Return the bytes of one document by its URI."""
    name = uri.removeprefix(f"{STDLIB_URI}/")
    if name.startswith(_TOPIC):
        return _topics()[name.removeprefix(_TOPIC)].encode()
    return (_root() / name).read_bytes()


def check_stdlib(revision: str | None) -> None:
    """Raise `DataError` where this machine's Python is not the one the plan was made on."""
    if revision != stdlib_revision():
        raise DataError(
            f"{STDLIB_URI}: planned on {revision}, but this worker runs {stdlib_revision()}; "
            "use one Python on all machines, or give another --source"
        )


def _root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _topics() -> Mapping[str, str]:
    # Some distributions package the manual's topics apart from Python.
    try:
        return importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError:
        return {}
