"""What the tests of the dashboard share: tasks, a server as users start it, an app behind the guard in this process."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import Servers, hold
from starlette.testclient import TestClient

import krq
from krq.dashboard.access import WebSettings
from krq.dashboard.server import make

TOKEN, VIEW = "act-token-0123456789", "view-token-0123456789"
CSRF = {"x-krq-request": "1"}
#: what a page of ours must show as text
HOSTILE = "<img/src=x/onerror=document.title='owned'>"

app = krq.KRQ()


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task(retries=0)
def boom(text: str) -> None:
    raise ValueError(text)


@app.task
def echo(value: Any) -> Any:
    return value


@app.task
def say(lines: list[str]) -> None:
    """Prints and logs them."""
    for line in lines:
        print(line)
        logging.getLogger(line).warning(line)


app.task(hold)


@app.task(retries=0, mask=["password", "pin"])
def sign_in(user: str, password: str, *, pin: str = "") -> None:
    raise ValueError(f"{user} may not: {password} {pin!r}")


@app.task(name=HOSTILE, retries=0)
def hostile(value: str) -> str:
    raise ValueError(value)


def problem(response: Any, status: int, code: str = "") -> dict[str, str]:
    assert response.status_code == status, response.text
    found: dict[str, str] = response.json()["error"]
    assert set(found) == {"code", "cause", "cure"}
    assert found["cause"] and (not code or found["code"] == code), found
    return found


def client(app: krq.KRQ, *, base: str = "http://127.0.0.1:8080", **settings: Any) -> TestClient:
    """A client of the dashboard in this process; errors of the server are answers."""
    return TestClient(make(app, WebSettings(**settings)), base_url=base, raise_server_exceptions=False)  # type: ignore[arg-type]


@contextmanager
def served(servers: Servers, folder: Path, *options: str, **environ: str) -> Iterator[str]:
    """``krq web`` on a free port; gives its address without the slash."""
    with (folder / f"web{time.monotonic_ns()}.log").open("wb") as log:
        command = [sys.executable, "-P", "-m", "krq", "web", "--port", "0", *options]
        process = subprocess.Popen(command, env={**servers.environ, **environ}, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://" in line, Path(log.name).read_text()
        try:
            yield line.split()[-1].rstrip("/")
        finally:
            process.terminate()
            process.wait(10)
            process.stdout.close()


if __name__ == "__main__":
    app.config_worker(worker_id=sys.argv[1])
    app.run(processes=int(sys.argv[2]))
