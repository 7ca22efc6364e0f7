"""Does harm to processes, servers and connections by a plan, and notes it for the checker."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from harness import Servers, Worker
from proxy import Proxy

from chaos.checker import Harm, Kind, Outage
from chaos.load import Tail
from krq.dev.kafka import KafkaServer
from krq.dev.process import HOST
from krq.dev.valkey import ValkeyServer

LEASE, BEAT = 3.0, 0.3
WORKERS, CHILDREN = 3, 2
#: a child has at least so many threads; the processes of isolated tasks have fewer
CHILD_THREADS = 4
#: deeds against workers in ten minutes
WORKER_DEEDS: Mapping[str, int] = MappingProxyType({
    "kill_child": 115, "kill_worker": 12, "kill_supervisor": 8, "stop_worker": 14, "stop_supervisor": 10, "stop_child": 4, "deploy": 6,
    "cut_off": 4,
})  # fmt: skip
#: deeds against servers and connections in ten minutes
SERVER_DEEDS: Mapping[str, int] = MappingProxyType({
    "restart_redis": 6, "kill_redis": 5, "take_redis_away": 1, "freeze_redis": 5, "freeze_redis_long": 2, "restart_kafka": 3,
    "kill_kafka": 3, "freeze_kafka": 2, "cut_connections": 6, "lose_answers": 6,
})  # fmt: skip
TEN_MINUTES = 10.0


def deck(deeds: Mapping[str, int], minutes: float, dice: random.Random) -> list[str]:
    """The deeds of a run, each ten minutes' share in an order of its own; less time has its part of each, at least one."""
    plan: list[str] = []
    left = minutes
    while left > 0:
        part = min(left, TEN_MINUTES) / TEN_MINUTES
        share = [name for name, count in deeds.items() for _ in range(math.ceil(count * part))]
        dice.shuffle(share)
        plan += share
        left -= TEN_MINUTES
    return plan


class Lane(threading.Thread):
    """Does the deeds of one deck one after the other, evenly over the time that there is."""

    def __init__(self, name: str, plan: list[str], acts: Callable[[str], None], seconds: float) -> None:
        super().__init__(name=name, daemon=True)
        self.plan = plan
        self.done = 0
        self.error: BaseException | None = None
        self._acts, self._seconds = acts, seconds
        self._ending = threading.Event()

    def run(self) -> None:
        began = time.monotonic()
        try:
            for place, deed in enumerate(self.plan):
                due = began + self._seconds * (place + 0.5) / len(self.plan)
                if self._ending.wait(max(0.05, due - time.monotonic())):
                    return
                self._acts(deed)
                self.done += 1
        except BaseException as error:
            self.error = error
            raise

    def end(self) -> None:
        """Do no more; wait for the deed under way."""
        self._ending.set()
        self.join(60)


class Nemesis:
    """Three workers, one of them behind a proxy, and what befalls them. Worker deeds in one thread, server deeds in another."""

    def __init__(self, servers: Servers, kafka: KafkaServer, valkey: ValkeyServer, folder: Path, tail: Tail, seed: int) -> None:
        self._servers, self._kafka, self._valkey, self._folder, self._tail = servers, kafka, valkey, folder, tail
        self._dice, self._server_dice = random.Random(seed), random.Random(seed + 1)
        self.harms: list[Harm] = []
        self.outages: list[Outage] = []
        self.counts: Counter[str] = Counter()
        self.pauses = 0
        """pauses of a worker or supervisor that lasted longer than the lease"""
        self.deserted: list[tuple[float, float]] = []
        """when no worker stood ready"""
        self.last = ""
        self._number = 0
        self._nobody, self._looked = False, time.monotonic()
        self.proxy = Proxy(HOST, valkey.port)
        self.proxy.__enter__()
        self.workers = [self._start(place) for place in range(WORKERS)]
        for worker in self.workers:
            worker.ready(CHILDREN)

    def lanes(self, minutes: float) -> list[Lane]:
        """The two threads that do it all; not started yet."""
        decks = (("workers", WORKER_DEEDS, self._dice), ("servers", SERVER_DEEDS, self._server_dice))
        return [Lane(name, deck(deeds, minutes, dice), self._act, 60 * minutes) for name, deeds, dice in decks]

    def look(self) -> None:
        """Note whether anybody stands ready now. Call it often."""
        now = time.monotonic()
        ready = any(stands(pid) for worker in list(self.workers) for pid in worker.children)
        if not ready and self._nobody:
            self.deserted[-1] = (self.deserted[-1][0], now)
        elif not ready:
            self.deserted.append((self._looked, now))
        self._nobody, self._looked = not ready, now

    def heal(self) -> None:
        """All workers live again, all connections stand."""
        self.proxy.heal()
        for place in range(WORKERS):
            self._living(place)

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            worker.close()
        self.proxy.__exit__()

    def _act(self, deed: str) -> None:
        self.last = deed
        getattr(self, f"_{deed}")()
        self.counts[deed] += 1

    # --- workers -------------------------------------------------------------------------------

    def _start(self, place: int) -> Worker:
        """A worker; the first place is behind the proxy."""
        self._number += 1
        name = f"w{self._number}"
        servers = self._servers
        if place == 0:
            servers = Servers(servers.broker, f"redis://{HOST}:{self.proxy.port}/0", servers.namespace, **servers.settings)
        return Worker(servers, self._folder / f"{name}.log", name, CHILDREN, "chaos/work.py")

    def _replace(self, place: int) -> None:
        self.workers[place].close()
        self.workers[place] = self._start(place)

    def _living(self, place: int) -> Worker:
        """The worker of a place; a new one where it has given up."""
        if self.workers[place].process.poll() is not None:
            self.counts["gave up"] += 1
            self._replace(place)
        return self.workers[place]

    def _victim(self) -> tuple[int, Worker]:
        """A worker that runs something; any, where none does for some seconds."""
        deadline = time.monotonic() + LEASE
        while True:
            for place in self._dice.sample(range(WORKERS), WORKERS):
                if self._running(self._living(place).process.pid) or time.monotonic() > deadline:
                    return place, self.workers[place]
            time.sleep(0.02)

    def _running(self, pid: int) -> int:
        """Runs of this process and those below it."""
        return sum(map(self._tail.running, [pid, *descendants(pid)]))

    def _family(self, worker: Worker, pid: int) -> list[int]:
        """A child, and the processes beside it that run its isolated tasks: they end with it. Such a process stands alone."""
        with suppress(OSError):
            if len(os.listdir(f"/proc/{pid}/task")) < CHILD_THREADS:
                return [pid]
        self._tail.look()
        name = self._tail.names.get(pid)
        return [pid, *(each for each in descendants(worker.process.pid) if each != pid and name and self._tail.names.get(each) == name)]

    def _kill_child(self) -> None:
        _, worker = self._victim()
        children = sorted(filter(alive, worker.children), key=self._running)
        if children:
            began = time.monotonic()
            self._signal(children[-1:], signal.SIGSTOP)
            family = self._family(worker, children[-1])
            self._signal(children[-1:], signal.SIGKILL)
            self._note(Kind.CHILD, [*family, *descendants(children[-1])], began)

    def _kill_worker(self) -> None:
        """As a machine that dies."""
        place, worker = self._victim()
        pids = [worker.process.pid, *descendants(worker.process.pid)]
        began = time.monotonic()
        self._signal(pids, signal.SIGKILL)
        self._note(Kind.WORKER, pids, began)
        self._replace(place)

    def _kill_supervisor(self) -> None:
        """Its children die with it."""
        place, worker = self._victim()
        pids = descendants(worker.process.pid)
        began = time.monotonic()
        worker.process.kill()
        while any(map(alive, pids)) and time.monotonic() - began < 1:
            time.sleep(0.005)
        self._note(Kind.WORKER, pids, began)
        self._replace(place)

    def _stop_worker(self) -> None:
        """Supervisor and children stand still for longer than the lease."""
        _, worker = self._victim()
        pids = [worker.process.pid, *descendants(worker.process.pid)]
        self._freeze(pids, Kind.FROZEN, pids)

    def _stop_supervisor(self) -> None:
        """Its children have to end themselves."""
        _, worker = self._victim()
        self._freeze([worker.process.pid], Kind.HEADLESS, descendants(worker.process.pid))

    def _stop_child(self) -> None:
        """Its supervisor beats for it: nothing but delay."""
        _, worker = self._victim()
        pids = sorted(filter(alive, worker.children), key=self._running)[-1:]
        self._freeze(pids, Kind.STILL, [each for pid in pids for each in self._family(worker, pid)])

    def _freeze(self, pids: list[int], kind: Kind, struck: list[int]) -> None:
        began = time.monotonic()
        self._signal(pids, signal.SIGSTOP)
        time.sleep(LEASE + self._dice.uniform(0.3, 1.5))
        ended = time.monotonic()  # before the first of them goes on
        self._signal(pids, signal.SIGCONT)
        self._note(kind, struck, began, ended)
        self.pauses += kind is not Kind.STILL

    def _deploy(self) -> None:
        place, worker = self._victim()
        worker.process.send_signal(signal.SIGTERM)
        try:
            worker.process.wait(30)
        except subprocess.TimeoutExpired:
            self.counts["would not end"] += 1
            pids = [worker.process.pid, *descendants(worker.process.pid)]
            began = time.monotonic()
            self._signal(pids, signal.SIGKILL)
            self._note(Kind.WORKER, pids, began)
        self._replace(place)

    def _cut_off(self) -> None:
        """Nothing moves between a worker and Redis for longer than the lease; then all that was held up arrives."""
        worker = self._living(0)
        pids = set(descendants(worker.process.pid))
        began = time.monotonic()
        self.proxy.hold(True)
        while time.monotonic() - began < LEASE + 1:
            time.sleep(0.05)
            pids |= set(descendants(worker.process.pid))
        self.proxy.hold(False)
        self._note(Kind.HEADLESS, pids, began)

    def _note(self, kind: Kind, pids: Iterable[int], began: float, ended: float | None = None) -> None:
        self.harms.append(Harm(kind, frozenset(pids), began, time.monotonic() if ended is None else ended))

    @staticmethod
    def _signal(pids: Iterable[int], number: int) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    # --- servers -------------------------------------------------------------------------------

    def _away(self, leave: Callable[[], None], seconds: float, come: Callable[[], None]) -> None:
        began = time.monotonic()
        leave()
        time.sleep(seconds)
        come()
        ended = time.monotonic()
        # a child fences itself a margin before its lease is over
        self.outages.append(Outage(began, ended, cutting=ended - began > 0.6 * LEASE))

    def _restart_redis(self) -> None:
        self._away(self._valkey.stop, 0.0, self._valkey.start)

    def _kill_redis(self) -> None:
        self._away(self._valkey.kill, self._server_dice.uniform(0, 0.5), self._valkey.start)

    def _take_redis_away(self) -> None:
        self._away(self._valkey.stop, LEASE + 1, self._valkey.start)

    def _freeze_redis(self) -> None:
        self._away(self._valkey.pause, self._server_dice.uniform(0.3, 1.2), self._valkey.resume)

    def _freeze_redis_long(self) -> None:
        self._away(self._valkey.pause, LEASE + self._server_dice.uniform(0.5, 1.5), self._valkey.resume)

    def _restart_kafka(self) -> None:
        self._kafka.stop()
        self._kafka.start()

    def _kill_kafka(self) -> None:
        self._kafka.kill()
        self._kafka.start()

    def _freeze_kafka(self) -> None:
        self._kafka.pause()
        time.sleep(self._server_dice.uniform(1, 3))
        self._kafka.resume()

    def _cut_connections(self) -> None:
        self.proxy.cut()

    def _lose_answers(self) -> None:
        self.proxy.lose(times=self._server_dice.randint(1, 5))


def descendants(pid: int) -> list[int]:
    """All living processes below this one, the nearest first."""
    found: list[int] = []
    line = [pid]
    while line:
        with suppress(OSError):
            parent = line.pop(0)
            children = [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
            found += filter(alive, children)
            line += children
    return found


def stands(pid: int) -> bool:
    """Whether this is a child that has registered (its threads start then) and is not stopped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "TZ" and len(os.listdir(f"/proc/{pid}/task")) >= CHILD_THREADS
    except OSError:
        return False


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
