import itertools
import json
import os
import random
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_dspy.curation.base import Candidate
from matrix_dspy.curation.benchmarks import Benchmark, Item, hash_text, read_benchmarks
from matrix_dspy.curation.contamination import (
    BATCH_CHARS,
    MOST_ITEMS,
    MOST_LOST,
    MOST_SHARED,
    ContaminationFilter,
    ContaminationIndex,
    Field,
    _Batch,
    find_overlaps,
    summarise_overlaps,
    warn_nearest,
)
from matrix_dspy.engine.embedding import TfidfEmbedder
from matrix_dspy.errors import ConfigError
from matrix_dspy.text import words as split_words
from matrix_dspy.types import Overlap

DATA = os.environ.get("MATRIX_DSPY_DATA", "")
needs_data = pytest.mark.skipif(not DATA, reason="MATRIX_DSPY_DATA names no folder with benchmark files")
RUN = "the harbour-master's log, kept since May 1931, lists every ship that can't leave; why?"
"""Fifteen words, of which three hold punctuation."""
BEFORE, AFTER = "Yesterday somebody asked me this: ", " I had no answer for them."
WORDS = ["a", "b", "c", "don't", "a-b", "x_y", "C", "é", "-"]


def build_index(*texts: str, n_words: int = 13) -> ContaminationIndex:
    items = tuple(Item(str(number), (text,)) for number, text in enumerate(texts))
    return ContaminationIndex([Benchmark("set", items)], n_words)


def split(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def list_runs(words: list[str], n_words: int) -> set[tuple[str, ...]]:
    """Return all runs of `n_words` words; a shorter text is one run."""
    return {tuple(words[i : i + n_words]) for i in range(max(len(words) - n_words + 1, 1))} - {()}


def shares(text: str, item: str, n_words: int) -> bool:
    """Say the slow and plain way whether a text shares a run with an item, in any of its three readings."""
    said = split(re.sub("['_]", "", text))
    chunks = [(re.sub(r"[\W_]", "", chunk).lower(), len(split(re.sub("['_]", "", chunk)))) for chunk in item.split()]
    bare = [(letters, count) for letters, count in chunks if letters]
    joined = [letters for letters, _ in bare]
    wanted = set().union(*(list_runs(split(re.sub("['_]", put, item)), n_words) for put in ("", " ")))
    wanted |= list_runs(joined, n_words)
    if wanted & list_runs(said, n_words):
        return True
    for first, length in itertools.product(range(len(bare)), range(max(n_words - MOST_LOST, 1), n_words)):
        is_enough = sum(count for _, count in bare[first : first + length]) >= n_words
        if is_enough and tuple(joined[first : first + length]) in list_runs(said, length) and len(said) >= length:
            return True
    return False


@given(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join), min_size=1, max_size=4),
    st.lists(st.sampled_from([*WORDS, "dont", "ab", "xy", "É"]), max_size=9).map(" ".join),
    st.integers(1, 4),
)
@settings(max_examples=300, deadline=None)
def test_an_item_is_found_if_and_only_if_a_run_or_the_whole_is_shared(items: list[str], text: str, n_words: int):
    index = build_index(*items, n_words=n_words)

    found = {match.item for match in index.match(text)}

    assert found == {str(number) for number, item in enumerate(items) if shares(text, item, n_words)}


LETTERS = st.text("abcXYZéüñжщЛøß0123456789", min_size=1, max_size=6)
GAPS = st.sampled_from([" ", "\n", ", ", " - ", "** ", ".", "/", " (", "\u3000", " _", "\t> ", "\u2026", " \u2019"])


@given(st.lists(LETTERS, min_size=13, max_size=25), st.text(max_size=60), st.text(max_size=60), st.data())
@settings(max_examples=150, deadline=None)
def test_thirteen_words_of_an_item_are_found_in_any_text(
    words: list[str], before: str, after: str, data: st.DataObject
):
    def say(said: list[str]) -> str:
        return "".join(word + data.draw(GAPS) for word in said)

    first = data.draw(st.integers(0, len(words) - 13))
    recased = [data.draw(st.sampled_from([word, word.upper(), word.swapcase()])) for word in words[first : first + 13]]

    matches = build_index(say(words)).match(f"{before} {say(recased)} {after}")

    assert [match.item for match in matches] == ["0"]


@pytest.mark.parametrize(
    "said",
    [
        RUN,
        RUN.upper(),
        RUN.title(),
        RUN.replace(" ", "\n"),
        RUN.replace(" ", "\r\n\t> "),
        RUN.replace(" ", " -- "),
        RUN.replace(" ", "\u00a0"),
        RUN.replace("'", "’"),
        RUN.replace("'", ""),
        RUN.replace("'", " "),
        RUN.replace(",", ";").replace("-", " "),
        " ".join(RUN.split()[:12]).replace("-", ""),
        re.sub(r"[^\w\s]", "", RUN),
        re.sub(r"[^\w\s]", " ", RUN),
        re.sub(r"(\w+) (\w+)", r"**\1** _\2_", RUN),
        RUN.replace("ship", "`ship`").replace("log", "[log]"),
        RUN.replace("ship", "s\u00adh\u200bip"),
        RUN.replace("1931", "１９３１"),
        " ".join(RUN.split()[:13]).rstrip("?;"),
        " ".join(RUN.split()[1:]),
    ],
)
def test_case_punctuation_and_marks_hide_nothing(said: str):
    index = build_index("Tell me: " + RUN + " Say it in two lines.")

    (match,) = index.match(BEFORE + said + AFTER)

    assert (match.benchmark, match.item, match.part, match.kind) == ("set", "0", "prompt", "run of words")
    assert match.n_words >= 13


def test_twelve_shared_words_are_no_leak():
    words = RUN.replace("-", " ").split()

    assert build_index(RUN).match(BEFORE + " ".join(words[:12]) + AFTER) == []
    assert len(build_index(RUN).match(BEFORE + " ".join(words[:13]) + AFTER)) == 1


def test_a_run_does_not_reach_from_one_text_into_the_next():
    words = [f"w{i}" for i in range(20)]
    index = build_index(" ".join(words))

    assert list(index.match_texts([" ".join(words[:10]), "", " ".join(words[10:])])) == []


def test_the_shared_words_are_given_as_far_as_they_reach():
    words = [f"w{i}" for i in range(100)]
    index = build_index(" ".join(words))

    (some,) = index.match("x " + " ".join(words[3:20]) + " x")
    (many,) = index.match("x " + " ".join(words[3:90]) + " x")

    assert (some.shared, some.n_words) == (" ".join(words[3:20]), 17)
    assert many.shared == " ".join(words[3 : 3 + MOST_SHARED]) + " ... (87 words)"


def test_a_short_item_is_found_only_as_the_whole_text():
    index = build_index("What is 2 + 2, then?")

    (match,) = index.match("what is **2+2** then")

    assert match.kind == "whole text"
    assert index.match("Tell me: what is 2 + 2, then?") == []
    assert index.match("What is 2 + 2?") == []
    assert index.match("") == index.match("?!") == []


def test_a_long_item_that_is_the_whole_text_is_said_to_be():
    (match,) = build_index(RUN).match(RUN.upper() + "\n")

    assert (match.kind, match.shared) == ("whole text", "")


def test_a_letter_of_a_script_without_blanks_counts_half():
    letters = "".join(chr(0x4E00 + i) for i in range(40))
    index = build_index(letters)

    assert index.match("答" + letters[:25] + "答") == []
    assert [match.n_words for match in index.match("答，" + letters[:10] + "\n" + letters[10:26] + "答")] == [26]
    assert [match.kind for match in build_index(letters[:20]).match(letters[:20] + "。")] == ["whole text"]


def test_answers_count_from_thirteen_words_and_code_only_as_a_whole():
    answer = " ".join(f"w{i}" for i in range(14))
    code = "def add(one, two):\n    total = one + two\n    print(total)\n    return total or one or two\n"
    items = (Item("x", ("add numbers",), (answer, "short answer"), (code,)),)
    index = ContaminationIndex([Benchmark("set", items)])

    assert [match.part for match in index.match(f"so {answer}, yes")] == ["answer"]
    assert index.match("short answer") == []
    assert [match.part for match in index.match(f"```python\n{code}```\nThat is all.")] == ["code"]
    assert index.match(code.rsplit(" ", 2)[0]) == []


def test_hashes_find_whole_texts_up_to_case_and_spacing_only():
    index = ContaminationIndex([Benchmark("sums", hashes=(hash_text("other"), hash_text(RUN)))])

    (match,) = index.match("  " + RUN.upper().replace(" ", "\n") + "\n")

    assert (match.benchmark, match.item, match.kind) == ("sums", "1", "hash")
    assert index.match(RUN.replace(",", "")) == []
    assert index.match(BEFORE + RUN) == []


def test_equal_hashes_of_different_words_are_no_match():
    # Thue-Morse words collide under every odd base modulo 2^64
    bits = [bin(i).count("1") % 2 for i in range(2048)]
    one, other = ("".join("ab"[bit ^ flip] for bit in bits) for flip in (0, 1))
    tail = " ".join(f"w{i}" for i in range(12))
    index = build_index(f"{one} {tail}")

    hashes = [_Batch([f"{word} {tail}"]).hash_runs(13)[1].tolist() for word in (one, other)]

    assert hashes[0] == hashes[1]
    assert len(index.match(f"{one} {tail} x")) == 1
    assert index.match(f"{other} {tail} x") == []


def test_every_item_that_holds_a_phrase_is_named_up_to_a_bound():
    index = build_index(*(f"{RUN} Number {i} is this one." for i in range(MOST_ITEMS + 7)))
    judge = ContaminationFilter(index)

    drop = judge.judge(Candidate("instruction-1", BEFORE + RUN + AFTER))

    assert drop is not None and drop.detail.endswith("and 7 more")
    assert len(judge.overlaps) == len({each.item for each in judge.overlaps}) == MOST_ITEMS
    assert len(index.match(RUN + " x")) == MOST_ITEMS + 7


def test_the_whole_text_stands_before_runs_and_long_runs_before_short_ones():
    words = [f"w{i}" for i in range(40)]
    index = build_index(" ".join(words[:15]), " ".join(words[:30]), " ".join(words))

    assert [match.item for match in index.match(" ".join(words[:30]))] == ["1", "2", "0"]


def test_an_item_in_two_benchmarks_is_named_in_both():
    index = ContaminationIndex([Benchmark(name, (Item("0", (RUN,)),)) for name in ("one", "two")])

    assert [match.benchmark for match in index.match(RUN)] == ["one", "two"]


def test_a_drop_names_benchmark_item_and_overlap():
    drop = ContaminationFilter(build_index("hello", RUN)).judge(Candidate("instruction-1", RUN + AFTER))

    assert drop is not None
    assert (drop.reason, drop.twin) == ("contamination", "set/1")
    assert drop.detail.startswith("it shares 15 words with set/1: 'the harbour masters log kept since may 1931")


def test_the_filter_keeps_what_it_found_in_an_order_of_its_own():
    candidates = [
        Candidate(f"{noun}-{i}", text) for noun in ("instruction", "response") for i, text in enumerate((RUN, "hi"))
    ]
    index = build_index(RUN, "hi")
    forth, back = ContaminationFilter(index), ContaminationFilter(index)
    dropped = [forth.judge(each) is not None for each in candidates]
    for each in (*reversed(candidates), *candidates):
        back.judge(each)

    assert all(dropped) and ContaminationFilter(index).judge(Candidate("instruction-9", "clean")) is None
    assert forth.overlaps == back.overlaps
    assert [each.overlap_id for each in forth.overlaps] == sorted(each.overlap_id for each in forth.overlaps)
    assert {each.row_id: each.field for each in forth.overlaps} == {
        "instruction-0": "instruction",
        "instruction-1": "instruction",
        "response-0": "response",
        "response-1": "response",
    }


@given(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | st.text(max_size=30), max_size=12),
    st.randoms(use_true_random=False),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_a_table_gives_what_its_texts_give_in_any_order(texts: list[str], shuffle: random.Random, n_workers: int):
    index = build_index("a b c don't a", "C é x_y a-b", "-", "b b b b", n_words=3)
    rows = list(enumerate(texts))
    one_by_one = [each for i, text in rows for each in index.find(f"r{i}", "response", text)]
    shuffle.shuffle(rows)
    frame = pl.DataFrame(
        {"id": [f"r{i}" for i, _ in rows], "text": [text for _, text in rows]}, {"id": pl.String, "text": pl.String}
    )

    table = find_overlaps(frame, "text", "id", index, n_workers, field="response")

    assert [Overlap(**row) for row in table.iter_rows(named=True)] == sorted(
        one_by_one, key=lambda each: each.overlap_id
    )


def test_long_tables_and_long_texts_are_cut_without_a_loss():
    filler = "nothing to see here " * (BATCH_CHARS // 50)
    leak = " ".join(f"w{i}" for i in range(20))
    texts = [None, "", filler * 3, leak, filler + leak + filler, *(f"clean {i}" for i in range(70_000)), f"x {leak}"]
    frame = pl.DataFrame({"id": list(range(len(texts))), "text": texts})

    table = find_overlaps(frame, "text", "id", build_index(leak), 2)

    assert sorted(table["row_id"].to_list(), key=int) == ["3", "4", str(len(texts) - 1)]


@pytest.mark.parametrize(
    "text", ["\x00" * 5, "\ud800 a \udfff", "\x00".join("abc"), "\u0301" * 50, "a" * 10**6, "\U0010ffff"]
)
def test_hostile_texts_are_looked_at_without_harm(text: str):
    index = build_index("a b c", "\ud800", "b")

    matches = dict(index.match_texts([text, "b", text]))

    assert [match.item for match in matches[1]] == ["2"]
    assert matches.get(0) == matches.get(2)


def test_a_text_of_one_word_over_and_over_takes_no_more_than_its_length():
    again = "again " * 50_000
    index = build_index(*("again " * 200 + f"end{i}" for i in range(200)))

    assert len(index.match(again)) == 200


def test_an_index_without_text_finds_nothing():
    index = ContaminationIndex([])

    assert index.match(RUN) == index.match("") == []
    assert find_overlaps(pl.DataFrame({"id": ["1"], "text": [RUN]}), "text", "id", index).height == 0
    with pytest.raises(ConfigError, match="a run of 0 words is none"):
        ContaminationIndex([], 0)


def test_the_summary_counts_rows_and_items_and_says_what_cannot_be_found():
    known = Benchmark("texts", (Item("a", (RUN, "short")), Item("b", ("also short",)), Item("c", (RUN + AFTER,))))
    sums = Benchmark("sums", hashes=(hash_text("secret"),))
    index = ContaminationIndex([known, sums])
    fields: list[Field] = ["instruction", "instruction", "response", "response"]
    texts = [RUN, "Also short!", "SECRET", "clean"]
    overlaps = [each for i, text in enumerate(texts) for each in index.find(f"r{i}", fields[i], text)]
    near = Overlap(
        overlap_id="overlap-0", row_id="r3", field="response", benchmark="texts", item="c", kind="nearest", score=0.9
    )

    first, second = summarise_overlaps([known, sums], [near, *reversed(overlaps)])

    assert (first.benchmark, first.n_items, first.n_with_text, first.n_hash_only, first.n_short) == ("sums", 1, 0, 1, 0)
    assert (first.n_rows_hit, first.n_items_hit, first.kinds, first.fields) == (1, 1, {"hash": 1}, {"response": 1})
    assert (second.n_items, second.n_with_text, second.n_hash_only, second.n_short) == (3, 3, 0, 1)
    assert (second.n_rows_hit, second.n_items_hit, second.fields) == (2, 3, {"instruction": 2})
    assert second.kinds == {"nearest": 1, "run of words": 1, "whole text": 2}
    assert [each.kind for each in second.examples].count("nearest") == 0
    assert first.examples == tuple(each for each in overlaps if each.benchmark == "sums")


def test_the_nearest_item_is_named_as_a_warning():
    prompts = ["How do I keep bees through a long winter?", "Write a poem about the harbour at night."]
    benchmark = Benchmark("set", tuple(Item(f"i{n}", (prompt,)) for n, prompt in enumerate(prompts)))
    texts = {"r1": "How would I keep my bees through the winter?", "r2": "What does a tax adviser cost?", "r3": ""}
    frame = pl.DataFrame({"id": list(texts), "text": list(texts.values())})

    embedder = TfidfEmbedder(prompts * 3)

    table = warn_nearest(frame, "text", "id", [benchmark], embedder, 0.6)

    (row,) = table.iter_rows(named=True)
    assert (row["row_id"], row["benchmark"], row["item"], row["kind"]) == ("r1", "set", "i0", "nearest")
    assert 0.6 <= row["score"] < 1
    assert warn_nearest(frame, "text", "id", [], embedder, 0.6).height == 0


@needs_data
def test_all_prompts_of_ifeval_are_found_in_its_published_replies_and_all_are_whole():
    index = ContaminationIndex(read_benchmarks(Path(DATA) / "benchmarks"))
    for path in sorted((Path(DATA) / "outputs").glob("ifeval*.jsonl")):
        prompts = [json.loads(line)["prompt"] for line in path.read_text("utf-8").splitlines()]
        matches = dict(index.match_texts(prompts))

        assert len(prompts) == len(matches) == 541
        assert {match[0].kind for match in matches.values()} == {"whole text"}


@needs_data
def test_planted_runs_of_every_real_benchmark_are_found_and_real_task_statements_are_clean():
    benchmarks = read_benchmarks(Path(DATA) / "benchmarks")
    index = ContaminationIndex(benchmarks)
    generator = np.random.default_rng(0)
    planted: list[tuple[str, str, str]] = []
    for benchmark, item in ((each, item) for each in benchmarks for item in each.items):
        found_words = split_words(item.prompts[0])
        if len(found_words) >= 13:
            first = int(generator.integers(0, len(found_words) - 12))
            run = " ".join(found_words[first : first + 13]).title()
            planted.append((benchmark.name, item.id, BEFORE + run + AFTER))
    found = dict(index.match_texts([text for _, _, text in planted]))
    with (Path(DATA) / "personas" / "full_onet_data.tsv").open(encoding="utf-8") as file:
        statements = [line.split("\t")[3] for line in itertools.islice(file, 1, None)]

    missed = [
        (name, item)
        for i, (name, item, _) in enumerate(planted)
        if (name, item) not in {(match.benchmark, match.item) for match in found.get(i, ())}
    ]
    assert len(planted) > 3000 and missed == []
    assert len(statements) > 19_000 and list(index.match_texts(statements)) == []
