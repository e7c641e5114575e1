"""Configuration of the `hsokv memory` commands about shared memories. Imports neither Ray nor FAISS."""

from typing import Annotated, Literal

import tyro

from hsokv_ray.config import Config
from hsokv_ray.memory.shared.config import MemoryConfig

Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]


class StartConfig(MemoryConfig):
    """Start a memory that this cluster shares, or find it running. Its actors outlive this command."""

    name: Name  # type: ignore[assignment]
    """Clients find it by this name."""


class StatusConfig(Config):
    """Print what the actors of a running memory hold."""

    name: Name
    """Name of the memory."""
    output: Literal["table", "json"] = "table"
    """table for people, json for programs."""


class StopConfig(Config):
    """Flush and end the actors of a memory. Its files stay; start it again to use them."""

    name: Name
    """Name of the memory."""


class RestartConfig(Config):
    """End the actors of a memory and start them with the code that is installed now. Nothing is lost."""

    name: Name
    """Name of the memory."""
    root: str | None = None
    """Its folder; needed only where none of its actors answers."""


class TenantConfig(Config):
    """Make a tenant, or give it a new key, and print the key once; the old one no longer works."""

    tenant: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TENANT")]
    """Name of the tenant."""
    root: str
    """Folder of the memory."""
    remove: bool = False
    """Make the tenant's key useless instead; its collections stay."""
