"""What evaluations without a judge share: the part of an answer that counts, shares with intervals, logs for others."""

from collections.abc import Sequence
from pathlib import Path

from matrix_dspy.evaluation.answers import Answer, Answers
from matrix_dspy.evaluation.intervals import SHARE, bootstrap_mean, wilson
from matrix_dspy.evaluation.judging import REHEARSAL, Scored, make_figure
from matrix_dspy.evaluation.lm_eval_files import Sample, summarise, write_results, write_samples
from matrix_dspy.evaluation.questions import Questions
from matrix_dspy.evaluation.record import Figure
from matrix_dspy.synthesis.thinking import split_thinking

LOGS = "lm_eval"
"""Folder of logs as lm-evaluation-harness writes them, beside an evaluation."""
_STAMP = 12
"""Hex digits of the questions' hash that stand for the time in the names of logs, so that a rerun replaces them."""


def read_reply(answer: Answer) -> str:
    """Return what an answer says once it has been thought about; empty where the thinking never ended."""
    thought = split_thinking(answer.text, is_wanted=False)
    # what goes on from a prompt must keep its first blanks
    return thought.answer if thought.thinking or not thought.is_closed else answer.text


def note_model(answers: Answers) -> list[str]:
    """Return the note that the answers are no model's."""
    if answers.model != REHEARSAL:
        return []
    return [
        "the answers are the rehearsal's, a set of rules: these figures show that the way works and are of no model"
    ]


def measure_share(name: str, scored: Sequence[Scored], seed: int, group: str = "") -> Figure:
    """Return the mean of values from 0 to 1 in percent, not measured where there are none.

    The interval is Wilson's where every question has one value of 0 or 1, else a bootstrap over questions.
    """
    if not scored:
        return Figure(name, None, group=group)
    values = [each.value for each in scored]
    ids = [each.question.question_id for each in scored]
    if len(set(ids)) == len(ids) and set(values) <= {0.0, 1.0}:
        found = wilson(sum(values), len(values))
    else:
        found = bootstrap_mean(values, clusters=ids, bounds=SHARE, seed=seed)
    return make_figure(name, found.scale(100), group=group)


def write_log(task: str, samples: Sequence[Sample], questions: Questions, model: str, folder: Path) -> None:
    """Write samples and results as lm-evaluation-harness does, in `folder`/lm_eval; nothing where there are none."""
    if samples:
        stamp = questions.sha256[:_STAMP]
        write_samples(samples, folder / LOGS, task, stamp)
        write_results(summarise(model, {task: samples}), folder / LOGS, stamp)
