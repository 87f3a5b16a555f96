"""What an agent remembers: an append-only list within a token budget (METHOD 2.1, this project's rule).

On overflow the older half becomes one summary, once; folded items stay embedded and the most similar ones can be
recalled. Appending keeps prompts growing at their end, which a prefix cache likes.
"""

from collections.abc import Sequence

import numpy as np

from matrix_dspy.engine.embedding import Embedder
from matrix_dspy.text import estimate_tokens


class Memory:
    """One agent's memory; `items` is what stands in prompts, oldest first."""

    def __init__(self, history: Sequence[str], *, max_tokens: int, n_recalled: int, embedder: Embedder) -> None:
        self.items = [f"Before: {item}" for item in history]
        self.max_tokens = max_tokens
        self.n_recalled = n_recalled
        self._embedder = embedder
        self._folded: list[str] = []
        self._vectors: np.ndarray | None = None

    def add(self, round_: int, text: str) -> None:
        """Remember what was done in a round."""
        self.items.append(f"Round {round_}: {text}")

    def note(self, observation: str) -> None:
        """Remember an observation, which carries its own round."""
        self.items.append(observation)

    @property
    def is_full(self) -> bool:
        """Whether the budget is used up and the older half should be folded."""
        return len(self.items) > 1 and self.n_tokens > self.max_tokens

    @property
    def n_tokens(self) -> int:
        """Tokens of all items in prompts, estimated."""
        return sum(estimate_tokens(item) for item in self.items)

    def older_half(self) -> list[str]:
        """Return the oldest items that hold about half of the tokens, at least one, never all."""
        sizes = [estimate_tokens(item) for item in self.items]
        half, total, count = sum(sizes) / 2, 0, 0
        while count < len(sizes) - 1 and (total < half or count == 0):
            total += sizes[count]
            count += 1
        return self.items[:count]

    def fold(self, summary: str) -> None:
        """Put `summary` in the place of the older half; the half can still be recalled."""
        older = self.older_half()
        self.items = [f"Earlier: {summary}", *self.items[len(older) :]]
        self._folded += older
        vectors = self._embedder.embed(older)
        self._vectors = vectors if self._vectors is None else np.vstack([self._vectors, vectors])

    def recall(self, cue: str) -> list[str]:
        """Return the folded items most similar to `cue`, oldest first."""
        if self._vectors is None or self.n_recalled == 0 or not cue:
            return []
        similarity = self._vectors @ self._embedder.embed([cue])[0]
        best = np.argsort(-similarity, kind="stable")[: self.n_recalled]
        return [self._folded[position] for position in sorted(best) if similarity[position] > 0]
