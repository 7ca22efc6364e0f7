"""What the ``events`` topic holds: one entry per ended attempt, many entries per record."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import msgspec

from krq.outcome import ErrorInfo

VERSION = 1


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One ended attempt, or one act upon a task. All times are Unix milliseconds."""

    id: str
    outcome: str
    """``success``, ``failed``, ``retry``, ``spawned``, ``cancelled``; ``cancel``, ``control``: somebody asked for it"""
    name: str = ""
    queue: str = ""
    attempt: int = 0
    failures: int = 0
    deaths: int = 0
    worker: str = ""
    result: Any = None
    error: ErrorInfo | None = None
    sent: int = 0
    started: int = 0
    finished: int = 0
    due: int = 0
    """of the next attempt, after ``retry``"""
    reason: str = ""
    """why no attempt follows, after ``failed``"""
    data: Mapping[str, Any] = {}
    """of ``control``: ``act``, such as ``pause``, and what it takes to repeat it"""


class Page(msgspec.Struct, frozen=True):
    """One record of the ``events`` topic."""

    entries: list[Entry]
    v: int = VERSION


class Peek(msgspec.Struct, frozen=True):
    """The little of an entry that tells whether somebody wants it."""

    outcome: str
    name: str = ""


class _Peeks(msgspec.Struct, frozen=True):
    entries: list[Peek]


class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One record of the ``dead`` topic: what could not be run, and why."""

    reason: str
    code: str
    at: int
    queue: str = ""
    partition: int = -1
    offset: int | str = -1
    id: str = ""
    name: str = ""
    value: str = ""
    """the original bytes, as text, or as base64 where they are no UTF-8"""
    base64: bool = False
    size: int = 0
    """characters that ``value`` had before it was cut; 0: it is whole"""
    attempt: int = 0
    error: ErrorInfo | None = None

    @property
    def ref(self) -> str:
        """What it is known by: its place in the log where the record itself is the trouble, else the id of its task."""
        return self.id if self.partition < 0 else f"{self.queue}:{self.partition}:{self.offset}"

    @property
    def original(self) -> bytes:
        """The record's own bytes, as far as they were kept."""
        return base64.b64decode(self.value) if self.base64 else self.value.encode()


_encoder = msgspec.json.Encoder()
_pages = msgspec.json.Decoder(Page)
_peeks = msgspec.json.Decoder(_Peeks)
_letters = msgspec.json.Decoder(DeadLetter)


def encode_entry(entry: Entry) -> bytes:
    """An entry as it stands in the outbox and within a page."""
    return _encoder.encode(entry)


def encode_page(entries: list[bytes]) -> bytes:
    """Encoded entries as one record."""
    return b'{"entries":[' + b",".join(entries) + b'],"v":1}'


def decode_page(raw: bytes) -> Page:
    """A record of the ``events`` topic."""
    return _pages.decode(raw)


def peek(raw: bytes) -> list[Peek]:
    """The same at a tenth of the price, and told of each entry is a little only."""
    return _peeks.decode(raw).entries


def encode_letter(letter: DeadLetter) -> bytes:
    """A dead letter as published."""
    return _encoder.encode(letter)


def decode_letter(raw: bytes | str) -> DeadLetter:
    """A dead letter as read."""
    return _letters.decode(raw)


def original(raw: bytes) -> dict[str, Any]:
    """The fields of a dead letter that keep the record's own bytes, whatever they are."""
    try:
        return {"value": raw.decode()}
    except UnicodeDecodeError:
        return {"value": base64.b64encode(raw).decode(), "base64": True}
