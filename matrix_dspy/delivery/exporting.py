"""Write a data set in the layout that somebody else's trainer or benchmark reads, row by row.

    trl          messages, or prompt, chosen and rejected, beside the row's id
    sharegpt     conversations of from (human, gpt, system) and value; pairs with one chosen and one rejected turn
    alpaca       instruction, input, output, and system and history where there are any; pairs: chosen, rejected
    openai       messages, or input, preferred_output and non_preferred_output; no other keys, which OpenAI refuses
    alpaca_eval  model outputs for AlpacaEval: instruction, output, generator, dataset
    arena_hard   a folder with question.jsonl and model_answer/<model>.jsonl as Arena-Hard v0.1 has them

Pairs go out as LLaMA-Factory reads them where a layout's authors have none. A row that a layout cannot hold is left
out and counted by reason.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from matrix_dspy.bulk.tables import replacing
from matrix_dspy.delivery.reading import DataRow, Dataset, Shape, ShownTurn, Turns, read_dataset
from matrix_dspy.errors import ConfigError, did_you_mean
from matrix_dspy.text import estimate_tokens
from matrix_dspy.types import make_id


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    paths: tuple[Path, ...]
    n_rows: int
    left_out: Mapping[str, int]
    """Rows that were not written, by reason, most frequent first."""

    @property
    def n_left_out(self) -> int:
        """How many rows were not written."""
        return sum(self.left_out.values())


@dataclass(frozen=True, slots=True)
class Target:
    """What an export is made for: the name of the model and of the data set, where a layout asks for them."""

    model: str
    """Stands in for rows that do not name theirs."""
    dataset: str


Render = Callable[[DataRow, Target], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Format:
    """A layout: its endings, the first the usual one, and how a row of each shape is written."""

    endings: tuple[str, ...]
    renders: Mapping[Shape, Render]


class _LeftOutError(ValueError):
    """A layout cannot hold a row; the text is the reason, a short phrase to count by."""


def export(
    source: Path,
    format: str,
    out: Path | None = None,
    *,
    model: str = "",
    columns: Mapping[str, str] | None = None,
) -> Exported:
    """Write the data set in `source` (a run folder or anybody's file) in another layout; whole or not at all.

    `out` is a file, for arena_hard a folder; by default `export/` in a run folder, else beside the file. `model` is
    who answered, for benchmarks, where the rows do not say. `columns` is as for `read_dataset`.

    Raises:
        ConfigError: no such format, or it cannot hold data of this shape or be written to a file of that ending.
        TableError: the data set cannot be read.
        RunError: nothing can be written there.
    """
    if format not in FORMATS:
        raise ConfigError(f"no format {format!r}; {did_you_mean(format, list(FORMATS))}")
    dataset = read_dataset(source, columns)
    chosen = FORMATS[format]
    if dataset.shape not in chosen.renders:
        raise ConfigError(f"{format!r} is for conversations, and {str(source)!r} holds preference pairs; {_PAIRS_GO}")
    out = out or default_path(dataset, format)
    if out.resolve() in {path.resolve() for path in (*dataset.files, dataset.source)}:
        raise ConfigError(f"{str(out)!r} is what is read; give another place with --out")
    if any(parent.is_file() for parent in out.parents):
        raise ConfigError(f"{str(out)!r} would lie in a file; give a place in a folder with --out")
    target = Target(model=model or dataset.name, dataset=dataset.name)
    if format == "arena_hard":
        return _export_arena_hard(dataset, out, model)
    if out.suffix.lower() not in chosen.endings or out.is_dir():
        raise ConfigError(f"{format!r} is a {' or '.join(chosen.endings)} file, not {str(out)!r}")
    render, left_out = chosen.renders[dataset.shape], Counter[str]()
    with replacing(out) as temporary, temporary.open("wb") as file:
        write = _write_lines if out.suffix.lower() == ".jsonl" else _write_list
        n_rows = write(_render_rows(dataset, render, target, left_out), file)
    return Exported((out,), n_rows, dict(left_out.most_common()))


def default_path(dataset: Dataset, format: str) -> Path:
    """Return where an export goes when the user does not say."""
    ending = FORMATS[format].endings[0]
    if dataset.source.is_dir():
        return dataset.source / "export" / f"{format}{ending}"
    return dataset.source.with_name(f"{dataset.name}.{format}{ending}")


def _render_rows(dataset: Dataset, render: Render, target: Target, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    for batch in dataset.read_batches():
        left_out.update(f"unreadable: {fault.reason}" for fault in batch.faults)
        for row in batch.rows:
            try:
                yield render(row, target)
            except _LeftOutError as error:
                left_out[str(error)] += 1


def _write_lines(rows: Iterator[dict[str, Any]], file: BinaryIO) -> int:
    n_rows = 0
    for row in rows:
        file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        n_rows += 1
    return n_rows


def _write_list(rows: Iterator[dict[str, Any]], file: BinaryIO) -> int:
    n_rows = 0
    file.write(b"[")
    for n_rows, row in enumerate(rows, 1):
        file.write((b",\n" if n_rows > 1 else b"\n") + orjson.dumps(row))
    file.write(b"\n]\n" if n_rows else b"]\n")
    return n_rows


def _export_arena_hard(dataset: Dataset, out: Path, model: str) -> Exported:
    """Write the questions and one model's answers, each in its file; a row of another model's is left out."""
    if out.is_file():
        raise ConfigError(f"'arena_hard' is a folder of two files, and {str(out)!r} is a file")
    left_out: Counter[str] = Counter()
    first = model or next((row.model for row in dataset.read_rows()), "") or dataset.name
    target = Target(model=first, dataset=dataset.name)
    name = re.sub(r"[^\w.-]+", "_", first).strip("._")[:100] or "model"
    paths = out / "question.jsonl", out / "model_answer" / f"{name}.jsonl"
    n_rows = 0
    with ExitStack() as stack:
        questions, answers = (stack.enter_context(stack.enter_context(replacing(path)).open("wb")) for path in paths)
        for pair in _render_rows(dataset, _render_arena_hard, target, left_out):
            questions.write(orjson.dumps(pair["question"], option=orjson.OPT_APPEND_NEWLINE))
            answers.write(orjson.dumps(pair["answer"], option=orjson.OPT_APPEND_NEWLINE))
            n_rows += 1
    return Exported(paths, n_rows, dict(left_out.most_common()))


def _render_trl(row: DataRow, _: Target) -> dict[str, Any]:
    _refuse_weights(row)
    return {"id": row.id, "messages": _role_turns(row.messages), **_keep_tools(row)}


def _render_trl_pair(row: DataRow, _: Target) -> dict[str, Any]:
    sides = {"prompt": row.messages, "chosen": row.chosen, "rejected": row.rejected}
    return {"id": row.id, **{name: _role_turns(side) for name, side in sides.items()}}


def _render_sharegpt(row: DataRow, _: Target) -> dict[str, Any]:
    _refuse_weights(row)
    return {"id": row.id, "conversations": _from_turns(row.messages)}


def _render_sharegpt_pair(row: DataRow, _: Target) -> dict[str, Any]:
    (chosen,), (rejected,) = (_from_turns(side) for side in _single_sides(row))
    return {"id": row.id, "conversations": _from_turns(row.messages), "chosen": chosen, "rejected": rejected}


def _render_alpaca(row: DataRow, _: Target) -> dict[str, Any]:
    _refuse_weights(row)
    if row.messages[-1].role != "assistant":
        raise _LeftOutError("ends with the user")
    return {**_alpaca_prompt(row.messages[:-1], {"output": row.messages[-1].content})}


def _render_alpaca_pair(row: DataRow, _: Target) -> dict[str, Any]:
    (chosen,), (rejected,) = _single_sides(row)
    return _alpaca_prompt(row.messages, {"chosen": chosen.content, "rejected": rejected.content})


def _alpaca_prompt(turns: Turns, answers: dict[str, str]) -> dict[str, Any]:
    system, rest = _split_system(turns)
    if [turn.role for turn in rest] != ["user", "assistant"] * (len(rest) // 2) + ["user"]:
        raise _LeftOutError("turns do not alternate")
    texts = [turn.content for turn in rest]
    made: dict[str, Any] = {"instruction": texts[-1], "input": "", **answers}
    if system:
        made["system"] = system
    if len(texts) > 1:
        made["history"] = [[texts[i], texts[i + 1]] for i in range(0, len(texts) - 1, 2)]
    return made


def _render_openai(row: DataRow, _: Target) -> dict[str, Any]:
    if row.messages[-1].role != "assistant":
        raise _LeftOutError("ends with the user")
    turns = zip(_role_turns(row.messages), row.messages, strict=True)
    said = [shown | {"weight": 0} if isinstance(turn, ShownTurn) else shown for shown, turn in turns]
    return {"messages": said, **_keep_tools(row)}


def _render_openai_pair(row: DataRow, _: Target) -> dict[str, Any]:
    chosen, rejected = _single_sides(row)
    return {
        "input": {"messages": _role_turns(row.messages)},
        "preferred_output": _role_turns(chosen),
        "non_preferred_output": _role_turns(rejected),
    }


def _render_alpaca_eval(row: DataRow, target: Target) -> dict[str, Any]:
    question, answer = _single_exchange(row)
    return {
        "instruction": question,
        "output": answer,
        "generator": row.model or target.model,
        "dataset": target.dataset,
    }


def _render_arena_hard(row: DataRow, target: Target) -> dict[str, Any]:
    """Make a question and its answer; the question has the keys of the old layout (turns) and the present (prompt).

    Arena-Hard stamps answers with the time and a random id; here both follow from the row, so that the same data gives
    the same file. `token_len` is estimated, since its own tokenizer must be downloaded.
    """
    question, answer = _single_exchange(row)
    if row.model and row.model != target.model:
        raise _LeftOutError("another model's answer")
    category = row.others.get("category")
    kind = category if isinstance(category, str) else target.dataset
    cluster = row.others.get("cluster")
    return {
        "question": {
            "question_id": row.id,
            "uid": row.id,
            "category": kind,
            "cluster": cluster if isinstance(cluster, str) else kind,
            "turns": [{"content": question}],
            "prompt": question,
        },
        "answer": {
            "question_id": row.id,
            "answer_id": make_id("answer", target.model, row.id),
            "model_id": target.model,
            "choices": [{"index": 0, "turns": [{"content": answer, "token_len": estimate_tokens(answer)}]}],
            "tstamp": 0.0,
        },
    }


def _keep_tools(row: DataRow) -> dict[str, Any]:
    """Return the tools that a row brings, under the name that TRL and OpenAI have for them."""
    return {"tools": tools} if (tools := row.others.get("tools")) else {}


def _refuse_weights(row: DataRow) -> None:
    """Leave out a row with turns that are not to be learnt, which only OpenAI's layout can say."""
    if any(isinstance(turn, ShownTurn) for turn in row.messages):
        raise _LeftOutError("has turns of weight 0")


def _role_turns(turns: Turns) -> list[dict[str, Any]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


_FROM = {"system": "system", "user": "human", "assistant": "gpt"}


def _from_turns(turns: Turns) -> list[dict[str, str]]:
    return [{"from": _FROM[turn.role], "value": turn.content} for turn in turns]


def _single_sides(row: DataRow) -> tuple[Turns, Turns]:
    if any([turn.role for turn in side] != ["assistant"] for side in (row.chosen, row.rejected)):
        raise _LeftOutError("a side of several turns")
    return row.chosen, row.rejected


def _split_system(turns: Turns) -> tuple[str, Turns]:
    return (turns[0].content, turns[1:]) if turns and turns[0].role == "system" else ("", turns)


def _single_exchange(row: DataRow) -> tuple[str, str]:
    roles = [turn.role for turn in row.messages]
    if "system" in roles:
        raise _LeftOutError("a system turn")
    if roles != ["user", "assistant"]:
        raise _LeftOutError("several turns")
    return row.messages[0].content, row.messages[1].content


FORMATS: dict[str, Format] = {
    "trl": Format((".jsonl", ".json"), {"conversation": _render_trl, "pair": _render_trl_pair}),
    "sharegpt": Format((".json", ".jsonl"), {"conversation": _render_sharegpt, "pair": _render_sharegpt_pair}),
    # optional keys differ from row to row, which `datasets` unites within a list and not over lines
    "alpaca": Format((".json",), {"conversation": _render_alpaca, "pair": _render_alpaca_pair}),
    "openai": Format((".jsonl",), {"conversation": _render_openai, "pair": _render_openai_pair}),
    "alpaca_eval": Format((".json",), {"conversation": _render_alpaca_eval}),
    "arena_hard": Format(("",), {"conversation": _render_arena_hard}),
}
"""Format to how it is written."""
_PAIRS_GO = "pairs go out as " + ", ".join(sorted(name for name, each in FORMATS.items() if "pair" in each.renders))
