"""The figures of a run, counted once from its folder, for the page, the plots, the comparison and the card alike."""

import hashlib
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import polars as pl

from matrix_dspy.report.records import BenchmarkTold, Records, Told, read_records
from matrix_dspy.types import Difficulty, Quality

UNRATED = "unrated"
N_CATEGORIES = 10
N_VERBS = 20
"""METHOD 3.5 asks for the 10 commonest categories and the 20 commonest root verbs."""
DIVERSITY_SAMPLE = 2000
"""Rows whose diversity is measured at the most, so that a report of any size takes seconds."""
MOST_NAMES = 200
"""Different names of one sort that are told apart; the rest are counted together."""
_WORD = r"\w+(?:['’]\w+)*"
_TWIN = re.compile(r"\b\w+-[0-9a-f]{16}\b")

UNUSABLE = ("unparsed", "failed check", "cut off", "empty", "refused by server")
FILTER_ORDER = (
    *UNUSABLE,
    *("leak", "refusal", "length", "language", "not self-contained"),
    *("exact duplicate", "near duplicate", "semantic duplicate", "contamination"),
)
"""METHOD 3.4."""
LAST = "surplus"
STEP_NAMES = {
    "leak": "no leak of raw profiles",
    "refusal": "no refusal",
    "length": "right length",
    "language": "right language",
    "not self-contained": "self-contained",
    "exact duplicate": "no exact duplicate",
    "near duplicate": "no near duplicate",
    "semantic duplicate": "no semantic duplicate",
    "contamination": "not in evaluation sets",
    "cut off": "not cut off",
    "empty": "not empty",
    "unparsed": "readable",
    "below threshold": "score high enough",
    "unjudged": "judged",
    "unsafe": "safe",
    "surplus": "not surplus",
    "alike": "sides differ enough",
    "no code": "holds code",
    "broken code": "code can be parsed",
    "failed tests": "code passes its tests",
    "saturated": "something left to learn",
    "hopeless": "within reach of the model",
    "thinking length": "thinking of right length",
    "less diverse": "adds variety",
}
"""What a row is called that was not dropped for a reason."""
ROLES = {
    "main": "simulates, writes and answers",
    "aligned": "answers",
    "writer": "writes the requests",
    "responder": "answers",
    "rejected": "writes the answers to be avoided",
    "judge": "judges and rates",
    "reward": "scores answers",
}
"""What the model in each role does."""
MEANINGS = {
    "unparsed": "the model's text could not be read as the answer asked for, even after asking again",
    "failed check": "the model's answer broke a rule of its program, even after asking again",
    "cut off": "the model's text stopped at the length limit before its end",
    "empty": "the model wrote nothing",
    "refused by server": "the model's server refused the request",
    "leak": "it repeats something of a raw profile: a name, a contact or a run of words (the text is not kept)",
    "refusal": "the model declined instead of doing what it was asked",
    "length": "it is too short or too long",
    "language": "it is in another language than the one asked for",
    "not self-contained": "it points to something or somebody that its reader cannot know",
    "exact duplicate": "an earlier row has the same words",
    "near duplicate": "an earlier row has nearly the same words",
    "semantic duplicate": "an earlier row means nearly the same",
    "contamination": "it shares a long run of words, or the whole text, with an evaluation set",
    "surplus": "it was good, but enough rows were kept already",
    "bad input": "what the model was to be asked could not be put into a prompt",
    "alike": "the chosen and the rejected answer hardly differ",
    "no code": "the answer holds no code",
    "broken code": "the code cannot be parsed",
    "failed tests": "the code fails the tests it brings",
    "thinking not closed": "the thinking part never ends",
    "no thinking": "the model answered without thinking first",
    "no answer": "nothing stands after the thinking part",
    "thinking length": "the thinking part is too short or too long",
    "unjudged": "the judge gave no verdict",
    "below threshold": "the judge scored it below the limit",
    "unsafe": "the judge found the answer harmful",
    "empty answer": "the judge found nothing in the answer",
    "refusal of a harmless ask": "the model declined something harmless",
    "saturated": "the model to be trained answers it well every time: nothing is left to learn",
    "hopeless": "the model to be trained never answers it well: it cannot learn from its own answers",
    "less diverse": "other rows add more variety to the set",
    "too long": "the text is longer than what is read",
    "no name": "the row of the profile file has no name",
    "no description": "the row of the profile file describes nobody",
    "not identified": "no anonymous form was found that could not be traced to the person",
}
"""What each reason means, in words for a reader."""


MEASURES = {
    "distinct-1": "how many of all words are different ones",
    "distinct-2": "how many of all pairs of neighbouring words are different ones",
    "distinct-3": "how many of all runs of three words are different ones",
    "compression ratio": "how much smaller the texts become when packed: repeated phrases pack well",
    "self-BLEU": "how far a request can be pieced together from the others",
    "Vendi score": "to how many entirely different requests the set comes to in effect",
    "nearest neighbour": "how far a request is from the one most like it, on average",
    "groups covered": "how many of the society's groups have rows in the set",
    "entropy of groups": "how evenly the groups supplied rows",
    "largest of groups": "what share of the rows one group supplied",
    "occupations covered": "how many of the society's occupations have rows in the set",
    "entropy of occupations": "how evenly the occupations supplied rows",
    "largest of occupations": "what share of the rows one occupation supplied",
    "cluster entropy": "how evenly the requests spread over topics",
}
"""What each measure of diversity tells, in words for a reader."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Many numbers of one sort."""

    name: str
    unit: str
    values: pl.Series

    def cut(self, share: float) -> float:
        """Return the value below which `share` of them lie."""
        return float(self.values.quantile(share, "linear") or 0.0)

    @property
    def cuts(self) -> tuple[float, float, float]:
        """5th percentile, median and 95th percentile."""
        return self.cut(0.05), self.cut(0.5), self.cut(0.95)


@dataclass(frozen=True, slots=True)
class Tabled:
    """How often each name of one sort occurs, in the order to be shown."""

    name: str
    counts: tuple[tuple[str, int], ...]
    n_more: int = 0
    """Different names that are not shown."""
    whole: tuple[tuple[Any, int], ...] = ()
    """All values, where some are not shown: another run may show them."""

    @property
    def total(self) -> int:
        """Sum of the counts shown."""
        return sum(count for _, count in self.counts)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the way from candidates to kept rows."""

    name: str
    n_left: int
    n_dropped: int
    meaning: str


@dataclass(frozen=True, slots=True)
class Reason:
    """How many rows of one sort were dropped for one reason."""

    noun: str
    reason: str
    count: int
    meaning: str


@dataclass(frozen=True, slots=True)
class Society:
    """Who lived, and what happened."""

    n_read: int
    n_profiles: int
    n_agents: int
    n_groups: int
    group_sizes: tuple[tuple[int, int], ...]
    """(members, groups of that size)."""
    n_events: int
    n_reactions: int
    mean_receivers: float
    nobody_share: float
    n_abroad: int
    """Events that reached other groups."""
    n_scenarios: int


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What rows share with one evaluation set."""

    name: str
    n_items: int | None
    has_text: bool | None
    n_dropped: int
    n_runs: int
    """Rows that share a run of words."""
    n_whole: int
    """Rows that are an item's whole text, known by its words or its hash."""
    n_nearest: int
    """Rows warned of as near to an item; nothing is dropped for it."""


@dataclass(frozen=True, slots=True)
class Refined:
    """What critique and revision came to."""

    n_responses: int
    n_critiques: int
    n_kept: int
    """Revisions that took the place of the answer."""
    by_round: tuple[tuple[int, int, int], ...]
    """(round from 1, critiques, revisions kept)."""
    verdicts: tuple[tuple[str, int], ...]
    told: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Gathered:
    """All figures of a run."""

    records: Records
    name: str
    command: str
    kind: str
    n_wanted: int
    n_kept: int
    n_candidates: int
    models: tuple[tuple[str, str], ...]
    is_rehearsal: bool
    society: Society | None
    steps: tuple[Step, ...]
    reasons: tuple[Reason, ...]
    lengths: tuple[Spread, ...]
    tables: tuple[Tabled, ...]
    """Categories, root verbs, types, complexity, style, language, turns, as far as the rows tell."""
    levels: tuple[Tabled, ...]
    """Quality and difficulty, in the order of their levels, `unrated` last."""
    scores: tuple[Spread, ...]
    relevance: Spread | None
    group_counts: tuple[int, ...]
    """Rows of each group, largest first."""
    diversity: tuple[tuple[str, str, str, str], ...]
    """(name, value, unit, note)."""
    diversity_note: str
    benchmarks: tuple[Benchmark, ...]
    n_contaminated: int
    refined: Refined | None
    selection: tuple[tuple[str, str], ...]
    off: tuple[str, ...]
    """Checks that were switched off."""
    settings: tuple[tuple[str, str], ...]
    hashes: tuple[tuple[str, str], ...]
    licences: tuple[tuple[str, int], ...]
    origins: tuple[tuple[str, int], ...]
    n_invented: int

    @property
    def told(self) -> Told:
        """What the run says of itself."""
        return self.records.told

    @property
    def seed(self) -> int:
        """The run's seed."""
        seed = self.records.identity.get("seed", 0)
        return seed if isinstance(seed, int) else 0

    @property
    def group_share(self) -> float:
        """Share of the rows that the largest group supplied."""
        return max(self.group_counts, default=0) / max(1, sum(self.group_counts))

    def find(self, name: str) -> Tabled | None:
        """Return the counts of that name, if there are any."""
        return next((each for each in (*self.tables, *self.levels) if each.name == name), None)


def gather(path: Path, told: Told | None = None, *, has_diversity: bool = True) -> Gathered:
    """Count everything a report tells of the run in folder `path`.

    Raises:
        RunError: there is no run there.
        TableError: a table is broken or another run's.
    """
    records = read_records(path, told)
    told, identity, tables = records.told, records.identity, records.tables
    rejected, profiles = tables["rejected"], tables["profiles"]
    models = told.models or _read_models(identity, told)
    instructions = tables["instructions"].filter(
        pl.col("instruction_id").is_in(records.rows["instruction_id"].implode())
    )
    command = told.command or str(identity.get("command", ""))
    n_kept = len(tables["scenarios"]) if command == "simulate" else len(records.rows)
    steps, n_candidates = _count_steps(records, has_rows=command != "simulate")
    diversity, note = measure_rows(records) if has_diversity else ((), "")
    return Gathered(
        records=records,
        name=told.name or path.resolve().name,
        command=command,
        kind=str(_dig(identity, "synthesis", "kind") or ""),
        n_wanted=told.n_wanted or _whole(records.run.get("n")),
        n_kept=n_kept,
        n_candidates=n_candidates,
        models=tuple(models.items()),
        is_rehearsal="rehearsal" in models.values() or bool((records.rows["model"] == "rehearsal").any()),
        society=_count_society(records),
        steps=steps,
        reasons=_count_reasons(rejected),
        lengths=_measure_lengths(records.rows),
        tables=_count_names(records.rows, instructions),
        levels=_count_levels(records),
        scores=_list_scores(records),
        relevance=_spread("relevance to the need", "cosine", instructions["relevance"]),
        group_counts=tuple(records.rows["group_id"].value_counts()["count"].sort(descending=True).to_list()),
        diversity=diversity,
        diversity_note=note,
        benchmarks=_count_benchmarks(records),
        n_contaminated=int((rejected["reason"] == "contamination").sum()),
        refined=_count_refined(records),
        selection=tuple(flatten(told.selection or {})),
        off=_list_off(identity),
        settings=tuple(flatten(identity)),
        hashes=_list_hashes(told, identity),
        licences=_count(profiles["licence"]),
        origins=_count(profiles["origin"]),
        n_invented=int(profiles["is_invented"].fill_null(False).sum()),
    )


def flatten(values: Any, before: str = "") -> Iterable[tuple[str, str]]:
    """Yield nested values as (dotted key, value in words)."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from flatten(value, f"{before}.{key}" if before else str(key))
    elif isinstance(values, list | tuple) and any(isinstance(value, dict | list | tuple) for value in values):
        for number, value in enumerate(values, 1):
            yield from flatten(value, f"{before}.{number}")
    elif isinstance(values, list | tuple):
        yield before, ", ".join(map(say_value, values)) or "none"
    else:
        yield before, say_value(values)


def say_value(value: Any) -> str:
    """Put a value into words."""
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return say_number(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def say_number(value: float) -> str:
    """Round a number to what a reader needs of it."""
    if value and abs(value) < 0.0005:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def say_moment(moment: str) -> str:
    """Put an ISO time into words; any other text stays as it is."""
    try:
        return datetime.fromisoformat(moment).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return moment


def order(seed: int, row_id: str) -> bytes:
    """Return a key to sort rows by as if shuffled, the same in every process."""
    return hashlib.blake2b(f"{seed}\x1f{row_id}".encode(), digest_size=8).digest()


def find_twin(twin: str, detail: str) -> str:
    """Return the id of a dropped row's twin; older tables have it in the sentence only."""
    match = _TWIN.search(detail)
    return twin or (match[0] if match else "")


def name_step(reason: str) -> str:
    """Say what a row is that was not dropped for this reason."""
    return STEP_NAMES.get(reason, f"not {reason!r}")


def explain(reason: str) -> str:
    """Say what a reason means, as far as this is known."""
    return MEANINGS.get(reason, "")


def _read_models(identity: dict[str, Any], told: Told) -> dict[str, str]:
    models = identity.get("models")
    if isinstance(models, dict) and models:
        return {str(role): str(name) for role, name in models.items()}
    return {"main": told.model} if told.model else {}


def _dig(values: Any, *keys: str) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _count_society(records: Records) -> Society | None:
    """Count people and actions; None for a folder that never had a society."""
    if not _SOCIETY & records.has_tables:
        return None
    tables = records.tables
    receivers = tables["events"]["receiver_ids"].list.len().fill_null(0).to_list()
    n_dropped = int((tables["rejected"]["noun"] == "profile").sum())
    sizes = Counter(tables["groups"]["agent_ids"].list.len().to_list())
    return Society(
        n_read=records.told.n_profiles_read or len(tables["profiles"]) + n_dropped,
        n_profiles=len(tables["profiles"]),
        n_agents=len(tables["agents"]),
        n_groups=len(tables["groups"]),
        group_sizes=tuple(sorted(sizes.items())),
        n_events=len(receivers),
        n_reactions=int((tables["events"]["kind"] == "react").sum()),
        mean_receivers=statistics.fmean(receivers) if receivers else 0.0,
        nobody_share=receivers.count(0) / len(receivers) if receivers else 0.0,
        n_abroad=int((tables["events"]["group_ids"].list.len().fill_null(0) > 0).sum()),
        n_scenarios=len(tables["scenarios"]),
    )


def _count_reasons(rejected: pl.DataFrame) -> tuple[Reason, ...]:
    counted = rejected.group_by("noun", "reason").len()
    found = counted.sort("len", "noun", "reason", descending=[True, False, False])
    return tuple(Reason(noun, reason, n, explain(reason)) for noun, reason, n in found.head(MOST_NAMES).iter_rows())


def _count_steps(records: Records, *, has_rows: bool) -> tuple[tuple[Step, ...], int]:
    """Follow the candidates through the filters in METHOD 3.4's order; what has not been decided yet is a step too."""
    if not has_rows:
        return (), 0
    rejected = records.tables["rejected"]
    early = _count_dropped(rejected, "instruction")
    answers = _count_dropped(rejected, "response")
    late = _count_dropped(rejected.filter(~pl.col("noun").is_in([*_SOCIETY_NOUNS, "instruction", "response"])))
    n_dropped = early.total() + answers.total() + late.total()
    n_candidates = max(records.told.n_candidates or 0, len(records.rows) + n_dropped)
    left = n_candidates
    is_lived = bool(_SOCIETY & records.has_tables)
    meaning = "one person in one scenario, about to be asked what they would ask for" if is_lived else "rows as read"
    steps = [Step("candidates", left, 0, meaning)]

    def drop(name: str, count: int, meaning: str) -> None:
        nonlocal left
        left -= count
        steps.append(Step(name, left, count, meaning))

    drop(
        "request written" if is_lived else "readable",
        sum(early.pop(reason, 0) for reason in UNUSABLE),
        "no usable text came from the model",
    )
    off = set(_dig(records.identity, "curation", "off") or ())
    for reason in FILTER_ORDER[len(UNUSABLE) :]:
        is_asked = reason not in off and reason.removeprefix("not ") not in off
        is_rare = reason in ("semantic duplicate", "contamination") or (reason == "leak" and not is_lived)
        if early.get(reason) or (is_asked and not is_rare) or (reason == "contamination" and records.told.benchmarks):
            drop(name_step(reason), early.pop(reason, 0), explain(reason))
    for reason, count in _in_order(early):
        drop(name_step(reason), count, explain(reason))
    for reason, count in _in_order(answers):
        drop(f"answer: {name_step(reason)}", count, explain(reason))
    for reason, count in _in_order(late):
        if reason != LAST:
            drop(name_step(reason), count, explain(reason))
    if n_surplus := late.get(LAST, 0):
        drop(name_step(LAST), n_surplus, explain(LAST))
    if n_open := left - len(records.rows):
        drop("decided", n_open, "not through all steps when this page was written")
    steps.append(Step("kept", left, 0, "rows of the data set"))
    return tuple(steps), n_candidates


_SOCIETY = {"agents", "events", "scenarios"}
_SOCIETY_NOUNS = ("profile", "agent", "event", "scenario", "group", "person")


def _count_dropped(rejected: pl.DataFrame, noun: str | None = None) -> Counter[str]:
    frame = rejected if noun is None else rejected.filter(pl.col("noun") == noun)
    return Counter(dict(frame.group_by("reason").len().iter_rows()))


def _in_order(counts: Counter[str]) -> list[tuple[str, int]]:
    """Return (reason, count) in the order in which filters are asked, unknown reasons last."""
    rank = {reason: number for number, reason in enumerate(FILTER_ORDER)}
    return sorted(counts.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0]))[:MOST_NAMES]


def _measure_lengths(rows: pl.DataFrame) -> tuple[Spread, ...]:
    if rows.is_empty():
        return ()
    is_pair = rows["rejected"].is_not_null().any()
    named = [("instruction", "asked"), ("chosen answer" if is_pair else "response", "answer")]
    named += [("rejected answer", "rejected")] if is_pair else []
    named += [("thinking", "thinking")] if rows["thinking"].is_not_null().any() else []
    counted = ((name, rows[column].drop_nulls().str.count_matches(_WORD)) for name, column in named)
    return tuple(Spread(name, "words", values.cast(pl.Float64)) for name, values in counted if len(values))


def _count_names(rows: pl.DataFrame, instructions: pl.DataFrame) -> tuple[Tabled, ...]:
    found = [
        _tabulate("category", rows["category"], N_CATEGORIES),
        _tabulate("root verb", rows["root_verb"].filter(rows["root_verb"] != ""), N_VERBS),
        _tabulate("type", rows["type"], N_CATEGORIES),
        *(_tabulate(name, instructions[name], N_CATEGORIES) for name in ("complexity", "style", "language")),
        _tabulate("model that answered", rows["model"], N_CATEGORIES),
    ]
    if (rows["n_turns"] > 1).any():
        found.append(Tabled("user turns", tuple((str(n), c) for n, c in sorted(_count(rows["n_turns"])))))
    return tuple(each for each in found if each.counts)


def _tabulate(name: str, values: pl.Series, n_most: int) -> Tabled:
    counts = _count(values)
    return Tabled(name, counts[:n_most], max(0, len(counts) - n_most), counts)


def _count(values: pl.Series) -> tuple[tuple[Any, int], ...]:
    """Return (value, count), commonest first, ties by value."""
    present = values.drop_nulls()
    present = present.filter(present != "") if present.dtype == pl.String else present
    return tuple(sorted(Counter(present.to_list()).items(), key=lambda item: (-item[1], str(item[0]))))


def _count_levels(records: Records) -> tuple[Tabled, ...]:
    """Count the kept rows at each level; a row without a rating is unrated, which is not a low level."""
    found: list[Tabled] = []
    for name, levels in (("quality", get_args(Quality)), ("difficulty", get_args(Difficulty))):
        rated = records.rows[name]
        if rated.is_null().all():
            rated = _read_ratings(records, name)
        counts = Counter(rated.to_list())
        known = [(level, counts.get(level, 0)) for level in levels]
        if any(count for _, count in known):
            n_unrated = len(records.rows) - sum(count for _, count in known)
            found.append(Tabled(name, (*known, (UNRATED, n_unrated))))
    return tuple(found)


def _read_ratings(records: Records, criterion: str) -> pl.Series:
    """Return the ratings of kept rows' instructions from the table of judgements."""
    judged = records.tables["judgements"].filter(pl.col("criterion") == criterion)
    own = judged.select(instruction_id="subject_id", level="level").unique("instruction_id", keep="first")
    return records.rows.select("instruction_id").join(own, on="instruction_id", how="left")["level"]


def _list_scores(records: Records) -> tuple[Spread, ...]:
    rows, judgements = records.rows, records.tables["judgements"]
    is_pair = rows["rejected"].is_not_null().any()
    found = [
        _spread("score of the chosen answer" if is_pair else "score of kept answers", "score", rows["score"]),
        _spread("score of the rejected answer", "score", rows["rejected_score"]),
    ]
    for criterion in ("score", "reward"):
        values = judgements.filter(pl.col("criterion") == criterion)["value"]
        found.append(_spread(f"all judgements: {criterion}", "score", values))
    return tuple(each for each in found if each is not None)


def _spread(name: str, unit: str, values: pl.Series) -> Spread | None:
    present = values.cast(pl.Float64).drop_nulls().drop_nans()
    present = present.filter(present.is_finite())
    return Spread(name, unit, present) if len(present) else None


def _count_benchmarks(records: Records) -> tuple[Benchmark, ...]:
    told = {each.name: each for each in records.told.benchmarks}
    rejected = records.tables["rejected"].filter(pl.col("reason") == "contamination")
    dropped = Counter(twin.partition("/")[0] for twin in rejected["twin"].to_list() if twin)
    overlaps = records.tables["overlaps"].unique(("row_id", "benchmark", "kind"))
    found = {(name, kind): n for name, kind, n in overlaps.group_by("benchmark", "kind").len().iter_rows()}
    names = sorted({*told, *dropped, *(name for name, _ in found)} - {""})
    return tuple(_build_benchmark(name, told.get(name), dropped[name], found) for name in names[:MOST_NAMES])


def _build_benchmark(
    name: str, told: BenchmarkTold | None, n_dropped: int, found: dict[tuple[str, str], int]
) -> Benchmark:
    return Benchmark(
        name=name,
        n_items=told.items if told else None,
        has_text=told.has_text if told else None,
        n_dropped=n_dropped,
        n_runs=found.get((name, "run of words"), 0),
        n_whole=found.get((name, "whole text"), 0) + found.get((name, "hash"), 0),
        n_nearest=found.get((name, "nearest"), 0),
    )


def _count_refined(records: Records) -> Refined | None:
    critiques, told = records.tables["critiques"], records.told.refinement
    if critiques.is_empty() and not told:
        return None
    rounds = critiques.group_by("round").agg(pl.len().alias("n"), pl.col("is_kept").sum().alias("kept")).sort("round")
    return Refined(
        n_responses=critiques["instruction_id"].n_unique(),
        n_critiques=len(critiques),
        n_kept=int(critiques["is_kept"].sum()),
        by_round=tuple((_whole(number) + 1, n, kept) for number, n, kept in rounds.head(MOST_NAMES).iter_rows()),
        verdicts=_count(critiques["verdict"])[:MOST_NAMES],
        told=tuple(flatten(told or {})),
    )


def _list_off(identity: dict[str, Any]) -> tuple[str, ...]:
    off = [f"the filter {name!r}" for name in _dig(identity, "curation", "off") or ()]
    return ("the privacy check", *off) if _dig(identity, "population", "privacy_check") is False else tuple(off)


def _list_hashes(told: Told, identity: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    if told.program_hashes:
        return tuple(sorted(told.program_hashes.items()))
    inputs = _dig(identity, "inputs")
    named = inputs.items() if isinstance(inputs, dict) else ()
    return tuple(sorted((key.removeprefix("program_"), str(value)) for key, value in named if "program_" in key))


def measure_rows(records: Records) -> tuple[tuple[tuple[str, str, str, str], ...], str]:
    """Return the diversity of the kept instructions as rows, and what was measured; empty where it cannot be."""
    if records.told.diversity:
        return tuple(_read_diversity(records.told.diversity)), "Measured by the run itself on its kept instructions."
    texts = records.rows.select("example_id", "asked", "group_id", "agent_id").drop_nulls("asked")
    seed = _whole(records.identity.get("seed"))
    if len(texts) < 2:
        return (), ""
    n_rows = len(texts)
    if n_rows > DIVERSITY_SAMPLE:
        keys = [order(seed, row_id) for row_id in texts["example_id"].to_list()]
        texts = texts[sorted(range(n_rows), key=keys.__getitem__)[:DIVERSITY_SAMPLE]]
    texts = texts.sort("example_id")
    taken = "all" if len(texts) == n_rows else "a seeded sample of"
    note = f"Measured on the instructions of {taken} {len(texts):,} rows."
    all_groups = records.tables["groups"]["group_id"].to_list()
    rows = _measure(texts["asked"].to_list(), texts["group_id"].to_list(), all_groups, seed)
    return (*rows, *_tell_occupations(records.told.occupations or {})), note


def _tell_occupations(found: Mapping[str, float | None]) -> Iterator[tuple[str, str, str, str]]:
    units = {
        "covered": ("occupations covered", "share of the population's"),
        "entropy": ("entropy of occupations", "share of the largest possible"),
        "largest": ("largest of occupations", "share of texts"),
    }
    for key, (name, unit) in units.items():
        if (value := found.get(key)) is not None:
            better = "lower" if key == "largest" else "higher"
            yield name, say_number(value), unit, f"{MEASURES[name]}; {better} is more various"


def _measure(
    texts: Sequence[str], groups: Sequence[str], all_groups: Sequence[str], seed: int
) -> tuple[tuple[str, str, str, str], ...]:
    from threadpoolctl import threadpool_limits

    from matrix_dspy.curation.diversity import measure_diversity
    from matrix_dspy.engine.embedding import build_embedder

    with threadpool_limits(1):  # on a busy machine the threads of linear algebra wait for one another for minutes
        vectors = build_embedder("tfidf", texts, seed).embed(texts)
    known = groups if any(groups) else None
    measured = measure_diversity(texts, vectors, groups=known, all_groups=all_groups or None, seed=seed)
    return tuple(
        (row.name, "too few rows" if row.value is None else say_number(row.value), row.unit, _explain_measure(row))
        for row in measured.as_rows()
    )


def _explain_measure(row: Any) -> str:
    meaning = MEASURES.get(row.name)
    return f"{meaning}; {row.more_diverse} is more various" if meaning else f"{row.more_diverse} is more various"


def _read_diversity(values: dict[str, Any] | list[Any]) -> Iterable[tuple[str, str, str, str]]:
    """Read what a run noted: rows of (name, value, unit, note), such rows by their fields' names, or values by name."""
    rows = values.get("rows", values) if isinstance(values, dict) else values
    if isinstance(rows, dict):
        rows = [[name, value] for name, value in rows.items()]
    for row in rows[:MOST_NAMES] if isinstance(rows, list) else ():
        if isinstance(row, dict):
            row = [row.get(key) for key in ("name", "value", "unit", "note")]
        if isinstance(row, list) and len(row) >= 2 and not isinstance(row[1], dict | list):
            unit, note = (str(part) if part else "" for part in (*row[2:4], "", "")[:2])
            yield str(row[0]), say_value(row[1]), unit, note or MEASURES.get(str(row[0]), "")
