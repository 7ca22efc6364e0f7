"""Every key that KRQ has in Redis: one table, for Python and for the scripts.

All keys of a shard carry one hash tag, ``{namespace:shard}``, so that each script is atomic on one
node. Nothing in KRQ builds a key by hand. Kept: until when, or why for ever.
"""

from __future__ import annotations

from collections.abc import Container

#: name → what stands behind the prefix; a name that ends in ":" takes an id behind it
TABLE = {
    # hash: id, number, run (server run id), open, reason, closed_at, opened_at. For ever: identity of the namespace.
    "epoch": "epoch",
    # set: incarnations that have asserted under a closed epoch. Until the next one is closed.
    "asserted": "asserted",
    # hash, one per task: state, name, queue, counters, times, short result. Until expire.lua.
    "task": "t:",
    # string: the message as published. Until success, or until expire.lua.
    "message": "m:",
    # string: result over 64 bytes, or the last error. Until expire.lua.
    "result": "r:",
    # hash of a task: packed ids of the tasks it made; its own value, while it waits for them. Until expire.lua.
    "children": "ch:",
    # hash of a task: name of a step → its result, as JSON. Until the task's end.
    "steps": "st:",
    # list: JSON of a task's last 10 attempts that did not succeed, the latest last. Until expire.lua.
    "history": "hi:",
    # stream of a task: what it logged and printed, the last 1,000 lines or so. By its TTL: ``result_ttl`` after the last line.
    "log": "lg:",
    # string: packed ids a task waits for. Until the task is final.
    "after": "a:",
    # string: the same once it waits no more. Until expire.lua, or its next generation.
    "waited": "wd:",
    # list of a task that waits for many and takes what they give: packed ids and short results of those that one call told it of.
    # A copy, to be read at once. Until the task is final.
    "told": "to:",
    # list: ids that failed because a task did not succeed. Until expire.lua.
    "blocked": "bl:",
    # set of a workflow, by the id of its first task: ids of its tasks, at most 10,000. Until expire.lua has forgotten all of them.
    "workflow": "wf:",
    # list: ids that wait for a task. Until the task is final and they were told.
    "dependents": "d:",
    # list: "+id" or "-id" of tasks that succeeded or did not, and whose dependents are not all told. Popped by every take.
    "fan": "fan",
    # list: "+id", edges of a task are still to be added; "-id", to be let go; "!n:id", what it waited for is to be cancelled, from the
    # n-th on; "?id", it may wait for itself. Popped by every take.
    "edges": "edges",
    # zset: ids of tasks that expire, by expiry. Until their end.
    "expiring": "expiring",
    # zset of a queue: ready ids by priority and arrival. Bounded by the window.
    "ready": "ready:",
    # zset of a queue: ids by due time.
    "scheduled": "sched:",
    # zset: ids that wait for others, by admission.
    "waiting": "waiting",
    # hash of a queue: paused, purged, bytes, counters. For ever: one per queue.
    "queue": "q:",
    # set of queue names. For ever.
    "queues": "queues",
    # string of a queue: what had ended in it at times of the last 16 minutes, a ring (expire.lua). Until nobody writes it.
    "totals": "tot:",
    # string: when that was written last, ms. The same.
    "noted": "noted",
    # list of a queue, at most one token: wakes one idle worker.
    "wake": "wake:",
    # hash: task name → limits in force, as JSON. One field per name with limits, until its code has none.
    "limits": "limits",
    # hash: the same as the workers' code has it.
    "limits_defined": "limits.defined",
    # hash: task name → limits that were set at run time, until they are unset.
    "limits_set": "limits.set",
    # hash: task name → ms up to which its rate is used. One field per name with a rate limit.
    "rates": "rates",
    # set of a group of tasks (places.lua): ids that have a place in it. Until they leave it.
    "busy": "busy:",
    # zset of a task name and key: ids that run one after the other, by arrival. Until their end.
    "line": "line:",
    # zset of a queue and group: ready ids that wait for a place, by their score in the ready pool. Bounded by the window.
    "parked": "parked:",
    # set of a group: queues where some of it are parked.
    "lots": "lots:",
    # zset of a queue: groups of which some are parked, by the time of the next look.
    "limited": "limited:",
    # string of a task name and key: id of the task that holds it alone. Until that has ended, or by its TTL.
    "unique": "u:",
    # hash of a partition: topic id, next offset, append time of the last record. For ever: intake's mark.
    "mark": "k:",
    # zset of a partition: offsets that are admitted and not complete.
    "incomplete": "inc:",
    # hash: partition → intake time, ms. For ever: one field per partition.
    "intake": "intake",
    # integer: arrival order. For ever.
    "sequence": "seq",
    # list: ids of final tasks, newest first. Popped by expire.lua.
    "done": "done",
    # zset: ids of failed tasks by finish time. Until expire.lua.
    "failed": "failed",
    # hash: incarnation → beat counter; who is not in it is dead. Until its death.
    "beats": "beats",
    # hash: dead incarnation → how it ended, while it still holds tasks: whoever beats goes on with its recovery. Until its last slice.
    "remains": "remains",
    # hash of an incarnation: worker, host, pid, queues, counters. Until its death.
    "worker": "w:",
    # set of an incarnation: ids it holds. Until its death.
    "held": "wt:",
    # set of an incarnation: names it knows, "*" for all. Until its death.
    "names": "wn:",
    # string of an incarnation: number and answer of its last take. Until its death.
    "taken": "lt:",
    # list of an incarnation: ids to stop. Until its death.
    "stops": "ws:",
    # hash of an incarnation: "id:attempt" → entry for the log. Until logged. "~" holds the scripts' own.
    "outbox": "ob:",
    # set: dead incarnations whose outbox is not empty.
    "orphans": "orphans",
    # set: inboxes of workers that are gone. Until nothing is in them, looked at by expire.lua.
    "gone": "gone",
    # list: group members of dead incarnations. Popped by every intake.
    "expel": "expel",
    # list: the last 1,000 deaths of workers, as JSON.
    "deaths": "deaths",
    # zset: the newest 1,000 dead letters by time, ms: the id of their task, or their place in the log.
    "dead": "dead-ids",
    # hash: the same ids → the letter as JSON.
    "letters": "dead-letters",
    # set of a task: channels of those who wait for its end. Until its end; an hour after the last asked.
    "watchers": "wc:",
    # zset: names of schedules by the ms of their next tick, +inf while paused. At most 10,000; until it is removed.
    "ticks": "ticks",
    # hash of a schedule: definition, timing, source, last tick. Until it is removed, or a day after the last worker that defines it.
    "schedule": "sc:",
    # hash: name of a task → its latest sticky broadcast, as JSON. At most 1,000; until it is removed.
    "sticky": "sticky",
    # channel of a client: packed ids and final states of tasks that ended. Holds nothing.
    "notices": "n:",
}


class Keys:
    """The keys of one shard of a namespace."""

    def __init__(self, namespace: str, shard: int = 0) -> None:
        self.prefix = f"{{{namespace}:{shard}}}:"
        self.epoch = self.prefix + TABLE["epoch"]

    def __call__(self, name: str, of: str = "") -> str:
        """The key ``name``, of a task, queue, partition or incarnation where it has one of each."""
        return f"{self.prefix}{TABLE[name]}{of}"

    def partition(self, name: str, queue: str, partition: int) -> str:
        """The key ``name`` of a partition."""
        return self(name, f"{queue}:{partition}")


def lua(used: Container[str] = TABLE) -> str:
    """The same table, or what is used of it, for the scripts: ``K.name`` or, for those of something, ``K.name(id)``."""
    lines = ["local P = string.sub(KEYS[1], 1, -6)", "local K = {"]
    for name, suffix in TABLE.items():
        if name not in used:
            continue
        if suffix.endswith(":"):
            lines.append(f"  {name} = function(id) return P .. '{suffix}' .. id end,")
        else:
            lines.append(f"  {name} = P .. '{suffix}',")
    return "\n".join([*lines, "}"])
