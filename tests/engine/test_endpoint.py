import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from aiohttp import web

from matrix_dspy.engine.base import Completion, Request, Sampling, TransientError
from matrix_dspy.engine.endpoint import API_KEY_VARIABLE, EndpointEngine, read_completion
from matrix_dspy.errors import EngineError
from tests.loopback import Handler, serve

Answer = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]
SECRET = "sk-very-secret-123"


def say(text: str = "yes", **more: Any) -> web.Response:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 11, "completion_tokens": 7}} | more)


def serve_models(*names: str) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": name} for name in names]})


def fail(status: int, message: str = "no", **headers: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status, headers=headers)


class Server:
    """A model server: lists models, notes every chat request, and answers by `answers`, the last one for ever."""

    def __init__(self, *answers: web.Response | Answer, models: web.Response | None = None) -> None:
        self.answers = list(answers)
        self.models = models
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            return _copy(self.models) if self.models is not None else serve_models("first", "second")
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return _copy(answer) if isinstance(answer, web.Response) else await answer(request, body)


def _copy(answer: web.Response) -> web.Response:
    headers = {name: value for name, value in answer.headers.items() if name.lower() != "content-length"}
    return web.Response(body=answer.body, status=answer.status, headers=headers)


def ask(
    server: Handler, request: Request | None = None, *, n: int = 1, model: str = "", **limits: Any
) -> tuple[list[Completion], EndpointEngine]:
    """Open an engine on a real server, send the request `n` times at once, and return what came back."""

    async def work() -> tuple[list[Completion], EndpointEngine]:
        limits_used = {"patience_s": 0.2, "timeout_s": 5.0} | limits
        async with serve(server) as url, EndpointEngine(url, model, **limits_used) as engine:
            asked = request or Request([{"role": "user", "content": 'hello \U0001f600\n"{}"'}])
            return await asyncio.gather(*(engine.complete(asked) for _ in range(n))), engine

    return asyncio.run(work())


def open_error(work: Coroutine[Any, Any, None]) -> str:
    with pytest.raises(EngineError) as caught:
        asyncio.run(work)
    return str(caught.value)


async def open_on(server: Handler, model: str = "", **limits: Any) -> None:
    async with serve(server) as url, EndpointEngine(url, model, **limits):
        pass


def test_an_answer_comes_back_whole():
    (completion,), engine = ask(Server(say("h\u00e9llo\n\U0001f600")))

    assert completion.texts == ("h\u00e9llo\n\U0001f600",)
    assert completion.finish_reasons == ("stop",)
    assert (completion.prompt_tokens, completion.completion_tokens) == (11, 7)
    assert 0 < completion.seconds < 5
    assert completion.logprobs is None
    assert engine.usage.prompt_tokens == 11


def test_the_first_model_served_is_taken_when_none_is_named():
    server = Server(say())

    _, engine = ask(server)

    assert engine.model == server.bodies[0]["model"] == "first"


def test_a_named_model_is_asked_for():
    server = Server(say())

    ask(server, model="second")

    assert server.bodies[0]["model"] == "second"


def test_only_what_was_set_is_sent():
    server = Server(say())

    ask(server, Request([{"role": "user", "content": "hi"}], Sampling(temperature=0.0, max_tokens=9)))

    assert server.bodies == [
        {"model": "first", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.0, "max_tokens": 9}
    ]


def test_all_of_the_sampling_is_sent_in_openais_form():
    server = Server(say())
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    sampling = Sampling(0.5, 0.9, 9, ("END", "\n\n"), 42, 3, schema)

    ask(server, Request([{"role": "user", "content": "hi"}], sampling))

    body = server.bodies[0]
    assert (body["top_p"], body["stop"], body["seed"], body["n"]) == (0.9, ["END", "\n\n"], 42, 3)
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": schema},
    }


def test_several_samples_come_back_in_their_order():
    choices = [
        {"index": 1, "message": {"content": "b"}, "finish_reason": "length", "logprobs": {"content": []}},
        {"index": 0, "message": {"content": "a"}, "finish_reason": "stop", "logprobs": {"content": [1]}},
    ]

    (completion,), _ = ask(Server(web.json_response({"choices": choices})))

    assert (completion.texts, completion.finish_reasons) == (("a", "b"), ("stop", "length"))
    assert completion.logprobs == ([1], [])
    assert (completion.prompt_tokens, completion.completion_tokens) == (0, 0)


def test_an_answer_without_content_is_an_empty_text():
    choice = {"message": {"role": "assistant", "content": None}, "finish_reason": None}

    (completion,), _ = ask(Server(web.json_response({"choices": [choice], "usage": None})))

    assert (completion.texts, completion.finish_reasons) == (("",), ("stop",))


def test_a_model_that_is_not_served_is_refused_with_those_that_are():
    error = open_error(open_on(Server(say()), "third"))

    assert "does not serve model 'third'; it serves first, second" in error


def test_a_server_without_a_model_is_refused():
    assert "serves no model" in open_error(open_on(Server(say(), models=serve_models())))


@pytest.mark.parametrize("status", [404, 405])
def test_a_server_that_lists_no_models_is_used_when_the_model_is_named(status: int):
    (completion,), engine = ask(Server(say(), models=fail(status)), model="mine")

    assert (completion.is_ok, engine.model) == (True, "mine")


def test_a_server_that_lists_no_models_is_doubted_when_none_is_named():
    assert "answers 404: no; does the address end in /v1?" in open_error(open_on(Server(say(), models=fail(404))))


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_said_when_opening(status: int):
    error = open_error(open_on(Server(say(), models=fail(status))))

    assert f"refuses the key ({status})" in error and API_KEY_VARIABLE in error


@pytest.mark.parametrize("page", ["<html>hello</html>", "", "[1, 2]", '{"data": 3}', '{"data": [{}]}', "null"])
def test_something_that_is_no_model_server_is_said_to_be_none(page: str):
    error = open_error(open_on(Server(say(), models=web.Response(text=page))))

    assert "answers, but not as a model server" in error


def test_no_server_at_all_is_said_with_the_address():
    async def work() -> None:
        async with EndpointEngine("http://127.0.0.1:1/v1"):
            pass

    assert open_error(work()).startswith("no server answers at http://127.0.0.1:1/v1 (connection refused)")


@pytest.mark.parametrize("url", ["http://", "http://host:port/v1", "http://host:99999999/v1"])
def test_what_is_no_address_is_said_to_be_none(url: str):
    async def work() -> None:
        async with EndpointEngine(url):
            pass

    assert "write --lm http://host:port/v1" in open_error(work())


def test_a_server_that_accepts_and_says_nothing_is_given_up():
    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    assert "accepts connections but does not answer" in open_error(open_on(silent, timeout_s=0.1))


@pytest.mark.parametrize("status", [500, 502, 503, 507, 429, 408, 529])
def test_a_passing_status_is_tried_again(status: int):
    server = Server(fail(status, **{"Retry-After": "0.01"}), say("at last"))

    (completion,), engine = ask(server)

    assert completion.texts == ("at last",)
    assert engine.usage.errors == 1
    assert server.bodies[0] == server.bodies[1]


def test_a_server_busy_for_ever_is_down_and_not_a_bad_row():
    (completion,), _ = ask(Server(fail(429, "slow down", **{"Retry-After": "0.05"})))

    assert completion.error is None
    assert completion.down is not None and completion.down.endswith("/v1 answers 429: slow down")


@pytest.mark.parametrize("wait", ["Wed, 21 Oct 2015 07:28:00 GMT", "soon", "", "-5"])
def test_a_wait_that_is_no_number_of_seconds_is_ignored(wait: str):
    (completion,), _ = ask(Server(fail(429, **{"Retry-After": wait}), say()), patience_s=5.0)

    assert completion.is_ok


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_the_rows_error(status: int):
    server = Server(fail(status, "maximum context\n length is 8"))

    (completion,), _ = ask(server)

    assert completion.error == f"the server answers {status}: maximum context length is 8"
    assert (completion.down, len(server.bodies)) == (None, 1)


@pytest.mark.parametrize(
    ("status", "words"), [(401, "refuses the key"), (403, "refuses the key"), (404, "does not serve")]
)
def test_a_wrong_key_or_model_is_down_at_once(status: int, words: str):
    server = Server(fail(status))

    (completion,), _ = ask(server)

    assert completion.down is not None and words in completion.down
    assert len(server.bodies) == 1


@pytest.mark.parametrize("status", [204, 304, 405])
def test_a_status_no_model_server_gives_is_down_at_once(status: int):
    (completion,), _ = ask(Server(web.Response(status=status)))

    assert completion.down is not None and f"answers {status}, not as a model server" in completion.down


@pytest.mark.parametrize("page", ["<html>gateway</html>", '{"choices": [{"message": {"content": "ye'])
def test_an_answer_that_is_none_is_tried_again(page: str):
    (completion,), engine = ask(Server(web.Response(text=page), say("now")), patience_s=5.0)

    assert completion.texts == ("now",)
    assert engine.usage.errors == 1


@pytest.mark.parametrize(
    "page",
    [
        "",
        "{}",
        "[]",
        "null",
        "3",
        '{"choices": []}',
        '{"choices": 3}',
        '{"choices": [3]}',
        '{"choices": [{"message": null}]}',
        '{"choices": [{"message": {"content": ["parts"]}}]}',
        '{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "many"}}',
        '{"choices": [{"message": {"content": "x"}}], "usage": 3}',
        '{"choices": [{"index": "a", "message": {}}, {"index": 1, "message": {}}]}',
    ],
)
def test_json_that_is_no_completion_may_be_one_next_time(page: str):
    with pytest.raises(TransientError, match="the server's answer"):
        read_completion(page.encode(), 0.1)


def test_a_connection_closed_in_mid_answer_is_tried_again():
    async def hang_up(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Length": "1000"})
        await reply.prepare(request)
        await reply.write(b'{"choices": [')
        assert request.transport is not None
        request.transport.close()
        return reply

    (completion,), _ = ask(Server(hang_up, say("now")), patience_s=5.0)

    assert completion.texts == ("now",)


def test_a_stalled_answer_times_out_and_is_tried_again():
    async def stall(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    (completion,), _ = ask(Server(stall, say("now")), timeout_s=0.1, patience_s=5.0)

    assert completion.texts == ("now",)


def test_a_server_that_went_away_is_down():
    async def work() -> Completion:
        async with serve(Server(say())) as url:
            engine = EndpointEngine(url, patience_s=0.2)
            await engine.open()
        try:
            return await engine.complete(Request([{"role": "user", "content": "hi"}]))
        finally:
            await engine.close()

    completion = asyncio.run(work())

    assert completion.down is not None and "does not answer (" in completion.down


def test_more_are_in_flight_than_dspys_own_hundred():
    n_inside, all_inside = 0, asyncio.Event()

    async def wait_for_all(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal n_inside
        n_inside += 1
        if n_inside == 120:
            all_inside.set()
        await asyncio.wait_for(all_inside.wait(), 4)
        return say()

    completions, engine = ask(Server(wait_for_all), n=120, concurrency=120)

    assert all(completion.is_ok for completion in completions)
    assert engine.usage.attempts == 120


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    server = Server(say())
    ask(server)
    monkeypatch.setenv(API_KEY_VARIABLE, SECRET)

    _, engine = ask(server)

    assert "Authorization" not in server.headers[0]
    assert server.headers[1]["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in repr(engine) + str(vars(engine))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_a_key_the_server_repeats_is_in_no_message(monkeypatch: pytest.MonkeyPatch, status: int):
    monkeypatch.setenv(API_KEY_VARIABLE, SECRET)

    (completion,), _ = ask(Server(fail(status, f"wrong key Bearer {SECRET}!")))

    said = f"{completion.error}{completion.down}"
    assert "wrong key" in said
    assert SECRET not in said


@pytest.mark.parametrize("models", [fail(500, f"bad {SECRET}"), web.Response(text=f"<p>{SECRET}</p>")])
def test_a_key_the_server_repeats_is_in_no_error_when_opening(monkeypatch: pytest.MonkeyPatch, models: web.Response):
    monkeypatch.setenv(API_KEY_VARIABLE, SECRET)

    assert SECRET not in open_error(open_on(Server(say(), models=models)))


def test_a_body_of_bytes_is_read_without_a_server():
    raw = json.dumps({"choices": [{"message": {"content": "hi"}}]}).encode()

    assert read_completion(raw, 0.5) == Completion(("hi",), ("stop",), seconds=0.5)
