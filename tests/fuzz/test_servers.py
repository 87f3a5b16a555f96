"""500 hostile servers at once: every row is kept or rejected with its reason, none twice, whatever the server does."""

import logging
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import dspy
import orjson
import polars as pl
import pytest

from matrix_dspy import run_program
from matrix_dspy.engine.base import MOST_FAILURES, Engine
from matrix_dspy.engine.spec import build_engine
from matrix_dspy.errors import EngineError
from tests.conftest import ROOT
from tests.fuzz.server import (
    ACTS,
    EMPTY,
    GOOD,
    HANGING,
    LOGPROBS,
    REFUSED,
    SHAPES,
    STATUS,
    STOPPING,
    TOO_LONG,
    WIRE,
    Act,
    Asked,
    HostileServer,
    Script,
    http,
    page,
    raw,
)

N_SCRIPTS = 560
MOST_STEPS = 5
"""Requests that may fail before a row is answered."""
TIMEOUT_S, PATIENCE_S = 1.5, 25.0
PASSING = (*SHAPES, *WIRE)


class Judge(dspy.Signature):
    """Answer and judge."""

    case: str = dspy.InputField()
    answer: str = dspy.OutputField()
    score: Literal[1, 2, 3, 4, 5] = dspy.OutputField()


JUDGE = dspy.Predict(Judge)


@pytest.fixture(autouse=True)
def quiet_servers(caplog: pytest.LogCaptureFixture) -> None:
    """Keep thousands of warnings out of a failure's report."""
    caplog.set_level(logging.CRITICAL)


def name_case(number: int) -> str:
    return f"case-{number:05d}"


def make_frame(n: int) -> pl.DataFrame:
    return pl.DataFrame({"position": range(n), "case": [name_case(number) for number in range(n)]})


def build(server: HostileServer, **limits: Any) -> Engine:
    return build_engine(server.url, **{"concurrency": 32, "timeout_s": TIMEOUT_S, "patience_s": PATIENCE_S} | limits)


def draw_passing(rng: random.Random) -> str:
    return rng.choice(rng.choices((tuple(STATUS), tuple(SHAPES), tuple(WIRE)), (4, 3, 3))[0])


def make_scripts(n: int, seed: int) -> tuple[dict[str, Script], dict[str, Script]]:
    """Return scripts by case: those that end with an answer, and those that never do, which come first."""
    rng = random.Random(seed)
    lost: list[Script] = [(f"refused: {name}",) for name in rng.sample(list(REFUSED), 40)]
    lost += [(draw_passing(rng), f"refused: {name}") for name in rng.sample(list(REFUSED), 20)]
    lost += [(f"empty: {name}",) for name in EMPTY]
    lost += [(name,) for name in rng.sample(list(SHAPES), 12)]
    lost += [(name,) for name in rng.sample([name for name in STATUS if name[:3] in ("500", "507", "520")], 8)]
    lost += [(name,) for name in TOO_LONG]
    kept: list[Script] = [(*(draw_passing(rng) for _ in range(MOST_STEPS)), "plain") for _ in range(12)]
    kept += [(name, rng.choice(list(GOOD))) for name in (*HANGING, *PASSING, *TOO_LONG)]
    kept += [(f"empty: {name}", rng.choice(list(GOOD))) for name in EMPTY]
    kept += [(name,) for name in GOOD]
    seen = {*lost, *kept}
    while len(seen) < n:
        steps = [draw_passing(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3)))]
        if rng.random() < 0.1:
            steps.insert(rng.randint(0, len(steps)), f"empty: {rng.choice(list(EMPTY))}")
        script = (*steps, rng.choice(list(GOOD)))
        if script not in seen:
            seen.add(script)
            kept.append(script)
    cases = [name_case(number) for number in range(len(lost) + len(kept))]
    return dict(zip(cases[len(lost) :], kept, strict=True)), dict(zip(cases, lost, strict=False))


def read_journal(out: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for path in (out / "journal").glob("*.jsonl") for line in path.read_bytes().splitlines()]


def read_files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.parquet"))}


def assert_once_each(result: pl.DataFrame, out: Path) -> None:
    """Assert that every row is there once, in its place, with its own answer or a reason."""
    assert result["case"].to_list() == [name_case(number) for number in range(len(result))]
    for row in result.iter_rows(named=True):
        if row["error"] is None:
            assert (row["answer"], row["score"]) == (f"echo of {row['case']}", 3)
        else:
            assert (row["answer"], row["score"]) == (None, None)
            reason, _, detail = row["error"].partition(": ")
            assert reason in ("refused by server", "unparsed", "cut off", "empty") and detail
    rejected = pl.read_parquet(out / "rejected.parquet")
    failed = result.filter(pl.col("error").is_not_null())
    assert rejected["id"].to_list() == [f"row-{position:09d}" for position in failed["position"]]
    assert len({entry["key"] for entry in read_journal(out)}) == len(read_journal(out))


def list_failed(result: pl.DataFrame, scripts: Mapping[str, Script]) -> list[tuple[Script, str]]:
    """Return the scripts of the rows that failed, with the reasons."""
    failed = result.filter(pl.col("error").is_not_null() & pl.col("case").is_in(list(scripts)))
    return [(scripts[row["case"]], row["error"]) for row in failed.iter_rows(named=True)]


def test_whatever_500_servers_do_every_row_is_kept_or_rejected_once(tmp_path: Path):
    kept, lost = make_scripts(N_SCRIPTS, seed=1)
    scripts = lost | kept
    assert len(set(scripts.values())) == len(scripts) >= 500
    assert all(step in ACTS for script in scripts.values() for step in script)
    assert max(map(len, kept.values())) == MOST_STEPS + 1 == MOST_FAILURES
    frame = make_frame(len(scripts))

    with HostileServer(scripts) as server:
        result = run_program(JUDGE, frame, lm=build(server), out=tmp_path)
        n_asked, written = server.asked.total(), read_files(tmp_path)
        again = run_program(JUDGE, frame, lm=build(server), out=tmp_path)

    assert server.faults == []
    assert len(result) == len(scripts)
    assert_once_each(result, tmp_path)
    assert list_failed(result, kept) == []
    assert len(list_failed(result, lost)) == len(lost)
    assert again.equals(result)
    assert (server.asked.total(), read_files(tmp_path)) == (n_asked, written)


@pytest.mark.parametrize("structured", ["off", "on"])
def test_of_several_answers_those_that_are_missing_or_bad_are_asked_for_alone(
    structured: Literal["off", "on"], tmp_path: Path
):
    rng = random.Random(2)
    odd = (*GOOD, *SHAPES, *(f"empty: {name}" for name in EMPTY), "refused: 400 error", "refused: 422 nothing")
    scripts: dict[str, Script] = {
        name_case(number): (*rng.choices(PASSING, k=rng.randint(0, 1)), rng.choice(odd), "plain")
        for number in range(50)
    }

    with HostileServer(scripts) as server:
        result = run_program(JUDGE, make_frame(50), lm=build(server), out=tmp_path, n=3, structured=structured)

    assert server.faults == []
    assert [(row["case"], row["sample"]) for row in result.iter_rows(named=True)] == [
        (name_case(number), sample) for number in range(50) for sample in range(3)
    ]
    assert list_failed(result, scripts) == []
    assert set(result["answer"]) == {f"echo of {case}" for case in scripts}


def test_log_probabilities_of_any_shape_cost_no_row(tmp_path: Path):
    scripts: dict[str, Script] = {name_case(number): (f"logprobs: {name}",) for number, name in enumerate(LOGPROBS)}

    with HostileServer(scripts) as server:
        result = run_program(JUDGE, make_frame(len(scripts)), lm=build(server), out=tmp_path, expect="score")

    assert_once_each(result, tmp_path)
    assert list_failed(result, scripts) == []
    known = dict(zip(LOGPROBS, result["score_expected"].to_list(), strict=True))
    assert known.pop("right") == pytest.approx(3.5)
    assert all(value is None or 1 <= value <= 5 for value in known.values()), known


@pytest.mark.parametrize("name", STOPPING)
def test_a_server_no_row_can_use_stops_the_run_and_a_good_one_is_paid_only_for_the_rest(name: str, tmp_path: Path):
    frame = make_frame(120)

    with HostileServer(stop=f"stop: {name}", stop_after=50) as server:
        with pytest.raises(EngineError, match="what was answered is kept, run the same command again"):
            run_program(JUDGE, frame, lm=build(server, concurrency=8), out=tmp_path)
        n_kept = len(read_journal(tmp_path))
        assert read_files(tmp_path) == {}
        server.stop = ""
        server.asked.clear()

        result = run_program(JUDGE, frame, lm=build(server, concurrency=8), out=tmp_path)

    assert 50 - 8 <= n_kept <= 50
    assert server.asked.total() == len(frame) - n_kept
    assert result["error"].null_count() == len(frame)
    assert_once_each(result, tmp_path)


def start_child(port: int = 0) -> tuple[subprocess.Popen[str], int]:
    """Start a server in a process of its own; return it with its port."""
    command = [sys.executable, "-m", "tests.fuzz.server", "--port", str(port), "--delay", "0.03"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def count_lines(out: Path) -> int:
    with suppress(FileNotFoundError):
        return (out / "journal" / "main.jsonl").read_bytes().count(b"\n")
    return 0


def test_a_server_killed_and_started_again_in_mid_run_costs_no_row(tmp_path: Path):
    frame, children = make_frame(400), [start_child()]
    port = children[0][1]

    def kill_twice() -> None:
        for n_lines in (80, 220):
            while count_lines(tmp_path) < n_lines:
                time.sleep(0.01)
            children[-1][0].send_signal(signal.SIGKILL)
            children[-1][0].wait()
            time.sleep(0.4)
            children.append(start_child(port))

    killer = threading.Thread(target=kill_twice, daemon=True)
    killer.start()
    try:
        engine = build_engine(f"http://127.0.0.1:{port}/v1#fuzz", concurrency=16, timeout_s=5.0, patience_s=PATIENCE_S)
        result = run_program(JUDGE, frame, lm=engine, out=tmp_path)
        killer.join(20)
    finally:
        for process, _ in children:
            process.kill()
            process.communicate()

    assert len(children) == 3, "the server was not killed in mid run"
    assert result["error"].null_count() == len(frame)
    assert_once_each(result, tmp_path)
    assert len(read_journal(tmp_path)) == len(frame)


ODD_MODELS: dict[str, Act] = {
    **{f"page: {name}": act for name, act in SHAPES.items() if name.startswith("200 ")},
    **{f"wire: {name}": act for name, act in WIRE.items()},
    **{f"stop: {name}": act for name, act in STOPPING.items()},
    "data a text": page({"data": "fuzz"}),
    "data null": page({"data": None}),
    "data a number": page({"data": 1}),
    "data a dict": page({"data": {"id": "fuzz"}}),
    "data of texts": page({"data": ["fuzz"]}),
    "data of nulls": page({"data": [None]}),
    "data of lists": page({"data": [["id"]]}),
    "id a number": page({"data": [{"id": 1}]}),
    "id null": page({"data": [{"id": None}]}),
    "id a list": page({"data": [{"id": ["fuzz"]}]}),
    "owner a list": page({"data": [{"id": "fuzz", "owned_by": [1]}]}),
    "owner null": page({"data": [{"id": "fuzz", "owned_by": None}]}),
    "many": page({"data": [{"id": f"m{number}"} for number in range(5000)]}),
    "half a pair": raw(b'{"data": [{"id": "\\ud83d"}]}'),
    "deep": raw(b'{"data": [{"id": "fuzz", "x": ' + b"[" * 900 + b"]" * 900 + b"}]}"),
    "500": raw(b"", status="500 X"),
    "429": raw(b"", "Retry-After: 1", status="429 X"),
    "answered": lambda asked: [http(b'{"data": [{"id": "fuzz"}]}' + b" " * 10)],
    "a completion": lambda asked: [http(orjson.dumps(Asked("case-00000").reply()))],
}


@pytest.mark.parametrize("act", ODD_MODELS.values(), ids=ODD_MODELS)
def test_a_list_of_models_of_any_shape_is_used_or_refused_in_words(act: Act, tmp_path: Path):
    with HostileServer(models=act) as server:
        try:
            result = run_program(JUDGE, make_frame(2), lm=build(server), out=tmp_path)
        except EngineError as error:
            assert str(server.port) in str(error)
        else:
            assert result["error"].null_count() == 2
    assert server.faults == []
