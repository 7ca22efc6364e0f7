"""A TCP proxy that harms what it carries: answers that never come, connections cut in the middle, slow and silent servers.

    with Proxy("127.0.0.1", 6379) as proxy:
        proxy.lose(b"settle")        # the next request with these bytes is carried out, its answer is lost and its connection cut
        proxy.down.delay = 0.3       # each portion of what the server says comes so much later
        proxy.up.cut_after = 1000    # the connection that would send byte 1001 is cut
        proxy.hold(True)             # a black hole: connections stand and nothing moves, until hold(False)
        proxy.refuse(True)           # connections are refused, those that stand are cut
        proxy.heal()

All of it may be switched from any thread while connections stand.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from krq.dev.process import HOST, free_port

PORTION = 1 << 16
#: seconds between two looks at whether a held connection may go on
LOOK = 0.005


@dataclass
class Way:
    """One direction, of all connections."""

    delay: float = 0.0
    """seconds that each portion waits"""
    hold: bool = False
    """nothing moves; what came meanwhile goes on later"""
    drop: bool = False
    """what comes is swallowed, and so is the rest of that connection"""
    cut_after: int | None = None
    """bytes, of all connections together, after which the one that sends is cut, once"""
    carried: int = 0
    """bytes so far"""


@dataclass(eq=False)
class _Link:
    """One connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    seen: bytes = b""
    doomed: bool = False
    silent: set[int] = field(default_factory=set)

    def cut(self) -> None:
        for writer in (self.client, self.server):
            writer.transport.abort()


class Proxy:
    """Listens on ``port`` of 127.0.0.1 and connects to the server for each connection. One thread of its own."""

    def __init__(self, host: str, port: int, listen: int | None = None) -> None:
        self.port = free_port() if listen is None else listen
        self.up, self.down = Way(), Way()
        self.lost = 0
        """answers lost by ``lose`` so far"""
        self._target = (host, port)
        self._links: set[_Link] = set()
        self._losing: list[bytes] = []
        self._loop = asyncio.new_event_loop()
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None]
        self._carrying: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse(True)
        self._call(self._ended())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # --- harm ----------------------------------------------------------------------------------

    @property
    def links(self) -> int:
        """Connections that stand."""
        return len(self._links)

    def lose(self, containing: bytes = b"", times: int = 1) -> None:
        """Carry out the next requests that contain these bytes, lose their answers, and cut their connections."""
        self._losing += [containing] * times

    def cut(self) -> None:
        """Reset every connection that stands."""
        self._call(self._cut())

    def refuse(self, on: bool) -> None:
        """Refuse connections and cut those that stand, or listen again."""
        if on:
            self._call(self._deafen())
        elif self._socket is None:
            self._call(self._listen())

    def hold(self, on: bool) -> None:
        """Nothing moves in either direction, new connections included; with False all goes on."""
        self.up.hold = self.down.hold = on

    def heal(self) -> None:
        """No harm any more. Connections that swallowed something are cut: their client would wait for ever."""
        self.up.__init__()  # type: ignore[misc]
        self.down.__init__()  # type: ignore[misc]
        self._losing.clear()
        self._call(self._cut(silent=True))
        self.refuse(False)

    # --- inside --------------------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._socket = socket.create_server((HOST, self.port), backlog=100)
        self._socket.setblocking(False)
        self._accepting = self._loop.create_task(self._serve(self._socket))

    async def _deafen(self) -> None:
        if self._socket is not None:
            self._accepting.cancel()
            listener, self._socket = self._socket, None
            with suppress(BlockingIOError):  # who stands in line would wait for ever
                while True:
                    listener.accept()[0].close()
            listener.close()
        await self._cut()

    async def _ended(self) -> None:
        for task in list(self._carrying):
            task.cancel()
        await asyncio.gather(*self._carrying, self._accepting, return_exceptions=True)

    async def _serve(self, listener: socket.socket) -> None:
        while True:
            connection, _ = await self._loop.sock_accept(listener)
            task = self._loop.create_task(self._carry(connection))
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)

    async def _cut(self, *, silent: bool = False) -> None:
        for link in list(self._links):
            if link.silent or not silent:
                link.cut()

    async def _carry(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            answers, server = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, server)
        if self._socket is None:  # refused meanwhile
            link.cut()
            return
        self._links.add(link)
        try:
            await asyncio.gather(self._pump(link, self.up, reader, server), self._pump(link, self.down, answers, writer))
        finally:
            self._links.discard(link)

    async def _pump(self, link: _Link, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(PORTION):
                if way.delay:
                    await asyncio.sleep(way.delay)
                while way.hold:
                    await asyncio.sleep(LOOK)
                way.carried += len(data)
                if way is self.up:
                    self._watch(link, data)
                elif link.doomed:
                    self.lost += 1
                    break
                if way.drop or id(way) in link.silent:
                    link.silent.add(id(way))
                    continue
                if way.cut_after is not None and len(data) > way.cut_after:
                    writer.write(data[: way.cut_after])
                    way.cut_after = None
                    await writer.drain()
                    break
                if way.cut_after is not None:
                    way.cut_after -= len(data)
                writer.write(data)
                await writer.drain()
        link.cut()

    def _watch(self, link: _Link, data: bytes) -> None:
        """Does this request stand on the list of those whose answer gets lost?"""
        if not self._losing:
            link.seen = b""
            return
        link.seen = link.seen[-64:] + data
        for wanted in self._losing:
            if wanted in link.seen:
                self._losing.remove(wanted)
                link.doomed = True
                return
