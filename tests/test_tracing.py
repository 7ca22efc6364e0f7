"""Spans: from a sender here to a worker in a process of its own, by what the log carries."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tracing_app
from harness import Servers, Worker, until
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import krq
from krq import message
from krq.dev.valkey import ValkeyServer
from krq.message import Message
from krq.modules import default
from krq.modules.tracing import Tracing
from krq.states import TaskStatus

TASKS = ("add", "where", "awhere", "once", "never", "parent", "alone")


class Sender:
    """An app that sends, and what it has recorded."""

    def __init__(self, servers: Servers) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")
        self.app = servers.app(modules=[*default(), Tracing(self.provider)])
        for name in TASKS:
            task = tracing_app.app.registry.find(name)
            self.app.task(**task.settings)(task.function)

    def sent(self) -> dict[str, dict[str, Any]]:
        """Spans of the sender, by the id of what was sent; its own by name."""
        return {
            str((span.attributes or {}).get("messaging.message.id", span.name)): json.loads(span.to_json())
            for span in self.exporter.get_finished_spans()
        }


class Story(NamedTuple):
    """What both sides have recorded."""

    sent: dict[str, dict[str, Any]]
    ran: dict[tuple[str, int], dict[str, Any]]
    results: dict[str, Any]

    def follows(self, of: str, attempt: int = 1) -> dict[str, Any]:
        """The worker's span of an attempt, which is the child of its sender's."""
        ran, sent = self.ran[of, attempt], self.sent[of]
        assert (ran["parent_id"], ran["context"]["trace_id"]) == (sent["context"]["span_id"], sent["context"]["trace_id"])
        return ran


@pytest.fixture(scope="module")
def story(valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """All of it, in one life of one worker."""
    folder = tmp_path_factory.mktemp("traces")
    os.environ["SPANS"] = str(folder / "spans")
    servers = Servers(valkey.url, valkey.url, f"t{os.urandom(5).hex()}", heartbeat=0.3, lease=3, partitions=2)
    worker = Worker(servers, folder / "w.log", script="tracing_app.py")
    sender, plain = Sender(servers), servers.app()
    app = sender.app
    find = app.registry.find
    try:
        with sender.tracer.start_as_current_span("request"):
            handles = {name: find(name).options(task_id=name).send() for name in ("where", "awhere", "once", "parent", "alone")}
        first, last = find("add").options(task_id="first").s(1, 1), find("add").options(task_id="last").s(3)
        handles["chain"] = krq.chain(first, last).send()
        failed = find("never").options(task_id="never").send("t")
        for _ in range(2):  # as who does not know whether it was sent
            handles["twice"] = find("add").options(task_id="twice").send(7, 7)
        plain.submit_many([
            {"task": "add", "args": args, "options": {"task_id": of}} for of, args in (("twice", [7, 7]), ("untraced", [1, 2]))
        ])
        results = {name: handle.result(timeout=20) for name, handle in handles.items()}
        until(lambda: failed.status().status is TaskStatus.FAILED, "it failed")
        ids = ["sent-inside", "untraced", *app.children("parent")]
        app.results(ids, timeout=20)
        until(lambda: not app.stats().outbox, "all is logged")
        results["letters"] = [letter.code for letter in app.dead_letters(10)]
        assert worker.ready().stop() == 0, worker.text
        recorded = [json.loads(line) for line in (folder / "spans").read_text().splitlines()]
        made = {one["attributes"]["messaging.message.id"]: one for one in recorded if one["kind"] == "SpanKind.PRODUCER"}
        ran = {
            (one["attributes"]["messaging.message.id"], one["attributes"]["krq.attempt"]): one
            for one in recorded if one["kind"] == "SpanKind.CONSUMER"
        }
        yield Story(made | sender.sent(), ran, results)
    finally:
        worker.close()
        app.close()
        plain.close()
        del os.environ["SPANS"]


def test_a_span_of_the_sender_leads_to_that_of_the_worker(story: Story) -> None:
    request, sent = story.sent["request"]["context"], story.sent["where"]
    assert sent["name"] == "create where" and (sent["parent_id"], sent["context"]["trace_id"]) == (request["span_id"], request["trace_id"])
    ran = story.follows("where")
    assert ran["name"] == "process where" and ran["status"]["status_code"] == "UNSET"
    assert ran["attributes"] == {
        "messaging.system": "krq", "messaging.operation.name": "process", "messaging.operation.type": "process",
        "messaging.destination.name": "default", "messaging.message.id": "where", "krq.task": "where", "krq.attempt": 1, "krq.worker": "w",
        "krq.outcome": "success",
    }


@pytest.mark.parametrize("name", ["where", "awhere"])
def test_it_is_current_in_a_thread_and_in_a_coroutine(story: Story, name: str) -> None:
    ran = story.follows(name)["context"]
    assert story.results[name] == [ran["trace_id"], ran["span_id"]]


def test_each_attempt_is_a_span_of_its_own_with_its_error(story: Story) -> None:
    first, second = story.follows("once", 1), story.follows("once", 2)
    assert (first["attributes"]["krq.outcome"], second["attributes"]["krq.outcome"]) == ("retry", "success")
    assert first["status"] == {"status_code": "ERROR", "description": "ValueError: not yet"} and not second["events"]
    (event,) = first["events"]
    assert event["name"] == "exception" and event["attributes"]["exception.type"] == "ValueError"
    assert "raise ValueError" in event["attributes"]["exception.stacktrace"]
    assert story.results["once"] == [second["context"]["trace_id"], second["context"]["span_id"]]
    assert story.follows("never")["attributes"]["krq.outcome"] == "failed"


def test_what_a_task_sends_or_makes_is_below_it(story: Story) -> None:
    above = story.follows("parent")["context"]
    (made,) = [of for of, _ in story.ran if of.startswith("parent.")]
    for of in ("sent-inside", made):
        assert story.sent[of]["parent_id"] == above["span_id"]
        story.follows(of)
    assert story.ran["parent", 1]["attributes"]["krq.outcome"] == "spawned"


def test_a_chain_is_one_trace_where_nobody_has_begun_one(story: Story) -> None:
    first, last = story.follows("first"), story.follows("last")
    assert story.sent["first"]["parent_id"] is None
    assert first["context"]["trace_id"] == last["context"]["trace_id"] != story.sent["request"]["context"]["trace_id"]
    assert first["attributes"]["messaging.message.conversation_id"] == "first" == last["attributes"]["messaging.message.conversation_id"]


def test_a_process_of_its_own_has_a_span_that_is_not_current_there(story: Story) -> None:
    assert story.follows("alone")["attributes"]["krq.outcome"] == "success"
    assert set(story.results["alone"]) == {f"0x{0:032x}", f"0x{0:016x}"}


def test_a_task_that_was_sent_twice_is_the_same_task(story: Story) -> None:
    """By a traced sender twice, with another trace each time, and by one that knows nothing of traces."""
    assert [attempt for of, attempt in story.ran if of == "twice"] == [1]
    assert story.results["letters"] == ["LookupError"], "no conflict"
    assert story.ran["untraced", 1]["parent_id"] is None


def test_the_trace_is_not_what_tells_two_messages_apart() -> None:
    def checksum(task: str, **headers: Any) -> int:
        return message.checksum(message.encode(Message(task=task, args=[1], headers=headers), max_bytes=10_000, max_depth=9))

    mask = {"krq-mask": {"names": ["a"], "at": [0]}}
    for more in ({}, mask):
        plain = checksum("t", **more)
        assert plain == checksum("t", traceparent="00-1", **more) == checksum("t", traceparent="00-2", tracestate='a="b\\"",', **more)
        assert plain != checksum("u", traceparent="00-1", **more)
    assert checksum("t", traceparent="00-1") != checksum("t", traceparent="00-1", **mask)


def test_without_a_provider_nothing_is_added() -> None:
    tracing = Tracing()
    msg = Message(task="t", headers={"a": 1})
    assert tracing.submit(msg, {}) is msg
    carried = Message(task="t", headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
    assert tracing.submit(carried, {}).headers == carried.headers


def test_a_trace_that_came_in_goes_on(tmp_path: Path) -> None:
    provider = TracerProvider()
    msg = Message(task="t", headers={"a": 1, "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
    headers = Tracing(provider).submit(msg, {}).headers
    assert headers["a"] == 1 and headers["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c-")
    assert headers["traceparent"] != msg.headers["traceparent"]
