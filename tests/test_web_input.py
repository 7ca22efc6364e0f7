"""The dashboard's API: nothing that is sent to it breaks it."""

from __future__ import annotations

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as fuzz_settings
from schemathesis import Case
from schemathesis.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from starlette.testclient import TestClient
from web_house import CSRF, TOKEN, problem

import krq
from krq.dashboard.access import WebSettings
from krq.dashboard.openapi import document
from krq.dashboard.server import make


@pytest.mark.parametrize(("path", "status"), [
    ("/api/tasks?limit=0", 400), ("/api/tasks?limit=9999999999999999999999", 400), ("/api/tasks?limit=1e3", 400),
    ("/api/tasks?status=nosuch", 400),
    ("/api/tasks?cursor=%00", 400), ("/api/tasks?cursor=WzEsIngiLCJ5IiwxZTk5OV0", 400), ("/api/tasks?nosuch=1", 400),
    ("/api/task", 400),
    ("/api/task?id=%F0%9F%92%A9", 404), ("/api/task?id=%ff%fe", 404), ("/api/task?id=" + "x" * 600, 400),
    ("/api/dead?before=nan", 400), ("/api/dead?before=-1", 400), ("/api/dead?before=1", 200), ("/api/dead?limit=-1", 400),
    ("/api/tasks?name=" + "x" * 5000, 414), ("/api/workflow?id=..%2f..", 404),
])
def test_bad_queries_have_named_answers(web: TestClient, path: str, status: int) -> None:
    answer = web.get(path)
    if status == 200 or (path.startswith("/api/task?") and answer.status_code == 200):  # while the log has something unread it may be there
        assert answer.status_code == 200 and not answer.json().get("task")
    else:
        problem(answer, status)


@pytest.mark.parametrize(("content", "status"), [
    (b"", 400), (b"{", 400), (b"[]", 400), (b"null", 400), (b'{"ids": []}', 400), (b'{"ids": [1]}', 400),
    (b'{"ids": ["x"], "more": 1}', 400),
    (b"\xff\xfe", 400), (b'{"ids": ["' + b"x" * 300_000 + b'"]}', 413), (b"[" * 100_000, 400), (b'{"ids": ["\\ud800"]}', 400),
    (json.dumps({"ids": ["x"] * 501}).encode(), 400), (b'{"ids": [""]}', 400), (b'{"ids": ["a b"]}', 400),
])
def test_bad_bodies_have_named_answers(web: TestClient, content: bytes, status: int) -> None:
    for path in ("/api/tasks/retry", "/api/tasks/cancel"):
        problem(web.post(path, headers={**CSRF, "content-type": "application/json"}, content=content), status)


PATHS = [(path, method) for path, methods in document()["paths"].items() for method in methods if path != "/api/events"]


@pytest.mark.parametrize(("path", "method"), PATHS, ids=lambda part: str(part))
def test_nothing_breaks_it(web_app: krq.KRQ, path: str, method: str) -> None:
    app = make(web_app, WebSettings(token=TOKEN, names=("testserver",)))
    operation = schemathesis.openapi.from_asgi("/api/openapi.json", app)[path][method]

    @given(case=operation.as_strategy(), authorized=strategies.booleans())
    @fuzz_settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    def send(case: Case, authorized: bool) -> None:
        case.headers["x-krq-request"] = "1"
        if authorized:
            case.headers["authorization"] = f"Bearer {TOKEN}"
        response = case.call()
        assert response.status_code < 500, response.text
        case.validate_response(response, checks=[status_code_conformance, content_type_conformance, response_schema_conformance])

    send()
