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
from matrix_dspy.curation.verifying import add_humaneval_tests, add_mbpp_tests, find_code, find_entry, find_function
from matrix_dspy.errors import ConfigError, RunError, TableError, boundary
from matrix_dspy.evaluation.answers import Answer, Answers, Subject, gather_answers
from matrix_dspy.evaluation.asking import AskOptions
from matrix_dspy.evaluation.checking import LOGS, note_model, read_reply, write_log
from matrix_dspy.evaluation.judging import describe_questions, list_notes, make_figure
from matrix_dspy.evaluation.lm_eval_files import Sample, build_samples, write_completions
from matrix_dspy.evaluation.pass_at_k import measure_pass_at_k
from matrix_dspy.evaluation.questions import Question, Questions
from matrix_dspy.evaluation.record import Evaluation, Figure, check_folder, write_evaluation

Shape = Literal["humaneval", "mbpp", "tests"]

SAMPLING = SamplingConfig(temperature=0.2, max_tokens=1024)
"""How code is drawn. Paper: T 0.2."""
LIMITS = Limits(timeout_s=30.0, cpu_s=10, memory_mb=1024)
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
        """Return the code of a reply, for HumanEval the whole function; empty where there is none."""
        row = self.question.row
        if self.shape == "humaneval":
            return find_function(str(row["prompt"]), str(row["entry_point"]), reply)
        return find_code(reply, find_entry(_list_tests(row)))

    def build_program(self, code: str) -> Program:
        """Return a whole module with the problem's tests."""
        row = self.question.row
        if self.shape == "humaneval":
            return add_humaneval_tests(row, code)
        setup = "\n".join([*map(str, row.get("test_imports") or ()), str(row.get("test_setup_code") or "")])
        return add_mbpp_tests({"test_list": _list_tests(row), "test_setup_code": setup}, code)


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
    Beside judged.jsonl stand the answers, the results of what was run, and for HumanEval and MBPP the code that was
    run, as lm-evaluation-harness logs it and as HumanEval's own tool takes it.

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
        raise ConfigError(
            f"pass@{ks[-1]} needs {ks[-1]} answers a problem, {samples} are drawn; ask for --samples {ks[-1]}"
        )
    asked = [replace(problem.question, turns=(problem.ask,)) for problem in problems]
    answers = await gather_answers(model, asked, folder, options, sampling=sampling, n=samples)
    fewest, least = min(((len(found), name) for name, found in answers.by_id.items()), default=(ks[-1], ""))
    if fewest < ks[-1]:
        raise ConfigError(
            f"pass@{ks[-1]} cannot be told: the problem {least!r} has {fewest} answers; give {ks[-1]}, or a smaller k"
        )
    verdicts = await judge_answers(problems, answers, folder, limits, n_at_once, is_quiet=options.is_quiet)
    evaluation = _sum_up(model, questions, problems, answers, verdicts, ks, options, sampling, limits)
    _write_logs(problems, questions, answers, verdicts, folder)
    write_evaluation(evaluation, list(_list_rows(problems, answers, verdicts)), folder)
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
    return problem.build_program(code) if code.strip() else Verdict("no code", "it holds no Python")


def _name_reason(result: SandboxResult) -> str:
    """Return why an answer failed, empty where it passed."""
    if result.outcome == "passed":
        return ""
    raised = {result.exception, *(test.exception for test in result.tests if test.state == "failed")}
    text = " ".join([result.detail, *(test.message for test in result.tests)])
    if "PermissionError" in raised or "Read-only file system" in text or "'_ctypes'" in text:
        return "contained"
    if result.outcome != "failed":
        return {"timeout": "timed out", "memory": "out of memory"}.get(result.outcome, "crashed")
    if not result.tests and result.exception in ("SyntaxError", "IndentationError", "TabError"):
        return "did not parse"
    if raised & {"ModuleNotFoundError", "ImportError"}:
        return "missing library"
    return "left early" if "SystemExit" in raised else "failed"


def _read_kept(path: Path) -> dict[str, Verdict]:
    """Return the results of an earlier start; a torn or foreign line is none."""
    found: dict[str, Verdict] = {}
    with boundary(RunError, f"read {str(path)!r}"):
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            row = orjson.loads(line)
            verdict = Verdict(str(row["reason"]), str(row["detail"]), int(row["n_tests"]), int(row["n_passed"]))
            found[str(row["program"])] = verdict
    return found


def _end_last_line(file: int) -> None:
    """Close a line that an earlier start left torn, so that the next one stands alone."""
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        os.write(file, b"\n")


def _sum_up(
    model: Subject,
    questions: Questions,
    problems: Sequence[Problem],
    answers: Answers,
    verdicts: Mapping[tuple[str, int], Verdict],
    ks: Sequence[int],
    options: AskOptions,
    sampling: SamplingConfig,
    limits: Limits,
) -> Evaluation:
    by_problem: dict[str, list[bool]] = {}
    for (question_id, _), verdict in sorted(verdicts.items()):
        by_problem.setdefault(question_id, []).append(verdict.is_right)
    figures = _measure(by_problem, ks, options.seed)
    published = {name: found for name, found in by_problem.items() if name.isdecimal() and int(name) in MBPP_TEST}
    if {problem.shape for problem in problems} == {"mbpp"} and 0 < len(published) < len(by_problem):
        figures += _measure(published, ks, options.seed, f"tasks {MBPP_TEST[0]} to {MBPP_TEST[-1]}")
    reasons = Counter(verdict.reason or "passed" for verdict in verdicts.values())
    counts = {"problems": len(by_problem), "answers": len(verdicts)}
    counts |= {"missing": len(questions) - len(by_problem), "cut off": answers.n_cut_off}
    settings = {
        "k": list(ks),
        "answers per problem": sorted({len(found) for found in by_problem.values()}),
        "seed": options.seed,
        "answers": None if model.path else sampling.model_dump(exclude_none=True),
        "limits": {"timeout_s": limits.timeout_s, "cpu_s": limits.cpu_s, "memory_mb": limits.memory_mb},
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "isolation": isolation().describe(),
    }
    return Evaluation(
        "code",
        {"model": answers.name},
        questions=describe_questions(questions),
        settings=settings,
        figures=figures,
        counts=counts | dict(sorted(reasons.items())),
        notes=[*list_notes(questions, answers, counts_all=True), *note_model(answers)],
        scores={name: 100 * sum(found) / len(found) for name, found in by_problem.items()},
    )


def _measure(by_problem: Mapping[str, Sequence[bool]], ks: Sequence[int], seed: int, group: str = "") -> list[Figure]:
    if not by_problem:
        return [Figure(f"pass@{k}", None, group=group) for k in ks]
    found = measure_pass_at_k(by_problem, ks, seed=seed)
    return [make_figure(f"pass@{k}", found[k].scale(100), group=group) for k in ks]


def _list_rows(
    problems: Iterable[Problem], answers: Answers, verdicts: Mapping[tuple[str, int], Verdict]
) -> Iterable[dict[str, Any]]:
    for problem in problems:
        question_id = problem.question.question_id
        for place, answer in enumerate(answers.by_id.get(question_id, ())):
            verdict = verdicts[question_id, place]
            yield {
                "question_id": question_id,
                "sample": place,
                "is_right": verdict.is_right,
                "reason": verdict.reason,
                "detail": verdict.detail,
                "n_tests": verdict.n_tests,
                "n_passed": verdict.n_passed,
                "is_cut_off": answer.is_cut_off,
                "code": problem.read_code(read_reply(answer)),
            }
        if question_id in answers.missing:
            yield {"question_id": question_id, "missing": answers.missing[question_id]}


def _write_logs(
    problems: Sequence[Problem],
    questions: Questions,
    answers: Answers,
    verdicts: Mapping[tuple[str, int], Verdict],
    folder: Path,
) -> None:
    shapes = {problem.shape for problem in problems}
    if shapes not in ({"humaneval"}, {"mbpp"}):
        return
    samples: list[Sample] = []
    completions: list[tuple[str, str]] = []
    for problem in problems:
        question = problem.question
        given = answers.by_id.get(question.question_id, ())
        # after a prompt, which ends in a docstring, a whole function defines it once more
        start = "\n" if problem.shape == "humaneval" else ""
        replies = [f"{start}{problem.read_code(read_reply(answer))}" for answer in given]
        # the name that EvalPlus has for MBPP's tasks
        task_id = question.question_id if problem.shape == "humaneval" else f"Mbpp/{question.question_id}"
        completions += [(task_id, reply) for reply in replies]
        place = _find_place(problem)
        if replies and place is not None:
            share = sum(verdicts[question.question_id, i].is_right for i in range(len(given))) / len(given)
            metric = "pass@1" if problem.shape == "humaneval" else "pass_at_1"
            samples += build_samples(problem.shape, place, question.row, problem.ask, replies, {metric: share})
    write_completions(completions, folder / LOGS / "completions.jsonl")
    write_log(next(iter(shapes)), samples, questions, answers.name, folder)


def _find_place(problem: Problem) -> int | None:
    """Return a problem's place in the split that lm-evaluation-harness asks; None where it is in none."""
    number = problem.question.question_id.removeprefix("HumanEval/")
    if not (number.isascii() and number.isdecimal()):
        return None
    if problem.shape == "humaneval":
        return int(number)
    return int(number) - MBPP_TEST.start if int(number) in MBPP_TEST else None


def _list_tests(row: Mapping[str, Any]) -> list[str]:
    """Return a problem's tests as statements; those of a CSV file may be JSON."""
    tests = row.get("test_list") or row.get("tests") or ()
    if isinstance(tests, str) and tests.lstrip().startswith("["):
        with suppress(ValueError):
            tests = orjson.loads(tests)
    listed = [tests] if isinstance(tests, str) else list(tests)
    return [str(test) for test in listed if str(test).strip()]


def _fence(code: str) -> str:
    """Return code in a fence that nothing in it closes."""
    longest = max((len(run) for run in re.findall(r"`{3,}", code)), default=2)
    mark = "`" * (longest + 1)
    return f"{mark}python\n{code}\n{mark}"
