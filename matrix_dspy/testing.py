"""A testing LM whose answers are better when the prompt holds certain guidance, for testing optimizers.

It is served over the OpenAI protocol (`python -m matrix_dspy.testing --port 8000`) and plays every role of a compile
run: it does a program's task, judges what was written, and proposes instructions. It is no language model. What it
writes for a task shows marks of quality, more of them where the instruction asks for them or where good demos are
shown; as a judge it counts those marks, and knows the labels of the judged sets, with errors that guidance makes rarer;
as a proposer it draws from `GUIDANCE` without knowing which of its pieces help.
"""

import argparse
import asyncio
import hashlib
import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix_dspy.engine.base import Sampling
from matrix_dspy.engine.rehearsal.prompt import Layout, Prompt, read_content, read_prompt
from matrix_dspy.engine.rehearsal.server import RehearsalServer, serve
from matrix_dspy.optimization.judged import (
    BORROWED,
    DIFFICULTIES,
    LEVELS,
    QUALITIES,
    RATINGS,
    JudgedRow,
    list_judged,
    load_judged,
    read_rows,
)

MODEL = "testing-lm"


@dataclass(frozen=True, slots=True)
class Guidance:
    """A sentence an instruction can hold, and what it does to an answer."""

    text: str
    mark: str = ""
    """What the answer then shows; empty for guidance that changes nothing."""
    effect: int = 0
    """What the mark is worth to the testing judge, in levels."""


GUIDANCE: tuple[Guidance, ...] = (
    Guidance("Give one figure that can be checked.", "The figure to check is 12.", 1),
    Guidance("Name the reason in one clause.", "The reason is that nothing else was open.", 1),
    Guidance("Say what has to happen next.", "What has to happen next is settled.", 1),
    Guidance("Weigh one thing that speaks against it.", "One thing speaks against it.", 1),
    Guidance("Be as helpful as you can."),
    Guidance("Think step by step."),
    Guidance("Write for as long as you like.", "And so on and so on, at great length.", -1),
    Guidance("Praise whatever you can.", "What a wonderful matter this is!", -1),
    Guidance("Use capital letters for whatever matters.", "THIS MATTERS GREATLY.", -1),
    Guidance("You are a world-class expert.", "As a world-class expert, one may trust this.", -1),
)
"""What the testing LM knows to propose: four pieces help, two are idle, four do harm."""
HELP_OF_GUIDANCE, HELP_OF_DEMOS, BY_CHANCE = 0.75, 0.2, 0.12
"""Probability that an answer shows a mark: for its guidance, for each good demo, and at all."""
MOST_HELP_OF_DEMOS = 0.6
ERROR, ERROR_LESS_BY, LEAST_ERROR = 0.45, 0.09, 0.05
"""Share of labelled rows misjudged, how much less for each helpful piece or two demos, and the least."""
_SECTION = re.compile(r"\[\[ ## (\w+) ## \]\]\n")
_COMPLETED = "[[ ## completed ## ]]"
_GOOD = 4


class TestingServer(RehearsalServer):
    """The testing LM behind the rehearsal's HTTP face; its faults and latency are the rehearsal's dials."""

    model = MODEL

    def __init__(self, dials: str = "rehearsal", labels: Sequence[Path] = (), error: float = ERROR) -> None:
        super().__init__(dials)
        self.error = error
        self.labels = _Labels(labels)

    def write(
        self, messages: list[dict[str, Any]], sampling: Sampling, packed: bytes
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return answers in the role that the prompt's fields tell."""
        prompt = read_prompt(messages)
        texts: list[str] = []
        for sample in range(sampling.n):
            luck = _Luck(sampling.seed if sampling.temperature > 0 else 0, sample)
            texts.append(self._answer(prompt, messages, sampling, packed, luck))
        return tuple(texts), ("stop",) * len(texts)

    def _answer(
        self, prompt: Prompt, messages: list[dict[str, Any]], sampling: Sampling, packed: bytes, luck: "_Luck"
    ) -> str:
        names = {output.name for output in prompt.layout.outputs} if prompt.layout else set()
        lesson = _read_lesson(messages, self.labels)
        if names & {"new_instruction", "proposed_instruction", "module_advice"}:
            return _write_fields(prompt.layout, _propose(prompt, names, luck, packed))
        if (truth := self.labels.find(prompt.inputs)) is not None:
            return _write_fields(prompt.layout, _borrow(self._judge(truth, prompt, lesson, luck), names))
        if names == {"reason", "score"}:
            level = min(max(LEVELS), max(min(LEVELS), 1 + _count_marks(prompt.request)))
            return _write_fields(prompt.layout, {"reason": f"It shows marks worth {level - 1}.", "score": level})
        written, _ = super().write(messages, sampling, packed)
        return _add_marks(written[0], prompt, _draw_marks(lesson, prompt.request, luck))

    def _judge(self, truth: JudgedRow, prompt: Prompt, lesson: "_Lesson", luck: "_Luck") -> dict[str, Any]:
        """Give the label's verdict, or one beside it where luck is bad."""
        worth = sum(each.effect for each in lesson.guidance) + lesson.n_demos / 2
        error = max(LEAST_ERROR, min(0.9, self.error - ERROR_LESS_BY * worth))
        rng = luck.draw("verdict", json.dumps(dict(prompt.inputs), sort_keys=True))
        is_wrong = rng.random() < error
        if "preference" in truth.output:
            right = truth.output["preference"]
            other = "B" if right == "A" else "A"
            return {"reason": "What decides it was weighed.", "preference": other if is_wrong else right}
        if "quality" in truth.output:
            quality, difficulty = (
                QUALITIES[_step(QUALITIES.index(truth.output["quality"]), rng, is_wrong=is_wrong)],
                DIFFICULTIES[_step(DIFFICULTIES.index(truth.output["difficulty"]), rng, is_wrong=is_wrong)],
            )
            reasons = {"quality_reason": "As it is put.", "difficulty_reason": "As much as it takes."}
            return {**reasons, "quality": quality, "difficulty": difficulty}
        level = 1 + _step((truth.score or 1) - 1, rng, is_wrong=is_wrong)
        return {"reason": "What decides it was weighed.", "score": level}


def _borrow(verdict: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Return a verdict in the terms of the judge that is asked, which may know only another's labels."""
    if "level" in names and "preference" in verdict:
        return {"reason": verdict["reason"], "level": "A>B" if verdict["preference"] == "A" else "B>A"}
    if "rating" in names and "score" in verdict:
        return {"reason": verdict["reason"], "rating": RATINGS[verdict["score"]]}
    return verdict


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What a prompt teaches: the guidance it holds and the good demos it shows."""

    guidance: tuple[Guidance, ...]
    n_demos: int
    """Demos of any kind."""
    n_good: int
    """Demos that are good by their labels or by their marks."""


class _Luck:
    """Random draws that follow a seed and what they are for, never the order of requests."""

    def __init__(self, seed: int | None, sample: int) -> None:
        self._seed = f"{seed}/{sample}"

    def draw(self, *what: str) -> random.Random:
        digest = hashlib.blake2b("\x1f".join([self._seed, *what]).encode("utf-8", "replace"), digest_size=8)
        return random.Random(digest.digest())


class _Labels:
    """The judged rows by what a judge is shown of them."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._rows: dict[str, JudgedRow] = {}
        self._good: set[str] = set()
        for name in list_judged():
            for row in load_judged(name).rows if name not in BORROWED else ():
                self._add(row)
        for path in files:
            for row in read_rows(path.stem.partition(".")[0], path):
                self._add(row)

    def _add(self, row: JudgedRow) -> None:
        self._rows[_name(row.inputs)] = row
        if row.inputs.get("written"):
            self._good |= {_squeeze(_say(row.inputs["written"]))} if (row.score or 0) >= _GOOD else set()
        if "preference" in row.output:
            turned = dict(row.inputs)
            turned["response_a"], turned["response_b"] = row.inputs["response_b"], row.inputs["response_a"]
            other = {"reason": "", "preference": "B" if row.output["preference"] == "A" else "A"}
            self._rows[_name(turned)] = row.model_copy(update={"output": other})

    def find(self, inputs: Any) -> JudgedRow | None:
        """Return the row a judge's inputs are of; None for what nobody has labelled."""
        names = set(inputs)
        if not names or not names <= {
            "rubric",
            "given",
            "written",
            "instruction",
            "response",
            "response_a",
            "response_b",
            "earlier",
            "known_answers",
        }:
            return None
        row = self._rows.get(_name(inputs))
        return row if row is not None and ({"score", "preference", "quality"} & set(row.output)) else None

    def is_good(self, text: str) -> bool:
        """Whether a demo's output is that of a row labelled good."""
        return _squeeze(text) in self._good


def _name(inputs: Any) -> str:
    """Name a judge's inputs by their words, however they were rendered; the rubric is the same for all."""
    return _squeeze(" ".join(_say(value) for name, value in sorted(inputs.items()) if name != "rubric"))


def _say(value: Any) -> str:
    """Return a value's words in order, of JSON text those of the value it holds."""
    if isinstance(value, str) and value.startswith(("{", "[")):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    if isinstance(value, dict):
        return " ".join(_say(each) for _, each in sorted(value.items()))
    return " ".join(map(_say, value)) if isinstance(value, list) else str(value)


def _squeeze(text: str) -> str:
    return hashlib.blake2b(" ".join(re.findall(r"\w+", text)).encode("utf-8", "replace"), digest_size=12).hexdigest()


def _read_lesson(messages: Sequence[dict[str, Any]], labels: _Labels) -> _Lesson:
    """Read what the turns before the last one teach."""
    system = " ".join(read_content(message) for message in messages if message.get("role") == "system")
    demos = [read_content(message) for message in messages if message.get("role") == "assistant"]
    shown = [" ".join(_SECTION.split(demo.partition(_COMPLETED)[0])[2::2]) or demo for demo in demos]
    good = [text for text in shown if labels.is_good(_say_sections(text)) or _count_marks(text) >= 2]
    return _Lesson(tuple(each for each in GUIDANCE if each.text in system), len(demos), len(good))


def _say_sections(text: str) -> str:
    return _say(text)


def _draw_marks(lesson: _Lesson, request: str, luck: _Luck) -> list[str]:
    """Decide which marks an answer shows; the same request with the same seed has the same luck under any prompt."""
    asked = {each.text for each in lesson.guidance}
    of_demos = min(MOST_HELP_OF_DEMOS, HELP_OF_DEMOS * lesson.n_good)
    marks: list[str] = []
    for each in GUIDANCE:
        if not each.mark:
            continue
        chance = BY_CHANCE if each.effect > 0 else 0.0
        chance += HELP_OF_GUIDANCE if each.text in asked else 0.0
        chance += of_demos if each.effect > 0 else 0.0
        if luck.draw(each.text, request).random() < chance:
            marks.append(each.mark)
    return marks


def _count_marks(text: str) -> int:
    return sum(each.effect for each in GUIDANCE if each.mark and each.mark in text)


def _add_marks(text: str, prompt: Prompt, marks: Iterable[str]) -> str:
    """Put marks at the end of the first text an answer holds."""
    said = " ".join(marks)
    if prompt.layout is None or not said:
        return f"{text} {said}".strip()
    first = next((o.name for o in prompt.layout.outputs if o.schema.get("type") == "string"), None)
    text, completed, _ = text.partition(_COMPLETED)
    parts = _SECTION.split(text)
    for place in range(1, len(parts) - 1, 2):
        if parts[place] == first:
            parts[place + 1] = f"{parts[place + 1].rstrip()} {said}\n\n"
    rest = zip(parts[1::2], parts[2::2], strict=True)
    return parts[0] + "".join(f"[[ ## {name} ## ]]\n{value}" for name, value in rest) + completed


def _propose(prompt: Prompt, names: set[str], luck: _Luck, packed: bytes) -> dict[str, Any]:
    """Add a piece or two of guidance to the instruction that stands, drawn blindly."""
    current = prompt.inputs.get("current_instruction") or prompt.inputs.get("basic_instruction") or ""
    rng = luck.draw("proposal", packed.decode("utf-8", "replace"))
    left = [each.text for each in GUIDANCE if each.text not in current] or [GUIDANCE[0].text]
    pieces = "\n".join(rng.sample(left, min(len(left), rng.choice((1, 1, 2)))))
    if "module_advice" in names:
        modules = prompt.items("module_names") or ["predict"]
        return {"discussion": "Some answers showed more than others.", "module_advice": dict.fromkeys(modules, pieces)}
    name = "new_instruction" if "new_instruction" in names else "proposed_instruction"
    return {name: f"{current}\n\n{pieces}".strip()}


def _step(level: int, rng: random.Random, *, is_wrong: bool) -> int:
    """Return a level from 0 to 4, moved by one or two where it is wrong."""
    if not is_wrong:
        return level
    moved = level + rng.choice((-2, -1, -1, 1, 1, 2))
    return moved if 0 <= moved < len(LEVELS) else 2 * level - moved if 0 <= 2 * level - moved < len(LEVELS) else level


def _write_fields(layout: Layout | None, values: dict[str, Any]) -> str:
    names = [output.name for output in layout.outputs] if layout else list(values)
    sections = [f"[[ ## {name} ## ]]\n{_render(values.get(name, ''))}" for name in names]
    return "\n\n".join([*sections, _COMPLETED])


def _render(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def main() -> None:
    """Serve the testing LM until interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--dials", default="rehearsal", help="latency and faults, as for the rehearsal")
    parser.add_argument("--labels", type=Path, action="append", default=[], help="a judged set <program>.jsonl to know")
    parser.add_argument("--error", type=float, default=ERROR, help="share of labelled rows misjudged without guidance")
    given = parser.parse_args()
    server = TestingServer(given.dials, given.labels, given.error)
    asyncio.run(serve(server, "a testing LM, no language model", "127.0.0.1", given.port))


if __name__ == "__main__":
    main()
