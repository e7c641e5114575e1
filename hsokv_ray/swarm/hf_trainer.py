"""The search as a Hugging Face style trainer.

trainer = HFSwarmTrainer(HFSwarmConfig(meta_iterations=4, extras={"agents_per_manager": 2, "agent_steps": 50}))
summary = trainer.train()
summary["test_metrics"], summary["retention"], summary["flops"]
trainer.save_model("outputs/words")             # config, weights, tokenizer, memory; from_pretrained reads it
"""

from pathlib import Path
from typing import Any

import pydantic

from hsokv_ray.config import Config
from hsokv_ray.errors import ConfigError, RunError
from hsokv_ray.swarm.job import SearchJob
from hsokv_ray.swarm.learner import Learner
from hsokv_ray.swarm.search_config import SearchRunConfig, SearchSizeConfig, SearchSwarmConfig, SearchTaskConfig


class HFSwarmConfig(Config):
    """What `HFSwarmTrainer` trains."""

    output_dir: str = "outputs/hsokv_hf"
    """Folder of the run: journal, states, plots, the best model. The same folder again goes on with the run."""

    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of every decision and model."""

    device: str = "cpu"
    """Models of a search are small and train on CPUs; anything else is refused."""

    max_seq_length: int | None = pydantic.Field(default=None, ge=8)
    """Tokens of a window of a language model, or of a definition. None: as in the job."""

    meta_iterations: int | None = pydantic.Field(default=None, ge=1)
    """Decisions about each model. None: by the preset."""

    use_swarm: bool = True
    """False: one model is trained on the same FLOPs."""

    use_kv: bool = True
    """Give the model its key-value memory."""

    extras: dict[str, Any] = pydantic.Field(default_factory=dict)
    """Any other setting of `jobs/search_swarm.py` by its name, such as `agents_per_manager` or `glue_task`."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "HFSwarmConfig":
        if self.device != "cpu":
            raise ConfigError(f"device: got {self.device!r}; models of a search train on 'cpu'")
        return self

    def job(self) -> SearchSwarmConfig:
        """Return the job's configuration. Raises `ConfigError`: an extra is unknown."""
        folder = Path(self.output_dir).expanduser().absolute()
        given: dict[str, Any] = {
            "output_dir": str(folder.parent), "name": folder.name, "seed": self.seed, "use_swarm": self.use_swarm,
            "use_kv": self.use_kv, "distributed_backend": "local", **self.extras,
        }  # fmt: skip
        if self.meta_iterations is not None:
            given["iterations"] = self.meta_iterations
        if self.max_seq_length is not None:
            given |= {"lm_seq_length": self.max_seq_length, "definition_max_length": self.max_seq_length}
        parts: dict[str, dict[str, Any]] = {"task": {}, "search": {}, "run": {}}
        kinds = {"task": SearchTaskConfig, "search": SearchSizeConfig, "run": SearchRunConfig}
        for name, value in given.items():
            part = next((part for part, kind in kinds.items() if name in kind.model_fields), None)
            if part is None:
                raise ConfigError(f"extras: got {name!r}; a flag of jobs/search_swarm.py is needed, - written as _")
            parts[part][name] = value
        return SearchSwarmConfig(**{part: kinds[part](**values) for part, values in parts.items()})


class HFSwarmTrainer:
    """Searches, evaluates, saves.

    Args:
        config: what to train.
        show: print the live table and what is done.
    """

    def __init__(self, config: HFSwarmConfig | None = None, *, show: bool = False) -> None:
        self.config = config or HFSwarmConfig()
        self.job = SearchJob(self.config.job(), show=show)
        self._learner: Learner | None = None

    def train(self) -> dict[str, Any]:
        """Search to the end, or go on with what `output_dir` holds; return the summary, all of it plain JSON.

        Keys: test_metrics, retention (None where the task has none), history (one entry per outcome: order, agent,
        step, score, metrics), baselines, best, flops (by kind), flops_estimate (their sum).
        """
        self.job.search(resume=self.job.files.config.exists())
        self._learner = None
        return self.job.summary()

    def evaluate(self) -> dict[str, Any]:
        """Return the best model's figures on test data; changes nothing."""
        return self._best().test()  # pyright: ignore[reportAttributeAccessIssue]

    def save_model(self, folder: str | Path) -> Path:
        """Save the best model with config, weights, tokenizer and memory."""
        return self.job.save_best(Path(folder), learner=self._best())

    def _best(self) -> Learner:
        if self._learner is None:
            if not self.job.is_finished:
                raise RunError(f"{self.job.folder}: nothing is trained yet; call train() first")
            self._learner = self.job.best_learner()
        return self._learner
