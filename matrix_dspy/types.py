"""The nouns: one frozen row type each, as they stand in the tables, from profile to example.

Every row names its parent; ids are hashes of (parent id, index, seed) and never of anybody's text, so a rerun makes
the same ids and an example can be walked back to the people it came from.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

Quality = Literal["very poor", "poor", "average", "good", "excellent"]
Difficulty = Literal["very easy", "easy", "medium", "hard", "very hard"]
InstructionType = Literal["simple", "specialised"]
Communication = Literal["structured", "random", "none"]
FilterName = Literal[
    "refusal",
    "length",
    "language",
    "self-contained",
    "exact duplicate",
    "near duplicate",
    "semantic duplicate",
    "contamination",
]
"""Filters that can be switched off; the one against leaks cannot."""
Shape = Literal["single", "pair", "dialogue", "thinking"]
"""How an instruction is answered."""
KindCheck = Literal["code", "safety"]
"""What is checked of some kinds of data only."""
Structured = Literal["auto", "on", "off"]
"""Whether a JSON schema of a program's outputs is sent; `auto` does so where the server holds the model to it."""


def make_id(noun: str, *parts: str | int) -> str:
    """Return `<noun>-<16 hex digits>`, a hash of the parts in order."""
    joined = "\x1f".join(str(part) for part in parts)
    return f"{noun}-{hashlib.blake2b(joined.encode(), digest_size=8, person=noun.encode()[:16]).hexdigest()}"


def describe_persona(name: str, description: str, personality: str, life_goal: str) -> str:
    """Return the constant head of all of an agent's prompts."""
    return f"Name: {name}\nDescription: {description}\nPersonality: {personality}\nLife goal: {life_goal}"


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a row is dropped."""

    reason: str
    """A short fixed word to count by."""
    detail: str
    twin: str = ""
    """Id of the row it is like, for duplicates; `benchmark/item` for contamination."""
    score: float | None = None
    """How alike they are: Jaccard or cosine."""


class Row(BaseModel):
    """A row of a table."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Profile(Row):
    """A described person as read or composed; raw, so it is written to no table."""

    profile_id: str
    """Made from the file's name and the row's number, never from its text."""
    name: str
    description: str
    history: tuple[str, ...] = ()
    """Past posts or actions, oldest first; may be empty."""
    handles: tuple[str, ...] = ()
    """Other names the person goes by (user names); must not survive anonymising."""
    origin: str
    """Where the row came from, as one would cite it."""
    licence: str
    is_invented: bool = False
    """True when nobody of that description exists."""
    facts: tuple[tuple[str, str], ...] = ()
    """Further columns as (name, value): occupation, age, country, ..."""

    @property
    def telling_handles(self) -> tuple[str, ...]:
        """User names that give the person away even without their @.

        One that the person's own text uses as an ordinary word does not: a baker called @baker still bakes.
        """
        own = {word.strip(".,;:!?()'\"") for text in (self.description, *self.history) for word in text.split()}
        bare = (handle.lstrip("@") for handle in self.handles)
        return tuple(handle for handle in bare if handle and handle.lower() not in own)


class AnonymousProfile(Row):
    """A profile after anonymising and checking; the first form of a person that is stored."""

    profile_id: str
    name: str
    """A new name, unique in the run."""
    description: str
    history: tuple[str, ...] = ()
    origin: str
    licence: str
    is_invented: bool = False


class Agent(Row):
    """An anonymous profile with a personality, a life goal and a plan."""

    agent_id: str
    profile_id: str
    name: str
    description: str
    personality: str
    life_goal: str
    plan: tuple[str, ...]
    """The first plan; later ones stand in the events of the steps they led to."""
    has_history: bool
    """False when memory started empty and the personality came from the description alone."""

    @property
    def persona(self) -> str:
        """The agent as its prompts describe it."""
        return describe_persona(self.name, self.description, self.personality, self.life_goal)


class Group(Row):
    """Agents with similar profiles, 1 to 10 of them."""

    group_id: str
    agent_ids: tuple[str, ...]
    description: str
    """The modulator's description of the group when the simulation began."""


class Event(Row):
    """One action as text, and who came to know of it."""

    event_id: str
    scenario_id: str
    group_id: str
    agent_id: str
    round: int
    """The group's own round, from 1."""
    kind: Literal["act", "react"]
    plan_step: str
    """The step the actor was at; empty when the plan was used up."""
    action: str
    is_step_done: bool
    receiver_ids: tuple[str, ...] = ()
    """Members of the same group, or in mode random any agents, who observed it."""
    receiver_reason: str = ""
    group_ids: tuple[str, ...] = ()
    """Other groups that learnt of it after the scenario closed."""
    group_reason: str = ""


class Scenario(Row):
    """A stretch of one group's events, with a summary."""

    scenario_id: str
    group_id: str
    index: int
    """The group's how many-th scenario, from 0."""
    opened_round: int
    closed_round: int
    agent_ids: tuple[str, ...]
    """Members who acted in it."""
    event_ids: tuple[str, ...]
    outside_event_ids: tuple[str, ...] = ()
    """Events of other groups that members observed at its start."""
    summary: str
    group_description: str
    """The group as its modulator describes it after this scenario."""


class Instruction(Row):
    """What an agent in a scenario would ask an assistant."""

    instruction_id: str
    scenario_id: str
    agent_id: str
    group_id: str
    rank: int
    """Place in the order in which candidates are judged; a lower rank wins over its twin."""
    kind: str
    type: InstructionType | None
    """Null for data from elsewhere, which nobody asked to be of a type."""
    category: str
    complexity: str
    style: str
    language: str
    relevance: float | None = None
    """Cosine of the scenario's summary and the need, where a need was given."""
    text: str


class Response(Row):
    """An assistant's answer to an instruction, or to a later turn of the conversation it began."""

    response_id: str
    instruction_id: str
    part: Literal["answer", "rejected", "student", "revision"]
    """The aligned model's answer, the rejected side of a pair, a sample of the model to be trained, or a revision."""
    sample: int
    """Number of the sample, or of the revision, from 0."""
    turn: int = 0
    """Number of the user's turn it answers, from 0: the instruction."""
    asked: str = ""
    """The user's turn it answers, where that is not the instruction."""
    model: str
    text: str
    thinking: str = ""
    """What the model wrote before its answer, where that is kept."""


class Critique(Row):
    """One round of critique and revision of a response, and whether the revision was kept."""

    critique_id: str
    response_id: str
    instruction_id: str
    round: int
    """From 0."""
    text: str
    revision: str
    """Empty where the critic found nothing to mend."""
    is_kept: bool
    """Whether the judge preferred the revision in both orders."""
    verdict: str
    """`better`, `worse`, `undecided` (the orders disagree), `no faults`, or why there is none."""


class Judgement(Row):
    """One verdict of a judge, rater or verifier on one row."""

    judgement_id: str
    subject_id: str
    """Id of the instruction, response or critique that is judged."""
    criterion: Literal["quality", "difficulty", "score", "safety", "preference", "reward"]
    level: str
    """The verdict in words, as `good`, `hard`, `4`, `safe`; `unrated` where the judge gave none."""
    value: float | None = None
    """The verdict as a number, higher is better (or harder); null where unrated."""
    reason: str = ""
    """The judge's sentence."""
    model: str


class Overlap(Row):
    """What a row shares with an evaluation set."""

    overlap_id: str
    row_id: str
    """Id of the instruction or response."""
    field: Literal["instruction", "response"]
    benchmark: str
    """Name of the benchmark file without its endings."""
    item: str
    """The item's own id where it has one, else its number from 0."""
    kind: Literal["run of words", "whole text", "hash", "nearest"]
    """`hash` is a whole text known by its hash only; `nearest` is a warning and drops nothing."""
    score: float | None = None
    """Cosine, for `nearest`."""
    shared: str = ""
    """The words shared, for a run of words."""


class Message(Row):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Sourced(Row):
    """The ids a training example can be walked back by, and what is known of its worth."""

    example_id: str
    instruction_id: str
    response_id: str
    scenario_id: str
    agent_id: str
    group_id: str
    profile_id: str
    kind: str
    type: InstructionType | None
    category: str
    root_verb: str | None = None
    """The verb that says what is asked for, in its base form; null where none was found."""
    quality: Quality | None = None
    """As the rater sees the instruction; null where unrated."""
    difficulty: Difficulty | None = None
    score: float | None = None
    """The judge's score of the response, 1 to 5, or its reward, where one was asked for."""
    model: str
    """The model that answered."""


class Example(Sourced):
    """A training conversation in TRL's column `messages`."""

    messages: tuple[Message, ...]


class PairExample(Sourced):
    """A preference pair in TRL's columns `prompt`, `chosen`, `rejected`, each a list of messages."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    rejected_id: str
    """Id of the rejected response."""
    rejected_model: str
    rejected_score: float | None = None


class Rejected(Row):
    """A row that was dropped, and why."""

    noun: str
    id: str
    stage: str
    reason: str
    """A short fixed word to count by."""
    detail: str = ""
    """The sentence for a reader."""
    raw_text: str = ""
    """What the model wrote; always empty for profiles, whose raw text is stored nowhere."""
    twin: str = ""
    """For duplicates: id of the row that was kept in its place. For contamination: `benchmark/item`."""
    score: float | None = None
    """How alike they are: Jaccard or cosine."""


NOUNS: dict[str, type[Row]] = {
    "profiles": AnonymousProfile,
    "agents": Agent,
    "groups": Group,
    "events": Event,
    "scenarios": Scenario,
    "instructions": Instruction,
    "responses": Response,
    "critiques": Critique,
    "judgements": Judgement,
    "overlaps": Overlap,
    "rejected": Rejected,
}
"""Table name to row type, in the order of the path."""
