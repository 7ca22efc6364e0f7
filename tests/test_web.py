"""The dashboard's API: what it shows, and what it costs."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from harness import Servers, until
from msgspec import to_builtins
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from web_house import CSRF, HOSTILE, TOKEN, VIEW, client, problem

import krq
from krq import TaskStatus
from krq.cli import main
from krq.dashboard import watch as watching
from krq.dashboard.watch import Watch
from krq.dev.valkey import ValkeyServer
from krq.errors import OptionError
from krq.info import TaskFilter
from krq.masking import record

# --- what it shows ---------------------------------------------------------------------------


def test_numbers_are_those_of_the_app(web: TestClient, web_app: krq.KRQ) -> None:
    stats = web_app.stats().queues["default"]
    shown = until(lambda: _with_backlog(web), "the broker was asked")
    queue = next(one for one in shown["queues"] if one["queue"] == "default")
    assert (queue["succeeded"], queue["failed"], queue["backlog"]) == (stats.succeeded, stats.failed, stats.backlog)
    assert shown["totals"]["workers"] == len(web_app.workers()) == len(shown["workers"])
    assert shown["latency"]["n"] >= 30 and shown["latency"]["run"] >= 0
    assert {one["name"] for one in shown["failed"]} >= {"boom", HOSTILE}


def _with_backlog(web: TestClient) -> Any:
    found = web.get("/api/overview").json()
    return found if found["totals"]["backlog"] >= 0 else None


def test_pages_have_every_task_once(web: TestClient, web_app: krq.KRQ) -> None:
    for query in ({}, {"status": "success"}, {"status": "failed"}, {"name": "add"}, {"queue": "default"}, {"worker": "w"}):
        seen, cursor = [], ""
        while cursor is not None:
            page = web.get("/api/tasks", params={**query, "limit": 7, "cursor": cursor}).json()
            seen += [one["id"] for one in page["tasks"]]
            cursor = page["cursor"]
        assert len(seen) == len(set(seen)), query
        expected = {one.id for one in web_app.tasks(query.get("status"), query.get("name"), 1000)}
        assert set(seen) == expected, query
    assert web.get("/api/tasks", params={"worker": "nobody"}).json()["tasks"] == []


def test_a_page_goes_on_where_it_was_while_tasks_come_and_go(web_app: krq.KRQ) -> None:
    first = web_app.page(TaskFilter(status=TaskStatus.SUCCESS), limit=5)
    known = [one.id for one in web_app.tasks(TaskStatus.SUCCESS, None, 1000)]
    for _ in range(3):
        web_app.submit("add", 1).result(timeout=20)
    second = web_app.page(TaskFilter(status=TaskStatus.SUCCESS), first.cursor, limit=5)
    assert [one.id for one in [*first.tasks, *second.tasks]] == known[:10]
    dues = [web_app.send_task("add", [n], delay=300 + n) for n in range(6)]
    scheduled = web_app.page(TaskFilter(status=TaskStatus.SCHEDULED), limit=3)
    web_app.cancel(scheduled.tasks[-1].id)  # what the cursor names is gone
    rest = web_app.page(TaskFilter(status=TaskStatus.SCHEDULED), scheduled.cursor, limit=10)
    assert [one.id for one in [*scheduled.tasks, *rest.tasks]] == dues
    for task_id in dues:
        web_app.cancel(task_id)


def test_a_million_ended_tasks_page_quickly(web_app: krq.KRQ, web_servers: Servers) -> None:
    with Servers(web_servers.broker, web_servers.backend, f"{web_servers.namespace}m").app() as app:
        keys, ids = app.store.keys, [f"task{n:08d}" for n in range(300)]
        with app.store.plain() as redis:
            for at in range(0, 1_000_000, 20_000):  # the list alone is long: each page reads few tasks
                redis.rpush(keys("done"), *(ids[n % 300] for n in range(at, at + 20_000)))
            pipeline = redis.pipeline(transaction=False)
            for task_id in ids:
                pipeline.hset(keys("task", task_id), mapping={"s": "S", "n": "add", "q": "default", "ts": 1, "tt": 2, "tf": 3, "r": "1"})
            pipeline.execute()
        cursor, took = None, []
        for _ in range(5):
            began = time.perf_counter()
            page = app.page(cursor=cursor, limit=50)
            took.append(time.perf_counter() - began)
            assert len(page.tasks) == 50
            cursor = page.cursor
        few = []
        for _ in range(5):
            began = time.perf_counter()
            page = app.page(TaskFilter(name="none"))
            few.append(time.perf_counter() - began)
            assert not page.tasks and page.looked >= 2000 and page.cursor is not None
        with app.store.plain() as redis:
            redis.delete(keys("done"))
        assert sorted(took)[2] < 0.05 and sorted(few)[2] < 0.1, (took, few)


def test_a_task_has_its_story(web: TestClient, web_app: krq.KRQ) -> None:
    handle = web_app.submit("boom", "no luck")
    until(lambda: web_app.status(handle).status.final, "it failed")
    shown = web.get("/api/task", params={"id": handle.id}).json()
    assert shown["arguments"]["args"] == ["no luck"]
    assert shown["error"]["type"] == "ValueError" and "Traceback" in shown["error"]["traceback"]
    assert [step["kind"] for step in shown["past"]] == ["sent", "started", "failed", "failed"]
    assert shown["reasons"] == [] and "`krq retry" in shown["next"]
    done = web_app.submit("add", 1, 2)
    done.result(timeout=20)
    shown = web.get("/api/task", params={"id": done.id}).json()
    assert shown["result"] == "3" and shown["arguments"] is None
    story = web_app.why(done.id)
    assert (shown["past"], shown["next"]) == ([to_builtins(moment) for moment in story.past], story.next)
    assert shown["past"][-1]["text"].startswith("Succeeded")
    until(lambda: web.get("/api/task", params={"id": "nosuch"}).status_code == 404, "the log has been read to its end")
    problem(web.get("/api/task", params={"id": "nosuch"}), 404, "TASK_NOT_FOUND")
    problem(web.get("/api/task", params={"id": "a b"}), 400)


def test_of_a_task_that_redis_has_forgotten_the_log_tells(web: TestClient, web_app: krq.KRQ) -> None:
    done = web_app.submit("echo", {"token": "canary-result", "n": 1})
    done.result(timeout=20)
    until(lambda: web_app.stats().queues["default"].backlog == 0, "its record was read: it does not come again")
    with web_app.store.plain() as redis:
        redis.delete(*(web_app.store.keys(name, done.id) for name in ("task", "message", "result")))
    logged = until(lambda: (found := web.get("/api/task", params={"id": done.id}).json())["past"][1:] and found, "the log has its end")
    assert logged["task"] is None and [one["code"] for one in logged["reasons"]] == ["not_known"]
    assert "succeeded" in logged["past"][1]["text"] and "•••" in logged["past"][1]["text"] and "canary" not in json.dumps(logged)


def test_it_says_why_a_task_does_not_run(web: TestClient, web_app: krq.KRQ) -> None:
    def why(task_id: str) -> str:
        return "; ".join(one["text"] for one in web.get("/api/task", params={"id": task_id}).json()["reasons"])

    web_app.pause("default")
    paused = web_app.send_task("add", [1])
    behind = web_app.send_task("add", [1], after=[paused])
    nobody = web_app.send_task("add", [1], queue="lonely")
    later = web_app.send_task("add", [1], delay=600)
    assert "is paused" in why(paused)
    assert f"waits for {paused} (add), which is queued" in why(behind)
    assert "No live worker serves the queue lonely" in why(nobody)
    assert "sent to run later" in why(later)
    graph = web.get("/api/workflow", params={"id": paused}).json()
    assert {node["id"] for node in graph["nodes"]} == {paused, behind} and graph["edges"] == [[paused, behind]]
    flows = web.get("/api/workflows").json()["workflows"]
    assert [flow["n"] for flow in flows if flow["id"] in (paused, behind)] == [2]
    web_app.resume("default")
    web_app.cancel(nobody)
    web_app.cancel(later)
    until(lambda: web_app.status(behind).status is TaskStatus.SUCCESS, "it went on")
    until(lambda: why(behind) == "", "there is nothing to tell any more")


def test_retry_cancel_and_dead_letters(web: TestClient, web_app: krq.KRQ) -> None:
    handle = web_app.submit("boom", "again")
    until(lambda: web_app.status(handle).status.final, "it failed")
    attempt = web_app.status(handle).attempt
    answer = web.post("/api/tasks/retry", headers=CSRF, json={"ids": [handle.id, "nosuch"]}).json()
    assert answer["done"] == [handle.id] and [one["code"] for one in answer["failed"]] == ["TASK_NOT_FOUND"]
    until(lambda: web_app.status(handle).attempt > attempt and web_app.status(handle).status.final, "it ran again")
    problem(web.post("/api/tasks/retry", headers=CSRF, json={"ids": ["nosuch"]}), 404)
    later = web_app.send_task("add", [1], delay=600)
    assert web.post("/api/tasks/cancel", headers=CSRF, json={"ids": [later]}).json()["done"] == [later]
    done = web_app.tasks(TaskStatus.SUCCESS, None, 1)[0].id
    assert web.post("/api/tasks/cancel", headers=CSRF, json={"ids": [done]}).json()["unchanged"] == [done]
    letters = until(lambda: [one for one in web.get("/api/dead").json()["letters"] if one["id"] == handle.id], "its letter")
    assert json.loads(letters[0]["arguments"]) == {"args": ["again"], "kwargs": {}}
    assert web.post("/api/dead/retry", headers=CSRF, json={"ids": [letters[0]["ref"]]}).json()["done"] == [letters[0]["ref"]]
    letters = until(lambda: [one for one in web.get("/api/dead").json()["letters"] if one["id"] == handle.id], "it is dead again")
    assert web.post("/api/dead/purge", headers=CSRF, json={"ids": [letters[0]["ref"]]}).json()["done"] == [letters[0]["ref"]]
    assert handle.id not in web.get("/api/dead").text


def test_schedules(web: TestClient, web_app: krq.KRQ) -> None:
    web_app.schedule("nightly", "add", [1], {"token": "canary-schedule"}, cron="0 3 * * *")
    (shown,) = web.get("/api/schedules").json()["schedules"]
    assert shown["when"] == "0 3 * * *" and "canary" not in json.dumps(shown)
    assert web.post("/api/schedules/pause", headers=CSRF, json={"name": "nightly"}).status_code == 200
    assert web.get("/api/schedules").json()["schedules"][0]["paused"]
    assert web.post("/api/schedules/resume", headers=CSRF, json={"name": "nightly"}).status_code == 200
    problem(web.post("/api/schedules/fire", headers=CSRF, json={"name": "nosuch"}), 400)
    web_app.unschedule("nightly")


def test_masked_arguments_are_shown_nowhere(
    web: TestClient, web_app: krq.KRQ, web_servers: Servers, capsys: pytest.CaptureFixture[str],
) -> None:
    from web_house import app as definitions

    sender = web_servers.app()
    sender.task(retries=0, mask=["password", "pin"])(definitions.registry.find("sign_in").function)
    handle = sender.registry.find("sign_in").send("ada", "canary-one", pin="canary-two")
    by_name = web_app.submit("echo", {"user": "ada", "api_key": "canary-three"})
    by_name.result(timeout=20)
    until(lambda: web_app.status(handle).status.final, "it failed")
    error = web_app.status(handle).error
    assert error is not None and "ada may not" in error.message and "canary" not in error.message + error.traceback
    until(lambda: handle.id in web.get("/api/dead").text, "its letter")
    shown = [web.get(path, params=query).text for path, query in [
        ("/api/task", {"id": handle.id}), ("/api/dead", {}), ("/api/tasks", {"status": "failed"}), ("/api/overview", {}),
        ("/api/task", {"id": by_name.id}), ("/api/tasks", {}), ("/metrics", {}),
    ]]
    assert "ada" in shown[0] and "•••" in shown[0] and "•••" in shown[1]
    place = ["--broker", web_servers.broker, "--backend", web_servers.backend, "--namespace", web_servers.namespace]
    for words in (
        ["task", handle.id], ["task", handle.id, "--json"], ["recent", "--status", "failed"], ["why", handle.id], ["why", by_name.id],
        ["dead"], ["dead", "--json"], ["dead", "show", handle.id], ["dead", "show", handle.id, "--json"],
    ):
        assert main([*words, *place]) == 0
        shown.append(capsys.readouterr().out)
    assert all("•••" in text for text in (shown[-9], shown[-5], shown[-3], shown[-2], shown[-1]))
    assert not [text for text in shown if "canary" in text]
    assert main(["dead", "show", handle.id, "--raw", *place]) == 0
    assert "canary-one" in capsys.readouterr().out
    sender.close()


def test_a_record_is_shown_without_its_secrets() -> None:
    text = '{"task":"t","args":["a",{"token":"canary"}],"kwargs":{"pin":"canary"},"headers":{"krq-mask":{"names":["pin"],"at":[]}}}'
    assert json.loads(record(text, cut=False))["kwargs"] == {"pin": "•••"} and "canary" not in record(text, cut=False)
    assert "canary" not in record(text[:-20], cut=True)
    for odd in ("", "[1", '{"task": ', '{"args":1,"kwargs":[],"headers":2}', "[" * 100_000, '{"a":' * 5_000):
        assert record(odd, cut=False) == odd


def test_a_dead_worker_shows_its_last_lines(web: TestClient, web_app: krq.KRQ) -> None:
    death = {"incarnation": "gone~1", "at": 5_000, "cause": "killed", "beat": 4_000, "held": 1, "ran": ["x"], "tail": ["one", HOSTILE]}
    with web_app.store.plain() as redis:
        redis.lpush(web_app.store.keys("deaths"), json.dumps(death))
        try:
            (shown,) = until(lambda: web.get("/api/workers").json()["failures"], "a new look at the workers")
            (short,) = until(lambda: web.get("/api/overview").json()["deaths"], "a new look at all")
        finally:
            redis.delete(web_app.store.keys("deaths"))
    assert (shown["worker"], shown["beat"], shown["tail"]) == ("gone", 4, ["one", HOSTILE])
    assert short["cause"] == "killed" and short["tail"] == []


def test_mask_names_arguments_that_there_are() -> None:
    app = krq.KRQ()
    with pytest.raises(OptionError, match="passwrod"):
        app.task(mask=["passwrod"])(lambda password: None)


def test_no_secret_of_ours_is_shown(web_servers: Servers) -> None:
    url = web_servers.backend.replace("redis://", "redis://:canary@").replace("127.0.0.1", "127.0.0.2")
    app = krq.KRQ(broker=re.sub(r":\d+/", ":1/", url), backend=re.sub(r":\d+/", ":1/", url))
    with client(app, token=TOKEN) as web:
        texts = [web.get(path).text for path in ("/api/overview", "/api/session", "/ready", "/api/tasks", "/", "/metrics")]
    assert "REDIS_CONNECTION_ERROR" in texts[0] and "127.0.0.2" in texts[0]
    assert not [text for text in texts if "canary" in text or TOKEN in text]
    app.close()


# --- probes and metrics ----------------------------------------------------------------------


def test_probes(web: TestClient) -> None:
    assert web.get("/live", headers={"host": "10.0.0.7"}).json() == {"live": True}
    assert web.get("/ready", headers={"host": "any.name"}).json() == {"ready": True}
    with client(krq.KRQ(broker="redis://127.0.0.1:1", backend="redis://127.0.0.1:1"), host="0.0.0.0", token=TOKEN, view_token=VIEW) as lost:
        assert lost.get("/live").status_code == 200
        response = lost.get("/ready")
        assert response.status_code == 503 and response.json() == {"ready": False, "code": "REDIS_CONNECTION_ERROR"}


def test_metrics_are_those_of_the_app(web: TestClient, web_app: krq.KRQ) -> None:
    response = web.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    samples = {(one.name, *sorted(one.labels.items())): one.value for family in families for one in family.samples}
    stats = web_app.stats()
    assert samples["krq_workers",] == stats.workers
    assert samples["krq_attempts_total", ("outcome", "succeeded"), ("queue", "default")] == stats.queues["default"].succeeded
    assert samples["krq_latency_seconds", ("of", "run"), ("quantile", "0.95")] >= 0


# --- what it costs ---------------------------------------------------------------------------


def test_fifty_tabs_cost_as_much_as_one(tmp_path: Path, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "INTERVAL", 0.15)
    with ValkeyServer(tmp_path / "valkey", fsync="off") as server, krq.KRQ(server.url, server.url, namespace) as app:
        app.submit("add", 1, 2)
        monkeypatch.setattr(watching, "BACKLOG_INTERVAL", 1000.0)

        def commands() -> int:
            with app.store.plain() as redis:
                stats = redis.info("commandstats")
            return sum(one["calls"] for name, one in stats.items() if not re.search("info|hello|client|auth|select", name))

        async def tab(stream: AsyncIterator[bytes], looks: int) -> None:
            while looks:
                looks -= (await anext(stream)).startswith(b"event: look")

        async def cost(watch: Watch, tabs: int) -> int:
            """Commands during ten looks that so many tabs get, each of which asks for a list after each of them."""
            streams = [await watch.stream() for _ in range(tabs)]
            await asyncio.gather(*(tab(stream, 1) for stream in streams))
            before = commands()
            for _ in range(10):
                await asyncio.gather(*(tab(stream, 1) for stream in streams))
                found = await asyncio.gather(*(watch.shared("tasks", lambda: app.page().tasks) for _ in streams))
                assert len(set(found)) == 1 and b"queued" in found[0]
            spent = commands() - before
            for stream in streams:
                await stream.aclose()  # type: ignore[attr-defined]
            return spent

        async def run() -> None:
            watch = Watch(app)
            one, fifty = await cost(watch, 1), await cost(watch, 50)
            assert one > 50 and fifty <= 1.3 * one, (one, fifty)
            await asyncio.sleep(0.3)  # the poller sees that nobody listens
            before = commands()
            await asyncio.sleep(0.6)
            assert commands() == before
            stream = await watch.stream()
            await tab(stream, 2)  # and begins anew
            watch.close()
            assert len([event async for event in stream]) <= 1

        asyncio.run(run())


def test_the_page_is_small_and_quick(web: TestClient) -> None:
    names = [file.name for file in files("krq.dashboard").joinpath("static").iterdir()]
    weights = {name: len(web.get(f"/static/{name}").content) for name in names}
    assert "app.js" in names and sum(weights.values()) <= 150_000
    assert max(len(file.read_text().splitlines()) for file in files("krq.dashboard").joinpath("static").iterdir()) <= 400
    for name in names:
        text = web.get(f"/static/{name}").text
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), name
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), name
    began = time.perf_counter()
    assert web.get("/").status_code == 200
    assert web.get("/api/overview").json()["queues"]
    assert time.perf_counter() - began < 0.3
    etag = web.get("/static/app.js").headers["etag"]
    assert web.get("/static/app.js", headers={"if-none-match": etag}).status_code == 304
