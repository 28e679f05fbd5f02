"""Triton, with a model in its Python backend, for comparisons.

It comes from ``nvidia-pytriton``, in an environment of its own: this project does not need it.
The backend's script is run by Triton itself, without pytriton's proxy, which would cost time.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.servers import CORE_UNIT, MODEL_CPU, OTHERS, Server, ended, keeping_to
from sponge_env import cli
from sponge_env.errors import ConfigError
from sponge_env.live.limits import open_limits
from sponge_env.models.efficientnet import efficientnet
from sponge_env.serve.wire.tensors import datatype

HOW_TO_MAKE = (
    "for Triton: python3 -m venv TRITON && TRITON/bin/pip install nvidia-pytriton onnxruntime "
    "'numpy<2', then --triton TRITON/bin/python"
)
ONNX = Path(__file__).with_name("triton_onnx.py")
START_S, HERE = 60.0, ("127.0.0.1", 0)
SHARED_BYTES = 128 << 20  # Of Triton's Python backend, so that it does not grow meanwhile


def add_triton(parser: cli.Parser) -> None:
    """Add the option to compare with Triton."""
    text = "interpreter whose environment has nvidia-pytriton, to compare with Triton"
    parser.add_argument("--triton", type=Path, metavar="PYTHON", help=text)


@dataclass(frozen=True)
class TritonModel:
    """One of our EfficientNets for Triton's Python backend, and how it is served."""

    name: str
    batch_max: int = 16
    delay_s: float = 0.0  # How long a batch that is not full waits for more
    instances: int = 1  # Processes that run the model, under one CPU limit
    cores: int = 16  # Core units, of all instances together

    def config(self) -> str:
        """Return its configuration: requests' own timeouts count, and late requests are refused."""
        model = efficientnet(self.name)
        sides = ("input", "output"), ("images", "logits"), (model.inputs, model.outputs)
        tensors = "\n".join(
            f'{side} [{{ name: "{name}" data_type: TYPE_{datatype(spec.dtype)} '
            f"dims: {list(spec.shape)} }}]"
            for side, name, spec in zip(*sides, strict=True)
        )
        parameters = "\n".join(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
            for key, value in (("path", model.path), ("cpu", MODEL_CPU))
        )
        return f"""name: "{self.name}"
backend: "python"
max_batch_size: {self.batch_max}
{tensors}
instance_group [{{ kind: KIND_CPU count: {self.instances} }}]
dynamic_batching {{
  max_queue_delay_microseconds: {round(self.delay_s * 1e6)}
  default_queue_policy {{
    timeout_action: REJECT
    allow_timeout_override: true
  }}
}}
{parameters}
"""


@contextmanager
def triton(python: Path, model: TritonModel) -> Iterator[Server]:
    """Serve a model with the Triton that an interpreter's environment has."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        home = _triton_home(python)
        _lay_out(folder, home, model)
        with socket.create_server(HERE) as one, socket.create_server(HERE) as other:
            port, grpc_port = one.getsockname()[1], other.getsockname()[1]
        with keeping_to(OTHERS):
            started = _start_triton(folder, home, python, port, grpc_port)
        process = stack.enter_context(ended(started))
        server = Server("triton", model.name, port, grpc_port, process)
        _wait_until_ready(server, folder / "log")
        if model.cores * CORE_UNIT < 1:
            stack.enter_context(_limited(_stubs(process.pid, model.instances), model.cores))
        yield server


def _triton_home(python: Path) -> Path:
    """Return where an environment has its Triton."""
    code = "import pytriton; print(pytriton.__path__[0])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{python} has no nvidia-pytriton. {HOW_TO_MAKE}")
    return Path(done.stdout.strip()) / "tritonserver"


def _lay_out(folder: Path, home: Path, model: TritonModel) -> None:
    """Make a model repository, and a folder of backends with the stub for its Python."""
    own = folder / "models" / model.name
    (own / "1").mkdir(parents=True)
    shutil.copy(ONNX, own / "1" / "model.py")
    (own / "config.pbtxt").write_text(model.config())
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    for file in (home / "backends" / "python").iterdir():
        (backend / file.name).symlink_to(file)
    version = home.parents[2].name.removeprefix("python")  # .../python3.11/site-packages/...
    shutil.copy(home / "python_backend_stubs" / version / "triton_python_backend_stub", backend)


def _start_triton(
    folder: Path, home: Path, python: Path, port: int, grpc_port: int
) -> subprocess.Popen[str]:
    own = {
        "LD_LIBRARY_PATH": str(home.parents[1] / "nvidia_pytriton.libs"),
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"} | own
    command = [
        str(home / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}",
        f"--backend-directory={folder / 'backends'}",
        f"--backend-config=python,shm-default-byte-size={SHARED_BYTES}",
        *("--http-address=127.0.0.1", f"--http-port={port}"),
        *("--grpc-address=127.0.0.1", f"--grpc-port={grpc_port}"),
        *("--allow-metrics=false", "--exit-timeout-secs=2"),
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True)


def _wait_until_ready(server: Server, log: Path) -> None:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s and server.process.poll() is None:
        with suppress(OSError):
            server.fetch(f"/v2/models/{server.model}/ready")
            return
        time.sleep(0.1)
    raise ConfigError(f"Triton does not serve; its log ends with:\n{log.read_text()[-2000:]}")


def _stubs(pid: int, count: int) -> list[int]:
    """Return the processes of Triton's that run the model."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    started = [each for task in tasks for each in (task / "children").read_text().split()]
    comms = {int(each): Path(f"/proc/{each}/comm").read_text() for each in started}
    found = [each for each, comm in comms.items() if "triton_python_b" in comm]
    if len(found) != count:
        raise ConfigError(f"Triton runs the model in {len(found)} processes instead of {count}")
    return found


@contextmanager
def _limited(pids: Sequence[int], cores: int) -> Iterator[None]:
    """Give processes so many core units together, by the same means as our replicas."""
    limits = open_limits("auto", CORE_UNIT, 1, lambda path: None)
    if limits.kind == "duty-cycle" and len(pids) > 1:
        raise ConfigError("only a control group limits several instances together")
    with closing(limits), closing(limits.limiter()) as limiter:
        for pid in pids:
            limiter.attach(pid)
        limiter.apply(cores * CORE_UNIT)
        yield
