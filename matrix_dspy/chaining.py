"""A whole recipe of METHOD 3.2: data, tuning, data against the tuned model, tuning again.

    <out>/<stage>         the run folder of a stage's data
    <out>/<stage>-model   the model tuned on it

The rejected side of a pair comes from the SFT model of the stage before, served here where no address is given. Every
step is resumable, so the whole is: the same command goes on.
"""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from matrix_dspy import pipeline
from matrix_dspy.bulk.progress import Progress
from matrix_dspy.config import Config, change_config, load_kind, load_recipe, load_stages, parse_setting
from matrix_dspy.engine.serving import find_spec
from matrix_dspy.errors import ConfigError, RunError
from matrix_dspy.training.folder import TRAINED
from matrix_dspy.training.interrupting import end_with, interruptible, say_aloud
from matrix_dspy.training.settings import Stage, TrainingConfig, load_training

if TYPE_CHECKING:
    from matrix_dspy.training.tuning import Trained

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Link:
    """One stage: which data, and how a model is tuned on it."""

    name: str
    config: Config
    stage: Stage
    training: TrainingConfig


@dataclass(frozen=True, slots=True)
class ChainPlan:
    """What a chain is to do."""

    links: tuple[Link, ...]
    model: str
    """The base model: a folder or a name."""
    out: Path
    rejected_lm: str = ""
    """Where the SFT model is served; empty serves it here."""
    launch: str | None = None
    processes: int | None = None
    data: "ChainPlan | None" = None
    """Another chain whose data is taken for the stages that it has; unset makes its own."""
    reuse: Mapping[str, "ChainPlan"] = field(default_factory=dict)
    """Name of a stage to another chain that has the same stage, data and model."""
    part: Literal["dataset", "control"] = "dataset"
    """What models are tuned on: the data set, or the random subset a run with selection writes beside it."""

    @classmethod
    def of(
        cls,
        recipe: str,
        model: str,
        out: Path | None,
        changes: Mapping[str, Any],
        settings: Sequence[str],
        preset: str,
        training_changes: Mapping[str, Any],
        training_settings: Sequence[str],
        launch: str | None = None,
        processes: int | None = None,
    ) -> Self:
        """Build a plan from what a user gives; `changes` are config keys for every stage's data.

        Raises:
            ConfigError: no such recipe, or one whose first stage is made of pairs, for which there is no SFT model.
        """
        given = {key: value for key, value in changes.items() if value is not None}
        given |= dict(parse_setting(text) for text in settings)
        rejected = str(given.get("lm.rejected", ""))
        links = tuple(
            _build_link(name, given, preset, training_changes, training_settings) for name in load_stages(recipe)
        )
        if links[0].stage == "dpo":
            raise ConfigError(
                f"recipe {recipe!r} begins with pairs, whose rejected side an SFT model gives; take a chain such as"
                " type1-sft+type2-dpo, or run generate and train dpo one by one"
            )
        return cls(links, model, out or Path("runs") / Path(recipe).stem, rejected, launch, processes)

    @property
    def names(self) -> list[str]:
        """Names of the stages."""
        return [link.name for link in self.links]

    def find_owner(self, link: Link) -> "ChainPlan":
        """Return the chain that makes a stage's data."""
        other = self.reuse.get(link.name, self.data)
        return self if other is None or link.name not in other.names else other.find_owner(link)

    def data_folder(self, link: Link) -> Path:
        """Return the run folder of a stage."""
        return self.find_owner(link).out / Path(link.name).stem

    def source(self, link: Link) -> Path:
        """Return what a stage's model is tuned on: a run folder, or a file in it."""
        folder = self.data_folder(link)
        if self.part == "dataset":
            return folder
        return folder / self.part / f"{load_kind(link.config.synthesis.kind).name}.jsonl"

    def model_folder(self, link: Link) -> Path:
        """Return the folder of the model tuned on a stage."""
        other = self.reuse.get(link.name)
        return other.model_folder(link) if other is not None else self.out / f"{Path(link.name).stem}-model"

    def model_before(self, place: int) -> str:
        """Return the model that stage `place` begins with."""
        return str(self.model_folder(self.links[place - 1])) if place else self.model


@dataclass(frozen=True, slots=True)
class Ended:
    """How a chain ended."""

    models: tuple[Path, ...]
    missing: str = ""
    """What is missing and what to do, where a limit stopped it."""
    data: tuple[Path, ...] = field(default=())


async def run_chain(plan: ChainPlan, say: Say, *, is_quiet: bool = False) -> Ended:
    """Run every stage in turn: its data, then its model.

    Raises:
        ConfigError, EngineError, RunError: as `pipeline.generate` and `training.train`.
    """
    _check(plan)
    models: list[Path] = []
    data: list[Path] = []
    for place, link in enumerate(plan.links):
        result = await make_data(plan, place, is_quiet=is_quiet)
        data.append(result.path)
        say(f"{link.name}: {result.n_kept:,} of {result.n_wanted:,} rows: {result.path}")
        if not result.is_complete:
            lacking = f"{result.n_wanted - result.n_kept:,} rows of {link.name} are missing: {result.reason}"
            advice = "the same command goes on" if result.is_limited else "lower n, or change what drops them"
            return Ended(tuple(models), f"{lacking}; {advice}", tuple(data))
        models.append(tune(plan, place, say))
    return Ended(tuple(models), data=tuple(data))


def _check(plan: ChainPlan) -> None:
    """Make sure that the models can be trained here, before hours of data are made for them.

    Raises:
        ConfigError: they cannot.
        MissingExtraError: a library is not installed.
    """
    from matrix_dspy.training.tuning import check_launch, check_model

    is_trained = [(plan.model_folder(link) / TRAINED).is_file() for link in plan.links]
    if not is_trained[0]:
        check_model(plan.model, plan.links[0].training)
    if not all(is_trained):
        check_launch(plan.launch)


async def make_data(plan: ChainPlan, place: int, *, is_quiet: bool = False) -> pipeline.Result:
    """Make the data of stage `place`, in the society of the stages before it."""
    link = plan.links[place]
    config = link.config
    if link.stage == "dpo":
        owner = plan.find_owner(link)
        served = plan.rejected_lm or find_spec(owner.model_before(owner.names.index(link.name)))
        config = change_config(config, {"lm.rejected": served})
    before = tuple(plan.data_folder(earlier) for earlier in plan.links[:place])
    return await pipeline.generate(
        config, plan.data_folder(link), progress=Progress(), replay=before, is_quiet=is_quiet
    )


def tune(plan: ChainPlan, place: int, say: Say) -> Path:
    """Tune the model of stage `place` on its data, in a process of its own: a GPU's memory is free again after it.

    Raises:
        KeyboardInterrupt: it was asked to stop, and has saved the step at hand.
    """
    from matrix_dspy.training.tuning import count_devices, launch

    link, folder = plan.links[place], plan.model_folder(plan.links[place])
    told = (link.training, plan.source(link), plan.model_before(place), folder)
    if plan.launch is not None:
        n_processes = plan.processes or count_devices()
        trained = launch(*told, stage=link.stage, how=plan.launch, n_processes=n_processes, say=say)
    else:
        run = _train_here if (folder / TRAINED).is_file() else _train_apart
        trained = run(*told, link.stage)
    for line in trained.lines:
        say(line)
    return folder


def _train_apart(config: TrainingConfig, source: Path, model: str, out: Path, stage: Stage) -> "Trained":
    own = os.getpid()
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin_apart, initargs=(own,))
    try:
        with interruptible(), pool:
            pid = pool.submit(os.getpid).result()
            return _wait(pool.submit(_train_for, own, config, source, model, out, stage), pid)
    except BrokenProcessPool as error:
        raise RunError(
            "the training process was killed (often the machine's memory is full); run the same command again, or use "
            "a smaller batch or the preset lora"
        ) from error


def _wait(training: Future["Trained"], pid: int) -> "Trained":
    """Wait for a training in process `pid`; Ctrl-C asks it to stop, and a second one stops it at once."""
    try:
        return training.result()
    except KeyboardInterrupt:
        try:
            if not training.done():
                os.kill(pid, signal.SIGTERM)
                training.exception()
        except KeyboardInterrupt:
            os.kill(pid, signal.SIGKILL)
        raise


def _begin_apart(parent: int) -> None:
    os.setsid()  # Ctrl-C reaches the parent only, and is handed on once
    end_with(parent)


def _train_for(parent: int, config: TrainingConfig, source: Path, model: str, out: Path, stage: Stage) -> "Trained":
    try:
        return _train_here(config, source, model, out, stage)
    finally:
        if os.getppid() != parent:
            os._exit(1)  # nobody is left to take the result, nor to end this process


def _train_here(config: TrainingConfig, source: Path, model: str, out: Path, stage: Stage) -> "Trained":
    from matrix_dspy.training.tuning import train

    return train(config, source, model, out, stage=stage, say=say_aloud)


def _build_link(
    name: str,
    changes: Mapping[str, Any],
    preset: str,
    training_changes: Mapping[str, Any],
    training_settings: Sequence[str],
) -> Link:
    config = load_recipe(name, changes)
    kind = load_kind(config.synthesis.kind)
    stage: Stage = "dpo" if kind.shape == "pair" else "sft"
    if "n" not in changes and kind.n is not None:
        config = config.model_copy(update={"n": kind.n})
    given = {key: value for key, value in training_changes.items() if value is not None}
    given |= dict(parse_setting(text) for text in training_settings)
    return Link(name, config, stage, load_training(preset, given))
