"""The Lua scripts: loaded from files, each with the shared prelude, called by name with one packed argument."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from krq.store import keys


class Script(StrEnum):
    """Every script, by the name of its file."""

    ADMIT = "admit"
    TAKE = "take"
    INPUTS = "inputs"
    SETTLE = "settle"
    RELEASE = "release"
    LOGGED = "logged"
    REGISTER = "register"
    BEAT = "beat"
    SYNC = "sync"
    JOINED = "joined"
    RECOVER = "recover"
    MARK = "mark"
    JUMP = "jump"
    EXPIRE = "expire"
    CANCEL = "cancel"
    WATCH = "watch"
    PEEK = "peek"
    PROGRESS = "progress"
    STEP = "step"
    PURGE = "purge"
    DEAD = "dead"
    CONTROL = "control"
    LIMIT = "limit"
    SCHEDULE = "schedule"
    DUE = "due"
    FIRED = "fired"
    CLOSE = "close"
    ASSERT = "assert"
    OPEN = "open"


class Source(NamedTuple):
    """A script as Redis gets it."""

    text: str
    sha: str


@cache
def source(script: Script) -> Source:
    """The text and hash of a script. A line ``-- flags: x`` in its header becomes part of its shebang.

    A script that calls a function of ``places.lua`` or ``edges.lua`` gets that, too, and of the keys those that its text names:
    all of it is made anew at each call. Each has a shebang: without one a full Redis would let it
    begin and break it off at its first write that needs memory.
    """
    folder = files("krq.store").joinpath("lua")
    body = folder.joinpath(f"{script}.lua").read_text("utf-8")
    header = [line for line in body.splitlines() if line.startswith("-- flags: ")]
    shebang = f"#!lua flags={header[0].removeprefix('-- flags: ')}\n" if header else "#!lua\n"
    shared = folder.joinpath("prelude.lua").read_text("utf-8")
    for name in ("places.lua", "edges.lua"):
        part = folder.joinpath(name).read_text("utf-8")
        if set(re.findall(r"^local function (\w+)", part, re.MULTILINE)) & set(re.findall(r"\w+", body)):
            shared += part
    rest = shared + "\n" + body
    text = shebang + keys.lua(set(re.findall(r"\bK\.(\w+)", rest))) + "\n" + rest
    return Source(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
