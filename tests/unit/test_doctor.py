"""Each check says ok where all is well and what to do where it is not."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hsokv_ray import doctor
from hsokv_ray.doctor import CHECKS, GIB, Facts, Head, Package, Space, examine

WELL = Facts(
    python=(3, 12, 1),
    packages=(Package("ray", "2.60.0", ">=2.59,<2.61"), Package("torch", "2.13.0+cpu", ">=2.11,<2.14")),
    auth_mode="token",
    has_token=True,
    head=Head("127.0.0.1:6379", cpus=8, gpus=1, store_bytes=GIB),
    num_cpus=8,
    memory=Space(16 * GIB, 12 * GIB),
    shm=Space(8 * GIB, 8 * GIB),
    tmp=Space(100 * GIB, 50 * GIB),
    gpus=("H100",),
    omp_threads=None,
    compiler="/usr/bin/g++",
    optional=dict.fromkeys(doctor.OPTIONAL, True),
)


def test_a_machine_in_order_is_ok_throughout_and_has_nothing_to_do() -> None:
    checks = examine(WELL)
    assert len(checks) == len(CHECKS) == len({check.name for check in checks})
    assert [(check.level, check.todo) for check in checks] == [("ok", "")] * len(checks)


@pytest.mark.parametrize(
    ("changed", "level", "said"),
    [
        ({"python": (3, 10, 4)}, "fail", "install Python 3.11"),
        ({"python": (3, 14, 0)}, "fail", "install Python 3.11"),
        ({"packages": (Package("ray", "2.61.0", ">=2.59,<2.61"),)}, "fail", "ray 2.61.0 (allowed >=2.59,<2.61)"),
        ({"packages": (Package("ray", None, ">=2.59,<2.61"),)}, "fail", "ray missing"),
        ({"auth_mode": None}, "warn", "export RAY_AUTH_MODE=token"),
        ({"auth_mode": None, "has_token": False}, "warn", "can run code"),
        ({"auth_mode": "disabled"}, "warn", "can run code"),
        ({"has_token": False}, "fail", "ray get-auth-token --generate"),
        ({"head": Head("127.0.0.1:6379", refused="401")}, "fail", "cluster/local.sh env"),
        ({"head": Head("127.0.0.1:6379", cpus=8, gpus=1, store_bytes=GIB // 20)}, "warn", "--object-store-memory"),
        ({"head": Head("127.0.0.1:6379", cpus=8, store_bytes=GIB)}, "warn", "the head has none"),
        ({"num_cpus": 1}, "warn", "--cpus-per-worker 0.5"),
        ({"memory": Space(16 * GIB, GIB)}, "fail", "4 GiB"),
        ({"memory": Space(16 * GIB, 3 * GIB)}, "warn", "--object-store-memory"),
        ({"shm": Space(GIB // 16, GIB // 16)}, "fail", "--shm-size"),
        ({"shm": Space(GIB, GIB)}, "warn", "--object-store-memory"),
        ({"tmp": Space(100 * GIB, 4 * GIB)}, "fail", "--temp-dir"),
        ({"tmp": Space(100 * GIB, 8 * GIB)}, "warn", "95 %"),
        ({"omp_threads": "1"}, "warn", "unset it"),
        ({"compiler": None}, "warn", "g++"),
    ],
)
def test_what_is_wrong_is_said_in_exactly_one_line_with_what_to_do(
    changed: dict[str, Any], level: str, said: str
) -> None:
    [check] = [check for check in examine(replace(WELL, **changed)) if check.level != "ok"]
    assert check.level == level
    assert said in check.line()
    assert check.todo
    assert "\n" not in check.line()


@pytest.mark.parametrize("changed", [{"head": None}, {"gpus": ()}, {"shm": None}])
def test_what_is_merely_absent_is_ok(changed: dict[str, Any]) -> None:
    assert {check.level for check in examine(replace(WELL, **changed))} == {"ok"}


def test_an_absent_optional_package_is_named_with_what_it_is_for() -> None:
    check = doctor.check_optional(replace(WELL, optional={"peft": True}))
    assert check.level == "ok"
    assert "bitsandbytes (--optimizer adamw8bit)" in check.todo


def test_the_facts_of_this_machine_are_those_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "token"
    monkeypatch.setattr(doctor.runtime, "head_address", lambda: None)
    environ = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "OMP_NUM_THREADS": "3"}
    facts = doctor.gather(environ)
    assert (facts.auth_mode, facts.has_token, facts.omp_threads, facts.head) == ("token", False, "3", None)
    token.write_text("x")
    assert doctor.gather(environ).has_token
    assert {"ray", "torch", "pydantic"} <= {package.name.split("[")[0] for package in facts.packages}
    assert facts.num_cpus == len(os.sched_getaffinity(0))
    assert 0 < facts.memory.free <= facts.memory.total


def test_the_status_is_1_only_if_a_check_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "gather", lambda environ: replace(WELL, num_cpus=1))
    assert doctor.main([]) == 0
    assert "warn  cores" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "gather", lambda environ: replace(WELL, has_token=False))
    assert doctor.main(["--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows if row["level"] == "fail"] == ["ray token"]
