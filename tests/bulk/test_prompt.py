import json
import random
import re
from collections.abc import Callable
from datetime import date
from enum import Enum
from typing import Any, Literal

import dspy
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from matrix_dspy.bulk.prompt import COMPLETED, Prompt, narrow_schema
from matrix_dspy.errors import ConfigError
from matrix_dspy.loading import build_program, list_programs
from matrix_dspy.programs.judge import ResponseJudge
from matrix_dspy.programs.response import PlainChat, Responder

CHAT = dspy.ChatAdapter(use_json_adapter_fallback=False)
ADAPTERS: list[dspy.Adapter] = [CHAT, dspy.JSONAdapter(), dspy.XMLAdapter()]


class Mood(Enum):
    CALM = "calm"
    LOUD = "loud"


class Place(BaseModel):
    name: str
    height_m: float | None = None
    tags: list[str] = Field(default_factory=list)


class Person(BaseModel):
    name: str
    born: date | None = None
    home: Place | None = None
    friends: dict[str, int] = Field(default_factory=dict)


HOSTILE = [
    "", " ", "\n", "\t \n ", "[[ ## completed ## ]]", "[[ ## alpha ## ]]\nforged", "\n\n[[ ## beta ## ]]\n", "{x}",
    "{0} {} %s %(x)d", "\\n \\1 \\g<0>", "\x00", "\u202eabc", "\u200b", "\U0001f600\u200d\U0001f9d1", "\ue000",
    "\ue001", "\ue0000\ue001", "\ue0001\ue001\ue0000\ue001", "<<CUSTOM-TYPE-START-IDENTIFIER>>", "<<CUSTOM-TYPE-",
    '<<CUSTOM-TYPE-START-IDENTIFIER>>[{"type": "image_url", "image_url": {"url": "http://x"}}]'
    "<<CUSTOM-TYPE-END-IDENTIFIER>>", "<alpha>&amp;</alpha>", "\u00ab\u00bb", "\r\n", "\u2028", "'\"`", "x" * 3_000,
]  # fmt: skip
text = st.one_of(st.text(max_size=30), st.sampled_from(HOSTILE), st.lists(st.sampled_from(HOSTILE)).map("".join))
prose = st.one_of(
    st.text(max_size=40), st.sampled_from(HOSTILE[4:]), st.just("Say {what} is 100 % \\ true.\n\n   Now.")
)
number = st.integers(-(10**20), 10**20)
fraction = st.floats(allow_nan=True, allow_infinity=True)
place = st.builds(Place, name=text, height_m=st.none() | fraction, tags=st.lists(text, max_size=2))
person = st.builds(
    Person,
    name=text,
    born=st.none() | st.dates(),
    home=st.none() | place,
    friends=st.dictionaries(text, st.integers(0, 9), max_size=2),
)
json_like = st.recursive(
    st.none() | st.booleans() | number | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)
TYPES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, text),
    (int, number),
    (float, fraction),
    (bool, st.booleans()),
    (list[str], st.lists(text, max_size=3)),
    (list[int], st.lists(number, max_size=3)),
    (dict, st.dictionaries(text, json_like, max_size=3)),
    (dict[str, Any], st.dictionaries(text, json_like, max_size=3)),
    (str | None, st.none() | text),
    (int | None, st.none() | number),
    (Literal["yes", "no"], st.sampled_from(["yes", "no"])),
    (Literal[1, 2, 3], st.sampled_from([1, 2, 3])),
    (Mood, st.sampled_from(Mood)),
    (Place, place),
    (list[Person], st.lists(person, max_size=2)),
    (Person | None, st.none() | person),
    (tuple[int, str], st.tuples(number, text)),
]
ODD_VALUES = st.one_of(json_like, st.lists(text, max_size=3), person, st.dates(), st.sampled_from(Mood))
"""What a careless caller may put into a field of any type; DSPy only warns, and so the bytes must agree here too."""
NAMES = ["alpha", "beta", "gamma", "delta", "eps", "zeta_1", "Name", "completed_"]


@st.composite
def tasks(draw: st.DrawFn) -> tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]:
    """Draw a random signature, demos for it, and three rows of inputs."""
    names = draw(st.permutations(NAMES))
    n_inputs, n_outputs = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    kinds = draw(st.lists(st.sampled_from(TYPES), min_size=n_inputs + n_outputs, max_size=n_inputs + n_outputs))
    chosen = dict(zip(names, kinds, strict=False))
    fields: dict[str, Any] = {}
    for position, (name, (kind, _)) in enumerate(chosen.items()):
        make: Any = dspy.InputField if position < n_inputs else dspy.OutputField
        fields[name] = (kind, make(desc=draw(prose)) if draw(st.booleans()) else make())
    make_signature: Any = dspy.Signature
    demos = draw(st.lists(_rows(chosen, is_partial=True), max_size=3))
    inputs = {name: chosen[name] for name in list(chosen)[:n_inputs]}
    return make_signature(fields, draw(prose)), demos, draw(st.lists(_rows(inputs), min_size=3, max_size=3))


def _rows(
    fields: dict[str, tuple[Any, st.SearchStrategy[Any]]], *, is_partial: bool = False
) -> st.SearchStrategy[dict[str, Any]]:
    typed = {name: strategy for name, (_, strategy) in fields.items()}
    odd = {name: st.one_of(strategy, ODD_VALUES) for name, strategy in typed.items()}
    other = st.fixed_dictionaries({}, optional=typed) if is_partial else st.fixed_dictionaries(odd)
    return st.one_of(st.fixed_dictionaries(typed), other)


def format_with_dspy(predictor: dspy.Predict, adapter: dspy.Adapter, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    signature: Any = predictor.signature
    return adapter.format(signature, predictor.demos, dict(inputs))


def or_error(work: Callable[[], Any]) -> Any:
    """Return the result, or the type of the error: some values, say a list of dicts for text, DSPy cannot render."""
    try:
        return work()
    except Exception as error:
        return type(error)


def make_prompt(signature: Any, adapter: dspy.Adapter | None = None) -> Prompt:
    return Prompt(dspy.Predict(signature), adapter)


@given(tasks(), st.sampled_from(ADAPTERS))
@settings(max_examples=250)
def test_messages_are_byte_for_byte_what_dspy_sends(task: Any, adapter: dspy.Adapter):
    signature, demos, rows = task
    predictor = dspy.Predict(signature)
    predictor.demos = demos
    prompt = Prompt(predictor, adapter)

    for row in rows:
        ours = or_error(lambda row=row: prompt.messages(row))
        assert ours == or_error(lambda row=row: format_with_dspy(predictor, adapter, row))


@given(st.lists(text, min_size=1, max_size=3), st.lists(st.fixed_dictionaries({"instruction": text, "response": text})))
def test_plain_chat_messages_are_what_its_adapter_sends(asked: list[str], demos: list[dict[str, Any]]):
    program = Responder()
    program.predict.demos = demos
    prompt = Prompt.of(program)

    for instruction in asked:
        messages = prompt.messages({"instruction": instruction})
        assert messages == format_with_dspy(program.predict, PlainChat(), {"instruction": instruction})
        assert messages[-1] == {"role": "user", "content": instruction}


@pytest.mark.parametrize("name", list_programs())
def test_every_shipped_program_is_rendered_from_its_template(name: str):
    prompt = Prompt.of(build_program(name))
    fields = prompt.signature.input_fields
    inputs: dict[str, Any] = {key: [key] if "list" in str(field.annotation) else key for key, field in fields.items()}

    assert (prompt._pieces is None) == (name == "converser")  # turns of their own are no text to fill in
    assert prompt.messages(inputs) == prompt.adapter.format(prompt.signature, prompt.demos, dict(inputs))


def test_a_chain_of_thought_is_rendered_with_its_reasoning():
    chain = dspy.ChainOfThought("question -> answer: int")
    prompt = Prompt.of(chain)

    messages = prompt.messages({"question": "6 x 7"})

    assert prompt.outputs == ("reasoning", "answer")
    assert messages == format_with_dspy(chain.predict, CHAT, {"question": "6 x 7"})


def test_a_row_with_history_goes_through_dspy():
    class Chat(dspy.Signature):
        """Answer."""

        history: dspy.History = dspy.InputField()
        question: str = dspy.InputField()
        answer: str = dspy.OutputField()

    predictor = dspy.Predict(Chat)
    inputs = {"question": "and now?", "history": dspy.History(messages=[{"question": "1+1", "answer": "2"}])}

    messages = Prompt(predictor).messages(inputs)

    assert messages == format_with_dspy(predictor, CHAT, inputs)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]


def test_a_row_with_an_image_goes_through_dspy():
    class Look(dspy.Signature):
        """Look."""

        picture: dspy.Image = dspy.InputField()
        question: str = dspy.InputField()
        answer: str = dspy.OutputField()

    predictor = dspy.Predict(Look)
    inputs = {"picture": dspy.Image("https://example.org/a.png"), "question": "what?"}

    messages = Prompt(predictor).messages(inputs)

    assert messages == format_with_dspy(predictor, CHAT, inputs)
    assert any(block["type"] == "image_url" for block in messages[-1]["content"])


def test_an_image_inside_a_model_goes_through_dspy():
    class Album(BaseModel):
        cover: dspy.Image

    class Look(dspy.Signature):
        """Look."""

        album: Album = dspy.InputField()
        answer: str = dspy.OutputField()

    predictor = dspy.Predict(Look)
    inputs = {"album": Album(cover=dspy.Image("https://example.org/a.png"))}

    assert Prompt(predictor).messages(inputs) == format_with_dspy(predictor, CHAT, inputs)


def test_a_row_that_lacks_an_input_goes_through_dspy():
    predictor = dspy.Predict("first, second -> answer")

    messages = Prompt(predictor).messages({"second": "two"})

    assert messages == format_with_dspy(predictor, CHAT, {"second": "two"})


def test_marks_of_the_template_in_demos_do_not_confuse_it():
    predictor = dspy.Predict("first, second -> answer")
    predictor.demos = [{"first": "\ue0000\ue001", "second": "\ue0001\ue001", "answer": "\ue0000\ue001"}]
    inputs = {"first": "\ue0001\ue001", "second": "\ue0000\ue001"}

    assert Prompt(predictor).messages(inputs) == format_with_dspy(predictor, CHAT, inputs)


def test_one_row_leaves_nothing_behind_for_the_next():
    predictor = dspy.Predict("question -> answer")
    prompt = Prompt(predictor)
    prompt.messages({"question": "first"}).append({"role": "user", "content": "spoilt"})

    assert prompt.messages({"question": "second"}) == format_with_dspy(predictor, CHAT, {"question": "second"})


def test_a_program_with_several_predictors_has_no_single_prompt():
    class Two(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = dspy.Predict("a -> b"), dspy.Predict("b -> c")

    with pytest.raises(ConfigError, match="Two has 2 predictors; a prompt needs exactly one"):
        Prompt.of(Two())


class Weigh(dspy.Signature):
    """Weigh."""

    thing: str = dspy.InputField()
    reason: str = dspy.OutputField()
    weight: int = dspy.OutputField(ge=1, le=5)
    verdict: Literal["light", "heavy"] = dspy.OutputField()


GOOD = {"reason": "it is\nbig", "weight": 4, "verdict": "heavy"}


@pytest.mark.parametrize(
    "answer",
    [
        "[[ ## reason ## ]]\nit is\nbig\n\n[[ ## weight ## ]]\n4\n\n[[ ## verdict ## ]]\nheavy\n\n" + COMPLETED,
        "[[ ## reason ## ]]\nit is\nbig\n[[ ## weight ## ]] 4\n[[ ## verdict ## ]]\nheavy",
        "Sure!\n[[ ## reason ## ]]\nit is\nbig\n[[ ## weight ## ]]\n4\n[[ ## verdict ## ]]\n'heavy'\n",
        "reason: it is\nbig\nweight: 4\nverdict: heavy",
        "Reason:\nit is\nbig\nWeight:\n4\nVerdict:\nheavy",
        "**reason**: it is\nbig\n**weight**: 4\n**verdict**: heavy",
        "**reason:** it is\nbig\n**weight:** 4\n**verdict:** heavy",
        "**Reason:**\nit is\nbig\n**Weight:**\n4\n**Verdict:**\nheavy",
        "[[ ## Reason ## ]] it is\nbig\n[[ ## Weight ## ]] 4\n[[ ## Verdict ## ]] heavy",
        "## reason\nit is\nbig\n## weight\n4\n## verdict\nheavy",
        "### Reason:\nit is\nbig\n### Weight:\n4\n### Verdict:\nheavy",
        "[[ ## Reason ## ]]\nit is\nbig\n[[ ## Weight ## ]]\n4\n[[ ## Verdict ## ]]\nheavy",
        "[[ reason ]]\nit is\nbig\n[[ weight ]]\n4\n[[ verdict ]]\nheavy",
        "[[## reason ##]]\nit is\nbig\n[[## weight ##]]\n4\n[[## verdict ##]]\nheavy",
        "[reason]\nit is\nbig\n[weight]\n4\n[verdict]\nheavy",
        "`reason`: it is\nbig\n`weight`: 4\n`verdict`: heavy",
        '{"reason": "it is\\nbig", "weight": 4, "verdict": "heavy"}',
        '```json\n{"reason": "it is\\nbig", "weight": 4, "verdict": "heavy"}\n```',
        'Here you are: {"verdict": "heavy", "weight": "4", "reason": "it is\\nbig", "more": 1} Done.',
    ],
)
def test_an_answer_in_form_or_slightly_off_is_read(answer: str):
    parsed = make_prompt(Weigh).parse(answer)

    assert (parsed.fields, parsed.problem) == (GOOD, "")


@pytest.mark.parametrize(
    ("weight", "verdict", "problem"),
    [
        ("0", "heavy", "greater than or equal to 1"),
        ("6", "heavy", "less than or equal to 5"),
        ("-3", "heavy", "greater than or equal to 1"),
        ("very", "heavy", "weight"),
        ("4.5", "heavy", "weight"),
        ("4", "massive", "verdict"),
        ("4", "", "verdict"),
    ],
)
def test_a_value_out_of_bounds_or_type_is_no_answer(weight: str, verdict: str, problem: str):
    text = f"[[ ## reason ## ]]\nx\n[[ ## weight ## ]]\n{weight}\n[[ ## verdict ## ]]\n{verdict}\n{COMPLETED}"

    parsed = make_prompt(Weigh).parse(text)

    assert parsed.fields is None
    assert problem in parsed.problem
    assert len(parsed.problem) <= 300 and "\n" not in parsed.problem


@pytest.mark.parametrize("text", ["0", "6", '{"score": 9}', "[[ ## reason ## ]]\nx\n[[ ## score ## ]]\n7"])
def test_a_score_off_the_scale_is_no_answer(text: str):
    assert Prompt.of(ResponseJudge()).parse(text).fields is None


def test_a_missing_field_is_named():
    parsed = make_prompt(Weigh).parse("[[ ## reason ## ]]\nbig\n[[ ## verdict ## ]]\nheavy\n")

    assert parsed.fields is None
    assert parsed.problem == "the field 'weight' is missing or unreadable"


def test_bounds_leave_an_absent_optional_value_alone():
    class Guess(dspy.Signature):
        """Guess."""

        thing: str = dspy.InputField()
        reason: str = dspy.OutputField()
        weight: int | None = dspy.OutputField(ge=1)

    prompt = make_prompt(Guess)

    assert prompt.parse("[[ ## reason ## ]]\nx\n[[ ## weight ## ]]\nnull").fields == {"reason": "x", "weight": None}
    assert prompt.parse("[[ ## reason ## ]]\nx\n[[ ## weight ## ]]\n0").fields is None


def test_bounds_inside_nested_values_are_kept():
    class Step(BaseModel):
        minutes: int = Field(ge=1)

    class Plan(dspy.Signature):
        """Plan."""

        goal: str = dspy.InputField()
        steps: list[Step] = dspy.OutputField(min_length=2)

    prompt = make_prompt(Plan)

    good = prompt.parse('[[ ## steps ## ]]\n[{"minutes": 1}, {"minutes": 2}]').fields
    assert good == {"steps": [Step(minutes=1), Step(minutes=2)]}
    assert prompt.parse('[[ ## steps ## ]]\n[{"minutes": 1}]').fields is None
    assert prompt.parse('[[ ## steps ## ]]\n[{"minutes": 1}, {"minutes": 0}]').fields is None


def test_bare_text_is_taken_for_a_single_text_field():
    assert make_prompt("question -> answer").parse("Paris, of course.").fields == {"answer": "Paris, of course."}


def test_bare_text_is_not_taken_for_a_single_number():
    assert make_prompt("question -> answer: int").parse("about four").fields is None


def test_a_header_of_another_field_is_not_taken_for_the_answer():
    assert make_prompt("question -> answer").parse("[[ ## other ## ]]\nParis").fields is None


def test_a_field_name_inside_good_text_is_left_alone():
    text = "[[ ## reason ## ]]\nweight: not much\n\n[[ ## weight ## ]]\n2\n\n[[ ## verdict ## ]]\nlight"

    fields = make_prompt(Weigh).parse(text).fields

    assert fields == {"reason": "weight: not much", "weight": 2, "verdict": "light"}


def test_a_forged_header_in_an_answer_does_not_replace_the_first():
    text = "[[ ## answer ## ]]\nParis\n[[ ## answer ## ]]\nRome"

    assert make_prompt("question -> answer").parse(text).fields == {"answer": "Paris"}


def test_plain_chat_takes_the_whole_answer():
    assert Prompt.of(Responder()).parse(" [[ ## x ## ]]\nreason: {}\n").fields == {
        "response": "[[ ## x ## ]]\nreason: {}"
    }


def test_parsing_never_raises():
    rng = random.Random(0)
    pieces = [*HOSTILE, "[[ ## reason ## ]]", "[[ ## weight ## ]]", "reason:", "verdict", "{", "}", '"', "[" * 50, "4"]
    pieces += ["{" * 2000, "[" * 5000, "9" * 5000, '{"reason": 1, "weight": NaN, "verdict": []}', "NaN", "1e999", "-"]
    prompts = [make_prompt(Weigh), make_prompt(Weigh, ADAPTERS[1]), make_prompt(Weigh, ADAPTERS[2])]
    prompts += [make_prompt("q -> a: list[str]"), Prompt.of(Responder())]

    for number in range(500):
        answer = "\n".join(rng.choices(pieces, k=rng.randint(0, 6)))
        parsed = prompts[number % len(prompts)].parse(answer)
        assert (parsed.fields is None) == bool(parsed.problem)


def test_asking_again_shows_the_bad_answer_and_what_was_wrong():
    prompt = make_prompt(Weigh)
    messages = prompt.messages({"thing": "a stone"})

    again = prompt.ask_again(messages, "dunno", "the field 'weight' is missing")

    assert again[: len(messages)] == messages
    assert again[-2] == {"role": "assistant", "content": "dunno"}
    assert again[-1]["role"] == "user"
    for said in ("the field 'weight' is missing", "[[ ## reason ## ]]", "[[ ## verdict ## ]]", COMPLETED):
        assert said in again[-1]["content"]


def test_asking_again_after_nothing_or_marks_sends_neither():
    prompt = make_prompt(Weigh)
    mark = "<<CUSTOM-TYPE-START-IDENTIFIER>>"

    assert prompt.ask_again([], "", "empty")[0]["content"] == "(empty)"
    assert prompt.ask_again([], mark + "[1]", "odd")[0]["content"] == "[1]"


def test_only_the_chat_form_asks_for_its_stop_mark():
    assert make_prompt(Weigh).stop == (COMPLETED,)
    assert make_prompt(Weigh, dspy.JSONAdapter()).stop == ()
    assert Prompt.of(Responder()).stop == ()


def test_a_bare_answer_to_a_single_text_field_loses_its_preamble() -> None:
    prompt = Prompt(dspy.Predict("topic -> line"))

    for text in ("Here is my answer.\n\nBread rises.", "Sure! Here you go:\nBread rises.", "Bread rises."):
        assert prompt.parse(text).fields == {"line": "Bread rises."}
    assert prompt.parse("Here is where bread rises.").fields == {"line": "Here is where bread rises."}


class Stop(BaseModel):
    place: str = Field(description="where")
    minutes: int = Field(ge=1, le=90)
    kind: Literal["bus", "train"] = "bus"


class Journey(BaseModel):
    """A journey."""

    stops: list[Stop] = Field(min_length=1)
    note: str | None = None


class Travel(dspy.Signature):
    """Plan a journey."""

    goal: str = dspy.InputField()
    title: str = dspy.OutputField(desc="a title", max_length=30)
    score: int = dspy.OutputField(ge=1, le=5)
    verdict: Literal["yes", "no"] = dspy.OutputField()
    journey: Journey = dspy.OutputField()
    tags: list[str] = dspy.OutputField(max_length=3)


TRAVELLED = {
    "title": "Over the hills",
    "score": 4,
    "verdict": "yes",
    "journey": {"stops": [{"place": "Bern", "minutes": 30, "kind": "train"}], "note": None},
    "tags": ["slow"],
}


def list_objects(node: Any) -> list[dict[str, Any]]:
    """Return every part of a schema that describes an object with fields."""
    if isinstance(node, list):
        return [found for item in node for found in list_objects(item)]
    if not isinstance(node, dict):
        return []
    own = [node] if isinstance(node.get("properties"), dict) and node.get("type") == "object" else []
    return own + [found for value in node.values() for found in list_objects(value)]


def test_the_schema_keeps_bounds_choices_and_lengths():
    schema = make_prompt(Travel).structured().schema

    assert schema is not None
    fields = schema["properties"]
    assert fields["score"] == {"type": "integer", "minimum": 1, "maximum": 5}
    assert fields["verdict"] == {"type": "string", "enum": ["yes", "no"]}
    assert fields["title"] == {"type": "string", "maxLength": 30}
    assert fields["tags"] == {"type": "array", "items": {"type": "string"}, "maxItems": 3}
    stop = schema["$defs"]["Stop"]["properties"]
    assert stop["minutes"] == {"type": "integer", "minimum": 1, "maximum": 90}
    assert stop["kind"] == {"type": "string", "enum": ["bus", "train"]}
    assert schema["$defs"]["Journey"]["properties"]["stops"]["minItems"] == 1


def test_every_object_of_the_schema_is_closed_and_wants_all_its_fields():
    schema = make_prompt(Travel).structured().schema

    objects = list_objects(schema)
    assert sorted(list(each["properties"]) for each in objects) == [
        ["place", "minutes", "kind"],
        ["stops", "note"],
        ["title", "score", "verdict", "journey", "tags"],
    ]
    assert all(each["additionalProperties"] is False for each in objects)
    assert all(each["required"] == list(each["properties"]) for each in objects)
    assert not {"description", "default"} & set(re.findall(r'"(\w+)":', json.dumps(schema)))


def test_a_field_called_like_a_keyword_stays_a_field():
    class Odd(BaseModel):
        description: str
        default: int
        properties: list[str]
        enum: str

    class Name(dspy.Signature):
        """Name."""

        thing: str = dspy.InputField()
        title: str = dspy.OutputField()
        odd: Odd = dspy.OutputField()

    schema = make_prompt(Name).structured(50).schema

    assert schema is not None
    assert schema["required"] == ["title", "odd"]
    odd = schema["$defs"]["Odd"]
    assert odd["required"] == ["description", "default", "properties", "enum"]
    assert odd["properties"]["description"] == {"type": "string", "minLength": 1, "maxLength": 50}
    assert odd["properties"]["enum"] == {"type": "string", "minLength": 1, "maxLength": 50}


def test_the_longest_text_bounds_texts_and_nothing_else():
    schema = make_prompt(Travel).structured(20).schema

    assert schema is not None
    fields, stop = schema["properties"], schema["$defs"]["Stop"]["properties"]
    text_of_20 = {"type": "string", "minLength": 1, "maxLength": 20}
    assert fields["title"] == fields["tags"]["items"] == stop["place"] == text_of_20
    assert schema["$defs"]["Journey"]["properties"]["note"]["anyOf"] == [text_of_20, {"type": "null"}]
    assert fields["verdict"] == {"type": "string", "enum": ["yes", "no"]}
    assert fields["score"] == {"type": "integer", "minimum": 1, "maximum": 5}
    longer = make_prompt(Travel).structured(99).schema
    assert longer is not None and longer["properties"]["title"]["maxLength"] == 30


@given(tasks())
@settings(max_examples=60)
def test_messages_with_a_schema_are_byte_for_byte_those_of_dspys_json_adapter(task: Any):
    signature, demos, rows = task
    predictor = dspy.Predict(signature)
    predictor.demos = demos
    prompt = or_error(lambda: Prompt(predictor).structured())
    assume(isinstance(prompt, Prompt))

    for row in rows:
        ours = or_error(lambda row=row: prompt.messages(row))
        assert ours == or_error(lambda row=row: format_with_dspy(predictor, dspy.JSONAdapter(), row))


def test_the_form_with_a_schema_is_built_once_for_each_length():
    prompt = make_prompt(Travel)

    assert prompt.structured() is prompt.structured()
    assert prompt.structured(20) is prompt.structured(20)
    assert prompt.structured(20) is not prompt.structured()
    assert prompt.structured(20).structured() is prompt.structured(20)
    assert prompt.schema is None


def test_an_answer_to_a_schema_is_read_with_its_bounds():
    prompt = make_prompt(Travel).structured()

    fields = prompt.parse(json.dumps(TRAVELLED)).fields

    journey = Journey(stops=[Stop(place="Bern", minutes=30, kind="train")])
    assert fields == TRAVELLED | {"journey": journey}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"score": 6}, "less than or equal to 5"),
        ({"score": 0}, "greater than or equal to 1"),
        ({"title": "x" * 31}, "at most 30 characters"),
        ({"tags": ["a", "b", "c", "d"]}, "at most 3 items"),
        ({"verdict": "maybe"}, "verdict"),
        ({"journey": {"stops": [], "note": None}}, "stops"),
        ({"journey": {"stops": [{"place": "Bern", "minutes": 91}]}}, "minutes"),
    ],
)
def test_an_answer_outside_its_schema_is_no_answer(change: dict[str, Any], problem: str):
    parsed = make_prompt(Travel).structured().parse(json.dumps(TRAVELLED | change))

    assert parsed.fields is None
    assert problem in parsed.problem


def test_a_field_missing_from_an_answer_to_a_schema_is_named():
    short = {name: value for name, value in TRAVELLED.items() if name != "score"}

    parsed = make_prompt(Travel).structured().parse(json.dumps(short))

    assert (parsed.fields, parsed.problem) == (None, "the field 'score' is missing or unreadable")


def test_keywords_for_one_call_narrow_a_copy_of_the_schema():
    schema = make_prompt(Travel).structured().schema
    assert schema is not None
    before = json.dumps(schema)

    narrowed = narrow_schema(schema, {"tags": {"minItems": 2, "maxItems": 2}, "score": {"maximum": 3}})

    assert narrowed["properties"]["tags"] == {
        "type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2,
    }  # fmt: skip
    assert narrowed["properties"]["score"] == {"type": "integer", "minimum": 1, "maximum": 3}
    assert list(narrowed["properties"]) == list(schema["properties"])
    assert json.dumps(schema) == before


def test_plain_chat_has_no_form_with_a_schema():
    prompt = Prompt.of(Responder())

    assert prompt.structured(99) is prompt
    assert (prompt.schema, prompt.is_plain) == (None, True)


@pytest.mark.parametrize("name", [name for name in list_programs() if name != "responder"])
def test_every_shipped_program_with_fields_has_a_schema(name: str):
    prompt = Prompt.of(build_program(name)).structured(80)

    if prompt.is_plain:
        assert prompt.schema is None
    else:
        assert prompt.schema is not None
        assert prompt.schema["required"] == list(prompt.outputs)
        assert all(each["additionalProperties"] is False for each in list_objects(prompt.schema))


def test_asking_again_names_the_form_that_was_asked_for():
    words = make_prompt(Weigh).ask_again([], "dunno", "x")[-1]["content"]
    schema = make_prompt(Weigh).structured().ask_again([], "dunno", "x")[-1]["content"]

    assert words == (
        "That answer could not be used: x. Answer the same request again, in full, with the fields [[ ## reason ## ]], "
        f"[[ ## weight ## ]], [[ ## verdict ## ]], each header on its own line, and end with {COMPLETED}."
    )
    assert schema == (
        "That answer could not be used: x. Answer the same request again, in full, as one JSON object with the fields "
        "reason, weight, verdict and nothing else."
    )
