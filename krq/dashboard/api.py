"""The routes: each with its method, the role it takes, and what answers it."""

from __future__ import annotations

import hashlib
import logging
import mimetypes
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from krq import ids
from krq.core import KRQ
from krq.dashboard import detail, graph, shapes
from krq.dashboard.access import SESSION, Access, Role
from krq.dashboard.answers import answer, described, problem, status_of
from krq.dashboard.asked import DeadQuery, Ids, Login, Named, NoQuery, OneQuery, TasksQuery, body, query
from krq.dashboard.errors import WebRefused, WebRequestInvalid
from krq.dashboard.metrics import Metrics
from krq.dashboard.openapi import document
from krq.dashboard.watch import Watch
from krq.errors import KRQError, TaskNotFound
from krq.info import TaskFilter
from krq.masking import masked
from krq.version import __version__

log = logging.getLogger("krq.web")

Handler = Callable[[Request], Awaitable[Response]]


class Rule(NamedTuple):
    """One route."""

    method: str
    path: str
    role: Role
    handler: Handler


class Api:
    """Answers requests of one app."""

    def __init__(self, app: KRQ, access: Access, watch: Watch) -> None:
        self._app = app
        self._access = access
        self._watch = watch
        self._metrics = Metrics()
        self._files = _static()
        self._document = msgspec.json.encode(document())

    def rules(self) -> list[Rule]:
        """All routes. What is not here does not exist."""
        return [
            Rule("GET", "/", Role.NOBODY, self.page),
            Rule("GET", "/static/{name}", Role.NOBODY, self.page),
            Rule("GET", "/live", Role.NOBODY, self.live),
            Rule("GET", "/ready", Role.NOBODY, self.ready),
            Rule("GET", "/metrics", Role.VIEW, self.metrics),
            Rule("GET", "/api/openapi.json", Role.NOBODY, self.openapi),
            Rule("GET", "/api/session", Role.NOBODY, self.session),
            Rule("POST", "/api/login", Role.NOBODY, self.login),
            Rule("POST", "/api/logout", Role.NOBODY, self.logout),
            Rule("GET", "/api/overview", Role.VIEW, self.overview),
            Rule("GET", "/api/events", Role.VIEW, self.events),
            Rule("GET", "/api/tasks", Role.VIEW, self.tasks),
            Rule("GET", "/api/task", Role.VIEW, self.task),
            Rule("GET", "/api/logs", Role.VIEW, self.logs),
            Rule("GET", "/api/workflow", Role.VIEW, self.workflow),
            Rule("GET", "/api/workflows", Role.VIEW, self.workflows),
            Rule("GET", "/api/workers", Role.VIEW, self.workers),
            Rule("GET", "/api/dead", Role.VIEW, self.dead),
            Rule("GET", "/api/schedules", Role.VIEW, self.schedules),
            Rule("POST", "/api/tasks/retry", Role.ACT, self.retry),
            Rule("POST", "/api/tasks/cancel", Role.ACT, self.cancel),
            Rule("POST", "/api/queues/pause", Role.ACT, self.pause),
            Rule("POST", "/api/queues/resume", Role.ACT, self.resume),
            Rule("POST", "/api/dead/retry", Role.ACT, self.retry_dead),
            Rule("POST", "/api/dead/purge", Role.ACT, self.purge_dead),
            Rule("POST", "/api/schedules/pause", Role.ACT, self.pause_schedule),
            Rule("POST", "/api/schedules/resume", Role.ACT, self.resume_schedule),
            Rule("POST", "/api/schedules/fire", Role.ACT, self.fire),
        ]

    # --- for anybody -------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """The page and its files."""
        name = request.path_params.get("name", "index.html")
        if name not in self._files:
            raise WebRequestInvalid(f"There is no file {name[:100]!r}", status=404)
        content, kind, etag = self._files[name]
        headers = {"etag": etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    async def live(self, _: Request) -> Response:
        """This process answers."""
        return answer({"live": True})

    async def ready(self, _: Request) -> Response:
        """Redis answers, too. The reason is told as a code alone: whoever probes has not logged in."""
        try:
            await self._watch.shared("ready", self._app.inspector.queues)
        except KRQError as error:
            return answer({"ready": False, "code": error.code}, 503)
        return answer({"ready": True})

    async def openapi(self, _: Request) -> Response:
        """The description of this API."""
        return answer(self._document)

    async def session(self, request: Request) -> Response:
        """Who asks, and how one may log in."""
        settings = self._access.settings
        role = self._access.role(request.headers, request.cookies)
        return answer({
            "role": role.name.lower(), "guarded": settings.guarded, "logged_in": role > self._access.default,
            "by_token": bool(settings.token or settings.view_token), "by_password": bool(settings.password),
            "version": __version__, "namespace": self._app.config.namespace if role >= Role.VIEW else "",
        })

    async def login(self, request: Request) -> Response:
        """Credentials for a session's cookie."""
        given = await body(request, Login)
        client = request.client.host if request.client is not None else ""
        value = self._access.login(client, given.token, given.user, given.password)
        response = answer({"ok": True})
        secure = request.url.scheme == "https"
        response.set_cookie(self._access.cookie, value, max_age=SESSION, httponly=True, samesite="strict", secure=secure)
        return response

    async def logout(self, _: Request) -> Response:
        """Forget the cookie."""
        response = answer({"ok": True})
        response.delete_cookie(self._access.cookie, httponly=True, samesite="strict")
        return response

    # --- look --------------------------------------------------------------------------------

    async def metrics(self, _: Request) -> Response:
        """For Prometheus."""
        text = self._metrics.text(msgspec.json.decode(await self._watch.overview()))
        return Response(text, headers={"content-type": self._metrics.content_type})

    async def overview(self, request: Request) -> Response:
        """All numbers, once."""
        query(request, NoQuery)
        return answer(await self._watch.overview())

    async def events(self, request: Request) -> Response:
        """All numbers, as they change."""
        query(request, NoQuery)
        stream = await self._watch.stream()
        return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"})

    async def tasks(self, request: Request) -> Response:
        """A page of a list."""
        asked = query(request, TasksQuery)

        def read() -> dict[str, Any]:
            wanted = TaskFilter(status=asked.status, name=asked.name or None, queue=asked.queue or None, worker=asked.worker or None)
            page = self._app.page(wanted, asked.cursor or None, asked.limit)
            return {"tasks": [shapes.row(info) for info in page.tasks], "cursor": page.cursor, "looked": page.looked}

        return answer(await self._watch.shared(f"tasks {asked}", read))

    async def task(self, request: Request) -> Response:
        """One task."""
        task_id = query(request, OneQuery).id
        try:
            return answer(await self._watch.shared(f"task {task_id}", lambda: detail.known(self._app, task_id)))
        except TaskNotFound:
            return answer(await self._watch.shared(f"log {task_id}", lambda: detail.logged(self._app, task_id), slow=True))

    async def logs(self, request: Request) -> Response:
        """What one task has logged and printed, as Redis keeps it; nothing of a task that it does not know."""
        task_id = query(request, OneQuery).id
        return answer(await self._watch.shared(f"lines {task_id}", lambda: detail.lines(self._app, task_id)))

    async def workflow(self, request: Request) -> Response:
        """The graph around one task."""
        task_id = query(request, OneQuery).id
        return answer(await self._watch.shared(f"workflow {task_id}", lambda: graph.around(self._app, task_id)))

    async def workflows(self, request: Request) -> Response:
        """Workflows that are under way, or of which a task has failed."""
        query(request, NoQuery)
        return answer(await self._watch.shared("workflows", lambda: {"workflows": graph.listed(self._app)}))

    async def workers(self, request: Request) -> Response:
        """Those alive, and the deaths."""
        query(request, NoQuery)
        read = self._app.inspector
        return answer(await self._watch.shared("workers", lambda: {"workers": read.workers(), "failures": read.failures(200)}))

    async def dead(self, request: Request) -> Response:
        """A page of dead letters."""
        asked = query(request, DeadQuery)

        def read() -> dict[str, Any]:
            found = self._app.dead_letters(asked.limit, code=asked.code or None, name=asked.name or None, before=asked.before)
            more = found[-1].at / 1000 if len(found) == asked.limit else None
            return {"letters": [shapes.letter(one) for one in found], "before": more}

        return answer(await self._watch.shared(f"dead {asked}", read))

    async def schedules(self, request: Request) -> Response:
        """All schedules."""
        query(request, NoQuery)

        def read() -> dict[str, Any]:
            found = []
            for one in self._app.schedules():
                args, kwargs = masked(one.args, one.kwargs, {})
                found.append(msgspec.structs.replace(one, args=args, kwargs=kwargs, options={}))
            return {"schedules": found}

        return answer(await self._watch.shared("schedules", read))

    # --- act ---------------------------------------------------------------------------------

    async def retry(self, request: Request) -> Response:
        """Run ended tasks again."""
        return await self._each(request, lambda task_id: self._app.retry(ids.check_task_id(task_id)))

    async def cancel(self, request: Request) -> Response:
        """End tasks."""
        return await self._each(request, lambda task_id: self._app.cancel(ids.check_task_id(task_id)))

    async def retry_dead(self, request: Request) -> Response:
        """Run the tasks of dead letters again."""
        return await self._each(request, lambda ref: self._app.retry_dead([ref]))

    async def purge_dead(self, request: Request) -> Response:
        """Forget dead letters."""
        return await self._each(request, lambda ref: self._app.purge_dead([ref]))

    async def pause(self, request: Request) -> Response:
        """Pause a queue that there is."""
        return await self._named(request, lambda name: self._app.pause(self._queue(name)))

    async def resume(self, request: Request) -> Response:
        """Let a queue go on."""
        return await self._named(request, lambda name: self._app.resume(self._queue(name)))

    async def pause_schedule(self, request: Request) -> Response:
        """Pause a schedule."""
        return await self._named(request, self._app.pause_schedule)

    async def resume_schedule(self, request: Request) -> Response:
        """Let a schedule go on."""
        return await self._named(request, self._app.resume_schedule)

    async def fire(self, request: Request) -> Response:
        """Send the task of a schedule now."""
        return await self._named(request, self._app.fire)

    def _queue(self, name: str) -> str:
        if ids.check_queue(name) not in self._app.inspector.queues():
            raise WebRequestInvalid(f"There is no queue {name!r}", cure="The queues that there are stand in GET /api/overview.", status=404)
        return name

    async def _each(self, request: Request, act: Callable[[str], object]) -> Response:
        """Do it to every id, whatever became of the others. The status is an error's where none was done."""
        asked = list(dict.fromkeys((await body(request, Ids)).ids))

        def run() -> tuple[list[str], list[str], list[tuple[str, KRQError]]]:
            done: list[str] = []
            unchanged: list[str] = []
            failed: list[tuple[str, KRQError]] = []
            for one in asked:
                try:
                    (done if act(one) else unchanged).append(one)
                except KRQError as error:
                    failed.append((one, error))
                    if isinstance(error, ConnectionError):
                        break  # no other would fare better
            return done, unchanged, failed

        done, unchanged, failed = await self._watch.threaded(run)
        self._did(request, ", ".join(done[:5]))
        found = {"done": done, "unchanged": unchanged, "failed": [{"id": one, **described(error)} for one, error in failed]}
        if failed and not done:
            return answer({**found, "error": described(failed[0][1])}, status_of(failed[0][1]))
        return answer(found)

    async def _named(self, request: Request, act: Callable[[str], object]) -> Response:
        name = (await body(request, Named)).name
        await self._watch.threaded(lambda: act(name))
        self._did(request, name)
        return answer({"ok": True})

    def _did(self, request: Request, what: str) -> None:
        self._watch.forget()
        client = request.client.host if request.client is not None else "?"
        log.info("%s by %s: %r", request.url.path.removeprefix("/api/"), client, what)


def secured(rule: Rule, access: Access) -> Handler:
    """The route's handler behind its role; what acts is not for other sites' pages."""

    async def handle(request: Request) -> Response:
        try:
            role = access.role(request.headers, request.cookies)
            if request.method == "POST":
                access.check_origin(request.headers)
            if role < rule.role:
                log_in = "Log in, or send Authorization: Bearer with the token of krq web."
                cure = log_in if role is Role.NOBODY or access.default == role else "Log in with the token that may act."
                raise WebRefused("Not without a login" if role is Role.NOBODY else "Acting takes a login", cure=cure,
                                 status=401 if role is Role.NOBODY or access.default == role else 403)
            return await rule.handler(request)
        except KRQError as error:
            return problem(error)

    return handle


def _static() -> dict[str, tuple[bytes, str, str]]:
    found = {}
    for file in files("krq.dashboard").joinpath("static").iterdir():
        if file.is_file():
            content = file.read_bytes()
            kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
            etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            found[file.name] = (content, "text/javascript" if file.name.endswith(".js") else kind, etag)
    return found
