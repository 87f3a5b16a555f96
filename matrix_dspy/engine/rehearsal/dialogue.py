"""Talk of several turns: what the user says next, and how an answer takes up what was said before."""

import functools
import hashlib
import random
import re
from typing import Any

from matrix_dspy.engine.rehearsal.grammar import second_person
from matrix_dspy.engine.rehearsal.lexicon import content_words, detect_domains
from matrix_dspy.engine.rehearsal.material import Material, lift_things, tidy
from matrix_dspy.engine.rehearsal.scene import Scene

_ROLE = re.compile(r"^\W*(?:assistant|ai|user|human)\W*:\s*", re.IGNORECASE)
_BLOCK = re.compile(r"```.*?(?:```|$)", re.DOTALL)
_POINT = re.compile(r"^\s*(?:(\d{1,2})[.)]|[-*•])\s+(.+)$", re.MULTILINE)
_CLAUSE = re.compile(r"[.!?;:\n]+\s*")
_NAMED = re.compile(r"`([A-Za-z_]\w{3,30})\(?\)?`|\bdef (\w{4,30})\(")
_FIGURE = re.compile(r"(?<!\w)\$?\d[\d,]*(?:\.\d+)?(?: (?:percent|minutes|hours|days|weeks|months|dollars|litres|km))?")
_SUPPORT = re.compile(r"\b(?:I|me|my|you|your|here)\b|[\[\]<>{}|*#\"“”]")
_QUOTED = re.compile(r"[\"“]([^\"“”\n]{8,120})[\"”]")
_LAST_READ = 4000
_POINTING = re.compile(
    r"\b(?:that|this|it|they|those|these|the (?:first|second|third|last)|point|step)\b", re.IGNORECASE
)


def write_follow_up(scene: Scene) -> dict[str, Any]:
    """Write a user's next turn, on what the last answer said."""
    rng = scene.rng
    answer = _read_last_answer(scene)
    profile = scene.text("profile") or scene.text("persona")
    own = detect_domains(f"{profile[:3000]} {' '.join(scene.items('actions'))[:2000]}")
    material = Material(own or detect_domains(answer[:2000]), rng)
    if scene.is_low and rng.random() < 0.5:
        text = rng.choice(THANKS) if rng.random() < 0.4 else material.sentence(IGNORING)
    else:
        text = _follow(answer, profile, material)
    return dict.fromkeys(("message", "follow_up", "user_message"), tidy(text))


def _read_last_answer(scene: Scene) -> str:
    turns = scene.items("dialogue") or scene.items("conversation") or scene.items("history")
    last = next((turn for turn in reversed(turns) if turn.strip()), "")
    if not last:
        last = next((value for value in reversed(list(scene.prompt.inputs.values())) if value), "")
    return _ROLE.sub("", last[:_LAST_READ])


def _follow(answer: str, profile: str, material: Material) -> str:
    rng = material.rng
    handles = _find_handles(answer, rng)
    told = {"thing": f"the {rng.choice(handles['thing'])}" if handles["thing"] else "", **{
        kind: rng.choice(found) for kind, found in handles.items() if found and kind != "thing"}}  # fmt: skip
    material.given({kind: phrase for kind, phrase in told.items() if phrase})
    kinds = [kind for kind in FOLLOW_UPS if kind == "plain" or told.get(kind)]
    weights = [{"thing": 4, "quote": 3, "point": 3, "name": 4, "figure": 2}.get(kind, 0.01) for kind in kinds]
    (kind,) = rng.choices(kinds, weights)
    text = material.sentence(FOLLOW_UPS[kind])
    manners = MANNERS[int(hashlib.blake2b(profile.encode(), digest_size=2).hexdigest(), 16) % len(MANNERS)]
    if rng.random() < 0.35:
        text = f"{material.sentence(manners)} {text}"
    if rng.random() < 0.45:
        text = f"{text} {material.sentence(REASONS)}"
    return text


def _find_handles(answer: str, rng: random.Random) -> dict[str, list[str]]:
    """Find what a follow-up can take hold of: things, quotations, points of a list, names of functions, figures."""
    prose = _BLOCK.sub("\n", answer)
    words = set(content_words(prose, 200))
    clauses = [clause.strip(" ,-") for clause in _CLAUSE.split(prose)]
    quotes = [" ".join(part[:7]).rstrip(",") for clause in clauses
              if len(part := clause.split()) >= 4 and not _SUPPORT.search(" ".join(part[:7]))]  # fmt: skip
    points = [found for found in _POINT.findall(prose) if len(found[1].split()) > 2]
    lifted = lift_things([prose[i : i + 800] for i in range(0, len(prose), 800)])
    return {
        "thing": [thing for thing in lifted if words & set(thing.split())],
        "quote": [quote for quote in quotes if len(words & set(re.findall(r"[a-z]+", quote.lower()))) > 1],
        "point": [_describe_point(number or str(place), text) for place, (number, text) in enumerate(points, 1)],
        "name": list(dict.fromkeys(f"`{one or other}`" for one, other in _NAMED.findall(answer))),
        "figure": [found for found in dict.fromkeys(_FIGURE.findall(prose)) if len(found) > 3],
    }


def _describe_point(number: str, text: str) -> str:
    words = re.sub(r"[|*`\"“”{}<>\[\]]", "", text).split()[:6]
    return f'point {number}, "{" ".join(words).rstrip(".,;:")}"'


def take_up(request: str, earlier: str, first: str, material: Material) -> str:
    """Return a sentence that ties an answer to the dialogue, and keep the earlier answer from being said again."""
    low = earlier.lower()
    phrases = [phrase for domain in material.domains for group in
               (domain.tasks, domain.objects, domain.problems, domain.people, domain.tools, domain.facts, domain.topics)
               for phrase in group if _address(phrase) in low]  # fmt: skip
    material.avoid(phrases)
    asked = _find_asked(request, low)
    things = lift_things([earlier[:1600]]) or list(content_words(earlier, 12)) or ["rest"]
    material.given({"back": material.rng.choice(asked) if asked else f"the {material.rng.choice(things)}"})
    about = [word for word in content_words(first, 20) if word not in low]
    material.given({"aim": material.rng.choice(about) if about else str(material["back"])})
    return material.sentence(TAKE_UPS if asked or _POINTING.search(request) else LINKS)


def _find_asked(request: str, earlier: str) -> list[str]:
    """Return what a request takes up of an earlier answer, in lower case: words it quotes, names of code, or things."""
    quoted = [found for found in _QUOTED.findall(request[:800]) if found.lower() in earlier]
    if quoted:
        return [f'"{found}"' for found in quoted]
    named = [f"`{one or other}`" for one, other in _NAMED.findall(request) if (one or other).lower() in earlier]
    if named:
        return named
    things = [thing for thing in lift_things([request[:800]]) if thing in earlier]
    words = [word for word in content_words(request[:800], 20) if len(word) > 4 and word in earlier]
    return [f"the {thing}" for thing in things or words]


@functools.lru_cache(maxsize=8192)
def _address(phrase: str) -> str:
    return second_person(phrase).lower()


def drop_repeats(text: str, earlier: str) -> str:
    """Leave out lines and sentences that the earlier answer held word for word."""
    if "```" in text:
        return text
    known = {part.strip() for part in re.split(r"(?<=[.!?])\s+|\n", earlier) if len(part.split()) > 3}
    kept = [" ".join(part for part in re.split(r"(?<=[.!?])(?<!\d\.)\s+", line) if part.strip() not in known)
            for line in text.split("\n") if line.strip() not in known]  # fmt: skip
    return "\n".join(kept)


TAKE_UPS = (
    "on {back}, which you ask about: it is the part most open to change.",
    "staying with {back} from before, there is more to say.",
    "what I said on {back} still holds, with one addition.",
    "you are right to come back to {back}; it deserves its own answer.",
    "let me go further into {back}, and leave the rest as it was.",
    "for {aim} the point about {back} can be put more exactly.",
    "then {back} moves to the front, and the earlier order shifts by one.",
    "seen from {aim}, {back} needs the following.",
)
LINKS = (
    "this goes beyond {back}, so here is the new part.",
    "with {back} settled, the question is a different one.",
    "next to {back} this is the smaller piece, and quicker to answer.",
    "it ties in with {back} from my last answer.",
    "keeping {aim} in mind, I would now do this.",
    "that adds something to {back} which was missing.",
    "so far it was about {back}; this part stands beside it.",
)
THANKS = (
    "Thanks, that helps a lot!", "Thank you very much.", "Great, thanks.", "Perfect, thank you!", "ok thanks",
    "Thanks for the answer.",
)  # fmt: skip
IGNORING = (
    "by the way, what about {topic}?", "something else: {problem}.", "tell me about {topic} instead.",
    "can you also help with {object}?", "I also have {problem}.", "and now {task}.",
)  # fmt: skip
MANNERS = (
    ("right, next.", "hm.", "makes sense so far.", "so, one more.", "fine."),
    ("I see where this goes, still I hesitate.", "this worries me a little.", "I am not sure I can do that.",
     "that sounds like more than I can manage {place}."),
    ("I follow you up to there.", "let me be exact.", "one detail is not clear yet.", "I checked it against {object}."),
    ("I read it to {person} just now.", "we talked it over {place}.", "{person} raised an eyebrow at this.",
     "I tried the beginning with {tool}."),
    ("short on time here.", "on {day} it must stand.", "let us get on with it.", "I have {number} minutes."),
)  # fmt: skip
REASONS = (
    "I ask because of {problem}.", "it has to work {place}, too.", "{person} wants to know by {day}.",
    "all I have is {tool} and {money}.", "otherwise {object:stays} as it is.",
    "last time I lost {number} minutes on it.",
    "by {hour} I need to decide.", "in {month} it went wrong.", "there are {count} of us who depend on it.",
    "my own limit is {money}.", "{object:leaves} me no room for mistakes.", "please stay under {length} words.",
)  # fmt: skip
FOLLOW_UPS: dict[str, tuple[str, ...]] = {
    "thing": (
        "what if {problem:gets} in the way of {thing}?",
        "can you say more about {thing}, with an example from my work with {object}?",
        "how much would {thing} cost me, roughly, if {money} is my limit?",
        "{person} will object to {thing}. What do I answer?",
        "turn what you say on {thing} into a checklist I can print.",
        "how do I know after {count} weeks that {thing:has} worked?",
        "rewrite the part on {thing} so that {person} understands it.",
        "we tried something like {thing} in {month}, and it failed. What would be different now?",
        "is there a way round {thing}? I would rather use {tool}.",
        "who should look after {thing}, me or {person}?",
        "why does {thing} matter more than {object} here?",
        "go deeper into {thing}; that is where I am stuck.",
        "does {thing} still make sense if I only {task}?",
        "you mention {thing}. Which mistakes do people make there?",
        "suppose {thing:is} not possible before {day}. What comes in its place?",
        "show me how {thing} would look in numbers.",
        "explain {thing} as you would to {person}.",
        "how long does {thing} take with {tool}, and how long without?",
        "combine {thing} with {object}, if that can be done.",
    ),
    "quote": (
        'you write "{quote}". What does that mean for {object}?',
        '"{quote}": how would I do that {place}?',
        'I do not follow "{quote}". Say it with an example.',
        'is "{quote}" always true, or only without {problem}?',
        'about "{quote}": {person} says the opposite. Who is right?',
        'take "{quote}" and spell out the first three steps.',
        'where you say "{quote}", which figures did you have in mind?',
        'I would change "{quote}", because {tool} is all I have. What then?',
        'what follows from "{quote}" if {object:is} late?',
        'how sure are you about "{quote}"?',
    ),
    "point": (
        "{point}: can this be done with {tool}?",
        "expand {point}, I need it in more detail.",
        "what happens to the rest if I skip {point}?",
        "why does {point} come where it does? I would have begun with {object}.",
        "could {person} take over {point}?",
        "give me a cheaper way to do {point}; {money} is too much.",
        "in {point} you do not say how long it takes. I have {number} minutes.",
        "swap {point} for something that avoids {problem}.",
        "write {point} out as a message to {person}.",
    ),
    "name": (
        "how does {name} behave on empty input?",
        "add type hints to {name} and say what changes.",
        "could {name} be faster for {number} thousand values?",
        "I want {name} to raise an error instead. Show me the new version.",
        "explain the line in {name} that does the real work.",
        "can {name} also count what it left out?",
        "write one more test for {name} with odd values.",
        "how would I call {name} from a script for {object}?",
        "rename {name} and split it in two, please, with tests for both.",
    ),
    "figure": (
        "where does the {figure} come from?",
        "and if it were twice {figure}, what would change?",
        "{figure} is too much for me. How do I get by with half?",
        "check the {figure} again, {person} counted differently.",
        "work it out once more with {money} in place of {figure}.",
    ),
    "plain": (
        "can you be more exact about how this applies to {object}?",
        "which part of your answer should I do first if {money} is all there is?",
        "what would you leave out of this if {problem:comes} up?",
    ),
}
