import asyncio
import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from matrix_dspy.bulk.runner import Runner
from matrix_dspy.config import Config, SimulationConfig
from matrix_dspy.simulation.society import Closed, Society
from matrix_dspy.text import count_words
from matrix_dspy.types import Agent, Rejected
from tests.toys import Call, Rule, ToyEmbedder, ToyEngine, hash_number, make_agent, make_group

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo", "Mia", "Ned", "Olga")
SUMMARY = "They talked, worked and waited until the evening came over the hill. " * 8


def act(call: Call) -> dict[str, Any]:
    return {"action": f"{read_name(call)} did it in round {call.fields['round']}.", "step_done": False}


def plan(call: Call) -> dict[str, Any]:
    return {"plan": [f"step {len(call.fields['memory'])}.{number}" for number in range(3)]}


def tell_nobody(call: Call) -> dict[str, Any]:
    return {"reason": "a private matter", "receivers": []}


def tell_all(call: Call) -> dict[str, Any]:
    return {"reason": "it was loud", "receivers": list(range(len(call.fields["members"])))}


def tell_all_groups(call: Call) -> dict[str, Any]:
    return {"reason": "it was in the paper", "receivers": list(range(len(call.fields["groups"])))}


def tell_some(call: Call) -> dict[str, Any]:
    listed = call.fields.get("members") or call.fields["groups"]
    return {
        "reason": "hearsay",
        "receivers": [n for n in range(len(listed)) if hash_number(call.fields["action"], n) % 3 == 0],
    }


def receive_all(call: Call) -> dict[str, Any]:
    members = list(range(len(call.fields["members"])))
    return {"deliveries": [{"event": n, "members": members} for n in range(len(call.fields["events"]))]}


def summarise(call: Call) -> dict[str, Any]:
    return {"summary": SUMMARY, "group_description": f"People after {call.fields['events'][-1]}"}


def fold(call: Call) -> dict[str, Any]:
    return {"memory_summary": f"{len(call.fields['memories'])} things happened."}


def babble(call: Call) -> str:
    return "I would not know."


QUIET: dict[str, Rule] = {
    "actor": act,
    "planner": plan,
    "memory_keeper": fold,
    "intra_router": tell_nobody,
    "inter_router": tell_nobody,
    "reception_router": receive_all,
    "scenario_writer": summarise,
}
LOUD: dict[str, Rule] = {**QUIET, "intra_router": tell_all, "inter_router": tell_all_groups}
MIXED: dict[str, Rule] = {**QUIET, "intra_router": tell_some, "inter_router": tell_some}


def read_name(call: Call) -> str:
    found = re.match(r"Name: (\w+)", call.fields["persona"])
    assert found
    return found[1]


def acts_of(engine: ToyEngine, name: str) -> list[Call]:
    return [call for call in engine.asked("actor") if read_name(call) == name]


class Village:
    """A society of groups of the given sizes on a toy engine, with what it did."""

    def __init__(
        self,
        sizes: Sequence[int],
        rules: dict[str, Rule],
        *,
        steps: Sequence[str] = ("survey the land", "build the shed", "open the shop"),
        engine: ToyEngine | None = None,
        population: dict[str, Any] | None = None,
        histories: dict[str, tuple[str, ...]] | None = None,
        **simulation: Any,
    ) -> None:
        names = iter(NAMES)
        members = [[make_agent(next(names), steps) for _ in range(size)] for size in sizes]
        groups = [make_group(letter, own) for letter, own in zip("abcdefgh", members, strict=False)]
        agents: list[Agent] = [agent for own in members for agent in own]
        self.engine = engine or ToyEngine(rules)
        settings: dict[str, Any] = {"simulation": SimulationConfig(**simulation), "population": population or {}}
        self.config = Config(**settings)
        runner = Runner(self.engine)
        self.society = Society(agents, groups, histories or {}, self.config, runner, ToyEmbedder())

    def live(self, *quotas: int) -> "Village":
        async def run() -> bool:
            is_alive = True
            for quota in quotas:
                is_alive = await asyncio.wait_for(self.society.live(quota), timeout=20)
            return is_alive

        self.is_alive = asyncio.run(run())
        self.closed, self.failures = self.society.take(quotas[-1])
        return self

    @property
    def events(self) -> list[Any]:
        return [event for closed in self.closed for event in closed.events]

    def result(self) -> tuple[list[Closed], list[Rejected]]:
        return self.closed, self.failures


def count_calls(village: Village) -> Counter[str]:
    return Counter(call.program for call in village.engine.calls)


# ---- scenario boundary (METHOD 2.6)


def test_three_agents_and_nine_actions_make_three_scenarios_of_three_consecutive_actions():
    village = Village([3], QUIET).live(3)

    assert [len(closed.events) for closed in village.closed] == [3, 3, 3]
    assert [[event.round for event in closed.events] for closed in village.closed] == [[1] * 3, [2] * 3, [3] * 3]


def test_five_agents_make_a_scenario_of_five_actions_in_one_round():
    (closed,) = Village([5], QUIET).live(1).closed

    assert (closed.scenario.opened_round, closed.scenario.closed_round) == (1, 1)
    assert len(closed.events) == 5


def test_a_lone_agent_makes_a_scenario_in_three_rounds():
    (closed,) = Village([1], QUIET).live(1).closed

    assert (closed.scenario.opened_round, closed.scenario.closed_round) == (1, 3)
    assert [event.round for event in closed.events] == [1, 2, 3]


def test_two_agents_take_two_rounds_so_that_everybody_has_had_a_turn():
    (closed,) = Village([2], QUIET).live(1).closed

    assert Counter(event.round for event in closed.events) == {1: 2, 2: 2}


def test_more_rounds_per_scenario_can_be_asked_for():
    (closed,) = Village([3], QUIET, rounds_per_scenario=3).live(1).closed

    assert Counter(event.round for event in closed.events) == {1: 3, 2: 3, 3: 3}


def test_a_round_without_any_action_closes_the_scenario():
    def act_once(call: Call) -> Any:
        return act(call) if call.fields["round"] == "1" else babble(call)

    (closed,) = Village([1], {**QUIET, "actor": act_once}).live(5).closed

    assert [event.round for event in closed.events] == [1]


def test_a_scenario_names_its_members_events_and_neighbours_in_time():
    village = Village([3], QUIET).live(2)
    first, second = village.closed

    assert first.scenario.event_ids == tuple(event.event_id for event in first.events)
    assert set(first.scenario.agent_ids) == {event.agent_id for event in first.events}
    assert (first.scenario.index, second.scenario.index) == (0, 1)
    assert village.engine.asked("scenario_writer")[1].fields["previous_summary"] == first.scenario.summary


# ---- one round (METHOD 2.2, 2.5)


def test_members_see_in_a_round_only_what_was_delivered_before_it():
    village = Village([3], LOUD).live(2)

    first, second = acts_of(village.engine, "Ada")[:2]

    assert first.fields["observations"] == []
    assert second.fields["observations"] == ["Round 1: Ben did it in round 1.", "Round 1: Cleo did it in round 1."]


def test_all_waiting_observations_are_read_in_one_call_and_cleared():
    def tell_in_round_one(call: Call) -> dict[str, Any]:
        return tell_all(call) if "round 1." in call.fields["action"] else tell_nobody(call)

    village = Village([5], {**QUIET, "intra_router": tell_in_round_one}).live(3)

    assert [len(call.fields["observations"]) for call in acts_of(village.engine, "Ada")[:3]] == [0, 4, 0]


def test_what_was_observed_and_done_is_remembered_in_this_order():
    village = Village([3], LOUD).live(3)

    third = acts_of(village.engine, "Ada")[2]

    memory = third.fields["memory"]
    assert [item.rpartition(": ")[2] for item in memory] == [
        "Ada did it in round 1.", "Ben did it in round 1.", "Cleo did it in round 1.", "Ada did it in round 2.",
    ]  # fmt: skip


def test_an_action_on_an_observation_is_a_reaction():
    village = Village([3], LOUD).live(2)

    assert [{event.kind for event in closed.events} for closed in village.closed] == [{"act"}, {"react"}]


def test_the_actor_is_not_on_the_list_of_those_who_may_come_to_know():
    village = Village([3], LOUD).live(2)

    for call in village.engine.asked("intra_router"):
        actor = call.fields["action"].split()[0]
        assert len(call.fields["members"]) == 2
        assert not any(f": {actor}." in member for member in call.fields["members"])
    assert all(event.agent_id not in event.receiver_ids for event in village.events)


def test_unknown_and_repeated_numbers_are_left_out():
    def tell_wildly(call: Call) -> dict[str, Any]:
        return {"reason": "guessed", "receivers": [7, 1, -1, 1, 99]}

    village = Village([3, 2], {**QUIET, "intra_router": tell_wildly, "inter_router": tell_wildly}).live(1)

    assert {event.agent_id: event.receiver_ids for event in village.closed[0].events} == {
        "agent-ada": ("agent-cleo",), "agent-ben": ("agent-cleo",), "agent-cleo": ("agent-ben",),
    }  # fmt: skip
    assert {event.group_ids for event in village.events} == {()}


def test_an_unusable_answer_of_the_router_reaches_nobody_and_is_recorded():
    village = Village([3], {**QUIET, "intra_router": babble}).live(1)

    assert {event.receiver_ids for event in village.events} == {()}
    assert Counter((row.noun, row.reason) for row in village.failures) == {("routing", "unparsed"): 3}
    assert {row.id for row in village.failures} == {event.event_id for event in village.events}
    assert {row.raw_text for row in village.failures} == {"I would not know."}


def test_an_unusable_answer_is_asked_for_once_more_and_no_oftener():
    village = Village([3], {**QUIET, "intra_router": babble}).live(1)

    assert Counter(call.n_again for call in village.engine.asked("intra_router")) == {0: 3, 1: 3}


def test_an_actor_who_cannot_be_understood_does_nothing_and_blocks_nobody():
    def act_but_ben(call: Call) -> Any:
        return babble(call) if read_name(call) == "Ben" else act(call)

    village = Village([3], {**QUIET, "actor": act_but_ben}).live(2)

    assert {event.agent_id for event in village.events} == {"agent-ada", "agent-cleo"}
    assert {(row.noun, row.reason) for row in village.failures} == {("action", "unparsed")}
    assert all(row.id.startswith("agent-ben:") for row in village.failures)


def test_an_action_that_is_much_too_long_is_asked_for_again_with_the_count():
    def ramble(call: Call) -> dict[str, Any]:
        return act(call) if call.n_again else {"action": "word " * 200, "step_done": False}

    village = Village([3], {**QUIET, "actor": ramble}).live(1)

    again = next(call for call in village.engine.asked("actor") if call.n_again)
    assert "the action has 200 words; write at most 80" in again.text
    assert len(village.events) == 3


def test_a_summary_that_cannot_be_had_falls_back_to_the_actions_and_the_old_description():
    village = Village([3], {**QUIET, "scenario_writer": babble}).live(1)

    scenario = village.closed[0].scenario
    assert scenario.summary == " ".join(event.action for event in village.events)
    assert scenario.group_description == "Group a."
    assert [row.noun for row in village.failures] == ["summary"]


# ---- plans (METHOD 2.1, 2.2)


def test_a_step_is_left_after_three_actions():
    village = Village([3], QUIET).live(7)

    steps = [call.fields["step"] for call in acts_of(village.engine, "Ada")[:7]]

    assert steps == ["survey the land"] * 3 + ["build the shed"] * 3 + ["open the shop"]


def test_a_step_that_is_done_moves_the_plan_on():
    def finish(call: Call) -> dict[str, Any]:
        return {**act(call), "step_done": True}

    village = Village([3], {**QUIET, "actor": finish}).live(3)

    steps = [call.fields["step"] for call in acts_of(village.engine, "Ada")[:3]]
    assert steps == ["survey the land", "build the shed", "open the shop"]
    assert all(event.is_step_done for event in village.events)


def test_a_finished_plan_is_followed_by_a_new_one_made_from_memory():
    village = Village([3], QUIET, steps=["rest", "think", "walk"]).live(10)

    tenth = acts_of(village.engine, "Ada")[9]

    assert tenth.fields["plan"] == ["step 9.0", "step 9.1", "step 9.2"]
    assert tenth.fields["step"] == "step 9.0"


@pytest.mark.parametrize("max_plans", [1, 2, 4])
def test_no_more_plans_are_made_than_allowed_and_then_all_is_quiet(max_plans: int):
    village = Village([3], QUIET, max_plans=max_plans).live(1000)

    assert not village.is_alive
    assert count_calls(village)["planner"] == 3 * (max_plans - 1)
    assert len(village.events) == 3 * 9 * max_plans


def test_an_agent_whose_last_plan_is_finished_makes_no_call_without_an_observation():
    village = Village([3], QUIET, max_plans=1).live(1000)

    assert len(village.engine.asked("actor")) == 3 * 9


def test_an_agent_whose_last_plan_is_finished_reacts_twice_at_most():
    village = Village([3], LOUD, max_plans=1).live(1000)

    late = [event for event in village.events if not event.plan_step]

    assert Counter(event.agent_id for event in late) == {"agent-ada": 2, "agent-ben": 2, "agent-cleo": 2}
    assert {event.kind for event in late} == {"react"}
    assert not village.is_alive


def test_the_number_of_late_reactions_is_a_setting():
    village = Village([3], LOUD, max_plans=1, max_late_reactions=0).live(1000)

    assert all(event.plan_step for event in village.events)


def test_a_plan_that_could_not_be_made_takes_no_late_reaction_away():
    def plan_but_ada(call: Call) -> Any:
        return babble(call) if read_name(call) == "Ada" else plan(call)

    def tell_ada_late(call: Call) -> dict[str, Any]:
        is_late = int(re.findall(r"round (\d+)", call.fields["action"])[0]) >= 12
        return tell_all(call) if is_late else tell_nobody(call)

    rules = {**QUIET, "planner": plan_but_ada, "intra_router": tell_ada_late}
    village = Village([3], rules, max_plans=2).live(16)

    late = [event for event in village.events if event.agent_id == "agent-ada" and not event.plan_step]
    assert [event.round for event in late] == [13, 14]
    assert [row.noun for row in village.failures] == ["plan"]


def test_a_group_rests_after_three_boundaries_without_a_scenario():
    village = Village([2], {**QUIET, "actor": babble}).live(10)

    assert not village.is_alive
    assert village.closed == []
    assert Counter(call.fields["round"] for call in village.engine.asked("actor")) == {"1": 4, "2": 4, "3": 4}


def test_a_group_that_was_retired_is_not_woken_by_mail_and_reads_none():
    def act_but_first_group(call: Call) -> Any:
        return babble(call) if read_name(call) in ("Ada", "Ben") else act(call)

    village = Village([2, 3], {**LOUD, "actor": act_but_first_group}).live(9)

    rounds = [call.fields["round"] for call in village.engine.asked("actor") if read_name(call) in ("Ada", "Ben")]
    receptions = [call for call in village.engine.asked("reception_router") if "Ada" in call.fields["members"][0]]
    assert set(rounds) == {"1", "2", "3"}
    assert receptions == []


def test_one_failing_group_does_not_stop_the_others():
    def act_but_first_group(call: Call) -> Any:
        return babble(call) if read_name(call) in ("Ada", "Ben") else act(call)

    village = Village([2, 3], {**QUIET, "actor": act_but_first_group}).live(9)

    assert village.is_alive
    assert {closed.scenario.group_id for closed in village.closed} == {"group-b"}


# ---- between groups (METHOD 2.4, 2.5)


@pytest.mark.parametrize("lookahead", [0, 1, 3])
def test_an_event_from_outside_is_observed_at_the_first_boundary_after_its_delay(lookahead: int):
    village = Village([3, 3], {**QUIET, "inter_router": tell_all_groups}, lookahead=lookahead).live(16)

    rounds = [
        (int(call.fields["round"]), int(observed.split()[1].strip(",")))
        for call in village.engine.asked("actor")
        for observed in call.fields["observations"]
    ]

    assert rounds
    assert all(
        "from elsewhere" in text for call in village.engine.asked("actor") for text in call.fields["observations"]
    )
    assert {now - then for now, then in rounds} == {lookahead + 1}


def test_events_reach_another_group_between_scenarios_only():
    village = Village([1, 3], {**QUIET, "inter_router": tell_all_groups}, lookahead=1).live(20)

    outside = [
        int(call.fields["round"])
        for call in acts_of(village.engine, "Ada")
        if any("from elsewhere" in text for text in call.fields["observations"])
    ]

    assert outside
    assert all(round_ % 3 == 1 for round_ in outside)  # a lone agent's scenarios open every third round


def test_events_from_outside_are_observed_only_by_those_the_reception_names():
    def receive_first(call: Call) -> dict[str, Any]:
        return {"deliveries": [{"event": 0, "members": [1, 8, -2]}, {"event": 44, "members": [0]}]}

    rules = {**QUIET, "inter_router": tell_all_groups, "reception_router": receive_first}
    village = Village([3, 3], rules, lookahead=1).live(8)

    hearers = {read_name(call) for call in village.engine.asked("actor") if call.fields["observations"]}
    assert hearers == {"Ben", "Eva"}
    assert all(len(call.fields["observations"]) <= 1 for call in village.engine.asked("actor"))


def test_a_scenario_names_the_events_from_outside_that_were_observed_at_its_start():
    village = Village([3, 3], {**QUIET, "inter_router": tell_all_groups}, lookahead=1).live(6)

    sent = {event.event_id for event in village.events if event.round == 1 and event.group_id == "group-b"}
    third = next(c.scenario for c in village.closed if c.scenario.group_id == "group-a" and c.scenario.index == 2)
    assert set(third.outside_event_ids) == sent


def test_the_newest_five_events_by_round_and_sender_are_taken_in_with_one_call():
    village = Village([3, 3, 3], {**QUIET, "inter_router": tell_all_groups}, lookahead=0).live(6)

    calls = [call for call in village.engine.asked("reception_router") if "Gus" in call.fields["members"][0]]
    told = [line.partition(": ")[2].split()[0] for line in calls[0].fields["events"]]

    assert len(told) == 5
    assert set(told[2:]) == {"Dan", "Eva", "Finn"}  # group b is the later sender: all of it, and two of group a
    assert set(told[:2]) < {"Ada", "Ben", "Cleo"}


def test_an_unusable_reception_reaches_nobody_and_is_recorded():
    rules = {**QUIET, "inter_router": tell_all_groups, "reception_router": babble}
    village = Village([3, 3], rules, lookahead=1).live(8)

    assert all(call.fields["observations"] == [] for call in village.engine.asked("actor"))
    assert {row.noun for row in village.failures} == {"reception"}


def test_without_mail_no_reception_is_asked():
    village = Village([3, 3], QUIET).live(10)

    assert village.engine.asked("reception_router") == []


def test_at_most_three_groups_are_chosen_from_a_shortlist():
    village = Village([3, 3, 3, 1, 1, 1], {**QUIET, "inter_router": tell_all_groups}, shortlist=4).live(3)

    assert {len(call.fields["groups"]) for call in village.engine.asked("inter_router")} == {4}
    assert {len(event.group_ids) for event in village.events} == {3}
    assert all(event.group_id not in event.group_ids for event in village.events)


def test_a_resting_group_is_woken_by_news_and_reacts():
    def act_once(call: Call) -> dict[str, Any]:
        return {**act(call), "step_done": True}

    def tell_group_a(call: Call) -> dict[str, Any]:
        if call.fields["action"].startswith(("Dan", "Eva", "Finn")) and "round 7." in call.fields["action"]:
            return tell_all_groups(call)
        return tell_nobody(call)

    rules = {**QUIET, "actor": act_once, "inter_router": tell_group_a}
    village = Village([3, 3], rules, steps=["a", "b", "c"], max_plans=1)
    village.society.processes["group-b"].agents[0].plan = ["x"] * 8
    village.society.processes["group-b"].agents[1].plan = ["x"] * 8
    village.society.processes["group-b"].agents[2].plan = ["x"] * 8
    village.live(100)

    rounds = {event.round for event in village.events if event.group_id == "group-a" and not event.plan_step}
    assert rounds == {7 + 3 + 1}


# ---- modes (METHOD 2.8)


def live_in_mode(mode: str) -> Village:
    return Village([3, 5], MIXED, communication=mode).live(8)


def test_all_modes_ask_the_same_in_the_first_round():
    first = [
        sorted(call.text for call in live_in_mode(mode).engine.asked("actor") if call.fields["round"] == "1")
        for mode in ("none", "random", "structured")
    ]

    assert first[0] == first[1] == first[2]
    assert len(first[0]) == 8


def test_all_modes_make_as_many_scenarios():
    assert {len(live_in_mode(mode).closed) for mode in ("none", "random", "structured")} == {8}


def test_mode_none_delivers_nothing_and_asks_no_router():
    village = live_in_mode("none")

    assert all(not event.receiver_ids and not event.group_ids for event in village.events)
    assert set(count_calls(village)) <= {"actor", "scenario_writer", "planner", "memory_keeper"}
    assert all(call.fields["observations"] == [] for call in village.engine.asked("actor"))


def test_mode_random_delivers_each_action_to_two_others_anywhere_and_asks_no_router():
    village = live_in_mode("random")

    assert {len(set(event.receiver_ids)) for event in village.events} == {2}
    assert all(event.agent_id not in event.receiver_ids for event in village.events)
    home = village.society.home
    assert {home[i] == event.group_id for event in village.events for i in event.receiver_ids} == {True, False}
    assert set(count_calls(village)) <= {"actor", "scenario_writer", "planner", "memory_keeper"}


def test_mode_random_delivers_what_it_drew():
    village = Village([3, 3], QUIET, communication="random", lookahead=1).live(20)

    observed = {
        (read_name(call), text.rpartition(": ")[2])
        for call in village.engine.asked("actor")
        for text in call.fields["observations"]
    }
    drawn = {
        (agent_id.partition("-")[2].title(), event.action)
        for event in village.events
        for agent_id in event.receiver_ids
        if event.round <= 6
    }
    assert drawn <= observed


# ---- calls (METHOD 2.9)


def test_a_structured_scenario_of_five_takes_sixteen_calls_and_one_reception():
    village = Village([5, 5], {**QUIET, "inter_router": tell_all_groups}, lookahead=0).live(4)

    assert count_calls(village) == {
        "actor": 20, "intra_router": 20, "inter_router": 20, "scenario_writer": 4, "reception_router": 2,
    }  # fmt: skip


def test_a_lone_agent_takes_seven_calls_a_scenario():
    village = Village([1, 1], QUIET, lookahead=0).live(2)

    assert count_calls(village) == {"actor": 6, "inter_router": 6, "scenario_writer": 2}


def test_a_scenario_without_communication_takes_one_call_more_than_it_has_actions():
    village = Village([5], QUIET, communication="none").live(3)

    assert count_calls(village) == {"actor": 15, "scenario_writer": 3}


# ---- the same result whatever the timing (METHOD, rule 2)


def make_timed(concurrency: int, shuffle: int, **simulation: Any) -> Village:
    def fail_now_and_then(rule: Callable[[Call], Any]) -> Rule:
        def answer(call: Call) -> Any:
            told = call.fields.get("action") or call.fields.get("events") or call.fields["persona"]
            is_bad = hash_number(call.program, str(told), call.fields.get("round"), 3) % 9 == 0
            return babble(call) if is_bad else rule(call)

        return answer

    rules = {name: fail_now_and_then(rule) for name, rule in MIXED.items()}
    rules["actor"] = fail_now_and_then(lambda call: {**act(call), "step_done": hash_number(call.text) % 2 == 0})
    engine = ToyEngine(rules, concurrency=concurrency, latency_s=0.002, shuffle=shuffle)
    return Village([3, 1, 4, 2], rules, engine=engine, population={"memory_tokens": 200}, **simulation)


@pytest.mark.parametrize("mode", ["structured", "random"])
@pytest.mark.parametrize("lookahead", [0, 3])
def test_scenarios_events_and_failures_do_not_depend_on_concurrency_or_latency(mode: str, lookahead: int):
    results = [
        make_timed(concurrency, shuffle, communication=mode, lookahead=lookahead).live(24).result()
        for shuffle, concurrency in enumerate((1, 4, 64, 64, 3))
    ]

    assert len(results[0][0]) == 24
    assert results[0][1]
    assert all(result == results[0] for result in results)


def test_a_society_that_runs_out_of_plans_ends_the_same_whatever_the_timing():
    results = [make_timed(concurrency, concurrency, max_plans=1).live(10_000) for concurrency in (1, 8, 64)]

    assert not any(village.is_alive for village in results)
    assert all(village.result() == results[0].result() for village in results)


@pytest.mark.parametrize("lookahead", [0, 1, 3])
def test_going_on_after_a_quota_equals_living_on_at_once(lookahead: int):
    broken = make_timed(8, 1, lookahead=lookahead).live(3, 4, 24)
    whole = make_timed(64, 2, lookahead=lookahead).live(24)

    assert broken.result() == whole.result()


def test_a_society_that_goes_on_wakes_the_groups_that_were_at_rest():
    def tell_late(call: Call) -> dict[str, Any]:
        return tell_all_groups(call) if "round 6." in call.fields["action"] else tell_nobody(call)

    def build() -> Village:
        village = Village([2, 3], {**QUIET, "inter_router": tell_late}, max_plans=1, lookahead=0)
        for agent in village.society.processes["group-a"].agents:
            agent.plan = []
        return village

    broken, whole = build().live(3, 9), build().live(9)

    assert broken.result() == whole.result()
    assert [closed.order for closed in whole.closed][-2:] == [(8, "group-a"), (8, "group-b")]


# ---- prompts


def test_prompts_carry_round_numbers_and_no_times_of_day():
    village = make_timed(8, 0).live(12)

    assert all(call.fields["round"].isdigit() for call in village.engine.asked("actor"))
    texts = [call.asked for call in village.engine.calls]
    assert not any(re.search(r"\b\d{1,2}:\d{2}\b|\b20\d\d-\d\d-\d\d\b", text) for text in texts)


def test_the_prompts_of_one_agent_extend_each_other_to_the_end_of_its_memory():
    village = Village([3], LOUD, histories={"agent-ada": ("sold honey", "bought a hive")}).live(8)

    prompts = [call.asked for call in acts_of(village.engine, "Ada")]
    heads = [text.partition("]\n\n[[ ## round ## ]]\n")[0] for text in prompts]

    assert len(heads) >= 8
    assert '"Before: sold honey"' in heads[0]
    for earlier, later in itertools.pairwise(heads):
        assert later.startswith(earlier)
        assert len(later) > len(earlier)


def test_a_memory_over_its_budget_is_folded_and_its_old_items_recalled():
    village = Village([3], LOUD, population={"memory_tokens": 200}).live(12)

    last = acts_of(village.engine, "Ada")[-1]

    assert village.engine.asked("memory_keeper")
    assert last.fields["memory"][0].startswith("Earlier: ")
    assert last.fields["recalled"]
    assert not set(last.fields["recalled"]) & set(last.fields["memory"])


def test_a_memory_that_cannot_be_summarised_is_shortened_and_recorded():
    def say_nothing(call: Call) -> str:
        return ""

    rules = {**LOUD, "memory_keeper": say_nothing}
    village = Village([3], rules, population={"memory_tokens": 200}).live(12)

    first = acts_of(village.engine, "Ada")[-1].fields["memory"][0]
    assert "memory" in {row.noun for row in village.failures}
    assert first.startswith("Earlier: ")
    assert count_words(first) <= 121 * 2


def test_groups_are_described_to_others_only_as_they_were_lookahead_rounds_ago():
    village = Village([3, 3], QUIET, lookahead=2).live(12)

    for call in village.engine.asked("inter_router"):
        now = int(re.findall(r"in round (\d+)", call.fields["action"])[0])
        known = re.findall(r"in round (\d+)", call.fields["groups"][0])
        expected = now - 1 - 2
        assert known == ([str(expected)] if expected >= 1 else [])


# ---- failures at the edge of a quota


def test_a_failed_reception_is_recorded_only_with_a_scenario_that_is_kept():
    rules = {**QUIET, "inter_router": tell_all_groups, "reception_router": babble}

    for quota in (2, 3, 4, 5, 6):
        results = [
            Village([3, 3], rules, lookahead=0, engine=ToyEngine(rules, latency_s=0.002, shuffle=shuffle)).live(quota)
            for shuffle in range(4)
        ]
        assert all(village.result() == results[0].result() for village in results)
