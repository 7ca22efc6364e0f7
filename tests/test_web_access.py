"""The dashboard: who may do what, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cli_shell import Shell
from harness import Servers
from starlette.testclient import TestClient
from web_house import CSRF, TOKEN, VIEW, client, problem

import krq
from krq.cli import main
from krq.dashboard.access import Access, WebSettings
from krq.dashboard.api import Api
from krq.dashboard.guard import HEADERS
from krq.dashboard.openapi import document
from krq.dashboard.watch import Watch
from krq.errors import ConfigError

#: every route there is, and the role it takes
ROUTES = {
    "nobody": {"GET /", "GET /static/{name}", "GET /live", "GET /ready", "GET /api/openapi.json", "GET /api/session", "POST /api/login",
               "POST /api/logout"},
    "view": {"GET /metrics", "GET /api/overview", "GET /api/events", "GET /api/logs", "GET /api/tasks", "GET /api/task",
             "GET /api/workflow", "GET /api/workflows", "GET /api/workers", "GET /api/dead", "GET /api/schedules"},
    "act": {"POST /api/tasks/retry", "POST /api/tasks/cancel", "POST /api/queues/pause", "POST /api/queues/resume", "POST /api/dead/retry",
            "POST /api/dead/purge", "POST /api/schedules/pause", "POST /api/schedules/resume", "POST /api/schedules/fire"},
}
GUARDED = {"host": "0.0.0.0", "token": TOKEN, "view_token": VIEW}


# --- who may do what -------------------------------------------------------------------------


def test_every_route_is_listed_with_its_role(web_app: krq.KRQ) -> None:
    rules = Api(web_app, Access(WebSettings()), Watch(web_app)).rules()
    assert {role: {f"{rule.method} {rule.path}" for rule in rules if rule.role.name.lower() == role} for role in ROUTES} == ROUTES
    described = {f"{method.upper()} {path}" for path, methods in document()["paths"].items() for method in methods}
    assert described == set().union(*ROUTES.values()) - {"GET /", "GET /static/{name}"}


@pytest.mark.parametrize("route", sorted(ROUTES["view"] | ROUTES["act"]))
def test_nobody_gets_in_without_a_login(web_app: krq.KRQ, route: str) -> None:
    method, path = route.split()
    with client(web_app, **GUARDED) as web:
        for way in (path, f"http://127.0.0.1:8080/{path}", path.replace("/api/", "/api//"), path.replace("/api", "/%61pi")):
            response = web.request(method, way, headers=CSRF, json={} if method == "POST" else None)
            assert response.status_code in (401, 404), (way, response.text)
        problem(web.request(method, path, headers=CSRF, json={} if method == "POST" else None), 401, "WEB_REFUSED")
        problem(web.request(method, path, headers={**CSRF, "authorization": "Bearer wrong-token"}), 401)
        if route in ROUTES["act"]:
            problem(web.post(path, headers={**CSRF, "authorization": f"Bearer {VIEW}"}, json={}), 403)
            problem(web.post(path, headers={**CSRF, "authorization": f"Bearer {TOKEN}"}, json={}), 400)  # in, and no sense
            problem(web.get(path, headers={"authorization": f"Bearer {TOKEN}"}), 405)
        elif path != "/api/events":
            headers = {"authorization": f"Bearer {VIEW}"}
            assert web.get(path, headers=headers).status_code == (400 if path in ("/api/task", "/api/logs", "/api/workflow") else 200)


def test_on_loopback_a_token_is_for_acting(web_app: krq.KRQ) -> None:
    with client(web_app, token=TOKEN) as web:
        assert web.get("/api/overview").status_code == 200
        problem(web.post("/api/queues/pause", headers=CSRF, json={"name": "default"}), 401)
        assert web.get("/api/session").json()["role"] == "view"
    with client(web_app, host="0.0.0.0", token=TOKEN, public=True) as web:
        assert web.get("/api/overview").status_code == 200
        problem(web.post("/api/queues/pause", headers=CSRF, json={"name": "default"}), 401)


def test_login_gives_a_cookie_that_scripts_and_other_sites_do_not_get(web_app: krq.KRQ) -> None:
    with client(web_app, host="0.0.0.0", user="ada", password="correct horse") as web:
        problem(web.post("/api/login", headers=CSRF, json={"user": "ada", "password": "wrong"}), 401)
        problem(web.post("/api/login", headers=CSRF, json={"user": "", "password": ""}), 401)
        problem(web.post("/api/login", headers=CSRF, json={"token": ""}), 401)
        response = web.post("/api/login", headers=CSRF, json={"user": "ada", "password": "correct horse"})
        cookie = response.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie and "path=/" in cookie
        assert web.get("/api/session").json()["role"] == "act"
        problem(web.post("/api/queues/pause", headers=CSRF, json={"name": "nosuch"}), 404)
        name, value = response.headers["set-cookie"].partition(";")[0].split("=", 1)
        assert web.post("/api/logout", headers=CSRF, json={}).status_code == 200
        assert web.get("/api/session").json()["role"] == "nobody"
        role, rest = value.split(".", 1)
        for forged in (f"1.{rest}", f"{role}.99{rest}", value[:-1] + ("0" if value[-1] != "0" else "1"), "2.9999999999.x.", "", "...."):
            assert web.get("/api/session", headers={"cookie": f"{name}={forged}"}).json()["role"] == "nobody", forged


def test_guessing_is_slowed_down(web_app: krq.KRQ) -> None:
    with client(web_app, token=TOKEN) as web:
        codes = [web.post("/api/login", headers=CSRF, json={"token": f"guess-{n}"}).status_code for n in range(12)]
        assert codes == [401] * 10 + [429] * 2
        problem(web.post("/api/login", headers=CSRF, json={"token": TOKEN}), 429)


@pytest.mark.parametrize("headers", [
    {"origin": "https://evil.example", **CSRF}, {"origin": "null", **CSRF}, {"origin": "http://127.0.0.1:9999", **CSRF},
    {"sec-fetch-site": "cross-site", **CSRF}, {"sec-fetch-site": "same-site", **CSRF}, {},
    {"host": "evil.example", **CSRF}, {"host": "127.0.0.1.evil.example:8080", **CSRF}, {"host": "", **CSRF},
], ids=str)
def test_a_hostile_page_is_refused(web: TestClient, web_app: krq.KRQ, headers: dict[str, str]) -> None:
    response = web.post("/api/queues/pause", headers=headers, json={"name": "default"})
    problem(response, 421 if "host" in headers else 403, "WEB_REFUSED")
    assert not web_app.stats().queues["default"].paused


def test_forms_and_gets_change_nothing(web: TestClient, web_app: krq.KRQ) -> None:
    problem(web.post("/api/queues/pause", headers=CSRF, data={"name": "default"}), 415)
    problem(web.post("/api/queues/pause", headers={**CSRF, "content-type": "text/plain"}, content='{"name":"default"}'), 415)
    problem(web.get("/api/queues/pause", params={"name": "default"}), 405)
    assert not web_app.stats().queues["default"].paused
    assert "access-control-allow-origin" not in web.options("/api/queues/pause", headers={"origin": "https://evil.example"}).headers


def test_our_own_page_may_act(web: TestClient, web_app: krq.KRQ) -> None:
    own = {**CSRF, "origin": "http://127.0.0.1:8080", "sec-fetch-site": "same-origin"}
    assert web.post("/api/queues/pause", headers=own, json={"name": "default"}).json() == {"ok": True}
    assert web_app.stats().queues["default"].paused
    assert web.post("/api/queues/resume", headers=own, json={"name": "default"}).status_code == 200
    assert not web_app.stats().queues["default"].paused
    problem(web.post("/api/queues/pause", headers=own, json={"name": "nosuch"}), 404)


@pytest.mark.parametrize("path", [
    "/", "/static/app.js", "/api/overview", "/api/task?id=nosuch", "/nowhere", "/static/..%2f..%2fapi.py", "/metrics",
])
def test_headers_stand_on_every_answer(web: TestClient, path: str) -> None:
    response = web.get(path)
    assert all(response.headers[name] == value for name, value in HEADERS.items())
    policy = response.headers["content-security-policy"]
    assert all(rule in policy for rule in ("default-src 'none'", "script-src 'self';", "frame-ancestors 'none'")) and "unsafe" not in policy
    assert response.status_code == (404 if re.search("nosuch|nowhere|api.py", path) else 200)
    assert "cache-control" in response.headers


@pytest.mark.parametrize(("settings", "says"), [
    ({"host": "0.0.0.0"}, "KRQ_WEB_TOKEN"), ({"host": "::"}, "KRQ_WEB_TOKEN"), ({"host": "example.org", "public": True}, "KRQ_WEB_TOKEN"),
    ({"user": "ada"}, "KRQ_WEB_PASSWORD"), ({"token": "short"}, "8 characters"), ({"password": "long enough"}, "KRQ_WEB_USER"),
])
def test_settings_that_let_strangers_in_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        WebSettings(**settings).check()


def test_the_command_says_what_is_missing(tmp_path: Path, web_servers: Servers, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["web", "--host", "0.0.0.0", "--port", "0"]) == 1
    err = capsys.readouterr().err
    assert "KRQ_WEB_TOKEN" in err and "CONFIG_INVALID" in err
    shell = Shell(tmp_path, web_servers.broker, web_servers.namespace)
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['starlette'] = None\n")
    code, _, err = shell.run("web", "--port", "0", PYTHONPATH=str(tmp_path))
    assert code == 1 and "pip install 'krq[web]'" in err
