"""The unfinished uploads of a folder."""

import logging
import shutil
from pathlib import Path

from serve.documents.limits import DocumentLimits
from serve.documents.records import UploadState
from serve.documents.shelf import Shelf
from serve.documents.upload import Plan, Upload

_LOG = logging.getLogger(__name__)


class Uploads:
    """Not safe to use from several threads at once.

    Args:
        folder: made if missing; what is found there goes on, unless it ended as a document.
        shelf: the documents that uploads became.
    """

    def __init__(self, folder: Path, shelf: Shelf, limits: DocumentLimits, *, now_s: float) -> None:
        self._folder, self._limits = folder, limits
        self._uploads: dict[str, Upload] = {}
        self._by_content: dict[tuple[str, str], Upload] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()):
            self._find(path, shelf, now_s)

    def __len__(self) -> int:
        return len(self._uploads)

    def set_limits(self, limits: DocumentLimits) -> None:
        """Hold uploads from now on to other limits."""
        self._limits = limits

    def create(self, plan: Plan, *, now_s: float) -> UploadState:
        """Begin an upload; it is on disk when it returns."""
        upload = Upload.create(self._folder / plan.id, plan, line_bytes=self._limits.line_bytes, touched_s=now_s)
        self._remember(upload)
        return self.state(upload)

    def get(self, id: str) -> Upload | None:
        """Return the upload, whoever owns it."""
        return self._uploads.get(id)

    def with_content(self, content: tuple[str, str]) -> Upload | None:
        """Return the resumable upload of this owner and digest."""
        return self._by_content.get(content)

    def of_owner(self, owner: str) -> list[Upload]:
        """Return all uploads of `owner`."""
        return [upload for upload in self._uploads.values() if upload.plan.owner == owner]

    def used(self, owner: str) -> int:
        """Return the bytes that the uploads of `owner` hold."""
        return sum(upload.offset for upload in self.of_owner(owner))

    def expired(self, now_s: float) -> list[Upload]:
        """Return uploads that nobody went on with for too long."""
        age_s = self._limits.upload_expiry_s
        return [upload for upload in self._uploads.values() if upload.touched_s + age_s <= now_s]

    def forget(self, upload: Upload) -> None:
        """It is over."""
        self._uploads.pop(upload.plan.id, None)
        content = upload.plan.content
        if content is not None and self._by_content.get(content) is upload:
            del self._by_content[content]

    def state(self, upload: Upload) -> UploadState:
        """Return how far `upload` is."""
        plan = upload.plan
        return UploadState(plan.id, plan.digest, upload.offset, plan.num_bytes, encode=plan.encode)

    def check_integrity(self) -> None:
        """Compare memory with the disk. Raises `AssertionError`."""
        assert {path.name for path in self._folder.iterdir()} == set(self._uploads)
        for upload in self._uploads.values():
            assert Upload.reopen(upload.folder, line_bytes=1, now_s=0).plan == upload.plan
            assert Upload.reopen(upload.folder, line_bytes=1, now_s=0).offset == upload.offset
        assert set(self._by_content) == {each.plan.content for each in self._uploads.values() if each.plan.content}

    def _find(self, path: Path, shelf: Shelf, now_s: float) -> None:
        try:
            upload = Upload.reopen(path, line_bytes=self._limits.line_bytes, now_s=now_s)
        except (OSError, ValueError, TypeError) as error:
            _LOG.warning("upload %s was never begun to its end (%r); it is removed", path, error)
            shutil.rmtree(path)
            return
        if shelf.with_upload(upload.plan.id) is not None:
            upload.remove()
        else:
            self._remember(upload)

    def _remember(self, upload: Upload) -> None:
        self._uploads[upload.plan.id] = upload
        if upload.plan.content is not None:
            self._by_content[upload.plan.content] = upload
