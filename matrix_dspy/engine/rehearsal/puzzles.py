"""Questions that can be worked out, each with its solution: sums, puzzles, chances, estimates, proofs, timetables.

A question is a frame with numbers and phrases put in. Read backwards, the same frame finds the numbers in a request
again, so that whoever answers gets the result right without having seen the question being made.
"""

import functools
import random
import re
import string
from dataclasses import dataclass

from matrix_dspy.engine.rehearsal import questions_figures, questions_school, questions_study
from matrix_dspy.engine.rehearsal.family import Family, show
from matrix_dspy.engine.rehearsal.grammar import bare, is_plural
from matrix_dspy.engine.rehearsal.material import Material


@dataclass(frozen=True, slots=True)
class Solution:
    """A question found in a request, worked out."""

    steps: tuple[str, ...]
    result: str
    numbers: tuple[float, ...]
    """The numbers given, in the order of their names."""
    question: str
    """The words of the question."""


_FAMILIES = (*questions_school.FAMILIES, *questions_figures.FAMILIES, *questions_study.FAMILIES)
_FALLBACK_THINGS = ("boxes", "tickets", "letters", "jars", "cards", "bricks", "apples", "bolts", "pages", "photographs")
_SLOT = re.compile(r"\{(\w+)\}")
_IS_NUMBER = re.compile(r"[a-h]")
_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_SUM = re.compile(
    rf"(?<![\w.,/-]){_NUMBER}(?:(?:\s*[+*×÷]\s*|\s+[-/−]\s+|\s+(?:x|plus|minus|times|multiplied by|divided by)\s+)"
    rf"{_NUMBER})+"
    r"(?![\w/-])",
    re.IGNORECASE,
)
"""Plain arithmetic; a hyphen or a slash without blanks is a range or a date."""
_TOKEN = re.compile(rf"{_NUMBER}|[-+*/×÷−x]|plus|minus|times|multiplied by|divided by", re.IGNORECASE)
_SIGNS = {
    "plus": "+",
    "minus": "-",
    "−": "-",
    "*": "×",
    "times": "×",
    "x": "×",
    "multiplied by": "×",
    "/": "÷",
    "divided by": "÷",
}
_LONGEST_READ = 4000


def list_categories() -> list[str]:
    """Return the names of the categories, in order."""
    return list(dict.fromkeys(family.category for family in _FAMILIES))


def pose(material: Material, category: str, level: int | None) -> str:
    """Write a question of a category, as near to the level as there is one."""
    rng = material.rng
    fitting = [family for family in _FAMILIES if family.category == category] or _FAMILIES
    if level is not None:
        nearest = min(abs(family.level - level) for family in fitting)
        fitting = [family for family in fitting if abs(family.level - level) == nearest]
    family = rng.choice(fitting)
    frame = rng.choice(family.frames)
    values = _draw_numbers(family, rng)
    material.given({"things": _draw_things(material), **{name: show(value) for name, value in values.items()}})
    text = material.fill(frame)
    return text[0].upper() + text[1:]


def _draw_numbers(family: Family, rng: random.Random) -> dict[str, float]:
    for _ in range(200):
        values: dict[str, float] = {
            name: rng.randrange(span[0], span[1] + 1, *span[2:]) for name, span in family.ranges.items()
        }
        if family.solve(values) is not None:
            return values
    raise AssertionError(f"no numbers suit {family.frames[0]!r}")


def _draw_things(material: Material) -> str:
    """Return a plural noun of the field at hand."""
    for _ in range(4):
        noun = bare(material["object"])
        words = noun.split()
        if len(words) <= 2 and noun.isascii() and noun.replace(" ", "").isalpha():
            return noun if is_plural(noun) else _pluralise(noun)
    return material.rng.choice(_FALLBACK_THINGS)


def _pluralise(noun: str) -> str:
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else noun + "s"


@functools.lru_cache(maxsize=512)
def solve(request: str) -> Solution | None:
    """Find a question this module could have posed, or plain arithmetic, and work it out; code is left alone."""
    if "```" in request:
        return None
    text = request[:_LONGEST_READ]
    for anchor, pattern, family in _compile():
        if anchor in text and (found := pattern.search(text)):
            numbers = {name: float(value.replace(",", "")) for name, value in found.groupdict().items()}
            worked = family.solve(numbers)
            if worked is not None:
                given = tuple(numbers[name] for name in sorted(numbers))
                return Solution(tuple(worked[0]), worked[1], given, found[0])
    return _solve_sum(text)


@functools.cache
def _compile() -> list[tuple[str, re.Pattern[str], Family]]:
    """Turn every frame into the longest literal that must be there and the pattern that finds its numbers."""
    compiled: list[tuple[str, re.Pattern[str], Family]] = []
    for family in _FAMILIES:
        for frame in family.frames:
            pieces = [literal for literal, _, _, _ in string.Formatter().parse(frame)]
            # articles bend to what follows them, and the first letter is a capital
            anchor = max((re.split(r"\b[Aa]n?\s*$", piece)[0][1:] for piece in pieces), key=len)
            compiled.append((anchor, _read_backwards(frame), family))
    return compiled


def _read_backwards(frame: str) -> re.Pattern[str]:
    parts, seen = [], set[str]()
    for literal, slot, _, _ in string.Formatter().parse(frame):
        parts.append(re.sub(r"\b([Aa])n?\\ ", r"\1n?\\ ", re.escape(literal)))
        if slot is None:
            continue
        if not _IS_NUMBER.fullmatch(slot):
            parts.append(r"[^.?!\n]{1,90}?")
        elif slot in seen:
            parts.append(f"(?P={slot})")
        else:
            seen.add(slot)
            parts.append(f"(?P<{slot}>{_NUMBER})")
    return re.compile("".join(parts), re.IGNORECASE)


def _solve_sum(text: str) -> Solution | None:
    found = max(_SUM.finditer(text), key=lambda match: len(match[0]), default=None)
    if found is None:
        return None
    tokens = [str(_SIGNS.get(token.lower()) or token) for token in map(str, _TOKEN.findall(found[0]))]
    values = [float(token.replace(",", "")) for token in tokens[::2]]
    signs, steps = list(tokens[1::2]), []
    given = tuple(values)
    for wanted in ("×÷", "+-"):
        place = 0
        while place < len(signs):
            if signs[place] not in wanted:
                place += 1
                continue
            left, right, sign = values[place], values[place + 1], signs[place]
            if sign == "÷" and right == 0:
                return Solution(("Nothing can be divided by 0.",), "undefined", given, found[0])
            value = {"×": left * right, "+": left + right, "-": left - right}.get(sign) if sign != "÷" else left / right
            assert value is not None
            steps.append(f"{show(left)} {sign} {show(right)} = {show(value)}")
            values[place : place + 2] = [value]
            del signs[place]
    return Solution(tuple(steps), show(values[0]), given, found[0])


LEADS = (
    "{person} gave me this one {place}", "this came up while {task_ing}", "{person} and I disagree about this",
    "I need this settled before {day}", "for a quiz {place} on {day} I look for the solution to this",
    "I found this in the papers of {person}", "nobody {place} could solve this so far",
    "I bet {person} {money} that I can solve this", "at {hour} I must give {person} an answer to this",
    "we argued about this {place} for {number} minutes", "it began with {problem}, and now I wonder about this",
    "between {task_ing} and supper I got stuck on this", "{object} led me to a question",
    "somebody wrote this on {object}", "in {month} I have an exam with questions like this",
    "{person} says {count} minutes are enough for this", "to win back {money} from {person} I need this",
    "I teach {count} beginners, and one of them asked this", "after {problem} I want to be sure of this",
    "our newsletter for {month} needs the solution to this", "{person} solved this with {tool}, and I cannot",
    "on {day} {person} and {person} both got this wrong",
    "I wake at night over this", "this stands between me and {tool}",
)  # fmt: skip
CLOSINGS = (
    "Show the steps.", "Give the result on a line of its own.", "Say in one sentence why it is right.",
    "Check it a second way.", "{person} should be able to follow it.", "Explain it with {tool} if that helps.",
    "No formulas that {person} would not know.", "Write every step on its own line.", "I got {number}, is that wrong?",
    "Begin with what is given.", "At most {length} words, please.", "Name the rule you use.",
    "I have {number} minutes to understand it.", "Tell me where people usually slip.",
    "Keep it readable {place}.", "Then tell me how sure you are.",
)  # fmt: skip
DEMANDS = (
    "Write down first what is given and what is wanted, in the notation that {person} knows.",
    "State every assumption you need, and say which of them {person} could attack.",
    "Put the final result on a line of its own so that I can copy it onto {object}.",
    "Check the result by a second route and say whether both agree.",
    "Number the steps, and give in each one the rule that is used.",
    "Say at the end how the result would move if the first number were {percent} larger.",
    "The reader is {person}, who knows {object} better than mathematics.",
    "I will explain it {place} on {day}, so every step must fit on a blackboard.",
    "Give a rough estimate before you begin, and compare it with the result.",
    "Point out the mistake most people make here, in one sentence.",
    "Do not use more than {length} words, the result included.",
    "Name a case with smaller numbers in which the same idea can be seen at once.",
    "Leave the fractions as they are until the last step, then round.",
    "Add {count} short questions by which {person} could test whether it was understood.",
    "If something needed is missing, say what, instead of guessing; I think it is complete.",
    "Use plain words where {person} would expect a formula, and a formula where words get long.",
)  # fmt: skip
