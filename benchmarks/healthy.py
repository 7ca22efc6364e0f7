"""What the modules cost who does not use them, and what a process of its own costs a task."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from subprocess import Popen

import krq
from krq.dev.kafka import KafkaServer
from krq.dev.valkey import ValkeyServer

Row = Callable[..., None]
Worker = Callable[..., AbstractContextManager[Popen[bytes]]]
ROUNDS = 3


def modules(row: Row, worker: Worker, kafka: KafkaServer, valkey: ValkeyServer, n: int) -> None:
    """Drain with the usual modules and with none, in turn; the median of the rounds counts."""
    rates: dict[str, list[float]] = {"on": [], "off": []}
    for number in range(ROUNDS):
        for which in ("on", "off") if number % 2 else ("off", "on"):
            rates[which].append(_drain(worker, kafka, valkey, f"modules{which}{number}", n, which))
    on, off = (statistics.median(rates[which]) for which in ("on", "off"))
    row("drain with all modules", on, "tasks/s")
    row("drain without any", off, "tasks/s")
    row("  ratio", on / off, "", "≥ 0.95", on / off >= 0.95)


def _drain(worker: Worker, kafka: KafkaServer, valkey: ValkeyServer, namespace: str, n: int, which: str) -> float:
    with krq.KRQ(kafka.url, valkey.url, namespace) as app:
        for start in range(0, n, 1000):
            app.submit_many([{"task": "nothing", "args": [i]} for i in range(start, start + 1000)])

        def done() -> int:
            queues = app.stats().queues
            return queues["default"].succeeded if "default" in queues else 0

        with worker(kafka.url, valkey.url, namespace, KRQ_BENCH_MODULES=which):
            while (first := done()) < n // 10:
                time.sleep(0.01)
            began = time.perf_counter()
            while (last := done()) < n:
                time.sleep(0.05)
            return (last - first) / (time.perf_counter() - began)


def isolated(row: Row, worker: Worker, kafka: KafkaServer, valkey: ValkeyServer, n: int) -> None:
    """Send to result of the same task in a thread and in a process of its own, in turn."""
    took: dict[str, list[float]] = {"nothing": [], "alone": []}
    with krq.KRQ(kafka.url, valkey.url, "isolated") as app, worker(kafka.url, valkey.url, "isolated"):
        for name in took:
            app.submit(name, 1).result(timeout=30)
        for _ in range(n):
            for name, times in took.items():
                began = time.perf_counter()
                app.submit(name, 1).result(timeout=10)
                times.append(time.perf_counter() - began)
    thread, process = (statistics.median(times) * 1000 for times in took.values())
    row("a process of its own, beyond a thread, p50", process - thread, "ms", "≤ 1", process - thread <= 1)
