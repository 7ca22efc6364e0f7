"""Every view shows the same true numbers: a load of all kinds, two workers, one killed; a ledger outside KRQ knows the truth."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from click.testing import CliRunner
from harness import Servers, Worker, running, until
from playwright.sync_api import Page, expect
from prometheus_client.parser import text_string_to_metric_families
from tasks_app import note
from terminal_house import Display, drive
from textual.widgets import DataTable
from views_truth import FINAL, STATES, Truth
from web_house import served

import krq
from krq.cli.root import root
from krq.dev.kafka import KafkaServer
from krq.dev.valkey import ValkeyServer


class Driver:
    """Sends and cancels, and notes what it did."""

    def __init__(self, app: krq.KRQ, path: Path) -> None:
        self.app, self.path = app, path

    def send(self, name: str, *args: object, n: int = 1, queue: str = "default", after: Sequence[str] = (), delay: float = 0) -> list[str]:
        """So many tasks; returns their ids."""
        options = {"queue": queue, **({"after": after} if after else {}), **({"delay": delay} if delay else {})}
        found = self.app.submit_many([{"task": name, "args": [str(self.path), *args], "options": options}] * n)
        for handle in found:
            note(str(self.path), "sent", handle.id, name, queue, *(["after", *after] if after else ["delayed"] if delay else []))
        return [handle.id for handle in found]

    def chain(self, *names: str) -> None:
        """Steps of which each waits for the one before."""
        ids = self.app.chain_tasks([(name, [str(self.path)]) for name in names]).ids
        for name, task_id, before in zip(names, ids, [None, *ids], strict=False):
            note(str(self.path), "sent", task_id, name, "default", *(["after", before] if before else []))

    def group(self, n: int) -> None:
        """So many at once, and one that waits for all."""
        *members, last = self.app.group_tasks([("quick", [str(self.path)])] * n, ("quick", [str(self.path)])).ids
        for task_id in members:
            note(str(self.path), "sent", task_id, "quick", "default")
        note(str(self.path), "sent", last, "quick", "default", "after", *members)

    def cancel(self, ids: Sequence[str]) -> None:
        for task_id in ids:
            note(str(self.path), "cancel", task_id)
            self.app.cancel(task_id)

    def again(self, ids: Sequence[str]) -> None:
        for task_id in ids:
            note(str(self.path), "again", task_id)
            self.app.retry(task_id)


def load(driver: Driver, gate: Path, killed: Worker) -> float:
    """Tasks of all kinds, and the death of a worker amid them; returns when that was."""
    driver.app.pause("parked")
    held, stopped = driver.send("hold", str(gate), n=3), driver.send("hold", str(gate), n=4)
    late, parked = driver.send("quick", n=16, delay=3000), driver.send("quick", n=9, queue="parked")
    driver.send("quick", n=4, after=held[:1])
    broken = driver.send("boom", n=6)
    for _ in range(5):
        driver.chain("quick", "light", "quick")
        driver.chain("quick", "boom", "quick", "light")
        driver.group(6)
    driver.cancel([*late[:7], *parked[:3]])
    for n, name, *args in ((5, "patient"), (10, "flaky", 1), (10, "flaky", 3), (12, "hopeless"), (60, "quick"), (20, "light")):
        driver.send(str(name), *args, n=n)
    driver.send("slow", 0.15, n=40, queue="images")
    driver.send("refused", n=6, queue="images")
    until(lambda: len(open_on("w1", driver.path)) >= 4 and Truth(driver.path).total("succeeded") >= 80, "the load is under way")
    killed.kill_tree()
    at, truth = time.time(), Truth(driver.path)
    assert truth.of("queued", queue="images") and open_on("w1", driver.path), "it was amid the load"
    driver.send("quick", n=100)
    driver.send("flaky", 2, n=10)
    until(lambda: Truth(driver.path).of("failed") >= set(broken), "what shall be sent again has failed")
    driver.again([*broken[:3], *late[:2]])
    until(lambda: set(stopped) <= open_on("w2", driver.path), "what shall be cancelled runs again", 30)
    driver.cancel(stopped)
    return at


def open_on(worker: str, path: Path) -> set[str]:
    """Ids of the tasks that have begun on a worker and not ended."""
    return {task.id for task in Truth(path).tasks.values() for life in task.lives for run in list(life.runs.values())[-1:]
            if run.worker == worker and not run.end}


def quiet(truth: Truth) -> bool:
    """Whether all that has not ended is held back by us."""
    def left(*states: str) -> set[str]:
        return {truth.tasks[one].name for one in truth.of(*states)}

    return (
        truth.of("queued") == truth.of("queued", queue="parked")
        and left("processing") == {"hold"} and len(truth.of("processing")) == 3
        and all(truth.tasks[one].delayed or truth.tasks[one].name == "patient" for one in truth.of("scheduled"))
    )


def settled(app: krq.KRQ, truth: Truth) -> bool:
    seen = app.stats()
    return (seen.outbox, seen.processing, seen.dead) == (0, 3, len(truth.dead)) and not any(one.backlog for one in seen.queues.values())


class Stage(NamedTuple):
    """The load is over and everything stands still."""

    servers: Servers
    app: krq.KRQ
    truth: Truth
    died: float
    web: httpx2.Client

    def krq(self, *words: str) -> str:
        """What a command prints."""
        place = ("--broker", self.servers.broker, "--backend", self.servers.backend, "--namespace", self.servers.namespace)
        done = CliRunner().invoke(root, [*words, *place])
        assert done.exit_code == 0, done.output
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.krq(*words, "--json"))

    def get(self, path: str, **query: str) -> Any:
        return self.web.get(f"/api/{path}", params=query).raise_for_status().json()


@pytest.fixture(scope="module")
def stage(kafka: KafkaServer, valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("views")
    path, gate = folder / "ledger", folder / "gate"
    gate.touch()
    servers = Servers(kafka.url, valkey.url, f"t{os.urandom(5).hex()}", heartbeat=0.3, lease=3, partitions=2, concurrency=8)
    with (
        running(servers, folder, ["w1", "w2"], script="views_app.py") as workers, served(servers, folder) as url,
        servers.app() as app, httpx2.Client(base_url=url) as web,
    ):
        died = load(Driver(app, path), gate, workers[0])
        until(lambda: quiet(Truth(path)), "the ledger says that all have ended", 40)
        truth = Truth(path)
        until(lambda: settled(app, truth), "all ends are settled and logged, and a worker has read what the dead one has left unread")
        yield Stage(servers, app, truth, died, web)


def test_the_load_was_one(stage: Stage) -> None:
    """Every kind of number is there to be compared."""
    truth = stage.truth
    assert all(len(truth.of(state)) >= 3 for state in STATES)
    assert 350 <= len(truth.tasks) <= 500
    assert truth.total("retried") >= 50 and truth.total("cancelled") >= 14
    assert [run for run in truth.runs("w1") if run.end] and [run for run in truth.runs("w1") if not run.end]


# --- the command line --------------------------------------------------------------------------


def whole(truth: Truth) -> dict[str, int]:
    """The numbers of the namespace."""
    return {"workers": 1, "processing": 3, "waiting": len(truth.of("waiting")), "dead": len(truth.dead), "outbox": 0}


def rows(text: str) -> list[dict[str, str]]:
    """A table that was printed, by its titles, the last of which may be empty; ends at an empty line."""
    titles, *lines = (re.split(r"\s{2,}", line.strip()) for line in text.partition("\n\n")[0].splitlines())
    return [dict(zip([*titles, ""], line, strict=False)) for line in lines]


def whole_number(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_command_line_counts_it(stage: Stage) -> None:
    truth = stage.truth
    stats = stage.json("stats")
    assert {name: {field: queue[field] for field in truth.queue(name)} for name, queue in stats["queues"].items()} == {
        name: truth.queue(name) for name in truth.queues}
    assert {field: stats[field] for field in whole(truth)} == whole(truth)
    assert {name for name, queue in stats["queues"].items() if queue["paused"]} == {"parked"}
    printed = stage.krq("stats")
    assert [row["QUEUE"] for row in rows(printed)] == truth.queues
    for row in rows(printed):
        of = {field: n for field, n in truth.queue(row["QUEUE"]).items() if field != "parked"}
        assert {field: whole_number(row[{"scheduled": "DELAYED"}.get(field, field.upper())]) for field in of} == of
        assert row.get("", "") == ("paused" if row["QUEUE"] == "parked" else "")
    for number, what in ((1, "worker"), (3, "processing"), (len(truth.of("waiting")), "waiting"), (len(truth.dead), "dead letters")):
        assert f"{number} {what}" in printed
    [worker] = stage.json("workers")
    assert worker["id"] == "w2" and {field: worker[field] for field in truth.worker("w2")} == truth.worker("w2")
    [row] = rows(stage.krq("workers"))
    assert {field: whole_number(row[field.upper()].partition("/")[0]) for field in truth.worker("w2")} == truth.worker("w2")
    [death] = stage.json("failures")
    assert death["worker"] == "w1" and stage.died - 1 < death["beat"] < stage.died + 1 < death["at"] < stage.died + 10


def test_the_command_line_lists_it(stage: Stage) -> None:
    truth = stage.truth
    lists = [
        (("pending",), truth.of("processing", "queued")), (("pending", "--name", "hold"), truth.of("processing", name="hold")),
        (("delayed",), truth.of("scheduled")), (("recent",), truth.of(*FINAL)),
        (("recent", "--name", "slow"), truth.of(*FINAL, name="slow")),
        *((("recent", "--status", state), truth.of(state)) for state in FINAL),
    ]
    for words, ids in lists:
        listed = stage.json(*words, "-n", "1000")
        assert sorted((one["id"], one["name"], one["status"]) for one in listed) == sorted(
            (one, truth.tasks[one].name, truth.state[one]) for one in ids), words
    assert sorted((row["ID"], row["STATUS"]) for row in rows(stage.krq("recent", "-n", "1000"))) == sorted(
        (one, truth.state[one]) for one in truth.of(*FINAL))
    assert sorted(letter["id"] for letter in stage.json("dead", "-n", "1000")) == sorted(truth.dead)
    entries = map(json.loads, stage.krq("events", "-n", "9999", "--json").splitlines())
    ends = Counter(outcome for _, _, outcome in {(one["id"], one.get("attempt"), one["outcome"]) for one in entries})
    assert {outcome: ends[outcome] for outcome in ("success", "failed", "cancelled", "retry")} == {
        "success": truth.total("succeeded"), "failed": truth.total("failed"), "cancelled": truth.total("cancelled"),
        "retry": truth.total("retried")}


# --- the terminal: before the page, as Playwright keeps a loop running in this thread -------------


def shown_rows(display: Display, n: int) -> list[dict[str, str]]:
    """The rows of a table, by its titles."""
    table = display.dashboard.query(DataTable)[n]
    titles = [str(column.label).strip() for column in table.ordered_columns]
    return [dict(zip(titles, (str(cell).strip() for cell in table.get_row_at(i)), strict=True)) for i in range(table.row_count)]


def test_the_terminal_shows_it(stage: Stage) -> None:
    truth = stage.truth
    queue_columns = {"READY": "ready", "SCHED": "scheduled", "BACKLOG": "backlog", "DONE": "succeeded", "FAILED": "failed",
                     "RETRIED": "retried", "CANCELLED": "cancelled"}

    async def read(display: Display) -> None:
        await display.shows("0 backlog")
        screen = display.text
        for text in (f"{truth.total('ready')} ready", f"{truth.total('scheduled')} scheduled", f"{len(truth.of('waiting'))} waiting",
                     f"{len(truth.dead)} dead letters", "Workers 1 · 3/8 busy", "Running 3", f"Failures {len(truth.of('failed')) + 1}"):
            assert text in screen
        told = {row["QUEUE"]: row for row in shown_rows(display, 0)}
        for queue in truth.queues:
            of = truth.queue(queue)
            assert {title: int(told[queue][title]) for title in queue_columns} == {title: of[of_] for title, of_ in queue_columns.items()}
            assert (int(told[queue]["RUN"]), int(told[queue]["WAIT"])) == tuple(
                len(truth.of(state, queue=queue)) for state in ("processing", "waiting"))
        [worker], of = shown_rows(display, 1), truth.worker("w2")
        assert (worker["WORKER"], worker["BUSY"]) == ("w2", f"{of['busy']}/8")
        assert [int(worker[title]) for title in ("DONE", "FAILED", "RETRIED")] == [of["succeeded"], of["failed"], of["retried"]]
        assert {row["ID"] for row in shown_rows(display, 2)} == truth.of("processing")
        failures = shown_rows(display, 3)
        assert [row["NAME"] for row in failures if row["WHAT"] == "worker"] == ["w1"]
        assert sorted(row["ID"] for row in failures if row["WHAT"] == "task") == sorted(truth.of("failed"))
        await display.press("slash", *"waiting", "enter")
        await display.until(lambda: {row["ID"] for row in shown_rows(display, 2)} == truth.of("waiting"), "those that wait are listed")

    drive(stage.app, read, (300, 50))


# --- the web -----------------------------------------------------------------------------------


def totals(truth: Truth) -> dict[str, int]:
    return {**whole(truth), **{field: truth.total(field) for field in truth.queue("default") if field != "parked"}, "slots": 8, "busy": 3}


def pages(stage: Stage, **query: str) -> list[Any]:
    found, cursor = [], ""
    while cursor is not None:
        page = stage.get("tasks", cursor=cursor, limit="100", **query)
        found, cursor = found + page["tasks"], page["cursor"]
    return found


def test_the_api_shows_it(stage: Stage) -> None:
    truth = stage.truth
    seen = until(lambda: (one := stage.get("overview"))["totals"]["backlog"] >= 0 and one, "the broker was asked")
    assert {field: seen["totals"][field] for field in totals(truth)} == totals(truth)
    assert {one["queue"]: {field: one[field] for field in truth.queue("default")} for one in seen["queues"]} == {
        name: truth.queue(name) for name in truth.queues}
    assert {one["id"] for one in seen["failed"]} <= truth.of("failed") and len(seen["failed"]) == 6
    for query, states in [({}, STATES), *(({"status": state}, (state,)) for state in STATES)]:
        listed = pages(stage, **query)
        assert len(listed) == len(truth.of(*states)), states
        assert {(one["id"], one["status"]) for one in listed} == {(one, truth.state[one]) for one in truth.of(*states)}
    for field, value in (("name", "flaky"), ("queue", "images")):
        assert {one["id"] for one in pages(stage, **{field: value})} == truth.of(*STATES, **{field: value})
    assert {one["id"] for one in pages(stage, worker="w2", status="processing")} == truth.of("processing")
    found = stage.get("workers")
    assert [{field: one[field] for field in truth.worker("w2")} for one in found["workers"]] == [truth.worker("w2")]
    assert [one["worker"] for one in found["failures"]] == [one["worker"] for one in seen["deaths"]] == ["w1"]
    assert {one["id"] for one in stage.get("dead", limit="200")["letters"]} == truth.dead


def test_the_metrics_show_it(stage: Stage) -> None:
    truth = stage.truth
    families = text_string_to_metric_families(stage.web.get("/metrics").text)
    seen = {(one.name, *(value for _, value in sorted(one.labels.items()))): one.value for family in families for one in family.samples}
    for queue in truth.queues:
        of = truth.queue(queue)
        for field in ("ready", "scheduled", "backlog"):
            assert seen[f"krq_queue_{field}", queue] == of[field]
        for outcome in ("succeeded", "failed", "cancelled", "retried"):
            assert seen["krq_attempts_total", outcome, queue] == of[outcome]
    for name, field in (("processing", "processing"), ("waiting", "waiting"), ("workers", "workers"), ("slots", "slots"),
                        ("dead_letters", "dead"), ("outbox", "outbox")):
        assert seen[f"krq_{name}",] == totals(truth)[field]


def table(page: Page, label: str) -> list[dict[str, str]]:
    """The rows of a table, by its titles."""
    expect(page.get_by_role("table", name=label, exact=True).locator("tbody tr").first).to_be_visible()
    return page.get_by_role("table", name=label, exact=True).evaluate(
        "table => [...table.tBodies[0].rows].map(row => "
        "Object.fromEntries([...row.cells].map(cell => [cell.dataset.label || 'box', cell.innerText.trim()])))")


def test_the_page_shows_it(page: Page, stage: Stage) -> None:
    truth = stage.truth
    page.goto(str(stage.web.base_url))
    expect(page.locator("#pulse.live")).to_be_visible()
    for tile in ("ready", "processing", "scheduled", "succeeded", "failed"):
        expect(page.locator(f"[data-number='{tile}']")).to_have_text(f"{totals(truth)[tile]:,}")
    expect(page.locator(".tiles")).to_contain_text(f"{truth.total('retried')} retried · {len(truth.dead)} dead")
    expect(page.locator(".tiles")).to_contain_text(f"{len(truth.of('waiting'))} wait for others")
    page.goto(f"{stage.web.base_url}/#/queues")
    for row in table(page, "Queues"):
        of = truth.queue(row["Queue"].split()[0])
        assert {field: whole_number(row[field.capitalize()]) for field in of} == of
    page.goto(f"{stage.web.base_url}/#/workers")
    [row] = table(page, "Alive")
    assert {field: whole_number(row[field.capitalize()].partition("/")[0]) for field in truth.worker("w2")} == truth.worker("w2")
    assert [row["Worker"] for row in table(page, "Deaths")] == ["w1"]
    for state in STATES:
        page.goto(f"{stage.web.base_url}/#/tasks?status={state}")
        assert shown(page) == truth.of(state), state


def shown(page: Page) -> set[str]:
    """The ids of a list, page by page."""
    found: set[str] = set()
    while True:
        expect(page.locator("tbody tr").first).to_be_visible()
        ids = page.locator("tbody tr").evaluate_all("rows => rows.map(row => row.dataset.row)")
        assert len(set(ids)) == len(ids) and not found & set(ids)
        found |= set(ids)
        if page.locator("[data-key=next]").is_disabled():
            return found
        page.locator("[data-key=next]").click()
        expect(page.locator(f"[data-row='{ids[0]}']")).to_have_count(0)
