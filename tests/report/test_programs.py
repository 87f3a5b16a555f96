import json
from pathlib import Path
from typing import Any

import dspy
import pytest

from matrix_dspy import list_programs, save_program
from matrix_dspy.errors import ProgramNotFoundError, StateMismatchError
from matrix_dspy.loading import build_program, describe_fields, find_variant, hash_prompt, list_variants, read_signature
from matrix_dspy.optimization import agreement
from matrix_dspy.optimization.measuring import mean
from matrix_dspy.report.programs import describe_card, describe_program, diff_variants, list_program_lines
from tests.conftest import run_cli

BEFORE, AFTER = [0.4, 0.5, 0.6, 0.5], [0.6, 0.7, 0.7, 0.6]
LABELS, SCORES = [1, 2, 3, 4, 5, 2, 3, 4], [1, 2, 3, 4, 5, 4, 3, 3]
INSTRUCTION = "Find what is wrong.\n\nBe brief."
DEMO = {"instruction": "Add 2 and 2.", "response": "5", "critique": "It is 4."}

CARD: dict[str, Any] = {
    "optimizer": "gepa",
    "settings": {"seed": 0, "budget": 2000, "start": "default", "max_demos": 0, "sampling": {"temperature": 0.7}},
    "measured": True,
    "forced": False,
    "lm": "openai/task",
    "teacher_lm": "openai/teacher",
    "judge_lm": "openai/judge",
    "metric": {"name": "checks and judge", "version": 1},
    "judged": {"sha256": "abcdef0123456789", "rows": 60},
    "n_train": 30,
    "n_val": 15,
    "n_test": 4,
    "val": {"before": 0.5, "after": 0.6},
    "test": {
        "before": agreement.bootstrap(mean, BEFORE).dump(),
        "after": agreement.bootstrap(mean, AFTER).dump(),
        "gain": agreement.compare(BEFORE, AFTER).dump(),
    },
    "calls": {"total": 1987, "judge": 900, "task": 1000, "teacher": 87},
    "candidates": 12,
    "unjudged": 0,
    "accepted": True,
}
"""As a compile writes it."""
FOUND = agreement.describe_agreement(LABELS, SCORES)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def build_critic(instruction: str = INSTRUCTION, demos: int = 0) -> dspy.Module:
    program = build_program("critic")
    predictor: Any = program.predictors()[0]
    predictor.signature = read_signature(program).with_instructions(instruction)
    predictor.demos = [dspy.Example(DEMO)] * demos
    return program


def save_variant(
    variant: str, *, instruction: str = INSTRUCTION, demos: int = 0, card: dict[str, Any] | None = None
) -> Path:
    """Save a critic under `./optimized`, which comes before the package's own."""
    path = Path("optimized") / "critic" / f"{variant}.json"
    save_program(build_critic(instruction, demos), path, card=card)
    return path


def edit_card(path: Path, **changes: Any) -> None:
    state = json.loads(path.read_text("utf-8"))
    state["metadata"]["matrix_dspy"] |= changes
    path.write_text(json.dumps(state), encoding="utf-8")


def list_by_name() -> dict[str, str]:
    return {line.split()[0]: line for line in list_program_lines() if not line.startswith(" ")}


def test_every_program_has_a_line_in_the_order_of_the_path():
    lines = list_by_name()

    assert list(lines) == list_programs()
    for name, line in lines.items():
        assert str(type(build_program(name)).__doc__).splitlines()[0] in line


def test_a_program_without_a_default_is_listed_as_written():
    lines = list_by_name()

    for name in list_programs():
        assert ("as written" in lines[name]) == (find_variant(name, "default") is None)


def test_a_measured_default_is_listed_with_its_gain_and_its_lm():
    save_variant("default", card=CARD)

    assert "gepa, gain +0.150 on openai/task" in list_by_name()["critic"]


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({}, "unknown, unmeasured"),
        ({"optimizer": "labeled", "measured": False}, "labeled, unmeasured"),
        ({"optimizer": "written", "measured": True}, "written, measured"),
    ],
)
def test_a_default_without_test_figures_is_listed_with_what_is_known(card: dict[str, Any], words: str):
    save_variant("default", card=card)

    assert words in list_by_name()["critic"]


def test_further_variants_stand_on_a_line_of_their_own():
    for variant in ("default", "gepa", "mine-2"):
        save_variant(variant)
    others = [variant for variant in list_variants("critic") if variant != "default"]

    lines = list(list_program_lines())

    place = next(number for number, line in enumerate(lines) if line.startswith("critic "))
    assert {"gepa", "mine-2"} <= set(others)
    assert lines[place + 1].strip() == f"variants: {', '.join(others)}"


def test_a_program_is_shown_with_fields_hash_variants_and_instruction():
    path = save_variant("default", card=CARD)
    program = build_critic()

    lines = list(describe_program("critic"))

    assert lines[0] == "critic: Instruction and response to a critique."
    assert lines[1] == f"prompt:   {hash_prompt(program)[:16]}"
    assert lines[2:5] == [f"  {field}" for field in describe_fields(program)]
    assert lines[5] == f"variants: {', '.join(list_variants('critic'))}"
    assert f"[default] {path}" in lines
    assert lines[-2:] == ["", INSTRUCTION]


def test_a_program_of_one_turn_says_that_it_has_no_instruction():
    assert list(describe_program("responder"))[-1] == "(no instruction: the input is the user's turn)"


def test_the_card_of_a_measured_state_is_told_with_its_figures():
    gain = CARD["test"]["gain"]

    lines = list(describe_card({**CARD, "dspy": "3.4.1"}))

    assert lines == [
        "optimizer gepa, DSPy 3.4.1",
        f"test: 0.500 [{CARD['test']['before']['low']:.3f}, {CARD['test']['before']['high']:.3f}] before, "
        f"0.650 [{CARD['test']['after']['low']:.3f}, {CARD['test']['after']['high']:.3f}] after, "
        f"gain 0.150 [{gain['low']:.3f}, {gain['high']:.3f}] on 4 rows",
        "for openai/task, taught by openai/teacher, judged by openai/judge",
        "1,987 calls, 12 candidates, labels abcdef012345",
    ]


def test_a_judge_was_judged_by_labels():
    assert "for openai/task, taught by openai/teacher, judged by labels" in list(
        describe_card({**CARD, "judge_lm": ""})
    )


def test_a_judges_agreement_is_told_for_each_model_and_program():
    card = {
        **CARD,
        "agreement": {
            "openai/task": {**FOUND, "unanswered": 0, "by_program": {"actor": FOUND, "scenario_writer": FOUND}},
            "openai/other": {**FOUND, "by_program": {}},
        },
    }
    figures = (
        f"kappa {FOUND['kappa']['value']:.3f} [{FOUND['kappa']['low']:.3f}, {FOUND['kappa']['high']:.3f}], "
        f"Spearman {FOUND['spearman']['value']:.3f} [{FOUND['spearman']['low']:.3f}, {FOUND['spearman']['high']:.3f}], "
        "false accepts 0.20, n 8"
    )

    lines = list(describe_card(card))

    assert lines[-4:] == [
        f"agreement with labels on openai/task: {figures}",
        f"  actor              {figures}",
        f"  scenario_writer    {figures}",
        f"agreement with labels on openai/other: {figures}",
    ]


def test_a_judge_of_pairs_is_told_by_its_orders():
    found = agreement.describe_orders([True, True, False, True], [True, False, False, True])

    lines = list(describe_card({**CARD, "agreement": {"openai/task": found}}))

    interval = found["agreement"]
    assert lines[-1] == (
        f"agreement with labels on openai/task: 0.625 [{interval['low']:.3f}, {interval['high']:.3f}] of pairs, "
        "order flips 0.25, n 4"
    )


def test_the_card_of_an_unmeasured_state_says_so():
    card = {"optimizer": "labeled", "measured": False, "settings": {"max_demos": 2, "demos": 2}, "dspy": "3.4.1"}

    assert list(describe_card(card)) == [
        "optimizer labeled, 2 demos, DSPy 3.4.1",
        "unmeasured: nothing is known of how good it is",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"test": 3},
        {"test": {"gain": 0.1}},
        {"test": {"gain": {"value": "much"}}},
        {"calls": None},
        {"lm": "x", "judged": {"sha256": None}},
        {"settings": "many"},
        {"agreement": ["x"]},
        {"agreement": {"x": None}},
        {"agreement": {"x": {"kappa": 0.8}}},
    ],
    ids=str,
)
def test_a_card_edited_into_another_form_is_an_error_that_names_the_file(change: dict[str, Any]):
    edit_card(save_variant("default", card=CARD), **change)

    with pytest.raises(StateMismatchError, match=r"the card of 'optimized/critic/default\.json' is not as compile"):
        list(describe_program("critic"))


def test_a_listed_card_of_another_form_is_an_error_that_names_the_file():
    edit_card(save_variant("default", card=CARD), test={"gain": None})

    with pytest.raises(StateMismatchError, match=r"the card of 'optimized/critic/default\.json'"):
        list(list_program_lines())


def test_a_state_that_does_not_fit_is_not_shown():
    edit_card(save_variant("default"), fields=["input x: str"])

    with pytest.raises(StateMismatchError, match="does not fit program 'critic'"):
        list(describe_program("critic"))


def test_variants_that_differ_are_told_line_by_line():
    save_variant("one")
    save_variant("other", instruction="Find what is wrong.\n\nBe thorough.", demos=1)

    lines = list(diff_variants("critic", "one", "other"))

    assert lines[:2] == ["--- critic/one", "+++ critic/other"]
    taken, put = ([line[1:].strip() for line in lines[2:] if line[0] == sign] for sign in "-+")
    assert taken == ["Be brief."]
    assert put[0] == "Be thorough."
    assert {"[user]", "Add 2 and 2.", "[assistant]", "It is 4."} <= set(put)


def test_variants_that_send_the_same_are_said_to():
    save_variant("one", card=CARD)
    save_variant("other")

    assert list(diff_variants("critic", "one", "other")) == ["one and other send the same"]
    assert list(diff_variants("critic", "one", "one")) == ["one and one send the same"]


def test_the_program_as_written_is_one_side_of_a_comparison():
    written = read_signature(build_program("critic")).instructions
    save_variant("same", instruction=written)
    save_variant("other")

    assert list(diff_variants("critic", "written", "same")) == ["written and same send the same"]
    assert "-        Be brief." in [line.rstrip() for line in diff_variants("critic", "other", "written")]


@pytest.mark.parametrize("sides", [("written", "mine"), ("mine", "written"), ("../x", "written")])
def test_a_variant_that_is_not_there_is_not_compared(sides: tuple[str, str]):
    with pytest.raises(ProgramNotFoundError, match="program 'critic' has no variant"):
        list(diff_variants("critic", *sides))


def test_the_command_line_lists_shows_and_compares(tmp_path: Path):
    save_variant("default", card=CARD)

    listed = run_cli("programs", cwd=tmp_path)
    shown = run_cli("programs", "critic", cwd=tmp_path)
    compared = run_cli("programs", "critic", "--diff", "written", "default", cwd=tmp_path)

    assert [listed.returncode, shown.returncode, compared.returncode] == [0, 0, 0]
    assert listed.stdout.splitlines() == list(list_program_lines())
    assert shown.stdout.splitlines() == "\n".join(describe_program("critic")).splitlines()
    assert "gain 0.150 [" in shown.stdout
    assert compared.stdout.splitlines() == list(diff_variants("critic", "written", "default"))
    assert compared.stdout.startswith("--- critic/written\n+++ critic/default\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["critick"], "no program 'critick'; did you mean 'critic'?"),
        (["critic", "--diff", "written", "mihe"], "program 'critic' has no variant 'mihe'; did you mean 'mine'?"),
        (["--diff", "written", "default"], "--diff compares two variants of one program; name it: programs NAME"),
        (["critic", "--diff", "written", "bad"], "'optimized/critic/bad.json' is not what was saved"),
    ],
)
def test_a_mistake_at_the_command_line_is_one_sentence(arguments: list[str], words: str, tmp_path: Path):
    save_variant("mine")
    bad = save_variant("bad")
    bad.write_text(bad.read_text("utf-8").replace("Be brief.", "Be kind."), encoding="utf-8")

    done = run_cli("programs", *arguments, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {words}")
    assert len(done.stderr.splitlines()) == 1
