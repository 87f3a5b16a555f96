"""The verifiable constraints of IFEval, each decided by a rule of our own.

In: a constraint's kind (`instruction_id`), its arguments and a reply. Out: whether the reply keeps it.
The rules follow what the constraint asks of a writer, not the published checker's code: whole words are words, an
abbreviation ends no sentence, a link is no placeholder. Where the two differ and why stands in `docs/decisions.md`.
Source: arXiv 2311.07911 (IFEval), list of verifiable instructions, strict and loose accuracy.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from matrix_dspy.errors import ConfigError, did_you_mean
from matrix_dspy.evaluation.ifeval import structure
from matrix_dspy.evaluation.ifeval.languages import find_code, is_english, is_in_language

ANSWERS = ("my answer is yes", "my answer is no", "my answer is maybe")
"""The three phrases of which a constrained response holds exactly one."""
_RELATIONS = ("at least", "less than")
_PREFIX = re.compile(r"^[a-z]{2}:")


@dataclass(frozen=True, slots=True)
class Checker:
    """Decides one kind of constraint."""

    kind: str
    """Name of the kind, without the language before it."""
    asks: str
    """What a reply must do, in a few words."""
    readers: Mapping[str, Callable[[Any], Any]]
    """Reads and checks each argument; all are needed and no others are taken."""
    judge: Callable[..., bool]
    """Takes the reply and the arguments by name."""

    def read_arguments(self, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the arguments checked, those without a value left out.

        Raises:
            ConfigError: an argument is missing, not known or not of its kind.
        """
        given = {name: value for name, value in (arguments or {}).items() if not _is_missing(value)}
        for name in self.readers:
            if name not in given:
                raise ConfigError(f"constraint {self.kind!r} lacks its argument {name!r}; give it beside the kind")
        read: dict[str, Any] = {}
        for name, value in given.items():
            if name not in self.readers:
                known = ", ".join(map(repr, self.readers)) or "none"
                raise ConfigError(f"constraint {self.kind!r} takes no argument {name!r}; its arguments: {known}")
            try:
                read[name] = self.readers[name](value)
            except ValueError as error:
                raise ConfigError(f"argument {name!r} of constraint {self.kind!r}: {error}") from error
        return read

    def check(self, arguments: Mapping[str, Any] | None, reply: str) -> bool:
        """Whether `reply` keeps the constraint; an empty one keeps none.

        Raises:
            ConfigError: the arguments do not fit.
        """
        read = self.read_arguments(arguments)
        return bool(reply.strip()) and self.judge(reply, **read)


def find_checker(instruction_id: str) -> Checker:
    """Return the checker of a kind, with or without the language before it, as `en:punctuation:no_comma`.

    Raises:
        ConfigError: there is no such kind.
    """
    kind = _PREFIX.sub("", instruction_id)
    if kind not in KINDS:
        near = did_you_mean(kind, list(KINDS))
        known = "" if near.startswith("choose") else f" (known: {', '.join(KINDS)})"
        raise ConfigError(f"no kind of constraint {instruction_id!r}; {near}{known}")
    return KINDS[kind]


def check_constraint(instruction_id: str, arguments: Mapping[str, Any] | None, reply: str) -> bool:
    """Whether `reply` keeps one constraint as it stands.

    Arguments that are None or NaN count as not given.

    Raises:
        ConfigError: the kind is unknown, or the arguments do not fit it.
    """
    return find_checker(instruction_id).check(arguments, reply)


def check_reply(
    reply: str, instruction_ids: Sequence[str], arguments: Sequence[Mapping[str, Any] | None]
) -> list[bool]:
    """Return one strict verdict per constraint, in order.

    Raises:
        ConfigError: a kind is unknown, arguments do not fit, or there are not as many of them as kinds.
    """
    _match(instruction_ids, arguments)
    return [check_constraint(kind, given, reply) for kind, given in zip(instruction_ids, arguments, strict=True)]


def check_reply_loose(
    reply: str, instruction_ids: Sequence[str], arguments: Sequence[Mapping[str, Any] | None]
) -> list[bool]:
    """Return one loose verdict per constraint: kept if any of the eight forms of `list_forms` keeps it.

    Source: arXiv 2311.07911 §2.2 (loose accuracy).

    Raises:
        ConfigError: a kind is unknown, arguments do not fit, or there are not as many of them as kinds.
    """
    _match(instruction_ids, arguments)
    forms = list_forms(reply)
    return [
        any(check_constraint(kind, given, form) for form in forms)
        for kind, given in zip(instruction_ids, arguments, strict=True)
    ]


def list_forms(reply: str) -> list[str]:
    """Return the reply, and without its first line, its last, both; each also without asterisks; each form once."""
    lines = reply.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    forms = [reply, *cut]
    return list(dict.fromkeys(forms + [form.replace("*", "") for form in forms]))


def _match(instruction_ids: Sequence[str], arguments: Sequence[Mapping[str, Any] | None]) -> None:
    if len(instruction_ids) != len(arguments):
        raise ConfigError(
            f"{len(instruction_ids)} kinds of constraint but arguments of {len(arguments)}; give one mapping per kind"
        )


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _read_count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not float(value).is_integer() or value < 0:
        raise ValueError(f"{value!r} is no count; give a whole number")
    return int(value)


def _read_place(value: Any) -> int:
    if (place := _read_count(value)) < 1:
        raise ValueError(f"{value!r} is no place; count from 1")
    return place


def _read_text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no text; give a word or phrase")
    return value.strip()


def _read_mark(value: Any) -> str:
    if not structure.has_words(mark := _read_text(value)):
        raise ValueError(f"{value!r} is no mark; give one with letters, as 'P.S.'")
    return mark


def _read_texts(value: Any) -> tuple[str, ...]:
    words = () if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable) else tuple(value)
    if not words:
        raise ValueError(f"{value!r} is no list of words; give at least one")
    return tuple(map(_read_text, words))


def _read_letter(value: Any) -> str:
    if not isinstance(value, str) or len(value.strip()) != 1:
        raise ValueError(f"{value!r} is no letter; give one character")
    return value.strip()


def _read_relation(value: Any) -> str:
    if not isinstance(value, str) or value not in _RELATIONS:
        raise ValueError(f"{value!r} is no relation; choose 'at least' or 'less than'")
    return value


def _read_language(value: Any) -> str:
    return find_code(_read_text(value))


def _compare(count: int, relation: str, bound: int) -> bool:
    return count >= bound if relation == "at least" else count < bound


def _has_keywords(reply: str, keywords: tuple[str, ...]) -> bool:
    return all(structure.count_phrase(reply, word) for word in keywords)


def _has_keyword_times(reply: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(structure.count_phrase(reply, keyword), relation, frequency)


def _lacks_words(reply: str, forbidden_words: tuple[str, ...]) -> bool:
    return not any(structure.count_phrase(reply, word) for word in forbidden_words)


def _has_letter_times(reply: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compare(reply.lower().count(letter.lower()), let_relation, let_frequency)


def _is_in(reply: str, language: str) -> bool:
    return is_in_language(reply, language)


def _has_words(reply: str, num_words: int, relation: str) -> bool:
    return _compare(len(structure.list_words(reply)), relation, num_words)


def _has_sentences(reply: str, num_sentences: int, relation: str) -> bool:
    return _compare(structure.count_sentences(reply), relation, num_sentences)


def _has_paragraphs(reply: str, num_paragraphs: int) -> bool:
    parts = structure.split_paragraphs(reply)
    return len(parts) == num_paragraphs and all(map(structure.has_substance, parts))


def _has_first_word(reply: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    blocks = structure.split_blocks(reply)
    if len(blocks) != num_paragraphs or nth_paragraph > len(blocks):
        return False
    return structure.fold(structure.list_words(blocks[nth_paragraph - 1])[0]) == structure.fold(first_word)


def _has_placeholders(reply: str, num_placeholders: int) -> bool:
    return structure.count_placeholders(reply) >= num_placeholders


def _has_postscript(reply: str, postscript_marker: str) -> bool:
    return structure.has_postscript(reply, postscript_marker)


def _is_constrained(reply: str) -> bool:
    return sum(structure.count_phrase(reply, answer) > 0 for answer in ANSWERS) == 1


def _is_json(reply: str) -> bool:
    text = reply.strip()
    if fenced := re.fullmatch(r"```[ \t]*(?:json)?[ \t]*\n?(.*?)```", text, re.DOTALL | re.IGNORECASE):
        text = fenced[1]
    try:
        return isinstance(json.loads(text, parse_constant=_refuse), (dict, list))
    except (ValueError, RecursionError):
        return False


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _has_sections(reply: str, section_spliter: str, num_sections: int) -> bool:
    return structure.count_sections(reply, section_spliter) >= num_sections


def _has_bullets(reply: str, num_bullets: int) -> bool:
    return structure.count_bullets(reply) == num_bullets


def _has_highlights(reply: str, num_highlights: int) -> bool:
    return structure.count_highlights(reply) >= num_highlights


def _repeats_prompt(reply: str, prompt_to_repeat: str) -> bool:
    return structure.begins_with(reply, prompt_to_repeat)


def _has_two_responses(reply: str) -> bool:
    parts = structure.split_responses(reply)
    if len(parts) != 2 or not all(map(structure.has_substance, parts)):
        return False
    return structure.flatten(parts[0]) != structure.flatten(parts[1])


def _is_capital(reply: str) -> bool:
    return reply.isupper() and is_english(reply)


def _is_lowercase(reply: str) -> bool:
    return reply.islower() and is_english(reply)


def _has_capital_words(reply: str, capital_frequency: int, capital_relation: str) -> bool:
    count = sum(word.isupper() for word in structure.list_words(reply))
    return _compare(count, capital_relation, capital_frequency)


def _has_no_comma(reply: str) -> bool:
    return "," not in reply


def _ends_with(reply: str, end_phrase: str) -> bool:
    return structure.ends_with(reply, end_phrase)


def _is_quoted(reply: str) -> bool:
    text = reply.strip()
    return len(text) > 2 and text[0] in '"“' and text[-1] in '"”' and structure.has_substance(text)


def _build_kinds() -> dict[str, Checker]:
    count, place, text, relation = _read_count, _read_place, _read_text, _read_relation
    checkers = (
        Checker("keywords:existence", "hold all keywords", {"keywords": _read_texts}, _has_keywords),
        Checker(
            "keywords:frequency",
            "hold a keyword so many times",
            {"keyword": text, "frequency": count, "relation": relation},
            _has_keyword_times,
        ),
        Checker("keywords:forbidden_words", "hold none of the words", {"forbidden_words": _read_texts}, _lacks_words),
        Checker(
            "keywords:letter_frequency",
            "hold a letter so many times",
            {"letter": _read_letter, "let_frequency": count, "let_relation": relation},
            _has_letter_times,
        ),
        Checker("language:response_language", "be in the language", {"language": _read_language}, _is_in),
        Checker(
            "length_constraints:number_sentences",
            "have so many sentences",
            {"num_sentences": count, "relation": relation},
            _has_sentences,
        ),
        Checker(
            "length_constraints:number_words",
            "have so many words",
            {"num_words": count, "relation": relation},
            _has_words,
        ),
        Checker(
            "length_constraints:number_paragraphs",
            "be so many paragraphs divided by three asterisks",
            {"num_paragraphs": count},
            _has_paragraphs,
        ),
        Checker(
            "length_constraints:nth_paragraph_first_word",
            "be so many paragraphs divided by blank lines, one beginning with the word",
            {"num_paragraphs": count, "nth_paragraph": place, "first_word": text},
            _has_first_word,
        ),
        Checker(
            "detectable_content:number_placeholders",
            "hold at least so many placeholders in square brackets",
            {"num_placeholders": count},
            _has_placeholders,
        ),
        Checker(
            "detectable_content:postscript",
            "have a postscript with the mark",
            {"postscript_marker": _read_mark},
            _has_postscript,
        ),
        Checker("detectable_format:constrained_response", "give one of three answers", {}, _is_constrained),
        Checker("detectable_format:json_format", "be JSON and nothing else", {}, _is_json),
        Checker(
            "detectable_format:multiple_sections",
            "have at least so many sections marked by a word and a number",
            {"section_spliter": text, "num_sections": count},
            _has_sections,
        ),
        Checker(
            "detectable_format:number_bullet_lists",
            "have exactly so many bullets",
            {"num_bullets": count},
            _has_bullets,
        ),
        Checker(
            "detectable_format:number_highlighted_sections",
            "have at least so many stretches in Markdown emphasis",
            {"num_highlights": count},
            _has_highlights,
        ),
        Checker("detectable_format:title", "have a title in double angular brackets", {}, structure.has_title),
        Checker("combination:repeat_prompt", "begin with the request", {"prompt_to_repeat": text}, _repeats_prompt),
        Checker("combination:two_responses", "be two answers divided by six asterisks", {}, _has_two_responses),
        Checker("change_case:english_capital", "be English in capital letters", {}, _is_capital),
        Checker("change_case:english_lowercase", "be English in small letters", {}, _is_lowercase),
        Checker(
            "change_case:capital_word_frequency",
            "have so many words in capital letters",
            {"capital_frequency": count, "capital_relation": relation},
            _has_capital_words,
        ),
        Checker("punctuation:no_comma", "hold no comma", {}, _has_no_comma),
        Checker("startend:end_checker", "end with the phrase", {"end_phrase": text}, _ends_with),
        Checker("startend:quotation", "be wrapped in double quotation marks", {}, _is_quoted),
    )
    return {each.kind: each for each in checkers}


KINDS: Mapping[str, Checker] = MappingProxyType(_build_kinds())
"""The checker of every kind, by its name without a language before it."""
