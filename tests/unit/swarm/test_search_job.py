"""The search job from its flags to its files, on small models that really train; Ray has its own tests."""

import json
from pathlib import Path
from typing import Any

import pytest

from hsokv_ray.config import load_yaml, parse
from hsokv_ray.errors import CheckpointError, ConfigError, DataError, RunError
from hsokv_ray.folder_lock import hold
from hsokv_ray.swarm import job, run_folder
from hsokv_ray.swarm.ablations import VARIANTS, variant
from hsokv_ray.swarm.choose_task import default_strategy, evaluation_flops, order_flops, plain_task, swarm_of
from hsokv_ray.swarm.comparison import comparison, headline, trivial_baselines
from hsokv_ray.swarm.hf_trainer import HFSwarmConfig, HFSwarmTrainer
from hsokv_ray.swarm.learners.few_shot import FewShotTask
from hsokv_ray.swarm.search_config import SearchSwarmConfig

SMALL = "--distributed-backend local --iterations 2 --agent-steps 2 --num-managers 1 --agents-per-manager 2 --size tiny"


def flags(folder: Path, *more: str) -> SearchSwarmConfig:
    return parse(SearchSwarmConfig, [*SMALL.split(), "--output-dir", str(folder), *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search, saved to a folder beside its own."""
    folder = tmp_path_factory.mktemp("runs")
    assert job.run(flags(folder, "--name", "words", "--save-pretrained", str(folder / "saved"), "--visualize")) == 0
    return folder


def test_a_search_leaves_what_the_documents_say(run: Path) -> None:
    names = {path.name for path in (run / "words").iterdir()}
    assert names >= {"search.json", "journal.jsonl", "events.jsonl", "swarm.json", "states", "best", "summary.json",
                     "report.md", "plots", "tensorboard"}  # fmt: skip
    summary = json.loads((run / "words" / "summary.json").read_text())
    told = [json.loads(line) for line in (run / "words" / "journal.jsonl").read_text().splitlines()]
    assert summary["best"]["score"] == max(line["outcome"]["score"] for line in told)
    assert sum(summary["flops"].values()) - summary["flops"]["evaluation"] <= summary["flops_budget"]
    assert summary["test"]["n"] >= 200
    report = (run / "words" / "report.md").read_text()
    for name in ("chance", "string match", "1-NN, random embedding", "1-NN, TF-IDF"):
        assert f"| {name} |" in report


def test_the_first_model_is_trained_by_the_default_strategy(run: Path) -> None:
    first = json.loads((run / "words" / "journal.jsonl").read_text().splitlines()[0])
    assert first["order"]["strategy"] == default_strategy(plain_task(flags(run)))


def test_a_folder_of_vectors_or_of_an_encoder_means_the_same_in_a_workers_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stored").mkdir()
    for given, expected in (
        ("vectors:stored", f"vectors:{tmp_path}/stored"),
        ("hf:stored", f"hf:{tmp_path}/stored"),
        ("stored", f"{tmp_path}/stored"),
        ("sentence-transformers:all-MiniLM-L6-v2", "sentence-transformers:all-MiniLM-L6-v2"),
    ):
        task = plain_task(flags(tmp_path, "--benchmark", "glue", "--glue-encoder", given))
        assert isinstance(task, FewShotTask)
        assert task.encoder == expected


def test_the_same_name_again_is_refused_and_resume_goes_on(run: Path) -> None:
    with pytest.raises(ConfigError, match="--resume"):
        job.run(flags(run, "--name", "words"))
    with pytest.raises(ConfigError, match="seed"):
        job.run(flags(run, "--name", "words", "--resume", "--seed", "3"))


def test_a_saved_model_is_measured_as_it_was_in_the_search(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "words" / "summary.json").read_text())
    for more in (["--name", "words"], ["--load-pretrained", str(run / "saved")]):
        job.run(flags(run, "--mode", "test", *more))
        table = capsys.readouterr().out
        assert f"**{100 * summary['test']['accuracy']:.1f} [" in table
        assert "| string match |" in table


def test_resume_and_test_know_the_run_without_its_flags(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "words" / "summary.json").read_text())
    capsys.readouterr()
    for words in (["--resume", "--distributed-backend", "local"], ["--mode", "test"]):
        config = parse(SearchSwarmConfig, ["--name", "words", "--output-dir", str(run), *words])
        assert job.run(config) == 0
        assert f"{100 * summary['test']['accuracy']:.1f} [" in capsys.readouterr().out


def test_a_refused_start_leaves_nothing_that_a_later_one_reads(tmp_path: Path) -> None:
    refused, accepted = flags(tmp_path, "--name", "words", "--no-use-kv"), flags(tmp_path, "--name", "words")
    with hold(tmp_path / "words"), pytest.raises(RunError, match="is being written by"):
        job.run(refused)
    job.SearchJob(accepted, show=False).search()
    for words in (["--mode", "test"], ["--resume", "--distributed-backend", "local"]):
        later = parse(SearchSwarmConfig, ["--name", "words", "--output-dir", str(tmp_path), *words])
        assert job.with_stored(later).task == accepted.task


def test_what_an_earlier_version_left_of_a_refused_start_is_replaced(tmp_path: Path) -> None:
    accepted = flags(tmp_path, "--name", "words")
    stored = job.stored_config(tmp_path / "words")
    stored.parent.mkdir()
    stored.write_text("task: {use_kv: false}")
    job.SearchJob(accepted, show=False).search()
    assert load_yaml(SearchSwarmConfig, stored) == accepted


def test_a_search_that_can_be_resumed_has_its_configuration_whenever_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, write_json, seen = flags(tmp_path, "--name", "words"), run_folder.write_json, []

    def checked(path: Path, *args: Any, **keywords: Any) -> None:
        seen.append(path.name)
        assert load_yaml(SearchSwarmConfig, path.with_name("job.yaml")) == config
        write_json(path, *args, **keywords)

    monkeypatch.setattr(run_folder, "write_json", checked)
    job.SearchJob(config, show=False).search()
    assert seen == ["search.json"]


def test_a_model_is_measured_under_its_own_strategy(run: Path, tmp_path: Path) -> None:
    search = job.SearchJob(flags(run, "--name", "words"), show=False)
    learner = search.best_learner()
    saved = search.save_best(tmp_path / "saved", learner=learner)
    loaded = job._saved_learner(flags(run, "--mode", "test", "--load-pretrained", str(saved)))
    assert loaded.recipe.strategy == learner.recipe.strategy  # pyright: ignore
    assert loaded.test() == learner.test()  # pyright: ignore
    for name, damage in ((job.STRATEGY, "{"), (job.STATE, None)):
        whole = (saved / name).read_bytes()
        (saved / name).unlink() if damage is None else (saved / name).write_text(damage)
        with pytest.raises(CheckpointError, match=f"{name} cannot be read .*; restore it from a copy"):
            job._saved_learner(flags(run, "--mode", "test", "--load-pretrained", str(saved)))
        (saved / name).write_bytes(whole)


def test_models_begin_from_a_saved_one(run: Path, tmp_path: Path) -> None:
    config = flags(tmp_path, "--name", "more", "--load-pretrained", str(run / "saved"))
    search = job.SearchJob(config, show=False)
    saved = job.SearchJob(flags(run, "--name", "words"), show=False).best_learner()
    learner = search.task.learner()
    learner.configure(default_strategy(search.task), seed=5)
    learner.reset()
    weights, expected = learner.model.state_dict(), saved.model.state_dict()  # pyright: ignore
    assert all((weights[name] == expected[name]).all() for name in expected)
    assert learner.step == 0  # pyright: ignore


def test_a_folder_that_holds_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        job.run(flags(tmp_path, "--load-pretrained", str(tmp_path / "nothing")))
    with pytest.raises(CheckpointError, match="no model for this task"):
        job.run(flags(tmp_path, "--mode", "test", "--load-pretrained", str(tmp_path)))


def test_a_model_of_another_shape_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit the model"):
        job.run(flags(tmp_path, "--mode", "test", "--size", "base", "--load-pretrained", str(run / "saved")))


def test_missing_data_ends_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HSOKV_DATA_DIR", raising=False)
    with pytest.raises(DataError, match="--cifar-data-dir"):
        job.run(flags(tmp_path, "--benchmark", "cifar"))
    with pytest.raises(ConfigError, match="which is no folder"):
        job.run(flags(tmp_path, "--benchmark", "glue", "--glue-data-dir", str(tmp_path / "nothing")))
    with pytest.raises(DataError):
        job.run(flags(tmp_path, "--benchmark", "glue", "--glue-data-dir", str(tmp_path)))
    assert not (tmp_path / "search_swarm" / "journal.jsonl").exists()


def test_a_budget_below_one_step_names_the_least(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least"):
        job.run(flags(tmp_path, "--flops-budget", "1000"))
    assert not (tmp_path / "search_swarm").exists()


def test_every_variant_of_the_ablation_spends_the_same() -> None:
    config = flags(Path("/nowhere"), "--agent-steps", "50")
    full = swarm_of(variant(config, "full", 0))
    for name in VARIANTS:
        changed = variant(config, name, 0)
        swarm, task = swarm_of(changed), plain_task(changed)
        assert swarm.flops_budget == full.flops_budget
        orders = config.search.num_agents * 2
        planned = orders * order_flops(task, changed.search.of_preset("agent_steps"))
        assert 0 <= full.flops_budget - planned < orders * task.cost(default_strategy(task))  # pyright: ignore
        assert evaluation_flops(task) > 0


def test_the_ablation_runs_and_is_not_run_twice(tmp_path: Path) -> None:
    from hsokv_ray.swarm.ablations import run_ablations

    config = flags(tmp_path, "--run-ablations", "--ablation-seeds", "2", "--visualize")
    table = run_ablations(config, tmp_path / "run")
    for name in (*VARIANTS, "full, gate_0", "full, gate_1", "full, shuffled_values", "full, random_keys"):
        assert f"| {name} |" in table
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("summary.json")}
    assert len(written) == 8
    assert run_ablations(config, tmp_path / "run") == table
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("summary.json")}
    assert (tmp_path / "run" / "plots" / "ablations.png").stat().st_size > 10_000


def test_the_trainer_trains_evaluates_and_saves(tmp_path: Path) -> None:
    extras: dict[str, Any] = {"agents_per_manager": 2, "num_managers": 1, "agent_steps": 2, "size": "tiny"}
    trainer = HFSwarmTrainer(HFSwarmConfig(output_dir=str(tmp_path / "run"), meta_iterations=2, extras=extras))
    with pytest.raises(RunError, match="train"):
        trainer.evaluate()
    summary = trainer.train()
    json.dumps(summary, allow_nan=False)
    assert summary["flops_estimate"] == sum(summary["flops"].values())
    assert len(summary["history"]) == len((tmp_path / "run" / "journal.jsonl").read_text().splitlines())
    assert summary["retention"] == summary["test_metrics"]["retention"]
    assert trainer.evaluate() == summary["test_metrics"]
    saved = trainer.save_model(tmp_path / "model")
    assert {"config.json", "model.safetensors"} <= {path.name for path in saved.iterdir()}


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"accuracy": 0.5, "loss": 9.0}, ("accuracy", 0.5)),
        ({"final_test": {"class_il": [0.2, 0.4]}}, ("class-IL accuracy", pytest.approx(0.3))),
        ({"loss": 2.0}, ("minus loss, nats per token", -2.0)),
    ],
)
def test_each_task_has_one_headline(figures: dict[str, Any], expected: tuple[str, float]) -> None:
    assert headline(figures) == expected


def test_figures_without_a_headline_are_refused() -> None:
    with pytest.raises(DataError, match="accuracy"):
        headline({"n": 3})


def test_baselines_are_measured_on_the_very_test_items() -> None:
    task = plain_task(flags(Path("/nowhere")))
    table = trivial_baselines(task)
    assert {score.n for score in table.values()} == {int(_tested(task)["n"])}
    assert "| chance | 5.0 |" in comparison("model", {"accuracy": 0.5, "n": 200.0}, table)


def _tested(task: Any) -> dict[str, float]:
    learner = task.learner()
    learner.configure(default_strategy(task), seed=0)
    learner.reset()
    return learner.test()
