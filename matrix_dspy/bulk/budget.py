"""What one start of a run may spend: calls, tokens, money, time. What the journal replays costs nothing."""

import time
from dataclasses import dataclass, field
from typing import Protocol

from matrix_dspy.engine.base import Completion


class Price(Protocol):
    """What tokens cost."""

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return dollars."""
        ...


@dataclass(slots=True)
class Budget:
    """Limits, None where there is none, and what has been spent of them."""

    max_calls: int | None = None
    max_tokens: int | None = None
    """Prompt and completion tokens together."""
    max_cost: float | None = None
    """Dollars, by the price of each model."""
    max_time_s: float | None = None
    n_calls: int = 0
    """Calls sent."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """Dollars spent, as far as prices are known."""
    _started: float = field(default_factory=time.monotonic)

    def note(self, completion: Completion, price: Price | None = None) -> None:
        """Count what an answered call took."""
        self.prompt_tokens += completion.prompt_tokens
        self.completion_tokens += completion.completion_tokens
        if price is not None:
            self.cost += price.cost(completion.prompt_tokens, completion.completion_tokens)

    def find_limit(self) -> str | None:
        """Return which limit is reached, as a sentence; None while there is something left of all."""
        if self.max_calls is not None and self.n_calls >= self.max_calls:
            return f"the limit of {self.max_calls} calls is reached"
        if self.max_tokens is not None and self.prompt_tokens + self.completion_tokens >= self.max_tokens:
            return f"the limit of {self.max_tokens} tokens is reached"
        if self.max_cost is not None and self.cost >= self.max_cost:
            return f"the limit of {self.max_cost:g} dollars is reached"
        if self.max_time_s is not None and time.monotonic() - self._started >= self.max_time_s:
            return f"the limit of {self.max_time_s:g} seconds is reached"
        return None
