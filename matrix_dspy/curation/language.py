"""Whether a text is in the language that was asked for, as n-gram statistics (lingua) see its prose.

Code, links, formulas and quotations are left out, the rest is cut into pieces of a sentence or less, and the greater
part decides: names, loan words and a foreign sentence never drop a text, and one too short to tell is kept. Each piece
is looked at with trigrams first (0.1 GB of models); only where these do not find the wanted language in half of the
text are the pieces in doubt looked at with all n-grams, of the wanted language and its two likeliest rivals only: so
the models of a language (some 20 MB, a tenth of a second) are loaded when it is first suspected.
"""

import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from matrix_dspy.curation.base import Candidate, Drop
from matrix_dspy.errors import ConfigError, did_you_mean
from matrix_dspy.text import remove_contacts

if TYPE_CHECKING:
    from lingua import Language, LanguageDetector

LEAST_WORDS = 5
"""A text with less prose is too short to tell."""
MOST_CHARACTERS = 110
"""Longest piece; lingua looks at trigrams only from 120 characters on."""
LONGEST = 20_000
"""Characters of a text that are looked at."""
LEAST_CHARACTERS = 25
"""Shorter sentences are judged together with the next one."""
SURE = 0.5
"""Confidence from which the trigrams are believed that a piece is in the wanted language."""
N_RIVALS = 2
"""Languages the trigrams put forward against the wanted one; the right one is among them 975 times in 1,000."""
LEAST_ODDS = 10.0
"""How many times likelier than the wanted language a rival must be. Of 8,963 pieces of real English prompts none but a
Swedish one was given to a rival; of 2,615 sentences of programs' messages in 70 languages 97 % were."""
MANY_WORDS = 20
LEAST_SHARE = 0.1
"""A text of `MANY_WORDS` with less than this share of it in any language is rubbish."""

_FAMILIES = (("BOKMAL", "NYNORSK"), ("BOSNIAN", "CROATIAN", "SERBIAN"), ("INDONESIAN", "MALAY"))
"""Languages whose sentences are too much alike to be told apart; one stands for all."""
_ALIASES = {
    "norwegian": "BOKMAL",
    "no": "BOKMAL",
    "norsk": "BOKMAL",
    "norwegian bokmål": "BOKMAL",
    "norwegian nynorsk": "NYNORSK",
    "bokmål": "BOKMAL",
    "farsi": "PERSIAN",
    "dari": "PERSIAN",
    "filipino": "TAGALOG",
    "fil": "TAGALOG",
    "mandarin": "CHINESE",
    "cantonese": "CHINESE",
    "brazilian": "PORTUGUESE",
    "castilian": "SPANISH",
    "flemish": "DUTCH",
    "slovenian": "SLOVENE",
    "serbo-croatian": "CROATIAN",
    "sh": "CROATIAN",
    "bahasa indonesia": "INDONESIAN",
    "māori": "MAORI",
    "luganda": "GANDA",
    "isizulu": "ZULU",
    "isixhosa": "XHOSA",
    "setswana": "TSWANA",
    "iw": "HEBREW",
    "in": "INDONESIAN",
    "ger": "GERMAN",
    "fre": "FRENCH",
    "dut": "DUTCH",
    "chi": "CHINESE",
    "gre": "GREEK",
    "cze": "CZECH",
    "per": "PERSIAN",
    "rum": "ROMANIAN",
}
_OWN_NAMES = {
    "deutsch": "GERMAN",
    "englisch": "ENGLISH",
    "französisch": "FRENCH",
    "spanisch": "SPANISH",
    "italienisch": "ITALIAN",
    "anglais": "ENGLISH",
    "français": "FRENCH",
    "allemand": "GERMAN",
    "espagnol": "SPANISH",
    "italien": "ITALIAN",
    "inglés": "ENGLISH",
    "español": "SPANISH",
    "francés": "FRENCH",
    "alemán": "GERMAN",
    "italiano": "ITALIAN",
    "inglese": "ENGLISH",
    "francese": "FRENCH",
    "tedesco": "GERMAN",
    "spagnolo": "SPANISH",
    "português": "PORTUGUESE",
    "inglês": "ENGLISH",
    "nederlands": "DUTCH",
    "engels": "ENGLISH",
    "polski": "POLISH",
    "русский": "RUSSIAN",
    "английский": "ENGLISH",
    "українська": "UKRAINIAN",
    "türkçe": "TURKISH",
    "ingilizce": "ENGLISH",
    "中文": "CHINESE",
    "汉语": "CHINESE",
    "英文": "ENGLISH",
    "英语": "ENGLISH",
    "英語": "ENGLISH",
    "日本語": "JAPANESE",
    "日语": "JAPANESE",
    "한국어": "KOREAN",
    "영어": "ENGLISH",
    "العربية": "ARABIC",
    "الإنجليزية": "ENGLISH",
    "हिन्दी": "HINDI",
    "हिंदी": "HINDI",
    "अंग्रेज़ी": "ENGLISH",
}
"""What speakers of large languages call their own language, English and their neighbours'; stems, so cases fit too."""
_UNKNOWN = """
Amharic Assamese Breton Burmese Cebuano Corsican Dzongkha Faroese Frisian Galician Hausa Hawaiian Igbo Kannada Khmer
Kurdish Kyrgyz Lao Luxembourgish Malagasy Malayalam Maltese Nepali Occitan Odia Oriya Pashto Quechua Romansh Samoan
Sanskrit Sindhi Sinhala Sinhalese Tajik Tatar Tibetan Tigrinya Turkmen Uyghur Uzbek Yiddish Klingon Elvish
"""
"""Languages lingua does not know; an answer asked for in one of them is not checked."""
_ANY_LANGUAGE = re.compile(
    r"\blanguages\b|\b(?:different|another|other|foreign|any|second) language\b|translat|multilingual|bilingual"
    r"|übersetz|tradu[cizt]|traduire|tradurre|перев[ое]д|翻[译訳譯]|번역",
    re.IGNORECASE,
)

_NO_PROSE = re.compile(
    r"""
      (?:^|\n)[ \t]*(?P<fence>```|~~~).*?(?:\n[ \t]*(?P=fence)|\Z)      # fenced code, also when it was never closed
    | ```.*?(?:```|\Z)
    | `[^`\n]{1,400}`
    | \$\$.{1,2000}?\$\$ | \\\[.{1,2000}?\\\] | \\\(.{1,400}?\\\) | \$[^$\n]{1,200}\$   # formulas
    | </?[a-zA-Z][^<>\n]{0,400}>
    """,
    re.DOTALL | re.VERBOSE,
)
_QUOTATION = re.compile(
    r"""[“„«][^“”„«»]{1,4000}[”“»] | 「[^「」]{1,4000}」 | 『[^『』]{1,4000}』 | "[^"]{1,4000}"
    | (?<!\w)['‘][^'‘’\n]{1,1000}['’](?!\w)""",
    re.VERBOSE,
)
_CODE = re.compile(r"[_\\=<>{}\[\]|~^#$@*+]\S|/[^/]*/|\w\(|\w\.\w|\d|[^\W\d_A-Z][A-Z]|^[=<>{}|~^$@+/\\]+$")
_STOPS = ".,:;!?"
_SENTENCE_END = re.compile(r"(?<=[.!?…:;])\s+|(?<=[。！？｡।؟۔])|\n+")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
MOST_CODE = 0.4
"""Share of a line's words that may look like code before the line is no prose."""

_detectors: dict[tuple[str, ...], "LanguageDetector"] = {}
_lock = threading.Lock()


class LanguageFilter:
    """Drops texts that are not in the wanted language, given by its English name or its ISO code.

    Raises:
        ConfigError: the language is unknown.
    """

    def __init__(self, language: str) -> None:
        self.language = find_language(language)

    def judge(self, candidate: Candidate) -> Drop | None:
        """Return why an instruction is dropped; foreign material is fine where the request says what language it is."""
        survey = _survey(candidate.text, self.language)
        if survey.is_own:
            return None
        named = _find_names(candidate.text) if survey.own else frozenset()
        if self.language in named or (survey.own and _ANY_LANGUAGE.search(candidate.text)):
            return None
        return _judge_survey(survey, {self.language, *named})

    def judge_response(self, instruction: str, response: str) -> Drop | None:
        """Return why the response is dropped.

        Where the instruction demands one language ("only in Korean"), the response must be in it. Else it may be in
        the wanted language, in any the instruction names or is partly written in, and in any at all where it asks for
        a translation. Of a language that lingua does not know, an answer in the wanted one is told apart, no other.
        """
        demanded = _find_demand(instruction)
        survey = _survey(response, self.language)
        if demanded:
            return _judge_survey(survey, demanded, is_strange=None not in demanded)
        names = _find_names(instruction)
        if survey.is_own or None in names or _ANY_LANGUAGE.search(instruction):
            return None
        given = _survey(instruction, self.language, has_quotations=True)
        return _judge_survey(survey, {self.language, *names, *given.others})


@dataclass(slots=True)
class Survey:
    """How many words of a text's prose are in which language."""

    language: str
    """The one that was looked for."""
    own: float = 0.0
    """Words in it."""
    total: float = 0.0
    others: Counter[str] = field(default_factory=Counter)
    """Words by other language; pieces in doubt count nowhere."""
    sureness: dict[str, float] = field(default_factory=dict)
    """The highest confidence found for each other language."""

    @property
    def is_own(self) -> bool:
        """Whether at least half of the text is in the language looked for, or the text is too short to tell."""
        return self.total < LEAST_WORDS or 2 * self.own >= self.total


def is_english(name: str) -> bool:
    """Whether a language is English; one that nobody knows is not."""
    try:
        return find_language(name) == find_language("English")
    except ConfigError:
        return False


def find_language(name: str) -> str:
    """Return lingua's name, as `GERMAN`, of a language given by English name or ISO 639 code, region and script aside.

    Raises:
        ConfigError: no language is called so.
    """
    known = _read_names()
    wanted = re.sub(r"\s*\(.*\)\s*$", "", name.strip()).lower().replace("_", "-")
    for each in (wanted, re.sub(r"\s+language$", "", wanted), wanted.partition("-")[0], wanted.rpartition(" ")[2]):
        if each in known:
            return known[each]
    if wanted.capitalize() in _UNKNOWN.split():
        raise ConfigError(
            f"texts in {name!r} cannot be recognised; switch the filter 'language' off: "
            "--set 'curation.off=[\"language\"]'"
        )
    spoken = sorted({each for names in known.values() for each in _describe(names).split("/")})
    raise ConfigError(f"no language {name!r}; {did_you_mean(wanted.capitalize(), spoken)}")


def _judge_survey(survey: Survey, allowed: Iterable[str | None], *, is_strange: bool = True) -> Drop | None:
    """Return the drop of a text of which the greater part is in languages that are not allowed, or in none.

    With `is_strange` false, languages other than the one looked for are let pass.
    """
    fitting = set(allowed)
    seen = survey.others + Counter({survey.language: survey.own})
    foreign = {name: weight for name, weight in seen.items() if name not in fitting}
    if not is_strange:
        foreign = {name: weight for name, weight in foreign.items() if name == survey.language}
    size = sum(foreign.values())
    wanted = " or ".join(sorted(_describe(name) for name in fitting if name))
    wanted = wanted or "the language asked for"
    if survey.total >= MANY_WORDS and sum(seen.values()) < LEAST_SHARE * survey.total:
        return Drop("language", f"no language can be told; {wanted} was wanted") if is_strange else None
    if size < LEAST_WORDS or 2 * size <= (sum(seen.values()) if is_strange else survey.total):
        return None
    found = sorted(foreign, key=lambda name: (-foreign[name], name))
    if 2 * foreign[found[0]] > size:
        sureness = f" ({survey.sureness[found[0]]:.2f})" if found[0] in survey.sureness else ""
        return Drop("language", f"it is in {_describe(found[0])}{sureness}, not in {wanted}")
    return Drop("language", f"it mixes {', '.join(map(_describe, found[:4]))}; {wanted} was wanted")


def _survey(text: str, wanted: str, *, has_quotations: bool = False) -> Survey:
    """Count the words of `text` by language; `wanted` is looked for with little work first."""
    found = Survey(wanted)
    pieces = {piece: _weigh(piece) for piece in map(_drop_repeats, _cut(take_prose(text[:LONGEST], has_quotations)))}
    found.total = sum(pieces.values())
    doubtful: list[tuple[str, float]] = []
    for piece, weight in pieces.items():
        if found.is_own:
            return found
        if _measure(piece, wanted) >= SURE:
            found.own += weight
        else:
            doubtful.append((piece, weight))
    if found.is_own:
        return found
    for piece, weight in doubtful:
        rival, odds = _find_rival(piece, wanted)
        if rival and odds >= LEAST_ODDS:
            found.others[rival] += weight  # pyright: ignore[reportArgumentType]
            found.sureness[rival] = max(found.sureness.get(rival, 0.0), 1 - 1 / (1 + odds))
        elif rival and odds <= 1:
            found.own += weight
    return found


def take_prose(text: str, has_quotations: bool = False) -> str:
    """Return `text` without code, links, formulas, data, and without quotations if enough is left."""
    rest = remove_contacts(_NO_PROSE.sub(lambda found: "\n" if "\n" in found[0] else " ", text), " ")
    lines = [kept for line in rest.split("\n") if (kept := _take_words(line))]
    prose = "\n".join(lines)
    if has_quotations:
        return prose
    unquoted = _QUOTATION.sub(" ", prose)
    return unquoted if _weigh(unquoted) >= LEAST_WORDS else prose


def _take_words(line: str) -> str:
    """Return a line without what looks like code or numbers, or nothing where that is most of it."""
    parts = line.split()
    kept: list[str] = []
    n_code = 0
    for part in parts:
        if _CODE.search(part.strip("*_\"'()[]<>.,;:!?-")):
            n_code += 1
            if kept and part[-1] in _STOPS and kept[-1][-1:] not in _STOPS:
                kept[-1] += part[-1]
        elif part := part.strip("*_#"):
            kept.append(part)
    return "" if n_code > MOST_CODE * len(parts) else " ".join(kept)


def _cut(prose: str) -> Iterator[str]:
    """Cut into pieces of `LEAST_CHARACTERS` to `MOST_CHARACTERS` at ends of sentences, else between words."""
    piece = ""
    for sentence in _SENTENCE_END.split(prose):
        for part in _wrap(sentence.strip()):
            if piece and len(piece) + len(part) >= MOST_CHARACTERS:
                yield piece
                piece = ""
            piece = f"{piece} {part}".strip()
            if len(piece) >= LEAST_CHARACTERS:
                yield piece
                piece = ""
    if piece:
        yield piece


def _wrap(sentence: str) -> Iterator[str]:
    while len(sentence) > MOST_CHARACTERS:
        cut = sentence.rfind(" ", LEAST_CHARACTERS, MOST_CHARACTERS)
        cut = cut if cut > 0 else MOST_CHARACTERS
        yield sentence[:cut]
        sentence = sentence[cut:].lstrip()
    if sentence:
        yield sentence


def _drop_repeats(piece: str) -> str:
    """Return a piece with each word once; an answer that loops says no more about its language than one round of it."""
    return " ".join({word.casefold(): word for word in reversed(piece.split())}.values())


def _weigh(text: str) -> float:
    """Count words; two letters of a script without blanks are one."""
    n_unspaced = len(_UNSPACED.findall(text))
    spaced = sum(any(map(str.isalpha, part)) for part in _UNSPACED.sub(" ", text).split())
    return spaced + n_unspaced / 2


def _measure(piece: str, wanted: str) -> float:
    """Return the trigrams' confidence that a piece is in the wanted language."""
    detector = _load_detector()
    return sum(detector.compute_language_confidence(piece, language) for language in _load_family(wanted))


def _find_rival(piece: str, wanted: str) -> tuple[str, float]:
    """Return the likeliest other language and how many times likelier it is, or none if no letters are known."""
    scores = _sum_families(_load_detector(), piece)
    rivals = sorted((name for name in scores if name != wanted), key=lambda name: (-round(scores[name], 6), name))
    rivals = [name for name in rivals[:N_RIVALS] if scores[name] > 0]
    if not rivals:
        return "", 0.0
    scores = _sum_families(_load_detector((wanted, *sorted(rivals))), piece)
    best = max(rivals, key=lambda name: (round(scores[name], 6), name))
    return best, min(scores[best] / max(scores[wanted], 1e-9), 1e6)


def _sum_families(detector: "LanguageDetector", piece: str) -> dict[str, float]:
    scores: dict[str, float] = {}
    for each in detector.compute_language_confidence_values(piece):
        name = _unite(each.language.name)
        scores[name] = scores.get(name, 0.0) + each.value
    return scores


@cache
def _load_family(name: str) -> tuple["Language", ...]:
    from lingua import Language

    family = next((each for each in _FAMILIES if name in each), (name,))
    return tuple(Language.from_str(each) for each in family)


@cache
def _unite(name: str) -> str:
    return next((family[0] for family in _FAMILIES if name in family), name)


def _load_detector(names: tuple[str, ...] = ()) -> "LanguageDetector":
    """Return the detector of all languages by trigrams, or of the named ones by all n-grams.

    It is built once a process; lingua loads its models when they are first needed and shares them.
    """
    with _lock:
        if names not in _detectors:
            from lingua import LanguageDetectorBuilder

            if names:
                builder = LanguageDetectorBuilder.from_languages(
                    *(each for name in names for each in _load_family(name))
                )
            else:
                builder = LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode()
            _detectors[names] = builder.build()
        return _detectors[names]


@cache
def _read_names() -> dict[str, str]:
    """Return every name and code, lower-case, and the language it stands for."""
    from lingua import Language

    known = dict(_ALIASES | _OWN_NAMES)
    for each in sorted(Language.all(), key=lambda language: language.name):
        for name in (each.name, each.iso_code_639_1.name, each.iso_code_639_3.name):
            known[name.lower()] = each.name
    return {name: _unite(language) for name, language in known.items()}


@cache
def _describe(name: str) -> str:
    family = next((each for each in _FAMILIES if name in each), (name,))
    return "/".join(each.capitalize() for each in family)


@cache
def _load_name_pattern() -> str:
    """Return a pattern of language names: English ones with a capital, those of other languages as stems."""
    names = [name for name in _read_names() if len(name) > 3 and name not in _OWN_NAMES and " " not in name]
    english = "|".join(
        sorted({*(name.capitalize() for name in names), *_UNKNOWN.split()}, key=lambda name: (-len(name), name))
    )
    own = "|".join(sorted(_OWN_NAMES, key=lambda name: (-len(name), name)))
    return rf"(?:\b(?:{english})\b|(?i:{own}))"


def _find_names(text: str) -> frozenset[str | None]:
    """Return the languages a text names; None stands for those lingua does not know."""
    return frozenset(_read_names().get(name.lower()) for name in re.findall(_load_name_pattern(), text))


@cache
def _load_demand_pattern() -> re.Pattern[str]:
    name = f"({_load_name_pattern()})"
    end = r"(?=\s*(?:[.,;:!?)\"]|$|(?:in|for|throughout|and|please|no|about|with|when)\b))"
    alone = r"(?i:only|entirely|completely|solely|exclusively|fully|wholly)"
    return re.compile(
        rf"\b{alone} (?:(?:respond|reply|answer|write) )?(?:in|using|use|with) (?:the )?{name}(?: language)?{end}"
        rf"|\b(?i:in|using|use) {alone} (?:the )?{name}(?: language)?{end}"
        rf"|\b(?i:in|using|use) (?:the )?{name}(?: language)?,? (?:only|and nothing else)\b"
        rf"|{name}\b[^.?!\n]{{0,60}}, (?:and )?no other languages?\b"
        rf"|\b(?i:entire|whole) (?:response|answer|reply|text)\b[^.?!\n]{{0,30}} in (?:the )?{name}(?: language)?{end}",
        re.MULTILINE,
    )


def _find_demand(text: str) -> frozenset[str | None]:
    """Return the languages of which a text says that the answer must be in them and no other."""
    found = (name for groups in _load_demand_pattern().findall(text) for name in groups if name)
    return frozenset(_read_names().get(unicodedata.normalize("NFC", name).lower()) for name in found)
