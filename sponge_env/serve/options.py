"""Where a server listens, and limits for its clients."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from sponge_env.errors import ConfigError

BACKLOG = 512
"""Connections that the kernel keeps until they are accepted."""


@dataclass(frozen=True)
class ServeOptions:
    """Addresses and limits of the front ends; a value out of range is a ``ConfigError``."""

    host: str = "127.0.0.1"
    """Address to listen on; others than this machine's own are reached from outside."""
    port: int = 8000
    """Port of HTTP; 0 takes a free one."""
    grpc_port: int | None = 8001
    """Port of gRPC; 0 takes a free one, None turns gRPC off."""
    token: str | None = None
    """What clients have to bring as ``Authorization: Bearer``; health needs none."""
    max_body_bytes: int = 16 * 2**20
    """Largest body of a request, also after it is unpacked."""
    max_rows: int = 256
    """Longest batch axis of a request."""
    max_connections: int = 512
    """Connections at a time, of HTTP and of gRPC each; as many of gRPC's calls at a time."""
    max_held_bytes: int = 256 * 2**20
    """Bodies in memory at a time, of HTTP and gRPC together, also after they are unpacked."""
    max_header_bytes: int = 32 * 2**10
    """Address and headers of a request."""
    body_timeout_s: float = 30.0
    """Time within which all of a request has to arrive."""
    idle_timeout_s: float = 75.0
    """Time after which a connection without a request is closed."""
    drain_s: float = 10.0
    """How long the server goes on answering what it has once it is to end."""
    compress_from_bytes: int = 8 * 2**10
    """Size from which an answer is compressed, if the client accepts it."""

    def __post_init__(self) -> None:
        """Check all values."""
        for name in ("port", "grpc_port"):
            if not 0 <= (getattr(self, name) or 0) < 2**16:
                raise ConfigError(f"{name} must be 0 to 65535, not {getattr(self, name)}")
        positive = (
            *("max_body_bytes", "max_rows", "max_connections", "max_held_bytes"),
            *("max_header_bytes", "body_timeout_s", "idle_timeout_s"),
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, not {getattr(self, name)}")
        if not self.drain_s >= 0:
            raise ConfigError(f"drain_s must not be negative, but is {self.drain_s}")
        token = "token" if self.token is None else self.token
        if not (token.isascii() and token.isprintable() and token == token.strip() != ""):
            raise ConfigError("a token must be printable ASCII without spaces at its ends")

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the server."""
        return is_local(self.host)


def is_local(host: str) -> bool:
    """Return whether an address, or ``localhost``, is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
