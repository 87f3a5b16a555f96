import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from matrix_dspy.errors import TableError
from matrix_dspy.evaluation.answers import read_answers
from matrix_dspy.evaluation.questions import list_texts, read_id, read_questions


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_questions_of_every_benchmark_with_text_are_read(shared_data: Path):
    sizes = {
        "arena_hard_v0.1_question.jsonl": (500, "prompt"),
        "gsm8k_test.jsonl": (1319, "question"),
        "HumanEval.jsonl.gz": (164, "prompt"),
        "ifeval_en_input_data.jsonl": (541, "prompt"),
        "mbpp.jsonl": (974, "text"),
        "mt_bench_question.jsonl": (80, "turns"),
        "vicuna_bench_question.jsonl": (80, "turns"),
    }
    folder = shared_data / "benchmarks"

    read = {path.name: read_questions(path) for path in folder.iterdir() if "sha256" not in path.name}

    assert {name: len(found) for name, found in read.items()} == {name: size for name, (size, _) in sizes.items()}
    for name, found in read.items():
        column = sizes[name][1]
        assert len({question.question_id for question in found}) == len(found) == found.n_in_file
        for question in found:
            given = question.row[column]
            assert list(question.turns) == (given if isinstance(given, list) else [given])
    assert {len(question.turns) for question in read["mt_bench_question.jsonl"]} == {2}
    assert len({question.category for question in read["mt_bench_question.jsonl"]}) == 8
    assert read["HumanEval.jsonl.gz"][7].question_id == "HumanEval/7"
    assert all("####" in question.references[0] for question in read["gsm8k_test.jsonl"])


def test_a_file_of_hashes_has_no_questions(shared_data: Path):
    for path in (shared_data / "benchmarks").glob("*sha256.txt"):
        with pytest.raises(TableError):
            read_questions(path)


def test_every_kind_of_file_gives_the_same_questions(tmp_path: Path):
    rows = [
        {"id": f"n{i}", "prompt": f"Say {i}, please.\nNow.", "category": "odd" if i % 2 else "even"} for i in range(3)
    ]
    frame = pl.DataFrame(rows)
    frame.write_parquet(tmp_path / "q.parquet")
    frame.write_csv(tmp_path / "q.csv")
    frame.write_csv(tmp_path / "q.tsv", separator="\t")
    write(tmp_path / "q.jsonl", *rows)
    (tmp_path / "q.json").write_text(json.dumps(rows))
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress((tmp_path / "q.jsonl").read_bytes()))

    read = [read_questions(path) for path in sorted(tmp_path.iterdir())]

    assert len(read) == 6
    assert all(each.items == read[0].items for each in read)
    assert [(each.question_id, each.turns, each.category) for each in read[0]][1] == (
        "n1",
        ("Say 1, please.\nNow.",),
        "odd",
    )


def test_a_limit_takes_the_first_and_says_how_many_there_are(tmp_path: Path):
    found = read_questions(write(tmp_path / "q.jsonl", *({"prompt": f"Q {i}"} for i in range(5))), limit=2)

    assert [question.text for question in found] == ["Q 0", "Q 1"]
    assert found.n_in_file == 5


def test_alpacas_two_columns_are_one_question(tmp_path: Path):
    rows = [{"instruction": "Sum it up.", "input": f"Text {i}", "output": f"Sum {i}"} for i in range(3)]

    found = read_questions(write(tmp_path / "q.jsonl", *rows, {"instruction": "Why?", "input": ""}))
    answers = read_answers(write(tmp_path / "a.jsonl", *reversed(rows)), found, "given")

    assert [question.text for question in found] == [
        "Sum it up.\nText 0",
        "Sum it up.\nText 1",
        "Sum it up.\nText 2",
        "Why?",
    ]
    texts = [answers.by_id[question.question_id][0].text for question in found[:3]]
    assert texts == ["Sum 0", "Sum 1", "Sum 2"]


def test_a_question_without_an_id_is_called_by_what_it_asks(tmp_path: Path):
    rows = [{"prompt": "Where is the key?"}, {"prompt": "When?"}, {"prompt": "Where is the key?"}]

    one = read_questions(write(tmp_path / "one.jsonl", *rows))
    other = read_questions(write(tmp_path / "other.jsonl", {"prompt": "Why?"}, *rows))

    ids = [question.question_id for question in one]
    assert len(set(ids)) == 3
    assert ids[2] == f"{ids[0]}-2"
    assert [question.question_id for question in other][1:] == ids


def test_a_column_can_be_named(tmp_path: Path):
    path = write(tmp_path / "q.jsonl", {"prompt": "not this", "ask": "but this"})

    assert read_questions(path, column="ask")[0].text == "but this"
    with pytest.raises(TableError, match="'other'; name the column with --column"):
        read_questions(path, column="other")


def test_only_what_the_user_says_is_asked(tmp_path: Path):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "an answer"},
        {"role": "user", "content": "second"},
    ]

    assert read_questions(write(tmp_path / "q.jsonl", {"messages": messages}))[0].turns == ("first", "second")


def test_empty_turns_are_left_out_and_a_question_without_text_is_named(tmp_path: Path):
    assert read_questions(write(tmp_path / "q.jsonl", {"turns": ["one", " ", ""]}))[0].turns == ("one",)
    with pytest.raises(TableError, match=r"question 2 of .* has no text in 'turns'"):
        read_questions(write(tmp_path / "q.jsonl", {"turns": ["one"]}, {"turns": ["  ", None]}))


def test_two_questions_of_one_id_are_refused(tmp_path: Path):
    with pytest.raises(TableError, match="two questions with the id '7'; give each its own"):
        read_questions(write(tmp_path / "q.jsonl", {"id": 7, "prompt": "a"}, {"id": "7", "prompt": "b"}))


def test_files_without_questions_are_refused(tmp_path: Path):
    with pytest.raises(TableError, match="no file of questions"):
        read_questions(tmp_path / "missing.jsonl")
    with pytest.raises(TableError, match="has no questions"):
        read_questions(write(tmp_path / "empty.jsonl"))
    with pytest.raises(TableError, match="has no questions"):
        read_questions(write(tmp_path / "other.jsonl", {"colour": "red"}))
    (tmp_path / "torn.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b')
    with pytest.raises(TableError, match=r"line 2 of .* is not JSON"):
        read_questions(tmp_path / "torn.jsonl")


def test_an_id_of_zero_is_one():
    assert read_id({"question_id": 0, "id": "x"}) == "0"
    assert read_id({"question_id": None, "key": "", "id": "x"}) == "x"
    assert read_id({"prompt": "x"}) == ""


def test_a_row_is_known_by_any_text_that_asks():
    assert list_texts({"prompt": " a ", "question": "b", "answer": "c", "turns": ["d"]}) == ["a", "b"]
