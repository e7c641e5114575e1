"""From a request's events to its answer: one JSON object, or a stream of events."""

import logging
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import JSONResponse, Response

from serve.answering import Answering
from serve.errors import ApiError
from serve.shapes import Choices, Shape
from serve.streaming import DONE, SEND_S, EventStream, frame
from serve.totals import Totals

logger = logging.getLogger(__name__)


async def reply(answering: Answering, shape: Shape, choices: Choices, *, stream: bool, sends_usage: bool) -> Response:
    """Start `answering` and return its answer. Raises `ApiError` where it fails before anything was sent."""
    await answering.start()
    if stream:
        frames = _frames(answering, shape, choices, sends_usage)
        return EventStream(frames, answering.close, seconds=answering.seconds_left + SEND_S)
    try:
        return JSONResponse(await _whole(answering, shape, choices))
    finally:
        answering.close()


async def _whole(answering: Answering, shape: Shape, choices: Choices) -> dict[str, Any]:
    totals = Totals()
    async for number, events in answering.batches():
        totals.see(number, events)
        choices.take(number, events)
    answer = shape.envelope([shape.whole(choice) for choice in choices.all], is_stream=False)
    return answer | _ending(totals)


async def _frames(answering: Answering, shape: Shape, choices: Choices, sends_usage: bool) -> AsyncIterator[bytes]:
    """Yield the events. The last choice's end waits for what is said beside it."""
    totals, blank = Totals(), {"usage": None} if sends_usage else {}
    openings = [opening for choice in choices.all if (opening := shape.opening(choice.index))]
    try:
        for opening in openings:
            yield frame(shape.envelope([opening], is_stream=True) | blank)
        last: dict[str, Any] | None = None
        async for number, events in answering.batches():
            totals.see(number, events)
            for choice, piece in choices.take(number, events):
                if piece is not None and not piece.text and piece.logprobs is None:
                    continue  # an end token, which has no text
                new: dict[str, Any] | None = shape.delta(choice, piece, choice.reason if piece is None else None)
                if piece is None and choices.num_open == 0:
                    last, new = new, last  # several may end at once: all but the last are sent
                if new is not None:
                    yield frame(shape.envelope([new], is_stream=True) | blank)
        yield _last_frames(shape, last, totals, sends_usage)
    except ApiError as error:
        yield frame(error.body)
    except Exception:
        logger.exception("a stream broke off")
        yield frame(ApiError(500, "the server failed on this request; its log says why").body)


def _last_frames(shape: Shape, last: dict[str, Any] | None, totals: Totals, sends_usage: bool) -> bytes:
    assert last is not None, "a request finished before its choices ended"
    ending = _ending(totals)
    if not sends_usage:
        return frame(shape.envelope([last], is_stream=True) | {"hsokv": ending["hsokv"]}) + DONE
    return (
        frame(shape.envelope([last], is_stream=True) | {"usage": None})
        + frame(shape.envelope([], is_stream=True) | ending)
        + DONE
    )


def _ending(totals: Totals) -> dict[str, Any]:
    return {"usage": totals.usage().model_dump(), "hsokv": totals.extension().model_dump(exclude_unset=True)}
