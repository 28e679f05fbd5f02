"""What is told about the distribution, and what its parts need. ``make package`` uses a wheel."""

import ast
import importlib.metadata
import importlib.util
import re
import sys
import tomllib
from functools import cache

import pytest
from project import ROOT

import sponge_env
from sponge_env.__main__ import COMMANDS, main
from sponge_env.errors import ConfigError
from sponge_env.utils import installation

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def name_of(requirement):
    return re.split(r"[\[<>=!~]", requirement)[0].lower().replace("_", "-")


@cache
def installed():
    return importlib.metadata.packages_distributions()


def distributions(module):
    found = installed().get(module.partition(".")[0], [])
    return {name.lower().replace("_", "-") for name in found}


def imported_modules():
    """Return the foreign top-level modules that the packages import, each with a file."""
    ours, found = {"sponge_env", "agents", "baselines", *sys.stdlib_module_names}, {}
    for package in ("sponge_env", "agents", "baselines"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module or ""]
                found.update({name.partition(".")[0]: str(path) for name in names})
    return {module: path for module, path in found.items() if module not in ours}


def test_what_is_imported_is_declared():
    requirements = [PROJECT["dependencies"], *(EXTRAS[extra] for extra in installation.EXTRAS)]
    declared = {name_of(requirement) for group in requirements for requirement in group}
    for module, path in imported_modules().items():
        assert distributions(module) & declared, f"{path} imports {module}"


def test_an_extra_brings_what_is_looked_for():
    for extra, modules in installation.EXTRAS.items():
        declared = {name_of(requirement) for requirement in EXTRAS[extra]}
        assert all(distributions(module) & declared for module in modules), extra


def test_the_version_is_told_in_one_way():
    version = sponge_env.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_a_missing_extra_is_a_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for module in ("torch", "onnxruntime", "pandas"):
        monkeypatch.setitem(sys.modules, module, None)
    lines = {"train": "train --steps 10", "live": "calibrate --seconds 1", "report": "report ."}
    for extra, line in lines.items():
        assert main(line.split()) == 2
        error = capsys.readouterr().err
        assert f"pip install 'sponge-env[{extra}]'" in error
        assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_one_evaluation_does_without_the_report(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main("evaluate --agent static-8 --duration 5 --run-dir run".split()) == 0
    assert "for TensorBoard and plots: pip install 'sponge-env[report]'" in capsys.readouterr().out
    made = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"intervals", "requests", "results"} <= made
    assert not {"tensorboard", "comparison.png"} & made


@pytest.mark.parametrize("words", [[], *([command, "--help"] for command in COMMANDS)])
def test_every_command_has_help_and_sponge_alone_five_examples(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "usage:" in shown
    examples = re.findall(r"\n  sponge (\w+) ", shown)
    assert words or len(examples) == 5
    assert set(examples) <= COMMANDS.keys()


def test_what_ships_lies_beside_the_package_or_within_it(monkeypatch, tmp_path):
    assert installation.data_folder("traces") == ROOT / "traces"
    assert installation.bundled("agents") == "agents"
    package = tmp_path / "sponge_env"
    (package / "traces").mkdir(parents=True)
    monkeypatch.setattr(installation, "_PACKAGE", package)
    assert installation.data_folder("traces") == package / "traces"
    (package / "agents").mkdir()
    (package / "agents" / "__init__.py").touch()
    monkeypatch.setattr(sponge_env, "__path__", [str(package)])
    assert installation.bundled("agents") == "sponge_env.agents"


def test_another_projects_agents_are_not_taken_for_ours(monkeypatch, tmp_path):
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "baselines", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="Python finds the package 'baselines' at"):
        installation.bundled("baselines")
