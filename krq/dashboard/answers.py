"""Answers as JSON, problems with code and cure."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from starlette.responses import Response

from krq.errors import AppClosed, KRQError, NamespaceClosed, StoreError, TaskNotFound

#: a URL's user, and the password behind it
_PASSWORD = re.compile(r"(\w+://[^\s:/@]*):[^\s/]*@")
_encode = msgspec.json.Encoder().encode


def answer(value: Any, status: int = 200) -> Response:
    """A value as JSON."""
    return Response(value if isinstance(value, bytes) else _encode(value), status, media_type="application/json")


def described(error: KRQError) -> dict[str, str]:
    """An error as the API tells it; the URLs in it without passwords."""
    return {"code": error.code, "cause": _masked(error.cause), "cure": _masked(error.advice)}


def status_of(error: KRQError) -> int:
    """The HTTP status for an error."""
    given = getattr(error, "status", None)
    if isinstance(given, int):
        return given
    if isinstance(error, TaskNotFound):
        return 404
    if isinstance(error, ConnectionError | NamespaceClosed | StoreError | AppClosed | TimeoutError):
        return 503
    return 409 if isinstance(error, LookupError) else 400


def problem(error: KRQError) -> Response:
    """An error as an answer."""
    response = answer({"error": described(error)}, status_of(error))
    if response.status_code == 401:
        response.headers["www-authenticate"] = 'Bearer realm="krq"'
    return response


def _masked(text: str) -> str:
    return _PASSWORD.sub(r"\1:***@", text)
