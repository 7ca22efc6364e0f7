"""Run KRQ under a nemesis and let the ledger judge.

    python -m chaos.driver [--minutes 2] [--seed N] [--rate 220]      (from tests/, or `make chaos CHAOS_MINUTES=2`)

Starts its own Kafka and Valkey (which loses nothing: appendfsync always) and three workers; kills, stops and restarts them,
and cuts their connections, by a plan drawn from the seed; then heals everything, waits for the rest and prints the verdict.
Ends with 1 when a promise was broken, or when ten minutes or more did less harm than they should or recovered a task later
than promised; shorter runs, which fit into CI beside other work, only tell how late.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from harness import Servers, in_memory

import krq
from chaos.checker import BEYOND_LEASE, CHILD, Faults, Recovery, Verdict, check, read
from chaos.load import DEATHS, Load, Tail
from chaos.nemesis import BEAT, LEASE, Lane, Nemesis
from chaos.probe import Probe
from krq.dev.kafka import KafkaServer
from krq.dev.valkey import ValkeyServer

#: what ten minutes have to hold
MEASURE = (("tasks", 100_000), ("hit", 100), ("pauses", 20), ("Redis restarts", 10), ("Kafka restarts", 5))


class Report(NamedTuple):
    """What a run has shown."""

    verdict: Verdict
    faults: dict[str, int]
    tasks: int
    unknown: int
    notes: list[str]
    """what went wrong besides"""


def drained(tail: Tail, load: Load, nemesis: Nemesis, patience: float) -> bool:
    """Wait until each accepted task has ended, by the ledger."""
    wanted = {key for key, task in load.accepted.items() if not task.deaths}
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        tail.look()
        if tail.done >= wanted:
            return True
        nemesis.look()
        time.sleep(0.1)
    return False


def watch(load: Load, tail: Tail, nemesis: Nemesis, lanes: list[Lane], until: float) -> None:
    """Tell how it goes until the time is over; twice a second on a terminal, else seldom."""
    live = sys.stdout.isatty()
    said = 0.0
    while (left := until - time.monotonic()) > 0 and not any(lane.error for lane in lanes):
        nemesis.look()
        if time.monotonic() - said > (0.5 if live else 30):
            said = time.monotonic()
            deeds = f"{sum(lane.done for lane in lanes):>4}/{sum(len(lane.plan) for lane in lanes)} deeds"
            tail.look()
            text = f"{left:5.0f} s left {len(load.accepted):>8,} sent {len(tail.done):>8,} done {deeds} {nemesis.last:<18}"
            print(f"\r{text}" if live else text, end="" if live else "\n", flush=True)
        time.sleep(min(0.1, max(0.0, left)))
    if live:
        print()


def run(options: argparse.Namespace, folder: Path) -> Report:
    """One run, from the servers' start to the verdict."""
    path = folder / "ledger"
    tail = Tail(path)
    notes: list[str] = []
    with (
        KafkaServer(folder / "kafka") as kafka,
        in_memory() as data,
        ValkeyServer(data, fsync="always") as valkey,
        Probe(valkey) as probe,
    ):
        servers = Servers(
            kafka.url, valkey.url, "chaos", heartbeat=BEAT, lease=LEASE, partitions=4, send_timeout=5, grace=10, concurrency=8,
            max_deaths=DEATHS,
        )
        nemesis = Nemesis(servers, kafka, valkey, folder, tail, options.seed)
        with servers.app() as app:
            load = Load(app, path, options.rate, options.seed, options.poison)
            load.start()
            lanes = nemesis.lanes(options.minutes)
            for lane in lanes:
                lane.start()
            watch(load, tail, nemesis, lanes, time.monotonic() + 60 * options.minutes)
            for lane in lanes:
                lane.end()
                if lane.error is not None:
                    notes.append(f"the nemesis broke down: {lane.error!r}")
            nemesis.heal()
            load.finish()
            if not drained(tail, load, nemesis, 120):
                missing = [key for key, task in load.accepted.items() if not task.deaths and key not in tail.done]
                notes.append(f"{len(missing)} had not ended within 120 s after the last fault")
                notes += [f"{key}: {app.status(load.ids[key])!r}" for key in missing[:5]]
            notes += poisoned(app, load)
        nemesis.close()
        with path.open() as file:
            ledger = read(line.split() for line in file)
        done = Faults(nemesis.harms, [*nemesis.outages, *probe.stalls], LEASE, nemesis.deserted)
        (folder / "faults").write_text("\n".join(map(repr, sorted([*done.harms, *done.outages], key=lambda each: each.began))))
        verdict = check(load.accepted, ledger, done, load.unknown)
        return Report(verdict, {**faults(nemesis), "Redis stalls": len(probe.stalls)}, len(load.accepted), len(load.unknown), notes)


def poisoned(app: krq.KRQ, load: Load) -> list[str]:
    """Each task that kills its process ends as a dead letter."""
    deadline = time.monotonic() + 60
    states = {task_id: app.status(task_id) for task_id in load.poisons}
    while any(not info.status.final for info in states.values()) and time.monotonic() < deadline:
        time.sleep(0.5)
        states = {task_id: app.status(task_id) for task_id in load.poisons}
    return [f"poison {task_id} is {info.status}" for task_id, info in states.items() if info.status != krq.TaskStatus.FAILED]


def faults(nemesis: Nemesis) -> dict[str, int]:
    """The deeds by what they are counted as."""
    counts = dict(nemesis.counts)
    redis = sum(counts.pop(name, 0) for name in ("restart_redis", "kill_redis", "take_redis_away"))
    kafka = sum(counts.pop(name, 0) for name in ("restart_kafka", "kill_kafka"))
    kills = sum(counts.pop(name, 0) for name in ("kill_child", "kill_worker", "kill_supervisor"))
    for name in ("stop_worker", "stop_supervisor"):
        counts.pop(name, 0)
    others = {name.replace("_", " "): count for name, count in counts.items()}
    return {"kills": kills, "pauses": nemesis.pauses, "Redis restarts": redis, "Kafka restarts": kafka, **others}


def show(report: Report) -> None:
    """The table."""
    verdict = report.verdict
    first = {name: report.faults[name] for name in ("pauses", "Redis restarts", "Kafka restarts")}
    rest = {name: count for name, count in report.faults.items() if name not in first and name != "kills"}
    rows: dict[str, int] = {
        "tasks": report.tasks, "unknown": report.unknown, "runs": verdict.runs, "kills": report.faults["kills"],
        "  of them hit": verdict.hits, **first, **rest, "interruptions": verdict.interruptions, "ends at a thaw": verdict.thawed,
        "lost": len(verdict.lost), "doubled": len(verdict.doubled), "overlapping": len(verdict.overlapping),
        "extra runs": len(verdict.extra), "out of thin air": len(verdict.thin_air), "disordered": len(verdict.disordered),
        "recovered late": len(verdict.late),
    }  # fmt: skip
    for name, value in rows.items():
        print(f"{name:<26}{value:>9,}")
    if verdict.slowest is not None:
        print(f"{'slowest recovery':<26}{verdict.slowest.seconds:>8.2f} s  {verdict.slowest.key}, {verdict.slowest.cause}, all included")
    promised = f"a child {CHILD:g} s, a worker {LEASE + BEYOND_LEASE:g} s"
    print(f"slowest with Redis and a worker there, and nothing else in between (promised: {promised}):")
    for cause, each in sorted((verdict.slowest_of or {}).items()):
        print(f"  {cause:<24}{each.counted:>8.2f} s  {told(each)}")


def told(recovery: Recovery) -> str:
    return recovery.key if recovery.counted == recovery.seconds else f"{recovery.key}, {recovery.seconds:.2f} s with an outage"


def failings(report: Report, minutes: float) -> list[str]:
    """Why this run proves nothing, or proves the contrary."""
    verdict = report.verdict
    found = [f"{name}: {', '.join(keys[:5])}{' …' * (len(keys) > 5)}" for name, keys in verdict.broken.items()]
    if minutes >= 10:
        found += [f"late: {each.key} after {each.seconds:.2f} s ({each.counted:.2f} counted), {each.cause}" for each in verdict.late[:5]]
        have = {**report.faults, "tasks": report.tasks, "hit": verdict.hits}
        found += [f"too little harm: {have[name]:,} {name}, {least:,} wanted" for name, least in MEASURE if have[name] < least]
    return found + report.notes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--rate", type=int, default=220, help="tasks a second")
    parser.add_argument("--poison", type=int, default=0, help="so many tasks kill their process")
    parser.add_argument("--keep", action="store_true", help="keep the folder with ledger and logs, also after a clean run")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="krq-chaos-"))
    print(f"seed {options.seed}, {options.minutes:g} minutes, in {folder}", flush=True)
    report = run(options, folder)
    show(report)
    wrong = failings(report, options.minutes)
    print("\n".join(["BROKEN", *wrong, f"ledger and logs in {folder}"]) if wrong else "kept")
    if not wrong and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
