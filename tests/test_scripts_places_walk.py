"""Any schedule of calls on tasks with limits: after each the books balance, and in the end everything has run."""

from __future__ import annotations

import json
from random import Random

import pytest
from shard import DAY, Shard, now_ms
from store_reading import of
from test_scripts_places import LIMITS

from krq.store.scripts import Script


class Walk:
    """Random calls; after each the books must balance, and in the end everything must run."""

    def __init__(self, shard: Shard, seed: int) -> None:
        self.shard, self.rng = shard, Random(seed)
        self.ids: list[str] = []
        self.numbers = dict.fromkeys("wxy", 0)
        self.started: dict[str, list[str]] = {}
        for inc in self.numbers:
            self.enter(inc)

    def enter(self, inc: str) -> None:
        self.shard.register(inc, limits=[(name, json.dumps(limits)) for name, limits in LIMITS.items() if name != "rare"])
        self.numbers[inc] = self.numbers[inc] or 0

    def held(self, inc: str) -> list[tuple[str, int]]:
        ids = sorted(i.decode() for i in self.shard.redis.smembers(self.shard.keys("held", inc)))
        return [(i, int(self.shard.task(i)["a"])) for i in ids]

    def add(self) -> None:
        records = []
        for _ in range(self.rng.randint(1, 6)):
            i = f"{len(self.ids):04}"
            self.ids.append(i)
            name, key = self.rng.choice([*sorted(set(LIMITS) - {"rare"}), "add"]), self.rng.choice("pq")
            due = now_ms() - 5 if self.rng.random() < 0.9 else now_ms() + DAY
            unique = [0, key] if self.rng.random() < 0.1 else False
            priority = self.rng.choice([0, 0, 0, 1])
            records.append(self.shard.record(i, name=name, key=key, due=due, unique=unique, priority=priority))
        self.shard.admit(*records)

    def take(self) -> None:
        inc = self.rng.choice(sorted(self.numbers))
        self.numbers[inc] += 1
        for _ in range(self.rng.choice([1, 1, 2])):
            for task in self.shard.take(self.rng.randint(1, 4), inc, number=self.numbers[inc]).values[0]:
                line = self.shard.task(task[0])
                if line["n"] in ("row", "both") and task[0] not in self.started.setdefault(line["n"] + line["k"], []):
                    self.started[line["n"] + line["k"]].append(task[0])

    def settle(self) -> None:
        inc = self.rng.choice(sorted(self.numbers))
        held = self.held(inc)
        for i, attempt in self.rng.sample(held, min(len(held), self.rng.randint(1, 3))):
            for _ in range(self.rng.choice([1, 1, 2])):
                self.shard.settle(i, attempt, self.rng.choice("SSSFCR") if self.rng.random() < 0.9 else "R", inc=inc)

    def release(self) -> None:
        inc = self.rng.choice(sorted(self.numbers))
        self.shard.ok(Script.RELEASE, inc, self.held(inc)[:2])

    def recover(self) -> None:
        inc = self.rng.choice(sorted(self.numbers))
        self.shard.recover(inc, started=[i for i, _ in self.held(inc)][:2])
        self.numbers[inc] = 0
        self.enter(inc)

    def cancel(self) -> None:
        if self.ids:
            self.shard.ok(Script.CANCEL, self.rng.sample(self.ids, 1))

    def check(self) -> None:
        found = self.shard.dump()
        tasks = of(found, "task")
        running = {i for i, task in tasks.items() if task["s"] == "p"}
        busy = of(found, "busy")
        for group, members in busy.items():
            limits = LIMITS[group[1:].partition("\0")[0]]
            assert members <= running, group
            assert len(members) <= limits["c" if group[0] == "n" else "k"], group
        for i in running:
            letters = "".join(letter for letter, field in (("n", "c"), ("k", "k")) if field in LIMITS.get(tasks[i]["n"], {}))
            assert set(letters) <= set(tasks[i].get("l", "")), (i, tasks[i])
        waiting = {i for i, task in tasks.items() if task["s"] == "q"}
        lots = {(name.partition(":")[2], i) for name, line in of(found, "parked").items() for i, _ in line}
        ready = {i for line in of(found, "ready").values() for i, _ in line}
        assert {i for _, i in lots} | ready == waiting
        assert not {i for _, i in lots} & ready
        looked_at = {group for line in of(found, "limited").values() for group, _ in line}
        assert {group for group, _ in lots} == looked_at == set(of(found, "lots"))
        assert self.shard.queue("parked") == len(lots)
        assert self.shard.queue("bytes") == sum(len(f'{{"task":"add","task-id":"{i}"}}') for i in waiting)
        for group, line in of(found, "line").items():
            assert [i for i, _ in line if i in running] in ([], [line[0][0]]), group
        assert all(ids == sorted(ids) for ids in self.started.values())
        final = {i for i, task in tasks.items() if task["s"] in "SFC"}
        assert not final & {i for line in of(found, "line").values() for i, _ in line}
        assert not [i for i in final if {"l", "pk", "u"} & set(tasks[i])]

    def drain(self) -> None:
        for inc in self.numbers:
            for i, attempt in self.held(inc):
                self.shard.settle(i, attempt, inc=inc)
        for _ in range(len(self.ids)):
            taken = self.shard.taken(4)
            if not taken:
                break
            for i, attempt in taken:
                assert self.shard.settle(i, attempt) == 1
        states = {i: self.shard.state(i) for i in self.ids}
        assert not [i for i, state in states.items() if state not in ("S", "F", "C", "d")]


@pytest.mark.parametrize("seed", range(6))
def test_any_schedule_balances_and_ends(shard: Shard, seed: int) -> None:
    walk = Walk(shard, seed)
    shard.number = 10_000
    steps = ["add"] * 4 + ["take"] * 8 + ["settle"] * 7 + ["release", "recover", "cancel"]
    for _ in range(120):
        getattr(walk, walk.rng.choice(steps))()
        walk.check()
    walk.drain()
    walk.check()
