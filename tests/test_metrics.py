"""What Prometheus and probes get of a worker, and what the documents make of it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from harness import HERE, Servers, Worker, until
from prometheus_client.parser import text_string_to_metric_families
from snippets import ROOT
from web_house import client

import krq
from krq import config
from krq.dev.process import free_port
from krq.dev.valkey import ValkeyServer
from krq.message import Message
from krq.worker.engine import Held, Settle
from krq.worker.exporter import Place, Report
from krq.worker.page import Page
from krq.worker.tally import Tally

Samples = dict[tuple[str, ...], float]


class Metered(NamedTuple):
    """A worker that is asked."""

    app: krq.KRQ
    worker: Worker
    port: int

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def samples(self) -> Samples:
        status, text = self.get("/metrics")
        return samples(text) if status == 200 else {}

    def value(self, name: str, *labels: str) -> float:
        return self.samples().get((f"krq_worker_{name}", *labels), -1)

    @property
    def exporter(self) -> int:
        """Its process."""
        (pid,) = set(self.worker.children) - {one.pid for one in self.app.workers()}
        return pid


def samples(text: str) -> Samples:
    """Values by name and labels, in the order of their names."""
    return {
        (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text) for one in family.samples
    }


@contextmanager
def metered(url: str, folder: Path, processes: int = 1, **settings: object) -> Iterator[Metered]:
    port = free_port()
    given: dict[str, Any] = {"heartbeat": 0.3, "lease": 3, "partitions": 2, "concurrency": 2, **settings}
    servers = Servers(url, url, f"t{os.urandom(5).hex()}", **given, metrics_port=port)
    worker = Worker(servers, folder / "w.log", processes=processes)
    try:
        with servers.app() as app:
            found = Metered(app, worker, port)
            until(lambda: found.get("/ready")[0] == 200, f"ready; log:\n{worker.text}")
            yield found
    finally:
        worker.close()


# --- a worker ------------------------------------------------------------------------------------


def test_a_worker_tells_what_all_its_children_ran_and_those_before_them(valkey: ValkeyServer, tmp_path: Path) -> None:
    with metered(valkey.url, tmp_path, processes=2) as here:
        app = here.app
        for handle in app.submit_many([{"task": "add", "args": [i, i]} for i in range(40)]):
            handle.result(timeout=20)
        app.submit("fails", times=1).result(timeout=20)
        until(lambda: here.value("attempts_total", "retried", "fails") == 1, "the retry is counted")
        assert here.value("starts_total", "w.1") == here.value("starts_total", "w.2") == 1
        first = here.samples()
        assert first["krq_worker_attempts_total", "succeeded", "add"] == 40
        assert first["krq_worker_run_seconds_count", "add"] == first["krq_worker_run_seconds_bucket", "+Inf", "add"] == 40
        assert first["krq_worker_slots", "w.1"] == 2 and first["krq_worker_up", "w.2"] == 1
        assert first["krq_worker_attempts_total", "succeeded", "fails"] == 1
        assert 0 <= first["krq_worker_lease_age_seconds", "w.1"] < 3
        assert ("krq_worker_attempts_total", "succeeded", "mul") not in first  # it has not run

        one, _ = sorted(app.workers(), key=lambda worker: worker.id)
        os.kill(one.pid, signal.SIGKILL)
        until(lambda: here.value("starts_total", "w.1") == 2 and here.value("up", "w.1") == 1, "another takes its place")
        running = app.submit("work", str(tmp_path / "ledger"), "k", 1.0)
        until(lambda: sum(value for name, value in here.samples().items() if name[0] == "krq_worker_busy") == 1, "one runs")
        running.result(timeout=20)
        until(lambda: here.value("run_seconds_count", "work") == 1, "it is counted")
        last = here.samples()
        assert last["krq_worker_attempts_total", "succeeded", "add"] == 40
        assert 1.0 <= last["krq_worker_run_seconds_sum", "work"] < 5
        assert last["krq_worker_run_seconds_bucket", "1.0", "work"] == 0 and last["krq_worker_run_seconds_bucket", "30.0", "work"] == 1
        told = {outcome: sum(n for name, n in last.items() if name[:2] == ("krq_worker_attempts_total", outcome)) for outcome in
                ("succeeded", "failed", "retried")}
        stats = app.stats().queues["default"]
        assert told == {"succeeded": stats.succeeded, "failed": stats.failed, "retried": stats.retried}


def test_the_process_that_answers_comes_back_and_goes_with_the_worker(valkey: ValkeyServer, tmp_path: Path) -> None:
    with metered(valkey.url, tmp_path) as here:
        here.app.submit("add", 1, 2).result(timeout=20)
        before = here.exporter
        os.kill(before, signal.SIGTERM)  # such as a service manager sends to all: it answers until the end
        os.kill(before, signal.SIGKILL)
        until(lambda: here.value("attempts_total", "succeeded", "add") == 1 and here.exporter != before, "another answers, and knows all")
        assert here.get("/nowhere")[0] == 404 and here.get("/live?x=1") == (200, '{"live": true}')
        held = here.app.submit("work", str(tmp_path / "ledger"), "k", 1.5)
        until(lambda: here.value("busy", "w") == 1, "it runs")
        here.worker.process.send_signal(signal.SIGTERM)
        until(lambda: here.get("/ready")[0] == 503, "it stops")
        assert here.get("/live")[0] == 200 and here.value("busy", "w") == 1
        assert here.worker.process.wait(20) == 0 and held.result(timeout=5) == "k"
        assert here.get("/live")[0] == 0, "nobody listens any more"


def test_ready_and_live_tell_apart_who_is_ill(own_valkey: ValkeyServer, tmp_path: Path) -> None:
    with metered(own_valkey.url, tmp_path, lease=1, heartbeat=0.2) as here:
        own_valkey.kill()
        until(lambda: here.get("/ready") == (503, '{"ready": false}'), "its lease is not confirmed")
        assert here.get("/live")[0] == 200, "a restart would not help"
        assert here.get("/metrics")[0] == 200
        own_valkey.start()
        until(lambda: here.get("/ready")[0] == 200, "it has a lease again")
        here.worker.process.send_signal(signal.SIGSTOP)
        until(lambda: here.get("/live") == (503, '{"live": false}'), "its supervisor stands still")
        here.worker.process.send_signal(signal.SIGCONT)
        until(lambda: here.get("/live")[0] == 200, "it goes on")


def test_an_address_that_cannot_be_had_is_named(valkey: ValkeyServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        environ = {**os.environ, "KRQ_BROKER": valkey.url, "KRQ_BACKEND": valkey.url, "KRQ_NAMESPACE": "taken"}
        command = [sys.executable, "-m", "krq", "worker", str(HERE / "tasks_app.py"), "--metrics-port", str(port)]
        second = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 1 and f"127.0.0.1:{port}: Address already in use" in second.stderr
    assert "--metrics-port" in second.stderr and "Traceback" not in second.stderr


def test_without_the_library_probes_are_answered_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    place = Place("w", Page(1), Tally([]))
    report = Report(config.load({}), [place])
    status, _, text = report.metrics()
    assert status == 501 and b"pip install 'krq[metrics]'" in text
    assert not report.ready()
    place.tally.started()
    place.page.set_registered()
    assert report.ready()
    place.tally.ended()
    assert not report.ready()


# --- what is counted -----------------------------------------------------------------------------


def settle(name: str, kind: str, took: float) -> Settle:
    held = Held(id="i", attempt=1, failures=0, deaths=0, raw="", sent=0, queue="q", inputs=None, known=True,
                message=Message(task=name), took=took)
    return Settle(held, kind, "", "")


def test_each_attempt_counts_once_where_it_belongs() -> None:
    tally = Tally(["a", "b"])
    tally.add([settle("a", "S", 0.001), settle("a", "R", 0.0011), settle("b", "F", 7200.0), settle("new", "D", 0.02)])
    tally.add([settle("other", "C", 0.0)])
    found = {of.name: of for of in tally.tasks()}
    assert set(found) == {"a", "b", "*"}
    assert found["a"].outcomes == {"succeeded": 1, "failed": 0, "cancelled": 0, "retried": 1, "died": 0, "spawned": 0}
    assert list(found["a"].buckets[:3]) == [1, 1, 0] and sum(found["a"].buckets) == 2 and found["a"].seconds == pytest.approx(0.0021)
    assert found["b"].buckets[-1] == 1 and found["b"].seconds == 7200
    assert found["*"].outcomes["died"] == found["*"].outcomes["cancelled"] == 1


# --- what the documents make of it ---------------------------------------------------------------

MONITORING = ROOT / "docs" / "monitoring"
FUNCTIONS = {"sum", "rate", "increase", "delta", "deriv", "histogram_quantile", "absent", "by", "and"}


@pytest.fixture(scope="module")
def exported(web_app: krq.KRQ) -> dict[str, set[str]]:
    """Every metric of `krq web` and of a worker, with the names of its labels."""
    tally = Tally(["add"])
    tally.add([settle("add", "S", 0.1)])
    texts = [Report(config.load({}), [Place("w", Page(1), tally)]).metrics()[2].decode()]
    with client(web_app) as web:  # the log is asked behind the pages
        texts.append(until(lambda: "krq_queue_backlog{" in (text := web.get("/metrics").text) and text, "the backlog is known"))
    return {
        one.name: set(one.labels) for text in texts for family in text_string_to_metric_families(text) for one in family.samples
    }


def refused(expression: str, exported: dict[str, set[str]]) -> list[str]:
    """What an expression names that there is not, or what can't be read. No parser of PromQL: names, labels and brackets."""
    wrong = []
    plain = re.sub(r'"[^"]*"', '""', expression)
    of: set[str] = set()
    for name, labels in re.findall(r"\b(krq_\w+)(?:\{([^}]*)\})?", plain):
        known = exported.get(name)
        if known is None:
            wrong.append(name)
        else:
            of |= known
            wrong += [label for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels) if label not in known]
    wrong += [label for labels in re.findall(r"\bby \(([^)]*)\)", plain) for label in labels.split(", ") if label not in of]
    rest = re.sub(r"\b(krq_\w+)(\{[^}]*\})?|\bby \([^)]*\)|\[(\d+[smh]|\$__rate_interval)\]", " ", plain)
    wrong += [word for word in re.findall(r"[A-Za-z_]\w*|[\[\]{}$]", rest) if word not in FUNCTIONS]
    return wrong + ["()"] * (plain.count("(") != plain.count(")"))


def test_the_checker_finds_what_is_wrong(exported: dict[str, set[str]]) -> None:
    for good in ("krq_workers == 0", 'sum by (queue) (rate(krq_attempts_total{outcome=~"a|b"}[5m])) > 0.5'):
        assert refused(good, exported) == []
    for bad in (
        "krq_wrokers", 'krq_workers{queue="a"}', "sum by (task) (krq_workers)", "rte(krq_workers[5m])", "sum(krq_workers",
        "krq_workers[5x]",
    ):
        assert refused(bad, exported), bad


def test_alerts_name_what_there_is(exported: dict[str, set[str]]) -> None:
    (group,) = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(names) == len(set(names)) > 10
    for rule in group["rules"]:
        assert refused(rule["expr"], exported) == [], rule["alert"]
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"} and re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
        assert rule["labels"]["severity"] in ("critical", "warning", "info") and set(rule["annotations"]) == {"summary", "description"}
        said = " ".join(rule["annotations"].values())
        labels = set().union(*(exported[name] for name in re.findall(r"krq_\w+", rule["expr"])))
        assert set(re.findall(r"\$labels\.(\w+)", said)) <= labels, rule["alert"]


def test_the_dashboard_names_what_there_is(exported: dict[str, set[str]]) -> None:
    board = json.loads((MONITORING / "grafana.json").read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24 and not cells & taken, panel["title"]
        taken |= cells
        for target in panel["targets"]:
            assert refused(target["expr"], exported) == [], panel["title"]
            labels = set().union(*(exported[name] for name in re.findall(r"krq_\w+", target["expr"])))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels, panel["title"]


def test_every_metric_is_documented(exported: dict[str, set[str]]) -> None:
    told = "".join((ROOT / "docs" / page).read_text() for page in ("metrics.md", "dashboard.md"))
    named = set(re.findall(r"`(krq_\w+)`", told))
    suffixes = {name: re.sub(r"_(bucket|count|sum|created)$", "", name) for name in exported}
    assert set(suffixes.values()) == named
