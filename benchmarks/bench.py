"""Speed and memory, against the raw client calls over the same servers in the same run.

    python benchmarks/bench.py [--tasks 50000] [--json FILE]

Starts its own Kafka and Valkey on free ports. Absolute figures depend on the machine; the ratios less so.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import floor
import flows
import healthy
import redis
import watched

import krq
from krq.dev.kafka import KafkaServer
from krq.dev.valkey import ValkeyServer

HERE = Path(__file__).parent


class Table:
    """Prints each line as it is known, and keeps it."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def row(self, what: str, figure: float, unit: str, goal: str = "", met: bool | None = None) -> None:
        mark = "" if met is None else ("met" if met else "MISSED")
        self.rows.append({"what": what, "figure": round(figure, 3), "unit": unit, "goal": goal, "met": met})
        print(f"{what:<58} {figure:>12,.2f} {unit:<8} {goal:<26} {mark}", flush=True)


@contextmanager
def worker(broker: str, backend: str, namespace: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """One worker process with its supervisor; ``more``: further environment variables."""
    environ = {**os.environ, "KRQ_BROKER": broker, "KRQ_BACKEND": backend, "KRQ_NAMESPACE": namespace, **more}
    process = subprocess.Popen([sys.executable, str(HERE / "tasks.py")], env=environ, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def resident(pid: int) -> float:
    """MB of a worker: each page once, though its two processes share many (PSS)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    total = 0
    for each in [str(pid), *children]:
        for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def wait_done(store: redis.Redis, key: str, n: int) -> tuple[float, float]:
    """When the first tasks were done and when all were: (rate between, seconds)."""
    began: tuple[float, int] | None = None
    while True:
        done = int(store.hget(key, "S") or 0)
        now = time.perf_counter()
        if done and began is None:
            began = (now, done)
        if done >= n:
            assert began is not None
            return (n - began[1]) / (now - began[0]), now - began[0]
        time.sleep(0.01)


def bulk_and_drain(table: Table, kafka: KafkaServer, valkey: ValkeyServer, n: int) -> None:
    """Submit in bulk, then drain with one worker; then the floor over as many records."""
    store = redis.Redis(port=valkey.port)
    namespace = "bench"
    with krq.KRQ(kafka.url, valkey.url, namespace) as app:
        app.submit("nothing", 0)
        topic = app.config.topic("default")
        memory = store.info("memory")["used_memory"]
        began = time.perf_counter()
        for start in range(0, n, 1000):
            app.submit_many([{"task": "nothing", "args": [i]} for i in range(start, start + 1000)])
        rate = n / (time.perf_counter() - began)
        bare = floor.produce_bulk(kafka.address, "floor.bulk", floor.RECORD, n)
        table.row("bulk submit", rate, "tasks/s", "≥ 10,000", rate >= 10_000)
        table.row("  bare bulk produce", bare, "rec/s")
        table.row("  ratio", rate / bare, "")
        key = app._clients.store.keys("queue", "default")
        with worker(kafka.url, valkey.url, namespace) as process:
            # the first tasks were admitted by their sender; the clock starts when intake has joined
            while int(store.hget(key, "S") or 0) < 2_000:
                time.sleep(0.005)
            first, began = int(store.hget(key, "S") or 0), time.perf_counter()
            wait_done(store, key, n + 1)
            rate = (n + 1 - first) / (time.perf_counter() - began)
            table.row("worker, resident", resident(process.pid), "MB", "≤ 90", resident(process.pid) <= 90)
            while app.stats().outbox:
                time.sleep(0.05)
        used = (store.info("memory")["used_memory"] - memory) / n
    bare = floor.drain(kafka.address, store, topic, n, lambda x: x)
    table.row("drain, one worker process, results stored", rate, "tasks/s", "≥ 12,000", rate >= 12_000)
    table.row("  floor: the same records, raw client calls", bare, "tasks/s")
    table.row("  ratio", rate / bare, "", "≥ 0.5", rate / bare >= 0.5)
    table.row("Redis, per finished task", used, "bytes", "≤ 400", used <= 400)


def latency(table: Table, kafka: KafkaServer, valkey: ValkeyServer, n: int) -> None:
    """One at a time: a send without a worker, as the bare produce has none; then send to result, with the bare produce in turn."""
    bare = floor.Producer(kafka.address, "floor.one")
    with krq.KRQ(kafka.url, valkey.url, "send") as app:
        sends, bares = timed(n, lambda: app.submit("nothing", 1), bare.one)
    one, alone = statistics.median(sends) * 1000, statistics.median(bares) * 1000
    table.row("bare produce(acks=all), p50", alone, "ms")
    table.row("one send on Kafka, p50", one, "ms", f"≤ bare + 0.7 = {alone + 0.7:.2f}", one <= alone + 0.7)
    for name, broker in (("Kafka", kafka.url), ("Streams", valkey.url)):
        namespace = f"one{name.lower()}"
        with krq.KRQ(broker, valkey.url, namespace) as app, worker(broker, valkey.url, namespace):
            app.submit("nothing", 1).result(timeout=30)
            whole, bares = timed(n, lambda app=app: app.submit("nothing", 1).result(timeout=10), bare.one)  # type: ignore[misc]
        result, beside = statistics.median(whole) * 1000, statistics.median(bares) * 1000
        if name == "Kafka":
            table.row("bare produce beside the worker, p50", beside, "ms")
            table.row("send to result on Kafka, p50", result, "ms", f"≤ bare + 2.5 = {beside + 2.5:.2f}", result <= beside + 2.5)
        else:
            table.row("send to result on Streams, p50", result, "ms", "≤ 2.5", result <= 2.5)
        table.row(f"  p99 on {name}", statistics.quantiles(whole, n=100)[98] * 1000, "ms")
    bare.close()


def timed(n: int, ours: Callable[[], object], other: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Seconds of ``n`` calls of each, in turn, so that both meet the same machine; the first 100 warm up and do not count."""
    took: tuple[list[float], list[float]] = ([], [])
    for _ in range(n + 100):
        for times, call in zip(took, (ours, other), strict=True):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    return took[0][100:], took[1][100:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=50_000, help="how many to submit and drain (default 50,000)")
    parser.add_argument("--sends", type=int, default=500, help="how many single sends to time (default 500)")
    parser.add_argument("--members", type=int, default=10_000, help="how many a group has before its final task (default 10,000)")
    parser.add_argument("--finished", type=int, default=1_000_000, help="how many have ended where lists are paged (default 1,000,000)")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    table = Table()
    with (
        tempfile.TemporaryDirectory(prefix="krq-bench-") as folder,
        KafkaServer(Path(folder, "kafka")) as kafka,
        ValkeyServer(Path(folder, "valkey"), fsync="off") as valkey,
    ):
        floor.create(kafka.address, "floor.one", "floor.bulk", "bench.default.log")
        latency(table, kafka, valkey, options.sends)
        flows.workflows(table.row, worker, kafka, valkey, options.members)
        bulk_and_drain(table, kafka, valkey, options.tasks)
        healthy.isolated(table.row, worker, kafka, valkey, options.sends)
        healthy.modules(table.row, worker, kafka, valkey, options.tasks // 2)
        watched.page(table.row, valkey)
        watched.drain(table.row, worker, kafka, valkey, options.tasks // 2)
        watched.lists(table.row, valkey, options.finished)
    if options.json:
        options.json.write_text(json.dumps(table.rows, indent=1))


if __name__ == "__main__":
    main()
