import json
from pathlib import Path

import pytest

from matrix_dspy.errors import RunError
from matrix_dspy.evaluation.record import Evaluation, Figure, check_folder, read_evaluation, write_evaluation

EVALUATION = Evaluation(
    "math",
    {"model": "a|b <script>"},
    questions={"name": "sums.jsonl", "n": 3},
    settings={"seed": 0},
    figures=[Figure("accuracy", 66.667, 20.0, 94.0, 3), Figure("accuracy", 100.0, 20.6, 100.0, 1, group="odd\n| x")],
    counts={"missing": 0, "cut off": 2},
    notes=["one *note*\x1b[31m"],
    scores={"q1": 100.0},
)


def test_an_evaluation_is_written_and_read_back(tmp_path: Path):
    path = write_evaluation(EVALUATION, [{"question_id": "q1", "is_right": True}], tmp_path / "new" / "folder")

    assert read_evaluation(path.parent) == EVALUATION
    assert json.loads((path.parent / "judged.jsonl").read_text()) == {"question_id": "q1", "is_right": True}
    assert json.loads(path.read_text())["version"]


def test_figures_are_found_by_name_and_group():
    assert EVALUATION.find("accuracy").value == 66.667
    assert EVALUATION.find("accuracy", "odd\n| x").n == 1
    with pytest.raises(KeyError):
        EVALUATION.find("accuracy", "even")


def test_lines_tell_overall_figures_and_counts_that_are_not_zero():
    lines = EVALUATION.lines()

    assert " ".join(lines[1].split()) == "accuracy 66.67 % [20.00, 94.00], n = 3"
    assert "cut off: 2" in lines[2] and "missing" not in lines[2]
    assert not any("odd" in line or "\x1b" in line for line in lines)
    assert Figure("x", None).words() == "not measured"


def test_names_are_no_markup_on_the_page(tmp_path: Path):
    page = (write_evaluation(EVALUATION, [], tmp_path).parent / "README.md").read_text()

    assert "a\\|b \\<script\\>" in page
    assert "odd \\| x" in page
    assert "<script>" not in page


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for name, held in (("run", "run.toml"), ("model", "train.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / held).write_text("")
        with pytest.raises(RunError, match="holds a run or a model; give another folder with --out"):
            check_folder(tmp_path / name, "math")
    with pytest.raises(RunError, match="is a file"):
        check_folder(tmp_path / "file", "math")
    write_evaluation(EVALUATION, [], tmp_path / "done")
    with pytest.raises(RunError, match="holds an evaluation of kind 'math'"):
        check_folder(tmp_path / "done", "code")

    check_folder(tmp_path / "done", "math")
    check_folder(tmp_path / "nowhere", "math")


def test_there_is_nothing_to_read_where_nothing_was_written(tmp_path: Path):
    with pytest.raises(RunError, match="no evaluation in"):
        read_evaluation(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"kind": "ma')
    with pytest.raises(RunError, match="could not read"):
        read_evaluation(tmp_path)
