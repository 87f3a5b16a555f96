"""Plain chat."""

import random

from matrix_dspy.engine.rehearsal_material import Material
from matrix_dspy.engine.rehearsal_prompt import Prompt
from matrix_dspy.engine.rehearsal_scene import Skill, strip_markers


def write_chat(prompt: Prompt, rng: random.Random, skill: Skill) -> str:
    """Answer the last user turn."""
    request = strip_markers(prompt.request)
    material = Material.of(request, rng)
    return " ".join(material.sentence(("{fact}",)) for _ in range(4))
