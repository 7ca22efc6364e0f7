"""A table with its heading, and a line where there is nothing in it."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from krq.terminal.filter import Wanted
from krq.terminal.poll import Look
from krq.terminal.rows import Kind
from krq.terminal.table import Table


class Pane(Vertical):
    """One of the four tables."""

    def __init__(self, kind: Kind, number: int) -> None:
        super().__init__(id=kind.name.lower())
        self._kind = kind
        self._number = number
        self.table = Table(kind.columns)
        self.heading = kind.name
        self._empty = Static(classes="empty", markup=False)

    def compose(self) -> ComposeResult:
        """The table above the line."""
        yield self.table
        yield self._empty

    def show(self, look: Look, wanted: Wanted) -> None:
        """Show what of this look is wanted; of a table that nobody sees the heading alone."""
        self.heading = self._kind.title(look)
        self.border_title = Content(f"{self._number} {self.heading}")
        if not self.display:
            return
        fitting = [row for row in self._kind.rows(look, wanted) if wanted.fits(row.texts)]
        self.set_class(not fitting, "nothing")
        if not fitting:
            self._empty.update("Nothing here fits the filter." if wanted != Wanted() else self._kind.empty(look))
        self.table.show(fitting)
