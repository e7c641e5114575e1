"""From the job's flags to a task, its default strategy, and the FLOPs of a search."""

from functools import lru_cache
from pathlib import Path

from hsokv_ray import env
from hsokv_ray.data.tasks.few_shot import PUBLISHED_SEEDS
from hsokv_ray.data.tasks.glue_tasks import glue_task
from hsokv_ray.errors import CheckpointError, ConfigError, DataError
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.learner import Task
from hsokv_ray.swarm.learners.cifar import CifarTask
from hsokv_ray.swarm.learners.few_shot import FewShotTask
from hsokv_ray.swarm.learners.language import LanguageTask
from hsokv_ray.swarm.learners.rare_words import RareWordTask
from hsokv_ray.swarm.learners.recipe import DEFAULT_STRATEGY
from hsokv_ray.swarm.pretrained import PretrainedTask
from hsokv_ray.swarm.run_folder import read_json
from hsokv_ray.swarm.search_config import SearchRunConfig, SearchSwarmConfig
from hsokv_ray.swarm.sharing import SharingTask
from hsokv_ray.swarm.space import Strategy


def task_of(config: SearchSwarmConfig) -> Task:
    """Return what `config` wants learnt. Raises `DataError`: no folder with the data is named."""
    task = plain_task(config)
    if config.run.share_memory:
        run = f"{config.run.name}-{config.run.seed}-"
        task = SharingTask(task, _absolute_store(config.run.share_memory), run=run)
    if config.run.load_pretrained:
        task = PretrainedTask(task, str(Path(config.run.load_pretrained).expanduser().absolute()))
    return task


def plain_task(config: SearchSwarmConfig) -> Task:
    """Return the same without sharing and without a saved model to begin from."""
    return _task(config, total_steps=_steps_of_one_training(config))


DATA_SEED = "data_seed.json"
"""What a saved model has beside its own files, so that nobody measures it on what it was trained on."""


def data_seed(run: SearchRunConfig) -> int:
    """Return the seed of what is held out: the flag's, else the loaded model's, else `--seed`.

    Raises:
        ConfigError: the flag and the loaded model differ.
        CheckpointError: the loaded model's file is damaged.
    """
    of_model = None
    if run.load_pretrained is not None:
        path = Path(run.load_pretrained).expanduser() / DATA_SEED
        of_model = read_json(path) if path.exists() else None
        if not isinstance(of_model, int | None):
            raise CheckpointError(
                f"{path}: got {str(of_model)[:60]!r}, a whole number is needed; restore it from a copy"
            )
    if None not in (run.data_seed, of_model) and run.data_seed != of_model:
        raise ConfigError(
            f"--data-seed: got {run.data_seed}, but the model in {run.load_pretrained} was trained with {of_model} and "
            f"would be measured on what it has seen; leave it out"
        )
    return next(seed for seed in (run.data_seed, of_model, run.seed) if seed is not None)


def default_strategy(task: Task) -> Strategy:
    """Return the strategy a user has without a search: `DEFAULT_STRATEGY`, as far as the task can be moved by it."""
    return {name: DEFAULT_STRATEGY[name] for name in task.space.domains}


def swarm_of(config: SearchSwarmConfig) -> SwarmConfig:
    """Return the swarm, with its budget and the default strategy as the first one.

    Without `--flops-budget` it may spend what all agents need for a whole training by the default strategy, their
    evaluations included.
    """
    task, search = plain_task(config), config.search
    num_orders = search.num_agents * search.of_preset("iterations")
    budget = int(search.flops_budget or num_orders * order_flops(task, search.of_preset("agent_steps")))
    swarm = search.swarm(flops_budget=budget)
    return swarm.model_copy(update={"first_strategies": (default_strategy(task),)})


def order_flops(task: Task, num_steps: int) -> int:
    """Return what training `num_steps` by the default strategy, and one evaluation, cost."""
    default = default_strategy(task)
    return num_steps * task.cost(default) + evaluation_flops(task)


@lru_cache(maxsize=16)
def evaluation_flops(task: Task) -> int:
    """Return the FLOPs of one evaluation, counted by doing one with a fresh model of the default strategy."""
    learner = task.learner()
    learner.configure(default_strategy(task), seed=0)
    learner.reset()
    before = learner.flops
    learner.evaluate()
    return learner.flops - before


def _steps_of_one_training(config: SearchSwarmConfig) -> int:
    return config.search.total_steps * (1 if config.search.use_swarm else config.search.num_agents)


def _task(config: SearchSwarmConfig, *, total_steps: int) -> Task:
    given, threshold, seed = config.task, config.task.kv_confidence_threshold, data_seed(config.run)
    if given.task == "language_model":
        return LanguageTask(
            source=_absolute_source(given.lm_corpus), seq_len=given.lm_seq_length, stride=given.lm_stride,
            max_windows=given.lm_max_sequences, use_kv=given.use_kv, total_steps=total_steps, size=config.size,
            confidence_threshold=threshold, data_seed=seed,
        )  # fmt: skip
    match given.benchmark:
        case "glue":
            return FewShotTask(
                glue=glue_task(given.glue_task).name, data=_folder(given.glue_data_dir), shots=given.shots,
                allow_download=given.allow_download, encoder=_absolute_encoder(given.glue_encoder),
                use_kv=given.use_kv, split_seed=PUBLISHED_SEEDS[seed % len(PUBLISHED_SEEDS)],
                total_steps=total_steps, size=config.size, confidence_threshold=threshold,
            )  # fmt: skip
        case "cifar":
            folder = _folder(given.cifar_data_dir)
            if folder is None:
                raise DataError(
                    "--benchmark cifar: no data; give --cifar-data-dir with cifar-10-batches-bin of "
                    "https://www.cs.toronto.edu/~kriz/cifar.html, or set HSOKV_DATA_DIR"
                )
            return CifarTask(
                folder=folder, variant="hsokv" if given.use_kv else "fine_tune", total_steps=total_steps,
                size=config.size, confidence_threshold=threshold, data_seed=seed,
            )  # fmt: skip
    return RareWordTask(
        use_kv=given.use_kv, total_steps=total_steps, size=config.size, confidence_threshold=threshold,
        max_length=given.definition_max_length, encoder=_absolute_encoder(given.words_encoder),
        data=None if given.words_data_dir is None else _folder(given.words_data_dir),
        words=given.words_set or "rare_words", seed=seed,
    )  # fmt: skip


def _absolute_source(source: str) -> str:
    """Return a path that means the same in a worker's folder; what is no file or folder here stays as it is."""
    path = Path(source).expanduser()
    return str(path.absolute()) if "://" not in source and path.exists() else source


def _absolute_encoder(spec: str | None) -> str | None:
    kind, colon, place = (spec or "").rpartition(":")
    return f"{kind}{colon}{_absolute_source(place)}" if place else spec


def _absolute_store(uri: str) -> str:
    kind, _, place = uri.partition(":")
    return f"faiss:{Path(place).expanduser().absolute()}" if kind == "faiss" else uri


def _folder(given: str | None) -> str | None:
    """Return the data folder: the flag's, else $HSOKV_DATA_DIR, else None."""
    if given is not None:
        folder = Path(given).expanduser().absolute()
        if not folder.is_dir():
            raise ConfigError(f"data folder: got {given!r}, which is no folder; give one")
        return str(folder)
    folder = env.data_dir()
    return str(folder) if folder is not None else None
