"""Run folders written row by row, for tests of what is read from them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from matrix_dspy.bulk.folder import RunFolder, read_run_id
from matrix_dspy.bulk.tables import build_frame, write_parquet
from matrix_dspy.config import load_recipe
from matrix_dspy.types import (
    Agent,
    AnonymousProfile,
    Event,
    Example,
    Group,
    Instruction,
    Message,
    PairExample,
    Rejected,
    Response,
    Row,
    Scenario,
    make_id,
)

CATEGORIES = ("advice", "writing", "planning")
FINAL = {
    "is_final": True,
    "reason": "complete",
    "diversity": {"rows": [["distinct-1", 0.5, "share of words", "higher is more various"]]},
}
"""Figures of a finished run whose diversity the run measured itself."""


def open_folder(
    path: Path, n: int, *, kind: str = "sft", figures: Mapping[str, Any] | None = FINAL, **changes: Any
) -> Path:
    """Begin a run folder, and leave it."""
    config = load_recipe("tiny", {"n": n, **{key.replace("__", "."): value for key, value in changes.items()}})
    with RunFolder.open(path, "generate", config, {"main": "some-model"}):
        pass
    if figures is not None:
        (path / "figures.json").write_bytes(orjson.dumps(dict(figures)))
    return path


def write_rows(path: Path, noun: str, rows: Sequence[Row]) -> None:
    """Write a table of a folder."""
    kind = type(rows[0])
    write_parquet(build_frame(kind, rows, sort_by=()), path / "tables" / f"{noun}.parquet", read_run_id(path))


def write_set(path: Path, rows: Sequence[Example | PairExample], name: str = "sft") -> None:
    """Write a data set of a folder."""
    frame = build_frame(type(rows[0]), rows, sort_by=("example_id",))
    write_parquet(frame, path / "dataset" / f"{name}.parquet", read_run_id(path))


def example(number: int, asked: str, answer: str, **values: Any) -> Example:
    """Build a row of a data set, of the society `write_society` writes."""
    return Example.model_validate(_sourced(number) | {"messages": _turns(asked, answer)} | values)


def pair(number: int, asked: str, chosen: str, rejected: str, **values: Any) -> PairExample:
    """Build a preference pair."""
    sides = {"prompt": _turns(asked), "chosen": _turns(None, chosen), "rejected": _turns(None, rejected)}
    other = {"rejected_id": make_id("response", number, 1), "rejected_model": "weak-model"}
    return PairExample.model_validate(_sourced(number) | sides | other | values)


def dropped(number: int, reason: str, noun: str = "instruction", text: str = "", **values: Any) -> Rejected:
    """Build a row of the table of dropped rows."""
    row_id = make_id(noun, number)
    return Rejected(noun=noun, id=row_id, stage="synthesis", reason=reason, raw_text=text, **values)


def write_society(path: Path, rows: Sequence[Example | PairExample], text: str = "Ann mends a clock.") -> None:
    """Write the people, events and scenarios that rows come from; `text` stands in every free field."""
    profiles = [
        AnonymousProfile(profile_id=make_id("profile", n), name=text, description=text, origin=text, licence=text)
        for n in range(2)
    ]
    agents = [
        Agent(
            agent_id=make_id("agent", n), profile_id=make_id("profile", n), name=text, description=text,
            personality=text, life_goal=text, plan=(text, text), has_history=False,
        )
        for n in range(2)
    ]  # fmt: skip
    event = Event(
        event_id="event-1", scenario_id="scenario-1", group_id="group-1", agent_id=agents[0].agent_id, round=1,
        kind="act", plan_step=text, action=text, is_step_done=True, receiver_ids=(agents[1].agent_id,),
    )  # fmt: skip
    scenario = Scenario(
        scenario_id="scenario-1", group_id="group-1", index=0, opened_round=1, closed_round=1,
        agent_ids=tuple(agent.agent_id for agent in agents), event_ids=("event-1",), summary=text,
        group_description=text,
    )  # fmt: skip
    instructions = [
        Instruction(
            instruction_id=row.instruction_id, scenario_id="scenario-1", agent_id=row.agent_id, group_id="group-1",
            rank=number, kind="sft", type="simple", category=row.category, complexity=text, style=text,
            language="English", text=text,
        )
        for number, row in enumerate(rows)
    ]  # fmt: skip
    responses = [
        Response(
            response_id=row.response_id, instruction_id=row.instruction_id, part="answer", sample=0,
            model=row.model, text=text,
        )
        for row in rows
    ]  # fmt: skip
    groups = [Group(group_id="group-1", agent_ids=scenario.agent_ids, description=text)]
    tables: dict[str, Sequence[Row]] = {
        "profiles": profiles, "agents": agents, "groups": groups, "events": [event], "scenarios": [scenario],
        "instructions": instructions, "responses": responses,
    }  # fmt: skip
    for noun, table in tables.items():
        write_rows(path, noun, table)


def _sourced(number: int) -> dict[str, Any]:
    return {
        "example_id": make_id("example", number),
        "instruction_id": make_id("instruction", "kept", number),
        "response_id": make_id("response", number, 0),
        "scenario_id": "scenario-1",
        "agent_id": make_id("agent", number % 2),
        "group_id": "group-1",
        "profile_id": make_id("profile", number % 2),
        "kind": "sft",
        "type": "simple",
        "category": CATEGORIES[number % len(CATEGORIES)],
        "model": "some-model",
    }


def _turns(asked: str | None, answer: str | None = None) -> tuple[Message, ...]:
    user = (Message(role="user", content=asked),) if asked is not None else ()
    return (*user, Message(role="assistant", content=answer)) if answer is not None else user
