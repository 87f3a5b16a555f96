import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.bulk.budget import Budget
from matrix_dspy.bulk.journal import CallKey, Journal, hash_request
from matrix_dspy.bulk.runner import Runner
from matrix_dspy.engine import endpoint
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
        {
            "index": 0,
            "message": {"content": "a"},
            "finish_reason": "stop",
            "logprobs": {"content": [{"token": "a", "logprob": -0.5, "bytes": [97]}]},
        },
    ]

    (completion,), _ = ask(Server(web.json_response({"choices": choices})))

    assert (completion.texts, completion.finish_reasons) == (("a", "b"), ("stop", "length"))
    assert completion.logprobs == ([{"token": "a", "logprob": -0.5, "top_logprobs": []}], [])
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


@pytest.mark.parametrize("wait", ["Wed, 21 Oct 2015 07:28:00 GMT", "soon", "", "-5", "-inf", "nan", "inf", "1e400"])
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


def serve_owned(owner: str | None) -> web.Response:
    entry = {"id": "first"} if owner is None else {"id": "first", "owned_by": owner}
    return web.json_response({"object": "list", "data": [entry]})


def write_raw(content: str, **more: Any) -> bytes:
    """Return a completion's JSON with `content` put in as it stands, between quotation marks."""
    choice = {"index": 0, "message": {"content": "@"}, "finish_reason": "stop"} | more
    return json.dumps({"choices": [choice]}).replace('"@"', f'"{content}"').encode()


def test_the_options_of_vllm_are_sent_by_their_own_names():
    server = Server(say())
    sampling = Sampling(
        max_tokens=5,
        logprobs=4,
        top_k=20,
        min_p=0.05,
        repetition_penalty=1.1,
        chat_template_kwargs={"enable_thinking": False},
        priority=-3,
    )

    ask(server, Request([{"role": "user", "content": "hi"}], sampling))

    body = server.bodies[0]
    assert (body["logprobs"], body["top_logprobs"]) == (True, 4)
    assert (body["top_k"], body["min_p"], body["repetition_penalty"], body["priority"]) == (20, 0.05, 1.1, -3)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_seed_that_is_not_to_be_sent_is_left_off_and_the_journal_does_not_notice():
    server = Server(say())
    request = Request([{"role": "user", "content": "hi"}], Sampling(seed=7))

    _, without = ask(server, request, send_seeds=False)
    _, with_seed = ask(server, request)

    assert "seed" not in server.bodies[0]
    assert server.bodies[1]["seed"] == 7
    assert hash_request(request, without.model) == hash_request(request, with_seed.model)
    assert hash_request(request, "first") != hash_request(Request(request.messages, Sampling(seed=8)), "first")


def test_log_probabilities_come_back_place_by_place():
    places = [{"token": "ye", "logprob": -0.5, "top_logprobs": [{"token": "ye", "logprob": -0.5}]}]
    choices = [
        {"index": 0, "message": {"content": "ye"}, "finish_reason": "stop", "logprobs": {"content": places}},
        {"index": 1, "message": {"content": "no"}, "finish_reason": "stop", "logprobs": None},
    ]

    (completion,), _ = ask(Server(web.json_response({"choices": choices})))

    assert completion.logprobs == (places, None)


def test_what_the_servers_prefix_cache_held_is_counted():
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 8}}

    (found,), _ = ask(Server(say(usage=usage)))
    (unknown,), _ = ask(Server(say(usage=usage | {"prompt_tokens_details": None})))

    assert (found.cached_tokens, unknown.cached_tokens) == (8, 0)


def test_an_answer_cut_off_at_its_limit_says_so():
    cut = {"index": 0, "message": {"content": "on and"}, "finish_reason": "length"}

    (completion,), _ = ask(Server(web.json_response({"choices": [cut]})))

    assert (completion.texts, completion.finish_reasons) == (("on and",), ("length",))


@pytest.mark.parametrize(
    "words",
    [
        "max_tokens is too large: 4096. This model's maximum context length is 2048 tokens",
        "'max_completion_tokens' must be at most 2048",
    ],
)
def test_a_limit_on_the_answer_that_is_too_high_is_left_out(words: str):
    server = Server(fail(400, words), say("short enough"))

    (completion,), engine = ask(server)

    assert completion.texts == ("short enough",)
    assert ["max_tokens" in body for body in server.bodies] == [True, False]
    assert {**server.bodies[0], "max_tokens": None} == {**server.bodies[1], "max_tokens": None}
    assert (engine.usage.attempts, engine.usage.errors) == (1, 0)


def test_a_server_that_wants_no_limit_either_refuses_the_request():
    server = Server(fail(400, "max_tokens is too large"))

    (completion,), _ = ask(server)

    assert completion.error == "the server answers 400: max_tokens is too large"
    assert ["max_tokens" in body for body in server.bodies] == [True, False]


def test_a_request_refused_for_another_reason_is_sent_once():
    server = Server(fail(400, "the prompt has 9000 tokens and the context holds 2048"))

    (completion,), _ = ask(server)

    assert completion.error is not None
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("owner", "is_held"),
    [("vllm", True), ("sglang", True), ("VLLM", True), ("openai", False), ("", False), (None, False)],
)
def test_schemas_are_sent_by_default_where_the_server_says_what_it_is(owner: str | None, is_held: bool):
    _, engine = ask(Server(say(), models=serve_owned(owner)))

    assert engine.supports_response_schema is engine.prefers_schema is is_held
    assert engine.supports_n


def test_a_server_that_lists_no_models_is_not_known_to_hold_schemas():
    _, engine = ask(Server(say(), models=fail(404)), model="mine")

    assert engine.supports_response_schema is False


def test_answers_of_another_model_are_warned_of_once(caplog: pytest.LogCaptureFixture):
    (completion, *_), engine = ask(Server(say(model="other-7b")), n=5)

    assert completion.model == "other-7b"
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == f"{engine.url} answers as model 'other-7b', not as 'first'; check what it serves"


@pytest.mark.parametrize("model", ["first", "first-2024-07-18", "org/first", None, ""])
def test_a_longer_name_of_the_same_model_is_no_other(caplog: pytest.LogCaptureFixture, model: str | None):
    (completion,), _ = ask(Server(say(model=model)))

    assert completion.is_ok
    assert caplog.records == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("half \\ud83d of one", "half \ufffd of one"),
        ("at the end \\uD83D", "at the end \ufffd"),
        ("the other half \\ude00!", "the other half \ufffd!"),
        ("\\ud83d\\ud83d\\ude00 whole after half", "\ufffd\U0001f600 whole after half"),
        ("a backslash \\\\ud83d is text", "a backslash \\ud83d is text"),
    ],
)
def test_half_a_surrogate_pair_costs_one_character_and_no_answer(content: str, text: str):
    (completion,), engine = ask(Server(web.Response(body=write_raw(content), content_type="application/json")))

    assert completion.texts == (text,)
    assert engine.usage.errors == 0
    assert completion.texts[0].encode()


@given(st.text(max_size=20), st.sampled_from(["", "\\ud83d", "\\udc00x", "\\uDBFF\\u0041"]))
def test_whatever_stands_around_half_a_pair_is_kept(before: str, half: str):
    completion = read_completion(write_raw(json.dumps(before)[1:-1] + half + "end"), 0.1)

    assert completion.texts[0].startswith(before)
    assert completion.texts[0].endswith("end")


def test_an_error_told_with_status_200_is_tried_again():
    told = web.json_response({"error": {"message": "the engine is restarting", "code": 500}})

    (completion,), engine = ask(Server(told, say("now")), patience_s=5.0)

    assert completion.texts == ("now",)
    assert engine.usage.errors == 1


def test_a_clock_that_jumps_disturbs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    jumps = iter([1e9, 0.0, 4e9, -1e6] * 100_000)
    monkeypatch.setattr(time, "time", lambda: next(jumps))

    async def work() -> tuple[EndpointEngine, float]:
        server = Server(fail(429, **{"Retry-After": "0.01"}), fail(500, **{"Retry-After": "0.01"}), say())
        journal = Journal(tmp_path)
        started = time.perf_counter()
        async with serve(server) as url, EndpointEngine(url, concurrency=2, patience_s=5.0, hedge_s=4.0) as engine:
            runner = Runner(engine, journal, budget=Budget(max_time_s=60.0))
            requests = [Request([{"role": "user", "content": str(number)}]) for number in range(20)]
            calls = (runner.complete(each, CallKey("stage", str(n), "call")) for n, each in enumerate(requests))
            completions = await asyncio.gather(*calls)
        journal.close()
        assert all(completion.is_ok and 0 <= completion.seconds < 5 for completion in completions)
        return engine, time.perf_counter() - started

    engine, seconds = asyncio.run(work())

    assert seconds < 5
    assert (engine.usage.answers, engine.usage.errors, engine.usage.hedged) == (20, 2, 0)


METRICS = """# HELP vllm:prefix_cache_queries_total Prefix cache queries, in terms of number of queried tokens.
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="first"} 1000.0
vllm:prefix_cache_queries_total{engine="1",model_name="first"} 500.0
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="first"} 600.0
vllm:prefix_cache_hits_total{engine="1",model_name="first"} 1.5e+02
vllm:prefix_cache_hits_created{engine="0"} 1.7e+09
"""


def read_cache(metrics: web.Response) -> tuple[tuple[int, int] | None, list[str]]:
    """Serve a page at /metrics and return what the engine reads of it, with the paths it asked for."""
    paths: list[str] = []
    answering = Server(say())

    async def handle(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        return _copy(metrics) if request.path == "/metrics" else await answering(request)

    async def work() -> tuple[int, int] | None:
        async with serve(handle) as url, EndpointEngine(url) as engine:
            return await engine.read_prefix_cache()

    return asyncio.run(work()), paths


def test_the_prefix_cache_is_read_from_the_servers_metrics():
    found, paths = read_cache(web.Response(text=METRICS))

    assert found == (750, 1500)
    assert paths == ["/v1/models", "/metrics"]


@pytest.mark.parametrize(
    "page",
    [
        web.Response(status=404),
        web.Response(text="<html>hello</html>"),
        web.Response(text=""),
        web.Response(text="vllm:prefix_cache_queries_total 5\n"),
        web.Response(body=b"\xff\xfe\x00"),
    ],
    ids=["404", "html", "empty", "half", "bytes"],
)
def test_a_server_without_such_metrics_has_no_known_prefix_cache(page: web.Response):
    assert read_cache(page)[0] is None


@pytest.mark.parametrize(
    "wait",
    [
        "inf",
        "Wed, 21 Oct 2015 07:28:00 GMT",
        "nan",
    ],
)
def test_a_wait_that_is_no_number_does_not_make_us_storm_the_server(wait: str):
    server = Server(fail(429, **{"Retry-After": wait}))

    (completion,), _ = ask(server, patience_s=0.4)

    assert completion.down is not None
    assert len(server.bodies) < 10


def test_an_answer_that_comes_in_drops_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    async def trickle(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Type": "application/json"})
        await reply.prepare(request)
        for _ in range(12):
            await reply.write(b" ")
            await asyncio.sleep(0.1)
        answer = say("at last").body
        await reply.write(answer if isinstance(answer, bytes) else b"")
        await reply.write_eof()
        return reply

    monkeypatch.setattr(endpoint, "STALL_S", 0.5)

    (completion,), engine = ask(Server(trickle), patience_s=0.2)

    assert (completion.texts, engine.usage.errors) == (("at last",), 0)


def test_an_answer_that_falls_silent_in_the_middle_is_asked_for_again(monkeypatch: pytest.MonkeyPatch):
    async def fall_silent(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Length": "1000"})
        await reply.prepare(request)
        await reply.write(b'{"choices": [')
        await asyncio.sleep(60)
        return reply

    monkeypatch.setattr(endpoint, "STALL_S", 0.3)

    (completion,), engine = ask(Server(fall_silent, say("now")), timeout_s=30.0, patience_s=5.0)

    assert (completion.texts, engine.usage.errors) == (("now",), 1)


def test_a_password_in_the_address_is_in_no_rows_error():
    async def fail_one(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return fail(500, **{"Retry-After": "0"}) if "poison" in str(body) else say()

    async def work() -> Completion:
        async with serve(Server(fail_one)) as url:
            with_password = url.replace("http://", "http://user:hunter2@")
            async with EndpointEngine(with_password, patience_s=10.0) as engine:
                bad = asyncio.create_task(engine.complete(Request([{"role": "user", "content": "poison"}])))
                while not bad.done():
                    await engine.complete(Request([{"role": "user", "content": "good"}]))
                return await bad

    completion = asyncio.run(work())

    assert completion.error is not None
    assert "hunter2" not in completion.error
