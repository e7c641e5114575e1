"""How much an owner may keep, and how each refusal says its numbers."""

from hsokv_ray.config import Config
from serve.errors import ApiError


class DocumentLimits(Config):
    """What `Documents` takes."""

    document_bytes: int = 256 * 2**20
    """Bytes of one document, and of one upload."""
    documents_per_owner: int = 1000
    """Documents one owner keeps."""
    bytes_per_owner: int = 4 * 2**30
    """Bytes of all documents and unfinished uploads of one owner."""
    uploads_per_owner: int = 32
    """Unfinished uploads of one owner."""
    upload_expiry_s: float = 24 * 3600
    """Seconds after which an unfinished upload that nobody goes on with is removed."""
    line_bytes: int = 8 * 2**20
    """Bytes of one line of JSON lines."""
    free_bytes: int = 256 * 2**20
    """Bytes of the disk that uploads leave free."""

    def check_size(self, num_bytes: int) -> None:
        """Raise `ApiError` 413 where one document would have `num_bytes`."""
        if num_bytes > self.document_bytes:
            raise ApiError(
                413, f"the document has {num_bytes} bytes or more; at most {self.document_bytes} are allowed: split it"
            )

    def check_count(self, num_documents: int) -> None:
        """Raise `ApiError` 507 where an owner would have `num_documents`, those being uploaded included."""
        if num_documents > self.documents_per_owner:
            raise ApiError(
                507,
                f"you keep or are uploading {num_documents - 1} documents; {self.documents_per_owner} are allowed: "
                "delete some",
            )

    def check_total(self, used: int, more: int) -> None:
        """Raise `ApiError` 507 where an owner who uses `used` bytes asks for `more`."""
        if used + more > self.bytes_per_owner:
            raise ApiError(
                507,
                f"you use {used} bytes and {more} more were sent; {self.bytes_per_owner} are allowed: delete documents",
            )

    def check_uploads(self, num_uploads: int) -> None:
        """Raise `ApiError` 429 where an owner would have `num_uploads` unfinished ones."""
        if num_uploads > self.uploads_per_owner:
            raise ApiError(
                429,
                f"you have {num_uploads - 1} unfinished uploads; {self.uploads_per_owner} are allowed: "
                "finish or delete one",
                retry_after_s=5,
            )

    def check_disk(self, free_bytes: int, more: int) -> None:
        """Raise `ApiError` 507 where the disk has `free_bytes` and `more` come."""
        if free_bytes - more < self.free_bytes:
            raise ApiError(507, "the server's disk is nearly full; nothing was stored: tell who runs it")
