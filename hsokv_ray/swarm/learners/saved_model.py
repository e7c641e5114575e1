"""Begin a model from one that was saved."""

from pathlib import Path

from hsokv_ray.errors import CheckpointError
from hsokv_ray.models import TransformerWithKV


def take_over(model: TransformerWithKV, folder: str | Path) -> None:
    """Give `model` the weights, and where both have one the memory, that `save_pretrained` wrote to `folder`.

    Raises:
        CheckpointError: it is missing, damaged, of another shape or vocabulary, or its memory of another encoder.
    """
    try:
        saved = type(model).from_pretrained(folder)
        model.load_state_dict(saved.state_dict())
    except (OSError, ValueError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder}: no model for this task ({cause}); give one saved with the same task"
        ) from None
    if model.memory is not None and saved.memory is not None:
        model.memory = saved.memory.train(model.training)
