import itertools
import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_dspy.bulk.tables import read_table
from matrix_dspy.delivery.merging import Merged, merge
from matrix_dspy.delivery.reading import read_dataset
from matrix_dspy.errors import ConfigError, RunError, TableError
from tests.delivery.runs import Said, write_run

COOKING = "How long should I roast a chicken of two kilos so that the skin is crisp and the meat still moist?"
COOKING_NEAR = "How long should I roast a chicken of two kilos so that the skin is crisp and the meat is still moist?"
GARDEN = "My tomato plants drop their flowers in July; what can I do about it?"
TAX = "Explain to a bakery's new owner which receipts must be kept for ten years."


def read_rejected(merged: Merged) -> pl.DataFrame:
    return read_table(merged.path / "tables" / "rejected.parquet", merged.merge_id)


def read_rows(merged: Merged) -> pl.DataFrame:
    return read_table(merged.path / "dataset" / f"{merged.kind}.parquet", merged.merge_id)


def read_files(merged: Merged) -> dict[str, bytes]:
    files = (path for path in sorted(merged.path.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path.relative_to(merged.path).as_posix(): path.read_bytes() for path in files}


def test_a_merge_keeps_what_differs_and_drops_copies_with_twin_and_score(tmp_path: Path):
    one = write_run(tmp_path / "one", [(COOKING, "An hour."), (GARDEN, "Water.")], seed=1, ranks=[0, 1])
    two = write_run(tmp_path / "two", [(COOKING_NEAR, "Ninety minutes."), (TAX, "All.")], seed=2, ranks=[5, 6])

    merged = merge([one, two], tmp_path / "out")

    rejected = read_rejected(merged).row(0, named=True)
    rows = read_rows(merged)
    twin = rows.filter(pl.col("example_id") == rejected["twin"])["messages"][0][0]["content"]
    assert merged.n_dropped == {"near duplicate": 1}
    assert {turns[0]["content"] for turns in rows["messages"]} == {COOKING, GARDEN, TAX}
    assert (rejected["noun"], rejected["stage"], rejected["raw_text"]) == ("example", "merge", COOKING_NEAR)
    assert twin == COOKING
    assert 0.5 <= rejected["score"] < 1


def test_the_row_of_lower_rank_in_its_own_run_stays(tmp_path: Path):
    one = write_run(tmp_path / "one", [(COOKING, "An hour.")], seed=1, ranks=[7])
    two = write_run(tmp_path / "two", [(COOKING, "Ninety minutes.")], seed=2, ranks=[3])

    merged = merge([one, two], tmp_path / "out")

    assert [turns[1]["content"] for turns in read_rows(merged)["messages"]] == ["Ninety minutes."]


def test_the_same_run_twice_adds_nothing_and_says_so(tmp_path: Path):
    run = write_run(tmp_path / "one", [(COOKING, "An hour."), (GARDEN, "Water."), (TAX, "All.")])

    merged = merge([run, run], tmp_path / "out")

    rejected = read_rejected(merged)
    assert (merged.n_read, merged.n_rows, merged.n_dropped) == (6, 3, {"exact duplicate": 3})
    assert rejected["score"].to_list() == [1.0] * 3
    assert sorted(rejected["twin"]) == sorted(read_rows(merged)["example_id"])
    assert [parent.n_kept for parent in merged.parents] == [3, 0]


def test_rows_of_one_id_and_other_texts_both_stay_under_ids_of_their_own(tmp_path: Path):
    # the same people and seed, asked of two models
    one = write_run(tmp_path / "one", [(COOKING, "An hour."), (GARDEN, "Water.")], model="a")
    two = write_run(tmp_path / "two", [(TAX, "All."), (GARDEN, "Water.")], model="b")

    merged = merge([one, two], tmp_path / "out")

    rows = read_rows(merged)
    assert {turns[0]["content"] for turns in rows["messages"]} == {COOKING, GARDEN, TAX}
    assert rows["example_id"].n_unique() == 3
    assert set(rows["run_id"]) == {parent.run_id for parent in merged.parents}


@settings(max_examples=8)
@given(
    sets=st.lists(
        st.lists(
            st.tuples(st.sampled_from([COOKING, COOKING_NEAR, GARDEN, TAX, TAX.upper()]), st.sampled_from("xyz")),
            min_size=1,
            max_size=5,
        ),
        min_size=2,
        max_size=3,
    )
)
def test_the_order_of_the_runs_changes_nothing(sets: list[list[Said]], tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("orders")
    # runs 0 and 1 share a seed, so that their ids clash
    runs = [write_run(folder / str(i), said, seed=i // 2, model=f"m{i}") for i, said in enumerate(sets)]

    made = [merge(list(order), folder / f"out{number}") for number, order in enumerate(itertools.permutations(runs))]

    first = read_files(made[0])
    assert all(read_files(other) == first for other in made[1:])
    assert made[0].n_rows + sum(made[0].n_dropped.values()) == sum(map(len, sets))
    assert read_rows(made[0])["example_id"].is_unique().all()


def test_a_merged_set_merges_again_and_names_its_grandparents(tmp_path: Path):
    runs = [
        write_run(tmp_path / name, [said], seed=seed, licence=f"L{seed}")
        for seed, (name, said) in enumerate({"a": (COOKING, "x"), "b": (GARDEN, "y"), "c": (TAX, "z")}.items())
    ]
    first = merge(runs[:2], tmp_path / "first")

    second = merge([first.path, runs[2], runs[0]], tmp_path / "second")

    figures = json.loads((second.path / "figures.json").read_text())
    assert second.n_rows == 3
    assert second.n_dropped == {"exact duplicate": 1}
    assert figures["command"] == "merge"
    assert {parent["run_id"] for parent in figures["grandparents"]} == {parent.run_id for parent in first.parents}
    assert "L0, L1" in (second.path / "README.md").read_text()


def test_pairs_are_compared_by_their_prompts(tmp_path: Path):
    one = write_run(tmp_path / "one", [(COOKING, "An hour."), (TAX, "All.")], seed=1, kind="dpo")
    two = write_run(tmp_path / "two", [(COOKING, "Two hours.")], seed=2, kind="dpo")

    merged = merge([one, two], tmp_path / "out")

    assert merged.n_rows == 2
    assert set(read_rows(merged).columns) >= {"prompt", "chosen", "rejected", "run_id"}
    assert read_dataset(merged.path).shape == "pair"


def test_the_card_names_parents_and_warns_of_the_rehearsal(tmp_path: Path):
    one = write_run(tmp_path / "one", [(COOKING, "x")], seed=3, model="rehearsal")
    two = write_run(tmp_path / "two", [(TAX, "y")], seed=4, model="big_model|<b>")

    merged = merge([one, two], tmp_path / "out")

    card = (merged.path / "README.md").read_text()
    assert "not fit for training" in card
    assert r"big\_model\|\<b\>" in card
    assert all(f"`{parent.run_id}`" in card for parent in merged.parents)
    assert "data_files: dataset/sft.parquet" in card


def test_runs_of_different_kinds_are_refused_in_one_sentence(tmp_path: Path):
    one = write_run(tmp_path / "one", [(COOKING, "x")], kind="sft")
    two = write_run(tmp_path / "two", [(TAX, "y")], kind="dpo")

    with pytest.raises(ConfigError, match=r"'dpo' \(pairs\) and 'sft' \(conversations\); merge runs of one kind"):
        merge([one, two], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_merged_is_refused_before_anything_is_written(tmp_path: Path):
    run = write_run(tmp_path / "one", [(COOKING, "x")])
    empty = write_run(tmp_path / "empty", [])
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")

    with pytest.raises(ConfigError, match="two runs or more"):
        merge([run], tmp_path / "out")
    with pytest.raises(RunError, match="no run in"):
        merge([run, tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(TableError, match="no rows"):
        merge([run, empty], tmp_path / "out")
    with pytest.raises(RunError, match="holds something else"):
        merge([run, run], full)
    with pytest.raises(RunError, match="holds something else"):
        merge([run, run], run)
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    assert not (tmp_path / "out").exists()


def test_the_same_merge_again_is_the_same(tmp_path: Path):
    one = write_run(tmp_path / "one", [(COOKING, "x")], seed=1)
    two = write_run(tmp_path / "two", [(TAX, "y")], seed=2)
    before = read_files(merge([one, two], tmp_path / "out"))

    assert read_files(merge([two, one], tmp_path / "out")) == before
