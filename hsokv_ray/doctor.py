"""`hsokv doctor`: look at this machine, and say for each thing that it is ok or what to do.

Checks are functions of `Facts`, which `gather` collects; nothing is changed, and a running head is only asked.
"""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import psutil
import tyro
from packaging.requirements import Requirement

from hsokv_ray import runtime
from hsokv_ray.config import Config, parse
from hsokv_ray.errors import RunError

GIB = 2**30
OPTIONAL = {
    "bitsandbytes": "--optimizer adamw8bit",
    "tensorboard": "viewing the curves of a run",
    "peft": "LoRA",
    "lm_eval": "lm-evaluation-harness",
}
RAY_STORE_SHARE = 0.3
"""Part of the memory that Ray takes for its object store when it is not told how much."""

Level = Literal["ok", "warn", "fail"]


class DoctorConfig(Config):
    """Check Python, packages, Ray, memory, disk and devices. Exits with 1 if something cannot work."""

    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the checks as JSON."""


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    level: Level
    found: str
    todo: str = ""
    """What to do; empty where nothing is."""

    def line(self) -> str:
        """Return the check as it is printed."""
        return f"{self.level:<4}  {self.name:<17} {self.found}" + (f"; {self.todo}" if self.todo else "")


@dataclass(frozen=True)
class Package:
    """A required package: what is installed (None: nothing) and what is allowed."""

    name: str
    installed: str | None
    allowed: str


@dataclass(frozen=True)
class Space:
    """Bytes of a file system or of memory."""

    total: int
    free: int


@dataclass(frozen=True)
class Head:
    """The Ray head that a job would join."""

    address: str
    refused: str = ""
    """Why it could not be joined; empty if it could."""
    cpus: float = 0
    gpus: float = 0
    store_bytes: float = 0


@dataclass(frozen=True)
class Facts:
    """What `gather` found out."""

    python: tuple[int, ...]
    packages: tuple[Package, ...]
    auth_mode: str | None
    has_token: bool
    head: Head | None
    num_cpus: int
    memory: Space
    shm: Space | None
    tmp: Space
    gpus: tuple[str, ...]
    omp_threads: str | None
    compiler: str | None
    optional: Mapping[str, bool]


def main(argv: Sequence[str]) -> int:
    """Run `hsokv doctor` with the words after it; return 1 if a check failed."""
    config = parse(DoctorConfig, argv, prog="hsokv doctor")
    checks = examine(gather(os.environ))
    if config.as_json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        print("\n".join(check.line() for check in checks))
    return int(any(check.level == "fail" for check in checks))


def examine(facts: Facts) -> list[Check]:
    """Return every check of `facts`."""
    return [check(facts) for check in CHECKS]


def gather(environ: Mapping[str, str]) -> Facts:
    """Look at this machine and, if one runs, at the Ray head a job would join."""
    memory, shm = psutil.virtual_memory(), Path("/dev/shm")
    return Facts(
        python=sys.version_info[:3],
        packages=_packages(),
        auth_mode=environ.get("RAY_AUTH_MODE"),
        has_token=_has_token(environ),
        head=_head(),
        num_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=Space(memory.total, memory.available),
        shm=_space(shm) if shm.is_dir() else None,
        tmp=_space(Path("/tmp")),
        gpus=_gpus(),
        omp_threads=environ.get("OMP_NUM_THREADS"),
        compiler=shutil.which(environ.get("CXX", "g++")) or shutil.which("clang++"),
        optional={name: importlib.util.find_spec(name) is not None for name in OPTIONAL},
    )


def check_python(facts: Facts) -> Check:
    """Python 3.11 to 3.13."""
    found = ".".join(map(str, facts.python))
    if (3, 11) <= facts.python < (3, 14):
        return Check("python", "ok", found)
    return Check("python", "fail", found, "install Python 3.11, 3.12 or 3.13 and make the environment again")


def check_packages(facts: Facts) -> Check:
    """Every required package is installed in an allowed version."""
    bad = [
        f"{p.name} {p.installed or 'missing'} (allowed {p.allowed})"
        for p in facts.packages
        if p.installed is None or not Requirement(f"{p.name}{p.allowed}").specifier.contains(p.installed)
    ]
    if bad:
        return Check("packages", "fail", ", ".join(bad), 'run pip install -c constraints.txt -e ".[dev]"')
    shown = {p.name: p.installed for p in facts.packages if p.name in ("ray", "torch", "transformers")}
    versions = ", ".join(f"{name} {version}" for name, version in shown.items())
    return Check("packages", "ok", f"{versions}; all {len(facts.packages)} in their ranges")


def check_auth(facts: Facts) -> Check:
    """Ray's token authentication is wholly on or wholly off.

    A token that exists turns it on in `ray start` and `ray.init`, but `ray job submit` sends it only when told to.
    """
    export = "run: export RAY_AUTH_MODE=token"
    mode = facts.auth_mode
    if mode == "token" and not facts.has_token:
        return Check("ray token", "fail", "RAY_AUTH_MODE=token, no token", "run: ray get-auth-token --generate")
    if mode == "token":
        return Check("ray token", "ok", "on")
    if mode is None and facts.has_token:
        return Check("ray token", "warn", "a token exists, RAY_AUTH_MODE is unset: job submission gets 401", export)
    if mode is None:
        return Check(
            "ray token", "warn", "off: whoever reaches a head's ports can run code", f"{export}, or cluster/local.sh"
        )
    return Check("ray token", "warn", f"RAY_AUTH_MODE={mode}: whoever reaches a head's ports can run code", export)


def check_head(facts: Facts) -> Check:
    """A head is running and lets us in, or none is running."""
    if facts.head is None:
        return Check("ray head", "ok", "none runs; jobs start their own, or: cluster/local.sh start")
    if facts.head.refused:
        todo = 'run: eval "$(cluster/local.sh env)", or stop that head'
        return Check("ray head", "fail", f"{facts.head.address}: {facts.head.refused}", todo)
    return Check("ray head", "ok", f"{facts.head.address}, {facts.head.cpus:g} CPUs, {facts.head.gpus:g} GPUs")


def check_cores(facts: Facts) -> Check:
    """Workers and data tasks need two cores to run side by side."""
    if facts.num_cpus >= 2:
        return Check("cores", "ok", str(facts.num_cpus))
    return Check("cores", "warn", str(facts.num_cpus), "give jobs --cpus-per-worker 0.5 --data-cpus 0.5")


def check_memory(facts: Facts) -> Check:
    """Ray's own processes take 1.5 GiB, a micro training run 2 GiB."""
    found = f"{facts.memory.free / GIB:.1f} of {facts.memory.total / GIB:.1f} GiB available"
    if facts.memory.free < 2 * GIB:
        return Check("memory", "fail", found, "end other programs: Ray and a micro run need 4 GiB")
    if facts.memory.free < 4 * GIB:
        return Check("memory", "warn", found, "end other programs, or start Ray with --object-store-memory 200000000")
    return Check("memory", "ok", found)


def check_shm(facts: Facts) -> Check:
    """The object store fits into shared memory; otherwise Ray moves it to disk, which is slow."""
    if facts.shm is None:
        return Check("/dev/shm", "ok", "not on this system; Ray uses /tmp")
    found = f"{facts.shm.free / GIB:.1f} of {facts.shm.total / GIB:.1f} GiB free"
    if facts.shm.free < 0.2 * GIB:
        return Check("/dev/shm", "fail", found, "free it, or start the container with --shm-size=2g")
    if facts.shm.total < RAY_STORE_SHARE * facts.memory.total:
        store = int(facts.shm.free * 0.8)
        return Check("/dev/shm", "warn", found, f"start Ray with --object-store-memory {store}, or raise --shm-size")
    return Check("/dev/shm", "ok", found)


def check_disk(facts: Facts) -> Check:
    """Ray writes its session and spilled objects to /tmp, and stops creating objects when it is 95 % full."""
    used = 1 - facts.tmp.free / max(facts.tmp.total, 1)
    found = f"{facts.tmp.free / GIB:.1f} GiB free, {used:.0%} used"
    if used >= 0.95 or facts.tmp.free < GIB:
        return Check("disk in /tmp", "fail", found, "free space there, or start Ray with --temp-dir on another disk")
    if used >= 0.9 or facts.tmp.free < 5 * GIB:
        return Check("disk in /tmp", "warn", found, "free space there: at 95 % Ray stops creating objects")
    return Check("disk in /tmp", "ok", found)


def check_object_store(facts: Facts) -> Check:
    """The store of the running head has room for a few blocks of text."""
    if facts.head is None or facts.head.refused:
        share = RAY_STORE_SHARE * facts.memory.total / GIB
        return Check("object store", "ok", f"no head to ask; Ray would take {share:.1f} GiB")
    found = f"{facts.head.store_bytes / GIB:.2f} GiB"
    if facts.head.store_bytes < 0.1 * GIB:
        return Check("object store", "warn", found, "start the head with --object-store-memory 500000000 or more")
    return Check("object store", "ok", found)


def check_gpus(facts: Facts) -> Check:
    """GPUs that PyTorch sees are also seen by the head."""
    if not facts.gpus:
        return Check("gpus", "ok", "none that PyTorch sees; jobs run on the CPU")
    found = ", ".join(facts.gpus)
    if facts.head and not facts.head.refused and not facts.head.gpus:
        return Check("gpus", "warn", f"{found}, but the head has none", "stop it and start it again on this machine")
    return Check("gpus", "ok", f"{found}; use them with --use-gpu")


def check_omp(facts: Facts) -> Check:
    """Jobs set their own thread numbers; a global one slows what is not a job."""
    if facts.omp_threads is None:
        return Check("OMP_NUM_THREADS", "ok", "unset")
    return Check("OMP_NUM_THREADS", "warn", facts.omp_threads, "unset it: it limits every program in this shell")


def check_compiler(facts: Facts) -> Check:
    """torch.compile needs a C++ compiler on the CPU."""
    if facts.compiler:
        return Check("compiler", "ok", facts.compiler)
    return Check("compiler", "warn", "no C++ compiler", "install g++ to use --compile on the CPU")


def check_optional(facts: Facts) -> Check:
    """What is not installed switches one feature off, which then says so."""
    there = [name for name in OPTIONAL if facts.optional.get(name)]
    absent = [f"{name} ({OPTIONAL[name]})" for name in OPTIONAL if name not in there]
    found = ", ".join(there) or "none"
    return Check("optional packages", "ok", found, f"not installed: {', '.join(absent)}" if absent else "")


CHECKS: tuple[Callable[[Facts], Check], ...] = (
    check_python,
    check_packages,
    check_auth,
    check_head,
    check_cores,
    check_memory,
    check_shm,
    check_disk,
    check_object_store,
    check_gpus,
    check_omp,
    check_compiler,
    check_optional,
)


def _packages() -> tuple[Package, ...]:
    found = []
    for line in metadata.requires("hsokv_ray") or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.append(Package(requirement.name, _version(requirement.name), str(requirement.specifier)))
    return tuple(found)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _has_token(environ: Mapping[str, str]) -> bool:
    path = environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    return bool(environ.get("RAY_AUTH_TOKEN")) or Path(path).is_file()


def _head() -> Head | None:
    try:
        address = runtime.head_address()
    except RunError as error:
        return Head(address="RAY_ADDRESS", refused=str(error))
    if address is None:
        return None
    try:
        runtime.connect(log_to_driver=False)
    except RunError as error:
        return Head(address=address, refused=str(error))
    import ray

    total = ray.cluster_resources()
    ray.shutdown()
    store = total.get("object_store_memory", 0)
    return Head(address=address, cpus=total.get("CPU", 0), gpus=total.get("GPU", 0), store_bytes=store)


def _gpus() -> tuple[str, ...]:
    import torch

    return tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _space(path: Path) -> Space:
    usage = shutil.disk_usage(path)
    return Space(usage.total, usage.free)
