"""Answer prompts on an engine in a process of its own, since a process can hold one vLLM only.

    python -m tests_vllm.asked SPEC < prompts.json

The prompts are a JSON list of texts; what comes out is the list of their greedy answers with log-probabilities, as JSON
on the last line.
"""

import asyncio
import json
import sys
from typing import Any

from matrix_dspy.engine.spec import build_engine
from tests_vllm.conftest import ask_for


async def answer_all(spec: str, prompts: list[str]) -> list[dict[str, Any]]:
    """Return for each prompt the text, its finish reason, the counts of tokens and the log-probabilities."""
    async with build_engine(spec, concurrency=64, timeout_s=240.0) as engine:
        requests = [ask_for(prompt, temperature=0.0, max_tokens=24, logprobs=2) for prompt in prompts]
        completions = await asyncio.gather(*map(engine.complete, requests))
    assert all(completion.is_ok for completion in completions), completions
    return [
        {
            "text": completion.texts[0],
            "reason": completion.finish_reasons[0],
            "tokens": (completion.prompt_tokens, completion.completion_tokens),
            "places": (completion.logprobs or ([],))[0],
        }
        for completion in completions
    ]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(answer_all(sys.argv[1], json.load(sys.stdin)))))  # noqa: T201
