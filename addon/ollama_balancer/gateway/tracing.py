"""Traces by OpenTelemetry: a span a request, with children for queue, attempts, load, prefill and decode.

It is on where OTEL_EXPORTER_OTLP_ENDPOINT says where spans go and the SDK is installed; the SDK's other variables count
as well. Names below `gen_ai.` are of OpenTelemetry's semantic conventions; ours are below `ollama_balancer.`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.agent import Agent
from ..core.agent_records import Outcome
from ..text import one_line
from .access import prompt_and_output_tokens
from .context import RequestContext
from .messages import Fields, header

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

_OPERATIONS = {
    "/api/chat": "chat",
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/api/generate": "text_completion",
    "/v1/completions": "text_completion",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
    "/v1/embeddings": "embeddings",
}
"""`gen_ai.operation.name` by route."""


class Tracing:
    """Makes the traces of requests."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("ollama_balancer")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, context: RequestContext, method: str, fields: Fields) -> None:
        """Begin the trace of a request, or go on with its caller's (W3C traceparent)."""
        from opentelemetry.trace import SpanKind

        carrier = {
            name: value
            for name in ("traceparent", "tracestate")
            if (value := header(fields, name.encode())) is not None
        }
        span = self._tracer.start_span(
            f"{method} {context.path}" if context.route is None else context.route.path,
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": method,
                "url.path": one_line(context.path, 200),
                "client.address": context.caller.address,
            },
        )
        context.trace = RequestTrace(self._tracer, self._propagator, span, context.clock())

    def stop(self) -> None:
        """Send what has not been sent. Takes as long as the receiver does, up to the SDK's limit."""
        self._provider.shutdown()


class RequestTrace:
    """The spans of one request. `now` is the context's clock."""

    def __init__(self, tracer: Any, propagator: Any, span: Any, now: float) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracer = tracer
        self._propagator = propagator
        self._span = span
        self._parent = set_span_in_context(span)
        self._attempt: Any = None
        self._epoch = time.time_ns() - int(now * 1e9)
        """Nanoseconds since 1970 when the context's clock was 0."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers by which the host goes on with the trace."""
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        parent = self._parent if self._attempt is None else set_span_in_context(self._attempt)
        self._propagator.inject(carrier, parent)
        return carrier

    def queued(self, began: float, ended: float) -> None:
        """The request has waited in the queue. Seconds of the context's clock."""
        self._child("queue", self._parent, began, ended)

    def attempt(self, agent: Agent) -> None:
        """The request is about to be sent to an agent."""
        from opentelemetry.trace import SpanKind

        self._attempt = self._tracer.start_span(
            "attempt",
            context=self._parent,
            kind=SpanKind.CLIENT,
            attributes={
                "ollama_balancer.agent": agent.name,
                "server.address": agent.address.host,
                "server.port": agent.address.port,
            },
        )

    def attempt_failed(self, kind: str, reason: str) -> None:
        if self._attempt is not None:
            _fail(self._attempt, kind, reason)
            self._attempt.end()
            self._attempt = None

    def end(self, context: RequestContext) -> None:
        """The request has ended."""
        span, attempt = self._span, self._attempt
        route = context.route.path if context.route is not None else None
        prompt, output = prompt_and_output_tokens(context)
        operation = _OPERATIONS.get(route or "")
        attributes = {
            "http.route": route,
            "http.response.status_code": context.status,
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": one_line(context.model, 200) if context.model else None,
            "gen_ai.usage.input_tokens": prompt if operation and context.watcher is not None else None,
            "gen_ai.usage.output_tokens": output if operation and context.watcher is not None else None,
            "ollama_balancer.agent": context.agent.name if context.agent is not None else None,
            "ollama_balancer.mode": context.mode or None,
            "ollama_balancer.attempts": context.attempts,
            "ollama_balancer.key": context.caller.key.name if context.caller.key is not None else None,
        }
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        if operation is not None and context.model:
            span.update_name(f"{operation} {one_line(context.model, 200)}")
        failed = context.outcome is Outcome.FAILED
        if attempt is not None:
            self._phases(context, attempt)
        for each in (attempt, span):
            if each is None:
                continue
            if failed:
                _fail(each, str(context.status or "error"), context.problem or "")
            each.end()

    def _phases(self, context: RequestContext, attempt: Any) -> None:
        """Load, prefill and decode: as the host says, else as the answer came."""
        from opentelemetry.trace import set_span_in_context

        watcher, first = context.watcher, context.first_byte
        if watcher is None or first is None:
            return
        parent, timings = set_span_in_context(attempt), watcher.answer.timings
        durations = (timings.load_duration, timings.prompt_eval_duration, timings.eval_duration)
        end = max(first, context.last_activity)
        if any(durations):
            for name, seconds in zip(("decode", "prefill", "load"), reversed(durations), strict=True):
                if seconds:
                    self._child(name, parent, max(context.leased_at, end - seconds), end, measured_by="host")
                    end = max(context.leased_at, end - seconds)
        elif context.slot_model is not None:
            self._child("prefill", parent, context.leased_at, first, measured_by="balancer")
            self._child("decode", parent, first, end, measured_by="balancer")

    def _child(self, name: str, parent: Any, began: float, ended: float, *, measured_by: str = "balancer") -> None:
        start, end = (self._epoch + int(seconds * 1e9) for seconds in (began, ended))
        attributes = {"ollama_balancer.measured_by": measured_by}
        self._tracer.start_span(name, context=parent, start_time=start, attributes=attributes).end(end_time=end)


def start(environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """Begin to trace to where the SDK's variables say; None: they turn it off, or the SDK is not installed."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("Traces cannot be sent: install what they need with pip install 'ollama-balancer[otel]'.")
        return None
    name = environment.get("OTEL_SERVICE_NAME", "ollama-balancer")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


def _fail(span: Any, kind: str, reason: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, one_line(reason)))
