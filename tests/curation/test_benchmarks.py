import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.curation.benchmarks import (
    Benchmark,
    Item,
    find_benchmark_files,
    hash_benchmarks,
    hash_text,
    read_benchmarks,
)
from matrix_dspy.errors import ConfigError, TableError

ROWS = [
    {"task_id": "q/1", "prompt": "Name three rivers,\nplease.", "answer": "Rhine, Elbe, Oder"},
    {"task_id": "q/2", "prompt": 'Was heißt "Fluss"?', "answer": "a river"},
]


def write_jsonl(rows: Iterable[Any]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def write_json(rows: Any) -> bytes:
    return json.dumps(rows).encode()


def write_csv(rows: list[dict[str, Any]], separator: str = ",") -> bytes:
    return pl.DataFrame(rows).write_csv(separator=separator).encode()


def write_parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pl.DataFrame(rows).write_parquet(file)
    return file.getvalue()


def read_one(folder: Path, name: str, data: bytes, columns: dict[str, str] | None = None) -> Benchmark:
    (folder / name).write_bytes(data)
    (benchmark,) = read_benchmarks(folder, columns)
    return benchmark


def read_prompts(folder: Path, rows: Iterable[Any]) -> list[tuple[str, ...]]:
    return [item.prompts for item in read_one(folder, "b.jsonl", write_jsonl(rows)).items]


@pytest.mark.parametrize("is_zipped", [False, True])
@pytest.mark.parametrize(
    ("ending", "write"),
    [
        (".jsonl", write_jsonl),
        (".ndjson", write_jsonl),
        (".json", write_json),
        (".json", lambda rows: write_json({"data": rows})),
        (".json", lambda rows: write_json({"version": 1, "rows": [{"row_idx": 0, "row": row} for row in rows]})),
        (".json", lambda rows: write_json({key: [row[key] for row in rows] for key in rows[0]})),
        (".csv", write_csv),
        (".csv", lambda rows: b"\xef\xbb\xbf" + write_csv(rows)),
        (".tsv", lambda rows: write_csv(rows, "\t")),
        (".parquet", write_parquet),
        (".PARQUET", write_parquet),
    ],
)
def test_a_file_of_any_format_gives_the_same_items(
    tmp_path: Path, ending: str, write: Callable[[Any], bytes], is_zipped: bool
):
    data = gzip.compress(write(ROWS)) if is_zipped else write(ROWS)

    benchmark = read_one(tmp_path, f"rivers.v1{ending}{'.gz' if is_zipped else ''}", data)

    assert benchmark.name == "rivers.v1"
    assert (benchmark.prompt_column, benchmark.answer_columns) == ("prompt", ("answer",))
    assert benchmark.items == (
        Item("q/1", ("Name three rivers,\nplease.",), ("Rhine, Elbe, Oder",)),
        Item("q/2", ('Was heißt "Fluss"?',), ("a river",)),
    )


def test_a_mapping_of_rows_gives_its_keys_as_ids(tmp_path: Path):
    data = write_json({"one": {"question": "how long is it"}, "two": {"question": "how deep is it"}})

    items = read_one(tmp_path, "b.json", data).items

    assert items == (Item("one", ("how long is it",)), Item("two", ("how deep is it",)))


@pytest.mark.parametrize(
    ("row", "prompts", "answers", "code"),
    [
        ({"turns": ["first ask", "second ask"]}, ("first ask", "second ask"), (), ()),
        (
            {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]},
            ("hello",),
            ("good day",),
            (),
        ),
        (
            {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "good day"}]},
            ("hello",),
            ("good day",),
            (),
        ),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "look here"}]}]}, ("look here",), (), ()),
        ({"prompt": {"question": "nested ask"}}, ("nested ask",), (), ()),
        ({"turns": '["first ask", "second ask"]'}, ("first ask", "second ask"), (), ()),
        ({"prompt": "[1, 2] is a list; sum it"}, ("[1, 2] is a list; sum it",), (), ()),
        ({"prompt": '{"a": "b"} is what?'}, ('{"a": "b"} is what?',), (), ()),
        ({"prompt": "[1, 2, 3]"}, ("[1, 2, 3]",), (), ()),
        ({"instruction": "translate this", "input": "a text"}, ("translate this", "a text"), (), ()),
        ({"Goal": "do a thing", "Target": "sure"}, ("do a thing",), ("sure",), ()),
        ({"text": "add numbers", "code": "x = 1", "category": "c"}, ("add numbers",), (), ("x = 1",)),
        ({"question": "how many", "text": "about something"}, ("how many",), (), ()),
        ({"sentence_of_mine": "an only column of text", "n": 3}, ("an only column of text",), (), ()),
        ("a bare string as a row", ("a bare string as a row",), (), ()),
    ],
)
def test_prompts_and_answers_are_told_apart(
    tmp_path: Path, row: Any, prompts: tuple[str, ...], answers: tuple[str, ...], code: tuple[str, ...]
):
    (item,) = read_one(tmp_path, "b.jsonl", write_jsonl([row])).items

    assert (item.prompts, item.answers, item.code) == (prompts, answers, code)


def test_an_empty_column_is_not_taken_for_the_prompts(tmp_path: Path):
    assert read_prompts(tmp_path, [{"prompt": "", "question": "which one"}]) == [("which one",)]


@pytest.mark.parametrize(
    "ids",
    [("a", "a"), ("a", None), ("a", ""), ("a", 1.5), ("x" * 101, "b")],
    ids=["twice", "null", "", "float", "long"],
)
def test_an_id_that_does_not_tell_items_apart_gives_way_to_the_number(tmp_path: Path, ids: tuple[Any, Any]):
    rows = [{"id": each, "prompt": f"ask {number}"} for number, each in enumerate(ids)]

    assert [item.id for item in read_one(tmp_path, "b.jsonl", write_jsonl(rows)).items] == ["0", "1"]


def test_the_next_column_of_ids_is_tried(tmp_path: Path):
    rows = [{"question_id": 7, "uid": "u1", "prompt": "ask"}, {"question_id": 7, "uid": "u2", "prompt": "ask"}]

    assert [item.id for item in read_one(tmp_path, "b.jsonl", write_jsonl(rows)).items] == ["u1", "u2"]


def test_control_marks_and_line_ends_do_not_stay_in_ids(tmp_path: Path):
    rows = [{"id": "a\u202eb\n\x1b[2Jc", "prompt": "ask"}]

    assert read_one(tmp_path, "b.jsonl", write_jsonl(rows)).items[0].id == "ab [2Jc"


@pytest.mark.parametrize("key", ["b", "b.csv", "*"])
def test_the_user_can_name_the_column(tmp_path: Path, key: str):
    data = write_csv([{"prompt": "not this one", "extra": "but this one"}])

    benchmark = read_one(tmp_path, "b.csv", data, {key: "extra"})

    assert benchmark.items == (Item("0", ("but this one",)),)
    assert benchmark.prompt_column == "extra"


def test_the_user_can_name_a_nested_column(tmp_path: Path):
    data = write_jsonl([{"doc": {"ask": {"english": "where is it"}}, "n": 1}])

    assert read_one(tmp_path, "b.jsonl", data, {"b": "doc.ask.english"}).items == (Item("0", ("where is it",)),)


def test_one_column_for_all_is_guessed_where_a_file_lacks_it(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(write_jsonl([{"extra": "this", "prompt": "not this"}]))
    (tmp_path / "b.jsonl").write_bytes(write_jsonl([{"prompt": "guessed"}]))

    prompts = [each.items[0].prompts for each in read_benchmarks(tmp_path, {"*": "extra"})]

    assert prompts == [("this",), ("guessed",)]


def test_files_are_found_in_folders_below_and_the_rest_is_listed(tmp_path: Path):
    (tmp_path / "sub" / ".git").mkdir(parents=True)
    for name in ("sub/x.jsonl", "x.jsonl", "y.csv", "y.json", "sub/.git/z.jsonl", ".hidden.jsonl"):
        rows = [{"prompt": f"what is in {name}"}]
        data = {".csv": write_csv, ".json": write_json}.get(Path(name).suffix, write_jsonl)(rows)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "README.md").write_text("about these files")
    (tmp_path / "notes.txt").write_text("no hashes here")

    names = [each.name for each in read_benchmarks(tmp_path)]
    skipped = [path.name for path in find_benchmark_files(tmp_path)[1]]

    assert names == ["sub/x", "x", "y.csv", "y.json"]
    assert skipped == ["README.md", "notes.txt"]


def test_a_single_file_is_read_as_well(tmp_path: Path):
    (tmp_path / "only.jsonl").write_bytes(write_jsonl(ROWS))
    (tmp_path / "other.jsonl").write_bytes(write_jsonl(ROWS))

    benchmarks = read_benchmarks(tmp_path / "only.jsonl")

    assert [(each.name, each.n_items) for each in benchmarks] == [("only", 2)]


def test_hash_lists_hold_sums_and_no_text(tmp_path: Path):
    digests = [hash_text("Hello  World"), hash_text("goodbye")]

    benchmark = read_one(tmp_path, "h.txt", "\n".join(d.hex().upper() for d in digests).encode() + b"\r\n\n")

    assert (benchmark.items, benchmark.hashes, benchmark.n_items) == ((), tuple(digests), 2)


@given(st.text())
def test_hashes_are_made_as_hash_lists_are(text: str):
    plain = re.sub(r"\s+", " ", text.strip().lower())

    assert hash_text(text) == hashlib.sha256(plain.encode()).digest()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("b.jsonl", b'{"prompt": "whole"}\n{"prompt": "cut', "line 2 of "),
        ("b.json", b"[1, 2", "is not JSON"),
        ("b.json", b"[" * 100_000, "is not JSON"),
        ("b.json", b"[]", "holds no rows"),
        ("b.jsonl", b"", "holds no rows"),
        ("b.csv", b"", "holds no rows"),
        ("b.csv", b"prompt,n\n", "holds no rows"),
        ("b.csv", b"prompt,n\na,1\nb,2,3,4\n", "is not CSV"),
        ("b.parquet", b"PAR1 no", "is not Parquet"),
        ("b.jsonl", b"\xff\xfe\x00", "is not UTF-8"),
        ("b.jsonl.gz", b"plain", "no whole gzip file"),
        ("b.jsonl.gz", gzip.compress(b'{"prompt": "cut"}', mtime=0)[:-9], "no whole gzip file"),
        ("b.jsonl", b'{"left": "a text", "right": "a text"}', "it has 'left', 'right': name one of them"),
        ("b.jsonl", b'{"prompt": "", "n": 1}', "it has 'prompt', 'n': name one of them"),
        ("b.jsonl", b'{"prompt": "?!", "n": 1}', "cannot tell which column"),
        ("h.txt", f"{'0' * 64}\nnot a hash\n".encode(), "entry 2 of the hash list"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_what_to_do(tmp_path: Path, name: str, data: bytes, words: str):
    with pytest.raises(TableError) as caught:
        read_one(tmp_path, name, data)

    said = str(caught.value)
    assert words in said and name in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"rivers": "ask"}, "has no column 'ask'; it has 'task_id', 'prompt', 'answer'"),
        ({"river": "prompt"}, "no benchmark 'river' to take the column 'prompt' of; did you mean 'rivers'?"),
        ({"*": "ask"}, "has a column 'ask'; name one that is there"),
        ({"hashes": "prompt"}, "has no columns; name none for it"),
    ],
)
def test_a_wrong_column_is_refused(tmp_path: Path, columns: dict[str, str], words: str):
    (tmp_path / "rivers.jsonl").write_bytes(write_jsonl(ROWS))
    (tmp_path / "hashes.txt").write_text("0" * 64)

    with pytest.raises(ConfigError, match=re.escape(words)):
        read_benchmarks(tmp_path, columns)


def test_a_named_column_without_text_is_refused(tmp_path: Path):
    with pytest.raises(TableError, match=r"the column 'n' of the benchmark .* holds no text"):
        read_one(tmp_path, "b.jsonl", write_jsonl([{"prompt": "ask", "n": 3}]), {"b": "n"})


def test_a_folder_without_benchmarks_is_refused(tmp_path: Path):
    (tmp_path / "README.md").write_text("nothing here")

    with pytest.raises(TableError, match="no benchmark below"):
        read_benchmarks(tmp_path)
    with pytest.raises(TableError, match="no file or folder"):
        read_benchmarks(tmp_path / "missing")


def test_the_sum_of_a_folder_follows_what_is_read_and_nothing_else(tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "b.jsonl").write_bytes(write_jsonl(ROWS))
    (two / "README.md").write_text("no part of it")
    before = hash_benchmarks(one)

    assert hash_benchmarks(two) == before
    assert hash_benchmarks(one, {"b": "answer"}) != before
    (two / "b.jsonl").rename(two / "c.jsonl")
    (one / "b.jsonl").write_bytes(write_jsonl(ROWS[:1]))
    assert len({before, hash_benchmarks(one), hash_benchmarks(two)}) == 3
    assert re.fullmatch("[0-9a-f]{16}", before)
