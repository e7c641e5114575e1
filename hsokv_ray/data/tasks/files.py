"""Reading the small files tasks come in: JSON lines and tab-separated text, plain or .gz; damage is one clear line."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hsokv_ray.errors import DataError


def find(folder: str | Path, *names: str) -> Path | None:
    """Return the first of `names` that `folder` holds, as it is or with .gz; None where it holds none of them."""
    for name in names:
        for path in (Path(folder) / name, Path(folder) / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def require(folder: str | Path, *names: str, how: str) -> Path:
    """Return what `find` does. Raises `DataError` that ends in `how`: what to do to get the data."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"there is no folder {str(folder)!r}; {how}")
    path = find(folder, *names)
    if path is None:
        raise DataError(f"{str(folder)!r} does not hold {' or '.join(names)} (or .gz of it); {how}")
    return path


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file without their ends. Raises `DataError` where it is damaged."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}); get the file again") from error


def read_json_lines(path: Path, *, fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file. Raises `DataError` naming the line that is no object with `fields`."""
    for number, line in enumerate(read_lines(path), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON ({error}); get the file again") from None
        if not isinstance(row, dict) or any(field not in row for field in fields):
            raise DataError(f"{path}:{number}: an object with {', '.join(fields)} is needed; get the file again")
        yield row


def read_tsv(path: Path, *, num_columns: int) -> Iterator[list[str]]:
    """Yield the rows of a tab-separated file; quotes are letters, as in GLUE. Raises `DataError` for a short row."""
    for number, line in enumerate(read_lines(path), start=1):
        row = line.split("\t")
        if len(row) < num_columns:
            raise DataError(f"{path}:{number}: got {len(row)} columns, {num_columns} are needed; get the file again")
        yield row
