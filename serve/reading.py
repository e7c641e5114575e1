"""Documents before a prompt, in a replica: their tokens, and what was read of them here or by another replica."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from hsokv_ray.errors import ConfigError, DataError
from hsokv_ray.inference.engine.events import Passage
from hsokv_ray.longcontext.prefixes import Prefixes
from hsokv_ray.longcontext.segments import Encoded
from serve.calls import DrawnFrom
from serve.documents.client import read_piece, read_pieces
from serve.documents.records import Piece
from serve.texts import Texts

_CLAIM_TIMEOUT_S = 2.0
_CLAIMS = 3
"""Times to wait for another replica that reads the same text, before it is read here too: it may be stuck."""

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


class Cancelled(Exception):  # noqa: N818 - not an error
    """Nobody waits for it any more."""


class Reader:
    """Finds what is known of documents, and has the engine read the rest.

    Args:
        engine: reads.
        prefixes: knows what was read.
        documents: handle of the documents actor.
    """

    def __init__(self, engine: Any, texts: Texts, prefixes: Prefixes, documents: Any) -> None:
        self._engine, self._texts, self._prefixes, self._documents = engine, texts, prefixes, documents

    def chain(self, owner: str, documents: Sequence[str]) -> Chain:
        """Return the tokens of `documents`. Raises `ApiError` 404, `StoreError`, `DataError`: nothing in them."""
        parts: list[Part] = []
        for document in documents:
            for piece, char_begin in self._pieces(document, owner):
                begin = parts[-1].end if parts else 0
                ids = self._ids(document, owner, piece, begins=not parts)
                parts.append(Part(document, owner, piece, char_begin, ids, begin))
        parts = [part for part in parts if len(part.ids)]
        if documents and not parts:
            raise DataError("the documents are empty; name one with text, or none")
        return Chain(tuple(parts))

    def read(self, chain: Chain, on_tokens: OnTokens, gone: threading.Event) -> tuple[Encoded, int]:
        """Return what was read of `chain`, and how many of its tokens were known before; waits.

        Args:
            gone: set when nobody waits any more; then `Cancelled` is raised.
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
        return known, num_known

    def drawn_from(self, chain: Chain, prompt_ids: list[int], passages: Sequence[Passage]) -> tuple[DrawnFrom, ...]:
        """Return where the passages are in their documents, or their text where they are of the prompt."""
        return tuple(each for passage in passages for each in self._placed(chain, prompt_ids, passage))

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
        """Return the text up to the end of `part`, read by whoever claims it first."""
        for _ in range(_CLAIMS):
            claimed = self._prefixes.claim(digest, _CLAIM_TIMEOUT_S)
            try:
                found = self._prefixes.find([digest])
                if found is not None:
                    return found
                if claimed:
                    return self._encode(part, after, total, on_tokens, gone)
            finally:
                if claimed:
                    self._prefixes.release(digest)
            if gone.is_set():
                raise Cancelled
        return self._encode(part, after, total, on_tokens, gone)

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


def check_size(chain: Chain, num_prompt: int, most: int) -> None:
    """Raise `ConfigError` where documents and prompt are over `most` tokens: before they are read, not after."""
    total = len(chain) + num_prompt
    if total > most:
        raise ConfigError(
            f"documents and prompt have {total:,} tokens together, at most {most:,} are allowed; name fewer documents"
        )
