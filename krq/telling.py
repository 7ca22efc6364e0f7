"""The story of a task as lines, for the command line and the terminal dashboard."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from krq.info import Moment, Reason, Story
from krq.phrases import COLOURS, Styled, ago, date, one_line, until
from krq.states import TaskStatus

#: colours of what happened
_COLOURS = {
    "success": "green", "failed": "red", "retry": "red", "died": "red", "interrupted": "red", "cancelled": "yellow",
    "handed back": "yellow",
}

Line = list[Styled]


def head(story: Story) -> Line:
    """Which task it is, and where it stands."""
    if story.task is None:
        return [Styled(f"{story.id}  not known to Redis")]
    status = story.task.status
    return [Styled(one_line(story.task.name) or "-", bold=True), Styled(f"  {story.id}  "), Styled(status.value, COLOURS.get(status))]


def lines(story: Story) -> Iterator[Line]:
    """What happened, what it waits for, what comes next."""
    if story.past:
        yield [Styled("What happened")]
        yield from (_moment(one) for one in story.past)
        yield []
    if story.reasons:
        running = story.task is not None and story.task.status is TaskStatus.PROCESSING
        yield [Styled("What it does" if running else "What it waits for" if story.task is not None else "Where it is")]
        yield from ([Styled(f"  {_reason(one)}")] for one in story.reasons)
        yield []
    yield [Styled("What comes next")]
    yield [Styled(f"  {one_line(story.next) or '-'}")]


def _moment(one: Moment) -> Line:
    when = "" if one.at is None else datetime.fromtimestamp(one.at).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    return [Styled(f"  {when:<23}  "), Styled(one_line(one.text), _COLOURS.get(one.kind))]


def _reason(one: Reason) -> str:
    times = [f"since {date(one.since)}, {ago(one.since)}"] if one.since is not None else []
    times += [f"until {date(one.until)}, {until(one.until)}"] if one.until is not None else []
    return one_line(one.text) + (f" ({'; '.join(times)})" if times else "")
