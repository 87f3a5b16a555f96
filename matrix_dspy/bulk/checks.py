"""What the typed outputs of programs must hold beyond their types, where several stages use the same program."""

from typing import Any

from matrix_dspy.text import one_line

MIN_STEPS, MAX_STEPS = 3, 8
"""Steps of a plan (METHOD 2.1, this project's numbers)."""
PLAN_SCHEMA = {"plan": {"minItems": MIN_STEPS, "maxItems": MAX_STEPS}}


def check_plan(fields: dict[str, Any]) -> str | None:
    """Say what is wrong with a plan: it needs at least three steps with words in them."""
    n_steps = sum(bool(step.strip()) for step in fields["plan"])
    return None if n_steps >= MIN_STEPS else f"the plan has {n_steps} steps; it needs {MIN_STEPS} to {MAX_STEPS}"


def read_plan(fields: dict[str, Any]) -> tuple[str, ...]:
    """Return the first eight steps that have words in them."""
    return tuple(one_line(step) for step in fields["plan"] if step.strip())[:MAX_STEPS]
