"""A table that fits its room, keeps its place, and redraws only what has changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.coordinate import Coordinate
from textual.widgets import DataTable

from krq.phrases import Styled, one_line


class Column(NamedTuple):
    """A column. Where room is short those of the highest ``rank`` go first; 0 stays.

    ``least``: it is not cut below so many cells; numbers, which stand ``right``, are never cut.
    """

    title: str
    least: int = 4
    rank: int = 0
    right: bool = False


class Row(NamedTuple):
    """``key`` is what it is of, and stays the same from look to look; ``of`` is what can be acted upon."""

    key: str
    cells: Sequence[Styled | str | int]
    of: Any = None

    @property
    def texts(self) -> list[str]:
        """What it says, for filters."""
        return [self.key, *(cell.text if isinstance(cell, Styled) else str(cell) for cell in self.cells)]


class Fitted(NamedTuple):
    """A column that is shown."""

    which: int
    width: int


def fit(columns: Sequence[Column], needs: Sequence[int], room: int, gap: int) -> list[Fitted]:
    """Which columns to show in ``room`` cells, and how wide. ``needs``: what their widest cells take, 0 where all are empty;
    ``gap``: lost with each column.
    """
    shown = [i for i, column in enumerate(columns) if needs[i] or not column.rank]
    least = [max(len(column.title), need if column.right else min(need, column.least)) for column, need in zip(columns, needs, strict=True)]
    while sum(least[i] + gap for i in shown) > room:
        last = max(shown, key=lambda i: (columns[i].rank, i))
        if columns[last].rank == 0:
            break
        shown.remove(last)
    spare = max(0, room - sum(least[i] + gap for i in shown))
    widths = dict.fromkeys(shown, 0)
    for i in sorted(shown, key=lambda i: columns[i].rank):
        more = min(spare, max(0, needs[i] - least[i]))
        widths[i], spare = least[i] + more, spare - more
    return [Fitted(i, widths[i]) for i in shown]


class Table(DataTable[Text]):
    """Rows of text; one of them is chosen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Open", key_display="⏎"),
        Binding("home", "scroll_top", show=False), Binding("end", "scroll_bottom", show=False),
    ]

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__(cursor_type="row", cursor_foreground_priority="renderable")
        self._wanted = columns
        self._rows: list[Row] = []
        self._fitted: list[Fitted] = []

    @property
    def chosen(self) -> Row | None:
        """The row under the cursor."""
        return self._rows[self.cursor_row] if 0 <= self.cursor_row < len(self._rows) else None

    def show(self, rows: Sequence[Row]) -> None:
        """Show these. The cursor stays with its row, or where it was; at the top it stays at the top."""
        before, old = self._fitted, self._rows
        texts = [[_text(cell, column) for cell, column in zip(row.cells, self._wanted, strict=True)] for row in rows]
        widest = [max((row[i].cell_len for row in texts), default=0) for i in range(len(self._wanted))]
        needs = [max(width, len(column.title)) if width else 0 for width, column in zip(widest, self._wanted, strict=True)]
        room = self.scrollable_content_region.width or self.app.size.width
        self._fitted = fit(self._wanted, needs, room, 2 * self.cell_padding)
        chosen = self.chosen if self.cursor_row else None
        self._rows = list(rows)
        shown = [[_cut(row[i], width) for i, width in self._fitted] for row in texts]
        if before == self._fitted and [row.key for row in old] == [row.key for row in rows]:
            self._update(shown)
        else:
            self._replace(shown, chosen)

    def _update(self, shown: Sequence[Sequence[Text]]) -> None:
        for at, row in enumerate(shown):
            for place, cell in enumerate(row):
                where = Coordinate(at, place)
                if self.get_cell_at(where) != cell:
                    self.update_cell_at(where, cell)

    def _replace(self, shown: Sequence[Sequence[Text]], chosen: Row | None) -> None:
        top, line = self.scroll_y, self.cursor_row
        self.clear(columns=True)
        for which, width in self._fitted:
            column = self._wanted[which]
            self.add_column(Text(column.title, justify="right" if column.right else "left"), width=width)
        for row in shown:
            self.add_row(*row)
        keys = [row.key for row in self._rows]
        if keys:
            self.move_cursor(row=keys.index(chosen.key) if chosen and chosen.key in keys else min(line, len(keys) - 1), scroll=False)
        self.scroll_to(y=top, animate=False)

    def on_resize(self, _event: events.Resize) -> None:
        """Use the room."""
        self.show(self._rows)


def _text(cell: Styled | str | int, column: Column) -> Text:
    text, colour, bold = cell if isinstance(cell, Styled) else (f"{cell:,}" if isinstance(cell, int) else cell, None, False)
    style = " ".join([*(["bold"] if bold else []), *([colour] if colour else [])])
    return Text(one_line(text), style=style, no_wrap=True, justify="right" if column.right else "left")


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    return text
