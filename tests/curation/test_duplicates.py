import random
import re
import string
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_dspy.config import CurationConfig
from matrix_dspy.curation.base import Candidate, Drop, Filter, apply_filters, build_shingles, measure_jaccard
from matrix_dspy.curation.duplicates import (
    N_RECENT,
    ExactFilter,
    NearDuplicateFilter,
    SemanticFilter,
    find_duplicates,
    plan_bands,
    split_units,
)
from matrix_dspy.engine.embedding import TfidfEmbedder
from matrix_dspy.errors import ConfigError, TableError

PROMPTS = [
    "My bakery sells ninety loaves a day and I throw away twelve. How do I plan tomorrow's batch so that less is lost?",
    "Write a short notice for the door of our village library saying that we close early on Friday for stocktaking.",
    "Which of these two is cheaper over five years: a heat pump for 9,000 euros or a boiler for 4,000, higher bills?",
    "I have to explain to nine-year-olds why leaves turn red in autumn. Give me three sentences they will grasp.",
    "Make a weekly timetable for a nurse on night shifts who wants to learn Spanish twenty minutes a day.",
    "My tomatoes have brown spots at the bottom of each fruit. What causes it and what can I do this week?",
    "Shorten this sentence without losing its meaning: due to the fact that it was raining, we decided to stay inside.",
    "How do I tell a long-standing customer that the price of a haircut goes up by four euros in March?",
    "List seven ideas for a rainy afternoon with two toddlers and hardly any toys in the house.",
    "The chain on my bicycle slips whenever I press hard on the pedals. What should I check first?",
    "Draft an email to the town hall asking for permission to hold a street party on the second Saturday of June.",
    "Work out how much paint I need for a room of four by five metres with a ceiling at two and a half metres.",
    "What is the difference between a fixed and a variable mortgage, in words my grandmother would use?",
    "Play a strict interviewer for a job as warehouse manager and ask me five questions, one after the other.",
    "I'm unsure whether to accept a post abroad while my mother is ill. Help me list what speaks for and against it.",
    "Plan a walking tour of two hours through an old harbour town for people who cannot climb stairs.",
    "Why does my sourdough smell of acetone after a night in the fridge, and is it still safe to bake with?",
    "Turn these notes into a friendly reminder: invoice 12, due last week, 340 euros, second notice.",
    "Give me a plain definition of inflation and one example from a supermarket.",
    "Our choir of thirty needs a programme of forty minutes for a summer evening, half of it folk songs.",
]
VOCABULARY = ["bread", "rye", "oven", "a", "how", "do", "I", "bake"]
short_texts = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=7).map(" ".join)


class CountingEmbedder:
    """Counts letters: a stand-in for a sentence model, for which the order of letters means nothing."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.array([[text.lower().count(letter) for letter in string.ascii_lowercase] for text in texts])
        lengths = np.linalg.norm(counts, axis=1, keepdims=True)
        return np.divide(counts, lengths, out=np.zeros(counts.shape), where=lengths > 0).astype(np.float32)


def judge(each: Filter, text: str, row_id: str = "row-1") -> Drop | None:
    return each.judge(Candidate(row_id, text))


def make_near_filter() -> NearDuplicateFilter:
    config = CurationConfig()
    return NearDuplicateFilter(config.shingle_words, config.near_duplicate)


def make_chain(threshold: float, meaning: float | None = None) -> list[Filter]:
    chain: list[Filter] = [ExactFilter(), NearDuplicateFilter(2, threshold)]
    return [*chain, SemanticFilter(CountingEmbedder(), meaning)] if meaning else chain


def stream(filters: Sequence[Filter], texts: Sequence[str], ranks: Sequence[int]) -> list[tuple[object, ...]]:
    """Ask the filters in rank order, and give what `find_duplicates` gives."""
    found = []
    for row in sorted(range(len(texts)), key=ranks.__getitem__):
        if drop := apply_filters(filters, Candidate(f"row-{row}", texts[row])):
            found.append((row, f"row-{row}", drop.reason, drop.twin, drop.score, drop.detail))
    return found


def swap_neighbours(text: str, seed: int) -> str:
    """Swap one pair of neighbouring words in every ten."""
    generator = random.Random(seed)
    found = text.split()
    for start in range(0, len(found) - 9, 10):
        position = start + generator.randrange(9)
        found[position], found[position + 1] = found[position + 1], found[position]
    return " ".join(found)


def make_texts(n_texts: int, seed: int) -> list[str]:
    """Make texts of 12 words out of 300, a third of them copies of another with one word changed."""
    generator = random.Random(seed)
    made = [[f"word{generator.randrange(300)}" for _ in range(12)] for _ in range(n_texts)]
    for copy in made[: n_texts // 3]:
        copy[:] = generator.choice(made)
        copy[generator.randrange(12)] = "other"
    generator.shuffle(made)
    return [" ".join(words) for words in made]


# ---- equal texts


def test_a_text_equal_up_to_case_punctuation_and_blanks_is_an_exact_duplicate_of_the_earlier():
    each = ExactFilter()

    assert judge(each, "How do I bake bread?", "row-1") is None
    assert judge(each, "how do I  bake\nBREAD", "row-2") == Drop("exact duplicate", "the same as row-1", "row-1", 1.0)
    assert judge(each, "How do I bake rye bread?", "row-3") is None


def test_texts_that_differ_in_a_sign_between_numbers_are_not_equal():
    each = ExactFilter()

    assert [judge(each, text, text) for text in ("What is 3 + 4?", "What is 3 * 4?", "What is 3-4?")] == [None] * 3


def test_texts_without_words_are_compared_by_their_signs():
    each = ExactFilter()

    assert [judge(each, text, text) for text in ("?!", "***", "\U0001f600", "")] == [None] * 4
    assert judge(each, " *** ", "copy") == Drop("exact duplicate", "the same as ***", "***", 1.0)


def test_vowel_signs_tell_texts_apart():
    each = ExactFilter()

    assert judge(each, "\u0915\u0940 \u092c\u093e\u0924", "row-1") is None  # ki baat
    assert judge(each, "\u0915\u0947 \u092c\u093e\u0924", "row-2") is None  # ke baat


@pytest.mark.parametrize("each", make_chain(0.75, 0.92), ids=lambda each: type(each).__name__)
def test_asking_about_the_same_row_again_does_not_drop_it(each: Filter):
    judge(each, "How do I bake bread?", "row-1")

    assert judge(each, "How do I bake bread?", "row-1") is None
    assert judge(each, "How do I bake bread?", "row-2") is not None


# ---- near duplicates


@pytest.mark.parametrize("seed", range(5))
def test_copies_with_swapped_neighbours_are_found_at_the_shipped_settings(seed: int):
    each = make_near_filter()
    for number, text in enumerate(PROMPTS):
        assert judge(each, text, f"row-{number}") is None

    drops = [judge(each, swap_neighbours(text, seed), "copy") for text in PROMPTS]

    assert [drop and drop.reason for drop in drops] == ["near duplicate"] * len(PROMPTS)
    assert [drop.twin for drop in drops if drop] == [f"row-{n}" for n in range(len(PROMPTS))]


def test_copies_with_other_case_and_punctuation_are_found_at_the_shipped_settings():
    each = make_near_filter()
    for number, text in enumerate(PROMPTS):
        judge(each, text, f"row-{number}")

    for text in PROMPTS:
        bare = re.sub(r"(?<!\d)[^\w\s'-]|[^\w\s'-](?!\d)", "", text)  # what stands between digits is part of a number
        assert judge(each, bare.upper(), "copy") is not None
        assert judge(each, f"  {text.lower()}!!", "copy") is not None


def test_copies_with_one_word_in_twenty_changed_are_found_at_the_shipped_settings():
    each = make_near_filter()
    for number, text in enumerate(PROMPTS):
        judge(each, text, f"row-{number}")

    for text in PROMPTS:
        found = text.split()
        for position in range(9, len(found), 20):
            found[position] = "otherwise"
        assert judge(each, " ".join(found), "copy") is not None


def test_distinct_prompts_are_no_duplicates_of_each_other():
    each = make_near_filter()

    assert [judge(each, text, f"row-{number}") for number, text in enumerate(PROMPTS)] == [None] * len(PROMPTS)


def test_the_score_of_a_near_duplicate_is_the_true_jaccard():
    each = NearDuplicateFilter(2, 0.5)
    judge(each, "a b c d e f", "row-1")

    drop = judge(each, "a b c d e g", "row-2")

    # words: 5 of 7; runs, with those at the ends: 5 of ^a ab bc cd de ef f$ and eg g$, so 5 of 9
    assert drop == Drop("near duplicate", "Jaccard 0.625 with row-1", "row-1", 10 / 16)


def test_of_several_twins_the_likest_is_named_and_of_equal_ones_the_earliest():
    each = NearDuplicateFilter(1, 0.5)
    for row_id, text in (("row-1", "a b c x y z"), ("row-2", "a b c d e w"), ("row-3", "a b c d f v")):
        assert judge(each, text, row_id) is None or row_id == "row-3"

    drop = judge(each, "a b c d e f", "row-4")

    assert drop is not None
    assert (drop.twin, drop.score) == ("row-2", 5 / 7)


def test_a_copy_is_compared_with_what_was_kept_and_not_with_what_was_dropped():
    each = NearDuplicateFilter(2, 0.6)
    judge(each, "a b c d e f", "row-1")
    assert judge(each, "a b c d e g", "row-2") is not None

    assert judge(each, "x b c d e g", "row-3") is None  # like row-2, which was dropped, but not enough like row-1


def test_a_row_that_a_later_filter_drops_is_no_twin():
    exact, near = ExactFilter(), NearDuplicateFilter(2, 0.6)
    for row_id, text in (("row-1", "a b c d e f"), ("row-2", "a b c d e g")):
        apply_filters([exact, near], Candidate(row_id, text))

    drop = apply_filters([exact, near], Candidate("row-3", "a b c d e g"))

    assert drop is not None
    assert (drop.reason, drop.twin) == ("near duplicate", "row-1")


@pytest.mark.parametrize("each", make_chain(0.75, 0.92), ids=lambda each: type(each).__name__)
def test_a_forgotten_row_is_no_twin(each: ExactFilter | NearDuplicateFilter | SemanticFilter):
    judge(each, "How do I bake bread?", "row-1")
    each.forget("row-1")
    each.forget("never seen")

    assert judge(each, "How do I bake bread?", "row-2") is None
    assert judge(each, "How do I bake bread?", "row-3") is not None


def test_twins_are_found_among_many_more_rows_than_the_newest():
    each = NearDuplicateFilter(2, 0.75)
    texts = [f"text {number} of {number * number} about {number + 7} bakers" for number in range(2 * N_RECENT + 100)]
    for number, text in enumerate(texts):
        assert judge(each, text, f"row-{number}") is None

    for number in (0, N_RECENT - 1, N_RECENT, 2 * N_RECENT + 99):
        drop = judge(each, texts[number].upper(), "copy")
        assert drop is not None
        assert drop.twin == f"row-{number}"


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.75, 0.9, 1.0])
def test_bands_find_a_pair_at_the_threshold_almost_surely(threshold: float):
    n_bands, n_values = plan_bands(threshold)

    assert n_bands * n_values <= 192
    assert (1 - threshold**n_values) ** n_bands <= 0.0005


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.5])
def test_a_threshold_that_is_no_share_is_refused(threshold: float):
    with pytest.raises(ConfigError, match="above 0 and up to 1"):
        NearDuplicateFilter(2, threshold)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12), st.integers(1, 4))
def test_a_text_shares_all_its_shingles_with_itself(found: list[str], n_words: int):
    shingles = build_shingles(" ".join(found), n_words)

    assert measure_jaccard(shingles, shingles) == 1.0
    assert 1 <= len(shingles) <= max(1, len(found) - n_words + 1)


def test_jaccard_worked_out_by_hand():
    assert measure_jaccard(frozenset("abc"), frozenset("bcd")) == 0.5
    assert measure_jaccard(frozenset("ab"), frozenset("cd")) == 0.0


# ---- scripts and odd texts


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("Don't bake Rye-bread!", ["don't", "bake", "rye", "bread"]),
        ("3 + 4=7", ["3", " + ", "4", "7"]),
        ("STRASSE Stra\u00dfe", ["strasse", "strasse"]),
        ("\u9762\u5305 bread", ["\u9762", "\u5305", "bread"]),
        (
            "\u0e01\u0e34\u0e19\u0e02\u0e49\u0e32\u0e27",
            ["\u0e01\u0e34", "\u0e19", "\u0e02\u0e49", "\u0e32", "\u0e27"],
        ),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", ["\u0939\u093f\u0928\u094d\u0926\u0940"]),
        ("\ud800 a", ["a"]),
        ("", []),
    ],
    ids=["English", "a sum", "German", "Chinese", "Thai", "Hindi", "half a pair", "empty"],
)
def test_units_of_scripts(text: str, units: list[str]):
    assert split_units(text) == units


@pytest.mark.parametrize(
    ("alphabet", "length"),
    [("\u4e00\u9fa5", 30), ("\u3042\u3093", 40), ("\u0e01\u0e2e", 120)],
    ids=["Chinese", "Japanese", "Thai"],
)
def test_without_blanks_a_changed_character_is_a_near_duplicate_and_another_text_is_none(alphabet: str, length: int):
    generator = random.Random(0)
    signs = [chr(code) for code in range(ord(alphabet[0]), ord(alphabet[1]))][:60]
    text, other = ("".join(generator.choices(signs, k=length)) for _ in range(2))
    copy = text[: length // 2] + other[0] + text[length // 2 + 1 :]
    each = make_near_filter()
    judge(each, text, "row-1")

    assert judge(each, copy, "copy") is not None
    assert judge(each, other, "other") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "word",
        "word " * 100_000,
        "x" * 1_000_000,
        "\ud800",
        "\u0e01" * 20_000,
        "\u9762" * 20_000,
        "\0\n",
        "1+" * 9,
    ],
    ids=[
        "empty",
        "blank",
        "one word",
        "one word many times",
        "long word",
        "half a pair",
        "Thai",
        "Chinese",
        "controls",
        "sums",
    ],
)
def test_odd_texts_are_their_own_duplicates_and_nobody_elses(text: str):
    filters = make_chain(0.75, 0.92)
    assert apply_filters(filters, Candidate("row-0", "How do I bake bread?")) is None
    assert apply_filters(filters, Candidate("row-1", text)) is None
    drop = apply_filters(filters, Candidate("row-2", text))
    assert drop == Drop("exact duplicate", "the same as row-1", "row-1", 1.0)

    found = find_duplicates(["How do I bake bread?", text, text], ranks=[0, 1, 2])

    assert found.rows() == [(2, "2", "exact duplicate", "1", 1.0, "the same as 1")]


def test_a_text_of_a_hundred_thousand_words_finds_its_copy():
    generator = random.Random(0)
    found = [f"word{generator.randrange(50_000)}" for _ in range(100_000)]
    copy = [*found[:500], "other", *found[501:]]
    each = make_near_filter()
    judge(each, " ".join(found), "row-1")

    drop = judge(each, " ".join(copy), "row-2")

    assert drop is not None
    assert drop.score is not None
    assert drop.score > 0.999


# ---- meaning


def test_texts_with_close_vectors_are_semantic_duplicates_with_their_cosine():
    each = SemanticFilter(CountingEmbedder(), 0.92)

    assert judge(each, "listen to me", "row-1") is None
    assert judge(each, "silent to me", "row-2") == Drop("semantic duplicate", "cosine 1.000 with row-1", "row-1", 1.0)
    assert judge(each, "quick fox", "row-3") is None
    assert judge(each, "123", "row-4") is None  # no vector
    assert judge(each, "456", "row-5") is None


def test_with_tfidf_the_detail_says_so():
    each = SemanticFilter(TfidfEmbedder(PROMPTS), 0.9)
    judge(each, PROMPTS[0], "row-1")

    drop = judge(each, PROMPTS[0] + "!", "row-2")
    found = find_duplicates([PROMPTS[0], PROMPTS[0] + "!"], embed=TfidfEmbedder(PROMPTS), exact=False, threshold=None)

    assert drop is not None
    assert "TF-IDF" in drop.detail
    assert "TF-IDF" in found["detail"][0]


# ---- whole files


@given(
    st.lists(short_texts, max_size=40),
    st.sampled_from([0.3, 0.5, 0.75, 1.0]),
    st.sampled_from([None, 0.8, 0.95]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_a_whole_file_gives_what_the_filters_give_in_rank_order(
    texts: list[str], threshold: float, meaning: float | None, generator: random.Random
):
    ranks = list(range(len(texts)))
    generator.shuffle(ranks)

    found = find_duplicates(
        texts,
        [f"row-{row}" for row in range(len(texts))],
        ranks,
        threshold=threshold,
        embed=None if meaning is None else CountingEmbedder(),
        semantic_threshold=meaning or 1.0,
    )

    assert found.rows() == stream(make_chain(threshold, meaning), texts, ranks)


def test_a_file_of_many_blocks_gives_what_the_filters_give():
    texts = make_texts(5_000, seed=1)

    found = find_duplicates(texts, [f"row-{row}" for row in range(len(texts))], range(len(texts)))

    assert found.rows() == stream(make_chain(0.77), texts, range(len(texts)))
    assert found.height > 1000


def test_a_file_of_one_pattern_gives_what_the_filters_give():
    generator = random.Random(2)
    texts = [
        f"write a function to find the {generator.randrange(40)} of {generator.randrange(40)}" for _ in range(4500)
    ]

    found = find_duplicates(texts, [f"row-{row}" for row in range(len(texts))], range(len(texts)), threshold=0.7)

    assert found.rows() == stream(make_chain(0.7), texts, range(len(texts)))


@given(st.lists(short_texts, max_size=30), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_survivors_do_not_depend_on_the_order_of_the_rows(
    texts: list[str], generator: random.Random, is_ranked: bool
):
    rows = [(f"id-{number}", text, generator.randrange(5)) for number, text in enumerate(texts)]
    mixed = generator.sample(rows, len(rows))

    one, other = (
        find_duplicates([r[1] for r in each], [r[0] for r in each], [r[2] for r in each] if is_ranked else None)
        for each in (rows, mixed)
    )

    assert one.drop("row").equals(other.drop("row"))


def test_without_ids_the_surviving_texts_do_not_depend_on_the_order_of_the_rows():
    texts = make_texts(300, seed=3)

    def keep(each: list[str]) -> list[str]:
        dropped = set(find_duplicates(each)["row"])
        return sorted(text for row, text in enumerate(each) if row not in dropped)

    assert keep(texts) == keep(texts[::-1]) == keep(random.Random(4).sample(texts, 300))


def test_the_survivors_do_not_depend_on_the_number_of_workers():
    texts = make_texts(5_000, seed=5)

    one, two = (find_duplicates(texts, n_workers=n_workers) for n_workers in (1, 2))

    assert one.equals(two)
    assert one.height > 1000


def test_another_process_finds_the_same(tmp_path: Path):
    texts = make_texts(300, seed=6)
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    code = (
        "import pathlib, sys; from matrix_dspy.curation.duplicates import find_duplicates; "
        "print(find_duplicates(pathlib.Path(sys.argv[1]).read_text().split(chr(10))).write_csv(), end='')"
    )

    command = [sys.executable, "-c", code, str(tmp_path / "texts.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})

    assert done.stdout == find_duplicates(texts).write_csv()


def test_what_is_left_has_no_duplicates():
    texts = make_texts(3_000, seed=7)
    dropped = set(find_duplicates(texts)["row"])

    left = [text for row, text in enumerate(texts) if row not in dropped]

    assert 0 < len(left) < len(texts)
    assert find_duplicates(left).is_empty()


def test_copies_without_end_are_as_quick_as_any():
    texts = ["How do I bake rye bread in a clay pot?"] * 9_000

    found = find_duplicates(texts, ranks=range(len(texts)))

    assert found["twin"].unique().to_list() == ["0"]
    assert found["row"].to_list() == list(range(1, 9_000))


def test_ways_of_comparing_can_be_left_out():
    texts = ["How do I bake rye bread?", "how do I bake rye bread", "How do I bake the rye bread?"]

    def reasons(**left_out: object) -> list[str]:
        return find_duplicates(texts, ranks=[0, 1, 2], **left_out)["reason"].to_list()  # pyright: ignore[reportArgumentType]

    assert reasons(threshold=0.5) == ["exact duplicate", "near duplicate"]
    assert reasons(threshold=0.5, exact=False) == ["near duplicate", "near duplicate"]
    assert reasons(threshold=None) == ["exact duplicate"]
    assert reasons(threshold=None, exact=False) == []


def test_columns_of_a_frame_are_taken_as_they_are():
    frame = pl.DataFrame({"id": ["b", "a"], "text": ["Bake bread.", "bake bread"], "rank": [1.5, 0.5]})

    found = find_duplicates(frame["text"], frame["id"], frame["rank"])

    assert found.rows() == [(0, "b", "exact duplicate", "a", 1.0, "the same as a")]


def test_an_empty_file_has_no_duplicates():
    found = find_duplicates([], embed=CountingEmbedder())

    assert found.schema == {
        "row": pl.Int64,
        "id": pl.String,
        "reason": pl.String,
        "twin": pl.String,
        "score": pl.Float64,
        "detail": pl.String,
    }
    assert found.is_empty()


def test_what_is_missing_is_named():
    with pytest.raises(TableError, match="2 texts and 1 ids"):
        find_duplicates(["a", "b"], ["id"])
    with pytest.raises(TableError, match="row 1 has no text"):
        find_duplicates(pl.Series(["a", None]))
    with pytest.raises(TableError, match="row 0 has no rank"):
        find_duplicates(["a", "b"], ranks=[float("nan"), 1.0])
    with pytest.raises(ConfigError, match="at least 1 word"):
        find_duplicates(["a", "b"], n_shingle=0)
