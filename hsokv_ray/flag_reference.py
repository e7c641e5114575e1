"""The reference of every flag, from the configuration classes: `python -m hsokv_ray.flag_reference > docs/flags.md`."""

from collections.abc import Iterator
from typing import Any

from hsokv_ray.config import Config, flag, sections
from hsokv_ray.data.jobs_config import PretokenizeConfig, SplitDatasetConfig
from hsokv_ray.doctor import DoctorConfig
from hsokv_ray.inference.config import GenerateConfig
from hsokv_ray.memory.command_config import (
    CountConfig,
    ExportConfig,
    ImportConfig,
    MigrateConfig,
    QueryConfig,
    UpsertConfig,
)
from hsokv_ray.memory.shared.command_config import (
    RestartConfig,
    StartConfig,
    StatusConfig,
    StopConfig,
    TenantConfig,
)
from hsokv_ray.swarm.search_config import SearchSwarmConfig
from hsokv_ray.training.config import TrainHMSTConfig

COMMANDS: dict[str, type[Config]] = {
    "jobs/train_hmst.py": TrainHMSTConfig,
    "jobs/search_swarm.py": SearchSwarmConfig,
    "jobs/pretokenize.py": PretokenizeConfig,
    "jobs/split_dataset.py": SplitDatasetConfig,
    "hsokv generate": GenerateConfig,
    "hsokv doctor": DoctorConfig,
    "hsokv memory upsert": UpsertConfig,
    "hsokv memory query": QueryConfig,
    "hsokv memory count": CountConfig,
    "hsokv memory export": ExportConfig,
    "hsokv memory import": ImportConfig,
    "hsokv memory migrate": MigrateConfig,
    "hsokv memory start": StartConfig,
    "hsokv memory status": StatusConfig,
    "hsokv memory stop": StopConfig,
    "hsokv memory restart": RestartConfig,
    "hsokv memory tenant": TenantConfig,
}

HEAD = """# Flags

Every command takes `--config FILE.yaml` first (the same names, one mapping per section) and flags after it, which win.
This file is written by `python -m hsokv_ray.flag_reference > docs/flags.md`; a test fails when it is out of date.
"""


def reference() -> str:
    """Return the Markdown reference of all commands."""
    parts = [HEAD]
    for command, cls in COMMANDS.items():
        parts.append(f"## {command}\n\n{_text(cls.__doc__)}\n")
        parts += _tables(cls, heading="")
    return "\n".join(parts)


def _tables(cls: type[Config], *, heading: str) -> Iterator[str]:
    inner = sections(cls)
    rows = [_row(name, field) for name, field in cls.model_fields.items() if name not in inner]
    if rows:
        head = f"### {heading}\n\n" if heading else ""
        yield head + "| Flag | Default | Meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    for name, section in inner.items():
        yield from _tables(section, heading=f"`{name}`: {_text(section.__doc__)}")


def _row(name: str, field: Any) -> str:
    default = "required" if field.is_required() else f"`{field.default}`"
    return f"| `{flag(name, field)}` | {default} | {_text(field.description).replace('|', chr(92) + '|')} |"


def _text(docstring: str | None) -> str:
    return " ".join((docstring or "").split())


if __name__ == "__main__":
    print(reference(), end="")
