"""Code in a reply: its blocks, whether they parse, and whether the tests a reply brings for its own code pass.

METHOD 3.3, kind code: a code block is present and parses; if tests can be run in isolation, they pass. What cannot be
checked (another language, a missing library, a file that is not there) is kept, with a note that says so.
"""

import ast
import doctest
import json
import re
import sys
import textwrap
import tomllib
import warnings
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from markdown_it import MarkdownIt

from matrix_dspy.curation.base import Candidate, Drop
from matrix_dspy.curation.sandbox import (
    DEFAULT_LIMITS,
    Discovered,
    Limits,
    Program,
    SandboxResult,
    run_program,
    run_program_async,
)

MOST_CODE = 100_000
"""Characters of a block that are parsed."""
MOST_RUNS = 6
"""Runs for one reply."""
PYTHON = frozenset({"python", "py", "python3", "py3", "python2", "pycon", "ipython", "python-repl", "pytest"})
NOT_CODE = frozenset(
    {"text", "txt", "plaintext", "plain", "output", "console-output", "markdown", "md", "none", "log", "csv", "tsv"}
)
NEEDS_MORE = {
    "ModuleNotFoundError": "a library that is not there",
    "ImportError": "a library that is not there",
    "FileNotFoundError": "a file that is not there",
    "EOFError": "somebody to type",
    "PermissionError": "what the sandbox refuses (network, processes, files)",
    "ConnectionError": "a network",
    "OSError": "what the sandbox does not have",
}
"""Exceptions that say nothing about the code, and what it would need to run."""

Found = Literal["assert", "unittest", "function", "doctest", "session"]


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """A fenced block of a reply."""

    language: str
    """First word after the fence, lower-case; empty where there is none."""
    text: str
    is_closed: bool = True


@dataclass(frozen=True, slots=True)
class CodeReport:
    """What is known of a reply's code."""

    drop: Drop | None = None
    notes: tuple[str, ...] = ()
    """What could not be checked, and why."""
    n_blocks: int = 0
    n_tests: int = 0
    """Tests that were run and passed; a block's own asserts count as one."""


@dataclass(frozen=True, slots=True)
class PythonBlock:
    """A block of Python that parses."""

    tree: ast.Module
    sessions: tuple[str, ...] = ()
    """Texts of `>>>` lines, where the block is a session at the prompt."""

    @property
    def tests(self) -> tuple[Found, ...]:
        """Which tests of its own it holds."""
        return find_tests(self.tree, bool(self.sessions))


class CodeFilter:
    """Drops replies without code, with code that does not parse, or whose own tests fail."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits

    def judge(self, candidate: Candidate) -> Drop | None:
        return check_code(candidate.text, self.limits).drop

    async def judge_async(self, candidate: Candidate) -> Drop | None:
        """Do the same without holding up the loop."""
        return (await check_code_async(candidate.text, self.limits)).drop


def judge_code(instruction: str, response: str, limits: Limits = DEFAULT_LIMITS) -> Drop | None:
    """Return why a reply to a request for code is dropped, or None; the request itself is not looked at."""
    return check_code(response, limits).drop


def check_code(response: str, limits: Limits = DEFAULT_LIMITS, *, runs_tests: bool = True) -> CodeReport:
    """Look at a reply's code, and run the tests it brings."""
    steps = _check(response, runs_tests=runs_tests)
    result: SandboxResult | None = None
    while True:
        try:
            program = steps.send(result) if result else next(steps)
        except StopIteration as end:
            return end.value
        result = run_program(program, limits)


async def check_code_async(response: str, limits: Limits = DEFAULT_LIMITS, *, runs_tests: bool = True) -> CodeReport:
    """Look at a reply's code, and run the tests it brings, without holding up the loop."""
    steps = _check(response, runs_tests=runs_tests)
    result: SandboxResult | None = None
    while True:
        try:
            program = steps.send(result) if result else next(steps)
        except StopIteration as end:
            return end.value
        result = await run_program_async(program, limits)


def find_code_blocks(markdown: str) -> list[CodeBlock]:
    """Return the fenced code blocks of `markdown` as CommonMark reads them, in order; without any, the indented."""
    lines = markdown.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    tokens = _build_parser().parse("\n".join(lines))
    fences = [token for token in tokens if token.type == "fence"]
    if not fences:
        return [CodeBlock("", token.content) for token in tokens if token.type == "code_block"]
    blocks: list[CodeBlock] = []
    for token in fences:
        start, end = token.map or (0, 0)
        last = lines[end - 1].lstrip(" \t>").rstrip() if 0 < end <= len(lines) else ""
        is_closed = end - 1 > start and set(last) == {token.markup[0]} and len(last) >= len(token.markup)
        blocks.append(CodeBlock(_read_language(token.info), token.content, is_closed))
    return blocks


def parse_python(text: str) -> PythonBlock:
    """Parse a block as Python: a module, an indented part of one, or a session at the prompt.

    Raises:
        SyntaxError: it is none of these.
    """
    text = textwrap.dedent(text.expandtabs(8) if "\t" in text and re.search(r"^ +\t|^\t+ ", text, re.M) else text)
    if len(text) > MOST_CODE:
        raise SyntaxError(f"more than {MOST_CODE:,} characters")
    if re.search(r"^>>> ?", text, re.MULTILINE):
        return _parse_session(text)
    # lines for the shell and the notebook; they are no Python, and no fault
    text = re.sub(r"^(\s*)[!%]{1,2}\w.*$", r"\1pass", text, flags=re.MULTILINE)
    return PythonBlock(_parse(text))


def find_tests(tree: ast.Module, has_sessions: bool = False) -> tuple[Found, ...]:
    """Return the kinds of tests that a module holds for itself."""
    found: list[Found] = ["session"] if has_sessions else []
    if any(_holds_assert(statement) for statement in tree.body):
        found.append("assert")
    if any(isinstance(each, ast.ClassDef) and any(map(_is_test_case, each.bases)) for each in tree.body):
        found.append("unittest")
    functions = (each for each in tree.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
    if any(each.name.startswith("test") for each in functions):
        found.append("function")
    if any(">>>" in (ast.get_docstring(each) or "") for each in _walk_documented(tree)):
        found.append("doctest")
    return tuple(found)


def build_program(block: PythonBlock, earlier: Sequence[PythonBlock] = ()) -> Program:
    """Return the program that runs a block's own tests, with what earlier blocks define before it."""
    given = [statement for each in earlier for statement in each.tree.body if isinstance(statement, DEFINING)]
    body = [*given, *_prepare(block.tree.body)]
    names = _find_defined(body)
    body = [kept for statement in body if (kept := _drop_own_imports(statement, names)) is not None]
    future = [each for each in body if isinstance(each, ast.ImportFrom) and each.module == "__future__"]
    body = [*future, *(each for each in body if each not in future)]
    found = set(block.tests)
    discover: tuple[Discovered, ...] = tuple(name for name in _DISCOVERED if name in found)
    module = ast.fix_missing_locations(ast.Module(body, []))
    return Program(ast.unparse(module), discover=discover, sessions=block.sessions)


def list_missing(trees: Iterable[ast.Module]) -> list[str]:
    """Return the names of modules that are imported and are not in the standard library, in order."""
    found: dict[str, None] = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found.update(dict.fromkeys(alias.name.partition(".")[0] for alias in node.names))
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found[node.module.partition(".")[0]] = None
    return [name for name in found if name not in sys.stdlib_module_names]


def _check(response: str, *, runs_tests: bool = True) -> Generator[Program, SandboxResult, CodeReport]:
    """Yield the programs to run, and return the report."""
    blocks = [block for block in find_code_blocks(response) if block.text.strip()]
    coded = [block for block in blocks if block.language not in NOT_CODE]
    if not coded:
        return CodeReport(Drop("no code", "it has no code block" if not blocks else "its blocks hold no code"))
    python: list[PythonBlock] = []
    unchecked: dict[str, int] = {}
    for number, block in enumerate(coded, 1):
        if not block.is_closed:
            return CodeReport(Drop("broken code", f"block {number} is not closed"), n_blocks=len(coded))
        try:
            parsed = _read_block(block)
        except ValueError as error:  # SyntaxError is none; see _read_block
            detail = f"block {number} ({block.language or 'unlabelled'}) does not parse: {error}"
            return CodeReport(Drop("broken code", detail), n_blocks=len(coded))
        if isinstance(parsed, PythonBlock):
            python.append(parsed)
        elif parsed == "unchecked":
            unchecked[block.language] = unchecked.get(block.language, 0) + 1
    notes = [
        f"{count} {'' if name else 'unlabelled '}block{'s' * (count > 1)}{f' of {name}' * bool(name)} not checked"
        for name, count in unchecked.items()
    ]
    n_tests, n_runs = 0, 0
    for i, block in enumerate(python):
        if not block.tests:
            continue
        if not runs_tests:
            notes.append("tests not run: that is switched off")
            break
        if n_runs >= MOST_RUNS:
            notes.append("more blocks with tests than are run")
            break
        try:
            program = build_program(block, python[:i])
        except RecursionError:
            notes.append("tests not runnable: the code is nested too deeply")
            continue
        result = yield program
        n_runs += 1
        if i and result.outcome != "passed":
            # a later block may stand alone, and contradict what stood before it
            alone = yield build_program(block)
            n_runs += 1
            result = alone if alone.outcome == "passed" else result
        note, drop = _read_result(result, block, list_missing(each.tree for each in python[: i + 1]))
        if drop:
            return CodeReport(drop, tuple(notes), len(coded), n_tests)
        if note:
            notes.append(note)
        else:
            n_tests += sum(test.state == "passed" for test in result.tests) + ("assert" in block.tests)
    return CodeReport(None, tuple(notes), len(coded), n_tests)


def _read_result(result: SandboxResult, block: PythonBlock, missing: list[str]) -> tuple[str, Drop | None]:
    """Return the note on tests that could not be run, and the drop for those that failed."""
    if result.outcome == "passed":
        if result.tests and all(test.state == "skipped" for test in result.tests) and "assert" not in block.tests:
            return "tests not runnable: they need arguments from a test runner", None
        return "", None
    if result.outcome == "error":
        return f"tests not runnable: {result.detail}", None
    wrong = {test.exception for test in result.tests if test.state == "failed"} | {result.exception}
    if result.outcome == "failed" and wrong <= NEEDS_MORE.keys():
        needs = NEEDS_MORE[result.exception]
        named = f" ({', '.join(missing)})" if missing and "library" in needs else ""
        return f"tests not runnable: they need {needs}{named}", None
    return "", Drop("failed tests", result.detail, score=result.share_passed)


def _read_block(block: CodeBlock) -> PythonBlock | Literal["data", "unchecked"]:
    """Parse a block by its language; raises ValueError with the parser's sentence."""
    text, language = block.text, block.language
    try:
        if language in PYTHON:
            return parse_python(text)
        if language in ("json", "jsonl", "ndjson"):
            for part in [text] if language == "json" else filter(str.strip, text.splitlines()):
                json.loads(part)
            return "data"
        if language == "toml":
            tomllib.loads(text)
            return "data"
        if not language and _PYTHON_SIGN.search(text):
            return parse_python(text)
    except SyntaxError as error:
        if not language and not _PYTHON_ONLY.search(text):
            return "unchecked"
        line = f" (line {error.lineno})" if error.lineno else ""
        raise ValueError(f"{' '.join(str(error.msg).split())[:200]}{line}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return "unchecked"


_PYTHON_SIGN = re.compile(
    r"^(?:>>> |\s*(?:async )?def \w+\(|\s*class \w+.*:\s*$|import \w|from [\w.]+ import |@\w|assert |print\(|\w+ = )"
    r"|^\s*(?:for|while|if|with|try)\b.*:\s*$",
    re.MULTILINE,
)
"""What hints at Python in a block without a label."""
_PYTHON_ONLY = re.compile(r"^>>> |^\s*(?:async )?def \w+\([^)]*\)\s*(?:->[^:]+)?:\s*(?:#.*)?$", re.MULTILINE)
"""What hardly any other language has."""
DEFINING = (
    *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign),
)
"""Statements that define names."""
_DISCOVERED: tuple[Discovered, ...] = ("unittest", "function", "doctest")
_RUNNERS = frozenset({"unittest.main", "pytest.main", "doctest.testmod"})


@cache
def _build_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark")
    parser.core.ruler.enableOnly(["normalize", "block"])  # what stands inside paragraphs is of no interest
    return parser


def _read_language(info: str) -> str:
    """Return the language of a fence's line: `python`, also from `{.python .numberLines}` or `python:main.py`."""
    words = re.findall(r"[\w+#-]+", info)
    return words[0].lower() if words else ""


def _parse(text: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (ValueError, MemoryError) as error:  # zero bytes; the parser's own stack
        raise SyntaxError(str(error) or "it is nested too deeply") from error


def _parse_session(text: str) -> PythonBlock:
    """Parse a session of `>>>` lines; code without prompts before it becomes the module."""
    head, _, _ = text.partition(">>>")
    if head.strip():
        try:
            return PythonBlock(_parse(text))  # a module with doctests in its docstrings
        except SyntaxError:
            pass
    try:
        examples = doctest.DocTestParser().get_examples(text)
    except ValueError as error:
        raise SyntaxError(f"session: {error}") from error
    for example in examples:
        _parse(example.source)
    return PythonBlock(_parse(head), (text[len(head) :],) if any(each.want for each in examples) else ())


def _prepare(body: Sequence[ast.stmt]) -> list[ast.stmt]:
    """Return statements without calls of test runners, the tests under `if __name__ == "__main__"` among them."""
    kept: list[ast.stmt] = []
    for statement in body:
        if isinstance(statement, ast.If) and _is_guard(statement.test):
            # the module is not run as a script; only tests under the guard matter
            if any(_holds_assert(each) or _calls_test(each) for each in statement.body):
                kept += _prepare(statement.body)
        elif not _calls_runner(statement):
            kept.append(statement)
    return kept


def _is_guard(test: ast.expr) -> bool:
    return isinstance(test, ast.Compare) and {"'__name__'", "__name__"} & {ast.unparse(test.left)} != set()


def _holds_assert(statement: ast.stmt) -> bool:
    """Whether a statement runs an assert itself, not in a function or class that it only defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return False
    if isinstance(statement, ast.Assert):
        return True
    children = (each for each in ast.iter_child_nodes(statement))
    parts = (part for each in children for part in ([each] if isinstance(each, ast.stmt) else _list_inner(each)))
    return any(_holds_assert(each) for each in parts)


def _list_inner(node: ast.AST) -> list[ast.stmt]:
    """Return the statements of an exception handler or a case."""
    return list(node.body) if isinstance(node, ast.ExceptHandler | ast.match_case) else []


def _calls_test(statement: ast.stmt) -> bool:
    if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)):
        return False
    return bool(re.match(r"(?:run_|_)?tests?", ast.unparse(statement.value.func)))


def _calls_runner(statement: ast.stmt) -> bool:
    if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)):
        return False
    name = ast.unparse(statement.value.func)
    inner = [ast.unparse(each.func) for each in statement.value.args if isinstance(each, ast.Call)]
    return name in _RUNNERS or (name in ("sys.exit", "exit", "raise") and bool(_RUNNERS & set(inner)))


def _is_test_case(base: ast.expr) -> bool:
    return ast.unparse(base).rpartition(".")[2].endswith("TestCase")


def _walk_documented(tree: ast.Module) -> Iterable[Any]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return (node for node in ast.walk(tree) if isinstance(node, kinds | ast.Module))


def _find_defined(body: Sequence[ast.stmt]) -> frozenset[str]:
    """Return the names that top-level definitions give."""
    names: set[str] = set()
    for each in body:
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(each.name)
        elif isinstance(each, ast.Assign):
            names.update(target.id for target in each.targets if isinstance(target, ast.Name))
    return frozenset(names)


def _drop_own_imports(statement: ast.stmt, names: frozenset[str]) -> ast.stmt | None:
    """Return None for `from my_module import f` where f stands in the reply itself."""
    if not isinstance(statement, ast.ImportFrom) or (statement.module or "") in sys.stdlib_module_names:
        return statement
    wanted = {alias.name for alias in statement.names}
    return None if wanted <= names or (wanted == {"*"} and names) else statement
