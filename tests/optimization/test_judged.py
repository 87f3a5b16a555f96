import json
from collections import Counter
from pathlib import Path
from typing import Any

import dspy
import pytest

from matrix_dspy.errors import ProgramNotFoundError, TableError
from matrix_dspy.loading import PROGRAMS
from matrix_dspy.optimization.judged import (
    BORROWED,
    JUDGES,
    SPLITS,
    JudgedRow,
    build_example,
    is_gold,
    judge_rows,
    judged_folder,
    list_judged,
    list_written,
    load_judged,
    read_level,
    read_output,
    read_preference,
    read_rows,
    sample_rows,
    turn_pair,
)
from matrix_dspy.programs.modulator import Delivery

MARK = "<<CUSTOM-TYPE-START-IDENTIFIER>>"
CRITIC = {
    "id": "mine-1",
    "split": "train",
    "inputs": {"instruction": "Name three bees.", "response": "Bumblebee."},
    "output": {"critique": 'Two are missing: "Bumblebee." is one.'},
    "score": 4,
    "reason": "It names what is missing.",
}
ROUTER = {
    "id": "mine-1",
    "split": "val",
    "inputs": {"members": ["0: Ana, baker", "1: Bo, smith"], "action": "Ana told Bo of the flood."},
    "output": {"reason": "She told him.", "receivers": [1]},
    "score": 5,
}
RECEPTION = {
    "id": "mine-1",
    "split": "val",
    "inputs": {"members": ["0: Ana, baker"], "events": ["0: The mill burnt."]},
    "output": {"deliveries": [{"event": 0, "members": [0]}]},
    "score": 5,
}
RESPONSE_JUDGE = {
    "id": "mine-1",
    "split": "test",
    "inputs": {"instruction": "Say hi.", "response": "Hi."},
    "output": {"reason": "It says hi.", "score": 5},
    "score": 5,
}
OUTPUT_JUDGE = {
    "id": "critic-1",
    "split": "test",
    "inputs": {"rubric": "5: good", "given": {"instruction": "Say hi."}, "written": {"response": "Hi."}},
    "output": {"reason": "It says hi.", "score": 5},
    "score": 5,
}
RATER = {
    "id": "mine-1",
    "split": "test",
    "inputs": {"instruction": "Say hi."},
    "output": {
        "quality_reason": "Clear.",
        "quality": "excellent",
        "difficulty_reason": "One word.",
        "difficulty": "very easy",
    },
    "score": 5,
}
PAIR = {
    "id": "mine-1",
    "split": "train",
    "inputs": {"instruction": "Say hi.", "response_a": "Hi.", "response_b": "No."},
    "output": {"reason": "B declines.", "preference": "A"},
    "reason": "A greets, B declines.",
}


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def change(row: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {key: value for key, value in {**row, **values}.items() if value is not ...}


def fail(program: str, path: Path) -> str:
    with pytest.raises(TableError) as caught:
        load_judged(program, path)
    return str(caught.value)


# ---- reading a file


@pytest.mark.parametrize(
    ("program", "row"),
    [
        ("critic", CRITIC),
        ("intra_router", ROUTER),
        ("reception_router", RECEPTION),
        ("response_judge", RESPONSE_JUDGE),
        ("output_judge", OUTPUT_JUDGE),
        ("instruction_rater", RATER),
        ("pair_judge", PAIR),
    ],
)
def test_a_row_of_every_form_is_read(tmp_path: Path, program: str, row: dict[str, Any]):
    judged = load_judged(program, write(tmp_path / "mine.jsonl", row))

    assert judged.program == program
    assert judged.rows[0].model_dump(exclude_defaults=True) == row
    assert judged.split(row["split"]) == list(judged.rows)
    assert [judged.split(name) for name in SPLITS if name != row["split"]] == [[], []]


def test_rows_keep_the_order_of_the_file_and_empty_lines_are_nothing(tmp_path: Path):
    rows = [change(CRITIC, id=f"mine-{n}") for n in (3, 1, 2)]

    judged = load_judged("critic", write(tmp_path / "mine.jsonl", rows[0], "", rows[1], "   ", rows[2]))

    assert [row.id for row in judged.rows] == ["mine-3", "mine-1", "mine-2"]


def test_a_file_is_known_by_its_rows_alone(tmp_path: Path):
    plain = load_judged("critic", write(tmp_path / "a.jsonl", CRITIC))
    spaced = load_judged("critic", write(tmp_path / "b.jsonl", "", json.dumps(CRITIC, indent=None, sort_keys=True)))
    other = load_judged("critic", write(tmp_path / "c.jsonl", change(CRITIC, score=3)))

    assert plain.sha256 == spaced.sha256 != other.sha256


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_signs_that_end_lines_elsewhere_do_not_cut_a_row(tmp_path: Path, sign: str):
    row = change(CRITIC, output={"critique": f"one{sign}two"})
    text = json.dumps(row, ensure_ascii=False).replace(json.dumps(sign)[1:-1], sign)
    if sign < " ":
        text = json.dumps(row)  # JSON forbids them raw

    critique = load_judged("critic", write(tmp_path / "mine.jsonl", text)).rows[0].output["critique"]

    assert critique in (f"one{sign}two", "onetwo")


def test_a_file_with_a_byte_order_mark_and_windows_line_ends_is_read(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(CRITIC).encode() + b"\r\n\r\n")

    assert len(load_judged("critic", path).rows) == 1


FAULTS: list[tuple[str, Any, list[str]]] = [
    ("critic", "{not json", ["it is not JSON"]),
    ("critic", '{"id": "a"', ["it is not JSON"]),
    ("critic", "[" * 100_000, ["it is not JSON"]),
    ("critic", "[1, 2]", ["it is no object with the keys of a row"]),
    ("critic", "null", ["it is no object with the keys of a row"]),
    ("critic", change(CRITIC, scor=4), ["unknown key 'scor'", "did you mean 'score'?"]),
    ("critic", change(CRITIC, verdict=4), ["unknown key 'verdict'", "choose one of case, id, inputs"]),
    ("critic", change(CRITIC, id=...), ["id: field required"]),
    ("critic", change(CRITIC, id=""), ["id: string should have at least 1 character"]),
    ("critic", change(CRITIC, id=7), ["id: input should be a valid string"]),
    ("critic", change(CRITIC, split="dev"), ["split: input should be 'train', 'val' or 'test'"]),
    ("critic", change(CRITIC, inputs="x"), ["inputs: input should be a valid dictionary"]),
    (
        "critic",
        change(CRITIC, inputs={"instruction": "x"}),
        ["its input has the fields ['instruction']", "critic has ['instruction', 'response']", "all of them"],
    ),
    (
        "critic",
        change(CRITIC, output={"critique": "x", "score": 3}),
        ["its output has the fields ['critique', 'score']", "critic has ['critique']"],
    ),
    ("critic", change(CRITIC, output={"critique": 3}), ["output field 'critique'", "valid string"]),
    ("critic", change(CRITIC, inputs={"instruction": None, "response": "x"}), ["input field 'instruction'", "string"]),
    ("intra_router", change(ROUTER, output={"reason": "x", "receivers": ["1"]}), ["output field 'receivers'", "0: "]),
    ("intra_router", change(ROUTER, output={"reason": "x", "receivers": 1}), ["output field 'receivers'", "array"]),
    (
        "reception_router",
        change(RECEPTION, output={"deliveries": [{"event": -1, "members": []}]}),
        ["output field 'deliveries': 0.event", "greater than or equal to 0"],
    ),
    ("critic", change(CRITIC, score=...), ["it has no score; write a number from 1 to 5"]),
    ("critic", change(CRITIC, score=None), ["it has no score; write a number from 1 to 5"]),
    ("critic", change(CRITIC, score=0), ["score: input should be greater than or equal to 1"]),
    ("critic", change(CRITIC, score=6), ["score: input should be less than or equal to 5"]),
    ("critic", change(CRITIC, score="4"), ["score: input should be a valid integer"]),
    ("critic", change(CRITIC, score=True), ["score: input should be a valid integer"]),
    ("critic", change(CRITIC, score=4.5), ["score: input should be a valid integer"]),
    ("response_judge", change(RESPONSE_JUDGE, score=4), ["its score is 4", "the verdict in its output says 5"]),
    ("output_judge", change(OUTPUT_JUDGE, score=4), ["its score is 4", "the verdict in its output says 5"]),
    ("instruction_rater", change(RATER, score=4), ["its score is 4", "the quality in its output is 'excellent'"]),
    ("pair_judge", change(PAIR, output={"reason": "", "preference": "C"}), ["output field 'preference'", "'a' or 'b'"]),
    ("response_judge", change(RESPONSE_JUDGE, output={"reason": "", "score": 9}), ["output field 'score'", "1, 2, 3"]),
]


@pytest.mark.parametrize(("program", "row", "words"), FAULTS)
def test_a_bad_row_is_named_by_file_and_line_with_what_is_wrong(
    tmp_path: Path, program: str, row: Any, words: list[str]
):
    good = {"critic": CRITIC, "intra_router": ROUTER, "reception_router": RECEPTION, "pair_judge": PAIR}
    good |= {"response_judge": RESPONSE_JUDGE, "output_judge": OUTPUT_JUDGE, "instruction_rater": RATER}
    path = write(tmp_path / "mine.jsonl", change(good[program], id="good"), "", row)

    said = fail(program, path)

    assert said.startswith(f"{str(path)!r}, line 3: ")
    assert [each for each in words if each not in said] == []
    assert "\n" not in said


def test_inputs_that_stand_in_two_splits_are_refused(tmp_path: Path):
    one = json.loads((judged_folder() / "intra_router.jsonl").read_text("utf-8").splitlines()[0])
    other = {**one, "id": "other", "split": "test" if one["split"] != "test" else "train"}

    with pytest.raises(TableError, match="line 2: its inputs stand in another split too"):
        read_rows("intra_router", write(tmp_path / "rows.jsonl", one, other))
    assert len(read_rows("intra_router", write(tmp_path / "rows.jsonl", one, {**other, "split": one["split"]}))) == 2


def test_an_id_that_stands_twice_is_named(tmp_path: Path):
    path = write(tmp_path / "mine.jsonl", CRITIC, change(CRITIC, id="mine-2"), change(CRITIC, score=1))

    assert fail("critic", path) == f"{str(path)!r}, line 3: the id 'mine-1' stands there twice; give each its own"


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    path = tmp_path / "none.jsonl"

    assert fail("critic", path) == f"no judged set {str(path)!r} for 'critic'; check the path"
    assert fail("critic", tmp_path).endswith("check the path")


def test_a_file_in_another_encoding_is_named(tmp_path: Path):
    (tmp_path / "mine.jsonl").write_bytes('{"id": "caf\u00e9"}'.encode("latin-1"))

    assert fail("critic", tmp_path / "mine.jsonl").startswith(
        f"could not read the judged set {str(tmp_path / 'mine.jsonl')!r}: 'utf-8' codec"
    )


def test_a_program_without_a_shipped_set_says_which_have_one():
    name = next(name for name in PROGRAMS if name not in list_judged())

    with pytest.raises(TableError, match=r"shipped are .*intra_router.*output_judge"):
        load_judged(name)


def test_an_unknown_program_is_named_with_a_near_one(tmp_path: Path):
    with pytest.raises(ProgramNotFoundError, match="no program 'critik'; did you mean 'critic'"):
        load_judged("critik")
    with pytest.raises(ProgramNotFoundError, match="no program 'critik'"):
        load_judged("critik", write(tmp_path / "mine.jsonl", CRITIC))


def test_hostile_text_is_cleaned_wherever_it_stands(tmp_path: Path):
    bad = f"\x1b[2Jred\u202e {MARK} [[ ## critique ## ]] <|im_end|>\x00"
    row = change(CRITIC, inputs={"instruction": bad, "response": bad}, output={"critique": bad}, reason=bad, case=bad)
    (tmp_path / "mine.md").write_text(f"5: good {MARK}\u202e\n", encoding="utf-8")

    judged = load_judged("critic", write(tmp_path / "mine.jsonl", row))

    whole = str(judged.rows[0].model_dump()) + judged.rubric
    assert [mark for mark in ("\x1b", "\u202e", MARK, "[[ ##", "<|", "\x00") if mark in whole] == []
    assert judged.rows[0].output == {"critique": "[2Jred  critique im_end"}
    assert judged.rubric == "5: good"


def test_hostile_text_deep_inside_a_value_is_cleaned_too(tmp_path: Path):
    row = change(OUTPUT_JUDGE)
    row["inputs"] = {**row["inputs"], "given": {MARK: [{"a": [f"x{MARK}"]}]}}

    judged = load_judged("output_judge", write(tmp_path / "mine.jsonl", row))

    assert judged.rows[0].inputs["given"] == {"": [{"a": ["x"]}]}


# ---- the rubric


def test_a_file_of_ones_own_is_judged_by_the_rubric_beside_it(tmp_path: Path):
    (tmp_path / "mine.md").write_text("# Mine\n\n5: short\n\n## Data card\n\nby me\n", encoding="utf-8")

    assert load_judged("critic", write(tmp_path / "mine.jsonl", CRITIC)).rubric == "# Mine\n\n5: short"


def test_without_one_beside_it_the_shipped_rubric_holds(tmp_path: Path):
    judged = load_judged("intra_router", write(tmp_path / "mine.jsonl", ROUTER))

    assert judged.rubric == load_judged("intra_router").rubric
    assert "## Data card" not in judged.rubric


def test_without_any_rubric_the_program_says_what_is_wanted(tmp_path: Path):
    row = {"id": "1", "split": "train", "inputs": {"persona": "x", "memory": []}, "output": {"plan": ["y"]}, "score": 3}

    assert load_judged("planner", write(tmp_path / "mine.jsonl", row)).rubric.startswith("Plan the next steps")


def test_a_rubric_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "mine.md").write_bytes(b"\xff\xfe")

    assert f"could not read the rubric {str(tmp_path / 'mine.md')!r}" in fail(
        "critic", write(tmp_path / "mine.jsonl", CRITIC)
    )


# ---- the output judge learns from all that write


def test_the_output_judges_set_is_that_of_all_writers_together():
    judged = load_judged("output_judge")

    expected = [row.id for name in list_written() for row in load_judged(name).rows]
    assert [row.id for row in judged.rows] == expected
    assert len({row.id for row in judged.rows}) == len(judged.rows)
    assert not {row.id.rpartition("-")[0] for row in judged.rows} & set(JUDGES)


def test_a_writers_row_becomes_a_judges_row():
    judged = load_judged("intra_router")

    first, made = judged.rows[0], judge_rows(judged)[0]

    assert made.inputs == {"rubric": judged.rubric, "given": first.inputs, "written": first.output}
    assert made.output == {"reason": first.reason, "score": first.score}
    assert (made.id, made.split, made.score, made.reason) == (first.id, first.split, first.score, first.reason)


def test_a_judges_row_made_so_can_be_written_and_read_again(tmp_path: Path):
    made = judge_rows(load_judged("intra_router"))[:3]
    path = write(tmp_path / "mine.jsonl", *(row.model_dump() for row in made))

    assert list(load_judged("output_judge", path).rows) == made


def test_what_is_listed_is_there_and_in_the_order_of_the_path():
    names = list_judged()

    assert names == [name for name in PROGRAMS if name in names]
    made = {"output_judge", *BORROWED}
    assert all((name in made) != (judged_folder() / f"{name}.jsonl").is_file() for name in names)
    assert list_written() == [name for name in names if name not in JUDGES]


# ---- judges of evaluations learn from the labels of others


def test_the_arena_judges_rows_say_which_is_better_and_not_by_how_much():
    pairs, borrowed = load_judged("pair_judge"), load_judged("arena_judge")

    assert [row.id for row in borrowed.rows] == [row.id.replace("pair_", "arena_") for row in pairs.rows]
    for row, made in zip(pairs.rows, borrowed.rows, strict=True):
        assert (made.inputs, made.split, made.score) == (row.inputs, row.split, None)
        assert made.output["level"] in ("A>B", "B>A")
        assert read_preference(made.output) == row.output["preference"]
    assert borrowed.rubric == pairs.rubric


def test_the_rating_judges_rows_have_the_rating_that_says_the_same_as_the_score():
    scored, borrowed = load_judged("response_judge"), load_judged("rating_judge")

    for row, made in zip(scored.rows, borrowed.rows, strict=True):
        assert made.inputs == {"earlier": [], "known_answers": [], **row.inputs}
        assert read_level("rating_judge", made.output) == made.score == row.score
    assert {made.output["rating"] for made in borrowed.rows} == {1, 4, 6, 8, 10}


@pytest.mark.parametrize("name", sorted(BORROWED))
def test_borrowed_rows_can_be_written_and_read_again(tmp_path: Path, name: str):
    made = list(load_judged(name).rows)
    path = write(tmp_path / "mine.jsonl", *(row.model_dump() for row in made))

    assert list(load_judged(name, path).rows) == made


def test_a_rating_that_is_not_its_score_is_refused(tmp_path: Path):
    row = load_judged("rating_judge").rows[0].model_dump()
    path = write(tmp_path / "mine.jsonl", row | {"score": 3, "output": {"reason": "", "rating": 9}})

    with pytest.raises(TableError, match="its score is 3 but the rating in its output is 9 of 10"):
        load_judged("rating_judge", path)


@pytest.mark.parametrize(
    ("level", "turned", "preferred"),
    [("A>>B", "B>>A", "A"), ("A>B", "B>A", "A"), ("A=B", "A=B", ""), ("B>A", "A>B", "B"), ("B>>A", "A>>B", "B")],
)
def test_a_level_is_turned_with_its_pair(level: str, turned: str, preferred: str):
    row = load_judged("arena_judge").rows[0].model_copy(update={"output": {"reason": "A.", "level": level}})

    assert turn_pair(row).output == {"reason": "", "level": turned}
    assert read_preference(row.output) == preferred


# ---- pairs


def pair() -> JudgedRow:
    return JudgedRow.model_validate(PAIR)


def test_a_turned_pair_has_its_responses_and_its_preference_the_other_way_round():
    turned = turn_pair(pair())

    assert turned.id == "mine-1-turned"
    assert turned.inputs == {"instruction": "Say hi.", "response_a": "No.", "response_b": "Hi."}
    assert turned.output == {"reason": "", "preference": "B"}
    assert turned.reason == ""  # it speaks of A and B as they were
    assert turned.split == "train"


def test_turning_twice_gives_back_what_was_asked():
    again = turn_pair(turn_pair(pair()))

    assert again.inputs == pair().inputs
    assert again.output["preference"] == pair().output["preference"]


# ---- drawing rows


def make_rows(n: int, program: str = "actor") -> list[JudgedRow]:
    return [
        JudgedRow(id=f"{program}-{i:03d}", split="test", inputs={"n": i}, output={}, score=i % 5 + 1) for i in range(n)
    ]


def test_a_sample_follows_its_seed():
    rows = make_rows(60)

    assert sample_rows(rows, 20, 1) == sample_rows(rows, 20, 1)
    assert sample_rows(rows, 20, 1) != sample_rows(rows, 20, 2)


def test_a_sample_holds_every_level_alike_and_no_row_twice():
    drawn = sample_rows(make_rows(60), 20, 0)

    assert Counter(row.score for row in drawn) == {1: 4, 2: 4, 3: 4, 4: 4, 5: 4}
    assert len({row.id for row in drawn}) == 20


def test_a_sample_of_several_programs_holds_every_level_of_each():
    drawn = sample_rows(make_rows(60, "actor") + make_rows(20, "critic") + make_rows(200, "responder"), 30, 0)

    assert Counter((row.id.partition("-")[0], row.score) for row in drawn) == {
        (program, score): 2 for program in ("actor", "critic", "responder") for score in range(1, 6)
    }


def test_a_level_with_few_rows_gives_all_it_has():
    rows = [*make_rows(40), JudgedRow(id="rare-1", split="test", inputs={}, output={}, score=5)]

    assert "rare-1" in {row.id for row in sample_rows(rows, 20, 0)}


def test_pairs_are_drawn_by_preference():
    rows = [
        JudgedRow(id=f"pair-{i}", split="test", inputs={}, output={"preference": "A" if i < 30 else "B"})
        for i in range(40)
    ]

    assert Counter(row.output["preference"] for row in sample_rows(rows, 10, 0)) == {"A": 5, "B": 5}


@pytest.mark.parametrize("n", [0, 60, 61, 1000])
def test_nought_or_more_than_there_are_draws_all_in_their_order(n: int):
    assert sample_rows(make_rows(60), n, 3) == make_rows(60)


@pytest.mark.parametrize("n", [1, 4, 7, 59])
def test_exactly_as_many_are_drawn_as_asked_for(n: int):
    drawn = sample_rows(make_rows(60), n, 0)

    assert len({row.id for row in drawn}) == n


# ---- rows as examples


def test_only_the_best_rows_of_a_writer_and_all_of_a_judge_may_be_followed():
    rows = make_rows(5)

    assert [is_gold("actor", row) for row in rows] == [False, False, False, False, True]
    assert all(is_gold(name, row) for name in JUDGES for row in rows)


def test_an_example_holds_the_outputs_where_they_may_be_followed():
    good, bad = JudgedRow.model_validate(ROUTER), JudgedRow.model_validate(change(ROUTER, score=2))

    assert build_example("intra_router", good).toDict() == {**ROUTER["inputs"], **ROUTER["output"]}
    assert build_example("intra_router", bad).toDict() == ROUTER["inputs"]
    assert build_example("intra_router", good).inputs().toDict() == ROUTER["inputs"]


def test_outputs_come_in_the_types_of_the_signature():
    row = JudgedRow.model_validate(RECEPTION)

    assert read_output("reception_router", row) == {"deliveries": [Delivery(event=0, members=[0])]}
    assert isinstance(build_example("reception_router", row), dspy.Example)
