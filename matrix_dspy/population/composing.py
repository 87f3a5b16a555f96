"""Compose invented people: who they are from public statistics, what they say from the lexicon and sentence frames.

In: a number and a seed; `data/facts` and `data/lexicon`. Out: `Profile` rows, the same for the same seed; row i does
not depend on how many there are. Real people's profiles are read by `reading`; personalities and goals come later.

A frame is a sentence with slots. `[my|her]` is a pair, first person before the bar and third after it; `{task}` and
the like are filled from the lexicon, where a phrase with a first-person word is kept out of the third person.
"""

import functools
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from matrix_dspy.errors import ConfigError, TableError, boundary
from matrix_dspy.population.facts import load_ages, load_job_names, load_occupations, load_places
from matrix_dspy.population.frames import (
    CONTACTS,
    DESCRIPTIONS,
    EXTRAS,
    HOMES,
    POSTS,
    SENTENCES,
    TAILS,
    TRAITS,
)
from matrix_dspy.text import count_words
from matrix_dspy.types import Profile, make_id

LEXICON = Path(__file__).parent.parent / "data" / "lexicon"
ORIGIN = "composed by matrix_dspy from public statistics (data/facts)"
LICENCE = "Apache-2.0"

DESCRIPTION_WORDS = (60, 110)
POST_WORDS = (15, 45)
_CONTACT_SHARE = 0.15
"""Share of people one of whose posts gives an address or number, so that the anonymiser has work."""
_HANDLE_SHARE = 0.34
_CROSS_NAME_SHARE = 0.2
"""Share of people whose family name comes from another circle of origin than their first name."""

_NEARER_DOMAINS = {
    "11-2": "sales",
    "11-3021": "computing",
    "11-3031": "finance",
    "11-3051": "production",
    "11-3071": "transport",
    "11-9013": "farming",
    "11-9021": "construction",
    "11-903": "education",
    "11-9041": "engineering",
    "11-9051": "food_service",
    "11-9111": "health_care",
    "11-9121": "science",
    "11-9151": "social_service",
    "13-107": "management",
    "13-1082": "management",
    "13-1111": "management",
    "13-1121": "management",
    "13-1161": "sales",
    "25-4": "office",
    "27-2022": "football_coaching",
    "39-2": "farming",
    "43-3": "finance",
    "43-4051": "sales",
    "43-4121": "education",
    "43-5021": "transport",
    "43-5032": "transport",
    "43-505": "transport",
    "43-5071": "transport",
    "51-3011": "food_service",
    "51-3093": "food_service",
    "51-6052": "needlework",
    "51-8": "repair",
    "53-2031": "personal_service",
}
"""Occupation codes, or how they begin, whose work another domain describes better than their major group's."""

_DUTIES = ("parenting", "family_budget", "ageing_parents")
"""Domains of private life that are no pastime; they come last among somebody's interests and get graver posts."""

_LEARNED = ("11-", "15-", "17-", "19-", "21-1", "23-1", "25-1", "25-2", "29-1", "53-2")
"""Occupations hardly anyone holds before the age below."""
_LEARNED_AGE = 25
_FIRST_PERSON = re.compile(r"\b(?:I|me|my|mine|myself|our|ours|us|we)\b")
_PAIR = re.compile(r"\[([^|\[\]]*)\|([^|\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_VOWEL = re.compile(r"(?!uni|use|eu|one)(?:[aeiou]|hour|honest|MRI)")


@dataclass
class _Person:
    """Everything drawn about somebody before a sentence is written."""

    rng: Random
    name: str
    handle: str
    age: int
    sex: str
    soc: str
    job: str
    wage: int | None
    place: str
    work: dict[str, Any]
    hobbies: list[dict[str, Any]]
    traits: list[str]
    home: str
    years: int
    used: set[str] = field(default_factory=set)
    """Phrases and frames already spent on this person."""


def compose_profiles(n: int, seed: int) -> list[Profile]:
    """Return `n` invented people, each with a description of 60 to 110 words and five past posts of 15 to 45.

    Occupations are drawn by people employed, sex by the occupation's share of women, ages by the shares of working
    adults. Person i follows from `seed` and i alone.

    Raises:
        ConfigError: `n` is below 1.
    """
    if n < 1:
        raise ConfigError(f"cannot compose {n!r} profiles; give a number of at least 1")
    return [_compose_profile(i, seed) for i in range(n)]


def write_profiles(profiles: Sequence[Profile], path: Path) -> None:
    """Write profiles as JSON lines in the columns `reading.read_profiles` knows; the same profiles give the same bytes.

    Raises:
        TableError: the file cannot be written.
    """
    lines = [json.dumps(_profile_columns(profile), ensure_ascii=False) for profile in profiles]
    part = path.with_name(path.name + ".part")
    with boundary(TableError, f"write {str(path)!r}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes("".join(line + "\n" for line in lines).encode())
        part.replace(path)


def _profile_columns(profile: Profile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "handle": list(profile.handles),
        "description": profile.description,
        "history": list(profile.history),
        "origin": profile.origin,
        "licence": profile.licence,
        "is_invented": profile.is_invented,
        **dict(profile.facts),
    }


def _compose_profile(i: int, seed: int) -> Profile:
    person = _draw_person(Random(f"profile {seed} {i}"))
    facts = {"occupation": person.job, "age": str(person.age), "sex": person.sex, "place": person.place}
    if person.wage is not None:
        facts["wage"] = str(person.wage)
    return Profile(
        profile_id=make_id("profile", "composed", i, seed),
        name=person.name,
        description=_write_description(person),
        history=_write_posts(person),
        handles=(person.handle,) if person.handle else (),
        origin=ORIGIN,
        licence=LICENCE,
        is_invented=True,
        facts=tuple(facts.items()),
    )


def _draw_person(rng: Random) -> _Person:
    socs, weights = _employment()
    soc = rng.choices(socs, weights)[0]
    wage, female_share = _wage_and_share()[soc]
    sex = "female" if rng.random() < female_share else "male"
    age = _draw_age(rng, _LEARNED_AGE if soc.startswith(_LEARNED) else 18)
    name = _draw_name(rng, sex)
    place = rng.choices(load_places(), [kind.share for kind in load_places()])[0].place
    _, lives = _load_domains()
    work = _find_domain(rng, soc)
    hobbies = rng.sample([domain for key, domain in lives.items() if domain is not work and _suits(key, age)], 3)
    hobbies.sort(key=lambda domain: domain["key"] in _DUTIES)
    handle = _draw_handle(rng, name, hobbies[0]) if rng.random() < _HANDLE_SHARE else ""
    return _Person(
        rng=rng,
        name=name,
        handle=handle,
        age=age,
        sex=sex,
        soc=soc,
        job=rng.choice(load_job_names()[soc]),
        wage=None if wage is None else int(round(wage * rng.uniform(0.75, 1.3), -2)),
        place=place,
        work=work,
        hobbies=hobbies,
        traits=[rng.choice(rng.choice(pair)) for pair in rng.sample(TRAITS, 3)],
        home=rng.choice([home for low, high, home in HOMES if low <= age <= high]),
        years=rng.randint(1, max(1, min(age - 17, 35))),
    )


def _draw_age(rng: Random, youngest: int) -> int:
    bands = [band for band in load_ages() if band.high >= youngest]
    band = rng.choices(bands, [band.share for band in bands])[0]
    return rng.randint(max(band.low, youngest), band.high)


def _suits(domain: str, age: int) -> bool:
    return (domain != "ageing_parents" or age >= 38) and (domain != "parenting" or 24 <= age <= 58)


def _draw_name(rng: Random, sex: str) -> str:
    circles = _load_names()
    circle = rng.choice(list(circles))
    other = rng.choice(list(circles)) if rng.random() < _CROSS_NAME_SHARE else circle
    return f"{rng.choice(circles[circle][sex])} {rng.choice(circles[other]['family'])}"


def _draw_handle(rng: Random, name: str, hobby: dict[str, Any]) -> str:
    first, family = name.lower().split(" ", 1)
    word = rng.choice(hobby["keywords"])
    number = rng.randint(2, 99)
    return rng.choice(
        (f"{first}_{family}", f"{first}{number}", f"{first}.{word}", f"{word}_{first}", f"{first[0]}{family}{number}")
    )


def _find_domain(rng: Random, soc: str) -> dict[str, Any]:
    works, lives = _load_domains()
    for prefix in sorted(_NEARER_DOMAINS, key=len, reverse=True):
        if soc.startswith(prefix):
            key = _NEARER_DOMAINS[prefix]
            return works.get(key) or lives[key]
    return rng.choice([domain for domain in works.values() if soc[:2] in domain["soc"]])


def _write_description(person: _Person) -> str:
    is_first = person.rng.random() < 0.4
    kinds = list(person.rng.choice(DESCRIPTIONS))
    low, high = DESCRIPTION_WORDS
    aim = person.rng.randint(low + 2, high - 15)
    sentences = [_write_sentence(person, kind, is_first) for kind in kinds]
    spare = [kind for kind in EXTRAS if kind not in kinds]
    person.rng.shuffle(spare)
    while count_words(" ".join(sentences)) < aim and spare:
        sentences.append(_write_sentence(person, spare.pop(), is_first))
    while count_words(" ".join(sentences)) > high and len(sentences) > 2:
        sentences.pop()
    return " ".join(sentences)


def _write_sentence(person: _Person, kind: str, is_first: bool) -> str:
    frame = _take(person, SENTENCES[kind])
    return _fill(person, frame, is_first, person.rng.choice(person.hobbies) if "hobby" in kind else person.work)


def _write_posts(person: _Person) -> tuple[str, ...]:
    kinds = ["task", "problem", "hobby", "opinion", "question"]
    person.rng.shuffle(kinds)
    posts = [_write_post(person, kind) for kind in kinds]
    if person.rng.random() < _CONTACT_SHARE:
        position = person.rng.randrange(len(posts))
        contact = _fill(person, person.rng.choice(CONTACTS), True, person.work)
        if count_words(f"{posts[position]} {contact}") <= POST_WORDS[1]:
            posts[position] += f" {contact}"
    return tuple(posts)


def _write_post(person: _Person, kind: str) -> str:
    is_hobby = kind == "hobby" or (kind in ("question", "opinion") and person.rng.random() < 0.4)
    domain = person.rng.choice(person.hobbies) if is_hobby else person.work
    if is_hobby and kind == "opinion":
        kind, domain = "hobby_opinion", person.hobbies[0]
    if kind == "hobby" and domain["key"] in _DUTIES:
        kind = "duty"
    post = _fill(person, _take(person, POSTS[kind]), True, domain)
    while count_words(post) < POST_WORDS[0] or (person.rng.random() < 0.3 and count_words(post) < 30):
        post += " " + _fill(person, _take(person, TAILS[kind]), True, domain)
    return post


def _take(person: _Person, choices: Sequence[str]) -> str:
    """Draw one that this person has not used yet, as long as there is one."""
    fresh = [choice for choice in choices if _bare(choice) not in person.used] or list(choices)
    choice = person.rng.choice(fresh)
    person.used.add(_bare(choice))
    return choice


def _bare(phrase: str) -> str:
    """Return a phrase without its article, so that "a star chart" and "the star chart" count as one."""
    return re.sub(r"^(?:an?|the) ", "", phrase)


def _fill(person: _Person, frame: str, is_first: bool, domain: dict[str, Any]) -> str:
    text = _PAIR.sub(lambda pair: pair.group(1 if is_first else 2), frame)
    text = _SLOT.sub(lambda slot: _slot_text(person, slot.group(1), is_first, domain), text)
    return _capitalise(text)


def _slot_text(person: _Person, slot: str, is_first: bool, domain: dict[str, Any]) -> str:
    slot = slot.rstrip("2")
    if slot in _LISTS:
        choices = domain[_LISTS[slot]]
        if not is_first:
            choices = [choice for choice in choices if not _FIRST_PERSON.search(choice)]
        return _take(person, choices)
    pronouns = ("she", "her", "her") if person.sex == "female" else ("he", "his", "him")
    first_name = person.name.split(" ", 1)[0]
    words = {
        "name": person.name,
        "first": first_name,
        "they": pronouns[0],
        "their": pronouns[1],
        "them": pronouns[2],
        "age": str(person.age),
        "job": person.job,
        "a_job": f"{'an' if _VOWEL.match(person.job) else 'a'} {person.job}",
        "an_age": f"{'an' if person.age in (18, *range(80, 90)) else 'a'} {person.age}",
        "home_place": person.place,
        "home": person.home,
        "years": "a year" if person.years == 1 else f"{_NUMBERS.get(person.years, person.years)} years",
        "label": domain["label"],
        "label_1": person.hobbies[0]["label"],
        "label_two": person.hobbies[1]["label"],
        "label_three": person.hobbies[2]["label"],
        "trait": person.traits[0],
        "trait_b": person.traits[1],
        "trait_c": person.traits[2],
        "mail": f"{first_name.lower()}.{person.name.split(' ', 1)[1].lower()}@example.org",
        "phone": f"+1 {person.rng.randint(201, 989)}-555-01{person.rng.randint(0, 99):02d}",
        "site": f"https://{first_name.lower()}.example.org/{domain['keywords'][0]}",
    }
    return words[slot]


_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten"}

_LISTS = {
    "task": "tasks",
    "object": "objects",
    "problem": "problems",
    "person": "people",
    "at": "places",
    "tool": "tools",
    "goal": "goals",
    "topic": "topics",
    "fact": "facts",
}
"""Slot to the lexicon's list it is filled from."""


def _capitalise(text: str) -> str:
    return re.sub(r"(^|[.?!]\s+)([a-z])", lambda start: start.group(1) + start.group(2).upper(), text)


@functools.cache
def _load_domains() -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return the domains of work and of private life, each with its own name under `key`."""
    works, lives = (
        tomllib.loads((LEXICON / f"{name}.toml").read_text("utf-8"))["domains"] for name in ("work", "life")
    )
    for key, domain in (*works.items(), *lives.items()):
        domain["key"] = key
    return works, lives


@functools.cache
def _load_names() -> dict[str, dict[str, list[str]]]:
    circles = tomllib.loads((LEXICON / "names.toml").read_text("utf-8"))
    return {circle: {kind: names.split() for kind, names in lists.items()} for circle, lists in circles.items()}


@functools.cache
def _employment() -> tuple[list[str], list[int]]:
    """Return the occupations that have a readable name, and how many people each employs."""
    rows = load_occupations().select("soc", "employment").rows()
    named = [(soc, employment) for soc, employment in rows if soc in load_job_names()]
    return [soc for soc, _ in named], [employment for _, employment in named]


@functools.cache
def _wage_and_share() -> dict[str, tuple[int | None, float]]:
    rows = load_occupations().select("soc", "median_wage", "female_share").rows()
    return {soc: (wage, share) for soc, wage, share in rows}
