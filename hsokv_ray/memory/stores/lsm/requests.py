"""The requests a store has carried out, so that one that comes again is answered and not repeated.

requests = Requests()
requests.add("job-17/3", Outcome(epoch=7, seq=42, count=1000))
requests.get("job-17/3")
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from hsokv_ray.errors import StoreError

LIMIT = 131_072
"""How many of the latest are remembered."""
_FIXED = struct.Struct("<QQQI")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a write did."""

    epoch: int
    seq: int
    count: int
    """Rows written or deleted."""


class Requests:
    """The latest requests by id. Not for several threads at once."""

    def __init__(self, items: Iterable[tuple[str, Outcome]] = (), limit: int = LIMIT) -> None:
        self._limit = limit
        self._outcomes: dict[str, Outcome] = dict(items)

    def __len__(self) -> int:
        return len(self._outcomes)

    def get(self, request_id: str | None) -> Outcome | None:
        """Return what the request did; None where it is not known."""
        return None if request_id is None else self._outcomes.get(request_id)

    def add(self, request_id: str | None, outcome: Outcome) -> None:
        """Remember a request and forget the oldest ones."""
        if request_id is None:
            return
        self._outcomes[request_id] = outcome
        if len(self._outcomes) > self._limit + self._limit // 8:  # in lots: the front of a dict is slow to find
            for old in list(islice(self._outcomes, len(self._outcomes) - self._limit)):
                del self._outcomes[old]

    def items(self) -> list[tuple[str, Outcome]]:
        """Return them, oldest first."""
        return list(self._outcomes.items())


def pack_requests(items: Iterable[tuple[str, Outcome]]) -> bytes:
    """Return `items` as bytes."""
    names = ((name.encode(), outcome) for name, outcome in items)
    return b"".join(_FIXED.pack(each.epoch, each.seq, each.count, len(name)) + name for name, each in names)


def unpack_requests(data: bytes) -> list[tuple[str, Outcome]]:
    """Return what `pack_requests` packed. Raises `StoreError`."""
    try:
        return list(_unpack(data))
    except (struct.error, UnicodeDecodeError) as error:
        raise StoreError(f"the list of requests makes no sense ({error}); restore a snapshot") from None


def _unpack(data: bytes) -> Iterator[tuple[str, Outcome]]:
    at = 0
    while at < len(data):
        epoch, seq, count, length = _FIXED.unpack_from(data, at)
        at += _FIXED.size
        yield data[at : at + length].decode(), Outcome(epoch, seq, count)
        at += length
