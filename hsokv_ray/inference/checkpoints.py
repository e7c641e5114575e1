"""From what the user named to the folder (or hub name) that holds a model."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from hsokv_ray.errors import CheckpointError
from hsokv_ray.manifest import NAME as MANIFEST

BEST = "best.json"
_STEP = re.compile(r"step-(\d+)")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class ModelSource:
    """Where a model and its tokenizer are read from."""

    model: str
    """Folder with a config.json, or a hub name."""
    tokenizer: str
    folder: Path | None
    """Checkpoint folder whose manifest covers the model; None for a hub name."""


def resolve(checkpoint: str) -> ModelSource:
    """Find the model that `checkpoint` names: a run, a checkpoint, a Hugging Face folder or a hub name.

    Raises `CheckpointError` if there is none.
    """
    path = Path(checkpoint).expanduser()
    if not path.exists():
        if _HUB_NAME.fullmatch(checkpoint) and not checkpoint.startswith("."):
            return ModelSource(model=checkpoint, tokenizer=checkpoint, folder=None)
        raise CheckpointError(f"{checkpoint} does not exist; give a run folder, a model folder or a hub name")
    if not path.is_dir():
        raise CheckpointError(f"{checkpoint} is a file; give the folder that holds it")
    path = path.absolute()
    for folder in (path, _chosen_step(path / "checkpoints"), _chosen_step(path)):
        if folder and (model := _model_folder(folder)):
            return ModelSource(model=str(model), tokenizer=str(_tokenizer_folder(model)), folder=folder)
    raise CheckpointError(f"{checkpoint} holds no model: no config.json and no finished checkpoint is in it")


def _finished_steps(checkpoints: Path) -> dict[int, Path]:
    """Return the checkpoints that have a manifest, by step, oldest first; the others were never finished."""
    found = {int(match[1]): path for path in checkpoints.glob("step-*") if (match := _STEP.fullmatch(path.name))}
    return {step: found[step] for step in sorted(found) if (found[step] / MANIFEST).is_file()}


def _chosen_step(checkpoints: Path) -> Path | None:
    steps = _finished_steps(checkpoints)
    best = _best_step(checkpoints) if steps else None
    return steps[best] if best in steps else next(reversed(steps.values()), None)


def _best_step(checkpoints: Path) -> int | None:
    path = checkpoints / BEST
    if not path.is_file():
        return None
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}); name a step-* folder beside it instead") from None


def _model_folder(folder: Path) -> Path | None:
    return next((place for place in (folder, folder / "model") if (place / "config.json").is_file()), None)


def _tokenizer_folder(model: Path) -> Path:
    """A run saves its tokenizer once, above its checkpoints."""
    if any((model / name).is_file() for name in _TOKENIZER_FILES):
        return model
    above = (parent / "tokenizer" for parent in [model, *model.parents][:5])
    return next((folder for folder in above if folder.is_dir()), model)
