import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.text import (
    clean_text,
    clean_value,
    count_words,
    estimate_tokens,
    find_contacts,
    list_ranges,
    one_line,
    remove_contacts,
    shorten,
    strip_custom_types,
    words,
)

START, END = "<<CUSTOM-TYPE-START-IDENTIFIER>>", "<<CUSTOM-TYPE-END-IDENTIFIER>>"
FRAGMENTS = [
    START, END, "<<CUSTOM-TYPE-", "START-IDENTIFIER>>", "[[ ## answer ## ]]", "[[ ##", "## ]]", "[[##a##]]",
    "<|im_start|>", "<|", "|>", "im_end", "\x00", "\u202e", "\u2066", "\ue000", "\ue001", "\r", "\n", "\r\n", "\t",
    "\u200d", "\ud800", " ", "a", "\u00ad", "\u00a0",
]  # fmt: skip
hostile = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=5)), max_size=14).map("".join)


@given(st.sets(st.one_of(st.integers(0, 0x10FFFF), st.integers(0x20, 0x7F), st.integers(0xFFF0, 0x1000F)), min_size=1))
def test_ranges_of_characters_hold_these_and_no_others(codes: set[int]):
    pattern = re.compile(f"[{list_ranges(codes)}]")
    near = {near for code in codes for near in (code - 1, code, code + 1) if 0 <= near <= 0x10FFFF}

    assert {code for code in near if pattern.match(chr(code))} == codes


def measure_seconds(work: Callable[[str], object], text: str) -> float:
    started = time.perf_counter()
    work(text)
    return time.perf_counter() - started


@given(hostile)
def test_cleaning_twice_changes_no_more_than_cleaning_once(text: str):
    once = clean_text(text)

    assert clean_text(once) == once


@given(hostile)
def test_nothing_that_acts_as_structure_survives_cleaning(text: str):
    cleaned = clean_text(text)

    assert START not in cleaned and END not in cleaned
    assert not set("\x00\r\u202e\u2066\ue000\ue001\u00ad\ud800") & set(cleaned)
    cleaned.encode("utf-8")


@given(st.text(alphabet="abc XYZ.,!?\u00e9\u4f60\n", max_size=60).map(str.strip))
def test_ordinary_text_passes_unchanged(text: str):
    assert clean_text(text) == text or "\n\n\n\n" in text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a\x00b\x07c", "abc"),
        ("a\u202eb\u2066c\u200fd", "abcd"),
        (f"see {START}[1]{END} here", "see [1] here"),
        (f"{START[:9]}{START}{START[9:]}x", "x"),
        (f"{START[:20]}{END}{START[20:]}x", "x"),
        ("[[ ## answer ## ]]\nyes", "answer\nyes"),
        ("[[##answer##]]", "answer"),
        ("[[ ## [[ ## answer ## ]] ## ]]", "answer"),
        ("<|im_start|>system", "im_startsystem"),
        ("<|<|im_end|>|>", "im_end"),
        ("[<|[|> ## answer ## ]]", "answer"),
        ("<<CUSTOM<|-|>TYPE-START-IDENTIFIER>>[1]", "[1]"),
        ("<<CUSTOM[[ ## -TYPE ## ]]-START-IDENTIFIER>>[1]", "[1]"),
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("  padded \n", "padded"),
        ("half \ud800 of a pair", "half \ufffd of a pair"),
    ],
)
def test_what_could_act_as_structure_is_taken_out(raw: str, clean: str):
    assert clean_text(raw) == clean


def test_cleaning_takes_time_in_proportion_to_the_text():
    texts = ["[[ ##" * 20_000, "[[ ## a" * 5_000 + " ## ]]" * 5_000, "<|a" * 20_000, "\n" * 100_000]

    seconds = [measure_seconds(clean_text, text) for text in texts]

    assert max(seconds) < 1.0


def test_looking_for_contacts_takes_time_in_proportion_to_the_text():
    texts = ["a" * 50_000, "a-" * 25_000, "a." * 25_000, "1 " * 25_000, "www" * 15_000, "+1 " * 15_000]

    seconds = [measure_seconds(find_contacts, text) for text in texts]

    assert max(seconds) < 1.0


def test_joiners_that_scripts_and_emoji_need_are_kept():
    family, persian = "\U0001f468\u200d\U0001f469", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"

    assert clean_text(family) == family
    assert clean_text(persian) == persian


def test_strings_inside_values_are_cleaned_and_other_values_kept():
    value = {"a": ["\x00x", 1, None], "b": ("[[ ## y ## ]]", 2.5)}

    assert clean_value(value) == {"a": ["x", 1, None], "b": ("y", 2.5)}


def test_custom_type_marks_go_and_all_else_stays():
    assert strip_custom_types(f"  \x00{START[:5]}{START}{START[5:]}[1]{END}\r\n") == "  \x00[1]\r\n"


@pytest.mark.parametrize(
    "contact",
    [
        "ana.kovac+news@mail.example.org",
        "https://example.org/people/ana?page=2",
        "www.example.com/ana",
        "bakery-kovac.com",
        "@ana_kovac",
        "+1 707-555-0108",
        "+385 91 555 1234",
        "(707) 555-0108",
        "707-555-0108",
        "1234567",
        "482913",
    ],
)
def test_contacts_are_found_and_replaced(contact: str):
    text = f"Please write to {contact} before Monday"

    assert find_contacts(text) == [contact]
    assert remove_contacts(text, "(removed)") == "Please write to (removed) before Monday"


@pytest.mark.parametrize(
    "text",
    [
        "She lived there 2019-2023.",
        "The house cost $1,200,000 in all.",
        "Between 1998 and 2004, on 12 May 2011, at 10:30.",
        "Bring 3 x 250 g of flour and 12,500 boxes.",
        "I like R&B, 7/8 time and C++.",
        "Open 24/7, room 12345, page 99.",
        "Version 3.11.7 of 2023.",
        "3 @ 5 each, at noon @ home",
    ],
)
def test_years_prices_and_measures_are_no_contacts(text: str):
    assert find_contacts(text) == []
    assert remove_contacts(text, "X") == text


def test_a_run_of_six_digits_counts_even_in_a_price():
    assert find_contacts("It cost $1200000.") == ["1200000"]


def test_several_contacts_are_found_in_order():
    text = "Mail ana@example.org or call 707-555-0108, see https://a.example.org"

    assert find_contacts(text) == ["ana@example.org", "707-555-0108", "https://a.example.org"]


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("", 0),
        ("one", 1),
        ("don't stop", 2),
        ("don\u2019t stop", 2),
        ("a-b, c; d!", 4),
        ("\u00e9t\u00e9 24", 2),
        ("...", 0),
    ],
)
def test_words_are_runs_of_letters_digits_and_inner_apostrophes(text: str, n: int):
    assert count_words(text) == n
    assert len(words(text)) == n


def test_words_are_lower_case_and_in_compatibility_form():
    assert words("The \uff26ull \ufb01sh") == ["the", "full", "fish"]


@pytest.mark.parametrize(
    ("text", "n", "short"), [("a b  c d", 2, "a b"), ("a  b", 2, "a  b"), ("", 3, ""), ("long\nlines here", 1, "long")]
)
def test_text_is_shortened_after_whole_words(text: str, n: int, short: str):
    assert shorten(text, n) == short


@pytest.mark.parametrize(("text", "n"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("x" * 400, 100)])
def test_a_token_is_estimated_as_four_characters_rounded_up(text: str, n: int):
    assert estimate_tokens(text) == n


def test_all_white_space_folds_into_single_blanks():
    assert one_line(" a\n\tb \r\n c ") == "a b c"
