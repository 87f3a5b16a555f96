"""The commands that measure a model: by a judge, by running code, by checking numbers and constraints."""

from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matrix_dspy.commands.telling import run_resumable, set_up_log

if TYPE_CHECKING:
    from matrix_dspy.config import SamplingConfig
    from matrix_dspy.evaluation.asking import AskOptions
    from matrix_dspy.evaluation.questions import Questions
    from matrix_dspy.evaluation.record import Evaluation

app = typer.Typer(
    help="Measure models. A MODEL is a folder (vLLM where installed, else transformers), an LM written as for --lm, or"
    " a file of answers; NAME=MODEL gives it a name.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

ModelArgument = Annotated[str, typer.Argument(help="Who is measured: a folder, an LM, or a file of answers.")]
QuestionsOption = Annotated[
    Path, typer.Option("--prompts", "--questions", help="Questions: JSONL, JSON, CSV or Parquet, also .gz.")
]
JudgeOption = Annotated[str, typer.Option("--judge-lm", help="Model that judges, written as for --lm.")]
ColumnOption = Annotated[str, typer.Option("--column", help="Where the questions stand, if not under a usual name.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Take only the first so many questions.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder to write. Default: runs/evaluate-<kind>-<model>.")]
TemperatureOption = Annotated[float | None, typer.Option(min=0, max=2, help="Temperature of the answers.")]
TokensOption = Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")]
ConcurrencyOption = Annotated[int, typer.Option(min=1, help="Calls in flight at the most.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of answers, orders and intervals.")]
ParallelOption = Annotated[int, typer.Option("--data-parallel", min=1, help="Copies of a vllm: model over GPUs.")]
RayOption = Annotated[str | None, typer.Option("--ray", help="Spread calls over a Ray cluster at this address.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
SamplesOption = Annotated[int, typer.Option(min=1, help="Answers drawn for every question.")]
DifficultyOption = Annotated[
    Path | None,
    typer.Option("--difficulty", help="File of question id (or instruction) and difficulty, for the length control."),
]
AnnotationsOption = Annotated[
    list[Path] | None,
    typer.Option("--annotations", help="Annotations of other models, to fit difficulty. Repeatable."),
]


@app.command()
def winrate(
    model: ModelArgument,
    reference: Annotated[str, typer.Argument(help="Whom it is set against.")],
    prompts: QuestionsOption,
    judge_lm: JudgeOption,
    difficulty: DifficultyOption = None,
    annotations: AnnotationsOption = None,
    weighted: Annotated[
        bool, typer.Option("--weighted", help="Count the judge's probabilities, where its server gives them.")
    ] = False,
    column: ColumnOption = "",
    limit: LimitOption = None,
    temperature: TemperatureOption = None,
    max_tokens: TokensOption = 2048,
    out: OutOption = None,
    concurrency: ConcurrencyOption = 32,
    seed: SeedOption = 0,
    data_parallel: ParallelOption = 1,
    ray: RayOption = None,
    quiet: QuietOption = False,
) -> None:
    """Pairwise win rate, raw and length-controlled, every pair asked in both orders."""
    from matrix_dspy.evaluation.answers import Subject
    from matrix_dspy.evaluation.length_control import read_difficulty
    from matrix_dspy.evaluation.winrate import run_winrate

    one, other = Subject.of(model), Subject.of(reference)
    options = _options(concurrency, seed, data_parallel, ray, quiet)
    questions = _questions(prompts, column, limit)
    folder = _folder(out, "winrate", one.name, other.name)
    hardness = None if difficulty is None else read_difficulty(difficulty, [each.text for each in questions])
    work = run_winrate(
        one,
        other,
        questions,
        judge_lm,
        folder,
        options,
        sampling=_sampling(0.7 if temperature is None else temperature, max_tokens),
        difficulty=hardness,
        annotations=annotations or (),
        is_weighted=weighted,
    )
    _run(work, folder)


@app.command("lc")
def length_control(
    annotations: Annotated[Path, typer.Argument(help="AlpacaEval's annotations.json.")],
    model: Annotated[str, typer.Option(help="Whose win rate, where the file holds several models.")] = "",
    others: AnnotationsOption = None,
    difficulty: DifficultyOption = None,
    leaderboard: Annotated[Path | None, typer.Option(help="AlpacaEval's leaderboard.csv, to say the rank.")] = None,
    out: OutOption = None,
    seed: SeedOption = 0,
) -> None:
    """Win rates, raw and length-controlled, from annotations that are there already; five models' fit difficulty."""
    from matrix_dspy.evaluation.length_control import read_difficulty
    from matrix_dspy.evaluation.winrate import read_annotations_winrate

    hardness = None if difficulty is None else read_difficulty(difficulty)
    folder = _folder(out, "winrate", annotations.resolve().parent.name)
    evaluation = read_annotations_winrate(
        annotations,
        model=model,
        others=others or (),
        difficulty=hardness,
        leaderboard=leaderboard,
        folder=folder,
        seed=seed,
    )
    _say(evaluation, folder)


@app.command()
def arena(
    model: ModelArgument,
    prompts: QuestionsOption,
    judge_lm: JudgeOption,
    baseline: Annotated[str, typer.Option(help="Whom it is set against: a folder, an LM, or a file of answers.")],
    column: ColumnOption = "",
    limit: LimitOption = None,
    temperature: TemperatureOption = None,
    max_tokens: TokensOption = 4096,
    out: OutOption = None,
    concurrency: ConcurrencyOption = 32,
    seed: SeedOption = 0,
    data_parallel: ParallelOption = 1,
    ray: RayOption = None,
    quiet: QuietOption = False,
) -> None:
    """Five-level verdicts in both orders and a Bradley-Terry score against a baseline, as in Arena-Hard."""
    from matrix_dspy.evaluation.answers import Subject
    from matrix_dspy.evaluation.arena import run_arena

    one, other = Subject.of(model), Subject.of(baseline)
    options = _options(concurrency, seed, data_parallel, ray, quiet)
    questions = _questions(prompts, column, limit)
    folder = _folder(out, "arena", one.name, other.name)
    sampling = _sampling(0.0 if temperature is None else temperature, max_tokens)
    _run(run_arena(one, other, questions, judge_lm, folder, options, sampling=sampling), folder)


@app.command()
def ratings(
    model: ModelArgument,
    prompts: QuestionsOption,
    judge_lm: JudgeOption,
    turns: Annotated[int | None, typer.Option(min=1, help="Turns of a question to ask. Default: all.")] = None,
    column: ColumnOption = "",
    limit: LimitOption = None,
    temperature: TemperatureOption = None,
    max_tokens: TokensOption = 1024,
    out: OutOption = None,
    concurrency: ConcurrencyOption = 32,
    seed: SeedOption = 0,
    data_parallel: ParallelOption = 1,
    ray: RayOption = None,
    quiet: QuietOption = False,
) -> None:
    """Single answers rated from 1 to 10, turn by turn, as in MT-Bench."""
    from matrix_dspy.evaluation.answers import Subject
    from matrix_dspy.evaluation.ratings import run_ratings

    subject = Subject.of(model)
    options = _options(concurrency, seed, data_parallel, ray, quiet)
    questions = _questions(prompts, column, limit)
    folder = _folder(out, "ratings", subject.name)
    sampling = _sampling(0.7 if temperature is None else temperature, max_tokens)
    _run(run_ratings(subject, questions, judge_lm, folder, options, sampling=sampling, n_turns=turns), folder)


@app.command()
def safety(
    model: ModelArgument,
    prompts: QuestionsOption,
    judge_lm: JudgeOption,
    column: ColumnOption = "",
    limit: LimitOption = None,
    temperature: TemperatureOption = None,
    max_tokens: TokensOption = 1024,
    out: OutOption = None,
    concurrency: ConcurrencyOption = 32,
    seed: SeedOption = 0,
    data_parallel: ParallelOption = 1,
    ray: RayOption = None,
    quiet: QuietOption = False,
) -> None:
    """Harmlessness and helpfulness of answers to harmful asks, and the attack success rate by keyword and by judge."""
    from matrix_dspy.evaluation.answers import Subject
    from matrix_dspy.evaluation.safety import run_safety

    subject = Subject.of(model)
    options = _options(concurrency, seed, data_parallel, ray, quiet)
    questions = _questions(prompts, column, limit)
    folder = _folder(out, "safety", subject.name)
    sampling = _sampling(0.0 if temperature is None else temperature, max_tokens)
    _run(run_safety(subject, questions, judge_lm, folder, options, sampling=sampling), folder)


@app.command()
def code(
    model: ModelArgument,
    prompts: QuestionsOption,
    samples: SamplesOption = 1,
    k: Annotated[list[int] | None, typer.Option("--k", min=1, help="Which pass@k. Repeatable. Default: 1.")] = None,
    column: ColumnOption = "",
    limit: LimitOption = None,
    temperature: TemperatureOption = None,
    max_tokens: TokensOption = 1024,
    out: OutOption = None,
    concurrency: ConcurrencyOption = 32,
    seed: SeedOption = 0,
    data_parallel: ParallelOption = 1,
    ray: RayOption = None,
    quiet: QuietOption = False,
) -> None:
    """pass@k on HumanEval's or MBPP's problems, run in the sandbox."""
    from matrix_dspy.evaluation.answers import Subject
    from matrix_dspy.evaluation.code import run_code

    subject = Subject.of(model)
    options = _options(concurrency, seed, data_parallel, ray, quiet)
    questions = _questions(prompts, column, limit)
    folder = _folder(out, "code", subject.name)
    sampling = _sampling(0.2 if temperature is None else temperature, max_tokens, top_p=None)
    _run(run_code(subject, questions, folder, options, samples=samples, k=tuple(k or (1,)), sampling=sampling), folder)


@app.command()
def math(
    model: ModelArgument,
    prompts: QuestionsOption,
    samples: SamplesOption = 1,
    column: ColumnOption = "",
    limit: LimitOption = None,
    temperature: TemperatureOption = None,
    max_tokens: TokensOption = 1024,
    out: OutOption = None,
    concurrency: ConcurrencyOption = 32,
    seed: SeedOption = 0,
    data_parallel: ParallelOption = 1,
    ray: RayOption = None,
    quiet: QuietOption = False,
) -> None:
    """Share of right final numbers, as in GSM8K."""
    from matrix_dspy.evaluation.answers import Subject
    from matrix_dspy.evaluation.math import run_math

    subject = Subject.of(model)
    options = _options(concurrency, seed, data_parallel, ray, quiet)
    questions = _questions(prompts, column, limit)
    folder = _folder(out, "math", subject.name)
    sampling = _sampling(0.0 if temperature is None else temperature, max_tokens)
    _run(run_math(subject, questions, folder, options, samples=samples, sampling=sampling), folder)


@app.command()
def ifeval(
    model: ModelArgument,
    prompts: QuestionsOption,
    samples: SamplesOption = 1,
    column: ColumnOption = "",
    limit: LimitOption = None,
    temperature: TemperatureOption = None,
    max_tokens: TokensOption = 1280,
    out: OutOption = None,
    concurrency: ConcurrencyOption = 32,
    seed: SeedOption = 0,
    data_parallel: ParallelOption = 1,
    ray: RayOption = None,
    quiet: QuietOption = False,
) -> None:
    """Share of prompts and of constraints that are followed, strict and loose, as in IFEval."""
    from matrix_dspy.evaluation.answers import Subject
    from matrix_dspy.evaluation.following import run_following

    subject = Subject.of(model)
    options = _options(concurrency, seed, data_parallel, ray, quiet)
    questions = _questions(prompts, column, limit)
    folder = _folder(out, "ifeval", subject.name)
    sampling = _sampling(0.0 if temperature is None else temperature, max_tokens)
    _run(run_following(subject, questions, folder, options, samples=samples, sampling=sampling), folder)


def _options(concurrency: int, seed: int, data_parallel: int, ray: str | None, quiet: bool) -> "AskOptions":
    from matrix_dspy.evaluation.asking import AskOptions

    set_up_log("plain")
    return AskOptions(concurrency, seed, data_parallel=data_parallel, ray="" if ray == "local" else ray, is_quiet=quiet)


def _questions(path: Path, column: str, limit: int | None) -> "Questions":
    from matrix_dspy.evaluation.questions import read_questions

    return read_questions(path, column=column, limit=limit)


def _sampling(temperature: float, max_tokens: int, top_p: float | None = 0.9) -> "SamplingConfig":
    from matrix_dspy.config import SamplingConfig

    return SamplingConfig(temperature=temperature, top_p=top_p if temperature else None, max_tokens=max_tokens)


def _folder(out: Path | None, kind: str, *names: str) -> Path:
    from matrix_dspy.evaluation.answers import make_file_name
    from matrix_dspy.evaluation.record import check_folder

    folder = out or Path("runs") / "-".join(["evaluate", kind, *map(make_file_name, names)])
    check_folder(folder, kind)
    return folder


def _run(work: "Coroutine[Any, Any, Evaluation]", folder: Path) -> None:
    _say(run_resumable(work), folder)


def _say(evaluation: "Evaluation", folder: Path) -> None:
    for line in evaluation.lines():
        typer.echo(line)
    typer.echo(f"written:  {folder}/evaluation.json, judged.jsonl and README.md")
