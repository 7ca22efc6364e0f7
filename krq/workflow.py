"""Workflows: tasks that wait for other tasks, written as chains and groups.

All of it comes to one primitive, the edges ``after`` and ``inputs`` of a message. A workflow is compiled to a plain list of calls
with fixed ids and edges, and sent as one batch; from then on it runs without its sender. No I/O here.

    step         the result of the step before is its first argument (``inputs="prepend"``), unless it is immutable (``.si``)
    group        all members at once; a step after it gets the list of their results (``inputs="list"``)
    empty group  done at once with []; a step after it gets [] and waits for what stands before the group
    nesting      a chain in a chain is flattened. A member of a group is a task or a chain that ends in a task: a group directly in
                 a group, or at the end of its member, is refused, because results of edges are flat lists
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar, cast, overload

from krq import ids
from krq.call import Call, Sender
from krq.errors import OptionError
from krq.handle import AnyHandle, ChainHandle, GroupHandle, TaskHandle, awaited

R = TypeVar("R")
S = TypeVar("S")


class _Joins:
    """What ``|`` may stand behind: the next step gets the result, of a group the list of results."""

    __slots__ = ()

    @overload
    def __or__(self, other: Group[S]) -> Chain[list[S]]: ...
    @overload
    def __or__(self, other: Signature[S] | Chain[S]) -> Chain[S]: ...
    def __or__(self, other: Any) -> Any:
        return _joined(cast("Work[Any]", self), other)


class Signature(_Joins, Generic[R]):
    """A call that is not sent yet: ``add.s(1, 2)``; immutable, ``add.si(1, 2)``, it takes no results of the step before."""

    __slots__ = ("call", "immutable", "sender")

    def __init__(self, sender: Sender, call: Call, *, immutable: bool = False) -> None:
        self.sender = sender
        self.call = call
        self.immutable = immutable

    def options(self, **options: Any) -> Signature[R]:
        """The same with more options, or others. Raises ``OptionError``."""
        self.sender.check_options(options)
        return Signature(self.sender, self.call._replace(options={**self.call.options, **options}), immutable=self.immutable)

    def send(self) -> TaskHandle[R]:
        """Send it alone. Raises as ``KRQ.submit``."""
        return cast("TaskHandle[R]", plan(self).send())

    def __repr__(self) -> str:
        arguments = [*map(repr, self.call.args), *(f"{name}={value!r}" for name, value in self.call.kwargs.items())]
        return f"{self.call.name}.{'si' if self.immutable else 's'}({', '.join(arguments)})"


class Chain(_Joins, Generic[R]):
    """Steps that run one after the other. Made by ``krq.chain`` and ``|``."""

    __slots__ = ("steps",)

    def __init__(self, steps: Iterable[Work[Any]]) -> None:
        self.steps: tuple[Signature[Any] | Group[Any], ...] = tuple(_flat(steps))
        if not self.steps:
            raise OptionError("A chain needs a step", cure="Write krq.chain(add.s(1, 2), mul.s(10)).")

    def send(self) -> ChainHandle[R]:
        """Send all steps as one batch; returns when the log has all of them. Raises as ``KRQ.submit_many``."""
        return cast("ChainHandle[R]", plan(self).send())

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.steps))


class Group(_Joins, Generic[R]):
    """Members that run side by side. Made by ``krq.group``."""

    __slots__ = ("members",)

    def __init__(self, members: Iterable[Signature[R] | Chain[R]]) -> None:
        self.members = tuple(members)
        for member in self.members:
            _check_member(member)

    def send(self) -> GroupHandle[R]:
        """Send all members as one batch; returns when the log has all of them. Raises as ``KRQ.submit_many``."""
        return cast("GroupHandle[R]", plan(self).send())

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        return f"group({', '.join(map(repr, self.members))})"


Work: TypeAlias = Signature[R] | Chain[R] | Group[R]


@overload
def chain(*steps: *tuple[*tuple[Work[Any], ...], Group[R]]) -> Chain[list[R]]: ...
@overload
def chain(*steps: *tuple[*tuple[Work[Any], ...], Signature[R] | Chain[R]]) -> Chain[R]: ...
def chain(*steps: *tuple[Any, ...]) -> Chain[Any]:  # type: ignore[misc] # mypy 1.x does not see that it accepts all of them
    """Steps that run one after the other: the same as ``a | b | c``.

    Each gets the result of the one before as its first argument, after a group the list of its results. Raises ``OptionError``.
    """
    return Chain(steps)


@overload
def group(members: Iterable[Signature[R] | Chain[R]], /) -> Group[R]: ...
@overload
def group(*members: Signature[R] | Chain[R]) -> Group[R]: ...
def group(*members: Any) -> Group[Any]:
    """Members that run side by side, given one by one or as one iterable. Raises ``OptionError`` for what can't be a member."""
    if len(members) == 1 and not isinstance(members[0], Signature | Chain | Group):
        return Group(members[0])
    return Group(members)


def _joined(left: Work[Any], right: Any) -> Any:
    if not isinstance(right, Signature | Chain | Group):
        return NotImplemented
    return Chain([left, right])


def _flat(steps: Iterable[Any]) -> Iterable[Signature[Any] | Group[Any]]:
    for step in steps:
        if isinstance(step, Chain):
            yield from step.steps
        elif isinstance(step, Signature | Group):
            yield step
        else:
            raise OptionError(f"{step!r} is no step of a chain", cure="Give signatures, such as add.s(1, 2), and groups.")


def _check_member(member: Any) -> None:
    if isinstance(member, Group) or (isinstance(member, Chain) and isinstance(member.steps[-1], Group)):
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


Shape: TypeAlias = Leaf | Branch


class Front(NamedTuple):
    """What the next step of a chain waits for, and what it gets of that."""

    after: Sequence[str] = ()
    inputs: str = "none"
    """none at the beginning, prepend after a task, list after a group, empty after an empty group"""


class Plan(NamedTuple):
    """A workflow as calls with fixed ids and edges. Sending it again is safe: each task runs once."""

    calls: Sequence[Call]
    shape: Shape
    sender: Sender | None
    """None where nothing is to be sent"""

    def send(self) -> AnyHandle:
        """Send all calls as one batch and return the workflow's handle. Raises as ``KRQ.submit_many``."""
        sent = self.sender.send_calls(self.calls) if self.sender is not None else []
        handles = {handle.id: handle for handle in sent}
        return _handle(self.shape, handles, self.sender)


def plan(work: Work[Any]) -> Plan:
    """Compile a workflow: a call for each task, those that others wait for first, and the shape of its handle.

    Raises ``OptionError`` for tasks of two apps, an id that is there twice, or edges of one's own where the workflow makes them.
    """
    builder = _Builder()
    shape, _ = builder.add(work, Front())
    return Plan(builder.calls, shape, builder.sender)


class _Builder:
    """Collects the calls of one plan."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.sender: Sender | None = None
        self._ids: set[str] = set()

    def add(self, work: Work[Any], front: Front) -> tuple[Shape, Front]:
        """Add what ``work`` comes to behind ``front``; returns its shape and the front behind it."""
        match work:
            case Signature():
                return self._add_call(work, front)
            case Chain():
                shapes: list[Shape] = []
                for step in work.steps:
                    shape, front = self.add(step, front)
                    shapes.append(shape)
                return Branch(shapes, in_order=True), front
        if not work.members:
            return Branch([], in_order=False, gate=front.after), Front(front.after, "empty")
        parts = [self.add(member, front) for member in work.members]
        after = [task_id for _, behind in parts for task_id in behind.after]
        return Branch([shape for shape, _ in parts], in_order=False), Front(after, "list")

    def _add_call(self, signature: Signature[Any], front: Front) -> tuple[Leaf, Front]:
        if self.sender is None:
            self.sender = signature.sender
        elif self.sender is not signature.sender:
            raise OptionError("A workflow can't have tasks of two apps", cure="Send each app its own part.")
        call = signature.call
        task_id = call.options.get("task_id") or ids.new_id()
        if task_id in self._ids:
            raise OptionError(f"task_id={task_id!r} is there twice in one workflow", cure="Give each task an id of its own.")
        self._ids.add(task_id)
        args = call.args
        if front.inputs == "empty" and not signature.immutable:
            args = [[], *args]
        options = {**call.options, "task_id": task_id, **_edges(signature, front)}
        self.calls.append(call._replace(args=args, options=options))
        return Leaf(task_id), Front([task_id], "prepend")


def _edges(signature: Signature[Any], front: Front) -> dict[str, Any]:
    options = signature.call.options
    if front.inputs == "none" or (front.inputs == "empty" and not front.after and "inputs" not in options):
        return {}
    own = awaited(options.get("after", ()))
    if "inputs" in options or (own and not signature.immutable):
        cure = "Make it immutable (.si) to let it wait for others, too; or leave after= and inputs= to the first step."
        raise OptionError(f"{signature!r} gets its results from the step before it", cure=cure)
    inputs = front.inputs if front.inputs in ("prepend", "list") and not signature.immutable else "none"
    return {"after": [*front.after, *own], "inputs": inputs}


def _handle(shape: Shape, handles: Mapping[str, TaskHandle[Any]], sender: Sender | None) -> AnyHandle:
    if isinstance(shape, Leaf):
        return handles[shape.id]
    parts = [_handle(part, handles, sender) for part in shape.parts]
    if shape.in_order:
        return ChainHandle(parts, sender)
    return GroupHandle(cast("list[TaskHandle[Any] | ChainHandle[Any]]", parts), sender, shape.gate)


def refuse_cycles(edges: Mapping[str, Iterable[str]]) -> None:
    """Raise ``OptionError`` when tasks wait for each other in a circle. ``edges``: id → ids it waits for."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        circle = " → ".join(error.args[1])
        raise OptionError(f"Tasks would wait for each other for ever: {circle}", cure="Take one of them out of after=.") from None
