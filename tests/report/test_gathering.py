"""The figures of a run, against folders whose figures are known."""

import random
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.bulk.folder import read_run_id, take_lock
from matrix_dspy.bulk.tables import write_parquet
from matrix_dspy.errors import RunError, TableError
from matrix_dspy.report.charts import build_charts, choose_edges
from matrix_dspy.report.gathering import UNRATED, gather
from matrix_dspy.report.records import Told
from matrix_dspy.report.samples import choose_rows, collect_samples, collect_twins, mark_differences
from matrix_dspy.types import Critique, Judgement, Message, Overlap, make_id
from tests.report.folders import FINAL, dropped, example, open_folder, pair, write_rows, write_set, write_society

REASONS = ["unparsed", "leak", "refusal", "length", "near duplicate", "near duplicate", "contamination"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of six rows, of ten candidates that were dropped on various grounds."""
    path = open_folder(tmp_path / "run", 6)
    levels = ["good", "good", "very poor", None, "excellent", None]
    rows = [
        example(n, f"one two three w{n}", "a " * (n + 1), quality=level, root_verb="write" if n else None)
        for n, level in enumerate(levels)
    ]
    write_set(path, rows)
    write_society(path, rows)
    rejected = [dropped(n, reason) for n, reason in enumerate(REASONS)]
    rejected += [dropped(20, "refusal", "response"), dropped(21, "surplus", "example"), dropped(22, "odd", "judgement")]
    write_rows(path, "rejected", [*rejected, dropped(30, "unparsed", "profile")])
    return path


def test_the_funnel_loses_at_each_step_what_the_reasons_say(run: Path):
    gathered = gather(run)

    assert gathered.n_candidates == 16
    lost = {step.name: step.n_dropped for step in gathered.steps if step.n_dropped}
    assert lost == {
        "request written": 1, "no leak of raw profiles": 1, "no refusal": 1, "right length": 1, "no near duplicate": 2,
        "not in evaluation sets": 1, "answer: no refusal": 1, "not 'odd'": 1, "not surplus": 1,
    }  # fmt: skip
    left = [step.n_left for step in gathered.steps]
    assert left == sorted(left, reverse=True)
    assert (left[0], left[-1]) == (16, 6)
    assert gathered.society is not None and gathered.society.n_read == 3


def test_filters_stand_in_the_order_in_which_they_are_asked(run: Path):
    names = [step.name for step in gather(run).steps]

    order = ["request written", "no leak of raw profiles", "no refusal", "right length", "right language"]
    order += ["self-contained"]
    order += ["no exact duplicate", "no near duplicate", "not in evaluation sets", "answer: no refusal", "not surplus"]
    assert [name for name in names if name in order] == order
    assert names[-1] == "kept"


@given(
    st.lists(st.sampled_from([*REASONS, "surplus", "new reason"]), max_size=30), st.integers(0, 5), st.integers(0, 9)
)
def test_candidates_are_always_those_kept_dropped_and_undecided(
    tmp_path_factory: pytest.TempPathFactory, reasons: list[str], n_kept: int, n_open: int
):
    told = {**FINAL, "n_candidates": len(reasons) + n_kept + n_open}
    path = open_folder(tmp_path_factory.mktemp("run"), 5, figures=told)
    if n_kept:
        write_set(path, [example(n, "a", "b") for n in range(n_kept)])
    if reasons:
        write_rows(path, "rejected", [dropped(n, reason) for n, reason in enumerate(reasons)])

    steps = gather(path).steps

    assert steps[0].n_left == len(reasons) + n_kept + n_open
    assert steps[-1].n_left == n_kept
    assert sum(step.n_dropped for step in steps) == len(reasons) + n_open
    for before, after in pairwise(steps):
        assert after.n_left == before.n_left - after.n_dropped


def test_unrated_rows_are_counted_apart_and_levels_keep_their_order(run: Path):
    quality = gather(run).find("quality")

    assert quality is not None
    assert quality.counts == (
        ("very poor", 1), ("poor", 0), ("average", 0), ("good", 2), ("excellent", 1), (UNRATED, 2),
    )  # fmt: skip


def test_ratings_are_read_from_the_judgements_where_rows_have_none(tmp_path: Path):
    path = open_folder(tmp_path / "run", 2)
    rows = [example(0, "a", "b"), example(1, "c", "d")]
    write_set(path, rows)
    judged = [(rows[0].instruction_id, "hard", 4.0), (rows[1].instruction_id, "unrated", None)]
    write_rows(
        path,
        "judgements",
        [
            Judgement(
                judgement_id=f"j{n}", subject_id=subject, criterion="difficulty", level=level, value=value, model="m"
            )
            for n, (subject, level, value) in enumerate(judged)
        ],
    )

    difficulty = gather(path).find("difficulty")

    assert difficulty is not None
    assert dict(difficulty.counts)["hard"] == 1
    assert difficulty.counts[-1] == (UNRATED, 1)


def test_lengths_of_pairs_thinking_and_dialogues(tmp_path: Path):
    pairs, others = open_folder(tmp_path / "pairs", 1), open_folder(tmp_path / "others", 2)
    write_set(pairs, [pair(0, "one two", "one two three", "one")], "dpo")
    talk = [("user", "a b"), ("assistant", "c"), ("user", "d e f"), ("assistant", "g h")]
    messages = tuple(Message.model_validate({"role": role, "content": text}) for role, text in talk)
    thought = example(0, "why", "<think>well, it is\nso</think>\n\nbecause it's so")
    write_set(others, [thought, example(1, "", "").model_copy(update={"messages": messages})])

    medians = {spread.name: sorted(spread.values.to_list()) for spread in gather(pairs).lengths}
    found = {spread.name: sorted(spread.values.to_list()) for spread in gather(others).lengths}

    assert medians == {"instruction": [2], "chosen answer": [3], "rejected answer": [1]}
    assert found == {"instruction": [1, 5], "response": [3, 3], "thinking": [4]}
    turns = gather(others).find("user turns")
    assert turns is not None and turns.counts == (("1", 1), ("2", 1))


def test_overlaps_are_counted_per_benchmark_and_rows_once(tmp_path: Path):
    told = {**FINAL, "benchmarks": [{"name": "exam", "items": 7, "has_text": False}, {"name": "quiz", "items": 2}]}
    path = open_folder(tmp_path / "run", 1, figures=told)
    rows = [
        ("row-1", "run of words", "1"),
        ("row-1", "run of words", "2"),
        ("row-2", "hash", "3"),
        ("row-3", "nearest", "3"),
    ]
    overlaps = [
        Overlap(overlap_id=f"o{n}", row_id=row, field="instruction", benchmark="exam", item=item, kind=kind)  # type: ignore[arg-type]
        for n, (row, kind, item) in enumerate(rows)
    ]
    write_rows(path, "overlaps", overlaps)
    write_rows(
        path, "rejected", [dropped(1, "contamination", twin="exam/1"), dropped(2, "contamination", twin="exam/3")]
    )

    exam, quiz = gather(path).benchmarks

    assert (exam.n_items, exam.has_text, exam.n_dropped) == (7, False, 2)
    assert (exam.n_runs, exam.n_whole, exam.n_nearest) == (1, 1, 1)
    assert (quiz.n_dropped, quiz.n_runs, quiz.n_whole, quiz.n_nearest) == (0, 0, 0, 0)


def test_revisions_are_counted_by_round(tmp_path: Path):
    path = open_folder(tmp_path / "run", 1)
    verdicts = [(0, "better", True), (0, "worse", False), (1, "no faults", False)]
    critiques = [
        Critique(critique_id=f"c{n}", response_id="r", instruction_id=f"i{n % 2}", round=number, text="t",
                 revision="", is_kept=is_kept, verdict=verdict)
        for n, (number, verdict, is_kept) in enumerate(verdicts)
    ]  # fmt: skip
    write_rows(path, "critiques", critiques)

    refined = gather(path).refined

    assert refined is not None
    assert (refined.n_responses, refined.n_critiques, refined.n_kept) == (2, 3, 1)
    assert refined.by_round == ((1, 2, 1), (2, 1, 0))


def test_a_folder_of_curate_has_no_society(tmp_path: Path):
    path = open_folder(tmp_path / "run", 1)
    write_set(path, [example(0, "a b", "c")])

    gathered = gather(path)

    assert gathered.society is None
    assert gathered.n_kept == 1


def test_old_folders_lack_columns_and_figures(tmp_path: Path):
    path = open_folder(tmp_path / "run", 2, figures=None)
    row = example(0, "a b", "c").model_dump()
    old = {key: row[key] for key in ("example_id", "instruction_id", "messages", "category", "model")}
    write_parquet(pl.DataFrame([old]), path / "dataset" / "sft.parquet", read_run_id(path))
    detail = f"Jaccard 0.667 with {row['instruction_id']}"
    rejected = {"noun": "instruction", "id": "i1", "stage": "s", "reason": "near duplicate", "detail": detail}
    write_parquet(pl.DataFrame([rejected]), path / "tables" / "rejected.parquet", read_run_id(path))

    gathered = gather(path)
    (twins,) = collect_twins(gathered)

    assert gathered.records.status == "stopped"
    assert gathered.levels == ()
    assert twins.twin_id == row["instruction_id"]
    assert "".join(text for text, _ in twins.kept) == "a b"


def test_a_run_that_is_still_going_on_is_told_from_one_that_stopped(tmp_path: Path):
    path = open_folder(tmp_path / "run", 2, figures={"is_final": False})

    lock = take_lock(path)
    try:
        held = gather(path).records.status
    finally:
        lock.release()

    assert held == "running"
    assert gather(path).records.status == "stopped"
    again = take_lock(path)  # looking did not keep it
    again.release()


def test_what_the_figures_file_says_wrongly_is_passed_over(tmp_path: Path):
    path = open_folder(tmp_path / "run", 1, figures=None)
    (path / "figures.json").write_text('{"n_calls": "many", "cost": [], "models": 3, "seconds": 2.5, "benchmarks": {}}')

    told = gather(path).told

    assert told == Told(seconds=2.5)


def test_another_runs_table_is_refused(tmp_path: Path):
    path = open_folder(tmp_path / "run", 1)
    write_parquet(pl.DataFrame({"example_id": ["e"]}), path / "dataset" / "sft.parquet", "another")

    with pytest.raises(TableError, match="belongs to another run"):
        gather(path)


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(RunError, match="no run in"):
        gather(tmp_path)


def test_samples_are_spread_over_the_categories_and_do_not_depend_on_row_order():
    rows = [{"example_id": make_id("example", n), "category": "big" if n > 4 else f"small {n}"} for n in range(100)]
    shuffled = random.Random(1).sample(rows, len(rows))

    chosen = choose_rows(pl.DataFrame(rows), 10, seed=3)

    assert chosen == choose_rows(pl.DataFrame(shuffled), 10, seed=3)
    assert chosen != choose_rows(pl.DataFrame(rows), 10, seed=4)
    assert {row["category"] for row in chosen} == {"big", *(f"small {n}" for n in range(5))}
    assert len({row["example_id"] for row in chosen}) == 10


def test_a_sample_is_walked_back_to_the_profile(run: Path):
    sample = collect_samples(gather(run), 1)[0]

    assert [layer.title for layer in sample.descent] == [
        "Response", "Instruction", "Scenario", "Person (agent)", "Anonymous profile",
    ]  # fmt: skip
    assert [turn.label for turn in sample.turns] == ["user", "assistant"]


@given(st.text("ab \n", max_size=60), st.text("ab \n", max_size=60))
def test_marked_pieces_are_the_whole_text_and_what_is_unmarked_is_common(one: str, other: str):
    left, right = mark_differences(one, other)

    assert ("".join(text for text, _ in left), "".join(text for text, _ in right)) == (one, other)
    same = ["".join(text for text, differs in side if not differs) for side in (left, right)]
    assert same[0] == same[1]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_bins_are_few_of_one_width_and_hold_everything(values: list[float]):
    series = pl.Series(values)

    edges = choose_edges(series)

    assert len(edges) <= 32
    widths = [high - low for low, high in pairwise(edges)]
    assert max(widths) == pytest.approx(min(widths), rel=1e-3)
    assert edges[0] <= min(values)


def test_a_histogram_counts_every_row_in_its_bin(tmp_path: Path):
    path = open_folder(tmp_path / "run", 40)
    write_set(path, [example(n, "w " * (n + 1), "a") for n in range(40)])

    chart = build_charts(("run", gather(path)))["length-instruction"]

    counted = dict(zip(chart.labels, chart.series[0].values, strict=True))
    assert sum(counted.values()) == 40
    low, high = chart.edges[3], chart.edges[4]
    assert chart.series[0].values[3] == sum(low <= n + 1 < high for n in range(40))


def test_two_runs_are_charted_in_shares_over_the_same_bins(tmp_path: Path):
    paths = [open_folder(tmp_path / name, 50) for name in ("a", "b")]
    for scale, path in enumerate(paths, 1):
        write_set(path, [example(n, "w " * (scale * n + 1), "a") for n in range(50)])

    charts = build_charts(("a", gather(paths[0])), ("b", gather(paths[1])))

    for series in charts["length-instruction"].series:
        assert sum(series.values) == pytest.approx(100)
    assert [sum(series.values) for series in charts["categories"].series] == pytest.approx([100, 100])
