"""Run KRQ under a nemesis and let the ledger judge.

    python -m chaos.driver [--minutes 2] [--seed N] [--rate 150]      (from tests/, or `make chaos CHAOS_MINUTES=2`)

Starts its own Kafka and Valkey (which loses nothing: appendfsync always) and three workers; kills, stops and restarts them
at random; then heals everything, waits for the rest and prints the verdict. Ends with 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path

from harness import Servers, Worker, ledger

import krq
from chaos.checker import Faults, Verdict, check, read
from krq import ids
from krq.dev.kafka import KafkaServer
from krq.dev.valkey import ValkeyServer

LEASE, BEAT = 3.0, 0.3


class Load(threading.Thread):
    """Sends tasks all the time, and keeps the keys of those that were accepted."""

    def __init__(self, app: krq.KRQ, path: Path, rate: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.accepted: list[str] = []
        self.unknown: dict[str, tuple[str, float]] = {}
        self.refused = 0
        self._app, self._path, self._rate = app, path, rate
        self._random = random.Random(seed)
        self.stopping = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.stopping.wait(0.1):
            keys = [f"k{number + i}" for i in range(self._rate // 10)]
            number += len(keys)
            self._send({key: (ids.new_id(), self._random.choice((0.001, 0.005, 0.02, 0.1))) for key in keys})

    def _send(self, tasks: dict[str, tuple[str, float]]) -> None:
        """Whatever is not confirmed may be in the log: it is sent again under its id until it is."""
        tasks = {**self.unknown, **tasks}
        calls = [
            {"task": "work", "args": [str(self._path), key, seconds], "options": {"task_id": task_id}}
            for key, (task_id, seconds) in tasks.items()
        ]
        for start in range(0, len(calls), 1000):
            page = dict(list(tasks.items())[start : start + 1000])
            try:
                self._app.submit_many(calls[start : start + 1000])
                failed: set[str] = set()
            except krq.errors.BatchError as error:
                failed = set(error.failed)
            except krq.KRQError:
                failed = {task_id for task_id, _ in page.values()}
            self.refused += len(failed)
            for key, task in page.items():
                if task[0] in failed:
                    self.unknown[key] = task
                else:
                    self.unknown.pop(key, None)
                    self.accepted.append(key)

    def finish(self, patience: float = 60.0) -> None:
        """Send no more new ones; bring the unconfirmed through."""
        self.stopping.set()
        self.join(30)
        deadline = time.monotonic() + patience
        while self.unknown and time.monotonic() < deadline:
            self._send({})


class Nemesis:
    """Does harm to processes and servers, and notes it."""

    def __init__(self, servers: Servers, kafka: KafkaServer, valkey: ValkeyServer, folder: Path, seed: int) -> None:
        self._servers, self._kafka, self._valkey, self._folder = servers, kafka, valkey, folder
        self._random = random.Random(seed)
        self.deaths: dict[int, tuple[float, float]] = {}
        self.stops: dict[int, list[tuple[float, float]]] = defaultdict(list)
        self.counts: Counter[str] = Counter()
        self._number = 0
        self.last = ""
        self.workers = [self._start().ready(2) for _ in range(3)]

    def _start(self) -> Worker:
        self._number += 1
        return Worker(self._servers, self._folder / f"w{self._number}.log", f"w{self._number}", 2)

    def step(self) -> None:
        """One act of harm, or none."""
        often = [self.kill_child] * 8 + [self.kill_worker] * 3 + [self.stop_worker] * 2 + [self.deploy] * 2
        act = self._random.choice([*often, self.restart_redis, self.restart_kafka])
        self.counts[act.__name__] += 1
        self.last = act.__name__
        act()
        time.sleep(self._random.uniform(0.1, 1.0))

    def kill_child(self) -> None:
        children = self._random.choice(self.workers).children
        if children:
            self._kill(self._random.choice(children))

    def kill_worker(self) -> None:
        worker = self._random.choice(self.workers)
        pids = [worker.process.pid, *worker.children]
        before = time.monotonic()
        worker.kill_tree()
        self.deaths.update(dict.fromkeys(pids, (before, time.monotonic())))
        self._replace(worker)

    def stop_worker(self) -> None:
        """Supervisor and children stand still for longer than the lease."""
        worker = self._random.choice(self.workers)
        pids = [worker.process.pid, *worker.children]
        began = time.monotonic()
        self._signal(pids, signal.SIGSTOP)
        time.sleep(LEASE + self._random.uniform(0.5, 2.0))
        for pid in pids:
            self.stops[pid].append((began, time.monotonic() + 0.5))
        self._signal(pids, signal.SIGCONT)

    def deploy(self) -> None:
        worker = self._random.choice(self.workers)
        worker.process.send_signal(signal.SIGTERM)
        with suppress(Exception):
            worker.process.wait(20)
        worker.close()
        self._replace(worker)

    def restart_redis(self) -> None:
        self._random.choice((self._valkey.stop, self._valkey.kill))()
        self._valkey.start()

    def restart_kafka(self) -> None:
        self._random.choice((self._kafka.stop, self._kafka.kill))()
        self._kafka.start()

    def _replace(self, worker: Worker) -> None:
        worker.close()
        self.workers[self.workers.index(worker)] = self._start()

    def _kill(self, pid: int) -> None:
        before = time.monotonic()
        self._signal([pid], signal.SIGKILL)
        self.deaths[pid] = (before, time.monotonic())

    @staticmethod
    def _signal(pids: list[int], number: int) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def heal(self) -> None:
        """All workers live again."""
        for worker in list(self.workers):
            if worker.process.poll() is not None:
                self._replace(worker)


def drained(path: Path, keys: list[str], patience: float) -> bool:
    """Wait until each key has ended, by the ledger."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        done = {line[1] for line in ledger(path) if line[0] == "F"}
        if done.issuperset(keys):
            return True
        time.sleep(0.5)
    return False


def run(minutes: float, seed: int, rate: int, folder: Path) -> tuple[Verdict, Counter[str], int]:
    """One run; returns the verdict, what the nemesis did, and how many tasks were accepted."""
    path = folder / "ledger"
    with KafkaServer(folder / "kafka") as kafka, ValkeyServer(folder / "valkey", fsync="always") as valkey:
        servers = Servers(kafka.url, valkey.url, "chaos", heartbeat=BEAT, lease=LEASE, partitions=4, send_timeout=5, grace=10)
        nemesis = Nemesis(servers, kafka, valkey, folder, seed)
        with servers.app() as app:
            load = Load(app, path, rate, seed)
            load.start()
            until = time.monotonic() + 60 * minutes
            while time.monotonic() < until:
                nemesis.step()
                done = sum(line[0] == "F" for line in ledger(path))
                faults = sum(nemesis.counts.values())
                left = max(0.0, until - time.monotonic())
                line = f"{left:5.0f} s left {len(load.accepted):>8,} sent {done:>8,} runs ended {faults:>5} faults {nemesis.last:<14}"
                print(f"\r{line}", end="", flush=True)
            nemesis.heal()
            load.finish()
            drained(path, load.accepted, 90)
            print()
        for worker in nemesis.workers:
            worker.close()
        verdict = check(load.accepted, read(ledger(path)), Faults(nemesis.deaths, nemesis.stops))
        return verdict, nemesis.counts, len(load.accepted)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--rate", type=int, default=150, help="tasks a second")
    parser.add_argument("--keep", action="store_true", help="keep the folder with ledger and logs, also after a clean run")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    folder = Path(tempfile.mkdtemp(prefix="krq-chaos-"))
    print(f"seed {seed}, in {folder}")
    verdict, counts, sent = run(options.minutes, seed, options.rate, folder)
    rows = {
        "tasks": sent, **counts, "runs": verdict.runs, "interruptions": verdict.interruptions, "lost": len(verdict.lost),
        "out of thin air": len(verdict.thin_air), "extra runs": len(verdict.extra), "overlapping": len(verdict.overlapping),
    }  # fmt: skip
    for name, value in rows.items():
        print(f"{name.replace('_', ' '):<18}{value:>9,}")
    print(f"{'slowest recovery':<18}{verdict.slowest:>8.1f} s")
    if verdict.clean and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    if verdict.clean:
        print(f"ledger and logs in {folder}")
        return 0
    print(f"BROKEN; lost {verdict.lost[:5]}, extra {verdict.extra[:5]}, overlapping {verdict.overlapping[:5]}; logs in {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
