"""Fetches Apache Kafka's jars once, from Maven Central with ``jgo``, and remembers them."""

from __future__ import annotations

import json
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

from krq.dev.process import ServerError, extra_module, file_lock

KAFKA = "org.apache.kafka:kafka_2.13:4.3.1"
LOGGING = "org.slf4j:slf4j-simple:1.7.36"
LABEL = "Apache Kafka 4.3.1"
EXPECTED_BYTES = 46_900_000
DOWNLOADS_AT_ONCE = 4
HTTP_SECONDS = 30

Report = Callable[[str, int, int], None]


def resolve_kafka(progress: Report | None = None) -> list[Path]:
    """Kafka's class path. The first call ever downloads 45 MB; later ones read one small file.

    ``progress`` is called with (what, bytes done, bytes in all, estimated) while it downloads, from
    several threads but one at a time. Two processes at once are safe: the second waits for the
    first. A download that was cut off is taken up where it ended. Raises ``ServerError``:
    ``DEV_EXTRA_MISSING``, ``DEV_DOWNLOAD_FAILED``.
    """
    cache = cache_folder()
    manifest = cache / f"{KAFKA.replace(':', '-')}.json"
    if (known := _read(manifest)) is not None:
        return known
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with file_lock(cache / "download.lock"):
            if (known := _read(manifest)) is not None:
                return known
            jars = _download(cache / "maven", progress)
            _write(manifest, jars)
            return jars
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, ServerError):
            raise
        raise ServerError(
            "DEV_DOWNLOAD_FAILED",
            f"{LABEL} could not be fetched from Maven Central into {cache}: {error}",
            "The first start needs the network (a mirror: [repositories] in ~/.config/jgo.conf) and"
            " 50 MB of disc. Start again: it goes on where it ended.",
        ) from error


def cache_folder() -> Path:
    """``KRQ_CACHE``, else ``krq`` in ``XDG_CACHE_HOME``, else ``~/.cache/krq``."""
    if own := os.environ.get("KRQ_CACHE"):
        return Path(own).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "krq"


def _read(manifest: Path) -> list[Path] | None:
    """The jars of a finished download, all there and of the right size; else None."""
    try:
        sizes: dict[str, int] = json.loads(manifest.read_text())
        jars = {manifest.parent / name: size for name, size in sizes.items()}
        whole = all(jar.stat().st_size == size for jar, size in jars.items())
    except (FileNotFoundError, ValueError):
        return None
    return list(jars) if whole else None


def _write(manifest: Path, jars: list[Path]) -> None:
    sizes = {str(jar.relative_to(manifest.parent)): jar.stat().st_size for jar in jars}
    fresh = manifest.with_suffix(".new")
    fresh.write_text(json.dumps(sizes, indent=1))
    fresh.replace(manifest)


def _download(repository: Path, progress: Report | None) -> list[Path]:
    maven = extra_module("jgo.maven")
    coordinate = extra_module("jgo.parse").Coordinate
    central = extra_module("jgo.constants").MAVEN_CENTRAL_URL
    mirrors = extra_module("jgo.config").GlobalSettings.load().repositories
    _drop_torn(repository)
    meter = _Meter(progress)
    context = maven.MavenContext(
        resolver=maven.PythonResolver(progress_callback=meter.file),
        repo_cache=repository,
        remote_repos={**mirrors, "central": central},
        timeout=HTTP_SECONDS,
    )
    wanted = [context.create_dependency(coordinate.parse(text)) for text in (KAFKA, LOGGING)]
    named, drawn_in = context.resolver.resolve(wanted)
    needed = [*named, *(item for item in drawn_in if item.scope in ("compile", "runtime"))]
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        jars: list[Path] = list(pool.map(lambda item: item.artifact.resolve(), needed))
    meter.finish()
    return jars


def _drop_torn(repository: Path) -> None:
    """Remove files that a killed download left half-written: jgo takes any file for a whole one."""
    for jar in repository.rglob("*.jar"):
        if not zipfile.is_zipfile(jar):
            jar.unlink()
    for pom in repository.rglob("*.pom"):
        try:
            ElementTree.parse(pom)
        except ElementTree.ParseError:
            pom.unlink()


class _Meter:
    """Adds up the bytes of all files. jgo calls ``file`` from each of the downloading threads."""

    def __init__(self, report: Report | None) -> None:
        self._report = report
        self._done = 0
        self._lock = threading.Lock()

    @contextmanager
    def file(self, _name: str, _size: int) -> Iterator[Callable[[int], None]]:
        yield self._add

    def _add(self, size: int) -> None:
        with self._lock:
            before, self._done = self._done, self._done + size
            if self._report and self._done * 100 // EXPECTED_BYTES > before * 100 // EXPECTED_BYTES:
                self._report(LABEL, self._done, max(self._done, EXPECTED_BYTES))

    def finish(self) -> None:
        with self._lock:
            if self._report:
                self._report(LABEL, max(self._done, 1), max(self._done, 1))
