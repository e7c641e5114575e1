"""Collections of owners in one shared memory, where no owner reaches another's."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serve.errors import ApiError

if TYPE_CHECKING:
    from hsokv_ray.memory.shared import MemoryClient

PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
MAX_PER_OWNER = 100
_OPEN = 64
"""Clients that are kept open where nobody uses them."""
_PATIENCE_S = 10.0
_DIGEST_CHARACTERS = 26


def stored_name(owner: str, collection: str) -> str:
    """Return what the collection is called in the memory; no two pairs of owner and collection have the same name.

    The first part has a fixed length and is a digest of the owner, so that nothing a client writes can move the border
    between the two; 26 hexadecimal digits are 104 bits.
    """
    return f"{_prefix(owner)}{collection}"


@dataclass
class _Open:
    """A client, and how many use it now."""

    client: "MemoryClient"
    users: int = 0


class Collections:
    """The collections of the memory `name`, as clients of it. Safe to use from several threads.

    Reads go to the memory's actors: a gateway stays free of segments and of searching.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._opened: OrderedDict[str, _Open] = OrderedDict()

    @contextmanager
    def using(self, owner: str, collection: str) -> "Iterator[MemoryClient]":
        """Lend a client of the collection, which may not be there yet. Raises `StoreError`: no memory answers."""
        opened = self._take(stored_name(owner, collection))
        try:
            yield opened.client
        finally:
            with self._lock:
                opened.users -= 1
            self._close_old()

    @contextmanager
    def writing(self, owner: str, collection: str) -> "Iterator[MemoryClient]":
        """As `using`. Raises `ApiError` 507 where it would be one collection too many."""
        with self.using(owner, collection) as client:
            if client.dim is None:
                names = [name for name in client.collections() if name.startswith(_prefix(owner))]
                if len(names) >= MAX_PER_OWNER and stored_name(owner, collection) not in names:
                    raise ApiError(
                        507,
                        f"you have {len(names)} collections; {MAX_PER_OWNER} are allowed: use one of them",
                        code="quota",
                    )
            yield client

    def _take(self, name: str) -> _Open:
        with self._lock:
            if name in self._opened:
                return self._lend(name)
        client = self._connect(name)
        with self._lock:
            if name not in self._opened:
                self._opened[name] = _Open(client)
                return self._lend(name)
            opened = self._lend(name)
        client.close()  # another thread was first
        return opened

    def _lend(self, name: str) -> _Open:
        self._opened.move_to_end(name)
        self._opened[name].users += 1
        return self._opened[name]

    def _close_old(self) -> None:
        """Close the clients past `_OPEN` that were not used for longest and that nobody uses."""
        with self._lock:
            idle = [name for name, opened in self._opened.items() if not opened.users]
            old = [self._opened.pop(name) for name in idle[: max(0, len(self._opened) - _OPEN)]]
        for opened in old:
            opened.client.close()

    def _connect(self, name: str) -> "MemoryClient":
        from hsokv_ray.memory.shared import connect

        # strong: a client's next request may come to another gateway, and must see what this one acknowledged
        return connect(self._name, name, consistency="strong", reads="remote", patience_s=_PATIENCE_S)


def _prefix(owner: str) -> str:
    digest = hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()
    return f"serve.{digest[:_DIGEST_CHARACTERS]}."
