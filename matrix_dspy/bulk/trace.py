"""A sample of calls as OpenTelemetry spans, for any collector that speaks OTLP (MLflow's tracking server among them).

Off unless a share is asked for and `OTEL_EXPORTER_OTLP_ENDPOINT` names where spans go. Names follow OpenTelemetry's
conventions for generative AI. Calls of the anonymiser and the privacy checker are never traced; texts are left out.
"""

import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from matrix_dspy.engine.base import Completion, Request
from matrix_dspy.errors import ConfigError, MissingExtraError

ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
_NANO = 1_000_000_000

Trace = Callable[[str, Request, Completion], None]
"""Takes a call's key, its request and its completion."""


@asynccontextmanager
async def open_trace(share: float) -> AsyncIterator[Trace | None]:
    """Give a function that traces a share of calls, chosen by their keys; None when the share is 0.

    Raises:
        ConfigError: no address is set in `OTEL_EXPORTER_OTLP_ENDPOINT`.
        MissingExtraError: OpenTelemetry is not installed.
    """
    if share <= 0:
        yield None
        return
    if not os.environ.get(ENDPOINT_VARIABLE):
        raise ConfigError(f"tracing needs an address; set {ENDPOINT_VARIABLE}, as http://127.0.0.1:4318")
    provider = _build_provider()
    tracer = provider.get_tracer("matrix_dspy")

    def trace(key: str, request: Request, completion: Completion) -> None:
        if _place(key) < share:
            _write_span(tracer, key, request, completion)

    try:
        yield trace
    finally:
        provider.shutdown()


def _build_provider() -> Any:
    try:
        sdk: Any = import_module("opentelemetry.sdk.trace")
        export: Any = import_module("opentelemetry.sdk.trace.export")
        otlp: Any = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        resources: Any = import_module("opentelemetry.sdk.resources")
    except ImportError as error:
        raise MissingExtraError("OpenTelemetry is not installed; pip install 'matrix-dspy[trace]'") from error
    provider = sdk.TracerProvider(resource=resources.Resource.create({"service.name": "matrix_dspy"}))
    provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
    return provider


def _write_span(tracer: Any, key: str, request: Request, completion: Completion) -> None:
    ended = time.time_ns()
    stage, _, rest = key.partition("/")
    row_id, _, purpose, *_ = rest.rsplit("/", 4)
    program = purpose.partition("+")[0].partition("*")[0]
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.temperature": request.sampling.temperature,
        "gen_ai.request.max_tokens": request.sampling.max_tokens,
        "gen_ai.response.finish_reasons": list(completion.finish_reasons),
        "gen_ai.usage.input_tokens": completion.prompt_tokens,
        "gen_ai.usage.output_tokens": completion.completion_tokens,
        "matrix_dspy.stage": stage,
        "matrix_dspy.row": row_id,
        "matrix_dspy.key": key,
        "matrix_dspy.error": completion.error or "",
    }
    span = tracer.start_span(program, start_time=ended - int(completion.seconds * _NANO), attributes=attributes)
    span.end(end_time=ended)


def _place(key: str) -> float:
    """Return a number from 0 to 1 that is the key's own."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") / 2**32
