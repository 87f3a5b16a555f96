"""Verifiers: whether a response is right, where that can be found out without a judge (METHOD 3.6).

A verifier answers with a share in [0, 1], or None where it does not apply: "could not judge" is never "judged bad".
"""

import ast
import builtins
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from string import ascii_letters
from typing import Any, Protocol

from matrix_dspy.curation.code import DEFINING, PYTHON, PythonBlock, build_program, find_code_blocks, parse_python
from matrix_dspy.curation.sandbox import DEFAULT_LIMITS, Limits, Program, SandboxResult, run_program, run_program_async

MOST_DIGITS = 100
"""Characters of a number; longer runs of digits are none."""
LEAST_DECIMALS = 2
"""Decimals a response must give to pass for a number that has more."""
MOST_TRAILING = 200
"""Lines after code without a fence that are tried as words about it."""


class Verifier(Protocol):
    """Finds out whether a response is right."""

    def verify(self, instruction: str, response: str) -> float | None:
        """Return how far the response is right, in [0, 1], or None where that cannot be told."""
        ...


@dataclass(frozen=True)
class CodeVerifier:
    """Scores code by the share of its tests that pass: given tests, else those in the instruction, else its own."""

    tests: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Instruction to its tests, each a piece of Python that raises where it fails."""
    limits: Limits = DEFAULT_LIMITS

    def verify(self, instruction: str, response: str) -> float | None:
        program = build_verifying_program(response, self.tests.get(instruction) or find_instruction_tests(instruction))
        return read_share(run_program(program, self.limits)) if program else None

    async def verify_async(self, instruction: str, response: str) -> float | None:
        """Do the same without holding up the loop."""
        program = build_verifying_program(response, self.tests.get(instruction) or find_instruction_tests(instruction))
        return read_share(await run_program_async(program, self.limits)) if program else None


@dataclass(frozen=True)
class NumberVerifier:
    """Scores a response 1 where its final number is the expected one, else 0."""

    answers: Mapping[str, str]
    """Instruction to the right answer: a number, or a text that ends in one (`#### 42`)."""

    def verify(self, instruction: str, response: str) -> float | None:
        expected = self.answers.get(instruction)
        return None if expected is None else check_number(expected, response)


def read_share(result: SandboxResult) -> float | None:
    """Return the share of tests passed, or None where the code could not be started or wants what is not there."""
    missing = result.exception in ("ModuleNotFoundError", "ImportError") and result.outcome == "failed"
    return None if result.outcome == "error" or missing else result.share_passed


def find_instruction_tests(instruction: str) -> list[str]:
    """Return the asserts that an instruction gives, in code blocks or on lines of their own."""
    texts = [block.text for block in find_code_blocks(instruction)] or [instruction]
    lines = [line.strip().strip("`") for text in texts for line in text.splitlines()]
    return [line for line in lines if line.startswith("assert ") and _parses(line)]


def build_verifying_program(response: str, tests: Sequence[str]) -> Program | None:
    """Return the response's code with the tests to try on it, or None without code or tests.

    Without `tests` those in the response itself are run.
    """
    blocks = _read_python(response)
    if not blocks:
        return None if not tests or not _is_coding(response) else Program(response, tuple(tests))
    if tests:
        # what the reply tests itself is not asked here, and its examples may take input
        *earlier, last = blocks
        program = build_program(PythonBlock(last.tree), earlier)
        return Program(program.code, tuple(tests))
    tested = [i for i, block in enumerate(blocks) if block.tests]
    return build_program(blocks[tested[-1]], blocks[: tested[-1]]) if tested else None


def check_humaneval(problem: Mapping[str, Any], completion: str, limits: Limits = DEFAULT_LIMITS) -> SandboxResult:
    """Run a HumanEval problem's tests on a completion: the function's body, the whole function, or a reply with it."""
    return run_program(build_humaneval_program(problem, completion), limits)


def check_mbpp(problem: Mapping[str, Any], completion: str, limits: Limits = DEFAULT_LIMITS) -> SandboxResult:
    """Run an MBPP problem's tests on code, or on a reply that holds it."""
    return run_program(build_mbpp_program(problem, completion), limits)


def build_humaneval_program(problem: Mapping[str, Any], completion: str) -> Program:
    """Return a completion and HumanEval's own `check` on it."""
    prompt, entry = str(problem["prompt"]), str(problem["entry_point"])
    return add_humaneval_tests(problem, find_function(prompt, entry, completion) or prompt + completion)


def build_mbpp_program(problem: Mapping[str, Any], completion: str) -> Program:
    """Return code and MBPP's asserts on it, one test each."""
    entry = find_entry(list(map(str, problem["test_list"])))
    return add_mbpp_tests(problem, find_code(completion, entry) or completion)


def add_humaneval_tests(problem: Mapping[str, Any], code: str) -> Program:
    """Return a whole module with HumanEval's own `check`, which runs apart from what the module can bend.

    The helpers that the prompt gives are defined anew for it.
    """
    prompt, entry = str(problem["prompt"]), str(problem["entry_point"])
    given = prompt[: prompt.rfind(f"def {entry}")]
    return Program(code, (f"{given}\n{problem['test']}\n\ncheck({entry})\n",), entry=entry)


def add_mbpp_tests(problem: Mapping[str, Any], code: str) -> Program:
    """Return a whole module with MBPP's asserts, one test each, which run apart from what the module can bend."""
    setup = str(problem.get("test_setup_code") or "")  # it uses what the code defines
    tests = tuple(map(str, problem["test_list"]))
    return Program(f"{code}\n{setup}", tests, entry=find_entry(tests))


def find_function(prompt: str, entry: str, reply: str) -> str:
    """Return a module with the function that a prompt begins, from a reply that holds it or goes on from the prompt.

    Empty where the reply holds no code.
    """
    given = prompt[: prompt.rfind(f"def {entry}")]
    code = find_code(reply, entry)
    if _defines(code, entry):
        return f"{given}\n{code}"
    is_fenced = "```" in reply or "~~~" in reply
    completed = complete_function(prompt, code if is_fenced else reply)
    return completed or (code and f"{given}\n{code}")


def find_entry(tests: Sequence[str]) -> str:
    """Return the name of the function or class that tests call: the first that is no built-in, else the first."""
    called: list[str] = []
    for test in tests:
        try:
            tree = ast.parse(test)
        except (SyntaxError, ValueError, RecursionError):
            continue
        called += [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    return next((name for name in called if not hasattr(builtins, name)), called[0] if called else "")


def find_code(reply: str, entry: str = "") -> str:
    """Return the Python of a reply: of its blocks the last that defines `entry`, after what earlier ones define.

    Where no block defines it all blocks that parse are taken, or all if none does. Without blocks it is the reply
    itself where that parses, else the part of it that begins like a module and parses. Empty where there is no code.
    """
    blocks = [each.text for each in find_code_blocks(reply) if each.language in PYTHON or not each.language]
    if "```" not in reply and "~~~" not in reply:
        return reply if reply.strip() and _is_module(reply) and not _is_prose(reply) else _find_bare_code(reply)
    defining = [place for place, text in enumerate(blocks) if entry and _defines(text, entry)]
    if defining:
        last = defining[-1]
        helpers = [text for text in blocks[:last] if not _defines(text, entry) and _only_defines(text)]
        return "\n\n".join([*helpers, blocks[last]])
    return "\n\n".join([text for text in blocks if _is_module(text)] or blocks)


def check_number(expected: str, response: str) -> float | None:
    """Return 1.0 where the final number of `response` is that of `expected`, else 0.0; None if none is expected."""
    wanted, given = find_final_number(expected), find_final_number(response)
    if wanted is None:
        return None
    return 0.0 if given is None else float(is_same_number(wanted, given))


@dataclass(frozen=True, slots=True)
class Number:
    """A number as written."""

    value: Fraction
    decimals: int = 0
    is_percent: bool = False


def is_same_number(wanted: Number, given: Number) -> bool:
    """Whether two numbers are the same; 25 % is 0.25 and, its sign taken for a unit, also 25.

    A whole number must be hit exactly. Otherwise what is given may have more decimals than wanted, or fewer (two at
    least), if it agrees after rounding.
    """
    return any(
        _agree(one, wanted.decimals + 2 * (one != wanted.value), other, given.decimals + 2 * (other != given.value))
        for one in _read_values(wanted)
        for other in _read_values(given)
    )


def find_final_number(text: str) -> Number | None:
    """Return the number a text ends in: after `####`, in the last box, after "the answer is", else the last one.

    Of a sum it is what the sum comes to: "15 + 5 = 20 in 3 days" says 20. `####` counts where a number and nothing else
    stands on its line, or on the last; elsewhere it is a heading.
    """
    text = text.translate(_SIGNS).replace("\\%", "%").replace("{,}", ",").replace("\\,", "").replace("\\!", "")
    text = _LATEX_FRACTION.sub(r"(\1)/(\2)", text)
    for part in (_find_marked(text), _find_box(text), _find_stated(text)):
        if part and (numbers := find_numbers(part)):
            return numbers[0]
    last = next((sentence for sentence in reversed(_SENTENCE_END.split(text)) if find_numbers(sentence)), "")
    if numbers := find_numbers(_find_sum(last)):
        return numbers[0]
    numbers = find_numbers(last)
    return numbers[-1] if numbers else None


def find_numbers(text: str) -> list[Number]:
    """Return the numbers of a text in order: thousands, decimals, powers of ten, fractions, mixed ones, percentages."""
    found = (_read_number(match) for match in _NUMBER.finditer(text))
    return [number for number in found if number is not None]


_SIGNS = {ord(sign): "-" for sign in "\u2212\u2010\u2011\u2012\u2013\u2014"} | {0xA0: "\u202f", 0x2009: "\u202f"}
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]{1,40})\}\s*\{([^{}]{1,40})\}")
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:\u202f\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    rf"""
    (?<![\w.])(?P<sign>-(?=[\d.(\$€£]))?\s?[\$€£]?\s?
    (?:
        (?P<whole>\d+)[ ](?P<over>\d+)/(?P<under>[1-9]\d*)(?![\d/])           # 3 1/2
      | \(?(?P<top>-?\d+(?:\.\d+)?)\)?\s?/\s?\(?(?P<bottom>-?\d+(?:\.\d+)?)\)?(?![\d/])   # 7/2
      | (?P<european>\d{{1,3}}(?:\.\d{{3}})+,\d{{1,2}})(?!\d)                     # 1.234,56
      | (?P<plain>{_DIGITS}(?:\.\d+)?|\.\d+)
        (?:\s?(?:[eE]|[x×*]\s?10\s?\^\s?\{{?|\\times\s?10\^\{{?)(?P<power>[+-]?\d{{1,3}})\}}?)?
    )
    \s?(?P<percent>%|percent\b|per\ cent\b)?
    """,
    re.VERBOSE,
)
_ONLY_NUMBER = re.compile(r"[*_$€£\s]*-?[$€£]?\d[\d.,\u202f/]*\s?[%*_.]*")
_STATED = re.compile(
    r"""
    (?:
        answer\b[^.\n\d]{0,40}?(?:\bis\b|:|=|\bequals\b|\bof\b)
        # a total is the result where its number follows at once, and none comes of it in the same sentence
      | (?:result|total)\b[^.\n\d]{0,40}?(?:\bis\b|:|=|\bequals\b)
        (?=\s*(?:therefore\s)?[*_$€£]*\d)(?![^.\n]{0,200}(?:,\s|\bso\b)[^.\n]{0,200}\d)
    )
    [^\n]{0,300}
    """,
    re.IGNORECASE | re.VERBOSE,
)
_OPERATION = re.compile(r"\d[)%]?(?:\s?[+*×^]|\s[-/x]\s)\s?[\d$(]")
_DENIED = re.compile(r"\bnot\b[^.;\n]{1,40}?\bbut\b", re.IGNORECASE)
"""As in "not 5 but 6"."""
_SENTENCE_END = re.compile(r"[.!?;][*_]*(?:\s|$)|\n")


_BEGINNING = re.compile(r"(?:async +def|def|class) +\w+|import +\w|from +[\w.]+ +import\b|@\w")
_AFTER_BODY = re.compile(r"\n(?=class |def |#|if |print\()")
"""Where the completion of a function's body is over (arXiv 2107.03374 §2)."""


def _read_number(match: re.Match[str]) -> Number | None:
    if len(match[0]) > MOST_DIGITS:
        return None
    sign = -1 if match["sign"] else 1
    percent = bool(match["percent"])
    if match["over"]:
        return Number(sign * (int(match["whole"]) + Fraction(int(match["over"]), int(match["under"]))), 0, percent)
    if match["top"]:
        bottom = Fraction(match["bottom"])
        return Number(sign * Fraction(match["top"]) / bottom, 0, percent) if bottom else None
    if match["european"]:
        plain = match["european"].replace(".", "").replace(",", ".")
    else:
        plain = match["plain"].replace(",", "").replace("\u202f", "")
    decimals = len(plain.partition(".")[2])
    power = int(match["power"] or 0)
    return Number(sign * Fraction(plain) * Fraction(10) ** power, max(decimals - power, 0), percent)


def _read_values(number: Number) -> list[Fraction]:
    return [number.value, number.value / 100] if number.is_percent else [number.value]


def _agree(wanted: Fraction, decimals: int, given: Fraction, given_decimals: int) -> bool:
    if wanted == given:
        return True
    if wanted.denominator == 1:
        return False
    if decimals and given_decimals >= decimals:
        return _round(given, decimals) == wanted
    return given_decimals >= LEAST_DECIMALS and _round(wanted, given_decimals) == given


def _round(value: Fraction, decimals: int) -> Fraction:
    """Round half away from zero, as people do."""
    scaled = abs(value) * 10**decimals
    whole = int(scaled + Fraction(1, 2))
    return Fraction(whole if value >= 0 else -whole, 10**decimals)


def _find_marked(text: str) -> str:
    """Return what follows the last `####`, where that is no heading of a section."""
    if "####" not in text:
        return ""
    line, _, rest = text.rpartition("####")[2].strip().partition("\n")
    return line if not rest.strip() or _ONLY_NUMBER.fullmatch(line.strip()) else ""


def _find_box(text: str) -> str:
    """Return what stands in the last `\\boxed{}`, its braces balanced."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return ""
    depth, begin = 0, start + len("\\boxed")
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin + 1 : i]
    return text[begin + 1 :]


def _find_stated(text: str) -> str:
    """Return what follows the last "the answer is" on its line; a "result" or "total" must be in the last sentence.

    It ends with the first sentence that has a number.
    """
    matches = list(_STATED.finditer(text))
    answers = [match for match in matches if match[0][:6].lower() == "answer"]
    if answers:
        return _take_sentence(answers[-1][0][6:])
    if not matches:
        return ""
    after = text[matches[-1].start() :]
    end = _SENTENCE_END.search(after)
    if end and find_numbers(after[end.end() :]):
        return ""
    return _take_sentence(matches[-1][0].lstrip(ascii_letters))


def _take_sentence(stated: str) -> str:
    """Return the first sentence with a number, of a sum what it comes to."""
    plain = _DENIED.sub(" ", stated)
    ends = [*(match.start() for match in _SENTENCE_END.finditer(plain)), len(plain)]
    sentence = next((plain[:end] for end in ends if find_numbers(plain[:end])), plain)
    return _find_sum(sentence) or sentence


def _find_sum(sentence: str) -> str:
    """Return the last side of an equation that is a number and no sum itself; empty where there is no equation."""
    _, *sides = sentence.split("=")
    return next((side for side in reversed(sides) if find_numbers(side) and not _OPERATION.search(side)), "")


def _read_python(response: str) -> list[PythonBlock]:
    blocks: list[PythonBlock] = []
    for block in find_code_blocks(response):
        if block.language in PYTHON or not block.language:
            try:
                blocks.append(parse_python(block.text))
            except (SyntaxError, RecursionError):
                continue
    return blocks


def _find_bare_code(reply: str) -> str:
    """Return the longest run of lines from the first that begins a module, as far as it parses; empty where none."""
    lines = reply.split("\n")
    start = next((place for place, line in enumerate(lines) if _BEGINNING.match(line)), None)
    if start is None:
        return ""
    ends = range(len(lines), max(start, len(lines) - MOST_TRAILING), -1)
    return next((text for end in ends if _is_module(text := "\n".join(lines[start:end]))), "\n".join(lines[start:]))


def complete_function(prompt: str, body: str) -> str:
    """Return a prompt with the body of its function; empty where they do not parse together.

    The indentation of the body's first line, or of all of it, may be missing. What a model went on to write after the
    body is left out where the whole does not parse.
    """
    if _is_prose(body):
        return ""
    for text in (body, _AFTER_BODY.split(body, maxsplit=1)[0]):
        forms = [text] if text[:1].isspace() else [textwrap.indent(text, "    "), f"    {text}"]
        if found := next((prompt + form for form in forms if _is_module(prompt + form)), ""):
            return found
    return ""


def _defines(text: str, name: str) -> bool:
    named = re.escape(name)
    form = rf"^(?:(?:async +def|def|class) +{named}\b|{named} *(?::[^=\n]*)?=(?!=))"
    return re.search(form, text, re.MULTILINE) is not None


def _only_defines(text: str) -> bool:
    """Whether a block holds nothing but imports, functions, classes and values of names."""
    try:
        return all(isinstance(each, DEFINING) for each in parse_python(text).tree.body)
    except (SyntaxError, RecursionError):
        return False


def _is_prose(text: str) -> bool:
    """Whether a text that parses is nothing, a word or a number rather than code."""
    try:
        body = ast.parse(textwrap.dedent(text)).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    plain = ast.Name | ast.Constant | ast.Tuple
    return all(isinstance(each, ast.Expr) and isinstance(each.value, plain) for each in body)


def _is_coding(text: str) -> bool:
    return re.search(r"^(?:async )?def \w+\(|^class \w+", text, re.MULTILINE) is not None and _parses(text)


def _is_module(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def _parses(text: str) -> bool:
    try:
        parse_python(text)
    except (SyntaxError, RecursionError):
        return False
    return True
