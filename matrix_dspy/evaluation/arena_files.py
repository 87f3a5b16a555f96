"""Arena-Hard's files, read and written: questions, answers and judgements, in the layout of v0.1 and the present one.

    question.jsonl                          question_id (now uid), category, cluster, turns (now prompt)
    model_answer/<model>.jsonl              question_id, answer_id, model_id, choices (now uid, model, messages)
    model_judgment/<judge>/<model>.jsonl    question_id, model, judge, games: two, each with a judgment and a score

In the first game the baseline's answer is A and the model's is B; in the second they are turned. A score is `A>>B`,
`A>B`, `A=B`, `B>A` or `B>>A`, or null where the judge gave none. What is written has the fields of both layouts, so
that either version of Arena-Hard's own code reads it: put the folder in its `data/`, name the judge, the models and
the baseline in its config, and run

    python gen_judgment.py        # asks its own judge, about the answers
    python show_result.py         # scores the judgements that lie there
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix_dspy.errors import TableError
from matrix_dspy.evaluation.bradley_terry import Battle, read_verdict
from matrix_dspy.evaluation.json_files import Entry, as_entry, read_entries, write_lines
from matrix_dspy.text import estimate_tokens, name_file
from matrix_dspy.types import make_id

BENCHMARK = "arena-hard-v0.1"
QUESTIONS = "question.jsonl"


@dataclass(frozen=True, slots=True)
class ArenaQuestion:
    """What the models are asked."""

    question_id: str
    turns: tuple[str, ...]
    """The user's turns; Arena-Hard has one each."""
    category: str = BENCHMARK
    cluster: str = ""
    """What it is about."""


@dataclass(frozen=True, slots=True)
class ArenaAnswer:
    """What a model answered."""

    question_id: str
    model: str
    turns: tuple[str, ...]
    """The model's answers, one to each of the user's turns."""


@dataclass(frozen=True, slots=True)
class Game:
    """One verdict on two answers in one order."""

    score: str | None
    """Such as `A>>B`; None where the judge gave none."""
    judgment: str = ""
    """What the judge wrote."""
    user_prompt: str = ""
    """What it was asked, where that was kept."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Both verdicts on a model's answer to one question against the baseline's."""

    question_id: str
    model: str
    judge: str
    games: tuple[Game, ...]
    """The first with the baseline as A, the second with the model as A."""
    baseline: str = ""
    """Empty where the file does not say, as those of v0.1."""
    category: str = BENCHMARK


def read_questions(path: Path) -> list[ArenaQuestion]:
    """Read questions of either layout; TableError where it cannot be, a field is missing, or an id comes twice."""
    found: list[ArenaQuestion] = []
    for entry in _read_some(path, "questions"):
        prompt = entry.get_text("prompt", default="")
        turns = tuple(
            turn if isinstance(turn, str) else as_entry(turn, f"a turn in {entry.where}").get_text("content")
            for turn in entry.get_list("turns", default=(prompt,) if prompt else ())
        )
        if not turns:
            raise TableError(f"{entry.where} has neither 'turns' nor 'prompt'; write what is asked")
        found.append(
            ArenaQuestion(
                question_id=entry.get_text("question_id", "uid"),
                turns=turns,
                category=entry.get_text("category", default=BENCHMARK),
                cluster=entry.get_text("cluster", default=""),
            )
        )
    _refuse_doubles((each.question_id for each in found), path)
    return found


def write_questions(questions: Iterable[ArenaQuestion], folder: Path) -> Path:
    """Write `question.jsonl` in `folder`, whole or not at all; returns its path."""
    path = folder / QUESTIONS
    write_lines(
        (
            {
                "question_id": each.question_id,
                "uid": each.question_id,
                "category": each.category,
                "cluster": each.cluster,
                "turns": [{"content": turn} for turn in each.turns],
                "prompt": each.turns[0],
            }
            for each in questions
        ),
        path,
    )
    return path


def read_answers(path: Path) -> list[ArenaAnswer]:
    """Read a model's answers in either layout; TableError where they cannot be, or one id comes twice."""
    found = [_read_answer(entry) for entry in _read_some(path, "answers")]
    _refuse_doubles((each.question_id for each in found), path)
    return found


def write_answers(answers: Sequence[ArenaAnswer], folder: Path) -> Path:
    """Write one model's answers in `folder`/model_answer, whole or not at all; returns the file's path.

    `token_len` is estimated, since Arena-Hard's own tokenizer must be downloaded; its style control needs `metadata`
    that its own code counts.
    """
    model = _name_only(answers, "answers")
    path = folder / "model_answer" / f"{name_file(model)}.jsonl"
    write_lines(map(_render_answer, answers), path)
    return path


def list_judgement_files(path: Path) -> list[Path]:
    """Return the files of judgements at a path: itself, or those in a folder, one level below, or in `model_judgment`.

    Raises:
        TableError: the folder has none.
    """
    if not path.is_dir():
        return [path]
    inner = path / "model_judgment"
    folder = inner if inner.is_dir() else path
    if folder is path and ((path / "journal").is_dir() or (path / "answers").is_dir()):
        raise TableError(f"{str(path)!r} holds no finished arena evaluation; finish it, or leave it out")
    files = sorted((*folder.glob("*.jsonl"), *folder.glob("*/*.jsonl")))
    if not files:
        raise TableError(f"the folder {str(path)!r} holds no .jsonl file; give a judge's folder in model_judgment")
    return files


def read_judgements(path: Path) -> list[Judgement]:
    """Read judgements from the files at a path.

    Raises:
        TableError: nothing is there, a field is missing, a score is none of the five, or a question comes twice for
            one model and judge.
    """
    found: list[Judgement] = []
    for file in list_judgement_files(path):
        found += map(_read_judgement, _read_some(file, "judgements"))
    _refuse_doubles((f"{each.judge} of {each.model}: {each.question_id}{_name_against(each)}" for each in found), path)
    return found


def _name_against(judgement: Judgement) -> str:
    return f" against {judgement.baseline}" if judgement.baseline else ""


def write_judgements(judgements: Sequence[Judgement], folder: Path) -> Path:
    """Write one judge's of one model in `folder`/model_judgment/<judge>, whole or not at all; returns the path."""
    model = _name_only(judgements, "judgements")
    judges = sorted({each.judge for each in judgements})
    if len(judges) != 1:
        raise TableError(f"the judgements are of {len(judges)} judges; write those of one at a time")
    path = folder / "model_judgment" / name_file(judges[0], "judge") / f"{name_file(model)}.jsonl"
    write_lines(map(_render_judgement, judgements), path)
    return path


def to_battles(judgements: Iterable[Judgement], baseline: str = "") -> tuple[list[Battle], int]:
    """Return the battles of judgements, and how many were left out because a game of theirs has no verdict.

    `baseline` is who they were against where they do not say so themselves.

    Raises:
        TableError: neither says who the baseline is, or a score is none of the five.
    """
    battles: list[Battle] = []
    n_unjudged = 0
    for each in judgements:
        other = each.baseline or baseline
        if not other:
            raise TableError(f"the judgement of {each.model!r} does not name the baseline; say which model it was")
        scores = [game.score for game in each.games if game.score is not None]
        if len(scores) < len(each.games):
            n_unjudged += 1
            continue
        for number, verdict in enumerate(scores):
            score, weight = read_verdict(verdict)
            a, b = (other, each.model) if number % 2 == 0 else (each.model, other)
            battles.append(Battle(a, b, score, weight, each.question_id))
    return battles, n_unjudged


def _read_answer(entry: Entry) -> ArenaAnswer:
    if "messages" in entry.values and "choices" not in entry.values:
        said = [as_entry(turn, f"a message in {entry.where}") for turn in entry.get_list("messages")]
        turns = [_read_content(turn) for turn in said if turn.get_text("role") == "assistant"]
    else:
        choices = entry.get_list("choices")
        if not choices:
            raise TableError(f"{entry.where} has no choices; write the model's answer")
        first = as_entry(choices[0], f"the first choice in {entry.where}")
        turns = [_read_content(as_entry(turn, f"a turn in {entry.where}")) for turn in first.get_list("turns")]
    if not turns:
        raise TableError(f"{entry.where} has no answer; generate it first or take the line out")
    return ArenaAnswer(entry.get_text("question_id", "uid"), entry.get_text("model_id", "model"), tuple(turns))


def _read_content(turn: Entry) -> str:
    content = turn.values.get("content")
    return as_entry(content, turn.where).get_text("answer") if isinstance(content, dict) else turn.get_text("content")


def _render_answer(answer: ArenaAnswer) -> dict[str, Any]:
    answer_id = make_id("answer", answer.model, answer.question_id)
    return {
        "question_id": answer.question_id,
        "uid": answer.question_id,
        "answer_id": answer_id,
        "ans_id": answer_id,
        "model_id": answer.model,
        "model": answer.model,
        "choices": [
            {"index": 0, "turns": [{"content": turn, "token_len": estimate_tokens(turn)} for turn in answer.turns]}
        ],
        "messages": [{"role": "assistant", "content": {"answer": turn}} for turn in answer.turns],
        "tstamp": 0.0,
    }


def _read_judgement(entry: Entry) -> Judgement:
    games = entry.get_list("games")
    if not games:
        raise TableError(f"{entry.where} has no games; take the line out or judge it again")
    return Judgement(
        question_id=entry.get_text("question_id", "uid"),
        model=entry.get_text("model"),
        judge=entry.get_text("judge", default=""),
        games=tuple(_read_game(game, f"game {number} in {entry.where}") for number, game in enumerate(games, 1)),
        baseline=entry.get_text("baseline", default=""),
        category=entry.get_text("category", default=BENCHMARK),
    )


def _read_game(game: Any, where: str) -> Game:
    if game is None:
        return Game(None)
    entry = as_entry(game, where)
    entry.require("score")
    score = entry.values["score"]
    if isinstance(score, float) and math.isnan(score):
        score = None
    if score is not None:
        score = entry.get_text("score")
        try:
            read_verdict(score)
        except TableError as error:
            raise TableError(f"{where}: {error}") from error
    said = entry.values.get("judgment")
    judgment = as_entry(said, where).get_text("answer", default="") if isinstance(said, dict) else None
    return Game(
        score=score,
        judgment=entry.get_text("judgment", default="") if judgment is None else judgment,
        user_prompt=entry.get_text("user_prompt", default=""),
    )


def _render_judgement(each: Judgement) -> dict[str, Any]:
    return {
        "question_id": each.question_id,
        "uid": each.question_id,
        "category": each.category,
        "model": each.model,
        "judge": each.judge,
        "baseline": each.baseline,
        "games": [
            {"user_prompt": game.user_prompt, "judgment": game.judgment, "score": game.score} for game in each.games
        ],
    }


def _read_some(path: Path, what: str) -> list[Entry]:
    entries = read_entries(path)
    if not entries:
        raise TableError(f"{str(path)!r} holds no {what}; give a file that does")
    return entries


def _name_only(rows: Sequence[ArenaAnswer] | Sequence[Judgement], what: str) -> str:
    models = sorted({each.model for each in rows})
    if len(models) != 1:
        raise TableError(f"the {what} are of {len(models)} models; write those of one at a time")
    return models[0]


def _refuse_doubles(keys: Iterable[str], path: Path) -> None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise TableError(f"{str(path)!r} has {key[:120]!r} twice; keep one of them")
        seen.add(key)
