"""All that one shard holds, read plainly, and the same as the model of it would have it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from store_model import FINAL, Model
from store_values import Task

from krq.store.client import Store
from krq.store.keys import TABLE

#: fields of a task that hold a time or the like, which the model does not know
UNTOLD = frozenset({"of", "wf", "nd", "vs", "n", "q", "ts", "h", "tt", "tf", "un", "due", "x", "in", "pr", "wa", "pg", "r", "e"})
#: fields that may be longer than 64 bytes (prelude.lua): positions of a task that was published many times, and names users choose
LONG = frozenset({"p", "n", "q"})


def dump(store: Store) -> dict[str, Any]:
    """Every key of the shard without its prefix, with its contents: a dict, set, list, str, or pairs of a sorted set."""
    pattern = store.keys.prefix.replace("{", "[{]") + "*"
    names = sorted(store.redis.scan_iter(pattern, count=10_000))
    pipeline = store.redis.pipeline(transaction=False)
    for name in names:
        pipeline.type(name)
    kinds = [kind.decode() for kind in pipeline.execute()]
    for name, kind in zip(names, kinds, strict=True):
        match kind:
            case "hash":
                pipeline.hgetall(name)
            case "set":
                pipeline.smembers(name)
            case "list":
                pipeline.lrange(name, 0, -1)
            case "zset":
                pipeline.zrange(name, 0, -1, withscores=True)
            case _:
                pipeline.get(name)
    return {name.decode()[len(store.keys.prefix) :]: _text(value) for name, value in zip(names, pipeline.execute(), strict=True)}


def _text(value: Any) -> Any:
    match value:
        case bytes():
            return value.decode("utf-8", "surrogateescape")
        case dict():
            return {_text(name): _text(item) for name, item in value.items()}
        case set():
            return {_text(item) for item in value}
        case list() | tuple():
            return type(value)(_text(item) for item in value)
    return value


def owner(name: str) -> str:
    """The name in keys.py that a key belongs to. Raises ``AssertionError`` for one that nobody owns."""
    for entry, suffix in TABLE.items():
        if name == suffix or (suffix.endswith(":") and name.startswith(suffix)):
            return entry
    raise AssertionError(f"nobody in keys.py owns {name}")


def of(found: dict[str, Any], entry: str) -> dict[str, Any]:
    """What stands under one name of keys.py, by id."""
    suffix = TABLE[entry]
    return {name[len(suffix) :]: value for name, value in found.items() if owner(name) == entry}


def told(found: dict[str, Any]) -> dict[str, Any]:
    """What a dump says, in the words of ``expected``."""
    tasks = of(found, "task")
    told_tasks = {i: _fields(f) for i, f in tasks.items()}
    return {
        "tasks": told_tasks,
        "messages": set(of(found, "message")),
        "values": {i: f.get("r", of(found, "result").get(i)) for i, f in tasks.items() if f.get("s") in FINAL},
        "after": set(of(found, "after")),
        "dependents": of(found, "dependents"),
        "ready": {queue: [i for i, _ in line] for queue, line in of(found, "ready").items()},
        "scheduled": {i for line in of(found, "scheduled").values() for i, _ in line},
        "waiting": {i for i, _ in found.get("waiting", [])},
        "held": of(found, "held"),
        "outbox": {holder: set(entries) for holder, entries in of(found, "outbox").items()},
        "done": {i for i in found.get("done", []) if tasks.get(i, {}).get("s") in FINAL},
        "failed": {i for i, _ in found.get("failed", [])},
        "incomplete": {part: {int(offset) for offset, _ in line} for part, line in of(found, "incomplete").items()},
        "marks": {part: int(mark["next"]) for part, mark in of(found, "mark").items()},
        "queues": {queue: _counters(fields) for queue, fields in of(found, "queue").items() if _counters(fields)},
        "beats": set(found.get("beats", {})),
        "workers": {inc: {k: int(f[k]) for k in "SFCRD" if k in f} for inc, f in of(found, "worker").items()},
    }


def _fields(fields: dict[str, str]) -> dict[str, str]:
    kept = {
        name: value for name, value in fields.items() if name not in UNTOLD and (name, value) not in (("rd", "0"), ("w", "0"), ("f", "0"))
    }
    if "p" in kept:
        kept["p"] = " ".join(sorted(kept["p"].split()))
    return kept


def _counters(fields: dict[str, str]) -> dict[str, int]:
    return {name: int(value) for name, value in fields.items() if name in ("N", "S", "F", "C", "R", "B", "bytes", "paused") and int(value)}


def expected(model: Model) -> dict[str, Any]:
    """The same as the model would have it."""
    stubs = {on for task in model.tasks.values() for on in task.after if model.depended(on)}
    tasks = {i: _of(model, i, task) for i, task in (model.markers | model.tasks).items()}
    tasks |= {on: {"rd": str(model.depended(on))} for on in stubs - set(tasks)}
    queues = {task.record.queue for task in model.tasks.values()}
    counters = {
        q: Counter(model.counts.get(q, {})) + Counter(bytes=model.size(q), paused=q in model.paused)
        for q in queues | set(model.counts) | model.paused
    }
    return {
        "tasks": tasks,
        "messages": {i for i, task in model.tasks.items() if task.message},
        "values": {i: task.value for i, task in model.tasks.items() if task.state in FINAL},
        "after": {i for i, task in model.tasks.items() if task.after and task.state not in FINAL},
        "dependents": {on: ids for on, ids in model.dependents.items() if ids},
        "ready": {queue: model.ready(queue) for queue in queues if model.ready(queue)},
        "scheduled": set(model.later),
        "waiting": {i for i, task in model.tasks.items() if task.state == "w"},
        "held": {task.owner: model.held(str(task.owner)) for task in model.tasks.values() if task.state == "p"},
        "outbox": {holder: entries for holder, entries in model.outbox.items() if entries},
        "done": {i for i, task in model.tasks.items() if task.state in FINAL},
        "failed": {i for i, task in model.tasks.items() if task.state == "F"},
        "incomplete": {part: model.incomplete(part) for part in model.marks if model.incomplete(part)},
        "marks": model.marks,
        "queues": {queue: dict(counter) for queue, counter in counters.items() if counter},
        "beats": set(model.workers),
        "workers": {inc: dict(worker.counts) for inc, worker in model.workers.items()},
    }


def _of(model: Model, i: str, task: Task) -> dict[str, str]:
    if task.state == "m":
        fields = {"s": "m", "c": "1" if task.cancelled else ""}
        return {k: v for k, v in (fields | {"rd": str(model.depended(i) or "")}).items() if v}
    fields = {
        "s": task.state,
        "a": str(task.attempt or ""),
        "f": str(task.failures or ""),
        "i": str(task.deaths or ""),
        "or": str(task.orphaned or ""),
        "ir": str(task.interrupted or ""),
        "su": "" if task.suspect is None else str(task.suspect),
        "g": str(task.generation or ""),
        "o": task.owner or "",
        "c": "1" if task.cancelled else "",
        "w": str(task.open or ""),
        "rd": str(model.depended(i) or ""),
    }
    return {name: value for name, value in fields.items() if value} | {"p": " ".join(sorted(task.places or ()))}
