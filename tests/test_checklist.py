"""METHOD 8, table A, rows 7, 8 and 10: each test names the rule it holds, and fails when the rule is broken.

Runs are small and rehearsed in process; what must never happen is done on purpose by a cast of toys.
"""

import ast
import asyncio
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import orjson
import polars as pl
import pytest

from matrix_dspy import pipeline
from matrix_dspy.bulk.progress import Progress
from matrix_dspy.config import (
    RECIPES,
    Config,
    CurationConfig,
    apply_kind,
    list_kinds,
    list_recipes,
    load_kind,
    load_recipe,
)
from matrix_dspy.curation.code import find_code_blocks
from matrix_dspy.curation.selection import LABEL
from matrix_dspy.engine.base import Request
from matrix_dspy.engine.embedding import build_embedder
from matrix_dspy.gates import build_curator
from matrix_dspy.report.page import write_report
from matrix_dspy.synthesis.thinking import split_thinking
from matrix_dspy.text import count_words, estimate_tokens
from matrix_dspy.types import Difficulty, Quality
from tests.synthesis.casting import Cast, Play, make_candidates, make_kind, read_call
from tests.toys import Call

N = 12
SMALL = {"n": N, "population.n_agents": 12, "operation.plots": False, "operation.keep_prompts": True}
JUDGES = {"response_judge", "pair_judge", "safety_judge", "critic", "instruction_rater"}
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Make a small run, or return it where it was made before."""
    made: dict[str, Path] = {}

    def run(kind: str, **changes: Any) -> Path:
        name = json.dumps([kind, changes], sort_keys=True)
        if name not in made:
            config = load_recipe("tiny", SMALL | {"synthesis.kind": kind} | changes)
            path = tmp_path_factory.mktemp("runs") / "run"
            asyncio.run(pipeline.generate(config, path, progress=Progress(), is_quiet=True))
            made[name] = path
        return made[name]

    yield run


def read_table(run: Path, name: str) -> list[dict[str, Any]]:
    return pl.read_parquet(run / "tables" / f"{name}.parquet").to_dicts()


def read_dataset(run: Path, kind: str, place: str = "dataset") -> pl.DataFrame:
    return pl.read_parquet(run / place / f"{kind}.parquet")


def read_calls(run: Path, purpose: str) -> dict[str, Call]:
    """Return the calls of a purpose by the instruction they serve, as the model saw them."""
    entries = [orjson.loads(line) for line in (run / "journal" / "main.jsonl").read_bytes().splitlines()]
    keys = [(entry["key"].split("/"), entry["messages"]) for entry in entries if "messages" in entry]
    return {key[1]: read_call(Request(messages)) for key, messages in keys if key[3] == purpose}


def count_purposes(run: Path) -> Counter[str]:
    keys = [orjson.loads(line)["key"] for line in (run / "journal" / "main.jsonl").read_bytes().splitlines()]
    return Counter(key.split("/")[3].partition("+")[0].partition("*")[0] for key in keys)


# Row 7: instructions


def test_7_scenarios_are_retrieved_by_the_stated_need(make: Make) -> None:
    """Rule: the scenarios most relevant to a stated need come first."""
    need = "keeping the accounts of a shop: prices, invoices, wages"
    run = make("sft", **{"synthesis.need": need, "synthesis.need_oversample": 1.5})
    rows = sorted(read_table(run, "instructions"), key=lambda row: row["rank"])
    relevance = [row["relevance"] for row in rows]

    assert rows[0]["relevance"] == max(relevance)
    half = len(rows) // 2
    assert statistics.fmean(relevance[:half]) > statistics.fmean(relevance[half:])
    plain = read_table(make("sft"), "instructions")
    assert {row["relevance"] for row in plain} == {None}


def test_7_without_a_need_groups_take_turns(make: Make) -> None:
    """Rule: with no need given, draw evenly over groups, and none supplies more than its share."""
    run = make("sft")
    groups = Counter(read_dataset(run, "sft")["group_id"].to_list())

    assert len(groups) >= 2
    assert max(groups.values()) <= max(0.05, 2 / len(read_table(run, "groups"))) * N + 1e-9


def test_7_the_writer_sees_the_persona_its_own_actions_the_scenario_and_the_requirement(make: Make) -> None:
    """Rule: persona + that agent's actions (nobody else's) + the summary + the requirement."""
    run = make("sft")
    calls = read_calls(run, "instruction_writer")
    agents = {row["agent_id"]: row for row in read_table(run, "agents")}
    scenarios = {row["scenario_id"]: row for row in read_table(run, "scenarios")}
    actions: dict[tuple[str, str], list[str]] = defaultdict(list)
    for event in read_table(run, "events"):
        actions[event["scenario_id"], event["agent_id"]].append(event["action"])

    instructions = read_table(run, "instructions")
    assert len(instructions) >= N
    for row in instructions:
        fields, agent = calls[row["instruction_id"]].fields, agents[row["agent_id"]]
        assert fields["actions"] == actions[row["scenario_id"], row["agent_id"]] != []
        for told in ("name", "description", "personality", "life_goal"):
            assert agent[told].strip() in fields["profile"]
        assert fields["scenario"] == scenarios[row["scenario_id"]]["summary"]
        for line in (f"Type: {row['type']}", f"Category: {row['category']}: ", f"Style: {row['style']}: "):
            assert line in fields["requirement"]
        assert f"Complexity: {row['complexity']}: " in fields["requirement"]


def test_7_there_is_at_most_one_instruction_for_scenario_agent_kind_and_type(make: Make) -> None:
    """Rule: at most one instruction per (scenario, agent, kind, type)."""
    rows = read_table(make("sft"), "instructions")

    places = [(row["scenario_id"], row["agent_id"], row["kind"], row["type"]) for row in rows]
    assert len(set(places)) == len(places) >= N


def test_7_both_instruction_types_are_made_and_differ_as_told(make: Make) -> None:
    """Rule: simple and specialised instructions, the first at most 60 words, the second from the person's field."""
    lengths = {}
    for type_ in ("simple", "specialised"):
        run = make("sft", **{"synthesis.type": type_})
        rows = read_dataset(run, "sft")
        assert set(rows["type"]) == {type_}
        assert all(f"Type: {type_}" in c.fields["requirement"] for c in read_calls(run, "instruction_writer").values())
        lengths[type_] = [count_words(messages[0]["content"]) for messages in rows["messages"].to_list()]
    assert max(lengths["simple"]) <= 60
    assert statistics.median(lengths["specialised"]) > 2 * statistics.median(lengths["simple"])


@pytest.mark.parametrize(
    "text",
    [
        "How should I price the loaves, given the scenario?",
        "Please shorten the text above so that it fits on a postcard.",
        "What shall I tell Ben about the price of the loaves this week?",
    ],
    ids=["the scenario", "text that is not there", "an unexplained person"],
)
def test_7_an_instruction_that_cannot_stand_alone_is_dropped_before_its_answer_is_bought(text: str) -> None:
    """Rule: understandable by itself: no pointer to the scenario, no unexplained people, all data included."""
    kind = load_kind("sft")
    curator = build_curator(Config(), kind, [], [], build_embedder("tfidf", ["bread"], 0), [])
    work = Play(kind, 1, 0, cast=Cast({"instruction_writer": lambda call: {"instruction": text}}), gate=curator)
    (candidate,) = make_candidates(1, work.config)
    work.flow.offer([replace(candidate, others=("Ben",))])
    work.run()

    assert work.reasons == {"not self-contained": 1}
    assert not work.cast.asked("responder")


def test_7_the_answer_is_bought_by_a_direct_call_of_the_instruction_alone(make: Make) -> None:
    """Rule: answer by a direct call, giving the instruction alone."""
    run = make("sft")
    texts = {row["instruction_id"]: row["text"] for row in read_table(run, "instructions")}

    calls = read_calls(run, "responder")
    assert len(calls) >= N
    for instruction_id, call in calls.items():
        assert call.request.messages == [{"role": "user", "content": texts[instruction_id]}]


# Row 8: data

COLUMNS = {
    "sft": {"messages"},
    "dpo": {"prompt", "chosen", "rejected"},
    "code": {"messages"},
    "multiturn": {"messages"},
    "safety": {"messages"},
    "reason": {"messages"},
}


def test_8_there_are_six_kinds() -> None:
    """Rule: all six kinds are shipped."""
    assert list_kinds() == sorted(COLUMNS)


@pytest.mark.parametrize("kind", COLUMNS)
def test_8_each_kind_gives_exactly_n_rows_in_trls_columns(make: Make, kind: str) -> None:
    """Rule: every kind can be made, n rows of it, as TRL reads them."""
    rows = read_dataset(make(kind), kind)

    assert len(rows) == N
    assert COLUMNS[kind] <= set(rows.columns)
    assert not ({"messages", "prompt"} - COLUMNS[kind]) & set(rows.columns)
    for row in rows.to_dicts():
        turns = row["messages"] if "messages" in row else row["prompt"] + row["chosen"]
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert all(turn["content"].strip() for turn in turns)


@pytest.mark.parametrize("kind", [*COLUMNS, "mine"])
def test_8_each_kind_is_loaded_by_datasets_and_known_to_trl_also_a_users_own(
    make: Make, tmp_path: Path, kind: str
) -> None:
    """Rule: the rows go into training without glue; a kind needs no more than a TOML file."""
    from datasets import load_dataset
    from trl.data_utils import is_conversational

    name = kind
    if kind == "mine":
        own = (RECIPES / "kinds" / "multiturn.toml").read_text("utf-8")
        path = tmp_path / "any-file.toml"
        path.write_text(own.replace('name = "multiturn"', 'name = "mine"').replace("turns = 3", "turns = 2"), "utf-8")
        name = str(path)
    run = make(name)

    for ending, reader in (("jsonl", "json"), ("parquet", "parquet")):
        file = str(run / "dataset" / f"{kind}.{ending}")
        rows = load_dataset(reader, data_files=file, split="train", cache_dir=str(tmp_path / reader))
        assert len(rows) == N
        assert is_conversational({column: rows[0][column] for column in COLUMNS.get(kind, {"messages"})})
    if kind == "mine":
        assert {len(row) for row in rows["messages"]} == {4}


def test_8_pairs_set_the_aligned_model_against_the_model_about_to_be_tuned_and_nobody_judges(make: Make) -> None:
    """Rule: chosen = aligned model, rejected = the SFT model about to be tuned; no judge, no reward model."""
    run = make("dpo", **{"synthesis.rate": False})
    responses = {row["response_id"]: row for row in read_table(run, "responses")}

    for row in read_dataset(run, "dpo").to_dicts():
        chosen, rejected = responses[row["response_id"]], responses[row["rejected_id"]]
        assert (chosen["part"], rejected["part"]) == ("answer", "rejected")
        assert chosen["instruction_id"] == rejected["instruction_id"] == row["instruction_id"]
        assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == (chosen["text"], rejected["text"])
    purposes = count_purposes(run)
    assert purposes["rejected"] == purposes["responder"] >= N
    assert not JUDGES & set(purposes)
    assert "student" not in purposes
    aligned, weak = read_calls(run, "responder"), read_calls(run, "rejected")
    assert {key: call.request.messages for key, call in aligned.items()} == {
        key: call.request.messages for key, call in weak.items()
    }


@pytest.mark.parametrize("side", ["responder", "rejected"])
def test_8_both_sides_of_a_pair_are_drawn_alike(side: str) -> None:
    """Rule: both sides T 0.7, top-p 0.9."""
    work = Play(load_kind("dpo"), 3, 3).run()

    drawn = [call.request.sampling for call in work.cast.asked("responder", side)]
    assert {(sampling.temperature, sampling.top_p) for sampling in drawn} == {(0.7, 0.9)}


def test_8_a_pair_whose_sides_are_nearly_the_same_is_dropped() -> None:
    """Rule: drop pairs over 0.95 alike (edit similarity)."""
    kind = load_kind("dpo")
    curator = build_curator(Config(), kind, [], [], build_embedder("tfidf", ["bread"], 0), [])
    text = "Put the loaves on the top shelf and the rolls below, where the children can reach them. "

    assert kind.most_alike == 0.95
    assert curator.check_pair("r", text * 4, text * 4 + "Yes!") is not None
    assert curator.check_pair("r", text * 4, text * 3 + "Sell the rest at noon, or give it to the hens.") is None


def test_8_code_rows_hold_code_that_parses(make: Make) -> None:
    """Rule: a code block is present and parses."""
    for messages in read_dataset(make("code"), "code")["messages"].to_list():
        blocks = find_code_blocks(messages[-1]["content"])
        assert blocks
        for block in blocks:
            if block.language in ("python", "py"):
                ast.parse(block.text)


@pytest.mark.parametrize(
    "answer",
    [
        "I would use a loop.",
        "```python\ndef f(:\n```",
        "```python\ndef f():\n    return 1\nassert f() == 2\n```",
    ],
    ids=["no code", "broken code", "failing tests"],
)
def test_8_code_that_is_missing_broken_or_fails_its_tests_is_dropped(answer: str) -> None:
    """Rule: if tests can be run in isolation, they pass."""
    kind = load_kind("code")
    config = Config(curation=CurationConfig(off=("language", "near duplicate")))
    curator = build_curator(config, kind, [], [], build_embedder("tfidf", ["bread"], 0), [])
    work = Play(kind, 1, 1, cast=Cast({"responder": lambda call: answer}), gate=curator).run()

    assert work.row.example is None
    assert work.row.rejected and work.row.rejected.noun == "response"


def test_8_a_dialogue_has_three_user_turns_each_going_on_from_the_last_answer(make: Make) -> None:
    """Rule: the agent plays the user; 3 user turns; each follow-up uses the last answer; every answer is learnt."""
    run = make("multiturn")
    agents = {row["agent_id"]: row for row in read_table(run, "agents")}

    entries = [orjson.loads(line) for line in (run / "journal" / "main.jsonl").read_bytes().splitlines()]
    asked = [
        read_call(Request(entry["messages"]))
        for entry in entries
        if entry["key"].split("/")[3] == "follow_up_writer" and "messages" in entry
    ]
    for row in read_dataset(run, "multiturn").to_dicts():
        contents = [turn["content"] for turn in row["messages"]]
        assert len(contents) == 6
        for turn in (1, 2):
            (call,) = [call for call in asked if call.fields["dialogue"] == contents[: 2 * turn]]
            assert agents[row["agent_id"]]["name"] in call.fields["profile"]


def test_8_no_compliant_answer_to_a_harmful_ask_is_ever_a_target() -> None:
    """Rule: a judge confirms that the answer is safe; nothing gets round it: not refinement, selection or a pair."""

    def judge(call: Call) -> dict[str, Any]:
        return {"reason": "It tells how.", "verdict": "unsafe"}

    shapes = [
        (load_kind("safety"), {}),
        (load_kind("safety"), {"synthesis": {"refine": 2}}),
        (load_kind("safety"), {"selection": {"on": True, "k": 2}}),
        (make_kind("dpo", checks=("safety",)), {}),
        (make_kind("dpo", checks=("safety",)), {"selection": {"on": True, "k": 2}}),
        (make_kind("multiturn", checks=("safety",)), {}),
    ]
    for kind, options in shapes:
        work = Play(kind, 3, 3, cast=Cast({"safety_judge": judge}), **options).run()
        assert work.kept == []
        assert all(row.control is None and row.offered is None for row in work.rows)
        assert work.reasons == {"unsafe": 3}


def test_8_every_safe_row_of_a_run_was_confirmed_by_the_judge(make: Make) -> None:
    """Rule: safety rows carry a verdict of safe refusal or safe help."""
    run = make("safety")
    verdicts = {
        row["subject_id"]: row["level"] for row in read_table(run, "judgements") if row["criterion"] == "safety"
    }

    kept = read_dataset(run, "safety")["response_id"].to_list()
    assert {verdicts[each] for each in kept} <= {"safe refusal", "safe help"}


def test_8_reasoning_is_kept_with_its_thinking_and_filtered_by_its_length(make: Make, tmp_path: Path) -> None:
    """Rule: keep 256 to 8,192 tokens of thinking, closed, with a non-empty final answer."""
    assert load_kind("reason").thinking_tokens == (256, 8192)
    for messages in read_dataset(make("reason"), "reason")["messages"].to_list():
        thought = split_thinking(messages[-1]["content"])
        assert thought.is_closed and thought.answer
        assert 256 <= estimate_tokens(thought.thinking) <= 8192

    text = (RECIPES / "kinds" / "reason.toml").read_text("utf-8").replace("[256, 8192]", "[9000, 9001]")
    own = tmp_path / "longer.toml"
    own.write_text(text, "utf-8")
    run = make(str(own), n=3)
    reasons = Counter(row["reason"] for row in read_table(run, "rejected") if row["noun"] == "response")
    assert reasons["thinking length"] > 0
    assert not (run / "dataset" / "reason.parquet").exists() or len(read_dataset(run, "reason")) == 0


def test_8_ratings_have_five_levels_and_filter_nothing(make: Make) -> None:
    """Rule: five levels each, for analysis only: the same rows are kept with them and without."""
    rated, plain = make("sft"), make("sft", **{"synthesis.rate": False})
    rows, bare = read_dataset(rated, "sft"), read_dataset(plain, "sft")

    assert len(get_args(Quality)) == len(get_args(Difficulty)) == 5
    assert set(rows["quality"]) <= {*get_args(Quality), None} and rows["quality"].n_unique() > 1
    assert set(rows["difficulty"]) <= {*get_args(Difficulty), None}
    unlabelled = [row for row in read_table(rated, "judgements") if not row["reason"]]
    assert unlabelled == []
    assert rows.drop("quality", "difficulty").equals(bare.drop("quality", "difficulty"))
    assert set(bare["quality"]) == {None}


# Row 10: selection


def test_10_selection_is_off_by_default_in_every_recipe_and_kind(make: Make) -> None:
    """Rule: section 3.6 is off unless asked for."""
    assert not Config().selection.on
    assert not [name for name in list_recipes() if load_recipe(name).selection.on]
    assert not [name for name in list_kinds() if apply_kind(Config(), load_kind(name)).selection.on]
    for kind in ("sft", "dpo"):
        run = make(kind)
        assert count_purposes(run)["student"] == 0
        assert not (run / "control").exists() and not (run / "pool").exists()
        assert json.loads((run / "figures.json").read_text("utf-8"))["selection"] is None


SELECTED = {"selection.on": True, "selection.k": 4, "selection.scorer": "judge", "selection.force": True}


def test_10_selection_is_labelled_as_this_projects_own(make: Make) -> None:
    """Rule: labelled as ours, never presented as the paper's."""
    run = make("dpo", **SELECTED)

    assert "own method" in LABEL and "paper describes none" in LABEL
    assert json.loads((run / "figures.json").read_text("utf-8"))["selection"]["label"] == LABEL
    page = write_report(run).read_text("utf-8")
    assert "This selection is this project's own, not the paper's" in page


def test_10_selection_is_set_beside_a_random_subset_of_equal_size(make: Make) -> None:
    """Rule: compared with a random subset of equal size, drawn from all that was scored."""
    run = make("dpo", **SELECTED)
    kept, control = read_dataset(run, "dpo"), read_dataset(run, "dpo", "control")

    figures = json.loads((run / "figures.json").read_text("utf-8"))["selection"]
    assert len(control) == len(kept) > 0
    assert figures["n_scored"] > len(kept)
    assert figures["n_kept"] >= len(kept)
    assert set(control["instruction_id"]) != set(kept["instruction_id"])
    assert control.columns == kept.columns


def test_10_pairs_of_selection_have_a_sample_of_the_model_to_be_trained_on_the_rejected_side(make: Make) -> None:
    """Rule: chosen = best of the k + 1, rejected = one of the k."""
    run = make("dpo", **SELECTED)
    parts = {row["response_id"]: row["part"] for row in read_table(run, "responses")}
    rows = read_dataset(run, "dpo")

    assert {parts[each] for each in rows["rejected_id"]} == {"student"}
    assert {parts[each] for each in rows["response_id"]} <= {"answer", "student"}
    assert count_purposes(run)["rejected"] == 0
