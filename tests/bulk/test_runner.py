import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Literal, TypeVar

import dspy
import pytest

from matrix_dspy.bulk.budget import Budget
from matrix_dspy.bulk.journal import CallKey, Journal
from matrix_dspy.bulk.prompt import COMPLETED, Prompt
from matrix_dspy.bulk.runner import Outcome, Runner, Turn
from matrix_dspy.config import SamplingConfig
from matrix_dspy.engine.base import Completion, DownError, Engine, RefusedError, Request
from matrix_dspy.errors import EngineError, LimitError, RunError
from matrix_dspy.programs.response import Responder

T = TypeVar("T")
KEY = CallKey("stage", "row-1", "weigh")
SAMPLING = SamplingConfig(temperature=0.3, top_p=0.8, max_tokens=77)
GOOD = f"[[ ## reason ## ]]\nbig\n\n[[ ## verdict ## ]]\nheavy\n\n{COMPLETED}"
BAD = "[[ ## reason ## ]]\nbig\n\n[[ ## verdict ## ]]\nmassive\n"


class Weigh(dspy.Signature):
    """Weigh."""

    thing: str = dspy.InputField()
    reason: str = dspy.OutputField()
    verdict: Literal["light", "heavy"] = dspy.OutputField()


PROMPT = Prompt(dspy.Predict(Weigh))
INPUTS = {"thing": "a stone"}


class Scripted(Engine):
    """Gives its answers one after the other, then the last one for ever, and keeps what it was asked."""

    def __init__(self, *answers: str | Completion | Exception) -> None:
        super().__init__(concurrency=4, patience_s=0.01)
        self.model = "scripted"
        self.answers = list(answers)
        self.asked: list[Request] = []

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        self.asked.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return Completion((answer,), ("stop",), 10, 5) if isinstance(answer, str) else answer


def call(runner: Runner, key: CallKey = KEY, **options: Any) -> Outcome:
    return asyncio.run(runner.call(PROMPT, INPUTS, key, SAMPLING, **options))


def with_journal(folder: Path, engine: Engine, work: Callable[[Runner], Coroutine[Any, Any, T]]) -> T:
    journal = Journal(folder)
    try:
        return asyncio.run(work(Runner(engine, journal)))
    finally:
        journal.close()


def test_a_good_answer_comes_back_typed():
    runner = Runner(Scripted(GOOD))

    outcome = call(runner)

    assert outcome == Outcome({"reason": "big", "verdict": "heavy"}, GOOD)
    assert (runner.budget.n_calls, runner.progress.n_calls, runner.progress.in_flight) == (1, 1, 0)
    assert (runner.progress.prompt_tokens, runner.progress.completion_tokens) == (10, 5)


def test_sampling_and_stop_mark_reach_the_engine():
    engine = Scripted(GOOD)

    call(Runner(engine))

    sampling = engine.asked[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.3, 0.8, 77)
    assert sampling.stop == (COMPLETED,)
    assert engine.asked[0].messages == PROMPT.messages(INPUTS)


def test_a_replayed_answer_is_not_paid_for(tmp_path: Path):
    first, second = Scripted(GOOD), Scripted("never asked")
    paid = with_journal(tmp_path, first, lambda runner: runner.call(PROMPT, INPUTS, KEY, SAMPLING))

    runners: list[Runner] = []

    async def again(runner: Runner) -> Outcome:
        runners.append(runner)
        return await runner.call(PROMPT, INPUTS, KEY, SAMPLING)

    replayed = with_journal(tmp_path, second, again)
    assert replayed == paid
    assert second.asked == []
    assert (runners[0].budget.n_calls, runners[0].progress.n_replayed, runners[0].progress.n_calls) == (0, 1, 0)


def test_other_inputs_are_not_answered_from_the_journal(tmp_path: Path):
    with_journal(tmp_path, Scripted(GOOD), lambda runner: runner.call(PROMPT, INPUTS, KEY, SAMPLING))
    engine = Scripted(GOOD)

    with_journal(tmp_path, engine, lambda runner: runner.call(PROMPT, {"thing": "a leaf"}, KEY, SAMPLING))

    assert len(engine.asked) == 1


def test_a_bad_answer_is_asked_for_once_more_with_what_was_wrong():
    engine = Scripted(BAD, GOOD)

    outcome = call(Runner(engine))

    assert outcome.fields == {"reason": "big", "verdict": "heavy"}
    again = engine.asked[1].messages
    assert list(again[:2]) == list(engine.asked[0].messages)
    assert again[2] == {"role": "assistant", "content": BAD}
    assert "verdict" in again[3]["content"]


def test_an_answer_bad_twice_is_a_value_with_its_reason():
    engine = Scripted(BAD)

    outcome = call(Runner(engine))

    assert (outcome.is_ok, outcome.reason, outcome.text) == (False, "unparsed", BAD)
    assert outcome.detail
    assert len(engine.asked) == 2


def test_a_retry_is_replayed_too(tmp_path: Path):
    engine = Scripted(BAD)
    first = with_journal(tmp_path, engine, lambda runner: runner.call(PROMPT, INPUTS, KEY, SAMPLING))

    second = with_journal(tmp_path, engine, lambda runner: runner.call(PROMPT, INPUTS, KEY, SAMPLING))

    assert first == second
    assert len(engine.asked) == 2


def test_nothing_is_asked_again_when_told_so():
    engine = Scripted(BAD, GOOD)

    assert call(Runner(engine), n_again=0).reason == "unparsed"
    assert len(engine.asked) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Completion((GOOD,), ("length",)), "cut off"),
        ("", "empty"),
        (" \n\t", "empty"),
        (BAD, "unparsed"),
    ],
)
def test_what_is_wrong_with_an_answer_has_a_short_name(answer: Any, reason: str):
    engine = Scripted(answer)

    outcome = call(Runner(engine))

    assert (outcome.fields, outcome.reason) == (None, reason)
    assert len(engine.asked) == 2


def test_an_answer_cut_off_once_can_be_good_the_second_time():
    assert call(Runner(Scripted(Completion((GOOD[:20],), ("length",)), GOOD))).is_ok


def test_what_the_server_refuses_is_not_asked_again():
    engine = Scripted(RefusedError("the server answers 400: too long"))

    outcome = call(Runner(engine))

    assert (outcome.reason, outcome.detail, outcome.text) == (
        "refused by server",
        "the server answers 400: too long",
        "",
    )
    assert len(engine.asked) == 1


def test_a_refusal_is_replayed_as_one(tmp_path: Path):
    engine = Scripted(RefusedError("too long"))
    for _ in range(2):
        outcome = with_journal(tmp_path, engine, lambda runner: runner.call(PROMPT, INPUTS, KEY, SAMPLING))
        assert outcome.reason == "refused by server"

    assert len(engine.asked) == 1


def test_plain_chat_is_never_asked_again():
    engine = Scripted("")
    prompt = Prompt.of(Responder())

    outcome = asyncio.run(Runner(engine).call(prompt, {"instruction": "hi"}, KEY, SAMPLING))

    assert outcome.reason == "empty"
    assert len(engine.asked) == 1


def test_inputs_that_cannot_be_rendered_are_a_bad_row_and_no_crash():
    engine = Scripted(GOOD)

    outcome = asyncio.run(Runner(engine).call(PROMPT, {"thing": [1, None]}, KEY, SAMPLING))

    assert (outcome.is_ok, outcome.reason) == (False, "bad input")
    assert engine.asked == []


def test_a_failed_check_is_told_to_the_model():
    engine = Scripted(GOOD, GOOD.replace("big", "it is very big"))

    outcome = call(
        Runner(engine), check=lambda fields: None if len(fields["reason"]) > 5 else "the reason is too short"
    )

    assert outcome.fields == {"reason": "it is very big", "verdict": "heavy"}
    assert "the reason is too short" in engine.asked[1].messages[-1]["content"]


def test_a_check_failed_twice_is_the_reason():
    outcome = call(Runner(Scripted(GOOD)), check=lambda fields: "never good enough")

    assert (outcome.reason, outcome.detail) == ("failed check", "never good enough")


def test_earlier_turns_are_shown_before_the_answer():
    engine = Scripted(GOOD)

    call(Runner(engine), earlier=(Turn("first try", "it names somebody"),))

    messages = engine.asked[0].messages
    assert messages[-2] == {"role": "assistant", "content": "first try"}
    assert "it names somebody" in messages[-1]["content"]


def test_strings_in_the_fields_are_cleaned():
    answer = GOOD.replace("big", "b\x00i\u202eg <|im_start|>")

    assert call(Runner(Scripted(answer))).fields == {"reason": "big im_start", "verdict": "heavy"}


def test_what_must_not_be_written_is_scrubbed_before_it_is_journaled(tmp_path: Path):
    engine = Scripted(GOOD.replace("big", "Ana Kovac is big"))

    def scrub(text: str) -> str:
        return text.replace("Ana Kovac", "somebody")

    outcome = with_journal(tmp_path, engine, lambda runner: runner.call(PROMPT, INPUTS, KEY, SAMPLING, scrub=scrub))

    assert outcome.fields == {"reason": "somebody is big", "verdict": "heavy"}
    assert "Ana" not in outcome.text
    assert b"Ana" not in (tmp_path / "main.jsonl").read_bytes()


def test_calls_beyond_the_limit_are_not_sent():
    engine = Scripted(GOOD)
    runner = Runner(engine, budget=Budget(2))
    for number in range(2):
        call(runner, CallKey("stage", f"row-{number}", "weigh"))

    with pytest.raises(LimitError, match="the limit of 2 calls is reached"):
        call(runner, CallKey("stage", "row-2", "weigh"))

    assert len(engine.asked) == 2


def test_replayed_calls_do_not_count_against_the_limit(tmp_path: Path):
    with_journal(tmp_path, Scripted(GOOD), lambda runner: runner.call(PROMPT, INPUTS, KEY, SAMPLING))

    async def with_limit(runner: Runner) -> Outcome:
        runner.budget.max_calls = 1
        await runner.call(PROMPT, INPUTS, KEY, SAMPLING)
        return await runner.call(PROMPT, {"thing": "a leaf"}, KEY, SAMPLING)

    assert with_journal(tmp_path, Scripted(GOOD), with_limit).is_ok


def test_an_engine_that_is_down_stops_the_run_and_is_not_journaled(tmp_path: Path):
    with pytest.raises(EngineError, match="the key is wrong"):
        with_journal(
            tmp_path, Scripted(DownError("the key is wrong")), lambda runner: runner.call(PROMPT, INPUTS, KEY, SAMPLING)
        )

    assert (tmp_path / "main.jsonl").read_bytes() == b""


def test_after_a_failure_nothing_counts_as_in_flight():
    runner = Runner(Scripted(DownError("gone")))

    with pytest.raises(EngineError):
        call(runner)

    assert runner.progress.in_flight == 0


def test_a_journal_that_takes_no_more_stops_the_run(tmp_path: Path):
    class FullJournal(Journal):
        def append(
            self, key: CallKey | str, digest: str, request: Request, completion: Completion, *, is_private: bool = False
        ) -> None:
            raise RunError("no space left on device")

    with pytest.raises(RunError, match="no space left"):
        call(Runner(Scripted(GOOD), FullJournal(tmp_path)))


def test_every_call_has_a_stable_seed_of_its_own():
    keys = [CallKey("stage", f"row-{number}", "weigh", attempt=attempt) for number in range(50) for attempt in range(2)]

    seeds = [Runner(Scripted(GOOD), seed=7).derive_seed(key) for key in keys]

    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seeds == [Runner(Scripted(BAD), seed=7).derive_seed(key) for key in keys]
    assert seeds != [Runner(Scripted(GOOD), seed=8).derive_seed(key) for key in keys]
    assert seeds[:2] == [770559871, 481530832]


def test_the_seed_of_the_call_reaches_the_engine():
    engine = Scripted(BAD, GOOD)
    runner = Runner(engine, seed=7)

    call(runner)

    assert engine.asked[0].sampling.seed == runner.derive_seed(KEY)
    assert engine.asked[1].sampling.seed != engine.asked[0].sampling.seed


class Choosy(Engine):
    """Answers by the form it is asked in; refuses requests whose schema or length it does not like."""

    supports_n = True

    def __init__(
        self,
        refuses: Callable[[Request], str | None] = lambda request: None,
        *,
        answer: Callable[[Request], str] | None = None,
        latency_s: float = 0.0,
        **limits: Any,
    ) -> None:
        super().__init__(**{"concurrency": 8, "patience_s": 5.0} | limits)
        self.model = "choosy"
        self.refuses = refuses
        self.answer = answer or _answer_in_form
        self.latency_s = latency_s
        self.asked: list[Request] = []

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        self.asked.append(request)
        await asyncio.sleep(self.latency_s)
        if (words := self.refuses(request)) is not None:
            raise RefusedError(words)
        texts = tuple(self.answer(request) for _ in range(request.sampling.n))
        return Completion(texts, ("stop",) * len(texts), 10, 5)


def _answer_in_form(request: Request) -> str:
    return '{"reason": "big", "verdict": "heavy"}' if request.sampling.response_schema is not None else GOOD


def refuse_schemas(request: Request) -> str | None:
    return "400: no grammar for it" if request.sampling.response_schema is not None else None


def row_key(number: int) -> CallKey:
    return CallKey("stage", f"row-{number}", "weigh")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def ask_rows(runner: Runner, prompt: Prompt, n: int, width: int = 1) -> list[Outcome]:
    gate = asyncio.Semaphore(width)

    async def ask(number: int) -> Outcome:
        async with gate:
            return await runner.call(prompt, {"thing": f"stone {number}"}, row_key(number), SAMPLING)

    return await asyncio.gather(*(ask(number) for number in range(n)))


def make_structured(engine: Engine, journal: Journal | None = None, **more: Any) -> tuple[Runner, Prompt]:
    return Runner(engine, journal, structured=True, **more), Prompt(dspy.Predict(Weigh))


def test_where_schemas_are_sent_the_answer_is_one_json_object():
    engine = Choosy()
    runner, prompt = make_structured(engine, longest_text=99)

    (outcome,) = asyncio.run(ask_rows(runner, prompt, 1))

    assert outcome.fields == {"reason": "big", "verdict": "heavy"}
    sampling = engine.asked[0].sampling
    assert sampling.response_schema == prompt.structured(99).schema
    assert sampling.stop == ()
    assert engine.asked[0].messages == prompt.structured(99).messages({"thing": "stone 0"})


def test_what_narrows_a_call_reaches_its_schema_and_no_other_calls():
    engine = Choosy()
    runner, prompt = make_structured(engine)
    narrow = {"reason": {"maxLength": 5}}
    asyncio.run(runner.call(prompt, INPUTS, KEY, SAMPLING, narrow=narrow))
    asyncio.run(runner.call(prompt, INPUTS, KEY, SAMPLING))

    first, second = (request.sampling.response_schema or {} for request in engine.asked)
    assert first["properties"]["reason"] == {"type": "string", "maxLength": 5}
    assert second["properties"]["reason"] == {"type": "string"}


def test_in_words_nothing_narrows():
    engine = Choosy()

    outcome = call(Runner(engine), narrow={"reason": {"maxLength": 5}})

    assert outcome.is_ok
    assert engine.asked[0].sampling.response_schema is None


def test_a_bad_answer_to_a_schema_is_asked_for_again_with_the_schema():
    answers = iter(['{"reason": "big"}', '{"reason": "big", "verdict": "heavy"}'])
    engine = Choosy(answer=lambda request: next(answers))
    runner, prompt = make_structured(engine)

    (outcome,) = asyncio.run(ask_rows(runner, prompt, 1))

    assert outcome.is_ok
    again = engine.asked[1]
    assert again.sampling.response_schema == prompt.structured().schema
    assert "as one JSON object with the fields reason, verdict and nothing else" in again.messages[-1]["content"]


def test_a_program_whose_schema_is_refused_goes_on_in_words_and_says_so_once(caplog: pytest.LogCaptureFixture):
    engine = Choosy(refuse_schemas)
    runner, prompt = make_structured(engine)

    outcomes = asyncio.run(ask_rows(runner, prompt, 10))

    assert all(outcome.is_ok for outcome in outcomes)
    assert [request.sampling.response_schema is not None for request in engine.asked] == [True, *[False] * 10]
    assert warnings_of(caplog) == [
        "the server takes no schema for Weigh, which is asked in words now (400: no grammar for it)"
    ]


def test_another_program_keeps_its_schema():
    engine = Choosy(lambda request: refuse_schemas(request) if "verdict" in str(request.sampling) else None)
    runner, prompt = make_structured(engine)
    other = Prompt(dspy.Predict("thing -> colour"))
    engine.answer = lambda request: '{"colour": "red"}' if request.sampling.response_schema else GOOD

    async def work() -> None:
        assert (await ask_rows(runner, prompt, 1))[0].is_ok
        assert (await ask_rows(runner, other, 1))[0].is_ok

    asyncio.run(work())

    assert [request.sampling.response_schema is not None for request in engine.asked] == [True, False, True]


@pytest.mark.parametrize("width", [1, 8])
def test_a_run_that_fell_back_to_words_is_replayed_whole(tmp_path: Path, width: int):
    first, second = (Choosy(refuse_schemas, latency_s=0.002) for _ in range(2))
    made: list[list[Outcome]] = []
    for engine in (first, second):
        journal = Journal(tmp_path)
        runner, prompt = make_structured(engine, journal)
        made.append(asyncio.run(ask_rows(runner, prompt, 30, width)))
        journal.close()

    assert made[0] == made[1]
    assert second.asked == []
    assert 30 < len(first.asked) <= 30 + width


def test_a_run_that_fell_back_in_the_middle_is_replayed_whole(tmp_path: Path):
    def refuse_some(request: Request) -> str | None:
        return refuse_schemas(request) if "stone 2" in str(request.messages) else None

    first, second = (Choosy(refuse_some, latency_s=0.002) for _ in range(2))
    for engine in (first, second):
        journal = Journal(tmp_path)
        runner, prompt = make_structured(engine, journal)
        outcomes = asyncio.run(ask_rows(runner, prompt, 30, 8))
        journal.close()
        assert all(outcome.is_ok for outcome in outcomes)

    assert second.asked == []


def test_a_prompt_too_long_in_either_form_keeps_the_schema_for_the_others(caplog: pytest.LogCaptureFixture):
    engine = Choosy(lambda request: "400: too long" if "stone 1" in str(request.messages) else None)
    runner, prompt = make_structured(engine)

    outcomes = asyncio.run(ask_rows(runner, prompt, 4))

    assert [outcome.reason for outcome in outcomes] == ["", "refused by server", "", ""]
    assert [request.sampling.response_schema is not None for request in engine.asked] == [True, True, False, True, True]
    assert warnings_of(caplog) == []


def test_plain_chat_has_no_schema_to_send():
    engine = Choosy(answer=lambda request: "hello")
    runner = Runner(engine, structured=True)

    outcome = asyncio.run(runner.call(Prompt.of(Responder()), {"instruction": "hi"}, KEY, SAMPLING))

    assert outcome.fields == {"response": "hello"}
    assert engine.asked[0].sampling.response_schema is None


def sample(runner: Runner, n: int, **options: Any) -> list[Outcome]:
    return asyncio.run(runner.sample(PROMPT, INPUTS, KEY, SAMPLING, n, **options))


def number_answers(bad: frozenset[int] = frozenset(), least: int = 0) -> Callable[[Request], str]:
    """Answer with 0, 1, 2, ... one after the other; those in `bad` are no answers."""
    count = iter(range(least, 1000))

    def answer(request: Request) -> str:
        number = next(count)
        return "no answer" if number in bad else GOOD.replace("big", f"reason {number}")

    return answer


def reasons(outcomes: list[Outcome]) -> list[str | None]:
    return [None if outcome.fields is None else outcome.fields["reason"] for outcome in outcomes]


def test_several_answers_come_from_one_request():
    engine = Choosy(answer=number_answers())

    outcomes = sample(Runner(engine), 4)

    assert reasons(outcomes) == ["reason 0", "reason 1", "reason 2", "reason 3"]
    assert [request.sampling.n for request in engine.asked] == [4]


def test_an_answer_of_several_that_is_no_good_is_asked_for_by_itself():
    engine = Choosy(answer=number_answers(frozenset({1, 3})))
    runner = Runner(engine)

    outcomes = sample(runner, 4)

    assert reasons(outcomes) == ["reason 0", "reason 4", "reason 2", "reason 5"]
    assert [request.sampling.n for request in engine.asked] == [4, 1, 1]
    seeds = {request.sampling.seed for request in engine.asked}
    assert len(seeds) == 3
    assert runner.budget.n_calls == 3


def test_answers_the_server_did_not_give_are_asked_for_one_by_one():
    class Stingy(Choosy):
        async def attempt(self, request: Request, n_asked: int) -> Completion:
            made = await super().attempt(request, n_asked)
            return Completion(made.texts[:2], made.finish_reasons[:2], 10, 5)

    engine = Stingy(answer=number_answers())

    outcomes = sample(Runner(engine), 5)

    assert all(outcome.is_ok for outcome in outcomes)
    assert reasons(outcomes)[:2] == ["reason 0", "reason 1"]
    assert [request.sampling.n for request in engine.asked] == [5, 1, 1, 1]


def test_a_server_that_refuses_several_at_once_is_asked_one_by_one():
    engine = Choosy(lambda request: "n must be 1" if request.sampling.n > 1 else None)

    outcomes = sample(Runner(engine), 3)

    assert all(outcome.is_ok for outcome in outcomes)
    assert [request.sampling.n for request in engine.asked] == [3, 1, 1, 1]


def test_an_engine_that_gives_one_at_a_time_is_asked_one_by_one():
    engine = Scripted(*(GOOD.replace("big", f"reason {number}") for number in range(3)))

    outcomes = sample(Runner(engine), 3)

    assert sorted(str(reason) for reason in reasons(outcomes)) == ["reason 0", "reason 1", "reason 2"]
    assert len({request.sampling.seed for request in engine.asked}) == 3
    assert {request.sampling.n for request in engine.asked} == {1}


def test_several_answers_are_replayed_with_those_asked_for_again(tmp_path: Path):
    first, second = Choosy(answer=number_answers(frozenset({1}))), Choosy()
    made = [
        with_journal(tmp_path, engine, lambda runner: runner.sample(PROMPT, INPUTS, KEY, SAMPLING, 3))
        for engine in (first, second)
    ]

    assert made[0] == made[1]
    assert second.asked == []


def test_several_answers_to_inputs_that_cannot_be_rendered_are_bad_rows():
    engine = Choosy()

    outcomes = asyncio.run(Runner(engine).sample(PROMPT, {"thing": [1, None]}, KEY, SAMPLING, 3))

    assert [outcome.reason for outcome in outcomes] == ["bad input"] * 3
    assert engine.asked == []


class Judge(dspy.Signature):
    """Judge."""

    answer: str = dspy.InputField()
    score: Literal[1, 2, 3, 4, 5] = dspy.OutputField()


JUDGE = Prompt(dspy.Predict(Judge))


def judge_tokens(**shares: float) -> list[dict[str, Any]]:
    """Return the places of `[[ ## score ## ]]`, a line break, and a digit drawn from `shares`, then the end."""
    top = [{"token": digit.lstrip("s"), "logprob": math.log(share)} for digit, share in shares.items()]
    head = [{"token": "[[ ## score ## ]]", "logprob": 0.0}, {"token": "\n", "logprob": 0.0}]
    tail = {"token": "\n\n", "logprob": 0.0, "top_logprobs": [{"token": "\n\n", "logprob": 0.0}]}
    return [*head, top[0] | {"top_logprobs": top}, tail]


def judged(tokens: list[dict[str, Any]] | None, digit: str = "3") -> Completion:
    text = f"[[ ## score ## ]]\n{digit}\n\n"
    return Completion((text,), ("stop",), 10, 5, logprobs=None if tokens is None else (tokens,))


def expect(engine: Engine, **options: Any) -> Outcome:
    return asyncio.run(Runner(engine).call(JUDGE, {"answer": "x"}, KEY, SAMPLING, expect="score", **options))


def test_a_judge_that_wavers_is_expected_in_between():
    engine = Scripted(judged(judge_tokens(s3=0.6, s4=0.3, s5=0.1)))

    outcome = expect(engine)

    assert outcome.fields == {"score": 3}
    assert outcome.expected == pytest.approx(3.5)
    assert engine.asked[0].sampling.logprobs == 20


def test_without_log_probabilities_nothing_is_expected():
    outcome = expect(Scripted(judged(None)))

    assert (outcome.fields, outcome.expected) == ({"score": 3}, None)


def test_log_probabilities_are_asked_for_only_where_they_are_wanted():
    engine = Scripted(judged(judge_tokens(s3=1.0)))

    outcome = asyncio.run(Runner(engine).call(JUDGE, {"answer": "x"}, KEY, SAMPLING))

    assert (outcome.expected, engine.asked[0].sampling.logprobs) == (None, 0)


def test_what_is_expected_is_the_same_when_replayed(tmp_path: Path):
    engines = Scripted(judged(judge_tokens(s3=0.6, s4=0.3, s5=0.1))), Scripted("never asked")
    made = [
        with_journal(
            tmp_path, engine, lambda runner: runner.call(JUDGE, {"answer": "x"}, KEY, SAMPLING, expect="score")
        )
        for engine in engines
    ]

    assert made[0] == made[1]
    assert made[1].expected == pytest.approx(3.5)
    assert engines[1].asked == []


def test_every_one_of_several_answers_has_its_own_expectation():
    places = judge_tokens(s3=0.5, s4=0.5), judge_tokens(s4=0.9, s5=0.1)
    texts = "[[ ## score ## ]]\n3\n\n", "[[ ## score ## ]]\n4\n\n"

    class Two(Scripted):
        supports_n = True

    engine = Two(Completion(texts, ("stop", "stop"), 10, 5, logprobs=places))
    outcomes = asyncio.run(Runner(engine).sample(JUDGE, {"answer": "x"}, KEY, SAMPLING, 2, expect="score"))

    assert [outcome.expected for outcome in outcomes] == [pytest.approx(3.5), pytest.approx(4.1)]


def test_log_probabilities_out_of_form_cost_the_expectation_and_no_run():
    odd = [{"token": "[[ ## score ## ]]\n", "logprob": None}, {"token": "3", "logprob": None, "top_logprobs": []}]

    outcome = expect(Scripted(judged(odd)))

    assert (outcome.fields, outcome.expected) == ({"score": 3}, None)


@pytest.mark.parametrize("keeps", [True, False])
def test_plain_text_cut_off_is_taken_as_it_stands_only_when_asked_for(keeps: bool):
    engine = Scripted(Completion(("as far as I",), ("length",), 10, 5))

    outcome = asyncio.run(
        Runner(engine).call(Prompt.of(Responder()), {"instruction": "hi"}, KEY, SAMPLING, keeps_cut_off=keeps)
    )

    assert outcome.is_ok is keeps
    assert outcome.reason == ("" if keeps else "cut off")
    assert outcome.text == "as far as I"


def test_fields_cut_off_are_never_taken():
    engine = Scripted(Completion((GOOD,), ("length",), 10, 5))

    assert call(Runner(engine), keeps_cut_off=True).reason == "cut off"
