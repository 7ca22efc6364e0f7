"""Reads the documents: fenced blocks, tables, code names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a document."""

    document: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that it is to be saved as, where its first line says so."""
        named = re.match(r"# ([\w./]+\.py)\n", self.text)
        return named[1] if named else None


def blocks(path: Path, language: str) -> list[Block]:
    """All fenced blocks of a language."""
    text = path.read_text()
    return [
        Block(path.name, text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for found in _FENCE.finditer(text) if found[1] == language
    ]


def readme_file(name: str) -> str:
    """The block of README.md that is to be saved as ``name``."""
    return next(block.text for block in blocks(ROOT / "README.md", "python") if block.file == name)
