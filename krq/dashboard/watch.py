"""One poller for all: what the servers are asked is the same for one open page and for fifty.

While nobody looks nothing is asked. Everything here belongs to one event loop; reading happens in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from krq import looking
from krq.core import KRQ
from krq.dashboard import shapes
from krq.dashboard.answers import described
from krq.dashboard.errors import WebRefused
from krq.errors import KRQError

log = logging.getLogger("krq.web")

#: seconds between two looks, and for how long an answer to one is good for all
INTERVAL = 1.0
#: seconds between two questions to the broker, which cost more
BACKLOG_INTERVAL = 5.0
#: looks that are remembered for the charts: 15 minutes
HISTORY = 900
MAX_LISTENERS = 1_000
#: answers remembered for a moment
MAX_ANSWERS = 256
THREADS = 8

_encode = msgspec.json.Encoder().encode


class Watch:
    """Looks once a second while somebody listens, and remembers answers for a second."""

    def __init__(self, app: KRQ) -> None:
        self._app = app
        self._threads = anyio.CapacityLimiter(THREADS)
        self._reader = anyio.CapacityLimiter(1)
        self._answers: OrderedDict[str, tuple[float, asyncio.Task[bytes]]] = OrderedDict()
        self._listeners: set[asyncio.Queue[bytes]] = set()
        self._poller: asyncio.Task[None] | None = None
        self._history: deque[looking.Point] = deque(maxlen=HISTORY)
        self._backlog: dict[str, int] = {}
        self._asked = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()

    async def threaded(self, call: Callable[[], Any]) -> Any:
        """What a blocking call returns, run in one of a few threads."""
        return await anyio.to_thread.run_sync(call, limiter=self._threads)

    # --- answers for everybody ---------------------------------------------------------------

    async def shared(self, key: str, make: Callable[[], Any], *, slow: bool = False) -> bytes:
        """JSON of what ``make`` returns in a thread; whoever asks the same within a second gets the same.

        ``slow``: it reads the log. Of these one runs at a time, beside all others.
        """

        async def encoded() -> bytes:
            return _encode(await anyio.to_thread.run_sync(make, limiter=self._reader) if slow else await self.threaded(make))

        return await self._once(key, encoded)

    async def _once(self, key: str, make: Callable[[], Awaitable[bytes]]) -> bytes:
        known = self._answers.get(key)
        if known is None or time.monotonic() - known[0] > INTERVAL * 0.9:
            known = self._answers[key] = (time.monotonic(), asyncio.ensure_future(make()))
            self._answers.move_to_end(key)
            while len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)
        return await asyncio.shield(known[1])

    def forget(self) -> None:
        """Something was changed: the next question gets a fresh answer."""
        self._answers.clear()

    # --- the overview ------------------------------------------------------------------------

    async def overview(self) -> bytes:
        """All numbers as they stand, with the history for the charts."""
        return await self._once("overview", lambda: self._look(whole=True))

    async def _look(self, *, whole: bool) -> bytes:
        self._ask_broker()
        seen: looking.Seen = await self.threaded(lambda: looking.look(self._app.inspector))
        point = looking.point(seen, self._history[-1] if self._history else None)
        if not self._history or point.at - self._history[-1].at > INTERVAL / 2:
            self._history.append(point)
        return _encode(shapes.overview(seen, self._history, self._backlog, whole=whole))

    def _ask_broker(self) -> None:
        if time.monotonic() - self._asked < BACKLOG_INTERVAL or (self._asking is not None and not self._asking.done()):
            return
        self._asked = time.monotonic()

        async def ask() -> None:
            with contextlib.suppress(KRQError):
                stats = await self.threaded(self._app.stats)
                self._backlog = {name: queue.backlog for name, queue in stats.queues.items()}

        self._asking = asyncio.ensure_future(ask())

    # --- the stream --------------------------------------------------------------------------

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events: all that there is at first, then what has changed, once a second. Raises ``WebRefused`` when full."""
        if len(self._listeners) >= MAX_LISTENERS:
            raise WebRefused("Too many pages are open", cure="Close some.", status=503)
        return self._events()

    async def _events(self) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue(1)
        self._listeners.add(queue)
        try:
            try:
                yield _event("overview", await self.overview())
            except KRQError as error:
                yield _event("trouble", _encode(described(error)))
            if self._poller is None or self._poller.done():
                self._poller = asyncio.ensure_future(self._poll())
            until = time.monotonic() + 3600
            while not self._closed.is_set() and time.monotonic() < until:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)

    async def _poll(self) -> None:
        wait = INTERVAL
        while self._listeners and not self._closed.is_set():
            await asyncio.sleep(wait)
            if not self._listeners:
                return
            try:
                event, wait = _event("look", await self._look(whole=False)), INTERVAL
            except KRQError as error:
                event, wait = _event("trouble", _encode(described(error))), min(2 * wait, 10.0)
            except Exception:
                log.exception("the look failed")
                wait = min(2 * wait, 10.0)
                continue
            for queue in self._listeners:
                if queue.full():
                    queue.get_nowait()  # who is slow gets the latest
                queue.put_nowait(event)

    def close(self) -> None:
        """End the streams."""
        self._closed.set()
        for queue in self._listeners:
            if not queue.full():
                queue.put_nowait(b": the end\n\n")


def _event(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
