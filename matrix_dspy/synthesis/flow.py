"""From candidates to kept rows: each row flows by itself through writing, filters and answering (METHOD 3.1, DESIGN 9).

Candidates have a fixed rank and are taken in waves whose size depends only on the earlier waves. Filters that compare
rows are asked in rank order, so an earlier rank always wins over its twin; the first n survivors by rank are kept, or
the n most various of more survivors where that is asked for.
"""

import asyncio
import math
from collections import Counter, deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from matrix_dspy.bulk.program import first_error, for_each
from matrix_dspy.bulk.progress import Progress
from matrix_dspy.config import Config, KindConfig
from matrix_dspy.synthesis.answering import answer_other_side, answer_row, set_answer
from matrix_dspy.synthesis.desk import STAGE, Desk
from matrix_dspy.synthesis.gate import Gate, build_rejected
from matrix_dspy.synthesis.judging import check_answer, check_earlier_turns, drop_checked, judge_row, rate_row
from matrix_dspy.synthesis.packing import build_example
from matrix_dspy.synthesis.refining import refine_row
from matrix_dspy.synthesis.requirement import Requirement, draw_requirement
from matrix_dspy.synthesis.row import Candidate, DropRowError, Row
from matrix_dspy.synthesis.selecting import select_row
from matrix_dspy.types import Agent, Drop, Event, Example, Instruction, Response, Scenario, Shape, make_id

MIN_YIELD = 0.05
"""Lowest yield a wave is sized by, so that one bad wave does not order thousands."""
HOPELESS_WAVE = 20
"""Candidates after which a yield of nothing stops the run."""
HOPELESS_START = 100
"""The same within a wave: the first ranks of all, when none of them comes to anything."""

REFINED: tuple[Shape, ...] = ("single", "pair")
"""Shapes that can be revised: a later turn builds on an answer, and thinking leads to the answer it stands before."""


class HopelessError(Exception):
    """Everything so far was dropped, and the rest would be."""


@dataclass(slots=True)
class Flow:
    """All rows of a data set; `fill` takes candidates until enough survive or none are left."""

    config: Config
    kind: KindConfig
    desk: Desk
    gate: Gate
    n_groups: int
    rows: list[Row] = field(default_factory=list)
    wave: list[Row] = field(default_factory=list)
    """The rows on their way."""
    _queue: deque[Candidate] = field(default_factory=deque)
    _kept_by_group: Counter[str] = field(default_factory=Counter)
    _n_kept: int = 0
    _n_ended: int = 0
    """The first ranks of the first wave that have all come to their end."""

    @property
    def wanted(self) -> int:
        """Survivors wanted: n, or more where the kept rows are picked out of them."""
        curation = self.config.curation
        return math.ceil(self.config.n * curation.diverse_pool) if curation.diverse else self.config.n

    @property
    def n_missing(self) -> int:
        """Survivors still wanted."""
        return self.wanted - self._n_kept

    @property
    def group_cap(self) -> int:
        """Rows one group may supply: its share of the set, or two even shares where that is more (METHOD 3.1)."""
        share = max(self.config.synthesis.group_share, 2 / max(1, self.n_groups))
        return max(1, int(share * self.wanted + 1e-9))

    @property
    def measured_yield(self) -> float:
        """Share of candidates kept so far; 1 before the first wave."""
        return max(MIN_YIELD, self._n_kept / len(self.rows)) if self.rows else 1.0

    @property
    def is_hopeless(self) -> bool:
        """Whether everything so far was dropped."""
        return len(self.rows) >= HOPELESS_WAVE and self._n_kept == 0

    @property
    def progress(self) -> Progress:
        """The counters of the run."""
        return self.desk.runner_of("writer").progress

    def offer(self, candidates: Sequence[Candidate]) -> None:
        """Add candidates behind those offered before."""
        self._queue.extend(candidates)

    async def fill(self) -> int:
        """Take waves until enough rows survive or the queue is empty; returns how many are missing."""
        while self.n_missing > 0 and not self.is_hopeless and (wave := self._take_wave()):
            self.wave = wave
            try:
                await self._run_wave(wave)
            except HopelessError:
                del wave[HOPELESS_START:]  # how far these came depends on timing
            finally:
                self._keep(wave)
                self.wave = []
        return self.n_missing

    def finish(self) -> None:
        """Pick the kept rows out of the survivors, where there are more than n."""
        survivors = [row for row in self.rows if row.example is not None]
        if not self.config.curation.diverse or len(survivors) <= self.config.n:
            return
        by_id = {row.candidate.instruction_id: row for row in survivors}
        texts = [row.instruction.text for row in survivors if row.instruction]
        chosen = self._respect_groups([by_id[each] for each in self.gate.pick_diverse(list(by_id), texts)])
        for row in survivors:
            if row.candidate.instruction_id not in chosen:
                self._drop_example(row, Drop("less diverse", "other survivors bring more variety"))
        self._n_kept = len(chosen)

    def draw_control(self) -> list[Row]:
        """Return a random subset of all scored rows, as many as were kept (METHOD 3.6)."""
        scored = {row.candidate.instruction_id: row for row in self.rows if row.control is not None}
        n = min(len(scored), sum(row.example is not None for row in self.rows))
        return [scored[each] for each in self.gate.draw_control(sorted(scored), n)]

    def _respect_groups(self, rows: Sequence[Row]) -> set[str]:
        """Take the first n rows of which no group has more than its share; fill up from the rest if need be."""
        share = max(self.config.synthesis.group_share, 2 / max(1, self.n_groups))
        cap, taken = max(1, int(share * self.config.n + 1e-9)), Counter[str]()
        first: list[str] = []
        later: list[str] = []
        for row in rows:
            group_id = row.candidate.scenario.group_id
            taken[group_id] += 1
            (first if taken[group_id] <= cap else later).append(row.candidate.instruction_id)
        return set((first + later)[: self.config.n])

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
        is_over = False

        async def answer(row: Row) -> None:
            nonlocal is_over
            try:
                await self._answer(row)
            except BaseException:
                is_over = True  # the group takes no more tasks from here on
                raise

        async def write(position: int) -> None:
            nonlocal frontier
            await self._write(wave[position])
            is_written[position] = True
            while frontier < len(wave) and is_written[frontier] and not is_over:
                row = wave[frontier]
                frontier += 1
                if self._check_instruction(row):
                    tasks.create_task(answer(row))
                else:
                    self._look_for_hope()

        try:
            async with asyncio.TaskGroup() as tasks:
                await for_each(len(wave), 2 * self.desk.runner_of("writer").engine.concurrency, write)
        except BaseExceptionGroup as errors:
            for row in wave[frontier:]:
                row.instruction = None  # no filter has seen it
            raise first_error(errors) from None

    async def _write(self, row: Row) -> None:
        candidate, config = row.candidate, self.config
        requirement = draw_requirement(candidate.instruction_id, self.kind, config.synthesis, config.seed)
        row.is_lookalike = requirement.is_lookalike
        inputs = {
            "profile": candidate.agent.persona,
            "actions": list(candidate.actions),
            "scenario": candidate.scenario.summary,
            "requirement": requirement.text,
        }
        outcome = await self.desk.ask("instruction_writer", inputs, candidate.instruction_id, check=_check_written)
        if outcome.fields is None:
            drop = Drop(outcome.reason, outcome.detail)
            self._reject(row, "instruction", candidate.instruction_id, drop, outcome.text)
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
            self._reject(row, "instruction", instruction.instruction_id, drop, instruction.text)
            row.instruction = None
        return drop is None

    async def _answer(self, row: Row) -> None:
        """Buy everything a kept instruction needs; a row that is no good is dropped where that shows."""
        try:
            await self._complete(row)
        except DropRowError as end:
            row.messages = ()
            self._reject(row, end.noun, end.row_id, end.drop, end.raw)
            self._look_for_hope()
            return
        row.example = build_example(row, self.kind, self.gate, self.config.seed)
        self.progress.kept += 1

    async def _complete(self, row: Row) -> None:
        desk, kind, gate, config = self.desk, self.kind, self.gate, self.config
        if kind.shape == "pair" and not config.selection.on:
            await _gather(answer_row(row, desk, kind, gate), answer_other_side(row, desk, kind, gate))
            row.responses.sort(key=lambda response: response.part)  # whichever came first
        else:
            await answer_row(row, desk, kind, gate)
        assert row.response is not None
        await check_earlier_turns(row, desk, kind)
        drop = await check_answer(row, desk, kind, gate, row.response)
        if config.synthesis.refine and kind.shape in REFINED:
            before = row.response
            await refine_row(row, desk, kind, gate)
            drop = drop if row.response is before else None  # a revision was kept only if it passed the same checks
        if drop is not None:
            raise drop_checked(row.response, drop, config.seed)
        if config.curation.judge_threshold is not None:
            await judge_row(row, desk, config.curation.judge_threshold)
        if config.synthesis.rate:
            await rate_row(row, desk)
        if config.selection.on:
            await self._select(row)
        self._check_pair(row)

    async def _select(self, row: Row) -> None:
        """Keep what can still teach; for pairs the sides become the two that teach best (METHOD 3.6)."""
        kind, gate, seed = self.kind, self.gate, self.config.seed
        assert row.response is not None
        is_pair = kind.shape == "pair"
        selected, responses = await select_row(row, self.desk, gate, is_pair=is_pair)
        if is_pair and len(responses) > 1:
            row.rejected_response = responses[1]
        if not is_pair or row.rejected_response is not None:
            row.control = build_example(row, kind, gate, seed)
        if selected.is_offered:
            offered = build_example(row, kind, gate, seed, as_pair=False)
            row.offered = offered if isinstance(offered, Example) else None
        if selected.drop is not None and (is_pair or not selected.is_offered):
            raise DropRowError("response", row.response.response_id, selected.drop, row.response.text)
        if is_pair and selected.rejected is not None:
            await self._choose(row, responses[selected.chosen])
            row.rejected_response = responses[selected.rejected]

    async def _choose(self, row: Row, chosen: Response) -> None:
        """Make a response the better side; a sample of the model to be trained passes what every target passes."""
        assert row.instruction is not None
        if chosen.part == "student":
            drop = self.gate.check_response(chosen.response_id, row.instruction.text, chosen.text, is_target=True)
            drop = drop or await check_answer(row, self.desk, self.kind, self.gate, chosen)
            if drop is not None:
                raise drop_checked(chosen, drop, self.config.seed)
        set_answer(row, chosen, self.kind)

    def _check_pair(self, row: Row) -> None:
        if self.kind.shape != "pair":
            return
        assert row.response is not None and row.rejected_response is not None
        chosen, other = row.response, row.rejected_response
        if (drop := self.gate.check_pair(other.response_id, chosen.text, other.text)) is not None:
            raise DropRowError("response", other.response_id, drop, other.text)

    def _look_for_hope(self) -> None:
        """End the first wave when its first ranks have all come to nothing, rather than pay for the rest."""
        wave = self.wave
        if self.rows or len(wave) <= HOPELESS_START:
            return
        while self._n_ended < HOPELESS_START and wave[self._n_ended].rejected is not None:
            self._n_ended += 1
        if self._n_ended >= HOPELESS_START:
            raise HopelessError

    def _keep(self, wave: list[Row]) -> None:
        """Keep the first survivors by rank; waves hold no more of a group than its cap leaves room for."""
        for row in wave:
            if row.example is None:
                continue
            if self.n_missing <= 0:
                self._drop_example(row, Drop("surplus", f"{self.wanted} rows were kept"))
            else:
                self._kept_by_group[row.candidate.scenario.group_id] += 1
                self._n_kept += 1
        self.rows += wave
        self.progress.kept = self._n_kept

    def _drop_example(self, row: Row, drop: Drop) -> None:
        assert row.example is not None
        self._reject(row, "example", row.example.example_id, drop, "")
        row.example = None

    def _reject(self, row: Row, noun: str, row_id: str, drop: Drop, raw: str) -> None:
        row.rejected = build_rejected(noun, row_id, STAGE, drop, raw)
        self.progress.rejected += 1


async def _gather(*parts: Coroutine[Any, Any, None]) -> None:
    """Do all parts of one row, which are paid for whatever becomes of the others, and raise what the first raised."""
    ends = await asyncio.gather(*parts, return_exceptions=True)
    errors = [end for end in ends if isinstance(end, BaseException)]
    if errors:
        raise next((error for error in errors if not isinstance(error, DropRowError)), errors[0])


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
