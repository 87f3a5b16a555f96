"""A model against a baseline with verdicts of five levels, Arena-Hard style, and the score they come to.

Source: arXiv 2406.11939: the judge reasons first, then says by how much one answer is better; both orders are played,
and a verdict of much better counts three times. The score is the chance to beat the baseline by Bradley and Terry's
model, in percent, with a bootstrap over questions. Here (METHOD §4, "ours") a pair of which either game has no verdict
is unjudged and in no figure. Files in Arena-Hard's form stand beside the evaluation.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix_dspy.bulk.runner import Outcome
from matrix_dspy.config import SamplingConfig
from matrix_dspy.evaluation.answers import Subject
from matrix_dspy.evaluation.arena_files import (
    BENCHMARK,
    ArenaAnswer,
    ArenaQuestion,
    Game,
    Judgement,
    write_answers,
    write_judgements,
    write_questions,
)
from matrix_dspy.evaluation.asking import AskOptions
from matrix_dspy.evaluation.bradley_terry import STRONG_WEIGHT, Battle, rank_models, read_verdict
from matrix_dspy.evaluation.intervals import N_RESAMPLES, SHARE
from matrix_dspy.evaluation.judging import (
    SAMPLED,
    Scored,
    Verdicts,
    ask_pairs,
    check_sides,
    describe_judging,
    describe_questions,
    dump_outcome,
    find_judge,
    gather_sides,
    list_missing,
    list_notes,
    make_figure,
    match_answers,
    mean_figures,
    measure_orders,
    open_judge,
    refuse_unjudged,
    warn_of_judge,
)
from matrix_dspy.evaluation.questions import Questions
from matrix_dspy.evaluation.record import Evaluation, Figure, check_folder, write_evaluation

PROGRAM = "arena_judge"
ORDER = "both orders, each a game; a pair with a game without a verdict is unjudged"
TIE = "A=B"
LEVELS = {"A>>B": "much better", "A>B": "better", "A=B": "tie", "B>A": "worse", "B>>A": "much worse"}
"""A verdict with the model as A, in words."""
_TURNED = {"A>>B": "B>>A", "A>B": "B>A", "A=B": "A=B", "B>A": "A>B", "B>>A": "A>>B"}


@dataclass(frozen=True, slots=True)
class _Played:
    """One pair and its two verdicts, both told with the model as A; None where it is unjudged."""

    verdicts: Verdicts
    levels: tuple[str, str] | None

    @property
    def score(self) -> float | None:
        """The model's mean score of both games: 1 for a win, 0.5 for a tie."""
        return None if self.levels is None else sum(read_verdict(level)[0] for level in self.levels) / 2


async def run_arena(
    model: Subject,
    baseline: Subject,
    questions: Questions,
    judge: str,
    folder: Path,
    options: AskOptions,
    *,
    sampling: SamplingConfig = SAMPLED,
    n_resamples: int = N_RESAMPLES,
) -> Evaluation:
    """Have a judge play a model against a baseline, and write the evaluation into `folder`.

    Figures, in percent: `arena score` (50 is the baseline's), `win rate` of single games (ties count as a half, much
    better as once) overall and by category, `ties`, `position bias` (50 is none), `order flips`; `arena Elo` on the
    scale where the baseline has 1,000. Equal answers are ties without a call. The counts hold the verdicts of all
    games, told from the model's side. Only the first turn of a question is asked.

    Raises:
        ConfigError: both sides have one name, or the judge is no model.
        RunError: the folder holds something else, no question is answered by both, or nothing could be judged.
        TableError: a file of answers cannot be read.
        EngineError: a model cannot be reached.
    """
    check_folder(folder, "arena")
    check_sides(model, baseline)
    find_judge(judge)
    own, base = await gather_sides(model, baseline, questions, folder, options, sampling)
    matched = match_answers(questions, own, base)
    async with open_judge(judge, folder, options) as asker:
        notes = warn_of_judge(asker, PROGRAM, own, base)
        verdicts = await ask_pairs(asker, PROGRAM, matched.pairs)
    played = [_Played(each, _read_levels(each)) for each in verdicts]
    rows = [_write_row(each) for each in played] + list_missing(matched.missing)
    if all(each.levels is None for each in played):
        refuse_unjudged(asker, "pairs", [each for one in verdicts for each in one.orders], rows, folder)
    settings = describe_judging(PROGRAM, options, n_resamples, sampling, model, baseline)
    evaluation = Evaluation(
        kind="arena",
        models={"model": own.name, "baseline": base.name},
        judge=asker.model,
        questions=describe_questions(questions),
        settings=settings | {"order": ORDER, "weight_of_much_better": STRONG_WEIGHT},
        figures=_list_figures(played, own.name, base.name, options.seed, n_resamples),
        counts=_count(played)
        | {"missing of the model": matched.n_missing_model, "missing of the baseline": matched.n_missing_reference}
        | {"cut off, model": own.n_cut_off, "cut off, baseline": base.n_cut_off},
        notes=[*notes, *list_notes(questions, own, base)],
        scores={each.verdicts.pair.question.question_id: 100 * each.score for each in played if each.score is not None},
        scored="win rate",
    )
    _write_files(verdicts, evaluation, folder)
    write_evaluation(evaluation, rows, folder)
    return evaluation


def _read_levels(verdicts: Verdicts) -> tuple[str, str] | None:
    if verdicts.pair.is_equal:
        return TIE, TIE
    first, second = verdicts.model_first, verdicts.reference_first
    if first is None or second is None or first.fields is None or second.fields is None:
        return None
    return first.fields["level"], _TURNED[second.fields["level"]]


def _write_row(played: _Played) -> dict[str, Any]:
    pair = played.verdicts.pair
    return {
        "question_id": pair.question.question_id,
        "category": pair.question.category,
        "verdict": "unjudged" if played.levels is None else "equal" if pair.is_equal else "judged",
        "levels": None if played.levels is None else [LEVELS[level] for level in played.levels],
        "score": played.score,
        "model_first": dump_outcome(played.verdicts.model_first),
        "reference_first": dump_outcome(played.verdicts.reference_first),
    }


def _list_figures(played: Sequence[_Played], model: str, baseline: str, seed: int, n_resamples: int) -> list[Figure]:
    drawn: dict[str, Any] = {"seed": seed, "n_resamples": n_resamples}
    battles = [
        Battle(model, baseline, *read_verdict(level), each.verdicts.pair.question.question_id)
        for each in played
        if each.levels is not None
        for level in each.levels
    ]
    standing = next(each for each in rank_models(battles, baseline, **drawn) if each.model == model)
    scored = [Scored(each.verdicts.pair.question, each.score) for each in played if each.score is not None]
    ties = [
        Scored(each.verdicts.pair.question, float(level == TIE))
        for each in played
        if each.levels is not None
        for level in each.levels
    ]
    first = [_list_first(each) for each in played]
    win_rates = mean_figures("win rate", scored, SHARE, **drawn)
    return [
        make_figure("arena score", standing.win_rate),
        win_rates[0],
        *mean_figures("ties", ties, SHARE, by_category=False, **drawn),
        *measure_orders([each.verdicts for each in played], first, seed, n_resamples),
        make_figure("arena Elo", standing.elo, unit="points"),
        *win_rates[1:],
    ]


def _list_first(played: _Played) -> tuple[float, float] | None:
    """Return the score of the answer shown first, in either order."""
    if played.levels is None or played.verdicts.pair.is_equal:
        return None
    return read_verdict(played.levels[0])[0], 1 - read_verdict(played.levels[1])[0]


def _count(played: Sequence[_Played]) -> dict[str, int]:
    levels = Counter(level for each in played if each.levels is not None for level in each.levels)
    return {
        "judged": sum(each.levels is not None for each in played),
        "unjudged": sum(each.levels is None for each in played),
        "equal answers": sum(each.verdicts.pair.is_equal for each in played),
        "empty answers": sum(
            not side.text.strip()
            for each in played
            for side in (each.verdicts.pair.model, each.verdicts.pair.reference)
        ),
        **{words: levels[level] for level, words in LEVELS.items()},
    }


def _write_files(verdicts: Sequence[Verdicts], evaluation: Evaluation, folder: Path) -> None:
    """Write Arena-Hard's question.jsonl, model_answer and model_judgment; its first game has the baseline as A."""
    model, baseline = evaluation.models["model"], evaluation.models["baseline"]
    pairs = [each.pair for each in verdicts]
    questions = [
        ArenaQuestion(pair.question.question_id, pair.question.turns[:1], pair.question.category or BENCHMARK)
        for pair in pairs
    ]
    write_questions(questions, folder)
    for name, sides in ((model, [each.model for each in pairs]), (baseline, [each.reference for each in pairs])):
        write_answers([ArenaAnswer(side.question_id, name, side.turns[:1]) for side in sides], folder)
    write_judgements(
        [
            Judgement(
                question_id=each.pair.question.question_id,
                model=model,
                judge=evaluation.judge,
                games=tuple(_build_game(each, outcome) for outcome in (each.reference_first, each.model_first)),
                baseline=baseline,
                category=each.pair.question.category or BENCHMARK,
            )
            for each in verdicts
        ],
        folder,
    )


def _build_game(verdicts: Verdicts, outcome: Outcome | None) -> Game:
    """Return a game in the order it was asked; equal answers are a tie that nobody was asked about."""
    if outcome is None:
        return Game(TIE if verdicts.pair.is_equal else None)
    return Game(None if outcome.fields is None else outcome.fields["level"], outcome.text)
