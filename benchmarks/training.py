"""Tokens per second of `train` against a bare TRL script, and on a GPU against the card's own matmul ceiling.

    python benchmarks/training.py [--repeats 3] [--steps 30] [--threads 1]
    python benchmarks/training.py --gpu [--steps 20] [--batch 1] [--attention auto]

On a CPU: SFT of a Llama of 3 million parameters on 480 made conversations of some 130 tokens. The bare script gives TRL
the same rows, settings and number of checkpoints; both run in fresh processes and in turn, and the time is that of
`Trainer.train`, whose tokens are the same. Medians of the repeats, by the clock and by CPU seconds, which other work on
the machine disturbs less; one thread, since more of them wait for each other on a busy machine.

On a GPU: first the best of three bf16 products of 8,192 x 8,192 matrices; then SFT of a Llama of 1.1 billion random
parameters on packed sequences of 4,096 tokens, then DPO of it on pairs. MFU counts 6 floating-point operations for each
parameter and token (DPO: 8, since the reference reads every token too) and none for attention, so it is a lower bound.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH, ACCUMULATION, LENGTH = 4, 2, 512
LEARNING_RATE = 1e-3
N_ROWS = 480
MATMUL_SIDE = 8_192
GPU_LENGTH = 4_096
OPERATIONS = {"sft": 6, "dpo": 8}
"""Floating-point operations for each parameter and token."""


def build_small_model(folder: Path) -> None:
    """Write a Llama of 3 million random parameters with a tokenizer of 1,024 tokens."""
    from matrix_dspy.training.tiny import build_tiny_model

    build_tiny_model(folder, n_layers=5, hidden=256, heads=8)


def build_large_model(folder: Path) -> None:
    """Write a Llama of 1.1 billion random parameters in bf16, with the same tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from matrix_dspy.training.tiny import build_tiny_tokenizer

    tokenizer = build_tiny_tokenizer(context=GPU_LENGTH)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2_048,
        intermediate_size=5_632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=GPU_LENGTH,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def draw_words(generator: random.Random, n: int) -> str:
    """Return `n` words of a small made vocabulary."""
    return " ".join(
        f"{generator.choice('bdfklmnprst')}{generator.choice('aeiou')}{generator.randrange(40)}" for _ in range(n)
    )


def write_conversations(path: Path, n: int, words: tuple[int, int]) -> None:
    """Write conversations whose answers have between two numbers of words."""
    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(n):
            said = [
                {"role": "user", "content": draw_words(generator, 10)},
                {"role": "assistant", "content": draw_words(generator, generator.randint(*words))},
            ]
            file.write(json.dumps({"id": f"row-{number}", "messages": said}) + "\n")


def write_pairs(path: Path, n: int, words: tuple[int, int]) -> None:
    """Write pairs whose sides have between two numbers of words."""
    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(n):
            sides = {
                side: [{"role": "assistant", "content": draw_words(generator, generator.randint(*words))}]
                for side in ("chosen", "rejected")
            }
            asked = [{"role": "user", "content": draw_words(generator, 10)}]
            file.write(json.dumps({"id": f"pair-{number}", "prompt": asked, **sides}) + "\n")


def count_saves(n_steps: int) -> int:
    """Return the steps between two checkpoints, ten to a run."""
    return max(1, -(-n_steps // 10))


def run_bare(model: Path, rows: Path, out: Path, n_steps: int) -> dict[str, float]:
    """Train with TRL and nothing else."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    arguments = SFTConfig(
        output_dir=str(out),
        max_steps=n_steps,
        max_length=LENGTH,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        assistant_only_loss=True,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        save_steps=count_saves(n_steps),
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    trainer = SFTTrainer(
        model=str(model),
        args=arguments,
        train_dataset=Dataset.from_list([{"messages": line["messages"]} for line in lines]),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    started, used = time.perf_counter(), time.process_time()
    trainer.train()
    seconds, used = time.perf_counter() - started, time.process_time() - used
    n_tokens = next(line["num_tokens"] for line in reversed(trainer.state.log_history) if "num_tokens" in line)
    return {"tokens": n_tokens, "seconds": seconds, "cpu": used}


def run_ours(model: Path, rows: Path, out: Path, n_steps: int) -> dict[str, float]:
    """Train with `train` as the command does, figures, checks and checkpoints included."""
    from transformers import Trainer

    from matrix_dspy.training.settings import load_training
    from matrix_dspy.training.tuning import train

    spent: list[tuple[float, float]] = []
    whole = Trainer.train

    def timed(self: Any, *arguments: Any, **named: Any) -> Any:
        started, used = time.perf_counter(), time.process_time()
        try:
            return whole(self, *arguments, **named)
        finally:
            spent.append((time.perf_counter() - started, time.process_time() - used))

    Trainer.train = timed  # type: ignore[method-assign]
    changes = {
        "max_steps": n_steps,
        "max_length": LENGTH,
        "batch": BATCH,
        "accumulation": ACCUMULATION,
        "sft.learning_rate": LEARNING_RATE,
        "gradient_checkpointing": False,
        "eval_share": 0,
    }
    done = train(load_training("paper", changes), rows, str(model), out, stage="sft", say=lambda _: None)
    return {"tokens": done.result["tokens"], "seconds": spent[0][0], "cpu": spent[0][1]}


def measure_ceiling() -> float:
    """Return the operations a second of the best of three rounds of bf16 matrix products."""
    import torch

    one = torch.randn(MATMUL_SIDE, MATMUL_SIDE, device="cuda", dtype=torch.bfloat16)
    other = torch.randn_like(one)
    best = 0.0
    for _ in range(4):  # the first warms up
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(20):
            torch.mm(one, other)
        torch.cuda.synchronize()
        best = max(best, 20 * 2 * MATMUL_SIDE**3 / (time.perf_counter() - started))
    return best


def run_gpu(place: Path, stage: str, n_steps: int, batch: int, attention: str) -> dict[str, Any]:
    """Train the large model, and return what `trained.json` says."""
    import torch

    from matrix_dspy.training.settings import load_training
    from matrix_dspy.training.tuning import train

    changes = {
        "max_steps": n_steps,
        "max_length": GPU_LENGTH,
        "batch": batch,
        "accumulation": 4,
        "sft.packing": True,
        "gradient_checkpointing": False,
        "eval_share": 0,
        "save_steps": 10 * n_steps,
        "attention": attention,
    }
    rows = place / f"{stage}.jsonl"
    out = place / f"out-{stage}"
    done = train(load_training("paper", changes), rows, str(place / "large"), out, stage=stage, say=lambda _: None)  # type: ignore[arg-type]
    return {**done.result, "memory": torch.cuda.max_memory_allocated() / 2**30}


def call(*arguments: str, n_threads: int = 0) -> dict[str, Any]:
    """Run this file in a fresh process and return what it prints last."""
    threads = {"OMP_NUM_THREADS": str(n_threads)} if n_threads else {}
    environment = {**os.environ, **threads, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def compare_on_cpu(place: Path, repeats: int, n_steps: int, n_threads: int) -> None:
    """Run both in turn and print their tokens a second."""
    build_small_model(place / "small")
    write_conversations(place / "sft.jsonl", N_ROWS, (15, 45))
    speeds: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "cpu": []} for name in ("bare", "ours")}
    tokens = set()
    for number in range(repeats):
        # each goes first every other time
        for name in sorted(speeds, reverse=bool(number % 2)):
            told = [name, str(place / "small"), str(place / "sft.jsonl"), str(place / f"{name}-{number}"), str(n_steps)]
            found = call("--part", *told, n_threads=n_threads)
            tokens.add(int(found["tokens"]))
            for clock, rates in speeds[name].items():
                rates.append(found["tokens"] / found[clock])
            print(f"{name}: {found['tokens'] / found['seconds']:,.0f} tokens/s, {found['cpu']:.2f} CPU s", flush=True)
    print(f"tokens of a run: {sorted(tokens)}")
    for clock, words in (("seconds", "tokens/s"), ("cpu", "tokens a CPU second")):
        bare, ours = (statistics.median(speeds[name][clock]) for name in ("bare", "ours"))
        print(f"{words}: bare TRL {bare:,.0f}, matrix_dspy {ours:,.0f}, ratio {ours / bare:.3f}")


def measure_on_gpu(place: Path, n_steps: int, batch: int, attention: str) -> None:
    """Measure ceiling, SFT and DPO, each in a process of its own."""
    ceiling = call("--part", "ceiling")["operations"]
    print(f"bf16 matmul ceiling: {ceiling / 1e12:,.0f} TFLOP/s", flush=True)
    call("--part", "large", str(place / "large"))
    n_rows = 4 * n_steps * batch * 8
    write_conversations(place / "sft.jsonl", n_rows * 4, (150, 450))
    write_pairs(place / "dpo.jsonl", n_rows, (300, 800))
    for stage in ("sft", "dpo"):
        told = call("--part", "gpu", str(place), stage, str(n_steps), str(batch), attention)
        rate = told["tokens_per_s"]
        share = OPERATIONS[stage] * told["n_parameters"] * rate / ceiling
        print(
            f"{stage}: {rate:,.0f} tokens/s, {told['n_parameters'] / 1e9:.2f}B parameters, attention "
            f"{told['attention']}, {told['memory']:.1f} GiB, MFU {share:.1%} of the ceiling",
            flush=True,
        )


def run_part(name: str, *told: str) -> dict[str, Any]:
    """Do one measurement in this process."""
    if name == "ceiling":
        return {"operations": measure_ceiling()}
    if name == "large":
        build_large_model(Path(told[0]))
        return {}
    if name == "gpu":
        return run_gpu(Path(told[0]), told[1], int(told[2]), int(told[3]), told[4])
    run = run_bare if name == "bare" else run_ours
    return run(Path(told[0]), Path(told[1]), Path(told[2]), int(told[3]))


def main() -> None:
    """Read the flags and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.part:
        print(json.dumps(run_part(*told.part)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if told.gpu:
            measure_on_gpu(Path(folder), told.steps or 20, told.batch, told.attention)
        else:
            compare_on_cpu(Path(folder), told.repeats, told.steps or 30, told.threads)


if __name__ == "__main__":
    main()
