"""What the benchmarks ask: two programs with typed outputs, and rows that all differ.

`short` has inputs of about 700 characters and two outputs. `long` makes prompts of about 14 kB, with three demos, four
inputs and four outputs. The stub's answers of the same names fit them.
"""

from typing import Any

import dspy

FILLER = "The counter was busy from early morning and nobody had time to change the sign on the door. "
LONG_ANSWER = {"topic": "opening hours", "urgency": 2, "is_complaint": False, "next_steps": ["answer", "file"]}


class RateMessage(dspy.Signature):
    """Say what a customer's message is about and how urgent it is."""

    shop: str = dspy.InputField(desc="the shop")
    message: str = dspy.InputField(desc="what the customer wrote")
    topic: str = dspy.OutputField(desc="what it is about")
    urgency: int = dspy.OutputField(desc="1 to 5")


class SortMessage(dspy.Signature):
    """Sort a customer's message and say what to do about it."""

    shop: str = dspy.InputField(desc="the shop")
    rules: list[str] = dspy.InputField(desc="the shop's rules")
    message: str = dspy.InputField(desc="what the customer wrote")
    number: int = dspy.InputField(desc="how many messages the customer has written")
    topic: str = dspy.OutputField(desc="what it is about")
    urgency: int = dspy.OutputField(desc="1 to 5")
    is_complaint: bool = dspy.OutputField(desc="True if the customer complains")
    next_steps: list[str] = dspy.OutputField(desc="what to do")


def build_program(size: str) -> dspy.Predict:
    """Build the `short` or the `long` program."""
    if size == "short":
        return dspy.Predict(RateMessage)
    program = dspy.Predict(SortMessage)
    program.demos = [dspy.Example(**build_row("long", -number), **LONG_ANSWER) for number in (1, 2, 3)]
    return program


def build_row(size: str, number: int) -> dict[str, Any]:
    """Build the inputs of one call."""
    shop = f"Bakery {number}"
    if size == "short":
        return {"shop": shop, "message": f"Message {number}. {FILLER * 8}"[:690]}
    rules = [f"Rule {i}: {FILLER}" for i in range(8)]
    return {"shop": shop, "rules": rules, "message": f"Message {number}. {FILLER * 24}", "number": number}


def check_fields(fields: Any) -> None:
    """Fail unless typed outputs are what the stub answers."""
    if fields["urgency"] != 3 or not fields["topic"].startswith("bakery"):
        raise ValueError(f"not the stub's answer: {fields}")
