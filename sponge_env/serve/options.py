"""How a server listens, and how much it lets clients ask of it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from sponge_env.errors import ConfigError


@dataclass(frozen=True)
class ServeOptions:
    """Addresses and bounds of the front ends; a value out of range is a ``ConfigError``."""

    host: str = "127.0.0.1"
    """Address to listen on; others than this machine's own are reached from outside."""
    port: int = 8000
    """Of HTTP; 0 takes a free one."""
    grpc_port: int | None = 8001
    """Of gRPC; 0 takes a free one, None does without."""
    token: str | None = None
    """What clients have to bring as ``Authorization: Bearer``; health is told to all."""
    most_body_bytes: int = 16 * 2**20
    """Largest body of a request, also after it is unpacked."""
    most_rows: int = 256
    """Longest batch axis of a request."""
    most_connections: int = 512
    """Connections at a time, of HTTP and of gRPC each; as many of gRPC's calls at a time."""
    most_held_bytes: int = 256 * 2**20
    """Bodies in memory at a time, of HTTP and gRPC together, also after they are unpacked."""
    most_header_bytes: int = 32 * 2**10
    """Address and headers of a request."""
    body_timeout_s: float = 30.0
    """Within which a request has to arrive whole."""
    idle_timeout_s: float = 75.0
    """After which a connection without a request is closed."""
    drain_s: float = 10.0
    """How long the calls that are there are served once the server has been asked to end."""
    compress_from_bytes: int = 8 * 2**10
    """Size from which on an answer is compressed, if the client accepts it."""

    def __post_init__(self) -> None:
        """Check all values."""
        for name in ("port", "grpc_port"):
            if not 0 <= (getattr(self, name) or 0) < 2**16:
                raise ConfigError(f"{name} must be 0 to 65535, not {getattr(self, name)}")
        positive = (
            *("most_body_bytes", "most_rows", "most_connections", "most_held_bytes"),
            *("most_header_bytes", "body_timeout_s", "idle_timeout_s"),
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, not {getattr(self, name)}")
        if not self.drain_s >= 0:
            raise ConfigError(f"drain_s must not be negative, but is {self.drain_s}")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise ConfigError("a token must consist of printable ASCII characters")
        if self.token == "":
            raise ConfigError("a token must not be empty")
        if self.token is not None and self.token != self.token.strip():
            raise ConfigError("a token must not begin or end with a space")

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
