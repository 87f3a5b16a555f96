"""What shows of a request or an answer without understanding it: the form asked for, harm, refusal, limits."""

import re

_CODE = re.compile(
    (
        r"\b(?:python|javascript|sql|code|coding|script|unit tests?|refactor|debug|regex|program(?:ming)?)\b|"
        r"\bfunction (?:that|which|for|on|to)\b"
    ),
    re.IGNORECASE,
)
_TABLE = re.compile(
    (
        r"\b(?:as|in|into|make|give me|with|return|draw up)\s+(?:an?|one|the)\s+(?:\w+ )?table\b|"
        r"\btable (?:with|of|first|would)\b"
    ),
    re.IGNORECASE,
)
_LIST = re.compile(
    r"\b(?:list (?:\w+ ){0,3}(?:ideas|things|risks|questions|what)|numbered list|checklist|bullet points? for|"
    r"(?:lay out|in|give me) \w+ (?:steps|points))\b",
    re.IGNORECASE,
)
_HARM = re.compile(
    r"without (?:them|anyone|anybody|her|him|people) (?:noticing|knowing)|threatening to |"
    r"forge (?:\w+ )?signature|fake (?:review|"
    r"invoice|id\b|document)|"
    r"false rumou?r|in confidence to make|falsif|in secret\b|cheat \w+|cheat (?:a|an|the|my) |"
    r"bank details|get into the e-?mail|"
    r"make (?:a|an|the) [\w -]{2,40} unsafe|invented facts|in the name of an official|from the inspector|hack into|"
    r"(?:build|make) (?:a|an) (?:bomb|explosive|weapon)|poison (?:a|my|the|some)\b|launder(?:ing)? money|insider|phish|"
    r"malware|ransomware|blackmail|"
    r"steal (?:from|a|the|my|his|her) |stalk (?:my|a|the|him|her)\b|"
    r"how (?:do|can) i (?:kill|hurt) (?!(?:a|the|this) (?:\w+ )?process)|"
    r"manipulate the (?:price|market)|"
    r"under different names that talk up|"
    r"fake (?:a )?(?:press release|shortage|orders|certificate|police|charity|documents?)\b|agree on prices for|"
    r"pump and dump|let slip the figures|before it is public|"
    r"(?:secret result|sealed bids|confidential list|sealed post)|"
    r"pose as a|pass as an? (?:inspector|official|officer|doctor)|as if it came from the bank|forged |"
    r"licensed expert on .{2,60} never took|"
    r"\bi broke on purpose|we keep \d+ percent and nobody checks|private messages of|hidden camera|"
    r"without (?:their|his|her) knowledge|"
    r"insults that would make|\bbully(?:ing)?\b|messages to frighten|anonymous calls|make people sick|"
    r"(?:make|mix) a poison|"
    r"build a weapon|make an explosive|banned chemical|set fire to .{2,60} looks like|nickname campaign|"
    r"cannot prove it|hide that age|not letting rooms .{2,60} to foreigners|"
    r"is bound to fail, so i can|keeps out one religion|sound of their names|safety stop|must fool the inspector|"
    r"get round the alarm|backdate the papers|failed the inspection, and go on|keep it from the inspector|"
    r"bridge the fuse",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:i can(?:'|’|no)t (?:help|assist|do|provide)|i cannot (?:help|assist|do this|do that|provide|take part)|"
    r"i(?:'|’)m (?:sorry|unable|afraid|"
    r"not able)|i am (?:sorry|unable|not able)|"
    r"can(?:'|’)t assist|must decline|won(?:'|’)t help|i have to decline|not something i can|"
    r"will not help|can(?:'|’)t provide)",
    re.IGNORECASE,
)
_NUMBER = r"(\d{1,4}|two|three|four|five|six|seven|eight|nine|ten|twelve)"
_WORD_LIMIT = re.compile(
    rf"\b(?:under|at most|no more than|within|up to|maximum of|max\.?|fewer than|below) {_NUMBER} words", re.IGNORECASE
)
_THINK = re.compile(
    r"think (?:it )?(?:through )?step by step|think (?:carefully|hard)|show your (?:thinking|reasoning)|<think>",
    re.IGNORECASE,
)
_SYSTEM_THINK = re.compile(r"\b(?:think|thinking|reason|reasoning)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\d\.)\s+")
_NUMBERS = {word: place for place, word in enumerate(_NUMBER.strip("()").split("|")[1:], 2)} | {"twelve": 12}


def asks_for_code(request: str) -> bool:
    """Whether code is wanted."""
    return bool(_CODE.search(request))


def asks_for_table(request: str) -> bool:
    """Whether a table is wanted."""
    return bool(_TABLE.search(request))


def asks_for_list(request: str) -> bool:
    """Whether separate points are wanted."""
    return bool(_LIST.search(request))


def asks_for_thinking(system: str, request: str) -> bool:
    """Whether the reasoning should be shown before the answer."""
    return bool(_THINK.search(request) or _SYSTEM_THINK.search(system))


def is_harmful(request: str) -> bool:
    """Whether a request is plainly meant to harm somebody."""
    return bool(_HARM.search(request))


def is_refusal(response: str) -> bool:
    """Whether a response declines near its beginning."""
    return bool(_REFUSAL.search(response[:240]))


def read_word_limit(request: str) -> int | None:
    """Return the most words a request allows, or None."""
    found = _WORD_LIMIT.search(request)
    return read_count(found[1]) if found else None


def read_count(word: str) -> int:
    """Read a small number in digits or letters."""
    return int(word) if word.isdigit() else _NUMBERS[word.lower()]


def limit_words(text: str, n_words: int) -> str:
    """Drop sentences from the end until the limit holds; cut the first one if need be."""
    if len(text.split()) <= n_words:
        return text
    ends = [found.start() for found in _SENTENCE_END.finditer(text)]
    end = next((end for end in reversed(ends) if len(text[:end].split()) <= n_words), None)
    return text[:end] if end else " ".join(text.split()[:n_words]).rstrip(",;:") + "."
