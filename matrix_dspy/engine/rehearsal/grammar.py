"""Just enough English for the rehearsal engine: verb forms, articles, capitals, and changes of person."""

import re
from collections.abc import Callable

_PAST = {
    "arise": "arose", "become": "became", "begin": "began", "bind": "bound", "breed": "bred", "bring": "brought",
    "build": "built", "buy": "bought", "catch": "caught", "choose": "chose", "come": "came", "cut": "cut",
    "deal": "dealt", "dig": "dug", "do": "did", "draw": "drew", "drive": "drove", "eat": "ate", "feed": "fed",
    "fight": "fought", "find": "found", "fit": "fitted", "fly": "flew", "forgive": "forgave", "get": "got",
    "give": "gave", "go": "went", "grow": "grew", "hang": "hung", "have": "had", "hear": "heard", "hide": "hid",
    "hold": "held", "keep": "kept", "knit": "knitted", "know": "knew", "lay": "laid", "lead": "led", "learn": "learned",
    "leave": "left", "lend": "lent", "let": "let", "light": "lit", "lose": "lost", "make": "made", "meet": "met",
    "overcome": "overcame", "pay": "paid", "put": "put", "quit": "quit", "read": "read", "rebuild": "rebuilt",
    "redo": "redid", "redraw": "redrew", "retell": "retold", "rewrite": "rewrote", "ride": "rode", "ring": "rang",
    "rise": "rose", "run": "ran", "say": "said", "see": "saw", "seek": "sought", "sell": "sold", "send": "sent",
    "set": "set", "sew": "sewed", "shoot": "shot", "show": "showed", "shred": "shredded", "sing": "sang", "sit": "sat",
    "sleep": "slept", "speak": "spoke", "spend": "spent", "split": "split", "spot": "spotted", "spread": "spread",
    "stand": "stood", "stick": "stuck", "strike": "struck", "swap": "swapped", "sweep": "swept", "swim": "swam",
    "take": "took", "teach": "taught", "tell": "told", "think": "thought", "throw": "threw", "understand": "understood",
    "undo": "undid", "wake": "woke", "wear": "wore", "win": "won", "withdraw": "withdrew", "write": "wrote",
}  # fmt: skip
_DOUBLING = """
    plan stop trim strip scrub mop map cap clip chat chop drop drag drum grab grip hug jog knot log mob nap net pin plot
    plug prop rob rub shop ship skip slip snap stir step stun tap tip trap trip wrap whip submit commit refer transfer
    regret admit prefer pat pit rip sip tag fit knit spot swap run set put cut get sit split win dig begin swim shred
    quit quiz blot dab fan flag jot bag beg
"""
_DOUBLED = frozenset(_DOUBLING.split())
_SAME_ING = {"lie": "lying", "die": "dying", "tie": "tying"}
_FIRST_TO_THIRD = [
    (re.compile(pattern, re.IGNORECASE), put)
    for pattern, put in (
        (r"\bI am\b|\bI'm\b", "they are"),
        (r"\bI was\b", "they were"),
        (r"\bI've\b", "they have"),
        (r"\bI'd\b", "they would"),
        (r"\bI'll\b", "they will"),
        (r"\bmyself\b", "themselves"),
        (r"\bmine\b", "theirs"),
        (r"\bmy\b", "their"),
        (r"\bme\b", "them"),
    )
]
_CAPITAL_I = re.compile(r"\bI\b")
_ARTICLE = re.compile(r"\b([Aa])n? (?=([A-Za-z0-9]+))")
_LEADING_ARTICLE = re.compile(r"^(?:a|an|the|my|our|some|two|three)\s+", re.IGNORECASE)
_VOWEL_SOUND = re.compile(
    r"^(?:[ai]|e(?!u|w)|o(?!ne\b|nce\b)|u(?!ni|se|su|r[aeio]|ti)|hour|honest|heir|8|11\b|18\b)", re.IGNORECASE
)
_MODIFYING = """
    that which who whose whom in on of with from for to at after before without between under over by about not round
    behind beside near during until since against into where when nobody no i we he she they the a an my our its cut
    booked printed written sent made left shared stolen seen told built full late too open off through
"""
_MODIFIERS = frozenset(_MODIFYING.split())
_COUNTS = """
    two three four five six seven eight nine ten twelve both several many few these those
"""
_PLURAL_COUNTS = frozenset(_COUNTS.split())
_PLURAL_NOUNS = """
    children people mice men women feet teeth police cattle sheep data
"""
_PLURALS = frozenset(_PLURAL_NOUNS.split())
_PLURAL_VERBS = {"is": "are", "has": "have", "was": "were", "does": "do", "isn't": "aren't", "goes": "go"}
_VERB = re.compile(r"^[a-z]+$")


def past(verb: str) -> str:
    """Return the simple past of a base verb."""
    if verb in _PAST:
        return _PAST[verb]
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2:-1] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + (verb[-1] if verb in _DOUBLED else "") + "ed"


def gerund(verb: str) -> str:
    """Return the -ing form of a base verb."""
    if verb in _SAME_ING:
        return _SAME_ING[verb]
    if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")) and verb != "be":
        return verb[:-1] + "ing"
    return verb + (verb[-1] if verb in _DOUBLED else "") + "ing"


def past_phrase(phrase: str) -> str:
    """Put the first verb of a phrase like "mend the roof" into the past."""
    return _bend(phrase, past)


def gerund_phrase(phrase: str) -> str:
    """Put the first verb of a phrase like "mend the roof" into its -ing form."""
    return _bend(phrase, gerund)


def _bend(phrase: str, form: Callable[[str], str]) -> str:
    first, _, rest = phrase.partition(" ")
    if first.lower() in ("never", "not"):
        verb, _, rest = rest.partition(" ")
        return f"never {form(verb.lower())} {rest}".strip()
    return f"{form(first.lower())} {rest}".strip() if _VERB.match(first.lower()) else phrase


def third_person(phrase: str) -> str:
    """Turn a phrase in the first person into one about somebody else, with the singular they."""
    for pattern, put in _FIRST_TO_THIRD:
        phrase = pattern.sub(put, phrase)
    return _CAPITAL_I.sub("they", phrase)


def second_person(phrase: str) -> str:
    """Turn a phrase in the first person into one that addresses the reader."""
    words = ((r"\bI am\b|\bI'm\b", "you are"), (r"\bI was\b", "you were"), (r"\bmyself\b", "yourself"))
    for pattern, put in (*words, (r"\bmine\b", "yours"), (r"\bmy\b", "your"), (r"\bme\b", "you"), (r"\bI\b", "you")):
        phrase = re.sub(pattern, put, phrase)
    return phrase


def bare(noun_phrase: str) -> str:
    """Drop a leading article or possessive."""
    return _LEADING_ARTICLE.sub("", noun_phrase)


def with_article(noun_phrase: str) -> str:
    """Put "a" or "an" before a bare noun phrase."""
    return ("an " if _VOWEL_SOUND.match(noun_phrase) else "a ") + noun_phrase


def mend_articles(text: str) -> str:
    """Make every "a" and "an" agree with the word that follows."""
    return _ARTICLE.sub(lambda found: found[1] + ("n " if _VOWEL_SOUND.match(found[2]) else " "), text)


def is_plural(noun_phrase: str) -> bool:
    """Whether a noun phrase takes a plural verb, judged by the noun before its first modifier."""
    words = noun_phrase.lower().split()
    if not words or words[0] in ("a", "an", "one") or (words[0].endswith("ing") and len(words) > 1):
        return False
    end = next((i for i, word in enumerate(words) if i and word in _MODIFIERS), len(words))
    head = words[end - 1].strip(",.;")
    if words[0] in _PLURAL_COUNTS or " and " in f" {' '.join(words[:end])} ":
        return True
    return head in _PLURALS or (head.endswith("s") and not head.endswith(("ss", "us", "is", "'s")) and head != "news")


def agree(verb: str, *, plural: bool) -> str:
    """Return a verb given in the third person singular in the form its subject needs."""
    if not plural:
        return verb
    if verb in _PLURAL_VERBS:
        return _PLURAL_VERBS[verb]
    return verb[:-2] if verb.endswith(("shes", "ches", "oes")) else verb.removesuffix("s")


def sentence(text: str) -> str:
    """Begin with a capital and end with a stop."""
    text = text.strip()
    if not text:
        return text
    begin = 1 if text[0] in "\"'“" and len(text) > 1 else 0
    text = text[:begin] + text[begin].upper() + text[begin + 1 :]
    return text if text[-1] in ".!?:\"'”" else text + "."
