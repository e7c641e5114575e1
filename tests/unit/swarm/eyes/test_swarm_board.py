"""The Grafana board of searches: it shows the metrics that a search exports, all of them and no others."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hsokv_ray.swarm.eyes.gauges import METRICS

BOARD = json.loads((Path(__file__).parents[4] / "cluster" / "grafana" / "swarm.json").read_text(encoding="utf-8"))
NAME = re.compile(r"ray_hsokv_\w+")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def queried() -> set[str]:
    return {name for expression in expressions() for name in NAME.findall(expression)}


def test_every_metric_the_board_asks_for_is_one_a_search_exports() -> None:
    assert queried() <= {about.series(name) for name, about in METRICS.items()}


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_a_search_exports_is_on_the_board(name: str) -> None:
    assert METRICS[name].series(name) in queried()


def test_queries_keep_to_the_chosen_runs_and_group_by_labels_that_the_metric_has() -> None:
    for expression in expressions():
        assert all(expression.count(opening) == expression.count(closing) for opening, closing in ("()", "{}", "[]"))
        [series] = NAME.findall(expression)
        assert f'{series}{{run=~"$run"}}' in expression
        [grouped] = re.findall(r"by \(([^)]*)\)", expression)
        [about] = [about for name, about in METRICS.items() if about.series(name) == series]
        assert set(grouped.split(", ")) <= set(about.tags)


def test_counters_are_shown_as_rates_since_a_process_that_resumes_begins_at_0() -> None:
    for expression in expressions():
        assert ("rate(" in expression) == NAME.findall(expression)[0].endswith("_total")


def test_legends_name_labels_by_which_the_query_groups() -> None:
    for panel in panels():
        for target in panel["targets"]:
            labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert labels == set(re.findall(r"by \(([^)]*)\)", target["expr"])[0].split(", ")), panel["title"]


def test_panels_have_ids_of_their_own_say_what_they_show_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        own = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not own & cells, panel["title"]
        assert max(x for x, _ in own) < 24
        cells |= own
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_the_list_of_runs_comes_from_a_metric_that_every_search_sets() -> None:
    [run] = [variable for variable in BOARD["templating"]["list"] if variable["name"] == "run"]
    assert run["definition"] == run["query"]["query"]
    assert NAME.findall(run["definition"])[0] in {about.series(name) for name, about in METRICS.items()}
