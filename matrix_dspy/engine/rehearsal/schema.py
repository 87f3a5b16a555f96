"""Make a value for any JSON schema, with words on the topic where text is wanted."""

import random
from collections.abc import Callable, Mapping
from typing import Any

_MAX_DEPTH = 6
_FORMATS = {
    "date": "2024-05-17",
    "date-time": "2024-05-17T09:30:00Z",
    "time": "09:30:00",
    "duration": "P3D",
    "email": "office@example.org",
    "uri": "https://example.org/page",
    "url": "https://example.org/page",
    "uuid": "3f2b8c1e-5d64-4f0a-9b7e-2a1c6d8e4f10",
    "ipv4": "192.0.2.7",
    "ipv6": "2001:db8::7",
    "binary": "text",
    "path": "notes.txt",
}

Write = Callable[[str, random.Random], str]
"""(name of the field, generator) to a text for it."""


def build_value(schema: Mapping[str, Any], name: str, rng: random.Random, write: Write) -> Any:
    """Return a value that `schema` admits, as far as its keywords are the common ones."""
    definitions = {**schema.get("definitions", {}), **schema.get("$defs", {})}
    return _build(schema, name, rng, write, definitions, 0)


def _build(
    schema: Mapping[str, Any], name: str, rng: random.Random, write: Write, definitions: Mapping[str, Any], depth: int
) -> Any:
    if "$ref" in schema:
        target = definitions.get(str(schema["$ref"]).rsplit("/", 1)[-1], {})
        return _build({**target, **{k: v for k, v in schema.items() if k != "$ref"}}, name, rng, write, definitions,
                      depth + 1)  # fmt: skip
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return rng.choice(list(schema["enum"]))
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _build(_choose_branch(schema[key], depth, rng), name, rng, write, definitions, depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else "string"
    if kind == "object" or (kind is None and "properties" in schema):
        return _build_object(schema, name, rng, write, definitions, depth)
    if kind == "array":
        return _build_array(schema, name, rng, write, definitions, depth)
    if kind in ("integer", "number"):
        return _build_number(schema, rng, is_integer=kind == "integer")
    if kind == "boolean":
        return rng.random() < 0.5
    return None if kind == "null" else _build_text(schema, name, rng, write)


def _choose_branch(branches: list[Any], depth: int, rng: random.Random) -> Mapping[str, Any]:
    usable = [branch for branch in branches if isinstance(branch, dict)] or [{"type": "null"}]
    null = next((branch for branch in usable if branch.get("type") == "null"), None)
    if null is not None and (depth > _MAX_DEPTH or rng.random() < 0.1):
        return null
    return next((branch for branch in usable if branch is not null), usable[0])


def _build_object(
    schema: Mapping[str, Any], name: str, rng: random.Random, write: Write, definitions: Mapping[str, Any], depth: int
) -> dict[str, Any]:
    required = set(schema.get("required", ()))
    value = {
        key: _build(inner, key, rng, write, definitions, depth + 1)
        for key, inner in schema.get("properties", {}).items()
        if key in required or depth < _MAX_DEPTH
    }
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict) and not value:
        count = max(1, int(schema.get("minProperties", 1)))
        keys = [f"{name}_{i + 1}" for i in range(count)]
        value = {key: _build(extra, key, rng, write, definitions, depth + 1) for key in keys}
    return value


def _build_array(
    schema: Mapping[str, Any], name: str, rng: random.Random, write: Write, definitions: Mapping[str, Any], depth: int
) -> list[Any]:
    fixed = [_build(inner, name, rng, write, definitions, depth + 1) for inner in schema.get("prefixItems", ())]
    if fixed:
        return fixed
    least, most = int(schema.get("minItems", 0)), int(schema.get("maxItems", 2**31))
    wanted = 0 if depth > _MAX_DEPTH else rng.randint(2, 4) if depth == 0 else rng.randint(1, 2)
    count = max(least, min(most, wanted))
    items = schema.get("items")
    inner = items if isinstance(items, dict) else {"type": "string"}
    is_set = bool(schema.get("uniqueItems"))
    values: list[Any] = []
    for _ in range(count * (6 if is_set else 1)):
        value = _build(inner, name, rng, write, definitions, depth + 1)
        if not (is_set and value in values):
            values.append(value)
        if len(values) == count:
            break
    return values


def _build_number(schema: Mapping[str, Any], rng: random.Random, *, is_integer: bool) -> int | float:
    low, high = schema.get("minimum"), schema.get("maximum")
    nudge = 1 if is_integer else 1e-3
    if (over := schema.get("exclusiveMinimum")) is not None:
        low = over + nudge if low is None else max(low, over + nudge)
    if (under := schema.get("exclusiveMaximum")) is not None:
        high = under - nudge if high is None else min(high, under - nudge)
    low = low if low is not None else (0 if high is None else min(0, high - 1))
    high = high if high is not None else low + (9 if is_integer else 1)
    if is_integer:
        value: int | float = rng.randint(-int(-low // 1), max(-int(-low // 1), int(high // 1)))
    else:
        value = min(high, max(low, round(rng.uniform(low, high), 2)))
    step = schema.get("multipleOf")
    if step:
        value = -(-low // step) * step
        value = int(value) if is_integer else value
    return value


def _build_text(schema: Mapping[str, Any], name: str, rng: random.Random, write: Write) -> str:
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
    text = write(name, rng)
    least, most = int(schema.get("minLength", 0)), int(schema.get("maxLength", 2**31))
    while len(text) < least:
        text += " " + write(name, rng)
    return text[:most].rstrip() if len(text) > most and most - 1 > least else text[:most]
