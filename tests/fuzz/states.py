"""Hostile states: saved states of several programs, changed in every way an editor, a disk or an attacker might."""

import gzip
import hashlib
import io
import json
import pickle
import random
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dspy

from matrix_dspy.loading import build_program, read_signature
from matrix_dspy.programs.modulator import Delivery
from tests.fuzz.mutations import LEVELS, MARKS, SURROGATES, TONGUES, WRONG_VALUES, spoil_text

State = dict[str, Any]
Change = Callable[[random.Random, State, State], None]
"""Changes a state in its place; the last is the state of another program."""
Spoil = Callable[[random.Random, bytes], bytes]

INPUTS: dict[str, dict[str, Any]] = {
    "critic": {"instruction": "Name a river.", "response": "The Alps."},
    "reception_router": {"members": ["1: a baker", "2: a nurse"], "events": ["0: it rains"]},
    "instruction_rater": {"instruction": "Name a river."},
    "responder": {"instruction": "Name a river?"},
}
DEMOS: dict[str, list[dict[str, Any]]] = {
    "critic": [
        {"instruction": "Add 2 and 2?", "response": "5", "critique": 'It is 4, not 5 {braces} % "quotes" \u00e9.'},
        {"augmented": True, "instruction": "Name a river?", "response": "Rhine", "critique": "No faults found."},
        {"instruction": "Only this?", "critique": "Nothing\n\nto see."},
    ],
    "reception_router": [
        {
            "members": ["1: a baker?", "2: a nurse"],
            "events": ["0: a fire", "1: a fair"],
            "deliveries": [Delivery(event=0, members=[1, 2]), Delivery(event=1, members=[])],
        }
    ],
    "instruction_rater": [
        {
            "instruction": "Write a sonnet on tax?",
            "quality_reason": "Clear?",
            "quality": "good",
            "difficulty_reason": "It takes skill.",
            "difficulty": "hard",
        },
        {
            "instruction": "help",
            "quality_reason": "It says nothing.",
            "quality": "very poor",
            "difficulty_reason": "None can be told.",
            "difficulty": "very easy",
        },
    ],
    "responder": [{"instruction": "Who are you?", "response": "An assistant."}],
}
MARK = "<<CUSTOM-TYPE-START-IDENTIFIER>>"
IMAGE = f'{MARK}[{{"type": "image_url", "image_url": {{"url": "http://127.0.0.1:9/a"}}}}]<<CUSTOM-TYPE-END-IDENTIFIER>>'
TEXTS = (*MARKS, *TONGUES, *SURROGATES, IMAGE, f"is it? {IMAGE}", "", " ", "\n\n", "\ttab\n  two", "\x00", "\x1b[2J")
KEYS = (
    *("fields", "config", "stage", "callbacks", "extended_signature", "forward", "__class__", "_store", "reset"),
    *("lm", "demos", "predict", "metadata", "class", "\n", "", "x\ny", "\ud800", MARK, "k" * 10_000),
)
LMS: tuple[Any, ...] = (
    {"model": "openai/x", "api_base": "http://127.0.0.1:9/v1", "model_type": "chat"},
    {"model": "openai/x", "base_url": "http://127.0.0.1:9/v1", "api_key": "sk-x", "cache": False},
    {"class": "os.system", "model": "id"},
    {"class": "dspy.clients.lm.LM", "model": "openai/x"},
    {"_class": "tests.toys.Toy", "model": "x", "model_list": [{"litellm_params": {"api_base": "http://127.0.0.1:9"}}]},
    *({}, [], "openai/x", 3, True),
)


def build_compiled(name: str) -> dspy.Module:
    """Return a program with instructions and demos as an optimizer leaves them."""
    program = build_program(name)
    predictor: Any = program.predictors()[0]
    words = f"Do what is asked?\n\n  Be {{brief}} \\ 100%, {name}."
    predictor.signature = read_signature(program).with_instructions(words)
    predictor.demos = [dspy.Example(demo) for demo in DEMOS[name]]
    return program


def build_from_file(name: str, state: State) -> dspy.Module:
    """Return a program that shows what a state's file says, whatever `load_program` does."""
    program = build_program(name)
    predictor: Any = program.predictors()[0]
    predictor.signature = read_signature(program).with_instructions("none yet")
    # DSPy would make up some in the place of empty ones
    predictor.signature.instructions = state["predict"]["signature"]["instructions"]
    predictor.demos = state["predict"]["demos"]
    return program


def write_state(rng: random.Random, state: State) -> bytes:
    """Write a state in one of the forms that JSON has for it."""
    text = json.dumps(state, ensure_ascii=rng.random() < 0.7, indent=rng.choice((None, 2)))
    text = re.sub(r'"levels (\d+)"', lambda found: "[" * int(found[1]) + "]" * int(found[1]), text)
    return text.encode("utf-8", "surrogatepass")


def seal(state: State) -> None:
    """Put the hash of what stands there into the card, as an attacker would; where nothing can be hashed, none."""
    try:
        shown = {name: _sort_for_hash(found) for name, found in sorted(state.items()) if name != "metadata"}
        text = json.dumps(shown, ensure_ascii=False)
        state["metadata"]["matrix_dspy"]["state_sha256"] = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    except (AttributeError, KeyError, TypeError, RecursionError):
        return


def _sort_for_hash(predictor: Mapping[str, Any]) -> dict[str, Any]:
    signature = json.loads(json.dumps(predictor["signature"], sort_keys=True))
    demos = [dict(sorted(demo.items())) for demo in predictor["demos"]]
    return {"demos": demos, "lm": None, "signature": signature, "traces": [], "train": []}


def _list_places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Give every container inside of a value with every key it has."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _list_places(value[key])


def _pick(rng: random.Random, state: State, kind: type | tuple[type, ...] = object) -> tuple[Any, Any]:
    """Return a container and a key whose value is of a kind, at any depth; metadata is drawn less often."""
    root = state if rng.random() < 0.3 else {key: value for key, value in state.items() if key != "metadata"}
    places = [place for place in _list_places(root) if isinstance(place[0][place[1]], kind)]
    container, key = rng.choice(places or list(_list_places(state)))
    return (state if container is root else container), key


def _drop(rng: random.Random, state: State, _: State) -> None:
    container, key = _pick(rng, state)
    del container[key]


def _add_key(rng: random.Random, state: State, _: State) -> None:
    container, key = _pick(rng, state, dict)
    container[key][rng.choice(KEYS)] = rng.choice((*WRONG_VALUES, *LMS, "levels 3"))


def _rename_key(rng: random.Random, state: State, _: State) -> None:
    container, key = _pick(rng, state, dict)
    if inner := container[key]:
        name = rng.choice(list(inner))
        inner[rng.choice((*KEYS, name.upper(), f"{name} "))] = inner.pop(name)


def _replace(rng: random.Random, state: State, _: State) -> None:
    container, key = _pick(rng, state)
    container[key] = rng.choice(WRONG_VALUES)


def _retype(rng: random.Random, state: State, _: State) -> None:
    container, key = _pick(rng, state)
    value = container[key]
    if isinstance(value, dict):
        container[key] = rng.choice((list(value.items()), list(value), json.dumps(value)))
    elif isinstance(value, list):
        container[key] = rng.choice(
            ({str(place): item for place, item in enumerate(value)}, json.dumps(value), [value])
        )
    else:
        container[key] = rng.choice(([value], {"value": value}, str(value), None, f"{value}\n"))


def _exchange(rng: random.Random, state: State, _: State) -> None:
    one, first = _pick(rng, state)
    other, second = _pick(rng, state)
    # of one inside of the other a copy, or the state would hold itself
    one_value, other_value = json.loads(json.dumps([one[first], other[second]]))
    one[first] = other_value
    if second in other if isinstance(other, dict) else second < len(other):
        other[second] = one_value


def _reorder(rng: random.Random, state: State, _: State) -> None:
    container, key = _pick(rng, state, (dict, list))
    value = container[key]
    order = list(value)
    rng.shuffle(order)
    container[key] = {name: value[name] for name in order} if isinstance(value, dict) else order


def _turn_all_keys(_: random.Random, state: State, __: State) -> None:
    for container, key in list(_list_places(state)):
        if isinstance(value := container[key], dict):
            for name in reversed(list(value)):
                value[name] = value.pop(name)


def _repeat(rng: random.Random, state: State, _: State) -> None:
    container, key = _pick(rng, state, list)
    container[key] = container[key] * rng.choice((2, 3, 500))


def _bury(rng: random.Random, state: State, _: State) -> None:
    container, key = _pick(rng, state)
    container[key] = f"levels {rng.choice((*LEVELS, *range(960, 1000), 100_000))}"


def _inflate(rng: random.Random, state: State, _: State) -> None:
    container, key = _pick(rng, state, str)
    container[key] = str(container[key]) * rng.choice((100, 10_000))


def _spoil_a_text(rng: random.Random, state: State, _: State) -> None:
    container, key = _pick(rng, state, str)
    container[key] = spoil_text(rng, str(container[key]))


def _put_a_text(rng: random.Random, state: State, _: State) -> None:
    container, key = _pick(rng, state, str)
    container[key] = rng.choice(("", str(container[key]))) + rng.choice(TEXTS)


def _put_surrogates(rng: random.Random, state: State, _: State) -> None:
    half = rng.choice(SURROGATES)
    for container, key in list(_list_places(state)):
        if isinstance(container[key], str):
            container[key] = container[key].replace("?", half)


def _change_field(rng: random.Random, state: State, other: State) -> None:
    fields = state["predict"]["signature"]["fields"]
    place = rng.randrange(len(fields))
    way = rng.randrange(7)
    if way == 0:
        fields.reverse()
    elif way == 1:
        fields[0], fields[place] = fields[place], fields[0]
    elif way == 2:
        del fields[place]
    elif way == 3:
        fields.insert(place, rng.choice((*WRONG_VALUES, {"prefix": "More:", "description": "more"})))
    elif way == 4:
        fields[place][rng.choice(("prefix", "description"))] += rng.choice(TEXTS) or "."
    elif way == 5:
        fields[place]["prefix"], fields[0]["prefix"] = fields[0]["prefix"], fields[place]["prefix"]
    else:
        state["predict"]["signature"]["fields"] = other["predict"]["signature"]["fields"]


def _change_instructions(rng: random.Random, state: State, _: State) -> None:
    signature = state["predict"]["signature"]
    signature["instructions"] = rng.choice(TEXTS) + rng.choice(("", "x", f"\n  {signature['instructions']}"))


def _change_demos(rng: random.Random, state: State, other: State) -> None:
    demos = state["predict"]["demos"]
    way = rng.randrange(9)
    if way == 0:
        demos.reverse()
    elif way == 1:
        demos.pop()
    elif way == 2:
        demos += other["predict"]["demos"]
    elif way == 3:
        demos[0] = other["predict"]["demos"][0]
    elif way == 4:
        demos *= rng.choice((2, 64, 65, 1_000))
    elif way == 5:
        demos.insert(0, rng.choice(({}, {"augmented": True}, *WRONG_VALUES)))
    elif way == 6:
        demos += [{}] * rng.choice((60, 10_000, 100_000))
    elif way == 7:
        demos[0] = dict(reversed(demos[0].items()))
    else:
        state["predict"]["demos"] = []


def _change_a_demo(rng: random.Random, state: State, _: State) -> None:
    demo = rng.choice(state["predict"]["demos"])
    name, other = rng.choice(list(demo)), rng.choice(list(demo))
    way = rng.randrange(7)
    if way == 0:
        demo[name], demo[other] = demo[other], demo[name]
    elif way == 1:
        del demo[name]
    elif way == 2:
        demo[rng.choice(KEYS)] = demo[name]
    elif way == 3:
        demo[name] = rng.choice(WRONG_VALUES)
    elif way == 4:
        demo[name] = "all work and no play? " * rng.choice((10_000, 400_000))
    elif way == 5:
        demo["augmented"] = rng.choice((*WRONG_VALUES, *TEXTS, "levels 900"))
    else:
        demo[name] = rng.choice(TEXTS)


def _change_inside_a_demo(rng: random.Random, state: State, _: State) -> None:
    """Change a delivery where there is one, else any text of a demo."""
    demos = state["predict"]["demos"]
    inner = [(container, key) for container, key in _list_places(demos) if isinstance(container[key], dict)]
    container, key = rng.choice([place for place in inner if "event" in place[0][place[1]]] or inner)
    value = container[key]
    way = rng.randrange(4)
    if way == 0:
        container[key] = dict(reversed(value.items()))
    elif way == 1:
        value[rng.choice(KEYS)] = rng.choice((*TEXTS, "levels 40"))
    elif way == 2:
        value[rng.choice(list(value))] = rng.choice(("5", True, 1.0, [True, "7"], 10**30, *WRONG_VALUES))
    else:
        container[key] = {**value, "event": rng.choice((-1, "1", 1.0, True, MARK))}


def _put_lm(rng: random.Random, state: State, _: State) -> None:
    state["predict"]["lm"] = rng.choice(LMS)


def _put_payload(rng: random.Random, state: State, _: State) -> None:
    payload = pickle.dumps(_Evil(), 0).decode("latin-1")
    state["predict"][rng.choice(("traces", "train"))] = rng.choice(
        ([payload], [[IMAGE]], [{"py/reduce": [{"py/function": "os.system"}, ["id"]]}], *WRONG_VALUES)
    )


def _put_predictor(rng: random.Random, state: State, other: State) -> None:
    way = rng.randrange(5)
    if way == 0:
        state["predict"] = other["predict"]
    elif way == 1:
        state[rng.choice(KEYS)] = other["predict"]
    elif way == 2:
        state[rng.choice(("self", "predict.predict", "PREDICT", "predict\n"))] = state.pop("predict")
    elif way == 3:
        state["predict"]["signature"] = other["predict"]["signature"]
    else:
        metadata = state.pop("metadata")
        state.update({f"p{number}": state["predict"] for number in range(rng.choice((1, 30)))}, metadata=metadata)


def _change_card(rng: random.Random, state: State, other: State) -> None:
    card, foreign = state["metadata"]["matrix_dspy"], other["metadata"]["matrix_dspy"]
    way = rng.randrange(8)
    if way == 0:
        state["metadata"]["matrix_dspy"] = foreign
    elif way == 1:
        card["program"] = rng.choice((foreign["program"], "os.system", "../critic", "", "a\nb", "x" * 10**6, None, 3))
    elif way == 2:
        card["fields"] = rng.choice((foreign["fields"], card["fields"][::-1], card["fields"][1:], *WRONG_VALUES))
    elif way == 3:
        key = rng.choice(("state_sha256", "prompt_sha256"))
        card[key] = rng.choice((foreign[key], card[key].upper(), f"{card[key]}\n", "\n" * 20, *WRONG_VALUES))
    elif way == 4:
        card |= {"measured": True, "accepted": True, "test": {"gain": {"value": 9.9}}, "lm": "x"}
    elif way == 5:
        del card[rng.choice(list(card))]
    elif way == 6:
        card[rng.choice(KEYS)] = rng.choice((*WRONG_VALUES, *TEXTS))
    else:
        card["program"], card["fields"] = foreign["program"], foreign["fields"]


def _change_versions(rng: random.Random, state: State, _: State) -> None:
    metadata = state["metadata"]
    odd = {"numpy": "0", "../x": [1], "dspy": "2.4", "": None, "python": {"a": 1}}
    metadata["dependency_versions"] = rng.choice((odd, {}, None, 3, "x", [odd]))


CHANGES: tuple[Change, ...] = (
    *(_drop, _add_key, _rename_key, _replace, _retype, _exchange, _reorder, _turn_all_keys, _repeat, _bury, _inflate),
    *(_spoil_a_text, _put_a_text, _put_surrogates, _change_field, _change_instructions, _change_demos, _change_a_demo),
    *(_change_inside_a_demo, _put_lm, _put_payload, _put_predictor, _change_card, _change_versions),
)


class _Evil:
    """Opens a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("/dev/null", "w")


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def _flip(rng: random.Random, content: bytes) -> bytes:
    flipped = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 20))):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _lose(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.choice((1, 1, 50)) :]


def _stick_in(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + rng.randbytes(rng.choice((1, 8))) + content[start:]


def _encode(rng: random.Random, content: bytes) -> bytes:
    text = content.decode()
    way = rng.choice(("utf-8-sig", "utf-16", "utf-32", "utf-7", "cp037", "latin-1"))
    return text.encode(way, "replace")


def _pack(rng: random.Random, content: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("state.json", content)
    return rng.choice((gzip.compress(content, mtime=0), zlib.compress(content), held.getvalue()))


def _pickle(rng: random.Random, content: bytes) -> bytes:
    value = rng.choice((json.loads(content), _Evil(), [_Evil(), content]))
    return pickle.dumps(value, rng.choice((0, 2, 5)))


def _put_constant(rng: random.Random, content: bytes) -> bytes:
    """Put what Python reads as a number, and JSON does not have, in the place of a value."""
    value = rng.choice((b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1E+400", b"1e-400", b"9" * 400, b"9" * 5_000))
    places = [found.span(1) for found in re.finditer(rb': ("[^"]*"|null|true|\[\])', content)]
    start, end = rng.choice(places)
    return content[:start] + value + content[end:]


def _put_twin(rng: random.Random, content: bytes) -> bytes:
    """Let a key stand twice, in the whole or in an object within; the first or the last is the right one."""
    state = json.loads(content)
    way = rng.randrange(4)
    if way == 0:
        demos = [{**demo, **dict.fromkeys(demo, "evil")} for demo in state["predict"]["demos"]]
        twin = json.dumps({**state["predict"], "demos": demos}).encode()
        return rng.choice((b'{"predict": ' + twin + b"," + content[1:], content[:-2] + b', "predict": ' + twin + b"}"))
    key = (b'"instructions"', b'"state_sha256"', b'"program"')[way - 1]
    return content.replace(key, key + b': "evil", ' + key)


def _frame(rng: random.Random, content: bytes) -> bytes:
    before, after = rng.choice(
        (
            *((b"", b"\x00"), (b"[", b"]"), (b"", b"{}"), (b"", content), (b"// a state\n", b""), (b"\x00", b"")),
            *((b" \r\n\t", b"\n\n"), (b"(", b")"), (b")]}',\n", b""), (b"#!/bin/sh\n", b""), (b"", b" " * 100)),
        )
    )
    return before + content + after


def _rewrite(rng: random.Random, content: bytes) -> bytes:
    old, new = rng.choice(
        (
            *((b'"', b"'"), (b"\n", b"\r\n"), (b"}", b",}"), (b"?", b"\xff"), (b"?", b"\\ud800"), (b"?", b"\\u0000")),
            *((b"?", b"\\u003f"), (b"a", b"\\u0061"), (b"/", b"\\/"), (b" ", b"\xc0\xa0"), (b"?", b"\xed\xa0\x80")),
            *((b"null", b"None"), (b"[]", b"{}"), (b"{", b"[")),
        )
    )
    return content.replace(old, new)


def _be_another(rng: random.Random, _: bytes) -> bytes:
    large = b'{"metadata": {"matrix_dspy": {"program": "critic", "fields": ['
    return rng.choice(
        (
            *(b"", b"\n", b"null", b"true", b"0", b'"x"', b"[]", b"{}", b"[[[[", b'{"a"', b"NaN", b"\x89PNG\r\n"),
            *(b"[" * 200_000, b'{"a":' * 200_000, b"[" * 10**6 + b"]" * 10**6, b" " * 10**6, large + b"1," * 10**5),
            *(b'{"metadata": {"matrix_dspy": {}}}', b'{"metadata": {"matrix_dspy": {"program": "critic"}}}'),
            large + b"1," * 400_000 + b"1]}}}",
        )
    )


SPOILS: tuple[Spoil, ...] = (
    *(_cut, _flip, _lose, _stick_in, _encode, _pack, _pickle, _put_constant, _put_twin, _frame, _rewrite, _be_another),
)
