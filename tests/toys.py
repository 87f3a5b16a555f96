"""Toys for tests: an engine that answers DSPy prompts by simple rules, an embedder of hashed words, and people."""

import asyncio
import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from matrix_dspy.bulk.runner import Runner
from matrix_dspy.config import Config
from matrix_dspy.engine.base import Completion, Engine, Request
from matrix_dspy.synthesis.desk import DESK_PARTS, Desk, Part
from matrix_dspy.synthesis.gate import Scorer, Selected
from matrix_dspy.types import Agent, Drop, Group, Instruction, Scenario

_HEADER = re.compile(r"^\[\[ ## (\w+) ## \]\]$", re.MULTILINE)
_TAIL = "\n\nRespond with the corresponding output fields"
_PROGRAMS = {
    "observations": "actor",
    "memories": "memory_keeper",
    "previous_summary": "scenario_writer",
    "groups": "inter_router",
    "pseudonym": "anonymiser",
    "anonymous_history": "privacy_checker",
    "requirement": "instruction_writer",
    "events": "reception_router",
    "action": "intra_router",
    "history": "goal_setter",
    "memory": "planner",
}
"""The field that tells a program, asked in this order."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request as a rule sees it: the program, its inputs, and how often it was asked again before."""

    program: str
    fields: dict[str, Any]
    request: Request
    n_again: int

    @property
    def text(self) -> str:
        """All messages, one after the other."""
        return "\n".join(str(message["content"]) for message in self.request.messages)

    @property
    def asked(self) -> str:
        """The last message, which holds this call's own inputs."""
        return str(self.request.messages[-1]["content"])


Rule = Callable[[Call], "dict[str, Any] | str"]
"""Answers a call with output fields, or with the very words of the answer."""


class ToyEngine(Engine):
    """Answers by rules, one for each program, after a random wait of at most `latency_s`; remembers all calls."""

    def __init__(
        self, rules: Mapping[str, Rule], *, concurrency: int = 16, latency_s: float = 0.0, shuffle: int = 0
    ) -> None:
        super().__init__(concurrency=concurrency)
        self.model = "toy"
        self.rules = rules
        self.latency_s = latency_s
        self.calls: list[Call] = []
        self._waits = random.Random(shuffle)

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        call = read_call(request)
        self.calls.append(call)
        answer = self.rules[call.program](call)
        if self.latency_s:
            await asyncio.sleep(self._waits.random() ** 3 * self.latency_s)
        text = answer if isinstance(answer, str) else write_fields(answer)
        return Completion((text,), ("stop",), prompt_tokens=1, completion_tokens=1)

    def asked(self, program: str) -> list[Call]:
        """Return the calls of one program, in the order in which they came."""
        return [call for call in self.calls if call.program == program]


class ToyGate:
    """Keeps everything but what the predicates say, and notes what it was asked."""

    def __init__(
        self,
        drop_instruction: Callable[[str], bool] = lambda text: False,
        drop_response: Callable[[str], bool] = lambda text: False,
        drop_answer: Callable[[str], bool] = lambda text: False,
    ) -> None:
        self.drop_instruction = drop_instruction
        self.drop_response = drop_response
        self.drop_answer = drop_answer
        self.asked: list[str] = []
        self.others: list[tuple[str, ...]] = []
        self.scores: dict[str, float | None] = {}
        """Score of a text for selection; texts not named get 0.5."""

    def check_instruction(self, row_id: str, text: str, others: Sequence[str]) -> Drop | None:
        self.asked.append(row_id)
        self.others.append(tuple(others))
        return Drop("bad instruction", "the gate said so") if self.drop_instruction(text) else None

    def check_response(self, row_id: str, instruction: str, text: str, *, is_target: bool) -> Drop | None:
        return Drop("bad response", "the gate said so") if self.drop_response(text) else None

    async def check_answer(self, row_id: str, instruction: str, text: str) -> Drop | None:
        return Drop("bad answer", "the gate said so") if self.drop_answer(text) else None

    def check_pair(self, row_id: str, chosen: str, rejected: str) -> Drop | None:
        return Drop("alike", "both sides are the same") if chosen == rejected else None

    def find_root_verb(self, text: str) -> str | None:
        return text.split()[0].lower() if text else None

    def choose_scorer(self, instruction: str, answer: str) -> Scorer:
        return "reward"

    async def score(self, instruction: str, texts: Sequence[str], answer: str) -> list[float | None]:
        return [self.scores.get(text, 0.5) for text in texts]

    def calibrate(self, score: float) -> float:
        return (score - 1) / 4

    def select(
        self,
        instruction: Instruction,
        texts: Sequence[str],
        scores: Sequence[float | None],
        scorer: Scorer,
        *,
        is_pair: bool,
    ) -> Selected:
        """Keep what the samples do not all score the same; a pair is best and worst."""
        known = {place: score for place, score in enumerate(scores) if score is not None}
        if len(set(known.values())) < 2:
            return Selected(Drop("too even", "all score the same"))
        return Selected(None, max(known, key=lambda place: known[place]), min(known, key=lambda place: known[place]))

    def pick_diverse(self, ids: Sequence[str], texts: Sequence[str]) -> list[str]:
        return sorted(ids)

    def draw_control(self, ids: Sequence[str], n: int) -> list[str]:
        return sorted(ids)[:n]


def make_desk(config: Config, runner: Runner, others: Mapping[Part, Runner] | None = None) -> Desk:
    """Return a desk at which one runner plays all parts but those of `others`."""
    return Desk(config, dict.fromkeys(DESK_PARTS, runner) | dict(others or {}))


class ToyEmbedder:
    """Unit vectors of hashed words."""

    n_dims = 64

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return (n_texts, 64) float32."""
        vectors = np.zeros((len(texts), self.n_dims), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                vectors[row, hash_number(word) % self.n_dims] += 1
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1)


def hash_number(*parts: object) -> int:
    """Return a number that depends on the parts alone, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=6).digest(), "big")


def read_call(request: Request) -> Call:
    """Read program and inputs back out of the messages."""
    texts = [str(message["content"]) for message in request.messages if message["role"] == "user"]
    asked = [text for text in texts if _HEADER.match(text)]
    n_again = sum(text.startswith("That answer could not be used") for text in texts)
    if not asked:
        return Call("responder", {"instruction": texts[-1]}, request, 0)
    pieces = _HEADER.split(asked[-1].partition(_TAIL)[0])
    fields = {name: _read_value(value.strip()) for name, value in zip(pieces[1::2], pieces[2::2], strict=True)}
    program = next(program for field, program in _PROGRAMS.items() if field in fields)
    return Call(program, fields, request, n_again)


def write_fields(fields: Mapping[str, Any]) -> str:
    """Write output fields as DSPy's chat adapter reads them."""
    sections = [
        f"[[ ## {name} ## ]]\n{value if isinstance(value, str) else json.dumps(value)}"
        for name, value in fields.items()
    ]
    return "\n\n".join([*sections, "[[ ## completed ## ]]"])


def _read_value(text: str) -> Any:
    if text.startswith("["):
        return json.loads(text)
    return text


def make_agent(name: str, plan: Sequence[str] = ("survey the land", "build the shed", "open the shop")) -> Agent:
    """Return an agent of that name; the id is `agent-` and the name in small letters."""
    return Agent(
        agent_id=f"agent-{name.lower()}",
        profile_id=f"profile-{name.lower()}",
        name=name,
        description=f"{name} keeps bees in a village.",
        personality="Careful and stubborn.",
        life_goal=f"{name} wants a shop.",
        plan=tuple(plan),
        has_history=False,
    )


def make_group(letter: str, agents: Sequence[Agent]) -> Group:
    """Return the group `group-<letter>` of those agents."""
    return Group(
        group_id=f"group-{letter}",
        agent_ids=tuple(agent.agent_id for agent in agents),
        description=f"Group {letter}.",
    )


def make_scenario(number: int, group: str, agent_ids: Sequence[str] = (), summary: str = "") -> Scenario:
    """Return the `number`-th scenario of a group, with one event for each agent, called `event-<scenario>-<agent>`."""
    scenario_id = f"scenario-{group}-{number:03d}"
    return Scenario(
        scenario_id=scenario_id,
        group_id=f"group-{group}",
        index=number,
        opened_round=number + 1,
        closed_round=number + 1,
        agent_ids=tuple(agent_ids),
        event_ids=tuple(f"event-{scenario_id}-{agent_id}" for agent_id in agent_ids),
        summary=summary or f"Something happened to group {group} for the time number {number}.",
        group_description=f"Group {group}.",
    )
