"""lm-evaluation-harness' files, read and written: samples_<task>_<time>.jsonl and results_<time>.json.

    samples  a line an answer and filter: doc_id, doc, target, arguments, resps, filtered_resps, filter, metrics,
             hashes, and a field for each metric
    results  one object: results.<task>."<metric>,<filter>" and its stderr, n-samples, n-shot, versions, model_name

for the tasks of `TASKS` as written, for any generation task as read. The harness scores only what it generates itself,
so it is handed the same answers by a model that reads them off the file; documents come in the order of `doc_id`:

    import json, lm_eval
    from lm_eval.api.model import LM

    class Logged(LM):
        def __init__(self, path):
            super().__init__()
            samples = [json.loads(line) for line in open(path)]
            self.replies = {sample["doc_id"]: sample["resps"][0][0] for sample in samples}
        def generate_until(self, requests):
            return [self.replies[request.doc_id] for request in requests]
        def loglikelihood(self, requests): raise NotImplementedError
        def loglikelihood_rolling(self, requests): raise NotImplementedError

    lm_eval.simple_evaluate(Logged("samples_ifeval_....jsonl"), tasks=["ifeval"])

The authors' own tools take answers alone: `write_completions` is for `evaluate_functional_correctness` of HumanEval
(and, as EvalPlus calls them, for HumanEval and MBPP), `write_responses` for IFEval's `evaluation_main
--input_response_data`.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from matrix_dspy.errors import ConfigError, TableError
from matrix_dspy.evaluation.json_files import Entry, read_entries, read_object, write_lines, write_object

Score = float | bool | list[bool]
"""A metric of one sample: a number, or a verdict for each of its parts, as IFEval's by instruction."""


@dataclass(frozen=True, slots=True)
class Task:
    """How the harness logs a task."""

    name: str
    filters: tuple[str, ...]
    """Ways of reading an answer; a line is written for each."""
    metrics: tuple[str, ...]
    """Of each line."""


TASKS: dict[str, Task] = {
    "gsm8k": Task("gsm8k", ("strict-match", "flexible-extract"), ("exact_match",)),
    "humaneval": Task("humaneval", ("create_test",), ("pass@1",)),
    "mbpp": Task("mbpp", ("none",), ("pass_at_1",)),
    "ifeval": Task(
        "ifeval",
        ("none",),
        ("prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc"),
    ),
}
"""Task to its filters and metrics in lm-eval 0.4.13."""
_FIELDS = (
    *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"),
    *("doc_hash", "prompt_hash", "target_hash"),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer to one document, read by one filter."""

    doc_id: int
    """Its place in the test split, from 0."""
    doc: Mapping[str, Any]
    """The document as the data set has it."""
    target: str
    prompt: str
    """What the model was sent."""
    replies: tuple[str, ...]
    """What it answered; several where a document was sampled repeatedly."""
    filtered: Any
    """What the filter made of the replies: a text, or a list of them."""
    metrics: Mapping[str, Score]
    filter: str = "none"
    generation: Mapping[str, Any] = field(default_factory=dict)
    """How it was generated: temperature, until and the like."""


@dataclass(frozen=True, slots=True)
class Results:
    """The figures of one model on some tasks."""

    model: str
    tasks: Mapping[str, Mapping[str, float | None]]
    """Task to `metric,filter` and `metric_stderr,filter`; None where the file says N/A."""
    n_samples: Mapping[str, int]
    """Task to documents."""
    n_shot: Mapping[str, int] = field(default_factory=dict)


def list_target(task: str, doc: Mapping[str, Any]) -> str:
    """Return what the harness logs as a document's target.

    Raises:
        ConfigError: it is no task of `TASKS`.
        TableError: the document lacks a field.
    """
    entry = Entry(doc, f"a document of {task}")
    if task == "gsm8k":
        return entry.get_text("answer")
    if task == "humaneval":
        return f"{entry.get_text('test')}\ncheck({entry.get_text('entry_point')})"
    if task == "mbpp":
        return "\n".join(map(str, entry.get_list("test_list")[:3]))
    _find_task(task)
    return "0"


def build_samples(
    task: str,
    doc_id: int,
    doc: Mapping[str, Any],
    prompt: str,
    replies: Sequence[str],
    scores: Mapping[str, Score] | Mapping[str, Mapping[str, Score]],
    *,
    filtered: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> list[Sample]:
    """Return the samples of one document's replies, one for each filter of the task.

    `scores` maps metrics to scores; where filters differ, filters to such mappings. `filtered` maps filters to what
    they made of the replies; by default the first reply, and for humaneval the prompt with each reply.

    Raises:
        ConfigError: it is no task of `TASKS`, or a metric of it is missing.
    """
    known = _find_task(task)
    target = list_target(task, doc)
    found: list[Sample] = []
    for name in known.filters:
        own = scores.get(name, scores)
        if not isinstance(own, Mapping) or set(own) != set(known.metrics):
            has = ", ".join(map(repr, own)) if isinstance(own, Mapping) else repr(own)
            raise ConfigError(f"{task} has the metrics {', '.join(map(repr, known.metrics))}, not {has}; give those")
        default: Any = replies[0] if replies else ""
        if task == "humaneval":
            default = [str(doc.get("prompt", "")) + reply for reply in replies]
        metrics = {metric: cast("Score", own[metric]) for metric in known.metrics}
        found.append(
            Sample(
                doc_id=doc_id,
                doc=dict(doc),
                target=target,
                prompt=prompt,
                replies=tuple(replies),
                filtered=(filtered or {}).get(name, default),
                metrics=metrics,
                filter=name,
                generation=dict(generation or {}),
            )
        )
    return found


def read_samples(path: Path) -> list[Sample]:
    """Read the samples of a generation task.

    Raises:
        TableError: it cannot be read, a field is missing or of another type, or a document comes twice in a filter.
    """
    entries = read_entries(path)
    if not entries:
        raise TableError(f"{str(path)!r} holds no samples; run the harness with --log_samples")
    found = [_read_sample(entry) for entry in entries]
    seen: set[tuple[int, str]] = set()
    for sample in found:
        if (sample.doc_id, sample.filter) in seen:
            raise TableError(f"{str(path)!r} has document {sample.doc_id} of {sample.filter!r} twice; keep one of them")
        seen.add((sample.doc_id, sample.filter))
    return found


def write_samples(samples: Iterable[Sample], folder: Path, task: str, stamp: str) -> Path:
    """Write samples as `samples_<task>_<stamp>.jsonl` in `folder`, whole or not at all; returns the path.

    `stamp` is a time such as 2025-01-31T12-00-00.000000, the same for the results beside them; the harness tells the
    task from it by the last underscore.
    """
    path = folder / f"samples_{re.sub(r'[^A-Za-z0-9_]', '_', task)}_{_check_stamp(stamp)}.jsonl"
    ordered = sorted(samples, key=lambda each: (each.filter, each.doc_id))
    write_lines(map(_render_sample, ordered), path)
    return path


def summarise(model: str, by_task: Mapping[str, Sequence[Sample]], n_shot: int = 0) -> Results:
    """Return the harness' figures of samples: means, and their standard errors where a sample has one score.

    A metric with a verdict a part is averaged over all parts, as IFEval's by instruction; the harness then says N/A
    for its error.
    """
    tasks: dict[str, dict[str, float | None]] = {}
    for task, samples in by_task.items():
        scores: dict[tuple[str, str], list[Score]] = {}
        for sample in samples:
            for metric, score in sample.metrics.items():
                scores.setdefault((metric, sample.filter), []).append(score)
        tasks[task] = {}
        for (metric, name), values in scores.items():
            is_split = any(isinstance(value, list) for value in values)
            flat = [float(x) for value in values for x in (value if isinstance(value, list) else [value])]
            tasks[task][f"{metric},{name}"] = sum(flat) / len(flat) if flat else None
            tasks[task][f"{metric}_stderr,{name}"] = None if is_split else _find_error(flat)
    n_samples = {task: len({sample.doc_id for sample in samples}) for task, samples in by_task.items()}
    return Results(model, tasks, n_samples, dict.fromkeys(by_task, n_shot))


def read_results(path: Path) -> Results:
    """Read a results file; figures that are no numbers (N/A) are None.

    Raises:
        TableError: it cannot be read or holds no results.
    """
    whole = read_object(path)
    results = whole.get_object("results")
    if not results.values:
        raise TableError(f"{str(path)!r} holds no results; run the harness again")
    tasks = {name: _read_figures(results.get_object(name)) for name in results.values}
    counts = whole.get_object("n-samples") if "n-samples" in whole.values else Entry({}, whole.where)
    shots = whole.get_object("n-shot") if "n-shot" in whole.values else Entry({}, whole.where)
    return Results(
        model=whole.get_text("model_name", default=""),
        tasks=tasks,
        n_samples={name: counts.get_object(name).get_whole("effective") for name in counts.values},
        n_shot={name: shots.get_whole(name) for name in shots.values},
    )


def write_results(results: Results, folder: Path, stamp: str) -> Path:
    """Write `results_<stamp>.json` in `folder`, whole or not at all; returns the path."""
    path = folder / f"results_{_check_stamp(stamp)}.json"
    names = list(results.tasks)
    write_object(
        {
            "results": {
                name: {
                    "name": name,
                    "alias": name,
                    "sample_len": results.n_samples.get(name, 0),
                    **{key: "N/A" if value is None else value for key, value in results.tasks[name].items()},
                }
                for name in names
            },
            "group_subtasks": {name: [] for name in names},
            "configs": {name: {"task": name, "output_type": "generate_until"} for name in names},
            "versions": dict.fromkeys(names, "N/A"),
            "n-shot": {name: results.n_shot.get(name, 0) for name in names},
            "higher_is_better": {
                name: {key.partition(",")[0]: True for key in results.tasks[name] if "_stderr," not in key}
                for name in names
            },
            "n-samples": {
                name: {"original": results.n_samples.get(name, 0), "effective": results.n_samples.get(name, 0)}
                for name in names
            },
            "model_source": "matrix_dspy",
            "model_name": results.model,
            "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", results.model),
        },
        path,
    )
    return path


def write_completions(rows: Iterable[tuple[str, str]], path: Path) -> None:
    """Write task ids with completions as HumanEval's own tool and EvalPlus take them, whole or not at all."""
    write_lines(({"task_id": task_id, "completion": completion} for task_id, completion in rows), path)


def write_responses(rows: Iterable[tuple[str, str]], path: Path) -> None:
    """Write prompts with responses as IFEval's own tool takes them, whole or not at all."""
    write_lines(({"prompt": prompt, "response": response} for prompt, response in rows), path)


def _find_task(task: str) -> Task:
    if task not in TASKS:
        raise ConfigError(f"no task {task!r}; choose one of {', '.join(sorted(TASKS))}")
    return TASKS[task]


def _check_stamp(stamp: str) -> str:
    if not re.fullmatch(r"[\w.+-]+", stamp, re.ASCII) or "_" in stamp or stamp.startswith("."):
        raise ConfigError(f"the time {stamp!r} cannot be part of a file's name; write it as 2025-01-31T12-00-00")
    return stamp


def _read_sample(entry: Entry) -> Sample:
    prompt, generation = _read_arguments(entry)
    replies = entry.get_list("resps")
    first = replies[0] if replies else None
    if not isinstance(first, list) or not all(isinstance(reply, str) for reply in first):
        raise TableError(f"{entry.where} has no generated text in 'resps'; give samples of a generation task")
    filtered = entry.get_list("filtered_resps")
    names = [name for name in entry.get_list("metrics", default=()) if isinstance(name, str)]
    return Sample(
        doc_id=entry.get_whole("doc_id"),
        doc=dict(entry.get_object("doc").values),
        target=str(entry.values.get("target", "")),
        prompt=prompt,
        replies=tuple(first),
        filtered=filtered[0] if filtered else None,
        metrics={name: _read_score(entry, name) for name in names},
        filter=entry.get_text("filter", default="none"),
        generation=generation,
    )


def _read_arguments(entry: Entry) -> tuple[str, dict[str, Any]]:
    """Return the prompt and how it was generated, from the form of a file or that of a returned sample."""
    given = entry.values.get("arguments")
    if isinstance(given, list) and given and isinstance(given[0], list):
        first = Entry({f"arg_{i}": value for i, value in enumerate(given[0])}, entry.where)
    else:
        first = entry.get_object("arguments").get_object("gen_args_0")
    how = first.values.get("arg_1")
    return first.get_text("arg_0"), dict(how) if isinstance(how, dict) else {}


def _read_score(entry: Entry, name: str) -> Score:
    entry.require(name)
    value = entry.values[name]
    if isinstance(value, bool):
        return value
    if isinstance(value, list):
        if not all(isinstance(part, bool) for part in value):
            raise TableError(f"{entry.where} has a part of {name!r} that is neither true nor false; score it again")
        return value
    number = entry.get_number(name)
    if number is None:
        raise TableError(f"{entry.where} has no number for {name!r}; score it again")
    return number


def _render_sample(sample: Sample) -> dict[str, Any]:
    document = json.dumps(sample.doc, indent=2, ensure_ascii=False)
    return {
        "doc_id": sample.doc_id,
        "doc": sample.doc,
        "target": sample.target,
        "arguments": {"gen_args_0": {"arg_0": sample.prompt, "arg_1": sample.generation}},
        "resps": [list(sample.replies)],
        "filtered_resps": [sample.filtered],
        "filter": sample.filter,
        "metrics": list(sample.metrics),
        "doc_hash": _hash(document),
        "prompt_hash": _hash(sample.prompt),
        "target_hash": _hash(sample.target),
        **sample.metrics,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _find_error(values: Sequence[float]) -> float | None:
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)


def _read_figures(entry: Entry) -> dict[str, float | None]:
    """Return the figures of a task, which are the keys of two parts: a metric and its filter."""
    figures: dict[str, float | None] = {}
    for name, value in entry.values.items():
        if "," in name:
            figures[name] = None if value == "N/A" else entry.get_number(name)
    return figures
