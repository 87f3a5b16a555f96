"""The quick reader says what DSPy says, or leaves it to DSPy."""

import json
import re
from typing import Any, Literal

import dspy
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from matrix_dspy.bulk.chat_reader import ChatReader

CHAT = dspy.ChatAdapter(use_json_adapter_fallback=False)
_INDENTED = re.compile(r"^\s+.*\[\[ ##|\[\[ ##.*\s$")
"""Lines with the beginning of a header and blanks around them, which are read otherwise than DSPy reads them."""


class Place(BaseModel):
    name: str
    height_m: float | None = None
    tags: list[str] = Field(default_factory=list)


ODD_TEXTS = [
    "", " ", "\n", "[[ ## alpha ## ]]", "[[ ## alpha", "[[ ## completed ## ]]", "\u2028", "\x0b", "\x1c", "\x85",
    "\r\n", "[[## beta ##]]", "null", "None", "true", "{}", "[", '"', "'", "\\ud83d", "NaN", "1e999", "00", "-0",
    "\u0663", "1_000", "```json\n", "Literal[yes]", "<|im_end|>", "x [[ ## beta ## ]] y",
]  # fmt: skip
text = st.one_of(st.text(max_size=20), st.lists(st.sampled_from(ODD_TEXTS), max_size=4).map("".join))
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
place = st.builds(Place, name=text, height_m=st.none() | st.floats(), tags=st.lists(text, max_size=2))
TYPES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, text),
    (int, st.integers()),
    (int, st.sampled_from(["+5", "007", "-0", "5.0", "1_000", "\u0663", "9" * 400, "five"])),
    (bool, st.booleans() | st.sampled_from(["true", "false", "TRUE", "yes", "1", "0", "'True'"])),
    (float, st.floats()),
    (Literal["yes", "no", "very no"], st.sampled_from(["yes", "no", "very no", "'yes'", "Literal[no]", "Yes", "ye"])),
    (Literal[1, 2, 3], st.sampled_from([1, 2, 3, 4, "'2'", "two"])),
    (list[str], st.lists(text, max_size=3)),
    (list[int], st.lists(st.integers() | st.sampled_from(["1", 2.0, 2.5, True]), max_size=3)),
    (list[bool], st.lists(st.booleans(), max_size=3)),
    (dict[str, int], st.dictionaries(text, st.integers(0, 9), max_size=3)),
    (dict[str, Any], st.dictionaries(text, json_like, max_size=3)),
    (Place, place),
    (list[Place], st.lists(place, max_size=2)),
    (str | None, st.none() | text),
    (int | None, st.none() | st.integers()),
    (list[str] | None, st.none() | st.lists(text, max_size=2)),
    (dict, st.dictionaries(text, json_like, max_size=2)),
    (list, st.lists(json_like, max_size=2)),
]
NAMES = ["alpha", "beta", "gamma", "delta"]


def write_value(value: Any, how: int) -> str:
    """Write a value as a model may: as it stands, as JSON, as Python, or JSON in a code block."""
    if isinstance(value, str) and how != 1:
        return value
    plain = value.model_dump() if isinstance(value, Place) else value
    if isinstance(plain, list):
        plain = [each.model_dump() if isinstance(each, Place) else each for each in plain]
    if how == 2:
        return repr(plain)
    dumped = json.dumps(plain, ensure_ascii=how == 0, indent=2 if how == 3 else None)
    return f"```json\n{dumped}\n```" if how == 3 else dumped


@st.composite
def answers(draw: st.DrawFn) -> tuple[Any, str]:
    """Draw a signature and an answer to it in DSPy's markers, mutated or not."""
    kinds = draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=4))
    names = draw(st.permutations(NAMES))[: len(kinds)]
    fields: dict[str, Any] = {"question": (str, dspy.InputField())}
    make: Any = dspy.OutputField
    fields |= {name: (kind, make()) for name, (kind, _) in zip(names, kinds, strict=True)}
    make_signature: Any = dspy.Signature
    gap = draw(st.sampled_from(["\n", " ", "\n\n", ""]))
    lines = [
        f"[[ ## {name} ## ]]{gap}{write_value(draw(values), draw(st.integers(0, 3)))}"
        for name, (_, values) in zip(names, kinds, strict=True)
    ]
    if draw(st.booleans()):
        lines.append("[[ ## completed ## ]]")
    written = draw(st.sampled_from(["\n\n", "\n", "\r\n"])).join(lines)
    for _ in range(draw(st.integers(0, 3))):
        written = _mutate(draw, written)
    return make_signature(fields, "Answer."), written


def _mutate(draw: st.DrawFn, written: str) -> str:
    at = draw(st.integers(0, len(written)))
    kind = draw(st.sampled_from(["insert", "cut", "drop line", "double line", "swap lines"]))
    if kind == "insert":
        return written[:at] + draw(st.sampled_from(ODD_TEXTS) | st.characters()) + written[at:]
    if kind == "cut":
        return written[:at] + written[at + draw(st.integers(1, 5)) :]
    lines = written.split("\n")
    place = draw(st.integers(0, len(lines) - 1))
    other = draw(st.integers(0, len(lines) - 1))
    if kind == "drop line":
        del lines[place]
    elif kind == "double line":
        lines.insert(other, lines[place])
    else:
        lines[place], lines[other] = lines[other], lines[place]
    return "\n".join(lines)


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of the same types; nan is nan."""
    return type(one) is type(other) and repr(one) == repr(other)


def has_indented(written: str) -> bool:
    return any(_INDENTED.search(line) for line in written.splitlines())


@given(answers())
@settings(max_examples=500)
def test_the_fields_are_those_that_dspy_reads(drawn: tuple[Any, str]):
    signature, written = drawn
    assume(not has_indented(written))

    ours = ChatReader(signature)(written)

    event("declined" if ours is None else "read")
    if ours is not None:
        assert is_same(ours, CHAT.parse(signature, written))


@given(answers(), st.sampled_from([" ", "\t", "    "]))
@settings(max_examples=150)
def test_an_indented_header_is_read_as_dspy_reads_a_plain_one(drawn: tuple[Any, str], indent: str):
    signature, written = drawn
    assume(not has_indented(written))
    indented = re.sub(r"^(?=\[\[ ## \w+ ## \]\])", indent, written, flags=re.MULTILINE)
    assume([line.strip() for line in indented.splitlines()] == [line.strip() for line in written.splitlines()])

    ours = ChatReader(signature)(indented)

    assert is_same(ours, ChatReader(signature)(written))


def test_dspy_leaves_half_of_an_indented_header_in_the_value():
    make_signature: Any = dspy.Signature
    signature = make_signature("question -> answer")

    assert ChatReader(signature)("  [[ ## answer ## ]] Paris") == {"answer": "Paris"}
    assert CHAT.parse(signature, "  [[ ## answer ## ]] Paris") == {"answer": "]] Paris"}


def test_blanks_around_what_only_looks_like_a_header_are_kept():
    make_signature: Any = dspy.Signature
    signature = make_signature("question -> answer")
    written = '[[ ## answer ## ]]\ndef read():\n    return "[[ ## answer ## ]]"\n'

    assert ChatReader(signature)(written) == CHAT.parse(signature, written)


class Everything(dspy.Signature):
    """All kinds."""

    question: str = dspy.InputField()
    words: str = dspy.OutputField()
    number: int = dspy.OutputField()
    truth: bool = dspy.OutputField()
    choice: Literal["yes", "no"] = dspy.OutputField()
    level: Literal[1, 2] = dspy.OutputField()
    several: list[str] = dspy.OutputField()
    counts: dict[str, int] = dspy.OutputField()
    place: Place = dspy.OutputField()
    maybe: int | None = dspy.OutputField()


IN_FORM = {
    "words": "two\n\nlines", "number": "-17", "truth": "True", "choice": "no", "level": "2",
    "several": '["a", "\u00e9"]', "counts": '{"x": 1}', "place": '{"name": "Bern", "height_m": 540.5}', "maybe": "null",
}  # fmt: skip


def write(fields: dict[str, str]) -> str:
    return "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items()) + "\n\n[[ ## completed ## ]]"


def test_an_answer_in_order_is_not_left_to_dspy():
    fields = ChatReader(Everything)(write(IN_FORM))

    assert fields == {
        "words": "two\n\nlines", "number": -17, "truth": True, "choice": "no", "level": 2, "several": ["a", "\u00e9"],
        "counts": {"x": 1}, "place": Place(name="Bern", height_m=540.5), "maybe": None,
    }  # fmt: skip
    assert fields is not None and list(fields) == list(Everything.output_fields)


@pytest.mark.parametrize("name", [name for name in IN_FORM if name != "words"])
def test_a_value_that_will_not_do_is_left_to_dspy(name: str):
    assert ChatReader(Everything)(write(IN_FORM | {name: "plenty"})) is None


@pytest.mark.parametrize("name", list(IN_FORM))
def test_a_field_that_is_missing_is_left_to_dspy(name: str):
    assert ChatReader(Everything)(write({other: value for other, value in IN_FORM.items() if other != name})) is None
