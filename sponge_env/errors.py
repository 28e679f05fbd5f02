"""Errors a user can cause, and the sentences that tell them what to change."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class SpongeError(Exception):
    """Bad input: one sentence that names the value, what is allowed and what to do; exit code 2."""


class ConfigError(SpongeError, ValueError):
    """A setting, name or option that cannot be used."""


class TraceError(SpongeError, ValueError):
    """A bandwidth or arrival trace that cannot be read."""


class ProfileError(SpongeError, ValueError):
    """A latency profile that cannot be used."""


class PolicyError(SpongeError, ValueError):
    """A policy file that cannot be used."""


class ControllerError(SpongeError, RuntimeError):
    """A controller that fails, or whose answer is no allocation within the limits."""

    stages: Sequence[Any] = ()  # Of a set of models the last answers, with those of others


class WorkerError(SpongeError, RuntimeError):
    """A real worker that cannot be started, limited or kept alive."""


class ModelError(SpongeError, ValueError):
    """An input on which a model fails."""


class RunDirectoryError(SpongeError, OSError):
    """A run directory that exists already or cannot be written."""


class MissingExtraError(SpongeError, ImportError):
    """A part of the distribution that is optional and not installed."""


def unknown(kind: str, value: object, allowed: Iterable[str]) -> str:
    """Say that a name of some kind, e.g. an agent's, is unknown, and which is nearest."""
    # Upper and lower case count as one; ``module.Class`` and a file are meant as ``module:Class``.
    names = sorted(allowed)
    module, dot, own = str(value).rpartition(".")
    if kind in ("agent", "model") and dot and (own == "py" or own[:1].isupper()):
        nearest = [f"{module.strip('./').replace('/', '.')}:{'Class' if own == 'py' else own}"]
    else:
        # What all begin with, such as the table of a key, makes none of them nearer.
        shared = len(module + dot) * all(name.startswith(module + dot) for name in names)
        folded = {name[shared:].lower(): name for name in names}
        near = difflib.get_close_matches(str(value)[shared:].lower(), folded, n=1)
        nearest = [folded[name] for name in near]
    guess = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    return f"unknown {kind} {value!r}{guess}; choose from {', '.join(names)}"
