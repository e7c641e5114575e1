"""The job `jobs/search_swarm.py`: search, show, test beside the trivial baselines, and what else was asked for."""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hsokv_ray import env
from hsokv_ray.config import dump_yaml, load_yaml
from hsokv_ray.errors import CheckpointError, ConfigError, RunError
from hsokv_ray.evaluation.intervals import Score
from hsokv_ray.swarm.choose_task import DATA_SEED, data_seed, default_strategy, plain_task, swarm_of, task_of
from hsokv_ray.swarm.comparison import comparison, report_of, trivial_baselines
from hsokv_ray.swarm.learner import Learner
from hsokv_ray.swarm.run_folder import SearchFolder, read_json
from hsokv_ray.swarm.search import refuse_early, search
from hsokv_ray.swarm.search_config import SearchRunConfig, SearchSizeConfig, SearchSwarmConfig, SearchTaskConfig
from hsokv_ray.swarm.states import States, pack, unpack
from hsokv_ray.swarm.status import Status, Watcher
from hsokv_ray.swarm.summary import Summary


def run(config: SearchSwarmConfig) -> int:
    """Run the job that `config` describes; return the exit status."""
    config = with_stored(config)
    if config.run.mode == "test":
        _measure(config)
        return 0
    if config.run.hf_train:
        _train_hf(config)
        return 0
    job = SearchJob(config)
    summary = job.search(resume=config.run.resume)
    print(job.report(summary))
    if config.run.save_pretrained:
        print(f"saved to {job.save_best(Path(config.run.save_pretrained).expanduser())}")
    if config.run.run_ablations:
        from hsokv_ray.swarm.ablations import run_ablations

        print(run_ablations(config, job.folder))
    if config.run.run_distributed:
        _run_distributed(config, job.folder)
    if config.run.visualize:
        for path in job.plots():
            print(f"plot {path}")
    return 0


STATE, STRATEGY = "state.safetensors", "strategy.json"
"""What a saved model has beside its own files: the learner's whole state, and the strategy it was trained by."""


class SearchJob:
    """One search with its folder.

    Args:
        config: the job's.
        show: print the live table.
    """

    def __init__(self, config: SearchSwarmConfig, *, show: bool = True) -> None:
        run = config.run.model_copy(update={"data_seed": data_seed(config.run)} if config.run.load_pretrained else {})
        self.config, self.show = config.model_copy(update={"run": run}), show
        self.folder = folder_of(config.run)
        self.task = task_of(config)
        self.swarm = swarm_of(config)

    @property
    def files(self) -> SearchFolder:
        """Where everything of the search lies."""
        return SearchFolder(self.folder)

    @property
    def stored(self) -> Path:
        """The job's configuration, for `--resume` and `--mode test`."""
        return stored_config(self.folder)

    @property
    def is_finished(self) -> bool:
        """Whether the search ran to its end."""
        return self.files.summary.exists()

    def search(self, *, resume: bool = False) -> Summary:
        """Search to the end, or go on; raises what `hsokv_ray.swarm.search.search` does."""
        from hsokv_ray.swarm.eyes.live_table import LiveTable
        from hsokv_ray.swarm.eyes.tensorboard import TensorBoard

        run = self.config.run
        refuse_early(
            self.task, self.swarm, self.folder, run.seed, resume=resume, num_workers=run.num_workers,
            cpus_per_agent=run.cpus_per_agent,
        )  # fmt: skip
        watchers: list[Watcher] = [TensorBoard(self.folder, best_known=run.best_known)]
        shown: list[Callable[[Status], None]] = []
        if run.distributed_backend == "ray":
            from hsokv_ray.swarm.eyes.gauges import Gauges

            gauges = Gauges(run=run.name)
            watchers.append(gauges)
            shown.append(gauges)
        with LiveTable(name=run.name) if self.show else contextlib.nullcontext() as table:
            if table is not None:
                shown.append(table)
            return search(
                self.task, self.swarm, folder=self.folder, seed=run.seed, backend=run.distributed_backend,
                num_workers=run.num_workers, cpus_per_agent=run.cpus_per_agent, watchers=watchers,
                on_status=lambda status: _show(shown, status), resume=resume, on_claim=self._keep_config,
            )  # fmt: skip

    def best_learner(self) -> Learner:
        """Return a learner that holds the best model. Raises `RunError`: the search has not ended."""
        best = self._summary().best
        learner = plain_task(self.config).learner()
        learner.configure(best.strategy, seed=self.config.run.seed)
        learner.load(States(self.files.states).read(best.order_id))
        return learner

    def save_best(self, folder: Path, *, learner: Learner | None = None) -> Path:
        """Save the best model with config, weights, tokenizer and memory to `folder`, and what `--mode test` needs."""
        learner = learner or self.best_learner()
        learner.save(folder)  # pyright: ignore[reportAttributeAccessIssue]
        (folder / STATE).write_bytes(pack(learner.state()))
        write_text(folder / STRATEGY, json.dumps(self._summary().best.strategy) + "\n")
        write_text(folder / DATA_SEED, f"{data_seed(self.config.run)}\n")
        return folder

    def report(self, summary: Summary) -> str:
        """Return the best strategy and its test figures beside the trivial baselines; report.md holds the same."""
        text = report_of(summary, self.baselines())
        (self.folder / "report.md").write_text(text + "\n", encoding="utf-8")
        return text

    def summary(self) -> dict[str, Any]:
        """Return the run as plain JSON; see `HFSwarmTrainer.train`."""
        done = self._summary()
        return {
            "test_metrics": done.test,
            "retention": done.test.get("retention"),
            "history": _history(self.files.journal),
            "baselines": {name: score.mean for name, score in self.baselines().items()},
            "best": done.best.to_json(),
            "flops": done.flops,
            "flops_estimate": sum(done.flops.values()),
        }

    def baselines(self) -> dict[str, Score]:
        """Return the trivial baselines on the task's test items."""
        return trivial_baselines(plain_task(self.config))

    def plots(self) -> list[Path]:
        """Draw what the run's files tell."""
        from hsokv_ray.swarm.eyes.plots import plot_run

        return plot_run(self.folder, best_known=self.config.run.best_known)

    def _keep_config(self) -> None:
        """Write job.yaml, unless it is of the search that is here; before search.json, so that none is without it."""
        if not (self.files.config.exists() and self.stored.exists()):
            write_text(self.stored, dump_yaml(self.config))

    def _summary(self) -> Summary:
        if not self.is_finished:
            raise RunError(f"{self.folder}: its search has not ended; {self.files.resume_command} goes on with it")
        return Summary.from_json(json.loads(self.files.summary.read_text(encoding="utf-8")))


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all, whatever ends this process or the machine."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def folder_of(run: SearchRunConfig) -> Path:
    """Return the run's folder. Raises `ConfigError`: the name is not one folder's."""
    if run.name in ("", ".", "..") or "/" in run.name:
        raise ConfigError(f"--name: got {run.name!r}; give one folder's name without '/'")
    runs = Path(run.output_dir).expanduser() if run.output_dir else env.runs_dir()
    return runs.absolute() / run.name


def _measure(config: SearchSwarmConfig) -> None:
    """Print the test figures of a saved model beside the trivial baselines."""
    if config.run.load_pretrained is None:
        job = SearchJob(config, show=False)
        learner, what = job.best_learner(), str(job.folder)
    else:
        learner, what = _saved_learner(config), config.run.load_pretrained
    print(comparison(what, learner.test(), trivial_baselines(plain_task(config))))  # pyright: ignore


def _saved_learner(config: SearchSwarmConfig) -> Learner:
    """Return a learner that holds the model in `--load-pretrained` exactly as the search that saved it did.

    Raises:
        CheckpointError: its strategy or state is missing or damaged, one without the other.
    """
    task, folder = task_of(config), Path(config.run.load_pretrained or "").expanduser()
    learner = task.learner()
    if not (folder / STRATEGY).exists() and not (folder / STATE).exists():  # `save_pretrained` of the model alone
        learner.configure(default_strategy(task), seed=config.run.seed)
        learner.reset()
        return learner
    learner.configure(read_json(folder / STRATEGY), seed=config.run.seed)
    try:
        state = (folder / STATE).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / STATE} cannot be read ({error.strerror}); restore it from a copy") from None
    learner.load(unpack(state))
    return learner


def stored_config(folder: Path) -> Path:
    """Return where a run's job configuration is."""
    return folder / "job.yaml"


def with_stored(config: SearchSwarmConfig) -> SearchSwarmConfig:
    """Return `config`; where it goes on with a run and says nothing of task and search, with those of that run."""
    path = stored_config(folder_of(config.run))
    goes_on = config.run.resume or (config.run.mode == "test" and config.run.load_pretrained is None)
    says_nothing = config.task == SearchTaskConfig() and config.search == SearchSizeConfig()
    if not (goes_on and says_nothing and path.exists()):
        return config
    stored = load_yaml(SearchSwarmConfig, path)
    begun_from = () if config.run.mode == "test" else ("load_pretrained", "share_memory")
    names = ("seed", "data_seed", *begun_from)
    kept = {name: getattr(stored.run, name) for name in names}
    return stored.model_copy(update={"run": config.run.model_copy(update=kept)})


def _train_hf(config: SearchSwarmConfig) -> None:
    from hsokv_ray.swarm.hf_trainer import HFSwarmConfig, HFSwarmTrainer

    out = Path(config.run.hf_output_dir).expanduser().absolute()
    given = {**dict(config.task), **dict(config.search), **dict(config.run)}
    for name in ("output_dir", "name", "seed", "use_swarm", "use_kv", "hf_train"):
        given.pop(name)
    trainer = HFSwarmTrainer(
        HFSwarmConfig(output_dir=str(out / "run"), seed=config.run.seed, use_swarm=config.search.use_swarm,
                      use_kv=config.task.use_kv, extras=given),
        show=True,
    )  # fmt: skip
    summary = trainer.train()
    trainer.save_model(out / "model")
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary["test_metrics"], indent=1))
    print(f"model {out / 'model'}, summary {out / 'summary.json'}", file=sys.stderr)


def _run_distributed(config: SearchSwarmConfig, folder: Path) -> None:
    """Measure rollouts, print a row per number of workers, and draw them where plots are wanted."""
    from hsokv_ray.swarm.rollouts.config import RolloutConfig
    from hsokv_ray.swarm.rollouts.distributed import run_distributed

    report = run_distributed(
        RolloutConfig(seed=config.run.seed), folder=folder, backend=config.run.distributed_backend, on_progress=print
    )
    print("| workers | environment steps per s | speed-up |\n|---|---|---|")
    for row in report.scaling:
        speed_up = "-" if row.speed_up is None else str(row.speed_up)
        print(f"| {row.num_workers} | {row.steps_per_s} | {speed_up} |")
    print("\n".join([*report.notes, f"all figures: {folder / 'distributed.json'}"]))
    if config.run.visualize and sum(row.speed_up is not None for row in report.scaling) > 1:
        from hsokv_ray.swarm.eyes.plots import plot_speed_up

        path = plot_speed_up(
            json.loads((folder / "distributed.json").read_text("utf-8")), folder / "plots/speed_up.png"
        )
        print(f"plot {path}")


def _show(views: list[Callable[[Status], None]], status: Status) -> None:
    for view in views:
        view(status)


def _history(journal: Path) -> list[dict[str, Any]]:
    """Return one entry per outcome that was told: order, agent, step, score, metrics."""
    told = (json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines())
    return [
        {
            "order": line["order"]["order_id"],
            "agent": line["order"]["agent"],
            "step": line["order"]["end_step"],
            "score": line["outcome"]["score"],
            "failure": line["outcome"]["failure"],
            "metrics": line["outcome"]["metrics"],
        }
        for line in told
        if line["what"] == "tell"
    ]
