"""Whatever is in a file that somebody hands us: it is read, or one sentence says why not."""

import json
import math
import os
import random
import struct
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_runs import write_suite
from tiny_policies import drawn_policy

from agents.policy import load_policy, save_policy
from baselines import load_tuned
from sponge_env.__main__ import main
from sponge_env.errors import SpongeError
from sponge_env.fidelity.report import load_fidelity
from sponge_env.formats import read_arrivals, read_bandwidth
from sponge_env.results.comparison import load_run
from sponge_env.run.executor import Failure
from sponge_env.run.suite import SUITE_DIR, cells, load_suite
from sponge_env.scenario.profile import PROFILE_DIR, load_profile, local_model
from sponge_env.scenario.scenario import SCENARIO_DIR, load_scenario
from sponge_env.scenario.spec import make_spec, scenario_profile

ROOT = Path(__file__).resolve().parent.parent
TRACES = Path(__file__).parent / "data" / "traces"

VALUES = (
    *(None, True, -1, 0, 1, 3, 1e-300, 1e308, math.nan, math.inf, -math.inf, 10**30, 10**400),
    *("", "x", "../x", "/dev/zero", "\0", "<b>|`\n", [], {}, [[]], {"x": 1}, [1, "x"]),
)
TEXTS = (
    *("-1", "1e999", "nan", "99999999999999999999", "1_0", "[" * 2000, '"', "\n", "\0", ","),
    *("0x" + "f" * 6000, "[[x]]\n", "= ", "\ufeff", "2000-01-01", "'../x'", "true", "{}", ""),
)
WORDS = (*map(str.encode, TEXTS), b"\xff\xfe", b"\x1f\x8b")


def change_bytes(content, rng):
    """Cut out a piece, double it, or put something else in its place."""
    begin = rng.randrange(len(content) + 1)
    end = min(len(content), begin + rng.choice((0, 1, 4, 30, len(content))))
    put = rng.choice((*WORDS, content[begin:end] * 2, rng.randbytes(4)))
    return content[:begin] + put + content[end:]


def change_json(content, rng):
    """Change the type or the value of something in it, or take it out."""
    inside = root = {"": json.loads(content)}
    key, child = "", root[""]
    while isinstance(child, dict | list) and child and rng.random() < 0.8:
        keys = list(child) if isinstance(child, dict) else range(len(child))
        inside, key = child, rng.choice(keys)
        child = inside[key]
    if rng.random() < 0.2:
        del inside[key]
    else:
        inside[key] = rng.choice(VALUES)
    return json.dumps(root.get("")).encode()


def change_policy(content, rng):
    """Change what a safetensors file says of its arrays, or of the policy."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    said = header["__metadata__"]
    if rng.random() < 0.5:
        said["policy"] = change_json(said["policy"].encode(), rng).decode()
        changed = json.dumps(header).encode()
    else:
        changed = change_json(content[8:end], rng)
    return struct.pack("<Q", len(changed)) + changed + content[end:]


CHANGES = {".json": change_json, ".safetensors": change_policy}


def change(path, rng):
    content = path.read_bytes()
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        changed = change_bytes if rng.random() < 0.3 else CHANGES.get(path.suffix, change_bytes)
        try:
            content = changed(content, rng)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            content = change_bytes(content, rng)  # it is no such file any more
    return content


def use_profile(path):
    profile = load_profile(path)
    make_spec(load_scenario("local"), profile)
    make_spec(load_scenario("paper"), profile)


def measured(name_or_path):
    """Load a profile, for one of this machine, which may not have been measured, a shipped one."""
    return load_profile("lite0" if local_model(str(name_or_path)) else name_or_path)


def use_scenario(path):
    scenario = load_scenario(path)
    with patch("sponge_env.scenario.spec.load_profile", measured):
        make_spec(scenario, scenario_profile(scenario))


def use_suite(path):
    suite = load_suite(path)
    if not any(group.traces for group in suite.cells):  # such cells need a folder, too
        cells(suite)


def use_trace(path):
    for read in (read_bandwidth, read_arrivals):
        with read_or_refused():
            read(path)


@contextmanager
def read_or_refused():
    try:
        yield
    except SpongeError as error:
        assert_sentence(error)


def assert_sentence(error):
    assert str(error)
    assert type(error) is not SpongeError


def shortened(path, folder):
    """Copy a JSON file without most of what its lists and tables hold: the same, but small."""

    def cut(data):
        if isinstance(data, dict):
            return {key: cut(value) for key, value in list(data.items())[:20]}
        return [cut(value) for value in data[:15]] if isinstance(data, list) else data

    (folder / path.name).write_text(json.dumps(cut(json.loads(path.read_text()))))
    return folder / path.name


@pytest.fixture(scope="module")
def loaders(tmp_path_factory):
    """Return valid files of every kind, and what reads them."""
    folder = tmp_path_factory.mktemp("valid")
    save_policy(drawn_policy(), policy := folder / "policy.safetensors")
    return {
        "profile": (sorted(PROFILE_DIR.glob("*.json")), use_profile),
        "scenario": (sorted(SCENARIO_DIR.glob("*.toml")), use_scenario),
        "suite": (sorted(SUITE_DIR.glob("*.toml")), use_suite),
        "trace": (sorted(p for p in TRACES.iterdir() if p.is_file()), use_trace),
        "policy": ([policy], load_policy),
        "tuned": ([shortened(ROOT / "baselines" / "tuned.json", folder)], load_tuned),
        "fidelity": ([shortened(ROOT / "docs/fidelity-swing-local.json", folder)], load_fidelity),
    }


def check_changes(valid, check, fewer=1):
    """Check what is done with files that were changed, in a few examples where it takes long."""

    @settings(max_examples=max(1, settings().max_examples // fewer))
    @given(st.integers(0, 2**62))
    def check_one(seed):
        rng = random.Random(seed)
        path = rng.choice(valid)
        check(path, change(path, rng))

    check_one()


@pytest.mark.parametrize("kind", "profile scenario suite trace policy tuned fidelity".split())
def test_a_changed_file_is_read_or_refused(kind, loaders, tmp_path):
    valid, use = loaders[kind]
    assert valid
    for path in valid:
        use(path)

    def check(path, content):
        (changed := tmp_path / path.name).write_bytes(content)
        with read_or_refused():
            use(changed)

    check_changes(valid, check)


SUITE = """
seeds = 2
starts = ["cold", "warm"]
[[cells]]
scenarios = ["paper"]
profiles = ["resnet18"]
changes = { duration_s = 3.0, warmup_s = 1.0, "network.base_delay_s" = 0.05 }
across = { slo_s = [0.5, 1.0] }
[agents.static]
options = { cores = 4 }
[agents.fa2]
"""


class Shown:
    """Runs units here, and hides no failure but those that are meant for users."""

    def __init__(self, count):
        pass

    def run(self, work, tasks):
        for task in tasks:
            try:
                yield task, work(task)
            except SpongeError as error:
                assert_sentence(error)
                yield task, Failure(type(error).__name__, str(error))


ONE = "--agent static --duration 3"


@pytest.mark.parametrize(
    ("kind", "options"),
    [("profile", f"{ONE} --profile FILE"), ("profile", f"{ONE} --scenario local --profile FILE"),
     ("scenario", f"{ONE} --scenario FILE"), ("suite", "--suite FILE"),
     ("trace", f"{ONE} --trace FILE"), ("trace", f"{ONE} --arrivals FILE"),
     ("trace", f"{ONE} --suite real --seeds 1 --traces DIR")],
)  # fmt: skip
def test_a_command_takes_or_refuses_it(kind, options, loaders, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sponge_env.run.cluster.Processes", Shown)
    for module in ("app.compare", "run.unit"):  # no pictures, which take most of the time
        monkeypatch.setattr(f"sponge_env.{module}.missing", lambda extra: True)
    (suite := tmp_path / "small.toml").write_text(SUITE)
    valid = [suite] if kind == "suite" else loaders[kind][0]

    def check(path, content):
        with TemporaryDirectory(dir=tmp_path) as folder:
            (changed := Path(folder) / path.name).write_bytes(content)
            words = options.replace("FILE", str(changed)).replace("DIR", folder).split()
            code = main(["evaluate", *words, "--run-dir", f"{folder}/runs/a"])
        error = capsys.readouterr().err
        assert code in (0, 2) or (code == 1 and "--suite" in words)
        assert error.count("error: ") == (code == 2)

    check_changes(valid, check, fewer=10)


def test_a_changed_run_is_read_or_refused(tmp_path):
    run = write_suite(tmp_path / "run", {"a": ([3, 2], 4.0), "b": ([0, 0], 9.0)}, bounds={"o": 3.0})
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    load_run(run)

    def check(path, content):
        kept = path.read_bytes()
        path.write_bytes(content)
        try:
            with read_or_refused():
                load_run(run)
        finally:
            path.write_bytes(kept)

    check_changes(files, check, fewer=10)


@pytest.mark.parametrize(
    ("ending", "use"),
    [(".json", use_profile), (".toml", use_scenario), (".toml", use_suite), ("", load_policy)],
)
def test_a_pipe_is_not_waited_for(tmp_path, ending, use):
    os.mkfifo(path := tmp_path / f"pipe{ending}")
    with pytest.raises(SpongeError):
        use(path)
