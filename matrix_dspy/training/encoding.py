"""Conversations as tokens of a model's own chat template, and which of them are learnt: every assistant turn's.

In: messages. Out: token ids and, for each assistant turn, where its tokens begin and end, the token that ends the turn
included. A template with `{% generation %}` says where its turns are. One without is rendered from turn to turn: where
each rendering begins with the one before it (the prefix law), the turns are what was added. For known templates that
break the law (they drop the thinking of earlier turns, say) TRL has training versions, which are used in their place.

Some tokenizers write the end of a prompt in other tokens once an answer follows: two line ends are one token at the end
of a text and two before a word, for those that cut as GPT-2 does. A model trained on those tokens would never have seen
the prompt that it answers later. There the text is cut at the start of each answer before it is tokenized.
"""

import logging
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from matrix_dspy.errors import ConfigError, describe_os_error
from matrix_dspy.text import one_line
from matrix_dspy.types import Message

Turns = Sequence[Message]
Tools = Sequence[dict[str, Any]]
"""Descriptions of functions that a model may call, as OpenAI writes them."""
IGNORED = -100
"""Label of tokens that are not learnt."""
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_THINKING = ("<think>", "</think>")
"""Tokens of some vocabularies that answers may hold all the same."""
_PAD_NAMES = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|endoftext|>", "<|vision_pad|>", "<unk>")
_SPARE = re.compile(r"reserved|unused|extra_id|pad", re.IGNORECASE)
_PROBE = (
    Message(role="user", content="One"),
    Message(role="assistant", content="Two"),
    Message(role="user", content="Three"),
    Message(role="assistant", content="Four"),
)
_TOOL = {"type": "function", "function": {"name": "five", "description": "Six", "parameters": {}}}


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as tokens."""

    ids: list[int]
    turns: tuple[tuple[int, int], ...]
    """For each assistant turn the places of its first token and of the one after its last."""

    def labels(self, shown: Container[int] = ()) -> list[int]:
        """Return the ids where they are learnt, and -100 elsewhere.

        `shown` are the numbers, from 0, of assistant turns that are not learnt.
        """
        labels = [IGNORED] * len(self.ids)
        for number, (first, end) in enumerate(self.turns):
            if number not in shown:
                labels[first:end] = self.ids[first:end]
        return labels


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why a conversation cannot be encoded."""

    reason: str
    """A short fixed word to count by."""
    detail: str


class ChatEncoder:
    """Encodes conversations with one tokenizer and its chat template."""

    def __init__(self, tokenizer: Any, model: str) -> None:
        """Choose the way to find assistant turns.

        `model` is what messages call the model.

        Raises:
            ConfigError: there is no chat template, or none of the ways works with it.
        """
        self.tokenizer = tokenizer
        if not tokenizer.is_fast:
            raise ConfigError(f"{model!r} has a tokenizer that does not tell where its tokens stand; save a fast one")
        if not tokenizer.chat_template:
            raise ConfigError(f"{model!r} has no chat template; give one with --chat-template FILE (Jinja)")
        self._template = _default_template(tokenizer.chat_template)
        self._has_markers = bool(_MARKERS.search(self._template))
        self.way = "generation markers" if self._has_markers else "prefixes"
        fault = self._try_probe()
        if (fault or self._end_of_turn is None) and not self._has_markers:
            before = self._template, self._has_markers, self.way
            unknown = self._take_known_template()
            if not unknown and not (unknown := self._try_probe()):
                fault = ""
            elif not fault:  # it has no version with ends of turns: the template itself does
                self._template, self._has_markers, self.way = before
                fault = self._try_probe()
            else:
                fault = unknown
        if fault:
            raise ConfigError(
                f"the chat template of {model!r} does not tell which tokens are the assistant's ({fault}); mark them "
                "with {% generation %} and {% endgeneration %} in a copy and give it with --chat-template FILE"
            )
        self._forbidden = self._find_forbidden()
        self.shows_tools = self._try_tool()

    @property
    def end_of_turn(self) -> int | None:
        """The token that ends an assistant's turn; None where the template has none of its own."""
        return self._end_of_turn

    def encode(self, conversations: Sequence[Turns], tools: Sequence[Tools] | None = None) -> list[Encoded | Unfit]:
        """Encode conversations, in their order, with the tools of each."""
        given = [()] * len(conversations) if tools is None else tools
        rendered = [self._render_or_say(*each) for each in zip(conversations, given, strict=True)]
        cut = [_cut(text, spans) if self._is_cut else [text] for text, spans in _skip_unfit(rendered)]
        tokens = self._tokenize([piece for pieces in cut for piece in pieces])
        joined = (_join([next(tokens) for _ in pieces], pieces) for pieces in cut)
        return [each if isinstance(each, Unfit) else _place(*next(joined), each[1]) for each in rendered]

    def encode_prompt(self, turns: Turns, tools: Tools = ()) -> list[int]:
        """Return the tokens that an answer to `turns` is generated from."""
        text, _ = self._render(turns, tools, is_prompt=True)
        return next(self._tokenize([text]))[0]

    def _render_or_say(self, turns: Turns, tools: Tools = ()) -> tuple[str, list[tuple[int, int]]] | Unfit:
        """Return the text of a conversation and where its assistant turns stand in it, in characters."""
        from jinja2 import TemplateError

        for turn in turns:
            if found := self._forbidden.search(turn.content):
                return Unfit("special token", f"a turn of it holds {found[0]!r}, a token of the model's own")
        if found := next(filter(None, map(self._forbidden.search, _list_texts(tools))), None):
            return Unfit("special token", f"a tool of it holds {found[0]!r}, a token of the model's own")
        try:
            text, spans = self._find_spans(turns, tools)
        except (TemplateError, TypeError, ValueError) as error:
            return Unfit("template", f"the chat template refuses it: {one_line(str(error))[:200]}")
        return _check_spans(text, spans, turns) or (text, [self._shape_span(text, *span) for span in spans])

    def _find_spans(self, turns: Turns, tools: Tools) -> tuple[str, list[tuple[int, int]]]:
        if self._has_markers:
            text, spans = self._render(turns, tools)
            # a template may mark the end of the whole conversation as a turn of its own
            spans = [(start, end) for start, end in spans if self._added.sub("", text[start:end]).strip()]
            return text, [(start + self._count_header(text[start:end]), end) for start, end in spans]
        text, _ = self._render(turns, tools)
        spans = []
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before, _ = self._render(turns[:number], tools, is_prompt=True)
            after, _ = self._render(turns[: number + 1], tools)
            if not (text.startswith(after) and after.startswith(before)):
                raise ValueError("a conversation does not begin as its first turns alone do")
            spans.append((len(before), len(after)))
        return text, spans

    def _render(self, turns: Turns, tools: Tools = (), *, is_prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        # the function behind apply_chat_template, which keeps the places in characters to itself (transformers 5.19)
        rendered: Any = render_jinja_template(
            conversations=[[{"role": turn.role, "content": turn.content} for turn in turns]],
            tools=list(tools) or None,
            chat_template=self._template,
            return_assistant_tokens_mask=self._has_markers,
            add_generation_prompt=is_prompt,
            **self.tokenizer.special_tokens_map,
        )
        texts, spans = rendered
        return texts[0], [(start, end) for start, end in spans[0]] if spans else []

    def _count_header(self, turn: str) -> int:
        """Return how many characters of a marked turn stand in the prompt already, such as the token of its role."""
        return len(self._header) if turn.startswith(self._header) else 0

    def _shape_span(self, text: str, start: int, end: int) -> tuple[int, int]:
        """Make a span end with the token that ends the turn: neither before it nor with white space behind it."""
        found = [match.end() for match in self._added.finditer(text, start, end)]
        if found and not text[found[-1] : end].strip():
            return start, found[-1]
        return start, end + len(self._end_left_out) if text.startswith(self._end_left_out, end) else end

    def _tokenize(self, texts: list[str]) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        if not texts:
            return
        # rows longer than the model's context are counted later, not warned of here
        logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
        encoded = self.tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
        )
        yield from zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)

    def _try_probe(self) -> str:
        """Encode a conversation of two turns; return what went wrong."""
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        self._added = _any_of([*added, self.tokenizer.eos_token or ""])
        self._forbidden = _any_of([])
        self._end_of_turn: int | None = None
        self._end_left_out = self._header = ""
        self._is_cut = False
        if self._has_markers:
            self._header = self._find_header()
        probe = self._render_or_say(_PROBE)
        if isinstance(probe, Unfit):
            return probe.detail
        if following := self._added.match(probe[0], probe[1][-1][1]):
            # what follows the last turn of all ends it: markers that leave the end of a turn out
            self._end_left_out = following[0]
            probe = (probe[0], [self._shape_span(probe[0], *span) for span in probe[1]])
        ids, offsets = next(self._tokenize([probe[0]]))
        placed = _place(ids, offsets, probe[1])
        if isinstance(placed, Unfit):
            return placed.detail
        last = ids[placed.turns[0][1] - 1]
        is_own = last in self.tokenizer.added_tokens_decoder or last == self.tokenizer.eos_token_id
        self._end_of_turn = last if is_own else None
        self._is_cut = self._is_prompt_changed(probe[0], probe[1][0][0], ids)
        return ""

    def _find_header(self) -> str:
        """Return what a prompt ends with so that an answer follows; nothing where it does not begin with a token."""
        try:
            (plain, _), (asking, _) = self._render(_PROBE[:1]), self._render(_PROBE[:1], is_prompt=True)
        except Exception:  # a template that does not take it is said when the probe is rendered
            return ""
        # thinking that the prompt opens is the answer's all the same
        header = asking[len(plain) :].partition(_THINKING[0])[0] if asking.startswith(plain) else ""
        return header if self._added.match(header) else ""

    def _try_tool(self) -> bool:
        """Whether the template shows tools."""
        try:
            return self._render(_PROBE, [_TOOL])[0] != self._render(_PROBE)[0]
        except Exception:  # a template may raise whatever it likes
            return False

    def _is_prompt_changed(self, text: str, start: int, ids: list[int]) -> bool:
        """Whether a prompt is in other tokens alone than before its answer, and cutting there keeps the text."""
        (before, _), (after, _) = self._tokenize([text[:start], text[start:]])
        return ids[: len(before)] != before and self.tokenizer.decode(before + after) == self.tokenizer.decode(ids)

    def _take_known_template(self) -> str:
        """Take TRL's training version of a known template; return why there is none."""
        from trl.chat_template_utils import get_training_chat_template

        try:
            known = get_training_chat_template(self.tokenizer)
        except ValueError:
            known = None
        if not known:
            return "a conversation does not begin as its first turns alone do"
        self._template, self._has_markers, self.way = known, True, "TRL's training version of it"
        return ""

    def _find_forbidden(self) -> re.Pattern[str]:
        """Return a pattern of the tokens that texts of the data must not hold: they would be structure."""
        own = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        shown, _ = self._render(_PROBE)
        own += [match[0] for match in self._added.finditer(shown) if match[0]]
        return _any_of([text for text in {*own, *self.tokenizer.all_special_tokens} if text not in _THINKING])


def load_tokenizer(model: str, template: str = "", *, is_local: bool = True) -> Any:
    """Load a model's tokenizer, with the chat template of the file `template` where one is given.

    Raises:
        ConfigError: there is no tokenizer, or the template cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=is_local)
    except (OSError, ValueError, KeyError) as error:
        words = one_line(str(error))[:200]
        raise ConfigError(f"could not load the tokenizer of {model!r} ({words}); give a model's folder") from error
    if template:
        tokenizer.chat_template = read_template(template)
    return tokenizer


def read_template(path: str) -> str:
    """Read a chat template.

    Raises:
        ConfigError: it cannot be read, or is not Jinja.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        _compile_jinja_template(text)
    except OSError as error:
        raise ConfigError(f"could not read the chat template {path!r}: {describe_os_error(error)}") from error
    except (TemplateError, UnicodeDecodeError) as error:
        raise ConfigError(f"the chat template {path!r} is not Jinja: {one_line(str(error))[:200]}") from error
    if not text.strip():
        raise ConfigError(f"the chat template {path!r} is empty; give a file with one")
    return text


def set_pad_token(tokenizer: Any, asked: str, model: str, end_of_turn: int | None) -> str:
    """Make sure that a tokenizer has a pad token, and return a sentence where one was chosen; never a new one.

    Padding is masked and never learnt here, but others who train on the model go by the token.

    Raises:
        ConfigError: `asked` is not in the vocabulary, or no token can be spared.
    """
    vocabulary = tokenizer.get_vocab()
    if asked:
        if asked not in vocabulary:
            raise ConfigError(f"pad_token = {asked!r} is not in the vocabulary of {model!r}; name a token that is")
        tokenizer.pad_token = asked
        return f"pads with {asked!r}, as asked"
    if tokenizer.pad_token is not None:
        return ""
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    if end_of_turn is not None:
        taken.add(tokenizer.convert_ids_to_tokens(end_of_turn))
    template = _default_template(tokenizer.chat_template)
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    spare = [text for text in (*_PAD_NAMES, *filter(_SPARE.search, added)) if text in vocabulary]
    found = next((text for text in spare if text not in taken and text not in template), None)
    if found is None:
        raise ConfigError(
            f"{model!r} has no pad token and no spare special token; name a token of its vocabulary that texts never "
            "hold with --set pad_token='...'"
        )
    tokenizer.pad_token = found
    return f"{model!r} has no pad token; pads with {found!r}"


def _default_template(template: str | dict[str, str]) -> str:
    return template if isinstance(template, str) else template.get("default") or next(iter(template.values()))


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of any of the texts, the longest first; of none it matches nothing."""
    parts = sorted({text for text in texts if text}, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, parts)) if parts else r"(?!)")


def _check_spans(text: str, spans: list[tuple[int, int]], turns: Turns) -> Unfit | None:
    """Make sure that every assistant turn has a span and that what it says stands in it."""
    answers = [turn.content for turn in turns if turn.role == "assistant"]
    if len(spans) != len(answers):
        return Unfit("template", f"the chat template shows {len(spans)} of its {len(answers)} assistant turns")
    for number, (answer, (start, end)) in enumerate(zip(answers, spans, strict=True), 1):
        shown = _squeeze(text[start:end])
        if number == len(answers) and _squeeze(answer) not in shown:
            lost = "thinking" if _squeeze(answer.rpartition(_THINKING[1])[2]) in shown else "text"
            return Unfit("template", f"the chat template drops {lost} of its last answer")
        if _squeeze(answer.rpartition(_THINKING[1])[2]) not in shown:
            return Unfit("template", "the chat template drops text of an answer")
    return None


def _skip_unfit(
    rendered: Iterable[tuple[str, list[tuple[int, int]]] | Unfit],
) -> list[tuple[str, list[tuple[int, int]]]]:
    return [each for each in rendered if not isinstance(each, Unfit)]


def _cut(text: str, spans: list[tuple[int, int]]) -> list[str]:
    """Cut a text where each span begins."""
    cuts = [0, *(start for start, _ in spans), len(text)]
    return [text[first:end] for first, end in pairwise(cuts) if first < end]


def _join(
    tokens: list[tuple[list[int], list[tuple[int, int]]]], pieces: list[str]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Put the tokens of a text's pieces together, with their places in the whole."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    place = 0
    for (piece_ids, piece_offsets), piece in zip(tokens, pieces, strict=True):
        ids += piece_ids
        offsets += [(first + place, end + place) for first, end in piece_offsets]
        place += len(piece)
    return ids, offsets


def _list_texts(value: Any) -> Iterator[str]:
    """Give all texts in a nested value, the keys of mappings included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in (*value.keys(), *value.values()) if isinstance(value, dict) else value:
            yield from _list_texts(each)


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _place(ids: list[int], offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> Encoded | Unfit:
    """Find the tokens of each span: those that share a character with it."""
    turns: list[tuple[int, int]] = []
    place = 0
    for start, end in spans:
        while place < len(ids) and offsets[place][1] <= start:
            place += 1
        first = place
        while place < len(ids) and offsets[place][0] < end:
            place += 1
        if first == place:
            return Unfit("template", "the chat template leaves no tokens of an answer")
        turns.append((first, place))
    return Encoded(ids, tuple(turns))
