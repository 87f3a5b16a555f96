"""The thinking part of an answer: this request worked over step by step, in lengths from a few lines to a long page."""

import random
import re

from matrix_dspy.engine.rehearsal import puzzles
from matrix_dspy.engine.rehearsal.grammar import sentence
from matrix_dspy.engine.rehearsal.material import Material, lift_things

OPEN, CLOSE = "<think>", "</think>"
SHORT, UNCLOSED = 0.1, 0.03
"""Share of thinking parts too short to teach anything, and of those that never come to an end."""
_SHORT_CHARACTERS, _CHARACTERS = (120, 860), (1120, 4700)
"""Lengths; four characters are about one token."""
_MOST_ROUNDS = 160
_NUMBERS = re.compile(r"(?<![\w:.,])\d{1,6}(?:\.\d+)?(?![\w:]|[.,]\d)")
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+")


def think_aloud(request: str, answer: str, material: Material, *, is_low: bool = False) -> str:
    """Return the thinking part and the answer as one text, the answer left out where thinking never ends."""
    rng = material.rng
    draw = rng.random()
    span = _SHORT_CHARACTERS if is_low or draw < SHORT else _CHARACTERS
    thought = think(request, material, rng.randint(*span))
    if draw > 1 - UNCLOSED:
        return f"{OPEN}\n{thought}"
    return f"{OPEN}\n{thought}\n{CLOSE}\n\n{answer}"


def think(request: str, material: Material, n_characters: int) -> str:
    """Write paragraphs of thought on a request, about `n_characters` long."""
    rng = material.rng
    solution = puzzles.solve(request)
    material.given({"quote": _quote(request, rng), "result": solution.result if solution else ""})
    if solution and (things := lift_things([solution.question])):
        material.given({"focus": f"the {rng.choice(things)}"})
    given = list(dict.fromkeys(_NUMBERS.findall(request[:3000])))[:6]
    if given:
        material.given({"given": " and ".join(filter(None, (", ".join(given[:-1]), given[-1])))})
    deck = _Deck(material)
    opening = [deck.say(_OPENINGS), deck.say(_GIVEN_NUMBERS if given else _GIVEN_WORDS)]
    work = _work(solution, given, rng)
    ending = f"{f'So the result is {solution.result}. ' if solution else ''}{deck.say(_ENDINGS)}"
    room = n_characters - len(ending)
    if room < sum(map(len, opening + work)):
        return _fit([*opening, *work], room) + " " + ending
    room -= sum(map(len, opening + work))
    middle = _go_round(deck, room, has_result=solution is not None, has_figures=bool(given))
    return "\n\n".join(filter(None, [" ".join(opening), " ".join(work), *middle, ending]))


def _go_round(deck: "_Deck", n_characters: int, *, has_result: bool, has_figures: bool) -> list[str]:
    """Write paragraphs of plans, trials, checks and doubts until the room is filled."""
    rng = deck.material.rng
    choice = [*_ROUNDS, *[_RESULTS] * (2 * has_result), *[_FIGURES] * has_figures]
    paragraphs: list[str] = []
    for _ in range(_MOST_ROUNDS):
        if n_characters < 80:
            break
        part = [deck.say(frames) for frames in rng.sample(choice, rng.randint(1, 3))]
        part += [deck.say(_ASIDES) for _ in range(rng.randint(0, 2))]
        paragraphs.append(" ".join(filter(None, part)))
        n_characters -= len(paragraphs[-1]) + 2
    return list(filter(None, paragraphs))


class _Deck:
    """Deals frames so that none comes again before all of its kind have been used."""

    def __init__(self, material: Material) -> None:
        self.material = material
        self._said: set[str] = set()
        self._left: dict[tuple[str, ...], list[str]] = {}

    def say(self, frames: tuple[str, ...]) -> str:
        """Fill the next frame of a kind and make it a sentence; what was said before comes back empty."""
        left = self._left.get(frames)
        if not left:
            left = self._left[frames] = self.material.rng.sample(frames, len(frames))
        line = sentence(self.material.fill(left.pop()))
        if line in self._said:
            return ""
        self._said.add(line)
        return line


def _fit(lines: list[str], n_characters: int) -> str:
    """Keep lines from the beginning while there is room, one at least."""
    kept, length = lines[:1], len(lines[0])
    for line in lines[1:]:
        length += len(line) + 1
        if length > n_characters:
            break
        kept.append(line)
    return " ".join(kept)


def _quote(request: str, rng: random.Random) -> str:
    parts = [part for part in _SENTENCE_END.split(request[:1500]) if len(part.split()) > 3] or [request[:80] or "this"]
    words = rng.choice(parts).split()
    begin = rng.randrange(max(1, len(words) - 6))
    return " ".join(words[begin : begin + 7]).strip("\"'`.,;:?!*#-").replace("`", "")


def _work(solution: puzzles.Solution | None, given: list[str], rng: random.Random) -> list[str]:
    """Work the question out where it can be, or try what its numbers make together."""
    if solution is not None:
        lines = [sentence(f"{rng.choice(_LINKS)} {_go_on(step)}") for step in solution.steps]
        return [*lines, sentence(rng.choice(_GOT).replace("<result>", solution.result))]
    values = [float(number) for number in given][:3]
    if len(values) < 2:
        return []
    a, b = values[:2]
    show = puzzles.show
    lines = [
        f"{show(a)} and {show(b)} together make {show(a + b)}.",
        f"Their difference is {show(abs(a - b))}.",
        f"If they are to be multiplied, {show(a)} × {show(b)} = {show(a * b)}.",
    ]
    if b:
        lines.append(f"In proportion, {show(a)} ÷ {show(b)} = {show(a / b, 2)}.")
    if len(values) > 2:
        mean = sum(values) / 3
        lines.append(f"With {show(values[2])} as well the sum is {show(sum(values))}, or {show(mean, 2)} on average.")
    return rng.sample(lines, rng.randint(2, len(lines)))


def _go_on(step: str) -> str:
    """Let a step stand within a sentence: a capital that only opens it becomes small."""
    return step[0].lower() + step[1:] if step[1:2].islower() or step.startswith("A ") else step


_OPENINGS = (
    "okay, the user wants help with {focus}.", "let me read this again: \"{quote}\".",
    "the question turns on {focus}, I think.", "first, what is actually being asked? It says \"{quote}\".",
    "so this is about {focus}; let me take it apart.", "hmm, \"{quote}\" is the part that decides it.",
    "I should work this out before I write anything about {focus}.", "right, {focus}. What do I have?",
    "someone needs an answer on {focus} they can rely on, so slowly.", "starting point: \"{quote}\".",
)  # fmt: skip
_GIVEN_NUMBERS = (
    "the numbers given are {given}.", "given: {given}; I must use all of them or say why not.",
    "I note down {given} and see how they hang together.", "there are figures in it, {given}, and each has a part.",
    "what is fixed: {given}. Everything else has to follow.",
)  # fmt: skip
_GIVEN_WORDS = (
    "no figures are given, so I have to be careful with any I bring in.",
    "nothing is said on {object} or on money, so I keep both open.",
    "what is given is in words only; \"{quote}\" is the firmest part.",
    "there is no data to compute with, so order and reasons matter.",
)  # fmt: skip
_LINKS = ("first,", "then", "next:", "from that,", "so", "now", "which gives", "step by step,", "after that,")
_GOT = (
    "that makes <result>",
    "so I get <result>",
    "hence <result>",
    "the result would be <result>",
    "which leaves <result>",
)
_PLANS = (
    "one way in is to begin with {object} and see what follows for {focus}.",
    "I could split it: what has to happen by {day}, and what can wait until {month}.",
    "plan: settle {object}, then {tool}, then come back to the question itself.",
    "maybe work backwards from {day}, since that is when it has to stand.",
    "let me try the simplest case first, with only {tool} and {number} minutes.",
    "there are {count} parts here, and the one on {object} carries the others.",
    "suppose there were no limit at all; what would be done about {problem}?",
    "I might compare two routes: one through {object}, one through {person}.",
    "it helps to name the unknown: how far {object} can be stretched.",
    "the natural order is cause, then effect, so {problem} comes before {object}.",
    "sorting by what can go wrong puts {problem} at the top.",
    "a small table in my head: {object} on one side, {tool} on the other.",
)  # fmt: skip
_WORKING = (
    "say it takes {number} minutes each time; over {count} weeks that is no small thing.",
    "with {money} in hand, {tool} is possible but leaves little for {object}.",
    "known fact: {fact}",
    "this bears on it: {fact} I can build on that.",
    "if {person} does the first part, {count} days are saved.",
    "take {object}: without {tool} it stays as it is, with it perhaps {percent} better.",
    "{task_ing} would be the direct way, and it needs {object}.",
    "on {day} at {hour} there would be room for it, not before.",
    "an example to make it concrete: {person}, {object}, {number} minutes.",
    "so far: {object} first, {tool} second, and {problem} kept in mind.",
    "a rough figure for {object} would be {money}, give or take {percent}.",
    "that leaves {topic}, which I had nearly forgotten.",
    "{person} would ask about {object} at once, so the answer should begin there.",
    "put differently, {focus} depends on whether {object:holds}.",
)  # fmt: skip
_CHECKS = (
    "does this still hold when {problem:occurs}? I think so, as long as {object:is} ready.",
    "wait, I assumed that {tool} is there. If not, {person} has to help out.",
    "let me check this from the other side: if it were wrong, {object} would show it first.",
    "check: \"{quote}\" is still answered by this, yes.",
    "hmm, {number} minutes may be too tight; {count} tries would tell.",
    "that does not quite fit with {topic}. Let me adjust it.",
    "is there a case where this fails? {problem}, perhaps, {place}.",
    "a sanity check by size: {money} for {object} is neither absurd nor free.",
    "I should not rely on {person} alone; {object} has to work without.",
    "no, that is the wrong way round: {object} before {tool}.",
    "going over it once more, the weak step is {object}.",
    "against that speaks {problem}; it does not overturn the rest.",
    "actually, the request says \"{quote}\", so this detail counts.",
    "if I am off by {percent}, does the conclusion change? Not for {object}.",
)  # fmt: skip
_DOUBTS = (
    "on the other hand, {task_ing} may be more than was asked for.",
    "could it be simpler? Leaving {object} aside makes it shorter, but less useful.",
    "the tone matters too, because {person} may read it.",
    "I could mention {topic}, though it leads away from {focus}.",
    "should {problem} be named openly? Yes, briefly.",
    "an expert would look at {object}; a beginner would start with {tool}.",
    "some would say {month} is early enough; I would rather not bet on that.",
    "what about {place}? It changes the order a little, not the result.",
    "perhaps {count} points are enough, the rest would only bury {focus}.",
    "if this is wrong, {person} bears the cost, so I will say how sure I am.",
    "between {tool} and {tool} the cheaper one will do.",
    "I keep coming back to {object}, which tells me that it is the core.",
)  # fmt: skip
_RESULTS = (
    "put {result} back into the question: it fits.", "would {result} surprise {person}? A little, but it is right.",
    "the size of {result} is what I expected before I began.", "{result} again, by another order of the steps.",
    "if one of {given} were off by one, {result} would move, but not by much.",
    "is {result} in the unit that was asked for? Yes.",
    "halving the first number would not simply halve {result}; careful.",
    "a quick estimate in round numbers comes close to {result}.", "so {result} stands unless I misread \"{quote}\".",
    "for {person} I would explain {result} from the last step backwards.",
    "rounded for daily use, {result} is good enough {place}.", "could it be negative or zero instead of {result}? No.",
)  # fmt: skip
_FIGURES = (
    "have I used every one of {given}? Let me go through them.", "of {given} the first decides most.",
    "{given}: none of them contradicts another.",
    "if {given} were only estimates, {percent} more or less would be fair.",
    "I copy the figures once more: {given}.", "the units of {given} have to match before anything is added.",
    "among {given} the largest looks odd at first, yet \"{quote}\" explains it.",
)  # fmt: skip
_ROUNDS = [_PLANS, _WORKING, _CHECKS, _DOUBTS]
_ASIDES = (
    "let me keep that.", "good.", "that seems right.", "one thing at a time.", "back to {focus}.", "noted: {object}.",
    "fine, on to {topic}.", "not yet convinced about {object}.", "that narrows it down to {tool}.",
    "still open: {problem}.", "so {object} it is.", "this much is safe about {focus}.",
)  # fmt: skip
_ENDINGS = (
    "that settles it; now I write it down plainly.", "I can answer now, beginning with {object}.",
    "good enough: the answer on {focus} stands.", "I am fairly sure of this, so let me put it in order.",
    "now for the answer itself, without the detours.", "done thinking about {focus}; the order is clear.",
)  # fmt: skip
