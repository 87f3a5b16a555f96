import asyncio
import subprocess
import sys
from typing import Any

import pytest
from aiohttp import web

from matrix_dspy.engine.base import Completion, Request, Sampling
from matrix_dspy.engine.provider import ProviderEngine
from matrix_dspy.errors import EngineError
from tests.loopback import serve

REQUEST = Request([{"role": "user", "content": "hello"}], Sampling(0.5, 0.9, 9, ("END",), 42))


class Server:
    """An OpenAI-like server that notes every body and answers by `answers`, the last one for ever."""

    def __init__(self, *answers: tuple[int, dict[str, Any]]) -> None:
        self.answers = list(answers)
        self.bodies: list[dict[str, Any]] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.json_response(body, status=status, headers={"Retry-After": "0"} if status == 429 else {})


def say(*texts: str, reason: str = "stop") -> tuple[int, dict[str, Any]]:
    choices = [
        {"index": n, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        for n, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    head = {"id": "x", "object": "chat.completion", "created": 1, "model": "m"}
    return 200, head | {"choices": choices, "usage": usage}


def fail(status: int, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message, "type": "x", "code": "x"}}


def ask(server: Server, request: Request = REQUEST, **limits: Any) -> Completion:
    async def work() -> Completion:
        async with serve(server) as url:
            engine = ProviderEngine("openai/some-model", api_base=url, **{"patience_s": 5.0, "timeout_s": 5.0} | limits)
            async with engine:
                return await engine.complete(request)

    return asyncio.run(work())


@pytest.fixture(autouse=True)
def with_a_key(monkeypatch: pytest.MonkeyPatch, no_keys_or_addresses_from_outside: None) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")


def test_litellm_is_imported_by_nothing_but_a_provider_that_is_opened():
    code = (
        "import sys, matrix_dspy, matrix_dspy.engine.endpoint, matrix_dspy.engine.provider, matrix_dspy.engine.spec\n"
        "matrix_dspy.engine.spec.build_engine('openai/x')\n"
        "assert 'litellm' not in sys.modules, 'litellm was imported'\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_an_answer_comes_back_through_litellm():
    server = Server(say("h\u00e9llo"))

    completion = ask(server)

    assert (completion.texts, completion.finish_reasons) == (("h\u00e9llo",), ("stop",))
    assert (completion.prompt_tokens, completion.completion_tokens) == (11, 7)
    body = server.bodies[0]
    assert (body["model"], body["messages"]) == ("some-model", [{"role": "user", "content": "hello"}])
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.5, 0.9, 9)
    assert (body["stop"], body["seed"]) == (["END"], 42)


def test_only_what_was_set_is_sent():
    server = Server(say("yes"))

    ask(server, Request(REQUEST.messages))

    assert set(server.bodies[0]) <= {"model", "messages", "temperature", "max_tokens", "stream"}


def test_several_samples_and_a_cut_off_come_back():
    completion = ask(Server(say("a", "b", reason="length")), Request(REQUEST.messages, Sampling(n=2)))

    assert (completion.texts, completion.finish_reasons) == (("a", "b"), ("length", "length"))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_fault_is_tried_again(status: int):
    server = Server(fail(status, "busy"), say("now"))

    completion = ask(server)

    assert completion.texts == ("now",)
    assert len(server.bodies) == 2


def test_litellm_itself_tries_only_once():
    server = Server(fail(500, "busy"))

    completion = ask(server, patience_s=0.0)

    assert completion.down is not None
    assert len(server.bodies) == 1


def test_a_refused_request_is_the_rows_error():
    server = Server(fail(400, "context too long"))

    completion = ask(server)

    assert completion.error is not None and "context too long" in completion.error
    assert (completion.down, len(server.bodies)) == (None, 1)


@pytest.mark.parametrize(("status", "words"), [(401, "refuses the key"), (404, "does not know this model")])
def test_a_wrong_key_or_model_is_down_at_once(status: int, words: str):
    server = Server(fail(status, "no"))

    completion = ask(server)

    assert completion.down is not None and words in completion.down
    assert len(server.bodies) == 1


def test_a_provider_that_is_gone_is_down():
    async def work() -> Completion:
        engine = ProviderEngine("openai/some-model", api_base="http://127.0.0.1:1/v1", patience_s=0.1)
        async with engine:
            return await engine.complete(REQUEST)

    completion = asyncio.run(work())

    assert completion.down is not None and completion.error is None


def test_a_name_of_no_provider_is_refused_when_opening():
    async def work() -> None:
        async with ProviderEngine("nobody-knows/this"):
            pass

    with pytest.raises(EngineError, match="LiteLLM knows no provider for 'nobody-knows/this'"):
        asyncio.run(work())


def test_a_missing_key_is_said_when_opening(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY")

    async def work() -> None:
        async with ProviderEngine("openai/some-model"):
            pass

    with pytest.raises(EngineError, match="needs a key; set the environment variable OPENAI_API_KEY"):
        asyncio.run(work())
