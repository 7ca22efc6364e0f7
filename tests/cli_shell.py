"""What the tests of the command line share: a shell that leads to the servers, and tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from krq import KRQ

TASKS = """
import os, time
from pathlib import Path
import krq

app = krq.KRQ()
mine = "no app"

@app.task
def add(x: int, y: int = 0) -> int:
    return x + y

@app.task(retries=0)
def boom(text: str) -> None:
    raise ValueError(text)

@app.task(retries=3, backoff=krq.Backoff(300))
def flaky() -> None:
    raise OSError("the other side is away")

@app.task
def hold(path: str) -> str:
    krq.current().progress(1, 3)
    while Path(path).exists():
        time.sleep(0.02)
    return "let go"

@app.task
def die_once(path: str) -> str:
    if Path(path).exists():
        Path(path).unlink()
        os._exit(9)
    return "alive"
"""


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What ``condition`` returns, once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)
    return found


class Shell(NamedTuple):
    """A folder and the variables that lead to the servers."""

    folder: Path
    url: str
    namespace: str

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "KRQ_BROKER": self.url, "KRQ_BACKEND": self.url, "KRQ_NAMESPACE": self.namespace}

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-P", "-m", "krq", *words], cwd=self.folder, env={**self.environment, **more},
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *words: str, **more: str) -> tuple[int, str, str]:
        with self.start(*words, **more) as process:
            out, err = process.communicate(timeout=30)
        assert "Traceback" not in err or "cannot be imported" in err, err
        return process.returncode, out, err

    def ok(self, *words: str) -> str:
        code, out, err = self.run(*words)
        assert code == 0, err
        return out

    def json(self, *words: str) -> Any:
        return json.loads(self.ok(*words, "--json"))

    def app(self) -> KRQ:
        return KRQ(broker=self.url, backend=self.url, namespace=self.namespace)
