"""Failpoints: named places where a test lets a process die, raise or wait, one at each step of a task's life.

Armed by the environment alone, ``KRQ_FAILPOINT``, for the processes that inherit it:

    name:kill[:nth]  name:raise[:nth]  name:pause:seconds[:nth]      several separated by commas

``nth``, from 1: which pass fires, counted in each process that has the place. ``name:…@path``: the file is made when it fires,
and where it exists already nothing happens: a process that is started again does not meet it a second time.

Each holder asks once, when it is made; unset, it holds None and a place costs one comparison.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from krq.errors import ConfigError

VARIABLE = "KRQ_FAILPOINT"


class Failpoint(StrEnum):
    """The places. What has happened there, and what has not."""

    SUBMIT_BEFORE = "submit-before"
    """checked and encoded; the log has nothing"""
    SUBMIT_PUBLISHED = "submit-published"
    """the log has it; the schedule may not"""
    SUBMIT_ADMITTED = "submit-admitted"
    """admitted; the caller has no handle"""
    INTAKE_POLLED = "intake-polled"
    """read from the log; not admitted"""
    INTAKE_ADMITTED = "intake-admitted"
    """admitted, the mark has moved; the reader has not gone on"""
    TAKE_ANSWERED = "take-answered"
    """the store gave tasks; none has started"""
    RUN_STARTED = "run-started"
    """noted as started; the function is not called yet"""
    RUN_ENDED = "run-ended"
    """the function is over; its end is told to nobody"""
    SETTLE_BEFORE = "settle-before"
    """ends are gathered; the store knows nothing"""
    SETTLE_ANSWERED = "settle-answered"
    """the store has settled; the worker has not read that"""
    LOG_BEFORE = "log-before"
    """settled, in the outbox; the log has nothing"""
    LOG_PUBLISHED = "log-published"
    """the log has the entries; the outbox, too"""
    LOG_LOGGED = "log-logged"
    """out of the outbox, positions are complete"""
    COMMIT_BEFORE = "commit-before"
    """positions are complete; the broker does not know"""
    COMMIT_AFTER = "commit-after"
    """the broker knows"""
    RECOVER_SLICE = "recover-slice"
    """a part of a dead worker's tasks is ready again; the rest is not"""


class FailpointHit(Exception):
    """What the action ``raise`` raises: nobody expects it."""


class _Arm(NamedTuple):
    action: str
    seconds: float
    nth: int
    once: str
    """path of the file that says it has fired, or empty"""


class Failpoints:
    """The armed places of one holder. Thread-safe."""

    def __init__(self, arms: Mapping[Failpoint, _Arm]) -> None:
        self._arms = arms
        self._passed = dict.fromkeys(arms, 0)
        self._lock = threading.Lock()

    def __call__(self, point: Failpoint) -> None:
        """A holder passes ``point``: nothing happens, or the process is killed, or ``FailpointHit``, or it waits."""
        arm = self._arms.get(point)
        if arm is None:
            return
        with self._lock:
            self._passed[point] += 1
            if self._passed[point] != arm.nth or not _first(arm.once):
                return
        match arm.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise FailpointHit(point)
            case _:
                time.sleep(arm.seconds)


def armed(environ: Mapping[str, str] = os.environ) -> Failpoints | None:
    """What ``KRQ_FAILPOINT`` arms, or None. Raises ``ConfigError`` for what it can't mean."""
    text = environ.get(VARIABLE)
    if not text:
        return None
    return Failpoints(dict(_parse(item) for item in text.split(",")))


def _parse(item: str) -> tuple[Failpoint, _Arm]:
    spec, _, once = item.strip().partition("@")
    name, *rest = spec.split(":")
    if name not in list(Failpoint):
        raise ConfigError(f"{VARIABLE}={item!r}: there is no failpoint {name!r}", cure=f"One of: {', '.join(Failpoint)}.")
    action, *numbers = rest or [""]
    if action not in ("kill", "raise", "pause"):
        raise ConfigError(f"{VARIABLE}={item!r}: there is no action {action!r}", cure="Write name:kill, name:raise or name:pause:seconds.")
    try:
        seconds = float(numbers.pop(0)) if action == "pause" else 0.0
        nth = int(numbers.pop(0)) if numbers else 1
    except (ValueError, IndexError):
        nth, seconds = 0, 0.0
    if numbers or nth < 1 or not 0 <= seconds < float("inf"):
        raise ConfigError(f"{VARIABLE}={item!r} can't be read", cure="Write name:kill[:nth], name:raise[:nth] or name:pause:seconds[:nth].")
    return Failpoint(name), _Arm(action, seconds, nth, once)


def _first(path: str) -> bool:
    """Whether nobody has fired it before; from now on somebody has."""
    if not path:
        return True
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    return True
