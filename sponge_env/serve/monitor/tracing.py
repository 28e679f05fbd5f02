"""W3C's ``traceparent`` of requests and answers, and spans for OpenTelemetry."""

import os
import re
import time
from collections.abc import Mapping
from typing import Any

from sponge_env.serve.interface import Reply, Status
from sponge_env.utils.installation import require_extra

TRACEPARENT = b"traceparent"
_FORM = re.compile(
    rb"(?!ff)[\da-f]{2}-(?!0{32})([\da-f]{32})-(?!0{16})([\da-f]{16})-([\da-f]{2})(?:-.*)?"
)
_OWN = b"own traceparent"  # Beside the client's headers, whose names have no space


def join_trace(
    headers: dict[bytes, bytes], always: bool = False
) -> tuple[tuple[bytes, bytes], ...]:
    """Give a request an id in its trace, ``always`` in a new one; return its answer's header."""
    if not (found := _FORM.fullmatch(headers.get(TRACEPARENT, b""))) and not always:
        return ()
    trace, flags = (found[1], found[3]) if found else (_new_id(16), b"01")
    headers[_OWN] = b"00-%s-%s-%s" % (trace, _new_id(8), flags)
    return ((TRACEPARENT, headers[_OWN]),)


def _new_id(size: int) -> bytes:
    return os.urandom(size).hex().encode()


def trace_id(headers: Mapping[bytes, bytes]) -> str:
    """Return the trace that a request has joined; empty if none."""
    return headers.get(_OWN, b"")[3:35].decode()


class Spans:
    """Sends a span of each request whose trace is sampled to where ``OTEL_*`` variables say."""

    def __init__(self) -> None:
        """Start; a ``MissingExtraError`` without the extra ``otel``."""
        require_extra("otel", "server.spans")
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk import resources
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._api, self._span = trace, ReadableSpan
        named = resources.Resource({resources.SERVICE_NAME: "sponge"})
        self._resource = named.merge(resources.OTELResourceDetector().detect())
        self._processor = BatchSpanProcessor(OTLPSpanExporter())
        self.close = self._processor.shutdown  # Sends what is left

    def add(self, headers: Mapping[bytes, bytes], model: str, began_s: float, reply: Reply) -> None:
        """Queue the span of a request that began at a monotonic time and has ended."""
        api, to_unix_s = self._api, time.time() - time.monotonic()
        trace, own, flags = (int(part, 16) for part in headers[_OWN].split(b"-")[1:])
        found = _FORM.fullmatch(headers.get(TRACEPARENT, b""))
        failed = reply.status is not Status.ANSWERED

        def context(span_id: int, remote: bool) -> Any:
            return api.SpanContext(trace, span_id, remote, api.TraceFlags(flags))

        values = ("outcome", "queue_s", "service_s", "batch", "cores", "variant")
        span = self._span(
            f"infer {model}",
            context(own, False),
            context(int(found[2], 16), True) if found else None,
            self._resource,
            {f"sponge.{name}": getattr(reply, name) for name in values},
            kind=api.SpanKind.SERVER,
            status=api.Status(api.StatusCode.ERROR if failed else api.StatusCode.UNSET),
            start_time=round((began_s + to_unix_s) * 1e9),
            end_time=round((reply.finished_s + to_unix_s) * 1e9),
        )
        self._processor.on_end(span)
