"""The dashboard in a real browser: Debian's Chromium, headless."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import Servers, Worker, until
from playwright.sync_api import BrowserContext, Page, expect
from web_house import HOSTILE, TOKEN, served

import krq
from krq import TaskStatus
from krq.dev.valkey import ValkeyServer

PAYLOADS = [
    "<script>document.title='owned'</script>", "<svg/onload=document.title='owned'>", "'\"></pre></code><iframe src=javascript:alert(1)>",
    "javascript:document.title='owned'", "</script><style>*{display:none}</style>", "{{7*7}}${7*7}<!--",
]


class House(NamedTuple):
    """Two dashboards of one namespace: one for everybody here, one where acting takes a token."""

    app: krq.KRQ
    worker: Worker
    folder: Path
    open: str
    guarded: str


@pytest.fixture(scope="module")
def house(valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("browser")
    servers = Servers(valkey.url, valkey.url, f"t{os.urandom(5).hex()}", heartbeat=0.3, lease=3, partitions=2)
    worker = Worker(servers, folder / "w.log", HOSTILE, script="web_house.py")
    with served(servers, folder) as open_, served(servers, folder, KRQ_WEB_TOKEN=TOKEN) as guarded, servers.app() as app:
        worker.ready()
        yield House(app, worker, folder, open_, guarded)
    worker.close()


def shown(page: Page, tile: str) -> int:
    return int((page.locator(f"[data-number='{tile}']").text_content() or "").replace(",", ""))


def failed(app: krq.KRQ, name: str = "boom", text: str = "it broke") -> str:
    handle = app.submit(name, text)
    until(lambda: app.status(handle).status.final, "it failed")
    return handle.id


def test_numbers_change_without_a_reload(page: Page, house: House) -> None:
    page.goto(house.open)
    expect(page.locator("#pulse.live")).to_be_visible()
    page.evaluate("window.same = true")
    before = shown(page, "succeeded")
    for handle in house.app.submit_many([{"task": "add", "args": [n]} for n in range(20)]):
        handle.result(timeout=20)
    expect(page.locator("[data-number='succeeded']")).to_have_text(f"{before + 20:,}")
    assert page.evaluate("window.same") is True
    assert house.app.stats().queues["default"].succeeded == before + 20
    expect(page.locator(".chart path.line").first).to_be_attached()
    gate = house.folder / "gate"
    gate.touch()
    running = house.app.submit("hold", str(gate))
    expect(page.locator("[data-number='processing']")).to_have_text("1")
    gate.unlink()
    running.result(timeout=20)
    expect(page.locator("[data-number='processing']")).to_have_text("0")


def test_a_task_is_found_and_retried_by_click(page: Page, house: House) -> None:
    task_id = failed(house.app)
    page.goto(f"{house.open}/#/tasks?status=failed&name=boom")
    page.locator(f"tr[data-row='{task_id}'] a").first.click()
    expect(page).to_have_url(re.compile(f"#/tasks/{task_id}$"))
    expect(page.locator("h1")).to_contain_text("boom")
    expect(page.locator(".trace")).to_contain_text("ValueError: it broke")
    expect(page.locator(".story li")).to_have_count(5)  # sent, begun, failed, ended, and what comes next
    for moment in house.app.why(task_id).past:
        expect(page.locator(".story")).to_contain_text(moment.text)
    expect(page.locator("main")).to_contain_text('"it broke"')
    attempt = house.app.status(task_id).attempt
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".toast")).to_have_text("Sent again")
    until(lambda: house.app.status(task_id).attempt == attempt + 1 and house.app.status(task_id).status.final, "it ran again")
    page.keyboard.press("/")
    page.locator("#find").fill(task_id)
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text("boom")


def test_a_running_task_is_cancelled_by_click(page: Page, house: House) -> None:
    gate = house.folder / "cancel"
    gate.touch()
    handle = house.app.submit("hold", str(gate))
    page.goto(f"{house.open}/#/tasks/{handle.id}")
    expect(page.locator("h1 .badge")).to_have_text("processing")
    expect(page.locator(".facts").first).to_contain_text("1 of 3")
    page.get_by_role("button", name="Cancel").click()
    page.locator("dialog").get_by_role("button", name="Leave it").click()
    assert house.app.status(handle).status is TaskStatus.PROCESSING
    page.get_by_role("button", name="Cancel").click()
    page.locator("dialog").get_by_role("button", name="Cancel it").click()
    expect(page.locator("h1 .badge")).to_have_text("cancelled")
    assert house.app.status(handle).status is TaskStatus.CANCELLED


def test_acting_takes_the_token(page: Page, house: House) -> None:
    task_id = failed(house.app)
    page.goto(f"{house.guarded}/#/tasks/{task_id}")
    page.get_by_role("button", name="Retry").click()
    dialog = page.locator("dialog")
    dialog.get_by_role("button", name="Not now").click()
    page.get_by_role("button", name="Retry").click()
    dialog.get_by_label("Token").fill("wrong-token")
    dialog.get_by_role("button", name="Log in").click()
    expect(dialog.locator(".bad")).to_contain_text("wrong")
    assert house.app.status(task_id).attempt == 1
    dialog.get_by_label("Token").fill(TOKEN)
    dialog.get_by_role("button", name="Log in").click()
    until(lambda: _again(page, house.app, task_id), "it ran again once the login was right")
    assert page.evaluate("document.cookie") == ""
    expect(page.locator("#login")).to_have_text("Log out")


def _again(page: Page, app: krq.KRQ, task_id: str) -> bool:
    page.wait_for_timeout(20)  # lets the page go on
    return app.status(task_id).attempt == 2


def test_queues_are_paused_and_dead_letters_retried(page: Page, house: House) -> None:
    task_id = failed(house.app)
    page.goto(f"{house.open}/#/queues")
    page.get_by_role("button", name="Pause").first.click()
    page.locator("dialog").get_by_role("button", name="Pause").click()
    expect(page.locator("td .badge")).to_have_text("paused")
    assert house.app.stats().queues["default"].paused
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("td .badge")).to_have_count(0)
    page.get_by_role("link", name="Dead letters").click()
    letter = page.locator(".letter", has=page.locator(f"[data-key='choose-{task_id}']"))
    letter.locator("summary").click()
    expect(letter.locator("pre").first).to_contain_text("it broke")
    page.get_by_role("button", name="Choose all").click()
    page.get_by_role("button", name=re.compile("^Retry")).click()
    expect(page.locator(".toast").last).to_contain_text("sent again")
    until(lambda: house.app.status(task_id).attempt == 2, "it ran again")


def test_a_workflow_is_a_graph(page: Page, house: House) -> None:
    gate = house.folder / "graph"
    gate.touch()
    first = house.app.submit("hold", str(gate))
    middle = [house.app.send_task("add", [n], after=[first]) for n in range(3)]
    last = house.app.send_task("echo", [1], after=middle)
    page.goto(f"{house.open}/#/workflows")
    page.locator("tbody tr", has_text="hold").locator("a").first.click()
    expect(page.locator("svg.graph a")).to_have_count(5)
    expect(page.locator("svg.graph .edge")).to_have_count(6)
    gate.unlink()
    house.app.result(last, timeout=20)
    expect(page.locator("svg.graph .share.success")).to_have_count(5)


class Hostile(NamedTuple):
    """Ids of tasks that have hostile names, arguments and results, and are in workflows."""

    failed: str
    succeeded: str
    said: str
    last: str


@pytest.fixture(scope="module")
def hostile(house: House) -> Hostile:
    app = house.app
    broken, given = failed(app, HOSTILE, HOSTILE), app.submit("echo", [HOSTILE, *PAYLOADS])
    assert given.result(timeout=20) == [HOSTILE, *PAYLOADS]
    said = app.submit("say", PAYLOADS)
    until(lambda: len(said.logs()) == 2 * len(PAYLOADS), "its lines have come")
    last = app.send_task(HOSTILE, [HOSTILE], after=[broken])
    app.schedule(HOSTILE, HOSTILE, [HOSTILE], every=3600)
    os.kill(house.worker.children[0], signal.SIGKILL)  # the last lines of its log have the worker's name
    until(lambda: app.failures(), "the death is known")
    house.worker.ready(2)
    return Hostile(broken, given.id, said.id, last)


@pytest.mark.parametrize("view", [
    "", "tasks?status=failed", "tasks?status=success", "tasks/{failed}", "tasks/{succeeded}", "tasks/{said}", "workflows",
    "workflows/{last}", "workers", "schedules", "dead",
])
def test_what_others_wrote_is_text(page: Page, house: House, hostile: Hostile, view: str) -> None:
    page.goto(f"{house.open}/#/{view.format(**hostile._asdict())}")
    expect(page.locator("main")).to_contain_text("<img/src=x/onerror=" if "success" in view else HOSTILE)  # the list cuts what is long
    for more in page.locator("summary").all():
        more.click()
    if view == "workers":
        expect(page.locator("pre.log").first).to_contain_text(HOSTILE)
    for payload in PAYLOADS if view == "tasks/{succeeded}" else ():
        expect(page.locator("main")).to_contain_text(json.dumps(payload))
    for payload in PAYLOADS if view == "tasks/{said}" else ():  # printed, and logged
        expect(page.get_by_label("Lines").get_by_text(payload)).to_have_count(2)
    page.wait_for_timeout(150)
    assert page.locator("main :is(img, script, iframe, object, style, base, meta), main [onload], main [onerror], main [src]").count() == 0
    assert page.locator("main a:not([href^='#/'])").count() == 0
    assert "owned" not in page.title()


class Prize(BaseHTTPRequestHandler):
    """Another server on this very machine: for the browser the same site, so that our cookies come along."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<h1>Win a prize</h1>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Prize) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_page_from_elsewhere_can_do_nothing(context: BrowserContext, house: House, elsewhere: str) -> None:
    task_id, evil = failed(house.app), context.new_page()
    context.request.post(f"{house.guarded}/api/login", headers={"x-krq-request": "1"}, data={"token": TOKEN})
    for base in (house.open, house.guarded):
        evil.goto(elsewhere)
        for headers in ({}, {"x-krq-request": "1"}, {"x-krq-request": "1", "content-type": "application/json"}):
            evil.evaluate("""([url, headers, body]) => fetch(url, {
                method: "POST", mode: Object.keys(headers).length ? "cors" : "no-cors", credentials: "include", headers, body,
            }).catch(() => null)""", [f"{base}/api/tasks/retry", headers, json.dumps({"ids": [task_id]})])
        seen = "url => fetch(url, {credentials: 'include'}).then((answer) => answer.text(), () => null)"
        assert evil.evaluate(seen, f"{base}/api/overview") is None
        evil.evaluate("""src => new Promise((done) => {
            document.body.append(Object.assign(document.createElement("iframe"), {src, onload: done}));
        })""", base)
        assert evil.frame_locator("iframe").locator("#pulse").count() == 0
        evil.set_content(f"<form method=post action={base}/api/tasks/retry><input name=ids value={task_id}><button>Prize</button></form>")
        evil.get_by_role("button").click()
        expect(evil.locator("body")).to_contain_text("The request comes from another site")
    assert house.app.status(task_id).attempt == 1


def test_light_and_dark(page: Page, context: BrowserContext, house: House) -> None:
    def background() -> Any:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    page.emulate_media(color_scheme="light")
    page.goto(house.open)
    expect(page.locator("#pulse.live")).to_be_visible()
    light = background()
    page.emulate_media(color_scheme="dark")
    dark = background()
    assert dark != light
    page.keyboard.press("t")
    assert background() == light
    page.reload()
    assert background() == light  # what was chosen stays
    page.locator("#theme").click()
    assert background() == dark


def test_keys_lead_everywhere(page: Page, house: House) -> None:
    failed(house.app)
    page.goto(house.open)
    expect(page.locator("#pulse.live")).to_be_visible()
    for key, heading in (("2", "Queues"), ("5", "Workers"), ("6", "Schedules"), ("7", "Dead letters"), ("3", "Tasks")):
        page.keyboard.press(key)
        expect(page.locator("h1")).to_have_text(heading)
    expect(page.locator("tbody tr").nth(1)).to_be_visible()
    page.keyboard.press("j")
    page.keyboard.press("j")
    chosen = page.evaluate("document.activeElement.closest('tr').dataset.row")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(f"#/tasks/{chosen}$"))
    page.keyboard.press("?")
    expect(page.locator("dialog")).to_contain_text("light or dark")


def test_it_fits_a_phone(page: Page, house: House) -> None:
    task_id = failed(house.app, "boom", "a long text " * 30)
    page.set_viewport_size({"width": 375, "height": 740})
    for view in ("", "queues", "tasks", f"tasks/{task_id}", "workers", "workflows", "schedules", "dead"):
        page.goto(f"{house.open}/#/{view}")
        expect(page.locator("main .card, main .empty").first).to_be_visible()
        page.wait_for_timeout(60)
        wide = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide[0] <= wide[1] == 375, view
    page.goto(f"{house.open}/#/tasks/{task_id}")
    box = page.get_by_role("button", name="Retry").bounding_box()
    assert box is not None and box["height"] >= 36 and box["x"] + box["width"] <= 375


def test_the_first_numbers_come_quickly(page: Page, house: House) -> None:
    page.goto(house.open)  # once, for what the browser itself has to load
    expect(page.locator("#pulse.live")).to_be_visible()
    found = [page.evaluate("""async () => {
        const began = performance.now();
        await Promise.all(["/", "/static/app.js", "/static/style.css"].map((path) => fetch(path)));
        const stream = new EventSource("/api/events");
        await new Promise((done) => stream.addEventListener("overview", done));
        stream.close();
        return performance.now() - began;
    }""") for _ in range(5)]
    assert sorted(found)[2] < 300, found


def test_the_page_outlives_its_server(page: Page, house: House, tmp_path: Path) -> None:
    config = house.app.config
    with served(Servers(config.broker, config.backend, config.namespace), tmp_path) as url:
        page.goto(url)
        expect(page.locator("#pulse.live")).to_be_visible()
    expect(page.locator("#pulse.off")).to_be_visible()
    page.goto("about:blank")
