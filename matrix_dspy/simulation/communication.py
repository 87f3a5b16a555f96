"""Who comes to know of an action: one class a policy, the same interface (METHOD 2.4, 2.8).

Only delivery differs between policies; profiles, plans, prompts, seeds and scenario counts do not.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from matrix_dspy.bulk.journal import CallKey
from matrix_dspy.bulk.prompt import Prompt
from matrix_dspy.bulk.runner import Narrow, Outcome, Runner
from matrix_dspy.config import Config
from matrix_dspy.engine.embedding import Embedder
from matrix_dspy.loading import load_program
from matrix_dspy.text import one_line, shorten
from matrix_dspy.types import Agent

STAGE = "simulation"
ROSTER_WORDS = 60
"""Words of a member's description shown to routers."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An action before it is an event."""

    event_id: str
    group_id: str
    agent: Agent
    round: int
    text: str


@dataclass(frozen=True, slots=True)
class Routing:
    """Where an action goes, why, and what failed in deciding it."""

    ids: tuple[str, ...] = ()
    reason: str = ""
    failure: Outcome | None = None


class Communication(Protocol):
    """Decides for each action who observes it."""

    async def route_within(self, draft: Draft, members: Sequence[Agent]) -> Routing:
        """Return ids of agents who observe the action; `members` are the actor's group."""
        ...

    async def route_between(self, draft: Draft, descriptions: dict[str, str]) -> Routing:
        """Return ids of groups that learn of the action; `descriptions` are the other groups'."""
        ...

    async def receive(
        self, group_id: str, round_: int, members: Sequence[Agent], texts: Sequence[str]
    ) -> list[Routing]:
        """Return for each text from outside the ids of the members who observe it."""
        ...


class NoCommunication:
    """Nobody observes anything."""

    async def route_within(self, draft: Draft, members: Sequence[Agent]) -> Routing:
        return Routing()

    async def route_between(self, draft: Draft, descriptions: dict[str, str]) -> Routing:
        return Routing()

    async def receive(
        self, group_id: str, round_: int, members: Sequence[Agent], texts: Sequence[str]
    ) -> list[Routing]:
        return [Routing() for _ in texts]


class RandomCommunication(NoCommunication):
    """Each action is observed by a uniform draw over all agents."""

    def __init__(self, agent_ids: Sequence[str], n_receivers: int, seed: int) -> None:
        self.agent_ids = sorted(agent_ids)
        self.n_receivers = n_receivers
        self.seed = seed

    async def route_within(self, draft: Draft, members: Sequence[Agent]) -> Routing:
        others = [agent_id for agent_id in self.agent_ids if agent_id != draft.agent.agent_id]
        generator = random.Random(f"{self.seed}/{draft.event_id}")
        drawn = generator.sample(others, min(self.n_receivers, len(others)))
        return Routing(tuple(sorted(drawn)), "drawn at random")


class StructuredCommunication:
    """Modulators decide, one call a decision; an answer that cannot be used routes to nobody."""

    def __init__(self, runner: Runner, config: Config, embedder: Embedder) -> None:
        self.runner = runner
        self.config = config
        self.embedder = embedder
        self._prompts = {
            name: Prompt.of(load_program(name)) for name in ("intra_router", "inter_router", "reception_router")
        }
        self._vectors: dict[str, tuple[str, np.ndarray]] = {}

    async def route_within(self, draft: Draft, members: Sequence[Agent]) -> Routing:
        others = [member for member in members if member.agent_id != draft.agent.agent_id]
        if not others:
            return Routing()
        inputs = {"members": list_members(others), "action": draft.text}
        narrow = {"receivers": _choose_from(len(others))}
        outcome = await self._ask("intra_router", inputs, draft.event_id, draft.round, narrow)
        return _pick(outcome, [member.agent_id for member in others], len(others))

    async def route_between(self, draft: Draft, descriptions: dict[str, str]) -> Routing:
        if not descriptions or self.config.simulation.max_target_groups == 0:
            return Routing()
        near = self._shortlist(draft.text, descriptions)
        groups = [f"{number}: {descriptions[group_id]}" for number, group_id in enumerate(near)]
        most = self.config.simulation.max_target_groups
        inputs = {"groups": groups, "action": draft.text}
        narrow = {"receivers": _choose_from(len(near), most)}
        outcome = await self._ask("inter_router", inputs, draft.event_id, draft.round, narrow)
        return _pick(outcome, near, most)

    async def receive(
        self, group_id: str, round_: int, members: Sequence[Agent], texts: Sequence[str]
    ) -> list[Routing]:
        events = [f"{number}: {text}" for number, text in enumerate(texts)]
        inputs = {"members": list_members(members), "events": events}
        outcome = await self._ask("reception_router", inputs, group_id, round_, _deliver_each(texts, members))
        if outcome.fields is None:
            return [Routing(failure=outcome if number == 0 else None) for number in range(len(texts))]
        chosen: list[tuple[str, ...]] = [()] * len(texts)
        for delivery in outcome.fields["deliveries"]:
            if 0 <= delivery.event < len(texts):
                numbers = dict.fromkeys(n for n in delivery.members if 0 <= n < len(members))
                chosen[delivery.event] = tuple(members[number].agent_id for number in numbers)
        return [Routing(ids) for ids in chosen]

    async def _ask(self, program: str, inputs: dict[str, Any], row_id: str, round_: int, narrow: Narrow) -> Outcome:
        key = CallKey(STAGE, row_id, program, round_)
        sampling = self.config.sampling_of(program)
        return await self.runner.call(self._prompts[program], inputs, key, sampling, narrow=narrow)

    def _shortlist(self, text: str, descriptions: dict[str, str]) -> list[str]:
        """Return the ids of the groups whose descriptions are most similar to `text`, most similar first."""
        stale = [(i, d) for i, d in descriptions.items() if self._vectors.get(i, ("", None))[0] != d]
        if stale:
            for (group_id, description), vector in zip(stale, self.embedder.embed([d for _, d in stale]), strict=True):
                self._vectors[group_id] = (description, vector)
        group_ids = sorted(descriptions)
        similarity = np.stack([self._vectors[i][1] for i in group_ids]) @ self.embedder.embed([text])[0]
        order = np.argsort(-similarity, kind="stable")[: self.config.simulation.shortlist]
        return [group_ids[position] for position in order]


def build_communication(config: Config, runner: Runner, embedder: Embedder, agent_ids: Sequence[str]) -> Communication:
    """Return the policy that the config names."""
    mode = config.simulation.communication
    if mode == "structured":
        return StructuredCommunication(runner, config, embedder)
    if mode == "random":
        return RandomCommunication(agent_ids, config.simulation.random_receivers, config.seed)
    return NoCommunication()


def list_members(members: Sequence[Agent]) -> list[str]:
    """Return members as numbered lines for a router."""
    return [
        f"{number}: {member.name}, {one_line(shorten(member.description, ROSTER_WORDS))}"
        for number, member in enumerate(members)
    ]


def _choose_from(n: int, most: int | None = None) -> dict[str, Any]:
    """Return the JSON-schema keywords of a list of numbers below `n`, at most `most` of them."""
    return {"items": {"type": "integer", "enum": list(range(n))}, "maxItems": min(n, most or n)}


def _deliver_each(texts: Sequence[str], members: Sequence[Agent]) -> Narrow:
    """Return the JSON-schema keywords of deliveries: one for each text, to members there are."""
    delivery = {
        "type": "object",
        "properties": {
            "event": {"type": "integer", "enum": list(range(len(texts)))},
            "members": {"type": "array", **_choose_from(len(members))},
        },
        "required": ["event", "members"],
        "additionalProperties": False,
    }
    return {"deliveries": {"items": delivery, "minItems": len(texts), "maxItems": len(texts)}}


def _pick(outcome: Outcome, ids: Sequence[str], most: int) -> Routing:
    """Turn numbers into ids, leaving out unknown and repeated ones."""
    if outcome.fields is None:
        return Routing(failure=outcome)
    numbers: list[int] = list(dict.fromkeys(n for n in outcome.fields["receivers"] if 0 <= n < len(ids)))
    return Routing(tuple(ids[number] for number in numbers[:most]), one_line(outcome.fields["reason"]))
