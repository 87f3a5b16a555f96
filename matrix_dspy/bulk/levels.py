"""A judge's score as an expectation: from the log-probabilities of its levels, not only from the one it wrote.

A judge that wavers between 3 and 4 says so in its distribution; the mean over it orders answers finer than five levels.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import annotated_types
import dspy

MOST_LEVELS = 21
TOP_TOKENS = 20
"""Alternatives asked of the server at every place; 20 is the most that OpenAI's protocol allows."""
_WRAPPING = " \t\r\n\"',]}"


def read_levels(signature: type[dspy.Signature], name: str) -> dict[str, float]:
    """Return the levels of an output field, as written, with their values.

    A `Literal` of numbers is worth its numbers, one of words 1, 2, 3, ... in order; a bounded int is each of its
    values. ValueError when the field has no such levels.
    """
    field = signature.output_fields.get(name)
    if field is None:
        raise ValueError(f"no output field {name!r}; there are {', '.join(signature.output_fields)}")
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else _read_range(field)
    if not 2 <= len(choices) <= MOST_LEVELS:
        raise ValueError(f"the field {name!r} has no levels; a Literal or a bounded int has")
    is_number = all(isinstance(choice, int) and not isinstance(choice, bool) for choice in choices)
    return {str(choice): float(choice if is_number else place) for place, choice in enumerate(choices, 1)}


def expect_level(levels: Mapping[str, float], tokens: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the mean of the levels under the distribution at the place where field `name` was written.

    `tokens` are those of `Completion.logprobs`. None where the place cannot be found or its levels have no mass.
    """
    # places are those of the tokens: an emoji split over several of them is longer there than in the text
    start = _find_value("".join(str(token["token"]) for token in tokens), name)
    if start is None:
        return None
    masses = _read_masses(list(levels), tokens, start)
    total = sum(masses.values())
    if total <= 0:
        return None
    return sum(levels[level] * mass for level, mass in masses.items()) / total


def _read_range(field: Any) -> tuple[int, ...]:
    if field.annotation is not int:
        return ()
    low = next((m.ge for m in field.metadata if isinstance(m, annotated_types.Ge)), None)
    high = next((m.le for m in field.metadata if isinstance(m, annotated_types.Le)), None)
    if not isinstance(low, int) or not isinstance(high, int) or high - low >= MOST_LEVELS:
        return ()
    return tuple(range(low, high + 1))


def _find_value(text: str, name: str) -> int | None:
    """Return where the value of a field begins, in marker form or as JSON; thinking aloud may name it before."""
    word = re.escape(name)
    found = list(re.finditer(rf'\[\[ ## {word} ## \]\]\s*|"{word}"\s*:\s*"?', text))
    return found[-1].end() if found else None


def _read_masses(levels: list[str], tokens: Sequence[Mapping[str, Any]], start: int) -> dict[str, float]:
    """Follow the tokens from `start` on and give every alternative's probability to the levels it can still become."""
    masses = dict.fromkeys(levels, 0.0)
    written, weight, offset = "", 1.0, 0
    is_open = False
    for token in tokens:
        word = str(token["token"])
        offset += len(word)
        if offset <= start:
            continue
        for other in token.get("top_logprobs") or [token]:
            if other.get("logprob") is None:
                continue
            is_taken = str(other["token"]) == word
            reachable = _reach(levels, written, str(other["token"]))
            if len(reachable) > 1 and is_taken:
                continue  # the next token decides
            for level in reachable:
                masses[level] += weight * math.exp(float(other["logprob"])) / len(reachable)
        is_open = len(_reach(levels, written, word)) > 1
        if not is_open:
            break
        weight *= math.exp(float(token["logprob"]))
        written = (written + word).lstrip(_WRAPPING)
    if is_open and written in masses:  # the answer ended there
        masses[written] += weight
    return masses


def _reach(levels: list[str], written: str, word: str) -> list[str]:
    """Return the levels that a value beginning with `written` and `word` can still become."""
    begun = (written + word).lstrip(_WRAPPING)
    whole = begun.rstrip(_WRAPPING)
    if not begun:
        return levels
    if whole != begun or whole not in levels:
        ended = [level for level in levels if level == whole and whole != begun]
        further = ended or [level for level in levels if level.startswith(begun)]
        # what leads to no longer level (an end mark, say) ends the one that stands there
        return further or ([written] if written in levels else [])
    longer = [level for level in levels if level.startswith(begun)]
    return longer if len(longer) > 1 else [whole]
