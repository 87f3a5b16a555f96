import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_dspy.delivery.exporting import FORMATS, export
from matrix_dspy.delivery.reading import read_dataset
from matrix_dspy.errors import ConfigError
from tests.delivery.runs import write_run

CONVERSATION = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because."},
    ]
}
PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "Dunno."}

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
conversations = st.lists(
    st.builds(
        lambda system, exchanges: [
            *([("system", system)] if system else []),
            *(turn for asked, said in exchanges for turn in (("user", asked), ("assistant", said))),
        ],
        st.none() | text,
        st.lists(st.tuples(text, text), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=5,
)
pairs = st.lists(st.tuples(text, text, text), min_size=1, max_size=5)


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def write_conversations(path: Path, made: list[list[tuple[str, str]]]) -> Path:
    return write_lines(path, [{"messages": [{"role": role, "content": said} for role, said in each]} for each in made])


def read_turns(path: Path) -> list[tuple[Any, Any, Any]]:
    return [(row.messages, row.chosen, row.rejected) for row in read_dataset(path).read_rows()]


def read_json(path: Path) -> list[Any]:
    if path.suffix == ".json":
        return json.loads(path.read_text("utf-8"))
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


@pytest.mark.parametrize("format", ["trl", "sharegpt", "alpaca", "openai"])
@settings(max_examples=12)
@given(made=conversations)
def test_conversations_come_back_as_they_went(
    format: str, made: list[list[tuple[str, str]]], tmp_path_factory: pytest.TempPathFactory
):
    source = write_conversations(tmp_path_factory.mktemp("trip") / "data.jsonl", made)

    done = export(source, format)

    assert (done.n_rows, done.n_left_out) == (len(made), 0)
    assert read_turns(done.paths[0]) == read_turns(source)


@pytest.mark.parametrize("format", ["trl", "sharegpt", "alpaca", "openai"])
@settings(max_examples=12)
@given(made=pairs)
def test_pairs_come_back_as_they_went(
    format: str, made: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
):
    rows = [
        {
            "prompt": [{"role": "user", "content": asked}],
            "chosen": [{"role": "assistant", "content": better}],
            "rejected": [{"role": "assistant", "content": worse}],
        }
        for asked, better, worse in made
    ]
    source = write_lines(tmp_path_factory.mktemp("trip") / "data.jsonl", rows)

    done = export(source, format)

    assert done.n_rows == len(made)
    assert read_turns(done.paths[0]) == read_turns(source)


@settings(max_examples=12)
@given(made=st.lists(st.tuples(text, text), min_size=1, max_size=5))
def test_benchmarks_get_every_question_with_its_answer(
    made: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
):
    rows = [{"id": str(number), "prompt": asked, "response": said} for number, (asked, said) in enumerate(made)]
    source = write_lines(tmp_path_factory.mktemp("trip") / "data.jsonl", rows)

    outputs = read_json(export(source, "alpaca_eval", model="mine").paths[0])
    questions, answers = map(read_json, export(source, "arena_hard", model="mine").paths)

    assert [(row["instruction"], row["output"]) for row in outputs] == made
    found = {row["question_id"]: row["choices"][0]["turns"][0]["content"] for row in answers}
    assert [(row["turns"][0]["content"], found[row["question_id"]]) for row in questions] == made


def test_each_layout_has_its_published_names(tmp_path: Path):
    source = write_lines(tmp_path / "data.jsonl", [CONVERSATION])
    pair = write_lines(tmp_path / "pair.jsonl", [PAIR])
    row_id = next(read_dataset(source).read_rows()).id
    pair_id = next(read_dataset(pair).read_rows()).id

    def first(path: Path, format: str) -> Any:
        return read_json(export(path, format).paths[0])[0]

    assert first(source, "trl") == {"id": row_id, **CONVERSATION}
    assert first(source, "openai") == CONVERSATION
    assert first(source, "sharegpt") == {
        "id": row_id,
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Ho"},
            {"from": "human", "value": "Why?"},
            {"from": "gpt", "value": "Because."},
        ],
    }
    assert first(source, "alpaca") == {
        "instruction": "Why?",
        "input": "",
        "output": "Because.",
        "system": "Be brief.",
        "history": [["Hi", "Ho"]],
    }
    assert first(pair, "alpaca") == {"instruction": "Why?", "input": "", "chosen": "Because.", "rejected": "Dunno."}
    assert first(pair, "openai") == {
        "input": {"messages": [{"role": "user", "content": "Why?"}]},
        "preferred_output": [{"role": "assistant", "content": "Because."}],
        "non_preferred_output": [{"role": "assistant", "content": "Dunno."}],
    }
    assert first(pair, "sharegpt") == {
        "id": pair_id,
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": {"from": "gpt", "value": "Because."},
        "rejected": {"from": "gpt", "value": "Dunno."},
    }


def test_the_benchmarks_layouts_have_their_published_names(tmp_path: Path):
    row = {"uid": "q1", "prompt": "Why?", "response": "Because.", "model": "org/mine:1", "cluster": "Sky"}
    source = write_lines(tmp_path / "data.jsonl", [row])

    (output,) = read_json(export(source, "alpaca_eval").paths[0])
    done = export(source, "arena_hard")
    ((question,), (answer,)) = map(read_json, done.paths)

    assert output == {"instruction": "Why?", "output": "Because.", "generator": "org/mine:1", "dataset": "data"}
    assert done.paths[1].relative_to(done.paths[0].parent).as_posix() == "model_answer/org_mine_1.jsonl"
    assert answer.keys() == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert answer["choices"] == [{"index": 0, "turns": [{"content": "Because.", "token_len": 2}]}]
    assert (question["question_id"], answer["question_id"], answer["model_id"]) == ("q1", "q1", "org/mine:1")
    assert question["turns"] == [{"content": "Why?"}]


def test_questions_have_every_column_of_the_real_ones(shared_data: Path, tmp_path: Path):
    real = read_json(shared_data / "benchmarks" / "arena_hard_v0.1_question.jsonl")[:50]
    source = write_lines(tmp_path / "data.jsonl", [{**row, "response": "Well."} for row in real])

    questions = read_json(export(source, "arena_hard", model="mine").paths[0])

    assert [{name: row[name] for name in real[0]} for row in questions] == real


def test_a_row_that_a_layout_cannot_hold_is_left_out_and_counted(tmp_path: Path):
    ends_with_user = {"messages": [*CONVERSATION["messages"], {"role": "user", "content": "And?"}]}
    twice = {"messages": [CONVERSATION["messages"][1], *CONVERSATION["messages"][1:]]}
    source = write_lines(tmp_path / "data.jsonl", [CONVERSATION, ends_with_user, twice, {"messages": []}])

    alpaca, outputs, trl = (export(source, format) for format in ("alpaca", "alpaca_eval", "trl"))

    assert (alpaca.n_rows, dict(alpaca.left_out)) == (
        1,
        {"ends with the user": 1, "turns do not alternate": 1, "unreadable: no question": 1},
    )
    assert dict(outputs.left_out) == {"a system turn": 2, "several turns": 1, "unreadable: no question": 1}
    assert read_json(outputs.paths[0]) == []
    assert (trl.n_rows, trl.n_left_out) == (3, 1)


def test_arena_hard_takes_one_model_at_a_time(tmp_path: Path):
    rows = [{"prompt": f"Why {name}?", "response": "So.", "model": name} for name in "aab"]

    done = export(write_lines(tmp_path / "data.jsonl", rows), "arena_hard", model="b")

    assert (done.n_rows, dict(done.left_out)) == (1, {"another model's answer": 2})


def test_a_run_is_exported_into_its_own_folder(tmp_path: Path):
    run = write_run(tmp_path / "run", [("Why?", "Because.")], kind="dpo")

    done = export(run, "openai")

    assert done.paths == (run / "export" / "openai.jsonl",)
    assert read_json(done.paths[0])[0]["preferred_output"] == [{"role": "assistant", "content": "Because."}]


@pytest.mark.parametrize("format", ["alpaca_eval", "arena_hard"])
def test_pairs_are_no_answers_to_a_benchmark(format: str, tmp_path: Path):
    source = write_lines(tmp_path / "data.jsonl", [PAIR])

    with pytest.raises(ConfigError, match="preference pairs; pairs go out as alpaca, openai, sharegpt, trl"):
        export(source, format)


def test_bad_asks_are_refused_and_nothing_is_written(tmp_path: Path):
    source = write_lines(tmp_path / "data.jsonl", [CONVERSATION])
    before = source.read_bytes()

    with pytest.raises(ConfigError, match="no format 'sharegtp'; did you mean 'sharegpt'"):
        export(source, "sharegtp")
    with pytest.raises(ConfigError, match="is what is read"):
        export(source, "trl", source)
    with pytest.raises(ConfigError, match=r"'openai' is a \.jsonl file"):
        export(source, "openai", tmp_path / "out.csv")
    with pytest.raises(ConfigError, match="would lie in a file"):
        export(source, "trl", source / "out.jsonl")
    assert source.read_bytes() == before
    assert list(tmp_path.iterdir()) == [source]


def test_a_source_that_breaks_off_leaves_no_file(tmp_path: Path):
    source = tmp_path / "data.json"
    source.write_text(json.dumps([CONVERSATION] * 2_000)[:-20])

    with pytest.raises(ValueError, match="not readable as a JSON list"):
        export(source, "trl")
    assert list(tmp_path.iterdir()) == [source]


LOAD = """
import json, sys
from datasets import load_dataset
cache, *files = sys.argv[1:]
for file in files:
    rows = load_dataset("json", data_files=file, cache_dir=cache, split="train")
    print(json.dumps([len(rows), rows.column_names, rows[len(rows) - 1]]))
"""


def test_every_export_loads_with_datasets(tmp_path: Path):
    # the first rows have neither system nor history; the last has both
    simple = [
        {"messages": [{"role": "user", "content": f"Why {i}?"}, CONVERSATION["messages"][-1]]} for i in range(300)
    ]
    source = write_lines(tmp_path / "data.jsonl", [*simple, CONVERSATION])
    pair = write_lines(tmp_path / "pair.jsonl", [PAIR] * 3)
    jobs = [(path, name) for path in (source, pair) for name in FORMATS]
    done = [
        (path, name, export(path, name)) for path, name in jobs if path == source or "pair" in FORMATS[name].renders
    ]
    files = [(path, name, file) for path, name, each in done for file in each.paths]

    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", LOAD, str(tmp_path / "cache"), *(str(file) for *_, file in files)]
    loaded = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    assert loaded.returncode == 0, loaded.stderr
    assert len(files) == 11
    for (path, name, file), line in zip(files, loaded.stdout.splitlines(), strict=True):
        n_rows, columns, last = json.loads(line)
        wanted = 3 if path == pair else 300 if name in ("alpaca_eval", "arena_hard") else 301
        assert (name, n_rows) == (name, wanted)
        own = read_json(file)[-1]
        assert {column: last[column] for column in own} == own
        assert {column for column in columns if last[column] is not None} == own.keys()


def test_turns_of_weight_0_are_kept_so_where_a_layout_can_say_it_and_left_out_elsewhere(tmp_path: Path):
    turns = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Who knows.", "weight": 0},
        {"role": "user", "content": "Think."},
        {"role": "assistant", "content": "Because."},
    ]
    source = write_lines(tmp_path / "data.jsonl", [{"messages": turns}, CONVERSATION])

    assert read_json(export(source, "openai").paths[0])[0] == {"messages": turns}
    for format in ("trl", "sharegpt", "alpaca"):
        assert dict(export(source, format).left_out) == {"has turns of weight 0": 1}


def test_tools_go_along_where_a_layout_has_a_place_for_them(tmp_path: Path):
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    source = write_lines(tmp_path / "data.jsonl", [CONVERSATION | {"tools": tools}, CONVERSATION])

    for format in ("openai", "trl"):
        first, second = read_json(export(source, format).paths[0])
        assert first["tools"] == tools
        assert "tools" not in second
