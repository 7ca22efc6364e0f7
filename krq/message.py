"""The wire format: one request to run a task, as JSON that any producer in any language can write.

Only ``task`` is required. Unknown fields are kept: a message travels as the bytes that were published.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from krq import ids
from krq.errors import MessageInvalid, MessageTooLarge, NotSerializable, OptionError

VERSION = 1

#: most ids that ``after`` names, and most names in it; from so many members on a group is named at once
MAX_AFTER, MAX_NAMED, FEW = 100_000, 10_000, 1_000

Inputs = Literal["none", "prepend", "list", "concat"]
OnFailure = Literal["fail", "continue", "cancel_rest"]


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
    """ids of the tasks it waits for; ``"x:*1000"`` are the thousand ``x:0`` to ``x:999``"""
    inputs: Inputs = "none"
    """what it gets of them: nothing, their results before its own arguments, the list of their results first, or the same of lists
    strung together"""
    on_failure: OnFailure = "fail"
    """when one of them does not succeed: it fails, too; it runs all the same, with the error as that one's value; or it fails
    and what it waits for and has not ended is cancelled"""
    needs: dict[str, int] = {}
    """of those that are run again together with it: the generation it waits for"""
    parent: str | None = None
    """the task that made it while it ran, and ends when it has ended"""
    depth: int = 0
    """how many parents are above it"""
    workflow: str | None = None
    """the id of the first task of the workflow it is in"""
    each: Literal["item", "args"] | None = None
    """args are a list and the number of its first: it is called with each item of it, or with each item's items"""
    priority: int = 0
    """-100 to 100; the higher runs first within its queue"""
    timeout: float | None = None
    """seconds a run may take"""
    retries: int | None = None
    """further attempts after a failure; None: as the task says"""
    key: str | None = None
    """messages of one key stand in one partition"""
    unique: float | None = None
    """0: not beside another of this task and key that has not ended; n: not within n seconds after another. Without a key its
    arguments are"""
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


#: (eta, expires, priority, timeout, retries, inbox, unique, version) of most messages
_PLAIN = (None, None, 0, None, None, None, None, VERSION)
#: headers of W3C Trace Context
_TRACE = re.compile(rb'"(?:traceparent|tracestate|baggage)":"(?:[^"\\]|\\.)*",?')
#: bytes of a key that Redis keeps as it is; of a longer one it has a digest
MAX_KEY = 64

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


def reread(raw: str | bytes) -> Message:
    """Read a message that ``decode`` has let in before."""
    return _decoder.decode(raw)


def _check(message: Message) -> None:
    ids.check_task_name(message.task)
    if message.task_id:
        ids.check_task_id(message.task_id)
    options = (message.eta, message.expires, message.priority, message.timeout, message.retries, message.inbox, message.unique,
               message.version)
    if options != _PLAIN or message.after or message.workflow is not None or message.parent is not None or message.each is not None:
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
    _check_unique(message.unique)
    if message.inbox is not None:
        ids.check_queue(message.inbox)
    if message.each is not None and not (
        len(message.args) == 2 and isinstance(message.args[0], list) and isinstance(message.args[1], int) and not message.kwargs
        and (message.each == "item" or all(isinstance(item, list | tuple) for item in message.args[0]))
    ):
        raise OptionError(f"each={message.each!r} has other args than a list and the number of its first item")
    for task_id in [*message.needs, *([message.workflow] if message.workflow is not None else [])]:
        ids.check_task_id(task_id)
    if message.parent is not None:
        ids.check_task_id(message.parent)
    total = sum(1 if isinstance(span, str) and ids.check_task_id(span) else _size(span) for span in spans(message.after))
    if total > MAX_AFTER or len(message.after) > MAX_NAMED:
        cure = f"Wait for at most {MAX_NAMED:,}, or for {MAX_AFTER:,} that are members of large groups; put tasks between."
        raise OptionError(f"after= names {total:,} tasks", cure=cure)


Span = str | tuple[str, int]


def spans(after: Sequence[str]) -> list[Span]:
    """What ``after`` names: ids, and (``prefix:``, n) where it names ``prefix:0`` to ``prefix:<n-1>`` at once."""
    found: list[Span] = []
    for name in after:
        prefix, star, n = name.partition(":*")
        found.append((prefix + ":", int(n)) if star and n.isascii() and n.isdigit() and len(n) < 10 else name)
    return found


def named(after: Sequence[str]) -> list[str]:
    """All ids that ``after`` names."""
    if not any(":*" in name for name in after):
        return list(after)
    return named_in(spans(after))


def named_in(found: Sequence[Span]) -> list[str]:
    """All ids of these."""
    return [name for span in found for name in ([span] if isinstance(span, str) else [f"{span[0]}{n}" for n in range(span[1])])]


def shortened(after: Sequence[str]) -> list[str]:
    """The same ids, those of a large group at once: a run from ``prefix:0`` on, where it is worth while."""
    if len(after) < FEW:
        return list(after)
    found: list[str] = []
    at = 0
    while at < len(after):
        prefix, colon, n = after[at].rpartition(":")
        end = at + 1
        if colon and n == "0":
            while end < len(after) and after[end] == f"{prefix}:{end - at}":
                end += 1
        found += after[at:end] if end - at < FEW else [f"{prefix}:*{end - at}"]
        at = end
    return found


def _size(span: Span) -> int:
    ids.check_task_id(f"{span[0]}{span[1]}")
    return int(span[1])


def _check_unique(unique: float | None) -> None:
    if unique is not None and not 0 <= unique < 4e9:
        raise OptionError(f"unique={unique} is no length of time", cure="Use 0, while another is pending, or seconds.")


def short_key(key: str) -> str:
    """A key as Redis has it."""
    raw = key.encode("utf-8", "surrogatepass")
    return key if len(raw) <= MAX_KEY else f"#{hashlib.blake2b(raw, digest_size=20).hexdigest()}"


def claim(message: Message) -> str:
    """What ``unique`` compares among messages of one task: the key, or a digest of the arguments."""
    if message.key is not None:
        return short_key(message.key)
    raw = msgspec.json.encode([message.args, message.kwargs], order="sorted")
    return f"={hashlib.blake2b(raw, digest_size=20).hexdigest()}"


def checksum(raw: bytes) -> int:
    """What tells two payloads of one id apart. In whose trace it was sent does not: another try to send it has another."""
    if b'"traceparent":' in raw:
        raw = _TRACE.sub(b"", raw).replace(b',"headers":{}', b"")
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
