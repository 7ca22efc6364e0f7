"""The documents say what the code does: settings, errors, message fields, commands, links, snippets."""

from __future__ import annotations

import importlib
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest
from snippets import DOCUMENTS, ROOT, Block, blocks, with_settings

import krq
from krq import events, message
from krq.cli.root import root
from krq.errors import KRQError
from krq.hooks import Module
from krq.states import TaskStatus

DOCS = ROOT / "docs"


def section(page: str, heading: str) -> str:
    """A page from a heading to the next of the same level."""
    _, _, rest = (DOCS / page).read_text().partition(f"\n## {heading}\n")
    assert rest, f"{page} has no section {heading}"
    return rest.partition("\n## ")[0]


def first_column(text: str) -> list[str]:
    """The names in code font that begin the rows of tables."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


# --- settings ------------------------------------------------------------------------------------


def test_every_setting_is_documented() -> None:
    page = DOCS / "configuration.md"
    assert page.read_text() == with_settings(page.read_text()), "run: python tests/snippets.py"


def test_every_setting_may_be_given_to_the_constructor() -> None:
    fields = {field.name for field in msgspec.structs.fields(krq.config.Config)}
    assert set(krq.config.Settings.__annotations__) | {"broker", "backend", "namespace"} == fields


def test_settings_named_anywhere_exist() -> None:
    known = {f"KRQ_{field.name.upper()}" for field in msgspec.structs.fields(krq.config.Config)} | {"KRQ_CACHE"}
    known |= {name for parameter in root.commands["web"].params if isinstance(name := parameter.envvar, str)}
    for path in [*DOCUMENTS, *(ROOT / "examples").glob("*.py"), ROOT / "docker-compose.yml"]:
        named = set(re.findall(r"\bKRQ_[A-Z_]+\b", path.read_text()))
        assert named <= known | {f"KRQ_{name}" for name in ("ERROR",)}, path.name


# --- errors --------------------------------------------------------------------------------------


def codes_in_use() -> Iterator[str]:
    for module in pkgutil.walk_packages(krq.__path__, "krq."):
        if module.name not in ("krq.__main__", "krq.dev.guard"):
            importlib.import_module(module.name)
    errors = [KRQError]
    while errors:
        error = errors.pop()
        errors += error.__subclasses__()
        if error.__module__.startswith("krq."):
            yield str(error.code)
    for path in (ROOT / "krq").rglob("*.py"):
        yield from re.findall(r'"(DEV_[A-Z_]+|ID_CONFLICT)"', path.read_text())
        yield from re.findall(r'ErrorInfo\("([A-Z_]+)"', path.read_text())
    for path in (ROOT / "krq" / "store" / "lua").glob("*.lua"):
        yield from re.findall(r"end_here\(\w+, '\w', '([A-Z_]+)'", path.read_text())


def test_every_error_code_is_documented_once() -> None:
    documented = first_column((DOCS / "errors.md").read_text())
    assert sorted(set(documented)) == sorted(documented)
    assert set(documented) == set(codes_in_use())


# --- wire format ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("heading", "struct"), [
    ("Messages", message.Message), ("Outcomes", events.Entry), ("Dead letters", events.DeadLetter),
])
def test_every_field_is_documented(heading: str, struct: type[msgspec.Struct]) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    rows = {
        cells[0].strip("` "): cells[2].strip()
        for line in section("wire-format.md", heading).splitlines() if line.startswith("| `")
        for cells in [line.strip("|").split("|")]
    }
    assert set(rows) == set(fields)
    for name, field in fields.items():
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if default is msgspec.NODEFAULT:
            assert rows[name] == "", f"{name} is required"
        elif rows[name] != "made up":
            assert rows[name] == f"`{msgspec.json.encode(default).decode()}`", name


def test_example_messages_are_messages() -> None:
    found = re.findall(r"\{[^{}]*\"task\": \"\w+\"[^{}]*\}", "".join(path.read_text() for path in DOCUMENTS))
    assert found
    for text in found:
        message.decode(text, max_bytes=10_000, max_depth=10)


def test_statuses_are_documented() -> None:
    text = section("wire-format.md", "Results")
    assert all(f"`{status}`" in text for status in TaskStatus)


def test_hooks_are_documented() -> None:
    hooks = {name for name, value in vars(Module).items() if callable(value) and not name.startswith("_")}
    assert {name.partition("(")[0] for name in first_column(section("modules.md", "Hooks"))} == hooks


# --- commands, links, files ----------------------------------------------------------------------


def commands(text: str) -> Iterator[list[str]]:
    """The ``krq`` command lines of a page: in console blocks, and in code font."""
    consoles = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = [line[2:] for block in consoles for line in block.splitlines() if line.startswith("$ ")]
    lines += re.findall(r"`(krq [^`]+)`", text)
    for line in lines:
        words = re.sub(r"\s+#.*", "", line).split()
        if words[:1] == ["krq"] and len(words) > 1:
            yield words[1:]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_their_options_exist(path: Path) -> None:
    for words in commands(path.read_text()):
        name = words[0].rstrip(",")
        if name == "…":
            continue
        command = root.commands.get(name)
        assert command is not None, f"krq {name}"
        if isinstance(command, click.Group) and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in command.commands, f"krq {' '.join(words)}"
            command = command.commands[words[1]]
        known = {option for parameter in command.params if isinstance(parameter, click.Option) for option in parameter.opts}
        for word in words[1:]:
            if word.startswith("-"):
                assert word.partition("=")[0] in known, f"krq {' '.join(words)}: {word}"


def test_every_command_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in root.commands if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        page, _, anchor = target.partition("#")
        file = (path.parent / page).resolve() if page else path
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_named_exist(path: Path) -> None:
    for name in re.findall(r"`((?:krq|docs|examples|tests|worker|store)/[\w./]*)`", path.read_text()):
        assert (ROOT / name).exists() or (ROOT / "krq" / name).exists(), name


# --- snippets ------------------------------------------------------------------------------------

PYTHON = [block for path in DOCUMENTS for block in blocks(path, "python")]
WHOLE = [block for block in PYTHON if block.document in ("modules.md", "configuration.md")]


def place(block: Block) -> str:
    return f"{block.document}:{block.line}"


@pytest.mark.parametrize("block", PYTHON, ids=place)
def test_python_compiles(block: Block) -> None:
    compile(block.text, place(block), "exec")


@pytest.mark.parametrize("block", WHOLE, ids=place)
def test_definitions_run(block: Block) -> None:
    exec(compile(textwrap.dedent(block.text), place(block), "exec"), {"__name__": "snippet"})


def test_examples_are_short_and_have_a_head() -> None:
    for path in (ROOT / "examples").glob("*.py"):
        text = path.read_text()
        assert text.startswith('"""'), path.name
        assert len(text.splitlines()) <= 150, path.name
