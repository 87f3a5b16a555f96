"""From a prompt that was read to the text of an answer, whole or broken.

Writers are chosen by the set of output names, never by a program's name; what no writer knows is made from its JSON
schema.
"""

import json
import random
import re
from collections.abc import Mapping
from typing import Any

from matrix_dspy.engine.rehearsal.chat import write_chat
from matrix_dspy.engine.rehearsal.material import tidy
from matrix_dspy.engine.rehearsal.prompt import Layout, OutputField, Prompt, Schema
from matrix_dspy.engine.rehearsal.scene import Scene, Skill, Writer
from matrix_dspy.engine.rehearsal.schema import build_value
from matrix_dspy.engine.rehearsal.writers import find_writer

__all__ = ["Skill", "break_answer", "cut_answer", "refuse", "write_answer"]

_REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I am sorry, I'm not able to help with this request.",
    "Sorry, this is something I can't assist with.",
    "I can't help with that request. Is there something else I can do?",
    "I'm unable to do this, and I apologise for the inconvenience.",
    "I'm afraid I cannot assist with that.",
    "As an AI model, I can't provide help with this.",
    "I must decline this one; I hope you understand.",
)


def refuse(rng: random.Random) -> str:
    """Return a refusal without need."""
    return rng.choice(_REFUSALS)


def cut_answer(text: str, rng: random.Random) -> str:
    """Return the beginning of an answer, as if the tokens had run out."""
    return text[: max(1, int(len(text) * rng.uniform(0.25, 0.8)))]


def break_answer(text: str, prompt: Prompt, rng: random.Random) -> str:
    """Return an answer that its reader cannot use."""
    layout = prompt.layout
    if layout is None:
        return ""
    if layout.form == "json" or text.startswith("{"):
        return rng.choice((text[: max(1, len(text) * 2 // 3)], "Here are the fields you asked for.", "[]"))
    first = layout.outputs[0].name
    header = f"[[ ## {rng.choice(layout.outputs).name} ## ]]"
    typed = [field for field in layout.outputs if field.schema.get("type") != "string"]
    breaks = [
        text.replace(header, "", 1),
        f"Here is my answer.\n\n{_strip_headers(text)}",
        text.split(header)[0].strip(),
    ]
    if typed:
        name = rng.choice(typed).name
        breaks.append(re.sub(rf"(\[\[ ## {name} ## \]\]\n).*?(\n\n\[\[)", r"\1hard to say {[\2", text, flags=re.DOTALL))
    return rng.choice(breaks) or f"[[ ## {first}"


def _strip_headers(text: str) -> str:
    return re.sub(r"\[\[ ## \w+ ## \]\]\n?", "", text).strip()


def write_answer(
    prompt: Prompt, rng: random.Random, skill: Skill, schema: Schema | None = None, *, is_thinking: bool = False
) -> str:
    """Write the whole text of an answer; plain chat is thought over first where `is_thinking`."""
    if prompt.layout is not None:
        values = write_fields(prompt, prompt.layout, rng, skill)
        return _render_json(values) if schema or prompt.layout.form == "json" else _render_chat(prompt.layout, values)
    if schema:
        scene = Scene(prompt, rng, skill)
        return json.dumps(build_value(schema, "answer", rng, lambda name, _: _write_text(scene, name)))
    return write_chat(prompt, rng, skill, is_thinking=is_thinking)


def write_fields(prompt: Prompt, layout: Layout, rng: random.Random, skill: Skill) -> dict[str, Any]:
    """Return a value of the right type for every output field."""
    scene = Scene(prompt, rng, skill)
    names = [field.name for field in layout.outputs]
    writer: Writer | None = find_writer(names)
    known: Mapping[str, Any] = writer(scene) if writer else {}
    return {
        field.name: known[field.name]
        if field.name in known and fits(field.schema, known[field.name])
        else _write_field(scene, field)
        for field in layout.outputs
    }


def fits(schema: Schema, value: Any) -> bool:
    """Whether a writer's value is of the type a field wants; bounds of nested values are the writers' business."""
    if schema.get("enum"):
        return value in schema["enum"]
    if "maxLength" in schema and isinstance(value, str) and len(value) > schema["maxLength"]:
        return False
    kinds = {"string": str, "boolean": bool, "array": list, "integer": int, "number": (int, float), "object": dict}
    kind = schema.get("type")
    if kind not in kinds or not isinstance(value, kinds[kind]):
        return False
    if kind == "array" and value:
        inner = schema.get("items", {})
        return "$ref" in inner or fits(inner, value[0])
    return True


def _write_field(scene: Scene, field: OutputField) -> Any:
    return build_value(field.schema, field.name, scene.rng, lambda name, _: _write_text(scene, name))


def _write_text(scene: Scene, name: str) -> str:
    if name in ("reasoning", "rationale", "thought", "next_thought"):
        return write_reasoning(scene)
    material = scene.material
    if name.endswith(("name", "title", "label", "category", "keyword", "tag")):
        return material.fill("{object_bare}").capitalize()
    return tidy(material.sentence(_GENERIC))


_GENERIC = (
    "the point here is {topic}, and {object:deserves} the first look",
    "start with {object}, ask {person}, and mind {problem}",
    "it comes down to {word}: {topic} is the part to settle first",
    "{task_ing} will help, provided somebody looks after {object}",
    "with {tool} and {count} days, {task_ing} is within reach",
    "{person} can speak to {topic}; {problem:is} the main risk",
    "look at {object} before {task_ing}, because {problem:is} likely",
)
_REASONING = (
    "the request turns on {word}, so {topic} has to be settled first",
    "what is given mentions {word} and {word}; both point to {object}",
    "the main risk is {problem}, which speaks for a careful answer",
    "weighing {object} against {object}, the former matters more here",
    "nothing given contradicts this, so the answer can stand",
    "{fact}",
)


def write_reasoning(scene: Scene) -> str:
    """Write a few sentences of thought before an answer."""
    count = 1 if scene.is_low else scene.rng.randint(2, 3)
    frames = scene.rng.sample(_REASONING, count)
    return tidy(" ".join(scene.material.sentence((frame,)) for frame in frames))


def _render_chat(layout: Layout, values: Mapping[str, Any]) -> str:
    parts = [f"[[ ## {field.name} ## ]]\n{_render_value(values[field.name])}\n" for field in layout.outputs]
    return "\n".join(parts) + "\n[[ ## completed ## ]]"


def _render_value(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _render_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, indent=2)
