"""Takes the pictures of docs/dashboard.md: ``python tests/web_pictures.py``, a minute and a half. Needs Chromium."""

from __future__ import annotations

import logging
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from harness import Servers, Worker
from playwright.sync_api import Page, sync_playwright
from web_house import served

import krq
from krq.dev.valkey import ValkeyServer

IMAGES = Path(__file__).parent.parent / "docs" / "images"
SECONDS = 75

app = krq.KRQ()
log = logging.getLogger("shop.bank")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def resize(image: str, width: int = 800) -> dict[str, object]:
    time.sleep(random.uniform(0.02, 0.25))
    return {"image": image, "width": width}


@app.task(retries=3, backoff=3)
def fetch(url: str) -> int:
    time.sleep(random.uniform(0.05, 0.2))
    if random.random() < 0.3:
        raise ConnectionError(f"{url} did not answer within 3 s")
    return 200


@app.task(retries=1, backoff=1, mask=["card"])
def charge(customer: int, amount: float, card: str) -> str:
    print(f"asking the bank of customer {customer} for {amount:.2f}")
    time.sleep(0.05)
    if customer % 7 == 0:
        log.warning("no answer but no")
        raise ValueError(f"the card of customer {customer} was declined")
    return f"paid {amount:.2f}"


@app.task
def report(rows: Sequence[int]) -> int:
    for n in range(20):
        krq.current().progress(n, 20)
        time.sleep(0.5)
    return len(rows)


@app.task
def publish(results: Sequence[object]) -> int:
    return len(results)


#: pictures show no path of the machine that took them
charge.function.__code__ = charge.function.__code__.replace(co_filename="shop/tasks.py")


def load(mine: krq.KRQ, end: float) -> None:
    """What a shop asks for."""
    for n in range(1, 100_000):
        if time.monotonic() > end:
            return
        task = mine.registry.find
        task("add").send_many([(i, i) for i in range(random.randrange(5, 30))])
        for i in range(random.randrange(1, 4)):
            task("resize").options(queue="images").send(f"photo-{n}-{i}.jpg", width=random.choice([200, 800]))
        if n % 2:
            task("fetch").send(f"https://shop.example/item/{n}")
        if n % 6 == 0:
            task("charge").send(n, random.uniform(5, 90), card="4000 0000 0000 0002")
        if n % 15 == 0:
            task("report").send(list(range(50)))
        time.sleep(random.uniform(0.08, 0.25))


def flow(mine: krq.KRQ) -> str:
    """A workflow that is half done; the id of its end."""
    task = mine.registry.find
    images = krq.group(task("resize").s(f"cat-{n}.png") for n in range(12))
    caches = krq.group(task("fetch").si(f"https://cdn{n}.example") for n in range(3))
    return (images | task("report").s() | caches | task("publish").s()).send().id


def shoot(page: Page, url: str, name: str, wait: float = 1.5, *, whole: bool = False) -> None:
    page.goto(url)
    page.wait_for_selector("#pulse.live")
    time.sleep(wait)
    page.screenshot(path=IMAGES / f"{name}.png", full_page=whole)


def main() -> None:
    """Servers, two workers, a load, five pictures."""
    folder = Path(tempfile.mkdtemp())
    with ValkeyServer(folder / "valkey", fsync="off") as valkey, sync_playwright() as playwright:
        servers = Servers(valkey.url, valkey.url, "shop")
        workers = [Worker(servers, folder / f"{name}.log", name, 2, script="web_pictures.py").ready(2) for name in ("web-1", "web-2")]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with served(servers, folder) as url, servers.app() as mine:
            for task in app.registry:
                mine.task(**task.settings)(task.function)
            mine.schedule("nightly-report", "report", [[1, 2, 3]], cron="0 3 * * *")
            page = browser.new_page(viewport={"width": 1280, "height": 830})
            page.goto(url)
            loading = threading.Thread(target=load, args=(mine, time.monotonic() + SECONDS))
            loading.start()
            time.sleep(SECONDS - 30)
            last = flow(mine)
            mine.send_task("add", [1, 2], delay=3600)
            shoot(page, f"{url}/#/", "overview-light")
            dead = mine.dead_letters(1)[0].id
            shoot(page, f"{url}/#/workflows/{last}", "workflow", 5)
            page.emulate_media(color_scheme="dark")
            shoot(page, f"{url}/#/", "overview-dark")
            shoot(page, f"{url}/#/tasks/{dead}", "task-dark", whole=True)
            phone = browser.new_page(viewport={"width": 375, "height": 760})
            shoot(phone, f"{url}/#/tasks", "tasks-phone")
            loading.join()
        browser.close()
        for worker in workers:
            worker.stop()
            worker.close()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        app.config_worker(worker_id=sys.argv[1], queues=["default", "images"])
        app.run(processes=int(sys.argv[2]))
    else:
        main()
