"""The commands that measure a model: by a judge, by running code, by checking numbers and constraints."""

from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matrix_dspy.commands.telling import run_resumable, set_up_log

if TYPE_CHECKING:
    from matrix_dspy.config import SamplingConfig
    from matrix_dspy.evaluation.asking import AskOptions
    from matrix_dspy.evaluation.questions import Questions
    from matrix_dspy.evaluation.record import Evaluation

_EXAMPLES = """\b
Examples:
  evaluate winrate runs/tuned models/base --prompts questions.jsonl --judge-lm http://localhost:8000/v1
  evaluate winrate ours=out.json theirs=model_outputs.json --prompts questions.jsonl --judge-lm vllm:DIR
  evaluate ratings vllm:DIR --prompts mt_bench_question.jsonl --judge-lm openai/gpt-4o-mini
  evaluate code runs/tuned --prompts HumanEval.jsonl.gz --samples 20 --k 1 --k 10
  evaluate lc annotations.json --model NAME
  evaluate leaderboard runs/evaluate-arena-*

Files of questions and of answers are taken as AlpacaEval, Arena-Hard, MT-Bench, lm-evaluation-harness, EvalPlus and
this program write them. The same command goes on where it was stopped; in its folder, README.md says what each file is
and how other tools take it."""

app = typer.Typer(
    help="Measure models. A MODEL is a folder (vLLM where installed, else transformers), an LM written as for --lm, or"
    " a file of answers; NAME=MODEL gives it a name.",
    epilog=_EXAMPLES,
    no_args_is_help=True,
    rich_markup_mode=None,
)

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Who is measured: a folder, an LM as for --lm, or a file of answers."),
]
QuestionsOption = Annotated[
    Path, typer.Option("--prompts", "--questions", help="Questions: JSONL, JSON, CSV or Parquet, also .gz.")
]
JudgeOption = Annotated[
    str,
    typer.Option(
        "--judge-lm",
        help="Model that judges: rehearsal, http://host:port/v1[#model], a folder, vllm:MODEL, a LiteLLM name.",
    ),
]
ColumnOption = Annotated[str, typer.Option("--column", help="Where the questions stand, if not under a usual name.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Take only the first so many questions.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder to write. Default: runs/evaluate-<kind>-<model>.")]
TemperatureOption = Annotated[float, typer.Option(min=0, max=2, help="Temperature of the answers.")]
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
    typer.Option("--others", "--annotations", help="Annotations of other models, to fit difficulty. Repeatable."),
]


@app.command()
def winrate(
    model: ModelArgument,
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="Whom it is set against, in the same forms.")],
    prompts: QuestionsOption,
    judge_lm: JudgeOption,
    difficulty: DifficultyOption = None,
    annotations: AnnotationsOption = None,
    weighted: Annotated[
        bool, typer.Option("--weighted", help="Count the judge's probabilities, where its server gives them.")
    ] = False,
    column: ColumnOption = "",
    limit: LimitOption = None,
    temperature: TemperatureOption = 0.7,
    max_tokens: TokensOption = 2048,
    out: OutOption = None,
    concurrency: ConcurrencyOption = 32,
    seed: SeedOption = 0,
    data_parallel: ParallelOption = 1,
    ray: RayOption = None,
    quiet: QuietOption = False,
) -> None:
    """Pairwise win rate, raw and length-controlled.

    Every pair is asked about in both orders; where they disagree it is a tie. Writes AlpacaEval's files beside.
    """
    from matrix_dspy.evaluation.answers import Subject
    from matrix_dspy.evaluation.length_control import read_difficulty
    from matrix_dspy.evaluation.winrate import run_winrate

    one, other = Subject.of(model), Subject.of(reference)
    options = _options(concurrency, seed, data_parallel, ray, quiet)
    questions = _questions(prompts, column, limit)
    folder = _folder(out, "winrate", questions, model=one.name, reference=other.name)
    hardness = None if difficulty is None else read_difficulty(difficulty, [each.text for each in questions])
    work = run_winrate(
        one,
        other,
        questions,
        judge_lm,
        folder,
        options,
        sampling=_sampling(temperature, max_tokens),
        difficulty=hardness,
        annotations=annotations or (),
        is_weighted=weighted,
    )
    _run(work, folder)


@app.command("lc")
def length_control(
    annotations: Annotated[Path, typer.Argument(metavar="ANNOTATIONS", help="File as AlpacaEval's annotations.json.")],
    model: Annotated[str, typer.Option(help="Whose win rate, where the file holds several models.")] = "",
    reference: Annotated[str, typer.Option(help="Against whom, where the file holds several references.")] = "",
    judge: Annotated[str, typer.Option(help="Whose verdicts count, where they are several judges'.")] = "",
    others: AnnotationsOption = None,
    difficulty: DifficultyOption = None,
    leaderboard: Annotated[Path | None, typer.Option(help="AlpacaEval's leaderboard.csv, to say the rank.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: runs/evaluate-lc-<name>.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Win rates of annotations that are there already.

    Raw and length-controlled; where five models are annotated, in one file or several, the difficulty of the questions
    is fitted.
    """
    from matrix_dspy.evaluation.length_control import read_difficulty
    from matrix_dspy.evaluation.record import check_folder, hold_folder
    from matrix_dspy.evaluation.winrate import read_annotations_winrate

    hardness = None if difficulty is None else read_difficulty(difficulty)
    place = annotations.resolve()
    folder = out or _name_folder("lc", model or (place.parent.name if place.stem == "annotations" else place.stem))
    sides = {name: given for name, given in (("model", model), ("reference", reference)) if given}
    check_folder(folder, "winrate", sides, annotations.name)
    with hold_folder(folder):
        evaluation = read_annotations_winrate(
            annotations,
            model=model,
            reference=reference,
            judge=judge,
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
    temperature: TemperatureOption = 0.0,
    max_tokens: TokensOption = 4096,
    out: OutOption = None,
    concurrency: ConcurrencyOption = 32,
    seed: SeedOption = 0,
    data_parallel: ParallelOption = 1,
    ray: RayOption = None,
    quiet: QuietOption = False,
) -> None:
    """Score against a baseline, as in Arena-Hard.

    Five-level verdicts in both orders, and the chance to win by Bradley and Terry's model. Writes Arena-Hard's files
    beside.
    """
    from matrix_dspy.evaluation.answers import Subject
    from matrix_dspy.evaluation.arena import run_arena

    one, other = Subject.of(model), Subject.of(baseline)
    options = _options(concurrency, seed, data_parallel, ray, quiet)
    questions = _questions(prompts, column, limit)
    folder = _folder(out, "arena", questions, model=one.name, baseline=other.name)
    sampling = _sampling(temperature, max_tokens)
    _run(run_arena(one, other, questions, judge_lm, folder, options, sampling=sampling), folder)


@app.command()
def leaderboard(
    judgements: Annotated[
        list[Path], typer.Argument(metavar="JUDGEMENTS...", help="Folders of `evaluate arena`, or Arena-Hard's files.")
    ],
    baseline: Annotated[str, typer.Option(help="Who stands at 50 %, where the files name none or several.")] = "",
    judge: Annotated[str, typer.Option(help="Whose judgements count, where they are several judges'.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. Default: runs/evaluate-leaderboard-<name>.")
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """Rank many models by judgements that are there.

    One scale by Bradley and Terry's model, with intervals over questions.
    """
    from matrix_dspy.evaluation.leaderboard import KIND, rank_judgements
    from matrix_dspy.evaluation.record import check_folder, hold_folder

    folder = out or _name_folder(KIND, judgements[0].resolve().name)
    check_folder(folder, KIND)
    with hold_folder(folder):
        evaluation = rank_judgements(judgements, folder, baseline=baseline, judge=judge, seed=seed)
    _say(evaluation, folder)


@app.command()
def ratings(
    model: ModelArgument,
    prompts: QuestionsOption,
    judge_lm: JudgeOption,
    turns: Annotated[int | None, typer.Option(min=1, help="Turns of a question to ask. Default: all.")] = None,
    column: ColumnOption = "",
    limit: LimitOption = None,
    temperature: TemperatureOption = 0.7,
    max_tokens: TokensOption = 1024,
    out: OutOption = None,
    concurrency: ConcurrencyOption = 32,
    seed: SeedOption = 0,
    data_parallel: ParallelOption = 1,
    ray: RayOption = None,
    quiet: QuietOption = False,
) -> None:
    """Single answers rated from 1 to 10, as in MT-Bench.

    Every turn is rated by itself. Writes FastChat's files beside.
    """
    from matrix_dspy.evaluation.answers import Subject
    from matrix_dspy.evaluation.ratings import run_ratings

    subject = Subject.of(model)
    options = _options(concurrency, seed, data_parallel, ray, quiet)
    questions = _questions(prompts, column, limit)
    folder = _folder(out, "ratings", questions, model=subject.name)
    sampling = _sampling(temperature, max_tokens)
    _run(run_ratings(subject, questions, judge_lm, folder, options, sampling=sampling, n_turns=turns), folder)


@app.command()
def safety(
    model: ModelArgument,
    prompts: QuestionsOption,
    judge_lm: JudgeOption,
    column: ColumnOption = "",
    limit: LimitOption = None,
    temperature: TemperatureOption = 0.0,
    max_tokens: TokensOption = 1024,
    out: OutOption = None,
    concurrency: ConcurrencyOption = 32,
    seed: SeedOption = 0,
    data_parallel: ParallelOption = 1,
    ray: RayOption = None,
    quiet: QuietOption = False,
) -> None:
    """Harmlessness, helpfulness and attack success rate.

    PROMPTS are harmful asks; the judge rates each answer, and attacks count as successful by keyword and by the judge.
    """
    from matrix_dspy.evaluation.answers import Subject
    from matrix_dspy.evaluation.safety import run_safety

    subject = Subject.of(model)
    options = _options(concurrency, seed, data_parallel, ray, quiet)
    questions = _questions(prompts, column, limit)
    folder = _folder(out, "safety", questions, model=subject.name)
    sampling = _sampling(temperature, max_tokens)
    _run(run_safety(subject, questions, judge_lm, folder, options, sampling=sampling), folder)


@app.command()
def code(
    model: ModelArgument,
    prompts: QuestionsOption,
    samples: SamplesOption = 1,
    k: Annotated[list[int] | None, typer.Option("--k", min=1, help="Which pass@k. Repeatable. Default: 1.")] = None,
    column: ColumnOption = "",
    limit: LimitOption = None,
    temperature: TemperatureOption = 0.2,
    max_tokens: TokensOption = 1024,
    out: OutOption = None,
    concurrency: ConcurrencyOption = 32,
    seed: SeedOption = 0,
    data_parallel: ParallelOption = 1,
    ray: RayOption = None,
    quiet: QuietOption = False,
) -> None:
    """pass@k of code, as in HumanEval and MBPP.

    Code runs in the sandbox. Other problems need a column `tests`. Writes files for EvalPlus and lm-evaluation-harness
    beside.
    """
    from matrix_dspy.evaluation.answers import Subject
    from matrix_dspy.evaluation.code import run_code

    subject = Subject.of(model)
    options = _options(concurrency, seed, data_parallel, ray, quiet)
    questions = _questions(prompts, column, limit)
    folder = _folder(out, "code", questions, model=subject.name)
    sampling = _sampling(temperature, max_tokens, top_p=None)
    _run(run_code(subject, questions, folder, options, samples=samples, k=tuple(k or (1,)), sampling=sampling), folder)


@app.command()
def math(
    model: ModelArgument,
    prompts: QuestionsOption,
    samples: SamplesOption = 1,
    column: ColumnOption = "",
    limit: LimitOption = None,
    temperature: TemperatureOption = 0.0,
    max_tokens: TokensOption = 1024,
    out: OutOption = None,
    concurrency: ConcurrencyOption = 32,
    seed: SeedOption = 0,
    data_parallel: ParallelOption = 1,
    ray: RayOption = None,
    quiet: QuietOption = False,
) -> None:
    """Share of right final numbers, as in GSM8K.

    Right answers stand in a column `answer`. Writes lm-evaluation-harness' files beside.
    """
    from matrix_dspy.evaluation.answers import Subject
    from matrix_dspy.evaluation.math import run_math

    subject = Subject.of(model)
    options = _options(concurrency, seed, data_parallel, ray, quiet)
    questions = _questions(prompts, column, limit)
    folder = _folder(out, "math", questions, model=subject.name)
    sampling = _sampling(temperature, max_tokens)
    _run(run_math(subject, questions, folder, options, samples=samples, sampling=sampling), folder)


@app.command()
def ifeval(
    model: ModelArgument,
    prompts: QuestionsOption,
    samples: SamplesOption = 1,
    column: ColumnOption = "",
    limit: LimitOption = None,
    temperature: TemperatureOption = 0.0,
    max_tokens: TokensOption = 1280,
    out: OutOption = None,
    concurrency: ConcurrencyOption = 32,
    seed: SeedOption = 0,
    data_parallel: ParallelOption = 1,
    ray: RayOption = None,
    quiet: QuietOption = False,
) -> None:
    """Share of verifiable constraints kept, as in IFEval.

    By prompt and by constraint, strict and loose. Writes files for IFEval's own tool and lm-evaluation-harness beside.
    """
    from matrix_dspy.evaluation.answers import Subject
    from matrix_dspy.evaluation.following import run_following

    subject = Subject.of(model)
    options = _options(concurrency, seed, data_parallel, ray, quiet)
    questions = _questions(prompts, column, limit)
    folder = _folder(out, "ifeval", questions, model=subject.name)
    sampling = _sampling(temperature, max_tokens)
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


def _folder(out: Path | None, kind: str, questions: "Questions", **models: str) -> Path:
    from matrix_dspy.evaluation.answers import check_questions
    from matrix_dspy.evaluation.record import check_folder

    folder = out or _name_folder(kind, *models.values())
    check_folder(folder, kind, models, questions.name)
    check_questions(folder, questions)
    return folder


def _name_folder(kind: str, *names: str) -> Path:
    from matrix_dspy.text import name_file

    return Path("runs") / "-".join(["evaluate", kind, *map(name_file, names)])


def _run(work: "Coroutine[Any, Any, Evaluation]", folder: Path) -> None:
    from matrix_dspy.evaluation.record import hold_folder

    with closing(work), hold_folder(folder):
        evaluation = run_resumable(work)
    _say(evaluation, folder)


def _say(evaluation: "Evaluation", folder: Path) -> None:
    from matrix_dspy.evaluation.page import list_files, list_tools

    for line in evaluation.lines():
        typer.echo(line)
    typer.echo(f"written:  {folder}: {', '.join(list_files(evaluation.kind, folder))}")
    tools = " and how other tools take the same answers" if list_tools(evaluation.kind, folder) else ""
    typer.echo(f"page:     {folder}/README.md, with every figure, what each file is{tools}")
