"""One upload on its way to become a document, or a part of one.

    uploads/up-…/upload.json      what it is for
    uploads/up-…/source           JSON lines as they came (pages only)
    uploads/up-…/up-….txt         the text

The folder itself becomes the document's folder, so that nothing is copied. What is in memory (digest, decoder) is made
again from the bytes on disk after a restart.
"""

import hashlib
import os
import shutil
import threading
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from hsokv_ray.errors import DataError
from serve.documents.disk import flush_file, make_folder, read_json, write_all, write_json
from serve.documents.intake import Intake, PagesIntake, TextIntake
from serve.documents.records import Kind, Piece
from serve.errors import ApiError

PLAN = "upload.json"
SOURCE = "source"
_PART_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Plan:
    """What an upload is for."""

    id: str
    owner: str
    name: str
    kind: Kind
    document_id: str
    """Of the document that it will be, or that it is appended to."""
    appends: bool = False
    offset: int | None = None
    """Bytes that the document must have when it is appended to; None: any number."""
    digest: str | None = None
    """SHA-256 of all bytes, as the client says; checked at the end."""
    num_bytes: int | None = None
    """How many bytes there are, as the client says."""
    resumable: bool = False
    encode: bool = True
    """Encode the document as soon as it is complete."""

    @property
    def content(self) -> tuple[str, str] | None:
        """What a client finds it by again."""
        return (self.owner, self.digest) if self.resumable and self.digest else None


class Upload:
    """The files of one upload. Not safe to use from several threads: hold `lock`.

    Args:
        folder: its folder, which is there.
        line_bytes: of one line of JSON lines, at most.
    """

    def __init__(self, folder: Path, plan: Plan, *, line_bytes: int, touched_s: float) -> None:
        self.folder, self.plan, self.touched_s = folder, plan, touched_s
        self.lock = threading.Lock()
        self.is_over = False
        """It became a document or was thrown away; set under the lock."""
        self.text_path = folder / f"{plan.id}.txt"
        self._source_path = self.text_path if plan.kind == "text" else folder / SOURCE
        self._line_bytes = line_bytes
        self.offset = self._source_path.stat().st_size if self._source_path.exists() else 0
        self._hash: Any = None
        self._intake: Intake | None = None
        self._text_file: FileIO | None = None

    @classmethod
    def create(cls, folder: Path, plan: Plan, *, line_bytes: int, touched_s: float) -> "Upload":
        """Make the folder of a new upload; it is on disk when it returns."""
        make_folder(folder)
        write_json(folder / PLAN, asdict(plan))
        return cls(folder, plan, line_bytes=line_bytes, touched_s=touched_s)

    @classmethod
    def reopen(cls, folder: Path, *, line_bytes: int, now_s: float) -> "Upload":
        """Find an upload again. Raises `OSError`, `ValueError` or `TypeError` where it was never whole."""
        plan = Plan(**read_json(folder / PLAN))
        touched_s = min(now_s, max(path.stat().st_mtime for path in folder.iterdir()))
        return cls(folder, plan, line_bytes=line_bytes, touched_s=touched_s)

    def write(self, offset: int, data: bytes) -> None:
        """Add `data`, which begins at `offset`; what is there already is passed over.

        Raises:
            ApiError: 409, the upload is not that far yet.
            DataError: the bytes cannot be part of a document.
        """
        if offset > self.offset:
            raise ApiError(409, f"the upload has {self.offset} bytes, the part begins at {offset}; go on from there")
        data = data[self.offset - offset :]
        self._check_announced(self.offset + len(data))
        self._wake()
        self._store(data)
        self._take(data)

    def flush(self) -> None:
        """Put what was written on disk."""
        if self._source_path.exists():
            flush_file(self._source_path)

    def finish(self) -> Piece:
        """Check the whole and write its index; the files are on disk when it returns.

        Raises `DataError` where the bytes are not a document, or not those that were announced.
        """
        self._wake()
        assert self._intake is not None
        self._check_whole()
        self._intake.finish()
        self._close()
        index = self._intake.index
        text_sha256 = self._hash.hexdigest()
        if self.plan.kind == "pages":
            with self.text_path.open("rb") as file:
                text_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        flush_file(self.text_path)
        self._write_index()
        piece = Piece(
            file=self.plan.id,
            sha256=text_sha256,
            num_bytes=index.num_bytes,
            num_characters=index.num_characters,
            num_pages=len(self._intake.pages),
            source_sha256=self._hash.hexdigest(),
        )
        self.release()
        return piece

    def remove(self) -> None:
        """Delete its files."""
        self.is_over = True
        self._close()
        shutil.rmtree(self.folder, ignore_errors=True)  # what is left is removed at the next start

    def release(self) -> None:
        """Forget what is in memory."""
        self._close()
        self._hash = self._intake = None

    def _check_announced(self, num_bytes: int) -> None:
        if self.plan.num_bytes is not None and num_bytes > self.plan.num_bytes:
            raise ApiError(400, f"the upload has {num_bytes} bytes or more; {self.plan.num_bytes} were announced")

    def _check_whole(self) -> None:
        if self.plan.num_bytes is not None and self.offset < self.plan.num_bytes:
            raise ApiError(
                409, f"the upload has {self.offset} bytes; {self.plan.num_bytes} were announced: send the rest"
            )
        found = self._hash.hexdigest()
        if self.plan.digest is not None and found != self.plan.digest:
            raise DataError(f"digest: got {self.plan.digest}, the bytes that came have {found}; send them again")

    def _write_index(self) -> None:
        assert self._intake is not None
        index = self._intake.index
        values = {"every": index.every, "offsets": index.offsets, "pages": self._intake.pages}
        write_json(self.folder / f"{self.plan.id}.index.json", values)

    def _wake(self) -> None:
        """Bring what is in memory to where the file is."""
        if self._hash is not None:
            return
        self._hash, self._intake = hashlib.sha256(), self._new_intake()
        if not self._source_path.exists():
            self._source_path.touch()
        with self._source_path.open("rb") as file:
            while part := file.read(_PART_BYTES):
                self._hash.update(part)
                self._intake.feed(part)

    def _new_intake(self) -> Intake:
        if self.plan.kind == "text":
            return TextIntake()
        file = self._text_file = self.text_path.open("wb", buffering=0)
        return PagesIntake(lambda data: write_all(file, data), leads=self.plan.appends, line_bytes=self._line_bytes)

    def _store(self, data: bytes) -> None:
        """Append to the file, all of it or nothing."""
        with self._source_path.open("ab", buffering=0) as file:
            try:
                write_all(file, data)
            except OSError:
                os.truncate(self._source_path, self.offset)
                raise
        self.offset += len(data)

    def _take(self, data: bytes) -> None:
        assert self._intake is not None
        self._hash.update(data)
        self._intake.feed(data)

    def _close(self) -> None:
        if self._text_file is not None:
            self._text_file.close()
            self._text_file = None
