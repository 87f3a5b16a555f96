"""A model on loopback that answers as it is told, and remembers what it was asked."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp import web

from tests.loopback import serve

T = TypeVar("T")
Said = str | tuple[str, str]
"""What it answers, or that and the reason it ended."""


class Scripted:
    """Answers the conversation so far by `reply(turns, how many times these very turns were asked before)`.

    With `hold` it answers so many requests and leaves the others waiting for ever.
    """

    def __init__(self, reply: Callable[[list[str], int], Said], *, hold: int | None = None) -> None:
        self.reply = reply
        self.hold = hold
        self.asked: list[list[str]] = []
        self.bodies: list[dict[str, Any]] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        if request.path.endswith("/models"):
            return web.json_response({"object": "list", "data": [{"id": "scripted"}]})
        body = await request.json()
        turns = [message["content"] for message in body["messages"]]
        n_before = self.asked.count(turns)
        self.asked.append(turns)
        self.bodies.append(body)
        if self.hold is not None and len(self.asked) > self.hold:
            await asyncio.sleep(600)
        said = self.reply(turns, n_before)
        text, end = said if isinstance(said, tuple) else (said, "stop")
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": end}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 5}})


def against(model: Scripted, work: Callable[[str], Awaitable[T]]) -> T:
    """Run `work` with the model's address."""

    async def run() -> T:
        async with serve(model) as url:
            return await work(url)

    return asyncio.run(run())
