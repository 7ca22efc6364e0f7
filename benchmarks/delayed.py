"""A million tasks that wait for their time: what one costs in Redis, and what they cost whoever takes a task beside them.

    python benchmarks/delayed.py [--tasks 1000000]

Starts its own Valkey on a free port. The scripts are called as intake and a worker call them, without Kafka between.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from krq import config, message
from krq.brokers.base import Position
from krq.dev.valkey import ValkeyServer
from krq.message import Message
from krq.store.client import Store
from krq.store.records import record
from krq.store.scripts import Script

BATCH = 500
DAY = 86_400.0


class Line:
    """One partition, its mark, and a worker that takes."""

    def __init__(self, url: str) -> None:
        self.store = Store(config.load({"backend": url, "namespace": "delayed"}))
        self.store.renew(os.urandom(8).hex())
        self.offset = self.number = 0
        self.store.run(Script.MARK, [["default", 0, "tid", 0, False]])
        self.store.run(Script.REGISTER, "w", ["worker", "w"], ["*"], ["default"])

    def admit(self, etas: list[float], name: str = "nothing") -> None:
        """Intake of one batch of tasks with these times; 0: now."""
        now, first = time.time_ns() // 1_000_000, self.offset
        records = []
        for eta in etas:
            msg = Message(task=name, task_id=f"{self.offset:028x}", args=[1], eta=eta or None)
            raw = message.encode(msg, max_bytes=10_000, max_depth=10)
            position = Position("delayed.default", 0, self.offset)
            records.append(record(msg.task_id, msg, raw, position, "default", now, ordered=True))
            self.offset += 1
        answer = self.store.run(Script.ADMIT, ["default", 0, "tid", first, self.offset, now], 10_000, 1 << 26, 86_400, records)
        assert answer.ok, answer
        assert answer.values[0] is False, answer

    def take(self, most: int) -> int:
        """One take; how many tasks it gave."""
        self.number += 1
        answer = self.store.run(Script.TAKE, "w", self.number, most, ["default"], 600_000)
        assert answer.ok, answer
        return len(answer.values[0])

    def memory(self) -> int:
        """Bytes in use."""
        used: int = self.store.redis.info("memory")["used_memory"]  # type: ignore[index,assignment]
        return used


def delayed(row: Callable[..., None], valkey: ValkeyServer, n: int = 1_000_000) -> None:
    """Admit ``n`` tasks that are due within a day, from tomorrow on; time takes of single ready tasks before and after."""
    line = Line(valkey.url)
    before = takes(line)
    used, tomorrow = line.memory(), time.time() + DAY
    began = time.perf_counter()
    for start in range(0, n, BATCH):
        line.admit([tomorrow + (start + i) * 7919 % n * DAY / n for i in range(min(BATCH, n - start))])
    row("admission of delayed tasks", n / (time.perf_counter() - began), "tasks/s")
    row(f"Redis, per delayed task ({n:,} of them)", (line.memory() - used) / n, "bytes")
    after = takes(line)
    row("take of one ready task, nothing delayed, p50", before * 1e6, "µs")
    row(f"  beside {n:,} delayed tasks", after * 1e6, "µs", "≤ 1.2 times", after <= 1.2 * before)
    soon = time.time() + 0.5
    line.admit([soon] * BATCH)
    time.sleep(0.6)
    began = time.perf_counter()
    taken = line.take(BATCH)
    assert taken == BATCH
    row(f"  a take of {BATCH} that fall due among them, per task", (time.perf_counter() - began) / BATCH * 1e6, "µs")
    line.store.close()


def takes(line: Line, n: int = 1_000) -> float:
    """The median seconds of a take of one ready task; the first tenth warms up."""
    took = []
    for i in range(n + n // 10):
        line.admit([0.0])
        began = time.perf_counter()
        assert line.take(1) == 1
        if i >= n // 10:
            took.append(time.perf_counter() - began)
    return statistics.median(took)


def main() -> None:
    from bench import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="how many wait (default 1,000,000)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="krq-bench-") as folder, ValkeyServer(Path(folder, "valkey"), fsync="off") as valkey:
        delayed(Table().row, valkey, options.tasks)


if __name__ == "__main__":
    main()
