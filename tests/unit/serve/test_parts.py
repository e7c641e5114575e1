"""The small parts: limits of owners, the board and its scrape, plain chats, shapes of answers, errors."""

import copy
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from prometheus_client.parser import text_string_to_metric_families

from hsokv_ray.errors import CheckpointError, ConfigError, DataError, HsokvError, Overloaded, RunError, StoreError
from hsokv_ray.inference.engine.events import ChoiceEnded, Piece, TokenLogprob
from serve.board import READY, STALE_S, Board, Report, families_of
from serve.calls import ChatMessage
from serve.chat import render_plain
from serve.errors import ApiError, of
from serve.limits import OwnerLimit
from serve.metrics import GatewayMetrics, ReplicaMetrics, render
from serve.pools import BoundedPool
from serve.shapes import Choices, CompletionShape

MOST = 3


class OwnerLimits(RuleBasedStateMachine):
    """Against a list of who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.limit, self.held = OwnerLimit(MOST), []

    @rule(owner=st.sampled_from("abc"), number=st.integers(1, MOST + 1))
    def hold(self, owner: str, number: int) -> None:
        context = self.limit.hold(owner, number)
        if sum(each for holder, each, _ in self.held if holder == owner) + number > MOST:
            with pytest.raises(ApiError, match=str(MOST)) as caught:
                context.__enter__()
            assert caught.value.status == (400 if number > MOST else 429)
            assert caught.value.headers.get("Retry-After") == (None if number > MOST else "1")
        else:
            context.__enter__()
            self.held.append((owner, number, context))

    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        if self.held:
            *_, context = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            context.__exit__(None, None, None)

    @invariant()
    def as_many_run_as_are_held(self) -> None:
        assert self.limit.num_running == sum(number for _, number, _ in self.held)


TestOwnerLimits = OwnerLimits.TestCase


def test_a_process_that_is_silent_leaves_the_board() -> None:
    now = [0.0]
    board = Board(clock=lambda: now[0])
    board.post(Report("a", "generator"))
    now[0] = STALE_S / 2
    board.post(Report("b", "generator"))
    assert [each.source for each in board.read()] == ["a", "b"]
    now[0] = STALE_S * 1.2
    assert [each.source for each in board.read()] == ["b"]


def test_the_board_knows_whether_a_replica_can_answer_without_asking_it() -> None:
    now = [0.0]
    board = Board(clock=lambda: now[0])
    board.post(Report("gateway", "gateway"))
    board.post(Report("dead", "generator", numbers={READY: False}))
    assert not board.is_ready(4)
    board.post(Report("a", "generator", numbers={READY: True}))
    assert board.is_ready(4)
    now[0] = 4.5
    assert not board.is_ready(4), "a report that is old says nothing"


def test_a_full_pool_refuses_at_once_and_takes_again_when_one_is_done() -> None:
    pool, go = BoundedPool(2, "texts are read", "test"), threading.Event()
    waiting = [pool.submit(go.wait) for _ in range(2)]
    with pytest.raises(Overloaded, match="texts are read for 2 already"):
        pool.submit(go.wait)
    go.set()
    assert [each.result(10) for each in waiting] == [True, True]
    end_s = time.monotonic() + 10
    while True:  # a result is there a moment before its place is free
        try:
            assert pool.submit(lambda: 5).result(10) == 5
            break
        except Overloaded:
            assert time.monotonic() < end_s
    pool.close()


def test_a_scrape_has_each_metric_once_with_the_samples_of_every_process() -> None:
    reports = []
    for source, count in (("one", 3), ("two", 5)):
        metrics = ReplicaMetrics()
        metrics.completion_tokens.inc(count)
        metrics.retrieval_s.observe(0.002)
        reports.append(Report(source, "generator", families_of(metrics.registry), rss_bytes=10))
    gateway = GatewayMetrics()
    gateway.answers.labels('/x"\n', "200").inc()
    reports.append(Report("three", "gateway", families_of(gateway.registry), rss_bytes=20))
    families = list(text_string_to_metric_families(render(reports).decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    samples = {(s.name, s.labels.get("replica"), s.labels.get("le")): s.value for f in families for s in f.samples}
    assert samples["hsokv_serve_completion_tokens_total", "one", None] == 3
    assert samples["hsokv_serve_completion_tokens_total", "two", None] == 5
    assert samples["hsokv_serve_retrieval_seconds_bucket", "one", "0.0025"] == 1
    assert samples["hsokv_serve_resident_bytes", "three", None] == 20


def test_a_plain_chat_ends_where_the_assistant_speaks() -> None:
    chat = [ChatMessage("developer", "Be brief."), ChatMessage("user", "Hi"), ChatMessage("assistant", "Yes?")]
    assert render_plain([*chat, ChatMessage("user", "Bye")]) == (
        "Be brief.\n\nUser: Hi\nAssistant: Yes?\nUser: Bye\nAssistant:"
    )


@given(st.lists(st.lists(st.text(max_size=5), max_size=4), min_size=1, max_size=6))
def test_pieces_of_a_stream_joined_are_the_whole_answer(texts: list[list[str]]) -> None:
    shape, streamed, whole = CompletionShape("1", "m"), Choices(len(texts), 1), Choices(len(texts), 1)
    deltas: dict[int, list[dict]] = {}
    for number, pieces in enumerate(texts):
        events = [Piece(0, text, (1,), (TokenLogprob(1, text, -1.0),)) for text in pieces]
        for choice, piece in streamed.take(number, [*events, ChoiceEnded(0, "window")]):
            deltas.setdefault(number, []).append(shape.delta(choice, piece, choice.reason if piece is None else None))
        whole.take(number, [*events, ChoiceEnded(0, "window")])
    for choice in whole.all:
        answer, parts = shape.whole(choice), deltas[choice.index]
        assert "".join(part["text"] for part in parts) == answer["text"]
        assert parts[-1]["finish_reason"] == answer["finish_reason"] == "length"
        logprobs = [part["logprobs"] for part in parts if part["logprobs"]]
        offsets = [offset for each in logprobs for offset in each["text_offset"]]
        assert offsets == (answer["logprobs"] or {"text_offset": []})["text_offset"]
    assert whole.num_open == streamed.num_open == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("x"), 400),
        (DataError("x"), 400),
        (Overloaded("x", 2.2), 429),
        (StoreError("x"), 503),
        (RunError("x"), 503),
        (CheckpointError("x"), 500),
        (HsokvError("x"), 500),
    ],
)
def test_every_error_of_ours_has_a_status(error: HsokvError, status: int) -> None:
    answer = of(error)
    assert answer.status == status
    assert set(answer.body["error"]) == {"message", "type", "param", "code"}
    assert ("Retry-After" in answer.headers) == (status in (429, 503))


def test_an_error_crosses_processes_unharmed() -> None:
    error = ApiError(429, "full", param="p", code="c", retry_after_s=1.5)
    received = copy.deepcopy(error)  # by the same protocol as Ray
    assert (received.status, received.body, received.headers) == (error.status, error.body, error.headers)
    assert received.headers["Retry-After"] == "2"
