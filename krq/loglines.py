"""What tasks log and print: lines as values, the same in Redis and in the log."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import msgspec

VERSION = 1
#: most bytes of a line, and lines of a task that Redis keeps, the newest
MAX_BYTES, KEPT = 8_192, 1_000
#: bytes of text in one record of the log
_PAGE = 64 * 1024
#: bytes for the mark of a cut
_MARK = 48


class LogLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line that a task has logged or printed. A traceback is part of its line: ``text`` may have line ends."""

    at: float
    """Unix seconds, by the clock of the worker's machine"""
    attempt: int
    worker: str
    text: str
    stream: str = "log"
    """``log``, ``stdout``, ``stderr``; ``krq``: no line of the task, but what KRQ says of lines that are missing"""
    level: str = ""
    """``INFO``, … of what was logged; "" of what was printed"""
    logger: str = ""


class LogPage(msgspec.Struct, frozen=True):
    """One record of the ``logs`` topic: lines of one task, in order."""

    id: str
    lines: list[LogLine]
    v: int = VERSION


#: lines with the ids of their tasks
Batch = list[tuple[str, LogLine]]

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(LogLine).decode
decode_page = msgspec.json.Decoder(LogPage).decode


def fitted(text: str) -> str:
    """A text of at most ``MAX_BYTES`` in UTF-8: of a longer one the beginning, a mark, and three times as much of the end."""
    if len(text) <= MAX_BYTES and text.isascii():
        return text
    ends = text if len(text) <= 2 * MAX_BYTES else text[:MAX_BYTES] + text[-MAX_BYTES:]
    raw = ends.encode("utf-8", "backslashreplace")
    if len(raw) <= MAX_BYTES and ends is text:
        return raw.decode()
    room = MAX_BYTES - _MARK
    head, tail = raw[: room // 4].decode(errors="ignore"), raw[room // 4 - room :].decode(errors="ignore")
    return f"{head} […{max(1, len(text) - len(head) - len(tail))} characters are cut out…] {tail}"


def size(line: LogLine) -> int:
    """About how many bytes it takes."""
    return len(line.text) + len(line.logger) + 100


def pages(batch: Batch) -> Iterator[LogPage]:
    """The same as records of the log, the lines of each task in order."""
    by_task: dict[str, list[LogLine]] = {}
    for task_id, line in batch:
        by_task.setdefault(task_id, []).append(line)
    for task_id, lines in by_task.items():
        ends = itertools.accumulate(map(size, lines))
        for _, part in itertools.groupby(zip(lines, ends, strict=True), lambda pair: pair[1] // _PAGE):
            yield LogPage(task_id, [line for line, _ in part])


def unique(lines: Iterable[LogLine]) -> list[LogLine]:
    """Without those that are there twice, because the answer to their storing was lost."""
    return list(dict.fromkeys(lines))
