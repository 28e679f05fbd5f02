"""From TOML or command-line options to a configuration dataclass, checked."""

import dataclasses
import os
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from sponge_env.errors import ConfigError, unknown
from sponge_env.utils.files import parsed, read_text

T = TypeVar("T")


def load_toml(cls: type[T], kind: str, name_or_path: str | Path, shipped: Path) -> tuple[T, Path]:
    """Load a configuration, and its folder, by its name among those that ship, or any TOML file."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        files = {file.stem: file for file in shipped.glob("*.toml")}
        if str(name_or_path) not in files:
            raise ConfigError(unknown(kind, str(name_or_path), files))
        path = files[str(name_or_path)]
    try:
        data = parsed(tomllib.loads, read_text(path))
        return from_mapping(cls, {"name": path.stem, **data}), path.parent
    except FileNotFoundError:
        raise ConfigError(f"there is no {kind} file {str(path)!r}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a TOML {kind}: {error}") from error


def relative_to(folder: Path, name: str) -> str:
    """Make a file name absolute where such a file lies in a folder."""
    return str((folder / name).resolve()) if os.path.isfile(folder / name) else name


def from_mapping(cls: type[T], data: Mapping[str, Any], prefix: str = "") -> T:
    """Build a dataclass from parsed TOML, tables nested ones; a ``ConfigError`` names a bad key."""
    hints, values = get_type_hints(cls), {}
    for key, value in data.items():
        if key not in hints:
            raise ConfigError(unknown("key", prefix + key, (prefix + name for name in hints)))
        values[key] = _convert(hints[key], value, prefix + key)
    fields = dataclasses.fields(cast(Any, cls))  # a TypeVar cannot be bound to dataclasses
    required = [f.name for f in fields if f.default is f.default_factory is MISSING]
    if missing := ", ".join(name for name in required if name not in values):
        raise ConfigError(f"{prefix or 'the ' + cls.__name__.lower()} needs {missing}")
    return cls(**values)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """Check one TOML value against a type hint; integers are accepted as floats."""
    origin, args = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_mapping(cast(type[Any], hint), value, key + ".")
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(unknown(key, value, args))
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(arg for arg in args if arg is not type(None)), value, key)
    if origin is dict and isinstance(value, dict):
        return {name: _convert(args[1], item, f"{key}.{name}") for name, item in value.items()}
    if hint is Any:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(args[0], item, key) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise ConfigError(f"{key} must be {_describe(hint)}, not {value!r}")


def _describe(hint: Any) -> str:
    if dataclasses.is_dataclass(hint) or get_origin(hint) is dict:
        return "a table"
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        others = "tables" if dataclasses.is_dataclass(item) else "strings"
        return f"a list of {'numbers' if item in (int, float) else others}"
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    return names.get(hint, str(hint))
