"""The wire format: one request to run a task, as JSON that any producer in any language can write.

Only ``task`` is required. Unknown fields are kept: a message travels as the bytes that were published.
"""

from __future__ import annotations

import zlib
from datetime import datetime
from typing import Any, Literal

import msgspec

from krq import ids
from krq.errors import MessageInvalid, MessageTooLarge, NotSerializable, OptionError

VERSION = 1

Inputs = Literal["none", "prepend", "list"]


class Message(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", omit_defaults=True):
    """One request to run a task."""

    task: str
    task_id: str = ""
    """"" in a foreign record: the id is then made from its position"""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    eta: float | datetime | None = None
    """not before: Unix seconds, or RFC 3339 text with an offset"""
    expires: float | datetime | None = None
    """not started after: the same forms"""
    after: list[str] = []
    """ids of the tasks it waits for"""
    inputs: Inputs = "none"
    """what it gets of them: nothing, their results before its own arguments, or the list of their results first"""
    priority: int = 0
    """-100 to 100; the higher runs first within its queue"""
    timeout: float | None = None
    """seconds a run may take"""
    retries: int | None = None
    """further attempts after a failure; None: as the task says"""
    key: str | None = None
    """messages of one key stand in one partition"""
    inbox: str | None = None
    """the one worker that may run it, by its inbox; None: whoever serves the queue"""
    headers: dict[str, Any] = {}
    generation: int = 0
    """raised by each retry of a task that had ended"""
    version: int = VERSION

    @property
    def due(self) -> float:
        """``eta`` as Unix seconds, 0 where there is none."""
        return seconds(self.eta)

    @property
    def deadline(self) -> float:
        """``expires`` as Unix seconds, 0 where there is none."""
        return seconds(self.expires)


#: (eta, expires, priority, timeout, retries, inbox, version) of most messages
_PLAIN = (None, None, 0, None, None, None, VERSION)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Message)


def seconds(when: float | datetime | None) -> float:
    """A time as Unix seconds, 0 for None. Raises ``OptionError`` for a datetime without an offset."""
    if isinstance(when, datetime):
        if when.tzinfo is None:
            raise OptionError(f"{when.isoformat()} has no time zone", cure="Use an aware datetime, e.g. datetime.now(UTC).")
        return when.timestamp()
    return when or 0.0


def encode(message: Message, *, max_bytes: int, max_depth: int) -> bytes:
    """The message as published. Raises ``NotSerializable``, ``MessageTooLarge`` or ``MessageInvalid`` (too deep)."""
    return dump([message.args, message.kwargs], message, max_bytes=max_bytes, max_depth=max_depth, what=f"The message for {message.task!r}")


def encode_value(value: Any, *, max_bytes: int, max_depth: int, what: str) -> bytes:
    """A result as stored. Raises as ``encode`` does; ``what`` names it in the error."""
    return dump(value, value, max_bytes=max_bytes, max_depth=max_depth, what=what)


def dump(payload: Any, whole: Any, *, max_bytes: int, max_depth: int, what: str) -> bytes:
    """``whole`` as JSON, when it is not too large and ``payload``, its free part, is not too deep."""
    try:
        raw = _encoder.encode(whole)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise NotSerializable(f"{what} cannot be written as JSON: {error}") from error
    if len(raw) > max_bytes:
        raise MessageTooLarge(f"{what} has {len(raw):,} bytes; the limit is {max_bytes:,}")
    if _may_be_deep(raw, max_depth) and depth(msgspec.to_builtins(payload)) > max_depth:
        raise MessageInvalid(f"{what} is nested deeper than {max_depth}", cure="Flatten the data, or raise max_depth.")
    return raw


def decode(raw: bytes | str, *, max_bytes: int, max_depth: int) -> Message:
    """Read a record. Raises ``MessageInvalid`` or ``MessageTooLarge``, and nothing else, for whatever bytes."""
    if len(raw) > max_bytes:
        raise MessageTooLarge(f"The record has {len(raw):,} bytes; the limit is {max_bytes:,}")
    if not raw:
        raise MessageInvalid("The record has no value")
    try:
        message = _decoder.decode(raw)
        _check(message)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MessageInvalid(f"The record is no message: {error}") from error
    except OptionError as error:
        raise MessageInvalid(error.cause, cure=error.advice) from error
    if _may_be_deep(raw, max_depth) and depth([message.args, message.kwargs]) > max_depth:
        raise MessageInvalid(f"The record is nested deeper than {max_depth}")
    return message


def reread(raw: str) -> Message:
    """Read a message that ``decode`` has let in before."""
    return _decoder.decode(raw)


def _check(message: Message) -> None:
    ids.check_task_name(message.task)
    if message.task_id:
        ids.check_task_id(message.task_id)
    options = (message.eta, message.expires, message.priority, message.timeout, message.retries, message.inbox, message.version)
    if options != _PLAIN or message.after:
        check_options(message)


def check_options(message: Message) -> None:
    """Raise ``OptionError`` for values that the types allow and the meaning does not."""
    if message.version != VERSION:
        cure = f"This KRQ reads version {VERSION}; upgrade the workers first."
        raise OptionError(f"version {message.version} is not known here", cure=cure)
    if not -100 <= message.priority <= 100:
        raise OptionError(f"priority={message.priority} is out of range", cure="Use -100 to 100.")
    if message.retries is not None and message.retries < 0:
        raise OptionError(f"retries={message.retries} is negative")
    if message.timeout is not None and not 0 < message.timeout < 1e9:
        raise OptionError(f"timeout={message.timeout} must be more than 0 seconds")
    for name, when in (("eta", message.due), ("expires", message.deadline)):
        if not 0 <= when < 4e10:
            raise OptionError(f"{name}={when} is no time", cure="Use Unix seconds or RFC 3339 text.")
    if message.inbox is not None:
        ids.check_queue(message.inbox)
    for task_id in message.after:
        ids.check_task_id(task_id)
    if len(message.after) > 10_000:
        raise OptionError(f"after= names {len(message.after):,} tasks", cure="Wait for at most 10,000; put groups between.")


def checksum(raw: bytes) -> int:
    """What tells two payloads of one id apart."""
    return zlib.crc32(raw)


def _may_be_deep(raw: bytes | str, limit: int) -> bool:
    if isinstance(raw, str):
        return raw.count("[") + raw.count("{") > limit
    return raw.count(b"[") + raw.count(b"{") > limit


def depth(value: Any) -> int:
    """How deep lists and dicts are nested in ``value``: 0 for a number, 1 for ``[1]``. Without recursion."""
    deepest, level = 0, [value]
    while level := [item for item in level if isinstance(item, list | tuple | dict)]:
        deepest += 1
        if deepest > 10_000:
            break
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return deepest
