import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from matrix_dspy.config import SamplingConfig
from matrix_dspy.errors import ConfigError, TableError
from matrix_dspy.evaluation.answers import Answers, Subject, gather_answers, name_file, read_answers
from matrix_dspy.evaluation.asking import AskOptions
from matrix_dspy.evaluation.questions import Question, read_questions
from matrix_dspy.training.tiny import build_tiny_model
from tests.conftest import ROOT
from tests.evaluation.scripted import Said, Scripted, against

QUIET = AskOptions(is_quiet=True)
COLD = SamplingConfig(temperature=0.0, max_tokens=64)
QUESTIONS = [Question(f"n{i}", (f"What is {i} plus {i}?",)) for i in range(6)]


def double(turns: list[str], n_before: int) -> str:
    return f"It is {2 * int(turns[-1].split()[2])}."


def gather(subject: Subject, questions: list[Question], folder: Path, **more: Any) -> Any:
    return gather_answers(subject, questions, folder, QUIET, **{"sampling": COLD, **more})


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


# Who is evaluated -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of other weights, in folders of one name."""
    parts = [tmp_path_factory.mktemp(name) / "model" for name in ("first", "second")]
    return (build_tiny_model(parts[0], seed=0), build_tiny_model(parts[1], seed=1))


def test_a_subject_is_a_folder_a_file_or_an_lm(tmp_path: Path, tiny_models: tuple[Path, Path]):
    file = write(tmp_path / "given.jsonl", {"id": 1})

    assert Subject.of(str(file)) == Subject("given", path=file, label="given")
    assert Subject.of(f"before={file}").name == "before"
    assert Subject.of("rehearsal") == Subject("rehearsal", "rehearsal", label="rehearsal")
    assert Subject.of("mine=rehearsal?skill=low").name == "mine"
    assert Subject.of("mine=rehearsal?skill=low").spec == "rehearsal?skill=low"
    folder = Subject.of(str(tiny_models[0]))
    assert (folder.name, folder.path) == ("model", None)
    assert folder.spec in (f"transformers:{tiny_models[0]}", f"vllm:{tiny_models[0]}")


def _turn_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_other_weights_have_another_label_however_they_are_named(tmp_path: Path, tiny_models: tuple[Path, Path]):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny_models[0], base)
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (adapter / "adapter_model.safetensors").write_bytes(b"0" * 100)
    forms = [
        base,
        adapter,
        f"vllm:{base}?max_model_len=512",
        f"transformers:{base}",
        f"mine=transformers:{base}?adapter={adapter}",
    ]

    before = [Subject.of(str(form)).label for form in forms]
    assert [Subject.of(str(form)).label for form in forms] == before
    _turn_a_bit(next(base.glob("*.safetensors")))
    after = [Subject.of(str(form)).label for form in forms]
    assert all(one != other for one, other in zip(before, after, strict=True))
    _turn_a_bit(adapter / "adapter_model.safetensors")
    last = [Subject.of(str(form)).label for form in forms]

    assert [one != other for one, other in zip(after, last, strict=True)] == [False, True, False, False, True]


def test_an_equals_sign_in_an_address_names_nobody():
    subject = Subject.of("http://127.0.0.1:8000/v1?token=abc#m")

    assert subject.spec == "http://127.0.0.1:8000/v1?token=abc#m"
    assert "abc" not in subject.name + subject.label


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path):
    for name in ("gone.jsonl", "gone.json", "gone.jsonl.gz", "gone.csv", "gone.parquet"):
        with pytest.raises(ConfigError, match=r"no file of answers .*gone"):
            Subject.of(str(tmp_path / name))
    with pytest.raises(ConfigError, match=r"no model folder .*/nothing"):
        Subject.of(str(tmp_path / "nothing"))


def test_a_name_becomes_a_plain_file_name():
    assert name_file("../org/My model:v1.2") == "org_My_model_v1.2"
    assert name_file("模型 7B") == "模型_7B"
    assert name_file("...") == "model"
    assert len(name_file("x" * 300)) == 80


# Answers of a file ----------------------------------------------------------------------------------------------------


def test_answers_are_matched_by_id_and_by_text(tmp_path: Path):
    path = write(
        tmp_path / "given.jsonl",
        {"question_id": "n0", "output": "zero", "generator": "some-model"},
        {"instruction": "What is 1 plus 1?", "output": "two"},
        {"prompt": " What is 2 plus 2?\n", "response": "four"},
        {"question_id": "n3", "choices": [{"index": 0, "turns": [{"content": "six"}]}]},
        {"question_id": "foreign", "output": "of another benchmark"},
    )

    answers = read_answers(path, QUESTIONS, "given")

    assert {key: [each.text for each in found] for key, found in answers.by_id.items()} == {
        "n0": ["zero"],
        "n1": ["two"],
        "n2": ["four"],
        "n3": ["six"],
    }
    assert answers.missing == {"n4": "no answer in the file", "n5": "no answer in the file"}
    assert answers.model == "some-model"


def test_text_counts_for_more_than_an_id_of_another_numbering(tmp_path: Path):
    path = write(tmp_path / "given.jsonl", {"id": "n5", "prompt": "What is 0 plus 0?", "output": "nought"})

    assert list(read_answers(path, QUESTIONS, "given").by_id) == ["n0"]


def test_questions_of_one_text_are_answered_in_turn(tmp_path: Path):
    twice = [Question("a", ("Same?",)), Question("b", ("Same?",))]
    rows = [{"instruction": "Same?", "output": text} for text in ("first", "second")]

    answers = read_answers(write(tmp_path / "given.jsonl", *rows), twice, "given")

    assert [answers.by_id[name][0].text for name in ("a", "b")] == ["first", "second"]


def test_several_answers_to_a_question_are_samples(tmp_path: Path):
    rows = [{"question_id": "n0", "turns": [f"try {i}"], "is_cut_off": i == 2} for i in range(3)]

    answers = read_answers(write(tmp_path / "given.jsonl", *rows), QUESTIONS, "given")

    assert [(each.text, each.sample, each.is_cut_off) for each in answers.by_id["n0"]] == [
        ("try 0", 0, False),
        ("try 1", 1, False),
        ("try 2", 2, True),
    ]
    assert answers.n_cut_off == 1


def test_samples_of_the_harness_are_read_once_whatever_ways_they_were_read(tmp_path: Path):
    rows = [
        {"doc_id": i, "doc": {"question": f"What is {i} plus {i}?"}, "resps": [[f"it is {2 * i}"]], "filter": name}
        for name in ("strict-match", "flexible-extract")
        for i in (1, 0)
    ]

    answers = read_answers(write(tmp_path / "given.jsonl", *rows), QUESTIONS, "given")

    assert {key: [each.text for each in found] for key, found in answers.by_id.items()} == {
        "n1": ["it is 2"],
        "n0": ["it is 0"],
    }


def test_an_empty_answer_is_an_answer(tmp_path: Path):
    assert (
        read_answers(write(tmp_path / "a.jsonl", {"id": "n0", "output": ""}), QUESTIONS, "a").by_id["n0"][0].text == ""
    )


def test_a_file_that_answers_nothing_is_refused(tmp_path: Path):
    with pytest.raises(TableError, match="answers none of the questions"):
        read_answers(write(tmp_path / "given.jsonl", {"id": "x", "output": "y"}), QUESTIONS, "given")
    with pytest.raises(TableError, match="answers none of the questions"):
        read_answers(write(tmp_path / "given.jsonl", {"id": "n0", "colour": "red"}), QUESTIONS, "given")


# Answers of a model ---------------------------------------------------------------------------------------------------


def test_what_a_model_answered_can_be_read_back(tmp_path: Path):
    model = Scripted(double)

    answers = against(model, lambda url: gather(Subject.of(f"m={url}"), QUESTIONS, tmp_path, n=2))

    assert (answers.name, answers.model) == ("m", "scripted")
    assert [each.text for each in answers.by_id["n4"]] == ["It is 8."] * 2
    assert all(turns == [question.text] for turns, question in zip(sorted(model.asked)[::2], QUESTIONS, strict=True))
    assert read_answers(tmp_path / "answers" / "m.jsonl", QUESTIONS, "m") == answers


def test_samples_have_seeds_of_their_own_and_the_same_in_every_run(tmp_path: Path):
    warm = SamplingConfig(temperature=0.9, max_tokens=64)
    seeds: list[Counter[int]] = []
    for place in ("a", "b"):
        model = Scripted(double)
        against(model, lambda url, p=place: gather(Subject.of(f"m={url}"), QUESTIONS, tmp_path / p, n=3, sampling=warm))
        seeds.append(Counter(body["seed"] for body in model.bodies))

    assert seeds[0] == seeds[1]
    assert len(seeds[0]) == 18


def test_answers_that_were_cut_off_are_kept_and_counted(tmp_path: Path):
    def reply(turns: list[str], n_before: int) -> Said:
        return ("It is", "length") if "1 plus" in turns[0] else double(turns, n_before)

    answers: Answers = against(Scripted(reply), lambda url: gather(Subject.of(f"m={url}"), QUESTIONS, tmp_path))

    assert answers.n_cut_off == 1
    assert answers.by_id["n1"][0].text == "It is"
    assert [each.is_cut_off for found in answers.by_id.values() for each in found] == [i == 1 for i in range(6)]


def test_an_empty_answer_of_a_model_is_kept(tmp_path: Path):
    answers: Answers = against(
        Scripted(lambda turns, n: ""), lambda url: gather(Subject.of(f"m={url}"), QUESTIONS, tmp_path)
    )

    assert {found[0].text for found in answers.by_id.values()} == {""}
    assert not answers.missing


def test_a_row_that_asks_something_else_answers_no_question_by_its_id(tmp_path: Path):
    rows = [
        {"question_id": "n0", "instruction": "What is 0 plus 0? Think first.", "output": "zero"},
        {"question_id": "n1", "instruction": "Name a river.", "output": "the Elbe"},
        {"question_id": "n2", "prompt": "<user>what  IS 2\nplus 2?</user>", "output": "four"},
        {"question_id": "n3", "output": "six"},
    ]

    answers = read_answers(write(tmp_path / "given.jsonl", *rows), QUESTIONS, "given")

    assert sorted(answers.by_id) == ["n0", "n2", "n3"]
    assert answers.missing["n1"] == "its row in the file asks something else"
    with pytest.raises(TableError, match=r"names 1 of them by their id but asks something else, as for 'n1'"):
        read_answers(write(tmp_path / "other.jsonl", rows[1]), QUESTIONS, "given")


def test_a_question_the_server_refuses_is_missing_and_says_why(tmp_path: Path):
    class Refusing(Scripted):
        async def __call__(self, request: web.Request) -> web.StreamResponse:
            if "3 plus" in await request.text():
                return web.json_response({"error": {"message": "that is too long"}}, status=400)
            return await super().__call__(request)

    answers: Answers = against(Refusing(double), lambda url: gather(Subject.of(f"m={url}"), QUESTIONS, tmp_path, n=2))

    assert set(answers.missing) == {"n3"}
    assert "that is too long" in answers.missing["n3"]
    assert len(answers.by_id) == 5


def test_a_conversation_is_held_turn_by_turn(tmp_path: Path):
    questions = [Question("long", ("one", "two", "three")), Question("short", ("uno",))]
    model = Scripted(lambda turns, n: f"heard {len(turns)}: {turns[-1]}")

    answers: Answers = against(model, lambda url: gather(Subject.of(f"m={url}"), questions, tmp_path))
    against(model, lambda url: gather(Subject.of(f"cut={url}"), questions, tmp_path / "cut", n_turns=2))

    assert answers.by_id["long"][0].turns == ("heard 1: one", "heard 3: two", "heard 5: three")
    assert answers.by_id["short"][0].turns == ("heard 1: uno",)
    assert ["one", "heard 1: one", "two", "heard 3: two", "three"] in model.asked
    cut = [json.loads(line) for line in (tmp_path / "cut" / "answers" / "cut.jsonl").read_text().splitlines()]
    assert [len(row["turns"]) for row in cut] == [2, 1]


def test_asking_again_costs_nothing_and_other_sampling_or_questions_are_asked(tmp_path: Path):
    model = Scripted(double)

    async def ask_all(url: str) -> list[int]:
        counts: list[int] = []
        subject = Subject.of(f"m={url}")
        for more in ({}, {}, {"n": 2}, {"n": 2, "sampling": SamplingConfig(temperature=0.0, max_tokens=32)}):
            before = len(model.asked)
            await gather(subject, QUESTIONS[:3], tmp_path, **more)
            counts.append(len(model.asked) - before)
        return counts

    assert against(model, ask_all) == [3, 0, 3, 6]


def test_two_models_that_are_served_under_one_name_do_not_mix(tmp_path: Path):
    first, second = Scripted(lambda turns, n: "I am the first."), Scripted(lambda turns, n: "I am the second.")

    async def ask_both(one: str, other: str) -> list[Answers]:
        return [await gather(Subject.of(url), QUESTIONS[:2], tmp_path) for url in (one, other)]

    async def run() -> list[Answers]:
        from tests.loopback import serve

        async with serve(first) as one, serve(second) as other:
            return await ask_both(one, other)

    found = asyncio.run(run())

    assert [each.by_id["n0"][0].text for each in found] == ["I am the first.", "I am the second."]
    assert len(list((tmp_path / "answers").iterdir())) == 2


DRIVER = """
import asyncio, sys
from pathlib import Path
from matrix_dspy.config import SamplingConfig
from matrix_dspy.evaluation.answers import Subject, gather_answers
from matrix_dspy.evaluation.asking import AskOptions
from matrix_dspy.evaluation.questions import Question
questions = [Question(f"n{i}", (f"What is {i} plus {i}?",)) for i in range(6)]
work = gather_answers(Subject.of(sys.argv[1]), questions, Path(sys.argv[2]), AskOptions(2, is_quiet=True),
                      sampling=SamplingConfig(temperature=0.0, max_tokens=64))
asyncio.run(work)
"""


def test_after_a_kill_only_what_is_missing_is_asked(tmp_path: Path):
    model = Scripted(double, hold=3)

    async def kill_and_ask_again(url: str) -> tuple[int, Answers]:
        subject = f"m={url}"
        command = [sys.executable, "-c", DRIVER, subject, str(tmp_path)]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=subprocess.DEVNULL)
        began = time.monotonic()
        journal = tmp_path / "journal" / "main.jsonl"
        while not (journal.is_file() and journal.read_bytes().count(b"\n") == 3) and time.monotonic() < began + 60:
            await asyncio.sleep(0.05)
        assert process.returncode is None, "it ended by itself"
        process.kill()
        await process.wait()
        model.hold = None
        n_before = len(model.asked)
        return n_before, await gather(Subject.of(subject), QUESTIONS, tmp_path)

    n_before, answers = against(model, kill_and_ask_again)

    assert {key: found[0].text for key, found in answers.by_id.items()} == {
        f"n{i}": f"It is {2 * i}." for i in range(6)
    }
    assert n_before - 3 <= 2  # those in flight
    assert len(model.asked) - n_before == 3


def test_a_model_folder_is_run_here_and_asked_anew_when_its_weights_change(
    tmp_path: Path, tiny_models: tuple[Path, Path]
):
    pytest.importorskip("torch")
    folder = tmp_path / "model"
    short = SamplingConfig(temperature=1.0, max_tokens=6)
    said: list[Answers] = []
    lines: list[int] = []
    for source in (*tiny_models, tiny_models[0]):
        if folder.exists():
            folder.unlink()
        folder.symlink_to(source)
        said.append(asyncio.run(gather(Subject.of(str(folder)), QUESTIONS[:2], tmp_path / "out", sampling=short)))
        lines.append((tmp_path / "out" / "journal" / "main.jsonl").read_bytes().count(b"\n"))

    assert lines == [2, 4, 4]
    assert said[0] == said[2] != said[1]
    assert {answer.is_cut_off for found in said[0].by_id.values() for answer in found} <= {True, False}


def test_questions_of_a_benchmark_answer_themselves(shared_data: Path):
    path = shared_data / "benchmarks" / "gsm8k_test.jsonl"
    questions = read_questions(path)

    answers = read_answers(path, questions, "reference")

    assert all(answers.by_id[each.question_id][0].text == each.references[0] for each in questions)
