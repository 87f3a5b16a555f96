import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from matrix_dspy.errors import ConfigError, TableError
from matrix_dspy.evaluation.answers import Subject
from matrix_dspy.evaluation.asking import AskOptions
from matrix_dspy.evaluation.following import read_constraints, run_following
from matrix_dspy.evaluation.intervals import wilson
from matrix_dspy.evaluation.lm_eval_files import read_samples, summarise
from matrix_dspy.evaluation.questions import Question, read_questions
from matrix_dspy.evaluation.record import Evaluation
from tests.evaluation.scripted import Scripted, against

QUIET = AskOptions(is_quiet=True)
COMMA, TITLE, WORDS = "en:punctuation:no_comma", "en:detectable_format:title", "en:length_constraints:number_words"
ROWS = [
    {"key": 1, "prompt": "Describe the sea without commas.", "instruction_id_list": [COMMA], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "Write a title in double angle brackets and fewer than 5 words.",
        "instruction_id_list": [TITLE, WORDS],
        "kwargs": [{}, {"relation": "less than", "num_words": 5}],
    },
    {"key": 3, "prompt": "Tell a tale without commas.", "instruction_id_list": [COMMA], "kwargs": [{}]},
]
REPLIES = {
    "Describe": "It is blue and wide.",
    "Write": "<<The Sea>> It goes on and on and on.",
    "Tell": "Well, here you are:\nOnce there was a fox.",
}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def run(model: Scripted, path: Path, folder: Path, **more: Any) -> Evaluation:
    return against(
        model, lambda url: run_following(Subject.of(f"m={url}"), read_questions(path), folder, QUIET, **more)
    )


def test_prompts_and_constraints_kept_are_measured_strictly_and_loosely(tmp_path: Path):
    model = Scripted(lambda turns, n: REPLIES[turns[0].split()[0]])

    found = run(model, write(tmp_path / "q.jsonl", *ROWS), tmp_path / "out")

    values = {figure.name: figure.value for figure in found.figures if not figure.group}
    assert values == {
        "prompt-level strict": pytest.approx(100 / 3),
        "prompt-level loose": pytest.approx(200 / 3),  # the tale without its first line
        "instruction-level strict": 50,
        "instruction-level loose": 75,
    }
    wanted = wilson(1, 3).scale(100)
    figure = found.find("prompt-level strict")
    assert (figure.low, figure.high, figure.n) == (wanted.low, wanted.high, 3)
    assert found.find("instruction-level strict", "punctuation:no_comma").value == 50
    assert found.find("instruction-level loose", "punctuation:no_comma").value == 100
    assert found.find("instruction-level strict", "length_constraints:number_words").n == 1
    assert found.counts == {"prompts": 3, "constraints": 4, "missing": 0, "cut off": 0, "empty": 0}
    assert found.scores == {"1": 100, "2": 0, "3": 0}
    assert sorted(turns[0] for turns in model.asked) == sorted(str(row["prompt"]) for row in ROWS)
    judged = [json.loads(line) for line in (tmp_path / "out" / "judged.jsonl").read_text().splitlines()]
    assert [(row["question_id"], row["strict"], row["loose"]) for row in judged] == [
        ("1", [True], [True]),
        ("2", [True, False], [True, False]),
        ("3", [False], [True]),
    ]


def test_an_empty_reply_keeps_nothing_and_is_counted(tmp_path: Path):
    found = run(Scripted(lambda turns, n: ""), write(tmp_path / "q.jsonl", *ROWS), tmp_path / "out")

    assert {figure.value for figure in found.figures} == {0}
    assert found.counts["empty"] == 3


def test_several_answers_a_prompt_are_all_judged(tmp_path: Path):
    model = Scripted(lambda turns, n: "Blue and wide." if n == 0 else "Blue, and wide.")

    found = run(model, write(tmp_path / "q.jsonl", ROWS[0]), tmp_path / "out", samples=2)

    assert (found.find("prompt-level strict").value, found.find("prompt-level strict").n) == (50, 1)
    assert found.counts["constraints"] == 2


def test_the_log_for_the_harness_gives_the_same_figures(tmp_path: Path):
    model = Scripted(lambda turns, n: REPLIES[turns[0].split()[0]])

    found = run(model, write(tmp_path / "q.jsonl", *ROWS), tmp_path / "out")

    (path,) = (tmp_path / "out" / "lm_eval").glob("samples_ifeval_*")
    figures = summarise("m", {"ifeval": read_samples(path)}).tasks["ifeval"]
    for level in ("strict", "loose"):
        assert 100 * (figures[f"prompt_level_{level}_acc,none"] or 0) == found.find(f"prompt-level {level}").value
        assert 100 * (figures[f"inst_level_{level}_acc,none"] or 0) == found.find(f"instruction-level {level}").value


def test_what_cannot_be_decided_is_refused_before_anything_is_asked(tmp_path: Path):
    model = Scripted(lambda turns, n: "")
    rows = {
        "no kind of constraint 'en:punctuation:no_coma'; did you mean 'punctuation:no_comma'": {
            "instruction_id_list": ["en:punctuation:no_coma"],
            "kwargs": [{}],
        },
        "question '9': .*lacks its argument 'num_words'|question '9': .*lacks its argument 'relation'": {
            "instruction_id_list": [WORDS],
            "kwargs": [{}],
        },
    }
    for message, row in rows.items():
        with pytest.raises(ConfigError, match=message):
            run(model, write(tmp_path / "q.jsonl", {"key": 9, "prompt": "Go.", **row}), tmp_path / "out")
    for row in ({}, {"instruction_id_list": []}, {"instruction_id_list": "x"}):
        with pytest.raises(TableError, match="question '9' has no constraints"):
            run(model, write(tmp_path / "q.jsonl", {"key": 9, "prompt": "Go.", **row}), tmp_path / "out")
    with pytest.raises(TableError, match="give one object per constraint"):
        read_constraints(Question("9", ("Go.",), row={"instruction_id_list": [COMMA], "kwargs": [{}, {}]}))

    assert model.asked == []
    assert not (tmp_path / "out").exists()


def test_arguments_of_other_kinds_that_are_empty_do_not_count():
    row = {"instruction_id_list": [WORDS], "kwargs": [{"relation": "at least", "num_words": 3, "keywords": None}]}

    assert read_constraints(Question("9", ("Go.",), row=row)).arguments == ({"relation": "at least", "num_words": 3},)


def test_answers_of_a_real_model_are_scored_as_they_were_recorded(shared_data: Path, tmp_path: Path):
    questions = read_questions(shared_data / "benchmarks" / "ifeval_en_input_data.jsonl")
    path = shared_data / "outputs" / "ifeval_en_qwen2.5-7b-instruct_strict.jsonl"
    verdicts = [json.loads(line)["follow_instruction_list"] for line in path.read_text("utf-8").splitlines()]
    kept_whole, kept = [all(each) for each in verdicts], [one for each in verdicts for one in each]

    found = asyncio.run(run_following(Subject.of(str(path)), questions, tmp_path, QUIET))

    assert found.counts["prompts"] == 541 and found.counts["constraints"] == 834
    # the record has faults of its own, each told apart in the tests of the checkers
    prompts, constraints = found.find("prompt-level strict"), found.find("instruction-level strict")
    assert prompts.value == pytest.approx(100 * sum(kept_whole) / len(kept_whole), abs=1.5)
    assert constraints.value == pytest.approx(100 * sum(kept) / len(kept), abs=1.5)


def test_the_rehearsal_goes_through(tmp_path: Path):
    path = write(tmp_path / "q.jsonl", *ROWS)

    found = asyncio.run(run_following(Subject.of("rehearsal"), read_questions(path), tmp_path / "out", QUIET))

    assert found.counts["prompts"] == 3
    assert any("of no model" in note for note in found.notes)
