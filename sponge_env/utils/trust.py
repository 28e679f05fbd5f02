"""Whose names may become code: files are data, so those that the user has typed.

Within a command, a name of a user's own module or of a file that is unpickled must stand on the
command line, unless ``--trust`` does. Python that calls this package may import what it likes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sponge_env.errors import ConfigError

TRUST = "--trust"

_typed: Sequence[str] | None = None
"""The words of the command line; None where there is none."""


@contextmanager
def typing(words: Sequence[str] | None) -> Iterator[None]:
    """Run a command of these words until the end of the block."""
    global _typed
    before, _typed = _typed, words
    try:
        yield
    finally:
        _typed = before


def typed() -> Sequence[str] | None:
    """Return what :func:`typing` takes in another process, for it to decide as this one does."""
    return _typed


def check_typed(name: str, what: str) -> None:
    """Raise a :class:`ConfigError` unless a name may become code.

    Of the command line only the values of options that name code count.
    """
    if _typed is None or TRUST in _typed or name in _named(_typed):
        return
    raise ConfigError(
        f"{what} {name!r} runs code, and only a file names it; add {TRUST} if you trust that file"
    )


def _named(words: Sequence[str]) -> Iterator[str]:
    """Yield what a command line names as agents, models, profiles and files of agents."""
    option = ""
    for word in words:
        value = word
        if word.startswith("--"):
            option, _, value = word.partition("=")
        before, _, after = value.partition(":")
        if option in ("--agent", "--agents", "--model"):
            yield from (value, *([after] if before == "sb3" else []))
        elif option == "--profile" and before == "local":
            yield after
        elif option == "--option" and value.partition("=")[0].endswith(".file"):
            yield value.partition("=")[2]
