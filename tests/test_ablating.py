"""Ablations: what is held equal, what is shared, and what the intervals say."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_dspy.ablating import (
    ABLATIONS,
    AblationConfig,
    Cell,
    draw_means,
    list_cautions,
    list_notes,
    load_ablation,
    plan_variant,
    share_stages,
)
from matrix_dspy.errors import ConfigError
from matrix_dspy.training.tiny import build_tiny_model
from tests.conftest import run_cli

VARIANTS = [{"name": "one"}, {"name": "two"}]
JUDGED = {"questions": "questions.jsonl", "judge": "rehearsal"}


@pytest.mark.parametrize("name", sorted(path.stem for path in ABLATIONS.glob("*.toml")))
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

    assert subset.links[0].config.lm.rejected == "rehearsal"  # the model that is to be trained gives the samples
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


def build_cell(measure: str, n_seeds: int, n_questions: int, low: float, high: float) -> Cell:
    by_seed = (50.0,) * n_seeds
    return Cell("one", measure, "win rate (%)", 50.0, low, high, None, None, None, by_seed, n_questions, n_rows=8)


def test_intervals_that_know_too_little_are_said():
    few, many = build_cell("winrate", 2, 5, 50.0, 50.0), build_cell("ifeval", 2, 300, 40.0, 60.0)

    assert list_cautions([few, many]) == [
        "2 seeds only: intervals hold little of how far trainings differ by chance",
        "winrate: 5 questions only, so its intervals are too narrow",
        "winrate: every question scored the same for one, hence no interval",
    ]
    assert list_cautions([build_cell("ifeval", 5, 30, 40.0, 60.0)]) == []


def test_the_same_training_is_said_of_variants_that_have_the_same():
    plain = AblationConfig.model_validate({"variants": VARIANTS})
    other = {"name": "three", "recipe": "type2-sft", "training": {"epochs": 3, "lora.r": 4}}
    varied = plain.model_validate({"variants": [*VARIANTS, other]})

    said, said_otherwise = (list_notes(config, {}, {"one": 8}) for config in (plain, varied))

    assert "the same training settings and questions" in said[0]
    assert "the same questions;" in said_otherwise[0] and "training settings" not in said_otherwise[0]
    assert "in ways of their own: three with recipe type2-sft, epochs = 3, lora.r = 4" in said_otherwise[1]
    assert not any("of their own" in note for note in said)


def test_seeds_and_questions_are_both_redrawn():
    by_seed = np.array([[0.0] * 40, [100.0] * 40])
    by_question = np.array([[0.0, 100.0] * 20] * 2)

    _, seeds_differ = draw_means([by_seed], seed=0)
    _, questions_differ = draw_means([by_question], seed=0)

    # two seeds that disagree: a quarter of the draws holds the one twice, a quarter the other
    assert set(np.unique(seeds_differ.round(6))) == {0.0, 50.0, 100.0}
    assert np.mean(seeds_differ == 0) == pytest.approx(0.25, abs=0.05)
    assert questions_differ.std() == pytest.approx(50 / 40**0.5, rel=0.1)


def test_an_ablation_needs_two_variants():
    with pytest.raises(ValueError, match="at least 2"):
        AblationConfig.model_validate({"variants": VARIANTS[:1]})


@pytest.fixture(scope="module")
def ablation(tmp_path_factory) -> tuple[Path, list[str], str]:
    """An ablation that was run on a tiny model: its folder, the command, and what it said."""
    folder = tmp_path_factory.mktemp("ablation")
    model = build_tiny_model(folder / "tiny")
    questions = folder / "questions.jsonl"
    texts = [
        "How do I store apples over winter?",
        "Plan a walk of an hour.",
        "Why is bread sour?",
        "Name three rivers.",
    ]
    questions.write_text("".join(json.dumps({"question_id": f"q{n}", "prompt": t}) + "\n" for n, t in enumerate(texts)))
    plan = folder / "short.toml"
    plan.write_text(
        'recipe = "plumbing"\nn = 8\nseeds = [0]\ndata = { "population.n_agents" = 20, "operation.plots" = false }\n'
        'training = { epochs = 2, batch = 4, accumulation = 1, eval_share = 0, "sft.learning_rate" = 5e-3 }\n'
        '[[variants]]\nname = "simple"\ndata = { "synthesis.type" = "simple" }\n'
        '[[variants]]\nname = "hard"\ndata = { "synthesis.type" = "specialised" }\n'
    )
    command = ["ablate", str(plan), "--model", str(model), "--out", str(folder / "out"), "--max-tokens", "24"]
    command += ["--prompts", str(questions), "--judge-lm", "rehearsal"]
    ended = run_cli(*command, timeout=600)
    assert ended.returncode == 0, ended.stderr
    return folder / "out", command, ended.stdout


def test_an_ablation_makes_tunes_and_measures_every_variant(ablation):
    out, _, said = ablation
    table = json.loads((out / "ablation.json").read_text())

    assert [cell["variant"] for cell in table["cells"]] == ["simple", "hard"]
    assert all(cell["n_rows"] == 8 and cell["n_questions"] == 4 for cell in table["cells"])
    assert all(0 <= cell["low"] <= cell["value"] <= cell["high"] <= 100 for cell in table["cells"])
    assert table["cells"][0]["difference"] is None and table["cells"][1]["difference_low"] is not None
    assert "this shows that the plumbing holds, and nothing else" in said
    page = (out / "README.md").read_text()
    assert "one seed only" in page and "winrate: 4 questions only, so its intervals are too narrow" in page
    assert "| questions |" in page and "standard error" not in page and "| wins (%) |" in page


def test_the_variants_differ_in_data_and_so_in_model(ablation):
    out, _, _ = ablation
    places = [out / name / "seed-0" for name in ("simple", "hard")]

    assert len({(place / "plumbing" / "dataset" / "sft.jsonl").read_bytes() for place in places}) == 2
    assert len({(place / "plumbing-model" / "model.safetensors").read_bytes() for place in places}) == 2


def test_an_ablation_that_is_done_asks_and_trains_nothing(ablation):
    out, command, _ = ablation
    journals = {path: path.stat().st_size for path in out.rglob("journal/*.jsonl")}
    before = (out / "ablation.json").read_bytes()

    ended = run_cli(*command, timeout=300)

    assert ended.returncode == 0, ended.stderr
    assert {path: path.stat().st_size for path in out.rglob("journal/*.jsonl")} == journals
    assert (out / "ablation.json").read_bytes() == before


def test_another_ablation_in_the_same_folder_is_refused(ablation):
    ended = run_cli(*ablation[1], "--n", "9")

    assert ended.returncode == 1
    assert "another 'n'" in ended.stderr and ended.stderr.count("\n") == 1
