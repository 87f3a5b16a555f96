"""A group's modulator in rehearsal: who hears of what, and what a stretch of events comes to."""

import random
import re
from collections.abc import Sequence
from typing import Any

from matrix_dspy.engine.rehearsal.grammar import sentence
from matrix_dspy.engine.rehearsal.lexicon import content_words, detect_domains
from matrix_dspy.engine.rehearsal.life import find_actor, first_clause, read_things
from matrix_dspy.engine.rehearsal.material import tidy
from matrix_dspy.engine.rehearsal.scene import Scene, read_name, read_number
from matrix_dspy.text import count_words, shorten

NOBODY_WITHIN = 0.35
"""Share of actions that no other member comes to know of."""
NOBODY_BETWEEN = 0.7
"""Share of actions that stay inside their group."""
_MAX_GROUPS = 3

_NOBODY = (
    "It was done in private and nothing of it shows.",
    "Nobody else was there, and there is no reason to tell.",
    "The matter touches only those directly involved.",
    "No news of this kind leaves the house.",
    "It is an everyday act that nobody would pass on.",
)
_REACHED = (
    "{who} would be asked about {word} and so hear of it through their work.",
    "News about {word} travels quickly to {who}.",
    "{who} would see the result with their own eyes.",
    "Somebody at the place mentions it to {who} within days.",
    "It changes something about {word} for {who}.",
)


def route_action(scene: Scene) -> dict[str, Any]:
    """Choose the members, or the groups, who come to know of one action."""
    is_between = "groups" in scene.prompt.inputs
    choices = _read_choices(scene.items("groups" if is_between else "members"))
    action = scene.text("action")
    share = NOBODY_BETWEEN if is_between else NOBODY_WITHIN
    chosen = [] if scene.rng.random() < share else _choose(choices, action, scene.rng, _MAX_GROUPS)
    return {"reason": _give_reason(scene, choices, chosen, action), "receivers": chosen}


def _read_choices(items: Sequence[str]) -> list[tuple[int, str]]:
    read = [read_number(item) for item in items]
    return [(number if number is not None else place + 1, text) for place, (number, text) in enumerate(read)]


def _choose(choices: list[tuple[int, str]], action: str, rng: random.Random, most: int) -> list[int]:
    actor = find_actor(first_clause(action, 20))
    domains, words = set(detect_domains(action)), set(content_words(action))
    scored: list[tuple[float, int]] = []
    for number, text in choices:
        if actor and actor == read_name(text):
            continue
        shared = len(words.intersection(content_words(text))) + 2 * len(domains.intersection(detect_domains(text)))
        scored.append((shared + rng.random() * 1.5, number))
    scored.sort(reverse=True)
    count = min(most, len(scored), rng.choice((1, 1, 2, 2, 3)))
    return sorted(number for _, number in scored[:count])


def _give_reason(scene: Scene, choices: list[tuple[int, str]], chosen: list[int], action: str) -> str:
    if not chosen:
        return scene.rng.choice(_NOBODY)
    names = [read_name(text) or f"number {number}" for number, text in choices if number in chosen]
    word = scene.rng.choice(read_things([action]) or ["this"])
    reason = scene.rng.choice(_REACHED).format(who=join(names), word=word)
    return reason[0].upper() + reason[1:]


def receive_events(scene: Scene) -> dict[str, Any]:
    """List for every event the members who come to know of it."""
    choices = _read_choices(scene.items("members"))
    events = [read_number(item) for item in scene.items("events")]
    deliveries = [
        {
            "event": number if number is not None else place,
            "members": [] if scene.rng.random() < 0.25 else _choose(choices, text, scene.rng, 2),
        }
        for place, (number, text) in enumerate(events)
    ]
    return {"deliveries": deliveries}


_LINKS = ("Meanwhile", "After that", "In the same days", "A little later", "At the same time", "Independently of this")
_STAKES = (
    "For {name}, what comes of {word} is still undecided.",
    "{name} now has to see whether the matter of {word} holds.",
    "Whether {name} can go on as planned depends on {word}.",
    "What is at stake for {name} is above all {word}.",
    "It is open how {name} will settle the question of {word}.",
    "{name} has not yet said what should happen about {word}.",
)
_MIN_WORDS, _MAX_WORDS = 80, 200


def write_scenario(scene: Scene) -> dict[str, Any]:
    """Tell the events as one paragraph and describe the group anew."""
    events, members = scene.items("events"), scene.items("members")
    return {"summary": _summarise(scene, events, members), "group_description": _describe(scene, events, members)}


def _summarise(scene: Scene, events: list[str], members: list[str]) -> str:
    rng = scene.rng
    shown = _spread(events, 7)
    size = max(14, min(40, 140 // max(1, len(shown))))
    told = [first_clause(event, size) for event in shown]
    names = list(dict.fromkeys(filter(None, map(find_actor, told)))) or [
        name for name in (read_name(read_number(member)[1]) for member in members) if name
    ]
    lines = [sentence(clause if i == 0 or rng.random() < 0.5 else f"{rng.choice(_LINKS)}, {_lower(clause, names)}")
             for i, clause in enumerate(told)]  # fmt: skip
    lines += _tell_stakes(scene, lines, events, names)
    summary = tidy(" ".join(lines))
    if scene.is_low:
        return shorten(summary, rng.randint(50, 90))
    return shorten(summary, _MAX_WORDS)


def _tell_stakes(scene: Scene, told: list[str], events: list[str], names: list[str]) -> list[str]:
    who = names or ["the group"]
    words = read_things(events or [scene.text("description")]) or ["the work"]
    lines: list[str] = []
    frames = scene.rng.sample(_STAKES, len(_STAKES))
    details = [rest for event in events if (rest := _second_sentence(event))]
    n_words = sum(map(count_words, told))
    while len(lines) < 2 or (n_words < _MIN_WORDS + 5 and len(lines) < 14):
        if len(lines) >= 2 and details:
            line = sentence(details.pop(0))
            lines.insert(0, line)
        else:
            name, word = who[len(lines) % len(who)], scene.rng.choice(words)
            line = frames[len(lines) % len(frames)].format(name=name, word=word)
            line = line[0].upper() + line[1:]
            lines.append(line)
        n_words += count_words(line)
    return lines


def _second_sentence(event: str) -> str:
    rest = re.split(r"(?<=[.!?])\s+", event.strip())[1:2]
    return shorten(rest[0], 30) if rest else ""


def _spread(items: list[str], count: int) -> list[str]:
    if len(items) <= count:
        return items
    return [items[int(i * len(items) / count)] for i in range(count)]


def _lower(clause: str, names: list[str]) -> str:
    return clause if any(clause.startswith(name) for name in names) else clause[:1].lower() + clause[1:]


_GROUPS = (
    "{who} share an interest in {labels}; at present they are busy with {words}.",
    "These people ({who}) are in {labels}. What keeps them busy now is {words}.",
    "A group around {labels}: {who}. Lately it has been about {words}.",
    "{who} meet over {labels}, and talk turns mostly on {words}.",
)


def _describe(scene: Scene, events: list[str], members: list[str]) -> str:
    texts = [read_number(member)[1] for member in members]
    names = [name for name in map(read_name, texts) if name]
    domains = detect_domains(" ".join(text[:400] for text in texts) or scene.text("description"))
    labels = join([domain.label for domain in domains[:2]]) or "daily life"
    words = read_things(events[-6:] or texts)
    told = join(scene.rng.sample(words, min(3, len(words)))) or "everyday matters"
    text = scene.rng.choice(_GROUPS).format(who=join(names[:6]) or "the members", labels=labels, words=told)
    old = first_clause(scene.text("description"), 22)
    if old and scene.rng.random() < 0.4 and old not in text:
        text += f" {sentence(old)}"
    return shorten(tidy(text[0].upper() + text[1:]), 80)


def join(words: Sequence[str]) -> str:
    """Join words with commas and a last "and"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""
