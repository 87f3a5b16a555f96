"""The four accuracies of IFEval from verdicts, and the accuracy of each kind of constraint.

In: one list of verdicts per reply, strict and loose. Out: shares with their counts; intervals are for the report.
Source: arXiv 2311.07911 §2.2 (prompt-level and instruction-level, strict and loose accuracy).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matrix_dspy.errors import TableError


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How many of so many were kept."""

    n_kept: int
    """Prompts or constraints that were kept."""
    n: int
    """All of them."""

    @property
    def share(self) -> float:
        """The part that was kept, 0 to 1."""
        return self.n_kept / self.n


@dataclass(frozen=True, slots=True)
class IfevalScores:
    """How far replies keep their constraints."""

    prompt_strict: Accuracy
    """Prompts all of whose constraints are kept by the reply as it stands."""
    prompt_loose: Accuracy
    """Prompts all of whose constraints are kept by some form of the reply, each by its own."""
    instruction_strict: Accuracy
    """Constraints kept by the reply as it stands."""
    instruction_loose: Accuracy
    """Constraints kept by some form of the reply."""
    kinds: Mapping[str, Accuracy] = field(default_factory=dict)
    """Strict instruction-level accuracy by kind, in alphabetical order; empty where no kinds were given."""


def score_replies(
    strict: Sequence[Sequence[bool]],
    loose: Sequence[Sequence[bool]],
    instruction_ids: Sequence[Sequence[str]] | None = None,
) -> IfevalScores:
    """Return the accuracies of replies from their verdicts: one list per reply, in each one verdict per constraint.

    `instruction_ids` has the same shape and adds accuracies by kind.

    Raises:
        TableError: there are no replies, one has no constraint, or the lists do not have the same shape.
    """
    shape = [len(verdicts) for verdicts in strict]
    if not shape:
        raise TableError("there are no verdicts to score; check at least one reply")
    if 0 in shape:
        raise TableError(f"reply {shape.index(0)} has no constraint; leave replies without constraints out")
    for name, lists in (("loose verdicts", loose), ("kinds", instruction_ids)):
        if lists is not None and [len(each) for each in lists] != shape:
            raise TableError(f"the {name} do not match the strict verdicts of {len(shape)} replies; give one each")
    return IfevalScores(
        prompt_strict=_count([all(verdicts) for verdicts in strict]),
        prompt_loose=_count([all(verdicts) for verdicts in loose]),
        instruction_strict=_count([verdict for verdicts in strict for verdict in verdicts]),
        instruction_loose=_count([verdict for verdicts in loose for verdict in verdicts]),
        kinds=_count_kinds(strict, instruction_ids) if instruction_ids is not None else {},
    )


def _count(verdicts: Sequence[bool]) -> Accuracy:
    return Accuracy(sum(map(bool, verdicts)), len(verdicts))


def _count_kinds(strict: Sequence[Sequence[bool]], kinds: Sequence[Sequence[str]]) -> dict[str, Accuracy]:
    total: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for verdicts, names in zip(strict, kinds, strict=True):
        total.update(names)
        kept.update(name for name, verdict in zip(names, verdicts, strict=True) if verdict)
    return {name: Accuracy(kept[name], total[name]) for name in sorted(total)}
