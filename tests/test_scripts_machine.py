"""The scripts against the model: any schedule of calls, each perhaps twice, late calls of the dead among them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from store_model import FINAL, Model, Record
from store_reading import LONG, dump, expected, of, owner, told

from krq import config
from krq.dev.valkey import ValkeyServer
from krq.store.client import Store
from krq.store.scripts import Script

IDS = [f"i{n}" for n in range(7)]
PARTS = [("qa", 0), ("qa", 1), ("qb", 0)]
QUEUES = ["qa", "qb"]
WINDOW = 5
FAR = 4_000_000_000_000
FOREVER = 10**15
LONG_VALUE = json.dumps("x" * 100)

ids = st.sampled_from(IDS)
parts = st.sampled_from(PARTS)
picks = st.integers(0, 10**6)


class Scripts(RuleBasedStateMachine):
    """Every rule is a script's call, made on the server and on the model; ``twice``: the reply was lost and it is made again."""

    server: ValkeyServer

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(config.load({"backend": self.server.url, "namespace": f"m{os.urandom(5).hex()}"}))
        self.model = Model(WINDOW)
        self.log: dict[tuple[str, int], list[Record]] = {part: [] for part in PARTS}
        self.numbers: dict[str, int] = {}
        self.calls: list[Callable[[], None]] = []
        self.attempts: dict[str, tuple[int, int]] = {}
        self.taking = False
        self.born = 0
        self.began = int(time.time() * 1000) - 1000

    @initialize()
    def begin(self) -> None:
        self.store.renew("first")
        self.store.run(Script.MARK, [[queue, number, "tid", 0, False] for queue, number in PARTS])
        self.model.marks = {f"{queue}:{number}": 0 for queue, number in PARTS}
        self.enter_worker(["*"], False)

    def teardown(self) -> None:
        keys = [self.store.keys.prefix + name for name in dump(self.store)]
        if keys:
            self.store.redis.unlink(*keys)
        self.store.close()

    # --- how a call is made ------------------------------------------------------------------

    def call(self, twice: bool, script: Script, *args: Any, ignore: tuple[str, ...] = ()) -> list[Any]:
        """Run a script, perhaps twice. The second time must leave all as it is, but for the keys in ``ignore``."""
        answer = self.store.run(script, *args)
        if twice:
            before = dump(self.store)
            self.store.run(script, *args)
            after = dump(self.store)
            assert {k: v for k, v in after.items() if k not in ignore} == {k: v for k, v in before.items() if k not in ignore}
        return [answer.status, *answer.values]

    def again(self, make: Callable[[], None]) -> None:
        """Make a call, and remember it: a late copy of it may be made at any time."""
        self.calls.append(make)
        make()

    def later(self) -> None:
        """Times become an order: what is due has small scores, what is not has large ones, as the model has it."""
        now = time.time() * 1000
        lines = {queue: self.store.redis.zrange(self.store.keys("scheduled", queue), 0, -1, withscores=True) for queue in QUEUES}
        found = {i.decode(): (queue, score) for queue, line in lines.items() for i, score in line}
        assert set(found) == set(self.model.later)
        pipeline = self.store.redis.pipeline()
        for n, (i, later) in enumerate(self.model.later.items()):
            queue, score = found[i]
            assert (score > now) == later, i
            pipeline.zadd(self.store.keys("scheduled", queue), {i: FAR + n if later else n})
        pipeline.execute()

    # --- the log and admission ---------------------------------------------------------------

    def publish(self, part: tuple[str, int], i: str, pick: int, after: list[str]) -> Record:
        choose = iter(f"{pick:020b}")
        odd, late, dead, high, low, other, list_, often = (next(choose) + next(choose) == "11" for _ in range(8))
        queue = QUEUES[int(i[1:]) % 2]
        part = part if part[0] == queue else next(p for p in PARTS if p[0] == queue)
        raw = f"{{{i}}}" + "!" * int(other)
        due = FAR if late else 0
        record = Record(
            i, "odd" if odd else "add", queue, part[1], len(self.log[part]), raw, len(raw), high - low, due, 1 if dead else 0,
            tuple(after), "prepend" if list_ else 0, int(time.time() * 1000), 2 * often,
        )  # fmt: skip
        self.log[part].append(record)
        return record

    @rule(part=parts, i=ids, pick=picks, after=st.lists(ids, max_size=2), twice=st.booleans(), short_cut=st.booleans())
    def send(self, part: tuple[str, int], i: str, pick: int, after: list[str], twice: bool, short_cut: bool) -> None:
        record = self.publish(part, i, pick, after if pick % 3 == 0 else [])
        if short_cut:
            self.again(lambda: self.submit(record, twice))

    def submit(self, record: Record, twice: bool) -> None:
        told_now = self.call(twice, Script.ADMIT, [], WINDOW, FOREVER, 86400, [record])
        assert told_now == self.model.admit([], [record])

    @rule(part=parts, back=st.integers(0, 3), size=st.integers(0, 6), twice=st.booleans(), gap=st.integers(0, 9))
    def intake(self, part: tuple[str, int], back: int, size: int, twice: bool, gap: int) -> None:
        mark = self.model.marks[f"{part[0]}:{part[1]}"]
        first = mark + 1 if gap == 0 else max(0, mark - back)
        batch = self.log[part][first : first + size]
        self.again(lambda: self.read(part, first, batch, twice))

    def read(self, part: tuple[str, int], first: int, batch: list[Record], twice: bool) -> None:
        source = [*part, "tid", first, first + len(batch), self.began]
        told_now = self.call(twice, Script.ADMIT, source, WINDOW, FOREVER, 86400, batch)
        assert told_now == self.model.admit([part[0], part[1], "tid", first, first + len(batch)], batch)

    # --- workers -----------------------------------------------------------------------------

    @rule(names=st.sampled_from([["*"], ["add"], ["add", "odd"]]), twice=st.booleans())
    @precondition(lambda self: len(self.model.workers) < 3)
    def enter_worker(self, names: list[str], twice: bool) -> None:
        inc = f"w{self.born}~0"
        self.born += 1
        self.numbers[inc] = 0
        self.again(lambda: self.register(inc, names, twice))

    def register(self, inc: str, names: list[str], twice: bool) -> None:
        assert self.call(twice, Script.REGISTER, inc, ["worker", inc], names, QUEUES)[:1] == self.model.register(inc, names)

    def worker(self, pick: int) -> str:
        """Mostly a live one."""
        busy = sorted(inc for inc in self.model.workers if self.model.held(inc))
        some = (pick % 3 and busy) or (pick % 5 and sorted(self.model.workers)) or sorted(self.numbers)
        return some[pick % len(some)]

    @rule(pick=picks, most=st.integers(0, 5), queues=st.sampled_from([QUEUES, ["qb", "qa"], ["qa"]]), patient=st.booleans(), twice=st.booleans())
    def take(self, pick: int, most: int, queues: list[str], patient: bool, twice: bool) -> None:
        inc = self.worker(pick * 3)
        self.numbers[inc] += 1
        number = self.numbers[inc]
        self.again(lambda: self.make_take(inc, number, most, queues, patient, twice))

    def make_take(self, inc: str, number: int, most: int, queues: list[str], patient: bool, twice: bool) -> None:
        self.taking = True
        told_now = self.call(twice, Script.TAKE, inc, number, most, queues, FOREVER if patient else 0)
        wanted = self.model.take(inc, number, most, queues, patient)
        if told_now[0] == "OK":
            told_now, more = told_now[:2], told_now[3]
            assert more or not any(self.model.ready(queue) for queue in queues if queue not in self.model.paused)
        assert told_now == wanted

    @rule(pick=picks, kinds=st.lists(st.tuples(st.sampled_from("SSSFCR"), st.booleans(), st.integers(0, 7)), max_size=4), twice=st.booleans())
    def settle(self, pick: int, kinds: list[tuple[str, bool, int]], twice: bool) -> None:
        inc = self.worker(pick)
        tasks = sorted(self.model.tasks.items(), key=lambda pair: (pair[1].owner != inc or pair[1].state != "p", pair[0]))
        items = []
        for n, (kind, long, odd) in enumerate(kinds[: len(tasks)]):
            i, task = tasks[n if odd else pick % len(tasks)]
            attempt = max(0, task.attempt - (odd == 1))
            items.append([i, attempt, kind, LONG_VALUE if long else "3", json.dumps({"id": i}), 3_600_000 * (odd % 2)])
        self.again(lambda: self.make_settle(inc, items, twice))

    def make_settle(self, inc: str, items: list[list[Any]], twice: bool) -> None:
        assert self.call(twice, Script.SETTLE, inc, items) == self.model.settle(inc, items)

    @rule(pick=picks, which=st.lists(ids, max_size=4, unique=True), fence=st.integers(-1, 3), twice=st.booleans())
    def release(self, pick: int, which: list[str], fence: int, twice: bool) -> None:
        inc = self.worker(pick)
        items = [(i, -1 if fence < 0 else self.model.tasks[i].attempt - fence // 3) for i in which if i in self.model.tasks]
        self.again(lambda: self.make_release(inc, items, twice))

    def make_release(self, inc: str, items: list[tuple[str, int]], twice: bool) -> None:
        assert self.call(twice, Script.RELEASE, inc, items) == self.model.release(inc, items)

    @rule(pick=picks, ran=st.none() | st.lists(ids, max_size=3), left=st.booleans(), twice=st.booleans())
    def recover(self, pick: int, ran: list[str] | None, left: bool, twice: bool) -> None:
        inc = self.worker(pick)
        self.again(lambda: self.make_recover(inc, ran, left, twice))

    def make_recover(self, inc: str, ran: list[str] | None, left: bool, twice: bool) -> None:
        told_now = self.call(twice, Script.RECOVER, inc, False, False if ran is None else ran, "" if left else "killed", 2)
        assert told_now == self.model.recover(inc, ran, 2)

    @rule(pick=picks, twice=st.booleans(), backwards=st.booleans(), some=st.integers(1, 4))
    def log_entries(self, pick: int, twice: bool, backwards: bool, some: int) -> None:
        holders = sorted(holder for holder, entries in self.model.outbox.items() if entries)
        if holders:
            holder = holders[pick % len(holders)]
            fields = sorted(self.model.outbox[holder], reverse=backwards)[:some]
            entries = [(f.rpartition(":")[0], int(f.rpartition(":")[2])) for f in fields]
            items = [(i, attempt, i in self.model.tasks and self.model.tasks[i].state in FINAL) for i, attempt in entries]
            self.again(lambda: self.make_logged(holder, items, twice))

    def make_logged(self, holder: str, items: list[tuple[str, int, bool]], twice: bool) -> None:
        status, positions = self.call(twice, Script.LOGGED, holder, items)
        assert [status, sorted(positions)] == self.model.logged(holder, items)

    # --- administration ----------------------------------------------------------------------

    @rule(which=st.lists(ids, min_size=1, max_size=2), twice=st.booleans())
    def cancel(self, which: list[str], twice: bool) -> None:
        assert self.call(twice, Script.CANCEL, which) == self.model.cancel(which)

    @rule(queue=st.sampled_from(QUEUES), paused=st.booleans(), twice=st.booleans())
    def control(self, queue: str, paused: bool, twice: bool) -> None:
        assert self.call(twice, Script.CONTROL, queue, paused) == ["OK"]
        (self.model.paused.add if paused else self.model.paused.discard)(queue)

    @rule(queue=st.sampled_from(QUEUES), twice=st.booleans(), rarely=st.integers(0, 3))
    def purge(self, queue: str, twice: bool, rarely: int) -> None:
        if rarely == 0:
            status, dropped, before = self.call(twice, Script.PURGE, queue, False, ignore=(f"q:{queue}",))
            before = int(float(self.store.redis.hget(self.store.keys("queue", queue), "purged")))
            assert [status, dropped] == self.model.purge(queue, before)

    @rule(past=st.booleans(), twice=st.booleans())
    def expire(self, past: bool, twice: bool) -> None:
        told_now = self.call(twice and not past, Script.EXPIRE, -FOREVER if past else FOREVER)
        assert told_now == self.model.expire(past)

    @rule()
    def time_passes(self) -> None:
        self.model.later = dict.fromkeys(self.model.later, False)
        for queue in QUEUES:
            line = {i: n for n, i in enumerate(self.model.later) if self.model.tasks[i].record.queue == queue}
            if line:
                self.store.redis.zadd(self.store.keys("scheduled", queue), line)

    @rule(pick=picks)
    @precondition(lambda self: self.calls)
    def late_copy(self, pick: int) -> None:
        self.calls[-1 - pick % min(len(self.calls), 30)]()

    @rule(pick=picks, silent=st.booleans(), rarely=st.integers(0, 3))
    def restart(self, pick: int, silent: bool, rarely: int) -> None:
        """Another life of the server: closed, asserted, opened under a new epoch."""
        if rarely:
            return
        self.store.redis.hset(self.store.keys.epoch, "run", "0" * 40)
        assert self.call(True, Script.CANCEL, IDS) == ["RESTARTED"]
        before = self.store.epoch.number
        assert self.store.renew(os.urandom(4).hex()).number > before
        if self.model.workers:
            assert self.call(True, Script.CANCEL, IDS) == ["CLOSED"]
        for n, (inc, worker) in enumerate(sorted(self.model.workers.items())):
            if not (silent and n == 0):
                self.assert_held(inc, sorted(worker.names), pick >> n)
        assert self.call(True, Script.OPEN, 0)[:2] == ["OK", True]

    def assert_held(self, inc: str, names: list[str], pick: int) -> None:
        mine = [(i, self.model.tasks[i].attempt - (pick % 7 == 0)) for i in sorted(self.model.held(inc)) if pick % 3 or i < "i3"]
        records = {i: self.model.tasks[i].record for i, _ in mine}
        packed = [(i, a, records[i].name, records[i].queue, records[i].raw, records[i].checksum, records[i].sent) for i, a in mine]
        assert self.call(True, Script.ASSERT, inc, ["worker", inc], names, packed) == self.model.assertion(inc, names, mine)

    # --- what always holds -------------------------------------------------------------------

    @invariant()
    def agrees(self) -> None:
        if not self.model.marks:
            return
        self.later()
        found = dump(self.store)
        self.owned(found)
        self.attempts_only_rise(found)
        told_now, wanted = told(found), expected(self.model)
        for what, value in wanted.items():
            read = told_now[what]
            if what == "values":
                read = {i: json.loads(v)["type"] if v.startswith('{"') else v for i, v in read.items()}
            assert read == value, what
        self.low_water()

    def owned(self, found: dict[str, Any]) -> None:
        for name in found:
            owner(name)
        for i, fields in of(found, "task").items():
            assert all(len(value) <= 64 for name, value in fields.items() if name not in LONG), (i, fields)
        assert all(int(fields.get("bytes", 0)) >= 0 for fields in of(found, "queue").values())
        assert all(len(tokens) == 1 for tokens in of(found, "wake").values())

    def attempts_only_rise(self, found: dict[str, Any]) -> None:
        now = {i: int(fields.get("a", 0)) for i, fields in of(found, "task").items() if fields.get("s")}
        for i, attempt in now.items():
            assert attempt - self.attempts.get(i, 0) in ((0, 1) if self.taking else (0,)), i
        self.attempts, self.taking = now, False

    def low_water(self) -> None:
        answer = self.store.run(Script.MARK, [[queue, number, "tid", False, False] for queue, number in PARTS])
        for (queue, number), (mark, low) in zip(PARTS, answer.values[0], strict=True):
            part = f"{queue}:{number}"
            assert (mark, low) == (self.model.marks[part], self.model.low(part))
            for record in self.log[queue, number][:low]:
                task = self.model.tasks.get(record.id)
                assert task is None or f"{part}:{record.offset}" not in (task.places or ())


@pytest.fixture(params=["valkey", "debian_redis"])
def server(request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    yield request.getfixturevalue(request.param)


def test_scripts_do_as_the_model_does(server: ValkeyServer) -> None:
    """P2, P3, P5: the whole state after each call."""
    machine = type("Machine", (Scripts,), {"server": server})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    wanted = settings(max_examples=80, stateful_step_count=70, deadline=None, suppress_health_check=checks, print_blob=True)
    run_state_machine_as_test(machine, settings=wanted)
