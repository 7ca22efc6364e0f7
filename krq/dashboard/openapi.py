"""The API in OpenAPI 3.1, written by hand: what a client may send, and what comes back."""

from __future__ import annotations

from typing import Any

from krq.states import TaskStatus
from krq.version import __version__

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer"}
TIME: Schema = {"type": ["number", "null"], "description": "Unix seconds"}
RATES: Schema = {"type": "array", "items": NUMBER, "description": "Tasks a second over the last 1, 5 and 15 minutes"}
STATUS: Schema = {"type": "string", "enum": [status.value for status in TaskStatus]}


def ref(name: str) -> Schema:
    """A schema of ``components``."""
    return {"$ref": f"#/components/schemas/{name}"}


def listed(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def shape(required: str, **properties: Schema) -> Schema:
    """An object; ``required``: names with spaces between, "*" for all."""
    names = list(properties) if required == "*" else required.split()
    return {"type": "object", "required": names, "properties": properties}


def text(most: int = 255, least: int = 0) -> Schema:
    """A string of such a length."""
    return {"type": "string", "minLength": least, "maxLength": most}


def parameter(name: str, schema: Schema, about: str, *, required: bool = False) -> Schema:
    """A parameter of the query."""
    return {"name": name, "in": "query", "required": required, "schema": schema, "description": about}


def answers(schema: Schema, *codes: int, kind: str = "application/json") -> dict[str, Any]:
    """What comes back: this, or a problem with one of these codes."""
    found: dict[str, Any] = {"200": {"description": "Done.", "content": {kind: {"schema": schema}}}}
    for code in (*codes, 400, 401, 403, 421, 503):
        found[str(code)] = {"description": "A problem.", "content": {"application/json": {"schema": ref("Problem")}}}
    return found


def get(about: str, schema: Schema, *codes: int, parameters: tuple[Schema, ...] = (), kind: str = "application/json") -> dict[str, Any]:
    """A path that looks."""
    return {"get": {"summary": about, "parameters": list(parameters), "responses": answers(schema, *codes, kind=kind)}}


def post(about: str, sent: Schema, schema: Schema, *codes: int) -> dict[str, Any]:
    """A path that acts."""
    header = {"name": "x-krq-request", "in": "header", "required": True, "schema": {"type": "string", "enum": ["1"]},
              "description": "Pages of other sites cannot send it."}
    return {"post": {
        "summary": about, "parameters": [header],
        "requestBody": {"required": True, "content": {"application/json": {"schema": {**sent, "additionalProperties": False}}}},
        "responses": answers(schema, 404, 409, 413, 415, *codes),
    }}


def schemas() -> dict[str, Schema]:
    """What the answers are made of."""
    null_text: Schema = {"type": ["string", "null"]}
    return {
        "Problem": shape("error", error=ref("Error")),
        "Error": shape("*", code=TEXT, cause=TEXT, cure=TEXT),
        "Ok": shape("*", ok={"type": "boolean"}),
        "Done": shape("*", done=listed(TEXT), unchanged=listed(TEXT), failed=listed(shape("*", id=TEXT, code=TEXT, cause=TEXT, cure=TEXT))),
        "Row": shape(
            "id name status queue", id=TEXT, name=TEXT, status=STATUS, queue=TEXT, worker=TEXT, attempt=WHOLE, failures=WHOLE, sent=TIME,
            due=TIME, started=TIME, finished=TIME, priority=WHOLE, progress={"type": ["array", "null"], "items": WHOLE},
            deaths=WHOLE, interruptions=WHOLE, waits_for=TEXT,
            result=null_text, error={"oneOf": [{"type": "null"}, shape("type message", type=TEXT, message=TEXT)]},
        ),
        "Node": shape("*", id=TEXT, name=TEXT, status={"oneOf": [{"type": "null"}, STATUS]}),
        "Moment": shape("*", at=TIME, kind=TEXT, text=TEXT),
        "Line": shape("*", at=NUMBER, attempt=WHOLE, worker=TEXT, text=TEXT, stream=TEXT, level=TEXT, logger=TEXT),
        "Reason": shape("*", code=TEXT, text=TEXT, id=TEXT, since=TIME, until=TIME),
        "Queue": shape(
            "*", queue=TEXT, ready=WHOLE, parked=WHOLE, scheduled=WHOLE, backlog=WHOLE, admitted=WHOLE, succeeded=WHOLE, failed=WHOLE,
            cancelled=WHOLE, retried=WHOLE, handed_back=WHOLE, paused={"type": "boolean"}, rates=RATES, failure_rates=RATES,
        ),
        "Worker": shape(
            "*", id=TEXT, incarnation=TEXT, host=TEXT, pid=WHOLE, queues=listed(TEXT), slots=WHOLE, busy=WHOLE, succeeded=WHOLE,
            failed=WHOLE, retried=WHOLE, started=TIME, beat=TIME, version=TEXT, inbox=TEXT,
        ),
        "Death": shape(
            "*", worker=TEXT, incarnation=TEXT, at=NUMBER, cause=TEXT, beat=TIME, held=WHOLE, ran=listed(TEXT), tail=listed(TEXT),
            host=TEXT,
        ),
        "Overview": shape(
            "*", at=NUMBER, totals={"type": "object", "additionalProperties": WHOLE}, rates=RATES, failure_rates=RATES,
            latency={"type": "object"}, queues=listed(ref("Queue")), workers=listed(ref("Worker")), failed=listed(ref("Row")),
            deaths=listed(ref("Death")), points=listed({"type": "array"}),
        ),
        "Letter": shape(
            "*", ref=TEXT, reason=TEXT, code=TEXT, at=NUMBER, queue=TEXT, partition=WHOLE, offset={"type": ["integer", "string"]}, id=TEXT,
            name=TEXT, attempt=WHOLE, base64={"type": "boolean"}, arguments=null_text, raw=TEXT, traceback=TEXT,
        ),
        "Schedule": shape(
            "name task when paused", name=TEXT, task=TEXT, when=TEXT, tz=TEXT, next=TIME, last=TIME, last_id=TEXT,
            paused={"type": "boolean"}, source=TEXT,
        ),
        "Flow": shape("*", id=TEXT, name=TEXT, n=WHOLE, counts={"type": "object", "additionalProperties": WHOLE}, names=listed(TEXT),
                      sent=NUMBER),
    }


def looks() -> dict[str, Any]:
    """Paths that look."""
    one = (parameter("id", text(600, 1), "The task's id.", required=True),)
    name = parameter("name", text(), "Of the task.")
    limit = parameter("limit", {"type": "integer", "minimum": 1, "maximum": 200}, "At most so many.")
    tasks = (
        parameter("status", STATUS, "Only these."), name, parameter("queue", text(), "Only of this queue."),
        parameter("worker", text(), "Only run by this worker."), parameter("cursor", text(1_000), "Of the page before."), limit,
    )
    before = parameter("before", {"type": "number", "minimum": 0, "maximum": 4e10}, "Older than this, Unix seconds.")
    letters = (parameter("code", text(), "Only of this error."), name, before, limit)
    detail = shape(
        "*", task={"oneOf": [{"type": "null"}, ref("Row")]}, past=listed(ref("Moment")), reasons=listed(ref("Reason")), next=TEXT,
        arguments={"type": ["object", "null"]},
        result={"type": ["string", "null"]}, error={"type": ["object", "null"]}, history=listed({"type": "object"}),
        after=listed(ref("Node")), dependents=listed(ref("Node")), in_workflow={"type": "boolean"},
    )
    return {
        "/live": get("This process answers.", shape("live", live={"type": "boolean"})),
        "/ready": get("Redis answers, too.", shape("ready", ready={"type": "boolean"}, code=TEXT)),
        "/metrics": get("For Prometheus.", TEXT, 501, kind="text/plain"),
        "/api/openapi.json": get("This.", {"type": "object"}),
        "/api/session": get("Who asks, and how one may log in.", {"type": "object"}),
        "/api/overview": get("All numbers, once.", ref("Overview")),
        "/api/events": get("All numbers, as they change: events overview, look and trouble.", TEXT, kind="text/event-stream"),
        "/api/tasks": get("A page of a list of tasks.", shape(
            "*", tasks=listed(ref("Row")), cursor={"type": ["string", "null"]}, looked=WHOLE), parameters=tasks),
        "/api/task": get("One task with its story; task is null where the log alone knows it.", detail, 404, parameters=one),
        "/api/logs": get("What one task has logged and printed, the newest lines; cut where there were more.", shape(
            "*", lines=listed(ref("Line")), cut={"type": "boolean"}), parameters=one),
        "/api/workflow": get("The tasks that hang together with one.", shape(
            "*", id=TEXT, cut={"type": "boolean"}, nodes=listed(ref("Node")), edges=listed(listed(TEXT)), children=listed(listed(TEXT)),
        ), 404, parameters=one),
        "/api/workflows": get("Workflows under way, or of which a task has failed.", shape("*", workflows=listed(ref("Flow")))),
        "/api/workers": get("Live workers, and deaths.", shape("*", workers=listed(ref("Worker")), failures=listed(ref("Death")))),
        "/api/dead": get("A page of dead letters.", shape(
            "*", letters=listed(ref("Letter")), before={"type": ["number", "null"]}), parameters=letters),
        "/api/schedules": get("All schedules.", shape("*", schedules=listed(ref("Schedule")))),
    }


def acts() -> dict[str, Any]:
    """Paths that act."""
    some = shape("ids", ids={"type": "array", "items": text(600, 1), "minItems": 1, "maxItems": 500})
    named, nothing = shape("name", name=text(255, 1)), {"type": "object"}
    found = {
        "/api/login": post("Credentials for a cookie.", shape("", token=text(), user=text(), password=text()), ref("Ok"), 429),
        "/api/logout": post("Forget the cookie.", nothing, ref("Ok")),
        "/api/tasks/retry": post("Run failed or cancelled tasks again.", some, ref("Done")),
        "/api/tasks/cancel": post("End tasks.", some, ref("Done")),
        "/api/dead/retry": post("Run the tasks of dead letters again.", some, ref("Done")),
        "/api/dead/purge": post("Forget dead letters.", some, ref("Done")),
    }
    for of in ("queues", "schedules"):
        for act in ("pause", "resume", *(("fire",) if of == "schedules" else ())):
            found[f"/api/{of}/{act}"] = post(f"{act.capitalize()} one of the {of}.", named, ref("Ok"))
    return found


def document() -> dict[str, Any]:
    """The whole description."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "KRQ dashboard", "version": __version__,
                 "description": "Times are Unix seconds. Problems have a code, a cause and a cure."},
        "paths": {**looks(), **acts()},
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "krq_session_8080", "description": "The port is that of the server."},
            },
        },
        "security": [{}, {"token": []}, {"session": []}],
    }
