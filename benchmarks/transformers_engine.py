"""Answered tokens per second of the transformers engine, against `generate` on padded batches of the same size.

    python benchmarks/transformers_engine.py [--model DIR] [--rows 96] [--batch 32] [--repeats 3] [--threads 1]

Both answer the same chats, whose answers are of 8 to 160 tokens, in turn and in one process; medians of the repeats.
`generate` gets them in their order, a batch at a time, and goes on until the longest answer of the batch is done. The
engine is asked for all at once, rows joining as others leave. Unset, the model is a Llama of 2.9M random parameters.
Tokens per CPU second are what to look at on a machine that others use too.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LENGTHS = (8, 16, 16, 32, 32, 64, 160)
WORDS = ("a", "river", "of", "small", "words", "runs", "past", "the", "old", "house")
Chat = tuple[list[dict[str, str]], int]


def build_chats(n_rows: int) -> list[Chat]:
    """Return messages and how many tokens are wanted for them."""
    draws = random.Random(0)
    texts = [" ".join(draws.choices(WORDS, k=draws.randrange(5, 60))) for _ in range(n_rows)]
    return [([{"role": "user", "content": text}], draws.choice(LENGTHS)) for text in texts]


def run_engine(folder: str, chats: list[Chat], batch: int) -> float:
    """Answer all chats with the engine and return the CPU seconds it took once the model was loaded."""
    from matrix_dspy.engine.base import Request, Sampling
    from matrix_dspy.engine.spec import build_engine

    async def work() -> float:
        async with build_engine(f"transformers:{folder}?batch={batch}", concurrency=len(chats)) as engine:
            started = time.process_time()
            requests = [
                Request(messages, Sampling(temperature=1.0, max_tokens=n_tokens, seed=number))
                for number, (messages, n_tokens) in enumerate(chats)
            ]
            completions = await asyncio.gather(*map(engine.complete, requests))
            assert all(completion.is_ok for completion in completions)
            return time.process_time() - started

    return asyncio.run(work())


def run_generate(folder: str, chats: list[Chat], batch: int) -> float:
    """Answer all chats with `generate`, a batch at a time."""
    from matrix_dspy.engine.transformers import load_model, load_tokenizer

    model, tokenizer = load_model(Path(folder)), load_tokenizer(Path(folder))
    tokenizer.padding_side = "left"
    started = time.process_time()
    for start in range(0, len(chats), batch):
        part = chats[start : start + batch]
        given = tokenizer.apply_chat_template(
            [messages for messages, _ in part],
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        )
        said = model.generate(
            **given,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            max_new_tokens=max(n_tokens for _, n_tokens in part),
        )
        tokenizer.batch_decode(said, skip_special_tokens=True)
    return time.process_time() - started


def main() -> None:
    """Measure both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    from importlib import import_module

    from matrix_dspy.training.tiny import build_tiny_model

    torch: Any = import_module("torch")
    torch.set_num_threads(asked.threads)
    chats = build_chats(asked.rows)
    n_tokens = sum(length for _, length in chats)
    ways: dict[str, Callable[[str, list[Chat], int], float]] = {"generate": run_generate, "engine": run_engine}
    with tempfile.TemporaryDirectory() as folder:
        model = asked.model or str(build_tiny_model(Path(folder) / "model", n_layers=4, hidden=256, heads=8))
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(asked.repeats):
            for name, run in ways.items():
                rates[name].append(n_tokens / run(model, chats, asked.batch))
    found = {name: statistics.median(each) for name, each in rates.items()}
    for name, rate in found.items():
        print(f"{name:<10}{rate:>10,.0f} tokens per CPU second")
    print(f"{'ratio':<10}{found['engine'] / found['generate']:>10.2f}")


if __name__ == "__main__":
    main()
