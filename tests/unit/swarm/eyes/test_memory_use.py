"""The memory's heat map, from what the learners themselves report."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generated_data import write_cifar, write_glue

from hsokv_ray.swarm.choose_task import default_strategy
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.eyes.plots.memory_use import MEANING, memory_use
from hsokv_ray.swarm.eyes.record import HIT_RATE, MEMORY_ENTRIES, read_record
from hsokv_ray.swarm.learners.cifar import CifarTask
from hsokv_ray.swarm.learners.few_shot import FewShotTask
from hsokv_ray.swarm.learners.language import LanguageTask
from hsokv_ray.swarm.learners.rare_words import RareWordTask
from hsokv_ray.swarm.search import search


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_glue(folder)
    write_cifar(folder, per_class=30, test_per_class=6)
    return folder


@pytest.fixture
def make(folder: Path, corpus: Path):
    def build(name: str, *, use_kv: bool) -> Any:
        match name:
            case "words":
                return RareWordTask(use_kv=use_kv)
            case "glue":
                return FewShotTask(data=str(folder), use_kv=use_kv)
            case "cifar":
                variant = "hsokv" if use_kv else "fine_tune"
                return CifarTask(str(folder), variant=variant, key_dim=12, num_filters=6)
        return LanguageTask(source=str(corpus), seq_len=10, vocab_size=320, capacity=40, use_kv=use_kv)

    return build


@pytest.mark.parametrize("name", ["words", "glue", "cifar", "language"])
@pytest.mark.parametrize("use_kv", [True, False])
def test_every_learner_says_what_its_memory_holds_where_it_has_one(make, name: str, use_kv: bool) -> None:
    task = make(name, use_kv=use_kv)
    learner = task.learner()
    learner.configure(default_strategy(task) | {"batch_size": 8}, seed=0)
    learner.reset()
    learner.train(1)
    figures = learner.evaluate()
    assert [each in figures for each in MEANING] == [use_kv, use_kv]
    if use_kv:
        held = {"words": 20, "glue": 32, "cifar": 8, "language": 10}
        assert figures[MEMORY_ENTRIES] == held[name]
        assert 0 <= figures[HIT_RATE] <= 1


def test_the_map_of_a_search_shows_what_its_models_hold_and_says_what_the_rate_is_of(make, tmp_path: Path) -> None:
    config = SwarmConfig(num_managers=1, agents_per_manager=2, max_steps=2, interval_steps=1, flops_budget=10**12)
    search(make("glue", use_kv=True), config, folder=tmp_path / "run", backend="local")
    record = read_record(tmp_path / "run")
    figure = memory_use(record)
    meshes = {mesh.get_gid(): mesh.get_array() for axes in figure.axes for mesh in axes.collections if mesh.get_gid()}
    assert meshes.keys() == {MEMORY_ENTRIES, HIT_RATE}
    last = {told.order.agent: told.outcome.metrics[MEMORY_ENTRIES] for told in record.told}
    np.testing.assert_array_equal(np.ma.filled(meshes[MEMORY_ENTRIES], np.nan)[:, -1], [last[0], last[1]])
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert "share of reads whose nearest entry is the right one" in labels
