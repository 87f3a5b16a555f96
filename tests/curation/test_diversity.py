import math
import os
import random
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_dspy.curation import diversity
from matrix_dspy.curation.diversity import (
    Coverage,
    measure_cluster_entropy,
    measure_compression,
    measure_coverage,
    measure_distinct,
    measure_diversity,
    measure_nearest_distance,
    measure_self_bleu,
    measure_vendi,
    pick_diverse,
)
from matrix_dspy.errors import ConfigError
from matrix_dspy.text import words

ROOT = Path(__file__).parents[2]
METHODS = ["mmr", "dpp"]
tokens = st.lists(st.sampled_from("abcd"), max_size=9)


def draw_unit(n: int, n_dims: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, n_dims))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def name(n: int) -> list[str]:
    return [f"i{i:05d}" for i in range(n)]


def bleu(references: list[list[str]], text: list[str]) -> float:
    """BLEU-4 as Papineni et al. (2002) define it, smoothed by method 1 of Chen and Cherry (2014)."""

    def count(of: list[str], n: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(of[i : i + n]) for i in range(len(of) - n + 1))

    product = 1.0
    for n in range(1, 5):
        own = count(text, n)
        shared = sum(min(times, max(count(each, n)[run] for each in references)) for run, times in own.items())
        if n == 1 and not shared:
            return 0.0
        product *= (shared or 0.1) / max(1, own.total())
    nearest = min((abs(len(each) - len(text)), len(each)) for each in references)[1]
    return product**0.25 * min(1.0, math.exp(1 - nearest / len(text)))


def test_distinct_is_the_share_of_different_runs():
    texts = [["a", "b", "a", "b"], ["a", "b"], []]

    assert measure_distinct(texts, 1) == pytest.approx(2 / 6, abs=1e-6)
    assert measure_distinct(texts, 2) == pytest.approx(2 / 4, abs=1e-6)
    assert measure_distinct(texts, 3) == 1.0
    assert measure_distinct(texts, 5) is None


def test_compression_is_original_over_zlib():
    texts = ["the same words again"] * 50

    whole = "\n".join(texts).encode()
    assert measure_compression(texts) == pytest.approx(len(whole) / len(zlib.compress(whole, 9)), abs=1e-6)
    assert measure_compression(["half \ud83d a pair"]) is not None
    assert measure_compression([]) is None


def test_self_bleu_of_cases_worked_out_by_hand():
    same = ["the", "cat", "sat", "on", "the", "mat"]

    assert measure_self_bleu([same, same, same]) == 1.0
    assert measure_self_bleu([["a", "b"], ["c", "d"]]) == 0.0
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 runs of four are shared, both ways
    assert measure_self_bleu([list("abcdx"), list("abcdy")]) == pytest.approx(
        (4 / 5 * 3 / 4 * 2 / 3 / 2) ** 0.25, abs=1e-6
    )
    # the shorter text pays exp(1 - 5/4); the longer one has no four words run of its own in the shorter one but one
    short = math.exp(1 - 5 / 4)
    long = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert measure_self_bleu([list("abcd"), list("abcde")]) == pytest.approx((short + long) / 2, abs=1e-6)
    assert measure_self_bleu([list("ab")]) is None
    assert measure_self_bleu([[], list("ab")]) is None


@given(st.lists(tokens, min_size=2, max_size=6))
def test_self_bleu_is_the_mean_bleu_against_all_others(texts):
    texts = [text for text in texts if text]

    found = measure_self_bleu(texts)

    if len(texts) < 2:
        assert found is None
    else:
        each = [bleu(texts[:i] + texts[i + 1 :], text) for i, text in enumerate(texts)]
        assert found == pytest.approx(sum(each) / len(each), abs=1e-5)


def test_vendi_counts_effective_texts():
    assert measure_vendi(np.eye(7)) == 7.0
    assert measure_vendi(np.ones((7, 1))) == 1.0
    assert measure_vendi(np.repeat(np.eye(3), 4, axis=0)) == pytest.approx(3.0)
    two = np.array([[1.0, 0.0], [0.6, 0.8]])  # eigenvalues of the similarities: 1.6 and 0.4, halved
    assert measure_vendi(two) == pytest.approx(math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2)), abs=1e-5)
    assert measure_vendi(np.zeros((0, 3))) is None


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 99))
def test_vendi_lies_between_one_and_what_there_is(n, n_dims, seed):
    found = measure_vendi(draw_unit(n, n_dims, seed))

    assert found is not None
    assert 1 - 1e-5 <= found <= min(n, n_dims) + 1e-5


def test_nearest_neighbours_and_clusters_of_known_sets():
    assert measure_nearest_distance(np.eye(4)) == 1.0
    assert measure_nearest_distance(np.repeat(np.eye(4), 2, axis=0)) == 0.0
    assert measure_nearest_distance(np.eye(1)) is None
    assert measure_cluster_entropy(np.eye(9)) == (0, None)
    assert measure_cluster_entropy(np.repeat(np.eye(3), 10, axis=0)) == (3, 1.0)
    assert measure_cluster_entropy(np.ones((30, 2))) == (6, 0.0)
    uneven = np.repeat(np.eye(2), [30, 10], axis=0)
    entropy = -0.75 * math.log2(0.75) - 0.25 * math.log2(0.25)
    assert measure_cluster_entropy(uneven) == (2, pytest.approx(entropy, abs=1e-6))


def test_coverage_says_what_of_the_population_is_there():
    found = measure_coverage(["baker", "baker", None, "nurse"], ["baker", "nurse", "smith", "clerk"])

    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(4)
    assert found == Coverage(3, 2, 0.5, round(entropy, 6), round(2 / 3, 6))
    assert measure_coverage(["baker"] * 3) == Coverage(3, 1, None, None, 1.0)
    assert measure_coverage([None]) == Coverage(0, 0, None, None, None)
    assert measure_coverage([], ["baker"]) == Coverage(0, 0, 0.0, None, None)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny_sets_have_no_figures_rather_than_wrong_ones(n):
    found = measure_diversity(["one and the same"] * n, np.ones((n, 3)), groups=["g"] * n, seed=1)

    assert found.n == n
    assert (found.vendi, found.nearest_distance) == [(None, None), (1.0, None), (1.0, 0.0)][n]
    assert found.self_bleu == [None, None, 1.0][n]
    assert found.distinct_1 == [None, 1.0, 0.5][n]
    assert found.cluster_entropy is None
    assert all(row.value is None or math.isfinite(row.value) for row in found.as_rows())


@settings(max_examples=15)
@given(st.lists(st.text("abc ", max_size=12), max_size=40), st.integers(0, 3), st.randoms())
def test_measures_do_not_depend_on_the_order_of_the_rows(texts, seed, dice):
    rows = [(text, draw_unit(1, 4, zlib.crc32(text.encode()))[0], f"g{len(text)}") for text in texts]
    shuffled = rows[:]
    dice.shuffle(shuffled)

    def measure(rows: list[tuple[str, np.ndarray, str]]) -> diversity.Diversity:
        vectors = np.array([row[1] for row in rows]).reshape(len(rows), 4)
        return measure_diversity([row[0] for row in rows], vectors, groups=[row[2] for row in rows], seed=seed)

    assert measure(shuffled) == measure(rows)


def test_samples_are_bounded_drawn_by_the_seed_and_named():
    dice = random.Random(0)
    texts = [" ".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=8)) for _ in range(6_000)]
    vectors = draw_unit(6_000, 8)

    one, again, other = (measure_diversity(texts, vectors, seed=seed) for seed in (1, 1, 2))

    assert one == again
    assert one != other
    assert (one.n_words_sample, one.n_bleu_sample, one.n_vector_sample) == (5_000, 500, 2_000)
    by_name = {row.name: row for row in one.as_rows()}
    assert by_name["self-BLEU"].n == 500
    assert by_name["self-BLEU"].more_diverse == "lower"
    assert by_name["Vendi score"].n == 2_000
    assert by_name["Vendi score"].more_diverse == "higher"


def test_every_measure_sees_that_copies_are_less_diverse(shared_data):
    lines = (shared_data / "benchmarks" / "gsm8k_test.jsonl").read_text().splitlines()[:200]
    copied = lines[:100] * 2
    vectors = draw_unit(200, 64)

    many = measure_diversity(lines, vectors, groups=name(200), all_groups=name(200))
    few = measure_diversity(copied, np.vstack([vectors[:100]] * 2), groups=name(100) * 2, all_groups=name(200))

    for one, other in zip(many.as_rows(), few.as_rows(), strict=True):
        assert one.value is not None
        assert other.value is not None
        if one.name != "cluster entropy":  # random vectors lie in no clusters
            assert (one.value > other.value) == (one.more_diverse == "higher"), one.name


def test_what_does_not_fit_together_is_named():
    with pytest.raises(ConfigError, match="2 texts but 1 groups"):
        measure_diversity(["a", "b"], groups=["g"])
    with pytest.raises(ConfigError, match="unknown method 'best'"):
        pick_diverse(["a"], np.eye(1), None, 1, "best")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="diversity is nan"):
        pick_diverse(["a"], np.eye(1), None, 1, diversity=math.nan)
    with pytest.raises(ConfigError, match="2 ids and 1 vectors"):
        pick_diverse(["a", "b"], np.eye(1), None, 1)
    with pytest.raises(ConfigError, match="an id stands twice"):
        pick_diverse(["a", "a"], np.eye(2), None, 1)


# --- picking ---


@pytest.mark.parametrize("method", METHODS)
@given(n=st.integers(0, 40), wanted=st.integers(0, 50), seed=st.integers(0, 99), dice=st.randoms())
@settings(max_examples=30)
def test_a_choice_does_not_depend_on_the_order_of_the_candidates(method, n, wanted, seed, dice):
    vectors = draw_unit(n, 5, seed) if n else np.zeros((0, 5))
    relevance = [dice.choice([None, math.nan, dice.random()]) for _ in range(n)]
    order = list(range(n))
    dice.shuffle(order)

    picked = pick_diverse(name(n), vectors, relevance, wanted, method)

    assert len(picked) == len(set(picked)) == min(n, wanted)
    shuffled = pick_diverse([name(n)[i] for i in order], vectors[order], [relevance[i] for i in order], wanted, method)
    assert shuffled == picked


@pytest.mark.parametrize("method", METHODS)
def test_of_each_set_of_twins_one_is_picked(method):
    vectors = np.repeat(np.eye(12), 3, axis=0)

    picked = pick_diverse(name(36), vectors, None, 12, method, 0.9)

    assert len({int(id_[1:]) // 3 for id_ in picked}) == 12


@pytest.mark.parametrize("method", METHODS)
def test_diversity_trades_relevance_for_variety(method):
    vectors = np.vstack([np.repeat(np.eye(3)[:1], 10, axis=0), np.eye(3)[1:]])
    relevance = [1.0] * 10 + [0.1, 0.0]

    assert set(pick_diverse(name(12), vectors, relevance, 3, method, 0.0)) <= set(name(10))
    assert {"i00010", "i00011"} < set(pick_diverse(name(12), vectors, relevance, 3, method, 0.95))


@pytest.mark.parametrize("method", METHODS)
def test_the_most_relevant_come_first_where_all_are_equally_unlike(method):
    assert pick_diverse(name(6), np.eye(6), [3, 1, 6, 2, 5, 4], 3, method) == ["i00002", "i00004", "i00005"]


def test_the_dpp_takes_what_raises_the_determinant_most():
    vectors, weights = draw_unit(14, 6, 3), np.linspace(0, 1, 14)

    picked = [int(id_[1:]) for id_ in pick_diverse(name(14), vectors, weights.tolist(), 9, "dpp", 0.6)]

    scale = np.exp(weights * 0.4 / 0.6 / 2)
    alike = np.exp((vectors @ vectors.T - 1) / diversity.BANDWIDTH)
    kernel = (alike + diversity.RIDGE * np.eye(14)) * np.outer(scale, scale)
    for step in range(9):
        kept = picked[:step]
        gains = {i: np.linalg.slogdet(kernel[np.ix_([*kept, i], [*kept, i])])[1] for i in range(14) if i not in kept}
        assert gains[picked[step]] == pytest.approx(max(gains.values()), abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_far_more_than_there_are_dimensions_can_be_picked(method):
    centres = draw_unit(50, 8, 1)
    vectors = np.vstack([centres, centres + 0.01 * draw_unit(50, 8, 2)])

    picked = pick_diverse(name(100), vectors, None, 50, method, 1.0)

    found = {int(id_[1:]) % 50 for id_ in picked}
    assert len(found) >= 45  # of 50 pairs of near twins


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_too_large_to_compare_is_parted(method, monkeypatch):
    monkeypatch.setitem(diversity.LARGEST_POOL, method, 30)
    vectors, order = draw_unit(100, 6), np.random.default_rng(5).permutation(100)

    picked = pick_diverse(name(100), vectors, None, 37, method)

    assert len(set(picked)) == 37
    assert picked == pick_diverse([name(100)[i] for i in order], vectors[order], None, 37, method)


def test_picking_makes_real_prompts_more_diverse(shared_data):
    lines = (shared_data / "benchmarks" / "gsm8k_test.jsonl").read_text().splitlines()[:60]
    texts = [*lines, *(f"{line} Please." for line in lines)]
    known = sorted({word for text in texts for word in words(text)})
    counts = [Counter(words(text)) for text in texts]
    vectors = np.array([[each[word] for word in known] for each in counts], dtype=np.float32)

    first = measure_diversity(texts[30:90], vectors[30:90])
    for method in ("mmr", "dpp"):
        picked = [int(id_[1:]) for id_ in pick_diverse(name(120), vectors, None, 60, method, 0.8)]
        found = measure_diversity([texts[i] for i in picked], vectors[picked])
        assert found.vendi is not None
        assert first.vendi is not None
        assert found.vendi > first.vendi
        assert (found.nearest_distance or 0) > (first.nearest_distance or 0)


def test_another_process_measures_and_picks_the_same():
    program = (
        "import numpy as np\n"
        "from matrix_dspy.curation.diversity import measure_diversity, pick_diverse\n"
        "v = np.random.default_rng(0).standard_normal((300, 16))\n"
        "ids = [f'i{i:05d}' for i in range(300)]\n"
        "print(measure_diversity(ids, v, groups=ids), [pick_diverse(ids, v, None, 99, m) for m in ('mmr', 'dpp')])"
    )
    vectors, ids = np.random.default_rng(0).standard_normal((300, 16)), name(300)

    there = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    picked = [pick_diverse(ids, vectors, None, 99, method) for method in ("mmr", "dpp")]
    assert there == f"{measure_diversity(ids, vectors, groups=ids)} {picked}\n"
