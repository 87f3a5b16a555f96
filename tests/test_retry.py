"""Rows that failed are asked for anew, and nothing else is; checks that are off are named; what a run took is told."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from matrix_dspy import pipeline
from matrix_dspy.bulk.folder import take_lock
from matrix_dspy.bulk.progress import Progress
from matrix_dspy.config import load_recipe
from matrix_dspy.errors import ConfigError, RunError
from matrix_dspy.report.estimate import Forecast, Load, tell_estimate, write_estimate
from tests.conftest import read_outputs

FAULTY = {"n": 15, "population.n_agents": 6, "lm.main": "rehearsal?malformed=0.2&truncated=0.1"}
FAILED = ["unparsed", "failed check", "cut off", "empty", "refused by server"]


def work(path: Path, changes: dict[str, Any], **options: Any) -> tuple[pipeline.Result, Progress]:
    progress = Progress()
    config = load_recipe("tiny", {"operation.plots": False} | changes)
    return asyncio.run(pipeline.generate(config, path, progress=progress, is_quiet=True, **options)), progress


def read_keys(run: Path) -> list[str]:
    return [orjson.loads(line)["key"] for line in (run / "journal" / "main.jsonl").read_bytes().splitlines()]


def read_failed(run: Path) -> pl.DataFrame:
    """Return the failed rows from synthesis on."""
    rejected = pl.read_parquet(run / "tables" / "rejected.parquet")
    return rejected.filter(pl.col("noun").is_in(["instruction", "response"]), pl.col("reason").is_in(FAILED))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, some of whose rows failed."""
    run = tmp_path_factory.mktemp("faulty") / "run"
    result, _ = work(run, FAULTY)
    assert result.is_complete
    assert set(read_failed(run)["noun"]) == {"instruction", "response"}
    return run


@pytest.fixture
def run(faulty: Path, tmp_path: Path) -> Path:
    shutil.copytree(faulty, tmp_path / "run")
    return tmp_path / "run"


def test_failed_rows_are_asked_anew_and_the_others_are_replayed(run: Path) -> None:
    before, failed = read_keys(run), read_failed(run)

    assert pipeline.mark_retries(run) == len(failed)
    result, progress = work(run, FAULTY)

    new = read_keys(run)[len(before) :]
    retries = json.loads((run / "retries.json").read_text())
    marked = {(program, each) for program, ids in retries.items() for each in ids}
    assert len(marked) == len(failed)
    assert result.is_complete and not result.was_finished
    assert progress.n_calls == len(new) > 0
    first = [key for key in new if "+" not in key and key.split("/")[4] == "1"]
    asked = {(key.split("/")[3], key.split("/")[1]) for key in first}
    assert {key.split("/")[0] for key in new} == {"synthesis"}
    assert asked <= marked
    assert {(p, i) for p, i in marked if p == "instruction_writer"} <= asked
    assert len(pl.read_parquet(run / "dataset" / "sft.parquet")) == FAULTY["n"]


def test_after_a_retry_the_same_command_has_nothing_left_to_pay(run: Path) -> None:
    pipeline.mark_retries(run)
    work(run, FAULTY)
    outputs, keys = read_outputs(run), read_keys(run)

    result, progress = work(run, FAULTY)
    (run / "ended.json").unlink()
    again, replayed = work(run, FAULTY)

    assert result.was_finished and progress.n_calls == 0
    assert again.is_complete and replayed.n_calls == 0
    assert replayed.n_replayed > 0
    assert (read_outputs(run), read_keys(run)) == (outputs, keys)


def test_a_row_that_fails_again_is_asked_a_third_time(run: Path) -> None:
    pipeline.mark_retries(run)
    work(run, FAULTY)
    first = json.loads((run / "retries.json").read_text())
    n_left = len(read_failed(run))

    assert pipeline.mark_retries(run) == n_left > 0

    second = json.loads((run / "retries.json").read_text())
    grown = {(p, i): count - first[p].get(i, 0) for p, ids in second.items() for i, count in ids.items()}
    assert sum(grown.values()) == n_left
    assert 2 in {count for ids in second.values() for count in ids.values()}


def test_what_filters_dropped_is_not_asked_for_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    work(run, {"n": 5, "population.n_agents": 5, "curation.min_words": 400})
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}

    assert set(pl.read_parquet(run / "tables" / "rejected.parquet")["reason"]) == {"length"}
    assert pipeline.mark_retries(run) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not (run / "retries.json").exists()


def test_a_run_that_is_at_work_is_not_marked(run: Path) -> None:
    lock = take_lock(run)
    try:
        with pytest.raises(RunError, match="another process is working on"):
            pipeline.mark_retries(run)
    finally:
        lock.release()

    assert not (run / "retries.json").exists()


def test_a_simulation_is_not_retried(tmp_path: Path) -> None:
    config = load_recipe("tiny", {"n": 2, "population.n_agents": 5})
    asyncio.run(pipeline.simulate(config, tmp_path / "run", progress=Progress(), is_quiet=True))

    with pytest.raises(RunError, match="holds a simulation; retry is for rows"):
        pipeline.mark_retries(tmp_path / "run")


def test_without_the_privacy_check_nobody_checks_and_the_card_says_so(tmp_path: Path) -> None:
    changes = {"n": 5, "population.n_agents": 5, "population.privacy_check": False}

    result, _ = work(tmp_path / "run", changes)

    card = (tmp_path / "run" / "README.md").read_text("utf-8")
    assert result.is_complete
    assert not [key for key in read_keys(tmp_path / "run") if "privacy_checker" in key]
    assert "**Switched off in this run: the privacy check.**" in card
    assert "All were anonymised before any other use" in card
    assert "anonymised and checked" not in card


def test_filters_that_are_off_drop_nothing_and_stand_in_the_card(tmp_path: Path) -> None:
    strict = {"n": 5, "population.n_agents": 5, "curation.min_words": 400}
    dropped, _ = work(tmp_path / "strict", strict)
    kept, _ = work(tmp_path / "off", strict | {"curation.off": ["length", "refusal"]})

    reasons = pl.read_parquet(tmp_path / "off" / "tables" / "rejected.parquet")["reason"]
    card = (tmp_path / "off" / "README.md").read_text("utf-8")
    assert (dropped.n_kept, kept.n_kept) == (0, 5)
    assert "length" not in reasons.to_list()
    assert "Switched off in this run: the filter 'length', the filter 'refusal'." in card
    assert "Switched off" not in (tmp_path / "strict" / "README.md").read_text("utf-8")


def test_a_card_tells_what_each_program_took(faulty: Path) -> None:
    card = (faulty / "README.md").read_text("utf-8")
    took = card.partition("## What it took\n")[2].partition("\n## ")[0]
    keys = read_keys(faulty)

    assert "## What was dropped" in card and took
    for program in ("anonymiser", "actor", "instruction_writer", "responder"):
        n_calls = sum(key.split("/")[3].partition("+")[0] == program for key in keys)
        (line,) = [line for line in took.splitlines() if line.startswith(f"| {program.replace('_', chr(92) + '_')} |")]
        assert line.split("|")[2].strip() == str(n_calls)
    assert f"In the last start {len(keys)} requests were sent to all models" in took
    assert "Typed answers were asked for in words, with field markers." in took
    assert "No estimate was made before the run" in took


def test_a_card_sets_the_estimate_beside_what_became_of_it(tmp_path: Path) -> None:
    changes = {"n": 5, "population.n_agents": 5}
    forecast = Forecast("a guess", is_real=False, loads={("synthesis", "responder"): Load(8, 100, 100)})
    made = tell_estimate(forecast, load_recipe("tiny", changes), "generate", price=None)
    (tmp_path / "run").mkdir()
    write_estimate(made, tmp_path / "run")

    _, progress = work(tmp_path / "run", changes)

    card = (tmp_path / "run" / "README.md").read_text("utf-8")
    cells = {}
    for line in card.splitlines():
        if line.startswith("| calls"):
            name, *numbers = [cell.strip() for cell in line.strip("|").split("|")]
            cells[name] = numbers
    n_answers = progress.by_program["responder"].calls
    assert cells["calls of responder"][1] == "8"
    assert cells["calls of responder"][3] == str(n_answers)
    assert cells["calls of responder"][4] == f"{100 * (8 - n_answers) / n_answers:+.1f} %"
    assert cells["calls"][3] == f"{progress.n_calls:,}"
    assert cells["calls of actor"][1] == "0"
    assert "The estimate was made from a guess, before the run." in card


def test_a_limit_on_money_needs_a_price(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no price is known for 'http://127\.0\.0\.1:1/v1'; give --price-in and"):
        work(tmp_path / "run", {"lm.main": "http://127.0.0.1:1/v1", "operation.max_cost": 1.0})

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"operation.max_tokens": 30_000}, "the limit of 30000 tokens is reached"),
        ({"operation.max_cost": 0.03, "operation.price_in": 1.0}, "the limit of 0.03 dollars is reached"),
    ],
    ids=["tokens", "cost"],
)
def test_a_run_that_reached_its_limit_goes_on_to_the_same_data_set(
    faulty: Path, tmp_path: Path, limit: dict[str, Any], words: str
) -> None:
    stopped, first = work(tmp_path / "run", FAULTY | limit)
    done, second = work(tmp_path / "run", FAULTY)

    assert (stopped.is_complete, stopped.is_limited, stopped.reason) == (False, True, words)
    assert first.n_calls > 0
    assert second.n_replayed >= first.n_calls
    assert first.n_calls + second.n_calls == len(read_keys(faulty))
    assert done.is_complete
    assert read_outputs(tmp_path / "run") == read_outputs(faulty)


OTHERS = {
    "rejected": ("dpo", {"lm.rejected": "rehearsal?skill=low&truncated=0.4"}),
    "converser": ("multiturn", {"lm.responder": "rehearsal?truncated=0.25&seed=5"}),
    "follow_up_writer": ("multiturn", {"lm.writer": "rehearsal?malformed=0.2&truncated=0.6"}),
    "safety_judge": ("safety", {"lm.judge": "rehearsal?malformed=0.7"}),
    "response_judge": ("sft", {"lm.judge": "rehearsal?malformed=0.7", "curation.judge_threshold": 1.0}),
}
"""A kind and models that fail in one of its further calls, by the call's purpose."""


@pytest.mark.parametrize("purpose", OTHERS)
def test_every_call_that_can_fail_a_row_is_asked_anew(purpose: str, tmp_path: Path) -> None:
    kind, models = OTHERS[purpose]
    run = tmp_path / "run"
    changes = {"n": 6, "population.n_agents": 6, "synthesis.kind": kind, "synthesis.rate": False} | models
    work(run, changes)
    before = read_keys(run)
    failed = pl.read_parquet(run / "tables" / "rejected.parquet").filter(
        pl.col("stage") == "synthesis", pl.col("reason").is_in([*FAILED, "unjudged"])
    )

    n_marked = pipeline.mark_retries(run)
    marked = json.loads((run / "retries.json").read_text())
    _, progress = work(run, changes)

    new = [key.split("/") for key in read_keys(run)[len(before) :]]
    assert n_marked == len(failed) > 0
    assert set(marked[purpose]) and sum(map(len, marked.values())) >= n_marked
    asked = {key[1] for key in new if key[3] == purpose and key[4] == "1"}
    assert asked & set(marked[purpose])
    assert asked <= set(marked[purpose])
    assert {key[0] for key in new} <= {"synthesis", "simulation"}
    assert progress.n_replayed > progress.n_calls
