"""Server-sent events, framed as OpenAI's are."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
SEND_S = 60.0
"""A client that takes longer to receive one event is taken for gone."""


def frame(value: dict[str, Any]) -> bytes:
    """Return one event. Other characters than ASCII are escaped: some clients take U+2028 for the end of a line."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n\n"


class EventStream(Response):
    """A stream of events that is told, at once, when the client has gone away.

    Args:
        frames: what `frame` returned, and `DONE`.
        on_close: called once or twice, at the end and when the client has gone; `frames` must then end.
        seconds: the whole may take; None: no limit. `frames` should have said so before.
        send_s: a client may take to receive one event; then it has gone.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        on_close: Callable[[], Any],
        *,
        seconds: float | None = None,
        send_s: float = SEND_S,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._frames, self._on_close, self._seconds, self._send_s = frames, on_close, seconds, send_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self._watch(receive))
        try:
            with suppress(OSError):  # raised by servers whose client has gone, and by the limits of time
                async with asyncio.timeout(self._seconds):
                    await self._send(send)
        finally:
            watch.cancel()
            self._on_close()

    async def _send(self, send: Send) -> None:
        async def soon(message: Message) -> None:
            async with asyncio.timeout(self._send_s):
                await send(message)

        await soon({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for data in self._frames:
            await soon({"type": "http.response.body", "body": data, "more_body": True})
        await soon({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self._on_close()
