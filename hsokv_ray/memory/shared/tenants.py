"""Who may see which collections: a key names a tenant, a tenant sees its own collections only.

key = Tenants(root).add("acme")          # shown once; only its digest is kept
Tenants(root).resolve(key)               # "acme"
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import threading
from pathlib import Path

from hsokv_ray.errors import ConfigError, DataError, StoreError
from hsokv_ray.memory.shared.config import NAME_PATTERN

DEFAULT = "default"
FILE = "tenants.json"
_COLLECTIONS = "collections"


class Tenants:
    """The tenants of a memory, kept in its folder. Safe to call from several threads."""

    def __init__(self, root: str | Path, *, require_key: bool = False) -> None:
        self._root = Path(root)
        self._path = self._root / FILE
        self._require_key = require_key
        self._lock = threading.Lock()
        self._digests: dict[str, str] = {}
        self._stamp: tuple[int, int] | None = None

    def add(self, tenant: str) -> str:
        """Make `tenant`, or give it a new key if it is there; return the key. The old key no longer works."""
        if not re.fullmatch(NAME_PATTERN, tenant) or tenant == DEFAULT:
            raise ConfigError(f"tenant {tenant!r}: letters, digits, _ . - are allowed, and not the name {DEFAULT!r}")
        key = f"hk-{secrets.token_urlsafe(32)}"
        with self._lock:
            self._write({**self._read(), tenant: _digest(key)})
        return key

    def remove(self, tenant: str) -> bool:
        """Make the key of `tenant` useless; its collections stay. Return whether there was one."""
        with self._lock:
            digests = self._read()
            if digests.pop(tenant, None) is None:
                return False
            self._write(digests)
            return True

    def names(self) -> list[str]:
        """Return all tenants that have a key."""
        with self._lock:
            return sorted(self._read())

    def resolve(self, key: str | None) -> str:
        """Return the tenant of `key`; without a key, the default one. Raises `StoreError` for a key unknown here."""
        if key is None:
            if self._require_key:
                raise StoreError("this memory asks for a key; set HSOKV_MEMORY_KEY or give key=")
            return DEFAULT
        with self._lock:
            digests = self._read()
        given = _digest(key)
        found = [tenant for tenant, digest in digests.items() if hmac.compare_digest(digest, given)]
        if not found:
            raise StoreError("this memory does not know the key; ask for one: hsokv memory tenant NAME --root DIR")
        return found[0]

    def folder(self, tenant: str, collection: str) -> Path:
        """Return where a collection of `tenant` lies. Raises `DataError` for a name that is not allowed."""
        if not re.fullmatch(NAME_PATTERN, collection):
            raise DataError(
                f"collection {collection!r}: 1 to 100 letters, digits, _ . - are allowed, a letter or digit first"
            )
        return self._root / _COLLECTIONS / tenant / collection

    def collections(self, tenant: str) -> list[str]:
        """Return the names of the collections of `tenant`."""
        folder = self._root / _COLLECTIONS / tenant
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    def _read(self) -> dict[str, str]:
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._digests = dict(json.loads(self._path.read_text(encoding="utf-8")))
                self._stamp = stamp
        except FileNotFoundError:
            self._digests, self._stamp = {}, None
        except ValueError as error:
            raise StoreError(f"{self._path} is damaged ({error}); restore it or make new keys") from None
        return dict(self._digests)

    def _write(self, digests: dict[str, str]) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(digests, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o600)
        temporary.replace(self._path)


def _digest(key: str) -> str:
    """Keys are 256 random bits, so that a plain digest cannot be searched."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
