"""Who may do what: credentials, sessions, host names, and requests that another site made."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from enum import IntEnum
from urllib.parse import urlsplit

import msgspec

from krq.dashboard.errors import WebRefused
from krq.errors import ConfigError

#: seconds that a login lasts
SESSION = 12 * 3600
#: header that a page of another site can't send
CSRF_HEADER = "x-krq-request"
#: failed logins of one address within a minute
TRIES = 10
SHORTEST = 8


class Role(IntEnum):
    """What somebody may do; each includes those before."""

    NOBODY = 0
    VIEW = 1
    ACT = 2


class WebSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How ``krq web`` serves. Credentials: "" means that there are none of that kind."""

    host: str = "127.0.0.1"
    port: int = 8080
    token: str = ""
    """may do everything"""
    view_token: str = ""
    """may look"""
    user: str = ""
    password: str = ""
    """of ``user``, who may do everything"""
    public: bool = False
    """everybody may look, without a login"""
    names: tuple[str, ...] = ()
    """host names under which it is reached, besides localhost, IP addresses and the machine's own"""

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def guarded(self) -> bool:
        """Whether there are any credentials."""
        return bool(self.token or self.view_token or self.password)

    def check(self) -> None:
        """Raise ``ConfigError`` for settings that would let strangers in."""
        if bool(self.user) != bool(self.password):
            cure = "Give --user and --password (or KRQ_WEB_USER and KRQ_WEB_PASSWORD)."
            raise ConfigError("A user and a password go together", cure=cure)
        for name, value in (("token", self.token), ("view token", self.view_token), ("password", self.password)):
            if value and len(value) < SHORTEST:
                raise ConfigError(f"The {name} has fewer than {SHORTEST} characters", cure="Take a longer one: openssl rand -hex 16")
        if not self.loopback and not self.guarded:
            raise ConfigError(
                f"--host {self.host} can be reached from other machines, and there is no token",
                cure="Set KRQ_WEB_TOKEN (openssl rand -hex 16), or --user and --password, or serve on 127.0.0.1 behind a proxy.",
            )


class Access:
    """Judges requests. For one event loop."""

    def __init__(self, settings: WebSettings) -> None:
        self.settings = settings
        self._key = os.urandom(32)
        self._names = {name.lower() for name in (settings.host, "localhost", socket.gethostname(), socket.getfqdn(), *settings.names)}
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    @property
    def cookie(self) -> str:
        """Name of the session's cookie: cookies do not tell ports apart."""
        return f"krq_session_{self.settings.port}"

    @property
    def default(self) -> Role:
        """The role of who has not logged in."""
        if not self.settings.guarded:
            return Role.ACT
        return Role.VIEW if self.settings.loopback or self.settings.public else Role.NOBODY

    def role(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> Role:
        """The role of a request. Raises ``WebRefused`` for a bearer token that is wrong."""
        given = headers.get("authorization", "")
        if given[:7].lower() == "bearer ":
            role = self._of_token(given[7:].strip())
            if role is None:
                raise WebRefused("The token is wrong", cure="Send Authorization: Bearer with the token of krq web.", status=401)
            return max(role, self.default)
        return max(self._of_session(cookies.get(self.cookie, "")), self.default)

    # --- login -------------------------------------------------------------------------------

    def login(self, client: str, token: str, user: str, password: str) -> str:
        """A session for these credentials, as the cookie's value. Raises ``WebRefused``."""
        now = time.monotonic()
        tries = self._failed.setdefault(client, deque())
        while tries and tries[0] < now - 60:
            tries.popleft()
        while len(self._failed) > 1_000:
            self._failed.popitem(last=False)
        if len(tries) >= TRIES:
            raise WebRefused("Too many failed logins", cure="Wait a minute.", status=429)
        role = self._of_token(token) if token else self._of_user(user, password)
        if role is None:
            tries.append(now)
            cure = "Use the token, or user and password, that krq web was started with."
            raise WebRefused("These credentials are wrong", cure=cure, status=401)
        body = f"{int(role)}.{int(time.time()) + SESSION}.{os.urandom(8).hex()}"
        return f"{body}.{self._sign(body)}"

    def _of_token(self, token: str) -> Role | None:
        if self.settings.token and _same(token, self.settings.token):
            return Role.ACT
        return Role.VIEW if self.settings.view_token and _same(token, self.settings.view_token) else None

    def _of_user(self, user: str, password: str) -> Role | None:
        right = _same(password, self.settings.password)
        return Role.ACT if self.settings.password and _same(user, self.settings.user) and right else None

    def _of_session(self, value: str) -> Role:
        body, _, signature = value.rpartition(".")
        if not body or not _same(signature, self._sign(body)):
            return Role.NOBODY
        role, until, _ = body.split(".")
        return Role(int(role)) if int(until) > time.time() else Role.NOBODY

    def _sign(self, body: str) -> str:
        return hmac.new(self._key, body.encode(), hashlib.sha256).hexdigest()

    # --- where a request comes from ----------------------------------------------------------

    def check_host(self, host: str) -> None:
        """Refuse names that are not ours: a page elsewhere may let its own name lead here. An IP address is no name."""
        name = _hostname(host)
        if name is None or not (_is_address(name) or name in self._names):
            cure = "Start krq web with --name for each name that leads to it."
            raise WebRefused(f"This server is not called {host[:100]!r}", cure=cure, status=421)

    def check_origin(self, headers: Mapping[str, str]) -> None:
        """Refuse what another site's page sends. Raises ``WebRefused``."""
        site = headers.get("sec-fetch-site")
        if site not in (None, "same-origin", "none"):
            raise WebRefused("The request comes from another site", cure="Act from the dashboard's own page.")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            raise WebRefused(f"The request comes from {origin[:100]!r}", cure="Act from the dashboard's own page.")
        if CSRF_HEADER not in headers:
            raise WebRefused(f"The header {CSRF_HEADER} is missing", cure=f"Send {CSRF_HEADER}: 1 with what acts.")


def _same(given: str, wanted: str) -> bool:
    """Compared in constant time, whatever the lengths."""
    return hmac.compare_digest(hashlib.sha256(given.encode(errors="replace")).digest(), hashlib.sha256(wanted.encode()).digest())


def _hostname(host: str) -> str | None:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".") or None
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
