"""What requests may ask: queries and bodies as values, refused where they are none."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from starlette.requests import Request

from krq.dashboard.errors import WebRequestInvalid
from krq.states import TaskStatus

T = TypeVar("T", bound=msgspec.Struct)
Text = Annotated[str, msgspec.Meta(max_length=255)]
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=600)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=200)]


class NoQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Nothing."""


class OneQuery(msgspec.Struct, forbid_unknown_fields=True):
    """One task."""

    id: Id


class TasksQuery(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Which tasks; "" is any."""

    status: TaskStatus | None = None
    name: Text = ""
    queue: Text = ""
    worker: Text = ""
    cursor: Annotated[str, msgspec.Meta(max_length=1_000)] = ""
    limit: Limit = 50


class DeadQuery(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Which dead letters."""

    code: Text = ""
    name: Text = ""
    before: Annotated[float, msgspec.Meta(ge=0, le=4e10)] | None = None
    limit: Limit = 50


class Ids(msgspec.Struct, forbid_unknown_fields=True):
    """Tasks, or dead letters by their ``ref``."""

    ids: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=500)]


class Named(msgspec.Struct, forbid_unknown_fields=True):
    """A queue or a schedule."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class Login(msgspec.Struct, forbid_unknown_fields=True):
    """A token, or user and password."""

    token: Text = ""
    user: Text = ""
    password: Text = ""


def query(request: Request, kind: type[T]) -> T:
    """The query string as this. Raises ``WebRequestInvalid``."""
    given = {name: value for name, value in request.query_params.items() if value}
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise WebRequestInvalid(f"The query can't be used: {error}") from error


async def body(request: Request, kind: type[T]) -> T:
    """The body as this. Raises ``WebRequestInvalid``."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise WebRequestInvalid("The body is no JSON", cure="Send Content-Type: application/json.", status=415)
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise WebRequestInvalid(f"The body can't be used: {error}") from error
