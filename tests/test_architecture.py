"""Imports point down only; each heavy library has one door."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

import agents as agents_registry
import baselines as baselines_registry
from sponge_env.run.suite import load_suite

ROOT = Path(__file__).resolve().parent.parent
LAYERS = (
    {"errors", "arrays"},
    {"latency", "metrics"},
    {"interfaces"},
    {"utils"},
    {"scenario"},
    {"formats", "core"},
    {"cli", "simulation", "control", "models"},
    {"live", "oracle"},
    {"env"},
    {"run"},
    {"results"},
    {"fidelity", "serve"},
    {"app"},
)
"""Modules and packages of ``sponge_env``, the lowest first. Each imports from lower layers only."""
CONTROLLERS_MAY_IMPORT = {
    "arrays",
    "control",
    "core.compiled",
    "errors",
    "interfaces",
    "latency",
    "metrics",
    "scenario",
    "simulation.encoding",
    "utils",
}
"""Modules, or whole packages, of ``sponge_env``."""
DOORS = {
    "stable_baselines3": {
        "agents/stable_baselines.py",
        "agents/learn/environments.py",
        "agents/learn/training.py",
        "sponge_env/env/sb3.py",
    },
    "sb3_contrib": {"agents/learn/training.py"},
    "torch": {
        "agents/learn/actor_critic.py",
        "agents/learn/collect.py",
        "agents/learn/imitation.py",
        "agents/learn/phased.py",
        "agents/learn/training.py",
        "sponge_env/models/efficientnet.py",
    },
    "pulp": {"agents/solvers.py"},
    "optuna": {"agents/learn/search.py", "baselines/tune.py"},
    "numba": {"sponge_env/core/compiled.py"},
    "scipy": {"sponge_env/results/statistics.py"},
    "tensorboard": {"sponge_env/run/tensorboard.py", "agents/learn/training.py"},
    "google_crc32c": {"sponge_env/run/tensorboard.py"},
    "prometheus_client": {"sponge_env/serve/monitor/exposition.py"},
    "aiohttp": {
        "sponge_env/serve/load/client.py",
        "sponge_env/serve/load/held.py",
        "sponge_env/serve/load/open_loop.py",
    },
    "onnxruntime": {"sponge_env/models/model.py"},
    "uvicorn": {
        "sponge_env/serve/app.py",
        "sponge_env/serve/http/bounded.py",
        "sponge_env/serve/http/shared.py",
    },
    "uvloop": {"sponge_env/serve/app.py", "sponge_env/serve/load/__main__.py"},
    "grpc": {"sponge_env/serve/rpc/*"},
    "google": {"sponge_env/serve/rpc/*"},
    "matplotlib": {
        "sponge_env/results/*",
        "sponge_env/utils/console.py",
        "sponge_env/models/sample_images.py",
    },
}
"""Files that may import a library."""


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", python_files("sponge_env"), ids=str)
def test_the_package_knows_no_controllers(path: Path) -> None:
    assert not [name for name in imports(path) if name.split(".")[0] in ("agents", "baselines")]


def test_no_string_of_the_package_is_an_agents_name() -> None:
    """What knows agents by name lives in suites and in ``benchmarks/``."""
    agents = {*agents_registry.CONTROLLERS, *baselines_registry.CONTROLLERS}
    agents |= set(load_suite("standard").agents)
    found = {
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for path in python_files("sponge_env")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in agents
    }
    assert not found


@pytest.mark.parametrize("path", python_files("agents", "baselines"), ids=str)
def test_controllers_see_only_the_interfaces(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    other = {"agents": "baselines", "baselines": "agents"}[own]
    names = list(imports(path))
    assert own not in {name.split(".")[0] for name in names}, "they import each other relatively"
    assert not [name for name in names if name.split(".")[0] == other]
    if path.parent.name == "learn" or path.name == "tune.py":
        return  # training builds environments, tuning runs episodes
    inside = [name.removeprefix("sponge_env.") for name in names if name.startswith("sponge_env.")]
    allowed = {*inside} & CONTROLLERS_MAY_IMPORT
    allowed |= {name for name in inside if name.split(".")[0] in CONTROLLERS_MAY_IMPORT}
    assert set(inside) == allowed, own


@pytest.mark.parametrize("library", DOORS)
def test_heavy_libraries_have_one_door(library: str) -> None:
    files = python_files("sponge_env", "agents", "baselines")
    importers = {
        str(path.relative_to(ROOT))
        for path in files
        if any(name.split(".")[0] == library for name in imports(path))
    }
    doors = DOORS[library]
    assert not {path for path in importers if not any(fnmatch(path, door) for door in doors)}


def test_controllers_work_within_another_package(tmp_path: Path) -> None:
    for package in ("agents", "baselines"):
        shutil.copytree(ROOT / package, tmp_path / "bundle" / package)
    (tmp_path / "bundle" / "__init__.py").touch()
    code = (
        "import importlib, bundle.agents, bundle.baselines\n"
        "for places in (bundle.agents.CONTROLLERS, bundle.baselines.CONTROLLERS):\n"
        "    for place in places.values():\n"
        "        module, _, name = place.partition(':')\n"
        "        assert module.startswith('bundle.'), module\n"
        "        getattr(importlib.import_module(module), name)\n"
        "import bundle.agents.learn\n"
        "assert bundle.baselines.load_tuned(bundle.baselines.TUNED_FILE)['agents']['vpa']\n"
        "assert list(bundle.agents.learned.SHIPPED.iterdir())\n"
    )
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def layer(name: str) -> int:
    """Return the layer of a dotted name within ``sponge_env``."""
    return next(k for k, members in enumerate(LAYERS) if name.split(".")[0] in members)


@pytest.mark.parametrize("path", python_files("sponge_env"), ids=str)
def test_imports_point_down(path: Path) -> None:
    """But for the package and its command, which lead to everything."""
    own = path.relative_to(ROOT / "sponge_env").with_suffix("").parts[0]
    if own in ("__init__", "__main__") or path.name == "page.py":
        return
    names = {name for name in imports(path) if name.startswith("sponge_env.")}
    used = {name.split(".")[1] for name in names if name != "sponge_env"} - {own}
    assert not {name for name in used if layer(name) >= layer(own)}


@pytest.mark.parametrize("path", python_files("sponge_env/core"), ids=str)
def test_the_core_knows_no_clock(path: Path) -> None:
    names = set(imports(path))
    assert not {"time", "datetime", "random", "threading", "os", "socket"} & names
    assert ("numba" in {name.split(".")[0] for name in names}) == (path.name == "compiled.py")


def test_the_reference_is_independent_of_the_core() -> None:
    """But for the SimPy model, which observes through the product's encoder."""
    for path in python_files("tests/reference"):
        if path.name not in ("simpy_model.py", "program.py"):
            names = {name for name in imports(path) if name.startswith("sponge_env.")}
            parts = {".".join(name.split(".")[1:]) for name in names}
            assert parts <= REFERENCE_MAY_IMPORT, path


REFERENCE_MAY_IMPORT = {
    "arrays",
    "control.chain",
    "core.fields",
    "formats",
    "interfaces",
    "latency",
    "metrics",
    *(f"scenario.{n}" for n in ("config", "profile", "scenario", "seeds", "spec")),
}


def test_a_static_evaluation_loads_no_heavy_library() -> None:
    code = (
        "import sys, evaluate\n"
        "heavy = {'torch', 'stable_baselines3', 'pulp', 'numba', 'onnxruntime', 'pandas'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
