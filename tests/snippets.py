"""Reads the documents: fenced blocks and tables. Run as a script it writes the table of settings."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from pathlib import Path
from typing import NamedTuple

import msgspec

from krq.config import Config

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


# --- the table of settings -----------------------------------------------------------------------

_TABLE = re.compile(r"(<!-- settings:.*?-->\n)(.*?)(<!-- end -->)", re.DOTALL)


def settings_table() -> str:
    """All settings as a table, from ``krq/config.py`` and the strings under its fields."""
    texts = field_texts(Config)
    rows = ["| Setting | Environment | Type | Default | Meaning |", "|---|---|---|---|---|"]
    for field in msgspec.structs.fields(Config):
        kind = getattr(field.type, "__name__", str(field.type))
        default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
        shown = f"{default:,}".replace(",", "_") if kind == "int" else repr(default)
        text = texts[field.name].replace("|", "\\|")
        rows.append(f"| `{field.name}` | `KRQ_{field.name.upper()}` | {kind} | `{shown}` | {text} |")
    return "\n".join(rows) + "\n"


def field_texts(struct: type) -> dict[str, str]:
    """The string below each field of a class, on one line."""
    body = ast.parse(inspect.getsource(struct)).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, text in itertools.pairwise(body.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            said = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            texts[field.target.id] = " ".join(str(text.value.value).split()).replace("``", "`") if said else ""  # type: ignore[attr-defined]
    return texts


def with_settings(text: str) -> str:
    """``docs/configuration.md`` with the table as it should be."""
    assert _TABLE.search(text), "the marks of the table are gone"
    return _TABLE.sub(lambda found: found[1] + settings_table() + found[3], text)


if __name__ == "__main__":
    page = ROOT / "docs" / "configuration.md"
    page.write_text(with_settings(page.read_text()))
