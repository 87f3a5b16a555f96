"""A whole recipe: data, SFT, pairs against the SFT model, DPO; with a real tiny model and real training."""

import asyncio
import json
import shutil
import signal
import time
from pathlib import Path

import polars as pl
import pytest

from matrix_dspy.ablating import load_ablation, plan_variant, share_stages
from matrix_dspy.chaining import ChainPlan, run_chain
from matrix_dspy.errors import ConfigError
from matrix_dspy.training.folder import find_checkpoints
from matrix_dspy.training.tiny import build_tiny_model
from tests.conftest import run_cli, start_cli

CHAIN = "plumbing+plumbing-dpo"
SMALL = ("--n", "16", "--set", "population.n_agents=20", "--set", "operation.plots=false")
TRAINED = ("--train", "epochs=6", "--train", "batch=4", "--train", "accumulation=1", "--train", "eval_share=0")
RATES = ("--train", "sft.learning_rate=5e-3", "--train", "dpo.learning_rate=1e-3", "--train", "max_length=1024")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory) -> Path:
    """A tiny model of random weights."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def chain(tmp_path_factory, tiny_model) -> tuple[Path, list[str], str]:
    """A chain that was run: its folder, the command, and what it said."""
    out = tmp_path_factory.mktemp("chain") / "whole"
    command = ["train", "recipe", CHAIN, "--model", str(tiny_model), "--out", str(out), *SMALL, *TRAINED, *RATES]
    ended = run_cli(*command, timeout=600)
    assert ended.returncode == 0, ended.stderr
    return out, command, ended.stdout


def read_metrics(folder: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_the_loss_of_sft_falls(chain):
    losses = read_metrics(chain[0] / "plumbing-model", "loss")

    assert len(losses) >= 10
    assert sum(losses[-3:]) / 3 < 0.8 * losses[0]


def test_dpo_comes_to_prefer_the_chosen_side(chain):
    accuracies = read_metrics(chain[0] / "plumbing-dpo-model", "rewards/accuracies")

    assert sum(accuracies[-3:]) / 3 > 0.8 > accuracies[0]


def test_the_rejected_side_is_the_tuned_model_s_own(chain):
    pairs = pl.read_parquet(chain[0] / "plumbing-dpo" / "dataset" / "dpo.parquet")
    responses = pl.read_parquet(chain[0] / "plumbing-dpo" / "tables" / "responses.parquet")

    models = dict(responses.filter(pl.col("part") == "rejected").select("instruction_id", "model").iter_rows())
    assert len(pairs) == 16
    assert all("plumbing-model" in models[each] for each in pairs["instruction_id"])


def test_dpo_starts_from_the_sft_model_and_its_card_names_the_stages(chain):
    card = (chain[0] / "plumbing-dpo-model" / "README.md").read_text()
    record = json.loads((chain[0] / "plumbing-dpo-model" / "train.json").read_text())

    assert Path(record["model"]["path"]) == (chain[0] / "plumbing-model").resolve()
    assert "sft" in card.lower() and "dpo" in card.lower() and "rehears" in card.lower()


def test_a_finished_chain_says_so_and_asks_nothing(chain):
    before = {path: path.stat().st_mtime_ns for path in chain[0].rglob("*.safetensors")}

    ended = run_cli(*chain[1])

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("finished already") == 2
    assert {path: path.stat().st_mtime_ns for path in chain[0].rglob("*.safetensors")} == before


def test_a_chain_stopped_by_a_limit_says_what_is_missing(tmp_path, tiny_model):
    limits = ("--set", "operation.max_calls=30")
    ended = run_cli("train", "recipe", CHAIN, "--model", str(tiny_model), "--out", str(tmp_path / "c"), *SMALL, *limits)

    assert ended.returncode == 3
    assert "rows of plumbing are missing" in ended.stderr and "the same command goes on" in ended.stderr
    assert not (tmp_path / "c" / "plumbing-model").exists()


def test_a_model_that_cannot_be_trained_is_refused_before_data_is_made(tmp_path):
    ended = run_cli("train", "recipe", CHAIN, "--model", str(tmp_path), "--out", str(tmp_path / "c"))

    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1 and "config.json" in ended.stderr
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("launch", "words"), [("nope", "no launch configuration 'nope'"), (None, "2 GPUs are visible")]
)
def test_a_training_that_cannot_start_is_refused_before_data_is_made(tmp_path, tiny_model, monkeypatch, launch, words):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    said: list[str] = []
    plan = ChainPlan.of(CHAIN, str(tiny_model), tmp_path / "c", {"n": 16}, (), "plumbing", {}, (), launch)

    with pytest.raises(ConfigError, match=words):
        asyncio.run(run_chain(plan, said.append))

    assert not (tmp_path / "c").exists()


def test_data_of_another_chain_is_found_where_that_one_has_it(tmp_path):
    variants = [
        {"name": "sft", "recipe": "plumbing"},
        {"name": "both"},
        {"name": "longer", "data_of": "both", "training": {"epochs": 9}},
        {"name": "beta", "data_of": "both", "training": {"epochs": 9, "dpo.beta": 0.2}},
        {"name": "more", "data_of": "sft", "training": {"epochs": 9}},
    ]
    config = load_ablation("types", {"recipe": CHAIN, "variants": variants})
    plans: list[ChainPlan] = []
    for variant in config.variants:
        plans.append(share_stages(plan_variant(config, variant, "rehearsal", tmp_path, 0), plans))

    sft, both, longer, beta, more = plans
    assert {each.data_folder(each.links[0]) for each in plans} == {sft.out / "plumbing"}
    assert {each.data_folder(each.links[1]) for each in (both, longer, beta)} == {both.out / "plumbing-dpo"}
    assert {each.find_owner(each.links[1]).model_before(1) for each in (longer, beta)} == {both.model_before(1)}
    assert both.model_before(1) == str(sft.out / "plumbing-model")
    assert longer.model_before(1) == str(longer.out / "plumbing-model")
    assert more.data_folder(more.links[1]) == more.out / "plumbing-dpo"


def test_a_recipe_of_pairs_alone_is_no_chain(tmp_path):
    with pytest.raises(ConfigError, match="begins with pairs"):
        ChainPlan.of("type2-dpo", "rehearsal", tmp_path, {}, (), "paper", {}, ())


def test_an_interrupt_stops_the_training_of_a_chain_and_not_what_comes_after(tmp_path, chain):
    out, command, _ = chain
    place = tmp_path / "chain"
    place.mkdir()
    shutil.copytree(out / "plumbing", place / "plumbing")
    told = [str(place) if word == str(out) else word for word in command]
    told = ["epochs=300" if word == "epochs=6" else word for word in told]
    process = start_cli(*told)
    metrics = place / "plumbing-model" / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= 3):
        time.sleep(0.02)

    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)

    assert process.returncode == 130, errors
    assert "stops after this step and saves it" in said
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert find_checkpoints(metrics.parent)[-1][0] == steps[-1] < 1000
    assert not (metrics.parent / "trained.json").exists() and not (place / "plumbing-dpo").exists()
