"""Workflows: from step to step of a chain, and a wide group with a final task."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import redis

import krq
from krq.dev.kafka import KafkaServer
from krq.dev.valkey import ValkeyServer

Worker = Callable[[str, str, str], AbstractContextManager[Any]]
Row = Callable[..., None]

STEPS = 200


def workflows(row: Row, worker: Worker, kafka: KafkaServer, valkey: ValkeyServer, members: int) -> None:
    """Both brokers, one worker process."""
    for name, broker in (("Kafka", kafka.url), ("Streams", valkey.url)):
        namespace = f"flows{name.lower()}"
        with krq.KRQ(broker, valkey.url, namespace) as app, worker(broker, valkey.url, namespace):
            app.submit("nothing", 1).result(timeout=30)
            _chain(row, app, name)
            _group(row, app, name, members)
            _edges(row, app, valkey, members)
            _large(row, app, valkey, name, 10 * members)


def _chain(row: Row, app: krq.KRQ, name: str) -> None:
    steps = [app.signature("moment").options(retries=0) for _ in range(STEPS)]
    krq.chain(*steps).send().result(timeout=60)  # the worker has just started
    times = krq.chain(*steps).send().results(timeout=60)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    p50 = statistics.median(gaps) * 1000
    row(f"chain on {name}, step to step, p50", p50, "ms", "≤ 1.5", p50 <= 1.5)
    row("  p99", statistics.quantiles(gaps, n=100)[98] * 1000, "ms")


def _group(row: Row, app: krq.KRQ, name: str, n: int) -> None:
    alone, grouped, late = [], [], []
    for _ in range(5):
        began = time.perf_counter()
        handles = app.submit_many([{"task": "nothing", "args": [i]} for i in range(n)])
        alone.append(time.perf_counter() - began)
        app.results([handle.id for handle in handles], timeout=120)
        began = time.perf_counter()
        work = (krq.group(app.signature("nothing", i) for i in range(n)) | app.signature("arrival")).send()
        grouped.append(time.perf_counter() - began)
        arrived = work.result(timeout=120)
        last = max(info.finished or 0.0 for info in app.infos(work.children[0].ids) if info is not None)
        late.append((arrived - last) * 1000)
    ratio = min(grouped) / min(alone)
    row(f"group of {n:,} with a final task on {name}: submit", n / min(grouped), "tasks/s")
    row("  time against the same tasks ungrouped", ratio, "", "≤ 1.5", ratio <= 1.5)
    p50 = statistics.median(late)
    row("  final task runs after its last member, p50 of 5", p50, "ms", "≤ 50", p50 <= 50)


def _edges(row: Row, app: krq.KRQ, valkey: ValkeyServer, n: int) -> None:
    """Memory of the edges alone: of a group that waits in a paused queue."""
    with redis.Redis.from_url(valkey.url) as client:
        app.pause("default")
        group = krq.group(app.signature("nothing", i) for i in range(n)).send()
        before = client.info("memory")["used_memory"]
        app.send_task("arrival", after=[group])
        while client.exists(app.store.keys("edges")):
            time.sleep(0.05)
        row("  Redis memory of an edge", (client.info("memory")["used_memory"] - before) / n, "bytes")
        app.resume("default")
    app.results(group.ids, timeout=120)


def _large(row: Row, app: krq.KRQ, valkey: ValkeyServer, name: str, n: int) -> None:
    """The longest script call, from the first task to the last."""
    with redis.Redis.from_url(valkey.url) as client:
        client.config_set("slowlog-max-len", 10_000)
        client.config_set("slowlog-log-slower-than", 1_000)
        client.slowlog_reset()
        began = time.perf_counter()
        arrived = (krq.group(app.signature("nothing", i) for i in range(n)) | app.signature("arrival")).send().result(timeout=300)
        slow = client.slowlog_get(10_000)
        longest = max((call["duration"] for call in slow if call["command"].startswith(b"EVALSHA")), default=0) / 1000
        plain = max((call["duration"] for call in slow if not call["command"].startswith((b"EVALSHA", b"CONFIG"))), default=0) / 1000
        client.config_set("slowlog-log-slower-than", 10_000)
    row(f"group of {n:,} with a final task on {name}: all of it", time.perf_counter() - began - (time.time() - arrived), "s")
    row("  longest script call", longest, "ms", "≤ 20", longest <= 20)
    row("  longest plain command beside them: what the machine adds", plain, "ms")
