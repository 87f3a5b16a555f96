"""Spans at a real OTLP receiver: the share that was asked for, and never a private call."""

import asyncio
import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest

from matrix_dspy import pipeline
from matrix_dspy.bulk.progress import Progress
from matrix_dspy.bulk.trace import ENDPOINT_VARIABLE, open_trace
from matrix_dspy.config import load_recipe
from matrix_dspy.engine.base import Completion, Request, Sampling
from matrix_dspy.errors import ConfigError
from tests.conftest import run_cli

messages = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
ROOT = Path(__file__).parent.parent.parent
REQUEST = Request([{"role": "user", "content": "tell nobody"}], Sampling(temperature=0.25, max_tokens=77))
ANSWER = Completion(("a secret",), ("length",), 11, 7, seconds=1.5)


class Receiver:
    """Takes spans over OTLP/HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.raw = b""
        self.paths: set[str] = set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.take(self.path, gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def take(self, path: str, body: bytes) -> None:
        request: Any = messages.ExportTraceServiceRequest()
        request.ParseFromString(body)
        self.paths.add(path)
        self.raw += body
        for group in request.resource_spans:
            self.services |= {
                each.value.string_value for each in group.resource.attributes if each.key == "service.name"
            }
            self.spans += [span for scope in group.scope_spans for span in scope.spans]

    def keys(self) -> list[str]:
        return [str(read_attributes(span)["matrix_dspy.key"]) for span in self.spans]


def read_attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    made = Receiver()
    monkeypatch.setenv(ENDPOINT_VARIABLE, made.url)
    yield made
    made.server.shutdown()
    made.server.server_close()


def send(share: float, keys: list[str]) -> None:
    async def work() -> None:
        async with open_trace(share) as trace:
            assert trace is not None
            for key in keys:
                trace(key, REQUEST, ANSWER)

    asyncio.run(work())


def make_keys(n: int) -> list[str]:
    return [f"synthesis/instruction-{number}/0/responder/0/0" for number in range(n)]


def test_a_span_says_what_a_call_was_and_took_and_none_of_its_words(receiver: Receiver) -> None:
    send(1.0, make_keys(1))

    (span,) = receiver.spans
    found = read_attributes(span)
    reasons = found.pop("gen_ai.response.finish_reasons")
    assert [value.string_value for value in reasons.values] == ["length"]
    assert span.name == "responder"
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.temperature": 0.25,
        "gen_ai.request.max_tokens": 77,
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 7,
        "matrix_dspy.stage": "synthesis",
        "matrix_dspy.row": "instruction-0",
        "matrix_dspy.key": "synthesis/instruction-0/0/responder/0/0",
        "matrix_dspy.error": "",
    }
    assert (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 == pytest.approx(1.5)
    assert (receiver.services, receiver.paths) == ({"matrix_dspy"}, {"/v1/traces"})
    assert b"secret" not in receiver.raw and b"nobody" not in receiver.raw


def test_a_share_of_the_calls_is_traced_the_same_ones_each_time(receiver: Receiver) -> None:
    keys = make_keys(600)
    found: list[set[str]] = []
    for share in (1.0, 0.3, 0.3, 0.1):
        receiver.spans.clear()
        send(share, keys)
        found.append(set(receiver.keys()))

    everything, some, again, few = found
    assert everything == set(keys)
    assert 130 < len(some) < 230
    assert some == again
    assert few < some


def test_a_runs_calls_are_traced_but_for_the_private_ones(receiver: Receiver, tmp_path: Path) -> None:
    config = load_recipe(
        "tiny", {"n": 5, "population.n_agents": 5, "operation.trace_share": 1.0, "operation.plots": False}
    )

    result = asyncio.run(pipeline.generate(config, tmp_path / "run", progress=Progress(), is_quiet=True))

    journaled = [orjson.loads(line)["key"] for line in (tmp_path / "run/journal/main.jsonl").read_bytes().splitlines()]
    private = {key for key in journaled if "/anonymiser" in key or "/privacy_checker" in key}
    assert result.is_complete
    assert private
    assert sorted(receiver.keys()) == sorted(set(journaled) - private)


def test_without_an_address_tracing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENDPOINT_VARIABLE, raising=False)

    with pytest.raises(ConfigError, match=f"set {ENDPOINT_VARIABLE}, as http"):
        send(0.5, [])


CODE = """
import asyncio, sys
from matrix_dspy.bulk.trace import open_trace

async def work():
    async with open_trace(0.0) as trace:
        return trace

print(asyncio.run(work()), *(name for name in sys.modules if name.startswith("opentelemetry")))
"""


def test_without_tracing_nothing_of_opentelemetry_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT, check=False)

    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr


def test_a_collector_that_is_gone_ends_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ENDPOINT_VARIABLE, "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")

    few = ["--n", "4", "--set", "population.n_agents=4"]
    done = run_cli("generate", "-q", *few, "--trace", "1", "--out", tmp_path / "run")

    assert done.returncode == 0, done.stderr
    assert "4 of 4 rows" in done.stdout
