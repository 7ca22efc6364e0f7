"""``krq web``: the dashboard in a browser, metrics and probes."""

from __future__ import annotations

import logging
from typing import Any

import click

from krq import logs
from krq.cli.target import connected
from krq.core import KRQ
from krq.errors import ConfigError


@click.command(short_help="The dashboard in a browser, metrics and probes.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; others than loopback take a login.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65_535), help="Port; 0: a free one.")
@click.option("--token", envvar="KRQ_WEB_TOKEN", metavar="TEXT",
              help="Whoever has it may act; better in KRQ_WEB_TOKEN, which no process list shows.")
@click.option("--view-token", envvar="KRQ_WEB_VIEW_TOKEN", metavar="TEXT", help="Whoever has it may look; or KRQ_WEB_VIEW_TOKEN.")
@click.option("--user", envvar="KRQ_WEB_USER", metavar="NAME", help="Log in by name and password; or KRQ_WEB_USER.")
@click.option("--password", envvar="KRQ_WEB_PASSWORD", metavar="TEXT", help="The user's; better in KRQ_WEB_PASSWORD.")
@click.option("--public", is_flag=True, help="Everybody may look, without a login.")
@click.option("--name", "names", multiple=True, metavar="HOST",
              help="A host name that leads here, beside the machine's own. May be repeated.")
@connected
def web(app: KRQ, /, **options: Any) -> None:
    """Serve the dashboard, /metrics for Prometheus, /live and /ready for probes, until Ctrl-C.

    On 127.0.0.1 everybody on this machine may look and act. With a token, or user and password, acting takes a login; elsewhere than
    on 127.0.0.1 one of them must be given, and looking takes a login, too, unless --public.

    \b
    Example:
      krq web
      KRQ_WEB_TOKEN=$(openssl rand -hex 16) krq web --host 0.0.0.0
    """
    try:
        from krq.dashboard.access import WebSettings
        from krq.dashboard.server import serve
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in ("starlette", "uvicorn", "anyio"):
            raise
        raise ConfigError(f"krq web needs {error.name}, which is not installed", cure="pip install 'krq[web]'") from error

    logs.configure("INFO")
    logging.getLogger("krq.web").setLevel(logging.INFO)
    settings = WebSettings(**{name: value for name, value in options.items() if value is not None})
    serve(app, settings, lambda address: click.echo(f"The dashboard is at {address}"))


COMMANDS: tuple[click.Command, ...] = (web,)
