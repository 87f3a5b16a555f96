"""The society: groups that live in virtual time, and the scenarios read from their modulators (METHOD 2.5-2.7).

Goes in: agents with their groups. Comes out: events and scenarios, the first N by (closing round, group id), the same
for any concurrency and any latency. Instructions and everything after are others' business.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from matrix_dspy.bulk.journal import CallKey
from matrix_dspy.bulk.program import first_error
from matrix_dspy.bulk.prompt import Prompt
from matrix_dspy.bulk.runner import Outcome, Runner
from matrix_dspy.config import Config
from matrix_dspy.engine.embedding import Embedder
from matrix_dspy.loading import load_program
from matrix_dspy.simulation.agent import Action, LivingAgent, Mind
from matrix_dspy.simulation.clock import GroupClock, VirtualTime
from matrix_dspy.simulation.communication import STAGE, Communication, Draft, Routing, build_communication
from matrix_dspy.simulation.grouping import cluster, count_groups
from matrix_dspy.text import count_words, one_line, shorten
from matrix_dspy.types import Agent, Event, Group, Rejected, Scenario, make_id

DESCRIPTION_WORDS = 80
SUMMARY_WORDS = (80, 200)
"""What is asked for; answers within half and one and a half times that are taken."""


@dataclass(frozen=True, slots=True)
class Mail:
    """An event on its way to another group, or in mode random to one agent of it."""

    closed_round: int
    sender_id: str
    event_id: str
    text: str
    agent_id: str | None = None


@dataclass(slots=True)
class Act:
    """One action of the scenario under way, with where it went."""

    draft: Draft
    action: Action
    within: Routing = field(default_factory=Routing)
    between: Routing = field(default_factory=Routing)


@dataclass(frozen=True, slots=True)
class Closed:
    """A finished scenario with its events."""

    scenario: Scenario
    events: tuple[Event, ...]

    @property
    def order(self) -> tuple[int, str]:
        """Its place in the quota."""
        return self.scenario.closed_round, self.scenario.group_id


def form_groups(agents: Sequence[Agent], config: Config, embedder: Embedder) -> list[Group]:
    """Divide agents into groups of similar profiles, numbered in the order of their first agent's id.

    Raises:
        ConfigError: the wanted number of groups cannot hold the agents, or is larger than their number.
    """
    simulation = config.simulation
    n_groups = count_groups(len(agents), simulation.n_groups, simulation.max_group_size)
    ordered = sorted(agents, key=lambda agent: agent.agent_id)
    vectors = embedder.embed([f"{agent.description} {agent.life_goal}" for agent in ordered])
    labels = cluster(vectors, n_groups, simulation.max_group_size, config.seed)
    members: dict[int, list[Agent]] = {}
    for agent, label in zip(ordered, labels, strict=True):
        members.setdefault(int(label), []).append(agent)
    return [
        Group(
            group_id=make_id("group", "population", index, config.seed),
            agent_ids=tuple(agent.agent_id for agent in group),
            description=describe_group(group),
        )
        for index, group in enumerate(members.values())
    ]


def describe_group(members: Sequence[Agent]) -> str:
    """Describe a group before anything has happened, from its members' descriptions and goals."""
    each = max(8, DESCRIPTION_WORDS // len(members))
    return " ".join(f"{agent.name}: {_cut(agent.description, each)}" for agent in members)


def _cut(text: str, n_words: int) -> str:
    """Return the first words of a text as one line, marked where it was cut."""
    short = one_line(shorten(text, n_words)).rstrip(" .,;:")
    return f"{short}." if len(short.split()) == len(text.split()) else f"{short} ..."


class Society:
    """All groups of a run; `live` goes on until enough scenarios are certain or nobody has anything to do."""

    def __init__(
        self,
        agents: Sequence[Agent],
        groups: Sequence[Group],
        histories: dict[str, tuple[str, ...]],
        config: Config,
        runner: Runner,
        embedder: Embedder,
    ) -> None:
        """`histories` are the anonymised histories by agent id."""
        self.config = config
        self.runner = runner
        self.time = VirtualTime([group.group_id for group in groups], config.simulation.lookahead)
        self.communication: Communication = build_communication(config, runner, embedder, [a.agent_id for a in agents])
        self.scenario_writer = Prompt.of(load_program("scenario_writer"))
        self.closed: list[Closed] = []
        self.failures: list[tuple[int, str, Rejected]] = []
        mind = Mind(runner, config, embedder)
        by_id = {agent.agent_id: agent for agent in agents}
        self.processes = {
            group.group_id: GroupProcess(
                group, [LivingAgent(by_id[i], histories.get(i, ()), mind) for i in group.agent_ids], self
            )
            for group in groups
        }
        self.home = {agent_id: group.group_id for group in groups for agent_id in group.agent_ids}

    async def live(self, n_scenarios: int) -> bool:
        """Go on until the first `n_scenarios` are certain; False when the society fell quiet before.

        May be called again with a larger number and goes on from where it stopped, with the same result as if it had
        never stopped.
        """
        self.time.quota = n_scenarios
        self.time.is_quiet = False
        try:
            async with asyncio.TaskGroup() as tasks:
                for process in self.processes.values():
                    tasks.create_task(process.run())
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None
        return not self.time.is_quiet

    def take(self, n_scenarios: int) -> tuple[list[Closed], list[Rejected]]:
        """Return the first `n_scenarios` by (closing round, group id), and what failed up to the last of them."""
        kept = sorted(self.closed, key=lambda closed: closed.order)[:n_scenarios]
        failures = sorted(self.failures, key=lambda failure: (*failure[:2], failure[2].noun, failure[2].id))
        if len(kept) < n_scenarios:
            return kept, [row for _, _, row in failures]
        last = kept[-1].order
        return kept, [row for round_, group_id, row in failures if (round_, group_id) <= last]

    def close(self, closed: Closed) -> None:
        """Take in a finished scenario."""
        self.closed.append(closed)
        progress = self.runner.progress
        progress.kept = min(progress.wanted, len(self.closed)) if progress.wanted else len(self.closed)

    def describe_others(self, group_id: str, boundary: int) -> dict[str, str]:
        """Return the other groups' descriptions as a group that passed the boundary at that round may know them.

        The very latest ones would depend on which group happened to be faster.
        """
        round_ = boundary - self.config.simulation.lookahead
        return {i: other.description_at(round_) for i, other in self.processes.items() if i != group_id}


class GroupProcess:
    """One group and its modulator."""

    def __init__(self, group: Group, agents: list[LivingAgent], society: Society) -> None:
        self.group = group
        self.agents = agents
        self.society = society
        self.simulation = society.config.simulation
        self.mailbox: list[Mail] = []
        self._descriptions: list[tuple[int, str]] = [(0, group.description)]
        self._summary = ""
        self._n_scenarios = 0
        self._n_quiet = 0
        self._is_retired = False
        self._roster = [f"{agent.agent.name}: {one_line(shorten(agent.agent.description, 40))}" for agent in agents]

    @property
    def clock(self) -> GroupClock:
        """Where the group stands in virtual time."""
        return self.society.time.clocks[self.group.group_id]

    def description_at(self, round_: int) -> str:
        """Return the group's description as it was known after closings up to `round_`."""
        known = [text for closed_round, text in self._descriptions if closed_round <= max(0, round_)]
        return known[-1]

    def deliver(self, mail: Mail) -> None:
        """Put an event into the mailbox; it is read at the first boundary `lookahead` rounds after it closed."""
        if not self._is_retired:
            self.mailbox.append(mail)
            self.society.time.deliver(self.group.group_id, mail.closed_round + self.simulation.lookahead)

    async def run(self) -> None:
        """Live scenario after scenario until the society stands still."""
        while await self.society.time.pass_boundary(self.group.group_id):
            outside = () if self._is_retired else await self._read_mail(self.clock.published)
            if self._is_retired or not any(agent.is_live for agent in self.agents):
                self.clock.is_resting = True
                continue
            self.clock.length = self._expect_length()
            await self._live_scenario(outside)

    async def _read_mail(self, round_: int) -> tuple[str, ...]:
        """Deliver what is due from outside to members; returns the ids of the events they observe."""
        lookahead = self.simulation.lookahead
        due = sorted(
            (mail for mail in self.mailbox if mail.closed_round + lookahead <= round_),
            key=lambda mail: (mail.closed_round, mail.sender_id, mail.event_id, mail.agent_id or ""),
        )
        self.mailbox = [mail for mail in self.mailbox if mail.closed_round + lookahead > round_]
        self.clock.due = min((mail.closed_round + lookahead for mail in self.mailbox), default=None)
        addressed = [mail for mail in due if mail.agent_id is not None]
        newest = [mail for mail in due if mail.agent_id is None]
        newest = newest[max(0, len(newest) - self.simulation.max_outside_events) :]
        observed = [mail.event_id for mail in addressed if self._observe([mail.agent_id or ""], mail)]
        if newest:
            members = [agent.agent for agent in self.agents]
            texts = [mail.text for mail in newest]
            routings = await self.society.communication.receive(self.group.group_id, round_, members, texts)
            for mail, routing in zip(newest, routings, strict=True):
                # it counts with the round that follows: at the last round of a quota not everybody reads any more
                self._note(routing.failure, "reception", f"{self.group.group_id}:{round_}", round_ + 1)
                if self._observe(routing.ids, mail):
                    observed.append(mail.event_id)
        return tuple(dict.fromkeys(observed))

    def _observe(self, agent_ids: Sequence[str], mail: Mail) -> bool:
        receivers = [agent for agent in self.agents if agent.agent.agent_id in agent_ids]
        for agent in receivers:
            agent.observations.append(f"Round {mail.closed_round}, from elsewhere: {mail.text}")
        return bool(receivers)

    def _expect_length(self) -> int:
        n_live = sum(agent.is_live for agent in self.agents)
        return max(self.simulation.rounds_per_scenario, -(-self.simulation.min_actions // max(1, n_live)))

    async def _live_scenario(self, outside: tuple[str, ...]) -> None:
        """Rounds until the boundary rule holds: everybody has had a turn, and enough actions were collected."""
        opened = self.clock.published + 1
        acts: list[Act] = []
        n_rounds = 0
        while True:
            round_ = self.clock.published + 1
            new = await self._live_round(round_)
            acts += new
            n_rounds += 1
            is_enough = n_rounds >= self.simulation.rounds_per_scenario and len(acts) >= self.simulation.min_actions
            if not new or is_enough:
                break
            await asyncio.gather(*(self._route_within(act) for act in new))
            self._deliver_within(new)
            self.society.time.publish(self.group.group_id, round_, is_closing=False)
        if acts:
            await self._close(opened, round_, acts, new, outside)
        self._n_quiet = 0 if acts else self._n_quiet + 1
        if self._n_quiet >= self.simulation.quiet_boundaries:
            self._is_retired = True
            self.mailbox, self.clock.due = [], None
        self.society.time.publish(self.group.group_id, round_, is_closing=bool(acts))

    async def _live_round(self, round_: int) -> list[Act]:
        live = [agent for agent in self.agents if agent.is_live]
        actions = await asyncio.gather(*(agent.take_turn(round_) for agent in live))
        acts: list[Act] = []
        for agent, action in zip(live, actions, strict=True):
            agent_id = agent.agent.agent_id
            for failure in agent.failures:
                self._note(failure.outcome, failure.noun, f"{agent_id}:{round_}", round_)
            agent.failures.clear()
            if action is not None:
                event_id = make_id("event", self.group.group_id, agent_id, round_, self.society.config.seed)
                acts.append(Act(Draft(event_id, self.group.group_id, agent.agent, round_, action.text), action))
        return acts

    async def _route_within(self, act: Act) -> None:
        members = [agent.agent for agent in self.agents]
        act.within = await self.society.communication.route_within(act.draft, members)

    async def _route_between(self, act: Act, descriptions: dict[str, str]) -> None:
        act.between = await self.society.communication.route_between(act.draft, descriptions)

    def _deliver_within(self, acts: list[Act]) -> None:
        """Let members observe in the next round; receivers elsewhere get mail when the scenario closes."""
        for act in acts:
            self._note(act.within.failure, "routing", act.draft.event_id, act.draft.round)
            for agent in self.agents:
                if agent.agent.agent_id in act.within.ids:
                    agent.observations.append(f"Round {act.draft.round}: {act.draft.text}")

    async def _close(
        self, opened: int, round_: int, acts: list[Act], last: list[Act], outside: tuple[str, ...]
    ) -> None:
        """Write the scenario to the modulator's memory and send its events to other groups."""
        scenario_id = make_id("scenario", self.group.group_id, self._n_scenarios, self.society.config.seed)
        others = self.society.describe_others(self.group.group_id, opened - 1)
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(self._write_summary(scenario_id, round_, acts))
            for act in last:
                tasks.create_task(self._route_within(act))
            for act in acts:
                tasks.create_task(self._route_between(act, others))
        self._deliver_within(last)
        self._summary, description = writing.result()
        self._descriptions.append((round_, description))
        scenario = Scenario(
            scenario_id=scenario_id,
            group_id=self.group.group_id,
            index=self._n_scenarios,
            opened_round=opened,
            closed_round=round_,
            agent_ids=tuple(dict.fromkeys(act.draft.agent.agent_id for act in acts)),
            event_ids=tuple(act.draft.event_id for act in acts),
            outside_event_ids=outside,
            summary=self._summary,
            group_description=description,
        )
        self._n_scenarios += 1
        self.society.close(Closed(scenario, tuple(_write_event(act, scenario_id) for act in acts)))
        self._send(acts, round_)

    def _send(self, acts: list[Act], round_: int) -> None:
        for act in acts:
            self._note(act.between.failure, "routing between groups", act.draft.event_id, round_)
            mail = (round_, self.group.group_id, act.draft.event_id, act.draft.text)
            for group_id in act.between.ids:
                self.society.processes[group_id].deliver(Mail(*mail))
            for agent_id in act.within.ids:
                home = self.society.home[agent_id]
                if home != self.group.group_id:
                    self.society.processes[home].deliver(Mail(*mail, agent_id=agent_id))

    async def _write_summary(self, scenario_id: str, round_: int, acts: list[Act]) -> tuple[str, str]:
        """Return summary and new description; without a usable answer the actions themselves and the old one."""
        description = self._descriptions[-1][1]
        inputs = {
            "members": self._roster,
            "description": description,
            "previous_summary": self._summary,
            "events": [f"Round {act.draft.round}: {act.draft.text}" for act in acts],
        }
        key = CallKey(STAGE, scenario_id, "scenario_writer", round_)
        sampling = self.society.config.sampling_of("scenario_writer")
        outcome = await self.society.runner.call(
            self.society.scenario_writer, inputs, key, sampling, check=_check_summary
        )
        if outcome.fields is None:
            self._note(outcome, "summary", scenario_id, round_)
            return shorten(" ".join(act.draft.text for act in acts), SUMMARY_WORDS[1]), description
        return (
            one_line(outcome.fields["summary"]),
            shorten(one_line(outcome.fields["group_description"]), DESCRIPTION_WORDS),
        )

    def _note(self, outcome: Outcome | None, noun: str, row_id: str, round_: int) -> None:
        """Record a decision that fell back."""
        if outcome is None:
            return
        row = Rejected(
            noun=noun, id=row_id, stage=STAGE, reason=outcome.reason, detail=outcome.detail, raw_text=outcome.text
        )
        self.society.failures.append((round_, self.group.group_id, row))


def _write_event(act: Act, scenario_id: str) -> Event:
    return Event(
        event_id=act.draft.event_id,
        scenario_id=scenario_id,
        group_id=act.draft.group_id,
        agent_id=act.draft.agent.agent_id,
        round=act.draft.round,
        kind="react" if act.action.is_reaction else "act",
        plan_step=act.action.step,
        action=act.action.text,
        is_step_done=act.action.is_step_done,
        receiver_ids=act.within.ids,
        receiver_reason=act.within.reason,
        group_ids=act.between.ids,
        group_reason=act.between.reason,
    )


def _check_summary(fields: dict[str, str]) -> str | None:
    n_words, (least, most) = count_words(fields["summary"]), SUMMARY_WORDS
    if not least / 2 <= n_words <= most * 1.5:
        return f"the summary has {n_words} words; write {least} to {most}"
    return None if fields["group_description"].strip() else "the group description is empty"
