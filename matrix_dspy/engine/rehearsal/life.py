"""A person's rounds in rehearsal: a plan, one action after another, and what is remembered of them."""

import re
from typing import Any

from matrix_dspy.engine.rehearsal.grammar import past_phrase, sentence, third_person
from matrix_dspy.engine.rehearsal.material import Material, lift_things, tidy
from matrix_dspy.engine.rehearsal.scene import Scene
from matrix_dspy.text import count_words, shorten

_HEAD = re.compile(
    r"^\s*(?:[\[(]?(?:round\s*)?\d{1,6}[\]).:]?|[-*•])?\s*(?:\(?\[?round \d+\]?\)?[:,]?)?"
    r"\s*(?:,? ?(?:from elsewhere|before|earlier):)?\s*",
    re.IGNORECASE,
)
_REACTION = re.compile(
    r"^(?P<actor>[A-Z][\w'’-]*(?: [A-Z][\w'’-]*){0,3})(?:,? (?:heard that|was told by|took it seriously that|"
    r"learning that|checked the report that|talked over with) .*"
    r"(?:, and |; it was true, and \S+ |, |: the same evening \S+ ))"
    r"(?P<answer>(?:offered|wrote|said|turned|went|changed|asked|bought|called|warned|moved|"
    r"let it rest) .*|\w+ .* before [A-Z].* had to ask)$",
    re.DOTALL,
)
"""A reaction retold: what matters of it is the answer, not what had been heard."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'])")
_ACTOR = re.compile(r"([A-Z][\w'’.-]*(?: [A-Z][\w'’.-]*){0,3})")

_STEPS = (
    "Ask {person} to look over {object}",
    "{task1}, starting with {object}",
    "{task1}, keeping note of what it took",
    "Show {person} how to {task1}",
    "Agree with {person} on a date to {task1}",
    "Get hold of {tool} for under {money}",
    "Find out what causes {problem}",
    "Draw up a page on {topic} for {person}",
    "Spend {count} evenings learning about {topic}",
    "Put {money} aside for {tool}",
    "Settle {problem} with {person}",
    "Offer {person} a hand with {object}",
    "Meet {person} {place} to talk about {topic}",
    "Try out {tool} for {count} days",
    "Sort out {object} before {month}",
    "Sell what is not needed to pay for {tool}",
    "Teach {count} beginners about {topic}",
    "Compare {count} offers for {tool}",
    "Keep a record of {problem} for {count} weeks",
    "Invite {person} to see the first result",
    "{task1} with help from {person}",
    "{task1} without spending more than {money}",
)
_DETAILS = (
    "It took {number} minutes longer than planned because of {problem}.",
    "The bill came to {money}, paid in cash.",
    "{person} watched and found {count} mistakes, which were put right at once.",
    "{tool} made the difference, and {count} hours were enough.",
    "The work was done {place}, between {hour} and noon.",
    "{count} of the {big} items on the list had to be left out.",
    "A note in the margin of {object} explains why.",
    "To pay for it, {money} came out of the savings tin.",
    "{person} had lent {tool} for the day.",
    "On {day} the result was checked against {object}.",
    "{count} people came, {big} had been expected.",
    "The reason was plain: {problem} could not wait until {month}.",
)
_OUTCOMES = (
    "{person} agreed to come back on {day}.",
    "In the end {object} was in better order than before.",
    "One question stayed open: who would pay the remaining {money}.",
    "{person} signed the list and took a copy.",
    "By {hour} it was finished, and {person} had been told.",
    "{person} refused at first and then asked for {count} more days.",
    "The result was posted where everybody could read it.",
    "{count} others asked for the same by the evening.",
    "It was agreed to look at it again in {month}.",
    "{person} bought the first one for {money}.",
    "That left {money} and {count} days for the rest.",
    "The old way of doing it was given up for good.",
)
_CORES = (
    "{name} {did} {place}",
    "{name} {did} with {person}",
    "{name} {did} using {tool}",
    "{name} {did} on {day} morning",
    "{name} {did} in {count} hours, {place}",
    "{name} went to see {person}, then {did}",
    "{name} borrowed {tool} and {did}",
    "{name} set aside {object} for a day and {did}",
    "{name} {did}, although {problem} got in the way",
    "{name} got up at {hour} and {did}",
    "{name} {did} after a long talk with {person} about {topic}",
    "{name} spent {money} on {tool} and {did}",
    "{name} {did} and told {person} about it {place}",
    "{name} {did}; {count} people lent a hand",
)
_HEARD = (
    "{name} heard that {news}, and {answer}",
    "{name} was told by {person} that {news}, and {answer}",
    "{name}, learning that {news}, {answer}",
    "{name} took it seriously that {news}: the same evening {name_short} {answer}",
    "{name} checked the report that {news}; it was true, and {name_short} {answer}",
    "{name} talked over with {person} how {news}, and {answer}",
)
_ANSWERS = (
    "offered {actor} {tool} for {count} days in exchange for help with {object}",
    "wrote {actor} a page about {topic} with {count} practical hints",
    "said no to any part in it, because {problem} had to be dealt with first",
    "went to {person} {place} and agreed to {task} together",
    "changed {object} so that both could use it",
    "asked {actor} for a share of {money} and got half of it",
    "bought {tool} for {money} and put it at {actor}'s disposal",
    "called a meeting of {count} people {place} on {topic}",
    "warned {actor} about {problem} and named {person} as somebody to ask",
    "moved the work on {object} to {day} to make room",
    "{task_past} before {actor} had to ask",
    "let it rest and {task_past} instead",
)


def make_plan(scene: Scene) -> dict[str, Any]:
    """Plan three to eight steps that memory does not hold already."""
    material, remembered = scene.material, " ".join(scene.items("memory")).lower()
    tasks = [task for domain in material.domains for task in domain.tasks]
    material.avoid([task for task in tasks if past_phrase(task).lower() in remembered or task in remembered])
    count = scene.rng.randint(3, 4) if scene.is_low else scene.rng.randint(4, 7)
    frames = scene.rng.sample(_STEPS, min(count + 2, len(_STEPS)))
    steps = [_write_step(material, frame) for frame in frames]
    return {"plan": [step for step in steps if step.lower().rstrip(".") not in remembered][:count] or steps[:3]}


def _write_step(material: Material, frame: str) -> str:
    material.forget("task1")
    step = shorten(tidy(material.fill(frame)), 20)
    return step[0].upper() + step[1:]


def act(scene: Scene) -> dict[str, Any]:
    """Do the step, or answer what was observed."""
    material, name = scene.material, scene.name
    step = scene.text("step").strip().rstrip(".")
    did = past_phrase(third_person(step)) if step else material.fill("{task_past}")
    short = name.split()[0]
    material.given({"name": name, "name_short": short, "did": did})
    observed = scene.items("observations")
    sentences = [_react(scene, observed)] if observed else [material.sentence(_CORES)]
    if observed and step and scene.rng.random() < 0.4:
        sentences.append(sentence(f"Then {short} {did}"))
    if not scene.is_low:
        sentences += [material.sentence(_DETAILS), material.sentence(_OUTCOMES)]
        if scene.rng.random() < 0.3:
            del sentences[-2]
    action = _fit(sentences, 80)
    return {"action": action, "step_done": scene.rng.random() < 0.6}


def _react(scene: Scene, observed: list[str]) -> str:
    material = scene.material
    news = first_clause(scene.rng.choice(observed), 20).partition(";")[0]
    actor = find_actor(news) or "the others"
    is_about_self = actor == scene.name
    material.given({"news": news, "actor": actor})
    if is_about_self:
        return material.sentence(_CORES)
    material.given({"answer": material.pick(_ANSWERS)})
    return material.sentence(_HEARD)


def _fit(sentences: list[str], n_words: int) -> str:
    while len(sentences) > 1 and sum(map(count_words, sentences)) > n_words:
        sentences.pop()
    return shorten(tidy(" ".join(sentences)), n_words)


def first_clause(text: str, n_words: int) -> str:
    """Return the first sentence of a memory or event without its number, cut at a clause when it is long."""
    text = _HEAD.sub("", text.strip(), count=1)
    first = _SENTENCE_END.split(text, maxsplit=1)[0].strip().rstrip(".!?")
    if retold := _REACTION.match(first):
        first = f"{retold['actor']} {retold['answer']}"
    if len(first.split()) <= n_words:
        return first
    for mark in ("; ", ": ", ", and ", ", although ", ", because ", ", "):
        head = first.partition(mark)[0]
        if 4 <= len(head.split()) <= n_words:
            return head
    return _cut_phrase(first.split()[:n_words])


def _cut_phrase(kept: list[str]) -> str:
    """End before the last preposition, since what follows it was cut off."""
    place = next((i for i in range(len(kept) - 1, 4, -1) if kept[i].lower() in _DANGLING), len(kept))
    kept = kept[:place]
    while len(kept) > 4 and kept[-1].lower() in _DANGLING:
        kept.pop()
    return " ".join(kept).rstrip(",;:")


_MOST_FOLDED = 14
"""Memories told at nine words each, the shortest that still says something, within the 120 words of a summary."""
_DANGLERS = """
    so about after before using without instead until although a an the and or of to for with by in on at from that
    which who because but as is was my their
"""
_DANGLING = frozenset(_DANGLERS.split())


def find_actor(event: str) -> str:
    """Return the name an event begins with, or an empty text."""
    found = _ACTOR.match(event)
    return found[1].removesuffix("'s") if found and found[1] not in ("The", "A", "An", "It", "I") else ""


def fold_memory(scene: Scene) -> dict[str, Any]:
    """Fold memories into at most 120 words, the latest kept fullest."""
    memories = scene.items("memories")
    memories = memories if len(memories) <= _MOST_FOLDED else [*memories[:2], *memories[2 - _MOST_FOLDED :]]
    budget = 60 if scene.is_low else 112
    size = max(9, min(24, budget // max(1, len(memories))))
    told = [sentence(_with_round(memory, first_clause(memory, size))) for memory in memories]
    kept: list[str] = []
    for line in reversed(told):
        if sum(map(count_words, kept)) + count_words(line) > budget:
            break
        kept.insert(0, line)
    if not kept:
        kept = [f"{scene.name} has done little so far that will matter later."]
    return {"memory_summary": shorten(tidy(" ".join(kept)), 120)}


def _with_round(memory: str, clause: str) -> str:
    found = re.search(r"round (\d+)", memory[:40], re.IGNORECASE)
    return f"In round {found[1]} {clause}" if found and clause[:1].isalpha() else clause


def read_things(texts: list[str], around: str = "") -> list[str]:
    """Return what is dealt with in several texts, each as "the ..."."""
    return [f"the {thing}" for thing in lift_things(texts, around)]
