"""Compile a program against its judged set: measure, optimise, measure again, and keep what is better for sure.

The work lies in a folder of its own: what is compiled (`compile.toml`), every completion (`journal/`), the state it
began from (`start.json`), the test scores row by row (`scores.parquet`). The same command in the same folder goes on
where it was killed.
"""

import contextlib
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import dspy
import polars as pl
import tomli_w

from matrix_dspy.bulk.folder import take_lock
from matrix_dspy.bulk.journal import Journal
from matrix_dspy.bulk.tables import write_parquet, write_text
from matrix_dspy.config import SAMPLING
from matrix_dspy.engine.base import Engine
from matrix_dspy.engine.spec import build_engine
from matrix_dspy.errors import ConfigError, LimitError, RunError, boundary
from matrix_dspy.loading import (
    build_program,
    hash_state,
    load_program,
    read_card,
    save_program,
    state_path,
)
from matrix_dspy.optimization import agreement
from matrix_dspy.optimization.accepting import (
    Existing,
    Verdict,
    check_variant,
    decide,
    find_state,
    load_start,
    merge_orders,
    note_agreement,
    read_existing,
    set_default,
)
from matrix_dspy.optimization.guards import build_adapter
from matrix_dspy.optimization.judged import (
    JUDGES,
    PAIRED,
    SPLITS,
    JudgedRow,
    JudgedSet,
    Split,
    list_judged,
    load_judged,
    read_level,
    sample_rows,
    turn_pair,
)
from matrix_dspy.optimization.measuring import JudgeReport, count_measuring, mean
from matrix_dspy.optimization.metering import BudgetSpent, EngineDown, EngineRoom, Meter, MeteredEngine, raise_if_down
from matrix_dspy.optimization.metrics import N_TRIES, Judge, Metric, Score, read_judge_card
from matrix_dspy.optimization.optimizers import (
    LONGEST_INSTRUCTION,
    MAX_DEMOS,
    NEEDS_DEMOS,
    Bench,
    OptimizerName,
    choose_demos,
    least_budget,
    optimize,
)
from matrix_dspy.optimization.scoreboard import Scoreboard, read_instruction, strip
from matrix_dspy.optimization.threads import map_threads, quiet, wait_for_workers
from matrix_dspy.report.prices import find_price
from matrix_dspy.text import one_line, shorten

DEFAULT_BUDGET = 1500
SAMPLES: dict[str, dict[Split, int]] = {"output_judge": {"train": 60, "val": 40}}
"""Rows to draw of a split; all where it is not named. The output judge's set is that of all writers together."""
SLACK = 32
"""Calls kept back for those a kill may take, so that what was optimised can still be measured."""
BOOTSTRAP_QUANTILE = 0.75
METRIC_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What one compile is: the program, the optimizer, the models, the budget and where things go."""

    program: str
    optimizer: OptimizerName
    lm: str = ""
    """The model the program is compiled for, as after `--lm`; empty compiles without any call."""
    teacher_lm: str = ""
    judge_lm: str = ""
    budget: int = DEFAULT_BUDGET
    """LM calls of all roles."""
    variant: str = ""
    start: str = "default"
    """Variant to begin with; `written` is the program as written."""
    seed: int = 0
    judged: Path | None = None
    """A judged set of the user's own."""
    out: Path = Path("optimized")
    work: Path | None = None
    """Folder for the work; by default `runs/compile/<program>-<optimizer>`."""
    concurrency: int = 16
    patience_s: float = 120.0
    """Seconds a server that answers nobody is waited for."""
    force: bool = False
    """Whether a judge is used that is unmeasured or agrees too little; no result becomes the default then."""

    @property
    def folder(self) -> Path:
        """Where the work lies."""
        seed = f"seed{self.seed}" if self.seed else ""
        name = "-".join(filter(None, [self.program, self.optimizer, self.variant, seed]))
        return self.work or Path("runs") / "compile" / name


@dataclass
class Compiled:
    """What came of it."""

    program: str
    path: Path | None
    """The state that was saved; None where nothing better than the start was found."""
    is_default: bool
    words: str
    """Why it became the default or did not."""
    card: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Forecast:
    """What a compile will take."""

    n_measuring: int
    """Calls to measure the start and the result."""
    n_optimizing: int
    """Calls left to the optimizer."""
    least: int
    """Smallest budget that does."""
    prompt_tokens: int
    completion_tokens: int


Say = Callable[[str], None]


def compile_program(plan: Plan, say: Say = lambda words: None) -> Compiled:
    """Compile one program as planned, and save the result with its card.

    Raises:
        ConfigError: the plan does not do: an optimizer without its LM, a budget too small, an unmeasured judge.
        TableError: the judged set cannot be read.
        RunError: the folder holds another compile.
        EngineError: a model cannot be used.
    """
    check_plan(plan)
    if not plan.lm:
        return _compile_unmeasured(plan)
    return _Compile(plan, say).run()


def check_plan(plan: Plan) -> None:
    """Refuse, before any call, a plan that can come to nothing.

    Raises:
        ConfigError: the variant's name is reserved, or the optimizer makes demos and the program keeps none.
        ProgramNotFoundError: there is no such variant to begin with.
    """
    check_variant(plan.out, plan.program, plan.variant)
    if plan.optimizer in NEEDS_DEMOS and MAX_DEMOS.get(plan.program, 0) == 0:
        raise ConfigError(
            f"{plan.program!r} keeps no demos, and {plan.optimizer} makes nothing else; take gepa or mipro"
        )
    load_start(plan.program, plan.out, plan.start)


def forecast(plan: Plan) -> Forecast:
    """Say what a compile will take, without any call; raises as `compile_program` does for a plan that does not do."""
    check_plan(plan)
    rows = _draw_splits(_load_set(plan), plan.seed)
    size = _Size.of(plan, rows)
    program = load_start(plan.program, plan.out, plan.start)
    return Forecast(
        n_measuring=size.n_kept_back,
        n_optimizing=max(0, plan.budget - size.n_kept_back),
        least=size.least,
        prompt_tokens=_estimate_prompt(program, rows["val"]) * plan.budget,
        completion_tokens=SAMPLING[plan.program].max_tokens // 3 * plan.budget,
    )


@dataclass(frozen=True, slots=True)
class _Size:
    """The calls a compile is made of."""

    per_row: int
    """Calls to score one row: the program's and the judge's."""
    most_per_row: int
    """The same where the judge's answers cannot be read at once."""
    n_measuring: int
    """Calls to measure start and result, at the most."""
    least: int
    """Smallest budget that does."""

    @property
    def n_kept_back(self) -> int:
        """Calls the optimizer may not touch."""
        return self.n_measuring + SLACK

    @classmethod
    def of(cls, plan: Plan, rows: dict[Split, list[JudgedRow]]) -> Self:
        """Size a compile by its splits."""
        n_train, n_val, n_test = (len(rows[name]) for name in SPLITS)
        per_row, most = (1, 1) if plan.program in JUDGES else (2, 1 + N_TRIES)
        n_measuring = count_measuring(plan.program, n_val, n_test, most)
        least = n_measuring + SLACK + least_budget(plan.optimizer, n_train, n_val, per_row)
        return cls(per_row, most, n_measuring, least)


def _compile_unmeasured(plan: Plan) -> Compiled:
    """Choose demos without any LM; the card says that nothing was measured."""
    if plan.optimizer != "labeled":
        raise ConfigError(f"{plan.optimizer} needs a model; add --lm, or take --optimizer labeled, which makes no call")
    program = build_program(plan.program)
    predictor: Any = program.predictors()[0]
    card: dict[str, Any] = {"optimizer": "labeled", "measured": False}
    if plan.judged is not None or plan.program in list_judged():
        judged = _load_set(plan)
        predictor.demos = choose_demos(plan.program, judged.split("train"), MAX_DEMOS.get(plan.program, 0))
        card["judged"] = {"sha256": judged.sha256, "rows": len(judged.rows)}
    card["settings"] = {"max_demos": MAX_DEMOS.get(plan.program, 0), "demos": len(predictor.demos)}
    existing = read_existing(plan.program, plan.out)
    is_kept = existing.is_measured
    name = plan.variant or ("labeled" if is_kept else "default")
    path = state_path(plan.out, plan.program, name)
    if name == "default" and existing.is_broken:
        set_default(plan.out, plan.program, program, existing, card)
    save_program(program, path, card=card)
    n = len(predictor.demos)
    chosen = f"{n} demo{'s' if n > 1 else ''} chosen" if n else "as written, without demos"
    words = f"{chosen}; nothing was measured"
    if is_kept:
        words += "; the default was measured and stays"
    return Compiled(plan.program, path, name == "default", words, card)


class _Compile:
    """One compile with models, from start to saved state."""

    def __init__(self, plan: Plan, say: Say) -> None:
        self.plan = plan
        self.say = say
        self.judged = _load_set(plan)
        self.rows = _draw_splits(self.judged, plan.seed)
        self.size = _Size.of(plan, self.rows)
        if plan.budget < self.size.least:
            raise ConfigError(
                f"a budget of {plan.budget:,} calls does not do for {plan.program} by {plan.optimizer}: "
                f"measuring takes {self.size.n_kept_back:,}, and the least that can be tried "
                f"{self.size.least:,} in all; raise --budget"
            )
        self.board = Scoreboard()
        self.student: dspy.Module | None = None

    def run(self) -> Compiled:
        """Do it all; the folder is held while it lasts."""
        folder = self.plan.folder
        for place in (folder, self.plan.out / self.plan.program):
            with boundary(RunError, f"make the folder {str(place)!r}"):
                place.mkdir(parents=True, exist_ok=True)
        lock = take_lock(folder, option="--work")
        room = EngineRoom()
        try:
            with quiet(folder / "optimizer.log"):
                return self._run(folder, room)
        finally:
            room.close()
            lock.release()

    def _run(self, folder: Path, room: EngineRoom) -> Compiled:
        engines = self._open_engines(room)
        self.models = {role: engine.model for role, engine in engines.items()}
        judge, quality = self._find_judge()
        start = self._take_start(folder)
        self._hold_identity(folder, start, judge, quality)
        self.meter, self.journal = Meter(folder, self.plan.budget), Journal(folder / "journal")
        self.meter.n_lost = max(0, self.meter.n_sent - len(self.journal))
        try:
            with self._watch():
                self._build_lms(room, engines)
                asked = judge and Judge(judge, self.judge_lm, self.judged.rubric, quality)
                self.metric = Metric(self.plan.program, self.judged, asked)
                return self._work(folder, start)
        except EngineDown:
            raise_if_down(self.meter)
            raise
        except BudgetSpent as error:
            raise LimitError(
                f"{error}, {self.meter.n_lost:,} of them by kills, before {self.plan.program!r} was measured; "
                "the same command with a larger --budget goes on"
            ) from None
        finally:
            self.journal.close()
            self.meter.close()

    def _open_engines(self, room: EngineRoom) -> dict[str, Engine]:
        """Open one engine for each model that is named, and return it per role."""
        plan = self.plan
        specs = {"task": plan.lm, "teacher": plan.teacher_lm or plan.lm, "judge": plan.judge_lm or plan.lm}
        opened: dict[str, Engine] = {}
        for spec in specs.values():
            if spec not in opened:
                opened[spec] = build_engine(spec, concurrency=plan.concurrency, patience_s=plan.patience_s)
                room.open(opened[spec])
        return {role: opened[spec] for role, spec in specs.items()}

    def _take_start(self, folder: Path) -> dspy.Module:
        """Return the state the compile began from; a later start of the same command begins from it too."""
        kept = folder / "start.json"
        if (folder / "compile.toml").is_file() and kept.is_file():
            return load_program(kept)
        program = load_start(self.plan.program, self.plan.out, self.plan.start)
        save_program(program, kept, card={"optimizer": "start"})
        return program

    def _find_judge(self) -> tuple[dspy.Module | None, list[float]]:
        """Return the output judge and the quality its levels stand for; a judge itself needs none."""
        if self.plan.program in JUDGES:
            return None, []
        path = find_state("output_judge", self.plan.out)
        card = read_card(path) if path else None
        quality = read_judge_card(card, self.models["judge"], self.plan.program, force=self.plan.force)
        return load_program(path) if path else build_program("output_judge"), quality

    def _hold_identity(self, folder: Path, start: dspy.Module, judge: dspy.Module | None, quality: list[float]) -> None:
        """Write what this compile is, or compare it with what the folder holds."""
        plan = self.plan
        identity = {
            "program": plan.program,
            "optimizer": plan.optimizer,
            "seed": plan.seed,
            "judged": self.judged.sha256,
            "metric": METRIC_VERSION,
            "models": self.models,
            "from": plan.start,
            "start": hash_state(start),
            "judge": hash_state(judge) if judge is not None else "",
            "quality": quality,
            "dspy": dspy.__version__,
        }
        path = folder / "compile.toml"
        self.sized_budget = plan.budget
        if not path.is_file():
            write_text(tomli_w.dumps({"budget": plan.budget, **identity}), path)
            return
        with boundary(RunError, f"read {str(path)!r}"):
            found = tomllib.loads(path.read_text(encoding="utf-8"))
        self.sized_budget = int(found.get("budget", plan.budget))  # steps are sized once, or a replay would differ
        if plan.budget < self.sized_budget:
            raise RunError(
                f"{str(folder)!r} was begun with a budget of {self.sized_budget:,} calls, which can grow and not fall "
                f"to {plan.budget:,}; give another folder with --work"
            )
        changed = [key for key in identity if found.get(key) != identity[key]]
        if changed:
            raise RunError(
                f"{str(folder)!r} holds another compile: {changed[0]} was {found.get(changed[0])!r} and is "
                f"{identity[changed[0]]!r}; give another folder with --work"
            )

    def _build_lms(self, room: EngineRoom, engines: dict[str, Engine]) -> None:
        def build(role: str, program: str, *, is_memo: bool = False) -> dspy.LM:
            metered = MeteredEngine(engines[role], role, self.meter, self.journal, is_memo=is_memo)
            return room.build_lm(metered, SAMPLING[program])

        self.task_lm = build("task", self.plan.program)
        self.judge_lm = build("judge", "output_judge", is_memo=True)
        self.teacher_lm = build("teacher", "responder")

    def _work(self, folder: Path, start: dspy.Module) -> Compiled:
        examples = {name: [self.metric.build_example(row) for row in rows] for name, rows in self.rows.items()}
        student = self.student = self.board.track(start)
        val = examples["val"]
        before_val = self._evaluate(student, val)
        self.say(f"{self.plan.program}: the start scores {mean(before_val):.3f} on {len(val)} validation rows")
        self.meter.kept_back = self.size.n_kept_back - len(val) * self.size.most_per_row
        chosen = self._optimize(student, examples, before_val)
        self.meter.kept_back = 0
        winner, after_val = self._choose(student, chosen, val, before_val)
        return self._finish(folder, start, winner, examples["test"], mean(before_val), after_val)

    def _optimize(
        self, student: dspy.Module, examples: dict[str, list[dspy.Example]], before: Sequence[float]
    ) -> dspy.Module | None:
        """Run the optimizer within its share of the budget; None where it was stopped or chose nothing."""
        plan, meter = self.plan, self.meter
        bench = Bench(
            program=plan.program,
            rows=self.rows["train"],
            train=examples["train"],
            val=examples["val"],
            score=self._score,
            feedback=self._feedback,
            task_lm=self.task_lm,
            teacher_lm=self.teacher_lm,
            budget=self.sized_budget - self.size.n_kept_back,
            calls_per_row=self.size.per_row,
            threshold=_choose_threshold(before),
            concurrency=plan.concurrency,
            seed=plan.seed,
            max_demos=MAX_DEMOS.get(plan.program, 0),
        )
        threads = set(threading.enumerate())
        with dspy.context(lm=self.task_lm, adapter=build_adapter(), warn_on_type_mismatch=False):
            try:
                return optimize(plan.optimizer, student, bench)
            except BudgetSpent:
                self.say(f"{plan.program}: the optimizer's share of the budget is spent; the best so far is taken")
                return None
            except Exception as error:  # an answer of the teacher it could not read, most often
                raise_if_down(meter)
                if not meter.is_spent:
                    words = shorten(one_line(str(error)), 40)
                    self.say(f"{plan.program}: {plan.optimizer} stopped ({words}); the best so far is taken")
                return None
            finally:
                wait_for_workers(threads)

    def _choose(
        self, student: dspy.Module, chosen: dspy.Module | None, val: list[dspy.Example], before: Sequence[float]
    ) -> tuple[dspy.Module | None, float]:
        """Return the better of the optimizer's choice and the start on the validation rows; None is the start."""
        if chosen is None or len(read_instruction(chosen)) > LONGEST_INSTRUCTION:
            candidates = (self.board.build(known, student) for known in self.board.rank(student))
            chosen = next((each for each in candidates if len(read_instruction(each)) <= LONGEST_INSTRUCTION), None)
            if chosen is None:
                return None, mean(before)
        known = self.board.note(chosen)
        if known == self.board.note(student):
            return None, mean(before)
        chosen = self.board.build(known, student)
        after = mean(self._evaluate(chosen, val))
        return (chosen, after) if after > mean(before) else (None, after)

    def _finish(
        self,
        folder: Path,
        start: dspy.Module,
        winner: dspy.Module | None,
        test: list[dspy.Example],
        before_val: float,
        after_val: float,
    ) -> Compiled:
        outputs_before = self._predict(start, test)
        before = [score.value for score in self._measure(test, outputs_before)]
        result = strip(winner, start) if winner is not None else start
        outputs_after = self._predict(result, test) if winner is not None else outputs_before
        after = [score.value for score in self._measure(test, outputs_after)] if winner is not None else before
        rows = self.rows["test"]
        gain = agreement.compare(merge_orders(rows, before), merge_orders(rows, after), self.plan.seed)
        self._write_scores(folder, before, after, outputs_after)
        card = self._build_card(before, after, gain, before_val, after_val)
        existing = read_existing(self.plan.program, self.plan.out)
        n_rows = len(merge_orders(rows, before))
        verdict = decide(gain, n_rows, existing, start, result, is_forced=self.plan.force)
        if self.plan.program in JUDGES:
            stays = not verdict.is_accepted and self.plan.start == "default"
            judge, outputs = (start, outputs_before) if stays else (result, outputs_after)
            report = JudgeReport(self.plan.program, judge, self.metric, self._predict, self.plan.seed)
            found = report.describe(rows, outputs) | {"judged": self.judged.sha256}
            card["agreement"] = {self.models["task"]: found}
        return self._save(result, start, card, verdict, existing, is_new=winner is not None)

    def _save(
        self,
        result: dspy.Module,
        start: dspy.Module,
        card: dict[str, Any],
        verdict: Verdict,
        existing: Existing,
        *,
        is_new: bool,
    ) -> Compiled:
        """Save the result as default or as variant, and say why; of a judge note how well the default agrees."""
        plan = self.plan
        words = f"gain {agreement.Interval(**card['test']['gain'])} on {card['n_test']} test rows"
        if verdict.is_accepted and is_new:
            path = set_default(plan.out, plan.program, result, existing, card)
            if plan.variant:
                save_program(result, state_path(plan.out, plan.program, plan.variant), card=card | {"accepted": True})
            return Compiled(plan.program, path, True, f"{words}: it is the default now", card)
        noted = None
        if plan.program in JUDGES and plan.start == "default":
            noted = note_agreement(plan.out, plan.program, start, existing, card["agreement"])
        if not is_new:
            words = "nothing tried was better than the start on the validation rows; the default stays"
            return Compiled(plan.program, noted, False, words, card)
        name = plan.variant or plan.optimizer
        path = state_path(plan.out, plan.program, name)
        own = {key: value for key, value in card.items() if key != "agreement" or noted is None}
        save_program(result, path, card={**own, "accepted": False})
        return Compiled(plan.program, path, False, f"{words}: kept as variant {name!r}, since {verdict.why_not}", card)

    def _build_card(
        self,
        before: Sequence[float],
        after: Sequence[float],
        gain: agreement.Interval,
        before_val: float,
        after_val: float,
    ) -> dict[str, Any]:
        plan, meter = self.plan, self.meter
        seed = plan.seed
        return {
            "optimizer": plan.optimizer,
            "settings": {
                "seed": seed,
                "budget": plan.budget,
                "start": plan.start,
                "max_demos": MAX_DEMOS.get(plan.program, 0),
                "sampling": SAMPLING[plan.program].model_dump(exclude_none=True),
            },
            "measured": True,
            "forced": plan.force,
            "lm": self.models["task"],
            "teacher_lm": self.models["teacher"],
            "judge_lm": "" if plan.program in JUDGES else self.models["judge"],
            "metric": {
                "name": "agreement" if plan.program in JUDGES else "checks and judge",
                "version": METRIC_VERSION,
            },
            "judged": {"sha256": self.judged.sha256, "rows": len(self.judged.rows)},
            "n_train": len(self.rows["train"]),
            "n_val": len(self.rows["val"]),
            "n_test": len(self.rows["test"]),
            "val": {"before": round(before_val, 4), "after": round(after_val, 4)},
            "test": {
                "before": agreement.bootstrap(mean, before, seed=seed).dump(),
                "after": agreement.bootstrap(mean, after, seed=seed).dump(),
                "gain": gain.dump(),
            },
            "calls": {"total": meter.n_taken, **dict(sorted(meter.by_role.items()))},
            "tokens": sum(meter.tokens_by_role.values()),
            "candidates": len(self.board),
            "unjudged": self.metric.n_unjudged,
        }

    def _score(self, example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        value = self.metric.score(example, prediction)
        self._note(example, prediction, value)
        return value

    def _feedback(
        self, example: dspy.Example, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> dspy.Prediction:
        found: Any = self.metric.feedback(example, prediction)
        self._note(example, prediction, found.score)
        return found

    def _note(self, example: dspy.Example, prediction: Any, value: float) -> None:
        self.board.score(prediction, self.metric.find(example).id, value)

    def _evaluate(self, program: dspy.Module, examples: list[dspy.Example]) -> list[float]:
        return [score.value for score in self._measure(examples, self._predict(program, examples, is_noted=True))]

    def _predict(
        self, program: dspy.Module, examples: list[dspy.Example], *, is_noted: bool = False
    ) -> list[dict[str, Any] | None]:
        """Return the output fields for each example; None where no answer could be read."""

        def ask(example: dspy.Example) -> dict[str, Any] | None:
            with dspy.context(lm=self.task_lm, adapter=build_adapter(), trace=[], warn_on_type_mismatch=False):
                try:
                    prediction = program(**example.inputs().toDict())
                    if is_noted:
                        self._score(example, prediction)
                    return dict(prediction.items())
                except Exception:  # an answer without its fields, or a request the server refuses
                    return None

        return map_threads(ask, examples, self.plan.concurrency)

    def _measure(self, examples: list[dspy.Example], outputs: list[dict[str, Any] | None]) -> list[Score]:
        def rate(pair: tuple[dspy.Example, dict[str, Any] | None]) -> Score:
            example, output = pair
            row = self.metric.find(example)
            return Score(0.0, "the answer could not be read") if output is None else self.metric.measure(row, output)

        return map_threads(rate, list(zip(examples, outputs, strict=True)), self.plan.concurrency)

    def _write_scores(
        self, folder: Path, before: Sequence[float], after: Sequence[float], outputs: Sequence[dict[str, Any] | None]
    ) -> None:
        """Write the test rows' scores, and of a judge what it said beside the label."""
        rows = self.rows["test"]
        columns: dict[str, list[Any]] = {"id": [row.id for row in rows], "before": list(before), "after": list(after)}
        if self.plan.program in JUDGES and self.plan.program not in PAIRED:
            columns["label"] = [row.score for row in rows]
            columns["verdict"] = [output and read_level(self.plan.program, output) for output in outputs]
        write_parquet(pl.DataFrame(columns), folder / "scores.parquet")

    @contextlib.contextmanager
    def _watch(self) -> Iterator[None]:
        """Say every few seconds what has been spent."""
        ended = threading.Event()

        def watch() -> None:
            last = -1
            while not ended.wait(5.0):
                if self.meter.n_taken != last:
                    last = self.meter.n_taken
                    self.say(self._describe_spend())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _describe_spend(self) -> str:
        roles = ", ".join(f"{role} {n:,}" for role, n in sorted(self.meter.by_role.items()))
        best = self.board.describe_best(self.student) if self.student is not None else ""
        return (
            f"{self.plan.program}: {self.meter.n_taken:,} of {self.plan.budget:,} calls ({roles}), "
            f"{self._describe_cost()}; {len(self.board)} candidates{best}"
        )

    def _describe_cost(self) -> str:
        """Say what was spent: tokens, and dollars where the prices of all models are known."""
        tokens = self.meter.tokens_by_role
        plan = self.plan
        specs = {"task": plan.lm, "teacher": plan.teacher_lm or plan.lm, "judge": plan.judge_lm or plan.lm}
        prices = {role: find_price(spec) for role, spec in specs.items()}
        said = f"{sum(tokens.values()):,} tokens"
        if any(price is None for price in prices.values()):
            return said
        spent = sum(price.cost(tokens[role, "in"], tokens[role, "out"]) for role, price in prices.items() if price)
        return f"{said}, ${spent:,.2f}"


def _load_set(plan: Plan) -> JudgedSet:
    judged = load_judged(plan.program, plan.judged)
    if plan.program in PAIRED:
        rows = tuple(other for row in judged.rows for other in (row, turn_pair(row)))
        judged = JudgedSet(judged.program, rows, judged.rubric, judged.sha256)
    for name in SPLITS:
        if plan.lm and not judged.split(name):
            raise ConfigError(f"the judged set of {plan.program!r} has no {name} rows; label some, or set their split")
    return judged


def _draw_splits(judged: JudgedSet, seed: int) -> dict[Split, list[JudgedRow]]:
    sizes = SAMPLES.get(judged.program, {})
    return {name: sample_rows(judged.split(name), sizes.get(name, 0), seed) for name in SPLITS}


def _choose_threshold(scores: Sequence[float]) -> float:
    """Return the score from which an output may serve as a demo: the best quarter of the start's."""
    ordered = sorted(scores)
    return ordered[int(BOOTSTRAP_QUANTILE * (len(ordered) - 1))] if ordered else 0.5


def _estimate_prompt(program: dspy.Module, rows: Sequence[JudgedRow]) -> int:
    from matrix_dspy.bulk.prompt import Prompt
    from matrix_dspy.text import estimate_tokens

    prompt = Prompt.of(program)
    sizes = [sum(estimate_tokens(each["content"]) for each in prompt.messages(row.inputs)) for row in rows]
    return sum(sizes) // max(1, len(sizes))
