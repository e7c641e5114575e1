"""A folder of tensors with a manifest of checksums: complete or absent, whatever happens while it is written."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hsokv_ray.errors import CheckpointError, RunError
from hsokv_ray.manifest import flush_folder, verify_manifest, write_manifest

_TENSORS = "tensors.safetensors"


def write_folder(path: str | Path, tensors: dict[str, torch.Tensor], extra: dict[str, Any]) -> Path:
    """Write `tensors` and `extra` (JSON) to the folder `path`, replacing one that is there; return its path.

    Raises `RunError`: the disk refuses, or `path` holds something else. What was there stays.
    """
    path = Path(path).expanduser().absolute()
    hidden = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, hidden / _TENSORS)
        write_manifest(hidden, extra=extra)
        _swap(hidden, path)
        return path
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise RunError(f"{path} cannot be written ({why}); free space or give another folder") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def read_folder(path: str | Path, *, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and the extra of a folder whose checksums hold.

    Raises `CheckpointError`: missing, damaged, or its extra names another `kind`.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise CheckpointError(f"{path} is no folder; give the folder a memory was saved to")
    manifest = verify_manifest(path)
    if manifest.extra.get("kind") != kind:
        raise CheckpointError(f"{path} holds {manifest.extra.get('kind')!r}, not {kind!r}; give the folder of a {kind}")
    try:
        return load_file(path / _TENSORS), manifest.extra
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path / _TENSORS} cannot be read ({error}); encode the text again") from None


def _swap(fresh: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    if path.exists():
        if not (path / "manifest.json").is_file() and any(path.iterdir()):
            raise FileExistsError(17, "it holds other files")
        path.rename(old)
    fresh.rename(path)
    flush_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)
