import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from matrix_dspy.bulk.journal import CallKey, Journal
from matrix_dspy.bulk.ray import RayEngine
from matrix_dspy.bulk.runner import Runner
from matrix_dspy.engine.base import Completion, Request, Sampling
from matrix_dspy.engine.spec import build_engine
from matrix_dspy.errors import ConfigError, EngineError, MissingExtraError
from matrix_dspy.training.tiny import build_tiny_model
from tests.bulk.ray_cluster import RayCluster, run_cluster
from tests.conftest import ROOT
from tests.loopback import serve

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed; pip install 'matrix-dspy[ray]'")

Do = Callable[[RayEngine], Awaitable[None]]
PROC = Path("/proc")
SILENT = "127.0.0.2"
"""A loopback address that Ray does not take for its own."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with run_cluster(3) as running:
        yield running


def build_requests(n: int) -> list[Request]:
    return [Request([{"role": "user", "content": f"{number} hello"}], Sampling(seed=number)) for number in range(n)]


def complete_alone(requests: list[Request]) -> list[tuple[str, ...]]:
    async def work() -> list[Completion]:
        async with build_engine("rehearsal") as engine:
            return list(await asyncio.gather(*map(engine.complete, requests)))

    return [completion.texts for completion in asyncio.run(work())]


async def complete_all(engine: RayEngine, requests: list[Request]) -> list[Completion]:
    calls = (engine.complete_entry(request, f"key-{number}", "digest") for number, request in enumerate(requests))
    return list(await asyncio.gather(*calls))


def run_disturbed(cluster: RayCluster, folder: Path, requests: list[Request], disturb: Do) -> list[Completion]:
    async def work() -> list[Completion]:
        async with RayEngine("rehearsal?latency=0.5", address=cluster.address, concurrency=30) as engine:
            engine.journal_into(folder)
            calls = asyncio.create_task(complete_all(engine, requests))
            await asyncio.sleep(0.5)
            await disturb(engine)
            completions = await calls
            assert engine.n_lost >= 1
            return completions

    return asyncio.run(work())


def read_keys(folder: Path) -> dict[str, list[str]]:
    return {
        path.stem: [json.loads(line)["key"] for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }


def find_pid(port: int) -> int:
    """Return the Ray worker that holds the connection from a local port."""
    lines = (PROC / "net/tcp").read_text().splitlines()[1:]
    sockets = {f"socket:[{cells[9]}]" for line in lines if (cells := line.split())[1] == f"0100007F:{port:04X}"}
    for link in PROC.glob("[0-9]*/fd/*"):
        try:
            is_it = str(link.readlink()) in sockets and (link.parents[1] / "cmdline").read_bytes().startswith(b"ray::")
        except OSError:
            continue
        if is_it:
            return int(link.parts[2])
    raise AssertionError(f"no Ray worker holds port {port}")


class ModelServer:
    """Answers what it is asked, after a wait, and counts who asks how much at once."""

    def __init__(self) -> None:
        self.names = ["model"]
        self.seconds = 0.02
        self.slow_pid = 0
        self.in_flight = self.peak = 0
        self.asked: list[str] = []
        self.by_pid: Counter[int] = Counter()
        self.headers: set[str] = set()
        self._pids: dict[int, int] = {}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.headers.add(request.headers.get("Authorization", ""))
        if request.path.endswith("/models"):
            name = self.names.pop(0) if len(self.names) > 1 else self.names[0]
            return web.json_response({"data": [{"id": name}]} if name else {}, status=200 if name else 401)
        content = (await request.json())["messages"][0]["content"]
        self.asked.append(content)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            return await self._answer(content, self._find_pid(request))
        finally:
            self.in_flight -= 1

    async def _answer(self, content: str, pid: int) -> web.StreamResponse:
        self.by_pid[pid] += 1
        if content == "poison":
            await asyncio.sleep(0.1)
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(2.0 if content == "slow" else 0.4 if pid == self.slow_pid else self.seconds)
        message = {"role": "assistant", "content": f"to {content}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        return web.json_response({"model": "model", "choices": [choice], "usage": usage})

    def _find_pid(self, request: web.Request) -> int:
        assert request.transport is not None
        port = request.transport.get_extra_info("peername")[1]
        if port not in self._pids:
            self._pids[port] = find_pid(port)
        return self._pids[port]


@asynccontextmanager
async def serve_model(**settings: Any) -> AsyncIterator[tuple[ModelServer, str]]:
    server = ModelServer()
    for name, value in settings.items():
        setattr(server, name, value)
    async with serve(server.handle) as url:
        yield server, url


def ask(content: str) -> Request:
    return Request([{"role": "user", "content": content}])


@pytest.mark.parametrize("spec", ["rehearsal?latncy=1", "nonsense"])
def test_a_spec_that_will_not_do_is_known_before_ray_is_started(spec: str):
    with pytest.raises(ConfigError):
        RayEngine(spec)


def test_no_workers_are_refused():
    with pytest.raises(ConfigError, match="at least 1 worker, not 0"):
        RayEngine("rehearsal", n_workers=0)


def test_a_missing_ray_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    def refuse(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("matrix_dspy.bulk.ray.import_module", refuse)

    with pytest.raises(MissingExtraError, match=r"Ray is not installed; pip install 'matrix-dspy\[ray\]'"):
        asyncio.run(RayEngine("rehearsal").open())


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:9", "no Ray cluster at '127.0.0.1:9'.*: connection refused"),
        ("ray://127.0.0.1:9", "no Ray cluster at 'ray://127.0.0.1:9'.*: connection refused"),
        ("nowhere.invalid:6379", "no Ray cluster at 'nowhere.invalid:6379': unknown host"),
        ("nonsense", "no Ray cluster at 'nonsense': Invalid address format"),
    ],
)
def test_a_cluster_that_is_not_there_is_an_error_at_once(address: str, words: str):
    started = time.monotonic()

    with pytest.raises(EngineError, match=words):
        asyncio.run(RayEngine("rehearsal", address=address).open())

    assert time.monotonic() - started < 15


def test_who_listens_but_is_no_cluster_is_an_error_in_time():
    code = (
        "import asyncio, sys\n"
        "from matrix_dspy.bulk import ray\n"
        "ray.CONNECT_TIMEOUT_S = 2.0\n"
        "asyncio.run(ray.RayEngine('rehearsal', address=sys.argv[1]).open())\n"
    )
    with socket.create_server((SILENT, 0)) as listener:
        address = f"{SILENT}:{listener.getsockname()[1]}"
        # in a process of its own: Ray's `init` cannot be stopped, and would spoil the other tests
        command = [sys.executable, "-c", code, address]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30, check=False)

    assert done.returncode == 1
    assert f"EngineError: the Ray cluster at '{address}' did not let this process in within 2 s; is it" in done.stderr


def test_calls_are_spread_and_answered_as_in_one_process(cluster: RayCluster, tmp_path: Path):
    requests = build_requests(300)

    async def work() -> list[Completion]:
        async with RayEngine("rehearsal", address=cluster.address, concurrency=30) as engine:
            assert (engine.model, engine.supports_response_schema, engine.keeps_journal) == ("rehearsal", True, False)
            engine.journal_into(tmp_path)
            assert engine.keeps_journal
            completions = await complete_all(engine, requests)
            assert (engine.usage.calls, engine.usage.attempts, engine.n_lost) == (300, 300, 0)
            assert engine.usage.prompt_tokens == sum(completion.prompt_tokens for completion in completions)
            return completions

    completions = asyncio.run(work())

    assert [completion.texts for completion in completions] == complete_alone(requests)
    segments = read_keys(tmp_path)
    assert list(segments) == ["ray-0", "ray-1", "ray-2"]
    assert min(map(len, segments.values())) >= 15
    assert Counter(chain(*segments.values())) == Counter(f"key-{number}" for number in range(300))
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".jsonl"] == []


def test_a_lost_node_loses_nothing(cluster: RayCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    requests = build_requests(120)

    async def remove(engine: RayEngine) -> None:
        assert len(set(engine.worker_nodes)) == 3, "one worker a node"
        await asyncio.to_thread(cluster.kill_node, cluster.nodes[-1])

    completions = run_disturbed(cluster, tmp_path, requests, remove)
    cluster.add_node()

    assert [completion.texts for completion in completions] == complete_alone(requests)
    segments = read_keys(tmp_path)
    again = segments.pop("ray-driver")
    keys = Counter(chain(*segments.values()))
    assert set(keys) == {f"key-{number}" for number in range(120)}
    # a worker has at most its share of 30 and half of that
    assert sum(keys.values()) - 120 <= len(again) <= 15
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "was lost; its" in warnings[0]


def test_killed_workers_lose_nothing(cluster: RayCluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    requests = build_requests(120)

    async def kill(engine: RayEngine) -> None:
        for pid in engine.worker_pids[:2]:
            os.kill(pid, signal.SIGKILL)

    completions = run_disturbed(cluster, tmp_path, requests, kill)

    assert [completion.texts for completion in completions] == complete_alone(requests)
    segments = read_keys(tmp_path)
    again = segments.pop("ray-driver")
    keys = Counter(chain(*segments.values()))
    assert set(keys) == {f"key-{number}" for number in range(120)}
    assert sum(keys.values()) - 120 <= len(again) <= 30
    assert "worker" not in capfd.readouterr().out, "Ray's own paragraph about the lost workers"


def test_a_worker_that_was_only_out_of_reach_goes_on(cluster: RayCluster, tmp_path: Path):
    requests = build_requests(60)

    async def work() -> list[Completion]:
        async with RayEngine("rehearsal?latency=0.2", address=cluster.address, n_workers=1, concurrency=8) as engine:
            engine.journal_into(tmp_path)
            calls = asyncio.create_task(complete_all(engine, requests))
            await asyncio.sleep(0.3)
            # a broken connection cannot be had on loopback
            engine._lose(engine._seats[0], ConnectionError("out of reach"))
            return await calls

    completions = asyncio.run(work())

    assert [completion.texts for completion in completions] == complete_alone(requests)
    assert list(read_keys(tmp_path)) == ["ray-0", "ray-driver"]


def test_a_request_that_kills_its_workers_fails_alone(cluster: RayCluster, tmp_path: Path):
    async def work() -> list[Completion]:
        async with (
            serve_model(seconds=0.15) as (_, url),
            RayEngine(url, address=cluster.address, concurrency=24) as engine,
        ):
            engine.journal_into(tmp_path)
            contents = [*map(str, range(20)), "poison", *map(str, range(20, 80))]
            completions = await complete_all(engine, list(map(ask, contents)))
            assert engine.n_lost == 3
            return completions

    completions = asyncio.run(work())

    poisoned = completions.pop(20)
    assert poisoned.error is not None and "3 Ray workers were killed while they had this request" in poisoned.error
    assert [completion.texts for completion in completions] == [(f"to {number}",) for number in range(80)]
    journal = Journal(tmp_path)
    kept = [json.loads(line) for line in (tmp_path / "ray-driver.jsonl").read_text().splitlines()]
    journal.close()
    assert [entry["key"] for entry in kept if "error" in entry] == ["key-20"]


def test_concurrency_is_kept_and_a_slow_answer_holds_nobody_back(cluster: RayCluster):
    async def work() -> tuple[ModelServer, float]:
        async with (
            serve_model(seconds=0.05) as (server, url),
            RayEngine(url, address=cluster.address, concurrency=10) as engine,
        ):
            started = time.monotonic()
            slow = asyncio.create_task(engine.complete(ask("slow")))
            await asyncio.gather(*(engine.complete(ask(str(number))) for number in range(100)))
            seconds = time.monotonic() - started
            assert not slow.done()
            assert (await slow).texts == ("to slow",)
            return server, seconds

    server, seconds = asyncio.run(work())

    assert 8 <= server.peak <= 10
    assert seconds < 2.0
    assert Counter(server.asked) == Counter(["slow", *map(str, range(100))])
    assert len(server.by_pid) == 3


def test_a_fast_worker_takes_more(cluster: RayCluster):
    async def work() -> tuple[Counter[int], int]:
        async with (
            serve_model() as (server, url),
            RayEngine(url, address=cluster.address, concurrency=6) as engine,
        ):
            server.slow_pid = engine.worker_pids[0]
            await asyncio.gather(*(engine.complete(ask(str(number))) for number in range(60)))
            return server.by_pid, server.slow_pid

    by_pid, slow_pid = asyncio.run(work())

    assert sum(by_pid.values()) == 60
    assert 0 < by_pid[slow_pid] < 14


def test_workers_with_different_models_are_refused(cluster: RayCluster):
    async def work() -> None:
        async with serve_model(names=["one", "two"]) as (_, url):
            await RayEngine(url, address=cluster.address, n_workers=2).open()

    with pytest.raises(EngineError, match="the Ray workers have different models, 'one' and 'two'"):
        asyncio.run(work())


def test_what_a_worker_cannot_open_is_said_in_its_own_words(cluster: RayCluster):
    with pytest.raises(EngineError, match=r"http://127.0.0.1:9/v1.*connection refused"):
        asyncio.run(RayEngine("http://127.0.0.1:9/v1", address=cluster.address, n_workers=1, patience_s=1).open())


def test_the_last_worker_given_up_stops_the_run(cluster: RayCluster):
    async def work() -> list[Completion]:
        async with (
            serve_model(names=["model", ""], seconds=30) as (server, url),
            RayEngine(url, address=cluster.address, n_workers=1, patience_s=3) as engine,
        ):
            calls = asyncio.gather(*(engine.complete(ask(str(number))) for number in range(3)))
            while len(server.asked) < 3:
                await asyncio.sleep(0.05)
            os.kill(engine.worker_pids[0], signal.SIGKILL)
            return [*await calls, await engine.complete(ask("later"))]

    completions = asyncio.run(work())

    said = {completion.down for completion in completions}
    assert len(said) == 1
    assert str(said.pop()).startswith("no Ray worker is left, the last one was given up: ")


def test_a_worker_that_does_not_see_the_folder_has_the_driver_journal(cluster: RayCluster, tmp_path: Path):
    async def work() -> None:
        async with RayEngine("rehearsal", address=cluster.address, n_workers=1) as engine:
            engine.journal_into(tmp_path)
            for token in tmp_path.glob(".ray-*"):
                token.unlink()
            await complete_all(engine, build_requests(40))

    asyncio.run(work())

    segments = read_keys(tmp_path)
    assert list(segments) == ["ray-driver"]
    assert Counter(segments["ray-driver"]) == Counter(f"key-{number}" for number in range(40))


def test_a_second_run_replays_everything(cluster: RayCluster, tmp_path: Path):
    async def work() -> tuple[list[Completion], int]:
        journal = Journal(tmp_path)
        try:
            async with RayEngine("rehearsal", address=cluster.address, n_workers=1) as engine:
                engine.journal_into(tmp_path)
                runner = Runner(engine, journal)
                keys = [CallKey("stage", f"row-{number}", "ask") for number in range(60)]
                calls = (runner.complete(request, key) for request, key in zip(build_requests(60), keys, strict=True))
                return list(await asyncio.gather(*calls)), engine.usage.calls
        finally:
            journal.close()

    first, n_first = asyncio.run(work())
    second, n_second = asyncio.run(work())

    assert (n_first, n_second) == (60, 0)
    assert [completion.texts for completion in second] == [completion.texts for completion in first]


def test_a_ray_that_was_connected_before_stays_so(cluster: RayCluster):
    ray: Any = import_module("ray")

    async def work() -> Completion:
        async with RayEngine("rehearsal", address="auto", n_workers=1) as engine:
            return await engine.complete(ask("hello"))

    ray.init(address=cluster.address, log_to_driver=False)
    try:
        assert asyncio.run(work()).is_ok
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_a_local_ray_lends_its_workers_the_key_and_logs_it_nowhere(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MATRIX_DSPY_API_KEY", "key-that-nobody-may-log")
    ray: Any = import_module("ray")

    async def work() -> tuple[set[str], Path]:
        async with serve_model() as (server, url), RayEngine(url, n_workers=1) as engine:
            assert (await engine.complete(ask("hello"))).texts == ("to hello",)
            session = Path(ray._private.worker._global_node.get_session_dir_path())
            return server.headers, session

    headers, session = asyncio.run(work())

    assert headers == {"Bearer key-that-nobody-may-log"}
    assert not ray.is_initialized()
    logs = [path for path in (session / "logs").rglob("*") if path.is_file()]
    assert logs
    assert [path for path in logs if b"key-that-nobody" in path.read_bytes()] == []


def test_a_lost_head_stops_the_run_and_not_the_process(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch):
    """The last test here: the cluster is of no use afterwards."""
    monkeypatch.setattr("matrix_dspy.bulk.ray.HEAD_PROBE_S", 0.2)
    monkeypatch.setattr("matrix_dspy.bulk.ray.HEAD_PATIENCE_S", 1.0)

    async def work() -> Completion:
        async with RayEngine("rehearsal?latency=60", address=cluster.address, n_workers=1) as engine:
            call = asyncio.create_task(engine.complete(ask("hello")))
            await asyncio.sleep(0.2)
            cluster.kill_head_service()
            return await call

    completion = asyncio.run(work())

    assert completion.down is not None and "the head of the Ray cluster at 127.0.0.1" in completion.down


def test_workers_with_a_model_of_their_own_have_a_gpu_each(tmp_path: Path):
    model = f"transformers:{build_tiny_model(tmp_path / 'tiny')}"

    async def work(address: str) -> list[int]:
        with pytest.raises(EngineError, match="3 workers of 1 GPUs do not fit this Ray cluster; it has room for 2"):
            await RayEngine(model, address=address, n_workers=3).open()
        with pytest.raises(EngineError, match="2 workers of 2 GPUs do not fit this Ray cluster; it has room for 1"):
            await RayEngine("vllm:DIR?tensor_parallel_size=2", address=address, n_workers=2).open()
        numbers: list[int] = []
        for spec in (model, f"{model}?device=cpu"):
            async with RayEngine(spec, address=address) as engine:
                await engine.complete(ask("hello"))
                numbers.append(len(engine.worker_pids))
        return numbers

    with run_cluster(1, n_gpus=2) as gpus:
        found = asyncio.run(work(gpus.address))

    assert found == [2, 1]  # one a GPU, one a node
