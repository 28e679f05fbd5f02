"""What a result depends on beside the project's code: the machine and the packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

PACKAGES = (
    "sponge-env",
    "gymnasium",
    "numba",
    "numpy",
    "onnxruntime",
    "pandas",
    "pulp",
    "pyarrow",
    "safetensors",
    "sb3-contrib",
    "scipy",
    "stable-baselines3",
    "tensorboard",
    "torch",
)
"""Packages whose versions can change a result or how it is stored."""


def describe_versions() -> dict[str, str | None]:
    """Return the versions of Python, the platform and :data:`PACKAGES` (None: missing)."""
    return {
        "python": platform.python_version(),
        "platform": f"{_kernel()} {platform.machine()}",
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_host() -> dict[str, str | int]:
    """Return CPU model, CPUs of the machine and of this process, memory and kernel."""
    return {
        "cpu_model": _cpu_model(),
        "cpus": os.cpu_count() or 1,
        "cpus_allowed": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": _kernel(),
    }


def _kernel() -> str:
    """Return the kernel's name and version, without what a distributor appends."""
    version = re.match(r"[\d.]*\d", platform.release())
    return f"{platform.system()} {version[0] if version else platform.release()}"


def _cpu_model() -> str:
    """Return the name that Linux knows the CPU by; ``platform`` knows it on few systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
