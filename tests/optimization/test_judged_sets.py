"""The shipped judged sets: large enough, spread over splits and levels, no copies, no give-aways, well described."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import pytest

from matrix_dspy.curation.base import build_shingles, measure_jaccard
from matrix_dspy.optimization.agreement import measure_spearman
from matrix_dspy.optimization.judged import (
    BORROWED,
    JUDGES,
    LEVELS,
    SPLITS,
    JudgedRow,
    JudgedSet,
    judged_folder,
    list_judged,
    load_judged,
)
from matrix_dspy.text import clean_text, count_words

SETS = [
    *("actor", "intra_router", "inter_router", "reception_router", "scenario_writer", "instruction_writer"),
    *("instruction_rater", "responder", "response_judge", "pair_judge", "critic", "reviser"),
]
SCORED = [name for name in SETS if name != "pair_judge"]
WRITTEN = [name for name in SETS if name not in JUDGES]
NEAR = 0.4
"""Jaccard of 3-word shingles from which two texts are near copies."""
REASON_NEAR = 0.3
WITH_LEAST = {"train": 32, "val": 18, "test": 24}
PAIRS_LEAST = {"train": 20, "val": 10, "test": 100}
Shingles = frozenset[str] | frozenset[Any]


@cache
def load(name: str) -> JudgedSet:
    return load_judged(name)


@cache
def read_card(name: str) -> str:
    return (judged_folder() / f"{name}.md").read_text(encoding="utf-8").partition("\n## Data card")[2]


def say(value: Any) -> str:
    """Return the words of a value, keys left out."""
    if isinstance(value, dict):
        return "\n".join(map(say, value.values()))
    return "\n".join(map(say, value)) if isinstance(value, list) else str(value)


def list_parts(name: str) -> dict[str, list[JudgedRow]]:
    """Return the rows that must make a set by themselves: of the instruction writer those of each type."""
    rows = list(load(name).rows)
    if name != "instruction_writer":
        return {name: rows}
    kinds = {"simple": "type: simple", "specialised": "type: specialised"}
    parts = {kind: [row for row in rows if words in row.inputs["requirement"].lower()] for kind, words in kinds.items()}
    assert sum(map(len, parts.values())) == len(rows)
    return parts


def find_near(texts: Sequence[Shingles], bound: float) -> list[tuple[int, int]]:
    """Return the pairs whose shingles have at least that much in common, by an inverted index."""
    holders: defaultdict[Any, list[int]] = defaultdict(list)
    found: list[tuple[int, int]] = []
    for i, text in enumerate(texts):
        shared = Counter(other for shingle in text for other in holders[shingle])
        found += [(other, i) for other, n in shared.items() if n / (len(text) + len(texts[other]) - n) >= bound]
        for shingle in text:
            holders[shingle].append(i)
    return found


def name_pairs(rows: Sequence[JudgedRow], pairs: Iterable[tuple[int, int]]) -> list[str]:
    return [f"{rows[i].id} and {rows[j].id}" for i, j in pairs]


def verdict(row: JudgedRow) -> Any:
    return row.output["preference"] if row.score is None else row.score


# ---- size and spread


@pytest.mark.parametrize("name", SETS)
def test_a_set_and_every_split_of_it_are_large_enough(name: str):
    least, splits = (150, PAIRS_LEAST) if name == "pair_judge" else (74, WITH_LEAST)

    for part, rows in list_parts(name).items():
        n_rows = Counter(row.split for row in rows)
        assert len(rows) >= least, part
        assert all(n_rows[split] >= splits[split] for split in SPLITS), (part, n_rows)


@pytest.mark.parametrize("name", SCORED)
def test_every_level_is_in_every_split_and_none_is_rare_or_rules(name: str):
    for part, rows in list_parts(name).items():
        assert {(row.split, row.score) for row in rows} == {(split, level) for split in SPLITS for level in LEVELS}
        shares = {level: sum(row.score == level for row in rows) / len(rows) for level in LEVELS}
        assert all(0.1 <= share <= 0.3 for share in shares.values()), (part, shares)


def test_neither_place_nor_length_gives_the_better_of_two_away():
    rows = load("pair_judge").rows
    for split in SPLITS:
        own = [row for row in rows if row.split == split]
        assert 0.4 <= sum(row.output["preference"] == "A" for row in own) / len(own) <= 0.6, split

    n_longer = 0
    for row in rows:
        a, b = count_words(row.inputs["response_a"]), count_words(row.inputs["response_b"])
        n_longer += (a > b) == (row.output["preference"] == "A")
    assert 0.35 <= n_longer / len(rows) <= 0.65


def test_the_raters_two_levels_are_two_things():
    rows = load("instruction_rater").rows
    difficulty = ["very easy", "easy", "medium", "hard", "very hard"]
    levels = [difficulty.index(row.output["difficulty"]) for row in rows]

    assert {(row.split, row.output["difficulty"]) for row in rows} == {(s, d) for s in SPLITS for d in difficulty}
    assert all(0.1 <= levels.count(level) / len(rows) <= 0.3 for level in range(5)), Counter(levels)
    assert abs(measure_spearman(levels, [row.score or 0 for row in rows])) <= 0.35


@pytest.mark.parametrize("name", WRITTEN)
def test_the_length_of_an_output_does_not_give_its_score_away(name: str):
    for part, rows in list_parts(name).items():
        lengths = [count_words(say(row.output)) for row in rows]
        found = measure_spearman(lengths, [row.score or 0 for row in rows])
        assert abs(found) <= 0.35, (part, found)


@pytest.mark.parametrize("name", SETS)
def test_ids_are_the_programs_own_and_the_order_of_the_file_tells_nothing(name: str):
    rows = load(name).rows

    assert all(re.fullmatch(rf"{name}-[a-z]?\d{{3}}", row.id) for row in rows)
    assert all(row.case and row.case == row.case.strip() for row in rows)
    if name != "pair_judge":
        assert abs(measure_spearman(range(len(rows)), [row.score or 0 for row in rows])) <= 0.35


# ---- no copies


@pytest.mark.parametrize("name", SETS)
def test_no_two_rows_are_near_copies(name: str):
    rows = load(name).rows
    texts = [build_shingles(f"{say(row.inputs)}\n{say(row.output)}", 3) for row in rows]

    assert name_pairs(rows, find_near(texts, NEAR)) == []


def test_no_inputs_are_near_copies_across_splits_of_any_sets():
    rows = [row for name in SETS for row in load(name).rows]
    texts = [build_shingles(say(row.inputs), 3) for row in rows]

    near = [(i, j) for i, j in find_near(texts, NEAR) if rows[i].split != rows[j].split]

    assert name_pairs(rows, near) == []


def test_no_request_is_a_near_copy_of_one_in_another_split_of_any_set():
    rows = [
        row for name in SETS for row in load(name).rows if "instruction" in row.inputs or "instruction" in row.output
    ]
    texts = [build_shingles(str(row.inputs.get("instruction") or row.output["instruction"]), 3) for row in rows]

    near = [(i, j) for i, j in find_near(texts, NEAR) if rows[i].split != rows[j].split]

    assert name_pairs(rows, near) == []


@pytest.mark.parametrize("name", SETS)
def test_every_row_has_a_reason_of_its_own(name: str):
    rows = load(name).rows
    reasons = [row.reason or row.output["reason"] for row in rows]

    assert all(count_words(reason) >= 5 for reason in reasons)
    assert name_pairs(rows, find_near([build_shingles(reason, 3) for reason in reasons], REASON_NEAR)) == []


def test_the_index_finds_what_a_plain_comparison_finds():
    rows = [row for name in SETS[:2] for row in load(name).rows][:90]
    texts = [build_shingles(say(row.inputs), 3) for row in rows]
    texts[7] = texts[70] = texts[3] | {"one more"}

    for bound in (0.005, 0.01, NEAR):
        plain = {(i, j) for j in range(len(texts)) for i in range(j) if measure_jaccard(texts[i], texts[j]) >= bound}
        assert set(find_near(texts, bound)) == plain
    assert {(3, 7), (3, 70), (7, 70)} <= set(find_near(texts, NEAR))


# ---- rubrics and cards


@pytest.mark.parametrize("name", SETS)
def test_a_rubric_says_what_each_level_means_in_few_words(name: str):
    rubric = load(name).rubric

    assert 250 <= count_words(rubric) <= 700
    assert clean_text(rubric) == rubric
    if name == "pair_judge":
        return
    levels = rubric.partition("\n## Levels\n")[2].partition("\n## ")[0]
    stated = re.findall(r"^[\s#*-]*([1-5])\b", levels, re.MULTILINE)
    assert sorted(stated) == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("name", SETS)
def test_a_data_card_says_who_wrote_and_labelled_and_how_many_rows_there_are(name: str):
    card = read_card(name)

    by_whom = [sentence for sentence in re.split(r"(?<=[.;])\s", card) if re.search(r"\blabel", sentence)]
    assert any(re.search(r"\b(?:model|person)\b", sentence) for sentence in by_whom)
    assert re.search(r"\bwritten by\b", card)
    assert re.search(rf"\b{len(load(name).rows)}\b", card)


@pytest.mark.parametrize("name", SCORED)
def test_the_table_in_a_data_card_counts_right(name: str):
    rows = load(name).rows
    told = re.findall(r"^\| (train|val|test) \|(.*)\|$", read_card(name), re.MULTILINE)

    counted = {
        split: [sum((row.split, row.score) == (split, level) for row in rows) for level in (5, 4, 3, 2, 1)]
        for split in SPLITS
    }
    assert {split: [int(cell) for cell in cells.split("|")] for split, cells in told} == {
        split: [*cells, sum(cells)] for split, cells in counted.items()
    }


@pytest.mark.parametrize("name", SETS)
def test_a_shipped_set_is_written_as_it_is_read(name: str):
    text = (judged_folder() / f"{name}.jsonl").read_text(encoding="utf-8")

    assert text.endswith("\n") and "\r" not in text
    assert len(text.split("\n")) - 1 == len(load(name).rows)
    assert all(
        clean_text(say(value)) == say(value)
        for row in load(name).rows
        for value in row.inputs.values()
        if isinstance(value, str)
    )


def test_every_set_is_listed():
    assert set(list_judged()) == {*SETS, "output_judge", *BORROWED}
