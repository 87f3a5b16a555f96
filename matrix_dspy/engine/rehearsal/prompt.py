"""Read a request's messages as DSPy's adapters lay them out: which fields go in, which come out, and of what type.

Anything that is not such a prompt is plain chat. Nothing here knows a program by name, and nothing raises on what it
reads: a prompt that cannot be understood is plain chat.
"""

import ast
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

_HEADER = re.compile(r"^\[\[ ## (\w+) ## \]\][ \t]*$", re.MULTILINE)
_FIELD = re.compile(r"^\d+\. `(\w+)` \((.*?)\):[ \t]*(.*)$")
_OUTPUTS_START = "Your output fields are:\n"
_INPUTS_START = "Your input fields are:\n"
_STRUCTURE = "All interactions will be structured in the following way"
_JSON_OUTPUTS = "Outputs will be a JSON object with the following fields."
_OBJECTIVE = "In adhering to this structure, your objective is:"
_NOTE = "# note: the value you produce "
_TRAILERS = (
    "\n\nRespond with the corresponding output fields",
    "\n\nRespond with a JSON object in the following order",
)
_BOUNDS = {
    "greater than or equal to": "minimum",
    "less than or equal to": "maximum",
    "greater than": "exclusiveMinimum",
    "less than": "exclusiveMaximum",
    "minimum length": "minLength",
    "maximum length": "maxLength",
    "a multiple of the given number": "multipleOf",
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_BOUND = re.compile(r"(" + "|".join(_BOUNDS) + r"): (-?\d+(?:\.\d+)?)")

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class OutputField:
    """One value to write."""

    name: str
    schema: Schema
    """JSON schema of the value; plain text is `{"type": "string"}`."""
    description: str = ""


@dataclass(frozen=True)
class Layout:
    """What a system message asks for; the same for every row of a program."""

    inputs: tuple[str, ...]
    outputs: tuple[OutputField, ...]
    form: Literal["chat", "json"]
    objective: str = ""


@dataclass(frozen=True)
class Prompt:
    """A whole request, read."""

    layout: Layout | None
    """None for plain chat."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Raw text of each input field of the last user turn."""
    system: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    """(role, text) of the user's and the assistant's turns, in order."""

    @property
    def request(self) -> str:
        """Return the text of the last user turn."""
        return next((text for role, text in reversed(self.turns) if role == "user"), "")

    def items(self, name: str) -> list[str]:
        """Return a list input as its items; text that is no list is one item a line."""
        return read_items(self.inputs.get(name, ""))


def read_prompt(messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Read a request; the last user turn with field headers carries the values."""
    system = "\n".join(read_content(message) for message in messages if message.get("role") in ("system", "developer"))
    turns = tuple(
        (str(message.get("role")), read_content(message))
        for message in messages
        if message.get("role") not in ("system", "developer")
    )
    prompt = Prompt(_read_layout(system), {}, system, turns)
    if prompt.layout is None:
        return prompt
    # a request asked again ends with a turn about the earlier answer; the values stand in the one before
    for role, text in reversed(turns):
        if role == "user" and (inputs := _read_inputs(text, prompt.layout.inputs)):
            return Prompt(prompt.layout, inputs, system, turns)
    return prompt


def read_content(message: Mapping[str, Any]) -> str:
    """Return a message's text, whatever form its content has."""
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    text = "" if content is None else str(content)
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def read_items(raw: str) -> list[str]:
    """Return a list written as JSON, as a Python literal or as lines; blank items are dropped."""
    raw = raw.strip()
    if raw.startswith("["):
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(raw)
            except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                continue
            if isinstance(found, list):
                return [str(item) for item in found]
    if raw in ("", "N/A", "None"):
        return []
    return [line.strip() for line in raw.splitlines() if line.strip()]


def _read_inputs(text: str, names: tuple[str, ...]) -> dict[str, str]:
    for trailer in _TRAILERS:
        head, found, _ = text.rpartition(trailer)
        text = head if found else text
    wanted = set(names)
    heads = []
    for found in _HEADER.finditer(text):
        # a header inside a value is a forgery: only the first of each name counts
        if found[1] in wanted:
            wanted.discard(found[1])
            heads.append(found)
    ends = [*(found.start() for found in heads[1:]), len(text)][: len(heads)]
    return {found[1]: text[found.end() : end].strip() for found, end in zip(heads, ends, strict=True)}


@functools.lru_cache(maxsize=512)
def _read_layout(system: str) -> Layout | None:
    start, structure = system.find(_OUTPUTS_START), system.find(_STRUCTURE)
    if start < 0 or structure < start:
        return None
    inputs = tuple(name for name, _, _ in _read_fields(system[:start].partition(_INPUTS_START)[2]))
    fields = _read_fields(system[start + len(_OUTPUTS_START) : structure])
    objective = system.partition(_OBJECTIVE)[2].strip()
    shown = system[structure:].partition(_OBJECTIVE)[0]
    is_json = _JSON_OUTPUTS in shown
    notes = _read_json_notes(shown) if is_json else _read_chat_notes(shown, {name for name, _, _ in fields})
    outputs = tuple(
        OutputField(name, _build_schema(annotation, notes.get(name, ""), description), description)
        for name, annotation, description in fields
    )
    return Layout(inputs, outputs, "json" if is_json else "chat", objective) if outputs else None


def _read_fields(block: str) -> list[tuple[str, str, str]]:
    fields: list[tuple[str, str, str]] = []
    for line in block.splitlines():
        if found := _FIELD.match(line):
            fields.append((found[1], found[2], found[3]))
        elif fields and line.strip():
            name, annotation, description = fields[-1]
            fields[-1] = (name, annotation, f"{description}\n{line}")
    return fields


def _read_chat_notes(shown: str, names: set[str]) -> dict[str, str]:
    notes: dict[str, str] = {}
    for line in shown.splitlines():
        head, found, note = line.partition(_NOTE)
        name = head.strip().strip("{}")
        if found and name in names:
            notes.setdefault(name, note.strip())
    return notes


def _read_json_notes(shown: str) -> dict[str, str]:
    try:
        found, _ = json.JSONDecoder().raw_decode(shown.partition(_JSON_OUTPUTS)[2].strip())
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: str(value).partition(_NOTE)[2].strip() for name, value in found.items()}


def _build_schema(annotation: str, note: str, description: str) -> Schema:
    schema = dict(_note_schema(annotation, note))
    bounds = {_BOUNDS[found[1]]: float(found[2]) for found in _BOUND.finditer(description)}
    if schema.get("type") == "array":
        renamed = {"minLength": "minItems", "maxLength": "maxItems"}
        bounds = {renamed.get(key, key): value for key, value in bounds.items()}
    return schema | bounds


def _note_schema(annotation: str, note: str) -> Schema:
    if "JSON schema: " in note:
        try:
            schema = json.loads(note.partition("JSON schema: ")[2])
        except ValueError:
            schema = None
        if isinstance(schema, dict):
            return schema
    if annotation.startswith("Literal["):
        try:
            return {"enum": list(ast.literal_eval(annotation[len("Literal") :]))}
        except (ValueError, SyntaxError):
            pass
    if " one of: " in note:
        return {"enum": note.partition(" one of: ")[2].split("; ")}
    names = {"bool": "boolean", "int": "integer", "float": "number", "str": "string"}
    return {"type": names.get(annotation, "string")}
