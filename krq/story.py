"""The story of one task in plain words: how it came to where it stands, why it does not go on, and what comes next.

From what Redis has; where that is nothing, from the newest records of the log. Every story costs a bounded number of round trips.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from krq import events, ids, message
from krq.brokers.base import Broker
from krq.config import Config
from krq.errors import KRQError, TaskNotFound
from krq.events import Entry
from krq.info import Moment, Reason, Story, TaskInfo, WorkerFailure
from krq.inspector import Inspector
from krq.masking import masked
from krq.message import Message
from krq.outcome import ErrorInfo
from krq.reasons import LOOKED, Facts, Reasons, error_of, named, short
from krq.states import TaskStatus
from krq.store.client import Store

#: newest records of the ``events`` topic, queues, and deaths of workers that are looked at
PAGES, QUEUES, DEATHS = 50, 20, 200

_json = msgspec.json.Decoder().decode
_unpack = msgspec.msgpack.Decoder().decode
#: the id of a schedule's firing: see krq/modules/schedule.py
_TICK = re.compile(r"(.+)@(\d{12,14})")


class Storyteller:
    """Tells stories. Thread-safe."""

    def __init__(self, config: Config, store: Store, broker: Broker, inspector: Inspector) -> None:
        self._config = config
        self._store = store
        self._broker = broker
        self._inspector = inspector
        self._reasons = Reasons(config, store, broker, inspector)

    def tell(self, task_id: str, queues: Sequence[str] = ()) -> Story:
        """The story of a task. ``queues``: where its record is looked for, too, when Redis does not know it. Raises ``TaskNotFound``."""
        facts = self._facts(task_id)
        if isinstance(facts, Facts):
            reasons = self._reasons.of(facts)
            return Story(id=task_id, task=facts.info, past=self._past(facts), reasons=reasons, next=self._next(facts, reasons))
        return self._from_log(task_id, queues, facts)

    def _facts(self, task_id: str) -> Facts | int:
        """What Redis has; of a task that it does not know, how many others wait for it."""
        keys = self._store.keys
        with self._store.plain() as redis:
            pipeline = redis.pipeline(transaction=False)
            pipeline.hgetall(keys("task", task_id))
            for name in ("message", "after", "waited"):
                pipeline.get(keys(name, task_id))
            pipeline.lrange(keys("history", task_id), 0, -1)
            pipeline.hmget(keys.epoch, "open", "opened_at")
            pipeline.time()
            raw, text, after, waited, history, (is_open, opened), (seconds, micros) = pipeline.execute()
        fields = {name.decode(): value.decode() for name, value in raw.items()}
        info = self._inspector.infos([task_id])[0]
        if info is None or "s" not in fields:
            return int(fields.get("rd", 0))
        packed = after or waited
        return Facts(
            info=info, fields=fields, message=_message(text), after=_unpack(packed) if packed else (),
            history=[_json(one) for one in history], now=seconds + micros / 1e6, opened=int(opened or 0) / 1000, is_open=is_open == b"1",
        )

    # --- what happened -----------------------------------------------------------------------

    def _past(self, facts: Facts) -> list[Moment]:
        info = facts.info
        past = [Moment(at=info.sent, kind="sent", text=self._sent(facts)), *self._released(facts)]
        planned = _planned(facts)
        if planned is not None:
            past.append(Moment(at=planned, kind="due", text="Its time had come"))
        deaths = self._deaths(facts.history)
        for entry in facts.history:
            past += _attempt(entry, deaths.get(entry.get("worker", "")))
        told = {entry["attempt"] for entry in facts.history}
        if info.attempt and info.attempt not in told and info.started is not None and facts.fields["s"] not in "qm":
            past.append(Moment(at=info.started, kind="started", text=f"Attempt {info.attempt} began on {info.worker}"))
        if "kd" in facts.fields:
            past.append(Moment(at=None, kind="spawned", text=f"Attempt {info.attempt} returned, having made tasks that it waits for"))
        if info.status.final:
            past.append(_end(info))
        return past

    def _sent(self, facts: Facts) -> str:
        info, fields = facts.info, facts.fields
        text = f"Sent to the queue {info.queue}"
        tick = _TICK.fullmatch(info.id)
        if "pa" in fields:
            text += f" by the task {fields['pa']} while that ran"
        elif tick is not None and (facts.message is None or "krq-tick" in facts.message.headers):
            text += f" by the schedule {tick[1]}"
        if fields.get("wf", info.id) != info.id:
            text += f", in the workflow of {fields['wf']}"
        again = int(fields.get("g", 0))
        return text + (f"; it had ended, and was run again {again} {'time' if again == 1 else 'times'}" if again else "")

    def _released(self, facts: Facts) -> list[Moment]:
        """What it has waited for."""
        if not facts.after or facts.info.status is TaskStatus.WAITING:
            return []
        kin, size = named(facts.after, LOOKED)
        ended = [one for one in self._inspector.infos(kin) if one is not None and one.finished is not None]
        if not ended:
            return []
        last = max(ended, key=lambda one: one.finished or 0.0)
        if (last.finished or 0.0) < (facts.info.sent or 0.0):
            return []  # they had ended before
        which = "It waited for" if size == 1 else f"It waited for {size:,} tasks; the last was"
        return [Moment(at=last.finished, kind="released", text=f"{which} {last.id} ({last.name}), which ended: {last.status}")]

    def _deaths(self, history: Sequence[Mapping[str, Any]]) -> dict[str, WorkerFailure]:
        """The ends of the workers that died with it, by incarnation, as far as they are remembered."""
        lost = {entry.get("worker", "") for entry in history if entry["outcome"] == "interrupted"}
        return {one.incarnation: one for one in self._inspector.failures(DEATHS) if one.incarnation in lost} if lost else {}

    # --- what comes next ---------------------------------------------------------------------

    def _next(self, facts: Facts, reasons: Sequence[Reason]) -> str:
        info, attempt = facts.info, facts.info.attempt + 1
        match info.status:
            case TaskStatus.SUCCESS:
                return f"Nothing: it has ended. Its result is kept for {_span(self._config.result_ttl)} at least."
            case TaskStatus.FAILED | TaskStatus.CANCELLED:
                return f"Nothing by itself: it has ended. `krq retry {info.id}` runs it again."
            case TaskStatus.WAITING:
                return _after_others(facts)
            case TaskStatus.PROCESSING:
                lease = _span(self._config.lease)
                return f"It ends, or is tried again. Should its worker die, another begins attempt {attempt} within {lease} or so."
        needs = {
            "no_worker": f"A worker of the queue must come (`krq worker APP --queues {info.queue}`); then it runs in its turn.",
            "unknown_task": f"A worker that knows {info.name} must come; it is looked for every 30 s, at least.",
            "paused": f"After `krq resume {info.queue}` it runs in its turn.",
            "backlog": f"A worker of the queue {info.queue} reads it from the log when there is room; then it runs in its turn.",
            "delay": f"When it is due it is ready, and a worker of the queue {info.queue} begins attempt {attempt} in its turn.",
        }
        needs["backoff"] = needs["delay"]
        hindered = [one.code for one in reasons if one.code in needs]
        first = next((code for code in needs if code in hindered), "")
        return needs.get(first, f"A worker of the queue {info.queue} takes it in its turn, and begins attempt {attempt}.")

    # --- what the log has --------------------------------------------------------------------

    def _from_log(self, task_id: str, queues: Sequence[str], waiting: int) -> Story:
        """Of a task that Redis does not know: not yet, or not any more."""
        past = [_logged(entry) for entry in self._entries(task_id)]
        every = list(dict.fromkeys([*queues, *self._inspector.queues()]))[:QUEUES]
        reasons = []
        unread = self._inspector.backlog(every)
        for queue in every:
            at = self._reasons.record(queue, task_id)
            if at is None:
                continue
            partition, offset, when = at
            place = f"partition {partition}, offset {offset}" if self._broker.ordered else f"entry {offset}"
            past.insert(0, Moment(at=when or None, kind="sent", text=f"Published to the queue {queue}: {place}"))
            if len(past) == 1 and unread.get(queue, -1):
                reasons.append(self._reasons.unread(queue, task_id, when or None))
            break
        backlog = sum(unread.values())
        if waiting:
            who = "1 task waits" if waiting == 1 else f"{waiting} tasks wait"
            text = f"{who} for it, but its record has not been read, if it was published"
            reasons.append(Reason(code="unpublished", text=text))
        if not past and backlog:
            text = f"Redis does not know it; {backlog:,} records of the log have not been read, and it may be one of them"
            reasons.append(Reason(code="backlog", text=text))
        if not past and not reasons:
            cure = "Check the id. Of tasks that have ended Redis and the newest part of the log know nothing after a while."
            raise TaskNotFound(f"No task {task_id!r} is known, and the log has nothing that was not read", cure=cure)
        if not reasons:
            text = "Redis does not know it: it was forgotten after its end, or Redis has lost it. All this is from the log"
            reasons.append(Reason(code="not_known", text=text))
        following = "When a worker has read its record it enters the schedule, if it is there." if reasons[0].code != "not_known" else ""
        return Story(id=task_id, task=None, past=past, reasons=reasons, next=following or "Nothing that Redis knows of.")

    def _entries(self, task_id: str) -> list[Entry]:
        """What the newest records of the ``events`` topic say of a task, the earliest first."""
        wanted, found = task_id.encode(), []
        try:
            newest = self._broker.read(self._config.events_topic, PAGES)
        except KRQError:
            return []
        for _, record in newest:
            if wanted in record.value:
                try:
                    found += [entry for entry in events.decode_page(record.value).entries if entry.id == task_id]
                except (msgspec.MsgspecError, UnicodeError, RecursionError):
                    continue
        return found


def _after_others(facts: Facts) -> str:
    if "kd" in facts.fields:
        return "It ends when the last of these has ended; nothing more of it runs."
    rule = {"c": "whatever has become of them", "r": "if one fails it fails, and the rest is cancelled"}
    return f"It runs when the last of these has ended: {rule.get(facts.fields.get('of', ''), 'if one does not succeed, it fails')}."


def _message(raw: bytes | None) -> Message | None:
    try:
        return None if raw is None else message.reread(raw)
    except ValueError:
        return None


def _planned(facts: Facts) -> float | None:
    """When it was to run, where it was sent for later and that has come."""
    info = facts.info
    if facts.message is not None:
        planned = facts.message.due or None
    else:
        planned = None if facts.history or "un" in facts.fields else facts.time("due")
    if planned is None or info.sent is None or planned <= info.sent or (info.started or facts.now) < planned:
        return None
    return planned


def _attempt(entry: Mapping[str, Any], death: WorkerFailure | None) -> list[Moment]:
    """An attempt that did not succeed: its beginning, where it was noted, and its end."""
    number, worker = entry["attempt"], ids.worker_of(entry.get("worker", ""))
    began = entry.get("started")
    found = [Moment(at=began / 1000, kind="started", text=f"Attempt {number} began on {worker}")] if began else []
    on = f" on {worker}" if worker and not began else ""
    tell: dict[str, Callable[[], str]] = {
        "retry": lambda: f"failed{error_of(entry)}, to be tried again",
        "failed": lambda: f"failed{error_of(entry)}",
        "cancelled": lambda: "was stopped: the task was cancelled",
        "died": lambda: f"ended with its process{error_of(entry)}",
        "handed back": lambda: f"was handed back{on and f' by {worker}'}, which left in order",
        "interrupted": lambda: f"was interrupted{on}: the worker died{error_of(entry)}{_evidence(death)}",
    }
    text = tell.get(entry["outcome"], lambda: str(entry["outcome"]))()
    ended = entry.get("finished")
    return [*found, Moment(at=ended / 1000 if ended else None, kind=entry["outcome"], text=f"Attempt {number} {text}")]


def _evidence(death: WorkerFailure | None) -> str:
    """What is known of the end of a worker."""
    if death is None:
        return ""
    beat = f"; its last heartbeat was {max(0.0, death.at - death.beat):.1f} s before" if death.beat is not None else ""
    held = "it held this task alone" if death.held == 1 else f"it held {death.held:,} tasks"
    return f"{beat}; {held}{f', host {death.host}' if death.host else ''}"


def _end(info: TaskInfo) -> Moment:
    """How it ended."""
    match info.status:
        case TaskStatus.SUCCESS:
            took = f" after {_span(info.finished - info.started)}" if info.finished is not None and info.started is not None else ""
            text = f"Succeeded{took}: {_result(info.result)}"
        case TaskStatus.CANCELLED:
            text = f"Ended as cancelled{_told(info.error)}"
        case _:
            text = f"Ended as failed{_told(info.error)}"
    return Moment(at=info.finished, kind=info.status.value, text=text)


def _result(value: Any) -> str:
    """What it returned; values whose keys say that they are secrets stay hidden."""
    return short(msgspec.json.encode(masked([value], {}, {})[0][0]).decode())


def _told(error: ErrorInfo | None) -> str:
    if error is None:
        return ""
    return f": {error.type}: {short(error.message)}" if error.message else f": {error.type}"


def _logged(entry: Entry) -> Moment:
    """An entry of the log."""
    attempt = f"Attempt {entry.attempt}" + (f" on {entry.worker}" if entry.worker else "") if entry.attempt else "It"
    words = {
        "success": f"{attempt} succeeded: {_result(entry.result)}",
        "retry": f"{attempt} failed, to be tried again",
        "spawned": f"{attempt} returned, having made tasks that it waits for", "cancel": "Somebody asked to cancel it",
        "died": f"{attempt} ended with its process",
    }
    text = words.get(entry.outcome, f"{attempt} ended: {entry.outcome}")
    return Moment(at=entry.finished / 1000 or None, kind=entry.outcome, text=text + _told(entry.error))


def _span(seconds: float) -> str:
    """A length of time, for a sentence."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    size, unit = next(((size, unit) for size, unit in ((3_600, "h"), (60, "min")) if seconds >= 2 * size), (1, "s"))
    return f"{round(seconds / size, 1):g} {unit}"
