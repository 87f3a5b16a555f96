"""What only a served vLLM shows: what the endpoint engine finds out about it, and DSPy on top."""

import asyncio
import urllib.request
from typing import Any, Literal

import dspy
import pytest

from matrix_dspy.engine.endpoint import EndpointEngine
from matrix_dspy.engine.lm import build_lm
from matrix_dspy.engine.vllm import parse_prefix_cache
from tests_vllm.conftest import Asker


class JudgeAnswer(dspy.Signature):
    """Judge an answer."""

    answer: str = dspy.InputField()
    label: Literal["good", "bad"] = dspy.OutputField()
    score: Literal[1, 2, 3] = dspy.OutputField()


def test_the_server_is_known_to_hold_schemas(served: Asker):
    assert served.engine.supports_response_schema
    assert served.engine.supports_n


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 5, "top_k": 50, "top_p": 0.9, "min_p": 0.001, "repetition_penalty": 1.1},
        {"temperature": 1.0, "seed": 5, "chat_template_kwargs": {"mood": "calm"}},
        {"temperature": 1.0, "seed": 5, "n": 3, "stop": ("e", "a")},
    ],
)
def test_a_server_and_this_process_give_the_same_answers(served: Asker, in_process: Asker, sampling: dict[str, Any]):
    one, other = (asker.ask("who are you?", **sampling) for asker in (served, in_process))

    assert one.prompt_tokens == other.prompt_tokens
    assert (one.texts, one.finish_reasons) == (other.texts, other.finish_reasons)
    assert one.completion_tokens == other.completion_tokens


def test_the_pages_counters_are_read(served: Asker, server_url: str):
    served.ask("hello " * 100)
    with urllib.request.urlopen(server_url.removesuffix("/v1") + "/metrics") as reply:
        counts = parse_prefix_cache(reply.read().decode())

    assert counts is not None and counts[1] > 100


def build_served_lm(served: Asker) -> dspy.LM:
    """Return an LM on the engine that is open already."""

    async def build() -> dspy.LM:
        return build_lm(served.engine, is_open=True, max_tokens=100, temperature=1.0)

    return served.run(build())


def test_a_predictor_with_a_schema_runs_on_it(served: Asker):
    with dspy.context(lm=build_served_lm(served), adapter=dspy.JSONAdapter()):
        predictions = [dspy.Predict(JudgeAnswer)(answer=f"answer {number}") for number in range(4)]

    assert all(prediction.label in ("good", "bad") and prediction.score in (1, 2, 3) for prediction in predictions)


def test_many_acalls_run_on_it_at_once(served: Asker):
    lm, judge = build_served_lm(served), dspy.Predict(JudgeAnswer)

    async def ask_all() -> list[dspy.Prediction]:
        with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
            return await asyncio.gather(*(judge.acall(answer=f"answer {number}") for number in range(32)))

    assert {prediction.label for prediction in asyncio.run(ask_all())} <= {"good", "bad"}


def test_an_lm_opens_its_own_engine(server_url: str):
    lm = build_lm(EndpointEngine(server_url), max_tokens=8)

    assert len(lm("say something")) == 1
