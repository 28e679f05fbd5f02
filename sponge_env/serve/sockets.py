"""Sockets to listen on."""

from __future__ import annotations

import socket

from sponge_env.errors import ConfigError

BACKLOG = 512
"""Connections that the kernel keeps until they are accepted."""


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens, port 0 on a free one; a ConfigError says why it cannot."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot listen on port {port} of {host}: {reason}") from None


def authority(host: str, port: int) -> str:
    """Return host and port as URLs have them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
