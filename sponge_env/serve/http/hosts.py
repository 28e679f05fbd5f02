"""Who asks a server that is there for its own machine only.

A browser on that machine asks for whom it likes: for a web page of another site, whose name that
site may have lead here once the page is loaded. But it says of which site the page is.
"""

from __future__ import annotations

from sponge_env.serve.options import is_local
from sponge_env.serve.wire.front import Headers
from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.tensors import shown

PROXIED = {b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via"}
"""Headers of requests that came through a proxy."""


def check_asked_here(headers: Headers) -> None:
    """Raise a WireError if a request says that it was meant for another machine, or comes from one.

    What says nothing is no browser's.
    """
    for header in (b"host", b"origin"):
        said = headers.get(header)
        if said and not is_local(_name(said)):
            text = shown(said.decode("latin-1"))
            raise WireError(f"without a token, {header.decode()} must be local, not {text}", 403)


def from_here(client: tuple[str, int] | None, headers: Headers) -> bool:
    """Return whether a client of this machine itself asks this machine, by a name of its own.

    A web page of another site cannot send JSON without asking first, which nobody answers. A
    proxy says for whom it asks.
    """
    names = (client[0] if client else "", _name(headers.get(b"host", b"")))
    return all(map(is_local, names)) and PROXIED.isdisjoint(headers)


def _name(said: bytes) -> str:
    """Return the name or address in a ``Host`` or ``Origin``, without the port."""
    host = said.decode("latin-1").lower().rpartition("://")[2]
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
