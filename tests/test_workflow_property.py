"""Random graphs, policies and crash points on the real scripts, against a few sentences of what must hold."""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard import Shard, now_ms
from store_reading import of

from krq import message
from krq.brokers.base import Position
from krq.dev.valkey import ValkeyServer
from krq.inspector import Inspector
from krq.lineage import Lineage
from krq.message import Message
from krq.states import TaskStatus
from krq.store.records import record

S, F, C = TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED
LIMITS: dict[str, int] = {"max_bytes": 1_000_000, "max_depth": 64}


class Flow:
    """A random graph on a shard, and a worker that dies, loses replies and sends things twice."""

    def __init__(self, shard: Shard, rng: Random, most: int) -> None:
        self.shard, self.rng = shard, rng
        self.inspector = Inspector(shard.store.config, shard.store, None)  # type: ignore[arg-type]
        names = [f"n{n}" for n in range(rng.randint(2, most))]
        kinds = rng.choice([["fail"], ["fail", "continue"], ["cancel_rest"], ["fail", "continue", "cancel_rest"]])
        self.messages: dict[str, Message] = {}
        for n, name in enumerate(names):
            after = rng.sample(names[:n], min(n, rng.choice([0, 1, 1, 2, 3])))
            policy = rng.choice(kinds) if after else "fail"
            self.messages[name] = Message(task="t", task_id=name, after=after, inputs="list", on_failure=policy)  # type: ignore[arg-type]
        self.fails = {name for name in names if rng.random() < 0.25}
        self.log: list[tuple[Message, bytes]] = []
        self.admitted = 0
        self.worker, self.lives = "w", 0
        self.held: dict[str, tuple[int, str]] = {}
        self.completed: Counter[str] = Counter()
        self.ran: dict[str, list[str]] = {}
        """what each was given, at its last attempt"""
        self.doomed: set[tuple[str, int]] = set()

    # --- what happens ------------------------------------------------------------------------

    def publish(self, messages: Sequence[tuple[Message, bytes]]) -> None:
        self.log += self.rng.sample(list(messages), len(messages))

    def records(self, first: int, last: int) -> list[list[Any]]:
        return [
            record(msg.task_id, msg, raw, Position("t", 0, first + n), "default", now_ms(), ordered=True)
            for n, (msg, raw) in enumerate(self.log[first:last])
        ]

    def admit(self) -> None:
        """Some more of the log, perhaps by its submitter first, perhaps twice."""
        if self.admitted == len(self.log):
            return
        last = self.rng.randint(self.admitted + 1, len(self.log))
        found = self.records(self.admitted, last)
        if self.rng.random() < 0.3:
            self.shard.submit(*self.rng.sample(found, self.rng.randint(1, len(found))))
        for _ in range(self.rng.choice([1, 1, 2])):
            assert self.shard.admit(*found).ok
        self.admitted = last

    def take(self) -> None:
        self.shard.number += 1
        most = self.rng.choice([0, 1, 1, 3])
        for _ in range(self.rng.choice([1, 1, 2])):
            answer = self.shard.take(most, self.worker, number=self.shard.number)
        for task in answer.values[0]:
            name, attempt = task[0], task[1]
            assert (name, self.generation(name)) not in self.doomed, f"{name} was needed no more"
            self.held[name] = (attempt, json.loads(task[4]).get("generation", 0))
            self.ran[name] = task[7][1] if task[7] else []

    def generation(self, name: str) -> int:
        return int(self.shard.task(name).get("g", 0))

    def settle(self) -> None:
        if not self.held:
            return
        name = self.rng.choice(sorted(self.held))
        attempt, generation = self.held.pop(name)
        stopped = "c" in self.shard.task(name)
        kind = "C" if stopped and self.rng.random() < 0.7 else "F" if name in self.fails and not generation else "S"
        error = {"type": "CANCELLED" if kind == "C" else "ValueError", "message": "no"}
        value = json.dumps(self.value(name) if kind == "S" else error)
        answer = self.shard.settle(name, attempt, kind, value, inc=self.worker)
        self.completed[name] += kind == "S" and answer == 1
        if self.rng.random() < 0.3:
            assert self.shard.settle(name, attempt, kind, value, inc=self.worker) == 2

    def value(self, name: str) -> int:
        given = [raw if not raw.startswith("!") else raw[:2] + json.loads(raw[2:])["type"] for raw in self.ran[name]]
        return zlib.crc32(json.dumps([name, given]).encode())

    def die(self) -> None:
        self.shard.recover(self.worker, started=[])
        self.lives += 1
        self.worker, self.held = f"w{self.lives}", {}
        self.shard.register(self.worker)

    def go_on(self) -> None:
        """Until nothing is left to do."""
        steps = {"admit": 3, "take": 6, "settle": 6, "die": 1}
        for _ in range(3_000):
            getattr(self, self.rng.choices([*steps], weights=[*steps.values()])[0])()
            self.find_doomed()
            if self.admitted == len(self.log) and all(info is not None and info.status.final for info in self.infos().values()):
                break
        else:
            raise AssertionError(f"it hangs: {self.infos()}")
        while self.shard.redis.exists(self.shard.keys("edges"), self.shard.keys("fan")):
            self.shard.take(0, self.worker)

    def find_doomed(self) -> None:
        """Once nothing is left to be told: whatever a task that takes the rest with it has waited for and has not begun will not run.

        Of the generation that it has waited for: another may have been asked for since, for the sake of others.
        """
        if self.shard.redis.exists(self.shard.keys("edges"), self.shard.keys("fan")):
            return
        newest = {msg.task_id: msg for msg, _ in self.log}
        for name, msg in self.messages.items():
            fields = self.shard.task(name)
            if int(fields.get("g", 0)) < newest[name].generation:
                continue
            awaited = {on: newest[name].needs.get(on, 0) for on in msg.after}
            if msg.on_failure == "cancel_rest" and fields.get("s") in ("F", "C") and name not in self.held and "tt" not in fields:
                self.doomed |= {(on, g) for on, g in awaited.items() if g == self.generation(on) and self.shard.state(on) != "p"}

    def infos(self) -> dict[str, Any]:
        return dict(zip(self.messages, self.inspector.infos([*self.messages]), strict=True))

    # --- what must hold ----------------------------------------------------------------------

    def check(self) -> None:
        infos = self.infos()
        spared = {on for name, msg in self.messages.items() if msg.on_failure == "cancel_rest" and not_run(infos[name]) for on in msg.after}
        for name, msg in self.messages.items():
            info = infos[name]
            bad = [on for on in msg.after if infos[on].status is not S]
            if info.status is C:
                assert name in spared, f"nobody had it cancelled: {name}"
            elif bad and msg.on_failure != "continue" and info.attempt == 0:
                assert not_run(info), f"{name} is {info}"
            elif info.status is S:
                assert info.result == self.value(name)
                given = [not raw.startswith("!") for raw in self.ran[name]]
                assert all(given) or msg.on_failure == "continue"
                assert len(given) == len(msg.after)
            else:
                assert name in self.fails or not_run(info), f"{name} is {info}"
            assert self.completed[name] == (info.status is S), f"{name} was completed {self.completed[name]} times"
        found = self.shard.dump()
        for entry in ("after", "dependents"):
            assert of(found, entry) == {}, entry
        assert not {"waiting", "edges", "fan"} & set(found)
        assert {on: f["rd"] for on, f in of(found, "task").items() if int(f.get("rd", 0))} == {}

    def retry_all(self) -> None:
        """From the causes on: in the end all have succeeded, and what had before has not run again."""
        lineage = Lineage(self.shard.store, self.inspector)
        for _ in self.messages:
            infos = self.infos()
            before = {name: info.attempt for name, info in infos.items() if info.status is S}
            bad = [name for name, info in infos.items() if info.status is not S]
            if not bad:
                return
            causes = [name for name in bad if infos[name].status is F and not not_run(infos[name])]
            assert causes, f"only consequences are left: {infos}"
            cause = self.rng.choice(causes)
            *dependents, own = [(msg, raw) for _, msg, raw in lineage.again(self.shard.store.config, cause)]
            if dependents and self.rng.random() < 0.3:  # whoever asked dies in between, and asks again
                self.publish(self.rng.sample(dependents, self.rng.randint(1, len(dependents))))
                while self.admitted < len(self.log):
                    self.admit()
                *dependents, own = [(msg, raw) for _, msg, raw in lineage.again(self.shard.store.config, cause)]
            self.publish([*dependents, own])
            self.go_on()
            self.check()
            after = self.infos()
            assert {name: after[name].attempt for name in before} == before
        assert all(info.status is S for info in self.infos().values()), self.infos()


def not_run(info: Any) -> bool:
    return info.status is C or (info.status is F and info.error.type == "DEPENDENCY_FAILED")


@pytest.fixture(params=["valkey", "debian_redis"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def play(server: ValkeyServer, seed: int, most: int) -> None:
    shard = Shard(server.url, f"f{os.urandom(5).hex()}")
    try:
        flow = Flow(shard, Random(seed), most)
        flow.publish([(msg, message.encode(msg, **LIMITS)) for msg in flow.messages.values()])
        flow.go_on()
        flow.check()
        flow.retry_all()
    finally:
        names = [shard.keys.prefix + name for name in shard.dump()]
        if names:
            shard.redis.unlink(*names)
        shard.store.close()


def test_random_graphs_end_as_they_must_and_a_retry_completes_them(server: ValkeyServer) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]

    @settings(max_examples=120, deadline=None, suppress_health_check=checks, print_blob=True)
    @given(st.integers(0, 2**48), st.integers(2, 12))
    def run(seed: int, most: int) -> None:
        play(server, seed, most)

    run()
