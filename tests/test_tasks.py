"""Tasks as objects: decorate, call, send, with options; modules on their hooks; workers with an inbox."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness import Servers, Worker, running, until

import krq
from krq import TaskStatus, errors
from krq.hooks import Attempt, find
from krq.message import Message
from krq.modules.retries import Retries
from krq.outcome import Failed, Outcome, RetryAt


@pytest.fixture
def worker(servers: Servers, tmp_path: Path) -> Iterator[Worker]:
    with running(servers, tmp_path) as workers:
        yield workers[0]


def test_a_decorated_function_is_called_here_and_sent_there(app: krq.KRQ, worker: Worker) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    assert add(1, 2) == 3
    handle = add.send(1, y=2)
    assert handle.result(timeout=15) == 3
    assert str(handle) == handle.id
    assert app.handle(handle.id) == handle
    assert [each.result(timeout=15) for each in add.send_many([(i, 1) for i in range(10)])] == list(range(1, 11))
    assert add.options(priority=3).options(task_id="chosen").send(4, 5).result(timeout=15) == 9
    assert app.status("chosen").priority == 3

    async def asynchronous() -> int:
        return await (await add.asend(20, 22)).aresult(timeout=15)

    assert asyncio.run(asynchronous()) == 42


def test_waiting_has_its_limits(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    handle = app.submit("work", str(tmp_path / "ledger"), "k", 1.0)
    with pytest.raises(krq.ResultTimeout, match=r"processing|queued"):
        handle.result(timeout=0.3)
    with pytest.raises(TimeoutError):
        asyncio.run(_await(handle))
    assert handle.result(timeout=15) == "k"
    assert app._clients.waiter._waiting == {}


def test_results_short_and_long_come_in_order(app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    wanted = ["a", "x" * 100, "", "\N{SNOWMAN}" * 30, "b", "y" * 70_000]
    handles = [app.submit("work", str(tmp_path / "ledger"), value, 0.1) for value in wanted]
    for _ in "as they end", "all have ended":
        assert app.results([handle.id for handle in handles], timeout=15) == wanted
    assert [handle.result() for handle in handles] == wanted


async def _await(handle: krq.TaskHandle[Any]) -> None:
    await handle.aresult(timeout=0.1)


def test_registration_is_checked(app: krq.KRQ) -> None:
    app.task(name="twice")(len)
    app.task(name="twice")(len)
    with pytest.raises(errors.DuplicateTask):
        app.task(name="twice")(sum)
    with pytest.raises(errors.UnknownTask, match="did you mean 'twice'"):
        app.registry.find("twise")


def test_a_module_sees_and_decides(servers: Servers) -> None:
    seen: list[str] = []

    class Watch(krq.Module):
        options: Mapping[str, Any] = {"colour": str}

        def submit(self, message: Message, options: Mapping[str, Any]) -> Message:
            seen.append(f"submit {message.task} {options.get('colour')}")
            return msgspec.structs.replace(message, headers={"colour": options.get("colour")})

        def outcome(self, attempt: Attempt, outcome: Outcome) -> Outcome:
            return outcome

    with servers.app(modules=[Watch()]) as app:
        task_id = app.send_task("add", [1, 2], colour="red")
        with pytest.raises(errors.OptionError, match="retries"):
            app.send_task("add", [1, 2], retries=1)
        assert seen == ["submit add red"]
        raw = app._clients.broker.read(app.config.topic("default"), 1)[0][1].value
        assert msgspec.json.decode(raw)["headers"] == {"colour": "red"}
        assert app.status(task_id).status is TaskStatus.QUEUED


def test_retries_follow_the_call_before_the_task() -> None:
    app = krq.KRQ()
    retries = find(app.modules, Retries)
    task = app.task(retries=1, backoff=krq.Backoff(first=7, jitter=0))(_nothing)

    def decide(message: Message, failures: int) -> Outcome:
        attempt = Attempt(message=message, id="x", number=1, epoch=1, failures=failures, deaths=0, queue="q", worker="w", task=task, sent=0)
        return retries.outcome(attempt, Failed(krq.outcome.ErrorInfo("E")))

    plain = Message(task="t")
    first = decide(plain, 0)
    assert isinstance(first, RetryAt)
    assert first.delay == 7
    assert isinstance(decide(plain, 1), Failed)
    chosen = retries.submit(plain, {"retries": 3, "backoff": krq.Backoff(first=2, jitter=0)})
    third = decide(chosen, 2)
    assert isinstance(third, RetryAt)
    assert third.delay == 8


def _nothing() -> None:
    return None


def test_a_workers_own_inbox_is_served_beside_the_shared_queue(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    """The first seed's worker: a function for every name, and a topic of its own."""
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent("""
        from krq.core import KRQ

        def task_func(task_type, args):
            if task_type == "add":
                return sum(args)
            raise ValueError("Unknown task type")

        krq_worker = KRQ()
        krq_worker.config_worker(group_id="worker-group", topic="worker-1", worker_id="worker-1")
        krq_worker.run(task_func)
    """))
    log = (tmp_path / "worker.log").open("wb")
    process = subprocess.Popen([sys.executable, str(script)], env=servers.environ, stderr=log)
    try:
        shared, own = app.send_task("add", [1, 2]), app.send_task("add", [3, 4], queue="worker-1")
        assert app.result(shared, timeout=20) == 3
        assert app.result(own, timeout=20) == 7
        assert app.handle(app.send_task("other", [1], retries=0)).wait(20).status is TaskStatus.FAILED
        (info,) = until(app.workers, "the worker")
        assert (info.id, info.queues) == ("worker-1", ["worker-1", "default"])
    finally:
        process.terminate()
        assert process.wait(20) == 0
        log.close()


def test_an_unreachable_server_stops_a_worker_with_a_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from krq import work
    from krq.dev.process import free_port

    monkeypatch.setattr(work, "PATIENCE", 1.0)
    app = krq.KRQ(f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    with pytest.raises(errors.WorkerInitializationError, match="No task is registered"):
        app.run()
    app.task(_nothing)
    with pytest.raises(errors.WorkerInitializationError, match="does not answer"):
        app.run()
