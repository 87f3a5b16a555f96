"""What a pipeline needs of vLLM, in this process (`-k in_process`) and served (`-k served`) alike."""

import asyncio
import json
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from matrix_dspy.engine.base import Request, Sampling
from tests_vllm.conftest import Asker, ask_for
from tests_vllm.tiny import CONTEXT


class Reason(BaseModel):
    """Why a verdict fell."""

    kind: Literal["fact", "tone", "length"]
    weight: int = Field(ge=1, le=5)


class Verdict(BaseModel):
    """An answer with all the bounds that DSPy itself does not enforce."""

    label: Literal["good", "bad"]
    score: int = Field(ge=1, le=10)
    is_sure: bool
    reason: Reason
    others: list[Reason] = Field(min_length=1, max_length=3)


def test_a_completion_has_a_text_and_its_counts(asker: Asker):
    completion = asker.ask(max_tokens=8)

    assert completion.is_ok and completion.texts[0]
    assert completion.finish_reasons in [("length",), ("stop",)]
    assert completion.prompt_tokens > 3
    assert 1 <= completion.completion_tokens <= 8
    assert completion.seconds > 0


def test_the_model_has_its_folders_name(asker: Asker):
    assert asker.engine.model == "tiny"


def test_n_samples_are_n_texts(asker: Asker):
    completion = asker.ask(n=3, max_tokens=8, temperature=1.0)

    assert len(set(completion.texts)) == 3
    assert len(completion.finish_reasons) == 3
    assert 3 <= completion.completion_tokens <= 24


def test_a_seed_repeats_an_answer(asker: Asker):
    first, again, other = (asker.ask(seed=seed, temperature=1.0).texts for seed in (7, 7, 8))

    assert first == again
    assert first != other


def test_seeds_repeat_in_a_crowd(asker: Asker):
    requests = [ask_for("one of many", seed=seed, temperature=1.0) for seed in range(40)]

    texts = [completion.texts for completion in asker.ask_all(requests)]

    assert len(set(texts)) == 40
    assert [completion.texts for completion in asker.ask_all(requests)] == texts


def test_an_engine_can_keep_seeds_to_itself(asker: Asker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(asker.engine, "send_seeds", False)

    texts = {asker.ask(seed=7, temperature=1.0).texts for _ in range(3)}

    assert len(texts) == 3


def test_logprobs_come_for_every_token_of_every_text(asker: Asker):
    completion = asker.ask(n=2, logprobs=3, max_tokens=6, temperature=1.0, seed=1)

    assert completion.logprobs is not None and len(completion.logprobs) == 2
    places = [place for tokens in completion.logprobs for place in tokens]
    assert len(places) == completion.completion_tokens
    for place in places:
        assert isinstance(place["token"], str) and place["logprob"] <= 0
        assert len(place["top_logprobs"]) == 3
        assert place["logprob"] <= max(each["logprob"] for each in place["top_logprobs"])


def test_no_logprobs_unless_asked_for(asker: Asker):
    assert asker.ask().logprobs is None


def test_a_schema_holds_the_model_in_all_of_32_tries(asker: Asker):
    sampling = {"response_schema": Verdict.model_json_schema(), "max_tokens": 400, "temperature": 1.0}

    completions = asker.ask_all([ask_for(f"judge answer {number}", seed=number, **sampling) for number in range(32)])

    verdicts = [Verdict.model_validate_json(completion.texts[0]) for completion in completions]
    assert {verdict.label for verdict in verdicts} == {"good", "bad"}
    assert {completion.finish_reasons for completion in completions} == {("stop",)}


def test_a_bounded_string_keeps_its_bound(asker: Asker):
    schema = {"type": "object", "properties": {"note": {"type": "string", "maxLength": 12}}, "required": ["note"]}
    schema |= {"additionalProperties": False}

    completions = asker.ask_all([ask_for(f"note {n}", seed=n, response_schema=schema) for n in range(32)])

    for completion in completions:
        # xgrammar 0.2 lets raw control characters into bounded strings, which strict JSON does not know
        assert len(json.loads(completion.texts[0], strict=False)["note"]) <= 12


def test_a_schema_holds_each_of_n_samples(asker: Asker):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}

    completion = asker.ask(n=4, response_schema=schema | {"additionalProperties": False}, max_tokens=40)

    assert all(json.loads(text)["ok"] in (True, False) for text in completion.texts)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "#/nowhere"},
        {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 3}}},
    ],
)
def test_a_schema_that_cannot_be_held_is_refused(asker: Asker, schema: dict[str, object]):
    completion = asker.ask(response_schema=schema)

    assert completion.error is not None and "schema" in completion.error
    assert asker.ask().is_ok


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(asker: Asker):
    completion = asker.ask("word " * (2 * CONTEXT))

    assert completion.error is not None and str(CONTEXT) in completion.error
    assert asker.ask().is_ok


def test_a_long_limit_is_cut_to_what_the_context_leaves(asker: Asker):
    completion = asker.ask("word " * (CONTEXT // 2 - 100), max_tokens=CONTEXT, stop=("e",))

    assert completion.is_ok, completion.error
    assert completion.prompt_tokens + completion.completion_tokens <= CONTEXT


def test_a_stop_string_ends_the_text_and_is_not_in_it(asker: Asker):
    whole = asker.ask(seed=3, max_tokens=30).texts[0]
    stop = whole[8:11]

    completion = asker.ask(seed=3, max_tokens=30, stop=(stop,))

    assert completion.texts == (whole[: whole.index(stop)],)
    assert completion.finish_reasons == ("stop",)


def test_the_limit_on_tokens_is_a_finish_reason(asker: Asker):
    completion = asker.ask(max_tokens=1)

    assert (completion.completion_tokens, completion.finish_reasons) == (1, ("length",))


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}, {"temperature": 0.0}])
def test_narrow_sampling_leaves_one_answer(asker: Asker, narrow: dict[str, Any]):
    greedy = asker.ask(temperature=0.0).texts
    sampling: dict[str, Any] = {"temperature": 1.5} | narrow

    assert {asker.ask(**sampling).texts for _ in range(4)} == {greedy}


def test_a_repetition_penalty_keeps_words_from_coming_back(asker: Asker):
    text = "again " * 30
    free, held = (asker.ask(text, repetition_penalty=penalty, top_k=1, logprobs=1) for penalty in (None, 50.0))

    assert held.texts != free.texts
    assert held.logprobs is not None
    tokens = [place["token"] for place in held.logprobs[0]]
    assert len(set(tokens)) == len(tokens)


def test_switches_reach_the_chat_template(asker: Asker):
    plain, moody = (asker.ask(chat_template_kwargs=switches) for switches in (None, {"mood": "cheerful today"}))

    assert moody.prompt_tokens > plain.prompt_tokens + 3


def test_a_whole_conversation_is_rendered(asker: Asker):
    turns = [("system", "be brief"), ("user", "one"), ("assistant", "two"), ("user", "three")]
    messages = [{"role": role, "content": words} for role, words in turns]

    longer, shorter = asker.ask_all([Request(some, Sampling(max_tokens=2)) for some in (messages, messages[:2])])

    assert longer.prompt_tokens > shorter.prompt_tokens > 4


def test_bad_sampling_is_refused_and_names_the_parameter(asker: Asker):
    completion = asker.ask(top_p=3.0)

    assert completion.error is not None and "top_p" in completion.error


def test_a_shared_beginning_is_found_in_the_prefix_cache(asker: Asker):
    beginning = "the same long beginning of every prompt " * 30
    asker.ask(beginning)
    before = asker.read_prefix_cache()

    completions = asker.ask_all([ask_for(f"{beginning} and end {number}") for number in range(20)])

    hits, queries = asker.read_prefix_cache()
    n_prompt = sum(completion.prompt_tokens for completion in completions)
    n_cached = sum(completion.cached_tokens for completion in completions)
    assert n_cached > 0.7 * n_prompt
    assert (hits - before[0], queries - before[1]) == (n_cached, n_prompt)


def test_a_cancelled_call_does_not_disturb_the_next(asker: Asker):
    async def cancel() -> None:
        call = asyncio.create_task(asker.engine.complete(ask_for("a long answer", max_tokens=8000)))
        await asyncio.sleep(0.2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asker.run(cancel())

    assert asker.ask().is_ok


def test_two_hundred_calls_at_once(asker: Asker):
    completions = asker.ask_all([ask_for(f"call {number}", seed=number) for number in range(200)])

    assert all(completion.is_ok for completion in completions)
    assert asker.engine.limit.peak == 200
    assert len({completion.texts for completion in completions}) > 190
