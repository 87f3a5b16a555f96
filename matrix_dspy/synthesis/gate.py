"""What synthesis asks of curation: keep or drop, with a reason. The pipeline brings the two together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from matrix_dspy.types import Drop, Instruction, Rejected

Scorer = Literal["verifier", "reward", "judge"]


@dataclass(frozen=True, slots=True)
class Selected:
    """What reward-aware selection made of the answers to one instruction."""

    drop: Drop | None
    chosen: int = 0
    """Place of the better side of a pair among the answers, the aligned model's first."""
    rejected: int | None = None
    """Place of the worse side."""
    is_offered: bool = False
    """Whether the instruction, too hard for the model to be trained, is offered to the SFT pool."""


class Gate(Protocol):
    """Keep or drop with a reason, as curation decides."""

    def check_instruction(self, row_id: str, text: str, others: Sequence[str]) -> Drop | None:
        """Return why an instruction is dropped; called in rank order."""
        ...

    def check_response(self, row_id: str, instruction: str, text: str, *, is_target: bool) -> Drop | None:
        """Return why a response is dropped; a target is one that a model is trained to give."""
        ...

    async def check_answer(self, row_id: str, instruction: str, text: str) -> Drop | None:
        """Return why an answer is dropped by the checks of its kind that take time."""
        ...

    def check_pair(self, row_id: str, chosen: str, rejected: str) -> Drop | None:
        """Return why the two sides do not make a pair."""
        ...

    def find_root_verb(self, text: str) -> str | None:
        """Return the verb that says what an instruction asks for."""
        ...

    def choose_scorer(self, instruction: str, answer: str) -> Scorer:
        """Return who scores the answers to an instruction."""
        ...

    async def score(self, instruction: str, texts: Sequence[str], answer: str) -> list[float | None]:
        """Score texts in [0, 1] by verifier or reward model; `answer` is the aligned model's."""
        ...

    def calibrate(self, score: float) -> float:
        """Map a judge's score to the probability of being good."""
        ...

    def select(
        self,
        instruction: Instruction,
        texts: Sequence[str],
        scores: Sequence[float | None],
        scorer: Scorer,
        *,
        is_pair: bool,
    ) -> Selected:
        """Decide by the scores of the aligned model's answer and of the samples behind it (METHOD 3.6)."""
        ...

    def pick_diverse(self, ids: Sequence[str], texts: Sequence[str]) -> list[str]:
        """Return the ids in the order in which variety takes them."""
        ...

    def draw_control(self, ids: Sequence[str], n: int) -> list[str]:
        """Return a random subset of `n` ids."""
        ...


def build_rejected(noun: str, row_id: str, stage: str, drop: Drop, raw: str) -> Rejected:
    """Return the row that tells of a drop; raw profile text is stored nowhere (METHOD 2.1)."""
    return Rejected(
        noun=noun,
        id=row_id,
        stage=stage,
        reason=drop.reason,
        detail=drop.detail,
        raw_text="" if drop.reason == "leak" else raw,
        twin=drop.twin,
        score=drop.score,
    )
