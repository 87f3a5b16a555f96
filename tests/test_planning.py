import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import orjson
import pytest

from matrix_dspy import pipeline, planning
from matrix_dspy.bulk.program import run_async
from matrix_dspy.bulk.progress import Progress
from matrix_dspy.config import Config, load_recipe
from matrix_dspy.errors import RunError, TableError
from matrix_dspy.planning import count_rounds, estimate_run, measure_run, scale_run, shrink_config
from matrix_dspy.report.estimate import Estimate

NEED = "customer support for a bank"


@dataclass(frozen=True)
class Actual:
    """A run and what it took."""

    config: Config
    path: Path
    progress: Progress
    n_kept: int


def make_config(**changes: object) -> Config:
    return load_recipe(
        "tiny", {"operation.plots": False} | {key.replace("__", "."): value for key, value in changes.items()}
    )


def estimate(config: Config, command: Literal["generate", "simulate"] = "generate", **options: object) -> Estimate:
    return run_async(estimate_run(config, command, **options))  # pyright: ignore[reportArgumentType]


def really_run(config: Config, path: Path, command: Literal["generate", "simulate"] = "generate") -> Actual:
    progress = Progress()
    work = getattr(pipeline, command)(config, path, progress=progress, is_quiet=True)
    return Actual(config, path, progress, run_async(work).n_kept)


def count_off(estimate: Estimate, actual: Actual) -> float:
    """Return the largest share by which calls and tokens, in and out, are off."""
    total, progress = estimate.total, actual.progress
    pairs = [
        (total.calls, sum(tally.calls for tally in progress.by_program.values())),
        (total.prompt_tokens, progress.prompt_tokens),
        (total.completion_tokens, progress.completion_tokens),
    ]
    return max(abs(value.expected / became - 1) for value, became in pairs)


def holds(estimate: Estimate, actual: Actual) -> bool:
    total, progress = estimate.total, actual.progress
    return (
        total.calls.holds(progress.n_calls)
        and total.prompt_tokens.holds(progress.prompt_tokens)
        and total.completion_tokens.holds(progress.completion_tokens)
    )


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Actual:
    """A run of 40 rows from 15 agents, which a sample can be whole."""
    config = make_config(n=40, population__n_agents=15)
    return really_run(config, tmp_path_factory.mktemp("small") / "run")


def test_an_estimate_from_a_sample_of_the_same_size_is_what_the_run_takes(small_run: Actual):
    made = estimate(small_run.config)

    assert count_off(made, small_run) < 0.001
    assert holds(made, small_run)
    assert made.n_expected == small_run.n_kept
    planned = {stage.program: stage.calls.expected for stage in made.stages}
    assert planned == {name: tally.calls for name, tally in small_run.progress.by_program.items()}


def test_an_estimate_from_fewer_agents_is_near_what_the_run_takes(tmp_path: Path):
    config = make_config(n=130, population__n_agents=65, synthesis__need=NEED)
    actual = really_run(config, tmp_path / "run")

    made = estimate(config, sample_calls=900)

    assert made.basis.startswith("a rehearsal of 40 agents")
    assert count_off(made, actual) < 0.15
    assert holds(made, actual)


def test_an_estimate_from_fewer_rounds_is_near_what_the_run_takes(tmp_path: Path):
    config = make_config(n=200, population__n_agents=12)
    actual = really_run(config, tmp_path / "run")

    made = estimate(config, sample_calls=500)

    assert "rehearsal of 12 agents" in made.basis
    assert count_off(made, actual) < 0.15
    assert holds(made, actual)


def test_a_simulation_can_be_estimated(tmp_path: Path):
    config = make_config(n=60, population__n_agents=20, simulation__communication="random")
    actual = really_run(config, tmp_path / "run", "simulate")

    made = estimate(config, "simulate", sample_calls=300)

    assert made.command == "simulate"
    assert count_off(made, actual) < 0.15
    assert {stage.program for stage in made.stages} == set(actual.progress.by_program)


def test_an_estimate_says_when_the_society_falls_quiet_before(tmp_path: Path):
    config = make_config(n=500, population__n_agents=6, simulation__max_plans=1, simulation__communication="none")
    actual = really_run(config, tmp_path / "run")

    made = estimate(config)

    assert actual.n_kept < 500
    assert made.n_expected == pytest.approx(actual.n_kept, rel=0.1)
    assert any("quiet" in sentence for sentence in made.assumptions)


def test_plans_that_end_after_the_sample_are_foreseen():
    config = make_config(n=1000, population__n_agents=4, simulation__max_plans=4, simulation__communication="none")

    made = estimate(config, sample_calls=150)

    assert made.n_expected < 1000
    assert any("plans last for about" in sentence for sentence in made.assumptions)


def test_nothing_is_written_but_to_a_temporary_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    seen: list[Path] = []
    generate = pipeline.generate

    async def look(config: Config, path: Path, **options: object) -> pipeline.Result:
        seen.append(path)
        return await generate(config, path, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(pipeline, "generate", look)

    estimate(make_config(n=10, population__n_agents=6))

    assert [path.is_relative_to(tmp_path / "temporary") for path in seen] == [True]
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "temporary"]


def test_profiles_of_ones_own_are_rehearsed_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    people = [
        {"name": f"Quentin Fairweather {number}", "description": f"A baker of {20 + number} who sells bread and rye."}
        for number in range(8)
    ]
    path = tmp_path / "people.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps(person) for person in people))

    made = estimate(make_config(n=10, population__profiles=str(path), population__n_agents=40))

    planned = {stage.program: stage.calls.expected for stage in made.stages}
    assert planned["goal_setter"] == 8  # as many as there are, not as many as were wanted
    assert [found.name for found in tmp_path.iterdir()] == ["people.jsonl"]


def test_a_missing_file_of_profiles_is_refused_as_the_run_would():
    with pytest.raises(TableError, match="no file or folder"):
        estimate(make_config(population__profiles="nobody.jsonl"))


def test_a_finished_run_of_the_same_size_gives_its_own_numbers(small_run: Actual):
    made = estimate(small_run.config, from_run=small_run.path)

    assert count_off(made, small_run) < 0.001
    assert repr(small_run.path.name) in made.basis
    assert str(small_run.path.parent) not in made.basis


def test_a_finished_run_is_scaled_to_more_rows(small_run: Actual, tmp_path: Path):
    config = small_run.config.model_copy(update={"n": 120})
    actual = really_run(config, tmp_path / "run")

    made = estimate(config, from_run=small_run.path)

    assert count_off(made, actual) < 0.2
    assert holds(made, actual)
    assert any("memories and prompts grow" in sentence for sentence in made.assumptions)


def test_seconds_a_call_are_taken_from_a_finished_run_of_a_real_model(small_run: Actual, tmp_path: Path):
    run = shutil.copytree(small_run.path, tmp_path / "run")
    entries = [json.loads(line) for line in (run / "journal" / "main.jsonl").read_text("utf-8").splitlines()]
    slow = [json.dumps(entry | {"s": 3.0}) for entry in entries]
    (run / "journal" / "main.jsonl").write_text("\n".join(slow), "utf-8")
    measured = replace(measure_run(run, name="run"), is_rehearsed=False)

    forecast = scale_run(measured, small_run.config, 15)

    assert forecast.is_real
    assert sum(load.seconds for load in forecast.loads.values()) == pytest.approx(3.0 * len(entries))


def test_a_run_of_another_command_cannot_be_measured(small_run: Actual):
    with pytest.raises(RunError, match="holds a run of generate"):
        estimate(small_run.config, "simulate", from_run=small_run.path)


def test_an_unfinished_run_cannot_be_measured(small_run: Actual, tmp_path: Path):
    run = shutil.copytree(small_run.path, tmp_path / "run")
    shutil.rmtree(run / "tables")

    with pytest.raises(RunError, match="no finished run to measure"):
        estimate(small_run.config, from_run=run)


def test_a_folder_without_a_run_cannot_be_measured(tmp_path: Path):
    with pytest.raises(RunError, match="no run in"):
        estimate(make_config(), from_run=tmp_path)


def test_a_run_that_replayed_another_cannot_be_measured(small_run: Actual, tmp_path: Path):
    run = shutil.copytree(small_run.path, tmp_path / "run")
    (run / "journal" / "main.jsonl").write_text("", "utf-8")

    with pytest.raises(RunError, match="replayed calls of another run"):
        estimate(small_run.config, from_run=run)


def test_torn_lines_and_calls_written_twice_do_not_count(small_run: Actual, tmp_path: Path):
    run = shutil.copytree(small_run.path, tmp_path / "run")
    lines = (run / "journal" / "main.jsonl").read_text("utf-8").splitlines()
    (run / "journal" / "more.jsonl").write_text(f"{lines[0]}\n{lines[1][:50]}\n", "utf-8")

    assert len(measure_run(run).calls) == len(lines)


def test_a_small_run_is_its_own_sample():
    config = make_config(n=40, population__n_agents=15)

    sample = shrink_config(config, "generate", 15)

    assert (sample.n, sample.population.n_agents) == (40, 15)


def test_a_sample_has_the_same_rows_an_agent_and_agents_a_group():
    config = load_recipe("paper", {"n": 1000})

    sample = shrink_config(config, "generate", 1000)

    n_groups = sample.simulation.n_groups
    assert n_groups is not None
    assert sample.population.n_agents < 500
    assert sample.n / sample.population.n_agents == pytest.approx(1, rel=0.02)
    assert sample.population.n_agents / n_groups == pytest.approx(5, rel=0.05)


def test_a_long_run_of_few_agents_is_cut_by_rounds():
    config = make_config(n=1000)

    sample = shrink_config(config, "generate", 40)

    assert sample.population.n_agents == 40
    assert sample.n < 500


def test_a_sample_calls_no_model_and_has_no_limits():
    config = make_config(lm__main="openai/gpt-4o-mini", operation__max_calls=10, operation__keep_prompts=True)

    sample = shrink_config(config, "generate", 40)

    assert sample.lm.main == "rehearsal"
    assert (sample.operation.max_calls, sample.operation.keep_prompts) == (None, False)


def test_a_sample_keeps_a_rehearsals_faults_but_not_its_latency():
    config = make_config(lm__main="rehearsal?latency=5&error=0.5&malformed=0.1&seed=3")

    sample = shrink_config(config, "generate", 40)

    assert "latency" not in sample.lm.main and "error" not in sample.lm.main
    assert "malformed=0.1" in sample.lm.main and "seed=3" in sample.lm.main


def test_more_agents_than_rows_leave_a_row_in_the_sample():
    sample = shrink_config(load_recipe("paper", {"n": 1}), "generate", 1000)

    assert sample.n == 1


@pytest.mark.parametrize(
    ("group_sizes", "n_scenarios", "n_rounds"),
    [
        ([5, 5], 4, 2),
        ([5, 5], 5, 3),
        ([1], 2, 6),  # alone, three turns make the three actions a scenario needs
        ([2, 5], 6, 4),  # 4 of the five and 2 of the two
        ([3] * 10, 1, 1),
    ],
)
def test_rounds_follow_from_the_groups_sizes(group_sizes: list[int], n_scenarios: int, n_rounds: int):
    assert count_rounds(group_sizes, n_scenarios, make_config()) == n_rounds


def test_longer_scenarios_take_more_rounds():
    assert count_rounds([5, 5], 4, make_config(simulation__rounds_per_scenario=3)) == 6


def test_calls_of_a_sample_fit_what_is_asked_for():
    config = make_config(n=300, population__n_agents=90)

    sample = shrink_config(config, "generate", 90, 1000)

    assert sample.population.n_agents >= planning.LEAST_AGENTS
    assert sample.n < 300


def test_profiles_with_a_history_can_be_estimated(shared_data: Path, tmp_path: Path):
    config = make_config(n=60, population__profiles=str(shared_data / "personas" / "oasis_reddit_user_data_36.json"))
    actual = really_run(config, tmp_path / "run")

    made = estimate(config, sample_calls=600)

    assert count_off(made, actual) < 0.15
