"""Which column of a table holds the text, and what is text at all."""

import json
import re
from collections.abc import Mapping
from typing import Any

from hsokv_ray.errors import DataError

PREFERRED_COLUMNS = ("text", "content")
_SURROGATES = re.compile("[\ud800-\udfff]")


def choose_column(columns: Mapping[str, bool], *, wanted: str | None, where: str) -> str | None:
    """Return the column that holds the text, or None for the whole row as JSON.

    Args:
        columns: name of each column and whether it holds strings.
        wanted: `--text-column`, which wins.
        where: the file, for the message.

    Raises:
        DataError: `wanted` is not among the columns.
    """
    if wanted is not None:
        if columns and wanted not in columns:
            raise DataError(f"--text-column: {where} has no column {wanted!r}; it has {', '.join(columns)}")
        return wanted
    for name in PREFERRED_COLUMNS:
        if columns.get(name):
            return name
    strings = [name for name, is_string in columns.items() if is_string]
    return strings[0] if len(strings) == 1 else None


def string_columns(rows: list[Any]) -> dict[str, bool]:
    """Return the keys of `rows` (those that are mappings) and whether all their values, nulls aside, are strings."""
    found: dict[str, bool] = {}
    for row in rows:
        for name, value in row.items() if isinstance(row, dict) else ():
            if value is not None:
                found[name] = found.get(name, True) and isinstance(value, str)
            else:
                found.setdefault(name, True)
    return found


def row_text(row: Any, column: str | None) -> str | None:
    """Return the text of a row: the value of `column`, or the row as JSON. None where the row lacks the column.

    A null is empty text; a value that is no string is written as JSON.
    """
    value = row
    if column is not None and isinstance(row, dict):
        if column not in row:
            return None
        value = row[column]
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def replace_surrogates(text: str) -> str:
    """Replace what UTF-8 cannot hold (undecodable bytes, lone surrogates of JSON) by U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)
