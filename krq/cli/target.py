"""From what the user typed to an app: ``module:attribute``, ``file.py``, or the addresses of the servers."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from krq.core import KRQ
from krq.errors import KRQError

P = ParamSpec("P")
R = TypeVar("R")


class AppNotFound(KRQError, LookupError):
    """What was given as APP leads to no app."""

    code = "APP_NOT_FOUND"


def load(target: str) -> KRQ:
    """The app that ``module:attribute``, ``module``, ``file.py`` or ``file.py:attribute`` names.

    Puts the working directory on ``sys.path``, and a file's own folder. The attribute is ``app`` unless given. Raises ``AppNotFound``.
    """
    place, _, attribute = target.partition(":")
    _add_path(Path.cwd())
    is_file = place.endswith(".py") or os.sep in place
    module = _import_file(place) if is_file else _import_module(place)
    return _find(module, place, attribute or "app", given=bool(attribute))


def connected(function: Callable[Concatenate[KRQ, P], R]) -> Callable[..., R]:
    """Give a command the options that lead to an app, and the app as its first argument."""

    @click.option("--app", "target", metavar="APP", help="Take the servers from this app: module:attribute or file.py.")
    @click.option("--namespace", metavar="NAME", help="Prefix of topics and keys; else KRQ_NAMESPACE, else krq.")
    @click.option("--backend", metavar="URL", help="Redis or Valkey: host[:port] or URL; else KRQ_BACKEND, else localhost.")
    @click.option("--broker", metavar="URL", help="Kafka: host:port, or redis:// for Redis Streams; else KRQ_BROKER, else localhost:9092.")
    @functools.wraps(function)
    def command(*args: Any, target: str | None, broker: str | None, backend: str | None, namespace: str | None, **kwargs: Any) -> R:
        if target and (broker or backend or namespace):
            raise click.UsageError("--app names the servers already: leave --broker, --backend and --namespace out.")
        with load(target) if target else KRQ(broker=broker, backend=backend, namespace=namespace) as app:
            return function(app, *args, **kwargs)

    return command


def _add_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _import_module(name: str) -> ModuleType:
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise AppNotFound(f"{name!r} is no module name", cure="Give APP as module:attribute (tasks:app) or as a file (tasks.py).")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _broken(name, error) from error
        near = difflib.get_close_matches(name, [path.stem for path in Path.cwd().glob("*.py")], 1)
        cure = f"Did you mean {near[0]!r}?" if near else "Run krq where the module is, or give its file: path/to/tasks.py."
        raise AppNotFound(f"There is no module {error.name!r} in {Path.cwd()} or on Python's path", cure=cure) from None
    except KRQError:
        raise
    except Exception as error:
        raise _broken(name, error) from error


def _import_file(text: str) -> ModuleType:
    path = Path(text).resolve()
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.py")], 1)
        cure = f"Did you mean {near[0]!r}?" if near else "Give the path of a Python file, or module:attribute."
        raise AppNotFound(f"There is no file {path}", cure=cure)
    _add_path(path.parent)
    # another module of this name keeps it: a file called queue.py is no reason to break Python's own
    name = f"krq_app_{path.stem}" if path.stem in sys.modules else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AppNotFound(f"{path} is no Python file", cure="Its name must end in .py.")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except KRQError:
        raise
    except Exception as error:
        raise _broken(text, error) from error
    return module


def _broken(place: str, error: Exception) -> AppNotFound:
    """The user's own code failed: show where, without the frames of the import system and ours."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    if frames:
        click.echo("Traceback (most recent call last):\n" + "".join(traceback.format_list(frames)).rstrip(), err=True)
    text = "".join(traceback.format_exception_only(error)).strip()
    if isinstance(error, SyntaxError):
        click.echo(text, err=True)
        text = f"{type(error).__name__}: {error}"
    return AppNotFound(f"{place} cannot be imported: {text}", cure="Mend what the lines above show.")


def _is_ours(filename: str) -> bool:
    return filename.startswith("<frozen ") or filename in (importlib.__file__, __file__)


def _find(module: ModuleType, place: str, attribute: str, *, given: bool) -> KRQ:
    apps = [name for name, value in vars(module).items() if isinstance(value, KRQ) and not name.startswith("_")]
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if isinstance(found, KRQ):
        return found
    if apps:
        cure = f"It has {', '.join(apps)}: write {' or '.join(f'{place}:{name}' for name in apps)}."
    else:
        cure = f"No KRQ is in {place}: write `{'app' if found is not None else attribute} = krq.KRQ()` there."
    if found is not None:
        raise AppNotFound(f"{attribute} in {place} is no KRQ but {_article(type(found).__name__)}", cure=cure)
    raise AppNotFound(f"{place} has no {attribute!r}" + ("" if given else ", which is looked for when no name is given"), cure=cure)


def _article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"
