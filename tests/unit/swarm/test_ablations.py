"""The ablation's table, file and bars: the headline by its name and in its unit, trivial baselines of each seed."""

import json
from pathlib import Path

import pytest

from hsokv_ray.config import parse
from hsokv_ray.evaluation import over_seeds
from hsokv_ray.swarm import ablations
from hsokv_ray.swarm.ablations import VARIANTS, run_ablations, variant
from hsokv_ray.swarm.choose_task import plain_task
from hsokv_ray.swarm.comparison import trivial_baselines
from hsokv_ray.swarm.eyes.plots import plot_ablations
from hsokv_ray.swarm.messages import Best
from hsokv_ray.swarm.search_config import SearchSwarmConfig
from hsokv_ray.swarm.summary import Summary

SMALL = "--distributed-backend local --iterations 1 --agent-steps 1 --num-managers 1 --agents-per-manager 2 --size tiny"


def flags(*more: str) -> SearchSwarmConfig:
    return parse(SearchSwarmConfig, [*SMALL.split(), "--run-ablations", "--ablation-seeds", "2", "--visualize", *more])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What the bars are given; they are drawn all the same."""
    found = {}

    def plot(scores, path, **options) -> Path:
        found.update(options, scores=scores)
        return plot_ablations(scores, path, **options)

    monkeypatch.setattr("hsokv_ray.swarm.eyes.plots.plot_ablations", plot)
    return found


def cells_of(table: str) -> dict[str, list[str]]:
    """Return the cells of each row by its name."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows if not row[0].startswith("---")}


def test_an_ablation_of_a_language_model_is_in_nats_and_not_in_percent(
    corpus: Path, tmp_path: Path, drawn: dict
) -> None:
    language = f"--task language_model --lm-corpus {corpus} --lm-seq-length 10 --lm-max-sequences 60"
    rows = cells_of(run_ablations(flags(*language.split()), tmp_path))
    assert rows["Variant"][0] == "Test minus loss, nats per token (95 % interval)"
    for name in VARIANTS:
        paths = [tmp_path / "ablations" / f"{name}-{i}" / "summary.json" for i in range(2)]
        score = over_seeds([-json.loads(path.read_text())["test"]["loss"] for path in paths])
        assert rows[name][0] == f"{score.mean:.4f} [{score.low:.4f}, {score.high:.4f}]"
    assert float(rows["equal frequencies"][0].split()[0]) < float(rows["unigram"][0].split()[0]) < 0
    written = json.loads((tmp_path / "ablations.json").read_text())
    assert written["measure"] == drawn["measure"].removeprefix("test ") == "minus loss, nats per token"
    assert drawn["scores"]["full"].mean == written["scores"]["full"]["mean"] < 0


def test_trivial_baselines_stand_in_the_table_each_over_the_seeds_own_test_items(
    tmp_path: Path, drawn: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = Best(order_id="a0.0", agent=0, manager=0, score=0.5, step=1, strategy={})
    done = Summary(
        "run", "rare_words", best, {"useful": 10**9}, None, 1, 0, 0, test={"accuracy": 0.5, "retention": 0.4}
    )
    monkeypatch.setattr(ablations, "run_variant", lambda config, folder: done)
    config = flags()
    rows = cells_of(run_ablations(config, tmp_path))
    assert rows["Variant"][0] == "Test accuracy, % (95 % interval)"
    assert rows["full"] == ["50.0", "40.0", "1.00", "2"]
    of_seeds = [trivial_baselines(plain_task(variant(config, "full", seed))) for seed in range(2)]
    assert of_seeds[0] != of_seeds[1], "a seed has words of its own"
    written = json.loads((tmp_path / "ablations.json").read_text())
    assert rows.keys() - {"Variant"} == written["scores"].keys() | written["baselines"].keys()
    for name in ("string match", "1-NN, random embedding", "1-NN, TF-IDF"):
        expected = over_seeds([each[name].mean for each in of_seeds])
        assert written["baselines"][name]["mean"] == expected.mean
        assert rows[name] == [expected.percent(), "-", "-", "2"]
        assert drawn["baselines"][name].mean == pytest.approx(100 * expected.mean)
    assert rows["chance"] == ["5.0", "-", "-", "2"]
    assert drawn["measure"] == "test accuracy, %"
