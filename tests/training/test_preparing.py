import random
from pathlib import Path
from typing import Any

import pytest

from matrix_dspy.errors import ConfigError, TableError
from matrix_dspy.training.encoding import ChatEncoder
from matrix_dspy.training.preparing import Prepared, place_row, prepare, read_rows, read_source
from matrix_dspy.training.settings import Stage
from matrix_dspy.training.tiny import build_tiny_tokenizer
from tests.delivery.runs import write_run
from tests.training.material import build_conversations, build_pairs, fast, read_left_out, turn, write_rows

ENCODER = ChatEncoder(build_tiny_tokenizer(), "tiny")


def prepare_rows(
    folder: Path, rows: list[dict[str, Any]], stage: Stage = "sft", *, limit: int = 256, **changes: Any
) -> Prepared:
    folder.mkdir(exist_ok=True)
    source = write_rows(folder / "rows.jsonl", rows)
    return prepare(fast(**changes), stage, read_source(source, stage), ENCODER, folder, limit)


def list_ids(folder: Path) -> set[str]:
    import polars as pl

    return set(pl.read_parquet(folder / "rows.parquet")["id"])


def test_pairs_are_no_conversations(tmp_path: Path):
    source = write_rows(tmp_path / "pairs.jsonl", build_pairs(3))

    with pytest.raises(ConfigError, match=r"holds preference pairs \(kind 'pairs'\), and train sft takes conversati"):
        read_source(source, "sft")


def test_a_run_is_named_by_its_kind(tmp_path: Path):
    run = write_run(tmp_path / "run", [("One?", "First.")], kind="sft")

    with pytest.raises(ConfigError, match=r"holds conversations \(kind 'sft'\), and train dpo takes preference pairs"):
        read_source(run, "dpo")


def test_a_run_of_pairs_is_read_with_its_models(tmp_path: Path):
    run = write_run(tmp_path / "run", [("One?", "First."), ("Two?", "Second.")], kind="dpo", model="rehearsal")

    (tmp_path / "out").mkdir()
    prepared = prepare(fast(eval_share=0), "dpo", read_source(run, "dpo"), ENCODER, tmp_path / "out", 256)

    assert (prepared.n_train, prepared.source.kind) == (2, "dpo")
    assert set(prepared.source.models) == {"rehearsal", "rehearsal-small"}
    assert prepared.source.is_rehearsed


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "First."}]},
        {"instruction": "One?", "input": "", "output": "First."},
        {"messages": [turn("user", "One?"), turn("assistant", "First.")]},
        {"prompt": "One?", "completion": "First."},
    ],
)
def test_every_layout_gives_the_same_tokens(tmp_path: Path, row: dict[str, Any]):
    prepare_rows(tmp_path, [row], eval_share=0)

    (found,) = read_rows(tmp_path, "sft", -1.0, is_eval=False)
    learnt = [label for label in found["labels"] if label >= 0]
    assert ENCODER.tokenizer.decode(learnt) == "First.<|im_end|>"
    assert ENCODER.tokenizer.decode(found["input_ids"]).count("One?") == 1


def test_rows_that_teach_nothing_are_left_out_by_reason(tmp_path: Path):
    rows = [
        *build_conversations(3),
        {"id": "empty", "messages": [turn("user", "One?"), turn("assistant", "  ")]},
        {"id": "silent", "messages": [turn("user", "One?")]},
        {"id": "long", "messages": [turn("user", "One?"), turn("assistant", "word " * 300)]},
        {"id": "token", "messages": [turn("user", "One?<|im_end|>"), turn("assistant", "First.")]},
    ]

    prepared = prepare_rows(tmp_path, rows, eval_share=0)

    assert prepared.left_out == {"empty": 1, "no answer": 1, "special token": 1, "too long": 1}
    assert (prepared.n_train, prepared.source.n_rows) == (3, 7)
    reasons = read_left_out(tmp_path)
    assert {reasons["rows.jsonl:4"], reasons["rows.jsonl:5"]} == {"empty", "no answer"}
    assert (reasons["long"], reasons["token"]) == ("too long", "special token")


def test_pairs_whose_sides_are_the_same_are_left_out(tmp_path: Path):
    rows = build_pairs(3)
    rows[1]["rejected"] = rows[1]["chosen"]

    prepared = prepare_rows(tmp_path, rows, "dpo", eval_share=0)

    assert prepared.left_out == {"same sides": 1}
    assert read_left_out(tmp_path) == {"pair-1": "same sides"}


def test_a_pair_is_a_prompt_and_two_answers_with_their_ends(tmp_path: Path):
    prepare_rows(tmp_path, build_pairs(1), "dpo", eval_share=0)

    (found,) = read_rows(tmp_path, "dpo", -1.0, is_eval=False)

    decode = ENCODER.tokenizer.decode
    assert decode(found["prompt_ids"]).endswith("<|im_start|>assistant\n")
    assert decode(found["chosen_ids"]) == "Item 0 is blue, it is on the list.<|im_end|>"
    assert decode(found["rejected_ids"]) == "I do not know, ask somebody about 0.<|im_end|>"


def test_rows_that_are_too_long_can_be_cut_and_are_counted(tmp_path: Path):
    rows = build_conversations(2)
    rows[1]["messages"][1]["content"] = "word " * 100

    prepared = prepare_rows(tmp_path, rows, eval_share=0, too_long="cut", limit=100)

    lengths = sorted(len(row["input_ids"]) for row in read_rows(tmp_path, "sft", -1.0, is_eval=False))
    assert (prepared.n_cut, prepared.left_out, prepared.n_train) == (1, {}, 2)
    assert prepared.longest > lengths[-1] == 100


def test_a_row_whose_prompt_fills_everything_is_left_out_even_where_rows_are_cut(tmp_path: Path):
    rows = build_conversations(2)
    rows[1]["messages"][0]["content"] = "word " * 100

    prepared = prepare_rows(tmp_path, rows, eval_share=0, too_long="cut", limit=100)

    assert (prepared.n_cut, prepared.left_out) == (0, {"too long": 1})


def test_what_is_held_out_depends_on_neither_order_nor_other_rows(tmp_path: Path):
    rows = build_conversations(200)
    shuffled = random.Random(0).sample(rows, len(rows))[:150]
    held_out = []

    for name, given in (("all", rows), ("some", shuffled)):
        prepared = prepare_rows(tmp_path / name, given, eval_share=0.2)
        ids = {row["id"] for row in given}
        held_out.append({row_id for row_id in ids if place_row(row_id, 0) <= prepared.held_out_up_to})
        assert len(held_out[-1]) == prepared.n_eval
        assert prepared.n_train + prepared.n_eval == len(given)

    assert held_out[1] == held_out[0] & {row["id"] for row in shuffled}
    assert 0.1 < len(held_out[0]) / len(rows) < 0.3


def test_another_seed_holds_out_others():
    ids = [f"row-{number}" for number in range(100)]

    first, second = ({row_id for row_id in ids if place_row(row_id, seed) < 0.2} for seed in (0, 1))

    assert first != second


def test_a_small_set_holds_out_one_row_at_least(tmp_path: Path):
    assert prepare_rows(tmp_path, build_conversations(5), eval_share=0.001).n_eval == 1


def test_prompts_to_look_at_are_held_out_and_end_before_the_last_answer(tmp_path: Path):
    prepared = prepare_rows(tmp_path, build_conversations(40), eval_share=0.2)

    assert len(prepared.samples) == 2
    for sample in prepared.samples:
        assert place_row(sample["id"], 0) <= prepared.held_out_up_to
        assert sample["prompt"][-1] == turn("user", "Are you sure?")


def test_with_nothing_left_the_commonest_reason_is_said(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none of the 3 rows .* can be trained on, most of them: too long"):
        prepare_rows(tmp_path, build_conversations(3), limit=10)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(TableError, match=r"no file or folder '.*nothing.jsonl'"):
        read_source(tmp_path / "nothing.jsonl", "sft")


def test_what_was_prepared_survives_its_way_through_json(tmp_path: Path):
    import json

    prepared = prepare_rows(tmp_path, build_conversations(9))

    assert Prepared.from_json(json.loads(json.dumps(prepared.to_json()))) == prepared
