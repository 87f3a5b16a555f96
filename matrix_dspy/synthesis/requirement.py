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


def draw_requirement(instruction_id: str, kind: KindConfig, config: SynthesisConfig, seed: int) -> Requirement:
    """Draw category, complexity and style by weight; the same id and seed give the same draw."""
    generator = random.Random(f"{seed}/{instruction_id}")
    category = _draw(generator, kind.categories)
    complexity = _draw(generator, kind.complexities[config.type])
    style = _draw(generator, kind.styles)
    lines = [
        f"Kind: {kind.requirement}",
        f"Type: {config.type}",
        f"Category: {category.name}: {category.text}",
        f"Complexity: {complexity.name}: {complexity.text}",
        f"Style: {style.name}: {style.text}",
        f"Length: {kind.lengths[config.type]}",
        f"Language: {config.language}",
    ]
    if config.need:
        lines.append(f"Topic: {config.need}")
    return Requirement(category.name, complexity.name, style.name, "\n".join(lines))


def _draw(generator: random.Random, choices: Sequence[RequirementChoice]) -> RequirementChoice:
    return generator.choices(choices, weights=[choice.weight for choice in choices])[0]
