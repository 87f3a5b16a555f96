"""Requests about programming, each with the code it is about, and answers whose code parses and whose tests pass."""

import random
import re
from collections.abc import Mapping

from matrix_dspy.engine.rehearsal.grammar import bare, sentence
from matrix_dspy.engine.rehearsal.material import Material
from matrix_dspy.engine.rehearsal.shapes import (
    SHAPES,
    Fault,
    Found,
    Shape,
    break_source,
    draw_names,
    fill,
    find_code,
    find_wish,
)
from matrix_dspy.text import count_words

TASKS = ("write", "debug", "explain", "test", "refactor")
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
_NAMED = re.compile(r"`([a-z_]\w*)`")
_TEST = re.compile(r"\b(?:unit )?tests?\b|\basserts?\b|\bassertions?\b", re.IGNORECASE)
_TRIES = 40


def write_code_request(material: Material, task: str, *, is_specialised: bool, most_words: int, lead: str) -> str:
    """Write a request that holds the code it is about; as many demands as `is_specialised` wants and words allow."""
    rng = material.rng
    least = 42 if is_specialised else 0
    text = ""
    for _ in range(_TRIES):
        ask, code = _draw_ask(material, task)
        before = [lead] * (bool(lead) and (is_specialised or rng.random() < 0.7))
        demands = [material.sentence((frame,)) for frame in rng.sample(_DEMANDS, 5)]
        wanted = rng.randint(3, 4) if is_specialised else rng.randint(0, 1)
        after, spare = demands[:wanted], demands[wanted:]
        text = _join(before, ask, code, after)
        while count_words(text) < least and spare:
            after.append(spare.pop())
            text = _join(before, ask, code, after)
        while count_words(text) > most_words and (after or before):
            (after or before).pop()
            text = _join(before, ask, code, after)
        if least <= count_words(text) <= most_words:
            break
    return text


def _draw_ask(material: Material, task: str) -> tuple[str, str]:
    """Return the sentences that ask, and the code they are about, which is empty for code yet to be written."""
    rng = material.rng
    shape = rng.choice(SHAPES)
    names = draw_names(_name_function(material), rng)
    fault = rng.choice(shape.faults)
    does = fill(rng.choice(shape.does), names)
    material.given({"does": does, "fn": f"`{names['fn']}`", "symptom": fault.symptom})
    ask = material.sentence(_ASKS[task])
    source = {"debug": break_source(shape, fault), "refactor": shape.clumsy, "write": ""}.get(task, shape.source)
    return ask, fill(source, names)


def _name_function(material: Material) -> str:
    words = [word for word in re.findall(r"[a-z]+", bare(material["object"]).lower()) if len(word) > 2][:2]
    noun = "_".join(words) or "items"
    verb = material.rng.choice(_VERBS)
    return f"{verb}_{noun}" if material.rng.random() < 0.7 else f"{noun}_{material.rng.choice(_ENDS)}"


def _join(before: list[str], ask: str, code: str, after: list[str]) -> str:
    head = " ".join([*before, ask])
    block = f"\n\n```python\n{code}\n```\n\n" if code else " "
    return f"{head}{block}{' '.join(after)}".strip()


def answer_code_request(request: str, material: Material, *, is_low: bool = False) -> str | None:
    """Answer a request about code that is known; None where it is not."""
    rng = material.rng
    if (found := _find_given(request)) is not None:
        names = draw_names(found.names["fn"], rng) | dict(found.names)
        write = _mend if found.fault else _refactor if found.is_clumsy else _explain
        # what stands below the code are demands on the answer
        if write is _explain and _TEST.search(request.partition("```")[0]):
            write = _test
    elif (wish := find_wish(request)) is not None:
        shape, numbers = wish
        named = _NAMED.search(request)
        names = draw_names(named[1] if named else _name_function(material), rng) | numbers
        found, write = Found(shape, None, False, names), _write
    else:
        return None
    material.given({"fn": f"`{names['fn']}`"})
    if is_low:
        return _answer_poorly(found, names, rng)
    return write(found, names, material)


def _find_given(request: str) -> Found | None:
    blocks = (found[1] for found in _BLOCK.finditer(request[:6000]))
    return next((found for block in blocks if (found := find_code(block)) is not None), None)


def _answer_poorly(found: Found, names: Mapping[str, str], rng: random.Random) -> str:
    """Give code without tests or reasons, and often a wrong one."""
    shape = found.shape
    faults: tuple[Fault, ...] = (found.fault,) if found.fault else shape.faults
    code = break_source(shape, rng.choice(faults)) if rng.random() < 0.5 else shape.source
    head = rng.choice(("Try this.", "Something like this should work.", "Here you go.", "This might do it."))
    return f"{head}\n\n```python\n{fill(code, names)}\n```"


def _render(shape: Shape, names: Mapping[str, str]) -> str:
    """Return the function, documented and followed by its tests."""
    head, _, body = fill(shape.source, names).partition("\n")
    does = fill(shape.does[0], names)
    return f'{head}\n    """{does[0].upper()}{does[1:]}."""\n{body}\n\n\n{fill(shape.tests, names)}'


def _compose(material: Material, found: Found, names: Mapping[str, str], opening: str, reasons: list[str]) -> str:
    code = f"```python\n{_render(found.shape, names)}\n```"
    return "\n\n".join([opening, code, " ".join([*reasons, material.sentence(_ENDINGS)])])


def _write(found: Found, names: Mapping[str, str], material: Material) -> str:
    return _compose(material, found, names, material.sentence(_WRITTEN), _reasons(found, names))


def _mend(found: Found, names: Mapping[str, str], material: Material) -> str:
    assert found.fault is not None
    cause = sentence(fill(found.fault.cause, names))
    material.given({"symptom": found.fault.symptom})
    opening = f"{cause} {material.sentence(_MENDED)}"
    return _compose(material, found, names, opening, _reasons(found, names)[:1])


def _refactor(found: Found, names: Mapping[str, str], material: Material) -> str:
    return _compose(material, found, names, material.sentence(_REFACTORED), _reasons(found, names))


def _test(found: Found, names: Mapping[str, str], material: Material) -> str:
    return _compose(material, found, names, material.sentence(_TESTED), [material.sentence(_COVERED)])


def _explain(found: Found, names: Mapping[str, str], material: Material) -> str:
    steps = [sentence(f"it {fill(found.shape.does[0], names)}"), *_reasons(found, names)]
    body = "\n".join(f"{i}. {step}" for i, step in enumerate(steps, 1))
    opening = f"{material.sentence(_EXPLAINED)}\n\n{body}\n\n{material.sentence(_SHOWN)}"
    return _compose(material, found, names, opening, [])


def _reasons(found: Found, names: Mapping[str, str]) -> list[str]:
    return [fill(step, names) for step in found.shape.steps]


_VERBS = ("compute", "get", "read", "build", "process", "make", "check", "prepare", "work_out", "handle", "derive",
          "fetch", "report", "update", "scan")  # fmt: skip
_ENDS = ("report", "result", "summary", "values", "overview", "view", "figures")
_ASKS: dict[str, tuple[str, ...]] = {
    "write": (
        "write a Python function {fn} that {does}, for {object}",
        "I need a Python function called {fn}; it {does}",
        "to {task} I want Python code: {fn} {does}",
        "in Python, please implement {fn}, which {does}",
        "code me a Python helper {fn} that {does}, so that {person} can use it",
        "how would you program {fn} in Python if it {does}?",
        "{person} asked for a Python script around {fn}, which {does}",
        "program {fn} in plain Python; it {does} and will run {place}",
    ),
    "debug": (
        "my Python function {fn} {does}, or should, but {symptom}. Find the fault:",
        "something is wrong with {fn} here: {symptom}. It is meant to be Python that {does}",
        "{person} says that {symptom} when {fn} runs for {object}. Please debug this Python code",
        "why is it that {symptom}? This Python function {does}, at least it did on paper",
        "help me debug {fn}: {symptom}, although the code {does}",
        "since {day} {symptom}; repair my Python function",
        "fix this Python code for {object}, where {symptom}",
        "{symptom}, and I cannot see why. The Python function is used to {task}",
    ),
    "explain": (
        "explain this Python function from the program for {object} line by line",
        "{person} left me {fn} in Python. What does it do, and why like this?",
        "what exactly does the Python code below return, and when would it surprise me? We use it to {task}",
        "walk me through {fn}, which I found in a Python script {place}",
        "I am learning Python with {object}. Explain how this works",
        "describe in plain words what {fn} does, so that {person}, who cannot code, follows it",
        "I have to present this Python code on {day}. Explain every line",
        "how does {fn} treat empty input? Explain the Python below in full",
    ),
    "test": (
        "write unit tests with plain assert for this Python function, which {does}",
        "{fn} is to run for {object} from {day} on. Write Python tests for it first",
        "cover {fn} with tests, edge cases included; it is Python and {does}",
        "which tests does this Python code need before {person} relies on it? Write them as asserts",
        "add assertions to my Python function {fn} that would catch a careless change",
        "test this Python function for {object} with empty, small and odd input",
        "before I {task} I want tests for this Python code",
    ),
    "refactor": (
        "refactor this Python function without changing what it returns",
        "{person} calls my Python code unreadable. Rewrite {fn}, same results",
        "make {fn} shorter and faster; it is Python and {does}",
        "clean up this Python code for {object}, and keep its name",
        "this works, yet takes {number} seconds {place}. Refactor the Python, please",
        "turn my Python into something a colleague would accept: it {does}",
        "I wrote {fn} in {month} and am ashamed of it. Refactor this code",
    ),
}  # fmt: skip
_DEMANDS = (
    "Use the standard library only, since nothing can be installed {place}.",
    "There are up to {number} thousand values, so it should not be slow.",
    "Keep the name and the order of the arguments, because {person} calls it elsewhere.",
    "Add type hints and a docstring of {count} lines at most.",
    "Say in {count} sentences why your version is right.",
    "Show how it behaves on empty input.",
    "Input must not be changed in place; {object} is built from the same list.",
    "{person} will review the code, so no clever tricks.",
    "It has to run on the old computer {place}, which has Python 3.8.",
    "Name the cost in terms of the length of the input.",
    "Put the asserts below the function, so that I can run the file as it is.",
    "If an input makes no sense, raise a ValueError that {person} would understand.",
    "I will use it to {task}, about {number} times on {day}.",
    "Comments only where a reader would stumble.",
    "Tell me which case you were least sure about.",
    "Answer in two parts: the code, then the reasons.",
)
_WRITTEN = (
    "{fn} for {focus}, with tests below it:",
    "here is {fn}; it needs nothing but the standard library.",
    "this does it for {focus}, and the asserts say how it is meant:",
    "one short function is enough here:",
    "I kept {fn} to a single pass, which suits {focus}:",
    "below is {fn}, documented and tested:",
)
_MENDED = (
    "that is why {symptom}. Mended:",
    "hence {symptom}. This version of {fn} is right:",
    "once that is changed, {fn} does what it should:",
    "so the repair is small, and asserts guard it from now on:",
    "for {focus} this matters every time. The mended code:",
)
_REFACTORED = (
    "the same results with far less to read:",
    "{fn} can say directly what it does; the index arithmetic was not needed:",
    "I kept the name and the results of {fn} and replaced the nested loops:",
    "a version that a reader of {focus} can follow at a glance:",
    "shorter and quicker, with asserts that hold for the old code as well:",
)
_TESTED = (
    "these asserts cover the usual case, an odd one and empty input:",
    "tests for {fn}, to be run by executing the file:",
    "I put the function and its tests into one file, so that it runs as it is:",
    "for {focus} these cases matter most:",
    "each assert stands for one promise {fn} makes:",
)
_COVERED = (
    "the last case is empty input, where careless changes usually show.",
    "every line of {fn} runs at least once under these tests.",
    "add a case whenever {focus} brings up something new.",
    "an off-by-one mistake would fail the first assert.",
)
_EXPLAINED = (
    "step by step, {fn} works like this:",
    "read from top to bottom, this is what happens:",
    "behind {fn} is one plain idea:",
    "what {fn} does for {focus}, line by line:",
)
_SHOWN = (
    "the same function with examples that hold:",
    "you can check this by running it:",
    "with a docstring and asserts as examples:",
)
_ENDINGS = (
    "Run the file; if nothing is printed, all asserts hold.",
    "To use it for {object}, call {fn} with your own list.",
    "If {person} needs another form, only the last line changes.",
    "For {number} thousand values this takes well under a second.",
    "Nothing outside {fn} has to change.",
    "The asserts may go into a test file of their own.",
)
