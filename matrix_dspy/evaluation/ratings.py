"""Single-answer ratings from 1 to 10, MT-Bench style: every turn is rated by itself, with the conversation before it.

Source: arXiv 2306.05685 §3 (single answer grading, reference-guided where there is a reference). Here the judge gives
its reason before the rating, and the words of its prompt are this project's own (`rating_judge`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix_dspy.bulk.runner import Outcome
from matrix_dspy.config import SamplingConfig
from matrix_dspy.errors import RunError
from matrix_dspy.evaluation.answers import Answer, Answers, Subject, gather_answers
from matrix_dspy.evaluation.asking import AskOptions, Call
from matrix_dspy.evaluation.intervals import N_RESAMPLES
from matrix_dspy.evaluation.judging import (
    SAMPLED,
    Scored,
    describe_judging,
    describe_questions,
    drop_thinking,
    dump_outcome,
    find_judge,
    list_notes,
    mean_figures,
    open_judge,
    refuse_unjudged,
    warn_of_judge,
)
from matrix_dspy.evaluation.mt_bench_files import Rating, write_answers, write_questions, write_ratings
from matrix_dspy.evaluation.questions import Question, Questions
from matrix_dspy.evaluation.record import Evaluation, Figure, check_folder, write_evaluation
from matrix_dspy.text import clean_text

PROGRAM = "rating_judge"
SCALE = (1.0, 10.0)
UNIT = "of 10"


@dataclass(frozen=True, slots=True)
class _Turn:
    """One answered turn of a question."""

    question: Question
    answer: Answer
    place: int

    def build_call(self) -> Call:
        """Return the call that rates it; the conversation before it goes along."""
        before = [
            clean_text(text)
            for pair in zip(self.question.turns[: self.place], self.answer.turns[: self.place], strict=True)
            for text in pair
        ]
        inputs = {
            "earlier": before,
            "instruction": clean_text(self.question.turns[self.place]),
            "known_answers": [clean_text(text) for text in _find_references(self.question, self.place)],
            "response": clean_text(self.answer.turns[self.place]),
        }
        return Call(self.question.question_id, inputs, round=self.place)


async def run_ratings(
    model: Subject,
    questions: Questions,
    judge: str,
    folder: Path,
    options: AskOptions,
    *,
    sampling: SamplingConfig = SAMPLED,
    n_turns: int | None = None,
    n_resamples: int = N_RESAMPLES,
) -> Evaluation:
    """Have every turn of a model's answers rated, and write the evaluation into `folder`.

    Figures: `rating` (overall, and by category), `rating, turn 1` and so on, and `rating by probabilities`, the mean of
    the judge's levels under its log-probabilities, where its server gives them. Bootstraps are over questions. A turn
    without a verdict is unjudged and in no figure. `n_turns` are the most turns to play.

    Raises:
        RunError: the folder holds something else, no question is answered, or nothing could be judged.
        ConfigError: the judge is no model.
        EngineError: a model cannot be reached.
    """
    check_folder(folder, "ratings")
    find_judge(judge)
    answers = await gather_answers(model, questions, folder, options, sampling=sampling, n_turns=n_turns)
    turns = _list_turns(questions, answers, n_turns)
    if not turns:
        raise RunError(f"{model.name!r} answered none of the {len(questions)} questions; there is nothing to rate")
    async with open_judge(judge, folder, options) as asker:
        notes = warn_of_judge(asker, PROGRAM, answers)
        outcomes = await asker.ask(PROGRAM, [turn.build_call() for turn in turns], expect="rating")
    rows = [_write_row(turn, outcome) for turn, outcome in zip(turns, outcomes, strict=True)]
    if not any(outcome.is_ok for outcome in outcomes):
        refuse_unjudged(asker, "answers", outcomes, rows, folder)
    n_wanted = sum(len(question.turns[:n_turns]) for question in questions)
    n_referenced = sum(bool(_find_references(turn.question, turn.place)) for turn in turns)
    evaluation = Evaluation(
        kind="ratings",
        models={"model": answers.name},
        judge=asker.model,
        questions=describe_questions(questions),
        settings=describe_judging(PROGRAM, options, n_resamples, sampling, model) | {"n_turns": n_turns},
        figures=_list_figures(turns, outcomes, options.seed, n_resamples),
        counts={
            "judged": sum(outcome.is_ok for outcome in outcomes),
            "unjudged": sum(not outcome.is_ok for outcome in outcomes),
            "turns without an answer": n_wanted - len(turns),
            "judged with a known answer": n_referenced,
            "cut off": answers.n_cut_off,
        },
        notes=[*notes, *list_notes(questions, answers, uses_turns=True)],
        scores=_list_scores(turns, outcomes),
    )
    _write_files(questions, answers, turns, outcomes, asker.model, folder / "mt_bench")
    write_evaluation(evaluation, rows, folder)
    return evaluation


def _list_turns(questions: Sequence[Question], answers: Answers, n_turns: int | None) -> list[_Turn]:
    answered = [(question, answers.first(question.question_id)) for question in questions]
    return [
        _Turn(question, drop_thinking(answer), place)
        for question, answer in answered
        if answer is not None
        for place in range(min(len(question.turns[:n_turns]), len(answer.turns)))
    ]


def _find_references(question: Question, place: int) -> tuple[str, ...]:
    """Return the known answers of a turn: its own where there are several turns, all of them where there is one."""
    if len(question.turns) == 1:
        return question.references
    return tuple(filter(None, question.references[place : place + 1]))


def _list_scores(turns: Sequence[_Turn], outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return the mean rating of every question's turns, by its id."""
    rated: dict[str, list[float]] = {}
    for turn, outcome in zip(turns, outcomes, strict=True):
        if outcome.fields is not None:
            rated.setdefault(turn.question.question_id, []).append(float(outcome.fields["rating"]))
    return {question_id: sum(found) / len(found) for question_id, found in rated.items()}


def _write_row(turn: _Turn, outcome: Outcome) -> dict[str, Any]:
    return {
        "question_id": turn.question.question_id,
        "category": turn.question.category,
        "turn": turn.place + 1,
        "verdict": "rated" if outcome.is_ok else "unjudged",
        "judge": dump_outcome(outcome),
    }


def _write_files(
    questions: Sequence[Question],
    answers: Answers,
    turns: Sequence[_Turn],
    outcomes: Sequence[Outcome],
    judge: str,
    folder: Path,
) -> None:
    """Write what FastChat's MT-Bench takes: every question, and what was answered and rated of it."""
    given = [(question, answers.first(question.question_id)) for question in questions]
    said = [(question, drop_thinking(answer).turns) for question, answer in given if answer is not None]
    ratings = [
        Rating(turn.question, turn.place + 1, outcome.fields["rating"] if outcome.fields else None, outcome.text)
        for turn, outcome in zip(turns, outcomes, strict=True)
    ]
    write_questions(questions, folder)
    write_answers(said, answers.name, folder)
    write_ratings(ratings, answers.name, judge, folder)


def _list_figures(turns: Sequence[_Turn], outcomes: Sequence[Outcome], seed: int, n_resamples: int) -> list[Figure]:
    rated = [
        (turn, float(outcome.fields["rating"]), outcome.expected)
        for turn, outcome in zip(turns, outcomes, strict=True)
        if outcome.fields is not None
    ]
    drawn: dict[str, Any] = {"unit": UNIT, "seed": seed, "n_resamples": n_resamples}
    figures = mean_figures("rating", [Scored(turn.question, value) for turn, value, _ in rated], SCALE, **drawn)
    finer = [Scored(turn.question, expected) for turn, _, expected in rated if expected is not None]
    if finer:
        figures += mean_figures("rating by probabilities", finer, SCALE, **drawn)
    places = sorted({turn.place for turn in turns})
    if len(places) > 1:
        for place in places:
            own = [Scored(turn.question, value) for turn, value, _ in rated if turn.place == place]
            figures += mean_figures(f"rating, turn {place + 1}", own, SCALE, by_category=False, **drawn)
    return figures
