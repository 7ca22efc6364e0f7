"""Count the words of a folder of text, with as many workers as there are.

    krq worker examples.wordcount:app                in one or more terminals
    python examples/wordcount.py [FOLDER]            in another; default: the sources of Python's standard library

One task counts one chunk of files, some 256 KB of text. Workers read the files themselves, so they need to see the same
folder under the same path.
"""

import argparse
import asyncio
import re
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import krq

WORD = re.compile(r"[^\W\d_]{2,}")
CHUNK_BYTES = 256 * 1024
KEPT = 30_000
SKIPPED = {"__pycache__", "site-packages", "node_modules"}

app = krq.KRQ()


@app.task(queue="words")
def count_words(paths: list[str]) -> dict[str, Any]:
    """Count the words of these files. Exact up to 30,000 different words, beyond that the most frequent ones."""
    began, counts, size, files = time.thread_time(), Counter[str](), 0, 0
    for done, path in enumerate(paths, 1):
        raw = Path(path).read_bytes()
        if b"\0" not in raw[:8192]:  # else it is no text
            counts.update(WORD.findall(raw.decode(errors="replace").lower()))
            size += len(raw)
            files += 1
        krq.current().progress(done, len(paths))
    return {
        "words": dict(counts.most_common(KEPT)), "files": files, "bytes": size,
        "cpu": time.thread_time() - began, "worker": krq.current().worker,
    }


def chunks(folder: Path) -> Iterator[list[str]]:
    """The folder's files, grouped to about the same size."""
    chunk, size = [], 0
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part in SKIPPED or part.startswith(".") for part in parts) or path.is_symlink() or not path.is_file():
            continue
        chunk.append(str(path))
        size += path.stat().st_size
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class Tally:
    """What has come back so far."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.words = Counter[str]()
        self.workers: dict[str, Counter[str]] = {}
        self.failed: list[str] = []
        self._shown = -1

    def add(self, result: dict[str, Any]) -> None:
        self.words.update(result["words"])
        share = self.workers.setdefault(result["worker"], Counter())
        share.update(tasks=1, files=result["files"], bytes=result["bytes"], cpu=result["cpu"])

    def show(self) -> None:
        """A bar on a terminal, a line for each tenth elsewhere."""
        self.done += 1
        tenth = self.done * 10 // self.total
        if sys.stderr.isatty():
            bar = "#" * (self.done * 40 // self.total)
            end = "\n" if self.done == self.total else ""
            print(f"\r[{bar:40}] {self.done}/{self.total} chunks", end=end, file=sys.stderr, flush=True)
        elif tenth != self._shown:
            print(f"{self.done:5}/{self.total} chunks", file=sys.stderr, flush=True)
        self._shown = tenth


async def gather(handles: Sequence[krq.TaskHandle[dict[str, Any]]]) -> Tally:
    """Collect results in the order in which they come."""
    tally = Tally(len(handles))
    for result in asyncio.as_completed([handle.aresult(timeout=600) for handle in handles]):
        try:
            tally.add(await result)
        except krq.TaskFailed as error:
            tally.failed.append(f"{error.kind}: {error.message}")
        tally.show()
    return tally


def report(tally: Tally, seconds: float, top: int) -> None:
    """Two tables: the words, and who counted them."""
    print(f"\n{'word':20} {'times':>10}")
    for word, times in tally.words.most_common(top):
        print(f"{word[:20]:20} {times:10,}")
    print(f"{len(tally.words):,} different words, {tally.words.total():,} in all\n")
    print(f"{'worker':20} {'tasks':>7} {'files':>7} {'MB':>7} {'CPU s':>7}")
    for worker, share in [*sorted(tally.workers.items()), ("all", sum(tally.workers.values(), Counter()))]:
        print(f"{worker:20} {share['tasks']:7} {share['files']:7} {share['bytes'] / 1e6:7.1f} {share['cpu']:7.1f}")
    print(f"in {seconds:.1f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the words of a folder of text.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--top", type=int, default=15, metavar="N", help="how many words to show (default %(default)s)")
    options = parser.parse_args()
    work = list(chunks(options.folder.absolute()))
    if not work:
        sys.exit(f"There are no files in {options.folder}")
    began = time.perf_counter()
    handles = count_words.send_many([(paths,) for paths in work])
    print(f"sent {sum(map(len, work)):,} files of {options.folder} as {len(handles)} tasks", file=sys.stderr)
    if not app.workers():
        print("no worker is there yet; start one: krq worker examples.wordcount:app", file=sys.stderr)
    tally = asyncio.run(gather(handles))
    report(tally, time.perf_counter() - began, options.top)
    for text in tally.failed:
        print(f"failed: {text}", file=sys.stderr)
    return 1 if tally.failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except krq.KRQError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
