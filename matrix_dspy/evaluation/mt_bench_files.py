"""FastChat's MT-Bench files, written: questions, a model's answers, and single-answer ratings.

    question.jsonl                        question_id, category, turns, reference
    model_answer/<model>.jsonl            question_id, answer_id, model_id, choices: one, with a text a turn
    model_judgment/<judge>_single.jsonl   question_id, model, judge, user_prompt, judgment, score, turn

as `gen_judgment.py --mode single` and `show_result.py` of fschat 0.2.36 read them. A turn without a rating has the
score -1, which that code leaves out of its means.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix_dspy.evaluation.json_files import write_lines
from matrix_dspy.evaluation.questions import Question
from matrix_dspy.text import name_file
from matrix_dspy.types import make_id

UNRATED = -1
_PROMPT = "single-v1"


@dataclass(frozen=True, slots=True)
class Rating:
    """What a judge gave one turn of an answer."""

    question: Question
    turn: int
    """From 1."""
    score: float | None
    judgment: str = ""


def write_questions(questions: Iterable[Question], folder: Path) -> Path:
    """Write `question.jsonl`, whole or not at all; returns its path."""
    path = folder / "question.jsonl"
    rows = (
        {"question_id": _find_id(each), "category": each.category or "general", "turns": list(each.turns)}
        | ({"reference": list(each.references)} if each.references else {})
        for each in questions
    )
    write_lines(rows, path)
    return path


def write_answers(answers: Iterable[tuple[Question, Sequence[str]]], model: str, folder: Path) -> Path:
    """Write one model's answers, a text a turn, in `folder`/model_answer; returns the file's path."""
    path = folder / "model_answer" / f"{name_file(model)}.jsonl"
    rows = (
        {
            "question_id": _find_id(question),
            "answer_id": make_id("answer", model, question.question_id),
            "model_id": model,
            "choices": [{"index": 0, "turns": list(turns)}],
            "tstamp": 0.0,
        }
        for question, turns in answers
    )
    write_lines(rows, path)
    return path


def write_ratings(ratings: Iterable[Rating], model: str, judge: str, folder: Path) -> Path:
    """Write one judge's ratings of one model in `folder`/model_judgment; returns the file's path."""
    path = folder / "model_judgment" / f"{name_file(judge, 'judge')}_single.jsonl"
    rows = (
        {
            "question_id": _find_id(each.question),
            "model": model,
            "judge": [judge, _PROMPT if each.turn == 1 else f"{_PROMPT}-multi-turn"],
            "user_prompt": "",
            "judgment": each.judgment,
            "score": UNRATED if each.score is None else each.score,
            "turn": each.turn,
            "tstamp": 0.0,
        }
        for each in ratings
    )
    write_lines(rows, path)
    return path


def _find_id(question: Question) -> Any:
    """Return a question's id as its own file has it: FastChat's are whole numbers."""
    given = question.row.get("question_id")
    return given if str(given) == question.question_id else question.question_id
