"""Secrets among arguments: which they are, and how they are shown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

#: header that names what the task's ``mask`` option hides: ``{"names": [...], "at": [positions]}``
HEADER = "krq-mask"
SHOWN = "•••"
#: keyword arguments, and keys within arguments, that are hidden whatever the task says
_SECRET = re.compile(
    r"(?:^|_)(?:pass(?:word|wd|phrase)?|secret|token|api_?key|private_?key|authorization|credentials?|cookie)$", re.IGNORECASE,
)
#: shorter texts are no secret that could be told from other text
_SHORTEST = 4


def masked(args: Sequence[Any], kwargs: Mapping[str, Any], headers: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments as they may be shown. Values of unknown shape stay in place, what is hidden is ``•••``."""
    names, at = _wanted(headers)
    shown = [SHOWN if i in at else _veil(value) for i, value in enumerate(args)]
    return shown, {name: SHOWN if name in names or _SECRET.search(name) else _veil(value) for name, value in kwargs.items()}


def secrets(args: Sequence[Any], kwargs: Mapping[str, Any], headers: Mapping[str, Any]) -> list[str]:
    """The texts that the ``mask`` option hides, the longest first: what an error of the task must not tell."""
    names, at = _wanted(headers)
    if not names and not at:
        return []
    found: list[str] = []
    level: list[Any] = [*(args[i] for i in at if i < len(args)), *(kwargs[name] for name in names if name in kwargs)]
    while level:
        value = level.pop()
        if isinstance(value, Mapping):
            level += value.values()
        elif isinstance(value, list | tuple):
            level += value
        elif value is not None and not isinstance(value, bool) and len(str(value)) >= _SHORTEST:
            found += {str(value), repr(value)[1:-1]} if isinstance(value, str) else {str(value)}
    return sorted(set(found), key=len, reverse=True)


def scrub(text: str, hidden: Sequence[str]) -> str:
    """Text without these secrets."""
    for secret in hidden:
        text = text.replace(secret, SHOWN)
    return text


def record(text: str, *, cut: bool) -> str:
    """A record's text as it may be shown, ``cut``: of which only the beginning is at hand. What is no JSON object stays as it is."""
    if not text.lstrip().startswith("{"):
        return text
    if cut:  # what it hides may be named behind that
        return SHOWN
    try:
        found = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        return text
    args, kwargs, headers = found.get("args"), found.get("kwargs"), found.get("headers")
    shown, named = masked(
        args if isinstance(args, list) else [], kwargs if isinstance(kwargs, dict) else {}, headers if isinstance(headers, dict) else {},
    )
    given = {**({"args": shown} if isinstance(args, list) else {}), **({"kwargs": named} if isinstance(kwargs, dict) else {})}
    return msgspec.json.encode({**_veil(found), **given}).decode()


def _wanted(headers: Mapping[str, Any]) -> tuple[set[str], set[int]]:
    wanted = headers.get(HEADER)
    if not isinstance(wanted, Mapping):
        return set(), set()
    names, at = wanted.get("names"), wanted.get("at")
    return (
        {name for name in names if isinstance(name, str)} if isinstance(names, list) else set(),
        {i for i in at if isinstance(i, int) and i >= 0} if isinstance(at, list) else set(),
    )


def _veil(value: Any) -> Any:
    """The same with values hidden whose keys say that they are secrets. Depth is bounded by ``max_depth`` of messages."""
    if isinstance(value, dict):
        return {name: SHOWN if isinstance(name, str) and _SECRET.search(name) else _veil(item) for name, item in value.items()}
    return [_veil(item) for item in value] if isinstance(value, list) else value
