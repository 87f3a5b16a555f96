"""DSPy's optimizers by name, each sized to a budget of LM calls.

`labeled` needs no LM. The others stop when the meter refuses a call; what they tried until then is on the scoreboard.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import dspy
import numpy as np

from matrix_dspy.optimization.guards import build_adapter, limit_metric_calls
from matrix_dspy.optimization.judged import JUDGES, JudgedRow, is_gold, read_output, read_preference
from matrix_dspy.text import count_words

OptimizerName = Literal["labeled", "bootstrap", "mipro", "gepa", "simba"]
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)
NEEDS_DEMOS = ("bootstrap",)
MAX_DEMOS: dict[str, int] = {
    "actor": 2,
    "intra_router": 2,
    "inter_router": 1,
    "reception_router": 1,
    "scenario_writer": 1,
    "instruction_writer": 0,
    "responder": 0,
    "instruction_rater": 3,
    "response_judge": 3,
    "pair_judge": 1,
    "output_judge": 0,
    "arena_judge": 0,
    "rating_judge": 0,
    "critic": 1,
    "reviser": 1,
}
"""Demos a compiled program may hold. Those of writers narrow variety, and every one costs prefill on every call."""
DEFAULT_OPTIMIZERS: dict[str, OptimizerName] = {
    "actor": "bootstrap",
    "scenario_writer": "mipro",
    "intra_router": "gepa",
    "inter_router": "gepa",
    "reception_router": "gepa",
}
"""What is tried first where an LM is given and no optimizer is named; all others take `gepa`."""
MINIBATCH = 3
LONGEST_INSTRUCTION = 6000
"""Characters of an instruction that is kept: it is paid for on every call."""


@dataclass(frozen=True)
class Bench:
    """What an optimizer works with."""

    program: str
    rows: list[JudgedRow]
    """The rows of the training split."""
    train: list[dspy.Example]
    val: list[dspy.Example]
    score: Callable[..., float]
    """The metric as a number, noting every score on the scoreboard."""
    feedback: Callable[..., dspy.Prediction]
    task_lm: dspy.LM
    teacher_lm: dspy.LM
    budget: int
    """Calls of all roles it may take."""
    calls_per_row: int
    """Calls to score one row: the program's and the judge's."""
    threshold: float
    """Score from which an output may become a demo."""
    concurrency: int
    seed: int
    max_demos: int


def choose_optimizer(program: str) -> OptimizerName:
    """Return the optimizer a program takes where none is named."""
    return DEFAULT_OPTIMIZERS.get(program, "gepa")


def least_budget(optimizer: OptimizerName, n_train: int, n_val: int, calls_per_row: int) -> int:
    """Return the fewest calls with which an optimizer can try anything at all."""
    steps = {
        "labeled": 0,
        "bootstrap": 2 * n_val + 8,
        "mipro": 3 * n_val + 8,
        "gepa": 3 * n_val + 4 * MINIBATCH,
        "simba": _simba_rows(1, min(8, n_train), 3),
    }
    return steps[optimizer] * calls_per_row


def optimize(optimizer: OptimizerName, student: dspy.Module, bench: Bench) -> dspy.Module | None:
    """Run an optimizer; returns the program it chose, None where it chose none.

    Raises:
        BudgetSpent: the budget ended first.
    """
    logging.getLogger("dspy").setLevel(logging.WARNING)
    with dspy.context(num_threads=bench.concurrency, max_errors=10**9):
        return _RUN[optimizer](student, bench)


def choose_demos(program: str, rows: Sequence[JudgedRow], n: int) -> list[dspy.Example]:
    """Choose rows to follow as demos, without any LM call: far apart in their inputs, unlike in length, levels spread.

    The longest third is left out, since demos are paid for on every call. The first is the one nearest to the middle of
    all; each next one lies farthest from those chosen (k-center, Gonzalez 1985), in TF-IDF of the inputs with the
    logarithm of their length as one more dimension. Of a judge's rows each next one comes from a level not yet shown.
    """
    gold = [row for row in rows if is_gold(program, row) and row.output.get("reason") != ""]
    if n <= 0 or not gold:
        return []
    gold = _leave_out_longest(gold, n)
    vectors = _embed([_say(row.inputs) for row in gold])
    chosen = [int(np.argmax(vectors @ vectors.mean(axis=0)))]
    while len(chosen) < min(n, len(gold)):
        nearest = (vectors @ vectors[chosen].T).max(axis=1)
        shown = {_level(gold[i]) for i in chosen}
        open_ = [i for i in range(len(gold)) if i not in chosen]
        if program in JUDGES:
            open_ = [i for i in open_ if _level(gold[i]) not in shown] or open_
        chosen.append(min(open_, key=lambda i: (round(float(nearest[i]), 9), i)))
    return [_build_demo(program, gold[i]) for i in chosen]


def _leave_out_longest(rows: list[JudgedRow], n: int) -> list[JudgedRow]:
    sizes = [len(_say(row.inputs)) + len(_say(row.output)) for row in rows]
    most = sorted(sizes)[max(n, 2 * len(rows) // 3) - 1 if n < len(rows) else -1]
    return [row for row, size in zip(rows, sizes, strict=True) if size <= most]


def _build_demo(program: str, row: JudgedRow) -> dspy.Example:
    return dspy.Example(**row.inputs, **read_output(program, row)).with_inputs(*row.inputs)


def _level(row: JudgedRow) -> Any:
    return read_preference(row.output) if row.score is None else row.score


def _say(inputs: dict[str, Any]) -> str:
    return " ".join(map(str, inputs.values()))


def _embed(texts: list[str]) -> np.ndarray:
    from sklearn.feature_extraction.text import TfidfVectorizer

    words: Any = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
    lengths = np.log1p([count_words(text) for text in texts])
    spread = float(lengths.std()) or 1.0
    vectors = np.hstack([words.toarray(), 0.3 * ((lengths - lengths.mean()) / spread)[:, None]])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _labeled(student: dspy.Module, bench: Bench) -> dspy.Module:
    program = student.deepcopy()
    predictor: Any = program.predictors()[0]
    predictor.demos = choose_demos(bench.program, bench.rows, bench.max_demos)
    return program


def _bootstrap(student: dspy.Module, bench: Bench) -> dspy.Module:
    from dspy.teleprompt import BootstrapFewShotWithRandomSearch

    # a candidate costs its evaluation, and about two calls a demo to bootstrap
    per_candidate = (len(bench.val) + 3 * bench.max_demos) * bench.calls_per_row
    n_candidates = max(1, min(12, bench.budget // per_candidate - 1))
    made = BootstrapFewShotWithRandomSearch(
        metric=bench.score,
        metric_threshold=bench.threshold,
        teacher_settings={"lm": bench.teacher_lm},
        max_bootstrapped_demos=bench.max_demos,
        max_labeled_demos=0,
        num_candidate_programs=n_candidates,
        num_threads=bench.concurrency,
        max_errors=10**9,
    )
    seeds = [-1, *range(n_candidates)]  # -3 is the start without demos, -2 has labelled ones: `labeled` does that
    return made.compile(student, trainset=bench.train, valset=bench.val, restrict=seeds)


def _mipro(student: dspy.Module, bench: Bench) -> dspy.Module:
    from dspy.teleprompt import MIPROv2

    n_candidates = 6
    per_trial = len(bench.val) * bench.calls_per_row
    n_proposals = n_candidates + 6
    n_bootstrap = 4 * n_candidates * bench.max_demos * bench.calls_per_row
    n_trials = max(2, min(30, (bench.budget - n_proposals - n_bootstrap) // per_trial - 1))
    made = MIPROv2(
        metric=bench.score,
        prompt_model=bench.teacher_lm,
        task_model=bench.task_lm,
        teacher_settings={"lm": bench.teacher_lm},
        max_bootstrapped_demos=bench.max_demos,
        max_labeled_demos=0,
        auto=None,
        num_candidates=n_candidates,
        num_threads=bench.concurrency,
        max_errors=10**9,
        seed=bench.seed,
        verbose=False,
        metric_threshold=bench.threshold,
    )
    return made.compile(
        student,
        trainset=bench.train,
        valset=bench.val,
        num_trials=n_trials,
        minibatch=False,
        max_bootstrapped_demos=bench.max_demos,
        max_labeled_demos=0,
        program_aware_proposer=False,
    )


def _gepa(student: dspy.Module, bench: Bench) -> dspy.Module:
    from dspy.teleprompt.gepa.gepa import GEPA
    from dspy.teleprompt.gepa.instruction_proposal import InstructionProposer

    rows = bench.budget // bench.calls_per_row
    made = GEPA(
        metric=bench.feedback,
        max_metric_calls=max(len(bench.val) + 1, limit_metric_calls(rows, len(bench.val), MINIBATCH)),
        reflection_minibatch_size=MINIBATCH,
        reflection_lm=bench.teacher_lm,
        instruction_proposer=InstructionProposer(max_chars=LONGEST_INSTRUCTION, adapter=build_adapter()),
        add_format_failure_as_feedback=True,
        num_threads=bench.concurrency,
        use_merge=False,  # there is one predictor, nothing to merge
        seed=bench.seed,
        warn_on_score_mismatch=False,
    )
    return made.compile(student, trainset=bench.train, valset=bench.val)


def _simba(student: dspy.Module, bench: Bench) -> dspy.Module | None:
    from dspy.teleprompt import SIMBA

    n_candidates, rows = 4, bench.budget // bench.calls_per_row
    size = min(16, len(bench.train))
    if _simba_rows(2, size, n_candidates) > rows:
        n_candidates, size = 3, min(8, len(bench.train))
    steps = next((steps for steps in range(8, 1, -1) if _simba_rows(steps, size, n_candidates) <= rows), 1)
    made = SIMBA(
        metric=bench.score,
        bsize=size,
        num_candidates=n_candidates,
        max_steps=steps,
        max_demos=bench.max_demos,
        prompt_model=bench.teacher_lm,
        num_threads=bench.concurrency,
    )
    student.set_lm(bench.task_lm)
    return made.compile(student, trainset=bench.train, seed=bench.seed)


def _simba_rows(steps: int, size: int, n_candidates: int) -> int:
    """Return the rows SIMBA scores: trajectories and new candidates in every step, the best ones on all in the end."""
    return steps * size * (2 * n_candidates + 1) + 32 * (n_candidates + 1)


_RUN: dict[str, Callable[[dspy.Module, Bench], dspy.Module | None]] = {
    "labeled": _labeled,
    "bootstrap": _bootstrap,
    "mipro": _mipro,
    "gepa": _gepa,
    "simba": _simba,
}
