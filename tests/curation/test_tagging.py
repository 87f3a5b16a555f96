import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.curation.tagging import find_root_verb

ASKING = {
    "Write a note to my landlord.": "write",
    "Please write a note to my landlord.": "write",
    "Could you please write me a letter?": "write",
    "Hi, could you perhaps draft an email?": "draft",
    "Would you mind checking my sums?": "check",
    "Can you help me find a plumber?": "find",
    "Help me to better understand my lease.": "understand",
    "Help me with my taxes.": "help",
    "I need help writing a speech for my sister's wedding.": "write",
    "I have 3 kids. Give me a plan for Sunday.": "give",
    "I'd like you to proofread this letter: Dear all, thanks.": "proofread",
    "I want you to act as a judge. Summarise the case in four lines.": "act",
    "Act as a strict judge. Summarise the case in four lines.": "summarize",
    "Your task is to compare two bakeries.": "compare",
    "Bake rye bread with me.": "bake",
    "Plan my week.": "plan",
    "Thanks! Now make it shorter.": "make",
    "Summarise this text.": "summarize",
    "Analyse the figures.": "analyze",
    "Don't use commas. Write a poem.": "write",
    "Given the prices below, list the three cheapest.": "list",
    "As a nurse, how do I explain a dose to a child?": "explain",
    "In two lines, describe a harbour at dawn.": "describe",
    "How do I prune a rose?": "prune",
    "How can my old neighbours heat their flat?": "heat",
    "how to get rid of moss": "get",
    "What should I say to my boss?": "say",
    "Which flour would you recommend?": "recommend",
    "Why won't my bread rise?": "rise",
    "Who wrote the first cookbook?": "write",
    "Do the stages of life shape our sense of time?": "shape",
    "Should I buy or rent?": "buy",
    "Is it possible to grow figs in Oslo?": "grow",
    "Let's plan a party for twelve.": "plan",
    "I want to learn Spanish. Suggest a plan.": "suggest",
    "I want to learn Spanish.": "learn",
    "Task: translate the line into Greek.": "translate",
    "1. Sort these by price\n2. Mark the cheapest": "sort",
    "```\nprint(x)\n```\nFix the code.": "fix",
    'Is this a good idea: "Sell the shop"? Use no commas.': None,
    "What is rust?": None,
    "What are the three largest lakes?": None,
    "What's the capital of Chad? Please answer in capital letters.": None,
    "Book review of a novel, 200 words": None,
    "Date: 3 May": None,
    "12 + 4 = ?": None,
    "": None,
    "...": None,
}


@pytest.mark.parametrize(("text", "verb"), ASKING.items())
def test_the_verb_that_asks_is_found_in_its_base_form(text: str, verb: str | None):
    assert find_root_verb(text) == verb


@pytest.mark.parametrize(
    "politeness", ["Please ", "Could you ", "Can you please ", "Kindly ", "I need you to ", "Hello, "]
)
@pytest.mark.parametrize("verb", ["write", "sort", "outline", "repair", "sketch", "price"])
def test_politeness_changes_nothing(politeness: str, verb: str):
    request = f"{verb} the list of old tools."

    assert find_root_verb(politeness + request) == find_root_verb(request.capitalize()) == verb


@given(st.text(max_size=200))
def test_any_text_gives_a_lower_case_word_or_none(text: str):
    verb = find_root_verb(text)

    assert verb is None or (verb == verb.lower() and verb.strip() == verb != "")


@pytest.mark.parametrize(
    "text", ["write " * 20_000, "can you " * 10_000, "a, " * 30_000, "how " * 20_000, "`" * 50_000]
)
def test_a_long_odd_text_is_read_at_its_beginning_only(text: str):
    assert find_root_verb(text) == find_root_verb(text[:6000])


def test_the_word_lists_are_read_when_first_needed():
    script = (
        "import sys, matrix_dspy.curation.tagging as tagging\n"
        "assert 'lemminflect' not in sys.modules\n"
        "assert tagging.find_root_verb('Wrote about it? Then write again.') == 'write'\n"
        "assert 'lemminflect' in sys.modules and 'spacy' not in sys.modules\n"
    )

    subprocess.run([sys.executable, "-c", script], check=True)


def test_most_real_prompts_that_begin_with_write_have_that_verb():
    if not (folder := os.environ.get("MATRIX_DSPY_DATA")):
        pytest.skip("MATRIX_DSPY_DATA names no folder of real prompts")
    lines = Path(folder, "benchmarks", "ifeval_en_input_data.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [prompt for line in lines if (prompt := json.loads(line)["prompt"]).startswith("Write ")]

    assert len(prompts) > 150
    assert {find_root_verb(prompt) for prompt in prompts} == {"write"}
