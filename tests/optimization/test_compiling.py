"""Compiling on a testing LM that is served by another process and counts what it is asked."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from sklearn.metrics import cohen_kappa_score

from matrix_dspy.bulk.prompt import Prompt
from matrix_dspy.errors import ConfigError, ProgramNotFoundError, RunError
from matrix_dspy.loading import build_program, hash_state, load_program, read_card, save_program
from matrix_dspy.optimization.compiling import Compiled, Plan, compile_program, forecast
from matrix_dspy.optimization.judged import judged_folder, load_judged
from matrix_dspy.optimization.optimizers import OPTIMIZERS, OptimizerName
from tests.conftest import ROOT, Server, _wait_until_ready, run_cli, start_cli
from tests.starter import Command

BUDGET = 900
CONCURRENCY = 8
PROGRAM = "intra_router"


@pytest.fixture(scope="module")
def serve_testing_lm() -> Iterator[Callable[..., Server]]:
    """Start testing LMs in processes of their own; they end with the module."""
    servers: list[Server] = []

    def start(*arguments: str | Path) -> Server:
        command = [sys.executable, "-m", "matrix_dspy.testing", *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout is not None
        line = process.stdout.readline()
        server = Server(int(line.rsplit(":", 1)[1].split("/")[0]), process)
        servers.append(server)
        _wait_until_ready(server)
        return server

    yield start
    for server in servers:
        server.process.kill()
        server.process.communicate()


@pytest.fixture(scope="module")
def testing_lm(serve_testing_lm: Callable[..., Server]) -> Server:
    """A testing LM that answers at once."""
    return serve_testing_lm()


@pytest.fixture(scope="module")
def measured_judge(testing_lm: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of states with an output judge that was measured on the testing LM."""
    out = tmp_path_factory.mktemp("judge")
    plan = Plan("output_judge", "labeled", testing_lm.url, budget=2000, out=out / "optimized", work=out / "work")
    compile_program(plan)
    return out / "optimized"


@pytest.fixture
def plan(testing_lm: Server, measured_judge: Path, tmp_path: Path) -> Plan:
    """A compile from the program as written, with a measured judge at hand."""
    return build_plan(testing_lm, measured_judge, tmp_path)


def build_plan(server: Server, judge: Path, folder: Path) -> Plan:
    shutil.copytree(judge, folder / "optimized")
    return Plan(
        PROGRAM,
        "gepa",
        server.url,
        budget=BUDGET,
        start="written",
        out=folder / "optimized",
        work=folder / "work",
        concurrency=CONCURRENCY,
    )


@dataclass(frozen=True)
class Made:
    """A finished compile, which tests share and leave as it is."""

    plan: Plan
    compiled: Compiled
    sent: int
    """Calls it took."""

    def copy(self, folder: Path) -> Plan:
        """Return the same plan in folders of its own, where the compile is finished as well."""
        shutil.copytree(self.plan.out, folder / "optimized")
        shutil.copytree(self.plan.folder, folder / "work")
        return replace(self.plan, out=folder / "optimized", work=folder / "work")


@pytest.fixture(scope="module")
def make(
    testing_lm: Server, measured_judge: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[OptimizerName], Made]:
    """Compile by an optimizer, once in this module."""

    @cache
    def compile_once(optimizer: OptimizerName) -> Made:
        plan = replace(build_plan(testing_lm, measured_judge, tmp_path_factory.mktemp(optimizer)), optimizer=optimizer)
        before = testing_lm.stats()["requests"]
        compiled = compile_program(plan)
        return Made(plan, compiled, testing_lm.stats()["requests"] - before)

    return compile_once


@pytest.fixture(scope="module")
def tuned_judge(testing_lm: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Compiled, Path]:
    """A response judge that gepa tuned, and the folder of the work."""
    out, work = tmp_path_factory.mktemp("tuned"), tmp_path_factory.mktemp("tuning")
    plan = Plan("response_judge", "gepa", testing_lm.url, budget=1500, start="written", out=out, work=work)
    return compile_program(plan), work


def render_elsewhere(path: Path) -> str:
    """Return the messages that a state gives in another process."""
    code = (
        "import json, sys; from matrix_dspy.loading import load_program; from matrix_dspy.bulk.prompt import Prompt\n"
        "print(json.dumps(Prompt.of(load_program(sys.argv[1])).messages(json.loads(sys.argv[2]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), json.dumps(read_inputs())],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    return done.stdout.strip()


def read_inputs() -> dict[str, Any]:
    return load_judged(PROGRAM).rows[0].inputs


def render(path: Path) -> str:
    return json.dumps(Prompt.of(load_program(path)).messages(read_inputs()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_gains_for_sure_within_its_budget_and_is_replayed_without_a_call(
    optimizer: OptimizerName, make: Callable[[OptimizerName], Made], testing_lm: Server
) -> None:
    made = make(optimizer)

    plan, compiled = made.plan, made.compiled
    assert compiled.card["test"]["gain"]["low"] > 0, compiled.card["test"]
    assert compiled.card["calls"]["total"] == made.sent <= BUDGET
    assert compiled.is_default
    assert compiled.path is not None and compiled.path == plan.out / PROGRAM / "default.json"
    assert render(compiled.path) == render_elsewhere(compiled.path)
    assert hash_state(load_program(compiled.path)) != hash_state(build_program(PROGRAM))

    state, before = compiled.path.read_bytes(), testing_lm.stats()["requests"]
    again = compile_program(plan)

    assert testing_lm.stats()["requests"] == before
    assert again.path == compiled.path and compiled.path.read_bytes() == state


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_after_sigkill_only_calls_in_flight_are_repeated_and_the_result_is_the_same(
    optimizer: OptimizerName,
    make: Callable[[OptimizerName], Made],
    serve_testing_lm: Callable[..., Server],
    tmp_path: Path,
) -> None:
    plan, unbroken = make(optimizer).plan, make(optimizer).compiled
    slow = serve_testing_lm("--dials", "rehearsal?latency=0.01")
    out = tmp_path / "killed-states"
    shutil.copytree(plan.out, out, ignore=shutil.ignore_patterns(PROGRAM))
    command = ["compile", PROGRAM, "--optimizer", optimizer, "--lm", slow.url]
    command += ["--budget", str(BUDGET), "--start", "written", "--out", str(out), "--work", str(tmp_path / "killed")]
    command += ["--concurrency", str(CONCURRENCY)]

    for n_calls in (40, 120) if optimizer == "labeled" else (60, 200):
        process = start_cli(*command, cwd=tmp_path)
        wait_for_calls(slow, n_calls, process)
        process.kill()
        process.communicate()
    done = run_cli(*command, cwd=tmp_path)

    stats = slow.stats()
    assert done.returncode == 0, done.stderr
    assert stats["requests"] <= BUDGET
    assert stats["repeated"] <= 2 * CONCURRENCY
    assert unbroken.path is not None
    assert hash_state(load_program(out / PROGRAM / "default.json")) == hash_state(load_program(unbroken.path))


def wait_for_calls(server: Server, n_calls: int, process: Command) -> None:
    for _ in range(2000):
        if server.stats()["requests"] >= n_calls:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"the server was not asked {n_calls} times")


def test_a_budget_that_ends_first_leaves_the_best_so_far(plan: Plan, testing_lm: Server) -> None:
    least = forecast(plan).least
    before = testing_lm.stats()["requests"]

    compiled = compile_program(
        replace(plan, optimizer="mipro", budget=forecast(replace(plan, optimizer="mipro")).least)
    )

    assert testing_lm.stats()["requests"] - before <= forecast(replace(plan, optimizer="mipro")).least
    assert compiled.card["test"]["after"]["value"] >= compiled.card["test"]["before"]["value"]
    assert least > 0


def test_the_card_tells_how_the_state_came_about(make: Callable[[OptimizerName], Made]) -> None:
    plan, compiled = make("gepa").plan, make("gepa").compiled

    assert compiled.path is not None
    card = read_card(compiled.path)
    assert (card["optimizer"], card["lm"], card["judge_lm"], card["measured"]) == (
        "gepa",
        "testing-lm",
        "testing-lm",
        True,
    )
    assert card["judged"] == {"sha256": load_judged(PROGRAM).sha256, "rows": len(load_judged(PROGRAM).rows)}
    assert card["n_test"] == 26
    assert set(card["calls"]) == {"judge", "task", "teacher", "total"}
    assert "127.0.0.1" not in compiled.path.read_text("utf-8")
    scores = pl.read_parquet(plan.folder / "scores.parquet")
    assert scores["after"].mean() == pytest.approx(card["test"]["after"]["value"], abs=1e-3)


def test_a_measured_default_is_kept_where_nothing_better_is_found(
    make: Callable[[OptimizerName], Made], tmp_path: Path
) -> None:
    assert make("labeled").compiled.is_default
    plan = make("labeled").copy(tmp_path)
    state = (plan.out / PROGRAM / "default.json").read_bytes()

    second = compile_program(replace(plan, start="default", work=tmp_path / "second"))

    assert not second.is_default
    assert "nothing tried was better than the start" in second.words
    assert (plan.out / PROGRAM / "default.json").read_bytes() == state


def test_a_measured_default_that_is_replaced_is_kept_as_previous_and_never_brought_back(
    make: Callable[[OptimizerName], Made], tmp_path: Path
) -> None:
    assert make("bootstrap").compiled.is_default
    older = make("bootstrap").copy(tmp_path)
    first = hash_state(load_program(older.out / PROGRAM / "default.json"))

    newer = compile_program(replace(older, optimizer="gepa", start="default", work=tmp_path / "newer"))

    assert newer.is_default and newer.path is not None, newer.words
    assert hash_state(load_program(older.out / PROGRAM / "previous.json")) == first
    assert hash_state(load_program(newer.path)) != first
    state = newer.path.read_bytes()

    again = compile_program(older)

    assert not again.is_default
    assert "not measured against what is the default now" in again.words
    assert newer.path.read_bytes() == state


def test_a_default_that_cannot_be_read_is_set_aside(plan: Plan) -> None:
    default = plan.out / PROGRAM / "default.json"
    default.parent.mkdir()
    default.write_text("{", encoding="utf-8")

    compiled = compile_program(replace(plan, start="default"))

    assert compiled.is_default
    assert default.with_name("broken.json").read_text("utf-8") == "{"
    assert load_program(default)


def test_a_few_rows_are_never_enough_for_a_default(plan: Plan, tmp_path: Path) -> None:
    few = tmp_path / f"{PROGRAM}.jsonl"
    lines = (judged_folder() / f"{PROGRAM}.jsonl").read_text("utf-8").splitlines()
    kept = [line for line in lines if json.loads(line)["split"] != "test"]
    kept += [line for line in lines if json.loads(line)["split"] == "test"][:10]
    few.write_text("\n".join(kept), encoding="utf-8")

    compiled = compile_program(replace(plan, judged=few))

    assert not compiled.is_default
    assert "10 test rows are too few to be sure" in compiled.words


def test_a_judges_agreement_is_noted_where_the_default_stays(testing_lm: Server, tmp_path: Path) -> None:
    plan = Plan("response_judge", "labeled", testing_lm.url, budget=1500, out=tmp_path / "out", work=tmp_path / "work")

    compiled = compile_program(plan)

    assert not compiled.is_default
    card = read_card(tmp_path / "out" / "response_judge" / "default.json")
    assert card["agreement"]["testing-lm"]["n"] == 26
    assert card["measured"] is False


def test_a_judge_that_guesses_is_refused_and_forced_never_makes_a_default(
    plan: Plan, serve_testing_lm: Callable[..., Server], tmp_path: Path
) -> None:
    guessing = serve_testing_lm("--error", "0.9")
    out = tmp_path / "guessed"
    compile_program(Plan("output_judge", "labeled", guessing.url, budget=2000, out=out, work=tmp_path / "judge"))
    sabotaged = replace(plan, lm=guessing.url, out=out)

    with pytest.raises(ConfigError, match=r"agrees too little with the labels of 'intra_router': kappa -?0\.\d\d"):
        compile_program(sabotaged)
    forced = compile_program(replace(sabotaged, force=True, work=tmp_path / "forced"))

    assert not forced.is_default
    assert "the judge was forced" in forced.words
    assert not (out / PROGRAM / "default.json").exists()
    assert forced.path is None or read_card(forced.path)["accepted"] is False


def test_a_judge_that_was_not_measured_on_the_model_is_refused(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has not been measured on 'testing-lm'; run `compile judge`"):
        compile_program(replace(plan, out=tmp_path / "empty"))


def test_the_reported_kappa_is_scikit_learns(tuned_judge: tuple[Compiled, Path]) -> None:
    compiled, work = tuned_judge

    scores = pl.read_parquet(work / "scores.parquet")
    found = compiled.card["agreement"]["testing-lm"]
    reference = cohen_kappa_score(scores["label"], scores["verdict"], labels=[1, 2, 3, 4, 5], weights="quadratic")
    assert len(scores) == found["n"] >= 24
    assert found["kappa"]["value"] == pytest.approx(reference, abs=0.001)
    assert found["kappa"]["value"] > 0.5


def test_a_judge_gains_by_tuning_and_reports_pairs_noise_and_calibration(tuned_judge: tuple[Compiled, Path]) -> None:
    compiled, _ = tuned_judge

    found = compiled.card["agreement"]["testing-lm"]
    assert compiled.card["test"]["gain"]["low"] > 0
    assert compiled.is_default
    assert found["probability"] == sorted(found["probability"]) and found["quality"] == sorted(found["quality"])
    assert found["pairs"]["n"] >= 100 and found["pairs"]["is_calibrated"]
    assert found["repeat_noise"]["n"] == 20
    assert 0 <= found["false_accepts"]["value"] < 0.5


def test_a_noisy_labellers_kappa_is_scikit_learns_too(serve_testing_lm: Callable[..., Server], tmp_path: Path) -> None:
    labels = write_noisy_labels(tmp_path / "response_judge.jsonl")
    server = serve_testing_lm()

    compile_program(
        Plan(
            "response_judge",
            "labeled",
            server.url,
            budget=1500,
            judged=labels,
            out=tmp_path / "out",
            work=tmp_path / "work",
        )
    )

    scores = pl.read_parquet(tmp_path / "work" / "scores.parquet")
    found = read_card(tmp_path / "out" / "response_judge" / "default.json")["agreement"]["testing-lm"]
    clean = {row.id: row.score for row in load_judged("response_judge").rows}
    reference = cohen_kappa_score(scores["label"], scores["verdict"], labels=[1, 2, 3, 4, 5], weights="quadratic")
    assert found["kappa"]["value"] == pytest.approx(reference, abs=0.05)
    assert any(clean[name] != label for name, label in scores.select("id", "label").iter_rows())


def write_noisy_labels(path: Path) -> Path:
    """Move every third label of the shipped set by one level."""
    lines: list[str] = []
    for number, row in enumerate(load_judged("response_judge").rows):
        values = row.model_dump()
        if number % 3 == 0:
            values["score"] = values["score"] + 1 if values["score"] < 5 else 4
            values["output"]["score"] = values["score"]
        lines.append(json.dumps(values))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("judge", ["pair_judge", "arena_judge"])
def test_pairs_are_asked_in_both_orders(testing_lm: Server, tmp_path: Path, judge: str) -> None:
    compiled = compile_program(
        Plan(judge, "labeled", testing_lm.url, budget=1500, start="written", out=tmp_path, work=tmp_path / "work")
    )

    found = compiled.card["agreement"]["testing-lm"]
    assert found["n"] >= 100 and found["is_calibrated"]
    assert found["agreement"]["value"] > 0.5
    assert found["order_flips"]["value"] > 0
    assert compiled.card["n_test"] == 2 * found["n"]


def test_the_rating_judge_is_measured_on_scored_answers(testing_lm: Server, tmp_path: Path) -> None:
    plan = Plan("rating_judge", "labeled", testing_lm.url, budget=1500, start="written", out=tmp_path)

    found = compile_program(replace(plan, work=tmp_path / "work")).card["agreement"]["testing-lm"]

    assert (found["n"], found["unanswered"]) == (26, 0)
    assert found["kappa"]["value"] > 0.2
    scores = pl.read_parquet(tmp_path / "work" / "scores.parquet")
    assert set(scores["verdict"]) <= {1, 2, 3, 4, 5}


def test_a_users_own_set_is_compiled_with_its_own_rubric(plan: Plan, tmp_path: Path) -> None:
    own = tmp_path / "mine.jsonl"
    shutil.copy(judged_folder() / f"{PROGRAM}.jsonl", own)
    own.with_suffix(".md").write_text("# Ours\n\nOnly who was there.\n\n## Data card\n\nsecret", encoding="utf-8")

    assert load_judged(PROGRAM, own).rubric == "# Ours\n\nOnly who was there."
    compiled = compile_program(replace(plan, judged=own, optimizer="labeled"))

    assert compiled.card["judged"]["rows"] == 76


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"budget": 50}, ConfigError, "a budget of 50 calls does not do for intra_router by gepa: measuring takes 296"),
        ({"lm": ""}, ConfigError, "gepa needs a model; add --lm, or take --optimizer labeled"),
        ({"program": "responder", "optimizer": "bootstrap"}, ConfigError, "'responder' keeps no demos"),
        ({"lm": "nonsense"}, ConfigError, "unknown LM 'nonsense'"),
        ({"variant": "../x"}, ConfigError, "variant '../x' does not do"),
        ({"variant": "default"}, ConfigError, "--variant 'default' has a meaning of its own"),
        ({"start": "gepa-9"}, ProgramNotFoundError, "no variant 'gepa-9'"),
    ],
)
def test_a_plan_that_does_not_do_is_refused_in_a_sentence(
    plan: Plan, changes: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as caught:
        compile_program(replace(plan, **changes))

    assert words in str(caught.value)


def test_another_compile_in_the_same_folder_is_refused_naming_the_change(plan: Plan) -> None:
    compile_program(replace(plan, optimizer="labeled"))

    with pytest.raises(RunError, match="holds another compile: seed was 0 and is 1; give another folder with --work"):
        compile_program(replace(plan, optimizer="labeled", seed=1))


def test_a_server_that_goes_away_stops_the_compile_and_loses_nothing(
    plan: Plan, serve_testing_lm: Callable[..., Server], tmp_path: Path
) -> None:
    slow = serve_testing_lm("--dials", "rehearsal?latency=0.02")
    command = ["compile", PROGRAM, "--optimizer", "gepa", "--lm", slow.url]
    command += ["--budget", str(BUDGET), "--out", str(plan.out), "--work", str(tmp_path / "gone"), "--patience", "2"]
    process = start_cli(*command, cwd=tmp_path)
    wait_for_calls(slow, 100, process)
    slow.process.kill()

    _, said = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "Traceback" not in said
    assert "the same command goes on from here" in said
    assert len((tmp_path / "gone" / "journal" / "main.jsonl").read_text("utf-8").splitlines()) >= 100 - CONCURRENCY


def test_without_a_model_every_program_is_compiled_by_labeled_and_the_result_is_what_is_shipped(tmp_path: Path) -> None:
    done = run_cli("compile", "--out", tmp_path / "made")

    assert done.returncode == 0, done.stderr
    made = {path.parent.name: path for path in (tmp_path / "made").glob("*/default.json")}
    assert len(made) == 24
    for name, path in made.items():
        shipped = ROOT / "optimized" / name / "default.json"
        if not read_card(shipped).get("measured"):
            assert path.read_bytes() == shipped.read_bytes(), name
    card = read_card(made["actor"])
    assert (card["optimizer"], card["measured"], card["settings"]["demos"]) == ("labeled", False, 2)


def test_labeled_without_a_model_never_replaces_a_measured_default(
    make: Callable[[OptimizerName], Made], tmp_path: Path
) -> None:
    plan = make("gepa").copy(tmp_path)
    default = plan.out / PROGRAM / "default.json"
    state = default.read_bytes()

    second = compile_program(replace(plan, optimizer="labeled", lm=""))

    assert second.path == plan.out / PROGRAM / "labeled.json" and not second.is_default
    assert "the default was measured and stays" in second.words
    assert default.read_bytes() == state


def test_a_dry_run_says_calls_and_cost_and_asks_nobody(tmp_path: Path) -> None:
    done = run_cli("compile", PROGRAM, "judge", "--lm", "openai/gpt-4o-mini", "--dry-run", "--out", tmp_path / "none")

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == [
        "output_judge",
        "response_judge",
        "pair_judge",
        "instruction_rater",
        PROGRAM,
    ]
    assert "at most 7,500 calls" in done.stdout
    assert "about $" in done.stdout
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compile", "actr"], "no program 'actr'; did you mean 'actor'?"),
        (["compile", "actor", "--optimizer", "gepaa"], "no optimizer 'gepaa'; did you mean 'gepa'?"),
        (["compile", "actor", "critic", "--judged", "x.jsonl"], "--judged is for one program, 2 are asked for"),
        (["compile", "planner", "--lm", "http://127.0.0.1:1/v1"], "'planner' has no judged set to be measured on"),
        (["compile", "actor", "--judged", "none.jsonl"], "no judged set 'none.jsonl' for 'actor'; check the path"),
        (["compile", "actor", "--optimizer", "gepa"], "gepa needs a model; add --lm"),
    ],
)
def test_a_wrong_command_ends_in_a_sentence(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = run_cli(*arguments, cwd=tmp_path)

    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_generate_uses_what_was_compiled_and_another_state_is_another_run(tmp_path: Path) -> None:
    few = ["generate", "-q", "--n", "4", "--set", "population.n_agents=4", "--out", "run"]
    few += ["--set", "operation.keep_prompts=true"]
    first = run_cli(*few, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    program = build_program("actor")
    predictor: Any = program.predictors()[0]
    predictor.signature = predictor.signature.with_instructions("Do one thing, and name the weather.")
    save_program(program, tmp_path / "optimized" / "actor" / "default.json", card={"optimizer": "mine"})

    other = run_cli(*few, cwd=tmp_path)
    fresh = run_cli(*few, "--fresh", cwd=tmp_path)

    assert other.returncode == 1 and "program_actor" in other.stderr
    assert fresh.returncode == 0, fresh.stderr
    journals = [(tmp_path / name / "journal" / "main.jsonl").read_text("utf-8") for name in ("run", "run-2")]
    assert ["name the weather" in journal for journal in journals] == [False, True]
