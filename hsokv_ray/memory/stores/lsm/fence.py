"""Who may write: one process per folder, and never one that was replaced.

    lock = lock_folder(folder)             # a second process on this machine: "already open by process 4242"
    epoch = claim_epoch(folder)            # 8: whoever wrote under 7 is fenced from here on
    check_epoch(folder, epoch)             # StoreError once somebody claimed 9

A writer appends to the log, waits for the disk, then checks its epoch, then acknowledges. A new owner claims an epoch
first and reads the log after that. So a write that the old owner acknowledges was on disk before the claim and is read;
one that came later fails the check and is never acknowledged. The lock only makes the usual mistake, opening a folder
twice, a clear error at once; the epochs are what keeps the data right, also where the lock is passed over (`takeover`)
or the file system has none.
"""

import fcntl
import os
from pathlib import Path

from hsokv_ray.errors import StoreError
from hsokv_ray.manifest import flush_folder

LOCK = "owner.lock"
EPOCHS = "epochs"
_KEPT = 16
"""Epoch files that stay; more than one, so that nobody mistakes a gap for the first claim."""


class FolderLock:
    """The lock of a folder, held or not. It goes with the process, however that ends."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._descriptor: int | None = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        self.is_held = False

    def take(self) -> bool:
        """Take the lock if it is free; return whether this process holds it."""
        if self.is_held or self._descriptor is None:
            return self.is_held
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.is_held = True
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)
        return True

    def owner(self) -> str:
        """Return the process that wrote itself into the lock."""
        text = self._path.read_text(errors="replace").strip()
        return f"process {text}" if text.isdigit() else "another process"

    def release(self) -> None:
        """Give the lock up; again: nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor, self.is_held = None, False


def lock_folder(folder: Path, *, takeover: bool = False) -> FolderLock:
    """Return the lock of `folder`, held; with `takeover` also where somebody else holds it.

    Raises `StoreError`: another process, or another store in this one, has the folder open.
    """
    try:
        lock = FolderLock(folder)
        if lock.take() or takeover:
            return lock
    except OSError as error:
        raise StoreError(f"{folder / LOCK} cannot be locked ({error}); use a folder on a local disk") from None
    owner = lock.owner()
    lock.release()
    raise StoreError(f"{folder} is already open by {owner}; close it there, or use another folder")


def claim_epoch(folder: Path) -> int:
    """Return a new epoch, higher than every one before; all earlier owners are fenced. Raises `StoreError`."""
    epochs = folder / EPOCHS
    try:
        epochs.mkdir(exist_ok=True)
        flush_folder(folder)
        while True:
            epoch = max(list_epochs(folder), default=0) + 1
            if _create(epochs / f"{epoch:06d}"):
                break
        flush_folder(epochs)
        for old in list_epochs(folder):
            if old <= epoch - _KEPT:
                (epochs / f"{old:06d}").unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{epochs}: no epoch can be claimed ({error}); check the disk and its permissions") from None
    return epoch


def check_epoch(folder: Path, epoch: int) -> None:
    """Raise `StoreError` where a later owner claimed the folder, or the folder is gone."""
    try:
        newest = max(list_epochs(folder), default=0)
    except OSError as error:
        raise StoreError(f"{folder} cannot be read ({error}); nothing more is acknowledged") from None
    if newest != epoch:
        raise StoreError(
            f"fenced: {folder} was opened by another writer (epoch {newest}; this one has {epoch}); "
            "nothing more is acknowledged here: open it again to take over"
        )


def list_epochs(folder: Path) -> list[int]:
    """Return the epochs that were claimed, in any order."""
    return [int(name) for name in os.listdir(folder / EPOCHS) if name.isdigit()]


def _create(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    return True
