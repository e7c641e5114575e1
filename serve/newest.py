"""Which model is served where none is named."""

import json
from collections.abc import Iterator
from pathlib import Path

from hsokv_ray import env
from hsokv_ray.errors import ConfigError
from hsokv_ray.inference.checkpoints import resolve
from hsokv_ray.manifest import NAME as MANIFEST

_REPOSITORY = Path(__file__).parents[1]


def model_path(named: str | None) -> str:
    """Return the absolute path, or hub name, of the model to serve.

    Raises:
        CheckpointError: there is no model at `named`.
        ConfigError: none is named, and no run has a checkpoint of an HMST model.
    """
    if named is not None:
        source = resolve(named)
        return named if source.folder is None else str(Path(named).expanduser().absolute())
    places = [env.runs_dir(), _REPOSITORY / "runs"]
    newest = max((step for place in places for step in _checkpoints(place)), key=_written_at, default=None)
    if newest is None:
        looked = " and ".join(map(str, places))
        raise ConfigError(f"no model is named, and no checkpoint is in {looked}; run `make demo`, or give model=PATH")
    return str(newest)


def model_name(path: str) -> str:
    """Return what clients call the model at `path`: the run's name, the folder's, or the last part of a hub name."""
    parts = Path(path).parts
    if "checkpoints" in parts[1:]:
        return parts[parts.index("checkpoints") - 1]
    return Path(path).name


def _checkpoints(runs: Path) -> Iterator[Path]:
    """Yield the finished checkpoints of HMST models."""
    for manifest in runs.glob(f"*/checkpoints/step-*/{MANIFEST}"):
        folder = manifest.parent
        configs = [path for path in (folder / "config.json", folder / "model" / "config.json") if path.is_file()]
        if configs and json.loads(configs[0].read_text(encoding="utf-8")).get("model_type") == "hmst":
            yield folder


def _written_at(checkpoint: Path) -> int:
    return (checkpoint / MANIFEST).stat().st_mtime_ns


def documents_folder(named: str | None) -> Path:
    """Return the absolute folder of documents."""
    return Path(named).expanduser().absolute() if named else env.runs_dir() / "documents"
