"""Which scenarios instructions are written from, and in which order (METHOD 3.1).

With a need: by cosine of need and summary, re-ranked for variety (MMR). Without: evenly over groups.
"""

import random
from collections.abc import Sequence

import numpy as np

from matrix_dspy.config import SynthesisConfig
from matrix_dspy.engine.embedding import Embedder
from matrix_dspy.types import Scenario


class Retriever:
    """Ranks scenarios; those ranked earlier stay in front when more come in."""

    def __init__(self, config: SynthesisConfig, embedder: Embedder, seed: int) -> None:
        self.config = config
        self.embedder = embedder
        self.seed = seed
        self.ranked: list[Scenario] = []
        self.relevance: dict[str, float] = {}
        """Cosine of need and summary, by scenario id; empty without a need."""

    def add(self, scenarios: Sequence[Scenario]) -> list[Scenario]:
        """Rank scenarios not seen before behind the earlier ones, and return them in order."""
        known = {scenario.scenario_id for scenario in self.ranked}
        new = [scenario for scenario in scenarios if scenario.scenario_id not in known]
        ranked = self._rank_by_need(new) if self.config.need and new else rank_evenly(new, self.seed)
        self.ranked += ranked
        return ranked

    def _rank_by_need(self, scenarios: list[Scenario]) -> list[Scenario]:
        scenarios = sorted(scenarios, key=lambda scenario: scenario.scenario_id)
        vectors = self.embedder.embed([scenario.summary for scenario in scenarios])
        need = self.embedder.embed([self.config.need])[0]
        relevance = np.round(vectors @ need, 6)
        self.relevance |= {s.scenario_id: float(r) for s, r in zip(scenarios, relevance, strict=True)}
        return [scenarios[i] for i in order_by_mmr(relevance, vectors, self.config.relevance_weight)]


def order_by_mmr(relevance: np.ndarray, vectors: np.ndarray, weight: float) -> list[int]:
    """Order rows by maximal marginal relevance.

    `relevance` is (n,), `vectors` (n, n_dims) of unit length. Each next row has the largest
    weight * relevance - (1 - weight) * (largest cosine to a row chosen before); ties go to the lower position.
    """
    n_rows = len(relevance)
    closest = np.full(n_rows, 0.0)
    is_open = np.ones(n_rows, dtype=bool)
    order: list[int] = []
    for _ in range(n_rows):
        scores = np.where(is_open, weight * relevance - (1 - weight) * closest, -np.inf)
        best = int(np.argmax(scores))
        order.append(best)
        is_open[best] = False
        closest = np.maximum(closest, np.round(vectors @ vectors[best], 6))
    return order


def rank_evenly(scenarios: Sequence[Scenario], seed: int) -> list[Scenario]:
    """Order scenarios so that groups take turns, each round of turns in an order of its own."""
    by_group: dict[str, list[Scenario]] = {}
    for scenario in sorted(scenarios, key=lambda scenario: (scenario.group_id, scenario.index)):
        by_group.setdefault(scenario.group_id, []).append(scenario)
    ranked: list[Scenario] = []
    for turn in range(max((len(own) for own in by_group.values()), default=0)):
        groups = sorted(group_id for group_id, own in by_group.items() if len(own) > turn)
        random.Random(f"{seed}/{turn}").shuffle(groups)
        ranked += [by_group[group_id][turn] for group_id in groups]
    return ranked
