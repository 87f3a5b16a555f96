"""What becomes of a compiled result: the default, a variant or nothing, and why."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy

from matrix_dspy.errors import ConfigError, StateMismatchError
from matrix_dspy.loading import (
    build_program,
    hash_state,
    load_program,
    read_card,
    save_program,
    search_path,
    state_path,
)
from matrix_dspy.optimization.agreement import Interval
from matrix_dspy.optimization.judged import JudgedRow
from matrix_dspy.optimization.measuring import mean

LEAST_TEST_ROWS = 24
"""Held-out rows below which no gain is sure, whatever its interval says."""
RESERVED = ("default", "previous", "broken", "written")
"""Names a variant may not be given: they have a meaning of their own."""
_OF_FILE = ("program", "fields", "dspy", "prompt_sha256", "state_sha256", "agreement")


@dataclass(frozen=True)
class Existing:
    """The default there is for a program: in the folder of states first, then on the search path."""

    path: Path | None
    program: dspy.Module | None
    """None where there is none, or one that cannot be read."""
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def is_measured(self) -> bool:
        """Whether something is known of how good it is, or of how well a judge agrees."""
        return bool(self.card.get("measured") or self.card.get("agreement"))

    @property
    def is_broken(self) -> bool:
        """Whether there is a file that cannot be read as a state."""
        return self.path is not None and self.program is None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a result becomes the default."""

    is_accepted: bool
    why_not: str = ""


def check_variant(out: Path, program: str, variant: str) -> None:
    """Refuse a variant's name that is reserved or will not do; raises ConfigError."""
    if variant in RESERVED:
        raise ConfigError(f"--variant {variant!r} has a meaning of its own; give another name")
    if variant:
        state_path(out, program, variant)


def find_state(program: str, out: Path, variant: str = "default") -> Path | None:
    """Return the file of a state: in `out` first, then on the search path."""
    places = [state_path(folder, program, variant) for folder in (out, *search_path())]
    return next((path for path in places if path.is_file()), None)


def read_existing(program: str, out: Path) -> Existing:
    """Return the default that a new result is to be better than."""
    path = find_state(program, out)
    if path is None:
        return Existing(None, None)
    try:
        return Existing(path, load_program(path), read_card(path))
    except StateMismatchError:
        return Existing(path, None)


def load_start(program: str, out: Path, start: str) -> dspy.Module:
    """Return what a compile begins with: `default`, `written` or a variant.

    A default that cannot be read is as good as none: a compile is how it is replaced.

    Raises:
        ProgramNotFoundError: there is no such variant.
        StateMismatchError: the variant cannot be read.
    """
    if start == "default":
        return read_existing(program, out).program or build_program(program)
    if start == "written":
        return build_program(program)
    path = find_state(program, out, start)
    return load_program(path) if path else load_program(program, start)


def merge_orders(rows: Sequence[JudgedRow], values: Sequence[float]) -> list[float]:
    """Return one value a pair, the mean of its two orders; of other rows the values as they are."""
    by_pair: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        by_pair.setdefault(row.id.removesuffix("-turned"), []).append(value)
    return [mean(each) for each in by_pair.values()]


def decide(
    gain: Interval, n_rows: int, existing: Existing, start: dspy.Module, result: dspy.Module, *, is_forced: bool
) -> Verdict:
    """Say whether a result becomes the default: better for sure than what it is now, by a judge to be trusted."""
    if n_rows < LEAST_TEST_ROWS:
        return Verdict(False, f"{n_rows} test rows are too few to be sure; {LEAST_TEST_ROWS} are needed")
    if gain.low <= 0:
        return Verdict(False, "the interval does not exclude zero")
    if is_forced:
        return Verdict(False, "the judge was forced")
    now = hash_state(existing.program) if existing.program is not None else ""
    if existing.is_measured and now not in (hash_state(start), hash_state(result)):
        return Verdict(False, "it was not measured against what is the default now")
    return Verdict(True)


def set_default(out: Path, program: str, result: dspy.Module, existing: Existing, card: Mapping[str, Any]) -> Path:
    """Save a result as the default; one it replaces in the same folder stays as `previous`, or as `broken`."""
    path = state_path(out, program, "default")
    if existing.path == path:
        is_same = existing.program is not None and hash_state(existing.program) == hash_state(result)
        if existing.is_broken:
            shutil.copyfile(path, path.with_name("broken.json"))
        elif existing.is_measured and not is_same:
            shutil.copyfile(path, path.with_name("previous.json"))
    save_program(result, path, card={**card, "accepted": True})
    return path


def note_agreement(
    out: Path, program: str, judge: dspy.Module, existing: Existing, found: Mapping[str, dict[str, Any]]
) -> Path | None:
    """Note in the card of the default that stays how well it agrees with labels; None where it is another by now.

    What was measured on more rows is never replaced by what was measured on fewer others.
    """
    if existing.program is not None and hash_state(existing.program) != hash_state(judge):
        return None
    known = dict(existing.card.get("agreement") or {})
    for model, new in found.items():
        old = known.get(model)
        if old is None or old.get("judged") == new["judged"] or old["n"] <= new["n"]:
            known[model] = new
    kept = {key: value for key, value in existing.card.items() if key not in _OF_FILE}
    path = state_path(out, program, "default")
    save_program(judge, path, card={"optimizer": "written", "measured": False, **kept, "agreement": known})
    return path
