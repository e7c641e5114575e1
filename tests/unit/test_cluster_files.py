"""The files that start clusters: valid, agreeing on versions, and without what must not be there."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from hsokv_ray.config import parse
from hsokv_ray.training.config import TrainHMSTConfig

ROOT = Path(__file__).parents[2]
KUBERAY = sorted((ROOT / "cluster" / "kuberay").glob("*.yaml"))
SCRIPTS = [*(ROOT / "cluster" / f"{name}.sh" for name in ("local", "demo", "serve")), ROOT / ".ci" / "run"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def cluster_spec(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text())
    spec = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pod_specs(path: Path) -> list[dict[str, Any]]:
    spec = cluster_spec(path)
    return [group["template"]["spec"] for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]]


def test_ray_up_accepts_cluster_yaml() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(config)
    assert config["available_node_types"]["local.cluster.node"]["max_workers"] == 2


def test_ray_up_would_reject_a_wrong_key() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text()) | {"setup_comands": []}
    with pytest.raises(Exception, match="setup_comands"):
        validate_config(prepare_config(config))


def test_every_node_of_cluster_yaml_starts_with_the_token_and_no_dashboard_for_all() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    starts = [
        line for line in config["head_start_ray_commands"] + config["worker_start_ray_commands"] if "start" in line
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in line for line in starts)
    assert "0.0.0.0" not in (ROOT / "cluster.yaml").read_text()


def test_every_file_names_the_same_ray_and_the_dockerfile_its_image() -> None:
    version = pins()["ray"]
    [image] = re.findall(r"^FROM rayproject/ray:(\S+)$", (ROOT / "cluster" / "Dockerfile").read_text(), re.MULTILINE)
    assert image == f"{version}-py311"
    assert {cluster_spec(path)["rayVersion"] for path in KUBERAY} == {version}


def test_every_file_names_the_same_torch() -> None:
    version = pins()["torch"]
    for name in ("Makefile", "cluster/Dockerfile", "cluster.yaml"):
        assert set(re.findall(r"torch==([\w.]+)", (ROOT / name).read_text())) == {version}, name


def test_every_requirement_is_pinned_inside_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins().items()}
    extras = project["optional-dependencies"]
    own = next(each for each in map(Requirement, extras["dev"]) if each.name == project["name"])
    lines = [*project["dependencies"], *extras["dev"], *(line for extra in own.extras for line in extras[extra])]
    assert own.extras == {"qdrant-edge", "lancedb", "encoders"}
    for requirement in map(Requirement, lines):
        if requirement.name == own.name:
            continue
        version = pinned[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"


def test_constraints_are_exact_versions_without_local_labels_or_indexes() -> None:
    assert len(pins()) > 100
    assert all(not Version(version).local for version in pins().values())
    assert not re.search(r"^-|://|/", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_kuberay_files_use_the_token_one_image_and_memory_that_is_promised(path: Path) -> None:
    spec = cluster_spec(path)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for pod in pod_specs(path):
        [container] = pod["containers"]
        assert container["image"] == f"hsokv_ray:{version}"
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_the_rayjob_s_command_is_a_job_of_ours_with_flags_that_parse_and_fit_its_workers() -> None:
    document = yaml.safe_load((ROOT / "cluster" / "kuberay" / "rayjob-train-hmst.yaml").read_text())
    script, *flags = document["spec"]["entrypoint"].split()
    assert os.access(ROOT / "jobs" / Path(script).name, os.X_OK)
    run = parse(TrainHMSTConfig, flags).run
    [group] = document["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    cpus = float(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]) * group["replicas"]
    assert run.num_workers * (run.cpus_per_worker or 1) + run.data_cpus <= cpus


def serve_configs() -> dict[str, Any]:
    service = yaml.safe_load((ROOT / "cluster" / "kuberay" / "rayservice.yaml").read_text())
    return {
        "serve/config.yaml": yaml.safe_load((ROOT / "serve" / "config.yaml").read_text()),
        "rayservice.yaml": yaml.safe_load(service["spec"]["serveConfigV2"]),
    }


@pytest.mark.parametrize("name", ["serve/config.yaml", "rayservice.yaml"])
def test_the_files_that_serve_are_valid_for_ray_and_for_our_arguments(name: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve.args import ServeArgs

    config = ServeDeploySchema.model_validate(serve_configs()[name])
    [application] = config.applications
    assert application.import_path == "serve.app:build"
    ServeArgs(**application.args)


def test_what_listens_beyond_this_machine_has_keys() -> None:
    for name, config in serve_configs().items():
        [application] = config["applications"]
        is_local = config["http_options"]["host"] == "127.0.0.1"
        assert is_local or application["args"]["keys_file"], name


def test_a_replica_of_the_rayservice_fits_a_worker() -> None:
    [application] = serve_configs()["rayservice.yaml"]["applications"]
    args = application["args"]
    [group] = cluster_spec(ROOT / "cluster" / "kuberay" / "rayservice.yaml")["workerGroupSpecs"]
    cpus = float(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert args["replica_cpus"] < cpus
    assert args["threads"] <= cpus
    assert args["autoscaling"]["max_replicas"] <= group["maxReplicas"]


def test_the_demo_s_flags_parse() -> None:
    [flags] = re.findall(r"^training=\((.*)\)$", (ROOT / "cluster" / "demo.sh").read_text(), re.MULTILINE)
    assert parse(TrainHMSTConfig, flags.split()).optim.max_steps is not None


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_and_stop_at_the_first_error(path: Path) -> None:
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()
    assert subprocess.run(["bash", "-n", path], capture_output=True, text=True).stderr == ""


def test_nothing_ends_every_ray_of_the_machine() -> None:
    for path in [*SCRIPTS, ROOT / "Makefile"]:
        code = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
        assert not re.search(r"ray stop\b|pkill|killall", code), path


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_says_which_python_it_needs(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(["make", "venv", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: Python 3.11, 3.12 or 3.13 is needed" in done.stderr
    assert not (tmp_path / ".venv").exists()
