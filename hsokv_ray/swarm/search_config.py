"""Configuration of the search job. Imports neither torch nor ray, so `--help` answers at once."""

from dataclasses import dataclass
from typing import Literal

import pydantic

from hsokv_ray.config import Config
from hsokv_ray.errors import ConfigError
from hsokv_ray.swarm.config import SwarmConfig

PresetName = Literal["quick_test", "demo", "research"]
BackendName = Literal["ray", "multiprocessing", "local"]


@dataclass(frozen=True)
class Preset:
    """What the flags about size are where they are not given."""

    iterations: int
    agent_steps: int
    num_managers: int
    agents_per_manager: int
    size: Literal["tiny", "base"]


PRESETS: dict[PresetName, Preset] = {
    "quick_test": Preset(iterations=4, agent_steps=150, num_managers=1, agents_per_manager=2, size="tiny"),
    "demo": Preset(iterations=10, agent_steps=100, num_managers=2, agents_per_manager=3, size="tiny"),
    "research": Preset(iterations=20, agent_steps=200, num_managers=2, agents_per_manager=5, size="base"),
}


class SearchTaskConfig(Config):
    """What the models learn."""

    task: Literal["classification", "language_model"] = "classification"
    """Classify by one of the benchmarks, or predict the next token of `--lm-corpus`."""

    benchmark: Literal["synthetic", "glue", "cifar"] = "synthetic"
    """Of classification: one-shot words of a generated language (real ones with `--words-data-dir`), few-shot GLUE, or
    Split-CIFAR-10."""

    glue_task: str = "sst2"
    """sst2, mnli, rte, mrpc or cola."""

    glue_data_dir: str | None = None
    """Folder with the published 16-shot splits, GLUE's TSV folders, the parquet files of nyu-mll/glue, or a saved
    dataset. None: $HSOKV_DATA_DIR."""

    cifar_data_dir: str | None = None
    """Folder with CIFAR-10's binary batches, a saved dataset, or npz files. None: $HSOKV_DATA_DIR."""

    allow_download: bool = False
    """Ask the Hugging Face hub for what the folder does not have."""

    shots: int = pydantic.Field(default=16, ge=2)
    """Examples per class of GLUE, in training and again in validation."""

    glue_encoder: str | None = None
    """Frozen encoder that makes GLUE's texts vectors: `sentence-transformers:all-MiniLM-L6-v2`, `hf:org/name`, the
    folder of a model, or `vectors:FOLDER` for vectors that are there already: FOLDER/vectors.npy, float32 [n, dim],
    and FOLDER/texts.jsonl with a line {"text": ...} for each row. None: a transformer learns from the words."""

    words_data_dir: str | None = None
    """Folder with the files of `--words-set`, real words, or one that holds them as rare_words or oneshot_words;
    $HSOKV_DATA_DIR is not looked at. None: words of a generated language."""

    words_set: Literal["rare_words", "definitional_nonce"] | None = None
    """Which real words: rare_words, a dictionary's definitions and examples (rare_words.jsonl.gz);
    definitional_nonce, halves of the first sentences of Wikipedia articles (n2v.definitional.dataset.*.txt). None:
    rare_words."""

    words_encoder: str | None = None
    """Frozen encoder that makes the texts of `--words-data-dir` vectors; takes what `--glue-encoder` takes. None: a
    transformer learns from the words."""

    lm_corpus: str = "python://stdlib"
    """Text of the language model: a path, folder, glob, `hf://` or `python://stdlib`."""

    lm_seq_length: int = pydantic.Field(default=96, ge=8)
    """Tokens of a window."""

    lm_stride: int | None = pydantic.Field(default=None, ge=1)
    """Tokens between the starts of two training windows. None: `--lm-seq-length`."""

    lm_max_sequences: int = pydantic.Field(default=20_000, ge=1)
    """Training windows, at most."""

    use_kv: bool = True
    """Give the model its key-value memory."""

    kv_confidence_threshold: float = pydantic.Field(default=0.15, ge=-1, le=1)
    """Cosine similarity below which an entry of the memory is no hit."""

    definition_max_length: int = pydantic.Field(default=48, ge=4)
    """Words of a definition, or of the context that asks for its word; longer ones are cut."""

    size: Literal["tiny", "base"] | None = None
    """tiny: 2 layers of 64; base: 4 layers of 256. None: by `--preset`."""


class SearchSizeConfig(Config):
    """How many agents search, for how long."""

    preset: PresetName = "demo"
    """Values of what is not given here: quick_test (under 2 minutes on two cores), demo (under 15), research."""

    iterations: int | None = pydantic.Field(default=None, ge=1)
    """Decisions about each model; a whole training has iterations x agent-steps steps."""

    agent_steps: int | None = pydantic.Field(default=None, ge=1)
    """Training steps of an agent between two decisions of the first manager; of exploit restart, before the first."""

    num_managers: int | None = pydantic.Field(default=None, ge=1)
    """Sub-populations, each with its own interval between decisions."""

    agents_per_manager: int | None = pydantic.Field(default=None, ge=1)
    """Agents of each; more than there are CPUs wait for their turn."""

    use_swarm: bool = True
    """False: one model is trained on the same FLOPs as the swarm would have, by the default strategy."""

    exploit: Literal["copy", "restart", "none"] = "copy"
    """What becomes of weak models: they copy a strong one, are dropped for new ones, or train on."""

    interval_factor: int = pydantic.Field(default=2, ge=1)
    """Each further manager decides this many times more rarely."""

    allocation_every: int = pydantic.Field(default=0, ge=0)
    """Outcomes after which the manager whose FLOPs improved the best score least gives an agent to the one where they
    did most. 0: never."""

    flops_budget: float | None = pydantic.Field(default=None, ge=1, allow_inf_nan=False)
    """FLOPs of everything together, wasted work and evaluations included, such as 1e12. None: what all agents need for
    a whole training by the default strategy."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "SearchSizeConfig":
        has_rivals = self.use_swarm and self.exploit != "none" and self.of_preset("num_managers") > 1
        if self.allocation_every and not has_rivals:
            raise ConfigError(
                "--allocation-every moves agents from manager to manager; leave it out, or give a swarm 2 managers or "
                "more (--num-managers) and --exploit copy or restart"
            )
        return self

    def of_preset(self, name: Literal["iterations", "agent_steps", "num_managers", "agents_per_manager"]) -> int:
        """Return the flag's value, or the preset's where it was not given."""
        given = getattr(self, name)
        return getattr(PRESETS[self.preset], name) if given is None else given

    @property
    def total_steps(self) -> int:
        """Steps of one whole training."""
        return self.of_preset("iterations") * self.of_preset("agent_steps")

    @property
    def num_agents(self) -> int:
        """Agents of all managers."""
        return self.of_preset("num_managers") * self.of_preset("agents_per_manager")

    def swarm(self, *, flops_budget: int) -> SwarmConfig:
        """Return the swarm's configuration; one agent that is never judged where there is to be no swarm."""
        if not self.use_swarm:
            steps = self.num_agents * self.total_steps
            return SwarmConfig(
                num_managers=1, agents_per_manager=1, max_steps=steps, interval_steps=self.of_preset("agent_steps"),
                exploit="none", proposals="random", flops_budget=flops_budget, num_trials=1,
            )  # fmt: skip
        return SwarmConfig(
            num_managers=self.of_preset("num_managers"),
            agents_per_manager=self.of_preset("agents_per_manager"),
            max_steps=self.total_steps,
            min_steps=self.of_preset("agent_steps"),
            interval_steps=self.of_preset("agent_steps"),
            interval_factor=self.interval_factor,
            exploit=self.exploit,
            proposals="density" if self.exploit == "restart" else "evolve",
            allocation_every=self.allocation_every,
            flops_budget=flops_budget,
        )


_NOT_WITH_HF = ("resume", "run_ablations", "run_distributed", "visualize", "save_pretrained")
_FLAGS_OF_A_SEARCH = (*_NOT_WITH_HF, "hf_train", "share_memory")
_FLAGS_OF_WORKERS = ("num_workers", "cpus_per_agent")


def _as_flags(names: list[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


class SearchRunConfig(Config):
    """Where the run lives, what it uses, and what is made of it."""

    mode: Literal["train", "test"] = "train"
    """train: search. test: measure a saved model (`--load-pretrained`, or this run's best) beside the trivial
    baselines; nothing is trained."""

    output_dir: str | None = None
    """Folder that holds all runs; on a cluster, one that every node sees. None: $HSOKV_RUNS_DIR or ~/hsokv_runs."""

    name: str = "search_swarm"
    """The run's folder below `--output-dir`."""

    resume: bool = False
    """Go on with the run of that name; what was counted is not counted again."""

    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of every decision and model; where nothing else is said, of the data too."""

    data_seed: int | None = pydantic.Field(default=None, ge=0)
    """Seed of what is held out and measured on. None: that of the model in `--load-pretrained`, else `--seed`."""

    distributed_backend: BackendName = "ray"
    """Who trains: actors of Ray, processes of this machine, or this process alone."""

    num_workers: int | None = pydantic.Field(default=None, ge=1)
    """Models that train at once. None: as many as the CPUs allow, the number of agents at most."""

    cpus_per_agent: float = pydantic.Field(default=1.0, gt=0)
    """CPUs that each of them reserves of Ray."""

    visualize: bool = False
    """Draw the plots once the run is over."""

    best_known: float | None = None
    """Score to which the regret is measured, where one is known."""

    run_ablations: bool = False
    """Afterwards compare with and without memory and swarm, at equal budgets of FLOPs."""

    ablation_seeds: int = pydantic.Field(default=5, ge=2)
    """Seeds of each variant of the ablation."""

    run_distributed: bool = False
    """Afterwards measure rollouts of CartPole on 1, 2 and 4 workers."""

    save_pretrained: str | None = None
    """Folder for the best model: config, weights, tokenizer and memory."""

    load_pretrained: str | None = None
    """Folder of a saved model from which every new model begins; with `--mode test`, the one that is measured."""

    share_memory: str | None = None
    """Store through which all agents share one key-value memory: `shared:NAME/COLLECTION` of a running memory actor
    (`hsokv memory start NAME`), or `faiss:FOLDER` with --distributed-backend local. For --task language_model."""

    hf_train: bool = False
    """Train by `HFSwarmTrainer`, and save model and summary to `--hf-output-dir`."""

    hf_output_dir: str = "outputs/hsokv_hf"
    """Folder of `--hf-train`."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "SearchRunConfig":
        given = [name for name in _FLAGS_OF_A_SEARCH if getattr(self, name)]
        if self.mode == "test" and given:
            raise ConfigError(f"--mode test trains nothing; leave out {_as_flags(given)}")
        given = [name for name in _NOT_WITH_HF if getattr(self, name)]
        if self.hf_train and given:
            raise ConfigError(f"--hf-train writes model and summary to --hf-output-dir; leave out {_as_flags(given)}")
        if self.share_memory and self.run_ablations:
            raise ConfigError("--run-ablations compares searches that share nothing; leave out --share-memory")
        given = [name for name in _FLAGS_OF_WORKERS if getattr(self, name) != type(self).model_fields[name].default]
        if self.distributed_backend == "local" and given:
            raise ConfigError(f"--distributed-backend local trains in this process alone; leave out {_as_flags(given)}")
        return self


class SearchSwarmConfig(Config):
    """Search training recipes of a memory-augmented transformer by a swarm of agents."""

    task: SearchTaskConfig = SearchTaskConfig()
    """What the models learn."""

    search: SearchSizeConfig = SearchSizeConfig()
    """How many agents search, for how long."""

    run: SearchRunConfig = SearchRunConfig()
    """Where the run lives, what it uses, and what is made of it."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "SearchSwarmConfig":
        if self.task.task == "language_model" and self.task.benchmark != "synthetic":
            raise ConfigError(f"--benchmark {self.task.benchmark} classifies; leave out --task language_model, or it")
        words = {
            "--words-data-dir": self.task.words_data_dir,
            "--words-set": self.task.words_set,
            "--words-encoder": self.task.words_encoder,
        }
        given = ", ".join(flag for flag, value in words.items() if value is not None)
        if given and (self.task.task != "classification" or self.task.benchmark != "synthetic"):
            raise ConfigError(f"{given}: only one-shot words have it; leave it out, or --task and --benchmark")
        if given and self.task.words_data_dir is None:
            raise ConfigError(f"{given}: words are generated without a folder of real ones; give --words-data-dir too")
        cuts_words = self.task.definition_max_length != SearchTaskConfig.model_fields["definition_max_length"].default
        if self.task.words_encoder is not None and cuts_words:
            raise ConfigError("--definition-max-length: --words-encoder reads texts as they are; leave one of them out")
        if self.run.share_memory and (self.task.task != "language_model" or not self.task.use_kv):
            raise ConfigError(
                "--share-memory needs --task language_model with its memory; in the other tasks a memory belongs to an "
                "episode, a split or a stream, and there is nothing to share"
            )
        return self

    @property
    def size(self) -> Literal["tiny", "base"]:
        """Size of the models."""
        return self.task.size or PRESETS[self.search.preset].size
