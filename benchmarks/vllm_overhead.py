"""Rows per second of the bulk path on vLLM in this process, against a bare loop over the same `AsyncLLM`.

    python benchmarks/vllm_overhead.py --model DIR [--rows 1000] [--in-flight 256] [--repeats 3]

Both answer the same rows with the same sampling and the same engine settings, each time in a fresh process and in
turn; medians of the repeats. The bare loop is given the finished prompts (`--tokens`: even as token ids) and throws the
texts away; ours renders each row, applies the chat template, journals the completion and parses it. `--model random-1b`
makes a Llama of 1B random parameters (bf16, for a GPU), and `python -m tests_vllm.tiny DIR` a tiny one for a CPU.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the tokenizer of tests_vllm

MAX_TOKENS = 32
N_WARM = 16
FILLER = "The counter was busy from early morning and nobody had time to change the sign on the door. "
NAMES = {"bare": "bare AsyncLLM", "ours": "matrix_dspy"}
Work = Callable[[int], Awaitable[None]]


def build_program() -> Any:
    """Return a predictor with two inputs and one plain text."""
    import dspy

    class SumUp(dspy.Signature):
        """Say in one sentence what the customer wants from the shop."""

        shop: str = dspy.InputField(desc="the shop")
        message: str = dspy.InputField(desc="what the customer wrote")
        wish: str = dspy.OutputField(desc="what the customer wants")

    return dspy.Predict(SumUp)


def build_row(number: int) -> dict[str, str]:
    """Return the inputs of one call; all differ."""
    return {"shop": f"Bakery {number}", "message": f"Message {number}. {FILLER * 4}"}


def build_random_model(folder: Path) -> str:
    """Write config and tokenizer of a Llama of 973 million parameters; vLLM draws the weights."""
    import transformers

    from tests_vllm.tiny import build_tokenizer

    tokenizer = build_tokenizer()
    transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=len(tokenizer),
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=16_384,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"{folder}?load_format=dummy&dtype=bfloat16"


def build_bare(engine: Any, options: argparse.Namespace) -> Work:
    """Return what generates the answer to one prepared prompt and drops it."""
    from matrix_dspy.bulk.prompt import Prompt

    vllm: Any = import_module("vllm.sampling_params")
    prompt, tokenizer = Prompt.of(build_program()), engine.llm.renderer.get_tokenizer()
    prompts: dict[int, Any] = {}
    for number in range(-N_WARM, options.rows):
        messages = prompt.messages(build_row(number))
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=False)
        prompts[number] = {"prompt_token_ids": ids} if options.tokens else {"prompt": text}

    async def work(number: int) -> None:
        sampling = vllm.SamplingParams(
            temperature=0.7,
            max_tokens=MAX_TOKENS,
            stop=list(prompt.stop),
            seed=None if options.no_seeds else abs(number),
            output_kind=vllm.RequestOutputKind.FINAL_ONLY,
        )
        async for output in engine.llm.generate(prompts[number], sampling, f"row-{number}"):
            assert output.finished

    return work


def build_ours(engine: Any, folder: Path) -> Work:
    """Return what takes one row through the whole bulk path."""
    from matrix_dspy.bulk.journal import CallKey, Journal
    from matrix_dspy.bulk.prompt import Prompt
    from matrix_dspy.bulk.runner import Runner
    from matrix_dspy.config import SamplingConfig

    prompt, sampling = Prompt.of(build_program()), SamplingConfig(max_tokens=MAX_TOKENS)
    runner = Runner(engine, Journal(folder / "journal"))

    async def work(number: int) -> None:
        outcome = await runner.call(
            prompt, build_row(number), CallKey("bench", f"row-{number}", "call"), sampling, n_again=0
        )
        assert outcome.reason != "refused by server", outcome.detail

    return work


async def run_path(path: str, options: argparse.Namespace) -> dict[str, float]:
    """Time all rows on one path, after a few that warm the engine up."""
    from matrix_dspy.bulk.program import for_each
    from matrix_dspy.engine.vllm import VllmEngine

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = build_random_model(folder / "model") if options.model == "random-1b" else options.model
        joined = "&" if "?" in model else "?"
        spec = f"vllm:{model}{joined}max_num_seqs={options.in_flight}"
        limits = {"concurrency": options.in_flight, "timeout_s": 600.0, "send_seeds": not options.no_seeds}
        async with VllmEngine.from_spec(spec, data_parallel=options.data_parallel, **limits) as engine:
            work = build_bare(engine, options) if path == "bare" else build_ours(engine, folder)
            await asyncio.gather(*(work(-number) for number in range(1, N_WARM + 1)))
            began, began_cpu = time.perf_counter(), time.process_time()
            await for_each(options.rows, options.in_flight, work)
            seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    return {"rows_s": options.rows / seconds, "cpu_ms": 1000 * cpu / options.rows}


def measure(path: str) -> dict[str, float]:
    """Run one path in a fresh process."""
    environment = {"VLLM_HOST_IP": "127.0.0.1", "HF_HUB_OFFLINE": "1", "DSPY_CACHEDIR": "/tmp"} | os.environ
    command = [sys.executable, *sys.argv, "--child", path]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data-parallel", type=int, default=1)
    parser.add_argument("--tokens", action="store_true")
    parser.add_argument("--no-seeds", action="store_true")
    parser.add_argument("--child", choices=NAMES)
    return parser.parse_args()


def main() -> None:
    """Measure both paths in turn, several times, and print the table."""
    options = read_options()
    if options.child:
        print(json.dumps(asyncio.run(run_path(options.child, options))))
        return
    rounds = [{path: measure(path) for path in NAMES} for _ in range(options.repeats)]
    given = "token ids" if options.tokens else "texts"
    print(
        f"{options.rows} rows, {options.in_flight} in flight, {MAX_TOKENS} tokens, medians of {options.repeats}; ",
        end="",
    )
    print(f"bare is given {given}, {'no seeds' if options.no_seeds else 'a seed a row'}\n")
    print(f"{'path':16} {'rows/s':>9} {'x bare':>7} {'CPU ms/row':>11}   all rows/s")
    medians = {
        path: {key: statistics.median(one[path][key] for one in rounds) for key in ("rows_s", "cpu_ms")}
        for path in NAMES
    }
    for path, found in medians.items():
        every = ", ".join(f"{one[path]['rows_s']:.0f}" for one in rounds)
        ratio = found["rows_s"] / medians["bare"]["rows_s"]
        print(f"{NAMES[path]:16} {found['rows_s']:9.1f} {ratio:7.3f} {found['cpu_ms']:11.2f}   {every}")


if __name__ == "__main__":
    main()
