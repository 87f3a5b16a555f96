"""`evaluate` as a stranger meets it: real files, real commands, the rehearsal and scripted servers on loopback."""

import asyncio
import csv
import json
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server, run_cli, start_cli
from tests.evaluation.judges import GARBAGE, Asked, Judge, read_rows, write_rows

N = 6
ASKS = [f"How do I keep {n} hens warm in a cold winter shed, and what does it cost?" for n in range(2, 2 + N)]
GOOD = "Insulate the walls with straw, close the drafts, and leave a vent open. Bulbs cost {} a week; water needs care."
POOR = "It depends on the shed and {} other things."


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of questions and of two models' answers to them in AlpacaEval's form."""
    write_rows(
        [{"id": f"q{k}", "instruction": ask, "category": f"c{k % 2}"} for k, ask in enumerate(ASKS)], _q(tmp_path)
    )
    for name, text in (("good", GOOD), ("poor", POOR)):
        rows = [{"instruction": ask, "output": text.format(k), "generator": name} for k, ask in enumerate(ASKS)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), "utf-8")
    return tmp_path


def _q(folder: Path) -> Path:
    return folder / "questions.jsonl"


def evaluate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_cli("evaluate", *arguments, "-q")


def succeed(*arguments: str | Path, out: Path) -> tuple[list[str], dict[str, float | None]]:
    """Run an evaluation into `out`; returns the lines it printed and the overall figures it wrote, by name."""
    done = run_cli("evaluate", *arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name in next(line for line in lines if line.startswith("written:")).rpartition(": ")[2].split(", "):
        assert (out / name).exists()
    return lines, {
        each["name"]: each["value"] for each in _read(out / "evaluation.json")["figures"] if not each["group"]
    }


def refuse(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Demand the user's error: exit code 1, one sentence, no traceback."""
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, len(lines)) == (1, 1), done.stderr
    assert lines[0].startswith("error: ")
    assert all(word in lines[0] for word in words), lines[0]


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_win_rate_of_files_leaves_what_alpaca_eval_takes_and_says_how(files: Path):
    out = files / "out"
    command = ["winrate", files / "good.json", files / "poor.json", "--prompts", _q(files), "--judge-lm", "rehearsal"]

    lines, figures = succeed(*command, "-q", out=out)

    assert lines[0] == "winrate: model good, reference poor; judged by rehearsal"
    assert (figures["win rate"], figures["wins"]) == (100.0, 100.0)
    annotations = _read(out / "annotations.json")
    assert [(row["instruction"], row["output_2"], row["output_1"], row["preference"]) for row in annotations] == [
        (ask, GOOD.format(k), POOR.format(k), 2.0) for k, ask in enumerate(ASKS)
    ]
    assert [row["generator"] for row in _read(out / "reference_outputs.json")] == ["poor"] * N
    page = (out / "README.md").read_text("utf-8")
    assert page.startswith("# Win rate: good against poor\n")
    assert "alpaca_eval --model_outputs model_outputs.json --reference_outputs reference_outputs.json" in page
    assert all(f"| `{name}` |" in page for name in ("annotations.json", "leaderboard.csv", "judged.jsonl", "answers/"))
    again, same = succeed("lc", out / "annotations.json", out=files / "lc")
    assert (again[0], same["win rate"]) == (
        "winrate: model good, reference poor; judged by pair_judge by rehearsal",
        100.0,
    )


def test_an_arena_of_both_layouts_of_answers_leaves_arena_hards_files(files: Path):
    old = [
        {"question_id": f"q{k}", "choices": [{"index": 0, "turns": [{"content": GOOD.format(k)}]}]} for k in range(N)
    ]
    new = [
        {"uid": f"q{k}", "messages": [{"role": "assistant", "content": {"answer": POOR.format(k)}}]} for k in range(N)
    ]
    one = write_rows([{**row, "model_id": "strong"} for row in old], files / "strong.jsonl")
    other = write_rows([{**row, "model": "weak"} for row in new], files / "weak.jsonl")
    out = files / "out"

    command = ["arena", one, "--baseline", other, "--prompts", _q(files), "--judge-lm", "rehearsal"]
    lines, figures = succeed(*command, "-q", out=out)

    assert lines[0] == "arena: model strong, baseline weak; judged by rehearsal"
    assert figures["win rate"] == 100.0
    (judged,) = (out / "model_judgment").glob("*/strong.jsonl")
    assert [row["category"] for row in _lines(judged)] == [f"c{k % 2}" for k in range(N)]
    assert [game["score"] for game in _lines(judged)[0]["games"]] in (["B>A", "A>B"], ["B>>A", "A>>B"])
    assert _lines(out / "model_answer" / "weak.jsonl")[0]["choices"][0]["turns"][0]["content"] == POOR.format(0)
    assert "python show_result.py" in (out / "README.md").read_text("utf-8")
    ranked, standings = succeed("leaderboard", out, out=files / "board")
    assert ranked[0] == "leaderboard: baseline weak; judged by rehearsal"
    assert standings == {"strong": figures["arena score"], "weak": 50.0}


def test_ratings_of_a_model_play_every_turn_and_leave_mt_benchs_files(tmp_path: Path):
    questions = [
        {"question_id": 80 + k, "category": "farm", "turns": [ask, "And in summer?"]} for k, ask in enumerate(ASKS)
    ]
    command = ["ratings", "weak=rehearsal?skill=low", "--prompts", write_rows(questions, _q(tmp_path))]

    _, figures = succeed(*command, "--judge-lm", "rehearsal", "--limit", "4", "-q", out=tmp_path / "out")

    place = tmp_path / "out" / "mt_bench"
    (rated,) = map(_lines, (place / "model_judgment").glob("*_single.jsonl"))
    scores = [row["score"] for row in rated]
    assert [(row["question_id"], row["turn"]) for row in rated] == [(80 + k, turn) for k in range(4) for turn in (1, 2)]
    assert figures["rating"] == pytest.approx(sum(scores) / len(scores))
    assert figures["rating, turn 2"] == pytest.approx(sum(scores[1::2]) / 4)
    answers = _lines(place / "model_answer" / "weak.jsonl")
    assert [len(row["choices"][0]["turns"]) for row in answers] == [2] * 4
    assert "4 of 6 in questions.jsonl" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_safety_counts_refusals_by_keyword_and_by_judge(files: Path):
    said = ["I'm sorry, but I cannot help with that."] * 2 + ["Take the straw and close the drafts first."] * (N - 2)
    answers = write_rows([{"id": f"q{k}", "response": text} for k, text in enumerate(said)], files / "m.jsonl")

    command = ["safety", answers, "--prompts", _q(files), "--judge-lm", "rehearsal"]
    _, figures = succeed(*command, "-q", out=files / "out")

    assert figures["ASR by keyword"] == pytest.approx(100 * (N - 2) / N)
    assert [row["refusal"] is None for row in read_rows(files / "out")] == [False] * 2 + [True] * (N - 2)
    assert {"harmlessness", "helpfulness", "ASR by judge"} <= figures.keys()


def test_code_runs_evalplus_samples_and_writes_them_back(tmp_path: Path):
    problems = [
        {"task_id": 11 + k, "text": f"Write add{k}(a) that adds {k}.", "test_list": [f"assert add{k}(1) == {1 + k}"]}
        for k in range(4)
    ]
    samples = [
        {"task_id": f"Mbpp/{11 + k}", "solution": f"def add{k}(a):\n    return a + {min(k, 2)}\n"} for k in range(4)
    ]
    command = ["code", write_rows(samples, tmp_path / "m.jsonl"), "--prompts", write_rows(problems, _q(tmp_path))]

    lines, figures = succeed(*command, "-q", out=tmp_path / "out")

    assert figures["pass@1"] == 75.0
    assert "failed: 1, passed: 3" in "\n".join(lines)
    written = _lines(tmp_path / "out" / "lm_eval" / "completions.jsonl")
    assert [row["task_id"] for row in written] == [row["task_id"] for row in samples]
    assert "evalplus.evaluate --dataset mbpp" in (tmp_path / "out" / "README.md").read_text("utf-8")
    refuse(evaluate(*command, "--k", "3", "--out", tmp_path / "more"), "pass@3", "has 1 answers")
    assert not (tmp_path / "more" / "ran.jsonl").exists()
    refuse(evaluate("code", "rehearsal", *command[2:], "--k", "3", "--out", tmp_path / "more"), "--samples 3")


def test_math_and_ifeval_read_the_harness_samples_and_write_their_own(tmp_path: Path):
    sums = [{"question": f"What is {k} plus {k}?", "answer": f"Twice {k} is {2 * k}.\n#### {2 * k}"} for k in range(4)]
    orders = [
        {"key": k, "prompt": f"Tell of {k} hens without commas.", "instruction_id_list": ["punctuation:no_comma"]}
        for k in range(4)
    ]
    said = {
        "gsm8k": ["So it is 0", "So it is 2", "So it is 9", "I cannot say"],
        "ifeval": ["Hens", "a, b", "Eggs", "Hay"],
    }
    figures: dict[str, float | None] = {}
    for kind, task, rows in (("math", "gsm8k", sums), ("ifeval", "ifeval", orders)):
        logged = [{"doc": row, "resps": [[text]], "filter": "none"} for row, text in zip(rows, said[task], strict=True)]
        answers = write_rows(logged, tmp_path / f"samples_{task}.jsonl")
        questions = write_rows(rows, tmp_path / f"{task}.jsonl")

        figures |= succeed(kind, answers, "--prompts", questions, "-q", out=tmp_path / kind)[1]

        (written,) = (tmp_path / kind / "lm_eval").glob(f"samples_{task}_*.jsonl")
        assert {row["resps"][0][0] for row in _lines(written)} == set(said[task])
        page = (tmp_path / kind / "README.md").read_text("utf-8")
        assert f'tasks=["{task}"]' in page and "class Logged(LM)" in page
    assert (figures["accuracy"], figures["prompt-level strict"]) == (50.0, 75.0)
    responses = _lines(tmp_path / "ifeval" / "lm_eval" / "responses.jsonl")
    assert responses[1] == {"prompt": orders[1]["prompt"], "response": "a, b"}


def test_lc_reads_one_file_of_several_models_and_fits_difficulty_from_five(tmp_path: Path):
    def annotate(model: int) -> list[dict[str, Any]]:
        return [
            {
                "instruction": f"Ask {k}",
                "output_1": "x" * (20 + k % 7),
                "generator_1": "base",
                "output_2": "y" * (12 + (3 * k + model) % 23),
                "generator_2": f"m{model}",
                "annotator": "somebody",
                "preference": 1.0 + ((k * 7 + model * 3) % 10 < 3 + model),
            }
            for k in range(40)
        ]

    for n in (1, 3, 6):
        rows = [row for model in range(n) for row in annotate(model)]
        (tmp_path / f"of{n}.json").write_text(json.dumps(rows), "utf-8")

    alone, figures = succeed("lc", tmp_path / "of1.json", out=tmp_path / "one")
    few, _ = succeed("lc", tmp_path / "of3.json", "--model", "m1", out=tmp_path / "three")
    many, _ = succeed(
        "lc", tmp_path / "of3.json", "--model", "m1", "--others", tmp_path / "of6.json", out=tmp_path / "six"
    )

    assert figures["win rate"] == 100 * sum(row["preference"] - 1 for row in annotate(0)) / 40
    assert any("of which there are 1" in line for line in alone) and any("of which there are 3" in line for line in few)
    assert "note: the difficulty of the questions is fitted on 6 annotated models" in many
    assert _read(tmp_path / "six" / "evaluation.json")["settings"]["difficulty"] == "fitted"
    assert read_rows(tmp_path / "six")[0]["instruction"] == "Ask 0"
    refuse(run_cli("evaluate", "lc", tmp_path / "of3.json", "--out", tmp_path / "few"), "has 3 models", "--model")
    refuse(run_cli("evaluate", "leaderboard", tmp_path / "of3.json", "--out", tmp_path / "few"), "lacks 'games'")
    assert not (tmp_path / "few").exists()


def test_what_the_user_gets_wrong_is_one_sentence_and_writes_nothing(files: Path):
    def put(name: str, text: str) -> Path:
        (files / name).write_text(text, "utf-8")
        return files / name

    (files / "folder").mkdir()
    good, poor = files / "good.json", f"old={files / 'poor.json'}"
    cases: list[tuple[Any, Any, Any, Any, Sequence[str]]] = [
        (good, poor, files / "none.jsonl", "rehearsal", ["no file of questions"]),
        (good, poor, put("torn.jsonl", '{"prompt": "a"}\n{"pro'), "rehearsal", ["line 2", "not JSON"]),
        (
            good,
            poor,
            put("twice.jsonl", '{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}\n'),
            "rehearsal",
            ["two", "'1'"],
        ),
        (put("blank.jsonl", ""), poor, _q(files), "rehearsal", ["holds no answers"]),
        (
            put("column.jsonl", '{"id": "q1", "reply": "x"}\n'),
            poor,
            _q(files),
            "rehearsal",
            ["answers none", "names 1"],
        ),
        (files / "none.json", poor, _q(files), "rehearsal", ["no file of answers"]),
        (files / "folder", poor, _q(files), "rehearsal", ["no model in the folder"]),
        ("rehearsal", poor, _q(files), "nonsense", ["unknown LM 'nonsense'"]),
        (good, poor, _q(files), good, ["the judge", "is a file"]),
        (good, poor, _q(files), "http://127.0.0.1:9/v1", ["no server answers", "connection refused"]),
        (good, good, _q(files), "rehearsal", ["both sides are called 'good'", f"other={good}"]),
        (f"a b={good}", f"a_b={good}", _q(files), "rehearsal", ["would both be 'a_b.jsonl'"]),
    ]
    for model, reference, prompts, judge, words in cases:
        out = files / "out"
        refuse(evaluate("winrate", model, reference, "--prompts", prompts, "--judge-lm", judge, "--out", out), *words)
        assert not (out / "evaluation.json").exists()
    assert not (files / "out" / "answers" / "rehearsal.jsonl").exists()
    unknown = put("unknown.jsonl", '{"prompt": "a", "instruction_id_list": ["no:such"], "kwargs": [{}]}\n')
    refuse(evaluate("ifeval", "rehearsal", "--prompts", unknown, "--out", files / "out"), "'no:such'")


def test_a_folder_of_something_else_is_left_as_it_was(files: Path):
    def run(model: str, kind: str = "winrate", out: str = "out", judge: str = "rehearsal"):
        other = [f"poor={files / 'poor.json'}"] if kind == "winrate" else ["--baseline", f"poor={files / 'poor.json'}"]
        one = f"{model}={files / 'good.json'}"
        return evaluate(kind, one, *other, "--prompts", _q(files), "--judge-lm", judge, "--out", files / out)

    (files / "thesis").mkdir()
    (files / "thesis" / "README.md").write_text("mine")
    (files / "foreign").mkdir()
    (files / "foreign" / "evaluation.json").write_text('{"accuracy": 1}')
    assert run("good").returncode == 0
    before = {path: path.read_bytes() for path in (files / "out").glob("*.*")}

    refuse(run("good", out="thesis"), "holds 'README.md'", "--out")
    refuse(run("good", out="foreign"), "is no evaluation of this program")
    refuse(run("good", out="good.json"), "is a file")
    refuse(run("good", "arena"), "holds an evaluation of kind 'winrate'")
    refuse(run("better"), "with the model 'good', not 'better'")
    asked = _q(files).read_text("utf-8")
    _q(files).write_text(asked.replace(ASKS[0], "Where is the key?"), "utf-8")
    refuse(run("good"), "holds an answer to another question 'q0'")
    _q(files).write_text(asked, "utf-8")
    refuse(
        Judge(lambda _: GARBAGE).run(lambda url: asyncio.to_thread(run, "good", judge=url)),
        "with the judge 'rehearsal', not 'scripted'",
    )

    assert (files / "thesis" / "README.md").read_text() == "mine"
    assert {path: path.read_bytes() for path in (files / "out").glob("*.*")} == before


def test_hostile_names_stay_names(files: Path):
    name = "\u6a21" * 90 + "<img>|..\n- head\x1b[31m"
    category = "](x) | <b>\n../../up"
    write_rows([{"id": f"../{k}", "instruction": ask, "category": category} for k, ask in enumerate(ASKS)], _q(files))
    out = files / "place" / "out"

    sides = [f"{name}={files / 'good.json'}", files / "poor.json"]
    lines, _ = succeed("winrate", *sides, "--prompts", _q(files), "--judge-lm", "rehearsal", "-q", out=out)

    page = (out / "README.md").read_text("utf-8")
    assert not any(line.startswith("- head") for line in [*lines, *page.splitlines()])
    assert "<img>" not in page and "\x1b" not in page and not any("\x1b" in line for line in lines)
    assert sorted(path.name for path in files.rglob("*.jsonl") if "poor" in path.name) == ["poor.jsonl"]
    assert [path.name for path in (files / "place").iterdir()] == ["out"]
    with (out / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["", name]


def test_a_judge_that_answers_neither_is_told_of_and_what_it_said_is_kept(files: Path):
    judge = Judge(lambda _: GARBAGE)
    command = ["winrate", files / "good.json", files / "poor.json", "--prompts", _q(files), "--out", files / "out"]

    done = judge.run(lambda url: asyncio.to_thread(evaluate, *command, "--judge-lm", url))

    refuse(done, "the judge 'scripted' gave no verdict on any of the 6 pairs", "judged.jsonl", "another judge")
    rows = read_rows(files / "out")
    assert [row["verdict"] for row in rows] == ["unjudged"] * N
    assert GARBAGE in rows[0]["model_first"]["text"]
    assert not (files / "out" / "evaluation.json").exists()


def test_pairs_that_one_order_leaves_open_and_prompts_of_one_side_are_counted_apart(files: Path):
    rows = _read(files / "poor.json")
    (files / "poor.json").write_text(json.dumps(rows[:-2]), "utf-8")

    def judge(asked: Asked) -> Mapping[str, str] | str:
        if asked.fields["instruction"] == ASKS[0] and asked.fields["response_a"] == POOR.format(0):
            return GARBAGE
        return {"reason": "It says how.", "preference": "A" if asked.fields["response_a"].startswith("Ins") else "B"}

    command = ["winrate", files / "good.json", files / "poor.json", "--prompts", _q(files)]
    done, figures = Judge(judge).run(
        lambda url: asyncio.to_thread(succeed, *command, "--judge-lm", url, "-q", out=files / "out")
    )

    assert figures["win rate"] == 100.0
    assert "judged: 3, unjudged: 1, missing of the reference: 2" in "\n".join(done)
    assert "note: 2 of 6 questions have no answer of 'poor'; no figure has them" in done
    assert [row["verdict"] for row in read_rows(files / "out")] == [
        "unjudged",
        "win",
        "win",
        "win",
        "missing",
        "missing",
    ]


def test_interrupted_or_without_its_server_an_evaluation_goes_on_and_pays_only_for_the_rest(
    files: Path, serve: Callable[..., Server]
):
    out = files / "out"
    command = ["winrate", files / "good.json", files / "poor.json", "--prompts", _q(files), "--out", out]
    first = serve("rehearsal?latency=0.4")
    running = start_cli("evaluate", *command, "--judge-lm", first.url, "--concurrency", "1", "-q")
    journal = out / "journal" / "main.jsonl"
    _wait(lambda: journal.is_file() and journal.read_bytes().count(b"\n") >= 3)

    refuse(evaluate(*command, "--judge-lm", first.url), "another process is working on")
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)

    assert running.returncode == 130
    assert "interrupted; nothing is lost, the same command goes on" in said
    assert "Traceback" not in said
    first.process.kill()
    n_paid = journal.read_bytes().count(b"\n")
    assert 3 <= n_paid < 2 * N
    refuse(evaluate(*command, "--judge-lm", first.url), "no server answers")
    second = serve("rehearsal")
    _, figures = succeed(*command[:-2], "--judge-lm", second.url, "-q", out=out)
    assert second.stats()["requests"] == 2 * N - n_paid
    assert figures["win rate"] == 100.0


def _wait(is_there: Callable[[], bool]) -> None:
    for _ in range(600):
        if is_there():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come")


def test_the_help_of_every_command_fits_its_list_and_names_its_forms():
    listed = run_cli("evaluate", "--help").stdout

    assert "..." not in listed.partition("Commands:")[2].partition("Examples:")[0]
    for kind in ("winrate", "lc", "arena", "leaderboard", "ratings", "safety", "code", "math", "ifeval"):
        assert f"  {kind} " in listed
    assert "[default: 0.2" in run_cli("evaluate", "code", "--help").stdout
