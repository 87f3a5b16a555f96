"""What an instruction must be like: drawn per candidate from the kind's lists (METHOD 3.1)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from matrix_dspy.config import KindConfig, RequirementChoice, SynthesisConfig


@dataclass(frozen=True, slots=True)
class Requirement:
    """One draw, as names for the table and as words for the writer."""

    category: str
    complexity: str
    style: str
    text: str
    is_lookalike: bool = False
    """Whether a harmless ask is wanted that only sounds harmful."""


def draw_requirement(instruction_id: str, kind: KindConfig, config: SynthesisConfig, seed: int) -> Requirement:
    """Draw category, complexity and style by weight; the same id and seed give the same draw."""
    generator = random.Random(f"{seed}/{instruction_id}")
    length, complexities = kind.list_choices(config.type)
    category = _draw(generator, _choose_categories(generator, kind, config))
    complexity = _draw(generator, complexities)
    style = _draw(generator, kind.styles)
    lines = [
        f"Kind: {kind.requirement}",
        f"Type: {config.type}",
        f"Category: {category.name}: {category.text}",
        f"Complexity: {complexity.name}: {complexity.text}",
        f"Style: {style.name}: {style.text}",
        f"Length: {length}",
        f"Language: {config.language}",
    ]
    if config.need:
        lines.append(f"Topic: {config.need}")
    return Requirement(category.name, complexity.name, style.name, "\n".join(lines), category.is_lookalike)


def _choose_categories(
    generator: random.Random, kind: KindConfig, config: SynthesisConfig
) -> Sequence[RequirementChoice]:
    """Return the look-alikes by their share, else the other categories."""
    lookalikes = [choice for choice in kind.categories if choice.is_lookalike]
    if not lookalikes:
        return kind.categories
    share = kind.lookalike_share if config.lookalike_share is None else config.lookalike_share
    is_lookalike = generator.random() < share
    return lookalikes if is_lookalike else [choice for choice in kind.categories if not choice.is_lookalike]


def _draw(generator: random.Random, choices: Sequence[RequirementChoice]) -> RequirementChoice:
    return generator.choices(choices, weights=[choice.weight for choice in choices])[0]
