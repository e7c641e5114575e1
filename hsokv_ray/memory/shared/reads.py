"""Two ways to read the shards of a collection: in this process, or by asking actors. Both are as fresh as promised."""

import itertools
import re
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from hsokv_ray.errors import ConfigError, StoreError
from hsokv_ray.memory.shared.coalesce import Coalescer
from hsokv_ray.memory.shared.links import Link
from hsokv_ray.memory.shared.messages import NOTHING, Reply
from hsokv_ray.memory.shared.reader import Reader
from hsokv_ray.memory.shared.service import Caller
from hsokv_ray.memory.stores.facets import Predicate
from hsokv_ray.memory.stores.lsm.view import Version, View
from hsokv_ray.memory.stores.types import Hit, Page, Record

Answers = list[tuple[list[list[Hit]], Version]]
"""Per shard: hits per query, and the version they were read from."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """What a read contains."""

    level: Literal["strong", "session", "bounded", "eventual"]
    max_age_s: float | None = None
    """Nothing acknowledged longer ago is missing; None: no promise by the clock."""

    @classmethod
    def parse(cls, text: str) -> "Freshness":
        """Read `strong`, `session`, `bounded(50ms)` or `eventual`. Raises `ConfigError`."""
        if text == "strong":
            return cls("strong", 0.0)
        if text in ("session", "eventual"):
            return cls(text)  # type: ignore[arg-type]
        if found := re.fullmatch(r"bounded\((\d+(?:\.\d+)?)\s*(ms|s)?\)", text):
            return cls("bounded", float(found[1]) * (1 if found[2] == "s" else 1e-3))
        raise ConfigError(f"consistency: got {text!r}; strong, session, bounded(50ms) or eventual is needed")

    def at_least(self, written: Version) -> Version:
        """Return the version that a read must contain, for a client that wrote `written`."""
        return NOTHING if self.level == "eventual" else written


class Reads(Protocol):
    """Reads of all shards; `written` are the versions of the client's own last writes."""

    def search(
        self, queries: np.ndarray, top_k: int, predicate: Predicate | None, written: Sequence[Version]
    ) -> Answers: ...

    def get(self, shard: int, ids: list[str], written: Version) -> list[Record | None]: ...

    def count(self, shard: int, predicate: Predicate | None, written: Version) -> int: ...

    def scroll(
        self, shard: int, predicate: Predicate | None, page_size: int, cursor: str | None, written: Version
    ) -> Page: ...

    def view(self, shard: int, written: Version) -> View | None: ...

    def forget(self) -> None: ...

    def close(self) -> None: ...


class LocalReads:
    """Reads in this process, from replicas of the shards' views."""

    def __init__(self, readers: Sequence[Reader], freshness: Freshness) -> None:
        self._readers, self._freshness = readers, freshness

    def search(
        self, queries: np.ndarray, top_k: int, predicate: Predicate | None, written: Sequence[Version]
    ) -> Answers:
        answers: Answers = []
        for shard, version in enumerate(written):
            view = self.view(shard, version)
            if view is None or view.dim is None:
                answers.append(([[] for _ in queries], NOTHING))
            else:
                answers.append((view.search(queries, top_k, predicate).hits(), view.version))
        return answers

    def get(self, shard: int, ids: list[str], written: Version) -> list[Record | None]:
        view = self.view(shard, written)
        return view.get(ids) if view else [None] * len(ids)

    def count(self, shard: int, predicate: Predicate | None, written: Version) -> int:
        view = self.view(shard, written)
        return view.count(predicate) if view else 0

    def scroll(
        self, shard: int, predicate: Predicate | None, page_size: int, cursor: str | None, written: Version
    ) -> Page:
        view = self.view(shard, written)
        return view.scroll(predicate, page_size, cursor) if view else Page([], None)

    def forget(self) -> None:
        for reader in self._readers:
            reader.forget()

    def close(self) -> None:
        for reader in self._readers:
            reader.close()

    def view(self, shard: int, written: Version) -> View | None:
        fresh = self._freshness
        return self._readers[shard].view(at_least=fresh.at_least(written), max_age_s=fresh.max_age_s)


class RemoteReads:
    """Asks actors: replicas in turn where there are some and the freshness allows it, else the writer."""

    def __init__(
        self,
        caller: Caller,
        writers: Sequence[Link],
        replicas: Sequence[Sequence[Link]],
        freshness: Freshness,
        threads: Executor,
    ) -> None:
        self._caller, self._writers, self._threads = caller, writers, threads
        self._freshness = freshness
        uses_replicas = freshness.level in ("session", "eventual")
        self._replicas = [itertools.cycle(each) if each and uses_replicas else None for each in replicas]
        self._joined = [Coalescer(self._sender(shard)) for shard in range(len(writers))]

    def search(
        self, queries: np.ndarray, top_k: int, predicate: Predicate | None, written: Sequence[Version]
    ) -> Answers:
        keys = [(top_k, predicate, self._freshness.at_least(version)) for version in written]
        if len(keys) == 1:
            return [_answer(self._joined[0].call(keys[0], queries))]
        pairs = zip(self._joined, keys, strict=True)
        tasks = [self._threads.submit(joined.call, key, queries) for joined, key in pairs]
        return [_answer(task.result()) for task in tasks]

    def get(self, shard: int, ids: list[str], written: Version) -> list[Record | None]:
        return self._ask(shard, written, "get", ids)[0]

    def count(self, shard: int, predicate: Predicate | None, written: Version) -> int:
        return self._ask(shard, written, "count", predicate)[0]

    def scroll(
        self, shard: int, predicate: Predicate | None, page_size: int, cursor: str | None, written: Version
    ) -> Page:
        return self._writers[shard].call("scroll", self._caller, predicate, page_size, cursor)

    def view(self, shard: int, written: Version) -> View | None:
        """No view is here."""
        return None

    def forget(self) -> None:
        """Nothing is kept here."""

    def close(self) -> None:
        """Nothing is open here."""

    def _ask(self, shard: int, written: Version, method: str, *args: Any) -> Any:
        replicas = self._replicas[shard]
        if replicas is None:
            return self._writers[shard].call(method, self._caller, *args)
        try:
            return next(replicas).call(method, self._caller, *args, self._freshness.at_least(written), timeout_s=5)
        except StoreError:  # a replica is lost or behind: the writer knows everything
            return self._writers[shard].call(method, self._caller, *args)

    def _sender(self, shard: int) -> Any:
        def send(key: tuple[int, Predicate | None, Version], queries: np.ndarray) -> list[Any]:
            top_k, predicate, written = key
            reply: Reply = self._ask(shard, written, "search", queries, top_k, predicate)
            return [(hits, reply.version) for hits in reply.hits.unpack()]

        return send


def _answer(rows: list[tuple[list[Hit], Version]]) -> tuple[list[list[Hit]], Version]:
    return [hits for hits, _ in rows], rows[0][1]
