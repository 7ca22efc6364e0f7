"""Workflows: tasks that wait for other tasks, written as chains and groups.

All of it comes to one primitive, the edges ``after`` and ``inputs`` of a message. A workflow is compiled to a plain list of calls
with fixed ids and edges, and sent as one batch; from then on it runs without its sender. No I/O here.

    step         the result of the step before is its first argument (``inputs="prepend"``), unless it is immutable (``.si``)
    group        all members at once; a step after it gets the list of their results (``inputs="list"``)
    map          a group of chunks, each of which calls the task with many items; what comes after gets one list (``inputs="concat"``)
    empty group  done at once with []; a step after it gets [] and waits for what stands before the group
    nesting      a chain in a chain is flattened. A member of a group is a task or a chain that ends in a task: a group directly in
                 a group, or at the end of its member, is refused, because results of edges are flat lists
    on_failure   what becomes of a step when one that it waits for does not succeed. A group's goes to the steps after it, a chain's to
                 all its steps but the first, and ``cancel_rest`` to all edges within, so that what is needed no more ends as well
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar, cast, overload

from krq import ids
from krq.call import Call, Sender
from krq.errors import ArgumentError, OptionError
from krq.handle import AnyHandle, ChainHandle, GroupHandle, MapHandle, TaskHandle, awaited
from krq.message import FEW, OnFailure
from krq.sent import Results

if TYPE_CHECKING:
    from typing_extensions import TypeVar as Defaulted

    A_contra = Defaulted("A_contra", contravariant=True, default=Any)
else:
    A_contra = TypeVar("A_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
A = TypeVar("A")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")
W = TypeVar("W")


class Work(Generic[R_co, A_contra]):
    """What ``|`` may stand between. The first parameter is the type of the result that the next step gets, of a group a list; the
    second of what it takes itself from the step before: ``Any`` where that can't be told, and for what takes nothing.
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # the second parameter has a default, which Python itself knows from 3.13 on
        __class_getitem__ = classmethod(GenericAlias)

    def __or__(self, other: Work[S, R_co]) -> Chain[S, A_contra]:
        if not isinstance(other, Signature | Chain | Group):
            return NotImplemented
        return Chain([self, other])


class Signature(Work[R_co, A_contra]):
    """A call that is not sent yet: ``add.s(1, 2)``; immutable, ``add.si(1, 2)``, it takes no results of the step before."""

    __slots__ = ("call", "immutable", "sender")

    def __init__(self, sender: Sender, call: Call, *, immutable: bool = False) -> None:
        self.sender = sender
        self.call = call
        self.immutable = immutable

    def options(self, **options: Any) -> Signature[R_co, A_contra]:
        """The same with more options, or others. Raises ``OptionError``."""
        self.sender.check_options(options)
        return Signature(self.sender, self.call._replace(options={**self.call.options, **options}), immutable=self.immutable)

    def send(self) -> TaskHandle[R_co]:
        """Send it alone. Raises as ``KRQ.submit``."""
        return cast("TaskHandle[R_co]", plan(self).send())

    def __repr__(self) -> str:
        arguments = [*map(repr, self.call.args), *(f"{name}={value!r}" for name, value in self.call.kwargs.items())]
        return f"{self.call.name}.{'si' if self.immutable else 's'}({', '.join(arguments)})"


class Chain(Work[R_co, A_contra]):
    """Steps that run one after the other. Made by ``krq.chain`` and ``|``."""

    __slots__ = ("on_failure", "steps")

    def __init__(self, steps: Iterable[Work[Any]], on_failure: OnFailure | None = None) -> None:
        self.on_failure = _policy(on_failure)
        self.steps: tuple[Work[Any], ...] = tuple(_flat(steps))
        if not self.steps:
            raise OptionError("A chain needs a step", cure="Write krq.chain(add.s(1, 2), mul.s(10)).")

    def send(self) -> ChainHandle[R_co]:
        """Send all steps as one batch; returns when the log has all of them. Raises as ``KRQ.submit_many``."""
        return cast("ChainHandle[R_co]", plan(self).send())

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.steps))


class Group(Work[list[R_co], A_contra]):
    """Members that run side by side. Made by ``krq.group``."""

    __slots__ = ("members", "on_failure")

    def __init__(self, members: Iterable[Signature[R_co, A_contra] | Chain[R_co, A_contra]], on_failure: OnFailure | None = None) -> None:
        self.on_failure = _policy(on_failure)
        self.members = tuple(members)
        for member in self.members:
            _check_member(member)

    def send(self) -> GroupHandle[R_co]:
        """Send all members as one batch; returns when the log has all of them. Raises as ``KRQ.submit_many``."""
        return cast("GroupHandle[R_co]", plan(self).send())

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        return f"group({', '.join(map(repr, self.members))})"


class Map(Group[R_co, Any]):
    """One call for each item, many of them in one task. Made by ``task.map`` and ``task.starmap``."""

    __slots__ = ()

    def __init__(self, sender: Sender, call: Call, items: Iterable[Any], chunk: int, on_failure: OnFailure | None = None) -> None:
        if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
            raise OptionError(f"chunk={chunk!r} is no number of items", cure="Give a whole number of at least 1.")
        calls, source, first = [], iter(items), 0
        while part := list(islice(source, chunk)):
            _check_items(call, part, first)
            calls.append(call._replace(args=[part, first]))
            first += len(part)
        super().__init__([Signature(sender, each, immutable=True) for each in calls], on_failure)

    def send(self) -> MapHandle[R_co]:
        """Send all chunks as one batch; returns when the log has all of them. Raises as ``KRQ.submit_many``."""
        return cast("MapHandle[R_co]", plan(self).send())


@overload
def chain(a: Work[R, A], /, *, on_failure: OnFailure | None = ...) -> Chain[R, A]: ...
@overload
def chain(a: Work[R, A], b: Work[S, R], /, *, on_failure: OnFailure | None = ...) -> Chain[S, A]: ...
@overload
def chain(a: Work[R, A], b: Work[S, R], c: Work[T, S], /, *, on_failure: OnFailure | None = ...) -> Chain[T, A]: ...
@overload
def chain(a: Work[R, A], b: Work[S, R], c: Work[T, S], d: Work[U, T], /, *, on_failure: OnFailure | None = ...) -> Chain[U, A]: ...
@overload
def chain(
    a: Work[R, A], b: Work[S, R], c: Work[T, S], d: Work[U, T], e: Work[V, U], /, *, on_failure: OnFailure | None = ...
) -> Chain[V, A]: ...
@overload
def chain(
    a: Work[R, A], b: Work[S, R], c: Work[T, S], d: Work[U, T], e: Work[V, U], f: Work[W, V], /, *, on_failure: OnFailure | None = ...
) -> Chain[W, A]: ...
@overload
def chain(
    a: Work[R, A], b: Work[S, R], c: Work[T, S], d: Work[U, T], e: Work[V, U], f: Work[W, V], /, *more: *tuple[Work[Any], Work[Any]],
    on_failure: OnFailure | None = ...,
) -> Chain[Any, A]: ...
def chain(*steps: Any, on_failure: OnFailure | None = None) -> Any:
    """Steps that run one after the other: the same as ``a | b | c``.

    Each gets the result of the one before as its first argument, after a group the list of its results. ``on_failure``: what becomes
    of a step when one that it waits for does not succeed: ``"fail"`` (the default), ``"continue"`` (it gets a ``krq.TaskError`` in place
    of the result), ``"cancel_rest"`` (what has not ended is cancelled). Raises ``OptionError``.
    """
    return Chain(steps, on_failure)


@overload
def group(members: Iterable[Signature[R, A] | Chain[R, A]], /, *, on_failure: OnFailure | None = ...) -> Group[R, A]: ...
@overload
def group(*members: Signature[R, A] | Chain[R, A], on_failure: OnFailure | None = ...) -> Group[R, A]: ...
def group(*members: Any, on_failure: OnFailure | None = None) -> Group[Any]:
    """Members that run side by side, given one by one or as one iterable. ``on_failure``: as of ``chain``, for the steps after it.

    Raises ``OptionError`` for what can't be a member.
    """
    if len(members) == 1 and not isinstance(members[0], Signature | Chain | Group):
        return Group(members[0], on_failure)
    return Group(members, on_failure)


def _policy(on_failure: OnFailure | None) -> OnFailure | None:
    if on_failure not in (None, "fail", "continue", "cancel_rest"):
        raise OptionError(f"on_failure={on_failure!r} is not known", cure='Use "fail", "continue" or "cancel_rest".')
    return on_failure


def _check_items(call: Call, items: Sequence[Any], first: int) -> None:
    star = call.each == "args"
    for n, item in enumerate(items, first):
        if star and (isinstance(item, str | bytes) or not isinstance(item, Sequence)):
            raise ArgumentError(f"item {n} of {call.name}.starmap is {item!r}: no list of arguments")
        if call.task is not None:
            call.task.bind(item if star else [item], {})


def _flat(steps: Iterable[Any]) -> Iterable[Work[Any]]:
    for step in steps:
        if isinstance(step, Chain) and step.on_failure is None:
            yield from step.steps
        elif isinstance(step, Work):
            yield step
        else:
            raise OptionError(f"{step!r} is no step of a chain", cure="Give signatures, such as add.s(1, 2), and groups.")


def _last(work: Any) -> Any:
    while isinstance(work, Chain):
        work = work.steps[-1]
    return work


def _check_member(member: Any) -> None:
    if isinstance(_last(member), Group):
        cure = "Write one group of all its members, or end the member with a task that takes the list."
        raise OptionError("A member of a group can't be a group, or end in one", cure=cure)
    if not isinstance(member, Signature | Chain):
        raise OptionError(f"{member!r} is no member of a group", cure="Give signatures, such as add.s(1, 2), and chains.")


# --- compiling -----------------------------------------------------------------------------------


class Leaf(NamedTuple):
    """One task of a plan."""

    id: str


class Branch(NamedTuple):
    """A chain or a group of a plan."""

    parts: Sequence[Shape]
    in_order: bool
    gate: Sequence[str] = ()
    """of an empty group: the ids that stand before it"""
    flat: bool = False
    """of a map: the results are lists, to be strung together"""


Shape: TypeAlias = Leaf | Branch


class Front(NamedTuple):
    """What the next step of a chain waits for, and what it gets of that."""

    after: Sequence[str] = ()
    inputs: str = "none"
    """none at the beginning, prepend after a task, list after a group, concat after a map, empty after an empty group"""
    policy: OnFailure = "fail"


class Plan(NamedTuple):
    """A workflow as calls with fixed ids and edges. Sending it again is safe: each task runs once."""

    calls: Sequence[Call]
    shape: Shape
    sender: Sender | None
    """None where nothing is to be sent"""

    def send(self) -> AnyHandle:
        """Send all calls as one batch and return the workflow's handle. Raises as ``KRQ.submit_many``."""
        sent = self.sender.send_calls(self.calls) if self.sender is not None else []
        handles = {call.options["task_id"]: handle for call, handle in zip(self.calls, sent, strict=True)}
        return _handle(self.shape, handles, self.sender)

    def handle(self, results: Results) -> AnyHandle:
        """The workflow's handle before it is sent."""
        handles: dict[str, TaskHandle[Any]] = {}
        for call in self.calls:
            handles[call.options["task_id"]] = TaskHandle(call.options["task_id"], results)
        return _handle(self.shape, handles, cast("Sender", results))


def plan(work: Work[Any], new_id: Callable[[], str] = ids.new_id) -> Plan:
    """Compile a workflow: a call for each task, those that others wait for first, and the shape of its handle.

    ``new_id`` makes ids for those that have none.
    Raises ``OptionError`` for tasks of two apps, an id that is there twice, or edges of one's own where the workflow makes them.
    """
    builder = _Builder(new_id)
    shape, front = builder.add(work, Front(), "fail")
    if front.policy == "cancel_rest" and front.inputs in ("list", "concat"):
        builder.watch(front)
    calls = builder.calls
    if len(calls) > 1:
        calls[0] = calls[0]._replace(workflow=calls[0].options["task_id"])
    return Plan(calls, shape, builder.sender)


class _Builder:
    """Collects the calls of one plan."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self.calls: list[Call] = []
        self.sender: Sender | None = None
        self._ids: set[str] = set()

    def add(self, work: Work[Any], front: Front, within: OnFailure, last_id: str = "") -> tuple[Shape, Front]:
        """Add what ``work`` comes to behind ``front``; returns its shape and the front behind it.

        ``within``: the policy of what it is a part of. ``last_id``: of its last task.
        """
        match work:
            case Signature():
                return self._add_call(work, front, last_id)
            case Chain():
                own, shapes = work.on_failure or within, []
                for left, step in zip(range(len(work.steps))[::-1], work.steps, strict=True):
                    shape, front = self.add(step, front, _inherited(own), "" if left else last_id)
                    shapes.append(shape)
                    last = _last(step)
                    if not (isinstance(last, Group) and last.on_failure):
                        front = front._replace(policy=own)
                return Branch(shapes, in_order=True), front
        assert isinstance(work, Group)
        own = work.on_failure or within
        if not work.members:
            return Branch([], in_order=False, gate=front.after), Front(front.after, "empty", own)
        prefix = f"{self._new_id()}:" if len(work.members) >= FEW else ""  # who waits for them all names them at once
        parts = [
            self.add(member, front, _inherited(own), f"{prefix}{n}" if prefix else "") for n, member in enumerate(work.members)
        ]
        after = [task_id for _, behind in parts for task_id in behind.after]
        flat = isinstance(work, Map)
        return Branch([shape for shape, _ in parts], in_order=False, flat=flat), Front(after, "concat" if flat else "list", own)

    @property
    def _workflow(self) -> str | None:
        """The id of the first task, for those behind it."""
        return self.calls[0].options["task_id"] if self.calls else None

    def watch(self, front: Front) -> None:
        """Add one that does nothing but wait for a group, and takes the rest with it when a member fails."""
        last = self.calls[-1]
        options = {name: last.options[name] for name in ("queue", "priority") if name in last.options}
        options |= {"task_id": self._new_id(), "after": front.after, "on_failure": front.policy}
        self.calls.append(last._replace(args=[[], 0], kwargs={}, options=options, each="item", workflow=self._workflow))

    def _add_call(self, signature: Signature[Any], front: Front, own_id: str) -> tuple[Leaf, Front]:
        if self.sender is None:
            self.sender = signature.sender
        elif self.sender is not signature.sender:
            raise OptionError("A workflow can't have tasks of two apps", cure="Send each app its own part.")
        call = signature.call
        task_id = call.options.get("task_id") or own_id or self._new_id()
        if task_id in self._ids:
            raise OptionError(f"task_id={task_id!r} is there twice in one workflow", cure="Give each task an id of its own.")
        self._ids.add(task_id)
        args = call.args
        if front.inputs == "empty" and not signature.immutable:
            args = [[], *args]
        options = {**call.options, "task_id": task_id, **_edges(signature, front)}
        self.calls.append(call._replace(args=args, options=options, workflow=self._workflow))
        return Leaf(task_id), Front([task_id], "prepend")


def _edges(signature: Signature[Any], front: Front) -> dict[str, Any]:
    options = signature.call.options
    if front.inputs == "none" or (front.inputs == "empty" and not front.after and "inputs" not in options):
        return {}
    own = awaited(options.get("after", ()))
    if "inputs" in options or (own and not signature.immutable):
        cure = "Make it immutable (.si) to let it wait for others, too; or leave after= and inputs= to the first step."
        raise OptionError(f"{signature!r} gets its results from the step before it", cure=cure)
    inputs = front.inputs if front.inputs != "empty" and not signature.immutable else "none"
    return {"after": [*front.after, *own], "inputs": inputs, "on_failure": options.get("on_failure", front.policy)}


def _inherited(policy: OnFailure) -> OnFailure:
    """What the edges within get of a policy without."""
    return policy if policy == "cancel_rest" else "fail"


def _handle(shape: Shape, handles: Mapping[str, TaskHandle[Any]], sender: Sender | None) -> AnyHandle:
    if isinstance(shape, Leaf):
        return handles[shape.id]
    parts = [_handle(part, handles, sender) for part in shape.parts]
    if shape.in_order:
        return ChainHandle(parts, sender)
    kind: type[GroupHandle[Any]] = MapHandle if shape.flat else GroupHandle
    return kind(cast("list[TaskHandle[Any] | ChainHandle[Any]]", parts), sender, shape.gate)
