import csv
import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_dspy.delivery.reading import DataRow, Dataset, read_dataset
from matrix_dspy.errors import TableError
from tests.delivery.runs import write_run

ASKED = {"role": "user", "content": "Why?"}
SAID = {"role": "assistant", "content": "Because."}
WORSE = {"role": "assistant", "content": "Dunno."}
TOLD = {"role": "system", "content": "Be brief."}


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def read_all(dataset: Dataset) -> list[DataRow]:
    return list(dataset.read_rows())


def show(turns: Any) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in turns]


@pytest.mark.parametrize(
    ("row", "asked", "answered"),
    [
        ({"messages": [ASKED, SAID]}, [("user", "Why?")], "Because."),
        ({"messages": [TOLD, ASKED, SAID]}, [("system", "Be brief."), ("user", "Why?")], "Because."),
        ({"prompt": "Why?", "completion": "Because."}, [("user", "Why?")], "Because."),
        ({"prompt": [ASKED], "completion": [SAID]}, [("user", "Why?")], "Because."),
        ({"question": "Why?", "answer": "Because."}, [("user", "Why?")], "Because."),
        ({"Prompt": "Why?", "Response": "Because.", "passed": True}, [("user", "Why?")], "Because."),
        (
            {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
            [("user", "Why?")],
            "Because.",
        ),
        ({"instruction": "Why", "input": "sky?", "output": "Because."}, [("user", "Why\nsky?")], "Because."),
        (
            {
                "instruction": "Why?",
                "input": "",
                "output": "Because.",
                "system": "Be brief.",
                "history": [["Hi", "Ho"]],
            },
            [("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho"), ("user", "Why?")],
            "Because.",
        ),
        (
            {"messages": [{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}, ASKED, SAID]},
            [("system", "Be brief."), ("user", "Why?")],
            "Because.",
        ),
        (
            {"messages": [ASKED, {**SAID, "reasoning_content": "Hm."}]},
            [("user", "Why?")],
            "<think>\nHm.\n</think>\n\nBecause.",
        ),
    ],
)
def test_conversations_are_read_in_every_layout(row: Any, asked: list[Any], answered: str, tmp_path: Path):
    dataset = read_dataset(write_lines(tmp_path / "data.jsonl", [row]))

    (found,) = read_all(dataset)

    assert dataset.shape == "conversation"
    assert show(found.messages) == [*asked, ("assistant", answered)]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "Dunno."},
        {"prompt": [ASKED], "chosen": [SAID], "rejected": [WORSE]},
        {"prompt": "Why?", "chosen": [ASKED, SAID], "rejected": [ASKED, WORSE], "messages": [ASKED, SAID]},
        {"chosen": [ASKED, SAID], "rejected": [ASKED, WORSE]},
        {
            "conversations": [{"from": "human", "value": "Why?"}],
            "chosen": {"from": "gpt", "value": "Because."},
            "rejected": {"from": "gpt", "value": "Dunno."},
        },
        {"instruction": "Why?", "input": "", "chosen": "Because.", "rejected": "Dunno."},
        {"input": {"messages": [ASKED]}, "preferred_output": [SAID], "non_preferred_output": [WORSE]},
    ],
)
def test_pairs_are_read_in_every_layout(row: Any, tmp_path: Path):
    dataset = read_dataset(write_lines(tmp_path / "data.jsonl", [row]))

    (found,) = read_all(dataset)

    assert dataset.shape == "pair"
    assert show(found.messages) == [("user", "Why?")]
    assert show(found.chosen) == [("assistant", "Because.")]
    assert show(found.rejected) == [("assistant", "Dunno.")]


ROWS = [{"prompt": f'Why {i}, "so"\nand so?', "response": f"Because of ü {i}."} for i in range(5)]


def write_kind(path: Path, rows: list[Any]) -> Path:
    """Write rows in the manner of the path's ending."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(plain)
    elif plain.suffix in (".csv", ".tsv"):
        with plain.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if plain.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif plain.suffix == ".json":
        plain.write_text(json.dumps(rows, indent=1))
    else:
        write_lines(plain, rows)
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.ndjson"]
)
def test_every_kind_of_file_gives_the_same_rows_and_ids(name: str, tmp_path: Path):
    plain = read_all(read_dataset(write_lines(tmp_path / "plain.jsonl", ROWS)))

    assert read_all(read_dataset(write_kind(tmp_path / name, ROWS))) == plain
    assert [row.messages[0].content for row in plain] == [row["prompt"] for row in ROWS]


def test_a_json_file_may_be_wrapped_or_in_truth_hold_lines(tmp_path: Path):
    wrapped, lines = tmp_path / "wrapped.json", tmp_path / "lines.json"
    wrapped.write_text(json.dumps({"data": ROWS}))
    write_lines(lines, ROWS)

    assert read_all(read_dataset(wrapped)) == read_all(read_dataset(lines))


def test_a_long_json_list_is_read_piece_by_piece(tmp_path: Path):
    # entries end before, at and beyond the ends of the pieces
    rows = [{"prompt": "x]}," * (i * 997 % 60_000 + 1), "response": f"[{{{i}"} for i in range(120)]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows))

    found = read_all(read_dataset(path))

    assert [row.instruction for row in found] == [row["prompt"] for row in rows]
    assert [row.response for row in found] == [row["response"] for row in rows]


def test_a_list_that_breaks_off_is_said_with_its_last_row(tmp_path: Path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(ROWS)[:-30])

    with pytest.raises(TableError, match="not readable as a JSON list after row 4; mend it"):
        read_dataset(path)


@settings(max_examples=20)
@given(order=st.permutations(range(6)))
def test_an_id_is_a_property_of_the_row_and_not_of_its_place(
    order: list[int], tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("order")
    rows = [{"prompt": f"Why {i}?", "response": "Because.", "other": i} for i in range(6)]
    plain = [row.id for row in read_dataset(write_lines(folder / "plain.jsonl", rows)).read_rows()]

    ids = [row.id for row in read_dataset(write_lines(folder / "b.jsonl", [rows[i] for i in order])).read_rows()]

    assert ids == [plain[i] for i in order]
    assert len(set(ids)) == 6
    assert plain[0] == "row-ad1e077c7ac8e6b5"  # and the same in any process


def test_own_ids_and_models_are_taken_and_other_columns_kept(tmp_path: Path):
    row = {"uid": 7, "prompt": "Why?", "response": "Because.", "model": "some", "score": 3}

    (found,) = read_all(read_dataset(write_lines(tmp_path / "data.jsonl", [row])))

    assert (found.id, found.model, dict(found.others)) == ("7", "some", {"score": 3})


def test_rows_of_one_id_can_be_told_apart(tmp_path: Path):
    path = write_lines(tmp_path / "data.jsonl", [ROWS[0], ROWS[1], ROWS[0], ROWS[0]])

    ids = [row.id for row in read_dataset(path).read_rows(unique_ids=True)]

    assert ids == [ids[0], ids[1], f"{ids[0]}-2", f"{ids[0]}-3"]


def test_bad_rows_are_data_with_their_number_and_reason(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    lines = [
        json.dumps({"messages": [ASKED, SAID]}),
        "{not json",
        "[1, 2]",
        "",
        json.dumps({"messages": [ASKED, {"role": "assistant", "content": "  "}]}),
        json.dumps({"messages": [ASKED]}),
        json.dumps({"messages": [SAID]}),
        json.dumps({"messages": [ASKED, {"role": "tool", "content": "x"}]}),
        json.dumps({"messages": "hello"}),
        json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, SAID]}),
        json.dumps({"messages": [ASKED, {"role": "assistant", "content": "ü \ud800"}]}),
    ]
    path.write_text("\n".join(lines))

    batches = list(read_dataset(path).read_batches(3))

    faults = [(fault.number, fault.reason) for batch in batches for fault in batch.faults]
    rows = [row for batch in batches for row in batch.rows]
    assert faults == [
        (2, "not JSON"),
        (3, "not an object"),
        (5, "empty"),
        (6, "no answer"),
        (7, "no question"),
        (8, "other role"),
        (9, "no turns"),
        (10, "not text"),
    ]
    assert [row.response for row in rows] == ["Because.", "ü \ufffd"]
    assert [len(batch.rows) + len(batch.faults) for batch in batches] == [3, 3, 3, 1]


def test_answers_labelled_bad_are_left_out(tmp_path: Path):
    rows = [{"prompt": "Why?", "completion": text, "label": text == "good"} for text in ("good", "bad")]

    (batch,) = read_dataset(write_lines(tmp_path / "data.jsonl", rows)).read_batches()

    assert [row.response for row in batch.rows] == ["good"]
    assert [fault.reason for fault in batch.faults] == ["labelled bad"]


def test_a_csv_cell_may_hold_turns(tmp_path: Path):
    row = {"id": "a", "messages": json.dumps([ASKED, SAID])}

    (found,) = read_all(read_dataset(write_kind(tmp_path / "data.csv", [row])))

    assert show(found.messages) == [("user", "Why?"), ("assistant", "Because.")]


def test_columns_can_be_named(tmp_path: Path):
    path = write_lines(tmp_path / "data.jsonl", [{"text": "Why?", "code": "x = 1", "task": 3}])

    with pytest.raises(TableError, match=r"it has columns 'text', 'code', 'task'; say which is which"):
        read_dataset(path)
    (found,) = read_all(read_dataset(path, {"prompt": "text", "response": "code", "id": "task"}))
    assert (found.id, found.instruction, found.response) == ("3", "Why?", "x = 1")
    with pytest.raises(TableError, match=r"no column 'txet' .*it has 'text'"):
        read_dataset(path, {"prompt": "txet"})
    with pytest.raises(TableError, match="cannot map a column to 'promt'; did you mean 'prompt'"):
        read_dataset(path, {"promt": "text"})


def test_what_holds_nothing_is_one_sentence(tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "a.xlsx").write_text("x")
    (tmp_path / "none").mkdir()
    useless = write_lines(tmp_path / "useless.jsonl", [{"messages": []}, {"messages": []}])

    for path, said in (
        (tmp_path / "empty.jsonl", "holds no rows"),
        (tmp_path / "a.xlsx", "cannot tell the type"),
        (tmp_path / "none", "does not hold"),
        (tmp_path / "nowhere", "no file or folder"),
    ):
        with pytest.raises(TableError, match=said):
            read_dataset(path)
    with pytest.raises(TableError, match=r"none of the 2 rows .* no question .*; it has columns 'messages'"):
        list(read_dataset(useless).read_rows())


def test_a_run_folder_is_read_once_and_by_its_own_ids(tmp_path: Path):
    run = write_run(tmp_path / "run", [("Why?", "Because."), ("Who?", "Me.")])

    rows = read_all(read_dataset(run))

    assert sorted(row.id for row in rows) == sorted(pl.read_parquet(run / "dataset" / "sft.parquet")["example_id"])
    assert {row.model for row in rows} == {"some-model"}


def test_real_replies_are_read_whole(shared_data: Path):
    dataset = read_dataset(shared_data / "outputs")

    rows = list(dataset.read_rows(unique_ids=True))

    assert len(rows) == len({row.id for row in rows}) == 1082
    assert all(row.instruction and row.response for row in rows)
