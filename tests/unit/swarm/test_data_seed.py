"""What is held out hangs on one seed: the flag's, else the loaded model's, else `--seed`."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from generated_data import write_cifar, write_glue

from hsokv_ray.config import parse
from hsokv_ray.data.tasks.few_shot import PUBLISHED_SEEDS
from hsokv_ray.errors import CheckpointError, ConfigError
from hsokv_ray.swarm import job
from hsokv_ray.swarm.choose_task import DATA_SEED, data_seed, plain_task, task_of
from hsokv_ray.swarm.learners.few_shot import FewShotTask
from hsokv_ray.swarm.learners.rare_words import RareWordTask
from hsokv_ray.swarm.search_config import SearchSwarmConfig

SMALL = "--distributed-backend local --iterations 2 --agent-steps 2 --num-managers 1 --agents-per-manager 2 --size tiny"


def flags(folder: Path, words: str) -> SearchSwarmConfig:
    return parse(SearchSwarmConfig, [*SMALL.split(), "--output-dir", str(folder), *words.split()])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of `--seed 3`."""
    folder = tmp_path_factory.mktemp("runs")
    job.run(flags(folder, f"--name first --seed 3 --save-pretrained {folder / 'saved'}"))
    return folder / "saved"


def test_each_seed_asks_for_other_words_and_the_same_one_for_the_same(tmp_path: Path) -> None:
    def asked(words: str) -> list[str]:
        task = plain_task(flags(tmp_path, words))
        assert isinstance(task, RareWordTask)
        return [text for episode in task.learner().episodes("test") for text in episode.contexts]

    first = asked("--seed 0")
    assert asked("--seed 1") != first
    assert asked("--seed 1 --data-seed 0") == first


def test_other_tasks_are_split_by_it_too(tmp_path: Path, corpus: Path) -> None:
    cifar, glue = write_cifar(tmp_path, per_class=100, test_per_class=6).parent, write_glue(tmp_path)
    images = f"--benchmark cifar --cifar-data-dir {cifar} --iterations 3"
    streams = [plain_task(flags(tmp_path, f"{images} --seed {seed}")).learner().stream for seed in (0, 1, 0)]  # pyright: ignore
    pixels = [stream[0].splits.train.inputs for stream in streams]
    assert np.array_equal(pixels[0], pixels[2])
    assert not np.array_equal(pixels[0], pixels[1])
    text = f"--task language_model --lm-corpus {corpus} --lm-seq-length 10"
    windows = [plain_task(flags(tmp_path, f"{text} --seed {seed}")) for seed in (0, 1)]
    assert [task.data_seed for task in windows] == [0, 1]  # pyright: ignore
    task = plain_task(flags(tmp_path, f"--benchmark glue --glue-data-dir {glue} --seed 6 --data-seed 1"))
    assert isinstance(task, FewShotTask)
    assert task.split_seed == PUBLISHED_SEEDS[1]


def test_a_loaded_model_brings_the_seed_it_was_trained_with(saved: Path, tmp_path: Path) -> None:
    for words, expected in (
        (f"--load-pretrained {saved}", 3),
        (f"--load-pretrained {saved} --seed 5", 3),
        ("--seed 5", 5),
    ):
        config = flags(tmp_path, words)
        assert data_seed(config.run) == expected
        assert plain_task(config).seed == expected  # pyright: ignore
    with pytest.raises(ConfigError, match="--data-seed: got 1, but the model .* was trained with 3") as refused:
        task_of(flags(tmp_path, f"--load-pretrained {saved} --data-seed 1"))
    assert "\n" not in str(refused.value)


def test_what_is_trained_from_it_keeps_that_seed_when_it_is_gone(saved: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(saved, tmp_path / "copy")
    job.run(flags(tmp_path, f"--name second --seed 5 --load-pretrained {copy} --save-pretrained {tmp_path / 'again'}"))
    shutil.rmtree(copy)
    assert (tmp_path / "again" / DATA_SEED).read_text() == "3\n"
    stored = job.with_stored(
        parse(SearchSwarmConfig, ["--mode", "test", "--name", "second", "--output-dir", str(tmp_path)])
    )
    assert (stored.run.seed, data_seed(stored.run)) == (5, 3)


def test_a_damaged_seed_is_one_line(saved: Path, tmp_path: Path) -> None:
    (tmp_path / DATA_SEED).write_text('{"seed": 3}')
    with pytest.raises(CheckpointError, match="a whole number is needed; restore it from a copy"):
        plain_task(flags(tmp_path, f"--load-pretrained {tmp_path}"))
