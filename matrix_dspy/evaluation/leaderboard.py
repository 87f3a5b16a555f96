"""Many models by judgements that are there already: Arena-Hard's own files, or those of `evaluate arena`.

In: files, a judge's folder, or folders that hold `model_judgment`. Out: one scale for all models, by Bradley and
Terry's model against one baseline (arXiv 2406.11939 §4), with bootstraps over questions. As in an arena, a question of
which either game has no verdict is unjudged and in no figure.
"""

import csv
import io
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from matrix_dspy.bulk.tables import write_text
from matrix_dspy.errors import ConfigError, RunError, TableError, boundary
from matrix_dspy.evaluation.arena_files import (
    QUESTIONS,
    Judgement,
    list_judgement_files,
    read_judgements,
    read_questions,
    to_battles,
)
from matrix_dspy.evaluation.bradley_terry import STRONG_WEIGHT, Standing, rank_models
from matrix_dspy.evaluation.intervals import N_RESAMPLES
from matrix_dspy.evaluation.judging import REHEARSAL, RULES, make_figure, tell_agreement
from matrix_dspy.evaluation.record import (
    RECORD,
    Evaluation,
    check_folder,
    check_judge,
    read_evaluation,
    write_evaluation,
)
from matrix_dspy.text import drop_controls, one_line

KIND = "leaderboard"
PROGRAM = "arena_judge"
TABLE = "leaderboard.csv"
_COLUMNS = ("rank", "model", "score", "score_low", "score_high", "elo", "elo_low", "elo_high", "n_questions", "n_games")


def rank_judgements(
    paths: Sequence[Path],
    folder: Path,
    *,
    baseline: str = "",
    judge: str = "",
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> Evaluation:
    """Rank all models that `paths` judge, and write the evaluation into `folder`.

    `baseline` stands at 50 % and 1,000; it may be left out where all judgements are against one, and is whom those were
    against that do not say. `judge` names whose judgements count where they are several judges'. Figures: every model's
    chance to beat the baseline in percent under its name, and in its group its `arena Elo`.

    Raises:
        ConfigError: there are several judges or baselines and none is named, or not the one named.
        RunError: the folder holds something else, or another leaderboard.
        TableError: a file cannot be read, a game is judged twice, one id stands for two questions, or nothing joins two
            models.
    """
    check_folder(folder, KIND)
    _check_questions(paths)
    judgements = _choose_judge(_read_all(paths), judge)
    base = baseline or _find_baseline(judgements)
    names = ", ".join(dict.fromkeys(path.resolve().name for path in paths))
    check_folder(folder, KIND, {"baseline": base})
    check_judge(folder, judgements[0].judge)
    _check_growth(folder, {base} | {name for each in judgements for name in (each.model, each.baseline)})
    battles, n_unjudged = to_battles(judgements, base)
    if not battles:
        raise TableError(f"none of the {len(judgements):,} judgements has a verdict; judge them again")
    standings = rank_models(battles, base, seed=seed, n_resamples=n_resamples)
    evaluation = Evaluation(
        kind=KIND,
        models={"baseline": base},
        judge=judgements[0].judge,
        questions={"name": names, "n": len({each.question_id for each in judgements})},
        settings={"seed": seed, "n_resamples": n_resamples, "weight_of_much_better": STRONG_WEIGHT},
        figures=[
            *(make_figure(each.model, each.win_rate) for each in standings),
            *(make_figure("arena Elo", each.elo, unit="points", group=each.model) for each in standings),
        ],
        counts={"models": len(standings), "games": len(battles), "unjudged": n_unjudged},
        notes=_list_notes(standings, judgements[0].judge),
    )
    with boundary(RunError, f"write {str(folder / TABLE)!r}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(_write_table(standings), folder / TABLE)
    write_evaluation(evaluation, [_write_row(each, base) for each in judgements], folder)
    return evaluation


def _read_all(paths: Sequence[Path]) -> list[Judgement]:
    seen: dict[tuple[str, ...], Path] = {}
    found: list[Judgement] = []
    files = dict.fromkeys(file for path in paths for file in list_judgement_files(path))
    for file in files:
        for each in read_judgements(file):
            key = (each.judge, each.model, each.baseline, each.question_id)
            if (other := seen.setdefault(key, file)) != file:
                raise TableError(
                    f"{str(file)!r} and {str(other)!r} both judge {each.model!r} on {each.question_id!r}; give one"
                )
            found.append(each)
    return found


def _check_questions(paths: Sequence[Path]) -> None:
    """Refuse folders whose questions have the same ids and are others, as far as they say what was asked."""
    known: dict[str, tuple[tuple[str, ...], Path]] = {}
    for path in paths:
        if not (path / QUESTIONS).is_file():
            continue
        for each in read_questions(path / QUESTIONS):
            asked, other = known.setdefault(each.question_id, (each.turns, path))
            if asked != each.turns:
                raise TableError(
                    f"{str(path)!r} and {str(other)!r} ask different things under the id {each.question_id!r}; "
                    "rank them apart"
                )


def _choose_judge(judgements: Sequence[Judgement], judge: str) -> list[Judgement]:
    judges = sorted({each.judge for each in judgements})
    if judge and judge not in judges:
        raise ConfigError(f"no judgement is by {judge!r}; the judges are {_list_names(judges)}")
    if not judge and len(judges) > 1:
        raise ConfigError(f"the judgements are of {len(judges)} judges, {_list_names(judges)}; name one with --judge")
    return [each for each in judgements if each.judge == (judge or judges[0])]


def _find_baseline(judgements: Sequence[Judgement]) -> str:
    named = sorted({each.baseline for each in judgements})
    if len(named) == 1 and named[0]:
        return named[0]
    if any(named):
        names = _list_names(list(filter(None, named)))
        others = "" if named[0] else ", and some do not say against whom they are"
        raise ConfigError(
            f"the judgements are not all against one baseline ({names}{others}); name one with --baseline"
        )
    raise ConfigError("the judgements do not say against whom they are; name the baseline with --baseline")


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")


def _check_growth(folder: Path, models: Set[str]) -> None:
    """Refuse to write over a leaderboard with models that the new one lacks; it may grow."""
    if not (folder / RECORD).is_file():
        return
    known = {figure.group for figure in read_evaluation(folder).figures if figure.group}
    if lost := sorted(known - models):
        raise RunError(
            f"{str(folder)!r} holds a leaderboard with {lost[0]!r}, which is not in this one; give another folder with "
            "--out"
        )


def _list_notes(standings: Sequence[Standing], judge: str) -> list[str]:
    lone = [one_line(each.model) for each in standings if each.is_regularised]
    notes = ["the verdicts are those of files; what was asked, and in which order, is as their makers did it"]
    notes += [RULES] if judge == REHEARSAL else [tell_agreement(PROGRAM, judge)] if judge else []
    if lone:
        notes.append(f"won or lost everything, so that the score rests on half a battle added: {', '.join(lone)}")
    return notes


def _write_row(judgement: Judgement, baseline: str) -> dict[str, Any]:
    return {
        "question_id": judgement.question_id,
        "category": judgement.category,
        "model": judgement.model,
        "baseline": judgement.baseline or baseline,
        "scores": [game.score for game in judgement.games],
    }


def _write_table(standings: Sequence[Standing]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for rank, each in enumerate(standings, 1):
        figures = [value for one in (each.win_rate, each.elo) for value in (one.value, one.low, one.high)]
        rounded = [f"{value:.2f}" for value in figures]
        writer.writerow([rank, drop_controls(one_line(each.model)), *rounded, each.win_rate.n, each.n_battles])
    return text.getvalue()
