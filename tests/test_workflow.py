"""Workflows as plain data: what chains and groups compile to. No server, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import krq
from krq.call import Call
from krq.errors import ArgumentError, OptionError
from krq.handle import ChainHandle, GroupHandle, TaskHandle
from krq.submitter import Submitter, refuse_cycles
from krq.workflow import Branch, Chain, Group, Leaf, Plan, Shape, Signature, plan

app = krq.KRQ(broker="localhost:1", backend="localhost:1")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def total(values: list[int]) -> int:
    return sum(values)


Work = Signature[Any] | Chain[Any] | Group[Any]

leaves: st.SearchStrategy[Signature[Any]] = st.builds(
    lambda n, immutable: Signature(app, app.signature("t", n).call, immutable=immutable), st.integers(0, 99), st.booleans()
)


def chains(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Chain[Any]]:
    return st.lists(parts, min_size=1, max_size=4).map(Chain)


def is_member(work: Work) -> bool:
    return isinstance(work, Signature) or (isinstance(work, Chain) and isinstance(work.steps[-1], Signature))


def groups(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Group[Any]]:
    return st.lists(parts.filter(is_member), max_size=4).map(Group)


works: st.SearchStrategy[Work] = st.recursive(leaves, lambda parts: chains(parts) | groups(parts), max_leaves=25)

NOTHING = object()


def meant(work: Work, before: Any = NOTHING) -> Any:
    """The result of a workflow, told by its shape alone: each task returns its own arguments."""
    match work:
        case Signature():
            return [*([before] if before is not NOTHING and not work.immutable else []), *work.call.args]
        case Chain():
            for step in work.steps:
                before = meant(step, before)
            return before
    return [meant(member, before) for member in work.members]


def run(compiled: Plan) -> dict[str, list[Any]]:
    """The results of its tasks, by nothing but their edges, in the order of the list."""
    results: dict[str, list[Any]] = {}
    for call in compiled.calls:
        values = [results[task_id] for task_id in call.options.get("after", ())]  # KeyError: it stands before what it waits for
        match call.options.get("inputs", "none"):
            case "prepend":
                values = [*values, *call.args]
            case "list":
                values = [values, *call.args]
            case _:
                values = [*call.args]
        results[call.options["task_id"]] = values
    return results


def shaped(shape: Shape, results: dict[str, list[Any]]) -> Any:
    if isinstance(shape, Leaf):
        return results[shape.id]
    parts = [shaped(part, results) for part in shape.parts]
    return parts[-1] if shape.in_order else parts


@given(works)
def test_a_plan_means_what_the_workflow_says(work: Work) -> None:
    compiled = plan(work)
    assert shaped(compiled.shape, run(compiled)) == meant(work)


@given(works)
def test_ids_are_unique_and_edges_lead_back(work: Work) -> None:
    calls = plan(work).calls
    seen: set[str] = set()
    for call in calls:
        assert set(call.options.get("after", ())) <= seen
        assert call.options["task_id"] not in seen
        seen.add(call.options["task_id"])
    refuse_cycles({call.options["task_id"]: call.options.get("after", ()) for call in calls})


@given(works)
def test_each_step_waits_for_all_before_it(work: Work) -> None:
    """Everything in a step ends after everything in the steps before it."""
    compiled = plan(Chain([work, app.signature("last")]))
    after = {call.options["task_id"]: set(call.options.get("after", ())) for call in compiled.calls}
    reached: set[str] = set()
    todo = [compiled.calls[-1].options["task_id"]]
    while todo:
        task_id = todo.pop()
        if task_id not in reached:
            reached.add(task_id)
            todo += after[task_id]
    assert reached == set(after)


@given(works)
def test_each_plan_has_ids_of_its_own(work: Work) -> None:
    first, second = plan(work), plan(work)
    assert {call.options["task_id"] for call in first.calls}.isdisjoint(call.options["task_id"] for call in second.calls)
    assert [call.name for call in first.calls] == [call.name for call in second.calls]


@given(works)
def test_handles_have_the_shape_of_the_workflow(work: Work) -> None:
    compiled = plan(work)

    class Sent(krq.KRQ):
        def send_calls(self, calls: Sequence[Call]) -> list[TaskHandle[Any]]:
            return [TaskHandle(call.options["task_id"], self) for call in calls]

    handle: Any = compiled._replace(sender=Sent() if compiled.sender else None).send()
    assert handle.ids == [call.options["task_id"] for call in compiled.calls]
    if isinstance(work, Chain):
        assert isinstance(handle, ChainHandle)
        assert len(handle.children) == len(work.steps)
        assert handle.id == (handle.last.tails or [""])[-1]
    elif isinstance(work, Group):
        assert isinstance(handle, GroupHandle)
        assert len(handle) == len(work)
        assert [len(child.tails) for child in handle.children] == [1] * len(work)


# --- by hand -------------------------------------------------------------------------------------


def edges(work: Work) -> list[tuple[list[Any], list[int], str]]:
    """(args, places of those it waits for, inputs) of each call."""
    calls = plan(work).calls
    places = {call.options["task_id"]: place for place, call in enumerate(calls)}
    return [
        (list(call.args), [places[task_id] for task_id in call.options.get("after", ())], call.options.get("inputs", "none"))
        for call in calls
    ]


def test_a_chain() -> None:
    wanted = [([1, 2], [], "none"), ([10], [0], "prepend"), ([5, 5], [1], "none")]
    assert edges(add.s(1, 2) | add.s(10) | add.si(5, 5)) == wanted
    assert edges(krq.chain(add.s(1, 2), add.s(10), add.si(5, 5))) == wanted
    assert edges(krq.chain(add.s(1, 2), krq.chain(add.s(10), add.si(5, 5)))) == wanted


def test_a_group_and_a_final_task() -> None:
    wanted = [([0, 0], [], "none"), ([1, 1], [], "none"), ([], [0, 1], "list")]
    assert edges(krq.group(add.s(i, i) for i in range(2)) | total.s()) == wanted
    assert edges(krq.group(add.s(0, 0), add.s(1, 1)) | total.s()) == wanted


def test_chains_of_groups_and_groups_of_chains() -> None:
    assert edges(krq.group(add.s(1, 1), add.s(2, 2)) | krq.group(total.s(), total.s())) == [
        ([1, 1], [], "none"), ([2, 2], [], "none"), ([], [0, 1], "list"), ([], [0, 1], "list"),
    ]
    assert edges(krq.group(add.s(1, 1) | add.s(2), add.s(3, 3)) | total.s()) == [
        ([1, 1], [], "none"), ([2], [0], "prepend"), ([3, 3], [], "none"), ([], [1, 2], "list"),
    ]
    assert edges(add.s(1, 1) | krq.group(add.s(2), add.s(3)) | total.s()) == [
        ([1, 1], [], "none"), ([2], [0], "prepend"), ([3], [0], "prepend"), ([], [1, 2], "list"),
    ]


def test_an_empty_group_is_done_at_once() -> None:
    assert krq.group().send().result(timeout=0) == []
    assert krq.group([]).send().progress() == (0, 0)
    assert list(krq.group().send().as_completed(timeout=0)) == []
    assert edges(krq.group() | total.s()) == [([[]], [], "none")]
    assert edges(add.s(1, 2) | krq.group() | total.s()) == [([1, 2], [], "none"), ([[]], [0], "none")]
    assert edges(add.s(1, 2) | krq.group() | add.si(1, 1)) == [([1, 2], [], "none"), ([1, 1], [0], "none")]
    behind = plan(add.s(1, 2) | krq.group())
    assert isinstance(behind.shape, Branch)
    assert isinstance(behind.shape.parts[1], Branch)
    assert list(behind.shape.parts[1].gate) == [behind.calls[0].options["task_id"]]


def test_groups_in_groups_are_refused() -> None:
    for inner in (krq.group(add.s(1, 1)), krq.group(), add.s(1, 1) | krq.group(add.s(1))):
        with pytest.raises(OptionError, match="can't be a group"):
            krq.group([add.s(1, 1), inner])  # type: ignore[misc, list-item]


def test_what_is_no_part_is_refused() -> None:
    with pytest.raises(OptionError, match="no member of a group"):
        krq.group([1])  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="no step of a chain"):
        krq.chain(add.s(1, 1), add)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="needs a step"):
        krq.chain()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        add.s(1, 1) | 3  # type: ignore[operator]
    other = krq.KRQ(broker="localhost:1", backend="localhost:1")
    with pytest.raises(OptionError, match="two apps"):
        plan(add.s(1, 1) | other.signature("t"))


def test_options_travel_with_signatures() -> None:
    first, second = plan(add.options(queue="mail", priority=3).s(1, 2) | add.s(1).options(delay=5)).calls
    assert {name: first.options[name] for name in ("queue", "priority")} == {"queue": "mail", "priority": 3}
    assert second.options["delay"] == 5
    with pytest.raises(OptionError, match="knows the option"):
        add.s(1, 2).options(colour="red")


def test_edges_of_ones_own() -> None:
    first, second = plan(add.options(after=["x"], inputs="prepend").s(1) | add.options(after=["y"]).si(1, 1)).calls
    assert (first.options["after"], first.options["inputs"]) == (["x"], "prepend")
    assert second.options["after"] == [first.options["task_id"], "y"]
    for step in (add.options(after=["y"]).s(1), add.options(inputs="none").s(1)):
        with pytest.raises(OptionError, match="from the step before"):
            plan(add.s(1, 1) | step)


def test_after_takes_workflows() -> None:
    members = [TaskHandle[int](name, app) for name in ("a", "b")]
    handle = GroupHandle(members, app)
    built = Submitter(app.config, None, None, [], print)._build(  # type: ignore[arg-type]
        Call("t", [], {}, None, {"after": [handle, ChainHandle([members[0], handle], app), "c", members[0]]})
    )
    assert built[1].after == ["a", "b", "a", "b", "c", "a"]


def test_ids_of_ones_own_and_circles() -> None:
    named = add.options(task_id="mine").s(1, 1)
    assert plan(named | add.s(1)).calls[1].options["after"] == ["mine"]
    with pytest.raises(OptionError, match="twice"):
        plan(named | named)
    circle = add.options(task_id="a", after=["b"]).s(1, 1) | add.options(task_id="b").s(1)
    with pytest.raises(OptionError, match="wait for each other"):
        circle.send()
    with pytest.raises(OptionError, match="wait for each other"):
        add.options(task_id="self", after=["self"]).send(1, 1)


def test_arguments_are_checked_with_what_will_come() -> None:
    with pytest.raises(ArgumentError):
        (add.s(1, 2) | add.s(1, 2)).send()
    with pytest.raises(ArgumentError):
        (krq.group(add.s(1, 2)) | total.si()).send()  # type: ignore[call-arg]


def test_without_its_module_a_method_says_which() -> None:
    bare = krq.KRQ(broker="localhost:1", backend="localhost:1", modules=[])
    with pytest.raises(OptionError, match=r"no module Chaining.*krq\.modules\.chaining\.Chaining"):
        bare.chain_tasks([("add", [1, 2])])
    with pytest.raises(OptionError, match=r"krq\.modules\.grouping\.Grouping"):
        bare.group_tasks([("add", [1, 2])], ("sub", [1]))
    with pytest.raises(OptionError, match=r"krq\.modules\.broadcast\.Broadcast"):
        bare.broadcast("reload")


@pytest.mark.parametrize("task", ["add", ("add",), ("add", "12"), ("add", [1], [2]), (1, [1]), ("add", [1], {}, 3)])
def test_tuples_that_are_no_tasks_are_refused(task: Any) -> None:
    with pytest.raises(OptionError, match="no task to send"):
        app.chain_tasks([task])
    with pytest.raises(OptionError, match="no task to send"):
        app.group_tasks([("add", [1, 2])], task)


def test_signatures_print_as_they_are_written() -> None:
    assert repr(add.s(1, 2) | krq.group(add.s(3), add.si(4, y=5))) == "add.s(1, 2) | group(add.s(3), add.si(4, y=5))"


def policies(work: Work) -> list[str]:
    return [call.options.get("on_failure", "-") for call in plan(work).calls]


def test_policies_go_to_the_edges_they_are_for() -> None:
    assert policies(add.s(1, 1) | add.s(1)) == ["-", "fail"]
    assert policies(krq.chain(add.s(1, 1), add.s(1), on_failure="continue")) == ["-", "continue"]
    assert policies(krq.group(add.s(1, 1) | add.s(1), add.s(1, 1), on_failure="continue") | total.s()) == ["-", "fail", "-", "continue"]
    rest = krq.group(add.s(1, 1) | add.s(1), add.s(1, 1), on_failure="cancel_rest")
    assert policies(rest | total.s() | add.s(1)) == ["-", "cancel_rest", "-", "cancel_rest", "fail"]
    assert policies(krq.chain(add.s(1, 1), krq.group(add.s(1), add.s(2)), total.s(), on_failure="cancel_rest")) == [
        "-", "cancel_rest", "cancel_rest", "cancel_rest",
    ]
    assert policies(krq.chain(add.s(1, 1), add.options(on_failure="fail").s(1), on_failure="continue")) == ["-", "fail"]


def test_a_group_that_nothing_follows_is_watched() -> None:
    first, second, watch = plan(krq.group(add.s(1, 1), add.s(2, 2), on_failure="cancel_rest")).calls
    assert (watch.args, watch.each, watch.options["on_failure"]) == ([[], 0], "item", "cancel_rest")
    assert watch.options["after"] == [first.options["task_id"], second.options["task_id"]]
    assert {call.workflow for call in (first, second, watch)} == {first.options["task_id"]}
    only, watch = plan(krq.group([add.s(1, 1)], on_failure="cancel_rest")).calls
    assert only.workflow == watch.workflow == only.options["task_id"]


def test_maps_are_chunks() -> None:
    calls = plan(add.starmap([(n, n) for n in range(5)], chunk=2) | total.s()).calls
    assert [call.args for call in calls] == [[[(0, 0), (1, 1)], 0], [[(2, 2), (3, 3)], 2], [[(4, 4)], 4], ()]
    assert [call.each for call in calls] == ["args", "args", "args", None]
    assert calls[-1].options["inputs"] == "concat"
    with pytest.raises(ArgumentError):
        add.starmap([(1, 2), (1, 2, 3)])
