"""What only a vLLM inside this process shows."""

import asyncio
import subprocess
import sys
from pathlib import Path

import dspy
import pytest

from matrix_dspy.engine.base import TransientError
from matrix_dspy.engine.lm import build_lm
from matrix_dspy.engine.vllm import VllmEngine
from matrix_dspy.errors import ConfigError, EngineError
from tests_vllm.conftest import Asker, ask_for


def open_spec(spec: str) -> None:
    async def work() -> None:
        async with VllmEngine.from_spec(spec):
            pass

    asyncio.run(work())


def count_unfinished(asker: Asker) -> int:
    assert isinstance(asker.engine, VllmEngine)
    return asker.engine.llm.get_num_unfinished_requests()


def test_a_cancelled_call_is_taken_out_of_the_queue(in_process: Asker):
    async def cancel() -> None:
        calls = [
            asyncio.create_task(in_process.engine.complete(ask_for(f"answer {number}", max_tokens=8000)))
            for number in range(80)
        ]
        await asyncio.sleep(0.3)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    in_process.run(cancel())

    assert count_unfinished(in_process) == 0


def test_a_call_over_its_time_is_taken_out_and_may_be_tried_again(in_process: Asker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(in_process.engine, "timeout_s", 0.05)

    with pytest.raises(TransientError, match=r"no answer within 0\.05 s") as caught:
        in_process.run(in_process.engine.attempt(ask_for("a long answer", max_tokens=8000), 0))

    assert caught.value.may_be_request
    assert count_unfinished(in_process) == 0


def test_a_priority_without_the_scheduler_for_it_is_left_out(in_process: Asker):
    assert in_process.ask(priority=5).is_ok


def test_the_likeliest_tokens_come_likeliest_first(in_process: Asker):
    completion = in_process.ask(logprobs=4, temperature=1.5)

    # a served vLLM (0.32) puts the drawn token first and leaves the last of the likeliest out
    assert completion.logprobs is not None
    for place in completion.logprobs[0]:
        found = [each["logprob"] for each in place["top_logprobs"]]
        assert len(found) == 4
        assert found == sorted(found, reverse=True)


def test_a_refusal_says_how_long_the_prompt_is(in_process: Asker):
    completion = in_process.ask("word " * 40_000)

    assert completion.error is not None
    n_said = int(completion.error.split("the prompt has ")[1].split()[0])
    assert n_said > 40_000


def test_a_predictor_runs_on_it_from_plain_code(in_process: Asker):
    async def build() -> dspy.LM:
        return build_lm(in_process.engine, is_open=True, max_tokens=64)

    with dspy.context(lm=in_process.run(build()), adapter=dspy.JSONAdapter()):
        prediction = dspy.Predict("question -> is_true: bool")(question="is it so?")

    assert prediction.is_true in (True, False)


def test_a_folder_without_a_model_is_said_to_be_one(tmp_path: Path):
    with pytest.raises(EngineError, match=r"no model in .*: the folder has no config\.json"):
        open_spec(f"vllm:{tmp_path}")


def test_a_hub_model_that_cannot_be_had_is_one_sentence():
    with pytest.raises(EngineError, match=r"vLLM cannot start 'nobody/no-such-model': .*\S") as caught:
        open_spec("vllm:nobody/no-such-model")

    assert "\n" not in str(caught.value)


def test_an_option_vllm_does_not_have_is_refused_with_the_nearest_one(tiny_model: Path):
    with pytest.raises(ConfigError, match="no engine option 'max_model_length'; did you mean 'max_model_len'"):
        open_spec(f"vllm:{tiny_model}?max_model_length=100")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("max_model_len=999999", "max_model_len"),
        ("max_model_len=many", "valid integer"),
        ("tensor_parallel_size=7", "divisible by tensor parallel size"),
    ],
)
def test_an_option_that_will_not_do_says_why(tiny_model: Path, options: str, reason: str):
    with pytest.raises(EngineError, match=reason):
        open_spec(f"vllm:{tiny_model}?{options}")


def test_a_dead_engine_is_down_and_the_same_command_goes_on(tiny_model: Path):
    command = [sys.executable, "-m", "tests_vllm.killed", str(tiny_model)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    assert done.returncode == 0, done.stderr[-3000:]
    (reason,) = done.stdout.splitlines()
    assert "died" in reason and "the same command goes on" in reason
