"""Does the data help? Variants of a run, each tuned on and measured, with equal sizes and equal seeds.

    <out>/<variant>/seed-<k>/<stage>, <stage>-model    data and model, as `train recipe` makes them
    <out>/<variant>/seed-<k>/<measure>                 an evaluation
    <out>/ablation.json, README.md                     the table

A difference is read from its interval: seeds and questions are drawn again together, the same for all variants.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from pydantic import Field, model_validator

from matrix_dspy.bulk.folder import take_lock
from matrix_dspy.bulk.tables import write_text
from matrix_dspy.chaining import ChainPlan, Say, run_chain
from matrix_dspy.config import RECIPES, SamplingConfig, Section, load_section
from matrix_dspy.crew import is_rehearsal
from matrix_dspy.errors import ConfigError, LimitError, RunError, boundary
from matrix_dspy.evaluation.answers import Subject
from matrix_dspy.evaluation.asking import AskOptions
from matrix_dspy.evaluation.questions import read_questions
from matrix_dspy.evaluation.record import Evaluation, Figure, escape_markdown
from matrix_dspy.text import drop_controls
from matrix_dspy.training.tuning import read_trained

ABLATIONS = RECIPES / "ablations"
N_BOOTSTRAP = 2000
FEW_SEEDS, FEW_QUESTIONS = 5, 30
"""Below these numbers redrawing knows too little of the spread, which is then said."""
MeasureKind = Literal["winrate", "arena", "ratings", "safety", "code", "math", "ifeval"]
JUDGED: frozenset[MeasureKind] = frozenset({"winrate", "arena", "ratings", "safety"})


class Measure(Section):
    """What every tuned model is measured by."""

    kind: MeasureKind = "winrate"
    """Which evaluation."""
    questions: str = Field(min_length=1)
    """File of questions."""
    judge: str = ""
    """Model that judges, written as for --lm, where the kind has one."""
    reference: str = "base"
    """Whom win rate and arena set the model against: base is the model before tuning."""
    limit: int | None = Field(default=None, ge=1)
    """Questions to take at the most."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """Temperature of the answers."""
    max_tokens: int = Field(default=1024, ge=1)
    """Longest answer, in tokens."""
    samples: int = Field(default=1, ge=1)
    """Answers to a problem, for kind code."""

    @model_validator(mode="after")
    def _check_judge(self) -> "Measure":
        if self.kind in JUDGED and not self.judge:
            raise ValueError(f"a measure of kind {self.kind} needs a judge; name one with --judge-lm")
        return self


class Variant(Section):
    """One way to make the data, or to tune on it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    """What it is called in the table and on disk."""
    recipe: str = ""
    """Recipe or chain; unset is the ablation's."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Config keys of its data, as section.key."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Training settings of its own."""
    data_of: str = ""
    """Name of an earlier variant whose data it is tuned on, rather than data of its own."""
    part: Literal["dataset", "control"] = "dataset"
    """Whether it is tuned on the data set, or on the random subset that a run with selection writes beside it."""


class AblationConfig(Section):
    """What is varied, and what is held equal."""

    recipe: str = "tiny"
    """Recipe or chain that every variant begins from."""
    n: int = Field(default=1000, ge=1)
    """Rows of every stage, the same for all variants."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; every variant is made, tuned and measured once with each."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Config keys that hold for the data of all variants, as section.key."""
    preset: str = "paper"
    """Training preset."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Training settings that hold for all variants."""
    variants: tuple[Variant, ...] = Field(min_length=2)
    """At least two; differences are taken from the first."""
    measures: tuple[Measure, ...] = ()
    """What every tuned model is measured by."""

    @model_validator(mode="after")
    def _check_variants(self) -> "AblationConfig":
        names = [variant.name for variant in self.variants]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two variants are called {twice[0]!r}; give each a name of its own")
        for place, variant in enumerate(self.variants):
            if variant.data_of and variant.data_of not in names[:place]:
                raise ValueError(f"variant {variant.name!r} takes data of {variant.data_of!r}, which is none before it")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must be given, each once")
        return self


@dataclass(frozen=True, slots=True)
class Cell:
    """A variant's place in the table, for one measure."""

    variant: str
    measure: str
    figure: str
    value: float
    low: float
    high: float
    difference: float | None
    """From the first variant; None for the first."""
    difference_low: float | None
    difference_high: float | None
    by_seed: tuple[float, ...]
    n_questions: int
    n_rows: int
    others: Mapping[str, float] = field(default_factory=dict)
    """The other overall figures, as means over the seeds."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """The table, and what must be said beside it."""

    path: Path
    cells: tuple[Cell, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the table for a terminal."""
        lines: list[str] = []
        for measure in dict.fromkeys(cell.measure for cell in self.cells):
            cells = [cell for cell in self.cells if cell.measure == measure]
            width = max(len(cell.variant) for cell in cells)
            lines.append(f"{measure}: {cells[0].figure}, mean over {len(cells[0].by_seed)} seeds, 95 % intervals")
            lines += [f"  {cell.variant:{width}}  {_say_cell(cell)}" for cell in cells]
        return [drop_controls(line) for line in [*lines, *(f"note: {note}" for note in self.notes)]]


def load_ablation(name: str, changes: Mapping[str, Any] | None = None) -> AblationConfig:
    """Load an ablation by name or path, with changes given as key to value.

    Raises:
        ConfigError: no such ablation, unknown key, or a value that will not do.
    """
    given = {key: value for key, value in (changes or {}).items() if value is not None}
    return load_section(AblationConfig, name, ABLATIONS, "ablation", given)


async def run_ablation(
    config: AblationConfig, model: str, out: Path, options: AskOptions, say: Say, *, is_quiet: bool = False
) -> Ablation:
    """Make, tune and measure every variant with every seed, then write the table; what is done already is kept.

    Raises:
        ConfigError: there is nothing to measure by.
        LimitError: a variant has fewer rows than the others, which would make the comparison unfair.
    """
    if not config.measures:
        raise ConfigError("an ablation needs a measure; give --prompts and --judge-lm, or [[measures]] in its file")
    with boundary(RunError, f"make the folder {str(out)!r}"):
        out.mkdir(parents=True, exist_ok=True)
    lock = take_lock(out)
    try:
        _claim(config, model, out)
        questions = [read_questions(Path(measure.questions), limit=measure.limit) for measure in config.measures]
        found: dict[tuple[str, int, int], Evaluation] = {}
        rows: dict[str, int] = {}
        for seed in config.seeds:
            plans: list[ChainPlan] = []
            for variant in config.variants:
                say(f"--- {variant.name}, seed {seed}")
                plan = share_stages(plan_variant(config, variant, model, out, seed), plans)
                plans.append(plan)
                ended = await run_chain(plan, say, is_quiet=is_quiet)
                if ended.missing:
                    raise LimitError(f"variant {variant.name!r} with seed {seed} lacks rows: {ended.missing}")
                n_rows = read_trained(ended.models[-1]).prepared.n_train
                rows[variant.name] = min(n_rows, rows.get(variant.name, n_rows))
                for place, measure in enumerate(config.measures):
                    folder = out / variant.name / f"seed-{seed}" / _name_measure(config, place)
                    subject = Subject.of(f"{variant.name}-seed-{seed}={ended.models[-1]}")
                    work = _measure(measure, subject, model, questions[place], folder, replace(options, seed=seed))
                    found[variant.name, seed, place] = evaluation = await work
                    for line in evaluation.lines()[1:]:
                        say(line)
        cells = _tabulate(config, found, rows)
        ablation = Ablation(out, tuple(cells), (*list_notes(config, found, rows), *list_cautions(cells)))
        _write(ablation, config, model)
        return ablation
    finally:
        lock.release()


def draw_means(
    scores: Sequence[np.ndarray], seed: int, n_bootstrap: int = N_BOOTSTRAP
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of each variant, (n_variants,), and `n_bootstrap` redrawn ones, (n_bootstrap, n_variants).

    Each of `scores` is (n_seeds, n_questions). Seeds are drawn with replacement, then questions, the same for all
    variants, so that differences between columns are paired.
    """
    stacked = np.stack(scores)
    n_variants, n_seeds, n_questions = stacked.shape
    generator = np.random.default_rng(seed)
    drawn = np.empty((n_bootstrap, n_variants))
    for place in range(n_bootstrap):
        seeds = generator.integers(n_seeds, size=n_seeds)
        questions = generator.integers(n_questions, size=n_questions)
        weights = np.bincount(questions, minlength=n_questions) / n_questions
        drawn[place] = stacked[:, seeds].mean(axis=1) @ weights
    return stacked.mean(axis=(1, 2)), drawn


def plan_variant(config: AblationConfig, variant: Variant, model: str, out: Path, seed: int) -> ChainPlan:
    """Return the chain of a variant and a seed: what is the same for all, then what is its own."""
    place = out / variant.name / f"seed-{seed}"
    changes: dict[str, Any] = {**config.data, **variant.data, "n": config.n, "seed": seed}
    if changes.get("selection.on") and "lm.rejected" not in changes:
        from matrix_dspy.engine.serving import find_spec

        changes["lm.rejected"] = find_spec(model)  # selection asks the model that is to be trained
    settings = {**config.training, **variant.training, "seed": seed}
    plan = ChainPlan.of(variant.recipe or config.recipe, model, place, changes, (), config.preset, settings, ())
    if variant.data_of:
        named = next(each for each in config.variants if each.name == variant.data_of)
        plan = replace(plan, data=plan_variant(config, named, model, out, seed))
    return replace(plan, part=variant.part)


def share_stages(plan: ChainPlan, earlier: Sequence[ChainPlan]) -> ChainPlan:
    """Let a chain take the stages it begins with from an earlier one that begins in the same way.

    The chain whose data it takes is looked up among the earlier ones too, which may have taken theirs from another.
    """
    if plan.data is not None:
        own = plan.data.out
        plan = replace(plan, data=next((other for other in earlier if other.out == own), plan.data))
    reuse: dict[str, ChainPlan] = {}
    for other in earlier:
        if (plan.data, plan.part) != (other.data, other.part):
            continue
        for link, same in zip(plan.links, other.links, strict=False):
            if link != same:
                break
            reuse.setdefault(link.name, other)
    return replace(plan, reuse=reuse)


async def _measure(
    measure: Measure, subject: Subject, base: str, questions: Any, folder: Path, options: AskOptions
) -> Evaluation:
    """Run one evaluation; heavy parts are imported by the kind that needs them."""
    sampling = SamplingConfig(temperature=measure.temperature, max_tokens=measure.max_tokens)
    reference = Subject.of(f"base={base}") if measure.reference == "base" else Subject.of(measure.reference)
    if measure.kind == "winrate":
        from matrix_dspy.evaluation.winrate import run_winrate

        return await run_winrate(subject, reference, questions, measure.judge, folder, options, sampling=sampling)
    if measure.kind == "arena":
        from matrix_dspy.evaluation.arena import run_arena

        return await run_arena(subject, reference, questions, measure.judge, folder, options, sampling=sampling)
    if measure.kind == "ratings":
        from matrix_dspy.evaluation.ratings import run_ratings

        return await run_ratings(subject, questions, measure.judge, folder, options, sampling=sampling)
    if measure.kind == "safety":
        from matrix_dspy.evaluation.safety import run_safety

        return await run_safety(subject, questions, measure.judge, folder, options, sampling=sampling)
    if measure.kind == "code":
        from matrix_dspy.evaluation.code import run_code

        return await run_code(subject, questions, folder, options, samples=measure.samples, sampling=sampling)
    if measure.kind == "math":
        from matrix_dspy.evaluation.math import run_math

        return await run_math(subject, questions, folder, options, sampling=sampling)
    from matrix_dspy.evaluation.following import run_following

    return await run_following(subject, questions, folder, options, sampling=sampling)


def _tabulate(
    config: AblationConfig, found: Mapping[tuple[str, int, int], Evaluation], rows: Mapping[str, int]
) -> list[Cell]:
    cells: list[Cell] = []
    for place in range(len(config.measures)):
        of = {v.name: [found[v.name, seed, place] for seed in config.seeds] for v in config.variants}
        common = set.intersection(*(set(one.scores) for evaluations in of.values() for one in evaluations))
        if not common:
            raise RunError(
                f"no question of {config.measures[place].questions!r} was measured for every variant and seed; look at"
                " judged.jsonl for why"
            )
        ids = sorted(common)
        tables = [np.array([[one.scores[key] for key in ids] for one in of[v.name]], float) for v in config.variants]
        means, drawn = draw_means(tables, config.seeds[0])
        for column, variant in enumerate(config.variants):
            name, drawn_before = _name_measure(config, place), drawn[:, 0] if column else None
            cell = _build_cell(variant.name, name, of[variant.name], tables[column], drawn[:, column], drawn_before)
            difference = float(means[column] - means[0]) if column else None
            cells.append(replace(cell, difference=difference, n_rows=rows[variant.name]))
    return cells


def _build_cell(
    variant: str,
    measure: str,
    evaluations: Sequence[Evaluation],
    table: np.ndarray,
    drawn: np.ndarray,
    drawn_first: np.ndarray | None,
) -> Cell:
    """Return a cell but for its difference and rows; `table` is (n_seeds, n_questions), `drawn` (n_bootstrap,)."""
    main = evaluations[0].main
    # a mean of standard errors is none: the interval beside the value has the place of it
    others = [
        each for each in evaluations[0].figures if not each.group and each.name not in (main.name, "standard error")
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    ends = (None, None) if drawn_first is None else map(float, np.percentile(drawn - drawn_first, [2.5, 97.5]))
    difference_low, difference_high = ends
    return Cell(
        variant=variant,
        measure=measure,
        figure=_head(main),
        value=float(table.mean()),
        low=float(low),
        high=float(high),
        difference=None,
        difference_low=difference_low,
        difference_high=difference_high,
        by_seed=tuple(float(mean) for mean in table.mean(axis=1)),
        n_questions=table.shape[1],
        n_rows=0,
        others={_head(each): mean for each in others if (mean := _mean(evaluations, each.name)) is not None},
    )


def _head(figure: Figure) -> str:
    return f"{figure.name} ({figure.unit})" if figure.unit else figure.name


def _mean(evaluations: Sequence[Evaluation], name: str) -> float | None:
    values = [
        figure.value for one in evaluations for figure in one.figures if (figure.name, figure.group) == (name, "")
    ]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(evaluations) else None


def list_notes(
    config: AblationConfig, found: Mapping[tuple[str, int, int], Evaluation], rows: Mapping[str, int]
) -> list[str]:
    """Return what is the same for all variants, what is not, and what the evaluations say themselves."""
    same = "questions" if any(variant.training for variant in config.variants) else "training settings and questions"
    notes = [
        f"every variant: {config.n:,} rows a stage, seeds {', '.join(map(str, config.seeds))}, the same {same}; "
        "intervals redraw seeds and questions together"
    ]
    if own := list(filter(None, map(_describe_training, config.variants))):
        notes.append(f"variants are tuned in ways of their own: {'; '.join(own)}")
    if len(set(rows.values())) > 1:
        notes.append("variants were tuned on different numbers of rows: training left some out, see left_out.jsonl")
    if len(config.seeds) == 1:
        notes.append("one seed only: intervals hold the spread of questions, not that of trainings")
    judges = {measure.judge for measure in config.measures if measure.judge}
    if is_rehearsal(str(config.data.get("lm.main", "rehearsal"))) or any(map(is_rehearsal, judges)):
        notes.append("the rehearsal made the data or judged it: this shows that the plumbing holds, and nothing else")
    notes += [note for one in found.values() for note in one.notes]
    return list(dict.fromkeys(notes))


def _describe_training(variant: Variant) -> str:
    """Return what of a variant's tuning is its own; nothing where nothing is."""
    own = [f"recipe {variant.recipe}"] if variant.recipe else []
    own += [f"{key} = {value}" for key, value in variant.training.items()]
    return f"{variant.name} with {', '.join(own)}" if own else ""


def list_cautions(cells: Sequence[Cell]) -> list[str]:
    """Return what intervals do not tell: they come out too narrow from few seeds, few questions or equal scores."""
    cautions = []
    if 1 < (n_seeds := len(cells[0].by_seed)) < FEW_SEEDS:
        cautions.append(f"{n_seeds} seeds only: intervals hold little of how far trainings differ by chance")
    for measure in dict.fromkeys(cell.measure for cell in cells):
        of = [cell for cell in cells if cell.measure == measure]
        if of[0].n_questions < FEW_QUESTIONS:
            cautions.append(f"{measure}: {of[0].n_questions:,} questions only, so its intervals are too narrow")
        if flat := [cell.variant for cell in of if cell.low == cell.high]:
            cautions.append(f"{measure}: every question scored the same for {', '.join(flat)}, hence no interval")
    return cautions


def _claim(config: AblationConfig, model: str, out: Path) -> None:
    """Write down what the folder is for, or refuse it where it is for something else; seeds may be added."""
    path = out / "settings.json"
    own = {"model": model, **config.model_dump(mode="json")}
    if path.is_file():
        with boundary(RunError, f"read {str(path)!r}"):
            before = orjson.loads(path.read_bytes())
        for key in sorted(own.keys() | before.keys()):
            if key != "seeds" and own.get(key) != before.get(key):
                raise ConfigError(
                    f"{str(out)!r} holds an ablation with another {key!r}; give another folder with --out"
                )
    write_text(orjson.dumps(own, option=orjson.OPT_INDENT_2).decode() + "\n", path)


def _write(ablation: Ablation, config: AblationConfig, model: str) -> None:
    values = {"model": model, "cells": [asdict(cell) for cell in ablation.cells], "notes": ablation.notes}
    lines = ["# Ablation", "", f"Base model: {escape_markdown(model)}", ""]
    for measure in dict.fromkeys(cell.measure for cell in ablation.cells):
        cells = [cell for cell in ablation.cells if cell.measure == measure]
        others = list(cells[0].others)
        lines += [f"## {escape_markdown(measure)}", ""]
        heads = ["variant", "rows", "questions", cells[0].figure, "95 % interval", "from the first", "95 % interval"]
        heads += others
        lines += ["| " + " | ".join(map(escape_markdown, heads)) + " |", "|" + "---|" * len(heads)]
        lines += ["| " + " | ".join(map(escape_markdown, _list_values(cell, others))) + " |" for cell in cells]
        lines.append("")
    lines += [f"{escape_markdown(note)}\n" for note in ablation.notes]
    with boundary(RunError, f"write the table in {str(ablation.path)!r}"):
        write_text(orjson.dumps(values, option=orjson.OPT_INDENT_2).decode() + "\n", ablation.path / "ablation.json")
        write_text("\n".join(lines).rstrip() + "\n", ablation.path / "README.md")


def _list_values(cell: Cell, others: Sequence[str]) -> list[str]:
    difference, low, high = map(_sign, (cell.difference, cell.difference_low, cell.difference_high))
    between = f"{low} to {high}" if low else ""
    shown = [f"{cell.others[name]:.2f}" if name in cell.others else "" for name in others]
    return [
        cell.variant,
        f"{cell.n_rows:,}",
        f"{cell.n_questions:,}",
        f"{cell.value:.2f}",
        f"{cell.low:.2f} to {cell.high:.2f}",
        difference,
        between,
        *shown,
    ]


def _say_cell(cell: Cell) -> str:
    words = f"{cell.value:7.2f} [{cell.low:.2f}, {cell.high:.2f}]"
    if cell.difference is None:
        return f"{words}  n = {cell.n_questions:,}"
    difference, low, high = map(_sign, (cell.difference, cell.difference_low, cell.difference_high))
    return f"{words}  {difference} [{low}, {high}] from the first"


def _sign(value: float | None) -> str:
    """Return a difference with its sign; what rounds to nothing has none below it."""
    return "" if value is None else f"{round(value, 2) + 0.0:+.2f}"


def _name_measure(config: AblationConfig, place: int) -> str:
    kind = config.measures[place].kind
    earlier = sum(measure.kind == kind for measure in config.measures[:place])
    return f"{kind}-{earlier + 1}" if earlier else kind
