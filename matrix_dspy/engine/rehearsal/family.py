"""A family of questions: frames with numbers to put in, and how to work out any of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Numbers = Mapping[str, float]
Steps = tuple[list[str], str]
"""What is worked out line by line, and the final result."""
Solve = Callable[[Numbers], Steps | None]
"""Works a question out, or says None where the numbers will not do."""
LEVELS = ("pupil", "school", "university", "research")


@dataclass(frozen=True)
class Family:
    """Questions that differ in numbers and words only."""

    category: str
    level: int
    """Place in `LEVELS`."""
    frames: tuple[str, ...]
    ranges: Mapping[str, tuple[int, ...]]
    """Lowest and highest value of every number, and the step where it is not 1."""
    solve: Solve


def register_in(families: list[Family]) -> Callable[..., Callable[[Solve], Solve]]:
    """Return a decorator that adds a family to `families`: category, level, frames and the ranges of its numbers."""

    def family(category: str, level: int, *frames: str, **ranges: tuple[int, ...]) -> Callable[[Solve], Solve]:
        def register(solve: Solve) -> Solve:
            families.append(Family(category, level, frames, ranges, solve))
            return solve

        return register

    return family


def show(value: float, places: int = 4) -> str:
    """Write a number as people do: no needless decimals, commas from ten thousand on."""
    if abs(value - round(value)) < 1e-9:
        whole = round(value)
        return f"{whole:,}" if abs(whole) >= 10_000 else str(whole)
    return f"{round(value, places):,.{places}f}".rstrip("0").rstrip(".")


def show_percent(share: float) -> str:
    """Write a share as a percentage."""
    return f"{show(100 * share, 2)} %"
