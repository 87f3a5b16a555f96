"""A chat-completions server that answers every request with the same text, as cheaply as Python can.

    python benchmarks/stub_server.py [--latency 0.2] [--rate 0.04] ... [--seed 0]

It prints its port on a line of its own and serves until it is killed. Every request draws its fate from one seeded
generator: the k-th request of any client meets the same delay and the same fault. A fault comes after the latency,
as an answer does. `GET /stats` counts what was asked; an answer counts even when the client that asked is gone.
"""

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import NamedTuple

SHORT = "[[ ## topic ## ]]\nbakery opening hours\n\n[[ ## urgency ## ]]\n3\n\n"
LONG = (
    f"{SHORT}[[ ## is_complaint ## ]]\nTrue\n\n"
    '[[ ## next_steps ## ]]\n["call the customer back", "check the rota", "write a notice"]\n\n'
)
ANSWERS = {name: text + "[[ ## completed ## ]]" for name, text in (("short", SHORT), ("long", LONG))}
"""Two or four typed outputs in the form of DSPy's chat adapter."""
MODELS = b'{"object": "list", "data": [{"id": "stub", "object": "model"}]}'


class Fate(NamedTuple):
    """What happens to one request: `answer`, `rate`, `error`, `malformed` or `reset`, after `seconds`."""

    kind: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Dials:
    """How the server behaves; shares are of requests, times are seconds."""

    latency: float = 0.0
    jitter: float = 0.0
    """Spread of the latency, as a share of it to both sides."""
    tail: float = 0.0
    tail_latency: float = 2.0
    rate: float = 0.0
    """Share answered 429."""
    retry_after: float | None = None
    """Value of that header on a 429; None sends none."""
    error: float = 0.0
    """Share answered 500."""
    malformed: float = 0.0
    """Share answered 200 with a body that is no JSON."""
    reset: float = 0.0
    """Share of connections closed without an answer."""
    seed: int = 0

    def draw_fates(self) -> Iterator[Fate]:
        """Draw what happens to the first request, the second and so on."""
        draws = random.Random(self.seed)
        faults = [(name, getattr(self, name)) for name in ("rate", "error", "malformed", "reset")]
        while True:
            point, kind = draws.random(), "answer"
            for name, share in faults:
                if point < share:
                    kind = name
                    break
                point -= share
            seconds = self.tail_latency if draws.random() < self.tail else self.latency
            yield Fate(kind, seconds * (1 + self.jitter * draws.uniform(-1, 1)))

    def arguments(self) -> list[str]:
        """Return the command-line arguments that set these dials."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return [f"--{name.replace('_', '-')}={value}" for name, value in pairs if value is not None]


class Stub:
    """The counters, and the answers made ready."""

    def __init__(self, dials: Dials, answer: str) -> None:
        self.requests = self.answered = self.repeated = self.in_flight = self.peak = 0
        self._is_plain = dials == Dials(seed=dials.seed)
        self._fates = dials.draw_fates()
        self._seen: set[int] = set()
        self._replies = build_replies(answer, dials.retry_after)
        self._later = asyncio.get_running_loop().call_later

    def receive(self, transport: asyncio.Transport, body: bytes) -> None:
        """Answer a request, at once or when its time has come."""
        self.requests += 1
        self.in_flight += 1
        if self.in_flight > self.peak:
            self.peak = self.in_flight
        kind, seconds = ("answer", 0.0) if self._is_plain else next(self._fates)
        if seconds > 0:
            self._later(seconds, self._answer, transport, body, kind)
        else:
            self._answer(transport, body, kind)

    def _answer(self, transport: asyncio.Transport, body: bytes, kind: str) -> None:
        self.in_flight -= 1
        if kind == "reset":
            transport.abort()
            return
        if kind == "answer":
            self.answered += 1
            digest = hash(body)
            self.repeated += digest in self._seen
            self._seen.add(digest)
        if not transport.is_closing():
            transport.write(self._replies[kind])

    def stats(self) -> bytes:
        """Return the counters as a reply."""
        names = ("requests", "answered", "repeated", "in_flight", "peak")
        return build_reply(200, json.dumps({name: getattr(self, name) for name in names}).encode())


class StubProtocol(asyncio.Protocol):
    """Collects bytes until a request is whole; one request at a time on a connection."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            if head.startswith(b"post"):
                self._stub.receive(self._transport, body)
            else:
                is_stats = head.startswith(b"get /stats")
                self._transport.write(self._stub.stats() if is_stats else build_reply(200, MODELS))


def build_reply(status: int, body: bytes, *headers: str) -> bytes:
    """Build the bytes of an HTTP answer."""
    lines = (f"HTTP/1.1 {status} -", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join((*lines, "", "")).encode() + body


def build_replies(answer: str, retry_after: float | None) -> dict[str, bytes]:
    """Build the bytes of every kind of answer."""
    usage = {"prompt_tokens": 3600, "completion_tokens": 60, "total_tokens": 3660}
    choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
    whole = {"id": "stub", "object": "chat.completion", "created": 0, "model": "stub"}
    wait = () if retry_after is None else (f"Retry-After: {retry_after:g}",)
    return {
        "answer": build_reply(200, json.dumps(whole | {"choices": [choice], "usage": usage}).encode()),
        "rate": build_reply(429, b'{"error": {"message": "too many requests"}}', *wait),
        "error": build_reply(500, b'{"error": {"message": "internal error"}}'),
        "malformed": build_reply(200, b"<html>upstream timed out</html>"),
    }


async def serve(dials: Dials, answer: str) -> None:
    """Serve on a free port of 127.0.0.1."""
    stub = Stub(dials, answer)
    # hundreds of clients connect in the same moment; a full backlog would cost them a second each
    server = await asyncio.get_running_loop().create_server(partial(StubProtocol, stub), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def run_stub(dials: Dials = Dials(), answer: str = "short") -> Iterator[str]:
    """Run the server in a process of its own for as long as the block; yields its URL, up to `/v1`."""
    command = [sys.executable, __file__, *dials.arguments(), "--answer", answer]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        finally:
            server.kill()


def read_stats(url: str) -> dict[str, int]:
    """Ask a running server for its counters."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as reply:
        return json.load(reply)


def main() -> None:
    """Read the dials and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Dials):
        kind = int if field.name == "seed" else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    parser.add_argument("--answer", choices=ANSWERS, default="long", help="two or four typed outputs")
    options = vars(parser.parse_args())
    answer = options.pop("answer")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(Dials(**options), ANSWERS[answer]))


if __name__ == "__main__":
    main()
