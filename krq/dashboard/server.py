"""The server: routes behind the guard, on one socket."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from krq.core import KRQ
from krq.dashboard.access import Access, WebSettings
from krq.dashboard.answers import answer, problem
from krq.dashboard.api import Api, secured
from krq.dashboard.errors import WebRequestInvalid
from krq.dashboard.guard import ASGI, Guard
from krq.dashboard.watch import Watch
from krq.errors import ConfigError

log = logging.getLogger("krq.web")


def make(app: KRQ, settings: WebSettings) -> ASGI:
    """The dashboard of an app as an ASGI application. Raises ``ConfigError`` for settings that would let strangers in."""
    settings.check()
    access, watch = Access(settings), Watch(app)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        watch.close()

    async def refused(_: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return problem(WebRequestInvalid("There is no such page" if status == 404 else "This can't be asked so", status=status))

    async def broken(_: Request, __: Exception) -> Response:
        return answer({"error": {"code": "KRQ_ERROR", "cause": "The request failed", "cure": "The log of krq web says why."}}, 500)

    rules = Api(app, access, watch).rules()
    starlette = Starlette(
        routes=[Route(rule.path, secured(rule, access), methods=[rule.method]) for rule in rules], lifespan=lifespan,
        exception_handlers={HTTPException: refused, Exception: broken},
    )
    starlette.router.redirect_slashes = False
    return Guard(starlette, access)


def serve(app: KRQ, settings: WebSettings, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; ``ready`` is called with the address. From the main thread. Raises ``ConfigError``."""
    asgi: Any = make(app, settings)
    config = uvicorn.Config(
        asgi, log_config=None, access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=15,
        timeout_graceful_shutdown=1, limit_concurrency=2_000, ws="none", lifespan="on",
    )
    with _listen(settings) as listener:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        ready(f"http://{host}:{listener.getsockname()[1]}/")
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _listen(settings: WebSettings) -> socket.socket:
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(found[4][:2], family=found[0], backlog=512)
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        raise ConfigError(f"{place} can't be listened at: {error.strerror or error}", cure="Choose another --port.") from error
