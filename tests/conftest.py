"""Fixtures: real servers, started once a session on free ports, and a namespace of its own for each test."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from cli_shell import TASKS, Shell
from harness import Servers, Worker, in_memory, until
from shard import Shard
from starlette.testclient import TestClient

import krq
from krq.dev.kafka import KafkaServer
from krq.dev.valkey import ValkeyServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[pytest.TestReport]:  # type: ignore[misc]
    """Nothing is skipped in CI."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
    return report


STARTED = pytest.StashKey[list[ValkeyServer]]()


@pytest.fixture(scope="module", autouse=True)
def emptied(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the tests of a file leave in the servers goes when they are over: some walk through all keys."""
    yield
    for server in request.session.stash.get(STARTED, []):
        with redis.Redis(port=server.port) as client:
            client.flushall()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    """Valkey from the wheel."""
    with ValkeyServer(tmp_path_factory.mktemp("valkey"), fsync="off") as server:
        request.session.stash.setdefault(STARTED, []).append(server)
        yield server


@pytest.fixture(scope="session")
def debian_redis(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    """Another server of the same protocol: Debian's redis-server, which CI installs; elsewhere Valkey again."""
    binary = shutil.which("redis-server")
    if binary is None and os.environ.get("CI"):
        pytest.fail("CI runs the scripts on Debian's Redis, too: redis-server is missing")
    with ValkeyServer(tmp_path_factory.mktemp("redis"), fsync="off", binary=binary) as server:
        request.session.stash.setdefault(STARTED, []).append(server)
        yield server


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A single-node Apache Kafka."""
    with KafkaServer(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture
def own_valkey() -> Iterator[ValkeyServer]:
    """A server that loses nothing, for one test to stop, start and fill."""
    with in_memory() as folder, ValkeyServer(folder, fsync="always") as server:
        yield server


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[KafkaServer]:
    """A broker for one test to stop and start."""
    with KafkaServer(tmp_path / "kafka") as server:
        yield server


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test has."""
    return f"t{os.urandom(5).hex()}"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting comes from the developer's own environment."""
    for name in [name for name in os.environ if name.startswith("KRQ_") and not name.startswith(("KRQ_CACHE", "KRQ_TEST_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(params=["kafka", "streams"])
def servers(request: pytest.FixtureRequest, valkey: ValkeyServer, namespace: str) -> Servers:
    """Each broker with Valkey as the store."""
    broker = request.getfixturevalue("kafka").url if request.param == "kafka" else valkey.url
    return Servers(broker, valkey.url, namespace, heartbeat=0.3, lease=3, partitions=2)


@pytest.fixture
def app(servers: Servers) -> Iterator[krq.KRQ]:
    """An app on those servers."""
    with servers.app() as app:
        yield app


@pytest.fixture
def shell(tmp_path: Path, valkey: ValkeyServer, namespace: str) -> Shell:
    """A command line in a folder with tasks.py, and a namespace without a worker."""
    (tmp_path / "tasks.py").write_text(TASKS)
    return Shell(tmp_path, valkey.url, namespace)


@pytest.fixture(scope="module")
def web_servers(valkey: ValkeyServer) -> Servers:
    """Servers for the tests of the dashboard."""
    return Servers(valkey.url, valkey.url, f"t{os.urandom(5).hex()}", heartbeat=0.3, lease=3, partitions=2)


@pytest.fixture(scope="module")
def web_app(web_servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[krq.KRQ]:
    """An app with a worker, and a few tasks that have ended."""
    from web_house import HOSTILE

    worker = Worker(web_servers, tmp_path_factory.mktemp("web") / "w.log", script="web_house.py")
    with web_servers.app() as app:
        worker.ready()
        handles = [app.submit("add", n, 1) for n in range(30)]
        failed = [app.submit("boom", "it broke"), app.submit(HOSTILE, HOSTILE)]
        for handle in handles:
            handle.result(timeout=20)
        until(lambda: all(app.status(handle).status.final for handle in failed), "the failures have ended")
        yield app
    worker.close()


@pytest.fixture(scope="module")
def web(web_app: krq.KRQ) -> Iterator[TestClient]:
    """The dashboard on loopback, without credentials."""
    from web_house import client

    with client(web_app) as web:
        yield web


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        # a container has no user namespaces to make a sandbox of
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser that knows nothing yet."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(8_000)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page on whose console nothing complains."""
    page = context.new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    yield page
    assert [line for line in said if not re.search("status of (401|404)|ERR_CONNECTION|ERR_INCOMPLETE", line)] == []


@pytest.fixture(params=["valkey", "debian_redis"])
def shard(request: pytest.FixtureRequest) -> Iterator[Shard]:
    """One shard driven by hand, on each server; it leaves no key behind."""
    made = Shard(request.getfixturevalue(request.param).url)
    yield made
    names = [made.keys.prefix + name for name in made.dump()]
    for at in range(0, len(names), 5000):
        made.redis.unlink(*names[at : at + 5000])
    made.store.close()
