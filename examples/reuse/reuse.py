"""Compiled programs in a project of one's own: load, run in bulk, recompile on own labels, compose, evaluate."""

import argparse
import json
from pathlib import Path
from typing import Any

import dspy
import polars as pl

import matrix_dspy

HERE = Path(__file__).parent
LABELS = HERE / "labels" / "response_judge.jsonl"
ANSWERS = pl.DataFrame(
    {
        "instruction": [
            "How long do I boil an egg for a soft yolk? One line.",
            "My sourdough is flat. Two likely causes, please.",
            "Convert 350 degrees Fahrenheit to Celsius.",
        ],
        "response": [
            "About six minutes from boiling water, then straight into cold water.",
            "Eggs are a wonderful food and have been enjoyed for thousands of years.",
            "350 F is (350 - 32) x 5 / 9, about 177 C.",
        ],
    }
)


def load_three() -> dict[str, dspy.Module]:
    """Return three compiled programs by name."""
    return {name: matrix_dspy.load_program(name) for name in ("response_judge", "critic", "reviser")}


def judge_answers(judge: dspy.Module, lm: str, out: Path) -> pl.DataFrame:
    """Judge every row of a frame; a second call in the same folder pays only for what is missing."""
    return matrix_dspy.run_program(judge, ANSWERS, lm=lm, out=out, temperature=0.0)


def recompile_judge(lm: str, out: Path) -> dspy.Module:
    """Compile the judge on labels of one's own and return it."""
    is_model = not lm.startswith("rehearsal")
    plan = matrix_dspy.Plan(
        program="response_judge",
        optimizer="gepa" if is_model else "labeled",
        lm=lm if is_model else "",
        judged=LABELS,
        out=out,
        work=out / "work",
    )
    compiled = matrix_dspy.compile_program(plan)
    print(f"response_judge: {compiled.words}")
    return matrix_dspy.load_program(compiled.path) if compiled.path else matrix_dspy.load_program("response_judge")


class Improver(dspy.Module):
    """Criticise an answer, and revise it by the critique."""

    signature = "instruction, response -> critique, revision"  # what run_program is to read and write

    def __init__(self, critic: dspy.Module, reviser: dspy.Module) -> None:
        super().__init__()
        self.critic = critic
        self.reviser = reviser

    def forward(self, instruction: str, response: str) -> dspy.Prediction:
        """Return critique and revision."""
        critique = self.critic(instruction=instruction, response=response).critique
        revision = self.reviser(instruction=instruction, response=response, critique=critique).revision
        return dspy.Prediction(critique=critique, revision=revision)


def evaluate(judge: dspy.Module, lm: dspy.LM) -> float:
    """Return how near the judge comes to the held-out labels, in percent."""
    rows = [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()]
    examples = [
        dspy.Example(**row["inputs"], label=row["score"]).with_inputs("instruction", "response")
        for row in rows
        if row["split"] == "test"
    ]
    with dspy.context(lm=lm):
        found = dspy.Evaluate(devset=examples, metric=_closeness, num_threads=4, max_errors=10**9, failure_score=0.0)(
            judge
        )
    return float(found.score)


def _closeness(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    return 1 - abs(example.label - prediction.score) / 4


def main() -> None:
    """Do all five on one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lm", default="rehearsal", help="a model as matrix_dspy writes it")
    parser.add_argument("--out", type=Path, default=HERE / "out")
    given = parser.parse_args()
    programs = load_three()
    judged = judge_answers(programs["response_judge"], given.lm, given.out / "bulk")
    print(judged.select("instruction", "score", "reason", "error"))
    own = recompile_judge(given.lm, given.out / "optimized")
    lm = matrix_dspy.build_lm(given.lm, temperature=0.0)
    before, after = evaluate(programs["response_judge"], lm), evaluate(own, lm)
    print(f"held-out labels: {before:.1f} before, {after:.1f} with own labels")
    with dspy.context(lm=lm):
        improved = Improver(programs["critic"], programs["reviser"])(**ANSWERS.row(1, named=True))
    print(f"critique: {improved.critique}\nrevision: {improved.revision}")


if __name__ == "__main__":
    main()
