"""The fault proxy does what the outage tests rely on."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from harness import until
from proxy import Proxy

from krq.dev.process import HOST


class Echo:
    """Answers each line with itself, and keeps what it was sent."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._socket = socket.create_server((HOST, 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as file:
            try:
                for line in file:
                    self.heard.append(line)
                    file.write(line)
                    file.flush()
            except OSError:
                return

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    with suppress(OSError):
        echo.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(HOST, echo.port) as proxy:
        yield proxy


def dial(proxy: Proxy) -> socket.socket:
    connection = socket.create_connection((HOST, proxy.port), 5)
    connection.settimeout(5)
    return connection


def ask(connection: socket.socket, line: bytes) -> bytes:
    """The answer to a line; b"" where the connection was cut instead."""
    try:
        connection.sendall(line)
        return connection.recv(1000)
    except ConnectionError:
        return b""


def test_it_carries_both_ways_and_counts(proxy: Proxy) -> None:
    with dial(proxy) as one, dial(proxy) as other:
        assert ask(one, b"one\n") == b"one\n"
        assert ask(other, b"other\n") == b"other\n"
        assert (proxy.links, proxy.up.carried, proxy.down.carried) == (2, 10, 10)
    until(lambda: proxy.links == 0, "closed ones are forgotten", 5)


def test_a_lost_answer_was_a_request_carried_out(proxy: Proxy, echo: Echo) -> None:
    proxy.lose(b"settle")
    with dial(proxy) as connection:
        assert ask(connection, b"take 1\n") == b"take 1\n"
        assert ask(connection, b"settle 1\n") == b""
    assert echo.heard == [b"take 1\n", b"settle 1\n"]
    assert proxy.lost == 1
    with dial(proxy) as connection:
        assert ask(connection, b"settle 1\n") == b"settle 1\n"


def test_a_swallowed_answer_leaves_the_connection_standing(proxy: Proxy, echo: Echo) -> None:
    with dial(proxy) as connection:
        proxy.down.drop = True
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            ask(connection, b"a\n")
        assert echo.heard == [b"a\n"]
        proxy.heal()
        connection.settimeout(5)
        assert ask(connection, b"b\n") == b""
    with dial(proxy) as connection:
        assert ask(connection, b"c\n") == b"c\n"


def test_a_connection_is_cut_in_the_middle(proxy: Proxy, echo: Echo) -> None:
    proxy.up.cut_after = 5
    with dial(proxy) as connection:
        assert ask(connection, b"123\n") == b"123\n"
        assert ask(connection, b"456\n") == b""
    assert echo.heard[:1] == [b"123\n"]
    assert echo.heard[1:] in ([], [b"4"])
    with dial(proxy) as connection:
        assert ask(connection, b"789\n") == b"789\n"
        proxy.cut()
        assert ask(connection, b"x\n") == b""


def test_a_held_connection_goes_on_where_it_stood(proxy: Proxy, echo: Echo) -> None:
    with dial(proxy) as connection:
        proxy.hold(True)
        with dial(proxy) as fresh:
            for each in (connection, fresh):
                each.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    ask(each, b"a\n")
            assert echo.heard == []
            proxy.hold(False)
            for each in (connection, fresh):
                each.settimeout(5)
                assert each.recv(100) == b"a\n"


def test_answers_come_late(proxy: Proxy) -> None:
    proxy.down.delay = 0.2
    with dial(proxy) as connection:
        began = time.monotonic()
        assert ask(connection, b"a\n") == b"a\n"
        assert 0.2 <= time.monotonic() - began < 2


def test_refused_and_welcome_again(proxy: Proxy) -> None:
    with dial(proxy) as connection:
        assert ask(connection, b"a\n") == b"a\n"
        proxy.refuse(True)
        assert ask(connection, b"a\n") == b""
    with pytest.raises(ConnectionRefusedError):
        dial(proxy)
    proxy.heal()
    with dial(proxy) as connection:
        assert ask(connection, b"a\n") == b"a\n"


def test_a_server_that_is_away_is_a_cut_connection(proxy: Proxy, echo: Echo) -> None:
    echo.close()
    with dial(proxy) as connection:
        assert ask(connection, b"a\n") == b""
