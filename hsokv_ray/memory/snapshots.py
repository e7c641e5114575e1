"""A memory's state in a folder: arrays as safetensors, the rest as JSON, replaced as a whole or not at all.

    save_state("memory/words", "key_value", arrays, values)
    arrays, values = load_state("memory/words", "key_value")

Each save is a new sub-folder `state-00000001` with a manifest of checksums, made under a hidden name and renamed; the
one before goes when the new one stands. A process killed at any moment leaves the old state or the new one.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hsokv_ray.errors import CheckpointError, StoreError
from hsokv_ray.manifest import flush_folder, read_manifest, verify_manifest, write_manifest

FORMAT = 1
ARRAYS = "arrays.safetensors"
VALUES = "values.json"
_NUMBER = re.compile(r"state-(\d{8,})")
_HIDDEN = re.compile(r"\.(tmp|old)-state-\d+")


def save_state(folder: str | Path, kind: str, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> Path:
    """Write a state of `kind`; return its folder. One process writes.

    Args:
        folder: made if missing.
        kind: which memory this is; checked when it is read.
        arrays: by name.
        values: JSON values.

    Raises:
        StoreError: the disk refuses; the state before is still there.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clean(folder)
        target = folder / f"state-{max(_numbers(folder), default=0) + 1:08d}"
        temporary = folder / f".tmp-{target.name}"
        temporary.mkdir()
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary / ARRAYS)
        (temporary / VALUES).write_text(json.dumps(values, allow_nan=False, ensure_ascii=False), encoding="utf-8")
        write_manifest(temporary, extra={"kind": kind, "format": FORMAT})
        temporary.rename(target)
        flush_folder(folder)
        for number in _numbers(folder):
            if number < int(target.name.removeprefix("state-")):
                _remove(folder, number)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{folder}: the memory cannot be saved ({error}); the state before is unchanged") from error
    return target


def load_state(folder: str | Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the newest state in `folder` after every file was found unchanged.

    Raises:
        CheckpointError: there is none, it is damaged, of another kind, or of another version of this package.
    """
    folder = Path(folder)
    numbers = _numbers(folder) if folder.is_dir() else []
    if not numbers:
        raise CheckpointError(f"{folder} holds no saved memory; give the folder that save() was given")
    newest = folder / f"state-{numbers[-1]:08d}"
    found = verify_manifest(newest).extra
    if found.get("kind") != kind or found.get("format") != FORMAT:
        raise CheckpointError(
            f"{newest} holds {found.get('kind')!r} of format {found.get('format')!r}; {kind!r} of {FORMAT} is needed"
        )
    try:
        return load_file(newest / ARRAYS), json.loads((newest / VALUES).read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{newest} cannot be read ({error}); use another copy") from None


def _numbers(folder: Path) -> list[int]:
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _NUMBER.fullmatch(path.name)))


def _remove(folder: Path, number: int) -> None:
    # Renamed first: a state half removed would look like a damaged one.
    old = folder / f"state-{number:08d}"
    aside = old.rename(folder / f".old-{old.name}")
    shutil.rmtree(aside)


def _clean(folder: Path) -> None:
    for path in folder.iterdir():
        if _HIDDEN.fullmatch(path.name):
            shutil.rmtree(path)
    for number in _numbers(folder):
        try:
            read_manifest(folder / f"state-{number:08d}")
        except CheckpointError as error:
            raise StoreError(f"{error}; move it away first") from None
