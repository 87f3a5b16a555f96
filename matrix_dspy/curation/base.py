"""What a filter is: it looks at one candidate and answers with a `Drop` or None; and texts as filters compare them."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from matrix_dspy.text import words
from matrix_dspy.types import Drop


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text with what filters may need to know of it."""

    id: str
    text: str
    others: tuple[str, ...] = ()
    """Names of the other people around, who must not stand in it unexplained."""


class Filter(Protocol):
    """Looks at one candidate; filters that compare with earlier ones are asked in rank order."""

    def judge(self, candidate: Candidate) -> Drop | None:
        """Return why the candidate is dropped, or None to keep it."""
        ...


@runtime_checkable
class Forgetful(Protocol):
    """A filter that can be told that a row it let pass was dropped by a later one."""

    def forget(self, row_id: str) -> None:
        """Let the row be no twin of later ones."""
        ...


def apply_filters(filters: Sequence[Filter], candidate: Candidate) -> Drop | None:
    """Return the first reason to drop the candidate, or None; what one filter drops, those before it forget."""
    for place, each in enumerate(filters):
        if (drop := each.judge(candidate)) is not None:
            for earlier in filters[:place]:
                if isinstance(earlier, Forgetful):
                    earlier.forget(candidate.id)
            return drop
    return None


def normalise(text: str) -> str:
    """Return the words of `text`, lower-case, in compatibility form, parted by single blanks."""
    return " ".join(words(text))


def build_shingles(text: str, n_words: int) -> frozenset[str]:
    """Return the runs of `n_words` words of `text`; a shorter text is its own single shingle."""
    found = words(text)
    if len(found) <= n_words:
        return frozenset([" ".join(found) or unicodedata.normalize("NFKC", text).strip()])
    return frozenset(" ".join(found[i : i + n_words]) for i in range(len(found) - n_words + 1))


def measure_jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the share of shingles that two texts have in common, of all they have."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared) if one or other else 1.0
