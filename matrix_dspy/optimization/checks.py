"""What can be checked of a program's output without a model: bounds, people, numbers, lengths, self-containedness."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from matrix_dspy.curation.base import Candidate, build_shingles, measure_jaccard
from matrix_dspy.curation.filters import SelfContainedFilter, find_refusal
from matrix_dspy.text import count_words, find_contacts, words

Values = Mapping[str, Any]
MAX_ACTION_WORDS = 80
SUMMARY_WORDS = (80, 200)
DESCRIPTION_WORDS = 80
MOST_GROUPS = 3
SIMPLE_WORDS, SPECIALISED_WORDS = 60, (40, 250)
SHORT_RESPONSE_WORDS = 80
"""Words a revision may have beyond twice the first answer's: a failure of one line must grow."""
REPEATED = 0.5
"""Share of word pairs an action has in common with a remembered one, from which it is a repetition."""
_NAME = re.compile(r"^Name: (.+)$", re.MULTILINE)
_QUOTED = re.compile(r'"[^"]*"|\u201c[^\u201d]*\u201d|(?<!\w)[\'\u2018][^\n]{3,}?[\'\u2019](?!\w)')
"""Words between quotation marks; an apostrophe inside a word is none."""
_FIRST_PERSON = re.compile(r"\b(?:I|my|me)\b")
_NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*")
_AMOUNT = re.compile(rf"({_NUMBER.pattern})( million)?", re.IGNORECASE)
_MARKS = re.compile(r"\[\[ ?##|<\|\w")
_INTRODUCES = re.compile(r"^\W*(?:as an? |i am an? |i'm an? |my name is )", re.IGNORECASE)
_MENTIONS = re.compile(
    r"\b(?:critique|first answer|previous answer|earlier answer|revised version|as you pointed out)\b", re.I
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_NUMBER_WORDS = {
    **{word: float(number) for number, word in enumerate(_ONES.split())},
    **{word: 10.0 * number for number, word in enumerate(_TENS.split(), 2)},
    "half": 2.0,
    "hundred": 100.0,
    "thousand": 1000.0,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """Something an output must not be."""

    words: str
    is_fatal: bool = False
    """Whether the output is of no use at all."""


def find_faults(program: str, inputs: Values, output: Values) -> list[Fault]:
    """Return what is wrong with an output by the rules of its program; empty where there are none or nothing is."""
    faults = [
        Fault(f"{name} holds the marks of a prompt", is_fatal=True)
        for name, value in output.items()
        if isinstance(value, str) and _MARKS.search(value)
    ]
    faults += [
        Fault(f"{name} is empty", is_fatal=True)
        for name, value in output.items()
        if isinstance(value, str) and not value.strip()
    ]
    return faults or list(_CHECKS.get(program, _check_nothing)(inputs, output))


def _check_nothing(inputs: Values, output: Values) -> Iterable[Fault]:
    return ()


def _check_action(inputs: Values, output: Values) -> Iterable[Fault]:
    action = output["action"]
    if (n_words := count_words(action)) > MAX_ACTION_WORDS:
        yield Fault(
            f"the action has {n_words} words, at most {MAX_ACTION_WORDS} are wanted", n_words > 2 * MAX_ACTION_WORDS
        )
    named = _NAME.search(inputs["persona"])
    if named and not action.startswith(named[1].strip().partition(" ")[0]):
        yield Fault(f"the action does not begin with the person's name, {named[1]}")
    if _FIRST_PERSON.search(_QUOTED.sub("", action)):
        yield Fault("the action is told in the first person")
    told = build_shingles(action, 2)
    for memory in inputs["memory"]:
        before = memory.partition(": ")[2] or memory
        if measure_jaccard(told, build_shingles(before, 2)) >= REPEATED:
            yield Fault(f"the action repeats what is remembered: {before[:80]!r}")
            break


def _check_receivers(inputs: Values, output: Values, among: str, most: int | None = None) -> Iterable[Fault]:
    n, receivers = len(inputs[among]), output["receivers"]
    if unknown := [number for number in receivers if not 0 <= number < n]:
        yield Fault(f"there is no number {unknown[0]} in {among}, which run from 0 to {n - 1}", is_fatal=True)
    if len(set(receivers)) < len(receivers):
        yield Fault("a number stands there twice")
    if most is not None and len(receivers) > most:
        yield Fault(f"{len(receivers)} {among} are chosen, at most {most} are allowed")


def _check_intra(inputs: Values, output: Values) -> Iterable[Fault]:
    return _check_receivers(inputs, output, "members")


def _check_inter(inputs: Values, output: Values) -> Iterable[Fault]:
    return _check_receivers(inputs, output, "groups", MOST_GROUPS)


def _check_reception(inputs: Values, output: Values) -> Iterable[Fault]:
    n_events, n_members = len(inputs["events"]), len(inputs["members"])
    entries = [each if isinstance(each, dict) else each.model_dump() for each in output["deliveries"]]
    if [entry["event"] for entry in entries] != list(range(n_events)):
        yield Fault(f"there must be one entry for each event from 0 to {n_events - 1}, in order")
    unknown = [number for entry in entries for number in entry["members"] if not 0 <= number < n_members]
    if unknown:
        yield Fault(f"there is no member {unknown[0]}; they run from 0 to {n_members - 1}", is_fatal=True)


def _check_scenario(inputs: Values, output: Values) -> Iterable[Fault]:
    summary, description = output["summary"], output["group_description"]
    least, most = SUMMARY_WORDS
    if not least <= (n_words := count_words(summary)) <= most:
        yield Fault(f"the summary has {n_words} words, {least} to {most} are wanted")
    if (n_words := count_words(description)) > DESCRIPTION_WORDS:
        yield Fault(f"the group description has {n_words} words, at most {DESCRIPTION_WORDS} are wanted")
    known = " ".join([*inputs["members"], inputs["description"], inputs["previous_summary"], *inputs["events"]])
    if invented := _find_invented(summary, known):
        yield Fault(f"the summary has a number the events do not hold: {invented[0]}")
    for member in inputs["members"]:
        name = re.match(r"[^\s:,]+", member)
        if name and any(_has_word(event, name[0]) for event in inputs["events"]) and not _has_word(summary, name[0]):
            yield Fault(f"the summary leaves out {name[0]}, who acted")


def _find_invented(text: str, known: str) -> list[str]:
    """Return the numbers of a text that another neither holds nor yields by one sum, difference, product or share."""
    found = set(_NUMBER.findall(text)) - set(_NUMBER.findall(known))
    if not found:
        return []
    given = {amount for match in _AMOUNT.finditer(known) for amount in _read_amounts(*match.groups())}
    given |= {_NUMBER_WORDS[word] for word in words(known) if word in _NUMBER_WORDS}
    reckoned = {round(value, 4) for a in given for b in given for value in (a + b, a - b, a * b, a / (b or 1))}
    return sorted(number for number in found if not reckoned.intersection(_read_amounts(number)))


def _read_amounts(number: str, million: str | None = None) -> list[float]:
    """Return what a number stands for; with and without the million behind it, and nothing where one cannot tell."""
    try:
        value = float(number.replace(",", ""))
    except ValueError:
        return []
    return [value, value * 1e6] if million else [value]


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def _check_instruction(inputs: Values, output: Values) -> Iterable[Fault]:
    text, is_simple = output["instruction"], "type: simple" in inputs["requirement"].lower()
    n_words = count_words(text)
    if is_simple and n_words > SIMPLE_WORDS:
        yield Fault(f"it has {n_words} words, a simple one at most {SIMPLE_WORDS}")
    least, most = SPECIALISED_WORDS
    if not is_simple and not least <= n_words <= most:
        yield Fault(f"it has {n_words} words, a specialised one {least} to {most}")
    if drop := SelfContainedFilter().judge(Candidate("", text)):
        yield Fault(f"it is not self-contained: {drop.detail}")
    if found := find_refusal(text):
        yield Fault(f"it declines: {found!r}", is_fatal=True)
    if _INTRODUCES.match(text):
        yield Fault("it introduces the person instead of asking")
    named = _NAME.search(inputs["profile"])
    if named and re.search(rf"\b{re.escape(named[1])}\b", text):
        yield Fault("it names the person who asks")
    if contacts := find_contacts(text):
        yield Fault(f"it holds a contact detail or a long number: {contacts[0]!r}")


def _check_critique(inputs: Values, output: Values) -> Iterable[Fault]:
    critique = output["critique"]
    if critique.strip() == "No faults found.":
        return
    quoted = [quote[1:-1].strip(" .,") for quote in _QUOTED.findall(critique)]
    if not any(quote in inputs["response"] for quote in quoted if quote):
        yield Fault("it quotes no words of the response")


def _check_revision(inputs: Values, output: Values) -> Iterable[Fault]:
    revision = output["revision"]
    if found := _MENTIONS.search(revision):
        yield Fault(f"it mentions what the reader has not seen: {found[0]!r}")
    if revision.strip() == inputs["response"].strip() and inputs["critique"].strip() != "No faults found.":
        yield Fault("it is the first answer unchanged")
    if count_words(revision) > 2 * count_words(inputs["response"]) + SHORT_RESPONSE_WORDS:
        yield Fault("it is more than twice as long as the first answer")


_CHECKS: dict[str, Callable[[Values, Values], Iterable[Fault]]] = {
    "actor": _check_action,
    "intra_router": _check_intra,
    "inter_router": _check_inter,
    "reception_router": _check_reception,
    "scenario_writer": _check_scenario,
    "instruction_writer": _check_instruction,
    "critic": _check_critique,
    "reviser": _check_revision,
}
