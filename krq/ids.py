"""Ids of tasks and incarnations, and the rules for names that users choose."""

from __future__ import annotations

import os
import re
import socket
import time
import zlib

from krq.errors import ConfigError, OptionError

_QUEUE = re.compile(r"[A-Za-z0-9._-]{1,200}")
_CONTROL = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029]")
_RESERVED = frozenset({"events", "dead", "logs"})

MAX_ID = 128
MAX_NAME = 255


def new_id() -> str:
    """A fresh task id: 28 hex digits, milliseconds first, so that ids sort by time."""
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(8).hex()}"


def new_incarnation(worker_id: str) -> str:
    """The id of one life of a worker: ``worker_id~xxxxxxxx``."""
    return f"{worker_id}~{os.urandom(4).hex()}"


def worker_of(incarnation: str) -> str:
    """The worker id within an incarnation's id."""
    return incarnation.rpartition("~")[0] or incarnation


def default_worker_id() -> str:
    """``host-pid`` of the calling process."""
    return f"{socket.gethostname()}-{os.getpid()}"


def check_task_id(task_id: str) -> str:
    """Return ``task_id`` when it may be one: 1 to 128 characters, no spaces, no control characters, no ``:*``."""
    if not isinstance(task_id, str) or not 0 < len(task_id) <= MAX_ID or _CONTROL.search(task_id) or ":*" in task_id:
        raise OptionError(f"{task_id!r} is no task id", cure=f"Use 1 to {MAX_ID} printable characters, no spaces, no ':*'.")
    return task_id


def check_task_name(name: str) -> str:
    """Return ``name`` when a task may be called so."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or _CONTROL.search(name):
        raise OptionError(f"{name!r} is no task name", cure=f"Use 1 to {MAX_NAME} printable characters, no spaces.")
    return name


def check_queue(queue: str) -> str:
    """Return ``queue`` when a queue may be called so (the rules of Kafka topics)."""
    if not isinstance(queue, str) or not _QUEUE.fullmatch(queue) or queue in _RESERVED:
        raise OptionError(f"{queue!r} is no queue name", cure="Use letters, digits, '.', '_', '-'; not 'events', 'dead' or 'logs'.")
    return queue


def inbox(worker_id: str) -> str:
    """The pool that this worker alone takes from: ``inbox.<worker_id>``, with a digest where the id has other characters than a queue."""
    if _QUEUE.fullmatch(worker_id):
        return f"inbox.{worker_id}"
    return f"inbox.{re.sub(r'[^A-Za-z0-9._-]', '_', worker_id)}.{zlib.crc32(worker_id.encode()):08x}"


def check_namespace(namespace: str) -> str:
    """Return ``namespace`` when topics and keys may be prefixed with it."""
    if not isinstance(namespace, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", namespace):
        raise ConfigError(f"namespace {namespace!r} can't prefix topics and keys", cure="Use 1 to 40 letters, digits, '_', '-'.")
    return namespace
