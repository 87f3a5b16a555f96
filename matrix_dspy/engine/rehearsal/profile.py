"""Profiles in rehearsal: hiding who somebody is, checking that it worked, and guessing what they want from life."""

import functools
import re
from collections.abc import Callable
from typing import Any

from matrix_dspy.engine.rehearsal.grammar import sentence
from matrix_dspy.engine.rehearsal.lexicon import LEXICON, STOP_WORDS, content_words
from matrix_dspy.engine.rehearsal.material import tidy
from matrix_dspy.engine.rehearsal.scene import Scene

_PART = re.compile(r"[^\W\d_]{2,}")
_EMAIL = re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}\b")
_URL = re.compile(
    r"\b(?:https?://|www\.)\S*[^\s.,;!?)]|\b[\w-]+(?:\.[\w-]+)*\.(?:com|org|net|io|co|me|edu|gov|dev|app)(?:/\S*)?\b",
    re.I,
)
_HANDLE = re.compile(r"(?<![\w@])(?:@|u/|/u/)[A-Za-z0-9_][\w.-]*")
_PHONE = re.compile(r"(?<![\w])\+?\(?\d{1,4}\)?(?:[ ./-]?\(?\d{2,4}\)?){2,5}(?!\w)")
_LONG_NUMBER = re.compile(r"\d{6,}")
_ADDRESS = re.compile(
    r"\b\d{1,5}[a-z]? (?:[A-Z][\w'’]+ ){1,3}(?:Street|St|Road|Rd|Avenue|Ave|Lane|Drive|Boulevard|Blvd|"
    r"Court|Way|Square)\b\.?"
)
_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = re.compile(
    rf"\b(?:on )?(?:\d{{1,2}}(?:st|nd|rd|th)? (?:of )?(?:{_MONTH}) \d{{4}}|(?:{_MONTH}) \d{{1,2}},? \d{{4}}"
    r"|\d{4}-\d\d-\d\d|\d{1,2}[/.]\d{1,2}[/.]\d{2,4})\b"
)
_PLACES_OF_WORK = {
    "Hospital|Clinic": "a local hospital",
    "University|College|Institute": "a university",
    "School|Academy|Elementary": "a school",
    "Inc|Ltd|LLC|GmbH|Corp|Corporation|Company|Bank|Group": "a company",
    "Church|Parish": "a church",
}
_WORKS = [
    (re.compile(rf"\b(?:the )?(?:[A-Z][\w'’&.-]+ ){{1,4}}(?:{names})\b(?:\.(?=\s+[a-z]))?(?: of [A-Z]\w+)?"), put)
    for names, put in _PLACES_OF_WORK.items()
]
_WORK = re.compile("|".join(_PLACES_OF_WORK))
_AT, _DOT, _DIGITS, _LONG_RUN = (
    re.compile(marks) for marks in (r"@|u/", r"//|\w\.\w", r"\d{2}|\d[/.]|\d [A-Z]", r"\d{6}")
)
"""What a text must hold before a slower pattern is worth a try."""
_TITLED = re.compile(r"\b(?:Dr|Mr|Mrs|Ms|Miss|Prof|Sir)\.? [A-Z][\w'’-]+(?: [A-Z][\w'’-]+)?")
_KIN = re.compile(
    r"\b((?:my|his|her|their|our) (?:\w+ )?(?:sister|brother|wife|husband|partner|son|daughter|mother|"
    r"father|mum|mom|dad|"
    r"friend|boss|colleague|neighbour|neighbor|cousin|aunt|uncle|girlfriend|boyfriend|teacher|coach)),? [A-Z][\w'’-]+"
)
_CAPITALISED = re.compile(r"\b[A-Z][\w’-]+(?: [A-Z][\w’-]+)?")


def anonymise(scene: Scene) -> dict[str, Any]:
    """Rewrite description and history under the pseudonym."""
    name, pseudonym = scene.text("name"), scene.text("pseudonym") or "Somebody"
    hide = _build_hider(name, pseudonym)
    description, history = scene.text("description"), scene.items("history")
    if scene.is_low and scene.rng.random() < 0.2:
        return {"anonymous_description": description, "anonymous_history": [hide(item) for item in history]}
    return {"anonymous_description": hide(description), "anonymous_history": [hide(item) for item in history]}


def _build_hider(name: str, pseudonym: str) -> Callable[[str], str]:
    old, new = _PART.findall(name), _PART.findall(pseudonym) or ["Somebody"]
    put = {part.lower(): new[min(i, len(new) - 1)] if i < len(old) - 1 else new[-1] for i, part in enumerate(old)}
    if len(old) == 1:
        put = {old[0].lower(): new[0]}
    # scripts without blanks have no word borders to look for
    border = r"\b" if name.isascii() else ""
    whole = re.compile(border + re.escape(name.strip()) + border, re.IGNORECASE) if name.strip() else None
    joined = {part for part in put if len(part) >= 4}
    choice = "|".join(map(re.escape, put))
    parts = re.compile(rf"(?<![^\W\d_])(?:{choice})(?![^\W\d_])", re.IGNORECASE) if put else None

    def hide(text: str) -> str:
        text = _hide_contacts(text)
        if whole is not None:
            text = whole.sub(lambda _: pseudonym, text)
        if any(part in text.lower() for part in joined):
            text = " ".join(_hide_handle(word, joined) for word in text.split(" "))
        if parts is not None:
            text = parts.sub(lambda found: _swap(found[0], put), text)
        return tidy(_hide_others(text, {*new, *pseudonym.split()}))

    return hide


def _hide_contacts(text: str) -> str:
    for marks, pattern, put in _CONTACTS:
        if marks.search(text):
            text = pattern.sub(put, text)
    return text


def _round_number(found: re.Match[str]) -> str:
    return found[0] if sum(char.isdigit() for char in found[0]) < 6 else "a number on file"


_CONTACTS = (
    (_AT, _EMAIL, "by mail"),
    (_DOT, _URL, "a web page"),
    (_AT, _HANDLE, "a friend online"),
    (_DIGITS, _ADDRESS, "a street nearby"),
    (_DIGITS, _DATE, "some time ago"),
    (_DIGITS, _PHONE, _round_number),
    (_LONG_RUN, _LONG_NUMBER, "many"),
)
"""What points to one person: its marks, its pattern, and what stands in its place."""


def _swap(word: str, put: dict[str, str]) -> str:
    if word.lower() not in put or (word.islower() and word in STOP_WORDS):
        return word
    return put[word.lower()]


def _hide_handle(word: str, parts: set[str]) -> str:
    if len(word) < 6 or not parts:
        return word
    low = word.lower()
    inside = [part for part in parts if part in low]
    is_handle = any(char.isdigit() or char == "_" for char in word) or len(inside) > 1
    return "somebody" if inside and is_handle else word


def _hide_others(text: str, allowed: set[str]) -> str:
    if _WORK.search(text):
        for pattern, put in _WORKS:
            text = pattern.sub(put, text)
    text = _TITLED.sub(lambda found: found[0] if allowed & set(found[0].split()) else "a professional", text)
    text = _KIN.sub(lambda found: found[0] if allowed & set(found[0].split()) else found[1], text)
    return _CAPITALISED.sub(lambda found: _hide_given_name(found, allowed), text)


def _hide_given_name(found: re.Match[str], allowed: set[str]) -> str:
    first = found[0].split()[0]
    if first in allowed or first not in _given_names() or set(found[0].split()) & allowed:
        return found[0]
    return "A friend" if found.start() == 0 else "a friend"


@functools.cache
def _given_names() -> frozenset[str]:
    """Read given names out of the lexicon's list of names, whatever its tables are called."""
    path = LEXICON / "names.toml"
    if not path.exists():
        return frozenset()
    import tomllib

    found: set[str] = set()

    def gather(value: Any) -> None:
        if isinstance(value, str):
            found.update(word for word in value.split() if word[:1].isupper())
        elif isinstance(value, list):
            for item in value:
                gather(item)
        elif isinstance(value, dict):
            for item in value.values():
                gather(item)

    gather(tomllib.loads(path.read_text(encoding="utf-8")))
    return frozenset(name for name in found if name.lower() not in STOP_WORDS)


def check_privacy(scene: Scene) -> dict[str, Any]:
    """Look for what would give the original person away."""
    kept = "\n".join([scene.text("anonymous_description"), *scene.items("anonymous_history")])
    detail = _find_detail(scene, kept)
    if detail is None:
        reason = scene.rng.choice((
            "Neither the name nor a contact detail recurs; what is left fits many people.",
            "Compared names, handles, numbers and links: none of them is kept, and the traits are common ones.",
            "What remains is occupation, interests and tone, which many people share.",
        ))  # fmt: skip
        return {"reason": reason, "is_identifiable": False}
    return {"reason": f"The text still holds {detail}, which points to one person.", "is_identifiable": True}


def _find_detail(scene: Scene, kept: str) -> str | None:
    present = set(_PART.findall(kept))
    lower = {word.lower() for word in present}
    name = scene.text("name").strip()
    for part in _PART.findall(name):
        if part in present or (part.lower() in lower and part.lower() not in STOP_WORDS and len(part) > 2):
            return "a part of the original name"
    if not name.isascii() and name in kept:
        return "the original name"
    original = "\n".join([scene.text("description"), *scene.items("history")])
    for handle in _HANDLE.findall(original) if "@" in original or "u/" in original else ():
        bare = handle.lstrip("@/").removeprefix("u/")
        if len(bare) > 3 and bare.lower() in kept.lower():
            return "a user name"
    return next((words for marks, pattern, words in _DETAILS if marks.search(kept) and pattern.search(kept)), None)


_DETAILS = (
    (_AT, _EMAIL, "an e-mail address"),
    (_DOT, _URL, "a link"),
    (_AT, _HANDLE, "a user name"),
    (_DIGITS, _ADDRESS, "a street address"),
    (_LONG_RUN, _LONG_NUMBER, "a long number"),
)


_DECIDES = (
    "decides slowly, after looking at {object} twice",
    "decides fast and repairs the damage later, as with {problem}",
    "trusts {tool} more than promises",
    "asks {person} before changing anything that matters",
    "likes to settle a thing on the spot rather than by letter",
    "writes everything down and is hard to hurry",
    "weighs each cost and dislikes surprises",
)
_WORKS_WITH = (
    "With others {first} is patient, though blunt when {problem:comes} up for the third time.",
    "{first} shares tools and knowledge freely but keeps count of favours.",
    "In company {first} listens first, speaks late and rarely takes a word back.",
    "{first} gets on well with {person}, less well with anybody who is late.",
    "{first} would rather do a thing alone than explain it twice.",
)
_TROUBLE = (
    "Faced with {problem}, {first} looks for a small step that can be taken the same day.",
    "When {problem:turns} up, {first} puts it off until somebody asks.",
    "Trouble such as {problem} brings out a stubborn streak.",
    "A weakness: {first} promises more than {count} days can hold.",
    "Under pressure {first} falls back on {tool} and on habit.",
)
_GOALS = (
    "{name} wants to {goal} within {count} years",
    "In the next {count} years {name} means to {goal}",
    "{name} hopes to {goal} before {count} years are out",
    "The aim is to {goal}, with a first result inside {count} years",
    "To {goal} within {count} years and to be able to show it",
)


def set_goal(scene: Scene) -> dict[str, Any]:
    """Guess at a personality and a life goal from the profile."""
    material = scene.material
    name = scene.text("name") or scene.name
    first = name.split()[0] if name.split() else "This person"
    given = {"name": name, "first": first}
    material.given(given)
    known = {word for domain in material.domains for word in domain.keywords}
    interests = [word for word in content_words(scene.text("description"), 40) if word in known]
    parts = [sentence(f"{first} {material.pick(_DECIDES)}"), material.sentence(_WORKS_WITH)]
    if not scene.is_low:
        parts.append(material.sentence(_TROUBLE))
    if interests and scene.rng.random() < 0.5:
        parts[0] = parts[0][:-1] + f", above all where {scene.rng.choice(interests)} is concerned."
    return {"personality": tidy(" ".join(parts)), "life_goal": tidy(material.sentence(_GOALS))}
