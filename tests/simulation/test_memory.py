from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.simulation.memory import Memory
from matrix_dspy.text import estimate_tokens
from tests.toys import ToyEmbedder


class CountingEmbedder(ToyEmbedder):
    def __init__(self) -> None:
        self.n_texts = 0

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.n_texts += len(texts)
        return super().embed(texts)


def make_memory(*history: str, max_tokens: int = 40, n_recalled: int = 3) -> Memory:
    return Memory(history, max_tokens=max_tokens, n_recalled=n_recalled, embedder=ToyEmbedder())


def count_tokens(items: list[str]) -> int:
    return sum(estimate_tokens(item) for item in items)


def test_without_a_history_a_memory_is_empty_and_recalls_nothing():
    memory = make_memory()

    assert memory.items == []
    assert not memory.is_full
    assert memory.recall("bees") == []


def test_the_history_comes_first_and_in_its_order():
    memory = make_memory("sold honey", "bought a hive")

    memory.add(1, "built a shed")

    assert memory.items == ["Before: sold honey", "Before: bought a hive", "Round 1: built a shed"]


@given(st.lists(st.text(min_size=1, max_size=30), max_size=20))
def test_what_is_remembered_is_only_ever_added_at_the_end(texts: list[str]):
    memory = make_memory("sold honey")

    for round_, text in enumerate(texts, start=1):
        before = list(memory.items)
        memory.add(round_, text)

        assert memory.items == [*before, f"Round {round_}: {text}"]


def test_a_memory_is_full_only_above_its_budget():
    memory = make_memory(max_tokens=10)

    memory.add(1, "x" * 11)  # 20 characters with the round, 5 tokens
    memory.add(2, "x" * 11)
    assert not memory.is_full

    memory.add(3, "")
    assert memory.is_full


def test_a_single_item_is_never_folded_however_long():
    memory = make_memory("x" * 1000, max_tokens=10)

    assert not memory.is_full


@given(st.lists(st.integers(1, 200), min_size=2, max_size=20))
def test_the_older_half_is_the_shortest_beginning_with_half_of_the_tokens(sizes: list[int]):
    memory = make_memory(*("x" * size for size in sizes))

    older = memory.older_half()

    assert older == memory.items[: len(older)]
    assert 1 <= len(older) < len(memory.items)
    assert count_tokens(older[:-1]) < count_tokens(memory.items) / 2
    assert len(older) == len(sizes) - 1 or count_tokens(older) >= count_tokens(memory.items) / 2


def test_folding_puts_one_summary_in_the_place_of_the_older_half():
    memory = make_memory("ann", "bob", "cat", "dog")

    memory.fold("all went well")

    assert memory.items == ["Earlier: all went well", "Before: cat", "Before: dog"]


def test_a_summary_is_folded_with_what_follows_it_when_the_memory_is_full_again():
    memory = make_memory("ann", "bob", "cat", "dog")
    memory.fold("first half")
    memory.add(1, "five")

    older = memory.older_half()
    memory.fold("second half")

    assert older[0] == "Earlier: first half"
    assert memory.items[0] == "Earlier: second half"
    assert sum(item.startswith("Earlier:") for item in memory.items) == 1


def test_the_newer_half_stands_unchanged_after_folding():
    memory = make_memory(*(f"item {number}" for number in range(10)))
    newer = memory.items[len(memory.older_half()) :]

    memory.fold("summary")

    assert memory.items[1:] == newer


def test_folded_items_that_resemble_the_cue_are_recalled_oldest_first():
    memory = make_memory(
        "sold honey to the baker", "painted a fence", "the baker paid for honey", "rain fell", "n" * 400, n_recalled=2
    )
    memory.fold("a year went by")

    assert memory.recall("has the baker paid for honey") == [
        "Before: sold honey to the baker",
        "Before: the baker paid for honey",
    ]


def test_what_was_not_folded_is_not_recalled_since_it_still_stands_there():
    memory = make_memory("sold honey", "bought a hive", "mended a roof", "sold more honey")
    memory.fold("a year went by")

    assert "Before: sold more honey" not in memory.recall("honey")


def test_no_more_is_recalled_than_asked_for():
    memory = make_memory(*(f"sold honey {number}" for number in range(12)), n_recalled=3)
    memory.fold("much honey was sold")

    assert len(memory.recall("sold honey")) == 3


def test_nothing_is_recalled_where_nothing_resembles_or_none_is_wanted():
    folded = make_memory("sold honey", "bought a hive", "mended a roof")
    folded.fold("a year went by")
    switched_off = make_memory("sold honey", "bought a hive", "mended a roof", n_recalled=0)
    switched_off.fold("a year went by")

    assert folded.recall("") == []
    assert switched_off.recall("sold honey") == []


def test_folded_items_are_embedded_once():
    embedder = CountingEmbedder()
    memory = Memory([f"item {i}" for i in range(8)], max_tokens=10, n_recalled=3, embedder=embedder)

    n_first = len(memory.older_half())
    memory.fold("first")
    n_second = len(memory.older_half())
    memory.fold("second")

    assert embedder.n_texts == n_first + n_second
