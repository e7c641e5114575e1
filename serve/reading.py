"""Documents before a prompt, in a replica: their tokens, and what was read of them here or by another replica."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from hsokv_ray.errors import ConfigError, DataError, StoreError
from hsokv_ray.inference.engine.events import Passage
from hsokv_ray.inference.engine.prefix_search import search
from hsokv_ray.longcontext.prefixes import Prefixes
from hsokv_ray.longcontext.segments import Encoded
from serve.calls import DrawnFrom
from serve.documents.client import note_encoded, read_piece, read_pieces
from serve.documents.records import Piece
from serve.documents.refusals import unknown_document
from serve.texts import Texts

logger = logging.getLogger(__name__)

OnTokens = Callable[[int, int], None]
"""Called with the tokens read so far and all of them."""


@dataclass(frozen=True)
class Part:
    """A piece of a document in the chain of tokens before a prompt."""

    document: str
    owner: str
    piece: Piece
    char_begin: int
    """Its first character in the document."""
    ids: np.ndarray
    """[N]"""
    begin: int
    """Its first token in the chain."""

    @property
    def end(self) -> int:
        return self.begin + len(self.ids)


@dataclass(frozen=True)
class Chain:
    """The documents of a request, in their order, as one text."""

    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return self.parts[-1].end if self.parts else 0

    @property
    def token_ids(self) -> np.ndarray:
        return np.concatenate([part.ids for part in self.parts])


class DroppingPrefixes(Prefixes, Protocol):
    """A store that lets go of a text on demand."""

    def drop(self, digest: str) -> Any:
        """Remove the text with this mark and what continues it. Raises `StoreError`: not everywhere."""
        ...


class Cancelled(Exception):  # noqa: N818 - not an error
    """Nobody waits for it any more."""


class Reader:
    """Finds what is known of documents, and has the engine read the rest.

    Args:
        engine: reads.
        prefixes: knows what was read.
        documents: `ActorLink` or handle of the documents actor.
    """

    def __init__(self, engine: Any, texts: Texts, prefixes: DroppingPrefixes, documents: Any) -> None:
        self._engine, self._texts, self._prefixes, self._documents = engine, texts, prefixes, documents

    def chain(self, owner: str, documents: Sequence[str]) -> Chain:
        """Return the tokens of `documents`.

        Raises `ApiError` 404, `StoreError`, `DataError`: nothing in them, `ConfigError`: more than the server takes.
        """
        parts: list[Part] = []
        found = [(document, *each) for document in documents for each in self._pieces(document, owner)]
        self._texts.check_characters(sum(piece.num_characters for _, piece, _ in found))
        for document, piece, char_begin in found:
            begin = parts[-1].end if parts else 0
            ids = self._ids(document, owner, piece, begins=not parts)
            parts.append(Part(document, owner, piece, char_begin, ids, begin))
            _check_documents(parts[-1].end, self._texts.max_tokens)
        parts = [part for part in parts if len(part.ids)]
        if documents and not parts:
            raise DataError("the documents are empty; name one with text, or none")
        return Chain(tuple(parts))

    def read(self, chain: Chain, on_tokens: OnTokens, gone: threading.Event) -> tuple[Encoded, int]:
        """Return what was read of `chain`, and how many of its tokens were known before; waits.

        Args:
            gone: set when nobody waits any more; then `Cancelled` is raised.

        Raises `ApiError` 404: a document was deleted meanwhile.
        """
        served = self._engine.served
        digests = served.digests(chain.token_ids, [part.end for part in chain.parts], served.settings)
        known = self._prefixes.find(digests)
        num_known = 0 if known is None else len(known)
        for part, digest in zip(chain.parts, digests, strict=True):
            if known is None or len(known) < part.end:
                known = self._read_part(part, digest, known, len(chain), on_tokens, gone)
        assert known is not None
        assert len(known) == len(chain)
        self._note(chain, digests)
        return known, num_known

    def drawn_from(self, chain: Chain, prompt_ids: list[int], passages: Sequence[Passage]) -> tuple[DrawnFrom, ...]:
        """Return where the passages are in their documents, or their text where they are of the prompt."""
        return tuple(each for passage in passages for each in self._placed(chain, prompt_ids, passage))

    def _note(self, chain: Chain, digests: Sequence[str]) -> None:
        """Say what was encoded of documents, so that it ends with them. Raises `ApiError` 404: one has ended by now."""
        encoded = [(part.document, part.owner, digest) for part, digest in zip(chain.parts, digests, strict=True)]
        try:
            gone = note_encoded(self._documents, encoded)
            for _, _, digest in gone:
                self._prefixes.drop(digest)
        except (StoreError, TimeoutError) as error:
            logger.warning("what was encoded of documents will age out instead of ending with them: %s", error)
            return
        if gone:
            raise unknown_document(gone[0][0])

    def _pieces(self, document: str, owner: str) -> Iterator[tuple[Piece, int]]:
        pieces = read_pieces(self._documents, document, owner)
        begins = accumulate((piece.num_characters for piece in pieces), initial=0)
        yield from zip(pieces, begins, strict=False)

    def _ids(self, document: str, owner: str, piece: Piece, *, begins: bool) -> np.ndarray:
        known = self._texts.piece(piece.sha256, None, begins=begins)
        if known is None:
            text = read_piece(self._documents, document, owner, piece)
            known = self._texts.piece(piece.sha256, text, begins=begins)
        assert known is not None
        return known

    def _read_part(
        self, part: Part, digest: str, after: Encoded | None, total: int, on_tokens: OnTokens, gone: threading.Event
    ) -> Encoded:
        """Return the text up to the end of `part`, read by whoever claims it first and waited for by the others."""
        found = search(self._prefixes, [digest], lambda: not gone.is_set())
        try:
            if found.encoded is not None:
                return found.encoded
            if gone.is_set():
                raise Cancelled
            return self._encode(part, after, total, on_tokens, gone)
        finally:
            if found.claim is not None:
                self._prefixes.release(found.claim)

    def _encode(
        self, part: Part, after: Encoded | None, total: int, on_tokens: OnTokens, gone: threading.Event
    ) -> Encoded:
        job = self._engine.encode(part.ids, after=after, on_tokens=lambda done: on_tokens(part.begin + done, total))
        while True:
            try:
                encoded = job.result(0.25)
            except TimeoutError:
                if gone.is_set():
                    job.cancel()
                    raise Cancelled from None
                continue
            self._prefixes.add(encoded)
            return encoded

    def _placed(self, chain: Chain, prompt_ids: list[int], passage: Passage) -> Iterator[DrawnFrom]:
        size = passage.end - passage.begin
        for part in chain.parts:
            begin, end = max(part.begin, passage.begin), min(part.end, passage.end)
            if begin < end:
                first, last = self._characters(part, begin - part.begin, end - part.begin)
                mass = passage.mass * (end - begin) / size
                yield DrawnFrom(part.document, begin, end, mass, first + part.char_begin, last + part.char_begin)
        begin, end = max(len(chain), passage.begin), passage.end
        if begin < end:
            text = self._texts.text(prompt_ids[begin - len(chain) : end - len(chain)])
            yield DrawnFrom(None, begin, end, passage.mass * (end - begin) / size, text=text)

    def _characters(self, part: Part, begin: int, end: int) -> tuple[int, int]:
        text = read_piece(self._documents, part.document, part.owner, part.piece)
        return self._texts.characters(text, begin, end, begins=part.begin == 0)


def _check_documents(total: int, most: int) -> None:
    if total > most:
        raise ConfigError(f"the documents have {total:,} tokens or more, at most {most:,} are allowed; name fewer")


def check_size(chain: Chain, num_prompt: int, most: int) -> None:
    """Raise `ConfigError` where documents and prompt are over `most` tokens: before they are read, not after."""
    total = len(chain) + num_prompt
    if total > most:
        raise ConfigError(
            f"documents and prompt have {total:,} tokens together, at most {most:,} are allowed; name fewer documents"
        )


def check_kept(chain: Chain, bytes_per_token: int, most_bytes: int) -> None:
    """Raise `ConfigError` where what is encoded of a document is too large to be kept, by the size of its tokens."""
    nbytes = len(chain) * bytes_per_token
    if nbytes > most_bytes:
        raise ConfigError(
            f"the document has {len(chain):,} tokens, which take {nbytes:,} bytes encoded; {most_bytes:,} are kept at "
            "most, so each question would read it again: raise segments_bytes or engine.prefix_cache_bytes, or split it"
        )
