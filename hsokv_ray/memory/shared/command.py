"""`hsokv memory start`, `status`, `stop`, `restart`, `tenant`: the shared memories of a cluster from the shell."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from hsokv_ray.config import parse
from hsokv_ray.errors import ConfigError
from hsokv_ray.memory.shared.command_config import (
    RestartConfig,
    StartConfig,
    StatusConfig,
    StopConfig,
    TenantConfig,
)
from hsokv_ray.memory.shared.config import MemoryConfig, read_folder
from hsokv_ray.memory.shared.tenants import Tenants
from hsokv_ray.runtime import head_address


def start(argv: Sequence[str]) -> int:
    """Start a memory on the running cluster."""
    asked = parse(StartConfig, argv, prog="hsokv memory start")
    _need_head()
    from hsokv_ray.memory.shared import start_memory

    config = start_memory(MemoryConfig(**asked.model_dump()))
    print(f"memory {config.name!r} runs: {config.num_shards} shard(s) in {config.root}")
    print(f'use it:  from hsokv_ray.memory.shared import connect; memory = connect("{config.name}")')
    print(f"look:    hsokv memory status {config.name}")
    return 0


def status(argv: Sequence[str]) -> int:
    """Print one row per actor."""
    config = parse(StatusConfig, argv, prog="hsokv memory status")
    _need_head()
    from hsokv_ray.memory.shared import memory_status

    rows = memory_status(config.name)
    if config.output == "json":
        print(json.dumps(rows))
    else:
        Console().print(_table(rows))
        for row in rows:
            for problem in row["problems"]:
                print(f"shard {row['shard']}: {problem}")
    return 0


def stop(argv: Sequence[str]) -> int:
    """End a memory's actors."""
    config = parse(StopConfig, argv, prog="hsokv memory stop")
    _need_head()
    from hsokv_ray.memory.shared import stop_memory

    print(f"memory {config.name!r} {'ended' if stop_memory(config.name) else 'did not run'}")
    return 0


def restart(argv: Sequence[str]) -> int:
    """Start a memory's actors anew."""
    config = parse(RestartConfig, argv, prog="hsokv memory restart")
    _need_head()
    from hsokv_ray.memory.shared import restart_memory

    print(f"memory {config.name!r} runs anew in {restart_memory(config.name, config.root).root}")
    return 0


def tenant(argv: Sequence[str]) -> int:
    """Make or remove a tenant's key."""
    config = parse(TenantConfig, argv, prog="hsokv memory tenant")
    tenants = Tenants(read_folder(config.root).root)
    if config.remove:
        print(f"the key of {config.tenant!r} {'no longer works' if tenants.remove(config.tenant) else 'did not exist'}")
    else:
        print(tenants.add(config.tenant))
    return 0


def _need_head() -> None:
    """A Ray that this command started would end with it, and the memory too."""
    if head_address() is None:
        raise ConfigError("no Ray runs here; start a head (make head, or ray start --head) or set RAY_ADDRESS")


def _table(rows: list[dict[str, Any]]) -> Table:
    """One row per actor; narrow enough for 80 columns."""
    table = Table(box=None, pad_edge=False)
    for heading in ("shard", "role", "host", "pid", "vectors", "disk", "log", "queue", "refused"):
        table.add_column(heading, justify="left" if heading in ("role", "host") else "right", no_wrap=True)
    for row in rows:
        sizes = (size(row[key]) for key in ("disk_bytes", "log_bytes", "queue_bytes"))
        counts = (str(row["pid"]), f"{row['vectors']:,}")
        table.add_row(str(row["shard"]), row["role"], row["host"], *counts, *sizes, f"{row['refused']:,}")
    return table


def size(num_bytes: float) -> str:
    """Return `num_bytes` for people: 512 B, 1.5 KiB, 3.2 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
