"""What the verifiable constraints count in a reply: words, sentences, paragraphs, bullets, emphasis, sections.

In: the reply as a model wrote it, Markdown or plain. Out: counts and parts; the checkers say whether they are enough.
The rules are our own and need no data. Every pattern takes time linear in the reply, whatever a model writes.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from matrix_dspy.text import list_ranges

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

MOST_MARK = 0x1F000
"""Scripts' marks are below; what is above holds no signs of words."""
_ALNUM = re.compile(r"[^\W_]")
_LIST_MARK = re.compile(
    r"""
    ^[ \t>]*
    (?:[*+\-•–][ \t]+)?                                             # a bullet
    (?:[*_]{0,2}\(?(?:\d{1,3}|[A-Za-z])[.)][*_]{0,2}[ \t]+)?        # a number or letter, bold or not
    """,
    re.MULTILINE | re.VERBOSE,
)
_BULLET = re.compile(r"^[ \t>]*[*+\-•][ \t]+(?![*\-_ \t]*$)", re.MULTILINE)
_ITEM = re.compile(r"[ \t>]*(?:[*+\-•]|\d{1,3}[.)])[ \t]+")
_FENCE = re.compile(
    r"^[ \t]{0,3}(?P<fence>```|~~~).*?(?:^[ \t]{0,3}(?P=fence)[`~]*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_STOP = re.compile(
    r"""
      (?<![.!?…])(?P<stop>[.!?…]++)(?P<close>["'”’»)\]*_]*+)
      (?=\s | \Z | [\u2600-\u27bf\U0001f000-\U0001faff])            # a gap, or an emoji as one
    | [。！？｡।॥؟۔]["'”’»）)」』*_]*+                                 # stops of scripts that need no gap
    """,
    re.VERBOSE,
)
_NO_STOP = "mr mrs ms dr prof st rev hon gen col sgt capt lt mt vs cf viz e.g i.e p.s p.p.s"
"""Abbreviations whose full stop ends no sentence, whatever follows."""
_NO_STOP_BEFORE_NUMBER = "no nos fig figs eq vol pp ch approx"
"""Those of which a number makes abbreviations."""
_MAYBE_STOP = """
jr sr inc ltd co corp etc al ft dept approx a.m p.m u.s u.k u.n d.c ph.d b.a m.a b.sc m.sc
jan feb mar apr jun jul aug sep sept oct nov dec
"""
"""Those whose full stop ends a sentence where the next word begins with a capital."""
_NEVER_ENDING, _MAYBE_ENDING = frozenset(_NO_STOP.split()), frozenset(_MAYBE_STOP.split())
_BEFORE_NUMBER = frozenset(_NO_STOP_BEFORE_NUMBER.split())
LONGEST_ABBREVIATION = 12
"""Characters before a stop that are looked at."""
_DIVIDER = re.compile(r"(?<!\S)\*{3}(?!\S)")
_SIX = re.compile(r"(?<![*\\])\*{6}(?!\*)")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_BRACKETS = re.compile(r"\[([^\[\]\n]+)\](?!\()")
_ANGLES = re.compile(r"<<([^<>\n]+)>>")
_UNSPACED = (
    ("\u0e00", "\u0eff"),
    ("\u1000", "\u109f"),
    ("\u1780", "\u17ff"),
    ("\u3040", "\u30ff"),
    ("\u3400", "\u9fff"),
)
"""Thai and Lao, Burmese, Khmer, Japanese, Chinese."""
_WRAPPING = " \t\r\n\"'“”‘’*_"
_BEGINNING = r"(?:^|[.!?…:;\])][\"'”’)*_]{0,6}[ \t]{1,4})[^\w\n]{0,20}_{0,3}"
"""Where a line begins, or a sentence in it, and the markup there."""


def list_words(text: str) -> list[str]:
    """Return the words in order: runs of letters, marks and digits.

    Apostrophes between letters and points or commas between digits join; hyphens part. A script written without
    blanks has a word per run.
    """
    return _load_word_pattern().findall(text)


@cache
def _load_word_pattern() -> re.Pattern[str]:
    """Return the pattern of a word; `\\w` lacks the vowel signs that are part of words in Indian scripts."""
    marks = list_ranges(code for code in range(MOST_MARK) if unicodedata.category(chr(code))[0] == "M")
    sign = rf"(?:[^\W_]|[{marks}])"
    return re.compile(rf"[^\W_]{sign}*+(?:(?:['’](?=[^\W\d_])|(?<=\d)[.,](?=\d)){sign}++)*+")


def has_words(text: str) -> bool:
    """Whether there is a letter or digit."""
    return _ALNUM.search(text) is not None


def has_substance(text: str) -> bool:
    """Whether there is anything but blanks, asterisks and quotation marks."""
    return bool(text.translate(dict.fromkeys(map(ord, '*"“”'), " ")).strip())


def count_sentences(text: str) -> int:
    """Count stretches of words that a stop ends; words left after the last stop are one more.

    An abbreviation, an initial, a list's number and a stop inside a quotation that goes on end none; nor does a line
    break: a heading belongs to the sentence after it, as a salutation does.
    """
    plain = _LIST_MARK.sub("", text)
    is_lower = not any(map(str.isupper, plain))
    n_sentences, start, seen, is_open = 0, 0, 0, False
    for stop in _STOP.finditer(plain):
        is_open = is_open or _ALNUM.search(plain, seen, stop.start()) is not None
        seen = stop.end()
        if is_open and _ends_sentence(plain, start, stop, is_lower):
            n_sentences += 1
            start, is_open = stop.end(), False
    return n_sentences + (is_open or _ALNUM.search(plain, seen) is not None)


def _ends_sentence(text: str, start: int, stop: re.Match[str], is_lower: bool) -> bool:
    """Whether a stop ends a sentence; in a text without capitals a small letter after it says nothing."""
    sign = stop["stop"]
    if not sign:
        return True
    rest = text[stop.end() : stop.end() + 80]
    following = next(filter(str.isalnum, rest), "")
    gap = rest[: len(rest) - len(rest.lstrip())]
    goes_on = following.islower() and not is_lower and "\n" not in gap
    if sign != ".":
        return not (goes_on and (stop["close"] or sign.endswith(("…", ".."))))
    before = text[max(start, stop.start() - LONGEST_ABBREVIATION) : stop.start()].split()
    last = before[-1].lstrip("\"'“‘«([*_").casefold() if before else ""
    if last in _NEVER_ENDING or (len(last) == 1 and last.isalpha() and last != "i"):
        return not rest.strip()
    if last in _BEFORE_NUMBER and following.isdigit():
        return False
    if last in _MAYBE_ENDING:
        return not following.islower() or "\n" in gap
    return not goes_on


def split_paragraphs(text: str) -> list[str]:
    """Cut at dividers, three asterisks that stand alone; nothing before the first or after the last is no part."""
    return _trim(_DIVIDER.split(text))


def split_responses(text: str) -> list[str]:
    """Cut at runs of exactly six asterisks; nothing before the first or after the last is no part."""
    return _trim(_SIX.split(text))


def _trim(parts: list[str]) -> list[str]:
    first = 0 if has_substance(parts[0]) else 1
    last = len(parts) if has_substance(parts[-1]) else len(parts) - 1
    return parts[first:last]


def split_blocks(text: str) -> list[str]:
    """Cut at blank lines; parts without a word are left out."""
    return [part for part in _BLANK_LINE.split(text) if has_words(part)]


def count_bullets(text: str) -> int:
    """Count lines that begin with a bullet and a blank, at any depth; dividers and emphasis are none."""
    return len(_BULLET.findall(text))


def count_placeholders(text: str) -> int:
    """Count words in square brackets on one line; links and empty boxes are none."""
    return sum(map(has_words, _BRACKETS.findall(text)))


def has_title(text: str) -> bool:
    """Whether words stand in double angular brackets on one line."""
    return any(map(has_words, _ANGLES.findall(text)))


def count_sections(text: str, word: str) -> int:
    """Count lines and sentences that begin with `word` and a number, case and markup aside."""
    return len(re.findall(rf"{_BEGINNING}{re.escape(word)}[ \t]*\d+", text, re.MULTILINE | re.IGNORECASE))


def has_postscript(text: str, mark: str) -> bool:
    """Whether a line or sentence begins with `mark`, its last point or none, and words follow.

    Before it a line may have the word postscript. A mark that is spoken of in a sentence is none.
    """
    parts = [re.escape(each) for each in re.split(r"[.\s]+", mark) if each]
    letters = (r"\.[ \t]?" if "." in mark else r"[ \t]+").join(parts)
    start = rf"(?:{_BEGINNING}|^[^\w\n]{{0,20}}post-?script[^\w\n]{{0,20}})(?<!p\. )"
    pattern = rf"{start}{letters}(?![^\W_])[\W_]{{0,40}}[^\W_]"
    return re.search(pattern, text, re.MULTILINE | re.IGNORECASE) is not None


def count_highlights(text: str) -> int:
    """Count stretches that asterisks make Markdown emphasis; italic and bold at once count once, code blocks not."""
    return sum(_count_emphasis(part) for part in _list_flows(_FENCE.sub("\n\n", text)) if "*" in part)


def _list_flows(text: str) -> Iterator[str]:
    """Cut into what Markdown reads as one flow of text: lines up to a blank one or the next item of a list."""
    flow: list[str] = []
    for line in text.split("\n"):
        mark = _ITEM.match(line)
        if flow and (mark or not line.strip()):
            yield "\n".join(flow)
            flow = []
        if line.strip():
            flow.append(line[mark.end() :] if mark else line.strip())
    if flow:
        yield "\n".join(flow)


def _count_emphasis(flow: str) -> int:
    count, has_opened = 0, False
    for token in _load_parser().parseInline(flow)[0].children or []:
        if token.type in ("em_open", "strong_open") and token.markup.startswith("*"):
            count += not has_opened
            has_opened = True
        elif token.content:
            has_opened = False
    return count


@cache
def _load_parser() -> "MarkdownIt":
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False})


def count_phrase(text: str, phrase: str) -> int:
    """Count `phrase` in `text` as whole words, case aside; `cat` is not in `category`, nor `grow` in `grown`."""
    text, phrase = fold(text), fold(phrase)
    return sum(_is_whole(text, found.start(), found.end()) for found in re.finditer(re.escape(phrase), text))


def ends_with(text: str, phrase: str) -> bool:
    """Whether `text` ends with `phrase` as whole words, case and the quotation marks and asterisks around it aside."""
    text, phrase = fold(text).rstrip(_WRAPPING), fold(phrase).strip(_WRAPPING) or fold(phrase).strip()
    return text.endswith(phrase) and _is_whole(text, len(text) - len(phrase), len(text))


def begins_with(text: str, phrase: str) -> bool:
    """Whether `text` begins with `phrase` word for word, case and the kind of blanks aside."""
    text, phrase = flatten(text), flatten(phrase)
    return text.startswith(phrase) and _is_whole(text, 0, len(phrase))


def flatten(text: str) -> str:
    """Return the text folded, every run of blanks one blank."""
    return " ".join(fold(text).split())


def fold(text: str) -> str:
    """Return the text with case, composed signs and curly apostrophes made alike."""
    return unicodedata.normalize("NFC", text).casefold().replace("’", "'")


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether a stretch is not cut out of a word; scripts written without blanks have no such bounds."""
    return not (_is_inside(text, start) or _is_inside(text, end))


def _is_inside(text: str, at: int) -> bool:
    if not 0 < at < len(text):
        return False
    left, right = text[at - 1], text[at]
    return all(unicodedata.category(each)[0] in "LMN" and not _is_unspaced(each) for each in (left, right))


def _is_unspaced(letter: str) -> bool:
    return any(first <= letter <= last for first, last in _UNSPACED)
