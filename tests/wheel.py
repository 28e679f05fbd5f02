"""Build the distributions and use the wheel in a bare environment: ``make package``.

The environment has the base dependencies only, in their lowest versions, and a package ``agents``
of another project. What it computes is compared with the newest versions, which are installed here.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

import sponge_env
from sponge_env.utils.files import read_all

ROOT = Path(__file__).resolve().parent.parent
FOREIGN = "from nowhere import Agent  # as good as openai-agents\n"

STEP = """
import gymnasium, sponge_env, sponge_env.env.vector
assert "site-packages" in sponge_env.__file__, sponge_env.__file__
env = gymnasium.make("Sponge-v0")
observation, _ = env.reset(seed=0)
for _ in range(3):
    observation, *_ = env.step(env.action_space.sample())
assert env.observation_space.contains(observation)
"""

NEEDED = {  # commands that do not run on the base alone, by what their error names
    "sponge-env[train]": ["train"],
    "sponge-env[live]": ["calibrate"],
    "the report": ["report", "runs"],
    "sponge-env[report]": ["evaluate", "--suite", "quick"],
}


def build(folder):
    """Return the wheel, whose files all lie within the package; built twice it is the same."""
    hatch = [sys.executable, "-m", "hatchling", "build", "--directory"]
    for name in ("once", "twice"):
        dated = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
        subprocess.run([*hatch, str(folder / name)], cwd=ROOT, env=dated, check=True)
    once, twice = (read_all(folder / name) for name in ("once", "twice"))
    assert once == twice
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, folder.glob("once/*"))]
    subprocess.run(check, check=True)
    (wheel,) = folder.glob("once/*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"sponge_env", f"sponge_env-{sponge_env.__version__}.dist-info"}, tops
    wanted = ("agents/policies/ppo-lite0.safetensors", "baselines/tuned.json", "py.typed")
    wanted += ("serve/rpc/inference.binpb",)
    shown = ("serve/monitor/page.html", "traces/scenarios/paper.toml", "traces/suites/paper.toml")
    for name in (*wanted, *shown):
        assert f"sponge_env/{name}" in names, name
    return wheel


def lowest():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [re.sub(r">=([\d.]+).*", r"==\1", each) for each in project["dependencies"]]


def result(file):
    (summary,) = json.loads(file.read_text())
    return {name: value for name, value in summary.items() if not name.startswith("decision")}


def main():
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheel, bare, elsewhere = build(folder), folder / "venv", folder / "elsewhere"
        elsewhere.mkdir()
        subprocess.run([sys.executable, "-m", "venv", str(bare)], check=True)
        (site,) = bare.glob("lib/python*/site-packages")
        foreign = site / "agents" / "__init__.py"
        foreign.parent.mkdir()
        foreign.write_text(FOREIGN)
        pip = [bare / "bin" / "pip", "install", "--quiet", "--no-compile", str(wheel)]
        subprocess.run([*pip, *lowest()], check=True)
        assert foreign.read_text() == FOREIGN, "the wheel harms another distribution"

        def run(program, *arguments):
            words = [bare / "bin" / program, *arguments]
            env = {"HOME": folder, "PATH": "/usr/bin:/bin"}
            return subprocess.run(words, cwd=elsewhere, env=env, capture_output=True, text=True)

        evaluation = ["-m", "sponge_env", "evaluate", "--duration", "20", "--json", "out.json"]
        for done in (
            run("sponge", "--version"),
            run("sponge", "evaluate", "--agent", "static-8", "--duration", "20"),
            run("python", *evaluation, "--agent", "sponge-ip"),
            run("python", "-c", STEP),
        ):
            assert done.returncode == 0, f"{done.args}: {done.stderr}"
            sys.stdout.write(done.stdout)
        assert list(elsewhere.glob("runs/*/intervals/static-8/*.parquet"))
        here = [sys.executable, *evaluation, "--agent", "sponge-ip"]
        subprocess.run(here, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        assert result(folder / "out.json") == result(elsewhere / "out.json")
        for extra, arguments in NEEDED.items():
            done = run("sponge", *arguments)
            assert done.returncode == 2, f"{done.args}: {done.stdout}{done.stderr}"
            assert extra in done.stderr, done.stderr
            assert done.stderr.count("\n") == 1, done.stderr
            sys.stdout.write(done.stderr)


if __name__ == "__main__":
    main()
