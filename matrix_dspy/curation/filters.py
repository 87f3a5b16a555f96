"""Keep or drop, with a reason: the filters every kind of data passes (METHOD 3.4).

Each filter looks at one text and answers with a `Drop` or None. Those of `build_instruction_filters` stand in the
order in which they are asked, before the answer to an instruction is bought.
"""

import re
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from matrix_dspy.config import CurationConfig
from matrix_dspy.curation.base import Candidate, Drop, Filter
from matrix_dspy.curation.duplicates import ExactFilter, NearDuplicateFilter
from matrix_dspy.curation.language import LanguageFilter
from matrix_dspy.text import count_words, find_contacts, words
from matrix_dspy.types import FilterName, Profile

SHORT_NAME_WORDS = 2
POINTED_WORDS = 25
"""Words before "the text above" that may well be that text."""
WORD_CHARACTERS = 40
"""Characters for each word a text may have, beyond which it is a dump of data: one endless word, or blanks."""


class LeakFilter:
    """Drops texts that hold a raw profile's name, user name, contact detail or a long run of its words.

    Runs that stand in `public` too, the anonymised profiles, are no leak: they are stored and shown anyway.
    """

    def __init__(self, profiles: Iterable[Profile], n_words: int, public: Iterable[str] = ()) -> None:
        self.n_words = n_words
        self._names: set[tuple[str, ...]] = set()
        self._runs: set[int] = set()
        self._contacts: set[str] = set()
        for profile in profiles:
            if len(parts := tuple(words(profile.name))) >= SHORT_NAME_WORDS:
                self._names.add(parts)
            self._names.update(tuple(words(handle)) for handle in profile.telling_handles)
            self._contacts.update(f"@{handle.lstrip('@').lower()}" for handle in profile.handles)
            for text in (profile.description, *profile.history):
                self._runs.update(self._hash_runs(words(text)))
                self._contacts.update(contact.lower() for contact in find_contacts(text))
        for text in public:
            self._runs.difference_update(self._hash_runs(words(text)))
        self._lengths = sorted({len(name) for name in self._names if name})

    def judge(self, candidate: Candidate) -> Drop | None:
        found = words(candidate.text)
        for length in self._lengths:
            if any(tuple(found[i : i + length]) in self._names for i in range(len(found) - length + 1)):
                return Drop("leak", "it holds the name of a person in the raw profiles")
        if any(contact.lower() in self._contacts for contact in find_contacts(candidate.text)):
            return Drop("leak", "it holds a contact detail from the raw profiles")
        if any(run in self._runs for run in self._hash_runs(found)):
            return Drop("leak", f"it shares a run of {self.n_words} words with a raw profile")
        return None

    def _hash_runs(self, found: Sequence[str]) -> Iterable[int]:
        # Python salts hash() per process; that is no harm, the set lives in one
        return (hash(tuple(found[i : i + self.n_words])) for i in range(len(found) - self.n_words + 1))


class RefusalFilter:
    """Drops texts in which the model declines instead of doing what it was asked."""

    def judge(self, candidate: Candidate) -> Drop | None:
        found = find_refusal(candidate.text)
        return Drop("refusal", f"it declines: {found!r}") if found else None


class LengthFilter:
    """Drops texts outside a number of words, and those whose words are no words."""

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def judge(self, candidate: Candidate) -> Drop | None:
        n_words = count_words(candidate.text)
        if not self.least <= n_words <= self.most:
            return Drop("length", f"it has {n_words} words; {self.least} to {self.most} are kept")
        if len(candidate.text) > (most := WORD_CHARACTERS * self.most):
            return Drop("length", f"it has {len(candidate.text):,} characters; at most {most:,} are kept")
        return None


class SelfContainedFilter:
    """Drops instructions that point to something the assistant cannot see, or to people it cannot know."""

    def judge(self, candidate: Candidate) -> Drop | None:
        text = _QUOTATION.sub(" ", candidate.text)
        for match in _POINTER.finditer(text):
            if not _has_target(match[0], text[: match.start()]):
                return Drop("not self-contained", f"it points to {match[0].strip()!r}")
        named = next((name for name in candidate.others if _has_name(candidate.text, name)), None)
        return Drop("not self-contained", f"it names {named!r} without saying who that is") if named else None


def build_instruction_filters(
    config: CurationConfig,
    profiles: Iterable[Profile],
    seed: int,
    public: Iterable[str] = (),
    *,
    language: str = "English",
    semantic: Filter | None = None,
    contamination: Filter | None = None,
) -> list[Filter]:
    """Return the filters an instruction passes, in the order of METHOD 3.4.

    `semantic` and `contamination` are asked where they are given.
    """
    optional: dict[FilterName, Filter | None] = {
        "refusal": RefusalFilter(),
        "length": LengthFilter(config.min_words, config.max_words),
        "language": None if "language" in config.off else LanguageFilter(language),
        "self-contained": SelfContainedFilter(),
        "exact duplicate": ExactFilter(),
        "near duplicate": NearDuplicateFilter(config.shingle_words, config.near_duplicate, seed),
        "semantic duplicate": semantic,
        "contamination": contamination,
    }
    asked = [each for name, each in optional.items() if each is not None and name not in config.off]
    return [LeakFilter(profiles, config.leak_words, public), *asked]


def find_refusal(text: str) -> str | None:
    """Return the words in which `text` declines, or None; looks at its beginning only, and past what it quotes.

    A letter may decline whatever it likes: it is what was asked for.
    """
    window, pattern = _load_refusals()
    head = _QUOTATION.sub(" ", text[:window].replace("’", "'"))
    match = None if _LETTER.match(head) else pattern.search(head)
    return match[0].strip() if match else None


def read_refusal_version() -> int:
    """Return the version of the refusal list, for cards."""
    return int(_read_refusals()["version"])


_QUOTATION = re.compile(r"""(?<=\s)(?:["“][^"”]*(?:["”]|$)|'[^'\n]*[.,!?]'(?!\w))""")
_LETTER = re.compile(r"\W*(?:dear|subject)\b", re.IGNORECASE)
_POINTER = re.compile(
    r"\bthe (?:scenario|summary|persona|requirement)\b(?! (?:of|for|that|which|i|we|my)\b)"
    r"|\b(?:as|see|mentioned|described|given|listed|shown|stated|the|this|from the) above\b"
    r"|\bthe (?:text|table|list|passage|figures?|letter|email|paragraph|options?|notes?|data) above\b"
    r"(?! (?:the|my|our|your|an?|his|her|their|\d)\b)"
    r"|\babove[- ](?:mentioned|described|text|passage|scenario|table|list|summary|information)\b"
    r"|\b(?:attached|enclosed) (?:file|document|text|image|picture|photo|table|list|spreadsheet|letter|report|draft)\b"
    r"|\bas (?:discussed|mentioned) (?:before|earlier|previously)\b"
    r"|\b(?:in|from) the (?:passage|excerpt|conversation|given text|following scenario)\b"
    r"|\bin this (?:scenario|passage|role[- ]?play scenario)\b",
    re.IGNORECASE,
)


def _has_target(pointer: str, before: str) -> bool:
    """Whether what a pointer points to may stand before it: a text of its own, or the summary that was asked for."""
    if "above" in pointer.lower():
        return count_words(before) >= POINTED_WORDS
    if not (noun := re.fullmatch(r"the (scenario|summary|persona|requirement)", pointer, re.IGNORECASE)):
        return False
    asked = rf"\b(?:an?|my|your) (?:[\w-]+ ){{0,4}}{noun[1]}\b"
    return re.search(rf"{asked}|\bsummari[sz]e\b" if noun[1] == "summary" else asked, before, re.IGNORECASE) is not None


def _has_name(text: str, name: str) -> bool:
    """Whether `text` has a person's full name, or its first part as a word with a capital."""
    first = name.split()[0]
    return re.search(rf"(?<!\w)(?:{re.escape(name)}|{re.escape(first)})(?!\w)", text) is not None


@cache
def _read_refusals() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "refusals.toml").read_text(encoding="utf-8"))


@cache
def _load_refusals() -> tuple[int, re.Pattern[str]]:
    values = _read_refusals()
    return int(values["window"]), re.compile("|".join(f"(?:{p})" for p in values["patterns"]), re.IGNORECASE)
