import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from matrix_dspy.bulk.journal import Journal
from matrix_dspy.bulk.runner import Runner
from matrix_dspy.config import Config
from matrix_dspy.engine.base import Completion, RefusedError, Request
from matrix_dspy.population.agents import Population, build_population
from matrix_dspy.text import find_contacts
from matrix_dspy.types import Profile
from tests.toys import Call, Rule, ToyEngine

RAW = (
    "Marguerite", "Quillfeather", "honey_marge", "marge@hives.example", "0207 946 0018", "https://hives.example/me",
    "48151623", "Thistledown", "brambleford", "zeppelin",
)  # fmt: skip
"""Words that stand in the raw profile and nowhere else."""
PROFILE = Profile(
    profile_id="profile-1",
    name="Marguerite Quillfeather",
    description="I am Marguerite of Thistledown Apiaries, brambleford; write to marge@hives.example or 0207 946 0018.",
    history=(
        "Sold honey to the zeppelin club, see https://hives.example/me",
        "Licence 48151623 came, says @honey_marge.",
    ),
    handles=("@honey_marge",),
    origin="a file",
    licence="CC0",
)


def anonymise(call: Call) -> dict[str, Any]:
    history = [f"Did thing {number}." for number in range(len(call.fields["history"]))]
    return {
        "anonymous_description": f"{call.fields['pseudonym']} keeps bees in a small town.",
        "anonymous_history": history,
    }


def repeat_raw(call: Call) -> dict[str, Any]:
    return {"anonymous_description": call.fields["description"], "anonymous_history": call.fields["history"]}


def find_nothing(call: Call) -> dict[str, Any]:
    return {"reason": "only common traits", "is_identifiable": False}


def find_somebody(call: Call) -> dict[str, Any]:
    return {"reason": "Marguerite Quillfeather is the only one", "is_identifiable": True}


def set_goal(call: Call) -> dict[str, Any]:
    return {"personality": "Careful.", "life_goal": f"{call.fields['name']} wants a shop."}


def make_plan(call: Call) -> dict[str, Any]:
    return {"plan": ["survey the land", "build the shed", "open the shop", "hire a hand"]}


def babble(call: Call) -> str:
    return "I would not know about Marguerite Quillfeather."


RULES: dict[str, Rule] = {
    "anonymiser": anonymise,
    "privacy_checker": find_nothing,
    "goal_setter": set_goal,
    "planner": make_plan,
}


def build(
    rules: dict[str, Rule], profiles: Sequence[Profile] = (PROFILE,), journal: Path | None = None, **engine: Any
) -> tuple[Population, ToyEngine]:
    toy = ToyEngine(rules, **engine)
    opened = Journal(journal) if journal else None
    population = asyncio.run(build_population(profiles, Config(), Runner(toy, opened)))
    if opened:
        opened.close()
    return population, toy


def find_raw(text: str) -> list[str]:
    return [word for word in RAW if word.lower() in text.lower()]


def read_folder(folder: Path) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file())


def dump(population: Population) -> str:
    rows = [*population.profiles, *population.agents, *population.rejected]
    return json.dumps([row.model_dump(mode="json") for row in rows])


def test_a_profile_becomes_an_agent_with_personality_goal_plan_and_history():
    population, _ = build(RULES)
    (agent,), (profile,) = population.agents, population.profiles

    assert agent.name == profile.name != PROFILE.name
    assert agent.personality == "Careful."
    assert agent.life_goal == f"{agent.name} wants a shop."
    assert agent.plan == ("survey the land", "build the shed", "open the shop", "hire a hand")
    assert population.histories == {agent.agent_id: ("Did thing 0.", "Did thing 1.")}
    assert (profile.origin, profile.licence) == ("a file", "CC0")


def test_an_agent_costs_one_call_for_each_of_four_decisions():
    _, engine = build(RULES)

    assert [call.program for call in engine.calls] == ["anonymiser", "privacy_checker", "goal_setter", "planner"]


def test_raw_text_reaches_the_prompts_of_anonymiser_and_checker_and_nothing_else(tmp_path: Path):
    population, engine = build(RULES, journal=tmp_path)

    readers = {call.program for call in engine.calls if find_raw(call.text)}
    assert readers == {"anonymiser", "privacy_checker"}
    assert find_raw(dump(population)) == []
    assert find_raw(read_folder(tmp_path)) == []
    assert "keeps bees" in read_folder(tmp_path)


@pytest.mark.parametrize("word", RAW[:7])
def test_an_answer_that_keeps_a_giveaway_is_scrubbed_before_it_is_journaled_and_not_accepted(word: str, tmp_path: Path):
    def keep_word(call: Call) -> dict[str, Any]:
        return {**anonymise(call), "anonymous_description": f"A beekeeper, also known as {word}."}

    population, engine = build({**RULES, "anonymiser": keep_word}, journal=tmp_path)

    assert population.agents == []
    assert word not in read_folder(tmp_path)
    assert word not in dump(population)
    assert engine.asked("privacy_checker") == []


def test_a_profile_that_stays_recognisable_is_rejected_after_two_retries_without_its_text(tmp_path: Path):
    population, engine = build({**RULES, "anonymiser": repeat_raw}, journal=tmp_path)

    (row,) = population.rejected
    assert len(engine.asked("anonymiser")) == 3
    assert (row.noun, row.id, row.stage, row.reason) == (
        "profile",
        "profile-1",
        "population: anonymise",
        "failed check",
    )
    assert row.raw_text == ""
    assert find_raw(dump(population)) == []
    assert {word for word in RAW[:7] if word in read_folder(tmp_path)} == set()


def test_scrubbing_leaves_an_answer_readable_so_that_the_retry_learns_what_was_wrong():
    population, engine = build({**RULES, "anonymiser": repeat_raw})

    assert population.rejected[0].reason == "failed check"
    assert "contact detail was still there (marked [removed])" in engine.asked("anonymiser")[1].text


def test_a_server_that_refuses_rejects_the_profile_without_repeating_what_it_said():
    class RefusingEngine(ToyEngine):
        async def attempt(self, request: Request, n_asked: int) -> Completion:
            raise RefusedError(f"will not answer {request.messages[-1]['content']}")

    population = asyncio.run(build_population([PROFILE], Config(), Runner(RefusingEngine({}))))

    assert population.rejected[0].reason == "refused by server"
    assert find_raw(dump(population)) == []


def test_a_profile_the_checker_recognises_is_rejected_after_two_retries_without_its_text(tmp_path: Path):
    population, engine = build({**RULES, "privacy_checker": find_somebody}, journal=tmp_path)

    (row,) = population.rejected
    assert len(engine.asked("anonymiser")) == len(engine.asked("privacy_checker")) == 3
    assert (row.reason, row.raw_text) == ("identifiable", "")
    assert find_raw(dump(population)) == []
    assert find_raw(read_folder(tmp_path)) == []


def test_an_unusable_anonymiser_is_rejected_without_its_text(tmp_path: Path):
    population, engine = build({**RULES, "anonymiser": babble}, journal=tmp_path)

    (row,) = population.rejected
    assert len(engine.asked("anonymiser")) == 3
    assert (row.reason, row.detail, row.raw_text) == ("unparsed", "", "")
    assert find_raw(read_folder(tmp_path)) == []


def test_a_checker_that_cannot_be_understood_passes_nobody():
    population, engine = build({**RULES, "privacy_checker": babble})

    assert population.agents == []
    assert population.rejected[0].reason == "unchecked"
    assert engine.asked("goal_setter") == []


def test_a_retry_is_told_what_was_wrong_and_may_succeed():
    def learn(call: Call) -> dict[str, Any]:
        return anonymise(call) if call.n_again == 2 else repeat_raw(call)

    population, engine = build({**RULES, "anonymiser": learn})

    assert len(population.agents) == 1
    assert "a name, user name or contact detail was still there" in engine.asked("anonymiser")[2].text


def test_the_checkers_reason_reaches_the_next_try():
    verdicts = iter((find_somebody, find_nothing))

    def change_mind(call: Call) -> dict[str, Any]:
        return next(verdicts)(call)

    population, engine = build({**RULES, "privacy_checker": change_mind})

    assert len(population.agents) == 1
    assert "the person could still be identified: [removed] is the only one" in engine.asked("anonymiser")[1].text


def test_nothing_that_identifies_survives_in_what_is_kept():
    population, _ = build(
        {**RULES, "goal_setter": set_goal},
        [PROFILE.model_copy(update={"profile_id": f"profile-{i}"}) for i in range(20)],
    )

    assert len(population.agents) == 20
    for row in (*population.profiles, *population.agents):
        text = "\n".join(str(value) for name, value in row.model_dump().items() if not name.endswith("_id"))
        assert find_contacts(text) == []
        assert find_raw(text) == []


def test_a_profile_without_a_history_keeps_it_empty_and_is_marked():
    population, engine = build(RULES, [PROFILE.model_copy(update={"history": ()})])

    assert population.profiles[0].history == ()
    assert not population.agents[0].has_history
    assert engine.asked("planner")[0].fields["memory"] == []


def test_a_profile_with_a_history_is_marked_and_its_plan_made_from_it():
    population, engine = build(RULES)

    assert population.agents[0].has_history
    assert engine.asked("planner")[0].fields["memory"] == ["Before: Did thing 0.", "Before: Did thing 1."]


def test_a_history_invented_for_a_profile_without_one_is_not_accepted():
    def invent(call: Call) -> dict[str, Any]:
        return {**anonymise(call), "anonymous_history": ["Once won a prize."]}

    population, _ = build({**RULES, "anonymiser": invent}, [PROFILE.model_copy(update={"history": ()})])

    assert population.agents == []
    assert population.rejected[0].reason == "failed check"


@pytest.mark.parametrize("n_steps", [3, 8])
def test_a_plan_of_three_to_eight_steps_is_taken_as_it_is(n_steps: int):
    population, _ = build({**RULES, "planner": lambda _: {"plan": [f"step {n}" for n in range(n_steps)]}})

    assert population.agents[0].plan == tuple(f"step {n}" for n in range(n_steps))


def test_a_longer_plan_is_cut_to_eight_steps():
    population, _ = build({**RULES, "planner": lambda _: {"plan": [f"step {n}" for n in range(12)]}})

    assert population.agents[0].plan == tuple(f"step {n}" for n in range(8))


def test_a_shorter_plan_is_asked_for_once_more_and_then_rejects_the_agent():
    population, engine = build({**RULES, "planner": lambda _: {"plan": ["rest", " ", "think"]}})

    (row,) = population.rejected
    assert len(engine.asked("planner")) == 2
    assert "the plan has 2 steps; it needs 3 to 8" in engine.asked("planner")[1].text
    assert (row.noun, row.stage, row.reason) == ("agent", "population: plan", "failed check")
    assert population.profiles == []


def test_an_empty_goal_is_asked_for_once_more():
    def hesitate(call: Call) -> dict[str, Any]:
        return set_goal(call) if call.n_again else {"personality": "Careful.", "life_goal": " "}

    population, engine = build({**RULES, "goal_setter": hesitate})

    assert len(population.agents) == 1
    assert len(engine.asked("goal_setter")) == 2


def test_one_failing_profile_disturbs_nobody_and_the_order_is_kept():
    def fail_third(call: Call) -> Any:
        return babble(call) if "number 3" in call.fields["description"] else anonymise(call)

    profiles = [
        PROFILE.model_copy(update={"profile_id": f"profile-{n}", "description": f"number {n}"}) for n in range(6)
    ]
    population, _ = build({**RULES, "anonymiser": fail_third}, profiles, latency_s=0.003)

    assert [agent.profile_id for agent in population.agents] == [f"profile-{n}" for n in (0, 1, 2, 4, 5)]
    assert [row.id for row in population.rejected] == ["profile-3"]


def test_the_population_does_not_depend_on_concurrency_or_latency():
    def fail_some(call: Call) -> Any:
        return repeat_raw(call) if call.fields["description"][-1] in "369" and call.n_again < 2 else anonymise(call)

    profiles = [
        PROFILE.model_copy(update={"profile_id": f"profile-{n:02d}", "description": f"Marguerite, number {n}"})
        for n in range(20)
    ]
    results = [
        build({**RULES, "anonymiser": fail_some}, profiles, concurrency=width, latency_s=0.002, shuffle=width)[0]
        for width in (1, 4, 64)
    ]

    assert len(results[0].agents) == 20
    assert results[0] == results[1] == results[2]


def test_ids_depend_on_the_profiles_id_and_the_seed_and_on_no_text():
    def shout(call: Call) -> dict[str, Any]:
        return {"personality": "LOUD.", "life_goal": "TO BE HEARD."}

    one, _ = build(RULES)
    other, _ = build({**RULES, "goal_setter": shout}, [PROFILE.model_copy(update={"name": "Bob", "description": "b"})])

    assert one.agents[0].agent_id == other.agents[0].agent_id
