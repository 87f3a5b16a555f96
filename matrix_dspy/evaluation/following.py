"""Whether a model does what it was told to the letter: IFEval's verifiable constraints.

In: prompts, each with its kinds of constraint and their arguments, and a model or a file of answers. Out: the shares
of prompts and of constraints kept, strict and loose, and by kind.
Source: arXiv 2311.07911.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix_dspy.config import SamplingConfig
from matrix_dspy.errors import ConfigError, TableError
from matrix_dspy.evaluation.answers import Answers, Subject, gather_answers
from matrix_dspy.evaluation.asking import AskOptions
from matrix_dspy.evaluation.checking import LOGS, measure_share, note_model, read_reply, write_log
from matrix_dspy.evaluation.ifeval.checkers import check_reply, check_reply_loose, find_checker
from matrix_dspy.evaluation.judging import Scored, describe_questions, list_notes
from matrix_dspy.evaluation.lm_eval_files import Sample, build_samples, write_responses
from matrix_dspy.evaluation.questions import Question, Questions
from matrix_dspy.evaluation.record import Evaluation, Figure, check_folder, write_evaluation

SAMPLING = SamplingConfig(temperature=0.0, max_tokens=1280)
"""How answers are drawn."""
LEVELS = ("strict", "loose")


@dataclass(frozen=True, slots=True)
class Constraints:
    """What one prompt demands: kinds, and the arguments of each."""

    kinds: tuple[str, ...]
    arguments: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one answer keeps each constraint of its prompt, in their order."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def read_constraints(question: Question) -> Constraints:
    """Read a prompt's constraints from `instruction_id_list` and `kwargs`, and check that each can be decided.

    Raises:
        TableError: there are none.
        ConfigError: a kind is unknown, or its arguments do not fit.
    """
    kinds, given = question.row.get("instruction_id_list"), question.row.get("kwargs")
    if not isinstance(kinds, list) or not kinds:
        raise TableError(
            f"question {question.question_id!r} has no constraints; give columns instruction_id_list and kwargs"
        )
    if given is None:
        given = [{} for _ in kinds]
    if not isinstance(given, list) or len(given) != len(kinds):
        raise TableError(
            f"question {question.question_id!r} has {len(kinds)} constraints and other arguments in `kwargs`; "
            "give one object per constraint"
        )
    # Parquet gives every constraint the arguments of all kinds, those of others empty
    arguments = [{name: value for name, value in (each or {}).items() if value is not None} for each in given]
    for kind, each in zip(kinds, arguments, strict=True):
        try:
            find_checker(str(kind)).read_arguments(each)
        except ConfigError as error:
            raise ConfigError(f"question {question.question_id!r}: {error}") from error
    return Constraints(tuple(map(str, kinds)), tuple(arguments))


async def run_following(
    model: Subject,
    questions: Questions,
    folder: Path,
    options: AskOptions,
    *,
    samples: int = 1,
    sampling: SamplingConfig = SAMPLING,
) -> Evaluation:
    """Measure how far a model keeps verifiable constraints, and write it down in `folder`.

    Prompts are asked as they stand. A prompt without an answer is in no figure.

    Raises:
        TableError: a question has no constraints.
        ConfigError: a kind of constraint is unknown, or its arguments do not fit.
    """
    check_folder(folder, "ifeval")
    constraints = {question.question_id: read_constraints(question) for question in questions}
    answers = await gather_answers(model, list(questions), folder, options, sampling=sampling, n=samples, n_turns=1)
    verdicts = {
        question.question_id: [
            judge_reply(constraints[question.question_id], read_reply(answer))
            for answer in answers.by_id.get(question.question_id, ())
        ]
        for question in questions
    }
    n_answered = sum(bool(found) for found in verdicts.values())
    n_empty = sum(not read_reply(answer).strip() for given in answers.by_id.values() for answer in given)
    evaluation = Evaluation(
        "ifeval",
        {"model": answers.name},
        questions=describe_questions(questions),
        settings={
            "seed": options.seed,
            "answers per question": sorted({len(found) for found in verdicts.values() if found}),
            "answers": None if model.path else sampling.model_dump(exclude_none=True),
        },
        figures=list_figures(questions, constraints, verdicts, options.seed),
        counts={
            "prompts": n_answered,
            "constraints": sum(len(each.strict) for found in verdicts.values() for each in found),
            "missing": len(questions) - n_answered,
            "cut off": answers.n_cut_off,
            "empty": n_empty,
        },
        notes=[*list_notes(questions, answers, counts_all=True), *note_model(answers)],
        scores={
            name: 100 * sum(all(each.strict) for each in found) / len(found)
            for name, found in verdicts.items()
            if found
        },
    )
    write_log("ifeval", list(_list_samples(questions, answers, verdicts)), questions, answers.name, folder)
    first = ((question.text, answers.first(question.question_id)) for question in questions)
    replies = [(text, read_reply(answer)) for text, answer in first if answer is not None]
    write_responses(replies, folder / LOGS / "responses.jsonl")
    write_evaluation(evaluation, _list_rows(questions, answers, constraints, verdicts), folder)
    return evaluation


def judge_reply(constraints: Constraints, reply: str) -> Verdict:
    """Return whether a reply keeps each constraint, strictly and loosely."""
    strict = check_reply(reply, constraints.kinds, constraints.arguments)
    loose = check_reply_loose(reply, constraints.kinds, constraints.arguments)
    return Verdict(tuple(strict), tuple(loose))


def list_figures(
    questions: Sequence[Question],
    constraints: Mapping[str, Constraints],
    verdicts: Mapping[str, Sequence[Verdict]],
    seed: int,
) -> list[Figure]:
    """Return accuracies of prompts and of constraints, strict and loose, then those of each kind of constraint."""
    found = [(question, verdict) for question in questions for verdict in verdicts[question.question_id]]
    figures: list[Figure] = []
    for noun in ("prompt", "instruction"):
        for level in LEVELS:
            scored = [
                Scored(question, float(value))
                for question, verdict in found
                for value in ([all(getattr(verdict, level))] if noun == "prompt" else getattr(verdict, level))
            ]
            figures.append(measure_share(f"{noun}-level {level}", scored, seed))
    by_kind: dict[tuple[str, str], list[Scored]] = {}
    for question, verdict in found:
        for level in LEVELS:
            for kind, value in zip(constraints[question.question_id].kinds, getattr(verdict, level), strict=True):
                by_kind.setdefault((find_checker(kind).kind, level), []).append(Scored(question, float(value)))
    figures += [
        measure_share(f"instruction-level {level}", by_kind[kind, level], seed, kind) for kind, level in sorted(by_kind)
    ]
    return figures


def _list_rows(
    questions: Sequence[Question],
    answers: Answers,
    constraints: Mapping[str, Constraints],
    verdicts: Mapping[str, Sequence[Verdict]],
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for question in questions:
        question_id = question.question_id
        given = answers.by_id.get(question_id, ())
        for place, (answer, verdict) in enumerate(zip(given, verdicts[question_id], strict=True)):
            rows.append(
                {
                    "question_id": question_id,
                    "sample": place,
                    "is_right": all(verdict.strict),
                    "instruction_id_list": constraints[question_id].kinds,
                    "strict": verdict.strict,
                    "loose": verdict.loose,
                    "is_cut_off": answer.is_cut_off,
                }
            )
        if question_id in answers.missing:
            rows.append({"question_id": question_id, "missing": answers.missing[question_id]})
    return rows


def _list_samples(
    questions: Sequence[Question], answers: Answers, verdicts: Mapping[str, Sequence[Verdict]]
) -> Iterator[Sample]:
    """Give the first answer of each prompt as lm-evaluation-harness logs it, with the verdicts of our checkers."""
    for place, question in enumerate(questions):
        answer = answers.first(question.question_id)
        if answer is None:
            continue
        verdict = verdicts[question.question_id][0]
        scores = {
            "prompt_level_strict_acc": all(verdict.strict),
            "inst_level_strict_acc": list(verdict.strict),
            "prompt_level_loose_acc": all(verdict.loose),
            "inst_level_loose_acc": list(verdict.loose),
        }
        yield from build_samples("ifeval", place, question.row, question.text, [read_reply(answer)], scores)
