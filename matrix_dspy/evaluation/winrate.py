"""How often a judge prefers a model's answers to a reference's: raw, and at equal length.

Source: METHOD §4 ("ours"): every pair is asked in both orders; where they agree the pair is a win or a loss, where they
disagree a tie. A pair of which either order has no verdict is unjudged and in no figure. The length-controlled rate is
AlpacaEval 2's (arXiv 2404.04475, see `length_control`). Beside the evaluation stand files in AlpacaEval's form, so that
its own tools can go on from the same answers and verdicts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix_dspy.bulk.runner import Outcome
from matrix_dspy.config import SamplingConfig
from matrix_dspy.errors import ConfigError, TableError
from matrix_dspy.evaluation.alpaca_files import (
    Annotation,
    ModelOutput,
    group_by_model,
    rank_row,
    read_annotations,
    read_leaderboard,
    to_pairs,
    write_annotations,
    write_leaderboard,
    write_model_outputs,
)
from matrix_dspy.evaluation.answers import Answer, Subject
from matrix_dspy.evaluation.asking import AskOptions
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
    share_figure,
    warn_of_judge,
)
from matrix_dspy.evaluation.length_control import (
    LEAST_MODELS,
    Difficulty,
    JudgedPair,
    WinRate,
    find_difficulty,
    measure_win_rate,
)
from matrix_dspy.evaluation.questions import Question, Questions
from matrix_dspy.evaluation.record import Evaluation, Figure, check_folder, check_judge, write_evaluation

PROGRAM = "pair_judge"
ORDER = "both orders; where they disagree the pair is a tie, where either has no verdict it is unjudged"
CHARACTERS = "characters"


@dataclass(frozen=True, slots=True)
class _Judged:
    """One pair and what it comes to."""

    verdicts: Verdicts
    score: float | None
    """1 the model won, 0 the reference, 0.5 a tie; None where it is unjudged."""
    weight: float | None
    """The model's share by the judge's probabilities; None where its server gave none, or for equal answers."""

    @property
    def verdict(self) -> str:
        """The verdict in a word."""
        if self.score is None:
            return "unjudged"
        if self.verdicts.pair.is_equal:
            return "equal"
        return {1.0: "win", 0.5: "tie", 0.0: "loss"}[self.score]

    def preference(self, *, is_weighted: bool) -> float | None:
        """Return the preference in AlpacaEval's coding, 1 to 2."""
        if self.score is None:
            return None
        return 1 + (self.weight if is_weighted and self.weight is not None else self.score)


async def run_winrate(
    model: Subject,
    reference: Subject,
    questions: Questions,
    judge: str,
    folder: Path,
    options: AskOptions,
    *,
    sampling: SamplingConfig = SAMPLED,
    difficulty: Difficulty | None = None,
    annotations: Sequence[Path] = (),
    is_weighted: bool = False,
    n_resamples: int = N_RESAMPLES,
) -> Evaluation:
    """Have a judge compare a model's answers with a reference's, and write the evaluation into `folder`.

    Figures, in percent: `win rate` (ties count as a half), `length-controlled win rate`, `standard error` (of the
    first, the paper's SD), `wins`, `ties`, `losses`, `position bias` (how often the answer shown first is taken; 50 is
    none), `order flips`; the mean lengths in characters; `win rate` by category. Equal answers are ties without a call.
    `difficulty` is by question text or id; else it is fitted where `annotations`, files in AlpacaEval's form, make it
    five models with this one, judged against this reference on these questions. With `is_weighted` a preference is the
    judge's probability, where its server gives log-probabilities, and `discrete win rate` stands beside it. Only the
    first turn of a question is asked.

    Raises:
        ConfigError: both sides have one name, or the judge is no model.
        RunError: the folder holds something else, no question is answered by both, or nothing could be judged.
        TableError: a file cannot be read, or a question has no difficulty.
        EngineError: a model cannot be reached.
    """
    check_folder(folder, "winrate")
    check_sides(model, reference)
    hardness = _match_difficulty(difficulty, questions)
    others = _read_others(annotations)
    find_judge(judge)
    own, base = await gather_sides(model, reference, questions, folder, options, sampling)
    matched = match_answers(questions, own, base)
    async with open_judge(judge, folder, options) as asker:
        notes = warn_of_judge(asker, PROGRAM, own, base)
        verdicts = await ask_pairs(asker, PROGRAM, matched.pairs, expect="preference" if is_weighted else "")
    judged = [_read_verdicts(each) for each in verdicts]
    rows = [_write_row(each, is_weighted=is_weighted) for each in judged] + list_missing(matched.missing)
    if all(each.score is None for each in judged):
        refuse_unjudged(asker, "pairs", [each for one in verdicts for each in one.orders], rows, folder)
    pairs = [_to_pair(each, is_weighted=is_weighted) for each in judged]
    rivals = _choose_rivals(others, own.name, {base.name, base.model}, {pair.prompt for pair in pairs})
    known = find_difficulty({own.name: pairs, **rivals}, own.name, hardness)
    rates = measure_win_rate(pairs, known, seed=options.seed, n_resamples=n_resamples)
    settings = describe_judging(PROGRAM, options, n_resamples, sampling, model, reference)
    evaluation = Evaluation(
        kind="winrate",
        models={"model": own.name, "reference": base.name},
        judge=asker.model,
        questions=describe_questions(questions),
        settings=settings | {"order": ORDER, "weighted": is_weighted, "difficulty": rates.difficulty},
        figures=[
            *_list_rates(rates, judged, is_weighted=is_weighted, seed=options.seed, n_resamples=n_resamples),
            *measure_orders(verdicts, [_list_first(each) for each in judged], options.seed, n_resamples),
            *_list_lengths(rates),
        ],
        counts=_count(judged, is_weighted=is_weighted)
        | {"missing of the model": matched.n_missing_model, "missing of the reference": matched.n_missing_reference}
        | {"cut off, model": own.n_cut_off, "cut off, reference": base.n_cut_off},
        notes=[
            *notes,
            *list_notes(questions, own, base),
            *_tell_of_rivals(others, rivals, own.name),
            *_tell_of_control(rates, len(rivals) + 1),
        ],
        scores=_list_scores(judged, is_weighted=is_weighted),
    )
    _write_files(judged, evaluation, rates, folder, is_weighted=is_weighted)
    write_evaluation(evaluation, rows, folder)
    return evaluation


def read_annotations_winrate(
    path: Path,
    *,
    model: str = "",
    reference: str = "",
    judge: str = "",
    others: Sequence[Path] = (),
    difficulty: Difficulty | None = None,
    leaderboard: Path | None = None,
    folder: Path | None = None,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> Evaluation:
    """Return raw and length-controlled win rate of a model by somebody's annotations in AlpacaEval's form.

    `model`, `reference` and `judge` name the ones that are meant where the file has several. Difficulty is given, or
    fitted where file and `others` hold five models against this reference. With a `leaderboard` the notes say where the
    model would stand. With a `folder` the evaluation is written there.

    Raises:
        TableError: a file cannot be read, or holds nothing judged.
        ConfigError: the file has several models, references or judges and none is named, or not the one named.
    """
    if folder is not None:
        check_folder(folder, "winrate")
    annotations = read_annotations(path)
    chosen = _choose(annotations, "generator_2", model, path)
    chosen = _choose(chosen, "generator_1", reference, path)
    chosen = _choose(chosen, "annotator", judge, path)
    name, base, judge = chosen[0].generator_2, chosen[0].generator_1, chosen[0].annotator
    if folder is not None:
        check_folder(folder, "winrate", {"model": name, "reference": base}, path.name)
        check_judge(folder, judge)
    pairs = to_pairs(chosen)
    found = _read_others([path, *others])
    rest = _choose_rivals(found, name, {base}, {pair.prompt for pair in pairs}, judge)
    known = find_difficulty({name: pairs, **rest}, name, difficulty)
    rates = measure_win_rate(pairs, known, seed=seed, n_resamples=n_resamples)
    evaluation = Evaluation(
        kind="winrate",
        models={"model": name, "reference": base},
        judge=judge,
        questions={"name": path.name, "n": len(chosen)},
        settings={"seed": seed, "n_resamples": n_resamples, "difficulty": rates.difficulty},
        figures=[*_list_main_rates(rates), *_list_lengths(rates)],
        counts={"judged": rates.n_total, "unjudged": rates.n_unannotated},
        notes=[
            "the verdicts are those of a file, which does not say whether both orders were asked",
            *(_tell_of_rivals(found, rest, name) if others else []),
            *_tell_of_control(rates, len(rest) + 1),
            *([] if leaderboard is None else [_tell_rank(name, rates, leaderboard)]),
        ],
    )
    if folder is not None:
        rows = [_write_annotation(f"q{n:05d}", each) for n, each in enumerate(chosen)]
        write_evaluation(evaluation, rows, folder)
    return evaluation


def _read_verdicts(verdicts: Verdicts) -> _Judged:
    if verdicts.pair.is_equal:
        return _Judged(verdicts, 0.5, None)
    first, second = verdicts.model_first, verdicts.reference_first
    if first is None or second is None or first.fields is None or second.fields is None:
        return _Judged(verdicts, None, None)
    votes = (first.fields["preference"] == "A") + (second.fields["preference"] == "B")
    weight = None
    if first.expected is not None and second.expected is not None:
        # the levels are A = 1 and B = 2
        weight = ((2 - first.expected) + (second.expected - 1)) / 2
    return _Judged(verdicts, votes / 2, weight)


def _list_first(judged: _Judged) -> tuple[float, float] | None:
    """Return whether the answer shown first was taken, in either order."""
    if judged.score is None or judged.verdicts.pair.is_equal:
        return None
    taken = [float(outcome.fields["preference"] == "A") for outcome in judged.verdicts.orders if outcome.fields]
    return taken[0], taken[1]


def _to_pair(judged: _Judged, *, is_weighted: bool) -> JudgedPair:
    pair = judged.verdicts.pair
    preference = judged.preference(is_weighted=is_weighted)
    return JudgedPair(pair.question.text, preference, len(pair.model.text), len(pair.reference.text))


def _list_scores(judged: Sequence[_Judged], *, is_weighted: bool) -> dict[str, float]:
    """Return the model's share of every judged pair, in percent, by question id."""
    preferences = [(each.verdicts.pair.question, each.preference(is_weighted=is_weighted)) for each in judged]
    return {question.question_id: 100 * (value - 1) for question, value in preferences if value is not None}


def _write_row(judged: _Judged, *, is_weighted: bool) -> dict[str, Any]:
    pair = judged.verdicts.pair
    return {
        "question_id": pair.question.question_id,
        "category": pair.question.category,
        "verdict": judged.verdict,
        "preference": judged.preference(is_weighted=is_weighted),
        "n_chars_model": len(pair.model.text),
        "n_chars_reference": len(pair.reference.text),
        "model_first": dump_outcome(judged.verdicts.model_first),
        "reference_first": dump_outcome(judged.verdicts.reference_first),
    }


def _list_rates(
    rates: WinRate, judged: Sequence[_Judged], *, is_weighted: bool, seed: int, n_resamples: int
) -> list[Figure]:
    found = Counter(each.score for each in judged)
    drawn: dict[str, Any] = {"seed": seed, "n_resamples": n_resamples}
    counted = [
        (each.verdicts.pair.question, each.score, preference - 1)
        for each in judged
        if each.score is not None and (preference := each.preference(is_weighted=is_weighted)) is not None
    ]
    figures = _list_main_rates(rates)
    if is_weighted:
        scores = [Scored(question, score) for question, score, _ in counted]
        figures += mean_figures("discrete win rate", scores, SHARE, by_category=False, **drawn)
    for name, score in (("wins", 1.0), ("ties", 0.5), ("losses", 0.0)):
        figures.append(share_figure(name, found[score], rates.n_total))
    by_category = mean_figures("win rate", [Scored(question, share) for question, _, share in counted], SHARE, **drawn)
    return figures + [figure for figure in by_category if figure.group]


def _list_main_rates(rates: WinRate) -> list[Figure]:
    controlled = rates.length_controlled
    name = "length-controlled win rate"
    return [
        make_figure("win rate", rates.raw),
        make_figure(name, controlled) if controlled is not None else Figure(name, None),
        Figure("standard error", rates.standard_error, n=rates.n_total, unit="points"),
    ]


def _list_lengths(rates: WinRate) -> list[Figure]:
    lengths = (("mean length, model", rates.avg_length), ("mean length, reference", rates.avg_length_base))
    return [Figure(name, value, n=rates.n_total, unit=CHARACTERS) for name, value in lengths]


def _count(judged: Sequence[_Judged], *, is_weighted: bool) -> dict[str, int]:
    found = Counter(each.verdict for each in judged)
    empty = sum(not side.text.strip() for each in judged for side in _list_sides(each))
    counts = {
        "judged": len(judged) - found["unjudged"],
        "ties": found["tie"] + found["equal"],
        "equal answers": found["equal"],
        "unjudged": found["unjudged"],
        "empty answers": empty,
    }
    if is_weighted:
        counts["without probabilities"] = sum(
            each.weight is None and each.verdict not in ("unjudged", "equal") for each in judged
        )
    return counts


def _list_sides(judged: _Judged) -> tuple[Answer, Answer]:
    return judged.verdicts.pair.model, judged.verdicts.pair.reference


def _tell_of_control(rates: WinRate, n_models: int) -> list[str]:
    """Return what must be said beside a length-controlled rate."""
    if rates.length_controlled is None:
        return [f"no length-controlled win rate: {rates.why_not}"]
    notes: list[str] = []
    if rates.difficulty == "left out":
        notes.append(
            "the length-controlled win rate leaves the difficulty of the questions out: none was given, and to fit it "
            f"takes {LEAST_MODELS} annotated models, of which there are {n_models}"
        )
    if rates.difficulty == "fitted":
        notes.append(f"the difficulty of the questions is fitted on {n_models} annotated models")
    if rates.is_extrapolated:
        notes.append("one side's answers are always the longer ones: the length-controlled win rate is extrapolated")
    return notes


def _match_difficulty(difficulty: Difficulty | None, questions: Sequence[Question]) -> Difficulty | None:
    """Return difficulties by the questions' texts, which may be given by id.

    Raises:
        TableError: a question has none.
    """
    if difficulty is None:
        return None
    values: dict[str, float] = {}
    for question in questions:
        value = difficulty.values.get(question.text, difficulty.values.get(question.question_id))
        if value is None:
            raise TableError(
                f"question {question.question_id!r} has no difficulty; give one for every question, or leave them out"
            )
        values[question.text] = value
    return Difficulty(values, difficulty.source)


def _write_annotation(question_id: str, annotation: Annotation) -> dict[str, Any]:
    preference = annotation.preference
    return {
        "question_id": question_id,
        "category": annotation.dataset,
        "verdict": "unjudged"
        if preference is None
        else {1.0: "loss", 1.5: "tie", 2.0: "win"}.get(preference, "weighed"),
        "preference": preference,
        "n_chars_model": len(annotation.output_2),
        "n_chars_reference": len(annotation.output_1),
        "instruction": annotation.instruction,
        "annotator": annotation.annotator,
    }


def _read_others(paths: Sequence[Path]) -> dict[str, list[Annotation]]:
    """Return the annotated models of files in AlpacaEval's form; one that stands in several is taken once."""
    found: dict[str, list[Annotation]] = {}
    for path in paths:
        for name, some in group_by_model(read_annotations(path)).items():
            found.setdefault(name, some)
    return found


def _choose_rivals(
    others: Mapping[str, Sequence[Annotation]], model: str, references: Set[str], prompts: Set[str], judge: str = ""
) -> dict[str, list[JudgedPair]]:
    """Return the other models as they were judged against this reference, on these prompts alone.

    Of each model the verdicts of one judge are taken: of `judge` where it is named, else of the first.
    """
    found: dict[str, list[JudgedPair]] = {}
    for name, annotations in others.items():
        usable = [
            each
            for each in annotations
            if name != model and each.generator_1 in references and each.instruction in prompts
            if not judge or each.annotator == judge
        ]
        if usable:
            found[name] = [each.to_pair() for each in usable if each.annotator == usable[0].annotator]
    return found


def _tell_of_rivals(others: Mapping[str, Any], rivals: Mapping[str, Any], model: str) -> list[str]:
    """Say how many of the other models were of no use for the difficulty."""
    unused = [name for name in others if name != model and name not in rivals]
    if not unused:
        return []
    return [
        f"{len(unused):,} of the other models, such as {unused[0]!r}, were not judged against this reference on any of "
        "these questions, or by another judge, and are not used"
    ]


_SIDES = {
    "generator_2": ("model", "models"),
    "generator_1": ("reference", "references"),
    "annotator": ("judge", "judges"),
}


def _choose(annotations: Sequence[Annotation], side: str, wanted: str, path: Path) -> list[Annotation]:
    """Return the annotations of the one that is wanted, or of the only one there is."""
    names = list(dict.fromkeys(getattr(each, side) for each in annotations))
    if wanted not in names and (wanted or len(names) > 1):
        one, several = _SIDES[side]
        said = f"has no {one} {wanted!r}" if wanted else f"has {len(names)} {several}"
        raise ConfigError(f"{str(path)!r} {said}; name one of {', '.join(map(repr, names[:10]))} with --{one}")
    return [each for each in annotations if getattr(each, side) == (wanted or names[0])]


def _tell_rank(name: str, rates: WinRate, leaderboard: Path) -> str:
    """Say where a model would stand on a leaderboard, and what that says of the model itself."""
    rows = read_leaderboard(leaderboard)
    rivals = [row.win_rate for row in rows if row.win_rate is not None and row.name != name]
    place = 1 + sum(rate > rates.raw.value for rate in rivals)
    said = f"by its raw win rate {name!r} would be number {place} of {len(rivals) + 1} in {leaderboard.name!r}"
    own = next((row for row in rows if row.name == name and row.win_rate is not None), None)
    if own is None or own.win_rate is None:
        return said
    controlled = own.length_controlled_winrate
    beside = "" if controlled is None else f", length-controlled {controlled:.2f}"
    return f"{said}, which has it with {own.win_rate:.2f}{beside}"


def _write_files(
    judged: Sequence[_Judged], evaluation: Evaluation, rates: WinRate, folder: Path, *, is_weighted: bool
) -> None:
    """Write AlpacaEval's files; of questions with one text, which it cannot tell apart, the first."""
    model, reference = evaluation.models["model"], evaluation.models["reference"]
    first = list({each.verdicts.pair.question.text: each for each in reversed(judged)}.values())[::-1]
    annotations = [
        Annotation(
            instruction=each.verdicts.pair.question.text,
            output_1=each.verdicts.pair.reference.text,
            generator_1=reference,
            output_2=each.verdicts.pair.model.text,
            generator_2=model,
            preference=each.preference(is_weighted=is_weighted),
            annotator=f"{PROGRAM} by {evaluation.judge}",
            dataset=each.verdicts.pair.question.category or str(evaluation.questions["name"]),
            raw_completion=_list_completions(each.verdicts.orders) or None,
        )
        for each in first
    ]
    write_annotations(annotations, folder / "annotations.json")
    sides = [
        [
            ModelOutput(each.instruction, output, name, each.dataset)
            for each, output in zip(annotations, texts, strict=True)
        ]
        for name, texts in (
            (model, [each.output_2 for each in annotations]),
            (reference, [each.output_1 for each in annotations]),
        )
    ]
    write_model_outputs(sides[0], folder / "model_outputs.json")
    write_model_outputs(sides[1], folder / "reference_outputs.json")
    write_leaderboard([rank_row(model, rates)], folder / "leaderboard.csv")


def _list_completions(orders: Sequence[Outcome]) -> dict[str, str]:
    return dict(zip(("model_first", "reference_first"), (outcome.text for outcome in orders), strict=False))
