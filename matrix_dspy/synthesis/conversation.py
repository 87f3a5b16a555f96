"""Dialogues: the agent goes on asking, as somebody who has read the last answer (METHOD 3.3, ours)."""

import re

from matrix_dspy.text import count_words, words

MOST_WORDS = 150
"""Longest follow-up, in words; the writer is asked for 60."""
_LEAST_LETTERS = 4
_MOST_THANKS = 25
"""Words from which a message that begins with thanks surely says more."""
_THANKS = re.compile(
    r"^\W*(?:(?:many |a thousand )?thanks?(?: (?:you|a lot|so much|very much|again))*|thx|cheers|great|perfect|awesome"
    r"|wonderful|got it|ok(?:ay)?|that(?:'s| is) (?:all|great|perfect|very helpful|helpful)|much appreciated"
    r"|bye|goodbye)\b",
    re.IGNORECASE,
)
_GOES_ON = re.compile(
    r"\?|\b(?:but|though|although|however|except|instead|unless|now|then|please"
    r"|i (?:need|want|still|only|cannot|can't|don't|do not))\b",
    re.IGNORECASE,
)
_NEXT_CLAUSE = re.compile(r"[.,;:!\n]\s*([\w']+)")
_CLOSING_TEXT = """
    i i'll i'm i've we we'll this that that's it it's you you've your have see bye goodbye thank thanks thx cheers take
    will all so very for and again the a good great nice perfect awesome wonderful really exactly glad much
"""
_CLOSING = frozenset(_CLOSING_TEXT.split())
"""How a clause begins that says thanks or goodbye, or what the person is going to do."""
_ASSISTANT = re.compile(
    r"^\W*(?:assistant|user|human|ai|me|you|system)\s*:"
    r"|^\W*(?:certainly|sure|of course|absolutely)"
    r"(?:!|\W+(?:i(?:'d| would) be|i can (?:help|explain|write)|happy to)\b)"
    r"|^\W*(?:(?:certainly|sure|of course|absolutely)\W+)?here(?:'s| is| are) (?:a|an|the|some|your)\b"
    r"|^\W*(?:i'd be happy|i would be happy|happy to help)\b"
    r"|\bas an ai\b(?! \w+er\b)|\bhow can i (?:help|assist) you\b|\bhope this helps\b"
    r"|\blet me know if you (?:have any|need (?:any|more|further)|(?:want|would like|'d like) (?:me|more))"
    r"|\bis there anything else i can\b",
    re.IGNORECASE,
)
_POINTS_BACK = re.compile(
    r"\b(?:that|this|those|these|it|them|you (?:said|say|wrote|mention|suggest|list|gave|put|propose|recommend)\w*"
    r"|your (?:\w+ ){0,2}"
    r"(?:answer|plan|list|idea|suggestion|point|step|draft|version|example|advice|table|text|letter)\w*"
    r"|(?:first|second|third|fourth|last|next|other) (?:one|step|point|option|part|idea|line|item)"
    r"|(?:step|point|option|item) \w+)\b",
    re.IGNORECASE,
)
_COMMON_TEXT = """
    about after again also because been before being could does doing each even every from have here
    into just like make many more most much need only other over should some such than that their them
    then there these they thing things this those time very want what when where which while will with
    would your yours
"""
_COMMON = frozenset(_COMMON_TEXT.split())


def find_follow_up_fault(text: str, dialogue: list[str]) -> str | None:
    """Say what is wrong with a follow-up to a dialogue that ends with the assistant's turn; None if nothing is."""
    if not text.strip():
        return "the message is empty"
    if _ASSISTANT.search(text):
        return "the message speaks as the assistant; write what the person asks next"
    if _only_thanks(text):
        return "the message only thanks or approves; ask for something more"
    if (n_words := count_words(text)) > MOST_WORDS:
        return f"the message has {n_words} words; write at most 60"
    own = _content(text)
    for earlier in dialogue[::2]:
        if own and own == _content(earlier):
            return "the message repeats an earlier one; go on from the last answer"
    is_bare = not own and "?" in text  # "Why?" can only be about the last answer
    if not (is_bare or own & _content(dialogue[-1]) or _POINTS_BACK.search(text)):
        return "the message takes up nothing of the last answer; go on from what it says"
    return None


def _only_thanks(text: str) -> bool:
    """Whether a message thanks, approves or says goodbye, and asks for nothing after that."""
    if not (opening := _THANKS.match(text)) or count_words(text) >= _MOST_THANKS:
        return False
    rest = text[opening.end() :]
    begins = (clause[1].lower() for clause in _NEXT_CLAUSE.finditer(rest.replace("’", "'")))
    return not _GOES_ON.search(rest) and all(word in _CLOSING for word in begins)


def _content(text: str) -> frozenset[str]:
    """Return the stems of the telling words of a text, and its figures."""
    return frozenset(
        word[:6] for word in words(text) if word.isdecimal() or (len(word) >= _LEAST_LETTERS and word not in _COMMON)
    )
