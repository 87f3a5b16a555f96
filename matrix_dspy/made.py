"""Everything a run has made so far, and how it is written down."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from matrix_dspy.bulk.folder import RunFolder
from matrix_dspy.config import KindConfig
from matrix_dspy.gates import Curator
from matrix_dspy.population.agents import Population
from matrix_dspy.simulation.society import Closed
from matrix_dspy.synthesis.flow import Flow
from matrix_dspy.synthesis.row import Row
from matrix_dspy.types import Example, Group, PairExample, Profile, Rejected


@dataclass(slots=True)
class Made:
    """What has come of the stages; written in full at the end, and now and then on the way."""

    profiles: list[Profile] = field(default_factory=list)
    bad: list[Rejected] = field(default_factory=list)
    """Profiles that could not be read, and calls of the simulation that came to nothing."""
    population: Population | None = None
    groups: list[Group] = field(default_factory=list)
    closed: list[Closed] = field(default_factory=list)
    curator: Curator | None = None
    flow: Flow | None = None
    scenarios_wanted: int = 0
    stop_reason: str = ""
    is_limited: bool = False

    @property
    def rows(self) -> list[Row]:
        """All candidates that were asked, those on their way among them."""
        return [*self.flow.rows, *self.flow.wave] if self.flow else []

    @property
    def examples(self) -> list[Example | PairExample]:
        """The rows kept so far; on the way the first by rank, and at most as many as are wanted."""
        kept = [row.example for row in self.rows if row.example is not None]
        return kept[: self.flow.config.n] if self.flow else kept

    @property
    def rejected(self) -> list[Rejected]:
        """Everything that was dropped or failed."""
        own = self.population.rejected if self.population else []
        return [*self.bad, *own, *(row.rejected for row in self.rows if row.rejected is not None)]

    def write(self, folder: RunFolder, kind: KindConfig | None) -> int:
        """Write all tables, and the data set of a kind; returns how many units were kept."""
        population = self.population
        folder.write_table("profiles", population.profiles if population else [])
        folder.write_table("agents", population.agents if population else [])
        folder.write_table("groups", self.groups)
        folder.write_table("events", [event for closed in self.closed for event in closed.events])
        folder.write_table("scenarios", [closed.scenario for closed in self.closed])
        folder.write_table("rejected", self.rejected)
        if kind is None:
            return len(self.closed)
        rows = self.rows
        folder.write_table("instructions", [row.instruction for row in rows if row.instruction])
        folder.write_table("responses", [response for row in rows for response in row.responses])
        folder.write_table("critiques", [critique for row in rows for critique in row.critiques])
        folder.write_table("judgements", [judgement for row in rows for judgement in row.judgements])
        shape = PairExample if kind.shape == "pair" else Example
        written = folder.write_dataset(kind.name, self.examples, shape)
        if self.curator is not None:
            folder.write_table("overlaps", self.curator.list_overlaps(_list_asked(self.examples)))
        if self.flow is not None and self.flow.config.selection.on:
            controls = [row.control for row in self.flow.draw_control() if row.control is not None]
            folder.write_dataset(kind.name, controls, shape, place="control")
            offered = [row.offered for row in rows if row.offered is not None and kind.shape == "pair"]
            folder.write_dataset(f"{kind.name}-for-sft", offered, Example, place="pool")
        return len(written)


def _list_asked(examples: Sequence[Example | PairExample]) -> pl.DataFrame:
    """Return the instructions of kept rows with their ids."""
    asked = [(each.prompt if isinstance(each, PairExample) else each.messages)[0].content for each in examples]
    ids = [each.instruction_id for each in examples]
    return pl.DataFrame({"id": ids, "text": asked}, schema={"id": pl.String, "text": pl.String})
