"""Prompts from a file, one per line; read before anything slow is imported."""

from dataclasses import dataclass
from pathlib import Path

from hsokv_ray.errors import ConfigError


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file, with the number of the line each stood on."""

    lines: tuple[tuple[int, str], ...]
    num_skipped: int
    """Empty lines."""


def read_prompts(path: str | Path) -> Prompts:
    """Read one prompt per line of a UTF-8 file. Raises `ConfigError`: unreadable, or no prompt in it."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--input {path} cannot be read ({error}); give a UTF-8 file, one prompt per line") from None
    kept = tuple((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    if not kept:
        raise ConfigError(f"--input {path} has {len(lines)} lines and no prompt; write one prompt per line")
    return Prompts(lines=kept, num_skipped=len(lines) - len(kept))
