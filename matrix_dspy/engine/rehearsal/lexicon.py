"""What the rehearsal engine knows of the world: the lexicon's domains, and which of them a text is about."""

import functools
import string
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEXICON = Path(__file__).parents[2] / "data" / "lexicon"
_STRIP = str.maketrans(dict.fromkeys(string.punctuation.replace("'", "") + "’“”«»…—–\n\t", " "))
_LISTS = ("keywords", "tasks", "objects", "problems", "people", "places", "tools", "goals", "topics", "facts")
_STOP = """
    four five six seven eight nine ten eleven twelve
    a about above actually after again against all also always am an and another any anyone anything are around as asked
    at away back be because been before being below best better between both but by came can cannot could day days did
    do does doing done down during each either else end enough even ever every everyone everything few find first for
    from further gave get gets getting give given go goes going good got had has have having he help her here hers
    herself him himself his hour hours how however i if in instead into is it its itself just keep kept know last least
    less let like little long made make makes making many may me might minutes month months more most much must my
    myself need needs never new next no nobody none nor not nothing now of off often old on once one only or other
    others our ours out over own part people perhaps person please put quite rather really right round said same say
    second see she should since small so some somebody someone something sometimes somewhat soon still such take taken
    takes than that the their theirs them themselves then there these they thing things think third this those though
    three through time times to today together told too took toward tried try turn two under until up upon us use used
    using very want wanted wants was way ways we week weeks well went were what when where whether which while who whom
    whose why will with within without word words work worked working would write written year years yet you your yours
    yourself yourselves name description personality goal life history plan memory step
"""
STOP_WORDS = frozenset(_STOP.split())


@dataclass(frozen=True)
class Domain:
    """A field of work or life with its words and phrases."""

    name: str
    label: str
    keywords: tuple[str, ...]
    tasks: tuple[str, ...]
    objects: tuple[str, ...]
    problems: tuple[str, ...]
    people: tuple[str, ...]
    places: tuple[str, ...]
    tools: tuple[str, ...]
    goals: tuple[str, ...]
    topics: tuple[str, ...]
    facts: tuple[str, ...]


@dataclass(frozen=True)
class Lexicon:
    """All domains, and the index from a word to the domains it speaks for."""

    domains: tuple[Domain, ...]
    by_word: dict[str, tuple[tuple[int, float], ...]]
    """Lower-case word to (position of the domain, weight); a word of few domains weighs more."""


@functools.cache
def load_lexicon() -> Lexicon:
    """Read every domain once; several files may bring domains."""
    domains: list[Domain] = []
    for path in sorted(LEXICON.glob("*.toml")):
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("domains", {})
        domains += [_build_domain(name, table) for name, table in tables.items()]
    return Lexicon(tuple(domains), _index_words(domains))


def _build_domain(name: str, table: dict[str, Any]) -> Domain:
    lists = {key: tuple(table.get(key, ())) or (name.replace("_", " "),) for key in _LISTS}
    return Domain(name=name, label=table.get("label", name), **lists)


def _index_words(domains: list[Domain]) -> dict[str, tuple[tuple[int, float], ...]]:
    weights: dict[str, Counter[int]] = {}
    for position, domain in enumerate(domains):
        for keyword in domain.keywords:
            for form in {keyword, keyword + "s", keyword + "es", keyword.rstrip("y") + "ies"}:
                weights.setdefault(form.lower(), Counter())[position] = 4
        for phrase in (*domain.objects, *domain.topics, *domain.tasks, *domain.problems, *domain.tools, *domain.people):
            for word in phrase.lower().translate(_STRIP).split():
                if word not in STOP_WORDS and len(word) > 3 and position not in weights.get(word, ()):
                    weights.setdefault(word, Counter())[position] = 1
    return {
        word: tuple((position, weight / len(counts)) for position, weight in counts.items())
        for word, counts in weights.items()
    }


def split_words(text: str) -> list[str]:
    """Return the lower-case words of `text`, punctuation dropped."""
    return text.lower().translate(_STRIP).split()


@functools.lru_cache(maxsize=8192)
def detect_domains(text: str, n: int = 3) -> tuple[Domain, ...]:
    """Return the domains `text` is about, most telling first; empty when no word of it is known."""
    lexicon = load_lexicon()
    scores: Counter[int] = Counter()
    by_word = lexicon.by_word
    # in a fixed order: sums of floats depend on it, and sets are ordered anew in every process
    for word in sorted(set(split_words(text[:6000])) & by_word.keys()):
        for position, weight in by_word[word]:
            scores[position] += weight  # pyright: ignore[reportArgumentType]
    if not scores:
        return ()
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:n]
    best = ranked[0][1]
    return tuple(lexicon.domains[position] for position, score in ranked if score >= 0.45 * best)


@functools.lru_cache(maxsize=8192)
def content_words(text: str, n: int = 40) -> tuple[str, ...]:
    """Return the telling words of `text` in order of first mention, lower-case and without repeats."""
    seen: dict[str, None] = {}
    for word in split_words(text[:6000]):
        if len(word) > 3 and word not in STOP_WORDS and word.isalpha():
            seen.setdefault(word)
            if len(seen) >= n:
                break
    return tuple(seen)
