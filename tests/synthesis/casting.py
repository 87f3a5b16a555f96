"""A cast for tests of synthesis: one toy engine a part, answered by rules, and flows of candidates over it."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from matrix_dspy.bulk.budget import Budget
from matrix_dspy.bulk.journal import Journal
from matrix_dspy.bulk.progress import Progress
from matrix_dspy.bulk.runner import Runner
from matrix_dspy.config import Config, KindConfig, SynthesisConfig, apply_kind, load_kind
from matrix_dspy.engine.base import Completion, Request
from matrix_dspy.synthesis.desk import DESK_PARTS, Desk, Part
from matrix_dspy.synthesis.flow import Flow, build_candidates
from matrix_dspy.synthesis.gate import Gate
from matrix_dspy.synthesis.row import Candidate, Row
from matrix_dspy.types import Event, Rejected
from tests.toys import Call, ToyEngine, ToyGate, make_agent, make_scenario, write_fields

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva")
GROUPS = "abcdefghijklmnopqrst"
Rule = Callable[[Call], "dict[str, Any] | str | Completion"]
_HEADER = re.compile(r"^\[\[ ## (\w+) ## \]\]$", re.MULTILINE)
_TAIL = "\n\nRespond with the corresponding output fields"
_BY_OUTPUT = {
    "revision": "reviser",
    "critique": "critic",
    "preference": "pair_judge",
    "verdict": "safety_judge",
    "score": "response_judge",
    "difficulty": "instruction_rater",
    "follow_up": "follow_up_writer",
    "instruction": "instruction_writer",
}
"""The last output field tells a program of synthesis."""


def read_call(request: Request) -> Call:
    """Read program and inputs of any program of synthesis back out of the messages."""
    texts = [str(message["content"]) for message in request.messages if message["role"] == "user"]
    asked = [text for text in texts if _HEADER.match(text)]
    if not asked:
        dialogue = [str(message["content"]) for message in request.messages]
        if len(dialogue) == 1:
            return Call("responder", {"instruction": texts[-1]}, request, 0)
        return Call("converser", {"dialogue": dialogue}, request, 0)
    outputs = re.findall(r"^\d+\. `(\w+)`", str(request.messages[0]["content"]).partition("output fields are")[2], re.M)
    pieces = _HEADER.split(asked[-1].partition(_TAIL)[0])
    values = {name: value.strip() for name, value in zip(pieces[1::2], pieces[2::2], strict=True)}
    fields = {name: json.loads(value) if value.startswith("[") else value for name, value in values.items()}
    n_again = sum(text.startswith("That answer could not be used") for text in texts)
    return Call(next(_BY_OUTPUT[name] for name in reversed(outputs) if name in _BY_OUTPUT), fields, request, n_again)


class PartEngine(ToyEngine):
    """Plays one part by rules; a rule may give a whole completion."""

    def __init__(self, part: str, rules: Mapping[str, Rule], **dials: Any) -> None:
        super().__init__({}, **dials)
        self.model = f"toy-{part}"
        self.by_program = rules

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        call = read_call(request)
        self.calls.append(call)
        answer = self.by_program[call.program](call)
        if self.latency_s:
            await asyncio.sleep(self._waits.random() ** 3 * self.latency_s)
        if isinstance(answer, Completion):
            return answer
        text = answer if isinstance(answer, str) else write_fields(answer)
        return Completion((text,), ("stop",), prompt_tokens=1, completion_tokens=1)


def find_matter(call: Call) -> str:
    """Return which candidate a call to the writer is about, as `a-000-ada`."""
    return "-".join(re.findall(r"event-scenario-(\w+)-(\d+)-agent-(\w+)", call.fields["actions"][0])[0])


def write(call: Call) -> dict[str, Any]:
    return {"instruction": f"How do I go about matter {find_matter(call)}?"}


def respond(call: Call) -> str:
    return f"Like this: {call.fields['instruction']}"


def converse(call: Call) -> str:
    return f"Then do this: {call.fields['dialogue'][-1]}"


def ask_on(call: Call) -> dict[str, Any]:
    """Ask on about the last answer, never the same twice."""
    n_turns = len(call.fields["dialogue"]) // 2
    return {"follow_up": f"And what does that mean for part {n_turns} of it?"}


def rate(call: Call) -> dict[str, Any]:
    return {"quality_reason": "Clear.", "quality": "good", "difficulty_reason": "Plain.", "difficulty": "easy"}


def find_safe(call: Call) -> dict[str, Any]:
    return {"reason": "It declines.", "verdict": "safe refusal"}


def score_four(call: Call) -> dict[str, Any]:
    return {"reason": "A small flaw.", "score": 4}


def criticise(call: Call) -> dict[str, Any]:
    return {"critique": f"It lacks a figure where {call.fields['response']!r} stands."}


def revise(call: Call) -> dict[str, Any]:
    return {"revision": f"{call.fields['response']} Twice."}


def prefer_longer(call: Call) -> dict[str, Any]:
    a, b = call.fields["response_a"], call.fields["response_b"]
    return {"reason": "It says more.", "preference": "A" if len(a) > len(b) else "B"}


def answer_badly(call: Call) -> str:
    return f"Hm, {call.fields['instruction']}"


RULES: dict[str, Rule] = {
    "instruction_writer": write,
    "responder": respond,
    "converser": converse,
    "follow_up_writer": ask_on,
    "instruction_rater": rate,
    "safety_judge": find_safe,
    "response_judge": score_four,
    "critic": criticise,
    "reviser": revise,
    "pair_judge": prefer_longer,
}
"""Everybody is able and well-meaning."""


class Cast:
    """Four engines side by side; journal, budget and counters are shared, as in a run."""

    def __init__(
        self,
        rules: Mapping[str, Rule] | None = None,
        rejected: Rule = answer_badly,
        *,
        budget: Budget | None = None,
        journal: Journal | None = None,
        **dials: Any,
    ) -> None:
        able = {**RULES, **(rules or {})}
        by_part = dict.fromkeys(DESK_PARTS, able) | {"rejected": {"responder": rejected}}
        self.engines = {part: PartEngine(part, own, **dials) for part, own in by_part.items()}
        self.budget, self.journal, self.progress = budget or Budget(), journal, Progress()

    def seat(self, config: Config, kind: KindConfig) -> Desk:
        """Return the desk at which the cast works."""
        first = Runner(self.engines["writer"], self.journal, config.seed, self.progress, self.budget)
        runners: dict[Part, Runner] = {
            part: replace(first, engine=self.engines[part], _in_words=set()) for part in DESK_PARTS
        }
        return Desk(config, runners, kind.programs)

    def asked(self, program: str, part: str = "") -> list[Call]:
        """Return the calls of one program, of one part or of all."""
        return [call for name, engine in self.engines.items() if part in ("", name) for call in engine.asked(program)]

    @property
    def n_calls(self) -> int:
        return sum(len(engine.calls) for engine in self.engines.values())

    def count(self) -> Counter[str]:
        """Count calls as `part/program`."""
        return Counter(f"{part}/{call.program}" for part, engine in self.engines.items() for call in engine.calls)


def make_config(kind: KindConfig, n: int = 4, *, rate: bool = False, **sections: Any) -> Config:
    """Return a config of that kind in which one group may supply everything."""
    synthesis = SynthesisConfig(rate=rate, group_share=1.0, **sections.pop("synthesis", {}))
    return apply_kind(Config(n=n, synthesis=synthesis, **sections), kind)


def make_kind(name: str, **changes: Any) -> KindConfig:
    """Return a shipped kind with changes."""
    return KindConfig(**load_kind(name).model_dump(exclude_unset=True) | changes)


def make_candidates(n: int, config: Config, groups: str = GROUPS, first: int = 0, kind: str = "sft") -> list[Candidate]:
    """Return candidates of one agent each, groups taking turns."""
    agents = {agent.agent_id: agent for agent in map(make_agent, NAMES)}
    scenarios = [
        make_scenario(number // len(groups), groups[number % len(groups)], (f"agent-{NAMES[number % 5].lower()}",))
        for number in range(first, first + n)
    ]
    return build_candidates(scenarios, make_events(scenarios), agents, {}, config, kind)


def make_events(scenarios: Sequence[Any]) -> dict[str, Event]:
    """Return one event for each agent of each scenario."""
    return {
        event_id: Event(
            event_id=event_id, scenario_id=scenario.scenario_id, group_id=scenario.group_id, agent_id=agent_id, round=1,
            kind="act", plan_step="walk", action=f"{agent_id} did {event_id}.", is_step_done=False,
        )
        for scenario in scenarios
        for event_id, agent_id in zip(scenario.event_ids, scenario.agent_ids, strict=True)
    }  # fmt: skip


class Play:
    """A flow of one kind over candidates, played by a cast."""

    def __init__(
        self,
        kind: KindConfig,
        n: int = 4,
        n_candidates: int = 4,
        *,
        cast: Cast | None = None,
        gate: Gate | None = None,
        groups: str = GROUPS,
        **config: Any,
    ) -> None:
        self.kind, self.cast, self.gate = kind, cast or Cast(), gate or ToyGate()
        self.config = make_config(kind, n, **config)
        self.flow = Flow(self.config, kind, self.cast.seat(self.config, kind), self.gate, n_groups=len(groups))
        self.flow.offer(make_candidates(n_candidates, self.config, groups, kind=kind.name))

    def run(self) -> "Play":
        """Fill the set and pick what is kept."""
        asyncio.run(self.flow.fill())
        self.flow.finish()
        return self

    @property
    def rows(self) -> list[Row]:
        return self.flow.rows

    @property
    def row(self) -> Row:
        """The only row."""
        (row,) = self.rows
        return row

    @property
    def kept(self) -> list[int]:
        return [row.rank for row in self.rows if row.example]

    @property
    def rejected(self) -> list[Rejected]:
        return [row.rejected for row in self.rows if row.rejected]

    @property
    def reasons(self) -> Counter[str]:
        return Counter(row.reason for row in self.rejected)
