import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import SMALL, run_cli

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
    (["programs", "instruction_writr"], 1, "did you mean 'instruction_writer'"),
    (["show", "no/such/run"], 1, "no run in"),
    (["population", "read", "no/such/file.csv"], 1, "no/such/file.csv"),
    (["nonsense"], 2, "nonsense"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), BAD_COMMANDS, ids=lambda value: str(value)[:60])
def test_a_wrong_input_gets_one_clear_sentence(arguments: list[str], code: int, words: str, tmp_path: Path) -> None:
    if arguments[0] in ("generate", "simulate") and "--out" not in arguments:
        arguments = [*arguments, "--out", str(tmp_path / "run")]

    done = run_cli(*arguments)

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

    assert len(listed.stdout.splitlines()) == 16
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
    assert json.loads((tmp_path / "run" / "state.json").read_text())["reason"] == "complete"
