"""Collections of owners in one shared memory, where no owner reaches another's."""

import hashlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from serve.errors import ApiError

if TYPE_CHECKING:
    from hsokv_ray.memory.shared import MemoryClient

PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
MAX_PER_OWNER = 100
_OPEN = 64
"""Clients that are kept; one more ends the one that was not used for longest."""
_PATIENCE_S = 10.0
_DIGEST_CHARACTERS = 26


def stored_name(owner: str, collection: str) -> str:
    """Return what the collection is called in the memory; no two pairs of owner and collection have the same name.

    The first part has a fixed length and is a digest of the owner, so that nothing a client writes can move the border
    between the two; 26 hexadecimal digits are 104 bits.
    """
    return f"{_prefix(owner)}{collection}"


class Collections:
    """The collections of the memory `name`, as clients of it. Safe to use from several threads.

    Reads go to the memory's actors: a gateway stays free of segments and of searching.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._clients: OrderedDict[str, MemoryClient] = OrderedDict()

    def open(self, owner: str, collection: str) -> "MemoryClient":
        """Return a client of the collection, which may not be there yet. Raises `StoreError`: no memory answers."""
        name = stored_name(owner, collection)
        with self._lock:
            if name in self._clients:
                self._clients.move_to_end(name)
                return self._clients[name]
        client = self._connect(name)
        with self._lock:
            self._clients[name] = client
            if len(self._clients) > _OPEN:
                self._clients.popitem(last=False)  # not closed: a request may still use it
        return client

    def writable(self, owner: str, collection: str) -> "MemoryClient":
        """As `open`. Raises `ApiError` 507 where it would be one collection too many."""
        client = self.open(owner, collection)
        if client.dim is None:
            names = [name for name in client.collections() if name.startswith(_prefix(owner))]
            if len(names) >= MAX_PER_OWNER and stored_name(owner, collection) not in names:
                raise ApiError(
                    507,
                    f"you have {len(names)} collections; {MAX_PER_OWNER} are allowed: use one of them",
                    code="quota",
                )
        return client

    def _connect(self, name: str) -> "MemoryClient":
        from hsokv_ray.memory.shared import connect

        # strong: a client's next request may come to another gateway, and must see what this one acknowledged
        return connect(self._name, name, consistency="strong", reads="remote", patience_s=_PATIENCE_S)


def _prefix(owner: str) -> str:
    digest = hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()
    return f"serve.{digest[:_DIGEST_CHARACTERS]}."
