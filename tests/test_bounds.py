"""The clairvoyant bounds of suites: those that ship, and the command that finds them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from sponge_env.config import ControlName
from sponge_env.run import bounds
from sponge_env.run.suite import cell_name, cells, load_suite
from sponge_env.scenario import Scenario

STANDARD = load_suite("standard")
CELLS = {cell_name(cell): cell for cell in cells(STANDARD)}
SUITE = """
seeds = 2
starts = ["cold"]
bounds = ["vertical", "joint"]
[[cells]]
scenarios = ["paper"]
profiles = ["resnet18"]
changes = { duration_s = 5.0 }
[agents.static-8]
"""


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", STANDARD.bounds)
def test_those_of_the_standard_suite_ship(kind: ControlName) -> None:
    missing = {
        name: len(bounds.shipped(cell, kind))
        for name, cell in CELLS.items()
        if len(bounds.shipped(cell, kind)) < STANDARD.seeds
    }
    assert not missing, "run make bounds"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("paper-100kb+resnet18+cold", "vertical"),
        ("flash-crowd+resnet18+warm", "joint"),
        ("flash-crowd+lite0+warm", "vertical"),
        ("flash-crowd+lite0+cold", "joint"),
    ],
)
def test_what_ships_is_what_is_found(name: str, kind: ControlName) -> None:
    assert bounds.bound_of(CELLS[name], 3, kind) == tuple(bounds.shipped(CELLS[name], kind)[3])


def test_a_changed_scenario_has_bounds_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def bound_of(scenario: Scenario, seed: int, control: str) -> tuple[float, ...]:
        asked.append(seed)
        return 0.0, 1.0, 9.0, 10.0

    monkeypatch.setattr(bounds, "bound_of", bound_of)
    cell = CELLS["paper-100kb+resnet18+cold"]
    known = bounds.BoundUnit("vertical", cell, 2).found()
    assert len(known) == 2
    assert not asked
    slower = dataclasses.replace(cell, slo_s=2.0)
    assert bounds.BoundUnit("vertical", slower, 2).found() != known
    assert asked == [0, 1]


def test_the_command_writes_them_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(SUITE)
    assert bounds.main(["--suite", "mine.toml", "--jobs", "1", "--out", "out.json"]) == 0
    written = json.loads(Path("out.json").read_text())
    entry = written.pop("paper+resnet18+cold")
    assert {kind: len(found["seeds"]) for kind, found in entry.items()} == {
        "joint": 2,
        "vertical": 2,
    }
    for lower, upper, least, most in entry["joint"]["seeds"]:
        assert lower <= upper
        assert 0 < least <= most
    assert written.keys() == CELLS.keys()


def test_an_unknown_suite_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert bounds.main(["--suite", "standart"]) == 2
    assert "did you mean 'standard'" in capsys.readouterr().err
