"""Imports point down only; each heavy library has one door."""

import ast
import shutil
from fnmatch import fnmatch
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from project import ROOT, python

import agents as agents_registry
import baselines as baselines_registry
from sponge_env.run.suite import load_suite

# Modules and packages of ``sponge_env``, the lowest first. Each imports from lower layers only.
LAYERS = """
    errors arrays | latency metrics packing | interfaces | utils | scenario | formats core |
    cli simulation control models | live oracle | k8s | env | run | results | fidelity serve | app
"""
CONTROLLERS_MAY_IMPORT = set(  # modules, or whole packages, of ``sponge_env``
    """arrays control core.compiled core.overload errors interfaces latency metrics packing
    scenario simulation.encoding utils""".split()
)
DOORS = {  # files that may import a library
    "stable_baselines3": {"agents/stable_baselines.py", "sponge_env/env/sb3.py"},
    "torch": {"agents/learn/phased.py", "agents/learn/ppo.py", "sponge_env/models/efficientnet.py"},
    "optuna": {"baselines/tune.py"},
    "numba": {"sponge_env/core/compiled.py"},
    "tensorboard": {"sponge_env/run/tensorboard.py"},
    "google_crc32c": {"sponge_env/run/tensorboard.py"},
    "prometheus_client": {"sponge_env/serve/monitor/exposition.py"},
    "onnxruntime": {"sponge_env/models/model.py"},
    "opentelemetry": {"sponge_env/serve/monitor/tracing.py"},
    "httptools": {"sponge_env/serve/http/*"},
    "aiohttp": {"sponge_env/serve/load/client.py"},
    "uvloop": {"sponge_env/serve/app.py", "sponge_env/serve/load/open_loop.py"},
    "grpc": {"sponge_env/serve/rpc/*"},
    "google": {"sponge_env/serve/rpc/*"},
    "matplotlib": {f"sponge_env/{n}.py" for n in ("results/*", "utils/console", "models/images")},
}


def files(*folders):
    paths = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return [str(path.relative_to(ROOT)) for path in paths]


@cache
def tree(path):
    return ast.parse((ROOT / path).read_text())


@cache
def imports(path):
    """Return what a file imports, wherever in it: the dotted module, and a name of it or ""."""
    return tuple(_imports(path, tree(path)))


def _imports(path, node):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, "") for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            package = ".".join(Path(path).parts[: -child.level]) if child.level else ""
            module = ".".join(filter(None, [package, child.module]))
            yield from ((module, alias.name) for alias in child.names)
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _imports(path, child)


def tops(path):
    """Return the top-level packages that a file imports."""
    return {module.split(".")[0] for module, _ in imports(path)}


def of_sponge_env(path):
    """Return the modules of ``sponge_env`` that a file imports, without that prefix."""
    names = (module for module, _ in imports(path) if module.startswith("sponge_env."))
    return {name.removeprefix("sponge_env.") for name in names}


def test_the_package_knows_no_controllers():
    assert not [path for path in files("sponge_env") if tops(path) & {"agents", "baselines"}]


def test_no_string_of_the_package_is_an_agents_name():
    """What knows agents by name lives in suites and in ``benchmarks/``."""
    agents = {*agents_registry.CONTROLLERS, *baselines_registry.CONTROLLERS}
    agents |= set(load_suite("standard-v1").agents)
    assert not [
        f"{path}:{node.lineno}: {node.value}"
        for path in files("sponge_env")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and node.value in agents
    ]


def test_controllers_see_only_the_interfaces():
    """But for training, which builds environments, and tuning, which runs episodes."""
    wrong = []
    for path in files("agents", "baselines"):
        own, *folders = Path(path).parts
        wrong += [path] if {"agents", "baselines"} - {own} & tops(path) - {own} else []
        if "learn" not in folders and "tune.py" not in folders:
            may = CONTROLLERS_MAY_IMPORT
            wrong += [f"{path}: {n}" for n in of_sponge_env(path) if not {n, n.split(".")[0]} & may]
    assert not wrong


def test_heavy_libraries_have_one_door():
    assert not [
        f"{path}: {library}"
        for path in files("sponge_env", "agents", "baselines")
        for library in DOORS.keys() & tops(path)
        if not any(fnmatch(path, door) for door in DOORS[library])
    ]


BUNDLED = """
import importlib, bundle.agents, bundle.agents.learn, bundle.baselines
for place in (*bundle.agents.CONTROLLERS.values(), *bundle.baselines.CONTROLLERS.values()):
    module, _, name = place.partition(":")
    assert module.startswith("bundle."), module
    getattr(importlib.import_module(module), name)
assert bundle.baselines.load_tuned(bundle.baselines.TUNED_FILE) is not None
assert list(bundle.agents.learned.SHIPPED.iterdir())
"""


def test_controllers_work_within_another_package(tmp_path):
    for package in ("agents", "baselines"):
        shutil.copytree(ROOT / package, tmp_path / "bundle" / package)
    (tmp_path / "bundle" / "__init__.py").touch()
    done = python("-c", BUNDLED, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 0, done.stderr


def layer(name):
    return next(k for k, each in enumerate(LAYERS.split("|")) if name.split(".")[0] in each.split())


def test_imports_point_down():
    """But for the package and its command, which lead to everything."""
    wrong = []
    for path in files("sponge_env"):
        own = Path(path).with_suffix("").parts[1]
        if own not in ("__init__", "__main__"):
            used = {name.split(".")[0] for name in of_sponge_env(path)} - {own}
            wrong += [f"{path}: {name}" for name in used if layer(name) >= layer(own)]
    assert not wrong


def test_few_modules_lie_loose():
    loose = [path.name for path in (ROOT / "sponge_env").glob("*.py") if path.stem[:2] != "__"]
    assert len(loose) <= 8


def test_no_modules_import_each_other_in_a_circle():
    modules = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
        for path in files("sponge_env", "agents", "baselines")
    }
    graph = {}
    for module, path in modules.items():
        names = {f"{m}.{name}" if f"{m}.{name}" in modules else m for m, name in imports(path)}
        names -= {module}
        graph[module] = {name for name in names if name in modules}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_private_names_stay_in_their_package():
    assert not [
        f"{path}: {module}.{name}"
        for path in files("sponge_env", "agents", "baselines")
        for module, name in imports(path)
        if name.startswith("_") and not name.startswith("__")
        if module.split(".")[0] in ("sponge_env", "agents", "baselines")
        if path.rpartition("/")[0].replace("/", ".") not in (module, module.rpartition(".")[0])
    ]


def test_the_core_knows_no_clock():
    for path in files("sponge_env/core"):
        assert not {"time", "datetime", "random", "threading", "os", "socket"} & tops(path)
        assert ("numba" in tops(path)) == (path == "sponge_env/core/compiled.py")


def test_the_reference_is_independent_of_the_core():
    for path in files("tests/reference"):
        if not path.endswith("program.py"):
            assert of_sponge_env(path) <= REFERENCE_MAY_IMPORT, path


REFERENCE_MAY_IMPORT = set(
    """arrays core.fields interfaces latency scenario.config scenario.profile scenario.scenario
    scenario.seeds scenario.spec simulation.workload""".split()
)


@pytest.mark.parametrize(
    "code",
    ["import evaluate, train, sys; assert not {'sponge_env.run', 'tqdm'} & set(sys.modules)",
     "import sponge_env; sponge_env.Allocation; sponge_env.Scenario",
     "import sponge_env.run.tensorboard",
     "import contextlib, sponge_env.__main__ as command\n"
     "with contextlib.suppress(SystemExit): command.main(['--version'])",
     "import gymnasium, sys, sponge_env\nenv = gymnasium.make('Sponge-v0')\nenv.reset()\n"
     "env.step(env.action_space.sample())\ndel sys.modules['numba']"],
)  # fmt: skip
def test_a_command_line_the_names_a_sink_and_an_environment_load_no_heavy_library(code):
    heavy = {"torch", "tensorflow", "pulp", "numba", "onnxruntime", "pandas", "matplotlib"}
    code += f"\nimport sys; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    if python("-c", code, cwd=ROOT).returncode:  # it may have compiled
        done = python("-c", code, cwd=ROOT)
        assert done.returncode == 0, done.stderr
