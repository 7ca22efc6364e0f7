"""Small charts of what the last looks have seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Static

from krq.looking import Point
from krq.phrases import span

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def bars(values: Sequence[float], height: int, most: float) -> list[str]:
    """A bar for each value, as ``height`` lines of blocks, from 0 to ``most``. What is not 0 can be seen."""
    eighths = [0 if value <= 0 or most <= 0 else max(1, round(min(1.0, value / most) * height * 8)) for value in values]
    return ["".join(_EIGHTHS[min(8, max(0, each - 8 * line))] for each in eighths) for line in reversed(range(height))]


def short(number: float) -> str:
    """A number in at most six characters: ``0.4``, ``12``, ``9,999``, ``123k``, ``1.2M``."""
    if number < 10 and number != int(number):
        return f"{number:.1f}"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e5, "k")):
        if number >= size:
            part = number / (1e3 if unit == "k" else size)
            return f"{part:.1f}{unit}" if part < 10 else f"{part:.0f}{unit}"
    return f"{number:,.0f}"


class Chart(Static):
    """One number through time: what it is now, what it was at most, and a bar for each look."""

    def __init__(self, title: str, value: Callable[[Point], float | None], shown: Callable[[float], str], colour: str) -> None:
        super().__init__(markup=False)
        self._title, self._value, self._shown, self._colour = title, value, shown, colour
        self._points: Sequence[Point] = ()

    def show(self, points: Sequence[Point]) -> None:
        """Draw these."""
        self._points = points
        self.refresh()

    def render(self) -> Text:
        """The title above the bars."""
        width, height = self.size
        values = [self._value(one) for one in self._points[-width:]]
        known = [value for value in values if value is not None]
        text = Text(self._title, "dim")
        if known:
            text.append(f" {'-' if values[-1] is None else self._shown(values[-1])}", "not dim bold")
            most = [f"{word}{self._shown(max(known))}" for word in ("  most ", " ≤")]
            text.append(next((each for each in most if text.cell_len + len(each) < width), ""))
        text.truncate(width)
        for line in bars([value or 0.0 for value in values], max(1, height - 1), max(known, default=0.0)):
            text.append("\n" + line.rjust(width), f"not dim {self._colour}")
        return text


class Charts(Horizontal):
    """Throughput and latency."""

    def compose(self) -> ComposeResult:
        """Four of them side by side."""
        yield Chart("ended/s", lambda one: _sum(one.done_rate, one.failed_rate), short, "green")
        yield Chart("failed/s", lambda one: one.failed_rate, short, "red")
        yield Chart("ran", lambda one: one.run, span, "cyan")
        yield Chart("waited", lambda one: one.wait, span, "yellow")

    def show(self, points: Sequence[Point]) -> None:
        """Draw these."""
        for chart in self.query(Chart):
            chart.show(points)


def _sum(*values: float | None) -> float | None:
    return None if None in values else sum(value or 0.0 for value in values)
