from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_dspy.errors import ConfigError
from matrix_dspy.training.encoding import ChatEncoder, Encoded, Unfit, read_template, set_pad_token
from matrix_dspy.training.tiny import CHAT_TEMPLATE, build_tiny_tokenizer
from matrix_dspy.types import Message
from tests.training.material import UNMARKED

END_LEFT_OUT = CHAT_TEMPLATE.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
BLANK_INSIDE = CHAT_TEMPLATE.replace("<|im_end|>{% endgeneration %}", "<|im_end|>{{ '\n' }}{% endgeneration %}")
UNMARKED_TWIN = CHAT_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}\n", "")
NO_BLANKS = UNMARKED.replace("<|im_end|>\n", "<|im_end|>")
DROPS_THINKING = UNMARKED.replace(
    "{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'] }}"
)
SHOWS_LAST_APART = UNMARKED.replace(
    "{{ m['content'] }}",
    "{% if loop.last and m['role'] == 'assistant' %}<think></think>{% endif %}{{ m['content'] }}",
)
ALL = {
    "marks": CHAT_TEMPLATE,
    "no marks": UNMARKED,
    "no marks, else the same": UNMARKED_TWIN,
    "marks that leave the end out": END_LEFT_OUT,
    "marks with a blank behind the end": BLANK_INSIDE,
    "nothing between turns": NO_BLANKS,
}
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(
    lambda text: text.strip() and "<|" not in text
)
CHATS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4)


def build_encoder(template: str | None, **named: Any) -> ChatEncoder:
    return ChatEncoder(build_tiny_tokenizer(template=template, **named), "tiny")


ENCODERS = {name: build_encoder(template) for name, template in ALL.items()}


def chat(*said: tuple[str, str], system: str = "") -> list[Message]:
    turns = [Message(role="system", content=system)] if system else []
    for asked, answered in said:
        turns += [Message(role="user", content=asked), Message(role="assistant", content=answered)]
    return turns


def encode(encoder: ChatEncoder, turns: list[Message]) -> Encoded:
    (found,) = encoder.encode([turns])
    assert isinstance(found, Encoded), found
    return found


@settings(max_examples=60)
@given(st.sampled_from(sorted(ALL)), CHATS, st.one_of(st.just(""), TEXTS))
def test_exactly_what_the_assistant_says_is_learnt_with_the_end_of_every_turn(
    name: str, said: list[tuple[str, str]], system: str
):
    encoder = ENCODERS[name]

    found = encode(encoder, chat(*said, system=system))

    learnt = [encoder.tokenizer.decode(found.ids[first:end]) for first, end in found.turns]
    assert learnt == [f"{answered}<|im_end|>" for _, answered in said]
    labels = found.labels()
    inside = {place for first, end in found.turns for place in range(first, end)}
    assert [labels[place] for place in inside] == [found.ids[place] for place in inside]
    assert all(label == -100 for place, label in enumerate(labels) if place not in inside)


@settings(max_examples=30)
@given(CHATS)
def test_a_template_with_and_without_marks_gives_the_same_labels(said: list[tuple[str, str]]):
    marked, unmarked = (encode(ENCODERS[name], chat(*said)) for name in ("marks", "no marks, else the same"))

    assert (marked.ids, marked.labels()) == (unmarked.ids, unmarked.labels())


def test_the_tokens_are_those_of_apply_chat_template():
    encoder = ENCODERS["marks"]
    turns = chat(("Is it so?", "It is."), ("Ärger — ok?", "Ja, 日本 \N{SLIGHTLY SMILING FACE}"), system="Be brief.")

    found = encode(encoder, turns)

    theirs = encoder.tokenizer.apply_chat_template(
        [turn.model_dump() for turn in turns], return_dict=True, return_assistant_tokens_mask=True
    )
    assert found.ids == theirs["input_ids"]
    assert [int(label >= 0) for label in found.labels()] == theirs["assistant_masks"]


def test_rows_keep_their_order_among_rows_that_do_not_fit():
    encoder = ENCODERS["marks"]
    bad = chat(("Say it.", "a <|im_end|> b"))

    found = encoder.encode([chat(("One", "1")), bad, chat(("Two", "2"))])

    assert [type(each) for each in found] == [Encoded, Unfit, Encoded]
    assert isinstance(found[1], Unfit)
    assert (found[1].reason, "<|im_end|>" in found[1].detail) == ("special token", True)


def test_a_template_that_shows_the_last_turn_apart_takes_conversations_of_one_turn_nowhere():
    with pytest.raises(ConfigError, match=r"does not tell which tokens are the assistant's.*--chat-template"):
        build_encoder(SHOWS_LAST_APART)


def test_a_known_template_that_breaks_the_prefix_law_is_trained_with_trls_version():
    import trl

    template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
    encoder = build_encoder(template)

    found = encode(encoder, chat(("One?", "First."), ("Two?", "Second.")))

    learnt = [encoder.tokenizer.decode(found.ids[first:end]) for first, end in found.turns]
    assert encoder.way == "TRL's training version of it"
    assert [text.rpartition("</think>")[2].strip() for text in learnt] == ["First.<|im_end|>", "Second.<|im_end|>"]


def test_a_template_that_drops_thinking_is_said_for_answers_that_think():
    encoder = build_encoder(DROPS_THINKING)

    plain, thinking = encoder.encode([chat(("One?", "1")), chat(("Two?", "<think>\nHm.\n</think>\n\n2"))])

    assert isinstance(plain, Encoded)
    assert thinking == Unfit("template", "the chat template drops thinking of its last answer")


def test_thinking_is_learnt_with_its_answer():
    answer = "<think>\nHm.\n</think>\n\n2"

    found = encode(ENCODERS["marks"], chat(("Two?", answer)))

    ((first, end),) = found.turns
    assert ENCODERS["marks"].tokenizer.decode(found.ids[first:end]) == f"{answer}<|im_end|>"


def test_a_template_that_refuses_a_row_says_why():
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}"
    encoder = build_encoder(strict + CHAT_TEMPLATE)

    (found,) = encoder.encode([chat(("One?", "1"), system="Be brief.")])

    assert isinstance(found, Unfit)
    assert (found.reason, "no system turns here" in found.detail) == ("template", True)


def test_the_end_of_a_turn_is_known():
    encoder = ENCODERS["marks that leave the end out"]

    assert encoder.end_of_turn == encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_prompt_ends_where_an_answer_begins():
    encoder = ENCODERS["no marks"]

    ids = encoder.encode_prompt(chat(("One?", "1"))[:1])

    found = encode(encoder, chat(("One?", "1")))
    assert found.ids[: found.turns[0][0]] == ids


def test_without_a_template_the_option_is_named():
    with pytest.raises(ConfigError, match=r"'tiny' has no chat template; give one with --chat-template FILE"):
        build_encoder(None)


def test_a_model_without_pad_token_gets_a_spare_one_and_not_the_one_that_ends_turns():
    tokenizer = build_tiny_tokenizer(pad_token=None)

    words = set_pad_token(tokenizer, "", "tiny", tokenizer.eos_token_id)

    assert tokenizer.pad_token == "<|endoftext|>"
    assert "'tiny' has no pad token; pads with '<|endoftext|>'" in words


def test_a_pad_token_that_is_asked_for_must_be_there():
    with pytest.raises(ConfigError, match=r"pad_token = '<none>' is not in the vocabulary"):
        set_pad_token(build_tiny_tokenizer(), "<none>", "tiny", None)


def test_without_a_spare_token_one_has_to_be_named():
    tokenizer = build_tiny_tokenizer(pad_token=None, template=f"<|endoftext|>{CHAT_TEMPLATE}")

    with pytest.raises(ConfigError, match=r"no spare special token; name a token .* --set pad_token="):
        set_pad_token(tokenizer, "", "tiny", tokenizer.eos_token_id)


@pytest.mark.parametrize(("text", "words"), [("{% for %}", "is not Jinja"), ("", "is empty")])
def test_a_broken_template_file_is_refused(tmp_path: Path, text: str, words: str):
    (tmp_path / "chat.jinja").write_text(text)

    with pytest.raises(ConfigError, match=words):
        read_template(str(tmp_path / "chat.jinja"))
