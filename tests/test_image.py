"""What serves needs no torch, a replica little else; and images that are built serve.

To build them takes root, buildah, runc, and ``SPONGE_IMAGE_BUILD``: options of ``buildah build``,
such as ``--build-arg BASE=IMAGE``, that let it reach a base and packages from here.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from test_models import write_model
from test_packaging import EXTRAS, PROJECT, ROOT

MAX_BYTES = {"server": 900e6, "replica": 350e6}
WRITABLE = ("/tmp", "/var/cache/sponge-env/kernels", "/var/cache/sponge-env/profiles")
SERVE = "sponge calibrate --seconds 2 && exec sponge serve --model efficientnet-lite0 --agent hpa"
LOAD = "sponge load --url http://127.0.0.1:8000 --scenario local --rate 5 --duration 5"
MISSING = [name for name in ("buildah", "runc") if not shutil.which(name)]
MISSING += [] if os.environ.get("SPONGE_IMAGE_BUILD") else ["SPONGE_IMAGE_BUILD"]

ALONE = """
import importlib.metadata, sys
there = {"numpy", "onnxruntime", "sponge_env"}
sys.modules.update(dict.fromkeys(importlib.metadata.packages_distributions().keys() - there))
import numpy, sponge_env.__main__, sponge_env.env.factory, sponge_env.live.local
from sponge_env.models.registry import resolve_model
model = resolve_model(sys.argv[1])
print(model.run(model.load(threads=1), numpy.ones((2, 3), "f")).sum())
"""


def output(*words):
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def brought(extra):
    """Return all that an extra installs, with what that needs in turn."""
    seen, waiting = set(), [Requirement(f"sponge-env[{extra}]")]
    while waiting:
        needed = waiting.pop()
        lines = importlib.metadata.requires(needed.name) or []
        if needed.name == "sponge-env":  # whose installation may be older
            lines = [*PROJECT["dependencies"], *(x for e in needed.extras for x in EXTRAS[e])]
        for each in set(map(Requirement, lines)) - seen:
            if not each.marker or any(
                each.marker.evaluate({"extra": e}) for e in needed.extras | {""}
            ):
                seen.add(each)
                waiting.append(each)
    return {each.name for each in seen}


def test_what_serves_needs_no_torch():
    assert "torch" in brought("export") & brought("all")
    assert not [name for name in brought("serve") | brought("live") if "torch" in name]


def test_a_replica_needs_numpy_and_onnxruntime_only(tmp_path):
    model = write_model(tmp_path / "own.onnx", (("batch", 3),), ("batch", 3))
    assert output(sys.executable, "-c", ALONE, str(model)) == "6.0"


def test_a_server_that_has_ended_does_not_take_the_interpreter_apart():
    code = "import atexit, sys; atexit.register(print, 'apart'); sys.argv = ['sponge', *{!r}]\n"
    code += "from sponge_env.__main__ import run; run()"
    for command, apart in ((("serve", "--agent"), ""), (("report",), "apart\n")):  # lack something
        words = [sys.executable, "-c", code.format(command)]
        done = subprocess.run(words, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr[:7]) == (2, apart, "error: ")


@pytest.mark.skipif(bool(MISSING), reason=f"this needs {', '.join(MISSING)}")
def test_the_images_are_small_and_serve(tmp_path):
    name = f"sponge-test-{os.getpid()}"
    build = ["buildah", "build", "--layers", "-f", f"{ROOT}/deploy/Dockerfile", "-t", name]
    build += os.environ["SPONGE_IMAGE_BUILD"].split()
    for target in ("replica", "server"):
        output(*build, "--target", target, ROOT)
        container = output("buildah", "from", name)
        folder = output("buildah", "mount", container)
        assert int(output("du", "-s", "--block-size=1", folder).split()[0]) <= MAX_BYTES[target]
        if target == "server":
            serves(tmp_path, folder, name)
        output("buildah", "rm", container)
    output("buildah", "rmi", name)


def serves(bundle, root, name):
    image = json.loads(output("buildah", "inspect", "--type=image", name))["OCIv1"]["config"]
    output("runc", "spec", "--bundle", str(bundle))
    config = json.loads((bundle / "config.json").read_text())
    config["root"] = {"path": root, "readonly": True}
    process = {"args": ["sh", "-c", SERVE], "env": image["Env"], "cwd": image["WorkingDir"]}
    config["process"] |= {**process, "terminal": False, "user": {"uid": 65532, "gid": 65532}}
    mount = {"type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]}
    config["mounts"] += [{"destination": place, **mount} for place in WRITABLE]
    (bundle / "config.json").write_text(json.dumps(config))
    run = ["runc", "run", f"--bundle={bundle}", name]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert any(line.startswith("serving at") for line in server.stdout)
        answered = output("runc", "exec", name, *LOAD.split())
        assert re.search(r"requests +[1-9]\d* on time, .* 0 failed", answered)
        output("runc", "kill", name, "TERM")
        _, error = server.communicate(timeout=60)
    assert (server.returncode, "compiling" in error) == (0, False), error
    assert name not in output("runc", "list")
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{name}"))
