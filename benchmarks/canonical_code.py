"""The reference solutions of HumanEval and MBPP, run by `evaluate code`: all must pass, and none that was broken.

    MATRIX_DSPY_DATA=FOLDER python benchmarks/canonical_code.py [--at-once N] [--no-broken]

FOLDER holds `benchmarks/HumanEval.jsonl.gz` and `benchmarks/mbpp.jsonl`. A broken solution is the reference with every
`return` answering a text that nobody asks for; where a solution has no `return` its last statement becomes an error.
Times are those of the sandboxes alone, one process a program; the floor beside them is a bare `python -c pass` started
as often, as many at a time. A second run of the same folder must run nothing.
"""

import argparse
import ast
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from matrix_dspy.bulk.program import for_each
from matrix_dspy.curation.sandbox import count_cores, isolation
from matrix_dspy.evaluation.answers import Answer, Answers, Subject
from matrix_dspy.evaluation.asking import AskOptions
from matrix_dspy.evaluation.code import judge_answers, read_problem, run_code
from matrix_dspy.evaluation.questions import Questions, read_questions

FILES = {"HumanEval.jsonl.gz": "canonical_solution", "mbpp.jsonl": "code"}
"""File to the column of its reference solutions."""
WRONG = "nothing of the kind"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--at-once", type=int, default=count_cores())
    parser.add_argument("--no-broken", action="store_true")
    options = parser.parse_args()
    folder = Path(os.environ["MATRIX_DSPY_DATA"]) / "benchmarks"
    print(isolation().describe())
    is_good = True
    with tempfile.TemporaryDirectory() as place:
        for name, column in FILES.items():
            questions = read_questions(folder / name)
            is_good &= run_references(folder / name, questions, Path(place) / name, options.at_once)
            if not options.no_broken:
                is_good &= run_broken(questions, column, Path(place) / f"broken-{name}", options.at_once)
    return 0 if is_good else 1


def run_references(path: Path, questions: Questions, out: Path, n_at_once: int) -> bool:
    """Run the file's own solutions, twice; whether all passed and the second time ran nothing."""
    quiet = AskOptions(is_quiet=True)

    def run() -> tuple[float, float | None, dict[str, float]]:
        begin = time.perf_counter()
        found = asyncio.run(run_code(Subject.of(str(path)), questions, out, quiet, n_at_once=n_at_once))
        return time.perf_counter() - begin, found.find("pass@1").value, dict(found.scores)

    floor = asyncio.run(time_bare_starts(len(questions), n_at_once))
    first, value, scores = run()
    ran = (out / "ran.jsonl").read_bytes()
    second, _, _ = run()
    failed = [name for name, score in scores.items() if score < 100]
    is_kept = (out / "ran.jsonl").read_bytes() == ran
    print(f"{path.name}: {len(questions)} references, pass@1 {value:.2f} %, failed: {', '.join(failed) or 'none'}")
    print(
        f"  {first:.1f} s, {first / floor:.1f} times as long as bare starts of Python; again {second:.1f} s, "
        f"{'nothing' if is_kept else 'something'} run"
    )
    return not failed and is_kept


def run_broken(questions: Questions, column: str, out: Path, n_at_once: int) -> bool:
    """Run the solutions broken on purpose; whether none passed."""
    problems = [read_problem(question) for question in questions]
    by_id = {
        each.question.question_id: (Answer("", (break_code(each.read_code(str(each.question.row[column]))),)),)
        for each in problems
    }
    verdicts = asyncio.run(judge_answers(problems, Answers("broken", "broken", by_id), out, n_at_once=n_at_once))
    passed = [name for (name, _), verdict in verdicts.items() if verdict.is_right]
    reasons = Counter(verdict.reason or "passed" for verdict in verdicts.values())
    print(f"  broken on purpose: passed {', '.join(passed) or 'none'}; {dict(reasons)}")
    return not passed


def break_code(source: str) -> str:
    """Return code in which every function answers something that nobody asks for."""
    tree = ast.parse(source)
    returns = [node for node in ast.walk(tree) if isinstance(node, ast.Return)]
    for node in returns:
        node.value = ast.Constant(WRONG)
    if not returns:
        tree.body.append(ast.parse(f"raise ValueError({WRONG!r})").body[0])
    return ast.unparse(ast.fix_missing_locations(tree))


async def time_bare_starts(n: int, n_at_once: int) -> float:
    """Return the seconds that `n` starts of Python without any work take."""

    async def start(place: int) -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", "pass")
        await process.wait()

    begin = time.perf_counter()
    await for_each(n, n_at_once, start)
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
