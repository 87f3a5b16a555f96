"""Ablations: what is held equal, what is shared, and what the intervals say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_dspy.ablating import AblationConfig, draw_means, list_ablations, load_ablation, plan_variant, share_stages
from matrix_dspy.errors import ConfigError

VARIANTS = [{"name": "one"}, {"name": "two"}]
JUDGED = {"questions": "questions.jsonl", "judge": "rehearsal"}


@pytest.mark.parametrize("name", list_ablations())
def test_every_shipped_ablation_is_a_plan_for_each_variant(name, tmp_path):
    config = load_ablation(name, {"n": 10, "seeds": [3]})

    plans = [plan_variant(config, variant, "rehearsal", tmp_path, 3) for variant in config.variants]

    assert len(plans) >= 2
    assert {link.config.n for plan in plans for link in plan.links} == {10}
    assert {link.config.seed for plan in plans for link in plan.links} == {3}
    assert {link.training.seed for plan in plans for link in plan.links} == {3}


def test_communication_variants_differ_in_nothing_else(tmp_path):
    config = load_ablation("communication")

    plans = [plan_variant(config, variant, "rehearsal", tmp_path, 0) for variant in config.variants]

    configs = [plan.links[0].config for plan in plans]
    assert [one.simulation.communication for one in configs] == ["none", "random", "structured"]
    same = [one.model_copy(update={"simulation": configs[0].simulation}) for one in configs]
    assert all(one == same[0] for one in same)
    assert all(plan.links[0].training == plans[0].links[0].training for plan in plans)


def test_chains_that_begin_alike_share_data_and_model_of_that_stage(tmp_path):
    config = load_ablation("types")
    plans = []
    for variant in config.variants:
        plans.append(share_stages(plan_variant(config, variant, "rehearsal", tmp_path, 0), plans))

    simple, simple_simple, simple_hard, special, *_ = plans
    assert simple_simple.data_folder(simple_simple.links[0]) == simple.data_folder(simple.links[0])
    assert simple_hard.model_folder(simple_hard.links[0]) == simple.model_folder(simple.links[0])
    assert simple_hard.data_folder(simple_hard.links[1]) != simple_simple.data_folder(simple_simple.links[1])
    assert special.data_folder(special.links[0]) != simple.data_folder(simple.links[0])


def test_the_random_subset_is_tuned_on_the_control_of_the_same_run(tmp_path):
    config = load_ablation("selection", {"seeds": [1]})
    subset, selected = (plan_variant(config, variant, "rehearsal", tmp_path, 1) for variant in config.variants)

    assert subset.source(subset.links[0]) == subset.data_folder(subset.links[0]) / "control" / "sft.jsonl"
    assert selected.source(selected.links[0]) == subset.data_folder(subset.links[0])
    assert selected.model_folder(selected.links[0]) != subset.model_folder(subset.links[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variants": VARIANTS[:1]}, "variants"),
        ({"variants": [VARIANTS[0], VARIANTS[0]]}, "two variants are called 'one'"),
        ({"variants": [{"name": "one", "data_of": "two"}, {"name": "two"}]}, "none before it"),
        ({"seeds": [1, 1]}, "seeds must be given, each once"),
        ({"measures": [{"kind": "winrate", "questions": "q.jsonl"}]}, "needs a judge"),
        ({"wariants": []}, "unknown key 'wariants'"),
    ],
)
def test_a_wrong_ablation_is_one_sentence(changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        load_ablation("communication", changes)
    assert "\n" not in str(error.value)


def test_equal_variants_differ_by_nothing_and_better_ones_by_what_they_are_better():
    generator = np.random.default_rng(0)
    scores = generator.uniform(0, 100, size=(2, 60))

    means, drawn = draw_means([scores, scores, scores + 5], seed=1)

    assert np.allclose(means - means[0], [0, 0, 5])
    assert np.allclose(drawn[:, 1] - drawn[:, 0], 0)
    assert np.allclose(drawn[:, 2] - drawn[:, 0], 5)


def test_intervals_hold_the_true_mean_about_as_often_as_they_say():
    generator = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        scores = generator.normal(50, 20, size=(1, 80))
        _, drawn = draw_means([scores], seed=trial, n_bootstrap=300)
        low, high = np.percentile(drawn[:, 0], [2.5, 97.5])
        hits += low <= 50 <= high
    assert 180 <= hits <= 198


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 5))
def test_drawn_means_stay_within_the_scores(n_seeds, n_questions, seed):
    scores = np.random.default_rng(seed).uniform(0, 1, size=(n_seeds, n_questions))

    means, drawn = draw_means([scores, 1 - scores], seed=seed, n_bootstrap=20)

    assert np.isclose(means[0], scores.mean())
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert np.allclose(drawn.sum(axis=1), 1)


def test_an_ablation_needs_two_variants():
    with pytest.raises(ValueError, match="at least 2"):
        AblationConfig.model_validate({"variants": VARIANTS[:1]})
