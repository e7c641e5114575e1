"""What a finished run leaves beside its checkpoints: the loss plot, the model card, and the last words to its user."""

import math
from pathlib import Path
from typing import Any

from hsokv_ray.training.checkpoint import CheckpointStore
from hsokv_ray.training.config import TrainHMSTConfig
from hsokv_ray.training.cost import Cost
from hsokv_ray.training.metrics import read_rows
from hsokv_ray.training.model_card import Facts, write_model_card
from hsokv_ray.training.plot import plot_loss
from hsokv_ray.training.prepare import Prepared
from hsokv_ray.training.run_folder import RunFolder


def write_results(
    config: TrainHMSTConfig,
    folder: RunFolder,
    prepared: Prepared,
    cost: Cost,
    summary: dict[str, Any],
    *,
    command: str,
) -> str:
    """Write loss.png and README.md of the run; return what to tell the user."""
    best = CheckpointStore(folder.checkpoints, keep=config.run.keep).best()
    assert best is not None, "a run that ended well has a checkpoint"
    entropy = prepared.baselines.unigram_entropy
    plot_loss(folder.metrics, folder.plot, unigram_entropy=entropy, title=config.run.name)
    write_model_card(
        folder.model_card,
        Facts(
            config=config,
            checkpoint=best.path,
            total_parameters=cost.parameters.total,
            active_parameters=cost.parameters.active,
            data=_data(folder, prepared),
            step=summary["step"],
            best_step=summary["best_step"],
            tokens=summary["tokens"],
            val_loss=summary["best_loss"],
            baselines=_baselines(prepared),
            command=command,
        ),
    )
    return _last_words(folder, best.path, summary, entropy)


def _data(folder: RunFolder, prepared: Prepared) -> dict[str, Any]:
    counts = read_rows(folder.metrics)[-1]["counts"]
    plan, tokenizer = prepared.plan, prepared.tokenizer
    return {
        "plan": plan.digest,
        "revision": plan.revision,
        "tokenizer": tokenizer.fingerprint,
        **{name.replace("_", " "): count for name, count in counts.items() if count or name == "documents"},
    }


def _baselines(prepared: Prepared) -> dict[str, float]:
    baselines = prepared.baselines
    rows = {"uniform over the vocabulary": math.log(prepared.tokenizer.vocab_size)}
    if baselines.unigram_cross_entropy is not None:
        rows["unigram counts of the training text"] = baselines.unigram_cross_entropy
    return rows


def _last_words(folder: RunFolder, checkpoint: Path, summary: dict[str, Any], entropy: float) -> str:
    lines = []
    if summary["best_loss"] is not None:
        lines.append(
            f"validation   {summary['best_loss']:.3f} nats per token at best (step {summary['best_step']:,}); "
            f"unigram entropy of the corpus {entropy:.3f}"
        )
    lines += [
        f"checkpoint   {checkpoint}",
        f"loss plot    {folder.plot}",
        f"model card   {folder.model_card}",
        f"next         hsokv generate {folder.path}",
    ]
    return "\n".join(lines)
