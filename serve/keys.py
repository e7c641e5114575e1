"""Who asks: API keys, and what is answered where there are none.

Every route but the public ones depends on `authenticate`, once, at the router's root. Handlers that need to know the
owner take `owner: str = Depends(current_owner)`.
"""

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request

from hsokv_ray import env
from hsokv_ray.errors import ConfigError
from serve.errors import ApiError

LOCAL_OWNER = "local"
"""The owner of everything where no key is set."""

_LEAST_CHARACTERS = 16
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
"""Headers of proxies: whom they ask for may be anywhere."""
_LOOPBACK_NAMES = ("localhost", "localhost.localdomain")


def is_public(path: str) -> bool:
    """Return whether everybody may ask for `path`: exactly /health, / and what is below /console/."""
    return path in ("/health", "/", "/console") or path.startswith("/console/")


@dataclass(frozen=True)
class Key:
    """One API key; only its digest is kept."""

    owner: str
    digest: bytes


@dataclass(frozen=True)
class Keys:
    """The API keys of an application."""

    entries: tuple[Key, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.entries)

    def owner_of(self, presented: str) -> str | None:
        """Return whose key `presented` is; takes the same time whichever it is, or none."""
        digest = _digest(presented)
        owner = None
        for entry in self.entries:
            if hmac.compare_digest(entry.digest, digest):
                owner = entry.owner
        return owner


def read_keys(path: str | None) -> Keys:
    """Return the keys of the file at `path` and of HSOKV_API_KEYS. Raises `ConfigError` where a line is wrong."""
    lines: list[tuple[str, str]] = []
    if path is not None:
        lines += [(f"{path}:{number}", line) for number, line in enumerate(_read(path), start=1)]
    lines += [(f"{env.API_KEYS}:{number}", line) for number, line in enumerate(env.api_keys(), start=1)]
    entries = [_key(where, line.strip()) for where, line in lines if line.strip() and not line.strip().startswith("#")]
    if path is not None and not entries:
        raise ConfigError(f"{path} holds no key; write lines name:key, or leave keys_file out")
    if len({entry.digest for entry in entries}) != len(entries):
        raise ConfigError("two API keys are the same; each owner needs a key of their own")
    return Keys(tuple(entries))


async def current_owner(request: Request) -> str:
    """Return who asks, as `authenticate` found out."""
    return request.state.owner


async def authenticate(request: Request) -> None:
    """Let the request pass, or raise `ApiError`: 403 for a foreign host or page, 401 for a wrong or missing key."""
    services = request.app.state.services
    keys: Keys = services.keys
    request.state.owner = LOCAL_OWNER
    if not keys:
        _check_host(request, keys, services.args.allowed_hosts)
        _check_page(request, services.args.cors_origins)
    elif not is_public(_path(request)):  # probes and Prometheus ask by address, whatever the names are
        _check_host(request, keys, services.args.allowed_hosts)
        request.state.owner = _owner(request, keys)


def _path(request: Request) -> str:
    """Return the path that the router goes by; `request.url` is made of what the client writes as its Host, too."""
    return request.scope["path"].removeprefix(request.scope.get("root_path", ""))


def _owner(request: Request, keys: Keys) -> str:
    scheme, _, presented = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not presented.strip():
        raise ApiError(401, "no API key was given; send the header Authorization: Bearer YOUR_KEY")
    owner = keys.owner_of(presented.strip())
    if owner is None:
        raise ApiError(401, "the API key is not known here; check it, or ask who runs this server for one")
    return owner


def _check_host(request: Request, keys: Keys, allowed: tuple[str, ...]) -> None:
    if keys and not allowed:
        return
    name = _host_name(request.headers.get("host", ""))
    is_here = _is_loopback(request.client.host if request.client else "")
    if not keys and (not is_here or any(header in request.headers for header in _FORWARDED)):
        raise ApiError(403, "without API keys only this machine is answered; set HSOKV_API_KEYS or keys_file")
    # a page of another site can make a browser ask 127.0.0.1 under a name of its own (DNS rebinding)
    if not _is_loopback(name) and name not in allowed:
        raise ApiError(403, f"the Host header names {name!r:.100}, which is not served here; see allowed_hosts")


def _check_page(request: Request, allowed: tuple[str, ...]) -> None:
    """Raise `ApiError` 403 where a page of another site writes: a browser lets it send texts and forms unasked."""
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "none")
    if origin is None and site in ("none", "same-origin"):
        return
    is_own = origin is not None and origin.partition("://")[2].lower() == request.headers.get("host", "").lower()
    if not is_own and origin not in allowed and "*" not in allowed:
        came_from = origin or "another site"
        raise ApiError(403, f"the request comes from a page of {came_from!r:.100}; see cors_origins, or set API keys")


def _host_name(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.rpartition(":")[0].lower() if ":" in header else header.lower()


def _is_loopback(host: str) -> bool:
    if host.lower() in _LOOPBACK_NAMES:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _read(path: str) -> list[str]:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"keys_file: {path} cannot be read ({error}); give a file of lines name:key") from None


def _key(where: str, line: str) -> Key:
    owner, colon, key = line.partition(":")
    owner, key = owner.strip(), key.strip()
    if not (colon and owner and key):
        raise ConfigError(f"{where}: a key is written name:key, and this line is not; see docs/serving.md")
    if len(key) < _LEAST_CHARACTERS:
        raise ConfigError(f"{where}: the key of {owner} has {len(key)} characters; give at least {_LEAST_CHARACTERS}")
    return Key(owner, _digest(key))
