"""Rows to be read by people: kept ones with all they came from, dropped ones by reason, duplicates beside their twins.

What is shown is a seeded choice, bounded in number and length, with the marks taken out that a page or a terminal would
obey; the tables hold everything.
"""

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from matrix_dspy.report.gathering import Gathered, explain, find_twin, order, say_number
from matrix_dspy.report.records import Records
from matrix_dspy.text import drop_controls, one_line

N_SAMPLES = 20
N_TWINS = 4
"""Pairs shown for each sort of duplicate."""
N_REJECTED = 3
"""Rows shown for each reason."""
N_OVERLAPS = 8
N_REVISIONS = 4
MOST_REASONS = 30
MOST_TURNS = 8
MOST_EVENTS = 16
LONG, SHORT = 3000, 600
"""Characters shown of a text of a kept row, and of any other."""
MOST_COMPARED = 400
"""Words of either side up to which differences are marked."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A text under a heading."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Layer:
    """One ancestor of a row."""

    title: str
    id: str
    facts: tuple[tuple[str, str], ...] = ()
    texts: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A kept row, and what it came from, nearest first."""

    example_id: str
    category: str
    facts: tuple[tuple[str, str], ...]
    turns: tuple[Turn, ...]
    descent: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Twins:
    """A dropped text beside the one that was kept in its place; pieces are (text, whether it differs)."""

    reason: str
    id: str
    twin_id: str
    score: str
    dropped: tuple[tuple[str, bool], ...]
    kept: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A few rows dropped for one reason."""

    noun: str
    reason: str
    meaning: str
    rows: tuple[tuple[str, str, str], ...]
    """(id, detail, text)."""


@dataclass(frozen=True, slots=True)
class Leak:
    """A row that shares something with an evaluation set."""

    row_id: str
    benchmark: str
    item: str
    kind: str
    shared: str
    score: str
    text: str


@dataclass(frozen=True, slots=True)
class Revision:
    """An answer's critique, and what was made of it."""

    id: str
    round: int
    critique: str
    revision: str
    verdict: str
    is_kept: bool


@dataclass(slots=True)
class _Index:
    """Rows by id, of the tables that samples are looked up in."""

    records: Records
    known: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def load(self, noun: str, ids: Iterable[str], by: str | None = None) -> dict[str, dict[str, Any]]:
        """Read the rows with these ids, once."""
        column = by or f"{noun.removesuffix('s')}_id"
        wanted = sorted({each for each in ids if each})
        frame = self.records.tables[noun].filter(pl.col(column).is_in(wanted))
        self.known.setdefault(noun, {}).update({row[column]: row for row in frame.iter_rows(named=True)})
        return self.known[noun]


def show(text: str | None, most: int = SHORT) -> str:
    """Return a text as it may be shown: without control and direction marks, and not longer than `most`."""
    plain = drop_controls((text or "")[: 2 * most]).strip()
    n_left = len(text or "") - most
    return f"{plain[:most]} [... {n_left:,} more characters]" if n_left > 0 else plain


def show_line(text: str | None, most: int = 200) -> str:
    """Return a text as it may be shown in one line."""
    return one_line(show(text, most))


def choose_rows(rows: pl.DataFrame, n_rows: int, seed: int) -> list[dict[str, Any]]:
    """Choose rows spread over the categories: a round takes one of each, the same rows for the same seed."""
    by_category: dict[str, list[str]] = defaultdict(list)
    for row_id, category in rows.select("example_id", "category").iter_rows():
        by_category[category or ""].append(row_id)
    for ids in by_category.values():
        ids.sort(key=lambda row_id: order(seed, row_id))
    names = sorted(by_category, key=lambda name: order(seed, by_category[name][0]))
    rounds = max(map(len, by_category.values()), default=0)
    chosen = [by_category[name][n] for n in range(min(rounds, n_rows)) for name in names if n < len(by_category[name])]
    found = {row["example_id"]: row for row in rows.filter(pl.col("example_id").is_in(chosen[:n_rows])).to_dicts()}
    return [found[row_id] for row_id in chosen[:n_rows]]


def collect_samples(gathered: Gathered, n_rows: int = N_SAMPLES) -> tuple[Sample, ...]:
    """Return kept rows with their whole descent."""
    records = gathered.records
    chosen = choose_rows(records.rows, n_rows, gathered.seed)
    index = _Index(records)
    for noun in ("instructions", "responses", "scenarios", "agents", "profiles"):
        index.load(noun, (row[f"{noun.removesuffix('s')}_id"] for row in chosen))
    scenarios = index.known["scenarios"].values()
    index.load("events", (each for row in scenarios for each in _list_events(row)))
    judged = _group_rows(records.tables["judgements"], "subject_id", _list_subjects(chosen))
    revised = _group_rows(records.tables["critiques"], "instruction_id", [row["instruction_id"] for row in chosen])
    return tuple(_build_sample(row, index, judged, revised) for row in chosen)


def collect_twins(gathered: Gathered) -> tuple[Twins, ...]:
    """Return duplicates beside their twins, the least alike of each sort first: there mistakes would be seen."""
    records = gathered.records
    rejected = records.tables["rejected"].filter(pl.col("reason").str.ends_with("duplicate"))
    found: list[Twins] = []
    for reason in sorted(set(rejected["reason"].to_list()))[:MOST_REASONS]:
        rows = rejected.filter(pl.col("reason") == reason).to_dicts()
        rows.sort(key=lambda row: (row["score"] is None, row["score"] or 0.0, order(gathered.seed, row["id"])))
        chosen = rows[:N_TWINS]
        twins = [find_twin(row["twin"], row["detail"]) for row in chosen]
        texts = _find_texts(records, twins)
        found += [_build_twins(row, twin, texts.get(twin, "")) for row, twin in zip(chosen, twins, strict=True)]
    return tuple(found)


def collect_dropped(gathered: Gathered) -> tuple[Dropped, ...]:
    """Return a few dropped rows for each reason."""
    rejected = gathered.records.tables["rejected"]
    found: list[Dropped] = []
    for each in gathered.reasons[:MOST_REASONS]:
        own = rejected.filter((pl.col("noun") == each.noun) & (pl.col("reason") == each.reason))
        ids = sorted(set(own["id"].to_list()), key=lambda row_id: order(gathered.seed, row_id))[:N_REJECTED]
        rows = own.filter(pl.col("id").is_in(ids)).unique("id", keep="first").sort("id")
        shown = tuple((row["id"], show_line(row["detail"], 400), show(row["raw_text"])) for row in rows.to_dicts())
        found.append(Dropped(show_line(each.noun), show_line(each.reason), explain(each.reason), shown))
    return tuple(found)


def collect_leaks(gathered: Gathered) -> tuple[Leak, ...]:
    """Return a few rows that share something with an evaluation set, those dropped for it first."""
    records = gathered.records
    ranked = {"run of words": 0, "whole text": 0, "hash": 0}
    rows = records.tables["overlaps"].to_dicts()
    rows.sort(key=lambda row: (ranked.get(row["kind"], 1), order(gathered.seed, row["overlap_id"])))
    texts = _find_texts(records, [row["row_id"] for row in rows[:N_OVERLAPS]])
    return tuple(
        Leak(
            row_id=row["row_id"],
            benchmark=show_line(row["benchmark"]),
            item=show_line(row["item"]),
            kind=row["kind"],
            shared=show(row["shared"]),
            score="" if row["score"] is None else say_number(row["score"]),
            text=show(texts.get(row["row_id"], "")),
        )
        for row in rows[:N_OVERLAPS]
    )


def collect_revisions(gathered: Gathered) -> tuple[Revision, ...]:
    """Return a few critiques with their revisions, kept ones and others."""
    rows = gathered.records.tables["critiques"].to_dicts()
    rows.sort(key=lambda row: order(gathered.seed, row["critique_id"]))
    kept, others = [row for row in rows if row["is_kept"]], [row for row in rows if not row["is_kept"]]
    half = N_REVISIONS // 2
    return tuple(
        Revision(
            id=row["critique_id"],
            round=(row["round"] or 0) + 1,
            critique=show(row["text"]),
            revision=show(row["revision"]),
            verdict=show_line(row["verdict"]),
            is_kept=bool(row["is_kept"]),
        )
        for row in [*kept[:half], *others[:half]]
    )


def mark_differences(one: str, other: str) -> tuple[tuple[tuple[str, bool], ...], tuple[tuple[str, bool], ...]]:
    """Cut two texts into pieces, each with whether the other text lacks it."""
    sides = [re.findall(r"\S+|\s+", text) for text in (one, other)]
    if max(map(len, sides)) > 2 * MOST_COMPARED:
        return ((one, False),), ((other, False),)
    words = [[piece.casefold() for piece in side] for side in sides]
    codes = difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes()
    left = (("".join(sides[0][a:b]), code != "equal") for code, a, b, _, _ in codes)
    right = (("".join(sides[1][a:b]), code != "equal") for code, _, _, a, b in codes)
    return tuple(piece for piece in left if piece[0]), tuple(piece for piece in right if piece[0])


def _build_twins(row: Mapping[str, Any], twin: str, text: str) -> Twins:
    dropped, kept = mark_differences(show(row["raw_text"], LONG // 2), show(text, LONG // 2))
    score = "" if row["score"] is None else say_number(row["score"])
    return Twins(show_line(row["reason"]), row["id"], twin, score, dropped, kept)


def _find_texts(records: Records, ids: Sequence[str]) -> dict[str, str]:
    """Return the texts of instructions, responses and examples by id, wherever in the folder they stand."""
    wanted = sorted({each for each in ids if each})
    texts: dict[str, str] = {}
    for frame, column, text in (
        (records.tables["rejected"], "id", "raw_text"),
        (records.rows, "example_id", "asked"),
        (records.rows, "response_id", "answer"),
        (records.rows, "instruction_id", "asked"),
        (records.tables["responses"], "response_id", "text"),
        (records.tables["instructions"], "instruction_id", "text"),
    ):
        own = frame.filter(pl.col(column).is_in(wanted)).select(column, text)
        texts.update({row_id: found for row_id, found in own.iter_rows() if found})
    return texts


def _group_rows(frame: pl.DataFrame, column: str, ids: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in frame.filter(pl.col(column).is_in(sorted({each for each in ids if each}))).iter_rows(named=True):
        grouped[row[column]].append(row)
    return grouped


def _list_events(scenario: Mapping[str, Any]) -> list[str]:
    return [*(scenario["outside_event_ids"] or ()), *(scenario["event_ids"] or ())][:MOST_EVENTS]


def _list_subjects(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return [row[name] for row in rows for name in ("instruction_id", "response_id", "rejected_id") if row[name]]


def _build_sample(
    row: Mapping[str, Any],
    index: _Index,
    judged: Mapping[str, list[dict[str, Any]]],
    revised: Mapping[str, list[dict[str, Any]]],
) -> Sample:
    turns = [Turn(turn["role"], show(turn["content"], LONG)) for turn in (row["turns"] or ())[:MOST_TURNS]]
    if row["rejected"] is not None:
        names = {"user": "prompt", "assistant": "chosen"}
        turns = [Turn(names.get(turn.label, turn.label), turn.text) for turn in turns]
        turns.append(Turn("rejected", show(row["rejected"], LONG)))
    facts = _facts(row, ("kind", "type", "root_verb", "quality", "difficulty", "score", "rejected_score", "model"))
    layers = [
        *_tell_response(row, index, judged, revised),
        *_tell_instruction(row, index, judged),
        *_tell_scenario(row, index),
        *_tell_people(row, index),
    ]
    return Sample(row["example_id"], show_line(row["category"]) or "no category", facts, tuple(turns), tuple(layers))


def _facts(row: Mapping[str, Any], names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    present = ((name.replace("_", " "), row[name]) for name in names if row.get(name) not in (None, ""))
    return tuple((name, say_number(v) if isinstance(v, float) else show_line(str(v))) for name, v in present)


def _tell_judgements(rows: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (show_line(row["criterion"]), f"{show_line(row['level'])}: {show_line(row['reason'], 300)}".rstrip(": "))
        for row in list(rows)[:MOST_TURNS]
    )


def _tell_response(row: Mapping[str, Any], index: _Index, judged: Mapping, revised: Mapping) -> Iterable[Layer]:
    facts = (*_facts(row, ("model", "rejected_model")), *_tell_judgements(judged.get(row["response_id"], ())))
    critiques = revised.get(row["instruction_id"], ())[:MOST_TURNS]
    texts = (
        Turn(f"critique {each['round'] + 1}: {show_line(each['verdict'])}", show(each["text"])) for each in critiques
    )
    yield Layer("Response", row["response_id"] or "", facts, tuple(texts))


def _tell_instruction(row: Mapping[str, Any], index: _Index, judged: Mapping) -> Iterable[Layer]:
    found = index.known["instructions"].get(row["instruction_id"])
    if found is None:
        return
    names = ("type", "category", "complexity", "style", "language", "rank", "relevance")
    facts = (*_facts(found, names), *_tell_judgements(judged.get(row["instruction_id"], ())))
    yield Layer("Instruction", row["instruction_id"], facts, (Turn("as written", show(found["text"])),))


def _tell_scenario(row: Mapping[str, Any], index: _Index) -> Iterable[Layer]:
    found = index.known["scenarios"].get(row["scenario_id"])
    if found is None:
        return
    own = set(found["event_ids"] or ())
    events = [index.known["events"][each] for each in _list_events(found) if each in index.known["events"]]
    texts = [Turn("summary", show(found["summary"], LONG))]
    for event in events:
        where = "" if event["event_id"] in own else ", heard of from another group"
        mine = ", by the one who asks" if event["agent_id"] == row["agent_id"] else ""
        texts.append(Turn(f"event, round {event['round']}{mine}{where}", show(event["action"])))
    yield Layer("Scenario", found["scenario_id"], _facts(found, ("group_id",)), tuple(texts))


def _tell_people(row: Mapping[str, Any], index: _Index) -> Iterable[Layer]:
    if agent := index.known["agents"].get(row["agent_id"]):
        plan = "\n".join(f"{number}. {step}" for number, step in enumerate(agent["plan"] or (), 1))
        texts = (Turn("personality", agent["personality"]), Turn("life goal", agent["life_goal"]), Turn("plan", plan))
        shown = tuple(Turn(each.label, show(each.text)) for each in texts if each.text)
        yield Layer("Person (agent)", agent["agent_id"], _facts(agent, ("name",)), shown)
    if profile := index.known["profiles"].get(row["profile_id"]):
        facts = (*_facts(profile, ("origin", "licence")), ("invented", "yes" if profile["is_invented"] else "no"))
        texts = (Turn("description", show(profile["description"])),)
        yield Layer("Anonymous profile", profile["profile_id"], facts, texts)
