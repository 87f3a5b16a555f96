import asyncio
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
