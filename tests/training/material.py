"""Small data sets and settings that a tiny model learns from in a second."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matrix_dspy.training.settings import TrainingConfig, load_training

UNMARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The tiny model's own template without its marks."""
FAST: dict[str, Any] = {
    "sft.learning_rate": 3e-3,
    "dpo.learning_rate": 1e-3,
    "batch": 4,
    "accumulation": 1,
    "max_length": 256,
    "eval_share": 0.1,
    "n_samples": 2,
    "sample_tokens": 4,
    "gradient_checkpointing": False,
}


def fast(preset: str = "paper", /, **changes: Any) -> TrainingConfig:
    """Return a preset that is through in a second; a double underscore stands for the point in `section.key`."""
    return load_training(preset, FAST | {key.replace("__", "."): value for key, value in changes.items()})


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def build_conversations(n: int) -> list[dict[str, Any]]:
    """Return conversations of two questions and two answers."""
    return [
        {
            "id": f"row-{number}",
            "messages": [
                turn("user", f"Which colour has item {number}?"),
                turn("assistant", f"Item {number} is blue."),
                turn("user", "Are you sure?"),
                turn("assistant", "Yes, it is on the list."),
            ],
        }
        for number in range(n)
    ]


def build_pairs(n: int) -> list[dict[str, Any]]:
    """Return pairs whose chosen side says more than the rejected one."""
    return [
        {
            "id": f"pair-{number}",
            "prompt": [turn("user", f"Which colour has item {number}?")],
            "chosen": [turn("assistant", f"Item {number} is blue, it is on the list.")],
            "rejected": [turn("assistant", f"I do not know, ask somebody about {number}.")],
        }
        for number in range(n)
    ]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_metrics(out: Path, *, is_eval: bool = False) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl`, of training or of evaluation, without what the clock says."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if ("eval_loss" in line) == is_eval]
    return [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in kept]


def read_left_out(out: Path) -> dict[str, str]:
    """Return why each row was left out, by id."""
    lines = map(json.loads, (out / "left_out.jsonl").read_text().splitlines())
    return {line["id"]: line["reason"] for line in lines}
