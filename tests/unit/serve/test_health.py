"""/health: answered from what replicas report, so that generations are not in its way; asked of them only in doubt."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from serve.args import ServeArgs
from serve.board import READY, Board, Report, keep_posting
from serve.calls import ModelFacts
from serve.gateway import make_app
from serve.routes import models
from serve.services import Services

FACTS = ModelFacts("m", 128, 1000, 100, 4, True, 1, "cpu", 0)


class Handle:
    """An object as the handle of its actor or deployment shows it."""

    def __init__(self, of: Any) -> None:
        self._of = of

    def __getattr__(self, method: str) -> Any:
        def remote(*args: Any) -> Any:
            async def call() -> Any:
                found = getattr(self._of, method)(*args)
                return await found if asyncio.iscoroutine(found) else found

            return call()

        return type("Method", (), {"remote": staticmethod(remote)})


class Replica:
    """Answers where it is free."""

    def __init__(self, *, is_free: bool) -> None:
        self._is_free = is_free
        self.num_asked = 0

    async def describe(self) -> ModelFacts:
        self.num_asked += 1
        if not self._is_free:
            await asyncio.Event().wait()
        return FACTS


def health(board: Board, replica: Replica) -> int:
    of = Services(
        generator=Handle(replica), documents=None, segments=None, args=ServeArgs(), board=Handle(board), model_name="m"
    )

    async def ask() -> int:
        transport = httpx.ASGITransport(make_app(of), client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/health")).status_code

    return asyncio.run(ask())


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_HEALTH_TIMEOUT_S", 0.2)


def test_a_replica_that_reports_is_ready_however_busy_it_is() -> None:
    board, replica = Board(), Replica(is_free=False)
    board.post(Report("a", "generator", numbers={READY: True}))
    assert health(board, replica) == 200
    assert replica.num_asked == 0


def test_a_replica_that_has_not_reported_yet_is_asked() -> None:
    assert health(Board(), Replica(is_free=True)) == 200


def test_where_nobody_reports_and_nobody_answers_it_is_503() -> None:
    now = [0.0]
    board = Board(clock=lambda: now[0])
    board.post(Report("a", "generator", numbers={READY: True}))
    board.post(Report("b", "gateway"))
    now[0] = 10.0
    assert health(board, Replica(is_free=False)) == 503


def test_a_replica_whose_engine_has_died_is_not_ready() -> None:
    board = Board()
    board.post(Report("a", "generator", numbers={READY: False}))
    assert health(board, Replica(is_free=False)) == 503


def test_a_report_that_fails_is_logged_and_the_next_one_sent(caplog: pytest.LogCaptureFixture):
    board, ended, reports = Board(), threading.Event(), iter([ValueError("no numbers"), Report("a", "generator")])

    def report() -> Report:
        next_one = next(reports)
        if isinstance(next_one, Exception):
            raise next_one
        ended.set()
        return next_one

    keep_posting(SimpleNamespace(post=SimpleNamespace(remote=board.post)), report, ended, every_s=0.01)
    assert [each.source for each in board.read()] == ["a"]
    assert "no numbers" in caplog.text
