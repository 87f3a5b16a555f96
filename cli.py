"""The command line: parse, build a config, call one function, say what was written and what to do next.

Exit codes: 0 done, 1 the user's error, 2 wrong usage, 3 a limit was reached (resumable), 130 interrupted (resumable).
"""

import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from matrix_dspy.commands import evaluate, train
from matrix_dspy.commands.telling import name_program, read_pairs, run_resumable, set_up_log, tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matrix_dspy.config import Config
    from matrix_dspy.optimization.compiling import Plan
    from matrix_dspy.pipeline import Result

app = typer.Typer(
    help="Turn a simulated society into post-training data, every step a DSPy program.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
population = typer.Typer(help="Make and look at profiles.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(population, name="population")
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="evaluate")

RecipeOption = Annotated[
    str, typer.Option(help="Recipe: a shipped name (tiny, small, paper, plumbing) or a TOML file.")
]
LMOption = Annotated[
    str | None,
    typer.Option("--lm", help="Model: rehearsal, http://host:port/v1[#model], a folder, vllm:MODEL, a LiteLLM name."),
]
WriterLMOption = Annotated[
    str | None, typer.Option("--writer-lm", help="Model that writes instructions. Default: --lm.")
]
ResponderLMOption = Annotated[str | None, typer.Option("--responder-lm", help="Model that answers. Default: --lm.")]
JudgeLMOption = Annotated[str | None, typer.Option("--judge-lm", help="Model that judges and rates. Default: --lm.")]
RejectedLMOption = Annotated[
    str | None, typer.Option("--rejected-lm", help="The SFT model about to be tuned: it gives the rejected side.")
]
KindOption = Annotated[
    str | None, typer.Option(help="Kind of data: sft, dpo, code, multiturn, safety, reason, or a TOML file.")
]
RefineOption = Annotated[int | None, typer.Option(min=0, max=8, help="Rounds of critique and revision at the most.")]
RateOption = Annotated[bool | None, typer.Option("--rate/--no-rate", help="Rate instructions, one call a row.")]
ThresholdOption = Annotated[
    float | None, typer.Option("--judge-threshold", help="Drop answers the judge gives less, 1 to 5.")
]
BenchmarksOption = Annotated[
    str | None, typer.Option("--benchmarks", help="Folder of evaluation sets that rows must share nothing with.")
]
DiverseOption = Annotated[
    str | None, typer.Option("--diverse", help="Pick the kept rows for variety, out of twice as many: mmr or dpp.")
]
SelectOption = Annotated[
    bool | None, typer.Option("--select", help="Keep what can still teach the model to be trained (METHOD 3.6).")
]
RewardOption = Annotated[
    str | None, typer.Option("--reward-model", help="Scores answers for --select: a folder, or http://host:port#model.")
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Seed of every choice the library makes.")]
ConcurrencyOption = Annotated[int | None, typer.Option(min=1, help="Calls in flight at the most.")]
OutOption = Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<recipe>-<kind>.")]
ProfilesOption = Annotated[
    str | None, typer.Option(help="Profiles: JSONL, JSON, CSV or Parquet, or a folder of JSON files.")
]
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option("--column", help="Where a field stands: name=realname. Repeatable."),
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Any config key, as section.key=value. Repeatable.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Start a new folder beside an existing one.")]
FromOption = Annotated[
    list[Path] | None, typer.Option("--from", help="Run folder whose completions are replayed too. Repeatable.")
]
MaxCallsOption = Annotated[int | None, typer.Option(min=1, help="Calls to send at the most; the run can go on later.")]
MaxTokensOption = Annotated[int | None, typer.Option(min=1, help="Tokens, in and out, to take at the most.")]
MaxCostOption = Annotated[float | None, typer.Option(help="Dollars to spend at the most.")]
MaxTimeOption = Annotated[str | None, typer.Option(help="Time to take at the most: 90s, 30m or 2h.")]
PriceInOption = Annotated[float | None, typer.Option(help="Dollars a million prompt tokens. Default: LiteLLM's map.")]
PriceOutOption = Annotated[float | None, typer.Option(help="Dollars a million completion tokens.")]
RayOption = Annotated[
    str | None, typer.Option("--ray", help="Spread calls over Ray: a cluster's address, auto, or nothing to start one.")
]
ParallelOption = Annotated[int | None, typer.Option(min=1, help="Copies of a vllm: model, spread over the GPUs.")]
SeedsOption = Annotated[bool | None, typer.Option("--seeds/--no-seeds", help="Send every call its own seed.")]
LogOption = Annotated[str, typer.Option("--log", help="Messages and progress: plain, or json for one object a line.")]
TraceOption = Annotated[float | None, typer.Option(help="Share of calls traced with OpenTelemetry.")]
EstimateOption = Annotated[
    bool, typer.Option("--estimate", help="Say what the run will take, keep that for the card, and stop.")
]
SpeedOption = Annotated[
    float | None, typer.Option("--tokens-per-second", help="Tokens one answer grows by in a second, where measured.")
]
LikeOption = Annotated[
    Path | None, typer.Option("--like", help="Finished run to estimate from, in place of a rehearsed sample.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the resolved config and stop.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


@app.callback(invoke_without_command=True)
def show_version(
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    """Turn a simulated society into post-training data, every step a DSPy program."""
    if version:
        from matrix_dspy import __version__

        typer.echo(f"matrix_dspy {__version__}")
        raise typer.Exit


@app.command()
def generate(
    recipe: RecipeOption = "tiny",
    n: Annotated[int | None, typer.Option(min=1, help="Rows to keep. Default: the recipe's.")] = None,
    kind: KindOption = None,
    need: Annotated[str | None, typer.Option(help="What the data is for, in words.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="Instructions: simple or specialised.")] = None,
    lm: LMOption = None,
    writer_lm: WriterLMOption = None,
    responder_lm: ResponderLMOption = None,
    judge_lm: JudgeLMOption = None,
    rejected_lm: RejectedLMOption = None,
    refine: RefineOption = None,
    rate: RateOption = None,
    judge_threshold: ThresholdOption = None,
    benchmarks: BenchmarksOption = None,
    diverse: DiverseOption = None,
    select: SelectOption = None,
    reward_model: RewardOption = None,
    profiles: ProfilesOption = None,
    columns: ColumnsOption = None,
    seed: SeedOption = None,
    concurrency: ConcurrencyOption = None,
    out: OutOption = None,
    settings: SetOption = None,
    fresh: FreshOption = False,
    replay: FromOption = None,
    max_calls: MaxCallsOption = None,
    max_tokens: MaxTokensOption = None,
    max_cost: MaxCostOption = None,
    max_time: MaxTimeOption = None,
    price_in: PriceInOption = None,
    price_out: PriceOutOption = None,
    ray: RayOption = None,
    data_parallel: ParallelOption = None,
    seeds: SeedsOption = None,
    trace: TraceOption = None,
    log: LogOption = "plain",
    estimate: EstimateOption = False,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a data set out of a simulated society."""
    changes = {"n": n, "synthesis.kind": kind, "synthesis.need": need, "synthesis.type": type_}
    changes |= _common(lm, profiles, columns, seed, concurrency, max_calls, max_tokens, max_cost, max_time)
    changes |= _operation(price_in, price_out, ray, data_parallel, seeds, trace)
    changes |= _making(writer_lm, responder_lm, judge_lm, rejected_lm, refine, rate, judge_threshold)
    changes |= _choosing(benchmarks, diverse, select, reward_model)
    _run("generate", recipe, changes, settings, out, fresh, replay, dry_run, quiet, log, estimate)


@app.command()
def simulate(
    recipe: RecipeOption = "tiny",
    scenarios: Annotated[int | None, typer.Option(min=1, help="Scenarios to collect. Default: the recipe's n.")] = None,
    communication: Annotated[str | None, typer.Option(help="Who observes: structured, random or none.")] = None,
    lm: LMOption = None,
    profiles: ProfilesOption = None,
    columns: ColumnsOption = None,
    seed: SeedOption = None,
    concurrency: ConcurrencyOption = None,
    out: OutOption = None,
    settings: SetOption = None,
    fresh: FreshOption = False,
    replay: FromOption = None,
    max_calls: MaxCallsOption = None,
    max_tokens: MaxTokensOption = None,
    max_cost: MaxCostOption = None,
    max_time: MaxTimeOption = None,
    price_in: PriceInOption = None,
    price_out: PriceOutOption = None,
    ray: RayOption = None,
    data_parallel: ParallelOption = None,
    seeds: SeedsOption = None,
    trace: TraceOption = None,
    log: LogOption = "plain",
    estimate: EstimateOption = False,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
) -> None:
    """Let the agents live, and write down what happens."""
    changes = {"n": scenarios, "simulation.communication": communication}
    changes |= _common(lm, profiles, columns, seed, concurrency, max_calls, max_tokens, max_cost, max_time)
    changes |= _operation(price_in, price_out, ray, data_parallel, seeds, trace)
    _run("simulate", recipe, changes, settings, out, fresh, replay, dry_run, quiet, log, estimate)


@app.command()
def estimate(
    recipe: RecipeOption = "tiny",
    n: Annotated[int | None, typer.Option(min=1, help="Rows to keep. Default: the recipe's.")] = None,
    kind: KindOption = None,
    need: Annotated[str | None, typer.Option(help="What the data is for, in words.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="Instructions: simple or specialised.")] = None,
    lm: LMOption = None,
    writer_lm: WriterLMOption = None,
    responder_lm: ResponderLMOption = None,
    judge_lm: JudgeLMOption = None,
    rejected_lm: RejectedLMOption = None,
    refine: RefineOption = None,
    rate: RateOption = None,
    judge_threshold: ThresholdOption = None,
    benchmarks: BenchmarksOption = None,
    diverse: DiverseOption = None,
    select: SelectOption = None,
    reward_model: RewardOption = None,
    profiles: ProfilesOption = None,
    columns: ColumnsOption = None,
    seed: SeedOption = None,
    concurrency: ConcurrencyOption = None,
    out: OutOption = None,
    settings: SetOption = None,
    price_in: PriceInOption = None,
    price_out: PriceOutOption = None,
    tokens_per_second: SpeedOption = None,
    like: LikeOption = None,
) -> None:
    """Say what `generate` with the same options will take: calls, tokens, money, time."""
    changes = {"n": n, "synthesis.kind": kind, "synthesis.need": need, "synthesis.type": type_}
    changes |= _common(lm, profiles, columns, seed, concurrency, None, None, None, None)
    changes |= _operation(price_in, price_out, None, None, None, None)
    changes |= _making(writer_lm, responder_lm, judge_lm, rejected_lm, refine, rate, judge_threshold)
    changes |= _choosing(benchmarks, diverse, select, reward_model)
    stages = _load_stages("generate", recipe, changes, settings, out)
    _estimate_stages("generate", *stages, tokens_per_second, like)


@app.command()
def retry(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    lm: LMOption = None,
    profiles: ProfilesOption = None,
    concurrency: ConcurrencyOption = None,
    quiet: QuietOption = False,
    log: LogOption = "plain",
) -> None:
    """Ask again for the rows of a run whose answers could not be used."""
    from matrix_dspy.bulk.folder import read_config, read_replay
    from matrix_dspy.config import change_config
    from matrix_dspy.pipeline import mark_retries

    command, config = read_config(run)
    n_marked = mark_retries(run)
    if not n_marked:
        typer.echo(
            f"no row of the data set of {run} failed; what filters dropped is not asked for again, nor a simulation"
        )
        return
    set_up_log(log)
    tell(f"{n_marked:,} failed rows are asked for again; those that succeed take the places their rank gives them")
    changes = {"lm.main": lm, "population.profiles": profiles, "operation.concurrency": concurrency}
    config = change_config(config, {key: value for key, value in changes.items() if value is not None})
    _work(command, config, run, read_replay(run), quiet, log)


@app.command()
def doctor(
    lm: LMOption = "rehearsal",
    concurrency: Annotated[int, typer.Option(min=1, help="Most calls in flight to try.")] = 256,
    data_parallel: ParallelOption = None,
) -> None:
    """Try a model: reached, schemas, samples, log-probabilities, prefix cache, speed, and what to run it with."""
    from matrix_dspy.bulk.program import run_async
    from matrix_dspy.engine.spec import build_engine
    from matrix_dspy.report.doctor import examine

    set_up_log("plain")

    async def work() -> bool:
        is_reached = True
        limits = {"concurrency": concurrency, "patience_s": 10.0, "data_parallel": data_parallel or 1}
        async with build_engine(lm or "rehearsal", **limits) as engine:
            async for finding in examine(engine):
                typer.echo(f"{'ok' if finding.is_good else 'no':3} {finding.what:18} {finding.words}")
                is_reached &= finding.is_good or finding.what != "answers"
        return is_reached

    if not run_async(work()):
        raise typer.Exit(1)


@app.command()
def rehearse(
    spec: Annotated[str, typer.Argument(help="The rehearsal with its dials.")] = "rehearsal",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1.")] = 8000,
) -> None:
    """Serve the rehearsal engine over the OpenAI chat protocol."""
    from matrix_dspy.engine.rehearsal.server import serve_rehearsal

    serve_rehearsal(spec, port=port)


@app.command("compile")
def compile_(
    names: Annotated[list[str] | None, typer.Argument(metavar="[PROGRAM]...", help="Programs, judge, or all.")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="labeled, bootstrap, mipro, gepa or simba. Default: labeled without --lm.")
    ] = None,
    lm: Annotated[str | None, typer.Option("--lm", help="Model to compile for, written as for generate.")] = None,
    teacher_lm: Annotated[
        str | None, typer.Option(help="Model that proposes instructions and shows how. Default: --lm.")
    ] = None,
    judge_lm: Annotated[str | None, typer.Option(help="Model that judges what is written. Default: --lm.")] = None,
    budget: Annotated[int, typer.Option(min=1, help="Calls of all models, for each program.")] = 1500,
    variant: Annotated[str, typer.Option(help="Name to save under. Default: default if better, else optimizer.")] = "",
    start: Annotated[str, typer.Option(help="Variant to begin with, or written.")] = "default",
    seed: Annotated[int, typer.Option(min=0, help="Seed of every choice.")] = 0,
    judged: Annotated[Path | None, typer.Option(help="Judged set of your own, for one program.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of compiled states.")] = Path("optimized"),
    work: Annotated[Path | None, typer.Option(help="Folder for journal and scores. Default: runs/compile/...")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Calls in flight at the most.")] = 16,
    patience: Annotated[float, typer.Option(min=0, help="Seconds a server that is gone is waited for.")] = 120.0,
    force: Annotated[bool, typer.Option("--force", help="Use a judge that agrees too little with the labels.")] = False,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
) -> None:
    """Optimise programs against judged sets; what is better for sure becomes the default."""
    from matrix_dspy.optimization.planning import order_programs, plan_compile

    chosen = order_programs(names or ["all"])
    plans = [
        plan_compile(
            name,
            optimizer=optimizer,
            lm=lm or "",
            teacher_lm=teacher_lm or "",
            judge_lm=judge_lm or "",
            budget=budget,
            variant=variant,
            start=start,
            seed=seed,
            judged=judged,
            out=out,
            work=work,
            concurrency=concurrency,
            patience_s=patience,
            force=force,
            n_programs=len(chosen),
        )
        for name in chosen
    ]
    if dry_run:
        from matrix_dspy.optimization.planning import describe_plans

        for line in describe_plans(plans):
            typer.echo(line)
        return
    _compile(plans, quiet)


@app.command()
def label(
    name: Annotated[str, typer.Argument(metavar="PROGRAM", help="Program whose outputs are labelled.")],
    source: Annotated[
        Path | None, typer.Option("--from", help="Rows to label: JSONL, CSV or Parquet. Default: the shipped set's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Judged set to write. Default: judged/<program>.jsonl.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order.")] = 0,
) -> None:
    """Label outputs of a program at the terminal, for a judged set of your own."""
    from matrix_dspy.optimization import labelling

    path = out or Path("judged") / f"{name}.jsonl"
    n = labelling.label(name, path, source, input, typer.echo, seed)
    if n:
        typer.echo(f"next: {name_program()} compile {name} --judged {shlex.quote(str(path))} --lm ...")


@app.command()
def programs(
    name: Annotated[str | None, typer.Argument(help="A program to show in full, with its variants and cards.")] = None,
    diff: Annotated[
        tuple[str, str] | None, typer.Option(help="Two variants, or written, whose prompts are compared.")
    ] = None,
) -> None:
    """List the DSPy programs, or show one."""
    from matrix_dspy.report.programs import describe_program, diff_variants, list_program_lines
    from matrix_dspy.text import drop_controls

    if diff is not None:
        from matrix_dspy.errors import ConfigError

        if name is None:
            raise ConfigError("--diff compares two variants of one program; name it: programs NAME --diff ONE OTHER")
        lines = diff_variants(name, *diff)
    else:
        lines = describe_program(name) if name else list_program_lines()
    for line in lines:
        typer.echo(drop_controls(line))


@app.command()
def kinds(
    name: Annotated[
        str | None, typer.Argument(help="A kind to show as the TOML file it is, to copy and change.")
    ] = None,
) -> None:
    """List the kinds of data and the recipes, or show one kind's file."""
    from matrix_dspy.report.kinds import describe_kinds, read_kind_file

    if name is not None:
        typer.echo(read_kind_file(name), nl=False)
        return
    for line in describe_kinds():
        typer.echo(line)


@app.command()
def preview(
    kind: Annotated[str, typer.Argument(help="Kind of data: a shipped name or a TOML file.")] = "sft",
    n: Annotated[int, typer.Option(min=1, max=20, help="Rows to show.")] = 3,
    type_: Annotated[str | None, typer.Option("--type", help="Instructions: simple or specialised.")] = None,
    need: Annotated[str | None, typer.Option(help="What the data is for, in words.")] = None,
    lm: LMOption = None,
    judge_lm: JudgeLMOption = None,
    rejected_lm: RejectedLMOption = None,
    refine: RefineOption = None,
    profiles: ProfilesOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
) -> None:
    """Make a few rows of a kind and show them; nothing is kept."""
    from matrix_dspy.bulk.program import run_async
    from matrix_dspy.previewing import make_preview

    changes = {"n": n, "synthesis.kind": kind, "synthesis.need": need, "synthesis.type": type_, "lm.main": lm}
    changes |= {"lm.judge": judge_lm, "lm.rejected": rejected_lm, "synthesis.refine": refine, "seed": seed}
    config = _load_config("preview", changes | {"population.profiles": profiles}, settings)
    set_up_log("plain")
    for line in run_async(make_preview(config)):
        typer.echo(line)


@app.command()
def ablate(
    name: Annotated[
        str,
        typer.Argument(metavar="ABLATION", help="communication, agents, types, filters, selection, or a file."),
    ],
    model: Annotated[str, typer.Option("--model", help="Model that every variant tunes: a folder, or a name.")],
    recipe: Annotated[str | None, typer.Option(help="Recipe or chain that variants begin from.")] = None,
    n: Annotated[int | None, typer.Option(min=1, help="Rows of every stage, the same for all variants.")] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seed", min=0, help="A seed. Repeatable.")] = None,
    measure: Annotated[
        str, typer.Option(help="winrate, arena, ratings, safety, code, math or ifeval; needs --prompts.")
    ] = "winrate",
    prompts: Annotated[Path | None, typer.Option(help="Questions to measure by, where the file names none.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions to take at the most.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")] = 1024,
    lm: LMOption = None,
    judge_lm: JudgeLMOption = None,
    settings: SetOption = None,
    preset: Annotated[str | None, typer.Option(help="Training preset or TOML file.")] = None,
    training: Annotated[
        list[str] | None, typer.Option("--train", help="Any training setting, as key=value. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: runs/ablation-<name>.")] = None,
    concurrency: ConcurrencyOption = None,
    quiet: QuietOption = False,
) -> None:
    """Does the data help? Tune and measure variants of equal size and seeds, and print the table with intervals."""
    from matrix_dspy.ablating import load_ablation, run_ablation
    from matrix_dspy.config import parse_setting
    from matrix_dspy.evaluation.asking import AskOptions

    set_up_log("plain")
    changes: dict[str, Any] = {"recipe": recipe, "n": n, "seeds": seeds or None, "preset": preset}
    given = {"lm.main": lm, "lm.judge": judge_lm, "operation.concurrency": concurrency}
    for key, value in [*given.items(), *(parse_setting(text) for text in settings or [])]:
        if value is not None:
            changes.setdefault("data", {})[key] = value
    if training:
        changes["training"] = dict(parse_setting(text) for text in training)
    if prompts is not None:
        measured = {"kind": measure, "questions": str(prompts), "judge": judge_lm or "", "max_tokens": max_tokens}
        changes["measures"] = [measured | ({} if limit is None else {"limit": limit})]
    config = load_ablation(name, changes)
    folder = out or Path("runs") / f"ablation-{Path(name).stem}"
    options = AskOptions(concurrency or 32, is_quiet=quiet)
    ablation = run_resumable(run_ablation(config, model, folder, options, typer.echo, is_quiet=quiet))
    for line in ablation.lines():
        typer.echo(line)
    typer.echo(f"written:  {folder}/README.md and ablation.json")


@app.command()
def curate(
    source: Annotated[Path, typer.Argument(help="Data set of anybody's: JSONL, JSON, CSV, Parquet, also .gz.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="[SOURCE]...", help="Further files.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to write. Default: runs/curated-<name>.")] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--column", help="Where texts stand: prompt=question. Repeatable.")
    ] = None,
    benchmarks: BenchmarksOption = None,
    language: Annotated[str, typer.Option(help="The language rows must be in.")] = "English",
    kind: Annotated[
        str | None,
        typer.Option(help="Kind whose checks are asked: a name or a TOML file. Default: sft, and dpo for pairs."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: the cores of this machine.")] = None,
    settings: SetOption = None,
) -> None:
    """Put a data set that is there already through the same filters, with card and report."""
    from matrix_dspy.curating import curate_files

    changes = {"synthesis.kind": kind, "synthesis.language": language, "curation.benchmarks": benchmarks}
    config = _load_config("tiny", changes, settings)
    set_up_log("plain")
    name = source.name.removesuffix(".gz")
    path = out or Path("runs") / f"curated-{name if source.is_dir() else Path(name).stem}"
    curated = curate_files([source, *(more or [])], path, config, read_pairs(columns), workers)
    for line in curated.lines():
        typer.echo(line)
    typer.echo(f"next:     {name_program()} report {shlex.quote(str(path))}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    other: Annotated[Path | None, typer.Argument(help="Another run, to be set beside it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Page to write, where two runs are compared.")] = None,
) -> None:
    """Write one self-contained page on a run, or on two side by side."""
    if other is None:
        from matrix_dspy.report.page import write_report

        path = write_report(run)
    else:
        from matrix_dspy.report.comparing import write_comparison

        path = write_comparison(run, other, out)
    typer.echo(f"report:   {path}")


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="Run folder or data file.")],
    format_: Annotated[
        str, typer.Option("--format", help="trl, sharegpt, alpaca, openai, alpaca_eval or arena_hard.")
    ] = "trl",
    out: Annotated[Path | None, typer.Option(help="File to write; for arena_hard a folder.")] = None,
    model: Annotated[str, typer.Option(help="Whose answers these are, where the rows do not say.")] = "",
    columns: Annotated[list[str] | None, typer.Option("--column", help="Where texts stand: prompt=question.")] = None,
) -> None:
    """Write a data set in the form another tool reads."""
    from matrix_dspy.delivery.exporting import export as export_data

    exported = export_data(source, format_, out, model=model, columns=read_pairs(columns))
    typer.echo(f"{exported.n_rows:,} rows: {', '.join(map(str, exported.paths))}")
    for reason, count in exported.left_out.items():
        typer.echo(f"left out: {count:,}, {reason}")


@app.command()
def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("runs/merged"),
    settings: SetOption = None,
) -> None:
    """Put the data sets of several runs together, without what they share."""
    from matrix_dspy.delivery.merging import merge as merge_runs

    config = _load_config("tiny", {}, settings)
    curation = config.curation
    merged = merge_runs(
        runs, out, n_shingle=curation.shingle_words, threshold=curation.near_duplicate, seed=config.seed
    )
    typer.echo(f"{merged.n_rows:,} rows: {merged.path}")
    for reason, count in merged.n_dropped.items():
        typer.echo(f"dropped:  {count:,}, {reason}")
    typer.echo(f"next:     {name_program()} report {shlex.quote(str(out))}")


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    repo: Annotated[str, typer.Option(help="Data set on the Hub: owner/name.")],
    is_public: Annotated[bool, typer.Option("--public", help="Make it public; private otherwise.")] = False,
    tables: Annotated[bool, typer.Option("--tables", help="Send the tables of people and scenarios too.")] = False,
    revision: Annotated[str, typer.Option(help="Branch to send to.")] = "main",
    is_real: Annotated[bool, typer.Option("--really", help="Send it; else only what would be sent is shown.")] = False,
) -> None:
    """Send a run's data set, card and report to the Hugging Face Hub; a dry run unless --really is given."""
    from matrix_dspy.delivery.pushing import describe_push
    from matrix_dspy.delivery.pushing import push as push_run

    pushed = push_run(run, repo, private=not is_public, is_real=is_real, tables=tables, revision=revision)
    for line in describe_push(pushed):
        typer.echo(line)


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    row: Annotated[str | None, typer.Option("--row", help="Id of any row, to walk it back to its people.")] = None,
) -> None:
    """Show a run, or where one of its rows came from."""
    from matrix_dspy.report.descent import describe_row, describe_run

    for line in describe_row(run, row) if row else describe_run(run):
        typer.echo(line)


@population.command()
def compose(
    n: Annotated[int, typer.Option(min=1, help="Profiles to draw.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 0,
    out: Annotated[Path, typer.Option(help="JSONL file to write.")] = Path("profiles.jsonl"),
) -> None:
    """Draw invented profiles from public statistics."""
    from matrix_dspy.population.composing import compose_profiles, write_profiles

    write_profiles(compose_profiles(n, seed), out)
    typer.echo(f"{n:,} profiles: {out}")
    typer.echo(f"next: {name_program()} generate --profiles {shlex.quote(str(out))}")


@population.command()
def read(
    path: Annotated[Path, typer.Argument(help="JSONL, JSON, CSV or Parquet, or a folder of JSON files.")],
    columns: ColumnsOption = None,
) -> None:
    """Read a file of profiles and say what was understood of it."""
    from matrix_dspy.population.reading import read_profiles

    profiles, rejected = read_profiles(path, read_pairs(columns))
    n_history = sum(bool(profile.history) for profile in profiles)
    typer.echo(f"{len(profiles):,} profiles, {n_history:,} with a history, {len(rejected):,} rejected")
    for row in rejected[:20]:
        typer.echo(f"rejected {row.id}: {row.reason}; {row.detail}")
    for profile in profiles[:3]:
        described = " ".join(profile.description.split())[:200]
        typer.echo(f"{profile.profile_id}  {profile.name}: {described} ({len(profile.history)} past posts)")
    mapped = "".join(f" --column {shlex.quote(pair)}" for pair in columns or [])
    typer.echo(f"next: {name_program()} generate --profiles {shlex.quote(str(path))}{mapped}")


def main() -> None:
    """Run the command line; a `MatrixError` is printed without a traceback and ends with exit code 1."""
    from matrix_dspy.errors import MatrixError

    try:
        app(_fill_in_ray(sys.argv[1:]))
    except MatrixError as error:
        if logging.getLogger("matrix_dspy").handlers:
            logging.getLogger("matrix_dspy").error("error: %s", error)
        else:
            typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


def _fill_in_ray(arguments: list[str]) -> list[str]:
    """Return the arguments with the value that a bare --ray stands for."""
    filled: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        filled.append(argument)
        if argument == "--ray" and following.startswith("-"):
            filled.append("local")
    return filled


def _common(
    lm: str | None,
    profiles: str | None,
    columns: list[str] | None,
    seed: int | None,
    concurrency: int | None,
    max_calls: int | None,
    max_tokens: int | None,
    max_cost: float | None,
    max_time: str | None,
) -> dict[str, Any]:
    return {
        "lm.main": lm,
        "population.profiles": profiles,
        "population.columns": read_pairs(columns) or None,
        "seed": seed,
        "operation.concurrency": concurrency,
        "operation.max_calls": max_calls,
        "operation.max_tokens": max_tokens,
        "operation.max_cost": max_cost,
        "operation.max_time_s": None if max_time is None else _read_time(max_time),
    }


def _operation(
    price_in: float | None,
    price_out: float | None,
    ray: str | None,
    data_parallel: int | None,
    seeds: bool | None,
    trace: float | None,
) -> dict[str, Any]:
    return {
        "operation.price_in": price_in,
        "operation.price_out": price_out,
        "operation.ray": "" if ray == "local" else ray,
        "operation.data_parallel": data_parallel,
        "operation.send_seeds": seeds,
        "operation.trace_share": trace,
    }


def _making(
    writer_lm: str | None,
    responder_lm: str | None,
    judge_lm: str | None,
    rejected_lm: str | None,
    refine: int | None,
    rate: bool | None,
    judge_threshold: float | None,
) -> dict[str, Any]:
    return {
        "lm.writer": writer_lm,
        "lm.responder": responder_lm,
        "lm.judge": judge_lm,
        "lm.rejected": rejected_lm,
        "synthesis.refine": refine,
        "synthesis.rate": rate,
        "curation.judge_threshold": judge_threshold,
    }


def _choosing(
    benchmarks: str | None, diverse: str | None, select: bool | None, reward_model: str | None
) -> dict[str, Any]:
    return {
        "curation.benchmarks": benchmarks,
        "curation.diverse": diverse,
        "selection.on": select,
        "selection.reward_model": reward_model,
    }


def _load_config(recipe: str, changes: dict[str, Any], settings: list[str] | None) -> "Config":
    from matrix_dspy.config import load_recipe, parse_setting

    given = {key: value for key, value in changes.items() if value is not None}
    return load_recipe(recipe, given | dict(parse_setting(text) for text in settings or []))


def _run(
    command: Literal["generate", "simulate"],
    recipe: str,
    changes: dict[str, Any],
    settings: list[str] | None,
    out: Path | None,
    fresh: bool,
    replay: list[Path] | None,
    dry_run: bool,
    quiet: bool,
    log: str,
    estimate: bool,
) -> None:
    """Build the config and do what is asked with it: show it, estimate it, or run it, stage by stage for a chain."""
    from matrix_dspy import pipeline

    stages, configs, paths = _load_stages(command, recipe, changes, settings, out)
    if dry_run:
        for config in configs:
            _show_config(command, config)
        return
    if estimate:
        _estimate_stages(command, stages, configs, paths, None, None)
        return
    set_up_log(log)
    if configs[0].lm.main.partition("?")[0] == "rehearsal":
        tell("model: rehearsal, a rule-based stand-in; its rows show the form of the data only")
    paths = [pipeline.start_fresh(path) if fresh else path for path in paths]
    before = list(replay or ())
    for place, (config, path) in enumerate(zip(configs, paths, strict=True)):
        if place and not pipeline.can_start(config):
            tell(
                f"next is {stages[place]}: its rejected side comes from the model that the stage before trains; tune it"
                f" on {paths[place - 1]}, serve it, and run the same command with --rejected-lm"
            )
            return
        _work(command, config, path, tuple(before), quiet, log)
        before.append(path)  # the next stage lives in the same society


def _load_stages(
    command: str, recipe: str, changes: dict[str, Any], settings: list[str] | None, out: Path | None
) -> tuple[list[str], list["Config"], list[Path]]:
    """Return the stages of a recipe, one or the links of a chain, each with its config and its folder."""
    from matrix_dspy import pipeline
    from matrix_dspy.config import load_stages

    stages = load_stages(recipe) if command == "generate" else [recipe]
    configs = [_load_config(stage, changes, settings) for stage in stages]
    if command == "generate" and changes.get("n") is None and not any(s.startswith("n=") for s in settings or []):
        configs = [_take_rows_of_kind(config) for config in configs]
    if len(stages) > 1:
        return stages, configs, [(out or Path("runs") / Path(recipe).stem) / Path(stage).stem for stage in stages]
    return stages, configs, [out or pipeline.default_folder(configs[0], command)]


def _estimate_stages(
    command: Literal["generate", "simulate"],
    stages: "Sequence[str]",
    configs: "Sequence[Config]",
    paths: "Sequence[Path]",
    speed: float | None,
    like: Path | None,
) -> None:
    for stage, config, path in zip(stages, configs, paths, strict=True):
        if len(stages) > 1:
            typer.echo(f"--- {stage}")
        _estimate(command, config, path, speed, like)


def _take_rows_of_kind(config: "Config") -> "Config":
    """Let a kind that names a number of rows go before its recipe's."""
    from matrix_dspy.config import load_kind

    n = load_kind(config.synthesis.kind).n
    return config if n is None else config.model_copy(update={"n": n})


def _work(command: str, config: "Config", path: Path, replay: tuple[Path, ...], quiet: bool, log: str) -> None:
    """Run the command and end with the right exit code."""
    from matrix_dspy import pipeline
    from matrix_dspy.bulk.program import run_async
    from matrix_dspy.bulk.progress import Progress

    try:
        work = getattr(pipeline, command)(config, path, progress=Progress(), replay=replay, is_quiet=quiet)
        result = run_async(work)
    except KeyboardInterrupt:
        tell(f"interrupted; nothing is lost, go on with:\n  {_resume_command(path)}")
        raise typer.Exit(130) from None
    _say_result(command, config, result)
    if not result.is_complete:
        raise typer.Exit(3)


def _estimate(
    command: Literal["generate", "simulate"], config: "Config", out: Path | None, speed: float | None, like: Path | None
) -> None:
    from matrix_dspy import pipeline, planning
    from matrix_dspy.bulk.program import run_async
    from matrix_dspy.report.estimate import describe_estimate, write_estimate

    work = planning.estimate_run(config, command, tokens_per_second=speed, from_run=like)
    made = run_async(work)
    for line in describe_estimate(made):
        typer.echo(line)
    path = write_estimate(made, out or pipeline.default_folder(config, command))
    typer.echo(f"\nkept for the run's card: {path}")


def _compile(plans: "Sequence[Plan]", quiet: bool) -> None:
    """Compile what is planned, one program after the other, and say what came of each."""
    from matrix_dspy.errors import ConfigError, LimitError, RunError, StateMismatchError, TableError
    from matrix_dspy.optimization.compiling import compile_program

    stream = sys.stderr  # the compile sends what others print to a file

    def say(words: str) -> None:
        if not quiet:
            print(words, file=stream, flush=True)

    n_refused = 0
    try:
        for plan in plans:
            try:
                compiled = compile_program(plan, say)
            except (ConfigError, RunError, TableError, StateMismatchError) as error:
                if len(plans) == 1:
                    raise
                n_refused += 1
                typer.echo(f"{plan.program:18} {plan.optimizer:9} error: {error}", err=True)
                continue
            where = f" -> {compiled.path}" if compiled.path else ""
            typer.echo(f"{plan.program:18} {plan.optimizer:9} {compiled.words}{where}")
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing is lost, the same command goes on", err=True)
        raise typer.Exit(130) from None
    except LimitError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(3) from None
    if n_refused:
        raise typer.Exit(1)
    typer.echo(f"next:     {name_program()} programs {plans[0].program if len(plans) == 1 else ''}".rstrip())


def _read_time(text: str) -> float:
    """Read 90, 90s, 30m or 2h as seconds."""
    from matrix_dspy.errors import ConfigError

    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    try:
        return float(number) * unit
    except ValueError:
        raise ConfigError(f"cannot read --max-time {text!r}; write 90s, 30m or 2h") from None


def _show_config(command: str, config: "Config") -> None:
    import tomli_w

    from matrix_dspy.config import SAMPLING, apply_kind, list_unset, load_kind

    config = apply_kind(config, load_kind(config.synthesis.kind)) if command == "generate" else config
    values = config.model_dump(mode="json", exclude_none=True)
    values["sampling"] = {name: config.sampling_of(name).model_dump(exclude_none=True) for name in SAMPLING}
    typer.echo(tomli_w.dumps(values), nl=False)
    typer.echo(f"\n# unset: {', '.join(list_unset(config))}")


def _say_result(command: str, config: "Config", result: "Result") -> None:
    unit = "rows" if command == "generate" else "scenarios"
    if result.was_finished:
        typer.echo(f"{result.path} is finished already: {result.n_kept:,} {unit}; --fresh starts a new folder")
    else:
        typer.echo(f"{result.n_kept:,} of {result.n_wanted:,} {unit}: {result.path}")
    if command == "generate":
        from matrix_dspy.config import load_kind

        typer.echo(f"data set: {result.path}/dataset/{load_kind(config.synthesis.kind).name}.parquet and .jsonl")
    typer.echo(f"card:     {result.path}/README.md")
    if not result.is_complete:
        tell(f"{result.n_wanted - result.n_kept:,} {unit} are missing: {result.reason}")
        if result.is_limited:
            tell(f"go on with:\n  {_resume_command(result.path)}")
        else:
            again = f"--from {shlex.quote(str(result.path))} --out NEW-FOLDER"
            tell(f"with other settings, add {again} and pay only for what is new")
        return
    typer.echo(f"next:     {name_program()} show {shlex.quote(str(result.path))}")


def _resume_command(path: Path) -> str:
    """Return the command that goes on with this run: the same one, in the same folder."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--fresh"]
    if arguments[0] != "retry" and not any(
        argument == "--out" or argument.startswith("--out=") for argument in arguments
    ):
        arguments += ["--out", str(path)]
    return f"{name_program()} {shlex.join(arguments)}"


if __name__ == "__main__":
    main()
