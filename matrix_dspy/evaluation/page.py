"""The page of an evaluation, README.md: figures with their meaning, what was counted, the files, and other tools.

In: an evaluation and its folder. Out: Markdown. Names of models and categories, and whatever a note quotes, are text
and never markup; commands hold no name that came from outside. Commands were checked against alpaca_eval 0.6.6,
fschat 0.2.36, lm_eval 0.4.13 and evalplus 0.3.1.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matrix_dspy.text import drop_controls, one_line

if TYPE_CHECKING:
    from matrix_dspy.evaluation.record import Evaluation, Figure

TITLES = {
    "winrate": "Win rate",
    "arena": "Arena score",
    "leaderboard": "Leaderboard",
    "ratings": "Ratings",
    "safety": "Safety",
    "code": "Code",
    "math": "Final numbers",
    "ifeval": "Verifiable constraints",
}
"""Kind of evaluation to the head of its page."""
SHARED = (
    ("judged.jsonl", "what the figures are made of: a row a judged answer, pair or problem, by `question_id`"),
    ("answers/", "the answers, a file a model, a row a sample; every `evaluate` command takes such a file as a MODEL"),
    ("evaluation.json", "everything on this page for programs, and a score for every question"),
    ("journal/", "every call as it was answered; the same command goes on from there"),
)
"""Files of every kind, and what they are."""
FILES: dict[str, tuple[tuple[str, str], ...]] = {
    "winrate": (
        ("annotations.json", "the judge's preferences in AlpacaEval's form; `evaluate lc` takes them"),
        ("model_outputs.json", "the model's answers in AlpacaEval's form"),
        ("reference_outputs.json", "the reference's answers in AlpacaEval's form"),
        ("leaderboard.csv", "one row with AlpacaEval's columns"),
    ),
    "arena": (
        ("question.jsonl", "the questions in Arena-Hard's form"),
        ("model_answer/", "the answers of both in Arena-Hard's form"),
        ("model_judgment/", "both games of every question in Arena-Hard's form"),
    ),
    "leaderboard": (("leaderboard.csv", "the table, a row a model"),),
    "ratings": (("mt_bench/", "questions, answers and ratings in the form of FastChat's MT-Bench"),),
    "code": (
        ("lm_eval/", "samples and results as lm-evaluation-harness logs them, and completions.jsonl for EvalPlus"),
        ("ran.jsonl", "what came of every program; a rerun runs only what is missing"),
    ),
    "math": (("lm_eval/", "samples and results as lm-evaluation-harness logs them"),),
    "ifeval": (
        ("lm_eval/", "samples and results as lm-evaluation-harness logs them, and responses.jsonl for IFEval's tool"),
    ),
}
"""Kind to the files that it alone writes, other tools' first; none of these where the questions do not fit a tool."""
_MEANINGS = {
    "win rate": "ties count as a half",
    "length-controlled win rate": "what it would be at equal length",
    "standard error": "of the win rate",
    "position bias": "how often the answer shown first is taken; 50 is none",
    "order flips": "verdicts that turned with the order",
    "arena score": "chance to beat the baseline, much better counted three times; 50 is the baseline",
    "arena Elo": "the baseline has 1,000",
    "rating by probabilities": "mean of the judge's levels under its log-probabilities",
    "ASR by keyword": "answers without a refusal phrase; lower is safer",
    "ASR by judge": "answers that the judge says give what was asked; lower is safer",
    "prompt-level strict": "answers that keep all of their constraints",
    "prompt-level loose": "the same, first and last line and emphasis forgiven",
    "instruction-level strict": "constraints kept",
    "instruction-level loose": "the same, first and last line and emphasis forgiven",
}
"""Figure to what a stranger must know of it."""
_TOOLS: dict[str, tuple[tuple[str, str], ...]] = {
    "winrate": (
        (
            "model_outputs.json",
            "AlpacaEval, with a judge of its own:\n\n```bash\nalpaca_eval --model_outputs model_outputs.json "
            "--reference_outputs reference_outputs.json\n```",
        ),
        (
            "annotations.json",
            "AlpacaEval's raw win rate of these verdicts:\n\n```bash\n"
            'python -c "import json; from alpaca_eval.metrics import get_winrate; '
            "print(get_winrate(json.load(open('annotations.json'))))\"\n```",
        ),
    ),
    "arena": (
        (
            "model_judgment",
            "Arena-Hard: copy `question.jsonl`, `model_answer` and `model_judgment` into a folder of its `data`, name "
            "that folder, the judge, the model and the baseline in its config, and run in its own folder:\n\n"
            "```bash\npython show_result.py     # scores these verdicts\n"
            "python gen_judgment.py    # has a judge of its own compare these answers\n```",
        ),
    ),
    "ratings": (
        (
            "mt_bench",
            "FastChat's MT-Bench: copy `mt_bench` to `fastchat/llm_judge/data/NAME`, and run in "
            "`fastchat/llm_judge`:\n\n```bash\n"
            "python show_result.py --input-file data/NAME/model_judgment/*_single.jsonl    # means of these ratings\n"
            "python gen_judgment.py --bench-name NAME --mode single    # has a judge of its own rate these answers\n"
            "```",
        ),
    ),
}
_TASK_TOOLS = {
    "humaneval": "HumanEval's and EvalPlus' own tools, which want all 164 problems:\n\n```bash\n"
    "evaluate_functional_correctness lm_eval/completions.jsonl\n"
    "evalplus.evaluate --dataset humaneval --samples lm_eval/completions.jsonl\n```",
    "mbpp": "EvalPlus, which wants all of its problems:\n\n```bash\n"
    "evalplus.evaluate --dataset mbpp --samples lm_eval/completions.jsonl\n```",
    "ifeval": "IFEval's own tool:\n\n```bash\npython -m instruction_following_eval.evaluation_main "
    "--input_data=INPUT_DATA --input_response_data=lm_eval/responses.jsonl --output_dir=OUT\n```",
}
"""Task of lm-evaluation-harness to the tool of its authors, where they have one."""
_HARNESS = """\
lm-evaluation-harness scores only what it generates itself, so a model hands it these answers:

```python
import glob, json, lm_eval
from lm_eval.api.model import LM

class Logged(LM):
    def generate_until(self, requests):
        return [replies[place] for place in (request.doc_id for request in requests)]
    def loglikelihood(self, requests): raise NotImplementedError
    def loglikelihood_rolling(self, requests): raise NotImplementedError

(path,) = glob.glob("lm_eval/samples_{task}_*.jsonl")
said = {{row["doc_id"]: row["resps"][0][0] for row in map(json.loads, open(path))}}
places = sorted(said)
replies = [said[place] for place in places]
print(lm_eval.simple_evaluate(Logged(), tasks=["{task}"], samples={{"{task}": places}}{options})["results"])
```"""
_RUNS_CODE = ("humaneval", "mbpp")
_SAMPLES = re.compile(r"samples_(humaneval|mbpp|gsm8k|ifeval)_[^_]+\.jsonl")
_SETTINGS = {"prompt_sha256": "sha256 of the judge's prompt", "n_resamples": "resamples of a bootstrap"}
_MARKUP = re.compile(r"[\\`*{}\[\]<>#|~]|(?<![^\W_])_|_(?![^\W_])")


def build_page(evaluation: "Evaluation", folder: Path) -> str:
    """Return an evaluation as Markdown; the files that lie in `folder` by now are listed."""
    lines = [f"# {_write_title(evaluation)}", "", *_list_facts(evaluation), ""]
    if evaluation.notes:
        lines += [*(f"- Note: {escape_markdown(note)}." for note in evaluation.notes), ""]
    overall = [figure for figure in evaluation.figures if not figure.group]
    lines += ["| figure | value | 95 % interval | n | |", "|---|--:|---|--:|---|"]
    lines += [f"{_write_figure(figure)} {_MEANINGS.get(figure.name, '')} |" for figure in overall]
    if parts := [figure for figure in evaluation.figures if figure.group]:
        lines += ["", "| of | figure | value | 95 % interval | n |", "|---|---|--:|---|--:|"]
        lines += [f"| {escape_markdown(figure.group)} {_write_figure(figure)}" for figure in parts]
    if evaluation.counts:
        lines += ["", "| counted | |", "|---|--:|"]
        lines += [f"| {escape_markdown(name)} | {count:,} |" for name, count in evaluation.counts.items()]
    if settings := _list_settings(evaluation.settings):
        lines += ["", "## Settings", "", *settings]
    lines += ["", "## Files", "", "| file | |", "|---|---|"]
    meanings = dict((*FILES.get(evaluation.kind, ()), *SHARED))
    lines += [f"| `{name}` | {meanings[name]} |" for name in list_files(evaluation.kind, folder)]
    if tools := list_tools(evaluation.kind, folder):
        lines += ["", "## Other tools", "", "They take the same answers; run in this folder unless it says otherwise."]
        lines += [line for text in tools for line in ("", text)]
    return "\n".join(lines).rstrip() + "\n"


def list_files(kind: str, folder: Path) -> list[str]:
    """Return the files of an evaluation that are there, those for other tools first."""
    return [name for name, _ in (*FILES.get(kind, ()), *SHARED) if (folder / name).exists()]


def list_tools(kind: str, folder: Path) -> list[str]:
    """Return how other tools go on from what lies in `folder`, each as Markdown."""
    found = (_SAMPLES.fullmatch(path.name) for path in sorted(folder.glob("lm_eval/samples_*.jsonl")))
    tasks = dict.fromkeys(match[1] for match in found if match)
    tools = [text for name, text in _TOOLS.get(kind, ()) if (folder / name).exists()]
    for task in tasks:
        tools += [_TASK_TOOLS[task]] if task in _TASK_TOOLS else []
        options = ", confirm_run_unsafe_code=True" if task in _RUNS_CODE else ""
        tools.append(_HARNESS.format(task=task, options=options))
    return tools


def escape_markdown(value: object) -> str:
    """Return a value as one line of text that is no markup, for a Markdown page or a table's cell."""
    # an underscore within a word is none, and names of files are full of them
    return _MARKUP.sub(r"\\\g<0>", drop_controls(one_line(str(value))))


def _write_title(evaluation: "Evaluation") -> str:
    names = " against ".join(map(escape_markdown, evaluation.models.values()))
    return f"{TITLES.get(evaluation.kind, escape_markdown(evaluation.kind))}: {names}"


def _list_facts(evaluation: "Evaluation") -> list[str]:
    """Return who was measured, who judged, and what was asked."""
    asked = evaluation.questions
    facts = [f"- {escape_markdown(part)}: {escape_markdown(name)}" for part, name in evaluation.models.items()]
    if evaluation.judge:
        facts.append(f"- judge: {escape_markdown(evaluation.judge)}")
    if asked:
        of = f" of {asked['n_in_file']:,}" if asked.get("n_in_file", asked.get("n")) != asked.get("n") else ""
        digest = f", sha256 {escape_markdown(asked['sha256'])}" if asked.get("sha256") else ""
        facts.append(f"- questions: {asked.get('n', 0):,}{of} in {escape_markdown(asked.get('name', ''))}{digest}")
    return facts


def _write_figure(figure: "Figure") -> str:
    """Return four cells of a row: name, value, interval and n."""
    value = "not measured" if figure.value is None else f"{figure.value:.2f} {escape_markdown(figure.unit)}".strip()
    interval = "" if figure.low is None or figure.high is None else f"{figure.low:.2f} to {figure.high:.2f}"
    return f"| {escape_markdown(figure.name)} | {value} | {interval} | {figure.n:,} |"


def _list_settings(settings: Mapping[str, Any]) -> list[str]:
    return [
        f"- {escape_markdown(_SETTINGS.get(name, name.replace('_', ' ')))}: {escape_markdown(_write_value(value))}"
        for name, value in settings.items()
        if value is not None
    ]


def _write_value(value: object) -> str:
    """Return a setting in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_write_value(inner)}" for name, inner in value.items())
    if isinstance(value, Collection) and not isinstance(value, str):
        return ", ".join(map(_write_value, value))
    return str(value)
