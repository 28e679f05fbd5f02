"""W3C's ``traceparent`` of requests and answers, and spans for OpenTelemetry."""

import logging
import os
import re
import time
from collections.abc import Mapping
from functools import partial

from sponge_env.errors import ConfigError
from sponge_env.serve.interface import Reply, Status

TRACEPARENT = b"traceparent"
_FORM = re.compile(  # Version 00 ends with the flags
    rb"(?!ff|00.{54})[\da-f]{2}-(?!0{32})([\da-f]{32})-(?!0{16})([\da-f]{16})-([\da-f]{2})(?:-.*)?"
)
_OWN = b"own traceparent"  # Beside the client's headers, whose names have no space


def join_trace(headers: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """Give a request an id of its own in its trace, if it has one; return its answer's header."""
    if not (found := _FORM.fullmatch(headers.get(TRACEPARENT, b""))):
        return ()
    own = found[1], os.urandom(8).hex().encode(), int(found[3], 16) & 1  # Whether it is sampled
    headers[_OWN] = b"00-%s-%s-%02d" % own
    return ((TRACEPARENT, headers[_OWN]),)


def sampled_trace(headers: Mapping[bytes, bytes]) -> str:
    """Return the id of the trace that a request has joined; empty if there is none to be seen."""
    own = headers.get(_OWN, b"")
    return own[3:35].decode() if own.endswith(b"1") else ""


class Spans:
    """Sends a span of each request whose trace is sampled to where ``OTEL_*`` variables say."""

    def __init__(self) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk import resources
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._api, self._span = trace, ReadableSpan
        # It would write into the log what clients send.
        logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)
        named = resources.Resource({resources.SERVICE_NAME: "sponge"})
        self._resource = named.merge(resources.OTELResourceDetector().detect())
        try:
            self._processor = BatchSpanProcessor(OTLPSpanExporter())
        except ValueError as error:
            raise ConfigError(f"a variable OTEL_* is wrong: {error}") from None
        self.close = self._processor.shutdown  # Sends what is left, which may take half a minute

    def add(self, headers: Mapping[bytes, bytes], model: str, began_s: float, reply: Reply) -> None:
        """Queue the span of a request that began at a monotonic time and has ended."""
        api, to_unix_s = self._api, time.time() - time.monotonic()
        trace, own, _ = (int(part, 16) for part in headers[_OWN].split(b"-")[1:])
        parent = int(headers[TRACEPARENT].split(b"-")[2], 16)
        state = api.TraceState.from_header([headers.get(b"tracestate", b"").decode("latin-1")])
        context = partial(api.SpanContext, trace, trace_flags=api.TraceFlags(1), trace_state=state)
        failed = reply.status is not Status.ANSWERED
        values = ("outcome", "queue_s", "service_s", "batch", "cores", "variant")
        span = self._span(
            f"infer {model}", context(own, False), context(parent, True), self._resource,
            {f"sponge.{name}": getattr(reply, name) for name in values}, kind=api.SpanKind.SERVER,
            status=api.Status(api.StatusCode.ERROR if failed else api.StatusCode.UNSET),
            start_time=round((began_s + to_unix_s) * 1e9),
            end_time=round((reply.finished_s + to_unix_s) * 1e9),
        )  # fmt: skip
        self._processor.on_end(span)
