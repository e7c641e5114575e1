"""Documents: texts that owners upload once and ask about often. What is acknowledged is on disk."""

from serve.documents.limits import DocumentLimits
from serve.documents.records import Document, Page, Piece, Progress
from serve.documents.store import Documents

__all__ = ["Document", "DocumentLimits", "Documents", "Page", "Piece", "Progress"]
