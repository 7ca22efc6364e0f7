"""One shard on a real server, driven by hand: short names for the scripts, and plain reads."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, cast

from store_reading import dump

from krq import config
from krq.store.client import Answer, Store
from krq.store.scripts import Script

HOUR = 3_600_000
DAY = 24 * HOUR


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def until(met: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not (found := met()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
    return found


class Shard:
    """A store with a partition 0 of ``default``, and, unless told otherwise, a worker ``w`` that knows all."""

    def __init__(self, url: str, namespace: str | None = None, worker: bool = True) -> None:
        self.store = Store(config.load({"backend": url, "namespace": namespace or f"t{os.urandom(5).hex()}"}))
        self.redis, self.keys = cast(Any, self.store.redis), self.store.keys
        self.store.renew(os.urandom(8).hex())
        self.offset = 0
        self.number = 0
        if worker:
            self.mark(start=0)
            self.register()

    def run(self, script: Script, *args: Any) -> Answer:
        return self.store.run(script, *args)

    def ok(self, script: Script, *args: Any) -> Any:
        """What it answers; just the value where there is one."""
        answer = self.store.run(script, *args)
        assert answer.ok, answer
        return answer.values[0] if len(answer.values) == 1 else answer.values

    # --- scripts -----------------------------------------------------------------------------

    def mark(self, start: int | bool = False, caught_up: bool = False, tid: str = "tid", partition: int = 0) -> Any:
        return self.ok(Script.MARK, [["default", partition, tid, start, caught_up]])[0]

    def register(self, inc: str = "w", names: Sequence[str] = ("*",), limits: Sequence[tuple[str, str | bool]] = ()) -> None:
        self.ok(Script.REGISTER, inc, ["worker", inc, "started", 1], list(names), ["default"], limits)

    def record(self, i: str, offset: int | None = None, **more: Any) -> list[Any]:
        """A record; ``more``: name, raw, priority, due, expires, after, inputs, sent, generation, queue, partition, flow,
        key, unique."""
        if offset is None:
            offset, self.offset = self.offset, self.offset + 1
        raw = more.get("raw", f'{{"task":"add","task-id":"{i}"}}')
        return [
            i, more.get("name", "add"), more.get("queue", "default"), more.get("partition", 0), offset, raw, zlib.crc32(raw.encode()),
            more.get("priority", 0), more.get("due", 0), more.get("expires", 0), list(more.get("after", ())), more.get("inputs", 0),
            more.get("sent", now_ms()), more.get("generation", 0), True, more.get("inbox", False),
            more.get("flow", [0, False, False] if more.get("after") else False), more.get("key", False), more.get("unique", False),
        ]  # fmt: skip

    def admit(self, *records: Sequence[Any], window: int = 10_000, window_bytes: int = 1 << 26, when: int | None = None) -> Answer:
        """By intake: a batch without gaps."""
        first, after = (records[0][4], records[-1][4] + 1) if records else (self.offset, self.offset)
        source = ["default", 0, "tid", first, after, now_ms() if when is None else when]
        return self.run(Script.ADMIT, source, window, window_bytes, 86400, records)

    def submit(self, *records: Sequence[Any], window: int = 10_000) -> Answer:
        """By the submitter."""
        return self.run(Script.ADMIT, [], window, 1 << 26, 86400, records)

    def add(self, *names: str, **more: Any) -> None:
        """Admit tasks of these ids."""
        assert self.admit(*[self.record(i, **more) for i in names]).values == [False, [], []]

    def take(self, most: int = 10, inc: str = "w", grace: int = 0, number: int | None = None) -> Answer:
        if number is None:
            self.number += 1
        return self.run(Script.TAKE, inc, number or self.number, most, ["default"], grace)

    def taken(self, most: int = 10, inc: str = "w", grace: int = 0) -> list[tuple[str, int]]:
        """Take, and say what: (id, attempt)."""
        answer = self.take(most, inc, grace)
        assert answer.ok, answer
        return [(task[0], task[1]) for task in answer.values[0]]

    def settle(self, i: str, attempt: int = 1, kind: str = "S", value: str = "3", delay: int = 0, inc: str = "w") -> int:
        answer: int = self.ok(Script.SETTLE, inc, [[i, attempt, kind, value, json.dumps({"id": i}), delay]])[0]
        return answer

    def logged(self, i: str, attempt: int = 1, holder: str = "w") -> list[str]:
        found: list[str] = self.ok(Script.LOGGED, holder, [[i, attempt, True]])
        return found

    def finish(self, *names: str, inc: str = "w") -> None:
        """Take, settle and log these tasks: they are the next."""
        for i in names:
            assert self.taken(1, inc) == [(i, 1)]
            assert self.settle(i, inc=inc) == 1
            self.logged(i, holder=inc)

    def recover(
        self, inc: str = "w", counter: int | bool = False, started: Sequence[str] | bool = (), suspects: Sequence[str] = ()
    ) -> Answer:
        return self.run(Script.RECOVER, inc, counter, started, "killed", 3, suspects, [])

    # --- plain reads -------------------------------------------------------------------------

    def task(self, i: str) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.redis.hgetall(self.keys("task", i)).items()}

    def state(self, i: str) -> str | None:
        return self.task(i).get("s")

    def queue(self, field: str) -> int:
        return int(self.redis.hget(self.keys("queue", "default"), field) or 0)

    def ready(self) -> list[str]:
        return [i.decode() for i in self.redis.zrange(self.keys("ready", "default"), 0, -1)]

    def error(self, i: str) -> dict[str, str]:
        raw = self.redis.hget(self.keys("task", i), "r") or self.redis.get(self.keys("result", i))
        found: dict[str, str] = json.loads(raw)
        return found

    def outbox(self, holder: str = "w") -> set[str]:
        return {field.decode() for field in self.redis.hkeys(self.keys("outbox", holder))}

    def dump(self) -> dict[str, Any]:
        return dump(self.store)
