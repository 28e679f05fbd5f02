"""What a result depends on, as a short text: results that differ in it never mix.

The project's code counts by the content of its source files and learned weights, not by its
version number, which stays the same while somebody works on it. A controller of one's own
counts by its module's file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from sponge_env.bandwidth import RESERVED
from sponge_env.formats.detect import find_trace
from sponge_env.installation import bundled
from sponge_env.scenario import Scenario
from sponge_env.spec import scenario_profile

_CODE = frozenset({".py", ".npz", ".onnx", ".safetensors"})
"""Endings of source files and learned weights."""


def fingerprint(data: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that stand for nested plain data."""
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def code_fingerprint() -> str:
    """Return the fingerprint of the project's code; it is read once per process."""
    packages = ("sponge_env", bundled("agents"), bundled("baselines"))
    digest = hashlib.sha256()
    for name, path in sorted(_code_files(packages)):
        digest.update(name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _code_files(packages: Iterable[str]) -> Iterator[tuple[str, Path]]:
    for package in packages:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            for path in Path(folder).rglob("*"):
                if path.suffix in _CODE:
                    yield f"{package}/{path.relative_to(folder)}", path


def scenario_fingerprint(scenario: Scenario) -> str:
    """Return the fingerprint of a scenario; profile and traces count by what they say.

    Raises:
        SpongeError: There is no such profile or trace.
    """
    data = asdict(scenario) | {"profile": asdict(scenario_profile(scenario))}
    if scenario.arrivals.file is not None:
        data["arrivals"]["file"] = _content(find_trace(scenario.arrivals.file, "arrivals"))
    if scenario.network.trace not in RESERVED:
        data["network"]["trace"] = _content(
            find_trace(scenario.network.trace, "bandwidth", RESERVED)
        )
    return fingerprint(data)


def controller_fingerprint(target: str, options: Mapping[str, Any]) -> str:
    """Return the fingerprint of a controller that may not be the project's own.

    Args:
        target: ``module:callable``.
        options: Its options; those that name a file count by the file's content.
    """
    spec = importlib.util.find_spec(target.partition(":")[0])
    files = {"code": spec.origin if spec else None, **options}
    return fingerprint({name: _content(value) for name, value in files.items()})


def _content(value: Any) -> Any:
    if isinstance(value, str | Path) and Path(value).is_file():
        return hashlib.sha256(Path(value).read_bytes()).hexdigest()
    return value
