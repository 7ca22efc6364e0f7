"""Workflows from the outside: find all of one from any of its tasks, and run again what failed, with all that waited for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from krq import administer
from krq.config import Config
from krq.errors import OptionError, TaskNotFound
from krq.handle import TaskHandle
from krq.info import TaskInfo
from krq.inspector import Inspector
from krq.message import Message
from krq.states import TaskStatus
from krq.store.client import Store
from krq.tree import Tree, TreeNode, ordered

#: ids read in one round trip
PAGE = 200
#: workflows that one is looked for in: those of its tasks and of what they wait for
WORKFLOWS = 20
#: seconds within which the end of a task must have been told to all that waited for it
TELLING = 20.0

_unpack = msgspec.msgpack.Decoder().decode
_NOT_RUN = "DEPENDENCY_FAILED"


class _Kin(NamedTuple):
    """What a task's hash and lists say of its place in a workflow."""

    id: str
    after: list[str]
    workflow: str | None
    parent: str | None
    policy: str | None
    generation: int
    blocked: list[str]
    """ids that failed for want of it"""


Publish = Callable[[Sequence[tuple[str, Message, bytes]]], list[str]]


class Clients(Protocol):
    """What this needs of the app."""

    @property
    def store(self) -> Store: ...
    @property
    def inspector(self) -> Inspector: ...
    @property
    def publish(self) -> Publish: ...


class Lineage:
    """Reads workflows. Thread-safe."""

    def __init__(self, store: Store, inspector: Inspector) -> None:
        self._store = store
        self._inspector = inspector

    def _kin(self, task_ids: Sequence[str]) -> list[_Kin]:
        keys = self._store.keys
        with self._store.plain() as redis:
            pipeline = redis.pipeline(transaction=False)
            for task_id in task_ids:
                pipeline.hmget(keys("task", task_id), "wf", "pa", "of", "g")
                pipeline.mget(keys("after", task_id), keys("waited", task_id))
                pipeline.lrange(keys("blocked", task_id), 0, -1)
            answers = pipeline.execute()
        return [
            _Kin(task_id, _named(after or waited), _text(workflow), _text(parent), _text(policy), int(generation or 0),
                 [one.decode() for one in blocked])
            for task_id, (workflow, parent, policy, generation), (after, waited), blocked
            in zip(task_ids, answers[::3], answers[1::3], answers[2::3], strict=True)
        ]

    # --- trees -------------------------------------------------------------------------------

    def tree(self, task_ids: Sequence[str], limit: int) -> Tree:
        """All that is in a workflow with these, and what that waits for; at most ``limit`` tasks, these first."""
        kin: dict[str, _Kin] = {}
        todo = dict.fromkeys(task_ids)
        workflows: set[str] = set()
        while todo and len(kin) < limit:
            page = list(todo)[: min(PAGE, limit - len(kin))]
            for one in self._kin(page):
                del todo[one.id]
                kin[one.id] = one
                root = one.workflow or one.id
                found = [*one.after, *([one.parent] if one.parent else [])]
                if root not in workflows and len(workflows) < WORKFLOWS:
                    workflows.add(root)
                    found += [root, *self._members(root)]
                todo.update(dict.fromkeys(other for other in found if other not in kin))
        infos = {info.id: info for info in self._infos(list(kin)) if info is not None}
        if not any(task_id in infos for task_id in task_ids):
            raise TaskNotFound(f"No task {task_ids[0]!r} is known")
        awaited = {on for one in kin.values() for on in one.after}
        nodes = [_node(one, infos.get(one.id)) for one in kin.values() if one.id in infos or one.id in awaited]
        nodes.sort(key=lambda node: (node.sent or 0.0, node.id))
        first = kin[task_ids[0]].workflow or task_ids[0]
        return Tree(id=first, tasks=ordered(nodes), truncated=bool(todo))

    def _members(self, workflow: str) -> list[str]:
        with self._store.plain() as redis:
            return sorted(one.decode() for one in redis.smembers(self._store.keys("workflow", workflow)))

    def _infos(self, task_ids: Sequence[str]) -> Iterator[TaskInfo | None]:
        for start in range(0, len(task_ids), PAGE):
            yield from self._inspector.infos(task_ids[start : start + PAGE])

    # --- again -------------------------------------------------------------------------------

    def again(self, config: Config, task_id: str) -> list[tuple[str, Message, bytes]]:
        """The messages that run a task again, and all that did not run because of it; its own is the last."""
        deadline = time.monotonic() + TELLING
        while True:
            chosen, kin = self._chosen(task_id)
            if not self._being_told(chosen):
                break
            if time.monotonic() > deadline:
                raise OptionError(f"What waits for {task_id} is still being told of its end", cure="Try again in a moment.")
            time.sleep(0.05)
        self._check(task_id, chosen, kin)
        messages = []
        for start in range(0, len(chosen), PAGE):
            infos = list(chosen.values())[start : start + PAGE]
            for info, raw in zip(infos, self._messages([info.id for info in infos]), strict=True):
                needs = {on: kin[on].generation + 1 for on in kin[info.id].after if on in chosen}
                messages.append(administer.again(config, info, raw, needs))
        return [*messages[1:], messages[0]]

    def _chosen(self, task_id: str) -> tuple[dict[str, TaskInfo], dict[str, _Kin]]:
        """The task, what failed for want of it, and what was cancelled with that; and the kin of all that was looked at.

        It looks beyond what is on its way again: whoever asked before may have died in between.
        """
        chosen: dict[str, TaskInfo] = {}
        kin: dict[str, _Kin] = {}
        seen: set[tuple[str, bool]] = set()
        todo = [(task_id, False)]  # whether it is the rest of a task that takes that with it: what of it did not succeed runs again, too
        while todo:
            page, todo = todo[:PAGE], todo[PAGE:]
            ids = [one for one, _ in page]
            for (_, rest), one, info in zip(page, self._kin(ids), self._inspector.infos(ids), strict=True):
                kin[one.id] = one
                if info is None:
                    continue
                found = [(other, False) for other in one.blocked]
                if one.id == task_id or _did_not_run(info) or (rest and info.status in (TaskStatus.FAILED, TaskStatus.CANCELLED)):
                    chosen[one.id] = info
                if (one.id in chosen or info.status is TaskStatus.WAITING) and (one.policy == "r" or rest):
                    found += [(other, True) for other in one.after]
                todo += [each for each in dict.fromkeys(found) if each not in seen]
                seen.update(found)
        if task_id not in chosen:
            raise TaskNotFound(f"No task {task_id!r} is known")
        return chosen, kin

    def _being_told(self, task_ids: Iterable[str]) -> bool:
        """Whether scripts have work left with the end of any of these."""
        with self._store.plain() as redis:
            items = [*redis.lrange(self._store.keys("fan"), 0, -1), *redis.lrange(self._store.keys("edges"), 0, -1)]
        busy = {item.decode()[1:] for item in items} | {item.decode().partition(":")[2] for item in items if item.startswith(b"!")}
        return any(task_id in busy for task_id in task_ids)

    def _check(self, task_id: str, chosen: dict[str, TaskInfo], kin: dict[str, _Kin]) -> None:
        """What is run again needs the results of what is not."""
        needed = {on: one for one in chosen for on in kin[one].after if on not in chosen}
        for on, info in zip(needed, self._infos(list(needed)), strict=True):
            one = needed[on]
            if info is None:
                cure = "They are kept for result_ttl. Send the workflow anew."
                raise OptionError(f"Task {one} can't run again: what is left of {on}, which it waited for, is gone", cure=cure)
            if one == task_id and info.status in (TaskStatus.FAILED, TaskStatus.CANCELLED) and kin[one].policy != "c":
                raise OptionError(f"Task {one} did not run because {on} is {info.status}", cure=f"Retry {on}: what waited for it follows.")

    def _messages(self, task_ids: Sequence[str]) -> list[bytes | None]:
        with self._store.plain() as redis:
            found: list[bytes | None] = redis.mget([self._store.keys("message", one) for one in task_ids])
        return found


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode()


def _named(packed: bytes | None) -> list[str]:
    """The ids that a task waits for, as the scripts keep them."""
    if packed is None:
        return []
    return [one for each in _unpack(packed) for one in ([each] if isinstance(each, str) else [f"{each[0]}{n}" for n in range(each[1])])]


def _did_not_run(info: TaskInfo) -> bool:
    return info.status is TaskStatus.FAILED and info.error is not None and info.error.type == _NOT_RUN


def _node(one: _Kin, info: TaskInfo | None) -> TreeNode:
    if info is None:
        return TreeNode(id=one.id, after=one.after, parent=one.parent)
    error = f"{info.error.type}: {info.error.message}" if info.error is not None and info.status is not TaskStatus.SUCCESS else ""
    return TreeNode(
        id=one.id, name=info.name, status=info.status, after=one.after, parent=one.parent, attempt=info.attempt, worker=info.worker,
        error=error, sent=info.sent, started=info.started, finished=info.finished,
    )


class Workflows:
    """What ``KRQ`` offers of workflows as a whole. Thread-safe. Redis away: ``RedisConnectionError``."""

    config: Config

    @property
    def _clients(self) -> Clients:
        raise NotImplementedError

    def tree(self, *task_ids: str | TaskHandle[Any], limit: int = 1_000) -> Tree:
        """The workflow that a task is in, from any of its tasks: their states and times, and what waits for what.

        It has what was sent with it, what waits for that, and what that waits for; at most ``limit`` tasks. Tasks are known for
        ``result_ttl``. Raises ``TaskNotFound``.
        """
        clients = self._clients
        return Lineage(clients.store, clients.inspector).tree(list(map(str, task_ids)), limit)

    def retry(self, task_id: str | TaskHandle[Any]) -> TaskHandle[Any]:
        """Run a failed or cancelled task again under its id, with all its retries, and all that did not run because of it.

        What has succeeded does not run again; what waits for several that failed waits for the retry of each. Returns when the log has all
        messages, the task's own at last. Raises ``TaskNotFound``, ``OptionError``, or as ``KRQ.submit_many``: then repeat it.
        """
        clients = self._clients
        *dependents, own = Lineage(clients.store, clients.inspector).again(self.config, str(task_id))
        if dependents:
            clients.publish(dependents)
        clients.publish([own])
        return TaskHandle(str(task_id), self)  # type: ignore[arg-type] # a KRQ


