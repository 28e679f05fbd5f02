"""What the server costs beside bare ONNX Runtime, and Triton with the same model.

    python -m benchmarks.serving [--triton PYTHON]

EfficientNet-Lite0, one core for the model, another for server and client. Latency is measured one
request at a time on connections that are kept, throughput with as many as fill the batches. Bare
ONNX Runtime runs in this process on the model's core, with the same file, options and inputs. All
take turns, so that a drift of the machine's speed meets all alike.
"""

import gc
import itertools
import os
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.servers import MODEL_CPU, OTHERS, Server, keeping_to, sponge
from benchmarks.triton_server import HOW_TO_MAKE, TritonModel, add_triton, triton
from sponge_env import cli
from sponge_env.live.limits import process_cpu_s
from sponge_env.models.efficientnet import efficientnet
from sponge_env.models.model import onnx_session, run_onnx
from sponge_env.results.tables import aligned
from sponge_env.serve.load.client import HEADER_LENGTH, infer_head, infer_path

Array = NDArray[Any]
Ask = Callable[[int], Array]  # Has the model answer one of the rows
TIMEOUT_S = 60.0
LONG_MS = 60_000  # SLO of requests that are not to be refused, whatever there is to do
MODELS = ("efficientnet-lite0-uint8", "efficientnet-lite0")
AGENT = ("--agent", "static-16")  # All of the core and batches up to 16, as the bare runtime has
BARE = "ONNX Runtime, bare"
CONNECTIONS = 24  # Half as many again as the largest batch: the next is complete when one ends
ROUNDS, TURN = 60, 10  # Turns of each way to ask, and requests of a turn
BURSTS, BURST_S = 6, 6.0  # Measurements of the throughput


@contextmanager
def lean_client(server: Server, rows: Array, slo_ms: float | None = None) -> Iterator[Ask]:
    """Use one connection that is kept, with requests made beforehand, by default without an SLO."""
    (tensor,) = server.metadata["inputs"]
    parameters = {} if slo_ms is None else {"slo_ms": slo_ms}
    first, requests = f"POST {infer_path(server.model)} HTTP/1.1\r\nHost: 127.0.0.1", []
    for row in rows:
        about = infer_head({tensor["name"]: row}, parameters)
        lengths = f"Content-Length: {len(about) + row.nbytes}\r\n{HEADER_LENGTH}: {len(about)}"
        head = f"{first}\r\n{lengths}\r\n\r\n".encode()
        requests.append(head + about + row.tobytes())
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answers = connection.makefile("rb")

        def call(at: int) -> Array:
            connection.sendall(requests[at % len(requests)])
            if b" 200 " not in (status := answers.readline()):
                raise ConnectionError(f"the answer begins with {status!r}")
            lines = iter(answers.readline, b"\r\n")
            headers = dict(line.lower().rstrip().split(b": ", 1) for line in lines)
            body = answers.read(int(headers[b"content-length"]))
            return np.frombuffer(body[int(headers[HEADER_LENGTH.lower().encode()]) :], np.float32)

        yield call


@contextmanager
def triton_client(server: Server, rows: Array, protocol: Literal["http", "grpc"]) -> Iterator[Ask]:
    """Use ``tritonclient``, with a tensor made for each request, as its users do."""
    library = import_module(f"tritonclient.{protocol}")
    port = server.grpc_port if protocol == "grpc" else server.port
    (inputs,), (outputs,) = server.metadata["inputs"], server.metadata["outputs"]
    with closing(library.InferenceServerClient(f"127.0.0.1:{port}")) as client:

        def call(at: int) -> Array:
            row = rows[at % len(rows)][np.newaxis]
            tensor = library.InferInput(inputs["name"], row.shape, inputs["datatype"])
            tensor.set_data_from_numpy(row)
            output = library.InferRequestedOutput(outputs["name"])
            answer = client.infer(server.model, [tensor], outputs=[output])
            return answer.as_numpy(outputs["name"])[0]

        yield call


def check(calls: Mapping[str, Ask], count: int) -> None:
    """Raise unless all give the same answers, which also warms them up."""
    for at in range(count):
        expected = calls[BARE](at)
        for name, call in calls.items():
            if not np.allclose(call(at), expected, atol=1e-3):
                raise SystemExit(f"{name} and {BARE} give different answers")


def print_latencies(calls: Mapping[str, Ask], pids: Mapping[str, int]) -> None:
    """Measure all in turn; print latencies, and the server's CPU time for each request."""
    # The first request of a turn warms up and does not count.
    times_s: dict[str, list[float]] = {name: [] for name in calls}
    cpu_s = dict.fromkeys(calls, 0.0)
    gc.disable()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            with keeping_to({MODEL_CPU} if name == BARE else OTHERS):
                call(0)
                before_s = process_cpu_s(pids[name]) if name in pids else 0.0
                for at in range(TURN):
                    begin_s = time.perf_counter()
                    call(at)
                    times_s[name].append(time.perf_counter() - begin_s)
                cpu_s[name] += process_cpu_s(pids[name]) - before_s if name in pids else 0.0
    gc.enable()
    shares = {"p25": 0.25, "p50": 0.5, "p99": 0.99}
    found = {name: 1000 * np.quantile(each, [*shares.values()]) for name, each in times_s.items()}
    lines = [["ms", *shares, *(f"{share} over bare" for share in shares), "front end's CPU"]]
    for name, values in found.items():
        over = [*values - found[BARE], 1000 * cpu_s[name] / (ROUNDS * TURN)]
        texts = [f"{v:.2f}" for v in (*values, *over)]
        lines.append([name, *(texts if name != BARE else [*texts[:3], "", "", "", ""])])
    print("\n".join(aligned(lines)), end="\n\n")


def burst(server: Server, rows: Array, seconds: float) -> tuple[float, Counter[int]]:
    """Return the throughput of a server that is never idle, and the sizes of its batches."""
    # As many answers as there are connections come after the end, and count.
    before, begin_s = Counter(server.batches()), time.perf_counter()

    def send(first: int) -> int:
        with lean_client(server, rows, LONG_MS) as call:
            for at in itertools.count(first):
                if time.perf_counter() - begin_s >= seconds:
                    return at - first
                call(at)
        return 0

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        answers = sum(threads.map(send, range(CONNECTIONS)))
    return answers / (time.perf_counter() - begin_s), Counter(server.batches()) - before


def bare_rps(session: Any, rows: Array, sizes: Counter[int]) -> float:
    """Return the throughput of bare ONNX Runtime in the same batches."""
    batches = {size: np.resize(rows, (size, *rows.shape[1:])) for size in sizes}
    with keeping_to({MODEL_CPU}):
        for batch in batches.values():
            run_onnx(session, batch)
        begin_s = time.perf_counter()
        for size in sizes.elements():
            run_onnx(session, batches[size])
        return sum(size * n for size, n in sizes.items()) / (time.perf_counter() - begin_s)


def print_throughput(servers: Sequence[Server], session: Any, rows: Array) -> None:
    """Print throughput at saturation; each server's beside that of its batches run bare."""
    lines = [["at saturation", "mean batch", "requests/s", "bare, same batches", "share of bare"]]
    for server in servers:
        burst(server, rows, 1.0)
        pairs, all_sizes = [], Counter[int]()
        for _ in range(BURSTS):
            rps, sizes = burst(server, rows, BURST_S)
            pairs.append((rps, bare_rps(session, rows, sizes)))
            all_sizes += sizes
        # The two of a pair were measured one after the other: their ratio has no drift.
        share = statistics.median(one / other for one, other in pairs)
        rps, bare = map(statistics.median, zip(*pairs, strict=True))
        mean = sum(size * n for size, n in all_sizes.items()) / all_sizes.total()
        lines.append([server.name, f"{mean:.1f}", f"{rps:.1f}", f"{bare:.1f}", f"{share:.1%}"])
    print("\n".join(aligned(lines)), end="\n\n")


def measure(name: str, python: Path | None) -> None:
    """Measure one model and print its tables."""
    model = efficientnet(name)
    rows, session = np.ascontiguousarray(model.samples()), onnx_session(model.path, threads=1)

    def bare(at: int) -> Array:
        return run_onnx(session, rows[at % len(rows)][np.newaxis])[0]

    print(f"{name}, bodies of {rows[0].nbytes / 1000:.0f} KB\n")
    with ExitStack() as stack:
        servers = [stack.enter_context(sponge(name, *AGENT))]
        if python is not None:
            servers.append(stack.enter_context(triton(python, TritonModel(name))))
        calls, pids = {BARE: bare}, dict[str, int]()
        for server in servers:
            for kind, client in (
                ("lean client", lean_client(server, rows)),
                ("tritonclient HTTP", triton_client(server, rows, "http")),
                ("tritonclient gRPC", triton_client(server, rows, "grpc")),
            ):
                calls[f"{server.name}, {kind}"] = stack.enter_context(client)
                pids[f"{server.name}, {kind}"] = server.process.pid
        check(calls, len(rows))
        print_latencies(calls, pids)
        print_throughput(servers, session, rows)


@cli.command
def run(argv: Sequence[str]) -> int:
    """Measure, and print the tables."""
    parser = cli.Parser(prog="python -m benchmarks.serving", description=__doc__.splitlines()[0])
    add_triton(parser)
    arguments = parser.parse_args(argv)
    os.sched_setaffinity(0, OTHERS)
    with cli.terminate_like_interrupt():
        for name in MODELS:
            measure(name, arguments.triton)
    if arguments.triton is None:
        print(f"Without Triton; {HOW_TO_MAKE}.")
    return 0


if __name__ == "__main__":
    sys.exit(run())
