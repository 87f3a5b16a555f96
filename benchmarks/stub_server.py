"""A chat-completions server that answers every request with the same text at once, as cheaply as Python can.

Run as `python benchmarks/stub_server.py`; it prints its port on a line of its own and serves until it is killed.
"""

import asyncio
import json

ANSWER = (
    "[[ ## topic ## ]]\nbakery opening hours\n\n[[ ## urgency ## ]]\n3\n\n[[ ## is_complaint ## ]]\nTrue\n\n"
    '[[ ## next_steps ## ]]\n["call the customer back", "check the rota", "write a notice"]\n\n[[ ## completed ## ]]'
)
_BODY = json.dumps(
    {
        "id": "stub",
        "object": "chat.completion",
        "created": 0,
        "model": "stub",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3600, "completion_tokens": 60, "total_tokens": 3660},
    }
).encode()
_MODELS = b'{"object": "list", "data": [{"id": "stub", "object": "model"}]}'


def _wrap(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class StubProtocol(asyncio.Protocol):
    """Counts bytes until a request is whole, then answers."""

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            self._transport.write(_REPLY if head.startswith(b"post") else _MODELS_REPLY)


_REPLY, _MODELS_REPLY = _wrap(_BODY), _wrap(_MODELS)


async def serve() -> None:
    """Serve on a free port of 127.0.0.1."""
    server = await asyncio.get_running_loop().create_server(StubProtocol, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
