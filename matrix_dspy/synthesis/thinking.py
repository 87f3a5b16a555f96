"""What a model thought before its answer, told apart from the answer."""

import re
from dataclasses import dataclass

from matrix_dspy.text import estimate_tokens

_OPEN, _CLOSE = "<think>", "</think>"
_END = re.compile(r"^[ \t]*</think>[ \t]*$", re.MULTILINE)
"""The end of thinking on a line of its own; within a line the mark is only spoken of."""
_THOUGHT = re.compile(r"\A\s*<think>(.*?)</think>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Thought:
    """An answer and what came before it."""

    thinking: str
    answer: str
    is_closed: bool = True
    """False where thinking began and never ended, so that there is no answer."""


def split_thinking(text: str, apart: str = "", *, is_wanted: bool = True) -> Thought:
    """Tell thinking and answer apart; `apart` is what the server reported in a field of its own.

    A template may have opened the thinking in the prompt: then the text holds only its end. Where thinking is not
    wanted, that end must stand on a line of its own: an answer may speak of the mark.
    """
    if apart.strip():
        return Thought(apart.strip(), text.strip())
    if found := _THOUGHT.match(text):
        return Thought(found[1].strip(), text[found.end() :].strip())
    if text.lstrip().startswith(_OPEN):
        return Thought(text.lstrip().removeprefix(_OPEN).strip(), "", is_closed=False)
    if is_wanted:
        before, closed, after = text.partition(_CLOSE)
        return Thought(before.strip(), after.strip()) if closed else Thought("", text.strip())
    if found := _END.search(text):
        return Thought(text[: found.start()].strip(), text[found.end() :].strip())
    return Thought("", text.strip())


def join_thinking(thinking: str, answer: str) -> str:
    """Put thinking and answer into one text, as reasoning models are trained on it."""
    return f"{_OPEN}\n{thinking}\n{_CLOSE}\n\n{answer}"


def find_fault(thought: Thought, least: int, most: int) -> tuple[str, str] | None:
    """Return (reason, detail) where thinking is missing, unended or outside `least` to `most` tokens (METHOD 3.3).

    Tokens are estimated from the text, for servers count those of the answer with them.
    """
    if not thought.is_closed:
        return "thinking not closed", "the thinking part never ends"
    if not thought.thinking:
        return "no thinking", "the model answered without a thinking part"
    if not thought.answer:
        return "no answer", "there is nothing after the thinking part"
    n_tokens = estimate_tokens(thought.thinking)
    if not least <= n_tokens <= most:
        return "thinking length", f"the thinking has about {n_tokens} tokens; {least} to {most} are kept"
    return None
