import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.delivery.exporting import export
from matrix_dspy.errors import ConfigError, TableError
from matrix_dspy.evaluation.alpaca_files import (
    Annotation,
    LeaderboardRow,
    ModelOutput,
    group_by_model,
    rank_row,
    read_annotations,
    read_leaderboard,
    read_model_outputs,
    to_pairs,
    write_annotations,
    write_leaderboard,
    write_model_outputs,
)
from matrix_dspy.evaluation.length_control import measure_win_rate

# by hand, with the published field names: the first two as AlpacaEval 0.6 writes them, the third as before
ANNOTATIONS = """[
  {
    "instruction": "Which knot holds a small boat to a ring?",
    "output_1": "A bowline.",
    "generator_1": "old_hand",
    "dataset": "harbour",
    "output_2": "A round turn and two half hitches: it can be let go under load.",
    "generator_2": "new_hand",
    "annotator": "weighted_judge",
    "preference": 1.9731,
    "preference_price_per_example": 0.0123,
    "preference_time_per_example": 1.4,
    "preference_version": "0.6",
    "preference_date": "2025-01-31T10:00:00",
    "preference_raw_completion": {"finish_reason": "stop", "logprobs": {"content": []}},
    "glm_preference": 0.81
  },
  {
    "instruction": "Name the wind that blows from the land at night.",
    "output_1": "It is called the land breeze.",
    "generator_1": "old_hand",
    "dataset": "harbour",
    "output_2": "Land breeze",
    "generator_2": "new_hand",
    "annotator": "weighted_judge",
    "preference": null,
    "preference_price_per_example": NaN,
    "preference_time_per_example": null,
    "preference_raw_completion": null
  },
  {
    "instruction": "How deep is a fathom?",
    "output_1": "Six feet.",
    "generator_1": "old_hand",
    "output_2": "Six feet.",
    "generator_2": "new_hand",
    "annotator": "weighted_judge",
    "dataset": "harbour",
    "preference": 0,
    "price_per_example": 0.01,
    "time_per_example": 2,
    "raw_completion": "I cannot tell them apart."
  }
]
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def make_annotation(**changes: Any) -> Annotation:
    whole = Annotation(
        instruction="How far is a league?",
        output_1="Three miles.",
        generator_1="old_hand",
        output_2="About three miles at sea.",
        generator_2="new_hand",
        preference=2.0,
        annotator="judge",
    )
    return replace(whole, **changes)


# ---- annotations


def test_annotations_with_the_published_field_names_are_read(tmp_path: Path):
    first, second, third = read_annotations(write(tmp_path / "annotations.json", ANNOTATIONS))

    assert first.generator_1 == "old_hand"
    assert (first.preference, second.preference, third.preference) == (1.9731, None, 1.5)
    assert (first.price_per_example, first.time_per_example) == (0.0123, 1.4)
    assert (second.price_per_example, third.price_per_example) == (None, 0.01)
    assert first.raw_completion == {"finish_reason": "stop", "logprobs": {"content": []}}
    assert third.raw_completion == "I cannot tell them apart."
    assert first.others["glm_preference"] == 0.81
    assert first.others["preference_version"] == "0.6"


def test_the_evaluated_model_is_the_second_and_lengths_are_characters(tmp_path: Path):
    pairs = to_pairs(read_annotations(write(tmp_path / "annotations.json", ANNOTATIONS)))

    found = measure_win_rate(pairs)

    assert (pairs[0].n_chars, pairs[0].n_chars_base) == (63, 10)
    assert (found.n_wins, found.n_wins_base, found.n_draws, found.n_unannotated) == (1, 0, 1, 1)
    assert found.raw.value == pytest.approx(100 * (0.9731 + 0.5) / 2)


def test_what_is_written_is_read_back_and_has_the_published_names(tmp_path: Path):
    annotations = read_annotations(write(tmp_path / "annotations.json", ANNOTATIONS))

    write_annotations(annotations, tmp_path / "again.json")

    again = json.loads((tmp_path / "again.json").read_text("utf-8"))
    names = "instruction output_1 generator_1 output_2 generator_2 dataset annotator preference"
    assert {*names.split(), "price_per_example", "time_per_example", "raw_completion"} <= set(again[0])
    assert read_annotations(tmp_path / "again.json") == annotations


TEXTS = st.text(max_size=20)


@given(
    st.lists(
        st.builds(
            Annotation,
            instruction=TEXTS,
            output_1=TEXTS,
            generator_1=TEXTS,
            output_2=TEXTS,
            generator_2=TEXTS,
            preference=st.none() | st.floats(1, 2),
            annotator=TEXTS,
            dataset=TEXTS,
            price_per_example=st.none() | st.floats(0, 1e6),
            raw_completion=st.none() | st.text(max_size=5) | st.dictionaries(st.text(max_size=3), st.integers()),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda each: (each.annotator, each.generator_1, each.generator_2, each.instruction),
    )
)
def test_any_annotations_survive_the_way_to_disk(tmp_path_factory, annotations: list[Annotation]):
    path = tmp_path_factory.mktemp("written") / "annotations.json"

    write_annotations(annotations, path)

    assert read_annotations(path) == annotations


def test_halves_of_surrogate_pairs_are_replaced(tmp_path: Path):
    path = write(tmp_path / "o.json", '[{"instruction": "a\\ud800b", "output": "c"}]')

    outputs = read_model_outputs(path)
    write_model_outputs(outputs, path)

    assert outputs[0].instruction == "a\ufffdb"
    assert read_model_outputs(path) == outputs


def test_annotations_of_several_models_are_told_apart():
    rows = [make_annotation(), make_annotation(generator_2="third_hand"), make_annotation(instruction="And a cable?")]

    grouped = group_by_model(rows)

    assert {name: len(each) for name, each in grouped.items()} == {"new_hand": 2, "third_hand": 1}
    with pytest.raises(ConfigError, match="of 2 models \\('new_hand', 'third_hand'\\); measure one at a time"):
        to_pairs(rows)
    with pytest.raises(ConfigError, match="of 2 references"):
        to_pairs([make_annotation(), make_annotation(generator_1="other")])


def spoil(change: Callable[[list[dict[str, Any]]], Any]) -> str:
    rows = json.loads(ANNOTATIONS)
    change(rows)
    return json.dumps(rows)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ANNOTATIONS[:700], "breaks off in the middle"),
        (ANNOTATIONS[: ANNOTATIONS.rindex("]")], "breaks off in the middle"),
        ("", "breaks off in the middle"),
        ("[[[", "breaks off in the middle"),
        ("[" * 100_000, "cannot be read|breaks off"),
        ("{'a': 1}", "is no JSON"),
        ('{"instruction": 1}', "holds an object of 1, which is no list"),
        ("[]", "holds no preferences"),
        ("[1]", "row 1 of .* is 1, which is no object"),
        ("[" + "9" * 5000 + "]", "cannot be read"),
        (spoil(lambda rows: rows[1].pop("output_2")), "row 2 of .* lacks 'output_2'; it has 'instruction'"),
        (spoil(lambda rows: rows[1].pop("preference")), "row 2 of .* lacks 'preference'"),
        (spoil(lambda rows: rows[0].update(output_1=None)), "row 1 .* 'output_1': null, which is no text"),
        (spoil(lambda rows: rows[0].update(output_1=["a"])), "'output_1': a list of 1, which is no text"),
        (spoil(lambda rows: rows[2].update(preference="2")), "row 3 .* 'preference': '2', which is no number"),
        (spoil(lambda rows: rows[2].update(preference=True)), "'preference': True, which is no number"),
        (spoil(lambda rows: rows[2].update(preference=2.5)), r"the preference 2\.5, which is not from 1 to 2"),
        (spoil(lambda rows: rows[2].update(preference=float("inf"))), "'preference': inf, which is out of range"),
        (spoil(lambda rows: rows.append(rows[0])), "rows 1 and 4 of .* are preferences of the same"),
    ],
)
def test_a_bad_file_of_annotations_is_refused_in_one_sentence(tmp_path: Path, text: str, words: str):
    with pytest.raises(TableError, match=words) as caught:
        read_annotations(write(tmp_path / "annotations.json", text))

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_missing_or_binary_file_is_refused(tmp_path: Path):
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x81")

    with pytest.raises(TableError, match=r"no file .*nowhere"):
        read_annotations(tmp_path / "nowhere.json")
    with pytest.raises(TableError, match=r"binary\.json' is no text in UTF-8; unpack it"):
        read_annotations(tmp_path / "binary.json")


# ---- model outputs


def test_model_outputs_are_read_with_and_without_what_is_optional(tmp_path: Path):
    text = (
        '[{"instruction": "Ebb?", "output": ""}, {"instruction": "Flow?", "output": "Yes.", "generator": "m", "n": 3}]'
    )
    lines = '{"instruction": "Ebb?", "output": ""}\n\n{"instruction": "Flow?", "output": "Yes.\u2028"}\n'

    found = read_model_outputs(write(tmp_path / "o.json", "\ufeff" + text))

    assert found == [ModelOutput("Ebb?", "", ""), ModelOutput("Flow?", "Yes.", "m", others={"n": 3})]
    assert [each.output for each in read_model_outputs(write(tmp_path / "o.jsonl", lines))] == ["", "Yes.\u2028"]


def test_outputs_exported_from_a_data_set_are_read(tmp_path: Path):
    rows = [
        {"messages": [{"role": "user", "content": f"Ask {i}"}, {"role": "assistant", "content": f"Say {i}"}]}
        for i in range(3)
    ]
    source = write(tmp_path / "set.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    exported = export(source, "alpaca_eval", tmp_path / "outputs.json", model="mine")

    found = read_model_outputs(exported.paths[0])
    assert [(each.instruction, each.output, each.generator) for each in found] == [
        (f"Ask {i}", f"Say {i}", "mine") for i in range(3)
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "Ebb?"}, "lacks 'output'; it has 'instruction'"),
        ({"instruction": "Ebb?", "output": None}, "'output': null, which is no text"),
        ({"instruction": "Ebb?", "output": 3}, "'output': 3, which is no text"),
        ({"instruction": "Ebb?", "output": "x", "generator": 7}, "'generator': 7, which is no text"),
    ],
)
def test_a_bad_output_is_refused_in_one_sentence(tmp_path: Path, row: dict[str, Any], words: str):
    with pytest.raises(TableError, match=f"row 1 of .*{words}"):
        read_model_outputs(write(tmp_path / "o.json", json.dumps([row])))


def test_two_answers_to_one_instruction_are_refused_unless_two_models_gave_them(tmp_path: Path):
    row = {"instruction": "Ebb?", "output": "x", "generator": "m"}

    assert len(read_model_outputs(write(tmp_path / "o.json", json.dumps([row, {**row, "generator": "n"}])))) == 2
    with pytest.raises(TableError, match=r"rows 1 and 2 of .* are answers of the same: 'm', 'Ebb\?'; keep one"):
        read_model_outputs(write(tmp_path / "o.json", json.dumps([row, row])))
    with pytest.raises(TableError, match=r"line 2 of .* breaks off in the middle"):
        read_model_outputs(write(tmp_path / "o.jsonl", json.dumps(row) + "\n" + json.dumps(row)[:-5]))


# ---- leaderboard

LEADERBOARD = """,win_rate,standard_error,n_wins,n_wins_base,n_draws,n_total,discrete_win_rate,mode,avg_length,\
length_controlled_winrate,lc_standard_error
new_hand,62.5,1.25,500,300,5,805,62.4,community,1800,55.1,0.4
"hand, the old",10.0,0.9,80,725,0,805,9.9,minimal,900,,
"""


def test_a_leaderboard_is_read_and_written_back(tmp_path: Path):
    path = write(tmp_path / "leaderboard.csv", LEADERBOARD)

    rows = read_leaderboard(path)
    write_leaderboard(rows, tmp_path / "again.csv")

    assert rows[0] == LeaderboardRow("new_hand", 62.5, 1.25, 500, 300, 5, 805, 62.4, "community", 1800, 55.1, 0.4)
    assert (rows[1].name, rows[1].length_controlled_winrate, rows[1].mode) == ("hand, the old", None, "minimal")
    assert (tmp_path / "again.csv").read_text("utf-8") == LEADERBOARD


def test_a_leaderboard_of_fewer_columns_is_read(tmp_path: Path):
    found = read_leaderboard(write(tmp_path / "l.csv", "model,win_rate,note\nnew_hand,50,fine\n\n"))

    assert found == [LeaderboardRow("new_hand", 50.0, mode="")]


def test_a_models_row_holds_its_rates(tmp_path: Path):
    pairs = [
        make_annotation(instruction=f"Knot {i}?", preference=[1.0, 2.0, 2.0][i % 3], output_2="a" * (i + 1)).to_pair()
        for i in range(60)
    ]
    rates = measure_win_rate(pairs, n_resamples=50)

    write_leaderboard([rank_row("new_hand", rates)], tmp_path / "l.csv")

    with (tmp_path / "l.csv").open(encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    assert row[""] == "new_hand"
    assert (row["n_wins"], row["n_wins_base"], row["n_draws"], row["n_total"]) == ("40", "20", "0", "60")
    assert float(row["win_rate"]) == pytest.approx(200 / 3)
    assert rates.length_controlled is not None
    assert float(row["length_controlled_winrate"]) == pytest.approx(rates.length_controlled.value)
    assert row["avg_length"] == "30"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no column 'win_rate'"),
        ("a,b\n1,2\n", "has no column 'win_rate'"),
        (",win_rate\nm,high\n", "row 2 of .* 'win_rate': 'high', which is no number"),
        (",win_rate\nm,50,7\n", "row 2 of .* has 3 cells, not 2"),
        (",win_rate\nm,50\nm,60\n", "rows 1 and 2 of .* are models of the same: 'm'"),
        (',win_rate\n"m,50\n', "is no CSV"),
    ],
)
def test_a_bad_leaderboard_is_refused_in_one_sentence(tmp_path: Path, text: str, words: str):
    with pytest.raises(TableError, match=words):
        read_leaderboard(write(tmp_path / "l.csv", text))
