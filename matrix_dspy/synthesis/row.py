"""A candidate on its way to an example, with everything that was bought for it."""

from dataclasses import dataclass, field

from matrix_dspy.types import (
    Agent,
    Critique,
    Drop,
    Example,
    Instruction,
    Judgement,
    Message,
    PairExample,
    Rejected,
    Response,
    Scenario,
)


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
    is_lookalike: bool = False
    """Whether a harmless look-alike of a harmful ask was wanted."""
    messages: tuple[Message, ...] = ()
    """The conversation to be learnt, when the row is answered."""
    response: Response | None = None
    """The last answer of the aligned model, when it is good."""
    rejected_response: Response | None = None
    """The other side of a pair."""
    responses: list[Response] = field(default_factory=list)
    """Everything that was answered and could be read."""
    critiques: list[Critique] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    example: Example | PairExample | None = None
    control: Example | PairExample | None = None
    """The example as it would be without selection, where the row was scored."""
    offered: Example | None = None
    """What selection found too hard for the model to be trained and offers to the SFT pool."""
    rejected: Rejected | None = None


class DropRowError(Exception):
    """A row's own end: what was wrong with which of its parts."""

    def __init__(self, noun: str, row_id: str, drop: Drop, raw: str = "") -> None:
        super().__init__(drop.reason)
        self.noun, self.row_id, self.drop, self.raw = noun, row_id, drop, raw
