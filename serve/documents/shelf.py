"""Finished documents: a folder each, listed in memory.

    documents/doc-…/document.json         who owns it, and its pieces; written last
    documents/doc-…/up-….txt              the text of a piece
    documents/doc-…/up-….index.json       where its characters and pages are

A folder under another name is on its way out. What is in a folder and not in its document.json is left from a write
that never ended, and removed at the start.
"""

import hashlib
import logging
import shutil
from pathlib import Path

from hsokv_ray.manifest import flush_folder
from serve.documents.disk import link_file, read_json, rename_folder, write_json
from serve.documents.records import Document, Kind, Piece

FILE = "document.json"
_LEAVING = ".gone-"
_LOG = logging.getLogger(__name__)


class Shelf:
    """The documents in one folder. Not safe to change from several threads at once; reading is.

    Args:
        folder: made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: list[str] = []
        """Folders whose document.json cannot be read; they are left as they are, and not listed."""
        self._documents: dict[str, Document] = {}
        self._by_content: dict[tuple[str, Kind, str], str] = {}
        self._by_upload: dict[str, str] = {}
        self._owned: dict[str, dict[str, Document]] = {}
        self.newest_us = 0
        """When the newest document of all times was made."""
        self._load()

    def __len__(self) -> int:
        return len(self._documents)

    def get(self, id: str) -> Document | None:
        """Return the document, whoever owns it."""
        return self._documents.get(id)

    def of_owner(self, owner: str) -> list[Document]:
        """Return all documents of `owner`."""
        return list(self._owned.get(owner, {}).values())

    def owners(self) -> list[str]:
        """Return all who own a document."""
        return list(self._owned)

    def with_content(self, content: tuple[str, Kind, str]) -> Document | None:
        """Return the document that was uploaded with this content."""
        id = self._by_content.get(content)
        return None if id is None else self._documents[id]

    def with_upload(self, upload_id: str) -> Document | None:
        """Return the document that the upload became, or was appended to."""
        id = self._by_upload.get(upload_id)
        return None if id is None else self._documents[id]

    def adopt(self, folder: Path, document: Document) -> None:
        """Make `folder`, which holds the files of its piece, the folder of `document`; on disk when it returns."""
        write_json(folder / FILE, document.to_json())
        rename_folder(folder, self.folder / document.id)
        self._remember(document)
        self._remove_strays(document)

    def extend(self, document: Document, piece: Piece, folder: Path) -> Document:
        """Append `piece`, whose files are in `folder`; on disk when it returns the longer document."""
        home, longer = self.folder / document.id, document.with_piece(piece)
        for name in _files(piece):
            link_file(folder / name, home / name)
        flush_folder(home)
        write_json(home / FILE, longer.to_json())
        self._forget(document)
        self._remember(longer)
        return longer

    def retire(self, document: Document) -> Path:
        """Take it from the list, for good; return the folder that is to be deleted."""
        gone = self.folder / f"{_LEAVING}{document.id}"
        rename_folder(self.folder / document.id, gone)
        self._forget(document)
        return gone

    def text_path(self, document: Document, piece: Piece) -> Path:
        """Return where the text of `piece` is."""
        return self.folder / document.id / f"{piece.file}.txt"

    def index_path(self, document: Document, piece: Piece) -> Path:
        """Return where the index of `piece` is."""
        return self.folder / document.id / f"{piece.file}.index.json"

    def check_integrity(self) -> None:
        """Compare memory with the disk, byte by byte. Raises `AssertionError`."""
        assert {path.name for path in self.folder.iterdir()} == {*self._documents, *self.damaged}
        for document in self._documents.values():
            self._check(document)
        assert set(self._by_upload) == {piece.file for each in self._documents.values() for piece in each.pieces}
        assert set(self._by_content) == {each.content for each in self._documents.values() if each.content}

    def _check(self, document: Document) -> None:
        home = self.folder / document.id
        assert Document.of_json(read_json(home / FILE)) == document
        names = {FILE, *(name for piece in document.pieces for name in _files(piece))}
        assert {path.name for path in home.iterdir()} == names
        assert self._owned[document.owner][document.id] is document
        for piece in document.pieces:
            data = self.text_path(document, piece).read_bytes()
            assert hashlib.sha256(data).hexdigest() == piece.sha256
            assert (len(data), len(data.decode())) == (piece.num_bytes, piece.num_characters)

    def _load(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folder.iterdir()):
            if path.name.startswith(_LEAVING):
                shutil.rmtree(path)
                continue
            try:
                document = Document.of_json(read_json(path / FILE))
            except (OSError, ValueError, KeyError, TypeError) as error:
                self.damaged.append(path.name)
                _LOG.error("document %s cannot be read (%r); it is not listed, its files stay", path, error)
                continue
            self._remember(document)
            self._remove_strays(document)

    def _remember(self, document: Document) -> None:
        self.newest_us = max(self.newest_us, document.created_us)
        self._documents[document.id] = document
        self._owned.setdefault(document.owner, {})[document.id] = document
        self._by_upload |= {piece.file: document.id for piece in document.pieces}
        if document.content:
            self._by_content[document.content] = document.id

    def _forget(self, document: Document) -> None:
        del self._documents[document.id]
        del self._owned[document.owner][document.id]
        if not self._owned[document.owner]:
            del self._owned[document.owner]
        for piece in document.pieces:
            del self._by_upload[piece.file]
        if document.content:
            del self._by_content[document.content]

    def _remove_strays(self, document: Document) -> None:
        keep = {FILE, *(name for piece in document.pieces for name in _files(piece))}
        for path in (self.folder / document.id).iterdir():
            if path.name not in keep:
                path.unlink()


def _files(piece: Piece) -> tuple[str, str]:
    return f"{piece.file}.txt", f"{piece.file}.index.json"
