"""Text as it crosses the border of the system: cleaned of what could act as structure, counted and shortened.

Whatever a model or a profile wrote is hostile until it has been through `clean_text`.
"""

import math
import re
import unicodedata
from collections.abc import Iterable

from pydantic import BaseModel

_CUSTOM_TYPE = re.compile(r"<<CUSTOM-TYPE-(?:START|END)-IDENTIFIER>>")
"""DSPy 3.4 turns text between these marks into content blocks (say an image to fetch)."""
_FIELD_HEADER = re.compile(r"\[\[[ \t]{0,4}##[ \t]{0,4}([^\n\[\]#]{0,80}?)[ \t]{0,4}##[ \t]{0,4}\]\]")
"""DSPy's chat adapter separates fields by such headers."""
_SPECIAL_TOKEN = re.compile(r"<\|([^|<>\n]{1,40})\|>")
"""Chat templates mark turns by such tokens; a tokenizer would obey them inside text."""
MOST_DEPTH = 100
"""Levels of nesting in a value."""
MOST_NESTED = 12
"""Marks inside marks that are taken out one by one; beyond that all their signs go."""
_MARK_SIGNS = dict.fromkeys(map(ord, "<>|[]"))
_SURROGATES = re.compile("[\ud800-\udfff]")
_INVISIBLE = {
    *(0xFEFF, 0x00AD, 0x180E, 0x200B, 0xE000, 0xE001),
    *range(0x200E, 0x2010),
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2065),
    *range(0x2066, 0x2070),
    *range(0xE0000, 0xE0080),
}
"""Marks that change direction or order of text, or hide in it; joiners that scripts and emoji need are kept."""
_CONTROL = {code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
_REMOVED = dict.fromkeys(_INVISIBLE | _CONTROL)


def list_ranges(codes: Iterable[int]) -> str:
    """Write characters as ranges of a pattern; `re` looks characters beyond U+FFFF up one by one otherwise."""
    ranges: list[list[int]] = []
    for code in sorted(codes):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in ranges)


_SUSPECT_SIGN = re.compile(f"[{list_ranges({*_REMOVED, *range(0xD800, 0xE000)})}]")
_SUSPECT_RUNS = ("[[", "<|", "<<CUSTOM", "\n\n\n\n")
"""With the signs above, anything `clean_text` might change; most texts hold none of it. One pattern would be slow."""
_SECRET = re.compile(r"(?:^|[_-])(?:api_?key|key|token|secret|password|passwd|pwd|auth)$", re.IGNORECASE)
_NO_FILE_SIGNS = re.compile(r"[^\w.-]+")
_LONGEST_FILE_NAME = 80
"""In bytes, without the ending."""
_WORD = re.compile(r"\w+(?:['’]\w+)*")

# Lengths are bounded by what addresses allow, so that a long run of letters costs no more than its length.
_CONTACTS = re.compile(
    r"""
      [\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]+)+                     # an e-mail address
    # a link, up to a quote, a bracket or the punctuation after it: the JSON around it must stay whole
    | (?:https?://|www\.)[^\s"<>\\]*[^\s"<>\\.,;:!?)\]']
    | \b[\w-]{1,63}\.(?:com|org|net|io|edu|gov)\b(?:/[^\s"<>\\]*(?<![.,;:!?)\]']))?
    | (?<![\w@.])@\w{2,}                                         # a user name
    | \+\d[\d ().-]{6,}\d | \(?\b\d{3,5}\)?[ .-]\d{3,4}[ .-]\d{3,4}\b        # a phone number
    | (?<!\d)(?<!\d\.)\d{6,}                                     # a long number, not the decimals of a short one
    """,
    re.IGNORECASE | re.VERBOSE,
)


def find_contacts(text: str) -> list[str]:
    """Return the e-mail addresses, links, @names, phone numbers and numbers of six or more digits in `text`."""
    return _CONTACTS.findall(text)


def remove_contacts(text: str, put: str) -> str:
    """Put `put` in the place of everything `find_contacts` finds."""
    return _CONTACTS.sub(put, text)


def clean_text(text: str) -> str:
    """Return `text` without control and direction marks, and with prompt markers made harmless.

    Line ends become newlines, more than two empty lines become two, outer blanks go. Idempotent.
    """
    if _SUSPECT_SIGN.search(text) is None and not any(run in text for run in _SUSPECT_RUNS):
        return text.strip()
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_REMOVED)
    text = replace_surrogates(text)
    for _ in range(MOST_NESTED):  # taking out one mark can put another together
        if (shorter := _unwrap_marks(text)) == text:
            break
        text = shorter
    else:
        text = text.translate(_MARK_SIGNS)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip()


def drop_controls(text: str) -> str:
    """Return `text` without control and direction marks, which a terminal would obey; line ends and tabs stay."""
    return text.translate(_REMOVED)


def replace_surrogates(text: str) -> str:
    """Put U+FFFD in the place of halves of surrogate pairs, which no file takes."""
    return _SURROGATES.sub("\ufffd", text)


def _unwrap_marks(text: str) -> str:
    for pattern, put in ((_CUSTOM_TYPE, ""), (_FIELD_HEADER, r"\1"), (_SPECIAL_TOKEN, r"\1")):
        text = pattern.sub(put, text)
    return text


def clean_value(value: object) -> object:
    """Clean every string inside a JSON-like value or a model; other values pass unchanged."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list | tuple):
        items = [clean_value(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {clean_value(key): clean_value(item) for key, item in value.items()}
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: clean_value(item) for name, item in value})
    return value


def find_unstorable(value: object, depth: int = 0) -> str | None:
    """Say why a value cannot stand in a table or in JSON; None if it can."""
    if isinstance(value, str | bool) or value is None:
        return None
    if depth > MOST_DEPTH:
        return f"its values are nested more than {MOST_DEPTH} deep"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "a whole number in it has more than 64 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is no number"
    inner: Iterable[object] = ()
    if isinstance(value, BaseModel):
        inner = (item for _, item in value)
    elif isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list | tuple):
        inner = value
    return next((fault for item in inner if (fault := find_unstorable(item, depth + 1)) is not None), None)


def strip_custom_types(text: str) -> str:
    """Take out DSPy's custom-type marks and nothing else, for text that must otherwise stay as it is."""
    while (shorter := _CUSTOM_TYPE.sub("", text)) != text:
        text = shorter
    return text


def hide_secrets(address: str) -> str:
    """Take user names, passwords and keys out of what stands after --lm; everything else stays as it is."""
    head, mark, rest = address.partition("://")
    if mark:
        place, slash, path = rest.partition("/")
        address = f"{head}://{place.rpartition('@')[2]}{slash}{path}"
    body, hash_mark, model = address.partition("#")
    path, question, query = body.partition("?")
    kept = [part for part in query.split("&") if part and not _SECRET.search(part.partition("=")[0])]
    return path + (question + "&".join(kept) if kept else "") + hash_mark + model


def name_file(text: str, otherwise: str = "model") -> str:
    """Return a text as a file's name: letters, digits, `_`, `.` and `-`, at most 80 bytes, no dot in front."""
    plain = _NO_FILE_SIGNS.sub("_", text).strip("._")
    return plain.encode()[:_LONGEST_FILE_NAME].decode(errors="ignore") or otherwise


def one_line(text: str) -> str:
    """Fold all white space, line ends included, into single blanks."""
    return " ".join(text.split())


def count_words(text: str) -> int:
    """Count words: runs of letters, digits and inner apostrophes."""
    return sum(1 for _ in _WORD.finditer(text))


def words(text: str) -> list[str]:
    """Return the lower-case words of `text`, in order, in compatibility form (NFKC)."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def shorten(text: str, n_words: int) -> str:
    """Cut `text` after `n_words` blank-separated words, keeping whole words."""
    parts = text.split()
    return text if len(parts) <= n_words else " ".join(parts[:n_words])


def estimate_tokens(text: str) -> int:
    """Estimate tokens without a tokenizer: four characters of English a token, rounded up."""
    return (len(text) + 3) // 4
