"""The root verb of an instruction: the base form of the verb that says what is asked for.

Papers read it off a parse; a parser is a model, and this project ships none, so rules find the clause that asks: an
imperative ("Write me a ..."), a request ("could you ...", "help me ...", "I need you to ..."), or a question with a
full verb ("How do I prune a rose?"). A question that only asks what something is has none. English only. Of 150 real
prompts labelled by hand before the rules had seen them, 90 % were right at first sight.
"""

import re
import threading
from collections.abc import Iterator
from functools import lru_cache

from matrix_dspy.curation.language import take_prose

MOST_CHARACTERS = 6000
"""How far into an instruction the verb is looked for."""


def _gather(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TOKEN = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*(?:['’][^\W\d_]+)?|[,:]|[^\s\w]|\d\S*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_FILLERS = _gather(
    """
    please kindly just now then first firstly next also so and but ok okay hi hello hey dear well again quickly
    simply briefly carefully finally always only lastly great thanks assistant chatgpt
    """
)
_DETERMINERS = _gather(
    """
    a an the this that these those my your our his her their its some any each every all both no one two three
    four five six seven eight nine ten me us him them it you yourself what how why which who whether exactly at
    up out about to with in on for from as into down back over several many more most half another such
    """
)
_SUBJECTS = _gather(
    """
    you u i we they he she it one someone somebody anyone people there
    """
)
_MODALS = _gather(
    """
    do does did can could would should will might may must shall can't couldn't wouldn't shouldn't won't doesn't didn't
    """
)
_BE = _gather(
    """
    is are was were be been being am 's 're
    """
)
_QUESTION_WORDS = _gather(
    """
    how what which who whom whose why when where
    """
)
_ROLES = _gather(
    """
    act pretend imagine assume suppose consider read note remember let think play see look
    """
)
"""Imperatives that set the stage; they count only where no other verb asks."""
_FRAMES = _gather(
    """
    answer respond reply include use make ensure avoid keep finish try think add start begin end put wrap
    highlight separate italicize mention refrain repeat limit justify
    """
)
"""Imperatives that after a question say how to answer it."""
_ASKING = _gather(
    """
    act add address advise analyse analyze answer apply argue arrange ask assess balance brainstorm break brief
    build calculate change chart check choose cite clean code comment compare compile complete compose compute
    condense conduct contrast convert cook copy correct craft create criticize critique debate debug define
    delete describe design detail detect determine develop devise diagnose diagram discuss document draft draw
    edit elaborate estimate evaluate expand explain explore express extend extract fill find finish fix format
    formulate generate get give group guess guide help highlight identify imagine implement improve include
    interpret introduce invent judge label lay list look make map mark match model modify name offer optimise
    optimize order organise organize outline output paint paraphrase pick pitch plan play plot point polish
    predict prepare present pretend price print process produce program project proof proofread propose prove
    provide quote rank rate read reason recommend record refactor reflect rephrase replace reply report repeat
    research respond return reverse review revise rewrite roast run schedule score search select set share
    shorten show simplify simulate sketch solve sort specify split start state stop structure study suggest sum
    summarise summarize supply support switch take talk teach tell test think trace transform translate turn
    tutor update use value vary verify visualise visualize walk work write
    """
) - {"function", "cost", "google", "sugar"}
"""Verbs that open instructions; many are nouns as well, which is why an imperative needs to know them."""
_PREAMBLE = _gather(
    """
    given based if when for in as after before using with to from by while since because on at considering
    assuming suppose without once under during whenever according following imagine
    """
)

_lock = threading.Lock()


def find_root_verb(text: str) -> str | None:
    """Return the verb that says what an English instruction asks for, in its base form, or None where none is clear."""
    is_asked, fallback = False, None
    for tokens in _read_sentences(text):
        verb, is_clear = _find_in_sentence(tokens)
        if verb in _FRAMES and (is_asked or fallback):
            continue
        if verb and is_clear:
            return _spell(verb)
        fallback = fallback or verb
        is_asked = is_asked or (tokens[-1] == "?" and tokens[0].lower().partition("'")[0] in _QUESTION_WORDS | _BE)
    return _spell(fallback) if fallback else None


def _read_sentences(text: str) -> Iterator[list[str]]:
    for sentence in _SENTENCE_END.split(take_prose(text[:MOST_CHARACTERS])):
        tokens = [token.replace("’", "'") for token in _TOKEN.findall(sentence)]
        while tokens and not tokens[0][0].isalpha():
            tokens = tokens[1:]
        if len(tokens) > 1:
            yield tokens


def _find_in_sentence(tokens: list[str]) -> tuple[str | None, bool]:
    """Return the verb of a sentence, and whether it is what is asked for rather than how or why."""
    tokens = _skip_fillers(tokens)
    if not tokens:
        return None, False
    low = [token.lower() for token in tokens]
    if found := _find_request(tokens, low):
        return found
    if (verb := _read_imperative(tokens)) is not None:
        return verb, verb not in _ROLES
    if low[0] in _PREAMBLE or (low[0].endswith("ing") and _is_verb(_to_base(low[0]))):
        for place, token in enumerate(tokens[:-1]):
            rest = _skip_fillers(tokens[place + 1 :]) if token == "," else []
            if rest and (verb := _read_imperative(rest)) in _ASKING:
                return verb, verb not in _ROLES
            if rest and (found := _find_request(rest, [each.lower() for each in rest])):
                return found
    return _find_wish(tokens, low)


def _find_request(tokens: list[str], low: list[str]) -> tuple[str | None, bool] | None:
    """Read a request or a question that begins the sentence; None where it is neither."""
    if low[0] == "don't" or low[:2] in (["do", "not"], ["do", "n't"]):
        return None, False
    if low[0] in _MODALS and len(low) > 1:
        return _read_clause(tokens, 1), True
    if low[0] in ("when", "where") and low[1:2] and low[1] not in _MODALS | _BE:
        return None
    if low[0] in _QUESTION_WORDS:
        return _read_question(tokens, low)
    if low[0].partition("'")[0] in _QUESTION_WORDS:
        return None, False
    if low[0] in _BE:
        match = re.match(
            r"(?:is it (?:possible|ok|okay|safe|legal)|is there (?:a|any) (?:\w+ )?way) (?:for \w+ )?to ", " ".join(low)
        )
        return (_read_verb(tokens, len(match[0].split())) if match else None), match is not None
    if low[0] in ("let's", "lets") and len(low) > 1:
        return _read_verb(tokens, 1), True
    return None


def _read_question(tokens: list[str], low: list[str]) -> tuple[str | None, bool]:
    if low[0] == "how" and low[1] == "to":
        return _read_verb(tokens, 2), True
    for place, token in enumerate(low[1:], 1):
        if token in _BE or token in (",", "if"):
            if place + 1 < len(low) and token in _BE and low[place + 1].endswith(("ed", "en", "nt")):
                base = _to_base(low[place + 1])
                return (base if _is_verb(base) and base != low[place + 1] else None), True
            return None, False
        if token in _MODALS:
            return _read_clause(tokens, place + 1), True
    if low[0] in ("who", "what", "which") and _is_verb(base := _to_base(low[1])) and base not in ("be", "have"):
        return base, True
    if low[0] == "how" and _is_verb(low[1]):
        return low[1], True
    return None, False


def _read_clause(tokens: list[str], start: int) -> str | None:
    """Read the verb after an auxiliary: past the subject, which may be several words long."""
    low = [token.lower() for token in tokens]
    if start < len(low) and low[start] in _SUBJECTS:
        return _read_verb(tokens, start + 1)
    if low[start : start + 1] == ["be"]:
        return None
    if start < len(low) and start > 1 and _is_verb(low[start]) and not _is_other(low[start]):
        return low[start]
    has_noun = False
    for place in range(start, len(tokens)):
        word, before = low[place], low[place - 1] if place > start else ""
        if word in (",", "?", ":"):
            return None
        is_free = has_noun and before not in _DETERMINERS and before not in ("of", "and", "or")
        if is_free and tokens[place][0].islower() and _is_verb(word) and not _is_noun_before(low, place):
            return None if word == "be" else word
        has_noun = has_noun or (word not in _DETERMINERS and word.isalpha() and not word.endswith("ly"))
    return None


def _read_verb(tokens: list[str], start: int) -> str | None:
    """Read the verb at `start`, past adverbs, and past the helping in "help me write"."""
    low = [token.lower() for token in tokens[start:]]
    while low and (
        low[0] in _FILLERS
        or low[0] in ("not", "maybe", "perhaps", "possibly", "best", "better", "me")
        or low[0].endswith("ly")
    ):
        low = low[1:]
    if low[:3] == ["be", "able", "to"]:
        return _read_verb(low, 3)
    if low[:1] == ["mind"] and len(low) > 1:
        return _to_base(low[1])
    if not low or not _is_verb(low[0]) or low[0] == "be":
        return None
    if low[0] == "help" and len(low) > 1:
        return _read_help(low)
    return low[0]


def _read_help(low: list[str]) -> str:
    """Return what "help me ..." is to help with where that is a verb."""
    rest = low[1:]
    if rest and rest[0] in ("me", "us"):
        rest = rest[1:]
    while rest and rest[0] in ("to", "in", "with", "by", "better", "also"):
        rest = rest[1:]
    if rest and _is_verb(rest[0]) and rest[0] != "be" and (len(rest) > 1) and rest[0] not in _DETERMINERS:
        return rest[0]
    if rest and rest[0].endswith("ing") and _is_verb(_to_base(rest[0])):
        return _to_base(rest[0])
    return "help"


def _read_imperative(tokens: list[str]) -> str | None:
    """Return the verb a sentence begins with where it reads as a command."""
    word, after = tokens[0].lower(), tokens[1].lower() if len(tokens) > 1 else ""
    if after == ":" and len(tokens) > 2:
        rest = _skip_fillers(tokens[2:])
        return _read_imperative(rest) if rest and rest[0].lower() in _ASKING else None
    if not _is_verb(word) or (word in ("be", "have", "do", "must", "will", "can", "may") and after not in _DETERMINERS):
        return None
    if after in _BE or after in ("of", "=", "has", "was") or after in _MODALS:
        return None
    if word == "help":
        return _read_help([token.lower() for token in tokens])
    if word in _ASKING or after in _DETERMINERS or not _is_other(word):
        return word
    return None


def _find_wish(tokens: list[str], low: list[str]) -> tuple[str | None, bool]:
    """Find what somebody wants in a sentence that tells; clear where it is wanted of the reader."""
    line = " ".join(low)
    wish = r"(?:want|need|would like|'d like|wish|expect|require)"
    if match := re.search(
        rf"\b(?:i|we)(?: also)?(?: |(?='d)){wish} you to |\byou (?:have been|are|were) (?:asked|tasked) (?:to |with )",
        line,
    ):
        return _read_at(tokens, line, match.end()), True
    if match := re.search(
        r"\byour (?:\w+ )?(?:task|job|goal|objective|mission|role|assignment) (?:is|will be) to ", line
    ):
        verb = _read_at(tokens, line, match.end())
        return verb, verb not in _ROLES
    if match := re.search(r"\b(?:can|could|would|will) (?:you|u) ", line):
        return _read_at(tokens, line, match.end()), True
    if match := re.search(r"\bplease ", line):
        return _read_at(tokens, line, match.end()), True
    if match := re.search(r"\bhow (?:do|can|should|would|could|might) (?:i|we|you|one) ", line):
        return _read_at(tokens, line, match.end()), True
    trying = r"(?:i|we)(?: (?:am|are)|'m|'re) (?:trying|looking|going|planning)"
    if match := re.search(rf"\b(?:(?:i|we)(?: also)?(?: |(?='d)){wish}|{trying}) to ", line):
        return _read_at(tokens, line, match.end()), False
    if match := re.search(r"\b(?:i|we) need (?:some |a little |your )?help ", line):
        return _read_help(["help", *line[match.end() :].split()]), False
    if match := re.search(r"\b(?:i|we) (want|need) (?:a|an|the|some|\d)", line):
        return match[1], False
    for place, token in enumerate(low[:-2]):
        if low[place + 1] in _ASKING and (token == ":" or (token == "," and low[place + 2] in _DETERMINERS)):
            return low[place + 1], False
    return None, False


def _read_at(tokens: list[str], line: str, end: int) -> str | None:
    """Read the verb at character `end` of the joined tokens."""
    return _read_verb(tokens, line.count(" ", 0, end))


def _skip_fillers(tokens: list[str]) -> list[str]:
    place = 0
    while place < len(tokens) and (tokens[place].lower() in _FILLERS or (place > 0 and not tokens[place][0].isalnum())):
        place += 1
    return tokens[place:]


def _is_noun_before(low: list[str], place: int) -> bool:
    """Whether a word that may be a noun as well is followed by the verb of its clause."""
    after = low[place + 1] if place + 1 < len(low) else ""
    return _is_other(low[place]) and _is_verb(after) and after not in _DETERMINERS


def _spell(verb: str) -> str:
    """Return the American spelling, so that plots do not part summarise from summarize."""
    for british, american in (("ise", "ize"), ("yse", "yze")):
        if verb.endswith(british) and _is_verb(other := verb[:-3] + american):
            return other
    return verb


@lru_cache(4096)
def _load_lemmas(word: str) -> dict[str, tuple[str, ...]]:
    with _lock:  # its word list is read on first use
        from lemminflect import getAllLemmas

        return getAllLemmas(word)


def _is_verb(word: str) -> bool:
    """Whether a word is the base form of a verb."""
    return word in _load_lemmas(word).get("VERB", ())


def _is_other(word: str) -> bool:
    """Whether a word may be something else than a verb."""
    return any(kind in _load_lemmas(word) for kind in ("NOUN", "ADJ", "ADV"))


def _to_base(word: str) -> str:
    return next(iter(_load_lemmas(word).get("VERB", ())), word)
