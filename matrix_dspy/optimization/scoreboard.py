"""Every candidate an optimizer tries, with the scores it got: so that a spent budget still leaves the best so far.

Optimizers hold their candidates in many ways of their own. What they share is that a candidate is called on examples
and that the metric sees what came of it, so the program itself says on each prediction which candidate made it.
"""

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import dspy
from pydantic import TypeAdapter

from matrix_dspy.loading import read_signature
from matrix_dspy.text import clean_text, clean_value

P = TypeVar("P", bound=dspy.Module)
_MARK = "_matrix_dspy_candidate"
PRIOR_ROWS = 4
"""Rows' worth of the start's mean that a candidate seen on few rows is drawn towards."""


class Scoreboard:
    """Candidates by what their prompts say, and their scores by row."""

    def __init__(self) -> None:
        self._states: dict[str, dict[str, Any]] = {}
        self._scores: dict[str, dict[str, list[float]]] = {}
        self._lock = threading.Lock()

    def track(self, program: P) -> P:
        """Return a copy of `program` that marks its predictions; copies of it do so too."""
        board = self
        kind: Any = type(program)

        class Tracked(kind):
            """A program whose predictions say which candidate made them."""

            def forward(self, **inputs: Any) -> dspy.Prediction:
                prediction = super().forward(**inputs)
                object.__setattr__(prediction, _MARK, board.note(self))
                return prediction

        copy: Any = program.deepcopy()
        copy.__class__ = Tracked
        return copy

    def note(self, program: dspy.Module) -> str:
        """Remember a candidate; returns what it is known by."""
        predictor: Any = program.predictors()[0]
        state = read_prompt_state(predictor)
        known = hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()
        with self._lock:
            self._states.setdefault(known, {"signature": predictor.signature, "demos": list(predictor.demos)})
        return known

    def score(self, prediction: Any, row_id: str, value: float) -> None:
        """Note the score of one prediction; those of other programs, such as a teacher's, carry no mark."""
        known = getattr(prediction, _MARK, None)
        if known is not None:
            with self._lock:
                self._scores.setdefault(known, {}).setdefault(row_id, []).append(value)

    def mean(self, known: str, rows: Sequence[str]) -> float | None:
        """Return a candidate's mean over `rows`; None unless it was scored on all of them."""
        scores = self._scores.get(known, {})
        if not rows or any(row not in scores for row in rows):
            return None
        return sum(sum(scores[row]) / len(scores[row]) for row in rows) / len(rows)

    def rank(self, start: dspy.Module) -> list[str]:
        """Return the candidates, best first, by mean over all rows they were scored on, drawn towards the start's."""
        first = self.note(start)
        prior = _mean(self._scores.get(first, {}), 0.0, 0)

        def weigh(known: str) -> tuple[float, str]:
            return -_mean(self._scores[known], prior, PRIOR_ROWS), known

        return sorted((known for known in self._scores if known != first), key=weigh)

    def describe_best(self, start: dspy.Module) -> str:
        """Say how the best candidate so far does beside the start; empty while there is none."""
        first = self.note(start)
        with self._lock:
            scores = {known: dict(rows) for known, rows in self._scores.items()}
        prior = _mean(scores.get(first, {}), 0.0, 0)
        best = max((_mean(rows, prior, PRIOR_ROWS) for known, rows in scores.items() if known != first), default=None)
        return "" if best is None else f", best so far about {best:.2f}, the start {prior:.2f}"

    def build(self, known: str, like: P) -> P:
        """Return a copy of `like` that is the candidate."""
        state = self._states[known]
        copy = like.deepcopy()
        predictor: Any = copy.predictors()[0]
        predictor.signature, predictor.demos = state["signature"], list(state["demos"])
        return copy

    def __len__(self) -> int:
        return len(self._scores)


def read_prompt_state(predictor: Any) -> dict[str, Any]:
    """Return what of a predictor shapes its prompt: instructions and demos."""
    return {
        "instructions": predictor.signature.instructions,
        "demos": [dict(demo) for demo in predictor.demos],
    }


def strip(winner: dspy.Module, start: dspy.Module) -> dspy.Module:
    """Return the winner as a plain copy of the program, without marks and without an LM."""
    plain = start.deepcopy()
    found: Any = winner.predictors()[0]
    predictor: Any = plain.predictors()[0]
    said = found.signature.instructions
    predictor.signature = read_signature(plain).with_instructions(clean_text(said) or said)
    names = [*predictor.signature.input_fields, *predictor.signature.output_fields]
    predictor.demos = [dspy.Example(_clean_demo(demo, names)) for demo in found.demos]
    return plain


def read_instruction(program: dspy.Module) -> str:
    """Return the instruction a program's prompt begins with."""
    predictor: Any = program.predictors()[0]
    return predictor.signature.instructions


def _clean_demo(demo: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return a demo's fields as they may be shown again: what a model wrote is hostile."""
    values = TypeAdapter(dict[str, Any]).dump_python({name: demo[name] for name in names if name in demo}, mode="json")
    cleaned: Any = clean_value(values)
    return cleaned


def _mean(scores: Mapping[str, Sequence[float]], prior: float, weight: int) -> float:
    means = [sum(each) / len(each) for each in scores.values()]
    return (sum(means) + prior * weight) / (len(means) + weight) if means or weight else prior
