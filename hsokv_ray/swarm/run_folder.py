"""The folder of a search: where its files lie, which configuration it belongs to, and that one driver writes it."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydantic

from hsokv_ray import env
from hsokv_ray.config import differences
from hsokv_ray.errors import CheckpointError, ConfigError, RunError
from hsokv_ray.folder_lock import hold
from hsokv_ray.manifest import flush_folder
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.learner import Task

FORMAT = 1


class SearchFolder:
    """The paths of one search, and the claim a driver has on it.

    Args:
        path: the search's own folder; relative ones are made absolute, because workers change directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.config = self.path / "search.json"
        self.journal = self.path / "journal.jsonl"
        self.events = self.path / "events.jsonl"
        self.snapshot = self.path / "swarm.json"
        self.running = self.path / "running.json"
        self.states = self.path / "states"
        self.best = self.path / "best"
        self.summary = self.path / "summary.json"

    @property
    def name(self) -> str:
        """The search's name."""
        return self.path.name

    @property
    def resume_command(self) -> str:
        """What a user types to go on."""
        where = "" if self.path.parent == env.runs_dir() else f" --output-dir {self.path.parent}"
        return f"jobs/search_swarm.py --resume --name {self.name}{where}"

    @contextlib.contextmanager
    def claim(
        self, config: dict[str, Any], *, resume: bool, on_claim: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Hold the search for this process; the first claim writes search.json, later ones must agree with it.

        Args:
            config: as `describe` returns it.
            resume: go on with the search that is here; False: there must be none.
            on_claim: called once nothing else can refuse, before the first claim writes search.json; what it raises
                leaves none.

        Raises:
            ConfigError: there is a search and it is not to be resumed, there is none to resume, or it has another
                configuration; names the fields that differ.
            RunError: the folder cannot be written, or another process holds the search.
        """
        self.check(config, resume=resume)
        with hold(self.path):
            self.check(config, resume=resume)  # again: another process may have begun or ended it before the lock
            if on_claim is not None:
                on_claim()
            if not self.config.exists():
                write_json(self.config, config, indent=1)
            yield

    def check(self, config: dict[str, Any], *, resume: bool) -> None:
        """Raise `ConfigError` where `claim` would; changes nothing."""
        if not self.config.exists():
            if resume:
                raise ConfigError(f"--resume: {self.path} holds no search; check --name, or start one without --resume")
            return
        if not resume:
            raise ConfigError(f"{self.path} holds a search already; go on with it by --resume, or give another --name")
        rows = differences(read_json(self.config), json.loads(json.dumps(config)))
        if rows:
            raise ConfigError(
                f"{self.path} holds a search with another configuration: {'; '.join(rows)} (old -> new); "
                "give the old values to resume it, or another --name to start a new one"
            )


def describe(task: Task, config: SwarmConfig, seed: int) -> dict[str, Any]:
    """Return all that decides a search, as JSON. What only decides how fast it runs is not part of it."""
    kind = f"{type(task).__module__}.{type(task).__qualname__}"
    return {
        "format": FORMAT,
        "task": {"name": task.name, "kind": kind, **_fields(task)},
        "space": task.space.to_json(),
        "swarm": config.model_dump(mode="json"),
        "seed": seed,
    }


def write_json(path: Path, values: Any, *, indent: int | None = None, flush: bool = True) -> None:
    """Replace `path` as a whole or not at all. Raises `RunError`: the disk refuses.

    Args:
        path: in a folder that exists.
        values: JSON.
        indent: for human readers.
        flush: on disk when this returns; False: the operating system has it.
    """
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(values, file, indent=indent, allow_nan=False)
            file.flush()
            if flush:
                os.fsync(file.fileno())
        temporary.replace(path)
        if flush:
            flush_folder(path.parent)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); make room, then resume the search") from None


def read_json(path: Path) -> Any:
    """Return what `write_json` wrote. Raises `CheckpointError`: it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it from a copy") from None


def _fields(task: Task) -> dict[str, Any]:
    """Return a task's own configuration; of one that is neither dataclass nor pydantic model, its public attributes."""
    if isinstance(task, pydantic.BaseModel):
        return task.model_dump(mode="json")
    if dataclasses.is_dataclass(task):
        values = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    else:
        values = {name: value for name, value in vars(task).items() if not name.startswith("_")}
    return {name: json.loads(json.dumps(value, default=_plain)) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return str(value) if isinstance(value, Path) else repr(value)
