"""Many calls of one program to one model, journaled: an evaluation that was stopped pays only for what is missing."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matrix_dspy.bulk.journal import CallKey, Journal
from matrix_dspy.bulk.program import for_each, open_engine, sends_schemas
from matrix_dspy.bulk.progress import Progress, show_progress
from matrix_dspy.bulk.prompt import Prompt
from matrix_dspy.bulk.runner import Outcome, Runner
from matrix_dspy.config import SAMPLING, SamplingConfig
from matrix_dspy.loading import load_program
from matrix_dspy.types import Structured

STAGE = "evaluate"


@dataclass(frozen=True, slots=True)
class AskOptions:
    """How models are asked; none of it changes what they are asked."""

    concurrency: int = 32
    seed: int = 0
    timeout_s: float = 600.0
    patience_s: float = 600.0
    data_parallel: int = 1
    ray: str | None = None
    send_seeds: bool = True
    structured: Structured = "auto"
    is_quiet: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the inputs of a program, and the id of what it is about."""

    id: str
    inputs: Mapping[str, Any]
    round: int = 0
    purpose: str = ""
    """Names the call where the program's name would not do, such as the order of a pair."""


@dataclass(slots=True)
class Asker:
    """Asks programs of one open model."""

    runner: Runner
    stage: str
    _prompts: dict[str, Prompt] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The model's own name."""
        return self.runner.engine.model

    async def ask(
        self,
        program: str,
        calls: Sequence[Call],
        *,
        sampling: SamplingConfig | None = None,
        expect: str = "",
        keeps_cut_off: bool = False,
        variant: str = "default",
    ) -> list[Outcome]:
        """Return the outcome of every call, in their order.

        `keeps_cut_off` takes plain answers that reached the token limit as they stand. An answer that cannot be used is
        an outcome without fields, with its reason.
        """
        prompt = self._prompts.setdefault(f"{program}/{variant}", Prompt.of(load_program(program, variant)))
        drawn = sampling or SAMPLING.get(program, SamplingConfig())
        outcomes: list[Outcome | None] = [None] * len(calls)
        progress = self.runner.progress
        progress.enter(program, len(outcomes), "answers")
        asked = {"expect": expect, "keeps_cut_off": keeps_cut_off}

        async def work(place: int) -> None:
            call = calls[place]
            key = CallKey(self.stage, call.id, call.purpose or program, round=call.round)
            outcomes[place] = outcome = await self.runner.call(prompt, call.inputs, key, drawn, **asked)
            progress.kept += outcome.is_ok
            progress.rejected += not outcome.is_ok

        await for_each(len(outcomes), 2 * self.runner.engine.concurrency, work)
        return [outcome for outcome in outcomes if outcome is not None]


@asynccontextmanager
async def open_asker(spec: str, folder: Path, label: str, options: AskOptions) -> AsyncIterator[Asker]:
    """Open the model `spec`; its completions are journaled in `folder`/journal under `label`.

    Two models of one evaluation need two labels, whatever their servers call them.
    """
    journal = Journal(folder / "journal")
    progress = Progress()
    try:
        engine = open_engine(
            spec,
            options.ray,
            concurrency=options.concurrency,
            timeout_s=options.timeout_s,
            patience_s=options.patience_s,
            send_seeds=options.send_seeds,
            **({"data_parallel": options.data_parallel} if options.data_parallel > 1 else {}),
        )
        async with engine:
            engine.journal_into(journal.folder)
            runner = Runner(engine, journal, seed=options.seed, progress=progress)
            runner.structured = sends_schemas(engine, options.structured)
            with show_progress(progress, is_quiet=options.is_quiet):
                yield Asker(runner, f"{STAGE}:{label}")
    finally:
        journal.close()
