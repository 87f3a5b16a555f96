"""What a writer is given: the prompt, a generator, the skill, and the material for what the inputs are about."""

import functools
import random
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from matrix_dspy.engine.rehearsal.grammar import third_person
from matrix_dspy.engine.rehearsal.material import Material
from matrix_dspy.engine.rehearsal.prompt import Prompt

Skill = Literal["low", "normal"]
_NAME_LINE = re.compile(r"^\W*(?:name|persona)\W*:\s*\**\s*([^\n,;(]{2,60})", re.IGNORECASE | re.MULTILINE)
_CAPITALS = re.compile(r"^\W*((?:[A-Z][\w'’.-]*)(?:[ ](?:[A-Z][\w'’.-]*|de|da|del|van|von|der|al|bin|la)){0,4})")
_NUMBERED = re.compile(r"^\s*[\[(]?(\d{1,6})[\]).:]\s*")
_MARKER = re.compile(r"\[\[\s*##.*?##\s*\]\]|<\|[^|<>]{0,40}\|>|[{}]")
_SUBJECTS = ("persona", "profile", "description", "instruction", "question", "members", "groups")


class Scene:
    """One request as its writer sees it."""

    def __init__(self, prompt: Prompt, rng: random.Random, skill: Skill) -> None:
        self.prompt = prompt
        self.rng = rng
        self.skill: Skill = skill

    @property
    def is_low(self) -> bool:
        """Whether to write carelessly."""
        return self.skill == "low"

    def text(self, name: str) -> str:
        """Return an input field's text, made harmless."""
        return strip_markers(self.prompt.inputs.get(name, ""))

    def items(self, name: str) -> list[str]:
        """Return a list input's items, made harmless."""
        return [strip_markers(item) for item in self.prompt.items(name)]

    @functools.cached_property
    def material(self) -> Material:
        """The material for the inputs, those that say who it is about first."""
        inputs = self.prompt.inputs
        first = next((inputs[name] for name in _SUBJECTS if inputs.get(name)), "")
        everything = first or "\n".join(value[:1500] for value in inputs.values()) or self.prompt.request
        return Material.of(strip_markers(everything[:6000]), self.rng, voice=third_person)

    @functools.cached_property
    def name(self) -> str:
        """The person the persona is about."""
        return read_name(self.text("persona") or self.text("profile") or self.text("description")) or "The person"


Writer = Callable[[Scene], Mapping[str, Any]]


def strip_markers(text: str) -> str:
    """Take out what could act as structure, so that an input cannot speak through an answer."""
    return _MARKER.sub("", text) if "[[" in text or "<|" in text or "{" in text or "}" in text else text


@functools.lru_cache(maxsize=4096)
def read_name(persona: str) -> str:
    """Return the name a persona gives, or an empty text."""
    persona = persona[:2000]
    found = _NAME_LINE.search(persona) or _CAPITALS.match(persona)
    name = found[1].strip(" .*'’-") if found else ""
    return "" if name in ("I", "A", "An", "The", "He", "She", "They", "My") else name


def read_number(item: str) -> tuple[int | None, str]:
    """Part the number at the head of a list item from its text."""
    found = _NUMBERED.match(item)
    return (int(found[1]), item[found.end() :]) if found else (None, item.strip())
