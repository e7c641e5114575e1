"""What `Documents` refuses in more than one place."""

import contextlib
import errno
from collections.abc import Iterator

from hsokv_ray.errors import HsokvError, StoreError
from serve.errors import ApiError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def unknown_document(id: str) -> ApiError:
    """Return the error for a document that is not there, or is another owner's; nobody can tell which."""
    return ApiError(404, f"no document {id[:80]!r}; GET /v1/documents lists yours", code="document_not_found")


def unknown_upload(name: str) -> ApiError:
    """Return the error for an upload that is not there, has ended, or is another owner's."""
    return ApiError(404, f"no upload {name[:80]!r}; it ended, expired or never began: begin it again")


def disk_error(error: OSError) -> ApiError | HsokvError:
    """Return what a client is told where the disk refused."""
    if error.errno in _FULL:
        return ApiError(507, "the server's disk is full; nothing was stored: tell who runs it")
    return StoreError(f"the server's disk refused ({error.strerror or error}); tell who runs it")


@contextlib.contextmanager
def refusing_disk() -> Iterator[None]:
    """Raise `disk_error` where the disk refuses within the block."""
    try:
        yield
    except OSError as error:
        raise disk_error(error) from error
