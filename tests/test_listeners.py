"""`@app.on(...)`: functions that are told what happens in a worker, and that can do no harm there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from harness import Servers, Worker, ledger, until
from snippets import ROOT

import krq
from krq.dev.valkey import ValkeyServer
from krq.errors import OptionError
from krq.hooks import Attempt
from krq.info import Event
from krq.message import Message
from krq.modules.listeners import Listeners
from krq.outcome import Cancelled, Died, ErrorInfo, Failed, Family, Outcome, RetryAt, Succeeded, TimedOut


def test_all_events_in_a_worker(valkey: ValkeyServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "heard"
    monkeypatch.setenv("LEDGER", str(path))
    servers = Servers(valkey.url, valkey.url, namespace)
    worker = Worker(servers, tmp_path / "w.log", script="listeners_app.py").ready()
    with servers.app() as app:
        add, asks, rejects = app.submit("add", 1, 2), app.submit("asks_again"), app.submit("rejects")
        assert add.result(timeout=20) == 3 and asks.result(timeout=20) == 2
        rejects.wait(timeout=20)
        slept = app.submit("sleeps", str(tmp_path / "runs"))
        until(lambda: (tmp_path / "runs").exists(), "it runs")
        slept.cancel()
        slept.wait(timeout=20)
    assert worker.stop() == 0
    worker.close()
    heard = ledger(path)
    told = [tuple(line[1:]) for line in heard if line[0] == "all"]
    assert told[0] == ("worker_started", "-", "-", "0", "w", "-", "None")
    assert told[-1] == ("worker_stopping", "-", "-", "0", "w", "-", "None")
    assert sorted(told[1:-1]) == sorted([
        ("started", "add", add.id, "1", "w", "-", "None"), ("success", "add", add.id, "1", "w", "-", "3"),
        ("started", "asks_again", asks.id, "1", "w", "-", "None"), ("retry", "asks_again", asks.id, "1", "w", "Retry", "None"),
        ("started", "asks_again", asks.id, "2", "w", "-", "None"), ("success", "asks_again", asks.id, "2", "w", "-", "2"),
        ("started", "rejects", rejects.id, "1", "w", "-", "None"), ("failed", "rejects", rejects.id, "1", "w", "Reject", "None"),
        ("started", "sleeps", slept.id, "1", "w", "-", "None"), ("cancelled", "sleeps", slept.id, "1", "w", "-", "None"),
    ])
    assert {line[2] for line in heard if line[0] == "last"} == {add.id, asks.id}  # whatever those before it raised
    assert worker.text.count("all_of_it failed at task_succeeded") == worker.text.count("too_bad failed at task_succeeded") == 2


ERROR = ErrorInfo("ValueError", "no")


def _note(heard: list[tuple[str, Event]], name: str, event: Event) -> None:
    heard.append((name, event))


@pytest.mark.parametrize(("outcome", "name", "told"), [
    (Succeeded(b"[3]"), "task_succeeded", {"outcome": "success", "result": [3]}),
    (Failed(ERROR, why="no more"), "task_failed", {"outcome": "failed", "error": ERROR, "reason": "no more"}),
    (TimedOut(1.0, ERROR), "task_failed", {"outcome": "failed", "error": ERROR}),
    (RetryAt(0.0, ERROR), "task_retried", {"outcome": "retry", "error": ERROR}),
    (Cancelled(), "task_cancelled", {"outcome": "cancelled"}),
    (Died("signal 9"), "task_died", {"outcome": "died", "error": ErrorInfo("DIED", "signal 9")}),
    (Succeeded(b"3", Family((), (), "own", (), "fail")), "", {}),
])
def test_ends(outcome: Outcome, name: str, told: dict[str, object]) -> None:
    heard: list[tuple[str, Event]] = []
    app = krq.KRQ()
    for one in ("task_succeeded", "task_failed", "task_retried", "task_cancelled", "task_died"):
        app.on(one)(partial(_note, heard, one))  # type: ignore[arg-type]
    (module,) = [one for one in app.modules if isinstance(one, Listeners)]
    counters = {"number": 2, "epoch": 1, "failures": 0, "deaths": 0}
    attempt = Attempt(message=Message(task="add"), id="a", **counters, queue="q", worker="w", task=None, sent=1.0)
    module.ended(attempt, outcome)
    assert [one for one, _ in heard] == ([name] if name else [])
    for _, event in heard:
        assert (event.id, event.name, event.queue, event.attempt, event.worker, event.sent) == ("a", "add", "q", 2, "w", 1.0)
        assert {field: getattr(event, field) for field in told} == told


def test_what_cannot_listen() -> None:
    app = krq.KRQ()
    with pytest.raises(OptionError, match="There is no event 'task_done'"):
        app.on("task_done")(print)  # type: ignore[arg-type]

    async def later(event: Event) -> None: ...

    with pytest.raises(OptionError, match="plain function"):
        app.on("task_failed")(later)
    with pytest.raises(OptionError, match="Listeners"):
        krq.KRQ(modules=[]).on("task_failed")(print)


# --- examples/webhooks.py ------------------------------------------------------------------------


class Hook(BaseHTTPRequestHandler):
    """The other side: refuses what comes first, then takes all."""

    def do_POST(self) -> None:
        posts = self.server.posts  # type: ignore[attr-defined]
        posts.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(503 if len(posts) == 1 else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hook() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        server.posts = []  # type: ignore[attr-defined]
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_webhooks(hook: HTTPServer, valkey: ValkeyServer, namespace: str, tmp_path: Path) -> None:
    servers = Servers(valkey.url, valkey.url, namespace)
    environ = {**servers.environ, "WEBHOOK_URL": f"http://127.0.0.1:{hook.server_port}/"}
    command = [sys.executable, "-m", "krq", "worker", str(ROOT / "examples" / "webhooks.py")]
    with servers.app() as app, subprocess.Popen(command, env=environ, cwd=tmp_path, stderr=subprocess.DEVNULL) as worker:
        try:
            failed = app.submit("divide", 1, 0)
            posts = until(lambda: len(hook.posts) == 2 and hook.posts, "it was posted again")  # type: ignore[attr-defined]
            assert posts[0] == posts[1]
            told = json.loads(posts[1])
            assert (told["id"], told["outcome"], told["error"]["type"]) == (failed.id, "failed", "ZeroDivisionError")
        finally:
            worker.terminate()
