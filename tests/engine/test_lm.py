import asyncio
import threading
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from aiohttp import web

from matrix_dspy.engine.base import Completion, DownError, Engine, RefusedError, Request
from matrix_dspy.engine.endpoint import EndpointEngine
from matrix_dspy.engine.lm import build_lm
from matrix_dspy.loading import load_program
from tests.loopback import serve

Answer = Callable[[Request], str | Completion | Exception]


class Scripted(Engine):
    """Answers by a rule, and notes what it was asked and in which loop."""

    supports_response_schema = True

    def __init__(self, answer: Answer, **limits: Any) -> None:
        super().__init__(**limits)
        self.model = "scripted"
        self.answer = answer
        self.asked: list[Request] = []
        self.loops: set[asyncio.AbstractEventLoop] = set()
        self.n_opened = 0

    async def open(self) -> None:
        self.n_opened += 1

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        self.asked.append(request)
        self.loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0)
        answer = self.answer(request)
        if isinstance(answer, Exception):
            raise answer
        return Completion((answer,), ("stop",), 11, 7) if isinstance(answer, str) else answer


def echo(request: Request) -> str:
    asked = request.messages[-1]["content"].split("[[ ## question ## ]]\n")[1].split("\n")[0]
    return f"[[ ## answer ## ]]\n{asked}!\n\n[[ ## completed ## ]]"


def make_asker() -> dspy.Predict:
    return dspy.Predict("question -> answer")


def test_a_predictor_runs_on_an_engine():
    engine = Scripted(echo)

    with dspy.context(lm=build_lm(engine, temperature=0.2, max_tokens=99)):
        prediction = make_asker()(question="who")

    assert prediction.answer == "who!"
    request = engine.asked[0]
    assert [message["role"] for message in request.messages] == ["system", "user"]
    assert (request.sampling.temperature, request.sampling.max_tokens) == (0.2, 99)
    assert engine.n_opened == 1


def test_the_messages_are_those_of_the_adapter():
    engine = Scripted(echo)
    asker = make_asker()

    with dspy.context(lm=build_lm(engine)):
        asker(question="who")

    signature: Any = asker.signature
    assert list(engine.asked[0].messages) == dspy.ChatAdapter().format(signature, [], {"question": "who"})


def test_demos_reach_the_engine_as_turns():
    engine = Scripted(echo)
    asker = make_asker()
    asker.demos = [{"question": "one", "answer": "1"}]

    with dspy.context(lm=build_lm(engine)):
        asker(question="two")

    assert [message["role"] for message in engine.asked[0].messages] == ["system", "user", "assistant", "user"]


def test_a_call_can_set_its_own_sampling():
    engine = Scripted(echo)

    with dspy.context(lm=build_lm(engine, top_p=0.5)):
        make_asker()(question="who", config={"temperature": 0.0, "max_tokens": 5, "stop": ["END"], "seed": 3})
        make_asker()(question="what")

    first, second = (request.sampling for request in engine.asked)
    assert (first.temperature, first.top_p, first.max_tokens, first.stop, first.seed) == (0.0, 0.5, 5, ("END",), 3)
    assert (second.temperature, second.top_p, second.stop, second.seed) == (0.7, 0.5, (), None)


def test_a_json_adapter_sends_its_schema():
    engine = Scripted(lambda request: '{"answer": 4}')

    with dspy.context(lm=build_lm(engine), adapter=dspy.JSONAdapter()):
        prediction = dspy.Predict("question -> answer: int")(question="2 + 2")

    assert prediction.answer == 4
    schema = engine.asked[0].sampling.response_schema
    assert schema is not None and "answer" in schema["properties"]


def test_acall_works_in_any_loop():
    engine = Scripted(echo)
    lm = build_lm(engine)

    async def ask_some() -> list[str]:
        with dspy.context(lm=lm):
            predictions = await asyncio.gather(*(make_asker().acall(question=str(n)) for n in range(20)))
        return [prediction.answer for prediction in predictions]

    assert asyncio.run(ask_some()) == asyncio.run(ask_some()) == [f"{n}!" for n in range(20)]
    assert len(engine.loops) == 1
    assert engine.n_opened == 1


def test_an_engine_opened_here_is_used_in_this_loop():
    async def work() -> bool:
        engine = Scripted(echo)
        async with engine:
            with dspy.context(lm=build_lm(engine, is_open=True)):
                await make_asker().acall(question="who")
        return engine.n_opened == 1 and engine.loops == {asyncio.get_running_loop()}

    assert asyncio.run(work())


def test_evaluate_runs_on_an_engine_from_many_threads():
    engine = Scripted(echo)
    devset = [
        dspy.Example(question=str(n), answer=f"{n}!" if n % 4 else "?").with_inputs("question") for n in range(40)
    ]

    evaluate = dspy.Evaluate(
        devset=devset, metric=lambda example, prediction, trace=None: example.answer == prediction.answer, num_threads=8
    )
    with dspy.context(lm=build_lm(engine, temperature=0.0)):
        result = evaluate(make_asker())

    assert result.score == 75.0
    assert len(engine.asked) == 40
    assert (engine.n_opened, len(engine.loops)) == (1, 1)


def test_usage_is_reported_to_dspy():
    with dspy.context(lm=build_lm(Scripted(echo)), track_usage=True):
        usage = make_asker()(question="who").get_lm_usage()

    assert usage is not None
    (counts,) = usage.values()
    assert (counts["prompt_tokens"], counts["completion_tokens"]) == (11, 7)


def test_nothing_is_answered_from_a_cache():
    engine = Scripted(echo)

    with dspy.context(lm=build_lm(engine)):
        for _ in range(3):
            make_asker()(question="who")

    assert len(engine.asked) == 3


@pytest.mark.parametrize("error", [RefusedError("the prompt is too long"), DownError("the server is gone")])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_failure_is_an_error_that_says_why_and_is_not_tried_again(error: Exception, is_async: bool):
    engine = Scripted(lambda request: error)

    with dspy.context(lm=build_lm(engine)), pytest.raises(Exception, match=str(error)):
        if is_async:
            asyncio.run(make_asker().acall(question="who"))
        else:
            make_asker()(question="who")

    assert len(engine.asked) == 1


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter", "abort", "eos_token"])
def test_whatever_ended_the_answer_it_is_read(reason: str):
    engine = Scripted(lambda request: Completion((echo(request),), (reason,), 1, 1))

    with dspy.context(lm=build_lm(engine)):
        assert make_asker()(question="who").answer == "who!"


def test_a_copy_of_the_lm_shares_the_engine():
    engine = Scripted(echo)
    lm = build_lm(engine)

    for copy in (lm.copy(temperature=0.0), lm.copy()):
        with dspy.context(lm=copy):
            make_asker()(question="who")

    assert engine.n_opened == 1
    assert [request.sampling.temperature for request in engine.asked] == [0.0, 0.7]


def test_a_program_that_holds_the_lm_can_be_copied_and_dumped():
    program = load_program("critic")
    program.set_lm(build_lm(Scripted(lambda request: "[[ ## critique ## ]]\nfine")))

    copy = program.deepcopy()

    assert copy(instruction="a", response="b").critique == "fine"
    assert program.dump_state()


def test_a_server_that_cannot_be_opened_is_the_same_clear_error_every_time():
    lm = build_lm(EndpointEngine("http://127.0.0.1:1/v1"))
    n_threads = threading.active_count()

    for _ in range(3):
        with dspy.context(lm=lm), pytest.raises(Exception, match="no server answers at"):
            make_asker()(question="who")

    assert threading.active_count() <= n_threads + 1


def test_a_real_server_answers_a_predictor_and_an_acall():
    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": "served"}]})
        text = "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]"
        return web.json_response({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})

    async def work() -> tuple[str, str]:
        async with serve(handle) as url:
            with dspy.context(lm=build_lm(EndpointEngine(url))):
                slow = await asyncio.to_thread(make_asker(), question="who")
                return slow.answer, (await make_asker().acall(question="who")).answer

    assert asyncio.run(work()) == ("yes", "yes")
