import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from matrix_dspy.bulk.budget import Budget
from matrix_dspy.bulk.journal import Journal
from matrix_dspy.bulk.runner import Runner
from matrix_dspy.config import Config, SynthesisConfig, load_kind
from matrix_dspy.engine.base import Completion, Request
from matrix_dspy.errors import LimitError
from matrix_dspy.synthesis.flow import HOPELESS_START, HOPELESS_WAVE, MIN_YIELD, Flow, build_candidates
from matrix_dspy.synthesis.row import Row
from matrix_dspy.types import Drop, Example
from tests.synthesis.casting import GROUPS, NAMES, Cast, Play, make_candidates, make_events, make_kind
from tests.toys import Call, Rule, ToyEngine, ToyGate, hash_number, make_agent, make_desk, make_scenario

KIND = load_kind("sft")


def unrated(**changes: Any) -> SynthesisConfig:
    return SynthesisConfig(rate=False, **changes)


def write(call: Call) -> dict[str, Any]:
    place = re.findall(r"event-scenario-(\w+)-(\d+)-agent-(\w+)", call.fields["actions"][0])[0]
    return {"instruction": f"How do I go about matter {'-'.join(place)}?"}


def respond(call: Call) -> str:
    return f"Like this: {call.fields['instruction']}"


RULES: dict[str, Rule] = {"instruction_writer": write, "responder": respond}


class TwinGate(ToyGate):
    """Drops an instruction equal to an earlier one."""

    def check_instruction(self, row_id: str, text: str, others: Sequence[str]) -> Drop | None:
        twin = self.seen.setdefault(text, row_id)
        return None if twin == row_id else Drop("exact duplicate", f"the same as {twin}", twin, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, str] = {}


class Work:
    """A flow of `n` wanted rows over candidates, filled."""

    def __init__(
        self,
        n: int,
        n_candidates: int,
        *,
        rules: dict[str, Rule] = RULES,
        gate: ToyGate | None = None,
        groups: str = "abcdefghijklmnopqrst",
        max_calls: int | None = None,
        **engine: Any,
    ) -> None:
        self.config = Config(n=n, synthesis=unrated(group_share=1.0 if len(groups) == 20 else 0.05))
        self.engine = ToyEngine(rules, **engine)
        self.gate = gate or ToyGate()
        runner = Runner(self.engine, budget=Budget(max_calls))
        self.flow = Flow(self.config, KIND, make_desk(self.config, runner), self.gate, n_groups=len(groups))
        self.flow.offer(make_candidates(n_candidates, self.config, groups))

    def fill(self) -> "Work":
        self.n_missing = asyncio.run(self.flow.fill())
        return self

    @property
    def rows(self) -> list[Row]:
        return self.flow.rows

    @property
    def kept(self) -> list[int]:
        return [row.rank for row in self.rows if row.example]

    @property
    def reasons(self) -> Counter[str]:
        return Counter(row.rejected.reason for row in self.rows if row.rejected)


def is_bad(text: str, share: int = 3) -> bool:
    return hash_number(text.removeprefix("Like this: ")) % share == 0


@pytest.mark.parametrize("n", [1, 7, 40])
def test_exactly_n_rows_are_kept(n: int):
    work = Work(n, 200, gate=ToyGate(is_bad)).fill()

    assert work.n_missing == 0
    assert len(work.kept) == n


def test_the_first_n_survivors_by_rank_are_kept_and_the_rest_is_surplus():
    work = Work(60, 300, gate=ToyGate(is_bad), latency_s=0.002).fill()

    survivors = [row.rank for row in work.rows if row.response]
    surplus = [row for row in work.rows if row.rejected and row.rejected.reason == "surplus"]
    assert work.kept == survivors[:60]
    assert [row.rank for row in surplus] == survivors[60:]
    assert len(surplus) > 0
    assert {(row.rejected.noun, row.rejected.detail) for row in surplus if row.rejected} == {
        ("example", "60 rows were kept")
    }


def test_every_row_is_kept_or_rejected_with_a_reason():
    work = Work(60, 300, gate=ToyGate(is_bad, lambda text: is_bad(text, 5))).fill()

    assert all((row.example is None) != (row.rejected is None) for row in work.rows)
    assert set(work.reasons) == {"bad instruction", "bad response", "surplus"}
    assert [row.rank for row in work.rows] == list(range(len(work.rows)))


def test_without_losses_the_first_wave_of_n_is_all_that_is_asked():
    work = Work(30, 200).fill()

    assert len(work.engine.asked("instruction_writer")) == len(work.engine.asked("responder")) == 30
    assert work.kept == list(range(30))


class WatchedFlow(Flow):
    """Notes how large its waves are."""

    def _take_wave(self) -> list[Row]:
        wave = super()._take_wave()
        self.progress.stage += f" {len(wave)}"
        return wave

    @property
    def sizes(self) -> list[int]:
        return [int(size) for size in self.progress.stage.split()]


def fill_watched(n: int, n_candidates: int, gate: ToyGate, shuffle: int = 0) -> WatchedFlow:
    config = Config(n=n, synthesis=unrated(group_share=1.0))
    runner = Runner(ToyEngine(RULES, latency_s=0.001, shuffle=shuffle))
    flow = WatchedFlow(config, KIND, make_desk(config, runner), gate, n_groups=1)
    flow.offer(make_candidates(n_candidates, config))
    asyncio.run(flow.fill())
    return flow


def test_later_waves_are_sized_by_the_measured_yield():
    def drop_every_other(text: str) -> bool:
        return int(text.split("-")[1]) % 2 == 0

    flow = fill_watched(40, 400, ToyGate(drop_every_other))

    assert flow.sizes[:2] == [40, int(20 / 0.5 * 1.05) + 1]
    assert flow.n_missing == 0


def test_the_sizes_of_waves_do_not_depend_on_latency():
    sizes = [fill_watched(30, 300, ToyGate(is_bad), shuffle).sizes for shuffle in range(4)]

    assert len(sizes[0]) > 1
    assert all(other == sizes[0] for other in sizes)


def test_a_wave_is_never_sized_by_less_than_the_least_yield():
    flow = fill_watched(20, 1000, ToyGate(lambda text: "matter a-000" not in text))
    largest = int(19 / MIN_YIELD * 1.05) + 1
    assert flow.sizes == [20, largest, largest, 1000 - 20 - 2 * largest, 0]


def test_a_dropped_instruction_is_never_answered():
    work = Work(20, 100, gate=ToyGate(is_bad)).fill()

    dropped = {row.rejected.raw_text for row in work.rows if row.rejected and row.rejected.reason == "bad instruction"}
    answered = {call.fields["instruction"] for call in work.engine.asked("responder")}
    assert dropped
    assert not dropped & answered
    assert len(work.engine.asked("responder")) == len(work.rows) - len(dropped)


@pytest.mark.parametrize("shuffle", range(4))
def test_the_gate_is_asked_in_rank_order_whatever_the_order_of_arrival(shuffle: int):
    work = Work(40, 60, latency_s=0.005, concurrency=64, shuffle=shuffle).fill()

    assert work.gate.asked == [row.candidate.instruction_id for row in work.rows]


@pytest.mark.parametrize("shuffle", range(4))
def test_an_earlier_rank_wins_over_its_twin_whatever_the_order_of_arrival(shuffle: int):
    def write_twins(call: Call) -> dict[str, Any]:
        return {"instruction": re.sub(r"matter \w-(\d+)-\w+", r"matter \1", write(call)["instruction"])}

    rules = {**RULES, "instruction_writer": write_twins}
    work = Work(4, 80, rules=rules, gate=TwinGate(), latency_s=0.005, concurrency=64, shuffle=shuffle).fill()

    assert work.kept == [0, 20, 40, 60]


def test_a_row_is_answered_before_the_last_of_its_wave_is_written():
    work = Work(40, 60, latency_s=0.003, concurrency=4).fill()

    programs = [call.program for call in work.engine.calls]
    assert programs.index("responder") < len(programs) - 1 - programs[::-1].index("instruction_writer")


def test_a_group_supplies_its_share_and_no_more():
    config = Config(n=100, synthesis=unrated())
    flow = Flow(config, KIND, make_desk(config, Runner(ToyEngine(RULES))), ToyGate(), n_groups=100)

    assert flow.group_cap == 5
    assert Flow(config, KIND, make_desk(config, Runner(ToyEngine(RULES))), ToyGate(), n_groups=8).group_cap == 25
    assert Flow(config, KIND, make_desk(config, Runner(ToyEngine(RULES))), ToyGate(), n_groups=1).group_cap == 200
    assert Flow(Config(n=3), KIND, make_desk(config, Runner(ToyEngine(RULES))), ToyGate(), n_groups=100).group_cap == 1


@pytest.mark.parametrize("shuffle", range(3))
def test_the_group_cap_is_held_and_stops_nobody_else(shuffle: int):
    groups = "abcdefghij"
    work = Work(40, 400, gate=ToyGate(is_bad), groups=groups, latency_s=0.002, shuffle=shuffle).fill()

    by_group = Counter(row.example.group_id for row in work.rows if row.example)
    assert work.n_missing == 0
    assert max(by_group.values()) <= work.flow.group_cap == 8


def test_a_full_group_leaves_rows_missing_rather_than_supply_more():
    config = Config(n=20, synthesis=unrated())
    flow = Flow(config, KIND, make_desk(config, Runner(ToyEngine(RULES))), ToyGate(), n_groups=10)
    flow.offer(make_candidates(100, config, groups="a"))

    assert asyncio.run(flow.fill()) == 16
    assert len([row for row in flow.rows if row.example]) == 4
    assert len(flow.rows) == 4  # nothing was bought that could not be kept


def test_candidates_passed_over_for_room_are_taken_when_their_group_has_room_after_all():
    config = Config(n=20, synthesis=unrated())
    gate = ToyGate(lambda text: "matter a-000" in text)
    flow = Flow(config, KIND, make_desk(config, Runner(ToyEngine(RULES))), gate, n_groups=10)
    flow.offer(make_candidates(6, config, groups="a"))

    asyncio.run(flow.fill())

    assert len([row for row in flow.rows if row.example]) == 4


def test_when_everything_is_dropped_the_run_stops_after_a_while():
    work = Work(HOPELESS_WAVE, 2000, gate=ToyGate(lambda text: True)).fill()

    assert work.flow.is_hopeless
    assert len(work.rows) == HOPELESS_WAVE
    assert work.n_missing == HOPELESS_WAVE


def test_few_losses_are_not_hopeless():
    work = Work(5, 5, gate=ToyGate(lambda text: True)).fill()

    assert not work.flow.is_hopeless


def test_more_candidates_may_be_offered_when_the_queue_is_empty():
    work = Work(30, 10).fill()
    assert work.n_missing == 20

    work.flow.offer(make_candidates(50, work.config, first=10))
    work.fill()

    assert work.n_missing == 0
    assert work.kept == list(range(30))


def test_a_scenario_gives_one_candidate_for_each_agent_of_it_with_its_own_actions():
    config = Config()
    agents = {agent.agent_id: agent for agent in map(make_agent, NAMES)}
    scenario = make_scenario(0, "a", ("agent-ada", "agent-ben"))
    scenario = scenario.model_copy(update={"event_ids": (*scenario.event_ids, "more")})
    events = make_events([make_scenario(0, "a", ("agent-ada", "agent-ben"))])
    first = next(iter(events.values()))
    events["more"] = first.model_copy(update={"event_id": "more", "action": "Ada did more."})

    ada, ben = build_candidates([scenario], events, agents, {scenario.scenario_id: 0.5}, config, "sft")

    assert [candidate.agent.name for candidate in (ada, ben)] == ["Ada", "Ben"]
    assert ada.actions == (first.action, "Ada did more.")
    assert len(ben.actions) == 1
    assert (ada.others, ben.others) == (("Ben",), ("Ada",))
    assert ada.relevance == 0.5


def test_there_is_one_instruction_at_the_most_for_scenario_agent_kind_and_type():
    simple, special = Config(), Config(synthesis=SynthesisConfig(type="specialised"))
    ids = [
        candidate.instruction_id
        for config in (simple, special, Config(seed=1))
        for candidate in make_candidates(100, config)
    ]

    assert len(set(ids)) == 300
    assert ids[:100] == [candidate.instruction_id for candidate in make_candidates(100, simple)]


def test_ids_depend_on_parents_only_and_never_on_text():
    def shout(call: Call) -> str:
        return "SOMETHING ELSE ALTOGETHER!"

    one = Work(10, 10).fill()
    other = Work(
        10, 10, rules={**RULES, "responder": shout, "instruction_writer": lambda _: {"instruction": "Hm?"}}
    ).fill()

    def read_ids(work: Work) -> list[tuple[str, ...]]:
        return [
            (row.example.example_id, row.example.response_id, row.example.instruction_id, row.example.scenario_id)
            for row in work.rows
            if row.example
        ]

    assert len(read_ids(one)) == 10
    assert read_ids(one) == read_ids(other)


def test_the_writer_sees_persona_actions_summary_and_requirement_and_the_responder_the_instruction_alone():
    work = Work(1, 1).fill()
    (written,), (answered,) = work.engine.asked("instruction_writer"), work.engine.asked("responder")

    candidate = work.rows[0].candidate
    assert written.fields["profile"] == candidate.agent.persona
    assert written.fields["actions"] == list(candidate.actions)
    assert written.fields["scenario"] == candidate.scenario.summary
    assert written.fields["requirement"].startswith("Kind: ")
    instruction = work.rows[0].instruction
    assert instruction
    assert answered.request.messages == [{"role": "user", "content": instruction.text}]


def test_an_example_is_a_conversation_that_names_all_its_parents():
    work = Work(1, 1).fill()

    row = work.rows[0]
    assert isinstance(row.example, Example) and row.instruction and row.response
    assert [(m.role, m.content) for m in row.example.messages] == [
        ("user", row.instruction.text), ("assistant", row.response.text),
    ]  # fmt: skip
    assert row.example.scenario_id == row.candidate.scenario.scenario_id
    assert row.example.profile_id == row.candidate.agent.profile_id
    assert row.example.model == "toy"


def test_an_unusable_writer_is_asked_once_more_and_then_its_row_rejected():
    def babble_for_first(call: Call) -> Any:
        return "" if "scenario-a-000" in call.fields["actions"][0] else write(call)

    work = Work(5, 20, rules={**RULES, "instruction_writer": babble_for_first}).fill()

    assert work.rows[0].rejected
    assert (work.rows[0].rejected.noun, work.rows[0].rejected.reason) == ("instruction", "empty")
    assert work.kept == [1, 2, 3, 4, 5]
    assert len([c for c in work.engine.asked("instruction_writer") if "scenario-a-000" in c.text]) == 2


def test_what_was_dropped_as_a_leak_is_stored_nowhere():
    class LeakGate(ToyGate):
        def check_instruction(self, row_id: str, text: str, others: Sequence[str]) -> Drop | None:
            return Drop("leak", "it holds a name") if "matter a-000" in text else None

        def check_response(self, row_id: str, instruction: str, text: str, *, is_target: bool) -> Drop | None:
            return Drop("leak", "it holds a name") if "matter b-000" in text else None

    work = Work(5, 20, gate=LeakGate()).fill()

    leaks = [row.rejected for row in work.rows if row.rejected and row.rejected.reason == "leak"]
    assert [(row.noun, row.raw_text) for row in leaks] == [("instruction", ""), ("response", "")]


def test_the_result_does_not_depend_on_concurrency_or_latency():
    def make(width: int) -> Work:
        def unsteady(call: Call) -> Any:
            return "" if hash_number(call.text) % 6 == 0 else write(call)

        rules = {**RULES, "instruction_writer": unsteady}
        gate = ToyGate(is_bad, lambda text: is_bad(text, 7))
        return Work(
            60, 400, rules=rules, gate=gate, groups="abcdefgh", concurrency=width, latency_s=0.002, shuffle=width
        )

    works = [make(width).fill() for width in (1, 4, 64)]

    assert len(works[0].kept) == 60
    for work in works[1:]:
        assert [(r.rank, r.instruction, r.response, r.example, r.rejected) for r in work.rows] == [
            (r.rank, r.instruction, r.response, r.example, r.rejected) for r in works[0].rows
        ]


@pytest.mark.parametrize("max_calls", [1, 15, 33])
def test_a_limit_on_calls_keeps_what_there_is(max_calls: int):
    work = Work(20, 100, max_calls=max_calls, concurrency=4)

    with pytest.raises(LimitError, match=f"limit of {max_calls} calls"):
        asyncio.run(work.flow.fill())

    answered = [row for row in work.rows if row.response]
    assert len(work.engine.calls) == max_calls
    assert [row for row in work.rows if row.example] == answered
    assert work.flow.n_missing == 20 - len(answered)
    assert len(answered) == max(0, max_calls - 20)


def test_a_limit_on_calls_leaves_no_instruction_behind_that_no_filter_has_seen():
    class SlowAtFirst(ToyEngine):
        async def attempt(self, request: Request, n_asked: int) -> Completion:
            if "scenario-a-000" in str(request.messages):
                await asyncio.sleep(0.05)
            return await super().attempt(request, n_asked)

    config = Config(n=20, synthesis=unrated(group_share=1.0))
    gate = ToyGate()
    runner = Runner(SlowAtFirst(RULES, concurrency=3), budget=Budget(14))
    flow = Flow(config, KIND, make_desk(config, runner), gate, n_groups=20)
    flow.offer(make_candidates(40, config))
    with pytest.raises(LimitError):
        asyncio.run(flow.fill())

    assert {row.candidate.instruction_id for row in flow.rows if row.instruction} <= set(gate.asked)


def read_rows(work: Play) -> list[Any]:
    """Return everything a run would write of its rows."""
    return [
        (r.rank, r.instruction, r.messages, r.responses, r.critiques, r.judgements, r.example, r.control, r.rejected)
        for r in work.rows
    ]


@pytest.mark.parametrize("width", [1, 3, 16, 64])
def test_a_large_first_wave_ends_when_its_first_ranks_have_all_come_to_nothing(width: int):
    """Whatever was on its way besides is not recorded: how far that came depends on timing."""
    cast = Cast({"responder": lambda call: " "}, latency_s=0.001, concurrency=width, shuffle=width)
    work = Play(KIND, 1000, 1000, cast=cast).run()

    assert work.flow.is_hopeless
    assert [row.rank for row in work.rows] == list(range(HOPELESS_START))
    assert work.reasons == {"empty": HOPELESS_START}
    assert len(cast.asked("responder")) < 400


def test_the_rows_recorded_of_a_hopeless_wave_are_the_same_at_any_concurrency():
    def run(width: int) -> Play:
        gate = ToyGate(is_bad, drop_response=lambda text: True)
        return Play(KIND, 500, 500, cast=Cast(latency_s=0.001, concurrency=width, shuffle=width), gate=gate).run()

    works = [run(width) for width in (1, 5, 64)]

    assert set(works[0].reasons) == {"bad instruction", "bad response"}
    assert len(works[0].rows) == HOPELESS_START
    assert all(read_rows(work) == read_rows(works[0]) for work in works)


def test_one_good_row_among_the_first_ranks_is_hope_enough():
    gate = ToyGate(lambda text: "matter t-004" not in text)  # rank 99
    work = Play(KIND, 300, 300, gate=gate).run()

    assert work.kept == [HOPELESS_START - 1]
    assert len(work.rows) == 300


def test_a_small_first_wave_is_done_to_its_end_however_hopeless():
    work = Play(KIND, HOPELESS_START, 300, gate=ToyGate(lambda text: True)).run()

    assert len(work.rows) == HOPELESS_START and work.flow.is_hopeless


def test_a_later_wave_is_done_to_its_end_however_hopeless():
    work = Play(KIND, 150, 900, gate=ToyGate(lambda text: "-000-" not in text and "-001-" not in text)).run()

    assert len(work.kept) == 40
    assert len(work.rows) == 900


class PickyGate(ToyGate):
    """Takes rows for variety in an order that follows nothing but their ids."""

    def __init__(self, *gates: Any) -> None:
        super().__init__(*gates)
        self.pools: list[list[str]] = []

    def pick_diverse(self, ids: Sequence[str], texts: Sequence[str]) -> list[str]:
        self.pools.append(list(ids))
        return sorted(ids, key=hash_number)


class BiasedGate(PickyGate):
    """Takes one group after the other."""

    def pick_diverse(self, ids: Sequence[str], texts: Sequence[str]) -> list[str]:
        return [each for _, each in sorted(zip(texts, ids, strict=True))]


def pick(
    n: int, n_candidates: int, groups: str = GROUPS, share: float = 1.0, gate: ToyGate | None = None, **options: Any
) -> Play:
    gate = gate or PickyGate(is_bad)
    curation = {"diverse": "mmr", "diverse_pool": 2.0}
    work = Play(KIND, n, n_candidates, gate=gate, groups=groups, curation=curation, **options)
    work.flow.config = work.flow.config.model_copy(
        update={"synthesis": work.config.synthesis.model_copy(update={"group_share": share})}
    )
    return work.run()


def test_rows_are_picked_for_variety_out_of_a_pool_of_survivors():
    work = pick(20, 200)

    assert isinstance(work.gate, PickyGate)
    ((pool,),) = [work.gate.pools]
    assert len(pool) == 40
    kept = [row.candidate.instruction_id for row in work.rows if row.example]
    assert set(kept) == set(sorted(pool, key=hash_number)[:20])
    assert work.reasons["less diverse"] == 20
    assert work.flow.n_missing == work.flow.wanted - 20
    assert all((row.example is None) != (row.rejected is None) for row in work.rows)


def test_a_pick_for_variety_does_not_depend_on_the_order_of_arrival():
    works = [
        pick(15, 150, cast=Cast(latency_s=0.002, shuffle=shuffle, concurrency=1 + 20 * shuffle)) for shuffle in range(3)
    ]

    assert all(read_rows(work) == read_rows(works[0]) for work in works)


def test_a_pick_for_variety_leaves_no_group_more_than_its_share():
    work = pick(20, 400, "abcdefghij", share=0.05, gate=BiasedGate(is_bad))

    survivors = Counter(row.candidate.scenario.group_id for row in work.rows if row.response)
    by_group = Counter(row.example.group_id for row in work.rows if row.example)
    assert sum(by_group.values()) == 20
    assert max(by_group.values()) == 4 < max(survivors.values())


def test_where_the_share_leaves_too_few_the_pick_is_filled_from_the_rest():
    work = pick(20, 60, "abc", share=0.05)

    by_group = Counter(row.example.group_id for row in work.rows if row.example)
    assert sum(by_group.values()) == 20
    assert max(by_group.values()) <= 13


def test_with_fewer_survivors_than_wanted_all_are_kept():
    work = pick(30, 30)

    assert isinstance(work.gate, PickyGate)
    assert work.gate.pools == []
    assert work.reasons["less diverse"] == 0 < len(work.kept) < 30


def unsteady(call: Call) -> Any:
    """Ask on, badly at times: once so that asking again helps, once so that it does not."""
    number = hash_number(call.fields["dialogue"])
    if number % 7 == 0 or (number % 3 == 0 and not call.n_again):
        return {"follow_up": "Thanks!"}
    return {"follow_up": f"Why is that so for point {number % 97}?"}


def judge_by_length(call: Call) -> dict[str, Any]:
    return {"reason": "So.", "score": 1 + len(call.fields["response"]) % 5}


def prefer_by_hash(call: Call) -> dict[str, Any]:
    a, b = (hash_number(call.fields[name]) % 3 for name in ("response_a", "response_b"))
    return {"reason": "So.", "preference": "A" if a >= b else "B"}


SHAKY: dict[str, Any] = {
    "follow_up_writer": unsteady,
    "responder": lambda call: "" if hash_number(call.asked) % 9 == 0 else f"Like this: {call.asked}",
    "response_judge": judge_by_length,
    "pair_judge": prefer_by_hash,
    "critic": lambda call: {
        "critique": "No faults found." if hash_number(call.fields["response"]) % 4 == 0 else "It lacks a figure."
    },
}
"""A cast with every fault, whose answers follow from what it is asked."""
KINDS = {
    "single": (KIND, {}),
    "pair": (make_kind("dpo", judge_threshold=2), {}),
    "dialogue": (make_kind("multiturn", checks=("safety",)), {}),
    "selected pairs": (make_kind("dpo"), {"selection": {"on": True, "k": 3}}),
}


class HashGate(ToyGate):
    """Scores by the text alone."""

    async def score(self, instruction: str, texts: Sequence[str], answer: str) -> list[float | None]:
        return [hash_number(text) % 5 / 4 for text in texts]


def play_shaky(shape: str, width: int = 8, n: int = 16, **cast: Any) -> Play:
    kind, options = KINDS[shape]
    playing = Cast(SHAKY, vary_by_seed, concurrency=width, latency_s=0.001, shuffle=width, **cast)
    gate = HashGate(lambda text: is_bad(text, 8), lambda text: is_bad(text, 11))
    return Play(kind, n, 80, cast=playing, gate=gate, rate=True, synthesis={"refine": 2}, **options)


def vary_by_seed(call: Call) -> str:
    return f"Way {call.request.sampling.seed}."


@pytest.mark.parametrize("shape", KINDS)
def test_every_shape_gives_the_same_rows_at_any_concurrency(shape: str):
    works = [play_shaky(shape, width).run() for width in (1, 4, 64)]

    assert len(works[0].kept) == 16
    assert len(set(works[0].reasons)) >= 2
    for work in works[1:]:
        assert read_rows(work) == read_rows(works[0])
        assert [row.rank for row in work.flow.draw_control()] == [row.rank for row in works[0].flow.draw_control()]


def read_keys(folder: Path) -> list[str]:
    return [orjson.loads(line)["key"] for line in (folder / "main.jsonl").read_bytes().splitlines()]


@pytest.mark.parametrize("shape", KINDS)
def test_a_finished_flow_is_replayed_from_its_journal_without_a_call(shape: str, tmp_path: Path):
    first = play_shaky(shape, journal=Journal(tmp_path)).run()
    again = play_shaky(shape, 3, journal=Journal(tmp_path)).run()

    assert first.cast.n_calls > 100
    assert again.cast.n_calls == 0
    assert read_rows(again) == read_rows(first)
    assert len(set(read_keys(tmp_path))) == first.cast.n_calls


@pytest.mark.parametrize("shape", KINDS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_flow_stopped_by_its_limit_goes_on_to_the_same_rows_and_pays_nothing_twice(
    shape: str, share: float, tmp_path: Path
):
    """The limit falls in the middle of answers, pairs, dialogues and rounds."""
    whole = play_shaky(shape).run()
    limit = int(share * whole.cast.n_calls)
    stopped = play_shaky(shape, 5, journal=Journal(tmp_path), budget=Budget(limit))
    with pytest.raises(LimitError, match=f"limit of {limit} calls"):
        asyncio.run(stopped.flow.fill())

    assert stopped.cast.n_calls == len(read_keys(tmp_path)) == limit
    assert stopped.cast.progress.in_flight == 0
    finished = [(row.rank, row.example) for row in stopped.rows if row.example]
    assert set(finished) <= {(row.rank, row.example) for row in whole.rows if row.example} | {
        (row.rank, row.example) for row in stopped.rows if row.rank not in whole.kept
    }

    done = play_shaky(shape, 32, journal=Journal(tmp_path)).run()
    keys = read_keys(tmp_path)
    assert read_rows(done) == read_rows(whole)
    assert len(keys) == len(set(keys)) == limit + done.cast.n_calls
    assert len(keys) == whole.cast.n_calls


@pytest.mark.parametrize("shape", KINDS)
def test_no_two_calls_of_a_flow_share_a_key(shape: str, tmp_path: Path):
    work = play_shaky(shape, journal=Journal(tmp_path)).run()

    keys = read_keys(tmp_path)
    assert len(keys) == len(set(keys)) == work.cast.n_calls


def test_a_row_that_a_limit_stopped_is_neither_kept_nor_rejected():
    stopped = play_shaky("dialogue", budget=Budget(60))
    with pytest.raises(LimitError):
        asyncio.run(stopped.flow.fill())

    halfway = [row for row in stopped.rows if row.example is None and row.rejected is None]
    assert halfway
    assert len(stopped.rows) == 16
    assert all(row.rejected is None or row.example is None for row in stopped.rows)
