"""Whether a model's code passes a problem's own tests: HumanEval, MBPP, or any file with prompts and tests.

In: problems, and a model or a file of answers. Out: pass@k with an interval over problems, every verdict with its
reason, and a cache of what was run, so that a rerun runs only what is missing. Code runs in the sandbox alone; where
system calls cannot be filtered nothing is asked and nothing is run.
Sources: arXiv 2107.03374 (HumanEval, pass@k), arXiv 2108.07732 (MBPP; published figures are of tasks 11 to 510).
"""

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import orjson

from matrix_dspy.bulk.program import for_each
from matrix_dspy.bulk.progress import Progress, show_progress
from matrix_dspy.config import SamplingConfig
from matrix_dspy.curation.sandbox import (
    Limits,
    Program,
    SandboxError,
    SandboxResult,
    count_cores,
    isolation,
    run_program_async,
)
from matrix_dspy.curation.verifying import build_humaneval_program, build_mbpp_program, find_code, find_entry
from matrix_dspy.errors import ConfigError, RunError, TableError, boundary
from matrix_dspy.evaluation.answers import Answer, Answers, Subject, gather_answers, read_reply
from matrix_dspy.evaluation.asking import AskOptions
from matrix_dspy.evaluation.judging import describe_questions, list_notes, make_figure
from matrix_dspy.evaluation.lm_eval_files import write_samples
from matrix_dspy.evaluation.pass_at_k import measure_pass_at_k
from matrix_dspy.evaluation.questions import Question, Questions
from matrix_dspy.evaluation.record import Evaluation, Figure, check_folder, write_evaluation

Shape = Literal["humaneval", "mbpp", "tests"]

SAMPLING = SamplingConfig(temperature=0.2, max_tokens=1024)
"""How code is drawn. Paper: T 0.2."""
LIMITS = Limits(timeout_s=20.0, cpu_s=10, memory_mb=1024)
"""What one answer may use; the slowest reference solution of HumanEval and MBPP needs under 3 s of CPU."""
RAN = "ran.jsonl"
"""Results of programs by hash, kept in the evaluation's folder."""
MBPP_TEST = range(11, 511)
"""Tasks of MBPP that published figures are of."""
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,16}\b")
_HUMANEVAL_ASK = """\
Complete the Python function below.

{code}

Answer with one Python code block that holds the whole function, with its imports and whatever else it needs. \
Leave out examples, tests and anything that reads input."""
_MBPP_ASK = """\
{text}

Write it in Python. These tests must pass:

{code}

Answer with one Python code block that holds all of the code. Leave out the tests and anything that reads input."""
_PLAIN_ASK = """\
{text}

Answer with one Python code block that holds all of the code. Leave out examples, tests and anything that reads \
input."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: what is asked of a model, and how an answer becomes a program with tests."""

    question: Question
    shape: Shape
    ask: str

    def read_code(self, reply: str) -> str:
        """Return the code of a reply; empty where there is none."""
        row = self.question.row
        entry = str(row["entry_point"]) if self.shape == "humaneval" else find_entry(_list_tests(row))
        found = find_code(reply, entry)
        # the body of a function has no line that begins a module
        is_body = self.shape == "humaneval" and not found and re.search(r"^[ \t]+(?:return|yield|raise)\b", reply, re.M)
        return reply if is_body else found

    def build_program(self, code: str) -> Program:
        """Return code with the problem's tests."""
        row = self.question.row
        if self.shape == "humaneval":
            return build_humaneval_program(row, code)
        setup = "\n".join([*map(str, row.get("test_imports") or ()), str(row.get("test_setup_code") or "")])
        return build_mbpp_program({"test_list": _list_tests(row), "test_setup_code": setup}, code)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one answer."""

    reason: str
    """Empty for a pass; else `no code`, `did not parse`, `failed`, `timed out`, `out of memory`, `contained` (it did
    what the sandbox refuses), `left early`, `crashed` or `missing library`."""
    detail: str = ""
    n_tests: int = 0
    n_passed: int = 0

    @property
    def is_right(self) -> bool:
        """Whether all tests passed."""
        return not self.reason


def read_problem(question: Question) -> Problem:
    """Read a problem by its columns.

    HumanEval's: `prompt`, `entry_point` and `test`, which defines `check`. MBPP's: `text` or `prompt`, `test_list` and
    perhaps `test_setup_code` and `test_imports`; the tests are shown. Any other file: its question and `tests`, a list
    of statements that raise where they fail, or one text of them; those are not shown.

    Raises:
        TableError: it has no tests.
    """
    row = question.row
    if row.get("prompt") and row.get("entry_point") and row.get("test"):
        return Problem(question, "humaneval", _HUMANEVAL_ASK.format(code=_fence(str(row["prompt"]).strip("\n"))))
    tests = _list_tests(row)
    if not tests:
        raise TableError(
            f"question {question.question_id!r} has no tests; give HumanEval's columns (prompt, entry_point, test), "
            "MBPP's (text, test_list), or a list `tests`"
        )
    if row.get("test_list"):
        return Problem(question, "mbpp", _MBPP_ASK.format(text=question.text.strip(), code=_fence("\n".join(tests))))
    return Problem(question, "tests", _PLAIN_ASK.format(text=question.text.strip()))


async def run_code(
    model: Subject,
    questions: Questions,
    folder: Path,
    options: AskOptions,
    *,
    samples: int = 1,
    k: Sequence[int] = (1,),
    sampling: SamplingConfig = SAMPLING,
    limits: Limits = LIMITS,
    n_at_once: int | None = None,
) -> Evaluation:
    """Measure pass@k of a model, `samples` answers a problem, and write it down in `folder`.

    `n_at_once` programs run at a time, one per core unless said. A question without an answer is in no figure.
    Beside judged.jsonl stand the answers, the results of what was run, and a log as lm-evaluation-harness writes.

    Raises:
        ConfigError: a k is above the number of answers a problem.
        SandboxError: code cannot be run in isolation here.
        TableError: a question has no tests.
    """
    check_folder(folder, "code")
    if not (held := isolation()).seccomp:
        raise SandboxError(
            f"code cannot be run in isolation here: {'; '.join(held.notes)}; take Linux on x86-64 or 64-bit ARM"
        )
    problems = [read_problem(question) for question in questions]
    ks = tuple(sorted(set(k)))
    if model.path is None and ks[-1] > samples:
        raise ConfigError(f"pass@{ks[-1]} needs {ks[-1]} answers a problem, {samples} are drawn; ask for --samples {ks[-1]}")
    asked = [replace(problem.question, turns=(problem.ask,)) for problem in problems]
    answers = await gather_answers(model, asked, folder, options, sampling=sampling, n=samples)
    verdicts = await judge_answers(problems, answers, folder, limits, n_at_once, is_quiet=options.is_quiet)
    evaluation = _sum_up(model, questions, problems, answers, verdicts, ks, options, sampling, limits)
    write_evaluation(evaluation, list(_list_rows(problems, answers, verdicts)), folder)
    _write_log(problems, answers, verdicts, folder)
    return evaluation


async def judge_answers(
    problems: Sequence[Problem],
    answers: Answers,
    folder: Path,
    limits: Limits = LIMITS,
    n_at_once: int | None = None,
    *,
    is_quiet: bool = True,
) -> dict[tuple[str, int], Verdict]:
    """Return a verdict for every answer, by question id and place among its samples; programs alike run once.

    Raises:
        RunError: a process could not be set up; what was run is kept.
    """
    verdicts: dict[tuple[str, int], Verdict] = {}
    programs: dict[str, Program] = {}
    waiting: dict[str, list[tuple[str, int]]] = {}
    for problem in problems:
        for place, answer in enumerate(answers.by_id.get(problem.question.question_id, ())):
            program = _prepare(problem, answer)
            if isinstance(program, Verdict):
                verdicts[problem.question.question_id, place] = program
                continue
            digest = hash_program(program, limits)
            programs[digest] = program
            waiting.setdefault(digest, []).append((problem.question.question_id, place))
    results = await run_kept(programs, folder / RAN, limits, n_at_once, is_quiet=is_quiet)
    for digest, places in waiting.items():
        verdicts |= dict.fromkeys(places, results[digest])
    return verdicts


async def run_kept(
    programs: Mapping[str, Program],
    path: Path,
    limits: Limits,
    n_at_once: int | None = None,
    *,
    is_quiet: bool = True,
) -> dict[str, Verdict]:
    """Run programs by hash, but those whose results stand in the file already; each result is kept once it is there.

    Raises:
        RunError: a process could not be set up, or the file cannot be written.
    """
    found = {digest: verdict for digest, verdict in _read_kept(path).items() if digest in programs}
    missing = [digest for digest in programs if digest not in found]
    progress = Progress()
    progress.enter("sandbox", len(missing), "programs")
    with boundary(RunError, f"keep results in {str(path)!r}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    async def run(place: int) -> None:
        digest = missing[place]
        result = await run_program_async(programs[digest], limits)
        if result.outcome == "error":
            raise RunError(f"a program could not be started ({result.detail}); what was run is kept, try again")
        found[digest] = verdict = read_verdict(result)
        line = {"program": digest, "reason": verdict.reason, "detail": verdict.detail}
        counts = {"n_tests": verdict.n_tests, "n_passed": verdict.n_passed, "seconds": round(result.seconds, 3)}
        with boundary(RunError, f"keep results in {str(path)!r}"):
            os.write(file, orjson.dumps(line | counts, option=orjson.OPT_APPEND_NEWLINE))
        progress.kept += 1

    try:
        with boundary(RunError, f"keep results in {str(path)!r}"):
            _end_last_line(file)
        with show_progress(progress, is_quiet=is_quiet or not missing):
            await for_each(len(missing), n_at_once or count_cores(), run)
    finally:
        os.close(file)
    return found


def read_verdict(result: SandboxResult) -> Verdict:
    """Return what a run says of an answer."""
    n_passed = sum(test.state == "passed" for test in result.tests)
    detail = _ADDRESS.sub("0x...", result.detail)
    return Verdict(_name_reason(result), detail, result.n_tests, n_passed)


def hash_program(program: Program, limits: Limits) -> str:
    """Return a hash of a program, of what it may use, and of the Python that runs it."""
    parts = [program.code, program.tests, program.entry, limits.timeout_s, limits.cpu_s, limits.memory_mb]
    packed = orjson.dumps([*parts, sys.version_info[:2]])
    return hashlib.sha256(packed).hexdigest()


def _prepare(problem: Problem, answer: Answer) -> Program | Verdict:
    """Return the program of an answer, or the verdict where there is nothing to run."""
    code = problem.read_code(read_reply(answer))
    if not code.strip():
        return Verdict("no code", "it holds no Python")
    program = problem.build_program(code)
    try:
        with _no_warnings():
            compile(program.code, "solution.py", "exec", dont_inherit=True)
            ...
    except (SyntaxError, ValueError) as error:
        where = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        return Verdict("did not parse", f"{error.args[0] if error.args else error}{where}")
    return program
