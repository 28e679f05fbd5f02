"""Servers that benchmarks start; the model is alone on the last CPU that we may use."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from sponge_env.errors import ConfigError

CORE_UNIT = 1 / 16  # Physical cores in one core unit, as in the scenarios of this machine
END_S = 30.0

CPUS = os.sched_getaffinity(0)
MODEL_CPU = max(CPUS)
OTHERS = CPUS - {MODEL_CPU} or CPUS  # Where clients run, and what is around a model


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    name: str
    model: str
    port: int  # Of HTTP
    grpc_port: int
    process: subprocess.Popen[str]

    def fetch(self, path: str, values: object = None) -> bytes:
        """Return the answer to GET, or to POST with these values; a bad status is an OSError."""
        data = None if values is None else json.dumps(values).encode()
        url, headers = f"http://127.0.0.1:{self.port}{path}", {"content-type": "application/json"}
        request = urllib.request.Request(url, data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    @property
    def metadata(self) -> Any:
        """The server's description of the model."""
        return json.loads(self.fetch(f"/v2/models/{self.model}"))

    def batches(self) -> dict[int, int]:
        """Return how many batches of each size it has served so far."""
        (stats,) = json.loads(self.fetch(f"/v2/models/{self.model}/stats"))["model_stats"]
        return {b["batch_size"]: b["compute_infer"]["count"] for b in stats["batch_stats"]}


@contextmanager
def keeping_to(cpus: set[int]) -> Iterator[None]:
    """Pin this thread, and what it starts within the context, to CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def sponge(name: str, *arguments: str) -> Iterator[Server]:
    """Serve a model with this project, by ``sponge serve`` with more arguments."""
    command = [sys.executable, "-m", "sponge_env", "serve", "--model", name]
    command += ["--port", "0", "--grpc-port", "0", "--wait", *arguments]
    with keeping_to(CPUS):
        started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with ended(started) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("serving at "):
                port, grpc_port = map(int, re.findall(r":(\d+)", line))
                break
        else:
            ended_with = process.wait(END_S)
            raise ConfigError(f"sponge serve --model {name} ended with exit code {ended_with}")
        server = Server("sponge", "", port, grpc_port, process)
        (model,) = json.loads(server.fetch("/v2/repository/index", {}))
        yield replace(server, model=str(model["name"]))


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """End a process with the context, by SIGTERM if it obeys."""
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
