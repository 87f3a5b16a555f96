import asyncio
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.curation.verifying import find_final_number
from matrix_dspy.errors import RunError, TableError
from matrix_dspy.evaluation.answers import Answer, Subject
from matrix_dspy.evaluation.asking import AskOptions
from matrix_dspy.evaluation.checking import measure_share, read_reply
from matrix_dspy.evaluation.intervals import wilson
from matrix_dspy.evaluation.judging import Scored
from matrix_dspy.evaluation.lm_eval_files import read_results, read_samples
from matrix_dspy.evaluation.math import check_reply, read_reference, run_math
from matrix_dspy.evaluation.questions import Question, read_questions
from matrix_dspy.evaluation.record import Evaluation, read_evaluation
from tests.evaluation.scripted import Said, Scripted, against

QUIET = AskOptions(is_quiet=True)


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("#### Step 3: add 5 pears\nThat makes 7.\n\nAnswer: 12", "12"),
        ("#### 1. Count\nThere are 4 rows.\n#### 2. Multiply\nso 4 * 6 = 24.", "24"),
        ("First 3, then 4.\n#### 7\n\nI checked it.", "7"),
        ("#### **7**\n\nThat is after 2 checks.", "7"),
        ("#### $1,250.50\nwhich is less than 2000", "2501/2"),
        ("The total is 30. Each of the 5 gets 30 / 5 = 6.", "6"),
        ("The total is 30.\nEach of the 5 gets 6", "6"),
        ("So the total is 30, which is all of it.", "30"),
        ("The result is 8 (after rounding).", "8"),
        ("Answer: 5\nWait, 2 more came. Answer: 7", "7"),
        ("**Answer: 9**", "9"),
        ("Answer:\n\n11", "11"),
        ("The answer is the sum of both, 13.", "13"),
        ("My answer is no number at all", None),
    ],
)
def test_the_number_a_reply_ends_in_is_read_past_headings_and_sums_on_the_way(reply: str, value: str | None):
    number = find_final_number(reply)

    assert (number.value if number else None) == (Fraction(value) if value else None)


@given(
    st.integers(-(10**6), 10**6),
    st.lists(st.integers(0, 10**4), max_size=6),
    st.sampled_from(["Answer: {}", "**Answer:** {}", "#### {}", "The answer is {}.", "Answer: ${:,}", r"\boxed{{{}}}"]),
)
def test_numbers_on_the_way_never_count(final: int, others: list[int], form: str):
    steps = "".join(f"\n#### Step {i}\nThis makes {other} in total.\n" for i, other in enumerate(others))
    found = check_reply(
        read_reference(Question("q", ("?",), references=(f"so\n#### {final}",))),
        steps + form.format(final).replace("$-", "-$"),
    )

    assert found.is_right
    assert found.reason == ""


def test_a_question_without_a_number_to_compare_with_is_named():
    for references in ((), ("no idea",)):
        with pytest.raises(
            TableError, match=r"question 'q7' has no number for an answer; give one in a column `answer`"
        ):
            read_reference(Question("q7", ("?",), references=references))


def write_sums(path: Path, n: int = 5) -> Path:
    rows = [
        {"question": f"{i} and {i}?", "answer": f"{i} + {i}\n#### {2 * i}", "type": "odd" if i % 2 else "even"}
        for i in range(n)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def run(model: Scripted, path: Path, folder: Path, **more: Any) -> Evaluation:
    questions = read_questions(path)
    return against(model, lambda url: run_math(Subject.of(f"m={url}"), questions, folder, QUIET, **more))


def reply_to_sums(turns: list[str], n_before: int) -> Said:
    first = int(turns[0].split()[0])
    return {
        0: "Nothing and nothing.\nAnswer: 0",
        1: "That is\n\nAnswer: 3",
        2: "I do not know.",
        3: ("3 and 3 make", "length"),
        4: "#### Step 1\n4 + 4 = 8\n\nAnswer: 8",
    }[first]


def test_the_share_of_right_numbers_is_measured(tmp_path: Path):
    model = Scripted(reply_to_sums)

    found = run(model, write_sums(tmp_path / "sums.jsonl"), tmp_path / "out")

    wanted = wilson(2, 5).scale(100)
    figure = found.find("accuracy")
    assert (figure.value, figure.low, figure.high, figure.n) == (40, wanted.low, wanted.high, 5)
    assert found.find("accuracy", "even").value == pytest.approx(200 / 3)
    assert found.find("accuracy", "odd").value == 0
    counted = {"right": 2, "wrong": 2, "no number": 1}
    assert found.counts == {"questions": 5, "answers": 5, "missing": 0, "cut off": 1, **counted}
    assert list(found.scores.values()) == [100, 0, 0, 0, 100]
    assert read_evaluation(tmp_path / "out") == found
    judged = [json.loads(line) for line in (tmp_path / "out" / "judged.jsonl").read_text().splitlines()]
    assert [(row["expected"], row["found"], row["reason"]) for row in judged] == [
        ("0", "0", ""),
        ("2", "3", "wrong"),
        ("4", None, "no number"),
        ("6", "3", "wrong"),
        ("8", "8", ""),
    ]
    assert all(turns[0].startswith(f"{turns[0][0]} and {turns[0][0]}?\n\n") for turns in model.asked)
    assert {body["temperature"] for body in model.bodies} == {0.0}


def test_several_answers_a_question_count_by_their_share(tmp_path: Path):
    found = run(
        Scripted(lambda turns, n: f"Answer: {0 if n % 2 else 2}"),
        write_sums(tmp_path / "sums.jsonl", 2),
        tmp_path / "out",
        samples=4,
    )

    figure = found.find("accuracy")
    assert (figure.value, figure.n) == (50, 2)
    assert list(found.scores.values()) == [50, 50]


def test_a_question_without_an_answer_is_in_no_figure(tmp_path: Path):
    path = write_sums(tmp_path / "sums.jsonl")
    known = read_questions(path)[3].question_id
    (tmp_path / "given.jsonl").write_text(json.dumps({"id": known, "output": "Answer: 6"}) + "\n")

    found = asyncio.run(
        run_math(Subject.of(str(tmp_path / "given.jsonl")), read_questions(path), tmp_path / "out", QUIET)
    )

    assert (found.find("accuracy").value, found.find("accuracy").n) == (100, 1)
    assert found.counts["missing"] == 4
    assert any("4 of 5 questions have no answer" in note for note in found.notes)


def test_the_reference_solutions_of_a_benchmark_are_all_right(shared_data: Path, tmp_path: Path):
    path = shared_data / "benchmarks" / "gsm8k_test.jsonl"

    found = asyncio.run(run_math(Subject.of(str(path)), read_questions(path), tmp_path, QUIET))

    assert (found.find("accuracy").value, found.find("accuracy").n) == (100, 1319)
    (results,) = (tmp_path / "lm_eval").glob("results_*")
    assert read_results(results).tasks["gsm8k"]["exact_match,strict-match"] == 1


def test_the_log_for_the_harness_has_both_of_its_ways_of_reading(tmp_path: Path):
    replies = ["Answer: 0.", "so 2\n#### 2", "It is $4", "6 minus", "#### 8 pears"]

    run(Scripted(lambda turns, n: replies[int(turns[0][0])]), write_sums(tmp_path / "sums.jsonl"), tmp_path / "out")

    (path,) = (tmp_path / "out" / "lm_eval").glob("samples_gsm8k_*")
    found = {(each.filter, each.doc_id): (each.filtered, each.metrics["exact_match"]) for each in read_samples(path)}
    assert found == {
        ("strict-match", 0): ("[invalid]", 0),
        ("strict-match", 1): ("2", 1),
        ("strict-match", 2): ("[invalid]", 0),
        ("strict-match", 3): ("[invalid]", 0),
        ("strict-match", 4): ("8", 1),
        ("flexible-extract", 0): ("0.", 1),
        ("flexible-extract", 1): ("2", 1),
        ("flexible-extract", 2): ("$4", 1),
        ("flexible-extract", 3): ("6", 1),
        ("flexible-extract", 4): ("8", 1),
    }
    again = Subject.of(str(path))
    read = asyncio.run(run_math(again, read_questions(tmp_path / "sums.jsonl"), tmp_path / "again", QUIET))
    assert read.counts["answers"] == 5
    assert read.find("accuracy").value == 100


def test_a_rerun_asks_nothing_and_gives_the_same_files(tmp_path: Path):
    model = Scripted(reply_to_sums)
    path = write_sums(tmp_path / "sums.jsonl")

    def read_files() -> dict[str, bytes]:
        files = (file for file in (tmp_path / "out").rglob("*") if file.is_file() and "journal" not in file.parts)
        return {str(file): file.read_bytes() for file in files}

    async def twice(url: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
        found: list[dict[str, bytes]] = []
        for _ in range(2):
            await run_math(Subject.of(f"m={url}"), read_questions(path), tmp_path / "out", QUIET)
            found.append(read_files())
        return found[0], found[1]

    first, second = against(model, twice)

    assert len(model.asked) == 5
    assert first == second
    assert len(first) == 6


def test_the_rehearsal_is_said_to_be_no_model(tmp_path: Path):
    path = write_sums(tmp_path / "sums.jsonl")

    found = asyncio.run(run_math(Subject.of("rehearsal"), read_questions(path), tmp_path / "out", QUIET))

    assert found.counts["answers"] == 5
    assert any("of no model" in note for note in found.notes)


def test_a_folder_of_another_kind_is_refused_before_anything_is_asked(tmp_path: Path):
    model = Scripted(reply_to_sums)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.toml").write_text("")

    with pytest.raises(RunError, match="holds a run or a model"):
        run(model, write_sums(tmp_path / "sums.jsonl"), tmp_path / "run")

    assert model.asked == []


def test_what_was_thought_is_no_part_of_the_reply():
    def read(text: str) -> str:
        return read_reply(Answer("q", (text,)))

    assert read("<think>\nmaybe 5\n</think>\n\nAnswer: 6") == "Answer: 6"
    assert read("<think>\nmaybe 5") == ""
    assert read("    return 5\n") == "    return 5\n"


def test_shares_have_wilsons_interval_only_where_each_question_has_one_verdict():
    questions = [Question(f"q{i}", ("?",)) for i in range(4)]
    single = [Scored(question, float(i == 0)) for i, question in enumerate(questions)]
    wanted = wilson(1, 4).scale(100)

    figure = measure_share("x", single, seed=0)
    double = measure_share("x", [*single, *single], seed=0)

    assert (figure.low, figure.high, figure.n) == (wanted.low, wanted.high, 4)
    assert (double.value, double.n) == (25, 4)
    assert measure_share("x", [], seed=0).value is None
