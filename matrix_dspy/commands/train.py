"""The commands that tune a model: on a data set, or through a whole recipe."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from matrix_dspy.commands.telling import run_resumable, set_up_log, suggest, tell

app = typer.Typer(
    help="Tune a model by SFT or DPO, or through a whole recipe (extra train).",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SourceArgument = Annotated[Path, typer.Argument(metavar="RUN|FILE", help="Run folder, or a data set of anybody's.")]
ModelOption = Annotated[str, typer.Option("--model", help="Model to tune: a folder, or a name on the Hub.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder of the tuned model. Default: runs/<source>-<stage>.")]
PresetOption = Annotated[
    str, typer.Option(help="Settings: paper, paper-as-printed, lora, qlora, or a TOML file of your own.")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Any training setting, as key=value. Repeatable.")]
TemplateOption = Annotated[
    Path | None, typer.Option("--chat-template", help="Jinja file, for a model that has no chat template.")
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Seed of the order of rows, and of what else is drawn.")]
StepsOption = Annotated[int | None, typer.Option("--max-steps", min=1, help="Optimizer steps at the most.")]
EvalOption = Annotated[
    float | None, typer.Option("--eval-share", min=0, max=0.5, help="Share of rows held out for the evaluation loss.")
]
LaunchOption = Annotated[
    str | None, typer.Option(help="Several processes, by accelerate: ddp, zero2, fsdp, or a config file of its own.")
]
ProcessesOption = Annotated[int | None, typer.Option(min=1, help="Processes for --launch. Default: one a GPU.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Start a new folder beside an existing one.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the resolved settings and stop.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


@app.command()
def sft(
    source: SourceArgument,
    model: ModelOption,
    out: OutOption = None,
    preset: PresetOption = "paper",
    settings: SetOption = None,
    chat_template: TemplateOption = None,
    max_steps: StepsOption = None,
    eval_share: EvalOption = None,
    seed: SeedOption = None,
    launch: LaunchOption = None,
    processes: ProcessesOption = None,
    fresh: FreshOption = False,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
) -> None:
    """Tune a model on conversations, with loss on what the assistant says and nothing else."""
    given = {"max_steps": max_steps, "eval_share": eval_share, "seed": seed, "chat_template": chat_template}
    _train("sft", source, model, out, preset, settings, given, launch, processes, fresh, dry_run, quiet)


@app.command()
def dpo(
    source: SourceArgument,
    model: ModelOption,
    out: OutOption = None,
    preset: PresetOption = "paper",
    settings: SetOption = None,
    chat_template: TemplateOption = None,
    max_steps: StepsOption = None,
    eval_share: EvalOption = None,
    seed: SeedOption = None,
    launch: LaunchOption = None,
    processes: ProcessesOption = None,
    fresh: FreshOption = False,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
) -> None:
    """Tune a model on pairs of a chosen and a rejected answer; --model is the SFT model that gave the rejected ones."""
    given = {"max_steps": max_steps, "eval_share": eval_share, "seed": seed, "chat_template": chat_template}
    _train("dpo", source, model, out, preset, settings, given, launch, processes, fresh, dry_run, quiet)


@app.command()
def recipe(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe or chain, such as type1-sft+type2-dpo.")],
    model: ModelOption,
    out: Annotated[Path | None, typer.Option(help="Folder of the whole chain. Default: runs/<recipe>.")] = None,
    n: Annotated[int | None, typer.Option(min=1, help="Rows to keep a stage. Default: the recipe's.")] = None,
    lm: Annotated[str | None, typer.Option("--lm", help="The aligned model, as for generate.")] = None,
    judge_lm: Annotated[str | None, typer.Option("--judge-lm", help="Model that judges and rates.")] = None,
    rejected_lm: Annotated[
        str | None,
        typer.Option("--rejected-lm", help="Where the SFT model is served. Default: served here, vLLM if there."),
    ] = None,
    need: Annotated[str | None, typer.Option(help="What the data is for, in words.")] = None,
    profiles: Annotated[str | None, typer.Option(help="Profiles, as for generate.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any config key of generate, as section.key=value. Repeatable.")
    ] = None,
    preset: PresetOption = "paper",
    training: Annotated[
        list[str] | None, typer.Option("--train", help="Any training setting, as key=value. Repeatable.")
    ] = None,
    chat_template: TemplateOption = None,
    seed: SeedOption = None,
    launch: LaunchOption = None,
    processes: ProcessesOption = None,
    quiet: QuietOption = False,
) -> None:
    """Make data and tune on it, stage by stage: the rejected side of DPO comes from the SFT model just made."""
    from matrix_dspy.chaining import ChainPlan, run_chain

    set_up_log("plain")
    _check_processes(launch, processes)
    changes = {"n": n, "lm.main": lm, "lm.judge": judge_lm, "lm.rejected": rejected_lm, "synthesis.need": need}
    plan = ChainPlan.of(
        name,
        model,
        out,
        changes | {"population.profiles": profiles, "seed": seed},
        settings or [],
        preset,
        {"chat_template": None if chat_template is None else str(chat_template), "seed": seed},
        training or [],
        launch,
        processes,
    )
    ended = run_resumable(run_chain(plan, typer.echo, is_quiet=quiet))
    if ended.missing:
        tell(ended.missing)
        raise typer.Exit(3)
    typer.echo(
        f"next:     {suggest('evaluate', 'winrate', ended.models[-1], model, '--prompts', 'FILE')} --judge-lm ..."
    )


@app.command("tiny-model")
def tiny_model(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights.")] = 0,
) -> None:
    """Make a chat model of 140,000 random parameters, to try the whole way on any machine; it knows nothing."""
    from matrix_dspy.errors import RunError
    from matrix_dspy.training.tiny import build_tiny_model
    from matrix_dspy.training.tuning import check_extra

    check_extra()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{str(out)!r} is there already; give another folder")
    build_tiny_model(out, seed=seed, context=4096)
    typer.echo(f"model:    {out}")
    typer.echo(f"next:     {suggest('train', 'recipe', 'plumbing+plumbing-dpo', '--model', out)}")


def _train(
    stage: Literal["sft", "dpo"],
    source: Path,
    model: str,
    out: Path | None,
    preset: str,
    settings: list[str] | None,
    given: dict[str, object],
    how: str | None,
    processes: int | None,
    fresh: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    import json

    from matrix_dspy.config import parse_setting
    from matrix_dspy.pipeline import start_fresh
    from matrix_dspy.training.settings import load_training
    from matrix_dspy.training.tuning import count_devices, launch, train

    set_up_log("plain")
    _check_processes(how, processes)
    changes = {
        key: str(value) if isinstance(value, Path) else value for key, value in given.items() if value is not None
    }
    config = load_training(preset, changes | dict(parse_setting(text) for text in settings or []))
    if dry_run:
        typer.echo(json.dumps(config.describe(stage), indent=2))
        return
    folder = out or Path("runs") / f"{source.resolve().name.partition('.')[0]}-{stage}"
    folder = start_fresh(folder) if fresh else folder
    say = _say_nothing if quiet else typer.echo
    try:
        if how is None:
            trained = train(config, source, model, folder, stage=stage, say=say)
        else:
            n_processes = processes or count_devices()
            trained = launch(config, source, model, folder, stage=stage, how=how, n_processes=n_processes, say=say)
    except KeyboardInterrupt:
        tell("interrupted; the last checkpoint is kept, the same command goes on from it")
        raise typer.Exit(130) from None
    for line in trained.lines:
        typer.echo(line)
    typer.echo(f"next:     {_suggest_evaluation(folder, model)}")


def _check_processes(how: str | None, processes: int | None) -> None:
    from matrix_dspy.errors import ConfigError

    if how is None and processes is not None:
        raise ConfigError(f"--processes {processes} says nothing without --launch; add --launch ddp, zero2 or fsdp")


def _suggest_evaluation(tuned: Path, model: str) -> str:
    return f"{suggest('evaluate', 'winrate', tuned, model, '--prompts')} FILE --judge-lm ..."


def _say_nothing(_: str) -> None:
    pass
