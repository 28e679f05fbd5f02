"""The files of deploy/ are what their readers take: compose, systemd, Caddy."""

import os
import re
import shutil
import socket
import subprocess
import sys

import grpc
import pytest
import urllib3
import yaml
from project import ROOT
from served import running

from sponge_env.serve.__main__ import _parser as serve_parser

DEPLOY = ROOT / "deploy"
CADDY = "{\n admin off\n auto_https disable_redirects\n skip_install_trust\n}\nimport %s\n"


@pytest.mark.parametrize(
    ("schema", "file"),
    [("compose-spec", "deploy/compose.yaml"), ("citation-file-format", "CITATION.cff"),
     ("github-workflows", ".github/workflows/ci.yml")],
)  # fmt: skip
def test_files_fit_their_schema(schema, file):
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", file]
    subprocess.run(check, cwd=ROOT, check=True)


def test_compose_names_what_there_is():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    mounts = [each for s in services.values() for each in s.get("volumes", ()) if each[0] == "."]
    assert len(mounts) == 4
    assert all((DEPLOY / each.split(":")[0]).is_file() for each in mounts)
    for file in (DEPLOY / "prometheus.yml", DEPLOY / "grafana" / "datasource.yaml"):
        assert re.search(r"(?:\"|//)(\w+):\d+", file.read_text())[1] in services
    serve_parser().parse_args(services["sponge"]["command"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd on this machine")
def test_systemd_takes_the_unit(tmp_path):
    unit, program = (DEPLOY / "sponge.service").read_text(), "/opt/sponge/bin/sponge "
    assert program in unit
    (tmp_path / "sponge.service").write_text(unit.replace(program, "/bin/true "))
    subprocess.run(["systemd-analyze", "verify", tmp_path / "sponge.service"], check=True)


@pytest.mark.skipif(shutil.which("caddy") is None, reason="no Caddy on this machine")
def test_clients_reach_a_server_behind_caddy_by_tls(tmp_path):
    (tmp_path / "Caddyfile").write_text(CADDY % (DEPLOY / "Caddyfile"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        at = f"localhost:{free.getsockname()[1]}"
    with running() as server:
        given = {"SPONGE_DOMAIN": at, "SPONGE_HTTP": server.http, "SPONGE_GRPC": server.grpc}
        environment = os.environ | given | {"XDG_DATA_HOME": str(tmp_path)}
        pipes = {"stderr": subprocess.PIPE, "env": environment}
        with subprocess.Popen(["caddy", "run"], cwd=tmp_path, **pipes) as caddy:
            try:
                said = b""
                while not (b"serving initial" in said and b"certificate obtained" in said):
                    said += caddy.stderr.readline()
                    assert caddy.poll() is None, said
                root = tmp_path / "caddy" / "pki" / "authorities" / "local" / "root.crt"
                again = urllib3.Retry(20, backoff_factor=0.05)  # it serves it a little later
                trusting = urllib3.PoolManager(ca_certs=str(root), retries=again)
                assert trusting.request("GET", f"https://{at}/v2").status == 200
                trusted = grpc.ssl_channel_credentials(root.read_bytes())
                with grpc.secure_channel(at, trusted) as channel:
                    live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
                    assert live(b"", timeout=20) == b"\x08\x01"  # live: true
            finally:
                caddy.terminate()
