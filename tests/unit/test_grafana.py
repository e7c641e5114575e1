"""The Grafana board and what feeds it: it shows the metrics that the server exports, all of them and no others."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

from hsokv_ray.inference.engine.stats import Counters, EngineStats
from hsokv_ray.longcontext.prefixes import PrefixStats
from serve.engine_metrics import EngineCollector
from serve.metrics import GatewayMetrics, ReplicaMetrics
from serve.shared_prefixes import SharedStats

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster" / "grafana"
BOARD = json.loads((FOLDER / "hsokv_serve.json").read_text(encoding="utf-8"))
COMPOSE = yaml.safe_load((ROOT / "cluster" / "compose.yaml").read_text())
ENDINGS = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def exported() -> dict[str, set[str]]:
    """Return each metric of the server with the names of its series."""
    replica = ReplicaMetrics()
    engine = EngineStats(0, 0, 0, 0, Counters())
    shared = SharedStats(PrefixStats(0, 0, 0, 0, 0, 0), 0, 0, 0, 0, 0, 0)
    replica.registry.register(EngineCollector(lambda: engine, lambda: shared, lambda: 0.0))
    families = [*GatewayMetrics().registry.collect(), *replica.registry.collect()]
    kinds = {family.name: family.type for family in families} | {"hsokv_serve_resident_bytes": "gauge"}
    return {name: {name + ending for ending in ENDINGS[kind]} for name, kind in kinds.items()}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def queried() -> set[str]:
    return {name for expression in expressions() for name in re.findall(r"hsokv_serve_\w+", expression)}


def test_every_metric_the_board_asks_for_is_one_the_server_exports() -> None:
    assert queried() <= set().union(*exported().values())


@pytest.mark.parametrize("metric", sorted(exported()))
def test_every_metric_the_server_exports_is_on_the_board_and_in_the_documents(metric: str) -> None:
    assert queried() & exported()[metric]
    rows = [
        row for row in (ROOT / "docs" / "serving.md").read_text("utf-8").splitlines() if row.startswith("| `hsokv_")
    ]
    assert any(f"`{name}`" in row for row in rows for name in {metric, f"{metric}_total"})


def test_queries_are_balanced_and_keep_to_the_chosen_jobs() -> None:
    for expression in expressions():
        assert all(expression.count(opening) == expression.count(closing) for opening, closing in ("()", "{}", "[]"))
        names = len(re.findall(r"hsokv_serve_\w+", expression))
        assert expression.count('{job=~"$job"}') == names


def test_panels_have_ids_of_their_own_say_what_they_show_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        assert max(x for x, _ in own) < 24
        cells |= own
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_what_the_containers_mount_is_there_and_where_the_files_say() -> None:
    services = COMPOSE["services"]
    mounts = {}
    for volume in [*services["prometheus"]["volumes"], *services["grafana"]["volumes"]]:
        source, target, *_ = volume.split(":")
        mounts[target] = source
        assert not source.startswith(".") or (ROOT / "cluster" / source).exists(), source
    [provider] = yaml.safe_load((FOLDER / "provisioning" / "dashboards" / "hsokv.yaml").read_text())["providers"]
    assert f"{provider['options']['path']}/hsokv_serve.json" in mounts
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in mounts
    assert "--config.file=/etc/prometheus/prometheus.yml" in services["prometheus"]["command"]
    assert "/etc/prometheus/prometheus.yml" in mounts


def test_prometheus_scrapes_the_server_with_its_key_and_grafana_asks_that_prometheus() -> None:
    job, ray = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    [nodes] = ray["file_sd_configs"]
    assert nodes["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
    assert "/tmp/ray:/tmp/ray:ro" in COMPOSE["services"]["prometheus"]["volumes"]
    config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())["http_options"]
    assert job["static_configs"] == [{"targets": [f"{config['host']}:{config['port']}"]}]
    [mounted] = COMPOSE["services"]["prometheus"]["configs"]
    assert job["authorization"]["credentials_file"] == mounted["target"]
    assert COMPOSE["configs"][mounted["source"]]["content"] == "${HSOKV_API_KEY:-none}"
    [source] = yaml.safe_load((FOLDER / "provisioning" / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://127.0.0.1:9090"
    assert "--web.listen-address=127.0.0.1:9090" in COMPOSE["services"]["prometheus"]["command"]


def test_whoever_reaches_grafana_is_on_this_machine_and_may_only_look() -> None:
    environment = COMPOSE["services"]["grafana"]["environment"]
    assert environment["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert (environment["GF_AUTH_BASIC_ENABLED"], environment["GF_AUTH_DISABLE_LOGIN_FORM"]) == ("false", "true")
    assert "ports" not in COMPOSE["services"]["grafana"]
