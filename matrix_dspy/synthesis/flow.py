"""From candidates to kept rows: each row flows by itself through writing, filters and answering (METHOD 3.1, DESIGN 9).

Candidates have a fixed rank and are taken in waves whose size depends only on the earlier waves. Filters that compare
rows are asked in rank order, so an earlier rank always wins over its twin; the first n survivors by rank are kept.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from matrix_dspy.bulk.journal import CallKey
from matrix_dspy.bulk.program import first_error, for_each
from matrix_dspy.bulk.prompt import Prompt
from matrix_dspy.bulk.runner import Check, Outcome, Runner
from matrix_dspy.config import Config, KindConfig
from matrix_dspy.errors import LimitError
from matrix_dspy.loading import load_program
from matrix_dspy.synthesis.requirement import Requirement, draw_requirement
from matrix_dspy.types import Agent, Event, Example, Instruction, Message, Rejected, Response, Scenario, make_id

STAGE = "synthesis"
MIN_YIELD = 0.05
"""Lowest yield a wave is sized by, so that one bad wave does not order thousands."""
HOPELESS_WAVE = 20
"""Candidates after which a yield of nothing stops the run."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One agent of one scenario, about to be asked for an instruction."""

    instruction_id: str
    scenario: Scenario
    agent: Agent
    actions: tuple[str, ...]
    others: tuple[str, ...]
    """Names of the other people of the scenario."""
    relevance: float | None


@dataclass(slots=True)
class Row:
    """A candidate on its way."""

    rank: int
    candidate: Candidate
    instruction: Instruction | None = None
    response: Response | None = None
    example: Example | None = None
    rejected: Rejected | None = None


class Gate(Protocol):
    """Keep or drop with a reason, as curation decides."""

    def check_instruction(self, row_id: str, text: str, others: Sequence[str]) -> tuple[str, str] | None:
        """Return (reason, detail) to drop an instruction; called in rank order."""
        ...

    def check_response(self, row_id: str, text: str) -> tuple[str, str] | None:
        """Return (reason, detail) to drop a response."""
        ...


@dataclass(slots=True)
class Flow:
    """All rows of a data set; `fill` takes candidates until `n` are kept or none are left."""

    config: Config
    kind: KindConfig
    runner: Runner
    gate: Gate
    n_groups: int
    retries: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How often a program was asked anew for an instruction id, by `retry`."""
    rows: list[Row] = field(default_factory=list)
    _queue: deque[Candidate] = field(default_factory=deque)
    _kept_by_group: Counter[str] = field(default_factory=Counter)
    _n_kept: int = 0
    _writer: Prompt = field(init=False)
    _responder: Prompt = field(init=False)

    def __post_init__(self) -> None:
        self._writer = Prompt.of(load_program("instruction_writer"))
        self._responder = Prompt.of(load_program("responder"))

    @property
    def n_missing(self) -> int:
        """Rows still to be kept."""
        return self.config.n - self._n_kept

    @property
    def group_cap(self) -> int:
        """Rows one group may supply: its share of the set, or two even shares where that is more (METHOD 3.1)."""
        share = max(self.config.synthesis.group_share, 2 / max(1, self.n_groups))
        return max(1, int(share * self.config.n + 1e-9))

    @property
    def measured_yield(self) -> float:
        """Share of candidates kept so far; 1 before the first wave."""
        return max(MIN_YIELD, self._n_kept / len(self.rows)) if self.rows else 1.0

    @property
    def is_hopeless(self) -> bool:
        """Whether everything so far was dropped."""
        return len(self.rows) >= HOPELESS_WAVE and self._n_kept == 0

    def offer(self, candidates: Sequence[Candidate]) -> None:
        """Add candidates behind those offered before."""
        self._queue.extend(candidates)

    async def fill(self) -> int:
        """Take waves until n rows are kept or the queue is empty; returns how many are missing."""
        while self.n_missing > 0 and not self.is_hopeless and (wave := self._take_wave()):
            try:
                await self._run_wave(wave)
            except LimitError:
                self._keep(wave)
                raise
            self._keep(wave)
        return self.n_missing

    def _take_wave(self) -> list[Row]:
        """Take as many candidates as the measured yield says are needed, none from a group that is full."""
        wanted = self.n_missing
        if self.rows:
            wanted = int(self.n_missing / self.measured_yield * 1.05) + 1
        taken: Counter[str] = Counter()
        wave: list[Row] = []
        passed: list[Candidate] = []
        while self._queue and len(wave) < wanted:
            candidate = self._queue.popleft()
            group_id = candidate.scenario.group_id
            room = self.group_cap - self._kept_by_group[group_id]
            if taken[group_id] >= room:
                if room > 0:
                    passed.append(candidate)
                continue
            taken[group_id] += 1
            wave.append(Row(len(self.rows) + len(wave), candidate))
        self._queue.extendleft(reversed(passed))
        return wave

    async def _run_wave(self, wave: list[Row]) -> None:
        """Write, filter in rank order, answer; a row is answered as soon as all earlier ranks are written."""
        is_written = [False] * len(wave)
        frontier = 0
        answers: list[asyncio.Task[None]] = []

        async def write(position: int) -> None:
            nonlocal frontier
            await self._write(wave[position])
            is_written[position] = True
            while frontier < len(wave) and is_written[frontier]:
                row = wave[frontier]
                frontier += 1
                if self._check_instruction(row):
                    answers.append(tasks.create_task(self._answer(row)))

        try:
            async with asyncio.TaskGroup() as tasks:
                await for_each(len(wave), 2 * self.runner.engine.concurrency, write)
        except BaseExceptionGroup as errors:
            for row in wave[frontier:]:
                row.instruction = None  # no filter has seen it
            raise first_error(errors) from None

    async def _write(self, row: Row) -> None:
        candidate, config = row.candidate, self.config
        requirement = draw_requirement(candidate.instruction_id, self.kind, config.synthesis, config.seed)
        inputs = {
            "profile": candidate.agent.persona,
            "actions": list(candidate.actions),
            "scenario": candidate.scenario.summary,
            "requirement": requirement.text,
        }
        outcome = await self._ask("instruction_writer", self._writer, inputs, candidate, _check_written)
        if outcome.fields is None:
            self._reject(row, "instruction", candidate.instruction_id, outcome.reason, outcome.detail, outcome.text)
            return
        row.instruction = self._build_instruction(row, requirement, outcome.fields["instruction"])

    def _build_instruction(self, row: Row, requirement: Requirement, text: str) -> Instruction:
        candidate, synthesis = row.candidate, self.config.synthesis
        return Instruction(
            instruction_id=candidate.instruction_id,
            scenario_id=candidate.scenario.scenario_id,
            agent_id=candidate.agent.agent_id,
            group_id=candidate.scenario.group_id,
            rank=row.rank,
            kind=self.kind.name,
            type=synthesis.type,
            category=requirement.category,
            complexity=requirement.complexity,
            style=requirement.style,
            language=synthesis.language,
            relevance=candidate.relevance,
            text=text,
        )

    def _check_instruction(self, row: Row) -> bool:
        instruction = row.instruction
        if instruction is None:
            return False
        drop = self.gate.check_instruction(instruction.instruction_id, instruction.text, row.candidate.others)
        if drop is not None:
            self._reject(row, "instruction", instruction.instruction_id, *drop, instruction.text)
            row.instruction = None
        return drop is None

    async def _answer(self, row: Row) -> None:
        assert row.instruction is not None
        inputs = {"instruction": row.instruction.text}
        outcome = await self._ask("responder", self._responder, inputs, row.candidate)
        response_id = make_response_id(row.instruction.instruction_id, self.config.seed)
        if outcome.fields is None:
            self._reject(row, "response", response_id, outcome.reason, outcome.detail, outcome.text)
            return
        text = outcome.fields["response"]
        if (drop := self.gate.check_response(response_id, text)) is not None:
            self._reject(row, "response", response_id, *drop, text)
            return
        row.response = Response(
            response_id=response_id,
            instruction_id=row.instruction.instruction_id,
            sample=0,
            model=self.runner.engine.model,
            text=text,
        )
        self.runner.progress.kept += 1

    def _keep(self, wave: list[Row]) -> None:
        """Keep the first survivors by rank; waves hold no more of a group than its cap leaves room for."""
        for row in wave:
            if row.instruction is None or row.response is None:
                continue
            example = build_example(row.instruction, row.response, row.candidate.agent, self.config.seed)
            if self.n_missing <= 0:
                self._reject(row, "example", example.example_id, "surplus", f"{self.config.n} rows were kept", "")
            else:
                row.example = example
                self._kept_by_group[row.instruction.group_id] += 1
                self._n_kept += 1
        self.rows += wave
        self.runner.progress.kept = self._n_kept

    async def _ask(
        self, program: str, prompt: Prompt, inputs: dict[str, Any], candidate: Candidate, check: Check | None = None
    ) -> Outcome:
        attempt = self.retries.get(program, {}).get(candidate.instruction_id, 0)
        key = CallKey(STAGE, candidate.instruction_id, program, attempt=attempt)
        keeps = "length" in self.config.curation.off
        sampling = self.config.sampling_of(program)
        return await self.runner.call(prompt, inputs, key, sampling, check=check, keeps_cut_off=keeps)

    def _reject(self, row: Row, noun: str, row_id: str, reason: str, detail: str, raw: str) -> None:
        shown = "" if reason == "leak" else raw  # raw profile text is stored nowhere (METHOD 2.1)
        row.rejected = Rejected(noun=noun, id=row_id, stage=STAGE, reason=reason, detail=detail, raw_text=shown)
        self.runner.progress.rejected += 1


def _check_written(fields: dict[str, Any]) -> str | None:
    return None if fields["instruction"].strip() else "the instruction is empty"


def build_candidates(
    scenarios: Sequence[Scenario],
    events: dict[str, Event],
    agents: dict[str, Agent],
    relevance: dict[str, float],
    config: Config,
    kind: str,
) -> list[Candidate]:
    """Return one candidate for every agent of every scenario, scenarios in the given order."""
    synthesis = config.synthesis
    candidates: list[Candidate] = []
    for scenario in scenarios:
        own: dict[str, list[str]] = {}
        for event_id in scenario.event_ids:
            own.setdefault(events[event_id].agent_id, []).append(events[event_id].action)
        for agent_id in scenario.agent_ids:
            candidates.append(
                Candidate(
                    instruction_id=make_id(
                        "instruction", scenario.scenario_id, agent_id, kind, synthesis.type, config.seed
                    ),
                    scenario=scenario,
                    agent=agents[agent_id],
                    actions=tuple(own[agent_id]),
                    others=tuple(agents[other].name for other in scenario.agent_ids if other != agent_id),
                    relevance=relevance.get(scenario.scenario_id),
                )
            )
    return candidates


def make_response_id(instruction_id: str, seed: int) -> str:
    """Return the id of an instruction's response."""
    return make_id("response", instruction_id, 0, seed)


def build_example(instruction: Instruction, response: Response, agent: Agent, seed: int) -> Example:
    """Pack an instruction and its response as a conversation in TRL's columns."""
    return Example(
        example_id=make_id("example", response.response_id, 0, seed),
        messages=(Message(role="user", content=instruction.text), Message(role="assistant", content=response.text)),
        instruction_id=instruction.instruction_id,
        response_id=response.response_id,
        scenario_id=instruction.scenario_id,
        agent_id=instruction.agent_id,
        group_id=instruction.group_id,
        profile_id=agent.profile_id,
        kind=instruction.kind,
        type=instruction.type,
        category=instruction.category,
        model=response.model,
    )
