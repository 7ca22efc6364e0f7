"""Every key that KRQ has in Redis: one table, for Python and for the scripts.

All keys of a shard carry one hash tag, ``{namespace:shard}``, so that each script is atomic on one
node. Nothing in KRQ builds a key by hand. Kept: until when, or why for ever.
"""

from __future__ import annotations

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
    # string: packed ids a task waits for. Until the task is final.
    "after": "a:",
    # list: ids that wait for a task. Until the task is final and they were told.
    "dependents": "d:",
    # list: "+id" or "-id" of tasks that succeeded or did not, and whose dependents are not all told. Popped by every take.
    "fan": "fan",
    # list: tasks with many dependencies, "+id": edges are still to be added, "-id": to be let go. Popped by every take.
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
    # list of a queue, at most one token: wakes one idle worker.
    "wake": "wake:",
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
    # list: the last 1,000 dead letters, as JSON.
    "dead": "dead",
    # set of a task: channels of those who wait for its end. Until its end; an hour after the last asked.
    "watchers": "wc:",
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


def lua() -> str:
    """The same table for the scripts: ``K.name`` or, for those of something, ``K.name(id)``."""
    lines = ["local P = string.sub(KEYS[1], 1, -6)", "local K = {"]
    for name, suffix in TABLE.items():
        if suffix.endswith(":"):
            lines.append(f"  {name} = function(id) return P .. '{suffix}' .. id end,")
        else:
            lines.append(f"  {name} = P .. '{suffix}',")
    return "\n".join([*lines, "}"])
