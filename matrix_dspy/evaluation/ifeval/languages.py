"""Which language the greater part of a reply is in, as n-gram statistics (lingua) and scripts tell it.

In: a reply. Out: the language's name, or whether it is the one asked for. Code, links and formulas are left out.
Languages lingua does not know are told by their script where no other shares it, and Nepali by its small words.
"""

import re
import threading
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

from matrix_dspy.curation.language import LONGEST, find_language, take_prose
from matrix_dspy.errors import ConfigError
from matrix_dspy.text import replace_surrogates

if TYPE_CHECKING:
    from lingua import LanguageDetector

FEWEST_WORDS = 5
"""English with fewer words is too short to tell; it is believed unless its script is another."""
SHORT = 120
"""Characters below which lingua can look at all n-grams; from there on at trigrams alone."""
N_RIVALS = 3
"""Languages the trigrams put forward for a closer look at a short text."""

_OWN_SCRIPTS = {
    "AMHARIC": ("am", "\u1200-\u137f"),
    "BURMESE": ("my", "\u1000-\u109f"),
    "KANNADA": ("kn", "\u0c80-\u0cff"),
    "KHMER": ("km", "\u1780-\u17ff"),
    "LAO": ("lo", "\u0e80-\u0eff"),
    "MALAYALAM": ("ml", "\u0d00-\u0d7f"),
    "ODIA": ("or", "\u0b00-\u0b7f"),
    "SINHALA": ("si", "\u0d80-\u0dff"),
    "TIBETAN": ("bo", "\u0f00-\u0fff"),
}
"""Languages lingua does not know, each with its code and a script that is its own."""
_HINDI = "है हैं हूँ था थे थी में का की के को से और ने पर नहीं कि यह वह ये इस उस लिए मैं मुझ मुझे हम आप अपने भी जो तो"
_MARATHI = "आहे आहेत होते होता होती नाही आणि मध्ये साठी मी तू तो ती ते हे ही हा व या त्या आपण माझ्या"
_NEPALI = """
छ छन् छैन छौं छु थियो थिए हुन् हुन्छ हुनेछ भएको भयो गर्न गर्ने गर्नुहोस् गरेको गर्छ र पनि लागि तपाईं हामी हाम्रो मलाई यसको
त्यो यो अनि तर भने सँग बाट
"""
_SMALL_WORDS = {
    "HINDI": frozenset(_HINDI.split()),
    "MARATHI": frozenset(_MARATHI.split()),
    "NEPALI": frozenset(_NEPALI.split()),
}
"""Small words of the languages written in Devanagari, which n-grams mix up in short or clumsy texts."""
_DEVANAGARI_WORD = re.compile("[\u0900-\u0963\u0970-\u097f]+")

_detectors: dict[tuple[str, ...], "LanguageDetector"] = {}
_lock = threading.Lock()


def find_code(code: str) -> str:
    """Return the name, as `GERMAN`, of a language given by ISO 639 code or English name.

    Raises:
        ConfigError: it is a language that cannot be told.
    """
    wanted = code.strip()
    if wanted.lower() in ("ne", "nepali"):
        return "NEPALI"
    for name, (short, _) in _OWN_SCRIPTS.items():
        if wanted.lower() in (short, name.lower()):
            return name
    try:
        return find_language(wanted)
    except ConfigError:
        raise ConfigError(f"replies in {code!r} cannot be recognised; give another language, or leave it out") from None


def is_in_language(text: str, code: str) -> bool:
    """Whether the greater part of the prose of `text` is in the language; a text without letters is in none.

    A text that holds no prose, as JSON does, is looked at as it is.

    Raises:
        ConfigError: it is a language that cannot be told.
    """
    wanted = find_code(code)
    beginning = replace_surrogates(text[:LONGEST])
    prose = take_prose(beginning, has_quotations=True)
    return _detect(prose if any(map(str.isalpha, prose)) else beginning, wanted) == wanted


def is_english(text: str) -> bool:
    """Whether `text`, in whatever case, is English; names, lists and few words are believed if their letters are."""
    beginning = replace_surrogates(text[:LONGEST].lower())
    if len(take_prose(beginning, has_quotations=True).split()) >= FEWEST_WORDS:
        return is_in_language(beginning, "en")
    letters = [each for each in beginning if each.isalpha()]
    return 2 * sum(map(str.isascii, letters)) >= len(letters)


def _detect(prose: str, wanted: str) -> str:
    """Return the language that most of `prose` is in, or nothing where it holds no letters.

    Trigrams take some sentences of 60 letters for a neighbour's, English for Swedish, so in short texts all n-grams
    of the wanted language and of its likeliest rivals decide.
    """
    n_letters = sum(map(str.isalpha, prose))
    for name, (_, script) in _OWN_SCRIPTS.items():
        if 2 * sum(map(str.isalpha, re.findall(f"[{script}]", prose))) > n_letters:
            return name
    ranked = _rank(_load_detector(), prose)
    if len(ranked) > 1 and len(prose) < SHORT:
        rivals = {name for name, _ in ranked[:N_RIVALS]} | ({wanted} & dict(ranked).keys())
        ranked = _rank(_load_detector(tuple(sorted(rivals))), prose)
    name = ranked[0][0] if ranked else ""
    return _tell_devanagari(prose, name) if name in _SMALL_WORDS else name


def _tell_devanagari(prose: str, otherwise: str) -> str:
    """Return whose small words are most of `prose`; `otherwise` where two have as many, or none has any."""
    words = Counter(_DEVANAGARI_WORD.findall(prose))
    hits = {name: sum(words[word] for word in small) for name, small in _SMALL_WORDS.items()}
    most = max(hits.values())
    best = [name for name in hits if hits[name] == most]
    return best[0] if len(best) == 1 else otherwise


def _rank(detector: "LanguageDetector", prose: str) -> list[tuple[str, float]]:
    """Return languages and confidence, best first; languages too alike to tell apart are one."""
    scores: dict[str, float] = {}
    for each in detector.compute_language_confidence_values(prose):
        if each.value > 0:
            name = _unite(each.language.name)
            scores[name] = scores.get(name, 0.0) + each.value
    return sorted(scores.items(), key=lambda item: (-round(item[1], 6), item[0]))


@cache
def _unite(name: str) -> str:
    return find_language(name.lower())


def _load_detector(names: tuple[str, ...] = ()) -> "LanguageDetector":
    """Return the detector of all languages by trigrams, or of the named ones by all n-grams, built once a process."""
    with _lock:
        if names not in _detectors:
            from lingua import Language, LanguageDetectorBuilder

            if names:
                builder = LanguageDetectorBuilder.from_languages(*map(Language.from_str, names))
            else:
                builder = LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode()
            _detectors[names] = builder.build()
        return _detectors[names]
