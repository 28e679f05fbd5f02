from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import learning_curve


def test_a_learning_curve_is_printed_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--scenario", "paper", "--seeds", "2", "--steps", "16384", "--points", "2"]
    assert learning_curve.main([*size, "--out", str(tmp_path / "curve.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["steps", "8192", "16384"]
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (810, 288)


def test_the_table_has_the_mean_and_the_ends_of_all_trainings() -> None:
    curves = np.array([[(100, 4.0, 8.0), (200, 2.0, 7.0)], [(100, 6.0, 9.0), (200, 0.0, 7.0)]])
    first, second = (line.split() for line in learning_curve.table(curves).splitlines()[1:])
    assert first == "100 5.000 4.000 .. 6.000 8.50 8.00 .. 9.00".split()
    assert second == "200 1.000 0.000 .. 2.000 7.00 7.00 .. 7.00".split()


def test_an_unknown_learner_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert learning_curve.main(["--agent", "pppo"]) == 2
    assert "did you mean 'ppo'" in capsys.readouterr().err
