"""One agent while it lives: its plan, what it has observed, what it remembers (METHOD 2.2)."""

from dataclasses import dataclass, field
from typing import Any

from matrix_dspy.bulk.checks import PLAN_SCHEMA, check_plan, read_plan
from matrix_dspy.bulk.journal import CallKey
from matrix_dspy.bulk.prompt import Prompt
from matrix_dspy.bulk.runner import Check, Narrow, Outcome, Runner
from matrix_dspy.config import Config
from matrix_dspy.engine.embedding import Embedder
from matrix_dspy.loading import load_program
from matrix_dspy.simulation.communication import STAGE
from matrix_dspy.simulation.memory import Memory
from matrix_dspy.text import count_words, one_line, shorten
from matrix_dspy.types import Agent

MAX_ACTION_WORDS = 80
"""Longest action; twice that is asked for again, anything between is let pass."""
MEMORY_SUMMARY_WORDS = 120
MAX_FOLDS = 6
"""Folds in one turn: six halvings bring 96,000 tokens of history within the budget."""


@dataclass(frozen=True, slots=True)
class Action:
    """What an agent did in one turn, and at which step of its plan it was."""

    text: str
    step: str
    is_step_done: bool
    is_reaction: bool


@dataclass(slots=True)
class Failure:
    """A decision that fell back."""

    noun: str
    outcome: Outcome


@dataclass(slots=True)
class Mind:
    """The programs every agent thinks with, and what they run on."""

    runner: Runner
    config: Config
    embedder: Embedder
    actor: Prompt = field(init=False)
    planner: Prompt = field(init=False)
    memory_keeper: Prompt = field(init=False)

    def __post_init__(self) -> None:
        self.actor = Prompt.of(load_program("actor"))
        self.planner = Prompt.of(load_program("planner"))
        self.memory_keeper = Prompt.of(load_program("memory_keeper"))


class LivingAgent:
    """The changing side of an agent."""

    def __init__(self, agent: Agent, history: tuple[str, ...], mind: Mind) -> None:
        self.agent = agent
        self.persona = agent.persona
        self.plan = list(agent.plan)
        self.observations: list[str] = []
        self.failures: list[Failure] = []
        population = mind.config.population
        self.memory = Memory(
            history, max_tokens=population.memory_tokens, n_recalled=population.n_recalled, embedder=mind.embedder
        )
        self._mind = mind
        self._n_plans = 1
        self._step = 0
        self._n_on_step = 0
        self._n_late = 0

    @property
    def is_live(self) -> bool:
        """Whether the agent has a step left, a plan to make, or something to observe and a reaction left."""
        simulation = self._mind.config.simulation
        has_step = self._step < len(self.plan) or self._n_plans < simulation.max_plans
        return has_step or bool(self.observations and self._n_late < simulation.max_late_reactions)

    async def take_turn(self, round_: int) -> Action | None:
        """Act on the plan or react to all that is waiting; None when no usable answer came."""
        simulation = self._mind.config.simulation
        await self._keep_memory_short(round_)
        if self._step >= len(self.plan) and self._n_plans < simulation.max_plans:
            await self._make_plan(round_)
        step = self.plan[self._step] if self._step < len(self.plan) else ""
        observations, self.observations = self.observations, []
        if not step and not observations:
            return None
        if not step and self._n_plans >= simulation.max_plans:
            self._n_late += 1
        fields = await self._act(round_, step, observations)
        for text in observations:
            self.memory.note(text)
        action = None
        if fields is not None:
            action = Action(one_line(fields["action"]), step, bool(fields["step_done"]), bool(observations))
            self.memory.add(round_, action.text)
        self._move_on(is_done=action is not None and action.is_step_done)
        return action

    async def _act(self, round_: int, step: str, observations: list[str]) -> dict[str, Any] | None:
        inputs = {
            "persona": self.persona,
            "plan": self.plan,
            "memory": self.memory.items,
            "round": round_,
            "step": step,
            "observations": observations,
            "recalled": self.memory.recall(" ".join(observations) or step),
        }
        outcome = await self._ask("actor", self._mind.actor, inputs, round_, _check_action)
        if outcome.fields is None:
            self.failures.append(Failure("action", outcome))
        return outcome.fields

    async def _make_plan(self, round_: int) -> None:
        inputs = {"persona": self.persona, "memory": self.memory.items}
        outcome = await self._ask("planner", self._mind.planner, inputs, round_, check_plan, PLAN_SCHEMA)
        self._n_plans += 1
        if outcome.fields is None:
            self.failures.append(Failure("plan", outcome))
        else:
            self.plan = list(read_plan(outcome.fields))
            self._step, self._n_on_step = 0, 0

    async def _keep_memory_short(self, round_: int) -> None:
        """Fold the older half of a full memory; a long history may need it more than once before the first round."""
        for turn in range(MAX_FOLDS):
            if not self.memory.is_full:
                return
            before = self.memory.n_tokens
            await self._fold_memory(round_, turn)
            if self.memory.n_tokens >= before:
                return

    async def _fold_memory(self, round_: int, turn: int) -> None:
        older = self.memory.older_half()
        inputs = {"persona": self.persona, "memories": older}
        outcome = await self._ask("memory_keeper", self._mind.memory_keeper, inputs, round_, None, sample=turn)
        if outcome.fields is None:
            self.failures.append(Failure("memory", outcome))
        text = outcome.fields["memory_summary"] if outcome.fields else " ".join(older)
        self.memory.fold(shorten(one_line(text), MEMORY_SUMMARY_WORDS))

    def _move_on(self, *, is_done: bool) -> None:
        self._n_on_step += 1
        if is_done or self._n_on_step >= self._mind.config.simulation.max_actions_per_step:
            self._step, self._n_on_step = self._step + 1, 0

    async def _ask(
        self,
        program: str,
        prompt: Prompt,
        inputs: dict[str, Any],
        round_: int,
        check: Check | None,
        narrow: Narrow | None = None,
        sample: int = 0,
    ) -> Outcome:
        key = CallKey(STAGE, self.agent.agent_id, program, round_, sample=sample)
        sampling = self._mind.config.sampling_of(program)
        return await self._mind.runner.call(prompt, inputs, key, sampling, check=check, narrow=narrow)


def _check_action(fields: dict[str, Any]) -> str | None:
    n_words = count_words(fields["action"])
    if n_words == 0:
        return "the action is empty"
    if n_words > 2 * MAX_ACTION_WORDS:
        return f"the action has {n_words} words; write at most {MAX_ACTION_WORDS}"
    return None
