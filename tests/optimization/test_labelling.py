import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from matrix_dspy import load_program, run_program
from matrix_dspy.errors import MatrixError, TableError
from matrix_dspy.loading import build_program
from matrix_dspy.optimization.judged import PAIRED, SPLITS, JudgedRow, list_judged, load_judged
from matrix_dspy.optimization.labelling import HELP, choose_split, label, read_source
from tests.conftest import ROOT, run_cli
from tests.toys import Call, ToyEngine

PROGRAM = "intra_router"
MARK = "<<CUSTOM-TYPE-START-IDENTIFIER>>"
SHIPPED = {row.id: row for row in load_judged(PROGRAM).rows}


class Person:
    """Types what was written down for them, then leaves as `leaving` says; remembers what was shown."""

    def __init__(self, *answers: str, leaving: type[BaseException] = EOFError) -> None:
        self._answers = iter(answers)
        self._leaving = leaving
        self.shown: list[str] = []
        self.questions: list[str] = []

    def ask(self, question: str) -> str:
        self.questions.append(question)
        for answer in self._answers:
            return answer
        raise self._leaving

    def tell(self, line: str) -> None:
        self.shown.append(line)

    @property
    def screen(self) -> str:
        return "\n".join(self.shown)

    @property
    def rows(self) -> list[str]:
        """The ids of the rows shown, in order."""
        return [line.partition(": ")[2] for line in self.shown if line.startswith("\n=== ")]


def sit(person: Person, out: Path, source: Path | None = None, program: str = PROGRAM, seed: int = 0) -> int:
    return label(program, out, source, person.ask, person.tell, seed)


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def make_critiques(n: int = 5) -> list[dict[str, Any]]:
    return [{"instruction": f"Say {i}.", "response": f"{i}!", "critique": f'"{i}!" shouts.'} for i in range(n)]


def practise(person: Person, out: Path, seed: int = 0) -> int:
    """Label twenty rows nobody has labelled before: without an agreement to work out a sitting is quick."""
    source = out.parent / "source.jsonl"
    return sit(person, out, write(source, *make_critiques(20)), "critic", seed)


# ---- a sitting


def test_rows_are_shown_without_their_labels(tmp_path: Path):
    person = Person("3", "half right")

    assert sit(person, tmp_path / "mine.jsonl") == 1

    first = SHIPPED[person.rows[0]]
    assert f"76 of 76 rows wait for a label; {HELP}" in person.screen
    assert "--- given: members\n- 0: " in person.screen
    assert f"--- given: action\n{first.inputs['action']}" in person.screen
    assert f"--- written: reason\n{first.output['reason']}" in person.screen
    assert first.reason not in person.screen
    assert first.case not in person.screen


def test_a_label_is_written_as_a_row_of_a_judged_set(tmp_path: Path):
    person = Person("3", "  half   right\t", leaving=KeyboardInterrupt)

    sit(person, tmp_path / "new" / "mine.jsonl")

    (row,) = load_judged(PROGRAM, tmp_path / "new" / "mine.jsonl").rows
    shipped = SHIPPED[person.rows[0]]
    assert (row.id, row.score, row.reason) == (shipped.id, 3, "half right")
    assert (row.inputs, row.output, row.split) == (shipped.inputs, shipped.output, shipped.split)


def test_the_order_follows_the_seed(tmp_path: Path):
    orders = []
    for number, seed in enumerate((0, 0, 1)):
        person = Person(*["s"] * 20)
        practise(person, tmp_path / f"{number}.jsonl", seed=seed)
        orders.append(person.rows)

    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    assert len(set(orders[0])) == 20


def test_a_second_sitting_goes_on_behind_the_first(tmp_path: Path):
    whole = Person(*["3", ""] * 6)
    practise(whole, tmp_path / "whole.jsonl")
    first, second = Person(*["3", ""] * 2), Person(*["3", ""] * 4)

    assert practise(first, tmp_path / "mine.jsonl") == 2
    assert practise(second, tmp_path / "mine.jsonl") == 6

    assert "18 of 20 rows wait for a label" in second.screen
    assert first.rows[:2] + second.rows[:4] == whole.rows[:6]
    assert read(tmp_path / "mine.jsonl") == read(tmp_path / "whole.jsonl")


def test_a_row_skipped_comes_again_in_the_next_sitting(tmp_path: Path):
    first = Person("s", "4", "")
    practise(first, tmp_path / "mine.jsonl")
    second = Person()
    practise(second, tmp_path / "mine.jsonl")

    assert [row["id"] for row in read(tmp_path / "mine.jsonl")] == [first.rows[1]]
    assert second.rows[0] == first.rows[0]


def test_the_last_label_is_taken_back_and_given_anew(tmp_path: Path):
    person = Person("1", "no", "5", "wrong key", "u", "2", "better")

    assert practise(person, tmp_path / "mine.jsonl") == 2

    assert person.rows[:4] == [person.rows[0], person.rows[1], person.rows[2], person.rows[1]]
    assert [(row["id"], row["score"], row["reason"]) for row in read(tmp_path / "mine.jsonl")] == [
        (person.rows[0], 1, "no"),
        (person.rows[1], 2, "better"),
    ]


def test_taking_back_goes_on_as_far_as_the_sitting_began(tmp_path: Path):
    practise(Person("3", "kept"), tmp_path / "mine.jsonl")
    person = Person("1", "a", "2", "b", "u", "u", "u", "u")

    assert practise(person, tmp_path / "mine.jsonl") == 1

    assert [row["reason"] for row in read(tmp_path / "mine.jsonl")] == ["kept"]
    assert person.rows == [*person.rows[:3], *person.rows[1::-1], person.rows[0], person.rows[0]]


def test_taking_back_after_a_skip_shows_the_skipped_row_and_keeps_the_label_before(tmp_path: Path):
    person = Person("1", "a", "s", "u", "q")

    assert practise(person, tmp_path / "mine.jsonl") == 1
    assert person.rows[1] == person.rows[3]


@pytest.mark.parametrize("leaving", [EOFError, KeyboardInterrupt])
@pytest.mark.parametrize("answers", [(), ("4",), ("4", "a", "2")])
def test_leaving_at_any_question_keeps_what_was_labelled(
    tmp_path: Path, leaving: type[BaseException], answers: tuple[str, ...]
):
    person = Person(*answers, leaving=leaving)

    n = practise(person, tmp_path / "mine.jsonl")

    assert n == len(answers) // 2
    assert person.shown[-1] == f"\n{n} labels"
    assert (tmp_path / "mine.jsonl").is_file() == bool(n)


@pytest.mark.parametrize("answers", [("q",), (" Q ",), ("3", "q")])
def test_q_ends_the_sitting_wherever_it_is_typed(tmp_path: Path, answers: tuple[str, ...]):
    person = Person(*answers, "3", "never asked")

    assert practise(person, tmp_path / "mine.jsonl") == 0


def test_s_and_u_work_at_the_reason_too(tmp_path: Path):
    person = Person("1", "u", "4", "meant this", "5", "s", "2", "third")

    practise(person, tmp_path / "mine.jsonl")

    assert person.rows[0] == person.rows[1]
    assert [(row["id"], row["score"]) for row in read(tmp_path / "mine.jsonl")] == [
        (person.rows[0], 4),
        (person.rows[3], 2),
    ]


@pytest.mark.parametrize("bad", ["", "0", "6", "4.5", "five", "-1", "55", "\u0664", "yes"])
def test_an_answer_that_is_no_level_is_asked_for_again(tmp_path: Path, bad: str):
    person = Person(bad, bad, " 4 ", "fine")

    practise(person, tmp_path / "mine.jsonl")

    assert read(tmp_path / "mine.jsonl")[0]["score"] == 4
    assert (
        person.questions[1]
        == person.questions[2]
        == ("1, 2, 3, 4, 5; s to skip, u to take the last label back, q to stop: ")
    )


def test_nothing_is_asked_when_all_is_labelled(tmp_path: Path):
    person = Person(*["3", ""] * 20)
    practise(person, tmp_path / "mine.jsonl")
    again = Person("3")

    assert practise(again, tmp_path / "mine.jsonl") == 20
    assert again.questions == []
    assert "0 of 20 rows wait" in again.screen


def test_agreement_with_the_shipped_labels_is_told(tmp_path: Path):
    first = Person(*["s"] * 76)
    sit(first, tmp_path / "none.jsonl")
    knowing = Person(*(part for name in first.rows for part in (str(SHIPPED[name].score), "")))
    sit(knowing, tmp_path / "same.jsonl")
    other = Person(*(part for name in first.rows[:40] for part in (str(6 - (SHIPPED[name].score or 0)), "")))
    sit(other, tmp_path / "other.jsonl")

    agreement = "agreement with the shipped set, quadratic-weighted kappa: "
    assert knowing.shown[-2:] == ["\n76 labels", f"{agreement}1.000 [1.000, 1.000]"]
    assert other.shown[-1].startswith(f"{agreement}-0.9")
    assert first.shown[-1] == "\n0 labels"


def test_a_file_without_a_last_line_end_is_gone_on_with(tmp_path: Path):
    sit(Person("3", "first"), tmp_path / "mine.jsonl")
    path = tmp_path / "mine.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))

    assert sit(Person("4", "second", "1", "third", "u"), path) == 2
    assert [row.reason for row in load_judged(PROGRAM, path).rows] == ["first", "second"]


def test_a_file_that_is_no_judged_set_is_refused_before_anything_is_asked(tmp_path: Path):
    person = Person("3", "")

    with pytest.raises(TableError, match="line 1: it is not JSON"):
        sit(person, write(tmp_path / "mine.jsonl", "notes"))
    assert person.questions == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("x")

    with pytest.raises(TableError, match=r"could not write the label to '.*mine\.jsonl'"):
        sit(Person("3", ""), tmp_path / "file" / "mine.jsonl")


# ---- every kind of label


def test_a_judge_is_labelled_by_giving_the_verdict(tmp_path: Path):
    source = write(tmp_path / "rows.jsonl", {"instruction": "Say hi.", "response": "Hi.", "score": 1, "reason": "bad"})
    person = Person("5", "It says hi.")

    sit(person, tmp_path / "mine.jsonl", source, "response_judge")

    (row,) = load_judged("response_judge", tmp_path / "mine.jsonl").rows
    assert (row.score, row.output) == (5, {"reason": "It says hi.", "score": 5})
    assert "bad" not in person.screen  # what another judge said of it


def test_pairs_are_labelled_by_preference(tmp_path: Path):
    source = write(tmp_path / "rows.jsonl", {"instruction": "Say hi.", "response_a": "No.", "response_b": "Hi."})
    person = Person("5", "B", "A declines.")

    sit(person, tmp_path / "mine.jsonl", source, "pair_judge")

    (row,) = load_judged("pair_judge", tmp_path / "mine.jsonl").rows
    assert (row.score, row.output) == (None, {"reason": "A declines.", "preference": "B"})
    assert person.questions[:2] == ["better (a or b): ", f"{HELP.replace('1 to 5', 'a, b')}: "]


def test_levels_and_ratings_are_labelled_in_their_own_words(tmp_path: Path):
    pairs = write(tmp_path / "pairs.jsonl", {"instruction": "Say hi.", "response_a": "No.", "response_b": "Hi."})
    answers = {"earlier": [], "known_answers": [], "instruction": "Say hi.", "response": "Hi."}
    rows = write(tmp_path / "rows.jsonl", answers)

    sit(Person("b", "B>>A", "A declines."), tmp_path / "levels.jsonl", pairs, "arena_judge")
    sit(Person("11", "9", "Short."), tmp_path / "ratings.jsonl", rows, "rating_judge")

    (level,) = load_judged("arena_judge", tmp_path / "levels.jsonl").rows
    assert (level.score, level.output) == (None, {"reason": "A declines.", "level": "B>>A"})
    (rating,) = load_judged("rating_judge", tmp_path / "ratings.jsonl").rows
    assert (rating.score, rating.output) == (5, {"reason": "Short.", "rating": 9})


def test_an_instruction_is_rated_twice(tmp_path: Path):
    source = write(tmp_path / "rows.jsonl", {"instruction": "Say hi."}, {"instruction": "Say no."})
    person = Person("4", "u", "5", "1", "Clear.", "One word.", "3", "2", "Short.", "s")

    sit(person, tmp_path / "mine.jsonl", source, "instruction_rater")

    (row,) = load_judged("instruction_rater", tmp_path / "mine.jsonl").rows
    assert row.score == 5
    assert row.output == {
        "quality_reason": "Clear.",
        "quality": "excellent",
        "difficulty_reason": "One word.",
        "difficulty": "very easy",
    }


def test_the_output_judge_is_labelled_on_what_programs_wrote(tmp_path: Path):
    person = Person("5", "as wanted")

    sit(person, tmp_path / "mine.jsonl", program="output_judge")

    (row,) = load_judged("output_judge", tmp_path / "mine.jsonl").rows
    assert row.output == {"reason": "as wanted", "score": 5}
    assert "--- given: rubric" in person.screen and "--- given: written" in person.screen


@pytest.mark.parametrize("name", [name for name in list_judged() if name not in ("output_judge", *PAIRED)])
def test_every_shipped_set_can_be_labelled_and_read_again(tmp_path: Path, name: str):
    answers = ["4", "2", "a", "b"] if name == "instruction_rater" else ["4", "a"]

    assert sit(Person(*answers * 3), tmp_path / "mine.jsonl", program=name) == 3
    assert len(load_judged(name, tmp_path / "mine.jsonl").rows) == 3


# ---- where rows come from


def assert_labelled_once(tmp_path: Path, source: Path) -> None:
    person = Person(*["3", "so so"] * 5)

    assert sit(person, tmp_path / "mine.jsonl", source, "critic") == 5

    rows = load_judged("critic", tmp_path / "mine.jsonl").rows
    found = sorted(({**row.inputs, **row.output} for row in rows), key=str)
    assert found == sorted(make_critiques(), key=str)
    assert len({row.id for row in rows}) == 5
    again = Person()
    assert sit(again, tmp_path / "mine.jsonl", source, "critic") == 5
    assert "0 of 5 rows wait" in again.screen


def test_rows_come_from_flat_json_lines(tmp_path: Path):
    assert_labelled_once(tmp_path, write(tmp_path / "rows.jsonl", *make_critiques()))


def test_rows_come_from_json_lines_in_the_form_of_a_judged_set(tmp_path: Path):
    rows = [
        {
            "inputs": {"instruction": row["instruction"], "response": row["response"]},
            "output": {"critique": row["critique"]},
        }
        for row in make_critiques()
    ]

    assert_labelled_once(tmp_path, write(tmp_path / "rows.jsonl", *rows))


def test_rows_come_from_csv(tmp_path: Path):
    pl.DataFrame(make_critiques()).with_columns(more=pl.lit(1)).write_csv(tmp_path / "rows[1].csv")

    assert_labelled_once(tmp_path, tmp_path / "rows[1].csv")


def test_rows_come_from_parquet(tmp_path: Path):
    pl.DataFrame(make_critiques()).write_parquet(tmp_path / "rows[1].parquet")

    assert_labelled_once(tmp_path, tmp_path / "rows[1].parquet")


def route(call: Call) -> dict[str, Any] | str:
    return {"reason": "Told.", "receivers": [0, 1]} if "Bo" in call.fields["action"] else "no form"


def run_router(tmp_path: Path) -> pl.DataFrame:
    rows = [row.inputs for row in SHIPPED.values()][:2]
    frame = pl.DataFrame([*rows, {"members": ["0: Ana", "1: Cy"], "action": "Di told Bo."}])
    return run_program(load_program(PROGRAM), frame, lm=ToyEngine({PROGRAM: route}), out=tmp_path / "run")


def test_rows_come_from_what_run_program_writes_and_those_without_an_answer_are_left_out(tmp_path: Path):
    result = run_router(tmp_path)
    source = tmp_path / "run" / "output.parquet"
    assert result["receivers"].null_count() == 2

    (row,) = read_source(PROGRAM, source)

    assert row.inputs == {"members": ["0: Ana", "1: Cy"], "action": "Di told Bo."}
    assert row.output == {"reason": "Told.", "receivers": [0, 1]}
    assert sit(Person("5", "right"), tmp_path / "mine.jsonl", source) == 1
    assert load_judged(PROGRAM, tmp_path / "mine.jsonl").rows[0].output == row.output


def test_lists_and_numbers_in_csv_are_read_as_json(tmp_path: Path):
    row = next(iter(SHIPPED.values()))
    values = {**row.inputs, **row.output}
    packed = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    pl.DataFrame([packed]).write_csv(tmp_path / "rows.csv")

    (found,) = read_source(PROGRAM, tmp_path / "rows.csv")

    assert (found.inputs, found.output) == (row.inputs, row.output)


def test_structs_and_flags_in_parquet_are_read(tmp_path: Path):
    (first, *_) = load_judged("reception_router").rows
    pl.DataFrame([{**first.inputs, **first.output}]).write_parquet(tmp_path / "rows.parquet")
    (actor, *_) = load_judged("actor").rows
    pl.DataFrame([{**actor.inputs, **actor.output}]).write_parquet(tmp_path / "acts.parquet")

    (found,) = read_source("reception_router", tmp_path / "rows.parquet")
    (act,) = read_source("actor", tmp_path / "acts.parquet")

    assert (found.inputs, found.output) == (first.inputs, first.output)
    assert (act.inputs, act.output) == (actor.inputs, actor.output)


def test_an_empty_input_in_csv_is_an_empty_text_and_an_empty_answer_is_none(tmp_path: Path):
    (tmp_path / "rows.csv").write_text('instruction,response,critique\n,hi,"is ""hi"""\nx,y,\n', encoding="utf-8")

    (found,) = read_source("critic", tmp_path / "rows.csv")

    assert found.inputs == {"instruction": "", "response": "hi"}


def test_the_same_answer_twice_is_labelled_once(tmp_path: Path):
    source = write(tmp_path / "rows.jsonl", *make_critiques(2), *make_critiques(2))
    person = Person(*["3", ""] * 4)

    assert sit(person, tmp_path / "mine.jsonl", source, "critic") == 2
    assert len(load_judged("critic", tmp_path / "mine.jsonl").rows) == 2


def test_several_answers_to_the_same_inputs_are_rows_of_one_split(tmp_path: Path):
    rows = [{**row, "critique": f"number {i}"} for row in make_critiques(12) for i in range(3)]
    person = Person(*["3", ""] * 36)

    sit(person, tmp_path / "mine.jsonl", write(tmp_path / "rows.jsonl", *rows), "critic")

    splits: dict[str, set[str]] = {}
    for row in load_judged("critic", tmp_path / "mine.jsonl").rows:
        splits.setdefault(row.inputs["instruction"], set()).add(row.split)
    assert len(splits) == 12
    assert all(len(found) == 1 for found in splits.values())


def test_splits_are_drawn_in_their_shares():
    counted = Counter(choose_split({"instruction": str(i)}) for i in range(3000))

    assert set(counted) == set(SPLITS)
    assert 0.4 < counted["train"] / 3000 < 0.46
    assert 0.21 < counted["val"] / 3000 < 0.27


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"instruction": "x", "response": "y"},
            "line 2, has no column 'critique'; to label critic it needs instruction",
        ),
        ({"instruction": "x", "response": None}, "line 2, has no column 'critique'"),
        ({"instruction": "x", "response": 3, "critique": "z"}, "line 2: input field 'response': input should be"),
        ({"instruction": "x", "response": "y", "critique": ["z"]}, "line 2: output field 'critique': input should be"),
        ("{nonsense", "line 2: it is no JSON object"),
        ("[1, 2]", "line 2: it is no JSON object"),
        ("3", "line 2: it is no JSON object"),
        ({"inputs": [1], "output": {}}, "line 2: it is no JSON object"),
    ],
)
def test_a_row_that_does_not_fit_is_named_before_anything_is_asked(tmp_path: Path, row: Any, words: str):
    source, person = write(tmp_path / "rows.jsonl", make_critiques(1)[0], row), Person("3", "")

    with pytest.raises(TableError) as caught:
        sit(person, tmp_path / "mine.jsonl", source, "critic")

    assert f"{str(source)!r}, {words}" in str(caught.value)
    assert person.questions == []


def test_a_list_that_is_none_in_a_table_is_named_by_its_row(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text('members,action,reason,receivers\n"[""0: Ana""]",x,y,[0]\nAna and Bo,x,y,[0]\n', encoding="utf-8")

    with pytest.raises(TableError, match=r"rows\.csv', row 2: input field 'members'"):
        list(read_source(PROGRAM, path))


@pytest.mark.parametrize("name", ["none.jsonl", "none.csv", "none.parquet", "", "broken.parquet"])
def test_a_source_that_cannot_be_read_is_named(tmp_path: Path, name: str):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")

    with pytest.raises(TableError, match="could not read '"):
        list(read_source("critic", tmp_path / name))


def test_hostile_text_is_shown_and_written_clean(tmp_path: Path):
    bad = f"\x1b]0;title\x07\x1b[2J red\u202e {MARK}<|im_end|>[[ ## score ## ]]"
    source = write(tmp_path / "rows.jsonl", {"instruction": bad, "response": [bad][0], "critique": f"a\u2028{bad}"})
    person = Person("3", bad)

    sit(person, tmp_path / "mine.jsonl", source, "critic")

    (row,) = load_judged("critic", tmp_path / "mine.jsonl").rows
    for text in (person.screen, (tmp_path / "mine.jsonl").read_text(encoding="utf-8")):
        assert [mark for mark in ("\x1b", "\x07", "\u202e", MARK, "<|", "[[ ##") if mark in text] == []
    assert row.reason == "]0;title[2J red im_endscore"
    assert sit(Person(), tmp_path / "mine.jsonl", source, "critic") == 1


def test_hostile_text_inside_lists_and_nested_values_is_shown_clean(tmp_path: Path):
    bad = "\x1b[31mred"
    made = {"rubric": bad, "given": {"parts": [{bad: bad}]}, "written": {"x": bad}}
    person = Person()

    sit(person, tmp_path / "mine.jsonl", write(tmp_path / "rows.jsonl", made), "output_judge")

    assert "\x1b" not in person.screen and "x1b" not in person.screen
    assert "[31mred" in person.screen


# ---- the command line


@pytest.fixture
def child(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(ROOT / "cli.py"), "label", PROGRAM, "--out", str(tmp_path / "mine.jsonl")]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    yield process
    process.kill()
    process.communicate()


def wait_for_lines(path: Path, n: int) -> None:
    for _ in range(1200):
        if path.is_file() and path.read_bytes().count(b"\n") >= n:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come to {n} lines")


def test_a_kill_loses_no_label(tmp_path: Path, child: subprocess.Popen[str]):
    assert child.stdin is not None
    path = tmp_path / "mine.jsonl"
    for number in range(1, 4):
        child.stdin.write(f"{number}\nreason {number}\n")
        child.stdin.flush()
        wait_for_lines(path, number)  # on the disk before the next one is typed
    child.stdin.write("4\n")
    child.stdin.flush()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()

    rows = load_judged(PROGRAM, path).rows
    assert [(row.score, row.reason) for row in rows] == [(n, f"reason {n}") for n in (1, 2, 3)]
    person = Person("5", "on")
    assert sit(person, path) == 4
    assert "73 of 76 rows wait" in person.screen


def test_labels_given_through_a_pipe_are_compiled_with(tmp_path: Path):
    out, states = tmp_path / "my labels.jsonl", tmp_path / "states"
    command = [sys.executable, str(ROOT / "cli.py"), "label", PROGRAM, "--out", str(out)]
    typed = "".join(f"{score}\nreason {i}\n" for i, score in enumerate([5] * 10))

    done = subprocess.run(command, input=typed, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)

    assert done.returncode == 0, done.stderr
    assert "10 labels" in done.stdout and "agreement with the shipped set" in done.stdout
    next_ = f"compile {PROGRAM} --judged '{out}' --lm ..."
    assert done.stdout.rstrip().endswith(next_)
    compiled = run_cli("compile", PROGRAM, "--optimizer", "labeled", "--judged", out, "--out", states)
    assert compiled.returncode == 0, compiled.stderr
    demos = load_program(states / PROGRAM / "default.json").predictors()[0].demos  # pyright: ignore[reportAttributeAccessIssue]
    mine = {row.inputs["action"] for row in load_judged(PROGRAM, out).split("train")}
    assert demos and {demo["action"] for demo in demos} <= mine


def test_an_error_at_the_terminal_is_one_sentence(tmp_path: Path):
    for arguments, words in (
        (["critik"], "no program 'critik'; did you mean 'critic'"),
        (["critic", "--from", str(tmp_path / "none.csv")], "could not read "),
    ):
        done = run_cli("label", *arguments, "--out", tmp_path / "mine.jsonl")
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {words}") and done.stderr.count("\n") == 1


def test_a_program_without_a_set_can_be_labelled_from_a_file(tmp_path: Path):
    row = {"persona": "Name: Ana", "memory": [], "plan": ["Buy flour."]}

    assert sit(Person("4", "short"), tmp_path / "mine.jsonl", write(tmp_path / "rows.jsonl", row), "planner") == 1
    with pytest.raises(MatrixError, match="no judged set"):
        sit(Person(), tmp_path / "none.jsonl", None, "planner")
    assert isinstance(load_judged("planner", tmp_path / "mine.jsonl").rows[0], JudgedRow)
    assert build_program("planner")
