"""Where a transfer stands, in a small file beside its target, so that the same line typed again goes on.

The file is replaced atomically after every batch that the store has taken; writing a row twice does no harm, so a batch
at the time of a kill is simply written again.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hsokv_ray.errors import StoreError
from hsokv_ray.memory.stores.config import FaissConfig, LanceConfig, QdrantConfig, StoreConfig

FORMAT = 1


@dataclass(frozen=True)
class Progress:
    """What is done."""

    cursor: Any
    """JSON value that says where reading goes on."""
    rows: int
    """Rows written."""
    skipped: int = 0
    """Bad rows passed over."""
    last_id: str = ""
    """Of the row written last: a target that does not have it is not the one this was written to."""
    began_empty: bool = False
    """Whether the target held nothing before."""


class TransferState:
    """The progress of one transfer.

    Args:
        folder: where the file goes.
        name: of the target, for the file's name.
        what: what makes this transfer different from others, JSON: command, source, target, encoder.
        source: digest of the source; progress through another one does not count.
    """

    def __init__(self, folder: Path, name: str, what: list[Any], source: str) -> None:
        digest = hashlib.blake2b(json.dumps(what).encode(), digest_size=6).hexdigest()
        self.path = folder / f".{name}.{digest}.progress.json"
        self._source = source

    def load(self) -> tuple[Progress | None, str]:
        """Return the progress so far, or None; and why one that is there does not count, or ""."""
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
            fits = values["format"] == FORMAT and values["source"] == self._source
            return (Progress(**values["progress"]), "") if fits else (None, "the source has changed")
        except FileNotFoundError:
            return None, ""
        except (OSError, ValueError, KeyError, TypeError) as error:
            return None, f"{self.path} cannot be read ({error!r})"

    def save(self, progress: Progress) -> None:
        """Replace the file. Raises `StoreError`: the disk refuses."""
        text = json.dumps({"format": FORMAT, "source": self._source, "progress": asdict(progress)})
        temporary = self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            raise StoreError(f"{self.path}: the progress cannot be written ({error.strerror})") from error

    def finish(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def local_place(config: StoreConfig) -> Path | None:
    """Return where a store lies on this machine; None where it lies elsewhere."""
    match config:
        case FaissConfig(path=path):
            return Path(path)
        case QdrantConfig(path=str(path)):
            return Path(path)
        case LanceConfig(uri=uri) if "://" not in uri:
            return Path(uri)
    return None


def state_for(
    command: str, *, source: str | Path, source_digest: str, target: StoreConfig, encoder: str = ""
) -> TransferState:
    """Return the state of a transfer: beside the target, else beside a source file, else in the current folder."""
    place = local_place(target)
    source_name = str(source.absolute()) if isinstance(source, Path) else source
    what = [command, source_name, target.model_dump(mode="json"), encoder]
    if place is not None:
        return TransferState(place.absolute().parent, place.name or "memory", what, source_digest)
    folder = source.absolute().parent if isinstance(source, Path) else Path.cwd()
    return TransferState(folder, f"hsokv-{command}", what, source_digest)
