"""What the web server says no to."""

from __future__ import annotations

from krq.errors import KRQError


class WebRefused(KRQError):
    """The request may not do this: no login, another site's page, a host name that is not ours."""

    code = "WEB_REFUSED"

    def __init__(self, cause: str, *, cure: str | None = None, status: int = 403) -> None:
        super().__init__(cause, cure=cure)
        self.status = status
        """of the HTTP answer"""


class WebRequestInvalid(KRQError, ValueError):
    """The request is none that the API knows: wrong path, parameter, body or size."""

    code = "WEB_REQUEST_INVALID"
    cure = "GET /api/openapi.json describes all requests."

    def __init__(self, cause: str, *, cure: str | None = None, status: int = 400) -> None:
        super().__init__(cause, cure=cure)
        self.status = status
        """of the HTTP answer"""
