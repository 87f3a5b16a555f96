from pathlib import Path

import dspy
import pytest
import reuse

import matrix_dspy
from matrix_dspy.bulk.prompt import Prompt
from matrix_dspy.programs.judge import ResponseJudge

LM = "rehearsal"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_three_compiled_programs_load() -> None:
    programs = reuse.load_three()

    assert [type(program).__name__ for program in programs.values()] == ["ResponseJudge", "Critic", "Reviser"]
    assert all(program.predictors()[0].demos for program in programs.values())


def test_a_frame_is_judged_in_bulk_and_not_paid_for_twice(tmp_path: Path) -> None:
    judge = reuse.load_three()["response_judge"]

    first = reuse.judge_answers(judge, LM, tmp_path / "bulk")
    again = reuse.judge_answers(judge, LM, tmp_path / "bulk")

    assert first["error"].to_list() == [None] * 3
    assert set(first["score"]) <= {1, 2, 3, 4, 5}
    assert again.equals(first)
    assert len((tmp_path / "bulk" / "journal" / "main.jsonl").read_text("utf-8").splitlines()) == 3


def test_the_judge_is_recompiled_on_labels_of_ones_own(tmp_path: Path) -> None:
    judge = reuse.recompile_judge(LM, tmp_path / "optimized")

    demos = [demo["instruction"] for demo in judge.predictors()[0].demos]
    assert demos
    assert all(demo in reuse.LABELS.read_text("utf-8") for demo in demos)


def test_the_state_loads_with_plain_dspy_and_sends_the_same(tmp_path: Path) -> None:
    judge = reuse.recompile_judge(LM, tmp_path / "optimized")
    plain = ResponseJudge()

    plain.load(tmp_path / "optimized" / "response_judge" / "default.json")

    inputs = {"instruction": "Name a river.", "response": "The Alps."}
    assert Prompt.of(plain).messages(inputs) == Prompt.of(judge).messages(inputs)
    assert Prompt.of(plain).messages(inputs) != Prompt.of(ResponseJudge()).messages(inputs)


def test_two_programs_work_in_a_module_of_ones_own() -> None:
    programs = reuse.load_three()
    improver = reuse.Improver(programs["critic"], programs["reviser"])

    with dspy.context(lm=matrix_dspy.build_lm(LM)):
        improved = improver(instruction="Name three rivers.", response="The Alps.")

    assert improved.critique and improved.revision
    assert [name for name, _ in improver.named_predictors()] == ["critic.predict", "reviser.predict"]


def test_the_module_runs_in_bulk_too(tmp_path: Path) -> None:
    programs = reuse.load_three()
    improver = reuse.Improver(programs["critic"], programs["reviser"])

    frame = matrix_dspy.run_program(improver, reuse.ANSWERS, lm=LM, out=tmp_path / "improved")

    assert frame["error"].to_list() == [None] * 3
    assert all(frame["revision"])


def test_dspys_own_evaluation_runs_on_the_labels() -> None:
    found = reuse.evaluate(matrix_dspy.load_program("response_judge"), matrix_dspy.build_lm(LM))

    assert 0 < found <= 100
