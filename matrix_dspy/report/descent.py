"""A row walked back to the people it came from, and a run at a glance."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from matrix_dspy.bulk.folder import read_run, read_run_id, read_run_table
from matrix_dspy.bulk.tables import read_table
from matrix_dspy.errors import TableError
from matrix_dspy.types import NOUNS

_ID_TABLES = {
    "example": "dataset",
    "response": "responses",
    "instruction": "instructions",
    "scenario": "scenarios",
    "event": "events",
    "agent": "agents",
    "group": "groups",
    "profile": "profiles",
}
_PARENTS = {
    "example": "response_id",
    "response": "instruction_id",
    "instruction": "scenario_id",
    "event": "scenario_id",
    "agent": "profile_id",
}


def describe_run(path: Path) -> Iterator[str]:
    """Yield what a run folder holds, table by table."""
    run = read_run(path)
    identity = run["identity"]
    models = ", ".join(f"{role} {name}" for role, name in identity["models"].items())
    yield f"{path}: {identity['command']}, recipe {identity['recipe']}, seed {identity['seed']}, models: {models}"
    if not (path / "tables" / "rejected.parquet").is_file():
        n_lines = sum(file.read_bytes().count(b"\n") for file in (path / "journal").glob("*.jsonl"))
        yield f"stopped before its tables were written; {n_lines:,} completions are journaled: run its command again"
        return
    for noun in NOUNS:
        if (path / "tables" / f"{noun}.parquet").is_file():
            yield f"  {noun:13} {len(read_run_table(path, noun)):>9,}"
    for file in sorted((path / "dataset").glob("*.parquet")):
        frame = read_table(file, read_run_id(path))
        yield f"  {file.stem:13} {len(frame):>9,}   {file}"
        if len(frame):
            yield f"one of its rows: show {path} --row {frame['example_id'][0]}"
    reasons = (
        read_run_table(path, "rejected")
        .group_by("noun", "reason")
        .len()
        .sort("len", "noun", "reason", descending=[True, False, False])
    )
    for noun, reason, count in reasons.iter_rows():
        yield f"  rejected: {noun}, {reason}: {count:,}"


def describe_row(path: Path, row_id: str) -> Iterator[str]:
    """Yield a row and all it came from, down to the profile.

    Raises:
        TableError: the row or one of its ancestors is not in the run.
    """
    run_id = read_run_id(path)
    noun = row_id.partition("-")[0]
    rejected = _read_rejected(path).filter(pl.col("id") == row_id)
    for row in rejected.iter_rows(named=True):
        yield f"rejected ({row['stage']}): {row['reason']}; {row['detail']}"
        yield from _indent(row["raw_text"])
    if noun not in _ID_TABLES:
        if len(rejected) == 0:
            raise TableError(f"{row_id!r} is no id of this run; ids look like example-0123456789abcdef")
        return
    row = _find(path, run_id, noun, row_id, must_be=len(rejected) == 0)
    if row is None:
        return
    if noun == "agent":
        yield from _describe_agent(path, run_id, row)
        return
    while True:
        yield from _describe(noun, row)
        if noun == "scenario":
            yield from _describe_events(path, run_id, row)
            return
        if noun == "instruction" and not row["agent_id"]:
            return  # read from elsewhere: nobody asked it
        if noun == "instruction":
            yield from _describe_agent(path, run_id, _find(path, run_id, "agent", row["agent_id"]) or {})
        if noun not in _PARENTS:
            return
        parent_id = row[_PARENTS[noun]]
        noun = parent_id.partition("-")[0]
        if not (path / "tables" / f"{_ID_TABLES[noun]}.parquet").is_file():
            yield f"  its {noun} {parent_id} stands in the run it was merged from"
            return
        row = _find(path, run_id, noun, parent_id) or {}


def _read_rejected(path: Path) -> pl.DataFrame:
    """Return what was dropped; nothing where there is no such table."""
    is_there = (path / "tables" / "rejected.parquet").is_file()
    return read_run_table(path, "rejected") if is_there else pl.DataFrame(schema={"id": pl.String})


def _find(path: Path, run_id: str, noun: str, row_id: str, *, must_be: bool = True) -> dict[str, Any] | None:
    frames = (
        [read_table(file, run_id) for file in sorted((path / "dataset").glob("*.parquet"))]
        if noun == "example"
        else [read_run_table(path, _ID_TABLES[noun])]
    )
    for frame in frames:
        found = frame.filter(pl.col(f"{noun}_id") == row_id)
        if len(found):
            return found.row(0, named=True)
    if must_be:
        raise TableError(f"no {noun} {row_id!r} in {str(path)!r}; the id is wrong or its table is another run's")
    return None


def _describe(noun: str, row: dict[str, Any]) -> Iterator[str]:
    yield f"{noun} {row[f'{noun}_id']}"
    if noun == "example":
        for column in ("messages", "prompt", "chosen", "rejected"):
            for message in row.get(column) or ():
                yield f"  {message['role'] if column in ('messages', 'prompt') else column}:"
                yield from _indent(message["content"], 4)
    elif noun == "response":
        yield f"  by {row['model']}"
    elif noun == "instruction":
        drawn = ", ".join(filter(None, (row[name] for name in ("kind", "type", "category", "complexity", "style"))))
        yield f"  {drawn}, rank {row['rank']}"
        yield from _indent(row["text"])
    elif noun == "scenario":
        yield f"  of {row['group_id']}, rounds {row['opened_round']} to {row['closed_round']}"
        yield from _indent(row["summary"])
    elif noun == "event":
        yield f"  round {row['round']}, {row['kind']} of {row['agent_id']}"
        yield from _indent(row["action"])
    elif noun == "profile":
        yield f"  {row['origin']} ({row['licence']}){', invented' if row['is_invented'] else ''}"
        yield from _indent(row["description"])
    else:
        yield f"  {row['description']}"


def _describe_events(path: Path, run_id: str, scenario: dict[str, Any]) -> Iterator[str]:
    for event_id in [*scenario["outside_event_ids"], *scenario["event_ids"]]:
        event = _find(path, run_id, "event", event_id, must_be=event_id in scenario["event_ids"])
        if event is None:
            yield f"  event {event_id}, from a scenario beyond the last one kept"
            continue
        where = "" if event_id in scenario["event_ids"] else "from outside, "
        yield f"  event {event_id}, {where}round {event['round']}, {event['kind']}: {event['action']}"
        if event["receiver_ids"]:
            yield f"    observed by {', '.join(event['receiver_ids'])}: {event['receiver_reason']}"
        if event["group_ids"]:
            yield f"    reached {', '.join(event['group_ids'])}: {event['group_reason']}"


def _describe_agent(path: Path, run_id: str, agent: dict[str, Any]) -> Iterator[str]:
    yield f"agent {agent['agent_id']}: {agent['name']}"
    yield f"  {agent['personality']}"
    yield f"  goal: {agent['life_goal']}"
    for number, step in enumerate(agent["plan"], 1):
        yield f"  {number}. {step}"
    profile = _find(path, run_id, "profile", agent["profile_id"])
    yield from _describe("profile", profile or {})


def _indent(text: str, width: int = 2) -> Iterator[str]:
    return (" " * width + line for line in text.splitlines())
