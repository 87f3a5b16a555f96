"""Whether a model's final number is the right one: GSM8K, or any file of questions with numbers for answers.

In: questions, each with a reference that ends in its number, and a model or a file of answers. Out: the share of right
final numbers; an answer without a number is wrong and counted apart.
Source: arXiv 2110.14168 (GSM8K; the number stands after `####`).
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from matrix_dspy.config import SamplingConfig
from matrix_dspy.curation.verifying import Number, find_final_number, is_same_number
from matrix_dspy.errors import TableError
from matrix_dspy.evaluation.answers import Answers, Subject, gather_answers
from matrix_dspy.evaluation.asking import AskOptions
from matrix_dspy.evaluation.checking import measure_share, note_model, read_reply, write_log
from matrix_dspy.evaluation.judging import Scored, describe_questions, list_notes
from matrix_dspy.evaluation.lm_eval_files import Sample, build_samples
from matrix_dspy.evaluation.questions import Question, Questions
from matrix_dspy.evaluation.record import Evaluation, check_folder, write_evaluation

SAMPLING = SamplingConfig(temperature=0.0, max_tokens=1024)
"""How answers are drawn."""
ASK = """\
{text}

Work it out step by step. Then write the final answer on a last line of its own, as one number and nothing else after \
it: "Answer: NUMBER"."""
"""What stands around the question."""

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_IGNORED = re.compile(r",|\$|.*#### |\.$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one answer."""

    is_right: bool
    found: Number | None
    """The number the answer ends in."""

    @property
    def reason(self) -> str:
        """`wrong` or `no number`; empty where it is right."""
        return "" if self.is_right else "no number" if self.found is None else "wrong"


def read_reference(question: Question) -> Number:
    """Return the number that a right answer ends in.

    Raises:
        TableError: the question has no reference, or one without a number.
    """
    given = question.references[0] if question.references else ""
    if (number := find_final_number(given)) is None:
        raise TableError(
            f"question {question.question_id!r} has no number for an answer; give one in a column `answer`"
        )
    return number


def check_reply(reference: Number, reply: str) -> Verdict:
    """Compare the number a reply ends in with the reference."""
    found = find_final_number(reply)
    return Verdict(found is not None and is_same_number(reference, found), found)


async def run_math(
    model: Subject,
    questions: Questions,
    folder: Path,
    options: AskOptions,
    *,
    samples: int = 1,
    sampling: SamplingConfig = SAMPLING,
) -> Evaluation:
    """Measure the share of right final numbers, `samples` answers a question, and write it down in `folder`.

    A question without an answer is in no figure.

    Raises:
        TableError: a question has no number for a reference.
    """
    check_folder(folder, "math")
    references = {question.question_id: read_reference(question) for question in questions}
    asked = [replace(each, turns=(ASK.format(text=each.text.strip()),)) for each in questions]
    answers = await gather_answers(model, asked, folder, options, sampling=sampling, n=samples)
    verdicts = {
        question.question_id: [
            check_reply(references[question.question_id], read_reply(answer))
            for answer in answers.by_id.get(question.question_id, ())
        ]
        for question in questions
    }
    evaluation = _sum_up(model, questions, answers, verdicts, options, sampling)
    if all("####" in reference for question in questions for reference in question.references[:1]):
        write_log("gsm8k", list(_list_samples(asked, answers)), questions, answers.name, folder)
    write_evaluation(evaluation, _list_rows(questions, answers, references, verdicts), folder)
    return evaluation


def _sum_up(
    model: Subject,
    questions: Questions,
    answers: Answers,
    verdicts: Mapping[str, Sequence[Verdict]],
    options: AskOptions,
    sampling: SamplingConfig,
) -> Evaluation:
    scored = [Scored(each, float(verdict.is_right)) for each in questions for verdict in verdicts[each.question_id]]
    categories = sorted({each.question.category for each in scored})
    figures = [measure_share("accuracy", scored, options.seed)]
    if len(categories) > 1:
        figures += [
            measure_share("accuracy", [each for each in scored if each.question.category == name], options.seed, name)
            for name in categories
        ]
    reasons = Counter(verdict.reason or "right" for found in verdicts.values() for verdict in found)
    n_answered = sum(bool(found) for found in verdicts.values())
    counts = {"questions": n_answered, "answers": len(scored), "missing": len(questions) - n_answered}
    return Evaluation(
        "math",
        {"model": answers.name},
        questions=describe_questions(questions),
        settings={
            "ask": ASK,
            "seed": options.seed,
            "answers per question": sorted({len(found) for found in verdicts.values() if found}),
            "answers": None if model.path else sampling.model_dump(exclude_none=True),
        },
        figures=figures,
        counts={
            **counts,
            "cut off": answers.n_cut_off,
            **{name: reasons[name] for name in ("right", "wrong", "no number")},
        },
        notes=[*list_notes(questions, answers, counts_all=True), *note_model(answers)],
        scores={
            name: 100 * sum(each.is_right for each in found) / len(found) for name, found in verdicts.items() if found
        },
    )


def _list_rows(
    questions: Sequence[Question],
    answers: Answers,
    references: Mapping[str, Number],
    verdicts: Mapping[str, Sequence[Verdict]],
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for question in questions:
        given = answers.by_id.get(question.question_id, ())
        for place, (answer, verdict) in enumerate(zip(given, verdicts[question.question_id], strict=True)):
            rows.append(
                {
                    "question_id": question.question_id,
                    "sample": place,
                    "is_right": verdict.is_right,
                    "reason": verdict.reason,
                    "expected": _write_number(references[question.question_id]),
                    "found": None if verdict.found is None else _write_number(verdict.found),
                    "is_cut_off": answer.is_cut_off,
                }
            )
        if question.question_id in answers.missing:
            rows.append({"question_id": question.question_id, "missing": answers.missing[question.question_id]})
    return rows


def _list_samples(asked: Sequence[Question], answers: Answers) -> Iterator[Sample]:
    """Give the first answer of each question as lm-evaluation-harness logs it, scored by its two ways of reading."""
    for place, question in enumerate(asked):
        answer = answers.first(question.question_id)
        if answer is None:
            continue
        reply, target = read_reply(answer), question.references[0]
        found = {"strict-match": _STRICT.findall(reply)[:1], "flexible-extract": _FLEXIBLE.findall(reply)[-1:]}
        filtered = {name: numbers[0] if numbers else "[invalid]" for name, numbers in found.items()}
        scores = {
            name: {"exact_match": float(_IGNORED.sub("", number) == _IGNORED.sub("", target))}
            for name, number in filtered.items()
        }
        yield from build_samples("gsm8k", place, question.row, question.text, [reply], scores, filtered=filtered)


def _write_number(number: Number) -> str:
    value: Fraction = number.value
    return f"{value}%" if number.is_percent else str(value)
