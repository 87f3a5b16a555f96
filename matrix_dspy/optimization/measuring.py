"""How good a judge is on its held-out rows: agreement, calibration, order of pairs, noise of repeats.

The judge is asked through `predict`, so that every call is counted and journaled like any other of the compile.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from matrix_dspy.optimization import agreement
from matrix_dspy.optimization.judged import (
    GOOD,
    JUDGES,
    LEVELS,
    PAIRED,
    JudgedRow,
    load_judged,
    read_level,
    sample_rows,
)
from matrix_dspy.optimization.metrics import Metric

N_REPEATS = 2
"""Times a judge is asked again for its noise, on `N_NOISE_ROWS` rows."""
N_NOISE_ROWS = 20
Output = dict[str, Any]
Predict = Callable[[dspy.Module, list[dspy.Example]], list[Output | None]]


@dataclass(frozen=True)
class JudgeReport:
    """Measures one judge on `rows`, whose outputs are there already."""

    program: str
    judge: dspy.Module
    metric: Metric
    predict: Predict
    seed: int

    def describe(self, rows: Sequence[JudgedRow], outputs: Sequence[Output | None]) -> dict[str, Any]:
        """Return what a card says of the judge."""
        if self.program in PAIRED:
            return self._describe_pairs(rows, outputs)
        labels = [row.score or 0 for row in rows]
        scores = [
            read_level(self.program, output) if output is not None else _farthest(label)
            for label, output in zip(labels, outputs, strict=True)
        ]
        found: dict[str, Any] = agreement.describe_agreement(labels, scores, self.seed)
        found["unanswered"] = sum(output is None for output in outputs)
        found["quality"] = agreement.calibrate_quality(scores, labels)
        found["probability"] = agreement.calibrate(scores, [label >= GOOD for label in labels])
        found["repeat_noise"] = self._measure_noise(rows)
        found["by_program"] = {}
        if self.program == "output_judge":
            found["by_program"] = self._describe_programs(rows, labels, scores)
        if self.program == "response_judge":
            found["pairs"] = self._compare_pairs()
        return found

    def _describe_programs(
        self, rows: Sequence[JudgedRow], labels: Sequence[int], scores: Sequence[int]
    ) -> dict[str, Any]:
        """Measure the output judge on the rows of each program it judges."""
        names = [row.id.rpartition("-")[0] for row in rows]
        found: dict[str, Any] = {}
        for name in dict.fromkeys(names):
            own = [i for i, other in enumerate(names) if other == name]
            found[name] = agreement.describe_agreement([labels[i] for i in own], [scores[i] for i in own], self.seed)
        return found

    def _describe_pairs(self, rows: Sequence[JudgedRow], outputs: Sequence[Output | None]) -> dict[str, Any]:
        right = {
            row.id: 0.0 if output is None else self.metric.measure(row, output).value
            for row, output in zip(rows, outputs, strict=True)
        }
        first = [row.id for row in rows if not row.id.endswith("-turned")]
        one, other = [right[name] for name in first], [right[f"{name}-turned"] for name in first]
        found = agreement.describe_orders(one, other, self.seed)
        agreed = [a for a, b in zip(one, other, strict=True) if a == b]
        found["probability"] = {"both_orders": round(mean(agreed), 4), "tie": 0.5}
        found["is_calibrated"] = len(first) >= agreement.LEAST_PAIRS
        return found

    def _compare_pairs(self) -> dict[str, Any]:
        """Let a judge of single responses score both sides of the held-out pairs."""
        pairs = load_judged("pair_judge").split("test")
        examples = [
            dspy.Example(instruction=row.inputs["instruction"], response=row.inputs[side]).with_inputs(
                "instruction", "response"
            )
            for row in pairs
            for side in ("response_a", "response_b")
        ]
        outputs = self.predict(self.judge, examples)
        margins: list[int] = []
        right: list[bool] = []
        for row, a, b in zip(pairs, outputs[::2], outputs[1::2], strict=True):
            if a is not None and b is not None:
                margins.append(int(a["score"]) - int(b["score"]))
                right.append(row.output["preference"] == "A")
        halves = [
            0.5 if margin == 0 else float((margin > 0) == is_a) for margin, is_a in zip(margins, right, strict=True)
        ]
        table = agreement.calibrate_margin(margins, right)
        return {
            "n": len(margins),
            "agreement": agreement.bootstrap(mean, halves, seed=self.seed).dump(),
            "ties": round(mean([float(margin == 0) for margin in margins]), 4),
            "probability_by_margin": {str(margin): value for margin, value in table.items()},
            "is_calibrated": len(margins) >= agreement.LEAST_PAIRS,
        }

    def _measure_noise(self, rows: Sequence[JudgedRow]) -> dict[str, Any]:
        drawn = sample_rows(rows, N_NOISE_ROWS, self.seed)
        examples = [self.metric.build_example(row) for row in drawn]
        repeats = [self.predict(self.judge, examples) for _ in range(N_REPEATS)]
        scored = [
            [read_level(self.program, output) for output in outputs if output is not None]
            for outputs in zip(*repeats, strict=True)
        ]
        return agreement.describe_noise(scored)


def _farthest(label: int) -> int:
    """Return the level farthest from a label: what a row without an answer counts as."""
    return 1 if label > LEVELS[len(LEVELS) // 2] - 1 else 5


def count_measuring(program: str, n_val: int, n_test: int, per_row: int) -> int:
    """Return the calls to measure start and result on validation and test rows, and a judge's noise and pairs."""
    n = 2 * (n_val + n_test) * per_row
    if program in JUDGES and program not in PAIRED:
        n += N_REPEATS * min(N_NOISE_ROWS, n_test)
    if program == "response_judge":
        n += 2 * len(load_judged("pair_judge").split("test"))
    return n


def mean(values: Sequence[float]) -> float:
    """Return the mean, 0 of nothing."""
    return sum(values) / len(values) if len(values) else 0.0
