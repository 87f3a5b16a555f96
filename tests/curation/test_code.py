import asyncio
import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_dspy.curation.base import Candidate
from matrix_dspy.curation.code import (
    CodeBlock,
    CodeFilter,
    build_program,
    check_code,
    check_code_async,
    find_code_blocks,
    find_tests,
    judge_code,
    list_missing,
    parse_python,
)
from matrix_dspy.curation.sandbox import Limits, Program, isolation, run_many
from matrix_dspy.engine.rehearsal.code import write_code

needs_sandbox = pytest.mark.skipif(not isolation().seccomp, reason="system calls cannot be filtered here")
LIMITS = Limits(timeout_s=20, cpu_s=10)


def fence(text: str, language: str = "python") -> str:
    return f"Here it is:\n\n```{language}\n{text}\n```\n\nThat is all.\n"


def judge(reply: str) -> str:
    """Return the reason for which a reply is dropped, or nothing."""
    drop = judge_code("Write it.", reply, LIMITS)
    return drop.reason if drop else ""


@pytest.mark.parametrize(
    ("markdown", "blocks"),
    [
        ("", []),
        ("plain `x = 1` words", []),
        ("```python\nx = 1\n```", [CodeBlock("python", "x = 1\n")]),
        ("~~~ Python\nx\n~~~", [CodeBlock("python", "x\n")]),
        ("```\nx\n```", [CodeBlock("", "x\n")]),
        ("``` {.py .numberLines}\nx\n```", [CodeBlock("py", "x\n")]),
        ("```python:main.py\nx\n```", [CodeBlock("python", "x\n")]),
        ("```c++\nx\n```", [CodeBlock("c++", "x\n")]),
        ("````md\n```python\nx\n```\n````", [CodeBlock("md", "```python\nx\n```\n")]),
        ("```python\n~~~\n```", [CodeBlock("python", "~~~\n")]),
        ("1. do\n\n   ```py\n   if x:\n       y\n   ```\n", [CodeBlock("py", "if x:\n    y\n")]),
        ("> ```py\n> x\n> ```\n", [CodeBlock("py", "x\n")]),
        ("```python\nx", [CodeBlock("python", "x", is_closed=False)]),
        ("```python", [CodeBlock("python", "", is_closed=False)]),
        ("````python\nx\n```", [CodeBlock("python", "x\n```", is_closed=False)]),
        ("```py\r\nx\r\n```\r\n", [CodeBlock("py", "x\n")]),
        ("words\n\n    x = 1\n\nwords", [CodeBlock("", "x = 1\n")]),
        ("```py\na\n```\n\n    b\n\n```js\nc\n```", [CodeBlock("py", "a\n"), CodeBlock("js", "c\n")]),
    ],
)
def test_blocks_are_found_as_commonmark_reads_them(markdown: str, blocks: list[CodeBlock]):
    assert find_code_blocks(markdown) == blocks


code_lines = st.lists(st.text(st.characters(blacklist_categories=["C", "Z"]), max_size=20), min_size=1, max_size=6)


@given(code_lines, st.sampled_from("`~"), st.sampled_from(["", "python", "js"]))
def test_a_block_comes_back_from_a_fence_longer_than_any_inside(lines: list[str], mark: str, language: str):
    text = "\n".join(lines) + "\n"
    rail = mark * max(3, 1 + max(len(line) for line in lines))

    found = find_code_blocks(f"Words.\n\n{rail}{language}\n{text}{rail}\n\nMore words.")

    assert found == [CodeBlock(language, text)]


@settings(max_examples=60)
@given(st.text("`~> \n\tab.1=:(){}[]\"'\\#*-", max_size=300))
def test_no_text_upsets_the_reader_of_blocks(text: str):
    for block in find_code_blocks(text):
        try:
            parse_python(block.text)
        except SyntaxError:
            continue


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("Just use a loop, it is easy.", "no code"),
        ("```text\nx = 1\n```", "no code"),
        ("```python\n\n```", "no code"),
        (fence("def f(x):\nreturn x"), "broken code"),
        (fence("print 'hello'"), "broken code"),
        (fence("try:\n    x\nexcept ValueError, e:\n    pass"), "broken code"),
        (fence("def f(:"), "broken code"),
        (fence("x = 1\x00"), "broken code"),
        (fence("(" * 300), "broken code"),
        (fence("x = " + "-" * 20_000 + "1"), "broken code"),
        (fence("x = 1\n" * 40_000), "broken code"),
        (fence('{"a": 1,}', "json"), "broken code"),
        (fence('{"a": 1, ...}', "json"), "broken code"),
        (fence("[" * 100_000, "json"), "broken code"),
        (fence("a = ", "toml"), "broken code"),
        (fence('{"a": 1}\n{"a": ', "jsonl"), "broken code"),
        (fence("def f(x):\nreturn x", ""), "broken code"),
        ("```python\nx = 1\n", "broken code"),
        (fence("x = 1") + fence("x ="), "broken code"),
        (fence("x = 1"), ""),
        (fence("class Foo:\n    ...\n\ndef bar(): ...\n..."), ""),
        (fence("    indented = 1\n    more = 2"), ""),
        (fence("!pip install x\n%matplotlib inline\nx = 1"), ""),
        (fence("await thing()\nreturn 1"), ""),
        (fence('{"a": [1, null]}', "json"), ""),
        (fence('{"a": 1}\n\n{"a": 2}', "jsonl"), ""),
        (fence("[a]\nb = 1", "toml"), ""),
        (fence("SELECT * FROM t WHERE", "sql"), ""),
        (fence("$ pip install x", ""), ""),
        (fence("class A {\n  constructor() {}\n}", ""), ""),
        (fence(">>> 1 +\nSyntaxError: invalid syntax"), "broken code"),
        (fence(">>> x = 1"), ""),
    ],
)
def test_code_must_be_there_and_parse(reply: str, reason: str):
    assert judge(reply) == reason


def test_what_is_not_checked_is_said():
    report = check_code(fence("fn main() {}", "rust") + fence("fn x() {}", "rust") + fence("$ ls", ""), LIMITS)

    assert (report.drop, report.n_blocks) == (None, 3)
    assert report.notes == ("2 blocks of rust not checked", "1 unlabelled block not checked")


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("def f(): assert 1", ()),
        ("assert 1", ("assert",)),
        ("for x in y:\n    if x:\n        assert x", ("assert",)),
        ("try:\n    pass\nexcept ValueError:\n    assert 1", ("assert",)),
        ("with x:\n    assert 1", ("assert",)),
        ("match x:\n    case 1:\n        assert x", ("assert",)),
        ("if __name__ == '__main__':\n    assert f()", ("assert",)),
        ("class T(unittest.TestCase): ...", ("unittest",)),
        ("class T(TestCase): ...", ("unittest",)),
        ("class T: ...", ()),
        ("def test_x(): ...", ("function",)),
        ("async def test_x(): ...", ("function",)),
        ("def f():\n    '''\n    >>> f()\n    '''", ("doctest",)),
        ("x = '>>> 1'", ()),
    ],
)
def test_tests_are_told_from_code(code: str, tests: tuple[str, ...]):
    assert find_tests(parse_python(code).tree) == tests


TESTED = '''def add(a, b):
    """Add.

    >>> add(1, 2)
    {doctest}
    """
    return a + b
'''
TESTS = """import unittest
from your_module import add


class TestAdd(unittest.TestCase):
    def test_one(self):
        self.assertEqual(add(1, 2), {sum})


if __name__ == "__main__":
    unittest.main()
"""
RUN = [
    (fence("assert 1 + 1 == 2"), "", 1),
    (fence("assert 1 + 1 == 3"), "failed tests", 0),
    (fence(TESTED.format(doctest=3)) + fence(TESTS.format(sum=3)), "", 2),
    (fence(TESTED.format(doctest=4)) + fence(TESTS.format(sum=3)), "failed tests", 0),
    (fence(TESTED.format(doctest=3)) + fence(TESTS.format(sum=4)), "failed tests", 1),
    (fence("def f(): return 1\n\nif __name__ == '__main__':\n    assert f() == 2"), "failed tests", 0),
    (fence("def f(): return 1\n\nif __name__ == '__main__':\n    assert f() == 1\n    print('ok')"), "", 1),
    (fence("def f(): return 1\n\nif __name__ == '__main__':\n    print(input())\n\nassert f() == 1"), "", 1),
    (fence("def f(): return 1\n\ndef test_f():\n    assert f() == 2"), "failed tests", 0),
    (fence(">>> 1 + 1\n2\n>>> def f():\n...     return 3\n...\n>>> f()\n3", "pycon"), "", 1),
    (fence(">>> 1 + 1\n3"), "failed tests", 0),
    (fence("x = 1\nassert x == 2") + fence("x = 2\nassert x == 2"), "failed tests", 0),
    (fence("x = 5\ndel x") + fence("x = 2\nassert x == 2"), "", 1),
    (fence("raise ValueError('as an example')\nx = 1") + fence("assert 1 == 1"), "", 1),
    (fence("from __future__ import annotations\nx = 1") + fence("from __future__ import annotations\nassert x"), "", 1),
    (fence("while True: pass\nassert True"), "failed tests", 0),
    (fence("import sys\nsys.exit(0)\nassert False"), "failed tests", 0),
    (fence("import os\nos._exit(0)\nassert False"), "failed tests", 0),
    (fence("async def test_x():\n    assert 1 == 2"), "failed tests", 0),
    (fence("assert undefined_name == 1"), "failed tests", 0),
]


@needs_sandbox
@pytest.mark.parametrize(("reply", "reason", "n_tests"), RUN)
def test_tests_that_a_reply_brings_must_pass(reply: str, reason: str, n_tests: int):
    report = check_code(reply, Limits(timeout_s=2, cpu_s=1) if "while True" in reply else LIMITS)

    assert (report.drop.reason if report.drop else "", report.n_tests) == (reason, n_tests), report


@needs_sandbox
@pytest.mark.parametrize(
    ("code", "note"),
    [
        (
            "import nowhere_to_be_found\nassert nowhere_to_be_found.f()",
            "a library that is not there (nowhere_to_be_found)",
        ),
        ("import urllib.request\nassert urllib.request.urlopen('http://127.0.0.1:9')", "what the sandbox"),
        ("assert open('data.csv').read()", "a file that is not there"),
        ("assert input()", "somebody to type"),
        ("import subprocess\nassert subprocess.run(['ls'])", "what the sandbox refuses"),
        ("def test_x(tmp_path): assert 0", "arguments from a test runner"),
    ],
)
def test_tests_that_cannot_run_here_are_no_fault(code: str, note: str):
    report = check_code(fence(code), LIMITS)

    assert (report.drop, report.n_tests) == (None, 0)
    assert len(report.notes) == 1 and report.notes[0].startswith("tests not runnable") and note in report.notes[0]


@needs_sandbox
def test_a_wrong_test_beside_one_that_cannot_run_still_counts():
    reply = fence("def test_a():\n    import nowhere_at_all\ndef test_b():\n    assert 1 == 2")

    assert judge(reply) == "failed tests"


def test_libraries_that_are_not_standard_are_named():
    trees = [parse_python("import os, numpy.linalg\nfrom pandas import x\nfrom . import y\nimport numpy").tree]

    assert list_missing(trees) == ["numpy", "pandas"]


def test_code_nested_beyond_reason_is_kept_unrun():
    reply = fence("x = " + " + ".join(["1"] * 900) + "\nassert x == 900")

    report = check_code(reply, LIMITS)

    assert report.drop is None
    assert report.notes in ((), ("tests not runnable: the code is nested too deeply",))


@needs_sandbox
def test_the_filter_answers_alike_in_and_out_of_a_loop():
    candidate = Candidate("response-1", RUN[4][0])

    alone = CodeFilter(LIMITS).judge(candidate)

    assert alone is not None and alone.reason == "failed tests"
    assert asyncio.run(CodeFilter(LIMITS).judge_async(candidate)) == alone
    assert asyncio.run(check_code_async(RUN[0][0], LIMITS)) == check_code(RUN[0][0], LIMITS)


@needs_sandbox
def test_what_the_rehearsal_writes_passes_and_a_changed_answer_fails():
    asks = ["totals per day", "the largest", "find duplicates", "track of stock", "average readings", "split evenly"]
    sources = [write_code(f"a function: {ask}", "orders", random.Random(i)) for i, ask in enumerate(asks)]
    wrong = [source + "\nassert 'wrong' == 'right'" for source in sources]

    results = asyncio.run(run_many([build_program(parse_python(code)) for code in sources + wrong], LIMITS))

    assert [result.outcome for result in results] == ["passed"] * 6 + ["failed"] * 6
    assert all(find_tests(parse_python(source).tree) == ("assert",) for source in sources)


@needs_sandbox
def test_doctests_of_real_problems_run_on_their_solutions(shared_data: Path):
    with gzip.open(shared_data / "benchmarks" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file][:40:4]
    programs: list[Program] = [
        build_program(parse_python(problem["prompt"] + body))
        for problem in problems
        for body in (problem["canonical_solution"], "    return ('not', 'it')\n")
    ]

    results = asyncio.run(run_many(programs, LIMITS))

    assert all(program.discover == ("doctest",) for program in programs)
    assert [result.outcome for result in results] == ["passed", "failed"] * len(problems)


def test_replies_of_real_models_are_read_without_a_fault(shared_data: Path):
    counts: dict[str, int] = {}
    for size in ("0.5b", "7b"):
        path = shared_data / "outputs" / f"ifeval_en_qwen2.5-{size}-instruct_strict.jsonl"
        for line in path.read_text("utf-8").splitlines():
            report = check_code(json.loads(line)["response"], LIMITS)
            reason = report.drop.reason if report.drop else "kept"
            counts[reason] = counts.get(reason, 0) + 1

    assert sum(counts.values()) == 1082
    # by eye: 44 replies hold blocks, 3 of them nothing but words, 11 cut off, 1 fenced wrongly, 1 with a number 1,155
    assert counts == {"no code": 1041, "kept": 28, "broken code": 13}
