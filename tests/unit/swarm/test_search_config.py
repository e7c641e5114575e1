"""The flags of the search job, and what they come to."""

import subprocess
import sys

import pytest

from hsokv_ray.config import flags, parse
from hsokv_ray.errors import ConfigError
from hsokv_ray.swarm.hf_trainer import HFSwarmConfig
from hsokv_ray.swarm.search_config import PRESETS, SearchSwarmConfig

ORIGINAL = (
    "--iterations",
    "--agents-per-manager",
    "--agent-steps",
    "--num-managers",
    "--use-swarm",
    "--use-kv",
    "--task",
    "--benchmark",
    "--glue-task",
    "--run-ablations",
    "--run-distributed",
    "--distributed-backend",
    "--preset",
    "--lm-corpus",
    "--visualize",
    "--save-pretrained",
    "--load-pretrained",
    "--hf-train",
    "--hf-output-dir",
    "--allow-download",
    "--mode",
    "--kv-confidence-threshold",
    "--definition-max-length",
    "--flops-budget",
    "--seed",
    "--glue-data-dir",
    "--cifar-data-dir",
    "--lm-seq-length",
    "--lm-stride",
    "--lm-max-sequences",
)


def test_every_flag_of_the_original_is_there() -> None:
    assert set(ORIGINAL) <= set(flags(SearchSwarmConfig))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_gives_what_is_not_given(preset: str) -> None:
    config = parse(SearchSwarmConfig, ["--preset", preset, "--agents-per-manager", "7"])
    swarm = config.search.swarm(flops_budget=10**12)
    expected = PRESETS[preset]  # pyright: ignore[reportArgumentType]
    assert (swarm.num_managers, swarm.agents_per_manager) == (expected.num_managers, 7)
    assert swarm.max_steps == expected.iterations * expected.agent_steps
    assert swarm.interval(0) == expected.agent_steps
    assert config.size == expected.size


def test_without_the_swarm_one_model_trains_as_long_as_all_agents_would() -> None:
    words = ["--iterations", "3", "--agent-steps", "5", "--num-managers", "2", "--agents-per-manager", "4"]
    swarm = parse(SearchSwarmConfig, [*words, "--no-use-swarm"]).search.swarm(flops_budget=10**12)
    assert (swarm.num_agents, swarm.max_steps, swarm.num_trials, swarm.exploit) == (1, 3 * 5 * 8, 1, "none")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode", "test", "--resume"], "trains nothing"),
        (["--task", "language_model", "--benchmark", "cifar"], "classifies"),
        (["--distributed-backend", "local", "--num-workers", "2"], "leave out --num-workers"),
        (["--distributed-backend", "local", "--cpus-per-agent", "2"], "leave out --cpus-per-agent"),
        (["--benchmark", "glue", "--shots", "1"], "greater than or equal to 2"),
        (["--words-data-dir", ".", "--words-encoder", "x", "--definition-max-length", "9"], "texts as they are"),
        (["--allocation-every", "4", "--preset", "quick_test"], "--num-managers"),
        (["--allocation-every", "4", "--no-use-swarm"], "--num-managers"),
        (["--allocation-every", "4", "--exploit", "none"], "--exploit"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(SearchSwarmConfig, words)
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_agents_go_to_the_manager_that_pays_where_a_flag_says_how_often() -> None:
    search = parse(SearchSwarmConfig, ["--allocation-every", "4"]).search
    assert search.swarm(flops_budget=10**12).allocation_every == 4
    assert parse(SearchSwarmConfig, []).search.swarm(flops_budget=10**12).allocation_every == 0


@pytest.mark.parametrize(
    "words", [["--iterations", "0"], ["--preset", "huge"], ["--benchmark", "imagenet"], ["--sead", "1"]]
)
def test_a_wrong_flag_ends_with_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(SearchSwarmConfig, words, prog="search_swarm.py")
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_help_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys, runpy\nsys.argv = ['jobs/search_swarm.py', '--help']\n"
        "try:\n    runpy.run_path('jobs/search_swarm.py', run_name='__main__')\nexcept SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--kv-confidence-threshold" in done.stdout


def test_the_trainer_takes_any_flag_of_the_job_as_an_extra() -> None:
    job = HFSwarmConfig(
        output_dir="/x/run", seed=3, meta_iterations=4, use_kv=False, extras={"agent_steps": 7, "glue_task": "mnli"}
    ).job()
    assert (job.run.output_dir, job.run.name, job.run.seed) == ("/x", "run", 3)
    assert (job.search.iterations, job.search.agent_steps, job.task.use_kv) == (4, 7, False)
    assert job.task.glue_task == "mnli"


@pytest.mark.parametrize(
    ("values", "message"), [({"extras": {"agent_stepz": 7}}, "agent_stepz"), ({"device": "cuda"}, "'cpu'")]
)
def test_the_trainer_refuses_what_it_cannot_do(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HFSwarmConfig(**values).job()
