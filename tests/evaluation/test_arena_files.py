import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.delivery.exporting import export
from matrix_dspy.errors import TableError
from matrix_dspy.evaluation.arena_files import (
    ArenaAnswer,
    ArenaQuestion,
    Game,
    Judgement,
    read_answers,
    read_judgements,
    read_questions,
    to_battles,
    write_answers,
    write_judgements,
    write_questions,
)
from matrix_dspy.evaluation.bradley_terry import Battle, rank_models

# by hand: the layout of v0.1, then the present one
OLD = {
    "question": {
        "question_id": "q1",
        "category": "arena-hard-v0.1",
        "cluster": "Tides",
        "turns": [{"content": "Write a table of tides."}],
    },
    "answer": {
        "question_id": "q1",
        "answer_id": "x",
        "model_id": "skiff",
        "choices": [{"index": 0, "turns": [{"content": "High at six.", "token_len": 4}]}],
        "tstamp": 1714000000.0,
    },
    "judgement": {
        "question_id": "q1",
        "model": "skiff",
        "judge": "harbour-master",
        "games": [
            {"user_prompt": "Compare.", "judgment": "B is sounder: [[B>>A]]", "score": "B>>A"},
            {"user_prompt": "Compare.", "judgment": "No verdict.", "score": None},
        ],
    },
}
NEW = {
    "question": {"uid": "q1", "category": "arena-hard-v0.1", "cluster": "Tides", "prompt": "Write a table of tides."},
    "answer": {
        "uid": "q1",
        "ans_id": "x",
        "model": "skiff",
        "messages": [
            {"role": "user", "content": "Write a table of tides."},
            {"role": "assistant", "content": {"answer": "High at six."}},
        ],
        "tstamp": 1714000000.0,
        "metadata": {"token_len": 4},
    },
    "judgement": {
        "uid": "q1",
        "category": "arena-hard-v0.1",
        "judge": "harbour-master",
        "model": "skiff",
        "baseline": "barge",
        "games": [
            {"score": "B>>A", "judgment": {"answer": "B is sounder: [[B>>A]]"}, "prompt": []},
            None,
        ],
    },
}


def write_lines(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("layout", [OLD, NEW])
def test_both_layouts_are_read(tmp_path: Path, layout: dict[str, Any]):
    paths = {name: write_lines(tmp_path / f"{name}.jsonl", row) for name, row in layout.items()}

    (question,) = read_questions(paths["question"])
    (answer,) = read_answers(paths["answer"])
    (judgement,) = read_judgements(paths["judgement"])

    assert question == ArenaQuestion("q1", ("Write a table of tides.",), "arena-hard-v0.1", "Tides")
    assert answer == ArenaAnswer("q1", "skiff", ("High at six.",))
    assert (judgement.model, judgement.judge) == ("skiff", "harbour-master")
    assert [game.score for game in judgement.games] == ["B>>A", None]
    assert judgement.games[0].judgment == "B is sounder: [[B>>A]]"


def test_what_is_written_has_the_fields_of_both_layouts_and_is_read_back(tmp_path: Path):
    questions = [ArenaQuestion("q1", ("Tide?",), cluster="Tides"), ArenaQuestion("q2", ("Wind?", "Why?"))]
    answers = [ArenaAnswer("q1", "org/skiff", ("Low.",)), ArenaAnswer("q2", "org/skiff", ("West.", "Sun."))]
    judgements = [Judgement("q1", "org/skiff", "judge", (Game("A>B", "so", "ask"), Game(None)), "barge")]

    paths = (
        write_questions(questions, tmp_path),
        write_answers(answers, tmp_path),
        write_judgements(judgements, tmp_path),
    )

    names = [str(path.relative_to(tmp_path)) for path in paths]
    assert names == ["question.jsonl", "model_answer/org_skiff.jsonl", "model_judgment/judge/org_skiff.jsonl"]
    assert read_questions(paths[0]) == questions
    assert read_answers(paths[1]) == answers
    assert read_judgements(tmp_path / "model_judgment") == judgements
    for path, row in zip(paths, ("question", "answer", "judgement"), strict=True):
        first = json.loads(path.read_text("utf-8").splitlines()[0])
        assert (OLD[row].keys() | NEW[row].keys()) - {"metadata"} <= first.keys()


@given(
    st.lists(
        st.tuples(
            st.text(min_size=1, max_size=8), st.sampled_from(["A>>B", "A>B", "A=B", "B>A", "B>>A", None]), st.text()
        ),
        min_size=1,
        max_size=5,
        unique_by=lambda drawn: drawn[0],
    )
)
def test_any_judgements_survive_the_way_to_disk(tmp_path_factory, drawn: list[tuple[str, str | None, str]]):
    folder = tmp_path_factory.mktemp("arena")
    judgements = [
        Judgement(key, "skiff", "judge", (Game(score, said), Game(score)), "barge") for key, score, said in drawn
    ]

    assert read_judgements(write_judgements(judgements, folder)) == judgements


def test_the_shared_questions_are_read(shared_data: Path):
    found = read_questions(shared_data / "benchmarks" / "arena_hard_v0.1_question.jsonl")

    assert len(found) == 500
    assert all(len(each.turns) == 1 and each.turns[0].strip() for each in found)
    assert {each.category for each in found} == {"arena-hard-v0.1"}


def test_files_exported_from_a_data_set_are_read(tmp_path: Path):
    rows = [
        {"messages": [{"role": "user", "content": f"Ask {i}"}, {"role": "assistant", "content": f"Say {i}"}]}
        for i in range(3)
    ]

    exported = export(write_lines(tmp_path / "set.jsonl", *rows), "arena_hard", tmp_path / "arena", model="mine")

    questions, answers = read_questions(exported.paths[0]), read_answers(exported.paths[1])
    assert [each.turns[0] for each in questions] == ["Ask 0", "Ask 1", "Ask 2"]
    assert [each.turns[0] for each in answers] == ["Say 0", "Say 1", "Say 2"]
    assert [each.question_id for each in questions] == [each.question_id for each in answers]


def test_the_baseline_is_a_in_the_first_game_and_b_in_the_second():
    judgement = Judgement("q1", "skiff", "judge", (Game("A>>B"), Game("A>B")))

    battles, n_unjudged = to_battles([judgement], "barge")

    assert battles == [Battle("barge", "skiff", 1.0, 3.0, "q1"), Battle("skiff", "barge", 1.0, 1.0, "q1")]
    assert n_unjudged == 0


def test_judgements_become_a_score_against_the_baseline():
    games = [
        (Game("B>A"), Game("A>B")),
        (Game("B>>A"), Game(None)),
        (Game("A>B"), Game("B=A")),
        (Game("A=B"), Game("A=B")),
    ]
    judgements = [Judgement(f"q{i}", "skiff", "judge", each, "barge") for i, each in enumerate(games)]

    battles, n_unjudged = to_battles(judgements)

    # won: 1 + 1, 0 + 0.5, 0.5 + 0.5 of two each; the second has a game without a verdict
    assert n_unjudged == 1
    standing = next(each for each in rank_models(battles, "barge", n_resamples=50) if each.model == "skiff")
    assert standing.win_rate.value == pytest.approx(100 * 3.5 / 6)


def test_a_judgement_without_a_baseline_asks_for_one():
    with pytest.raises(TableError, match="the judgement of 'skiff' does not name the baseline"):
        to_battles([Judgement("q1", "skiff", "judge", (Game("A=B"),))])


def spoil(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**row, **changes}.items() if value != "gone"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (spoil(OLD["judgement"], question_id="gone"), "lacks 'question_id' or 'uid'"),
        (spoil(OLD["judgement"], games="gone"), "lacks 'games'"),
        (spoil(OLD["judgement"], games=[]), "has no games"),
        (spoil(OLD["judgement"], games={}), "'games': an object of 0, which is no list"),
        (spoil(OLD["judgement"], games=["A>B"]), "game 1 in line 1 of .* is 'A>B', which is no object"),
        (spoil(OLD["judgement"], games=[{"judgment": "x"}]), "game 1 in line 1 of .* lacks 'score'"),
        (spoil(OLD["judgement"], games=[{"score": "C>A"}]), "game 1 in line 1 .*: no verdict 'C>A'; use one of"),
        (spoil(OLD["judgement"], games=[{"score": 3}]), "'score': 3, which is no text"),
        (spoil(OLD["judgement"], model=None), "'model': null, which is no text"),
    ],
)
def test_a_bad_judgement_is_refused_in_one_sentence(tmp_path: Path, row: dict[str, Any], words: str):
    with pytest.raises(TableError, match=words) as caught:
        read_judgements(write_lines(tmp_path / "j.jsonl", row))

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (spoil(OLD["answer"], choices=[]), "has no choices"),
        (spoil(OLD["answer"], choices="gone"), "lacks 'choices'"),
        (spoil(OLD["answer"], choices=[{"turns": []}]), "has no answer; generate it first"),
        (spoil(OLD["answer"], choices=[{"turns": [{"content": None}]}]), "'content': null, which is no text"),
        (spoil(NEW["answer"], messages=[{"role": "user", "content": "Tide?"}]), "has no answer"),
    ],
)
def test_a_bad_answer_is_refused_in_one_sentence(tmp_path: Path, row: dict[str, Any], words: str):
    with pytest.raises(TableError, match=f"line 1 of .*{words}"):
        read_answers(write_lines(tmp_path / "a.jsonl", row))


def test_doubles_and_empty_or_missing_files_are_refused(tmp_path: Path):
    with pytest.raises(TableError, match="has 'q1' twice; keep one"):
        read_questions(write_lines(tmp_path / "q.jsonl", OLD["question"], NEW["question"]))
    with pytest.raises(TableError, match="has 'harbour-master of skiff: q1' twice"):
        read_judgements(write_lines(tmp_path / "j.jsonl", OLD["judgement"], OLD["judgement"]))
    with pytest.raises(TableError, match=r"line 1 of .* has neither 'turns' nor 'prompt'"):
        read_questions(write_lines(tmp_path / "n.jsonl", {"question_id": "q1"}))
    with pytest.raises(TableError, match="holds no answers"):
        read_answers(write_lines(tmp_path / "e.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match=r"holds no \.jsonl file"):
        read_judgements(tmp_path / "empty")
    with pytest.raises(TableError, match="no file"):
        read_judgements(tmp_path / "nowhere.jsonl")


def test_answers_of_two_models_do_not_share_a_file(tmp_path: Path):
    with pytest.raises(TableError, match="the answers are of 2 models"):
        write_answers([ArenaAnswer("q", "a", ("x",)), ArenaAnswer("q", "b", ("x",))], tmp_path)
    with pytest.raises(TableError, match="the answers are of 0 models"):
        write_answers([], tmp_path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/abs", "..", ""])
def test_a_models_name_never_leads_out_of_the_folder(tmp_path: Path, name: str):
    path = write_answers([ArenaAnswer("q", name, ("x",))], tmp_path / "arena")

    assert path.parent == tmp_path / "arena" / "model_answer"
    assert read_answers(path)[0].model == name
