"""A model that was trained here answers: in vLLM in process, in a served vLLM, and in transformers, all alike."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from matrix_dspy.engine.base import Completion, Request
from matrix_dspy.engine.serving import find_spec
from matrix_dspy.engine.spec import build_engine
from matrix_dspy.training.tiny import build_tiny_model
from tests_vllm.asked import answer_all
from tests_vllm.conftest import Asker, ask_for, build_command, find_port, serving_environment, wait_until_ready

N_PROMPTS = 24
ANSWER = "the kettle sings at noon and the cat agrees"

Answers = list[dict[str, Any]]


def write_prompt(number: int) -> str:
    return f"what is said at number {number} of the {('old', 'long', 'wet')[number % 3]} street?"


PROMPTS = [write_prompt(number) for number in range(N_PROMPTS)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model after enough steps to have learnt one answer by heart."""
    pytest.importorskip("trl", reason="training needs the extra train; pip install 'matrix-dspy[train]'")
    from matrix_dspy.training.settings import load_training
    from matrix_dspy.training.tuning import train

    folder = tmp_path_factory.mktemp("training")
    rows = [
        {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": ANSWER}]}
        for prompt in PROMPTS
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = build_tiny_model(folder / "base")
    changes = {
        "epochs": 20,
        "max_steps": 60,
        "batch": 8,
        "accumulation": 1,
        "sft.learning_rate": 1e-2,
        "max_length": 256,
        "eval_share": 0.0,
        "n_samples": 0,
        "gradient_checkpointing": False,
    }
    train(
        load_training("paper", changes),
        folder / "rows.jsonl",
        str(base),
        folder / "tuned",
        stage="sft",
        say=lambda line: None,
    )
    return folder / "tuned"


@pytest.fixture(scope="module")
def in_process_answers(trained: Path) -> Answers:
    """What vLLM says in a process of its own."""
    return ask_apart(find_spec(trained))


@pytest.fixture(scope="module")
def served_url(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log, port = tmp_path_factory.mktemp("served") / "log", find_port()
    with log.open("wb") as lines:
        server = subprocess.Popen(build_command(trained, port), stdout=lines, stderr=lines, env=serving_environment())
    try:
        wait_until_ready(server, port, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def ask_apart(spec: str) -> Answers:
    """Ask an engine in another process."""
    command = [sys.executable, "-m", "tests_vllm.asked", spec]
    done = subprocess.run(
        command, input=json.dumps(PROMPTS), capture_output=True, text=True, timeout=300, env=serving_environment()
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def read_texts(answers: Answers) -> list[str]:
    return [answer["text"] for answer in answers]


def test_a_trained_folder_goes_to_vllm_and_says_what_it_learnt(trained: Path, in_process_answers: Answers):
    assert find_spec(trained) == f"vllm:{trained}"
    assert {answer["reason"] for answer in in_process_answers} == {"stop"}
    assert read_texts(in_process_answers).count(ANSWER) > 0.9 * N_PROMPTS


def test_the_served_folder_says_the_same(served_url: str, in_process_answers: Answers):
    served = asyncio.run(answer_all(served_url, PROMPTS))

    assert read_texts(served) == read_texts(in_process_answers)


def test_transformers_says_the_same_as_vllm(trained: Path, in_process_answers: Answers):
    ours = asyncio.run(answer_all(find_spec(trained, "transformers"), PROMPTS))

    pairs = list(zip(ours, in_process_answers, strict=True))
    assert sum(one["text"] == other["text"] for one, other in pairs) >= 0.9 * N_PROMPTS
    for one, other in pairs:
        assert one["tokens"][0] == other["tokens"][0]
        if one["text"] == other["text"]:
            assert (one["reason"], one["tokens"][1]) == (other["reason"], other["tokens"][1])
            for place, their_place in zip(one["places"], other["places"], strict=True):
                assert place["token"] == their_place["token"]
                assert place["logprob"] == pytest.approx(their_place["logprob"], abs=2e-3)


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 0.0}, {"top_k": 1, "repetition_penalty": 1.2}, {"temperature": 0.0, "stop": ("e", "t")}],
)
def test_vllm_and_transformers_answer_alike(tiny_model: Path, in_process: Asker, sampling: dict[str, Any]):
    requests = [ask_for(prompt, max_tokens=16, logprobs=3, **sampling) for prompt in PROMPTS[:6]]

    theirs, ours = in_process.ask_all(requests), asyncio.run(complete_all(f"transformers:{tiny_model}", requests))

    for one, other in zip(ours, theirs, strict=True):
        assert (one.texts, one.finish_reasons) == (other.texts, other.finish_reasons)
        assert (one.prompt_tokens, one.completion_tokens) == (other.prompt_tokens, other.completion_tokens)
        assert one.logprobs is not None and other.logprobs is not None
        for place, their_place in zip(one.logprobs[0], other.logprobs[0], strict=True):
            found, wanted = ([each["logprob"] for each in both["top_logprobs"]] for both in (place, their_place))
            assert place["logprob"] == pytest.approx(their_place["logprob"], abs=2e-3)
            assert found == pytest.approx(wanted, abs=2e-3)


async def complete_all(spec: str, requests: list[Request]) -> list[Completion]:
    async with build_engine(spec, concurrency=64) as engine:
        return await asyncio.gather(*map(engine.complete, requests))
