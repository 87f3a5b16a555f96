"""Which programs a compile takes, by which optimizer, and what that will cost."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matrix_dspy.errors import ConfigError, did_you_mean
from matrix_dspy.loading import PROGRAMS, build_program
from matrix_dspy.optimization.compiling import Plan, forecast
from matrix_dspy.optimization.judged import BORROWED, JUDGES, list_judged
from matrix_dspy.optimization.optimizers import OPTIMIZERS, choose_optimizer
from matrix_dspy.report.prices import find_price

JUDGE, ALL = "judge", "all"
_FIRST = ("output_judge", *(name for name in JUDGES if name != "output_judge" and name not in BORROWED))
"""Judges that data is made by; those that only evaluate have no bearing on the other programs."""


def order_programs(names: Iterable[str]) -> list[str]:
    """Return the programs that `names` stand for, judges first: the others are optimised against them.

    Raises:
        ProgramNotFoundError: there is no such program.
    """
    wanted: dict[str, None] = {}
    for name in names:
        if name == ALL:
            wanted |= dict.fromkeys(PROGRAMS)
        elif name == JUDGE:
            wanted |= dict.fromkeys(_FIRST)
        else:
            build_program(name)
            wanted[name] = None
    return [name for name in _FIRST if name in wanted] + [name for name in wanted if name not in _FIRST]


def plan_compile(
    program: str,
    *,
    optimizer: str | None,
    lm: str,
    judged: Path | None,
    work: Path | None,
    n_programs: int,
    **rest: Any,
) -> Plan:
    """Return the plan for one of `n_programs` programs.

    Raises:
        ConfigError: the optimizer is unknown, or an option is for one program and there are several.
    """
    if optimizer is not None and optimizer not in OPTIMIZERS:
        raise ConfigError(f"no optimizer {optimizer!r}; {did_you_mean(optimizer, list(OPTIMIZERS))}")
    if judged is not None and n_programs > 1:
        raise ConfigError(f"--judged is for one program, {n_programs} are asked for; name the one it is for")
    has_rows = judged is not None or program in list_judged()
    if lm and not has_rows and (n_programs == 1 or optimizer not in (None, "labeled")):
        raise ConfigError(
            f"{program!r} has no judged set to be measured on; give one with --judged, or leave --lm away"
        )
    place = work / program if work is not None and n_programs > 1 else work
    chosen: Any = optimizer or (choose_optimizer(program) if lm and has_rows else "labeled")
    return Plan(program=program, optimizer=chosen, lm=lm if has_rows else "", judged=judged, work=place, **rest)


def describe_plans(plans: Sequence[Plan]) -> Iterator[str]:
    """Yield what each compile will take, and all of them together."""
    yield f"{'program':18} {'optimizer':9} {'measuring':>9} {'optimizing':>10} {'at least':>8}"
    n_calls = n_prompt = n_completion = 0
    for plan in plans:
        if not plan.lm:
            yield f"{plan.program:18} {plan.optimizer:9} {0:>9} {0:>10} {0:>8}"
            continue
        found = forecast(plan)
        n_calls += plan.budget
        n_prompt, n_completion = n_prompt + found.prompt_tokens, n_completion + found.completion_tokens
        note = "  budget too small" if plan.budget < found.least else ""
        yield (
            f"{plan.program:18} {plan.optimizer:9} {found.n_measuring:>9,} {found.n_optimizing:>10,} "
            f"{found.least:>8,}{note}"
        )
    yield ""
    yield f"at most {n_calls:,} calls, about {n_prompt:,} prompt and {n_completion:,} completion tokens"
    if n_calls and (price := find_price(plans[0].lm)) is not None:
        yield f"about ${price.cost(n_prompt, n_completion):,.2f} at the price of {plans[0].lm}, if it plays every role"
    elif n_calls:
        yield "no price is known for it"
