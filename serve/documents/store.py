"""Documents of many owners, kept in one folder of one process.

    documents = Documents("~/documents")
    upload = documents.begin("ann", name="notes.txt")
    documents.write("ann", upload.id, 0, b"some text")
    stored = documents.finish("ann", upload.id)                  # on disk when it returns
    documents.text(stored.listed.document.id, "ann", 0, 4).text  # "some"

Every method takes the owner, and another owner's document is the same as none. Whatever a client says of a document is
kept in JSON; names of files are random. Killed at any moment, it goes on from what was acknowledged.
"""

import contextlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hsokv_ray.errors import DataError, StoreError
from serve.documents.disk import take_lock
from serve.documents.limits import DocumentLimits
from serve.documents.passages import check_range, read_passage
from serve.documents.progress import ProgressBoard
from serve.documents.records import (
    Document,
    Kind,
    Listed,
    Listing,
    Passage,
    Piece,
    Progress,
    State,
    Stored,
    UploadState,
)
from serve.documents.refusals import disk_error, refusing_disk, unknown_document, unknown_upload
from serve.documents.shelf import Shelf
from serve.documents.upload import Plan, Upload
from serve.documents.uploads import Uploads
from serve.errors import ApiError

MAX_PART_BYTES = 8 * 2**20
_LOCK = "lock"


class Documents:
    """Safe to call from several threads. One at a time has a folder.

    Args:
        root: its folder; made if missing.
        clock: seconds since 1970.

    Raises `StoreError` where another process has the folder.
    """

    def __init__(
        self, root: str | Path, limits: DocumentLimits | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        root = Path(root).expanduser().absolute()
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root, self.limits, self._clock = root, limits or DocumentLimits(), clock
        self._lock_file = take_lock(root / _LOCK)
        self._is_closed = False
        self._lock = threading.RLock()
        self._shelf = Shelf(root / "documents")
        self._uploads = Uploads(root / "uploads", self._shelf, self.limits, now_s=clock())
        self._progress = ProgressBoard(clock)

    # ---- uploads

    def begin(
        self,
        owner: str,
        *,
        name: str = "",
        kind: Kind = "text",
        digest: str | None = None,
        num_bytes: int | None = None,
        resumable: bool = False,
        encode: bool = True,
        document_id: str | None = None,
        offset: int | None = None,
    ) -> UploadState:
        """Begin an upload, or find the resumable one, or the document, that has this digest already.

        Args:
            digest: SHA-256 of all bytes, hexadecimal; checked at the end.
            num_bytes: how many will come; None where that is not known.
            document_id: append to it instead of making a new one.
            offset: bytes which that document must have at the end, so that nothing is appended twice.

        Raises `ApiError` 404, 409, 413, 429 or 507 with the numbers.
        """
        self.sweep()
        with self._lock:
            if resumable and (found := self._find(owner, kind, digest, num_bytes)):
                return found
            document = None if document_id is None else self._get(document_id, owner)
            self._check_room(owner, num_bytes or 0, document)
            plan = Plan(
                id=f"up-{secrets.token_hex(12)}",
                owner=owner,
                name=name if document is None else document.name,
                kind=kind,
                document_id=document.id if document else f"doc-{secrets.token_hex(12)}",
                appends=document is not None,
                offset=offset,
                digest=digest,
                num_bytes=num_bytes,
                resumable=resumable,
                encode=encode,
            )
            with refusing_disk():
                return self._uploads.create(plan, now_s=self._clock())

    def write(self, owner: str, upload_id: str, offset: int, data: bytes) -> int:
        """Add `data` at `offset` and return how far the upload is; a part that came before is passed over.

        Raises:
            DataError: the bytes cannot be of a document; the upload is gone.
            ApiError: 404, 409 or a limit; the upload stays as it was.
        """
        if len(data) > MAX_PART_BYTES:
            raise ApiError(413, f"the part has {len(data)} bytes; at most {MAX_PART_BYTES} are taken at once")
        with self._using(owner, upload_id) as upload:
            with self._lock:
                document = self._get(upload.plan.document_id, owner) if upload.plan.appends else None
                self.limits.check_size(offset + len(data) + (document.num_bytes if document else 0))
                self.limits.check_total(self._used(owner), offset + len(data) - upload.offset)
                self.limits.check_disk(shutil.disk_usage(self.root).free, len(data))
            upload.touched_s = self._clock()
            upload.write(offset, data)
            return upload.offset

    def flush(self, owner: str, upload_id: str) -> int:
        """Put what was written on disk; return how far the upload is."""
        with self._using(owner, upload_id) as upload:
            upload.flush()
            return upload.offset

    def find_upload(self, owner: str, digest: str) -> UploadState:
        """Return the resumable upload of these bytes. Raises `ApiError` 404."""
        with self._lock:
            upload = self._uploads.with_content((owner, digest))
            if upload is None:
                raise unknown_upload(digest)
            return self._uploads.state(upload)

    def finish(self, owner: str, upload_id: str) -> Stored:
        """Make the upload a document, or a part of one. A second call returns the same.

        Raises:
            DataError: the bytes are not a document, or not those announced; the upload is gone.
            ApiError: 404, 409 or a limit.
        """
        with self._lock:
            done = self._shelf.with_upload(upload_id)
            if done is not None and done.owner == owner:
                return Stored(self._listed(done), created=True)
        with self._using(owner, upload_id) as upload:
            piece = upload.finish()
            with self._lock:
                stored = self._append(upload, piece) if upload.plan.appends else self._adopt(upload, piece)
                self._uploads.forget(upload)
            upload.remove()
            return stored

    def discard(self, owner: str, upload_id: str) -> None:
        """Give the upload up. Raises `ApiError` 404."""
        with self._using(owner, upload_id) as upload:
            self._drop(upload)

    def sweep(self) -> int:
        """Remove uploads that nobody went on with; return how many."""
        with self._lock:
            old = self._uploads.expired(self._clock())
        num_removed = 0
        for upload in old:
            with upload.lock:
                if not upload.is_over and upload.touched_s + self.limits.upload_expiry_s <= self._clock():
                    self._drop(upload)
                    num_removed += 1
        return num_removed

    # ---- documents

    def listing(self, owner: str, *, limit: int = 20, after: str | None = None) -> Listing:
        """Return documents of `owner`, newest first, from behind the document `after`. Raises `ApiError` 404."""
        with self._lock:
            last = None if after is None else self._get(after, owner).position
            found = sorted(self._shelf.of_owner(owner), key=lambda each: each.position, reverse=True)
            rest = [each for each in found if last is None or each.position < last]
            return Listing([self._listed(each) for each in rest[:limit]], has_more=len(rest) > limit)

    def get(self, id: str, owner: str) -> Listed:
        """Return one document. Raises `ApiError` 404."""
        with self._lock:
            return self._listed(self._get(id, owner))

    def text(self, id: str, owner: str, begin: int = 0, end: int | None = None) -> Passage:
        """Return characters `begin` to `end`, with the pages they touch.

        Args:
            end: None: the end of the document, or as far as one call goes.

        Raises `ApiError` 404; `DataError` where the range is not within the document, or too long.
        """
        with self._lock:
            document = self._get(id, owner)
        begin, end = check_range(document, begin, end)
        try:
            return read_passage(self._shelf, document, begin, end)
        except OSError as error:
            raise self._unreadable(id, owner, error) from None

    def pieces(self, id: str, owner: str) -> list[Piece]:
        """Return the document's pieces in order, with the paths of their texts. Raises `ApiError` 404."""
        with self._lock:
            document = self._get(id, owner)
            return [replace(piece, path=str(self._shelf.text_path(document, piece))) for piece in document.pieces]

    def read(self, id: str, owner: str, file: str, offset: int, num_bytes: int) -> bytes:
        """Return bytes of the text of the piece `file`; fewer at its end. Raises `ApiError` 404."""
        with self._lock:
            document = self._get(id, owner)
            path = next((self._shelf.text_path(document, each) for each in document.pieces if each.file == file), None)
        if path is None:
            raise unknown_document(id)
        try:
            with path.open("rb") as text:
                text.seek(offset)
                return text.read(num_bytes)
        except OSError as error:
            raise self._unreadable(id, owner, error) from None

    def delete(self, id: str, owner: str) -> list[str]:
        """Delete it for good; return the digests of what was encoded of it. Raises `ApiError` 404."""
        with self._lock, refusing_disk():
            gone = self._shelf.retire(self._get(id, owner))
            digests = self._progress.forget(id)
        with refusing_disk():
            shutil.rmtree(gone)
        return digests

    # ---- encoding

    def progress(
        self,
        id: str,
        owner: str,
        state: State,
        done: int = 0,
        total: int = 0,
        message: str | None = None,
        digest: str | None = None,
    ) -> None:
        """Say how far the encoding is, in tokens. Raises `ApiError` 404 where the document is gone: stop then."""
        with self._lock:
            self._get(id, owner)
            self._progress.note(id, state, done, total, message, digest)

    def note_encoded(self, encoded: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
        """Keep what was encoded of documents, as (id, owner, digest), so that `delete` can tell; of any owners.

        Returns those whose document is gone: nobody will have them dropped.
        """
        gone = []
        with self._lock:
            for id, owner, digest in encoded:
                document = self._shelf.get(id)
                if document is None or document.owner != owner:
                    gone.append((id, owner, digest))
                else:
                    self._progress.note_digest(id, digest)
        return gone

    def encoded_as(self, id: str, owner: str) -> list[str]:
        """Return the digests of what was encoded of a document. Raises `ApiError` 404."""
        with self._lock:
            self._get(id, owner)
            return self._progress.digests(id)

    def set_limits(self, limits: DocumentLimits) -> None:
        """Hold what comes from now on to other limits."""
        with self._lock:
            self.limits = limits
            self._uploads.set_limits(limits)

    def wait_on(self, id: str, owner: str) -> None:
        """Say that the encoding is still waited for. Raises `ApiError` 404: stop then."""
        with self._lock:
            self._get(id, owner)
            self._progress.wait_on(id)

    def read_progress(self, id: str, owner: str) -> Progress:
        """Return how far the encoding is. Raises `ApiError` 404."""
        return self.get(id, owner).progress

    # ---- the whole

    def stats(self) -> dict[str, Any]:
        """Return what is kept, in numbers."""
        with self._lock:
            documents = [each for owner in self._shelf.owners() for each in self._shelf.of_owner(owner)]
            return {
                "documents": len(documents),
                "document_bytes": sum(each.num_bytes for each in documents),
                "uploads": len(self._uploads),
                "damaged": len(self._shelf.damaged),
            }

    def check_integrity(self) -> None:
        """Compare memory with the disk. Raises `AssertionError`; nothing may be written meanwhile."""
        with self._lock:
            self._shelf.check_integrity()
            self._uploads.check_integrity()

    def close(self) -> None:
        """Let another process have the folder; a second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            os.close(self._lock_file)

    # ---- inside

    def _get(self, id: str, owner: str) -> Document:
        document = self._shelf.get(id)
        if document is None or document.owner != owner:
            raise unknown_document(id)
        return document

    def _listed(self, document: Document) -> Listed:
        return Listed(document, self._progress.read(document.id))

    def _used(self, owner: str) -> int:
        return sum(each.num_bytes for each in self._shelf.of_owner(owner)) + self._uploads.used(owner)

    def _find(self, owner: str, kind: Kind, digest: str | None, num_bytes: int | None) -> UploadState | None:
        assert digest is not None, "a resumable upload is found by its digest"
        document = self._shelf.with_content((owner, kind, digest))
        if document is not None:
            stored = Stored(self._listed(document), created=False)
            return UploadState("", digest, num_bytes or 0, num_bytes, stored=stored)
        upload = self._uploads.with_content((owner, digest))
        if upload is None:
            return None
        if (upload.plan.kind, upload.plan.num_bytes) != (kind, num_bytes):
            raise ApiError(
                409,
                f"an upload of this digest began as {upload.plan.num_bytes} bytes of {upload.plan.kind}, "
                f"now it is {num_bytes} bytes of {kind}; go on as it began, or delete it",
            )
        upload.touched_s = self._clock()
        return self._uploads.state(upload)

    def _check_room(self, owner: str, num_bytes: int, document: Document | None) -> None:
        uploads = self._uploads.of_owner(owner)
        if document is None:
            coming = sum(not upload.plan.appends for upload in uploads)
            self.limits.check_count(len(self._shelf.of_owner(owner)) + coming + 1)
        self.limits.check_uploads(len(uploads) + 1)
        self.limits.check_size(num_bytes + (document.num_bytes if document else 0))
        self.limits.check_total(self._used(owner), num_bytes)
        self.limits.check_disk(shutil.disk_usage(self.root).free, num_bytes)

    @contextlib.contextmanager
    def _using(self, owner: str, upload_id: str) -> Iterator[Upload]:
        """Hold an upload; one whose bytes turn out to be wrong is dropped."""
        with self._lock:
            upload = self._uploads.get(upload_id)
        if upload is None or upload.plan.owner != owner:
            raise unknown_upload(upload_id)
        with upload.lock:
            if upload.is_over:
                raise unknown_upload(upload_id)
            try:
                yield upload
            except DataError:
                self._drop(upload)
                raise
            except OSError as error:
                upload.release()
                raise disk_error(error) from error

    def _drop(self, upload: Upload) -> None:
        with self._lock:
            self._uploads.forget(upload)
        upload.remove()

    def _adopt(self, upload: Upload, piece: Piece) -> Stored:
        plan = upload.plan
        same = self._shelf.with_content((plan.owner, plan.kind, piece.source_sha256))
        if same is not None:
            return Stored(self._listed(same), created=False)
        created_us = max(int(self._clock() * 1e6), self._shelf.newest_us + 1)
        document = Document(plan.document_id, plan.owner, plan.name, plan.kind, created_us, (piece,))
        self._shelf.adopt(upload.folder, document)
        return Stored(self._listed(document), created=True)

    def _append(self, upload: Upload, piece: Piece) -> Stored:
        plan = upload.plan
        document = self._get(plan.document_id, plan.owner)
        if plan.offset is not None and plan.offset != document.num_bytes:
            self._drop(upload)
            raise ApiError(
                409, f"offset: got {plan.offset}, the document has {document.num_bytes} bytes; nothing was appended"
            )
        self.limits.check_size(document.num_bytes + piece.num_bytes)
        longer = self._shelf.extend(document, piece, upload.folder)
        self._progress.reset(longer.id)
        return Stored(self._listed(longer), created=True)

    def _unreadable(self, id: str, owner: str, error: OSError) -> Exception:
        """Return why a text cannot be read: it was deleted meanwhile, or its files are damaged."""
        with self._lock:
            document = self._shelf.get(id)
        if document is None or document.owner != owner:
            return unknown_document(id)
        return StoreError(f"the files of document {id} cannot be read ({error.strerror}); tell who runs this server")
