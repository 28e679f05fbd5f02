"""What HTTP and gRPC have in common: access, descriptions, deadlines, the way to the engine."""

import asyncio
import hmac
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from sponge_env import __version__
from sponge_env.models.model import TensorSpec
from sponge_env.serve.interface import VERSION, Call, Reply, ServedModel, Status
from sponge_env.serve.monitor.metrics import VIOLATIONS, ServerMetrics
from sponge_env.serve.monitor.tracing import TRACEPARENT, Spans, sampled_trace
from sponge_env.serve.options import PROXY_HEADERS, ServeOptions
from sponge_env.serve.wire.deadlines import DOUBTED_AGE_S, Arrival, request_deadline
from sponge_env.serve.wire.inline import InlineFuture
from sponge_env.serve.wire.outcomes import WireError, deciding_row, raise_unanswered
from sponge_env.serve.wire.protocol import TASKS, InferRequest, output_tensors
from sponge_env.serve.wire.regions import Regions
from sponge_env.serve.wire.resources import MemoryLimit
from sponge_env.serve.wire.tensors import brief, datatype

if TYPE_CHECKING:
    from sponge_env.serve.engine import ServingEngine

LOG = logging.getLogger("sponge_env")

EXTENSIONS = ("binary_tensor_data", "model_configuration", "statistics", "schedule_policy",
              "model_repository")  # fmt: skip
PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"  # Triton's names for what runs ONNX files
Headers = Mapping[bytes, bytes]  # By lower-case name
Record = Callable[[Sequence[Call], Sequence[Reply]], None]
GIVEN_UP_S = 2e-3  # A request that is cancelled so shortly before its deadline counts as late
MISSING = Reply(Status.STOPPED)  # Stands in for a reply that is not there yet


class Front:
    """The engine, as front ends use it."""

    def __init__(
        self, engine: "ServingEngine", options: ServeOptions, metrics: ServerMetrics,
        first: "Front | None" = None,
    ) -> None:  # fmt: skip
        self.engine, self.options, self.metrics = engine, options, metrics
        self.served = metrics.served
        self.memory: MemoryLimit = first.memory if first else MemoryLimit(options.max_held_bytes)
        regions = Regions(options.max_body_bytes) if options.shared_memory else None
        self.regions: Regions | None = first.regions if first else regions
        own = Spans() if options.spans and not first else None
        self.spans: Spans | None = first.spans if first else own
        self.all_metrics = first.metrics if first else metrics  # Of what is not of one model
        others = [Front(engine, options, each, self) for each in metrics.others]
        self.fronts = {front.served.name: front for front in (self, *others)}
        """By name, those of all models in the first one's front; in other fronts only their own."""
        self._token = options.token.encode() if options.token else None

    def check_token(self, headers: Headers) -> None:
        """Raise a WireError if the server has a token and the request does not."""
        if self._token is None:
            return
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        # takes as long for a wrong token as for the right one, whatever they have in common
        equal = hmac.compare_digest(token.lstrip(b" "), self._token)
        if scheme.lower() != b"bearer" or not equal:
            raise WireError("this needs the server's token: Authorization: Bearer TOKEN", 401)

    def regions_for(self, headers: Headers) -> Regions | None:
        """Return the shared memory that a request may name: without a token, not a proxy's."""
        proxied = self._token is None and not PROXY_HEADERS.isdisjoint(headers)
        return None if proxied else self.regions

    def of(self, name: str, version: str = "", loaded: bool = True) -> "Front":
        """Return the front of a model that is there, in any version if empty, or a WireError."""
        if (front := self.fronts.get(name)) is None:
            known = ", ".join(map(repr, self.fronts))
            raise WireError(f"there is no model {brief(name)}; it is {known}", 404)
        if version not in ("", VERSION):
            raise WireError(f"there is no version {brief(version)}; it is {VERSION!r}", 404)
        if loaded and not self.engine.is_loaded(name):
            raise WireError(f"the model {name!r} is not loaded", 404)
        return front

    @property
    def ready(self) -> bool:
        """Whether requests for the model are taken."""
        return self.engine.ready and self.engine.is_loaded(self.served.name)

    def set_loaded(self, name: str, loaded: bool, parameters: Iterable[str]) -> dict[str, Any]:
        """Load or unload a model; return the answer, which is empty, or raise a WireError."""
        self.of(name, loaded=False)
        if loaded and any(key == "config" or key.startswith("file:") for key in parameters):
            raise WireError("a model is loaded as it was before; leave out config and files")
        self.engine.set_loaded(name, loaded)
        return {}

    def statistics(self, every: bool) -> dict[str, Any]:
        """Return Triton's statistics of the model, or of every one."""
        fronts = self.fronts.values() if every else [self]
        return {"model_stats": [front.metrics.statistics() for front in fronts]}

    def server_metadata(self) -> dict[str, Any]:
        """Return name, version and extensions of the server, as plain JSON values."""
        more = () if self.regions is None else ("system_shared_memory",)
        return {"name": "sponge", "version": __version__, "extensions": [*EXTENSIONS, *more]}

    def model_metadata(self) -> dict[str, Any]:
        """Return the tensors of the model; the batch axis is -1."""

        def described(name: str, tensor: TensorSpec) -> dict[str, Any]:
            return {"name": name, "datatype": datatype(tensor.dtype), "shape": [-1, *tensor.shape]}

        return {
            **{"name": self.served.name, "versions": [VERSION], "platform": PLATFORM},
            "inputs": [described(each.name, each) for each in self.served.inputs.tensors],
            "outputs": [described(*each) for each in output_tensors(self.served).items()],
        }

    def model_config(self) -> dict[str, Any]:
        """Return the model's configuration as Triton writes it; shapes have no batch axis."""
        served = self.served

        def described(name: str, tensor: TensorSpec) -> dict[str, Any]:
            # Triton wants a shape here even where nothing but the batch axis is left
            dims = list(tensor.shape or (1,))
            kind = datatype(tensor.dtype).replace("BYTES", "STRING")
            return {"name": name, "data_type": f"TYPE_{kind}", "dims": dims}

        return {
            "name": served.name,
            "platform": PLATFORM,
            "backend": BACKEND,
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": served.batch_max,
            "input": [described(each.name, each) for each in served.inputs.tensors],
            "output": [described(*each) for each in output_tensors(served).items()],
            "instance_group": [{"name": served.name, "kind": "KIND_CPU", "count": 1}],
            "dynamic_batching": {},
            "parameters": {
                "stages": {"string_value": ", ".join(served.stages)},
                "variants": {"string_value": ", ".join(served.variants)},
                "default_slo_ms": {"string_value": f"{served.default_slo_s * 1000:g}"},
            },
            "model_transaction_policy": {"decoupled": False},
        }

    def index(self, ready: bool) -> list[dict[str, Any]]:
        """Return the list of models, only those that take requests if so asked."""
        why = "unloaded" if self.engine.ready else "the server drains"
        states = {"state": "UNAVAILABLE", "reason": why}, {"state": "READY"}
        found = ((name, front.ready) for name, front in self.fronts.items())
        return [{"name": n, "version": VERSION, **states[up]} for n, up in found if up or not ready]

    def arrival(self, began_s: float, grpc_remaining_s: float | None = None) -> Arrival:
        """Return the arrival, now, of a request that began at a monotonic time."""
        slo_s = self.served.default_slo_s
        return Arrival(began_s, time.monotonic(), time.time(), slo_s, grpc_remaining_s)

    async def infer(
        self, request: InferRequest, headers: Headers, arrival: Arrival, payload_bytes: int
    ) -> tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]:
        """Return a request's outputs and its answer's parameters, or raise a WireError."""
        # Cancelling this cancels the request in the engine.
        deadline = request_deadline(request.parameters, headers, arrival)
        if deadline.clamped or not request.finite:
            self.all_metrics.count_odd(deadline.clamped, not request.finite)
        if self.options.refuse_nan and not request.finite:
            raise WireError("a number in the request is NaN or infinite")
        if request.rows.flags.owndata:  # not a view on the body, which is counted
            self.memory.keep(request.rows)
        share = payload_bytes // len(request.rows)
        about = deadline.sent_s, deadline.due_s, share, self.served.stage
        calls = [Call(row, *about) for row in request.rows]
        replies = await self._submit(calls, partial(self._record, headers, arrival.began_s))
        if self.options.log_violations:
            self._log(request, headers, calls[0], replies[deciding_row(replies)])
        try:
            return combine_outputs(replies, self.served), combine_parameters(replies)
        except WireError as error:
            age_s = arrival.began_s - min(deadline.sent_s, deadline.due_s)
            if error.ended is Status.REFUSED and age_s >= DOUBTED_AGE_S:
                self.all_metrics.count_odd(not deadline.clamped)
                error.sentence = f"refused: {age_s:.1f} s old by the client's clock; is it behind?"
            raise

    def _log(self, request: InferRequest, headers: Headers, call: Call, reply: Reply) -> None:
        """Write a line of JSON about a request whose end violates its SLO."""
        if reply.outcome in VIOLATIONS:
            line = {
                **{"unix_s": time.time(), "outcome": reply.outcome, "id": request.id},
                "model": self.served.name,
                "traceparent": headers.get(TRACEPARENT, b"").decode("latin-1"),
                "slo_s": call.deadline_s - call.sent_s, "latency_s": reply.finished_s - call.sent_s,
                **{"queue_s": reply.queue_s, "service_s": reply.service_s},
            }  # fmt: skip
            LOG.warning("%s", orjson.dumps(line).decode())

    async def _submit(self, calls: Sequence[Call], record: Record) -> list[Reply]:
        """Submit the calls of a request and wait for all replies, in their order."""
        # Once one is not answered, the others are of no use and are cancelled; so are all when this
        # is cancelled. They are counted either way. More calls than the engine can ever hold are a
        # WireError, and are not submitted.
        if len(calls) > (limit := self.served.queue_max):
            raise WireError(f"a request has at most {limit} rows here, not {len(calls)}")
        pending = _PendingRows(self.engine, calls, record)
        try:
            pending.submit()
            replies: list[Reply] = await pending.all
            return replies
        except BaseException:
            # Who gives up at the deadline has waited in vain: these end as late or expired.
            if time.monotonic() < calls[0].deadline_s - GIVEN_UP_S:
                pending.cancel()
            raise

    def count_rejected(self, error: WireError) -> None:
        """Count a request that never reached the engine; the engine's own are counted by then."""
        if error.ended is None:
            self.all_metrics.rejected(error.status)

    def _record(
        self, headers: Headers, began_s: float, calls: Sequence[Call], replies: Sequence[Reply]
    ) -> None:
        """Count each row, and the request by the row that decided about its answer."""
        deciding, trace = deciding_row(replies), sampled_trace(headers)
        for row, (call, reply) in enumerate(zip(calls, replies, strict=True)):
            self.metrics.observe(call, reply, row != deciding, trace)
        if trace and self.spans is not None:
            self.spans.add(headers, self.served.name, began_s, replies[deciding])


class _PendingRows:
    """Collects replies, which come in the loop's thread or the engine's, until the last of them."""

    def __init__(self, engine: "ServingEngine", calls: Sequence[Call], record: Record) -> None:
        self._engine, self._calls, self._record = engine, calls, record
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._replies: list[Reply] = [MISSING] * len(calls)
        self._tickets: list[int] = []
        self._left, self._lock = len(calls), threading.Lock()
        self._in_vain = False  # Whether a row has ended without an answer
        self.all = InlineFuture()  # All replies, in their order

    def submit(self) -> None:
        for row, call in enumerate(self._calls):
            if self._in_vain:  # an earlier row was refused at once
                self._done(row, Reply(Status.CANCELLED))
            else:
                self._tickets.append(self._engine.submit(call, partial(self._done, row)))

    def cancel(self) -> None:
        for ticket in self._tickets:
            self._engine.cancel(ticket)

    def _done(self, row: int, reply: Reply) -> None:
        with self._lock:
            self._replies[row] = reply
            self._left -= 1
            last, was_in_vain = self._left == 0, self._in_vain
            self._in_vain |= reply.status is not Status.ANSWERED
        if last:
            self._wake(self._finish)
        elif self._in_vain and not was_in_vain:
            self._wake(self.cancel)

    def _wake(self, work: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            work()
            return
        with suppress(RuntimeError):  # the loop has ended, and with it all that waits
            self._loop.call_soon_threadsafe(work)

    def _finish(self) -> None:
        self.all.set_result(self._replies)  # this sends the answer; counting comes after
        self._loop.call_soon(self._record, self._calls, self._replies)


def combine_outputs(replies: Sequence[Reply], served: ServedModel) -> dict[str, NDArray[Any]]:
    """Return the answer's tensors by name, with the rows' outputs in turn, or raise WireError."""
    # A row is answered with as many rows as it led to tasks; ``tasks`` tells how many those are.
    raise_unanswered(replies)
    outputs = [reply.output for reply in replies if reply.output is not None]
    output = outputs[0] if len(outputs) == 1 else np.concatenate(outputs)
    tasks = np.array([len(rows) for rows in outputs], np.int64)
    return {TASKS: tasks, **served.outputs.parts(output)}


def combine_parameters(replies: Sequence[Reply]) -> Mapping[str, Any]:
    """Return an answer's parameters: the slowest row's values, where rows differ."""
    slowest = max(replies, key=lambda reply: reply.finished_s)
    return {
        "deadline_met": all(reply.in_time for reply in replies),
        "queue_ms": round(max(reply.queue_s for reply in replies) * 1000, 3),
        "service_ms": round(max(reply.service_s for reply in replies) * 1000, 3),
        **{"batch": slowest.batch, "cores": slowest.cores, "variant": slowest.variant},
    }
