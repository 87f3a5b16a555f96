import json
import logging
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from matrix_dspy.cli import main
from tests.conftest import SMALL, run_cli, spare_plots

QUICK = ["--n", "5", "--set", "population.n_agents=5"]
FAULTY = ["--n", "15", "--set", "population.n_agents=6", "--lm", "rehearsal?malformed=0.2&truncated=0.1"]

BAD_COMMANDS = [
    (["generate", "--n", "0"], 2, "--n"),
    (["generate", "--n", "-3"], 2, "--n"),
    (["generate", "--n", "many"], 2, "--n"),
    (["generate", "--recipe", "tinny"], 1, "did you mean 'tiny'"),
    (["generate", "--recipe", "nowhere/own.toml"], 1, "check the path"),
    (["generate", "--kind", "sftt"], 1, "did you mean 'sft'"),
    (["generate", "--type", "fancy"], 1, "synthesis.type"),
    (["generate", "--lm", "gpt"], 1, "unknown LM 'gpt'"),
    (["generate", "--lm", "rehearsal?latncy=1"], 1, "latncy"),
    (["generate", "--lm", "rehearsal?latency=fast"], 1, "latency"),
    (["generate", "--lm", "http://127.0.0.1:1/v1"], 1, "no server answers"),
    (["generate", "--lm", "http://no.such.host.invalid/v1"], 1, "no server answers"),
    (["generate", "--profiles", "no/such/file.jsonl"], 1, "no/such/file.jsonl"),
    (["generate", "--set", "simulation.n_groups=999"], 1, "999 groups"),
    (["generate", "--set", "simulation.n_groups=2"], 1, "2 groups"),
    (["generate", "--set", "simulation.grops=2"], 1, "did you mean"),
    (["generate", "--set", "nonsense"], 1, "section.key=value"),
    (["generate", "--set", "curation.near_duplicate=1.5"], 1, "curation.near_duplicate"),
    (["generate", "--column", "name"], 1, "name=realname"),
    (["generate", "--from", "no/such/run"], 1, "no/such/run"),
    (["generate", "--out", "pyproject.toml"], 1, "is a file"),
    (["simulate", "--communication", "telepathy"], 1, "simulation.communication"),
    (["generate", "--max-time", "2x"], 1, "cannot read --max-time '2x'; write 90s, 30m or 2h"),
    (["generate", "--max-time", "nan"], 1, "operation.max_time_s"),
    (["generate", "--max-time", "-5m"], 1, "operation.max_time_s"),
    (["generate", "--max-cost", "0"], 1, "operation.max_cost"),
    (["generate", "--max-tokens", "0"], 2, "--max-tokens"),
    (["generate", "--lm", "http://127.0.0.1:1/v1", "--max-cost", "1"], 1, "give --price-in and --price-out with"),
    (["generate", "--price-in", "-1"], 1, "operation.price_in"),
    (["generate", "--log", "xml"], 1, "no log form 'xml'; write --log plain or --log json"),
    (["generate", "--trace", "2"], 1, "operation.trace_share"),
    (["generate", "--trace", "0.5"], 1, "OTEL_EXPORTER_OTLP_ENDPOINT"),
    (["estimate", "--recipe", "tinny"], 1, "did you mean 'tiny'"),
    (["retry", "no/such/run"], 1, "no run in"),
    (["doctor", "--lm", "http://127.0.0.1:1/v1"], 1, "no server answers at http://127.0.0.1:1/v1"),
    (["programs", "instruction_writr"], 1, "did you mean 'instruction_writer'"),
    (["show", "no/such/run"], 1, "no run in"),
    (["population", "read", "no/such/file.csv"], 1, "no/such/file.csv"),
    (["nonsense"], 2, "nonsense"),
]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Call = Callable[..., Done]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Call the command line in this process, which spares its imports, and leave the log as it was."""
    log = logging.getLogger("matrix_dspy")
    before = log.handlers[:], log.level, log.propagate

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["cli.py", *spare_plots(arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        said = capfd.readouterr()
        return Done(code, said.out, said.err)

    yield run
    log.handlers[:], log.level, log.propagate = before


@pytest.mark.parametrize(("arguments", "code", "words"), BAD_COMMANDS, ids=lambda value: str(value)[:60])
def test_a_wrong_input_gets_one_clear_sentence(
    arguments: list[str], code: int, words: str, tmp_path: Path, call: Call
) -> None:
    if arguments[0] in ("generate", "simulate", "estimate") and "--out" not in arguments:
        arguments = [*arguments, "--out", str(tmp_path / "run")]

    done = call(*arguments)

    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "tables").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", "", "empty"),
        ("empty.csv", "", "empty"),
        ("columns.csv", "city,age\nParis,3\n", "--column"),
        ("nameless.jsonl", '{"name": "", "description": "a baker"}\n', "no name"),
        ("broken.json", "{", "broken.json"),
        ("noise.parquet", "not parquet", "noise.parquet"),
    ],
)
def test_a_bad_profile_file_gets_one_clear_sentence(name: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)

    done = run_cli("generate", "--profiles", tmp_path / name, "--out", tmp_path / "run")

    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_shows_the_resolved_config_and_writes_nothing(tmp_path: Path) -> None:
    done = run_cli("generate", "--dry-run", "--n", "7", "--set", "simulation.lookahead=0", "--out", tmp_path / "run")

    assert done.returncode == 0
    assert "n = 7" in done.stdout
    assert "lookahead = 0" in done.stdout
    assert not (tmp_path / "run").exists()


def test_fresh_starts_a_new_folder_and_deletes_nothing(finished_run: Path) -> None:
    done = run_cli("generate", "-q", *SMALL, "--fresh", "--out", finished_run)

    beside = finished_run.with_name(finished_run.name + "-2")
    assert done.returncode == 0
    assert (beside / "dataset" / "sft.parquet").exists()
    assert (finished_run / "dataset" / "sft.parquet").exists()
    shutil.rmtree(beside)


def test_a_row_is_walked_back_to_its_people(finished_run: Path) -> None:
    row = pl.read_parquet(finished_run / "dataset" / "sft.parquet").row(0, named=True)

    done = run_cli("show", finished_run, "--row", row["example_id"])

    assert done.returncode == 0
    for noun in ("example", "response", "instruction", "scenario", "agent", "profile"):
        assert row[f"{noun}_id"] in done.stdout
    assert "event event-" in done.stdout


def test_any_noun_can_be_shown(finished_run: Path) -> None:
    row = pl.read_parquet(finished_run / "dataset" / "sft.parquet").row(0, named=True)

    for noun in ("response", "instruction", "scenario", "agent", "group", "profile"):
        assert row[f"{noun}_id"] in run_cli("show", finished_run, "--row", row[f"{noun}_id"]).stdout


def test_an_unknown_row_is_named(finished_run: Path) -> None:
    done = run_cli("show", finished_run, "--row", "example-0000000000000000")

    assert done.returncode == 1
    assert "example-0000000000000000" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_table_from_another_run_is_noticed(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    other = tmp_path / "other"
    assert (
        run_cli("simulate", "-q", "--scenarios", "2", "--set", "population.n_agents=5", "--out", other).returncode == 0
    )
    shutil.copy(other / "tables" / "scenarios.parquet", run / "tables" / "scenarios.parquet")

    done = run_cli("show", run)

    assert done.returncode == 1
    assert "belongs to another run" in done.stderr


def test_programs_are_listed_and_shown() -> None:
    listed, shown = run_cli("programs"), run_cli("programs", "instruction_writer")

    assert len(listed.stdout.splitlines()) == 24
    assert "input requirement: str" in shown.stdout
    assert "Write the message this person" in shown.stdout


def test_composed_profiles_are_reproducible_and_can_be_read(tmp_path: Path) -> None:
    for name in ("one.jsonl", "two.jsonl"):
        assert run_cli("population", "compose", "--n", "5", "--seed", "3", "--out", tmp_path / name).returncode == 0

    read = run_cli("population", "read", tmp_path / "one.jsonl")

    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert read.stdout.startswith("5 profiles, 5 with a history, 0 rejected")


def test_the_rehearsal_announces_itself(tmp_path: Path) -> None:
    done = run_cli("generate", "-q", "--n", "3", "--set", "population.n_agents=3", "--out", tmp_path / "run")

    assert "rehearsal, a rule-based stand-in" in done.stderr


def test_a_key_in_the_environment_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIX_DSPY_API_KEY", "sk-very-secret")
    done = run_cli("generate", "--n", "3", "--set", "population.n_agents=3", "--out", tmp_path / "run")

    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert b"sk-very-secret" not in written
    assert "sk-very-secret" not in done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "ended.json").read_text())["reason"] == "complete"


def count_calls(run: Path) -> int:
    return len((run / "journal" / "main.jsonl").read_bytes().splitlines())


def test_retry_asks_for_failed_rows_and_the_run_is_finished_again(tmp_path: Path, call: Call) -> None:
    run = tmp_path / "run"
    made = call("generate", "-q", *FAULTY, "--out", run)
    n_before = count_calls(run)

    done = call("retry", "-q", run)
    n_after = count_calls(run)
    again = call("generate", "-q", *FAULTY, "--out", run)

    assert (made.returncode, done.returncode, again.returncode) == (0, 0, 0)
    marked = sum(map(len, json.loads((run / "retries.json").read_text()).values()))
    assert done.stderr.splitlines()[0].startswith(f"{marked} failed rows are asked for again; ")
    assert "15 of 15 rows" in done.stdout
    assert 0 < n_after - n_before <= 2 * marked
    assert "is finished already" in again.stdout
    assert count_calls(run) == n_after
    assert len(pl.read_parquet(run / "dataset" / "sft.parquet")) == 15


def test_retry_replays_what_the_run_itself_replayed(tmp_path: Path, call: Call) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert call("generate", "-q", *FAULTY, "--out", first).returncode == 0
    other = [*FAULTY, "--set", "synthesis.group_share=0.5", "--from", first, "--out", second]
    assert call("generate", "-q", *other).returncode == 0
    assert count_calls(second) == 0

    done = call("retry", "-q", second)

    assert done.returncode == 0
    assert count_calls(second) < count_calls(first) / 4


def test_retry_of_a_run_without_failures_says_so(finished_run: Path, call: Call) -> None:
    n_before = count_calls(finished_run)

    done = call("retry", "-q", finished_run)

    assert done.returncode == 0
    assert done.stdout.startswith(f"no row of the data set of {finished_run} failed; what filters dropped")
    assert count_calls(finished_run) == n_before


def test_retry_of_a_simulation_is_refused(tmp_path: Path, call: Call) -> None:
    made = call("simulate", "-q", "--scenarios", "2", "--set", "population.n_agents=5", "--out", tmp_path / "run")

    done = call("retry", tmp_path / "run")

    assert (made.returncode, done.returncode) == (0, 1)
    assert "holds a simulation; retry is for rows that generate made" in done.stderr


def test_an_estimate_is_shown_kept_and_set_beside_the_run(tmp_path: Path, call: Call) -> None:
    run = tmp_path / "run"

    shown = call("estimate", *QUICK, "--price-in", "2", "--price-out", "8", "--out", run)

    kept = json.loads((run / "estimate.json").read_text())
    assert shown.returncode == 0
    assert shown.stdout.startswith("generate, 5 rows, model rehearsal: an estimate\n")
    assert f"kept for the run's card: {run}/estimate.json" in shown.stdout
    assert (kept["n"], kept["command"]) == (5, "generate")
    assert kept["money"]["expected"] > 0
    assert [path.name for path in run.iterdir()] == ["estimate.json"]

    done = call("generate", "-q", *QUICK, "--set", "operation.plots=true", "--out", run)

    assert done.returncode == 0
    assert (run / "plots" / "funnel.png").exists()
    card = (run / "README.md").read_text("utf-8")
    assert "| low | expected | high | actual | expected against actual |" in card
    assert "| calls of responder |" in card
    assert "No estimate was made" not in card


def test_the_flag_estimate_says_what_the_command_would_take_and_stops(tmp_path: Path, call: Call) -> None:
    done = call("simulate", "--scenarios", "2", "--set", "population.n_agents=5", "--estimate", "--out", tmp_path / "r")

    assert done.returncode == 0
    assert done.stdout.startswith("simulate, 2 scenarios, model rehearsal: an estimate\n")
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["estimate.json"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-tokens", "9000"], "the limit of 9000 tokens is reached"),
        (["--max-cost", "0.02", "--price-in", "1", "--price-out", "3"], "the limit of 0.02 dollars is reached"),
        (["--max-time", "2s", "--lm", "rehearsal?latency=0.6"], "the limit of 2 seconds is reached"),
    ],
    ids=["tokens", "cost", "time"],
)
def test_a_limit_ends_with_code_3_and_the_command_that_goes_on(
    flags: list[str], words: str, tmp_path: Path, call: Call
) -> None:
    run = tmp_path / "run"

    stopped = call("generate", "-q", *QUICK, *flags, "--out", run)
    done = call("generate", "-q", *QUICK, "--out", run)

    assert stopped.returncode == 3
    assert f"5 rows are missing: {words}" in stopped.stderr
    assert "go on with:" in stopped.stderr
    assert count_calls(run) > 0
    assert done.returncode == 0


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200)])
def test_times_are_read_in_seconds_minutes_and_hours(text: str, seconds: float, call: Call) -> None:
    assert f"max_time_s = {seconds:.1f}" in call("generate", "--dry-run", "--max-time", text).stdout


def test_with_log_json_every_message_is_an_object_with_its_figures(tmp_path: Path, call: Call) -> None:
    done = call("generate", *QUICK, "--log", "json", "--out", tmp_path / "run")

    lines = [orjson.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    last = lines[-1]
    assert done.returncode == 0
    assert (last["level"], last["stage"], last["unit"]) == ("info", "synthesis", "rows")
    assert (last["kept"], last["wanted"], last["in_flight"]) == (5, 5, 0)
    assert last["calls"] == count_calls(tmp_path / "run")
    assert last["prompt_tokens"] > last["completion_tokens"] > 0
    assert last["message"].startswith("synthesis: 5/5 rows")
    assert last["time"].endswith("+00:00")


def test_with_log_json_standard_error_holds_nothing_but_objects(tmp_path: Path, call: Call) -> None:
    done = call("generate", *QUICK, "--log", "json", "--out", tmp_path / "run")

    assert [line for line in done.stderr.splitlines() if not line.startswith("{")] == []


def test_the_doctor_finds_the_rehearsal_well(call: Call) -> None:
    done = call("doctor", "--lm", "rehearsal?latency=0.001", "--concurrency", "4")

    assert done.returncode == 0
    assert "ok  reached            model 'rehearsal'" in done.stdout
    assert "ok  JSON schema" in done.stdout
    assert "ok  advice             --concurrency " in done.stdout


class Refusing(BaseHTTPRequestHandler):
    """Lists a model and refuses every request to it."""

    def do_GET(self) -> None:
        self.reply(200, b'{"data": [{"id": "org/mute"}]}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(400, b'{"error": {"message": "chat is switched off"}}')

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def test_the_doctor_ends_with_code_1_where_the_model_does_not_answer(call: Call) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        done = call("doctor", "--lm", f"http://127.0.0.1:{server.server_address[1]}/v1")
    finally:
        server.shutdown()
        server.server_close()

    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "ok  reached            model 'org/mute'",
        "no  answers            the server answers 400: chat is switched off",
    ]
