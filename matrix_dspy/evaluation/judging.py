"""What evaluations by a judge share: the judge, two sides' answers as pairs, both orders, and figures by category.

Whatever stands in a question or an answer reaches the judge cleaned of field markers and special tokens, so that no
answer can speak as the prompt or as the judge. Lengths are those of the texts as they were given.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Self

from matrix_dspy.bulk.runner import Outcome
from matrix_dspy.config import SAMPLING, SamplingConfig
from matrix_dspy.engine.spec import build_engine
from matrix_dspy.errors import ConfigError, RunError
from matrix_dspy.evaluation.answers import Answer, Answers, Subject, gather_answers
from matrix_dspy.evaluation.asking import Asker, AskOptions, Call, open_asker
from matrix_dspy.evaluation.intervals import Interval, bootstrap_mean, wilson
from matrix_dspy.evaluation.questions import Question, Questions
from matrix_dspy.evaluation.record import Figure, check_judge, write_judged
from matrix_dspy.loading import find_variant, hash_prompt, load_program, read_card
from matrix_dspy.report.programs import describe_agreement
from matrix_dspy.synthesis.thinking import split_thinking
from matrix_dspy.text import clean_text, name_file

log = logging.getLogger("matrix_dspy")

SAMPLED = SAMPLING["converser"]
"""How models answer where nothing else is asked for: T 0.7, top-p 0.9, as the data sets are answered (METHOD 3.3)."""
GREEDY = SamplingConfig(temperature=0.0, max_tokens=SAMPLED.max_tokens)
REHEARSAL = "rehearsal"
RULES = "the judge is the rehearsal, a set of rules: these figures show that the way works and are of no model"
_SHOWN_FAULTS = 3
_LABELLED = ("pair_judge", "arena_judge", "rating_judge")
"""Judges whose agreement with the shipped labels `compile` measures."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one question, and both as the judge sees them."""

    question: Question
    model: Answer
    reference: Answer
    shown: tuple[str, str]
    """The texts of both, cleaned, the model's first."""

    @classmethod
    def of(cls, question: Question, model: Answer, reference: Answer) -> Self:
        """Build a pair; what was thought before an answer is neither judged nor measured."""
        model, reference = drop_thinking(model), drop_thinking(reference)
        return cls(question, model, reference, (clean_text(model.text), clean_text(reference.text)))

    @property
    def is_equal(self) -> bool:
        """Whether both say the same, so that there is nothing to compare."""
        return self.shown[0] == self.shown[1]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a judge said of one pair in either order; both are None for equal answers, which are not asked about."""

    pair: Pair
    model_first: Outcome | None = None
    reference_first: Outcome | None = None

    @property
    def orders(self) -> tuple[Outcome, ...]:
        """The outcomes that were asked for, model first."""
        return tuple(each for each in (self.model_first, self.reference_first) if each is not None)

    @property
    def is_judged(self) -> bool:
        """Whether the pair counts: equal, or with a verdict in both orders."""
        return all(outcome.is_ok for outcome in self.orders)


@dataclass(frozen=True, slots=True)
class Matched:
    """The pairs of two sides, and what could not be paired: question id to the reason."""

    pairs: tuple[Pair, ...]
    missing: Mapping[str, str]
    n_missing_model: int
    n_missing_reference: int


def drop_thinking(answer: Answer) -> Answer:
    """Return an answer without what was thought before it."""
    return replace(answer, turns=tuple(split_thinking(turn, is_wanted=False).answer for turn in answer.turns))


def match_answers(questions: Sequence[Question], model: Answers, reference: Answers) -> Matched:
    """Pair the first answers of two sides; what one lacks is counted, never a loss.

    Raises:
        RunError: there is no question that both answered.
    """
    pairs: list[Pair] = []
    missing: dict[str, str] = {}
    lacking = [0, 0]
    for question in questions:
        found = [side.first(question.question_id) for side in (model, reference)]
        if found[0] is not None and found[1] is not None:
            pairs.append(Pair.of(question, found[0], found[1]))
            continue
        lacking = [n + (answer is None) for n, answer in zip(lacking, found, strict=True)]
        whose = [
            f"{side.name}: {side.missing.get(question.question_id, 'no answer')}"
            for side, answer in zip((model, reference), found, strict=True)
            if answer is None
        ]
        missing[question.question_id] = "; ".join(whose)
    if not pairs:
        first = next(iter(missing.values()), "there are no questions")
        raise RunError(
            f"none of the {len(questions)} questions is answered by both {model.name!r} and {reference.name!r} "
            f"({first}); give answers to the same questions"
        )
    return Matched(tuple(pairs), missing, *lacking)


def list_missing(missing: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the rows of questions that could not be paired."""
    return [{"question_id": key, "verdict": "missing", "reason": reason} for key, reason in missing.items()]


async def ask_pairs(asker: Asker, program: str, pairs: Sequence[Pair], *, expect: str = "") -> list[Verdicts]:
    """Have a program with `response_a` and `response_b` compare every pair twice, model first and reference first."""
    asked = [place for place, pair in enumerate(pairs) if not pair.is_equal]
    calls = [
        Call(pairs[place].question.question_id, _lay_out(pairs[place], is_swapped=bool(order)), round=order)
        for place in asked
        for order in (0, 1)
    ]
    outcomes = await asker.ask(program, calls, expect=expect)
    found = dict(zip(asked, zip(outcomes[::2], outcomes[1::2], strict=True), strict=True))
    return [Verdicts(pair, *found.get(place, ())) for place, pair in enumerate(pairs)]


def _lay_out(pair: Pair, *, is_swapped: bool) -> dict[str, str]:
    shown = pair.shown[::-1] if is_swapped else pair.shown
    return {"instruction": clean_text(pair.question.text), "response_a": shown[0], "response_b": shown[1]}


def check_sides(model: Subject, reference: Subject) -> None:
    """Refuse two sides of one name, or of one file: they could not be told apart.

    Raises:
        ConfigError: they have the same name, or would have the same file.
    """
    whose = f"name one of them, as in other={reference.path or reference.spec.partition(':')[2] or reference.spec}"
    if model.name == reference.name:
        raise ConfigError(f"both sides are called {model.name!r}; {whose}")
    if name_file(model.name).casefold() == name_file(reference.name).casefold():
        file = f"{name_file(model.name)}.jsonl"
        raise ConfigError(f"the answers of {model.name!r} and of {reference.name!r} would both be {file!r}; {whose}")


def find_judge(judge: str) -> Subject:
    """Return the model that judges, named as for --lm or by its folder; nothing is opened, so it is found out early.

    Raises:
        ConfigError: it names a file of answers, or nothing known.
    """
    subject = Subject.of(judge)
    if subject.path is not None:
        raise ConfigError(f"the judge {judge!r} is a file; give a model's folder or an LM as for --lm")
    build_engine(subject.spec)
    return subject


async def gather_sides(
    model: Subject,
    reference: Subject,
    questions: Sequence[Question],
    folder: Path,
    options: AskOptions,
    sampling: SamplingConfig,
) -> tuple[Answers, Answers]:
    """Return both sides' answers to the first turns; files are read before any model is asked."""
    found: dict[str, Answers] = {}
    for side in sorted((model, reference), key=lambda side: side.path is None):
        found[side.name] = await gather_answers(side, questions, folder, options, sampling=sampling, n_turns=1)
    return found[model.name], found[reference.name]


@asynccontextmanager
async def open_judge(judge: str, folder: Path, options: AskOptions) -> AsyncIterator[Asker]:
    """Open the model that judges, named as for --lm or by its folder; its calls are journaled under `judge`.

    Raises:
        ConfigError: it names a file of answers, or nothing known.
        RunError: the folder's evaluation has another judge.
    """
    subject = find_judge(judge)
    # the label of a folder tells its weights; an address is left out, so that a judge that moved is not asked anew
    is_folder = subject.label != subject.name
    async with open_asker(subject.spec, folder, f"judge:{subject.label}" if is_folder else "judge", options) as asker:
        check_judge(folder, asker.model)
        yield asker


def warn_of_judge(asker: Asker, program: str, *sides: Answers) -> list[str]:
    """Return the notes on who judges and is judged.

    They name a rehearsal, a model that judges itself (logged too), and how far the judge is known to agree with labels.
    """
    if asker.model == REHEARSAL:
        return [RULES]
    own = [side.name for side in sides if side.model == asker.model]
    made_up = [side.name for side in sides if side.model == REHEARSAL]
    notes = [f"the judge {asker.model!r} judges its own answers ({name!r}); judges prefer their own" for name in own]
    for note in notes:
        log.warning("%s", note)
    notes.append(tell_agreement(program, asker.model))
    return notes + [f"the answers of {name!r} are the rehearsal's, a set of rules, and no model's" for name in made_up]


def tell_agreement(program: str, model: str) -> str:
    """Return how far `model` agrees with labels as this judge, by the card of the state in use, or that nobody knows.

    Raises:
        StateMismatchError: the card cannot be read.
    """
    path = find_variant(program, "default")
    found = ((read_card(path) if path is not None else {}).get("agreement") or {}).get(model)
    if found:
        return f"agreement of {model!r} with labels, as {program}: {describe_agreement(found)}"
    remedy = f"; `compile {program} --lm ...` measures it" if program in _LABELLED else ""
    return f"how far {model!r} agrees with labels as {program} is not known{remedy}"


def describe_questions(questions: Questions) -> dict[str, Any]:
    """Return what a record says of the questions."""
    return {
        "name": questions.name,
        "sha256": questions.sha256,
        "n": len(questions),
        "n_in_file": questions.n_in_file,
    }


def describe_judging(
    program: str, options: AskOptions, n_resamples: int, sampling: SamplingConfig, *subjects: Subject
) -> dict[str, Any]:
    """Return the settings that every judged evaluation records; the hash is that of the judge's whole prompt.

    How answers were drawn is told where any of the subjects was asked for them.
    """
    settings: dict[str, Any] = {
        "program": program,
        "prompt_sha256": hash_prompt(load_program(program)),
        "seed": options.seed,
        "n_resamples": n_resamples,
    }
    if any(subject.path is None for subject in subjects):
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_tokens}
        settings |= {f"answers_{name}": value for name, value in drawn.items() if value is not None}
    return settings


def list_notes(questions: Questions, *sides: Answers, uses_turns: bool = False, counts_all: bool = False) -> list[str]:
    """Return the notes on what is left out: questions of the file, those without an answer, later turns, and, unless
    `counts_all`, all but the first answer to a question.
    """
    notes: list[str] = []
    if len(questions) < questions.n_in_file:
        notes.append(f"{len(questions):,} of the {questions.n_in_file:,} questions of {questions.name!r} were asked")
    for side in sides:
        if n_missing := sum(question.question_id not in side.by_id for question in questions):
            notes.append(
                f"{n_missing:,} of {len(questions):,} questions have no answer of {side.name!r}; no figure has them"
            )
    if not counts_all:
        for side in sides:
            if n_several := sum(len(found) > 1 for found in side.by_id.values()):
                notes.append(f"{n_several:,} questions have several answers of {side.name!r}; the first of each counts")
    n_turns = sum(len(question.turns) > 1 for question in questions)
    if n_turns and not uses_turns:
        notes.append(f"{n_turns:,} questions have further turns; only the first was asked and compared")
    return notes


def refuse_unjudged(
    asker: Asker, noun: str, outcomes: Iterable[Outcome], rows: Sequence[Mapping[str, Any]], folder: Path
) -> NoReturn:
    """Write down what the judge said, and say that nothing of it was a verdict.

    Raises:
        RunError: always.
    """
    write_judged(rows, folder)
    reasons = Counter(f"{outcome.reason}: {outcome.detail}"[:200] for outcome in outcomes if not outcome.is_ok)
    shown = "; ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common(_SHOWN_FAULTS))
    raise RunError(
        f"the judge {asker.model!r} gave no verdict on any of the {len(rows):,} {noun} ({shown}); "
        f"look at {str(folder / 'judged.jsonl')!r}, then take another judge, or another --out for the same one mended"
    )


def dump_outcome(outcome: Outcome | None) -> dict[str, Any] | None:
    """Return what the judge said as a record keeps it: its fields, or the reason there are none and its words."""
    if outcome is None:
        return None
    if outcome.fields is None:
        return {"problem": outcome.reason, "detail": outcome.detail, "text": clean_text(outcome.text)}
    return dict(outcome.fields) | ({} if outcome.expected is None else {"expected": outcome.expected})


def make_figure(name: str, found: Interval, unit: str = "%", group: str = "") -> Figure:
    """Return an interval as a figure; a share must be in percent already."""
    return Figure(name, found.value, found.low, found.high, found.n, unit, group)


def share_figure(name: str, n_hits: int, n: int) -> Figure:
    """Return a share in percent with Wilson's interval; not measured where there is nothing to share."""
    return make_figure(name, wilson(n_hits, n).scale(100)) if n else Figure(name, None)


@dataclass(frozen=True, slots=True)
class Scored:
    """One value of one question, for means over all and over each category."""

    question: Question
    value: float


def mean_figures(
    name: str,
    scored: Sequence[Scored],
    bounds: tuple[float, float],
    *,
    unit: str = "%",
    seed: int = 0,
    n_resamples: int,
    by_category: bool = True,
) -> list[Figure]:
    """Return the mean, and that of every category where there are several, with bootstraps over questions.

    Shares (unit %) are given from 0 to 1 and come out in percent. Without values there is one figure, not measured.
    """
    if not scored:
        return [Figure(name, None, unit=unit)]

    def measure(some: Sequence[Scored], group: str) -> Figure:
        found = bootstrap_mean(
            [each.value for each in some],
            clusters=[each.question.question_id for each in some],
            bounds=bounds,
            seed=seed,
            n_resamples=n_resamples,
        )
        return make_figure(name, found.scale(100) if unit == "%" else found, unit, group)

    groups: dict[str, list[Scored]] = {}
    for each in scored:
        groups.setdefault(each.question.category, []).append(each)
    figures = [measure(scored, "")]
    if by_category and len(groups) > 1:
        figures += [measure(groups[group], group or "no category") for group in sorted(groups)]
    return figures


def measure_orders(
    verdicts: Sequence[Verdicts], picked_first: Sequence[tuple[float, float] | None], seed: int, n_resamples: int
) -> list[Figure]:
    """Return position bias and order flips of the pairs that were asked about in both orders.

    `picked_first` has, in the order of `verdicts`, how far the judge took the first shown answer in either order: 1,
    0, or 0.5 where it called a tie; None where a pair was not judged or not asked about. A judge without bias takes
    the first one in half of the games.
    """
    found = [
        (each.pair.question, orders) for each, orders in zip(verdicts, picked_first, strict=True) if orders is not None
    ]
    biased = [Scored(question, value) for question, orders in found for value in orders]
    flips = sum(first != 1 - second for _, (first, second) in found)
    return [
        *mean_figures("position bias", biased, (0.0, 1.0), seed=seed, n_resamples=n_resamples, by_category=False),
        share_figure("order flips", flips, len(found)),
    ]
