"""Begin a model from one that was saved."""

from pathlib import Path

from hsokv_ray.errors import CheckpointError
from hsokv_ray.models import TransformerWithKV

READING = {"top_k", "temperature", "threshold", "learning_recall"}
"""Settings of a memory that change nothing of what it holds."""


def take_over(model: TransformerWithKV, folder: str | Path) -> None:
    """Give `model` the weights, and where both have one the memory, that `save_pretrained` wrote to `folder`.

    How the memory is read stays as `model` has it: the strategy and the command line decide that, not the folder.

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
        reading, memory = model.memory.config.model_dump(include=READING), saved.memory.train(model.training)
        memory.config = memory.config.model_copy(update=reading)
        model.memory, model.config.memory = memory, memory.config.model_dump(mode="json")
