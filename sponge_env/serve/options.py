"""Where a server listens, and limits for its clients."""

import ipaddress
import socket
from dataclasses import dataclass
from functools import lru_cache
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit, setrlimit

from sponge_env.errors import ConfigError
from sponge_env.scenario.option import Options, option

TOKEN = "SPONGE_TOKEN"  # Environment variable of the token: command lines are for all to see
PROXY_HEADERS = {b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via"}
BACKLOG = 512  # Connections that the kernel keeps until they are accepted
OWN_FILES = 256  # Open files that the server, its replicas and checks of health may need


@dataclass(frozen=True)
class ServeOptions(Options):
    """Addresses and limits of the front ends; a value out of range is a ``ConfigError``."""

    host: str = option("127.0.0.1", "Address to listen on.")
    port: int = option(8000, "Port of HTTP, 0 for a free one.", at_least=0, at_most=65535)
    grpc_port: int | None = option(
        8001, "Port of gRPC, 0 for a free one, none for no gRPC.", at_least=0, at_most=65535
    )
    token: str | None = option(None, "Sent by clients as Authorization: Bearer; health needs none.")
    max_body_bytes: int = option(16 * 2**20, "Largest body of a request, also unpacked.", above=0)
    max_rows: int = option(256, "Longest batch axis of a request.", above=0)
    refuse_nan: bool = option(False, "Refuse requests that hold NaN or infinity.")
    shared_memory: bool = option(
        False, "Let clients name shared memory of this machine, read and written as the server may."
    )
    max_connections: int = option(512, "Most connections of HTTP, of gRPC, and its calls.", above=0)
    max_held_bytes: int = option(256 * 2**20, "Bodies in memory at a time, also unpacked.", above=0)
    max_header_bytes: int = option(32 * 2**10, "Address and headers of a request.", above=0)
    body_timeout_s: float = option(30.0, "Time in which all of a request has to arrive.", above=0)
    idle_timeout_s: float = option(75.0, "Time after which an idle connection is closed.", above=0)
    drain_s: float = option(10.0, "How long it answers what it has once it is to end.", at_least=0)
    compress_from_bytes: int = option(
        8 * 2**10, "Size from which an answer is compressed, if the client accepts it.", at_least=0
    )
    log_violations: bool = option(False, "Log late, refused, expired or failed requests in JSON.")

    spans: bool = option(False, "Send spans of sampled requests to OTEL_EXPORTER_OTLP_ENDPOINT.")

    def __post_init__(self) -> None:
        """Check all values; a bad token is not repeated."""
        super().__post_init__()
        token = "token" if self.token is None else self.token
        if not (token.isascii() and token.isprintable() and token == token.strip() != ""):
            raise ConfigError("a token must be printable ASCII without spaces at its ends")
        if self.shared_memory and not (self.local or self.token):
            raise ConfigError("shared memory needs a token, or a host only this machine reaches")

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the server."""
        return is_local(self.host)


@lru_cache(maxsize=64)  # clients use few names, and each request is checked
def is_local(host: str) -> bool:
    """Return whether an address, or ``localhost``, is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allow_files(options: ServeOptions) -> None:
    """Let the process open a file for each connection; a ConfigError says that it may not."""
    needed, (now, most) = OWN_FILES + 2 * options.max_connections, getrlimit(RLIMIT_NOFILE)
    if RLIM_INFINITY != most < needed:
        text = f"max_connections {options.max_connections} needs {needed} open files"
        raise ConfigError(f"{text}, and {most} are allowed: lower it, or raise ulimit -Hn")
    if RLIM_INFINITY != now < needed:
        setrlimit(RLIMIT_NOFILE, (needed, most))


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens, port 0 on a free one; a ConfigError says why it cannot."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"a port must be 0 to 65535, not {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:  # the latter of a name that cannot be one
        reason = f"{getattr(error, 'strerror', None) or error}; choose another"
        raise ConfigError(f"cannot listen on port {port} of {host}: {reason}") from None
