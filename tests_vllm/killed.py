"""Open a model, kill vLLM's workers under a running call, and print what the next calls say.

python -m tests_vllm.killed DIR
"""

import asyncio
import multiprocessing
import sys

from matrix_dspy.engine.vllm import VllmEngine
from tests_vllm.conftest import ask_for


async def main(model: str) -> None:
    """Print the reason of the call that was running, and of one after it."""
    async with VllmEngine(model) as engine:
        assert (await engine.complete(ask_for("hello"))).is_ok
        running = [engine.complete(ask_for(f"answer {number}", max_tokens=8000)) for number in range(8)]
        calls = asyncio.gather(*running)
        await asyncio.sleep(0.5)
        for worker in multiprocessing.active_children():
            worker.kill()
        reasons = {completion.down for completion in await calls if not completion.is_ok}
        reasons.add((await engine.complete(ask_for("hello again"))).down)
        print(*reasons, sep="\n")  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
