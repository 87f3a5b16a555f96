from pathlib import Path
from typing import Any

import dspy
import pytest

from matrix_dspy.errors import ConfigError
from matrix_dspy.loading import build_program, load_program, read_card, save_program
from matrix_dspy.optimization.accepting import (
    Existing,
    check_variant,
    decide,
    load_start,
    merge_orders,
    note_agreement,
    read_existing,
    set_default,
)
from matrix_dspy.optimization.agreement import Interval
from matrix_dspy.optimization.judged import JudgedRow

SURE, UNSURE = Interval(0.3, 0.1, 0.5), Interval(0.3, -0.01, 0.6)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def build(instruction: str) -> dspy.Module:
    program = build_program("critic")
    predictor: Any = program.predictors()[0]
    predictor.signature = predictor.signature.with_instructions(instruction)
    return program


def save_default(out: Path, instruction: str, **card: Any) -> Existing:
    save_program(build(instruction), out / "critic" / "default.json", card=card)
    return read_existing("critic", out)


@pytest.mark.parametrize(
    ("gain", "n_rows", "is_forced", "why_not"),
    [
        (SURE, 26, False, ""),
        (UNSURE, 26, False, "the interval does not exclude zero"),
        (Interval(0.3, 0.0, 0.5), 26, False, "the interval does not exclude zero"),
        (SURE, 23, False, "23 test rows are too few to be sure; 24 are needed"),
        (SURE, 26, True, "the judge was forced"),
    ],
)
def test_only_a_sure_gain_by_a_trusted_judge_makes_a_default(
    gain: Interval, n_rows: int, is_forced: bool, why_not: str
) -> None:
    verdict = decide(gain, n_rows, Existing(None, None), build("a"), build("b"), is_forced=is_forced)

    assert (verdict.is_accepted, verdict.why_not) == (not why_not, why_not)


def test_a_measured_default_falls_only_to_what_was_measured_against_it(tmp_path: Path) -> None:
    measured = save_default(tmp_path, "now", measured=True)

    assert decide(SURE, 26, measured, build("now"), build("new"), is_forced=False).is_accepted
    assert decide(SURE, 26, measured, build("old"), build("now"), is_forced=False).is_accepted
    assert not decide(SURE, 26, measured, build("old"), build("new"), is_forced=False).is_accepted
    unmeasured = save_default(tmp_path, "now", measured=False)
    assert decide(SURE, 26, unmeasured, build("old"), build("new"), is_forced=False).is_accepted


def test_what_is_replaced_is_kept_as_previous_and_what_cannot_be_read_as_broken(tmp_path: Path) -> None:
    set_default(tmp_path, "critic", build("second"), save_default(tmp_path, "first", measured=True), {"measured": True})

    assert load_program(tmp_path / "critic" / "previous.json").predictors()[0].signature.instructions == "first"  # pyright: ignore

    (tmp_path / "critic" / "default.json").write_text("{", encoding="utf-8")
    broken = read_existing("critic", tmp_path)
    assert broken.is_broken
    assert load_start("critic", tmp_path, "default").predictors()
    set_default(tmp_path, "critic", build("third"), broken, {})
    assert (tmp_path / "critic" / "broken.json").read_text("utf-8") == "{"
    assert read_card(tmp_path / "critic" / "default.json")["accepted"] is True


@pytest.mark.parametrize("variant", ["default", "previous", "broken", "written"])
def test_a_reserved_name_is_no_variant(tmp_path: Path, variant: str) -> None:
    with pytest.raises(ConfigError, match="has a meaning of its own"):
        check_variant(tmp_path, "critic", variant)


def test_agreement_measured_on_fewer_other_rows_never_replaces_that_on_more(tmp_path: Path) -> None:
    existing = save_default(tmp_path, "now", measured=True, agreement={"big": {"n": 260, "judged": "shipped"}})

    note_agreement(tmp_path, "critic", build("now"), existing, {"big": {"n": 2, "judged": "mine"}})
    note_agreement(
        tmp_path, "critic", build("now"), read_existing("critic", tmp_path), {"new": {"n": 2, "judged": "x"}}
    )

    found = read_card(tmp_path / "critic" / "default.json")["agreement"]
    assert (found["big"]["n"], found["new"]["n"]) == (260, 2)


def test_agreement_of_another_state_is_not_noted(tmp_path: Path) -> None:
    existing = save_default(tmp_path, "now", measured=True)

    assert note_agreement(tmp_path, "critic", build("other"), existing, {"m": {"n": 30, "judged": "x"}}) is None
    assert "agreement" not in read_card(tmp_path / "critic" / "default.json")


def test_the_two_orders_of_a_pair_are_one_row() -> None:
    rows = [
        JudgedRow(id=name, split="test", inputs={}, output={})
        for name in ("pair_judge-1", "pair_judge-1-turned", "pair_judge-2", "pair_judge-2-turned")
    ]

    assert merge_orders(rows, [1.0, 0.0, 1.0, 1.0]) == [0.5, 1.0]
