"""Replicas in pods of a fake cluster, made from the manifests in ``deploy/``."""

import sys
from contextlib import contextmanager
from pathlib import Path

import busy_model
import pytest
import yaml
from fake_cluster import FakeCluster
from fake_cluster.node import ROOT
from machine import wait_until

from sponge_env.k8s import api
from sponge_env.k8s.launcher import KubernetesLauncher

HERE = Path(__file__).parent
BASE = HERE.parent / "deploy" / "base"
TOKEN = "of the tests"
BUSY = busy_model.config(batch_max=8, replicas_max=2)

needs_v1 = pytest.mark.skipif(not ROOT.is_dir(), reason="needs control groups of version 1")


@contextmanager
def pods(folder, cpu="300m", milli=4000, delay_s=(0.0, 0.0)):
    with FakeCluster(milli, delay_s) as cluster, pytest.MonkeyPatch.context() as patch:
        for name in ("access.yaml", "replicas.yaml"):
            for found in yaml.safe_load_all((BASE / name).read_text()):
                if found["kind"] == "Deployment":
                    _run_here(found["spec"]["template"]["spec"]["containers"][0], cpu)
                cluster.store.create(f"{found['kind'].lower()}s", "default", found)
        (folder / "token").write_text("sa:sponge")
        patch.setattr(api, "ACCOUNT", folder)
        patch.setenv(api.URL, cluster.url)
        yield cluster


def _run_here(container, cpu):
    """Have a container run this project with the manifest's arguments, but for the model."""
    container["command"] = [sys.executable, "-m", "sponge_env", "replica"]
    container["args"][1] = busy_model.BUSY
    path = {"PYTHONPATH": f"{HERE.parent}:{HERE}", "SPONGE_REPLICA_TOKEN": TOKEN}
    container["env"] = [{"name": name, "value": value} for name, value in path.items()]
    for side in container["resources"].values():
        side["cpu"] = cpu


def launcher(config, deployment="sponge-replica"):
    launcher = KubernetesLauncher([config], deployment, TOKEN)
    wait_until(lambda: bool(launcher._pods))
    return launcher
