from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from agents.policy import POLICY_FILE
from benchmarks import learning_curve

SHIPPED = Path("agents/policies/ppo-joint-yolov5s.safetensors")


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


def finished(folder: Path, cores: float) -> Path:
    """Write what a training in phases leaves, of three judgements of two scenarios."""
    with closing(SummaryWriter(str(folder))) as writer:
        for k in range(3):
            writer.add_scalar("evaluation/score", 1.0, 100 * k)
            for name in ("calm", "rough"):
                writer.add_scalar(f"violations/{name}", 0.01 * k * (name == "rough"), 100 * k)
                writer.add_scalar(f"cores/{name}", cores + (name == "calm"), 100 * k)
    shutil.copy(SHIPPED, folder / POLICY_FILE)
    return folder


def test_trainings_that_were_made_are_shown_by_their_own_judge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(finished(tmp_path / name, cores)) for name, cores in (("a", 2.0), ("b", 4.0))]
    assert learning_curve.main(["--runs", *runs, "--out", str(tmp_path / "curve.png")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:4]]
    assert rows[2] == "200 1.000 1.000 .. 1.000 3.50 2.50 .. 4.50".split()
    assert [row[0] for row in rows] == ["0", "100", "200"]


def test_trainings_that_cannot_be_shown_together_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = finished(tmp_path / "a", 2.0), finished(tmp_path / "b", 2.0)
    shutil.copy(SHIPPED.with_name("ppo-joint-lite0.safetensors"), other / POLICY_FILE)
    (tmp_path / "none").mkdir()
    out = ["--out", str(tmp_path / "curve.png")]
    for runs, more, said in (
        ([tmp_path / "none"], out, "no events of a training in phases"),
        ([one, other], out, "several agents or systems"),
        ([one], [], "--runs needs --out"),
        ([], ["--scenario", "variants", *out], "of a scenario with variants"),
    ):
        chosen = ["--runs", *map(str, runs)] if runs else []
        assert learning_curve.main([*chosen, *more]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "curve.png").exists()


def test_an_unknown_learner_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert learning_curve.main(["--agent", "pppo"]) == 2
    assert "did you mean 'ppo'" in capsys.readouterr().err
