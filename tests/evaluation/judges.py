"""Judges for tests: a real server on loopback whose answers follow a rule, and files of questions and answers."""

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from matrix_dspy.evaluation.answers import Subject
from matrix_dspy.evaluation.asking import AskOptions
from matrix_dspy.evaluation.questions import Questions, read_questions
from tests.loopback import serve

T = TypeVar("T")
OPTIONS = AskOptions(concurrency=8, patience_s=0.3, timeout_s=20, is_quiet=True)
GARBAGE = "I would rather not say which of them I like."
_HEADER = re.compile(r"^\[\[ ## (\w+) ## \]\]$", re.MULTILINE)
_TAIL = "\n\nRespond with the corresponding output fields"


@dataclass(frozen=True)
class Asked:
    """One request: the fields that stand in it as the judge sees them, and the body."""

    fields: Mapping[str, Any]
    headers: Sequence[str]
    """Every field header in the turn that asks, in order."""
    body: Mapping[str, Any]

    @property
    def is_chat(self) -> bool:
        """Whether a model is asked to answer, and no judge to judge."""
        return not self.headers

    @property
    def said(self) -> list[str]:
        """The turns of a chat."""
        return [message["content"] for message in self.body["messages"]]


Rule = Callable[[Asked], "Mapping[str, Any] | str | Weighed"]


@dataclass(frozen=True)
class Weighed:
    """An answer whose last field comes with the probabilities of its levels."""

    fields: Mapping[str, Any]
    shares: Mapping[str, float]

    def tokens(self) -> list[dict[str, Any]]:
        """Return the tokens as a server reports them."""
        *_, last = self.fields
        head, value, tail = write_fields(self.fields).rpartition(str(self.fields[last]))
        top = [{"token": each, "logprob": math.log(share)} for each, share in self.shares.items()]
        return [
            {"token": head, "logprob": 0.0, "top_logprobs": []},
            {"token": value, "logprob": math.log(self.shares[value]), "top_logprobs": top},
            {"token": tail, "logprob": 0.0, "top_logprobs": []},
        ]


@dataclass
class Judge:
    """A server that answers by a rule and notes what it was asked."""

    rule: Rule
    model: str = "scripted"
    asked: list[Asked] = field(default_factory=list)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": self.model}]})
        asked = read_request(await request.json())
        self.asked.append(asked)
        answer = self.rule(asked)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        if isinstance(answer, Weighed):
            choice["logprobs"] = {"content": answer.tokens()}
            answer = answer.fields
        text = answer if isinstance(answer, str) else write_fields(answer)
        choice["message"] = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        return web.json_response({"choices": [choice], "usage": usage, "model": self.model})

    def run(self, work: Callable[[str], Awaitable[T]]) -> T:
        """Await `work(address)` while the server runs."""

        async def main() -> T:
            async with serve(self) as url:
                return await work(url)

        return asyncio.run(main())


def read_request(body: Mapping[str, Any]) -> Asked:
    """Read a judge's inputs back out of the messages: demos come before them, the words of a second try after."""
    texts = [message["content"] for message in body["messages"] if message["role"] == "user"]
    text = next((text for text in reversed(texts) if _HEADER.match(text)), "").partition(_TAIL)[0]
    pieces = _HEADER.split(text)
    fields = {
        name: json.loads(value) if value.strip().startswith("[") else value.strip()
        for name, value in zip(pieces[1::2], pieces[2::2], strict=True)
    }
    return Asked(fields, pieces[1::2], body)


def write_fields(fields: Mapping[str, Any]) -> str:
    """Write output fields in DSPy's markers."""
    sections = [f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items()]
    return "\n\n".join([*sections, "[[ ## completed ## ]]"])


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write JSON lines."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def write_questions(folder: Path, *questions: Mapping[str, Any] | str) -> Questions:
    """Write a file of questions, of texts alone numbered q0, q1 and so on, and read it."""
    rows = [
        {"question_id": f"q{place}", "instruction": each} if isinstance(each, str) else each
        for place, each in enumerate(questions)
    ]
    return read_questions(write_rows(rows, folder / "questions.jsonl"))


def write_answers(folder: Path, name: str, answers: Mapping[str, str | Sequence[str]]) -> str:
    """Write a file of answers by question id; returns what names it as a side."""
    rows = [
        {"question_id": key, "turns": [value] if isinstance(value, str) else list(value)}
        for key, value in answers.items()
    ]
    return f"{name}={write_rows(rows, folder / f'{name}.jsonl')}"


def build_sides(folder: Path, model: Mapping[str, str], reference: Mapping[str, str]) -> tuple[Subject, Subject]:
    """Return two sides of files: `new` and `old`."""
    return Subject.of(write_answers(folder, "new", model)), Subject.of(write_answers(folder, "old", reference))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Read judged.jsonl."""
    return [json.loads(line) for line in (folder / "judged.jsonl").read_text("utf-8").splitlines()]
