"""The tail of the events topic: `KRQ.events` and `krq events`, on both brokers."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from harness import Servers

import krq
from krq import brokers, events, watching
from krq.brokers.base import Outgoing
from krq.dev.valkey import ValkeyServer
from krq.events import Entry
from krq.info import Event
from krq.outcome import ErrorInfo
from krq.watching import Sieve


def entry(n: int, **more: Any) -> Entry:
    return Entry(**{"id": f"t{n}", "outcome": "success", "name": "add", "attempt": 1, "worker": "w", "finished": 1000 * n, **more})


def publish(app: krq.KRQ, *pages: Sequence[Entry] | bytes) -> None:
    """One record each, one after the other."""
    broker = brokers.make(app.config)
    for page in pages:
        raw = page if isinstance(page, bytes) else events.encode_page([events.encode_entry(one) for one in page])
        (answer,) = broker.publish([Outgoing(app.config.events_topic, raw)], 10)
        assert not isinstance(answer, Exception), answer
    broker.close()


def some(tail: Iterator[Event], n: int) -> list[str]:
    """The ids of the next ``n``; those that have come where not all do."""
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.extend(event.id for event in itertools.islice(tail, n)), daemon=True)
    reader.start()
    reader.join(20)
    return sorted(found)


def test_from_now_on(app: krq.KRQ) -> None:
    publish(app, [entry(1)], [entry(2)])
    tail = app.events()
    publish(app, b"nothing of ours", [entry(3), entry(4)])
    assert some(tail, 2) == ["t3", "t4"]
    publish(app, [entry(5)])
    assert some(tail, 1) == ["t5"]
    tail.close()  # type: ignore[attr-defined]


def test_from_the_start_on(app: krq.KRQ) -> None:
    publish(app, *([entry(n)] for n in range(1, 6)))
    tail = app.events(from_start=True)
    assert some(tail, 5) == ["t1", "t2", "t3", "t4", "t5"]
    publish(app, [entry(6)])
    assert some(tail, 1) == ["t6"]


def test_of_a_topic_that_nobody_has_made(app: krq.KRQ) -> None:
    tail = app.events()
    app.pause("mail")
    assert some(tail, 1) == ["mail"]
    (event,) = app.recent_events()
    assert (event.outcome, event.id, event.data["act"]) == ("control", "mail", "pause")


def test_two_tails_get_all_each(app: krq.KRQ) -> None:
    one, other = app.events(), app.events()
    publish(app, [entry(1)], [entry(2)])
    assert some(one, 2) == some(other, 2) == ["t1", "t2"]


def test_the_latest(app: krq.KRQ) -> None:
    assert app.recent_events() == []
    publish(app, [entry(1), entry(2)], [entry(3, started=2500, sent=2000, error=ErrorInfo("ValueError", "no"), outcome="failed")])
    found = app.recent_events(2)
    assert [event.id for event in found] == ["t2", "t3"]
    assert (found[1].sent, found[1].started, found[1].at, found[1].error) == (2.0, 2.5, 3.0, ErrorInfo("ValueError", "no"))
    assert app.recent_events(0) == []


@pytest.mark.parametrize("server", ["own_kafka", "own_valkey"])
def test_goes_on_after_an_outage(server: str, request: pytest.FixtureRequest, valkey: ValkeyServer, namespace: str) -> None:
    own = request.getfixturevalue(server)
    with krq.KRQ(own.url, valkey.url, namespace, partitions=2) as app:
        publish(app, [entry(1)])
        tail = app.events(from_start=True)
        assert some(tail, 1) == ["t1"]
        with ThreadPoolExecutor(1) as pool:
            rest = pool.submit(some, tail, 3)
            own.stop()
            own.start()
            publish(app, [entry(2)], [entry(3), entry(4)])
            assert rest.result() == ["t2", "t3", "t4"]


def test_so_many_a_second_and_how_many_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that are wanted; the rest is counted, and told once a second."""
    now = [100.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    page = events.encode_page([events.encode_entry(entry(n, outcome="failed" if n % 2 else "success")) for n in range(20)])
    sieve = Sieve(outcomes=["failed"], most=4)
    assert sieve.turn() == []
    assert [one.id for one in sieve.through(page)] == ["t1", "t3", "t5", "t7"]
    assert sieve.through(page) == [] == sieve.through(b"nothing of ours") == sieve.turn()
    now[0] += 1
    (skipped,) = sieve.turn()
    assert (skipped.outcome, skipped.data) == ("skipped", {"n": 16})
    assert len(sieve.through(page)) == 4
    now[0] += 1
    assert [one.data for one in sieve.turn()] == [{"n": 6}]
    now[0] += 1
    assert sieve.turn() == []
    assert len(Sieve().through(page)) == 20 and len(Sieve("add", ["success"]).through(page)) == 10
    assert Sieve("mul").through(page) == [] == Sieve("mul").through(b"nothing of ours")


def test_a_tail_that_is_left_open_keeps_no_process(servers: Servers) -> None:
    code = "import krq; app = krq.KRQ(); tail = app.events(); app.pause('mail'); print(next(tail).id)"
    done = subprocess.run([sys.executable, "-c", code], env=servers.environ, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "mail\n" and done.stderr == ""


# --- the command ---------------------------------------------------------------------------------


def shell(servers: Servers, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "krq", "events", *words]
    return subprocess.Popen(command, env=servers.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_follow_until_ctrl_c(servers: Servers, app: krq.KRQ) -> None:
    failed = entry(2, outcome="failed", error=ErrorInfo("ValueError", "two\nlines"))
    publish(app, [entry(1), failed, entry(3, name="mul", outcome="failed")])
    with shell(servers, "-f", "--from-start", "--name", "add", "--outcome", "failed", "--outcome", "died", "--json") as process:
        assert process.stdout is not None
        late = threading.Timer(30, process.kill)
        late.start()
        first = json.loads(process.stdout.readline())
        assert first["id"] == "t2" and first["at"] == 2.0 and first["error"] == {"type": "ValueError", "message": "two\nlines"}
        publish(app, [entry(4), entry(5, outcome="died")])
        assert json.loads(process.stdout.readline())["id"] == "t5"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        late.cancel()
    assert (process.returncode, out, err) == (0, "", "")


def test_the_lines(valkey: ValkeyServer, namespace: str) -> None:
    servers = Servers(valkey.url, valkey.url, namespace)
    with servers.app() as app:
        failed = entry(2, outcome="failed", error=ErrorInfo("E", "a\x1b[31m\nb"), reason="no more")
        publish(app, [entry(1, result=[1, 2], started=500), failed])
        app.pause("mail")
    with shell(servers) as process:
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and not err
    first, second, third = (line.split("  ", 1)[1] for line in out.splitlines())
    assert first == "success    add  t1  attempt 1  w  500 ms  [1,2]"
    assert second == "failed     add  t2  attempt 1  w  E: a [31m b  no more"
    assert third == "control    pause mail"


def test_a_terminal_gets_what_can_be_read(valkey: ValkeyServer, namespace: str) -> None:
    """Through a pipe all of it; on a terminal, or with --most, so many a second."""
    servers = Servers(valkey.url, valkey.url, namespace)
    with servers.app() as app:
        publish(app, [entry(n) for n in range(500)])
    words = ["-f", "--from-start", "--outcome", "success"]
    with shell(servers, *words, "--most", "5") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(6)]
        process.send_signal(signal.SIGINT)
    assert [line[3] for line in lines[:5]] == ["t0", "t1", "t2", "t3", "t4"] and lines[5][1:3] == ["495", "more"]
    with shell(servers, *words) as process:
        assert process.stdout is not None
        assert [process.stdout.readline().split()[3] for _ in range(500)][-1] == "t499"
        process.send_signal(signal.SIGINT)
    mine, theirs = os.openpty()
    command = [sys.executable, "-P", "-m", "krq", "events", *words]
    with subprocess.Popen(command, env=servers.environ, stdout=theirs, stderr=subprocess.DEVNULL) as terminal, os.fdopen(mine) as shown:
        os.close(theirs)
        lines = [shown.readline().split() for _ in range(101)]
        terminal.send_signal(signal.SIGINT)
    assert "t99" in lines[99] and lines[100][1:3] == ["400", "more"]


@pytest.mark.parametrize("words", [["--from-start"], ["--outcome", "odd"]])
def test_wrong_usage(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "krq", "events", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Error" in done.stderr
