"""Keep or drop, with a reason: the filters every kind of data passes (METHOD 3.4).

Each filter looks at one text and answers with a `Drop` or None. Those of `build_instruction_filters` stand in the
order in which they are asked, before the answer to an instruction is bought.
"""

import hashlib
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import rensa

from matrix_dspy.config import CurationConfig
from matrix_dspy.text import count_words, find_contacts, words
from matrix_dspy.types import FilterName, Profile

_rensa: Any = rensa  # a compiled module without types
N_PERMUTATIONS = 192
N_BANDS = 64
"""Bands of 3 of 192 permutations: a pair at Jaccard 0.5 becomes a candidate with probability above 0.999."""
SHORT_NAME_WORDS = 2


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a row is dropped."""

    reason: str
    """A short fixed word to count by."""
    detail: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text with what filters may need to know of it."""

    id: str
    text: str
    others: tuple[str, ...] = ()
    """Names of the other people around, who must not stand in it unexplained."""


class Filter(Protocol):
    """Looks at one candidate; filters that compare with earlier ones are asked in rank order."""

    def judge(self, candidate: Candidate) -> Drop | None:
        """Return why the candidate is dropped, or None to keep it."""
        ...


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
    """Drops texts outside a number of words."""

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def judge(self, candidate: Candidate) -> Drop | None:
        n_words = count_words(candidate.text)
        if self.least <= n_words <= self.most:
            return None
        return Drop("length", f"it has {n_words} words; {self.least} to {self.most} are kept")


class SelfContainedFilter:
    """Drops instructions that point to something the assistant cannot see, or to people it cannot know."""

    def judge(self, candidate: Candidate) -> Drop | None:
        if match := _POINTER.search(candidate.text):
            return Drop("not self-contained", f"it points to {match[0].strip()!r}")
        named = next((name for name in candidate.others if _has_name(candidate.text, name)), None)
        return Drop("not self-contained", f"it names {named!r} without saying who that is") if named else None


class ExactFilter:
    """Drops a text equal to an earlier one up to case, punctuation and white space."""

    def __init__(self) -> None:
        self._seen: dict[bytes, str] = {}

    def judge(self, candidate: Candidate) -> Drop | None:
        key = hashlib.blake2b(normalise(candidate.text).encode(), digest_size=12).digest()
        twin = self._seen.setdefault(key, candidate.id)
        return None if twin == candidate.id else Drop("exact duplicate", f"the same as {twin}")


class NearDuplicateFilter:
    """Drops a text whose word shingles overlap an earlier kept one's; MinHash proposes, true Jaccard decides."""

    def __init__(self, n_shingle: int, threshold: float, seed: int = 0) -> None:
        self.n_shingle, self.threshold, self.seed = n_shingle, threshold, seed
        self._index: Any = _rensa.RMinHashLSH(threshold, N_PERMUTATIONS, N_BANDS)
        self._kept: list[tuple[str, frozenset[str]]] = []

    def judge(self, candidate: Candidate) -> Drop | None:
        shingles = build_shingles(candidate.text, self.n_shingle)
        sketch = _rensa.RMinHash(N_PERMUTATIONS, self.seed)
        sketch.update(sorted(shingles))
        twins = [(measure_jaccard(shingles, self._kept[i][1]), self._kept[i][0]) for i in self._index.query(sketch)]
        score, twin = max(twins, default=(0.0, ""))
        if score >= self.threshold:
            return Drop("near duplicate", f"Jaccard {score:.3f} with {twin}")
        self._index.insert(len(self._kept), sketch)
        self._kept.append((candidate.id, shingles))
        return None


def build_instruction_filters(
    config: CurationConfig, profiles: Iterable[Profile], seed: int, public: Iterable[str] = ()
) -> list[Filter]:
    """Return the filters an instruction passes, in the order of METHOD 3.4."""
    optional: dict[FilterName, Filter] = {
        "refusal": RefusalFilter(),
        "length": LengthFilter(config.min_words, config.max_words),
        "self-contained": SelfContainedFilter(),
        "exact duplicate": ExactFilter(),
        "near duplicate": NearDuplicateFilter(config.shingle_words, config.near_duplicate, seed),
    }
    asked = [each for name, each in optional.items() if name not in config.off]
    return [LeakFilter(profiles, config.leak_words, public), *asked]


def build_response_filters(filters: Sequence[Filter]) -> list[Filter]:
    """Return those of an instruction's filters that a response passes too."""
    return [each for each in filters if isinstance(each, LeakFilter | RefusalFilter)]


def apply_filters(filters: Iterable[Filter], candidate: Candidate) -> Drop | None:
    """Return the first reason to drop the candidate, or None."""
    return next((drop for each in filters if (drop := each.judge(candidate)) is not None), None)


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


def normalise(text: str) -> str:
    """Return the words of `text`, lower-case, in compatibility form, parted by single blanks."""
    return " ".join(words(text))


def build_shingles(text: str, n_words: int) -> frozenset[str]:
    """Return the runs of `n_words` words of `text`; a shorter text is its own single shingle."""
    found = words(text)
    if len(found) <= n_words:
        return frozenset([" ".join(found) or unicodedata.normalize("NFKC", text).strip()])
    return frozenset(" ".join(found[i : i + n_words]) for i in range(len(found) - n_words + 1))


def measure_jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the share of shingles that two texts have in common, of all they have."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared) if one or other else 1.0


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
