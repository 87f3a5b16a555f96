"""Small run folders as a run leaves them, made without running one."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matrix_dspy.bulk.folder import RunFolder
from matrix_dspy.bulk.tables import build_frame, write_jsonl, write_parquet
from matrix_dspy.config import Config
from matrix_dspy.types import AnonymousProfile, Example, Instruction, Message, PairExample, Row, make_id

Said = tuple[str, str]
"""An instruction and its response."""


def build_example(said: Said, number: int, seed: int, model: str, kind: str = "sft") -> Example:
    """Return an example whose ids follow from its number and the seed, as a run's do."""
    asked, answered = said
    return Example(
        **_build_source(number, seed, model, kind),
        messages=(Message(role="user", content=asked), Message(role="assistant", content=answered)),
    )


def build_pair(said: Said, number: int, seed: int, model: str) -> PairExample:
    """Return a preference pair whose rejected side says nothing."""
    asked, answered = said
    return PairExample(
        **_build_source(number, seed, model, "dpo"),
        prompt=(Message(role="user", content=asked),),
        chosen=(Message(role="assistant", content=answered),),
        rejected=(Message(role="assistant", content=f"No idea, {number}."),),
        rejected_id=make_id("response", "rejected", number),
        rejected_model=f"{model}-small",
    )


def _build_source(number: int, seed: int, model: str, kind: str) -> dict[str, Any]:
    nouns = ("example", "instruction", "response", "scenario", "agent", "group", "profile")
    ids = {f"{noun}_id": make_id(noun, number, seed) for noun in nouns}
    return {**ids, "kind": kind, "type": "simple", "category": "advice", "model": model}


def write_run(
    path: Path,
    said: Iterable[Said],
    *,
    seed: int = 1,
    model: str = "some-model",
    kind: str = "sft",
    ranks: Iterable[int] = (),
    licence: str = "CC BY 4.0",
    is_finished: bool = True,
) -> Path:
    """Write a run folder that holds `said`; without `ranks` it has no table of instructions."""
    said = list(said)
    with RunFolder.open(path, "generate", Config(n=max(1, len(said)), seed=seed), {"main": model}) as folder:
        is_pair = kind == "dpo"
        rows = [
            build_pair(each, number, seed, model) if is_pair else build_example(each, number, seed, model, kind)
            for number, each in enumerate(said)
        ]
        frame = build_frame(PairExample if is_pair else Example, rows, sort_by=("example_id",))
        write_parquet(frame, path / "dataset" / f"{kind}.parquet", folder.run_id)
        write_jsonl(frame, path / "dataset" / f"{kind}.jsonl")
        profile = AnonymousProfile(profile_id="profile-0", name="A", description="B", origin="C", licence=licence)
        _write_table(folder, "profiles", AnonymousProfile, [profile])
        instructions = [
            Instruction(
                **row.model_dump(include={"instruction_id", "scenario_id", "agent_id", "group_id", "type", "category"}),
                rank=rank,
                kind=kind,
                complexity="low",
                style="plain",
                language="en",
                text=asked,
            )
            for row, (asked, _), rank in zip(rows, said, ranks, strict=False)
        ]
        if instructions:
            _write_table(folder, "instructions", Instruction, instructions)
        folder.write_card(f"---\nlicense: other\n---\n\n# {kind}\n\nA small set.\n")
        if is_finished:
            folder.write_state({"reason": "complete", "n": len(said), "kept": len(said)})
    return path


def _write_table(folder: RunFolder, noun: str, kind: type[Row], rows: Sequence[Row]) -> None:
    frame = build_frame(kind, rows, sort_by=(next(iter(kind.model_fields)),))
    write_parquet(frame, folder.path / "tables" / f"{noun}.parquet", folder.run_id)
