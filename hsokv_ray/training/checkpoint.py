"""The checkpoints of a run: each is complete or absent, whenever the process, the machine or the disk gives up.

A checkpoint is written into a hidden folder, its files flushed to disk, its manifest of checksums written last; then
the folder is renamed to `step-00000200` and its parent flushed. One process writes; any number may read.
"""

import errno
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from hsokv_ray.errors import CheckpointError, RunError
from hsokv_ray.manifest import flush_folder, read_manifest, verify_manifest, write_manifest
from hsokv_ray.training.snapshot import Snapshot, read_snapshot, write_snapshot

BEST = "best.json"
_STEP = re.compile(r"step-(\d{8,})")
_HIDDEN = re.compile(r"\.(tmp|old)-")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SMALL_FILES_BYTES = 1_000_000
"""Room for configuration, tokenizer and manifest beside the tensors."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A checkpoint that verifies."""

    step: int
    path: Path
    damaged: tuple[str, ...]
    """One line for each better candidate that was refused, naming its file."""


class CheckpointStore:
    """The checkpoints in one folder.

    Args:
        folder: `<run>/checkpoints`; made at the first save.
        keep: newest checkpoints kept; the best one is kept besides.
    """

    def __init__(self, folder: str | Path, *, keep: int) -> None:
        self.folder, self.keep = Path(folder), keep

    def path_of(self, step: int) -> Path:
        """Return where the checkpoint of `step` lies, whether or not it is there."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Return the steps that have a folder, ascending, whether or not they verify."""
        names = (path.name for path in self.folder.iterdir()) if self.folder.is_dir() else ()
        return sorted(int(match[1]) for name in names if (match := _STEP.fullmatch(name)))

    @property
    def last_saved(self) -> Path | None:
        """The newest finished checkpoint, its files not checked again; None where there is none."""
        for step in reversed(self.steps()):
            if self._flags(step) is not None:
                return self.path_of(step)
        return None

    def latest(self) -> Found | None:
        """Return the newest checkpoint that verifies; None where there is none at all.

        A damaged one is logged and listed in the result, never skipped in silence.

        Raises:
            CheckpointError: there are checkpoints and every one is damaged.
        """
        return self._first_intact(list(reversed(self.steps())))

    def best(self) -> Found | None:
        """Return the checkpoint last saved as the best, else the latest. Raises as `latest`."""
        newest_first = list(reversed(self.steps()))
        flagged = [step for step in newest_first if (self._flags(step) or {}).get("best")]
        return self._first_intact(flagged + [step for step in newest_first if step not in flagged])

    def load(self, path: str | Path) -> Snapshot:
        """Read the checkpoint at `path` after checking every file. Raises `CheckpointError`."""
        return read_snapshot(Path(path))

    def save(self, snapshot: Snapshot, *, best: bool = False) -> Path:
        """Write `snapshot` as the newest checkpoint, then remove those no longer kept; return its folder.

        Folders of later steps are removed too: training went on from an older one because they were damaged.

        Args:
            snapshot: the run's state; its tensors must not change meanwhile.
            best: it has the best validation loss so far.

        Raises:
            RunError: the disk is full or refuses to write; nothing of this checkpoint is left behind.
        """
        target = self.path_of(snapshot.step)
        temporary = self.folder / f".tmp-{target.name}-{os.getpid()}"
        try:
            self._make_room(snapshot)
            temporary.mkdir()
            write_snapshot(snapshot, temporary)
            write_manifest(temporary, extra={"step": snapshot.step, "best": best})
            self._set_aside(target)
            temporary.rename(target)
            flush_folder(self.folder)
            self.prune(newest=snapshot.step)
        except (OSError, SafetensorError) as error:
            # What went wrong is `error`; a failure to clean up after it must not hide it.
            shutil.rmtree(temporary, ignore_errors=True)
            raise self._disk_error(error, snapshot, target) from error
        return target

    def prune(self, *, newest: int) -> None:
        """Remove every checkpoint but the `keep` newest up to step `newest` and the best; point best.json at that."""
        steps = self.steps()
        finished = [step for step in steps if step <= newest and self._flags(step) is not None]
        flagged = [step for step in finished if (self._flags(step) or {}).get("best")]
        if flagged:
            self._point_at_best(flagged[-1])
        for step in set(steps) - set(finished[-self.keep :]) - set(flagged[-1:]):
            self._set_aside(self.path_of(step))
        self._remove_hidden()

    def _first_intact(self, steps: list[int]) -> Found | None:
        damaged: list[str] = []
        for step in steps:
            try:
                verify_manifest(self.path_of(step))
            except CheckpointError as error:
                damaged.append(str(error))
                logger.warning("checkpoint skipped: %s", error)
            else:
                return Found(step, self.path_of(step), tuple(damaged))
        if damaged:
            raise CheckpointError(
                f"{self.folder} has no checkpoint that is whole: {'; '.join(damaged)}; "
                "remove the folder to start again, or give another --name"
            )
        return None

    def _flags(self, step: int) -> dict | None:
        """Return what the manifest of `step` records, or None where it was never finished."""
        try:
            return read_manifest(self.path_of(step)).extra
        except CheckpointError:
            return None

    def _make_room(self, snapshot: Snapshot) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_hidden()
        if shutil.disk_usage(self.folder).free < snapshot.num_bytes + _SMALL_FILES_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _disk_error(self, error: OSError | SafetensorError, snapshot: Snapshot, target: Path) -> RunError:
        last = self.last_saved
        kept = f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"
        if not _is_disk_full(error):
            return RunError(f"cannot write {target} ({error}); check the folder's permissions and disk; {kept}")
        free = shutil.disk_usage(self.folder).free
        return RunError(
            f"the disk is full: {target} needs {_megabytes(snapshot.num_bytes)} and {self.folder} has "
            f"{_megabytes(free)} free; free some space, lower --keep or give another --output-dir; {kept}"
        )

    def _set_aside(self, path: Path) -> None:
        # Renamed first: a checkpoint half removed would look like a damaged one.
        if path.exists():
            path.rename(self.folder / f".old-{path.name}-{os.getpid()}")

    def _remove_hidden(self) -> None:
        for path in self.folder.iterdir():
            if _HIDDEN.match(path.name):
                shutil.rmtree(path)

    def _point_at_best(self, step: int) -> None:
        temporary = self.folder / f"{BEST}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump({"step": step, "folder": self.path_of(step).name}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.folder / BEST)
        flush_folder(self.folder)


def _is_disk_full(error: OSError | SafetensorError) -> bool:
    # safetensors ("I/O error: ... (os error 28)") and shutil.copytree ("[Errno 28] ...") give the number as text only.
    texts = [f"{name} {code}{end}" for code in _DISK_FULL for name, end in (("(os error", ")"), ("[Errno", "]"))]
    return getattr(error, "errno", None) in _DISK_FULL or any(text in str(error) for text in texts)


def _megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
