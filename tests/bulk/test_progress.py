"""How far a run is, in words and in numbers."""

import logging
from collections.abc import Iterator

import orjson
import pytest

from matrix_dspy.bulk import progress as module
from matrix_dspy.bulk.progress import JsonFormatter, Progress, Tally, set_up_log, show_progress
from matrix_dspy.engine.base import Completion

ANSWER = Completion(("yes",), ("stop",), 100, 50, 2.0, cached_tokens=60)
LOG = logging.getLogger("matrix_dspy")


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """Give the library's log back as it was."""
    before = LOG.handlers[:], LOG.level, LOG.propagate
    yield LOG
    LOG.handlers[:], LOG.level, LOG.propagate = before


def make_progress() -> Progress:
    progress = Progress()
    progress.enter("synthesis", 10, "rows")
    progress.kept = 4
    for _ in range(2):
        progress.answered("responder", ANSWER)
    progress.replayed("actor", ANSWER)
    progress.replayed("responder", ANSWER)
    return progress


def test_calls_are_tallied_by_program_whether_sent_or_replayed() -> None:
    progress = make_progress()

    assert progress.by_program == {"responder": Tally(3, 300, 150, 180, 6.0), "actor": Tally(1, 100, 50, 60, 2.0)}
    assert (progress.n_calls, progress.n_replayed) == (2, 2)
    assert (progress.prompt_tokens, progress.completion_tokens, progress.cached_tokens) == (400, 200, 240)


def test_the_figures_are_the_counters() -> None:
    figures = make_progress().figures()

    assert figures.pop("seconds") >= 0
    assert figures == {
        "stage": "synthesis", "kept": 4, "wanted": 10, "unit": "rows", "rejected": 0, "calls": 2, "replayed": 2,
        "in_flight": 0, "prompt_tokens": 400, "completion_tokens": 200, "cached_tokens": 240,
    }  # fmt: skip


def test_the_line_says_the_same_in_words() -> None:
    line = make_progress().line()

    assert line.startswith("synthesis: 4/10 rows (")
    assert "2 calls + 2 replayed, 0 in flight, tokens 400 in 200 out" in line


def test_a_stage_that_begins_starts_counting_anew_and_is_told() -> None:
    told: list[str] = []
    progress = make_progress()
    progress.on_stage = told.append

    progress.enter("simulation", 3, "scenarios")

    assert (progress.kept, progress.wanted, progress.unit, told) == (0, 3, "scenarios", ["simulation"])
    assert progress.n_calls == 2


def test_lines_of_json_hold_the_figures(
    log: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up_log(is_json=True)
    monkeypatch.setattr(module, "PLAIN_INTERVAL_S", 0.01)
    with show_progress(make_progress()):
        log.warning("a \u201cquoted\u201d\nword")

    lines = [orjson.loads(line) for line in capsys.readouterr().err.splitlines()]

    said, last = next(line for line in lines if line["level"] == "warning"), lines[-1]
    assert said["message"] == "a \u201cquoted\u201d\nword"
    assert set(said) == {"time", "level", "message"}
    assert (last["level"], last["stage"], last["kept"], last["cached_tokens"]) == ("info", "synthesis", 4, 240)


def test_plain_lines_are_plain(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_log()
    with show_progress(make_progress()):
        log.warning("the server is back")

    said, last = capsys.readouterr().err.splitlines()

    assert said == "the server is back"
    assert last.startswith("synthesis: 4/10 rows")


def test_nothing_is_shown_when_quiet(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_log()
    with show_progress(make_progress(), is_quiet=True):
        pass

    assert capsys.readouterr().err == ""


def test_figures_that_are_no_json_are_written_as_words() -> None:
    record = logging.makeLogRecord({"msg": "made %s", "args": ("it",), "levelname": "INFO", "figures": {"place": LOG}})

    line = orjson.loads(JsonFormatter().format(record))

    assert (line["message"], line["level"]) == ("made it", "info")
    assert "matrix_dspy" in line["place"]
