"""README.md of a run: a model card the Hugging Face hub reads, with everything needed to judge and repeat the run."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hsokv_ray.config import dump_yaml
from hsokv_ray.training.config import TrainHMSTConfig

PACKAGES = ("hsokv_ray", "torch", "transformers", "ray", "datasets", "tokenizers")

LIMITS = """- It continues text; it was not trained to follow instructions, to be truthful or to be harmless.
- It has seen only the text named above and repeats its errors, its biases and whatever private data it held.
- The validation text comes from the same source, so its loss says nothing about other text.
- The licence of the text decides what the weights may be used for; this card claims none."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a model card tells; nothing is looked up or guessed."""

    config: TrainHMSTConfig
    """The run's configuration."""

    checkpoint: Path
    """Folder of the best checkpoint."""

    total_parameters: int
    active_parameters: int
    """Parameters that take part in the computation of one token."""

    data: Mapping[str, Any]
    """Counts and digests by name: documents, tokens, skipped items, digest of the plan. None is left out."""

    step: int
    """Optimiser steps of the whole run."""

    best_step: int | None
    """Optimiser steps at the best validation."""

    tokens: int
    """Tokens trained on."""

    val_loss: float | None
    """Best validation loss in nats per token; None where nothing was held out."""

    baselines: Mapping[str, float]
    """Nats per token on the same validation text, by name of the baseline."""

    command: str
    """The command line that made it."""


def write_model_card(target: str | Path, facts: Facts) -> Path:
    """Write the model card of `facts` to `target` and return its path."""
    target = Path(target)
    target.write_text(model_card(facts), encoding="utf-8")
    return target


def model_card(facts: Facts) -> str:
    """Return the model card as Markdown with YAML front matter."""
    config = facts.config
    is_sparse = facts.active_parameters < facts.total_parameters
    kind = "sparse mixture-of-experts" if is_sparse else "dense"
    return f"""---
{_front_matter(facts)}
---

# {config.run.name}

A {kind} HMST language model (size {config.model.size}): {facts.total_parameters:,} parameters, \
{facts.active_parameters:,} of them active per token; blocks of {config.data.seq_len:,} tokens.

## Results

{_results(facts)}

![loss](loss.png)

## Use

```bash
hsokv generate {facts.checkpoint} --prompt "Once upon a time"
```

```python
import hsokv_ray.models  # registers HMST with transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{facts.checkpoint}")
tokenizer = AutoTokenizer.from_pretrained("{facts.checkpoint}")
```

## Data

Source: `{config.data.dataset_file or config.data.source}`

{_table(("what", "value"), facts.data)}

## Training

{facts.step:,} optimiser steps, {facts.tokens:,} tokens.

```bash
{facts.command}
```

```yaml
{dump_yaml(config).strip()}
```

## Limits

{LIMITS}

## Versions

{_table(("package", "version"), versions())}
"""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the result."""
    return {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in PACKAGES}


def _front_matter(facts: Facts) -> str:
    config, results = facts.config, None
    source = config.data.dataset_file or config.data.source
    if facts.val_loss is not None:
        perplexity = EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name=f"held-out part of {source}",
            metric_type="perplexity",
            metric_value=round(math.exp(facts.val_loss), 3),
        )
        results = [perplexity]
    card = ModelCardData(
        model_name=config.run.name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["hsokv_ray", "hmst", "mixture-of-experts"],
        eval_results=results,
    )
    return card.to_yaml()


def _results(facts: Facts) -> str:
    """Return the table of losses, the baselines beside the model."""
    if facts.val_loss is None:
        return "No text was held out, so there is no validation loss."
    best = "" if facts.best_step is None else f" (step {facts.best_step:,})"
    losses = {f"this model{best}": facts.val_loss, **facts.baselines}
    rows = {name: f"{loss:.3f} | {math.exp(loss):,.1f}" for name, loss in losses.items()}
    return _table(("on the held-out text", "nats per token", "perplexity"), rows)


def _table(head: tuple[str, ...], rows: Mapping[str, Any]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    known = {name: value for name, value in rows.items() if value is not None}
    lines += [f"{name} | {f'{value:,}' if isinstance(value, int) else value}" for name, value in known.items()]
    return "\n".join(f"| {line} |" for line in lines)
