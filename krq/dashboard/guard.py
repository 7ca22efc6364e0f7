"""What stands before every request and behind every answer: sizes, host names, security headers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from krq.dashboard.access import Access
from krq.dashboard.answers import problem
from krq.dashboard.errors import WebRequestInvalid
from krq.errors import KRQError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY = 256 * 1024
MAX_TARGET = 4_096
#: paths for probes, which call by addresses and names of their own
PROBES = frozenset({"/live", "/ready"})

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
                               "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_ENCODED = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


class Guard:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGI, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                named = {name for name, _ in message["headers"]}
                extra = _ENCODED if b"cache-control" in named else [*_ENCODED, (b"cache-control", b"no-store")]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            if scope["path"] not in PROBES:
                self._access.check_host(headers.get("host", ""))
            if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_TARGET:
                raise WebRequestInvalid(f"The URL has more than {MAX_TARGET:,} characters", status=414)
            body = await _body(headers, receive)
        except KRQError as error:
            await problem(error)(scope, receive, answer)
            return
        await self._app(scope, _again(body, receive), answer)


async def _body(headers: MutableMapping[str, str], receive: Receive) -> bytes:
    """The whole body, which is small. Raises ``WebRequestInvalid`` where it is not."""
    length = headers.get("content-length", "")
    if not length and "transfer-encoding" not in headers:
        return b""
    body = b""
    more = not (length.isdigit() and int(length) > MAX_BODY)
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False) and len(body) <= MAX_BODY
    if len(body) > MAX_BODY or (length.isdigit() and int(length) > MAX_BODY):
        raise WebRequestInvalid(f"The body has more than {MAX_BODY:,} bytes", status=413)
    return body


def _again(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
