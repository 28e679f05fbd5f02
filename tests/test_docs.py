"""What the pages and the mutants name exists (links, files, modules, lines); blocks run."""

import importlib.util
import json
import pydoc
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import mutations
import pytest

import evaluate
import sponge_env
from agents import training
from sponge_env.app import demo
from sponge_env.utils import installation

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = "sponge_env agents baselines benchmarks deploy docs examples tests traces".split()
FILES = {f"/{path.relative_to(ROOT)}" for each in FOLDERS for path in (ROOT / each).rglob("*.*")}
FILES |= {f"/{path.name}" for path in ROOT.glob("*.*")}
OF_A_USER = re.compile(r"mine|my-.*|out|run|versions|host|learn|fidelity")
"""Names of files that a user has, or that a run writes."""

PAGES = [
    pytest.param(path.read_text(), path, id=str(path.relative_to(ROOT)))
    for pattern in ("*.md", "docs/*.md", "traces/*.md", "agents/policies/*.md")
    for path in sorted(ROOT.glob(pattern))
    if path.name != "CHANGELOG.md"
]


def anchors(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_the_demo_says_what_its_comparison_found(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = []

    def run(words):
        commands.append(words)
        if words[0] == "evaluate":
            found = [
                {"agent": "hpa", "backend": kind, "violation_rate": rate, "mean_cores": 2.5}
                for kind, rate in (("sim", 0.5), ("live", 0.75))
            ]
            Path(words[words.index("--json") + 1]).write_text(json.dumps(found))
        return 2 * (words[-1] == "0-1" and words[0] == "train")

    monkeypatch.setattr(demo, "imported", lambda target: run)
    assert demo.main(["--wait"]) == 0
    assert [words[0] for words in commands] == ["calibrate", "train", "evaluate"]
    assert all(words[-1] == "--wait" for words in commands)
    said = capsys.readouterr().out
    assert "on the real worker, and cores held: hpa 75.0% on 2.5 cores." in said
    assert "in the simulator: hpa 50.0% on 2.5 cores." in said
    assert demo.main(["--cpus", "0-1"]) == 2, "what fails ends it"
    assert len(commands) == 5


@pytest.mark.parametrize(("text", "page"), PAGES)
def test_links_lead_somewhere(text, page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize(("text", "page"), PAGES)
def test_files_and_modules_exist(text, page):
    for name, stem in re.findall(r"`((?:[\w\-]+/)*([\w\-]+)\.(?:py|toml|json|csv|png))\b", text):
        assert OF_A_USER.fullmatch(stem) or any(f.endswith(f"/{name}") for f in FILES), name
    for module in re.findall(r"python -m ((?:sponge_env|agents|baselines|benchmarks)[\w.]*)", text):
        assert importlib.util.find_spec(module), module
    for extras in re.findall(r"pip install '\.\[([\w,]+)\]'", text):
        assert {*extras.split(",")} <= {*installation.EXTRAS, "all"}, extras
    for name in re.findall(r"`(sponge_env(?:\.\w+)+)", text):
        assert pydoc.locate(name) is not None, name


# Blocks -------------------------------------------------------------------------------------

BLOCK = re.compile(r"(<!-- not run: .+ -->\n)?^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
OF_A_READER = {  # files of traces/ that stand for those that pages name
    "my-4g.log": "recorded/3g-bus.txt",
    "my-load.csv": "arrivals-bursty-600s.csv",
}


@pytest.mark.parametrize(("text", "page"), PAGES)
@pytest.mark.filterwarnings("default")  # those of other libraries are theirs
@pytest.mark.usefixtures("inline")
def test_blocks_run(text, page, monkeypatch, tmp_path):
    """Python as it stands, and commands: evaluations of five seconds, servers and trainings not."""
    monkeypatch.chdir(tmp_path)
    for name, source in OF_A_READER.items():
        shutil.copy(ROOT / "traces" / source, name)
    Path("traces").symlink_to(ROOT / "traces")
    names = {}
    for skipped, language, body in BLOCK.findall(text):
        assert language in {"bash", "diff", "python", "text", "toml"}, body
        if language == "toml":
            Path("mine.toml").write_text(body)
        if language == "python" and not skipped:
            exec(body, names)
        for line in body.splitlines() if language == "bash" and not skipped else ():
            run(shlex.split(line, comments=True), monkeypatch)


def run(words, monkeypatch):
    match words:
        case [word, *command] if "=" in word:
            run(command, monkeypatch)
        case ["cd", folder]:
            monkeypatch.chdir(ROOT / folder)
        case ["make", *targets]:
            subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True)
        case ["sponge", "evaluate", *options] | [_, "evaluate.py" | "../evaluate.py", *options]:
            seconds = "31" if "warm" in options else "5"  # a warm-up takes 30 s
            short = [] if "--suite" in options else ["--duration", seconds]
            with tempfile.TemporaryDirectory() as folder:
                assert evaluate.main([*options, *short, "--run-dir", folder]) == 0
        case ["sponge" | ".venv/bin/sponge", "serve" | "load", *_]:
            pass  # tests/test_examples.py parses them
        case [_, "train.py", *options]:
            training.parse(options)
        case [python, *options]:
            assert python.endswith("python")
            subprocess.run([sys.executable, *options], cwd=ROOT, check=True)


def test_public_names_are_there_and_documented():
    page = (ROOT / "docs" / "architecture.md").read_text()
    for name in sponge_env.__all__:
        assert getattr(sponge_env, name).__doc__
        assert f"`{name}`" in page, name
    assert set(sponge_env.__all__) <= set(dir(sponge_env))
    with pytest.raises(AttributeError, match="no attribute 'Elephant'"):
        _ = sponge_env.Elephant


@pytest.mark.parametrize("mutant", [*mutations.mutants()], ids=lambda mutant: mutant.name)
def test_a_mutant_changes_a_line_that_there_is_and_names_its_tests(mutant):
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    for file, _, test in (name.partition("::") for name in mutant.tests):
        assert f"def {test.partition('[')[0]}" in (ROOT / "tests" / f"{file}.py").read_text(), test
