"""What a shared memory is: its folder, its shards, what a client asks of it. Imports no Ray."""

import json
import os
from pathlib import Path
from typing import Literal

import pydantic

from hsokv_ray.config import Config, differences
from hsokv_ray.errors import ConfigError
from hsokv_ray.memory.stores.config import FaissConfig, FaissIndex
from hsokv_ray.memory.stores.types import Metric

PROTOCOL = 1
"""Version of what clients and actors say to each other; both sides compare it."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
FILE = "memory.json"


class MemoryConfig(Config):
    """A memory that a cluster shares."""

    name: str = pydantic.Field(pattern=NAME_PATTERN)
    """Clients find it by this name."""
    root: str
    """Folder of its files, absolute. Its shards run on the node where it was started, unless `shared_root`."""
    num_shards: int = pydantic.Field(default=1, ge=1, le=1024)
    """Writers, each with the ids that hash to it. Fixed for the life of the folder."""
    num_replicas: int = pydantic.Field(default=0, ge=0, le=64)
    """Reading actors per shard, for clients on nodes without the files; clients beside the files read by themselves."""
    shared_root: bool = False
    """`root` is on a file system that every node sees: actors spread over the nodes and restart anywhere."""
    metric: Metric = "cosine"
    """How vectors compare."""
    index: FaissIndex = "auto"
    """How large sealed segments are searched."""
    seal_rows: int = pydantic.Field(default=8192, ge=16)
    """Rows at which a growing segment is sealed."""
    durability: Literal["fsync", "async"] = "fsync"
    """fsync: an acknowledged write is on disk. async: within a second."""
    num_threads: int = pydantic.Field(default=1, ge=0)
    """Threads of one search in a shard; 0 takes every CPU of the node."""
    queue_bytes: int = pydantic.Field(default=64 * 2**20, ge=2**10)
    """Bytes of calls that a shard holds at once; past them it answers Overloaded."""
    require_key: bool = False
    """Refuse clients without a tenant's key; else they are the tenant `default`."""

    @pydantic.field_validator("root")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return str(Path(value).expanduser().absolute())

    def store_config(self, folder: Path) -> FaissConfig:
        """Return how the shard of a collection in `folder` is kept."""
        return FaissConfig(
            path=str(folder),
            metric=self.metric,
            index=self.index,
            seal_rows=self.seal_rows,
            durability=self.durability,
            num_threads=self.num_threads,
        )


_FIXED = ("name", "num_shards", "metric")


def claim_folder(config: MemoryConfig) -> None:
    """Write `config` into its folder. Raises `ConfigError` where what cannot change differs from what lies there."""
    root = Path(config.root)
    root.mkdir(parents=True, exist_ok=True)
    if (root / FILE).exists():
        old, new = read_folder(config.root).model_dump(), config.model_dump()
        fixed = differences({key: old[key] for key in _FIXED}, {key: new[key] for key in _FIXED})
        if fixed:
            raise ConfigError(
                f"{config.root} already holds a memory with other settings ({'; '.join(fixed)}); "
                "use those, another folder, or export and import into a new memory"
            )
    temporary = root / f"{FILE}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(config.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(root / FILE)


def read_folder(root: str) -> MemoryConfig:
    """Return the configuration that lies in the folder `root`. Raises `ConfigError` where there is none."""
    path = Path(root) / FILE
    try:
        return MemoryConfig(**{**json.loads(path.read_text(encoding="utf-8")), "root": root})
    except FileNotFoundError:
        raise ConfigError(f"{root} holds no memory ({FILE} is missing); start one there: hsokv memory start") from None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); it is JSON of the memory's settings") from None
