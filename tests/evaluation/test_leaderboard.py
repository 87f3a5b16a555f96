"""Many models on one scale, by files of judgements."""

import csv
import json
import math
import random
from pathlib import Path

import pytest

from matrix_dspy.errors import ConfigError, RunError, TableError
from matrix_dspy.evaluation.arena_files import ArenaQuestion, Game, Judgement, write_judgements, write_questions
from matrix_dspy.evaluation.leaderboard import rank_judgements
from matrix_dspy.evaluation.record import read_evaluation

TRUE = {"sloop": 1.2, "ketch": 0.4, "dory": -0.7}


def draw(model: str, strength: float, n: int = 400, judge: str = "master", baseline: str = "barge") -> list[Judgement]:
    """Return judgements whose every game the model wins with the chance that its strength gives."""
    rng = random.Random(model)
    chance = 1 / (1 + math.exp(-strength))

    def play(winning: str, losing: str) -> Game:
        return Game(winning if rng.random() < chance else losing)

    return [
        Judgement(f"q{i}", model, judge, (play("B>A", "A>B"), play("A>B", "B>A")), baseline, "open") for i in range(n)
    ]


def write(folder: Path, *models: str, **others: str) -> Path:
    for model in models:
        write_judgements(draw(model, TRUE[model], **others), folder)  # type: ignore[arg-type]
    return folder


def test_models_stand_where_their_games_put_them(tmp_path: Path):
    one = write(tmp_path / "one", "sloop", "dory")
    other = write(tmp_path / "other", "ketch")

    found = rank_judgements([one, other / "model_judgment" / "master" / "ketch.jsonl"], tmp_path / "out")

    assert [figure.name for figure in found.figures if not figure.group] == ["sloop", "ketch", "barge", "dory"]
    assert (found.models, found.judge, found.counts["games"]) == ({"baseline": "barge"}, "master", 2400)
    for model, strength in TRUE.items():
        figure, elo = found.find(model), found.find("arena Elo", model)
        won = [game.score == ("B>A", "A>B")[i] for each in draw(model, strength) for i, game in enumerate(each.games)]
        share = sum(won) / len(won)
        assert figure.value == pytest.approx(100 * share)
        assert elo.value == pytest.approx(1000 + 400 * math.log10(share / (1 - share)))
        assert figure.low is not None and figure.high is not None
        assert figure.low < 100 * share < figure.high
    assert found.find("barge").value == 50
    assert read_evaluation(tmp_path / "out") == found
    with (tmp_path / "out" / "leaderboard.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["rank"], row["model"], row["n_questions"]) for row in table] == [
        ("1", "sloop", "400"),
        ("2", "ketch", "400"),
        ("3", "barge", "400"),
        ("4", "dory", "400"),
    ]
    assert "| `leaderboard.csv` |" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_files_that_name_no_baseline_are_given_one(tmp_path: Path):
    folder = write(tmp_path / "old", "sloop", baseline="")

    with pytest.raises(ConfigError, match="do not say against whom they are; name the baseline"):
        rank_judgements([folder], tmp_path / "out")
    found = rank_judgements([folder], tmp_path / "out", baseline="gpt-4-0314")

    assert found.models == {"baseline": "gpt-4-0314"}


def test_models_that_met_no_baseline_are_joined_by_those_that_did(tmp_path: Path):
    folder = write(tmp_path / "one", "ketch")
    write(folder, "sloop", baseline="ketch")

    with pytest.raises(ConfigError, match=r"not all against one baseline \('barge', 'ketch'\)"):
        rank_judgements([folder], tmp_path / "out")
    found = rank_judgements([folder], tmp_path / "out", baseline="barge")

    assert [figure.name for figure in found.figures if not figure.group] == ["sloop", "ketch", "barge"]
    with pytest.raises(ConfigError, match="the baseline 'raft' is in no battle"):
        rank_judgements([folder], tmp_path / "other", baseline="raft")


def test_one_model_against_two_baselines_joins_them(tmp_path: Path):
    for folder, baseline in (("one", "barge"), ("other", "raft")):
        write(tmp_path / folder, "sloop", baseline=baseline)

    found = rank_judgements([tmp_path / "one", tmp_path / "other"], tmp_path / "out", baseline="barge")

    assert {figure.name for figure in found.figures if not figure.group} == {"sloop", "raft", "barge"}
    assert found.find("raft").value == pytest.approx(50)  # the same games
    assert rank_judgements([tmp_path / "one", tmp_path / "other"], tmp_path / "out", baseline="barge") == found


def test_another_leaderboard_is_not_written_over(tmp_path: Path):
    one, other = write(tmp_path / "one", "sloop"), write(tmp_path / "other", "dory")
    out = tmp_path / "out"
    rank_judgements([one, other], out)

    grown = rank_judgements([one, other, write(tmp_path / "third", "ketch")], out)

    assert grown.counts["models"] == 4
    with pytest.raises(RunError, match="holds a leaderboard with 'dory', which is not in this one"):
        rank_judgements([one], out)
    assert any("how far 'master' agrees with labels as arena_judge is not known" in note for note in grown.notes)


def test_two_questions_of_one_id_are_not_taken_for_one(tmp_path: Path):
    folders = [write(tmp_path / name, model) for name, model in (("one", "sloop"), ("other", "dory"))]
    for folder in folders:
        write_questions([ArenaQuestion("q0", ("Where?",)), ArenaQuestion("q1", (f"Who is {folder.name}?",))], folder)

    with pytest.raises(TableError, match=r"other' and .*one' ask different things under the id 'q1'; rank them apart"):
        rank_judgements(folders, tmp_path / "out")


def test_an_arena_that_was_stopped_is_named(tmp_path: Path):
    (tmp_path / "arena" / "answers").mkdir(parents=True)
    (tmp_path / "arena" / "answers" / "base.jsonl").write_text("{}")

    with pytest.raises(TableError, match=r"arena' holds no finished arena evaluation; finish it, or leave it out"):
        rank_judgements([tmp_path / "arena"], tmp_path / "out")


def test_few_games_leave_much_doubt(tmp_path: Path):
    folder = write(tmp_path / "one", "sloop")
    write_judgements([Judgement("q0", "dory", "master", (Game("A=B"), Game("A=B")), "barge")], folder)
    write_judgements(
        [Judgement(f"q{i}", "ketch", "master", (Game("B>A"), Game("A=B")), "barge") for i in (0, 1)], folder
    )

    found = rank_judgements([folder], tmp_path / "out")

    for model in ("dory", "ketch"):
        figure = found.find(model)
        assert figure.low is not None and figure.high is not None
        assert figure.high - figure.low > 50


def test_a_question_with_a_game_without_a_verdict_is_in_no_figure(tmp_path: Path):
    judgements = draw("dory", 0.0, n=10)
    judgements[3] = Judgement("q3", "dory", "master", (Game("B>>A"), Game(None)), "barge")
    write_judgements(judgements, tmp_path / "one")

    found = rank_judgements([tmp_path / "one"], tmp_path / "out")

    assert (found.counts["games"], found.counts["unjudged"], found.find("dory").n) == (18, 1, 9)


def test_judges_are_not_mixed(tmp_path: Path):
    folder = write(write(tmp_path / "one", "sloop"), "dory", judge="mate")

    with pytest.raises(ConfigError, match=r"of 2 judges, 'master', 'mate'; name one with --judge"):
        rank_judgements([folder], tmp_path / "out")
    with pytest.raises(ConfigError, match="no judgement is by 'cook'; the judges are 'master', 'mate'"):
        rank_judgements([folder], tmp_path / "out", judge="cook")
    found = rank_judgements([folder], tmp_path / "out", judge="mate")

    assert [figure.name for figure in found.figures if not figure.group] == ["barge", "dory"]


def test_bad_input_is_one_sentence(tmp_path: Path):
    one, other = write(tmp_path / "one", "sloop"), write(tmp_path / "other", "sloop")
    (tmp_path / "empty").mkdir()
    write_judgements([Judgement("q", "dory", "master", (Game(None), Game(None)), "barge")], tmp_path / "none")

    with pytest.raises(TableError, match=r"both judge 'sloop' on 'q0'; give one"):
        rank_judgements([one, other], tmp_path / "out")
    with pytest.raises(TableError, match=r"holds no \.jsonl file"):
        rank_judgements([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(TableError, match="none of the 1 judgements has a verdict"):
        rank_judgements([tmp_path / "none"], tmp_path / "out")

    assert not (tmp_path / "out").exists()
    assert rank_judgements([one, one], tmp_path / "out").counts["games"] == 800  # a path given twice counts once


def test_a_hostile_name_stays_text(tmp_path: Path):
    name = "| **x** |\n# y  99.00 % [98.00, 99.90] \x1b[31m"
    write_judgements([Judgement(f"q{i}", name, "master", (Game("A>B"),), "barge") for i in range(4)], tmp_path / "one")

    found = rank_judgements([tmp_path / "one"], tmp_path / "out")

    assert any("half a battle added" in note for note in found.notes)
    page = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "\x1b" not in page and "\n# y" not in page and "**x**" not in page
    assert "\x1b" not in "".join(found.lines())
    assert not any("\n" in line for line in found.lines())
    rows = [json.loads(line) for line in (tmp_path / "out" / "judged.jsonl").read_text("utf-8").splitlines()]
    assert rows[0]["scores"] == ["A>B"]
