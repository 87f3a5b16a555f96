"""Answers to questions: a model's own, asked for in bulk, or those of a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from matrix_dspy.bulk.tables import write_text
from matrix_dspy.config import SamplingConfig
from matrix_dspy.curation.benchmarks import read_rows
from matrix_dspy.engine.model_files import has_weights, hash_models, is_adapter
from matrix_dspy.engine.serving import find_spec
from matrix_dspy.errors import ConfigError, RunError, TableError
from matrix_dspy.evaluation.asking import Asker, AskOptions, Call, open_asker
from matrix_dspy.evaluation.questions import Question, list_texts, read_id
from matrix_dspy.text import hide_secrets, name_file, replace_surrogates

ANSWERS = "answers"
_CODE = ("completion", "solution", "canonical_solution", "code")
"""Columns of code: what models complete, and the reference solutions of HumanEval and MBPP."""
_EVALPLUS = "Mbpp/"
"""What EvalPlus puts before the number of MBPP's tasks."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is evaluated: a model to be asked (`spec`), or a file of answers (`path`)."""

    name: str
    spec: str = ""
    path: Path | None = None
    label: str = ""
    """Name in journals: changes when a local folder's weights do."""

    @classmethod
    def of(cls, text: str) -> Self:
        """Read what a user writes: a model's folder, a file of answers, an LM as for --lm, each also as NAME=IT.

        Raises:
            ConfigError: it is neither, or a folder without a model.
        """
        given, _, rest = text.partition("=")
        is_named = bool(rest) and bool(given) and not set(given) & set("/:?#") and not _look_at(Path(text))
        name, target = (given, rest) if is_named else ("", text)
        path = Path(target).expanduser()
        found = _look_at(path)
        if found == "file":
            return cls(name or path.stem, path=path, label=name or path.stem)
        if found == "folder" and not is_adapter(path) and not ((path / "config.json").is_file() and has_weights(path)):
            raise ConfigError(f"no model in the folder {target!r}; it has no config.json, or no weights beside it")
        if not found and target.endswith((".json", ".jsonl", ".csv", ".parquet", ".gz")):
            raise ConfigError(f"no file of answers {target!r}; give one, a model's folder, or an LM as for --lm")
        spec = find_spec(str(path) if found else target)
        called = name or (path.resolve().name if found else hide_secrets(target))
        digest = hash_models(spec)
        return cls(called, spec, label=f"{called}-{digest[:12]}" if digest else called)


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer to one question: a text a turn."""

    question_id: str
    turns: tuple[str, ...]
    is_cut_off: bool = False
    sample: int = 0

    @property
    def text(self) -> str:
        """The first turn's."""
        return self.turns[0] if self.turns else ""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of one model by question id, `n` samples each; `missing` says why a question has none."""

    name: str
    model: str
    by_id: Mapping[str, tuple[Answer, ...]]
    missing: Mapping[str, str] = field(default_factory=dict)

    def first(self, question_id: str) -> Answer | None:
        """Return the first sample of a question, None where there is none."""
        found = self.by_id.get(question_id, ())
        return found[0] if found else None

    @property
    def n_cut_off(self) -> int:
        """Answers that ended at the token limit."""
        return sum(answer.is_cut_off for answers in self.by_id.values() for answer in answers)


async def gather_answers(
    subject: Subject,
    questions: Sequence[Question],
    folder: Path,
    options: AskOptions,
    *,
    sampling: SamplingConfig,
    n: int = 1,
    n_turns: int | None = None,
) -> Answers:
    """Return a subject's answers to the questions, read from its file or asked of its model, and keep them in `folder`.

    A question with several turns is answered turn by turn, `n_turns` of them at the most; the conversation so far is
    what the model sees. Answers are written to `folder`/answers/<name>.jsonl.

    Raises:
        TableError: a file of answers has none for these questions.
        EngineError: the model cannot be reached.
    """
    if subject.path is not None:
        answers = read_answers(subject.path, questions, subject.name)
    else:
        async with open_asker(subject.spec, folder, f"answer:{subject.label}", options) as asker:
            answers = await _ask_answers(subject, questions, asker, sampling, n, n_turns)
    write_answers(answers, questions, folder)
    return answers


async def _ask_answers(
    subject: Subject,
    questions: Sequence[Question],
    asker: Asker,
    sampling: SamplingConfig,
    n: int,
    n_turns: int | None,
) -> Answers:
    dialogues = {(q.question_id, k): [q.turns[0]] for q in questions for k in range(n)}
    cut: set[tuple[str, int]] = set()
    missing: dict[str, str] = {}
    turns_of = {q.question_id: q.turns[:n_turns] for q in questions}
    for turn in range(max(map(len, turns_of.values()), default=0)):
        places = [
            (q, k)
            for q in questions
            for k in range(n)
            if len(turns_of[q.question_id]) > turn and q.question_id not in missing
        ]
        calls = [
            Call(q.question_id, {"dialogue": dialogues[q.question_id, k]}, turn, f"converser.{k}") for q, k in places
        ]
        outcomes = await asker.ask("converser", calls, sampling=sampling, keeps_cut_off=True)
        for (q, k), outcome in zip(places, outcomes, strict=True):
            if outcome.fields is None and outcome.reason != "empty":
                missing[q.question_id] = f"{outcome.reason}: {outcome.detail}"
                continue
            asked = turns_of[q.question_id]
            if outcome.is_cut_off:
                cut.add((q.question_id, k))
            said = outcome.fields["response"] if outcome.fields is not None else ""  # an empty answer is one, a bad one
            dialogues[q.question_id, k] += [said, *asked[turn + 1 : turn + 2]]
    by_id = {
        q.question_id: tuple(
            Answer(q.question_id, tuple(dialogues[q.question_id, k][1::2]), (q.question_id, k) in cut, k)
            for k in range(n)
        )
        for q in questions
        if q.question_id not in missing
    }
    return Answers(subject.name, asker.model, by_id, missing)


def read_answers(path: Path, questions: Sequence[Question], name: str) -> Answers:
    """Read answers to `questions` from a file: this project's, AlpacaEval's model_outputs, Arena-Hard's model_answer,
    lm-evaluation-harness's samples, or a benchmark's own reference solutions.

    Rows are matched by the question's exact text, else by its id; rows that match no question are passed over, and so
    are those that name one by its id but ask something else.

    Raises:
        TableError: no row answers any of the questions.
    """
    by_text: dict[str, list[str]] = {}
    for question in questions:
        for text in {question.text.strip(), *list_texts(question.row)}:
            by_text.setdefault(text, []).append(question.question_id)
    wanted = {question.question_id: question.text for question in questions}
    others: set[str] = set()
    by_id: dict[str, list[Answer]] = {}
    model = name
    reading = None
    n_rows = n_known = 0
    for row in read_rows(path):
        n_rows += 1
        if "resps" in row and row.get("filter") != (reading := reading or row.get("filter")):
            continue  # the harness has a line for every way of reading the same answers
        asked = row["doc"] if isinstance(row.get("doc"), Mapping) else row
        same = next((by_text[text] for text in list_texts(asked) if text in by_text), [])
        own = read_id(asked)
        if same and own not in same:  # questions of one text are answered in their order, as their rows come
            own = min(same, key=lambda question_id: len(by_id.get(question_id, ())))
        if own not in wanted and (own := own.removeprefix(_EVALPLUS)) not in wanted:
            continue
        if not same and _asks_another(asked, wanted[own]):
            others.add(own)
            continue
        n_known += 1
        model = replace_surrogates(str(row.get("model") or row.get("model_id") or row.get("generator") or model))
        found = by_id.setdefault(own, [])
        for turns in _list_samples(row):
            stored = tuple(map(replace_surrogates, turns))
            found.append(Answer(own, stored, bool(row.get("is_cut_off")), len(found)))
    by_id = {question_id: found for question_id, found in by_id.items() if found}
    if not by_id:
        if not n_rows:
            raise TableError(f"{str(path)!r} holds no answers; give a file that does")
        if others:
            raise TableError(
                f"{str(path)!r} answers none of the questions; it names {len(others)} of them by their id but asks "
                f"something else, as for {min(others)!r}; give the answers to these questions"
            )
        if n_known:
            raise TableError(
                f"{str(path)!r} answers none of the questions; it names {n_known} of them, without a text under "
                "turns, output, response, answer, completion, solution, choices or messages"
            )
        raise TableError(f"{str(path)!r} answers none of the questions; rows need their id or their exact text")
    missing = {
        q.question_id: "its row in the file asks something else" if q.question_id in others else "no answer in the file"
        for q in questions
        if q.question_id not in by_id
    }
    return Answers(name, model, {key: tuple(found) for key, found in by_id.items()}, missing)


def check_questions(folder: Path, questions: Sequence[Question]) -> None:
    """Refuse a folder whose answers are to other questions of the same ids.

    Raises:
        RunError: one is.
    """
    texts = {question.question_id: question.text for question in questions}
    for path in sorted((folder / ANSWERS).glob("*.jsonl")):
        for row in read_rows(path) if path.stat().st_size else ():
            own = str(row.get("question_id"))
            if own in texts and _asks_another(row, texts[own]):
                raise RunError(
                    f"{str(folder)!r} holds an answer to another question {own!r}; give another folder with --out"
                )


def _asks_another(row: Mapping[str, Any], question: str) -> bool:
    """Whether a row says what was asked, and that has nothing to do with the question."""
    wanted = _flatten(question)
    asked = [_flatten(text) for text in list_texts(row)]
    return bool(asked) and not any(wanted in text or text in wanted for text in asked)


def _flatten(text: str) -> str:
    return " ".join(text.casefold().split())


def write_answers(answers: Answers, questions: Sequence[Question], folder: Path) -> Path:
    """Write answers as JSON lines, a row a sample, in the order of the questions."""
    import orjson

    path = folder / ANSWERS / f"{name_file(answers.name)}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        orjson.dumps(
            {
                "question_id": question.question_id,
                "model": answers.model,
                "sample": answer.sample,
                "instruction": question.text,
                "turns": answer.turns,
                "is_cut_off": answer.is_cut_off,
            }
        ).decode()
        for question in questions
        for answer in answers.by_id.get(question.question_id, ())
    ]
    write_text("".join(f"{line}\n" for line in lines), path)
    return path


def _look_at(path: Path) -> str:
    """Return what is at a path: `file`, `folder`, or nothing."""
    try:
        return "file" if path.is_file() else "folder" if path.is_dir() else ""
    except OSError:  # a name too long for a file's
        return ""


def _list_samples(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the answers of a row, each by its turns: one, or those that lm-evaluation-harness drew (`resps`)."""
    if isinstance(row.get("doc"), Mapping) and isinstance(row.get("resps"), list):
        drawn = [text for each in row["resps"] for text in (each if isinstance(each, list) else [each])]
        return [(text,) for text in drawn if isinstance(text, str)]
    turns = _read_turns(row)
    return [turns] if turns else []


def _read_turns(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the turns of an answer: `turns`, `output`, `response`, code, Arena-Hard's `choices` and `messages`."""
    for name in ("turns", "output", "response", "answer", *_CODE):
        if isinstance(value := row.get(name), str):
            return (value,)
        if isinstance(value, list) and value:
            return tuple(turn if isinstance(turn, str) else str(turn.get("content", "")) for turn in value)
    choices = row.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
        turns = choices[0].get("turns") or []
        return tuple(str(turn.get("content", "")) if isinstance(turn, Mapping) else str(turn) for turn in turns)
    messages = row.get("messages")
    if isinstance(messages, list):
        said = [m for m in messages if isinstance(m, Mapping) and m.get("role") == "assistant"]
        texts = [
            m["content"].get("answer", "") if isinstance(m.get("content"), Mapping) else m.get("content") for m in said
        ]
        return tuple(str(text) for text in texts)
    return ()
