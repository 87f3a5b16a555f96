"""One metric per program, each a score from 0 to 1 with words that say why.

A program that writes is scored by deterministic checks and a calibrated judge; a judge by its agreement with labels,
a false accept counting as the worst that can happen. The words serve GEPA as feedback.
"""

import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dspy

from matrix_dspy.errors import ConfigError
from matrix_dspy.optimization.agreement import LEAST_KAPPA, LEAST_ROWS
from matrix_dspy.optimization.checks import find_faults
from matrix_dspy.optimization.guards import build_adapter
from matrix_dspy.optimization.judged import (
    DIFFICULTIES,
    GOOD,
    JUDGES,
    LEVELS,
    PAIRED,
    QUALITIES,
    JudgedRow,
    JudgedSet,
    build_example,
    read_level,
    read_preference,
)
from matrix_dspy.text import clean_text, clean_value

COST_OF_FAULT = 0.2
"""Share of the score each fault takes that is not fatal."""
WORST_DISTANCE = 3
"""Levels apart from which a judge's score counts nothing."""
N_TRIES = 2
"""Times a judge is asked whose answer cannot be read."""
RETRY_TEMPERATURE = 0.3
"""At which it is asked again: the same words at 0 would get the same answer."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a metric says of one output."""

    value: float
    """From 0 to 1."""
    words: str


class UnjudgedError(Exception):
    """The judge's answers could not be read."""


class Judge:
    """The output judge for one program: rubric and outputs in, calibrated quality from 0 to 1 out."""

    def __init__(self, program: dspy.Module, lm: dspy.LM, rubric: str, quality: list[float]) -> None:
        self.program = program
        self.lm = lm
        self.rubric = rubric
        self.quality = quality
        """Expected quality of a text the judge gives 1, 2, 3, 4 or 5."""

    def judge(self, given: Mapping[str, Any], written: Mapping[str, Any]) -> tuple[float, int, str]:
        """Return quality, level and reason.

        Raises:
            UnjudgedError: no answer could be read.
        """
        values = {"rubric": self.rubric, "given": clean_value(_plain(given)), "written": clean_value(_plain(written))}
        error: Exception = UnjudgedError()
        for number in range(N_TRIES):
            lm = self.lm.copy(rollout_id=number, temperature=RETRY_TEMPERATURE) if number else self.lm
            try:
                with dspy.context(lm=lm, adapter=build_adapter(), trace=[]):
                    verdict = self.program(**values)
                return self.quality[verdict.score - 1], verdict.score, clean_text(verdict.reason)
            except Exception as caught:  # an answer without a score, or a request the server refuses
                error = caught
        raise UnjudgedError(str(error))


def read_judge_card(card: Mapping[str, Any] | None, model: str, program: str, *, force: bool) -> list[float]:
    """Return the calibrated quality of each level, if the judge may be used for `program`.

    Raises:
        ConfigError: the judge was not measured on this model, or agrees too little with the labels.
    """
    uncalibrated = [(level - 1) / 4 for level in LEVELS]
    measured = ((card or {}).get("agreement") or {}).get(model)
    if measured is None:
        if force:
            return uncalibrated
        raise ConfigError(
            f"the judge has not been measured on {model!r}; run `compile judge` with --lm naming that model first, "
            "or add --force, and no result becomes the default"
        )
    own = measured["by_program"].get(program) or {}
    if own.get("n", 0) < LEAST_ROWS and not force:
        raise ConfigError(
            f"the judge was measured on {own.get('n', 0)} rows of {program!r} on {model!r}, {LEAST_ROWS} are needed; "
            "compile it on the shipped sets, or add --force"
        )
    kappa = own["kappa"]["value"] if own else 0.0
    if kappa < LEAST_KAPPA and not force:
        raise ConfigError(
            f"the judge agrees too little with the labels of {program!r}: kappa {kappa:.2f} on {model!r}, "
            f"{LEAST_KAPPA} is needed; compile the judge with a better optimizer or model, or add --force"
        )
    return list(measured["quality"])


class Metric:
    """Scores a program's predictions on judged rows, in the faces DSPy's optimizers ask for."""

    def __init__(self, program: str, judged: JudgedSet, judge: Judge | None = None) -> None:
        self.program = program
        self.judge = judge
        self.rubric = judged.rubric
        self.n_unjudged = 0
        self._rows: dict[str, JudgedRow] = {}
        self._lock = threading.Lock()

    def build_example(self, row: JudgedRow) -> dspy.Example:
        """Return a row as DSPy takes it; the metric knows it again by its inputs."""
        self._rows[_name_inputs(row.inputs)] = row
        return build_example(self.program, row)

    def find(self, example: dspy.Example) -> JudgedRow:
        """Return the row an example was built from."""
        return self._rows[_name_inputs(example.inputs().toDict())]

    def measure(self, row: JudgedRow, output: Mapping[str, Any]) -> Score:
        """Return the score of an output for a row's inputs."""
        if self.program in JUDGES:
            return self._agree(row, output)
        return self._rate(row, output)

    def score(self, example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        """Return the score as DSPy's evaluators and few-shot optimizers want it."""
        return self.measure(self.find(example), _read(prediction)).value

    def feedback(
        self, example: dspy.Example, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> dspy.Prediction:
        """Return score and words as GEPA wants them."""
        score = self.measure(self.find(example), _read(prediction))
        return dspy.Prediction(score=score.value, feedback=score.words)

    def _rate(self, row: JudgedRow, output: Mapping[str, Any]) -> Score:
        faults = find_faults(self.program, row.inputs, output)
        words = [f"Fault: {fault.words}." for fault in faults]
        if any(fault.is_fatal for fault in faults):
            return Score(0.0, " ".join(words))
        quality = 1.0
        if self.judge is not None:
            try:
                quality, level, reason = self.judge.judge(row.inputs, output)
                words.append(f"The judge gives {level} of 5: {reason}")
            except UnjudgedError as error:
                with self._lock:
                    self.n_unjudged += 1
                return Score(0.0, " ".join([*words, f"The judge's answer could not be read: {error}"]))
        if row.reason and row.score is not None:
            words.append(f"Of another output for these inputs a reader said ({row.score} of 5): {row.reason}")
        return Score(
            quality * max(0.0, 1 - COST_OF_FAULT * len(faults)), " ".join(words) or "Nothing is wrong with it."
        )

    def _agree(self, row: JudgedRow, output: Mapping[str, Any]) -> Score:
        if self.program in PAIRED:
            label, found = read_preference(row.output), read_preference(output)
            why = f" {row.reason or row.output['reason']}".rstrip()
            better = f"The better answer is {label}." if label else "Neither answer is better."
            return Score(1.0 if found == label else 0.5 if not found or not label else 0.0, f"{better}{why}")
        if self.program == "instruction_rater":
            quality = self._compare(QUALITIES, output["quality"], row.output["quality"], "quality")
            difficulty = self._compare(DIFFICULTIES, output["difficulty"], row.output["difficulty"], "difficulty")
            words = (
                f"{quality.words} {row.output['quality_reason']} {difficulty.words} {row.output['difficulty_reason']}"
            )
            return Score((quality.value + difficulty.value) / 2, words)
        label, found = (read_level(self.program, each) for each in (row.output, output))
        rubric = row.inputs.get("rubric", self.rubric)
        given = f"{output['rating']} of 10, which is level {found}" if self.program == "rating_judge" else str(found)
        words = f"You gave {given}, the label is {label}: {row.reason} {_quote_level(rubric, label)}".rstrip()
        return Score(_closeness(label, found), words)

    def _compare(self, levels: tuple[str, ...], found: str, label: str, what: str) -> Score:
        value = _closeness(levels.index(label) + 1, levels.index(found) + 1)
        return Score(value, f"You called the {what} {found!r}, the label is {label!r}.")


def _name_inputs(inputs: Mapping[str, Any]) -> str:
    return json.dumps(inputs, sort_keys=True, default=str)


def _closeness(label: int, found: int) -> float:
    if label < GOOD - 1 and found >= GOOD:
        return 0.0
    return max(0.0, 1 - abs(label - found) / WORST_DISTANCE)


def _quote_level(rubric: str, level: int) -> str:
    """Return what the rubric says of a level, where it can be found."""
    found = re.search(rf"^[\s#*-]*{level}\b[^\w\n]*([^\n]+(?:\n(?![\s#*-]*[1-5]\b|#|\n)[^\n]+)*)", rubric, re.MULTILINE)
    return f"The rubric on {level}: {' '.join(found[1].split())}" if found else ""


def _read(prediction: Any) -> dict[str, Any]:
    return dict(prediction.items())


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with models turned into what JSON can hold."""
    from pydantic import TypeAdapter

    return {name: TypeAdapter(Any).dump_python(value, mode="json") for name, value in values.items()}
