"""One process writes a folder: the lock that a run or a search holds on its own.

with hold(folder):
    ...
"""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from hsokv_ray.errors import RunError


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make `folder` where it is missing, and hold it for this process; the system lets go when the process ends.

    Raises:
        RunError: the folder cannot be written, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written ({error.strerror}); give a folder you may write with --output-dir"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise RunError(f"{folder} is being written by {holder}; wait for it, or give another --name") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield
