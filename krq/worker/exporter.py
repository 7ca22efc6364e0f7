"""Metrics and probes of a worker: a process beside the children that answers HTTP, and reads what they share with their supervisor.

It has no client and asks nobody, so it answers while Redis and the broker are away, and while a task holds the interpreter of its
child. The supervisor forks it, starts it again when it dies, and ends it last.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from krq import exposition
from krq.config import Config
from krq.errors import WorkerInitializationError
from krq.version import __version__
from krq.worker.page import Page, boottime
from krq.worker.process import cause, fork
from krq.worker.tally import BUCKETS, OUTCOMES, Tally

log = logging.getLogger("krq.worker")

#: seconds without a turn of the supervisor, and leases, whichever is longer, after which the worker is not alive
SILENT, LEASES = 5.0, 2
#: seconds that a client gets for its request, and until the next start of an exporter that died
REQUEST, AGAIN = 5.0, 1.0
_TIME = struct.Struct("<d")


class Place(NamedTuple):
    """One child's place in a worker."""

    worker: str
    page: Page
    tally: Tally


class Exporter:
    """The supervisor's side: starts the process, keeps it, tells it that there is somebody."""

    def __init__(self, config: Config, places: Sequence[Place], alive: tuple[int, int]) -> None:
        self._config = config
        self._places = places
        self._alive = alive
        self._pulse = mmap.mmap(-1, 16)
        self._pid = 0
        self._start_at = 0.0

    def start(self) -> None:
        """Listen and fork. Raises ``WorkerInitializationError`` where the address can't be had."""
        config = self._config
        host, port = config.metrics_host, config.metrics_port
        self.turned(stopping=False)
        try:
            listener = _listen(host, port)
        except OSError as error:
            cure = "Is another worker there already? Give each of a host its own --metrics-port (KRQ_METRICS_PORT), or 0 for none."
            raise WorkerInitializationError(f"Metrics can't listen on {host}:{port}: {error.strerror or error}", cure=cure) from error
        try:
            self._pid = fork(lambda: self._serve(listener), self._alive)
        finally:
            listener.close()  # the children shall not have it
        log.info("metrics are at http://%s:%d/metrics", f"[{host}]" if ":" in host else host, port)

    def turned(self, *, stopping: bool) -> None:
        """The supervisor is alive."""
        self._pulse[8] = stopping
        self._pulse[0:8] = _TIME.pack(boottime())

    def keep(self) -> None:
        """Start it again when it has died."""
        if self._pid:
            ended, status = os.waitpid(self._pid, os.WNOHANG)
            if not ended:
                return
            log.error("the process of the metrics ended: %s", cause(os.waitstatus_to_exitcode(status)))
            self._pid, self._start_at = 0, time.monotonic() + AGAIN
        if time.monotonic() >= self._start_at:
            try:
                self.start()
            except (WorkerInitializationError, OSError) as error:
                log.error("%s", error)
                self._start_at = time.monotonic() + 10 * AGAIN

    def end(self) -> None:
        """End it."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0

    # --- in its process ----------------------------------------------------------------------

    def _serve(self, listener: socket.socket) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # it answers until the worker has ended
        report = Report(self._config, self._places)
        ends: dict[str, Callable[[], tuple[int, str, bytes]]] = {
            "/metrics": report.metrics,
            "/live": lambda: _said("live", self._turns()),
            "/ready": lambda: _said("ready", self._turns() and not self._pulse[8] and report.ready()),
        }

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST
            server_version, sys_version = f"krq/{__version__}", ""

            def do_GET(self) -> None:
                end = ends.get(self.path.partition("?")[0])
                status, kind, body = end() if end is not None else (404, "text/plain", b"Here are /metrics, /live and /ready.\n")
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.send_header("cache-control", "no-store")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                """Nothing: who probes does so all the time."""

        server = _Server(listener, Handler)
        server.serve_forever()
        return 0

    def _turns(self) -> bool:
        """Whether the supervisor does."""
        silence = boottime() - float(_TIME.unpack_from(self._pulse, 0)[0])
        return silence < max(SILENT, LEASES * self._config.lease)


class _Server(ThreadingHTTPServer):
    """On a socket that is open already."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is nothing to tell."""
        log.debug("a request for metrics failed", exc_info=True)


def _listen(host: str, port: int) -> socket.socket:
    if ":" in host:
        return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6())
    return socket.create_server((host, port))


def _said(what: str, yes: bool) -> tuple[int, str, bytes]:
    return 200 if yes else 503, "application/json", json.dumps({what: yes}).encode()


class Report:
    """What is told of a worker."""

    def __init__(self, config: Config, places: Sequence[Place]) -> None:
        self._config = config
        self._places = places

    def ready(self) -> bool:
        """Whether every child is registered and its lease is confirmed."""
        return all(
            place.tally.living and place.page.registered and not place.page.leaving
            and boottime() - place.page.confirmed < self._config.lease for place in self._places
        )

    def metrics(self) -> tuple[int, str, bytes]:
        """For Prometheus; 501 without its library."""
        try:
            return 200, exposition.CONTENT_TYPE, exposition.text(self.collect)
        except ImportError:
            return 501, "text/plain", f"prometheus-client is not installed: {exposition.CURE}\n".encode()

    def collect(self) -> Iterator[Any]:
        """All metric families."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        yield InfoMetricFamily("krq_worker", "What it is.", {"version": __version__, "namespace": self._config.namespace})
        for name, text, read in _GAUGES:
            gauge = GaugeMetricFamily(f"krq_worker_{name}", text, labels=["worker"])
            for place in self._places:
                gauge.add_metric([place.worker], read(place))
            yield gauge
        for name, text, count in _COUNTERS:
            counter = CounterMetricFamily(f"krq_worker_{name}", text, labels=["worker"])
            for place in self._places:
                counter.add_metric([place.worker], count(place))
            yield counter
        yield from self._tasks()

    def _tasks(self) -> Iterator[Any]:
        """The sum over all children."""
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        attempts = CounterMetricFamily("krq_worker_attempts", "Attempts that have ended here.", labels=["task", "outcome"])
        times = HistogramMetricFamily("krq_worker_run_seconds", "How long they ran.", labels=["task"])
        found = [list(place.tally.tasks()) for place in self._places]
        for name in sorted({one.name for of in found for one in of}):
            mine = [one for of in found for one in of if one.name == name]
            for outcome in OUTCOMES.values():
                attempts.add_metric([name, outcome], sum(one.outcomes[outcome] for one in mine))
            total, buckets = 0, []
            for bound, n in zip((*map(str, BUCKETS), "+Inf"), zip(*(one.buckets for one in mine), strict=True), strict=True):
                total += sum(n)
                buckets.append((bound, total))
            times.add_metric([name], buckets, sum(one.seconds for one in mine))
        yield attempts
        yield times


_GAUGES: Sequence[tuple[str, str, Callable[[Place], float]]] = (
    ("up", "1 while its process lives and is registered.", lambda at: at.tally.living and at.page.registered),
    ("slots", "Tasks that it can run at a time.", lambda at: at.page.slots),
    ("busy", "Tasks that run.", lambda at: len(at.page.running()) if at.tally.living else 0),
    ("held", "Tasks that it has taken: those that run, and a few for the next moment.", lambda at: at.tally.held),
    ("outbox", "Ends that the log has not got yet. Grows while the broker is away.", lambda at: at.tally.outbox),
    ("lease_age_seconds", "Since the last heartbeat that Redis confirmed.", lambda at: max(0.0, boottime() - at.page.confirmed)),
)
_COUNTERS: Sequence[tuple[str, str, Callable[[Place], float]]] = (
    ("starts", "Processes that were started in its place: the first, and after each end another.", lambda at: at.tally.starts),
    ("refused", "Ends that Redis refused, as another attempt had taken over.", lambda at: at.tally.refused),
)
