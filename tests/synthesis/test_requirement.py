from collections import Counter

import pytest

from matrix_dspy.config import KindConfig, RequirementChoice, SynthesisConfig, load_kind
from matrix_dspy.synthesis.requirement import draw_requirement


def make_kind() -> KindConfig:
    return KindConfig(
        name="toy",
        describe="Toys.",
        requirement="a request for a toy",
        lengths={"simple": "one sentence", "specialised": "one page"},
        categories=(
            RequirementChoice(name="advice", text="asks what to do", weight=3),
            RequirementChoice(name="writing", text="asks for a text", weight=1),
        ),
        complexities={
            "simple": (RequirementChoice(name="plain", text="easy"),),
            "specialised": (RequirementChoice(name="expert", text="needs figures"),),
        },
        styles=(
            RequirementChoice(name="command", text="an order"),
            RequirementChoice(name="question", text="a question"),
        ),
    )


def test_the_same_instruction_and_seed_draw_the_same_requirement():
    kind, config = make_kind(), SynthesisConfig()

    assert draw_requirement("instruction-1", kind, config, 4) == draw_requirement("instruction-1", kind, config, 4)


def test_other_instructions_and_other_seeds_draw_others():
    kind, config = load_kind("sft"), SynthesisConfig()

    assert len({draw_requirement(f"instruction-{n}", kind, config, 0).text for n in range(50)}) > 30
    assert len({draw_requirement("instruction-1", kind, config, seed).text for seed in range(50)}) > 30


def test_choices_are_drawn_by_their_weight():
    drawn = Counter(
        draw_requirement(f"instruction-{n}", make_kind(), SynthesisConfig(), 0).category for n in range(4000)
    )

    assert drawn["advice"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_the_writer_is_told_kind_type_category_complexity_style_length_and_language():
    drawn = draw_requirement("instruction-1", make_kind(), SynthesisConfig(language="German"), 0)

    lines = drawn.text.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "Kind", "Type", "Category", "Complexity", "Style", "Length", "Language",
    ]  # fmt: skip
    assert lines[0] == "Kind: a request for a toy"
    assert lines[1] == "Type: simple"
    assert lines[3] == "Complexity: plain: easy"
    assert lines[5] == "Length: one sentence"
    assert lines[6] == "Language: German"


def test_names_and_words_are_of_the_same_draw():
    kind = make_kind()

    for number in range(20):
        drawn = draw_requirement(f"instruction-{number}", kind, SynthesisConfig(), 0)
        told = {choice.name: choice.text for choice in (*kind.categories, *kind.styles)}
        assert f"Category: {drawn.category}: {told[drawn.category]}" in drawn.text
        assert f"Style: {drawn.style}: {told[drawn.style]}" in drawn.text


def test_the_type_chooses_complexity_and_length():
    drawn = draw_requirement("instruction-1", make_kind(), SynthesisConfig(type="specialised"), 0)

    assert drawn.complexity == "expert"
    assert "Length: one page" in drawn.text


def test_a_need_is_the_topic_and_without_one_none_is_named():
    with_need = draw_requirement("instruction-1", make_kind(), SynthesisConfig(need="support for a bank"), 0)
    without = draw_requirement("instruction-1", make_kind(), SynthesisConfig(), 0)

    assert with_need.text.splitlines()[-1] == "Topic: support for a bank"
    assert "Topic" not in without.text


@pytest.mark.parametrize("type_", ["simple", "specialised"])
def test_the_shipped_kind_serves_both_types(type_):
    drawn = draw_requirement("instruction-1", load_kind("sft"), SynthesisConfig(type=type_), 0)

    assert f"Type: {type_}" in drawn.text
