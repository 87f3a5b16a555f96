"""What frames are filled with: phrases of the domains a text is about, and words lifted from the text itself."""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from matrix_dspy.engine.rehearsal.grammar import (
    agree,
    bare,
    gerund_phrase,
    is_plural,
    mend_articles,
    past_phrase,
    sentence,
)
from matrix_dspy.engine.rehearsal.lexicon import STOP_WORDS, Domain, content_words, detect_domains, load_lexicon

_PLURALS = ("tasks", "objects", "problems", "people", "places", "tools", "goals", "topics", "facts")
_SINGULARS = {"people": "person"} | {plural: plural.removesuffix("s") for plural in _PLURALS if plural != "people"}
_KINDS = {singular: plural for plural, singular in _SINGULARS.items()}
_BENDS = {
    "past": past_phrase,
    "ing": gerund_phrase,
    "bare": bare,
}
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = ("January", "February", "March", "April", "May", "June", "September", "October", "November")
_NUMBER_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve")
_THING = re.compile(
    r"\b(?:the|a|an|her|his|their|my|our|your) ([a-z]{3,14}(?: [a-z]{3,14})?)"
    r"(?= (?:and|of|at|in|with|for|to|on|by|from|was|is|that|who|so|but|or)\b|[,.;:?]|$)"
)
_CAPITALISED = re.compile(r"\b[A-Z][a-z]+")
_SLOT_END = re.compile(r"\d+$")

Voice = Callable[[str], str]


class Phrase(str):
    """A noun phrase that a frame may give a verb: `{problem:has}` is the problem and "has" or "have"."""

    __slots__ = ()

    def __format__(self, verb: str) -> str:
        return f"{self} {agree(verb, plural=is_plural(self))}" if verb else str(self)


class Material(Mapping[str, str]):
    """A mapping from slot to phrase for `str.format_map`; asking for a slot draws it.

    Slots are kinds of the lexicon in the singular (`task`, `object`, `person`, ...), a bent form of one (`task_past`,
    `task_ing`, `object_bare`, ...), or one of `number`, `count`, `money`, `hour`, `day`, `month`, `percent`, `word`.
    A digit at the end keeps a draw: `{task1}` and `{task1_past}` are the same task. No phrase is drawn twice while
    others are left.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        rng: random.Random,
        words: Sequence[str] = (),
        given: Mapping[str, str] | None = None,
        voice: Voice = str,
    ) -> None:
        self.rng = rng
        self.voice = voice
        """Applied to every phrase drawn: phrases of the lexicon say "I" and "my"."""
        self.domains = tuple(domains) or (rng.choice(load_lexicon().domains),)
        self.words = tuple(words)
        self._drawn: set[str] = set()
        self._kept: dict[str, str] = dict(given or {})

    @classmethod
    def of(
        cls,
        text: str,
        rng: random.Random,
        lifted: str = "",
        given: Mapping[str, str] | None = None,
        voice: Voice = str,
    ) -> "Material":
        """Gather the material for what `text` is about, with words lifted from `lifted`."""
        return cls(detect_domains(text), rng, content_words(lifted or text), given, voice)

    def __getitem__(self, slot: str) -> str:
        return Phrase(self._find(slot))

    def _find(self, slot: str) -> str:
        if slot in self._kept:
            return self._kept[slot]
        kind, _, bend = slot.partition("_")
        if kind in self._kept:
            phrase = self._kept[kind]
        else:
            phrase = self._draw(_SLOT_END.sub("", kind))
            if kind[-1].isdigit():
                self._kept[kind] = phrase
        return _BENDS[bend](phrase) if bend else phrase

    def __iter__(self) -> Iterator[str]:
        return iter(_KINDS)

    def __len__(self) -> int:
        return len(_KINDS)

    def pick(self, options: Sequence[str]) -> str:
        """Choose a frame and fill it."""
        return self.fill(self.rng.choice(options))

    def fill(self, frame: str) -> str:
        """Fill a frame's slots; articles are made to agree."""
        return mend_articles(frame.format_map(self))

    def sentence(self, options: Sequence[str]) -> str:
        """Choose and fill a frame and make it a sentence."""
        return sentence(self.pick(options))

    def sample(self, kind: str, count: int) -> list[str]:
        """Draw several different phrases of a kind."""
        return [self._draw(kind) for _ in range(count)]

    @property
    def kept(self) -> Mapping[str, str]:
        """Slots that stay the same."""
        return self._kept

    def given(self, phrases: Mapping[str, str]) -> None:
        """Fix slots to phrases of the caller's."""
        self._kept.update(phrases)

    def forget(self, slot: str) -> None:
        """Let a kept slot be drawn anew."""
        self._kept.pop(slot, None)

    def avoid(self, phrases: Sequence[str]) -> None:
        """Keep phrases from being drawn."""
        self._drawn.update(phrases)

    def _draw(self, kind: str) -> str:
        if kind in _KINDS:
            return self.voice(self._draw_phrase(_KINDS[kind]))
        rng = self.rng
        if kind == "number":
            return str(rng.choice((rng.randint(2, 12), rng.randint(13, 60), rng.randint(5, 48) * 5)))
        if kind == "big":
            return str(rng.randint(14, 90))
        if kind == "length":
            return str(rng.choice((50, 60, 75, 80, 90, 100, 120, 140, 150, 180, 200, 220)))
        if kind == "count":
            return rng.choice(_NUMBER_WORDS)
        if kind == "money":
            return f"${rng.choice((rng.randint(3, 19) * 5, rng.randint(2, 19) * 50, rng.randint(11, 95) * 100)):,}"
        if kind == "hour":
            return f"{rng.randint(6, 21)}:{rng.choice(('00', '15', '30', '45'))}"
        if kind == "percent":
            return f"{rng.randint(4, 45)} percent"
        if kind == "day":
            return rng.choice(_DAYS)
        if kind == "month":
            return rng.choice(_MONTHS)
        if kind == "word":
            return rng.choice(self.words) if self.words else bare(self._draw_phrase("topics"))
        raise KeyError(kind)

    def _draw_phrase(self, plural: str) -> str:
        # the first domain is the nearest: it gives two of three phrases
        domain = self.domains[0] if self.rng.random() < 0.65 else self.rng.choice(self.domains)
        options: Sequence[str] = getattr(domain, plural)
        for _ in range(6):
            phrase = self.rng.choice(options)
            if phrase not in self._drawn:
                break
        else:
            rest = [option for each in self.domains for option in getattr(each, plural) if option not in self._drawn]
            phrase = self.rng.choice(rest or list(options))
        self._drawn.add(phrase)
        return phrase


def lift_things(texts: Iterable[str], around: str = "") -> list[str]:
    """Return the noun phrases of `texts` without their article, leaving out words that are names in `around`."""
    names = {word.lower() for word in _CAPITALISED.findall(around[:4000])}
    found = dict.fromkeys(match[1] for text in texts for match in _THING.finditer(text[:800]))
    return [thing for thing in found if all(_is_plain(word) and word not in names for word in thing.split())]


def _is_plain(word: str) -> bool:
    return word not in STOP_WORDS and not word.endswith(("ed", "ly", "ing"))


def tidy(text: str) -> str:
    """Take double blanks and doubled stops out of a composed text."""
    if "```" not in text:
        text = text.replace("  ", " ").replace("..", ".").replace(" ,", ",")
    return text.strip()
