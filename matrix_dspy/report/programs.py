"""The programs as a reader sees them: a line each, one in full with its variants, or two variants side by side."""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy

from matrix_dspy.bulk.prompt import Prompt
from matrix_dspy.errors import StateMismatchError
from matrix_dspy.loading import (
    build_program,
    describe_fields,
    find_variant,
    hash_prompt,
    list_programs,
    list_variants,
    load_program,
    read_card,
    read_signature,
)

WRITTEN = "written"
"""Name under which a program as written stands beside its variants."""


def list_program_lines() -> Iterator[str]:
    """Yield a line a program: name, what is loaded by default, variants and what it does."""
    for name in list_programs():
        others = [variant for variant in list_variants(name) if variant != "default"]
        yield f"{name:18} {_describe_default(name):34} {inspect.getdoc(type(build_program(name))) or ''}"
        if others:
            yield f"{'':18} variants: {', '.join(others)}"


def describe_program(name: str) -> Iterator[str]:
    """Yield a program's fields, prompt hash, variants with their cards, and instruction."""
    program = load_program(name)
    yield f"{name}: {inspect.getdoc(type(program)) or ''}"
    yield f"prompt:   {hash_prompt(program)[:16]}"
    yield from (f"  {field}" for field in describe_fields(program))
    variants = list_variants(name)
    yield f"variants: {', '.join(variants) or 'none; it is loaded as written'}"
    for variant in variants:
        yield ""
        if path := find_variant(name, variant):
            yield f"[{variant}] {path}"
            with _open_card(path) as card:
                yield from (f"  {line}" for line in describe_card(card))
    yield ""
    yield read_signature(program).instructions.strip() or "(no instruction: the input is the user's turn)"


def diff_variants(name: str, one: str, other: str) -> Iterator[str]:
    """Yield the difference of what two variants of a program send, as a unified diff; `written` is one of them."""
    sides = [_render(build_program(name) if each == WRITTEN else load_program(name, each)) for each in (one, other)]
    lines = list(difflib.unified_diff(*sides, fromfile=f"{name}/{one}", tofile=f"{name}/{other}", lineterm="", n=2))
    yield from lines or [f"{one} and {other} send the same"]


def describe_card(card: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a card says of how a state came about and how good it is."""
    demos = (card.get("settings") or {}).get("demos")
    shown = f", {demos} demos" if demos is not None else ""
    yield f"optimizer {card.get('optimizer', 'unknown')}{shown}, DSPy {card.get('dspy', 'unknown')}"
    if not card.get("measured"):
        yield "unmeasured: nothing is known of how good it is"
    if test := card.get("test"):
        gain = f"gain {_say(test['gain'])} on {card['n_test']} rows"
        yield f"test: {_say(test['before'])} before, {_say(test['after'])} after, {gain}"
        yield f"for {card['lm']}, taught by {card['teacher_lm']}, judged by {card['judge_lm'] or 'labels'}"
        calls, labels = card["calls"]["total"], card["judged"]["sha256"][:12]
        yield f"{calls:,} calls, {card['candidates']} candidates, labels {labels}"
    for model, found in (card.get("agreement") or {}).items():
        yield f"agreement with labels on {model}: {describe_agreement(found)}"
        for program, own in found.get("by_program", {}).items():
            yield f"  {program:18} {describe_agreement(own)}"


def describe_agreement(found: Mapping[str, Any]) -> str:
    """Return in words how far a judge agrees with labels, from what its card says of one model."""
    if "kappa" in found:
        return (
            f"kappa {_say(found['kappa'])}, Spearman {_say(found['spearman'])}, "
            f"false accepts {found['false_accepts']['value']:.2f}, n {found['n']}"
        )
    return f"{_say(found['agreement'])} of pairs, order flips {found['order_flips']['value']:.2f}, n {found['n']}"


def _say(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _describe_default(name: str) -> str:
    path = find_variant(name, "default")
    if path is None:
        return "as written"
    with _open_card(path) as card:
        if card.get("test"):
            return f"{card['optimizer']}, gain {card['test']['gain']['value']:+.3f} on {card['lm']}"
        return f"{card.get('optimizer', 'unknown')}, {'measured' if card.get('measured') else 'unmeasured'}"


@contextmanager
def _open_card(path: Path) -> Iterator[dict[str, Any]]:
    """Give a state's card to be described; one edited into another form is an error that names the file."""
    card = read_card(path)
    try:
        yield card
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StateMismatchError(f"the card of {str(path)!r} is not as compile writes it; compile it again") from error


def _render(program: dspy.Module) -> list[str]:
    """Return the lines of what a program sends for inputs that are their own names."""
    prompt = Prompt.of(program)
    inputs = {name: f"<{name}>" for name in prompt.signature.input_fields}
    lines: list[str] = []
    for message in prompt.adapter.format(prompt.signature, prompt.demos, inputs):
        lines += [f"[{message['role']}]", *str(message["content"]).splitlines(), ""]
    return lines
