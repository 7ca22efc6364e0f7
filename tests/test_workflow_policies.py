"""What becomes of a workflow when a member fails, and how it goes on after a retry; maps; trees. On real servers."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Servers, Worker, ledger, running, until

import krq
from krq import TaskStatus
from krq.cli import main
from krq.dev.valkey import ValkeyServer
from krq.errors import OptionError, TaskFailed

S, F, C = TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED


@pytest.fixture(scope="module", params=["kafka", "streams"])
def servers(request: pytest.FixtureRequest, valkey: ValkeyServer) -> Servers:
    broker = request.getfixturevalue("kafka").url if request.param == "kafka" else valkey.url
    return Servers(broker, valkey.url, f"t{os.urandom(5).hex()}", heartbeat=0.3, lease=3, partitions=2)


@pytest.fixture(scope="module")
def worker(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One for all tests of a broker."""
    with running(servers, tmp_path_factory.mktemp("worker")) as workers:
        yield workers[0]


def states(app: krq.KRQ, ids: list[str]) -> list[TaskStatus]:
    return [app.status(one).status for one in ids]


class Gate:
    """A task that fails until a file is there, and counts its runs."""

    def __init__(self, folder: Path) -> None:
        self.file, self.path = folder / "open", folder / "ledger"

    @property
    def culprit(self) -> str:
        """An id of its own."""
        return f"culprit-{self.file.parent.name}-{os.getpid()}-{id(self)}"

    def s(self, app: krq.KRQ, name: str, **options: Any) -> krq.Signature[Any]:
        return app.signature("passes", str(self.path), name, str(self.file)).options(retries=0, **options)

    def si(self, app: krq.KRQ, name: str, **options: Any) -> krq.Signature[Any]:
        made = self.s(app, name, **options)
        return krq.Signature(made.sender, made.call, immutable=True)

    def lines(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for line in ledger(self.path):
            found[line[1]] = found.get(line[1], 0) + 1
        return found


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


# --- policies ------------------------------------------------------------------------------------


def test_fail_names_the_cause_and_a_retry_completes_it(app: krq.KRQ, worker: Worker, gate: Gate) -> None:
    first = app.signature("work", str(gate.path), "first")
    members = [app.signature("work", str(gate.path), "sibling"), gate.s(app, "culprit", task_id=gate.culprit)]
    chain = krq.chain(first, krq.group(*[krq.Signature(m.sender, m.call, immutable=True) for m in members]), app.signature("count"),
                      app.signature("double"))
    handle = chain.send()
    with pytest.raises(TaskFailed, match=rf"{gate.culprit} \(passes\).*closed") as caught:
        handle.result(timeout=15)
    assert caught.value.kind == "DEPENDENCY_FAILED"
    with pytest.raises(OptionError, match=r"did not run because culprit-.* is failed"):
        app.retry(handle.ids[-2])
    gate.file.touch()
    assert app.retry(gate.culprit).result(timeout=15) == "culprit"
    assert handle.result(timeout=15) == 4
    assert gate.lines() == {"first": 2, "sibling": 2, "culprit": 3}  # two lines for each run, one for that which failed
    assert states(app, handle.ids) == [S] * 5


def test_continue_hands_over_the_error(app: krq.KRQ, worker: Worker, gate: Gate) -> None:
    group = krq.group(app.signature("add", 1, 2), gate.s(app, "culprit", task_id=gate.culprit), on_failure="continue")
    handle = (group | app.signature("tells")).send()
    assert handle.result(timeout=15) == [3, [gate.culprit, "RuntimeError", "closed", False]]
    alone = app.signature("tells").options(after=[gate.culprit], inputs="prepend", on_failure="continue")
    assert alone.send().result(timeout=15) == [gate.culprit, "RuntimeError", "closed", False]
    gate.file.touch()
    assert app.retry(gate.culprit).result(timeout=15) == "culprit"
    assert app.status(handle.id).attempt == 1
    chain = krq.chain(app.signature("rejects"), app.signature("tells"), app.signature("count"), on_failure="continue").send()
    assert chain.result(timeout=15) == 4


def test_cancel_rest_stops_what_is_needed_no_more(app: krq.KRQ, worker: Worker, gate: Gate, tmp_path: Path) -> None:
    path = str(tmp_path / "waits")
    until_told = app.signature("waits", path)
    members = [until_told, until_told | app.signature("count"), app.signature("add", 1, 1).options(delay=600)]
    handle = (krq.group(*members, gate.s(app, "culprit", delay=1.5), on_failure="cancel_rest") | app.signature("count")).send()
    until(lambda: len(ledger(tmp_path / "waits")) == 2, "both run")
    with pytest.raises(TaskFailed, match=r"passes.*closed"):
        handle.result(timeout=15)
    until(lambda: all(info.status.final for info in map(app.status, handle.ids)), "all have ended")
    assert states(app, handle.ids) == [C, C, C, C, F, F]
    error = app.status(handle.ids[2]).error
    assert error is not None
    assert "culprit (passes)" not in error.message
    assert "RuntimeError: closed" in error.message


@pytest.mark.parametrize("bare", [False, True])
def test_a_retry_completes_what_was_cancelled_with_it(app: krq.KRQ, worker: Worker, gate: Gate, bare: bool) -> None:
    later = app.signature("add", 1, 1).options(delay=600) | app.signature("double")
    group = krq.group(app.signature("add", 1, 2), gate.s(app, "culprit"), later, on_failure="cancel_rest")
    handle: Any = group.send() if bare else (group | app.signature("count")).send()
    until(lambda: states(app, handle.ids[:4]) == [S, F, C, C], "the rest is cancelled")
    gate.file.touch()
    app.retry(handle.ids[1])
    assert handle.result(timeout=15) == ([3, "culprit", 4] if bare else 3)
    assert app.status(handle.ids[0]).attempt == 1


def test_a_retry_waits_for_all_that_failed(app: krq.KRQ, worker: Worker, gate: Gate) -> None:
    one, two = gate.s(app, "one"), gate.s(app, "two")
    handle = (krq.group(one, two | app.signature("step", str(gate.path), "n", 0)) | app.signature("count") | app.signature("double")).send()
    until(lambda: all(info.status is F for info in map(app.status, handle.ids)), "all have failed")
    gate.file.touch()
    app.retry(handle.ids[1])
    until(lambda: app.status(handle.ids[2]).status is S, "the second member is done")
    until(lambda: app.status(handle.ids[-1]).status is F, "the first still stands in the way")
    app.retry(handle.ids[0])
    assert handle.result(timeout=15) == 4
    assert app.status(handle.ids[2]).attempt == 1


def test_a_retry_needs_what_went_before(app: krq.KRQ, worker: Worker, gate: Gate) -> None:
    handle = (app.signature("add", 1, 2) | gate.si(app, "culprit")).send()
    until(lambda: app.status(handle.id).status is F, "it has failed")
    app.store.redis.delete(app.store.keys("task", handle.ids[0]))
    with pytest.raises(OptionError, match="is gone"):
        app.retry(handle.id)


def test_unknown_policies_are_refused(app: krq.KRQ) -> None:
    with pytest.raises(OptionError, match="not known"):
        krq.group(on_failure="never")  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="not known"):
        app.send_task("add", [1, 2], after=["x"], on_failure="never")


# --- circles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 5])
def test_circles_written_by_hand_come_to_an_end(app: krq.KRQ, worker: Worker, size: int) -> None:
    name = os.urandom(4).hex()
    ids = [f"{name}-{n}" for n in range(size)]
    for n in range(size):
        app.send_task("add", [1, 2], task_id=ids[n], after=[ids[(n + 1) % size]])
    infos = [app.handle(one).wait(timeout=15) for one in ids]
    assert {info.status for info in infos} == {F}
    found = {info.error.type for info in infos if info.error is not None}
    assert found == {"DEPENDENCY_CYCLE", "DEPENDENCY_FAILED"}
    assert all(f"waits for itself: {name}-" in info.error.message for info in infos if info.error is not None)


# --- maps ----------------------------------------------------------------------------------------


def test_map_and_starmap(servers: Servers, app: krq.KRQ, worker: Worker) -> None:
    defined = servers.app()

    @defined.task
    async def double(x: int) -> int:
        raise NotImplementedError

    @defined.task
    def add(x: int, y: int) -> int:
        raise NotImplementedError

    @defined.task
    def total(values: list[int]) -> int:
        raise NotImplementedError

    handle = double.map(range(25), chunk=10).send()
    assert handle.result(timeout=15) == [2 * n for n in range(25)]
    assert handle.progress() == (3, 3)
    assert (add.starmap(((n, 1) for n in range(7)), chunk=3) | total.s()).send().result(timeout=15) == 28
    assert (add.s(1, 2) | double.map([1]) | total.s()).send().result(timeout=15) == 2
    assert double.map([]).send().result(timeout=15) == []
    with pytest.raises(krq.KRQError):
        add.map([1])
    with pytest.raises(OptionError):
        double.map([1], chunk=0)
    defined.close()


def test_a_map_names_the_item_that_failed(servers: Servers, app: krq.KRQ, worker: Worker) -> None:
    defined = servers.app()

    @defined.task
    def gives(what: str) -> Any:
        raise NotImplementedError

    handle = gives.options(retries=0).map(["a", "b", "c", "exit", "d"], chunk=2).send()
    with pytest.raises(TaskFailed, match="item 3: "):
        handle.result(timeout=15)
    assert handle.children[0].result(timeout=15) == ["a", "b"]
    unknown = defined.signature("add", 1)  # a call that lacks an argument, by name
    with pytest.raises(TaskFailed):
        unknown.options(retries=0).send().result(timeout=15)
    defined.close()


# --- trees and handles ---------------------------------------------------------------------------


def test_a_tree_is_found_from_any_task(app: krq.KRQ, worker: Worker) -> None:
    work = app.signature("add", 1, 2) | krq.group(app.signature("add", n) for n in range(3)) | app.signature("total")
    handle = work.send()
    assert handle.result(timeout=15) == 12
    for one in handle.ids:
        tree = app.tree(one)
        nodes = {node.id: node for node in tree}
        assert [*nodes][::4] == [handle.ids[0], handle.ids[4]]
        assert {node.status for node in tree} == {S}
        assert [nodes[each].after for each in handle.ids] == [[], *[[handle.ids[0]]] * 3, handle.ids[1:4]]
    drawn = str(tree).splitlines()
    assert [line.partition("add")[0] for line in drawn[:4]] == ["", "├─ ", "├─ ", "├─ "]
    assert drawn[4].startswith("└─ total")
    assert handle.to_mermaid().splitlines()[:2] == ["flowchart TD", '  t0["add"]:::success']
    assert "  t3 --> t4" in handle.to_mermaid()
    assert len(app.tree(handle.ids[0], limit=2)) == 2
    assert app.tree(handle.ids[0], limit=2).truncated
    with pytest.raises(krq.TaskNotFound):
        app.tree("nobody")


def test_edges_of_ones_own_make_a_tree(app: krq.KRQ, worker: Worker) -> None:
    top = app.send_task("add", [1, 2])
    sides = [app.send_task("add", [n], after=[top], inputs="prepend") for n in (1, 2)]
    bottom = app.send_task("total", [], after=sides, inputs="list")
    assert app.result(bottom, timeout=15) == 9
    for one in (top, *sides, bottom):
        assert {node.id for node in app.tree(one)} == {top, *sides, bottom}


def test_handles_in_coroutines(app: krq.KRQ, worker: Worker) -> None:
    async def use() -> None:
        handle = (krq.group(app.signature("add", n, n) for n in range(4)) | app.signature("total")).send()
        group = handle.children[0]
        assert isinstance(group, krq.GroupHandle)
        assert sorted([await child.aresult(5) async for child in group.as_completed(timeout=15)]) == [0, 2, 4, 6]
        assert await handle.aresult(15) == 12
        assert await handle.aresults(15) == [[0, 2, 4, 6], 12]
        assert await handle.aprogress() == (5, 5)
        assert await group.aprogress() == (4, 4)
        assert (await group.children[0].astatus()).status is S  # type: ignore[union-attr]
        assert await handle.acancel() == 0
        assert len(await handle.atree()) == 5

    asyncio.run(use())


# --- size ----------------------------------------------------------------------------------------


def test_a_chain_of_a_thousand_steps(app: krq.KRQ, worker: Worker) -> None:
    steps: list[krq.Signature[Any]] = [app.signature("add", 0, 1), *(app.signature("add", 1) for _ in range(999))]
    handle: krq.ChainHandle[Any] = krq.chain(*steps).send()
    assert handle.result(timeout=60) == 1_000
    tree = app.tree(handle.ids[500])
    assert len(tree) == 1_000
    assert {line.rule for line in tree.lines()} == {"", "↓ "}


def test_a_dense_graph_of_thirty_by_thirty(app: krq.KRQ, worker: Worker) -> None:
    last: list[str] = []
    layers: list[list[str]] = []
    for n in range(30):
        calls = [{"task": "count", "args": [[]] if not n else [], "options": {"after": last, "inputs": "list" if n else "none"}}] * 30
        last = [handle.id for handle in app.submit_many(calls)]
        layers.append(last)
    assert app.results(last, timeout=60) == [30] * 30
    assert len(app.tree(layers[0][0])) == 900


def test_the_command_line_draws_it(servers: Servers, app: krq.KRQ, worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    handle = (app.signature("add", 1, 2) | krq.group(app.signature("add", 1), app.signature("rejects")) | app.signature("count")).send()
    handle.children[1].children[0].result(timeout=15)  # type: ignore[union-attr]
    until(lambda: app.status(handle.id).status.final, "it has ended")
    where = ["--broker", servers.broker, "--backend", servers.backend, "--namespace", servers.namespace]
    assert main(["tree", handle.ids[1], *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"add  {handle.ids[0]}  success")
    assert [line[:3] for line in lines[1:]] == ["├─ ", "├─ ", "└─ "]
    assert "after 2 tasks" in lines[3]
    assert "DEPENDENCY_FAILED" in lines[3]
    assert main(["tree", handle.id, "--json", *where]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["id"], len(found["tasks"]), found["truncated"]) == (handle.ids[0], 4, False)
    assert main(["tree", handle.id, "--mermaid", *where]) == 0
    assert capsys.readouterr().out.startswith("flowchart TD")
    assert main(["tree", "nobody", *where]) == 1
