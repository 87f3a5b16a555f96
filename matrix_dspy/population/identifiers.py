"""What gives a person away: found in answers, and taken out of them before anything is written down."""

import json
import re
import unicodedata
from typing import Any

from matrix_dspy.text import find_contacts, remove_contacts
from matrix_dspy.types import Profile

REMOVED = "[removed]"
"""Stands in journaled answers where something identifying stood; an answer that holds it is not accepted."""
SHORTEST_PART = 3
"""Letters a part of a name needs to be looked for by itself."""


class Identifiers:
    """The names, user names and contact details of one person."""

    def __init__(self, profile: Profile) -> None:
        self._n_history = len(profile.history)
        name = unicodedata.normalize("NFC", profile.name)  # letters and accents apart would split a part in two
        parts = {part for part in re.findall(r"\w+", name) if len(part) >= SHORTEST_PART}
        # a part counts as written or capitalised, not in small letters: Will is a name, will is a verb
        forms = {form for part in parts for form in (part, part.capitalize(), part.upper())}
        forms -= {part.lower() for part in parts if part != part.lower()}
        whole = [name] if len(name.split()) > 1 else []
        handles = [handle for handle in profile.telling_handles if len(handle) >= SHORTEST_PART]
        self._anywhere = _any_of({*whole, *handles}, re.IGNORECASE)
        self._as_written = _any_of(forms, 0)

    def scrub(self, text: str) -> str:
        """Return `text` with everything identifying replaced by a mark."""
        text = self._as_written.sub(REMOVED, self._anywhere.sub(REMOVED, text))
        return remove_contacts(text, REMOVED)

    def check(self, fields: dict[str, Any]) -> str | None:
        """Say what is wrong with an anonymised profile, without quoting it; None if nothing is."""
        description, history = fields["anonymous_description"], fields["anonymous_history"]
        if not description.strip():
            return "the anonymous description is empty"
        if len(history) != self._n_history:
            return f"the anonymous history has {len(history)} items; the original has {self._n_history}"
        text = "\n".join((description, *history))
        if REMOVED in text or self._anywhere.search(text) or self._as_written.search(text) or find_contacts(text):
            return f"a name, user name or contact detail was still there (marked {REMOVED}); write around it"
        return None


def _any_of(words: set[str], flags: int) -> re.Pattern[str]:
    """Match any of the words as a whole, also without accents and as JSON escapes them; longest first."""
    spelt = {form for word in words if word for form in _list_spellings(word)}
    forms = {form for word in spelt for form in (word, json.dumps(word)[1:-1])}
    if not forms:
        return re.compile(r"(?!)")
    alternatives = "|".join(re.escape(form) for form in sorted(forms, key=lambda form: (-len(form), form)))
    # in JSON a line end is written as backslash and n, which is no letter before a name
    return re.compile(rf"(?:(?<!\w)|(?<=\\[nrt]))(?:{alternatives})(?!\w)", flags)


def _list_spellings(word: str) -> set[str]:
    """Return a word as it is, with accents composed, decomposed and left out."""
    apart = unicodedata.normalize("NFD", word)
    bare = "".join(letter for letter in apart if not unicodedata.combining(letter))
    return {word, unicodedata.normalize("NFC", word), apart, bare or word}
