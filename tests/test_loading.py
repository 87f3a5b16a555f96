import json
import re
from pathlib import Path
from typing import Any

import dspy
import pytest

from matrix_dspy import list_programs, load_program, save_program
from matrix_dspy.bulk.prompt import Prompt
from matrix_dspy.errors import ProgramNotFoundError, RunError, StateMismatchError
from matrix_dspy.loading import (
    LARGEST_STATE_BYTES,
    build_program,
    describe_fields,
    hash_prompt,
    list_variants,
    name_program,
    read_card,
)
from matrix_dspy.programs.critique import Critic
from matrix_dspy.programs.modulator import Delivery

DEMO = {"instruction": "Add 2 and 2.", "response": "5", "critique": 'It is 4, not 5 {braces} % "quotes" \u00e9.'}
INPUTS = {"instruction": "Name a river.", "response": "The Alps."}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def build_compiled() -> Critic:
    program = Critic()
    program.predict.signature = program.predict.signature.with_instructions("Find faults.\n\n  Be {brief} \\ 100%.")  # pyright: ignore
    program.predict.demos = [dspy.Example(DEMO).with_inputs("instruction", "response")]
    return program


def save_state(path: Path, change: dict[str, Any] | None = None, card: dict[str, Any] | None = None) -> Path:
    """Save a compiled critic, then put `change` into its state and `card` into its card."""
    save_program(build_compiled(), path)
    state = json.loads(path.read_text("utf-8"))
    state |= change or {}
    state["metadata"]["matrix_dspy"] |= card or {}
    path.write_text(json.dumps(state), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", list_programs())
def test_every_program_is_built_and_knows_its_name(name: str):
    program = load_program(name)

    assert name_program(program) == name
    assert len(program.predictors()) == 1


@pytest.mark.parametrize("name", list_programs())
def test_every_program_survives_saving_and_loading(name: str, tmp_path: Path):
    program = build_program(name)

    save_program(program, tmp_path / "state.json")

    assert hash_prompt(load_program(tmp_path / "state.json")) == hash_prompt(program)


def test_a_compiled_prompt_is_byte_identical_after_loading(tmp_path: Path):
    program = build_compiled()
    save_program(program, tmp_path / "state.json")

    loaded = load_program(str(tmp_path / "state.json"))

    assert Prompt.of(loaded).messages(INPUTS) == Prompt.of(program).messages(INPUTS)
    assert Prompt.of(loaded).messages(INPUTS) != Prompt.of(Critic()).messages(INPUTS)


def test_the_card_says_what_was_saved(tmp_path: Path):
    program = build_compiled()

    save_program(program, tmp_path / "deep" / "state.json", card={"optimizer": "labeled", "program": "critic"})

    card = read_card(tmp_path / "deep" / "state.json")
    assert card["program"] == "critic"
    assert card["fields"] == describe_fields(program)
    assert card["fields"] == ["input instruction: str", "input response: str", "output critique: str"]
    assert card["optimizer"] == "labeled"
    assert card["prompt_sha256"] == hash_prompt(program)
    assert card["dspy"] == dspy.__version__


def test_the_lm_is_neither_stored_nor_taken_away_from_the_program(tmp_path: Path):
    program = build_compiled()
    lm = dspy.LM("openai/some-secret-model", api_key="sk-very-secret", api_base="http://10.1.2.3/v1")
    program.set_lm(lm)

    save_program(program, tmp_path / "state.json")

    text = (tmp_path / "state.json").read_text("utf-8")
    assert "secret" not in text and "10.1.2.3" not in text
    assert json.loads(text)["predict"]["lm"] is None
    assert program.predict.lm is lm


@pytest.mark.parametrize(
    "lm",
    [
        {"model": "openai/x", "api_base": "http://attacker.example", "model_type": "chat"},
        {"class": "os.system", "model": "id"},
        {"nonsense": 1},
        3,
    ],
)
def test_an_lm_in_a_state_is_not_restored(tmp_path: Path, lm: Any):
    save_program(build_compiled(), tmp_path / "state.json")
    state = json.loads((tmp_path / "state.json").read_text("utf-8"))
    state["predict"]["lm"] = lm
    (tmp_path / "state.json").write_text(json.dumps(state), encoding="utf-8")

    program = load_program(tmp_path / "state.json")

    assert [predictor.lm for predictor in program.predictors()] == [None]


def test_a_program_of_somebody_else_is_not_saved(tmp_path: Path):
    with pytest.raises(ProgramNotFoundError, match="Predict is none of this package's programs"):
        save_program(dspy.Predict("question -> answer"), tmp_path / "state.json")


def test_a_state_of_another_program_is_refused_naming_both(tmp_path: Path):
    folder = tmp_path / "optimized" / "reviser"
    folder.mkdir(parents=True)
    save_state(folder / "default.json")

    with pytest.raises(StateMismatchError) as caught:
        load_program("reviser")

    assert "'reviser'" in str(caught.value) and "'critic'" in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        ["input response: str", "input instruction: str", "output critique: str"],
        ["input instruction: str", "input response: str", "output critique: int"],
        ["input instruction: str", "output critique: str"],
        ["input instruction: str", "input response: str", "input more: str", "output critique: str"],
        None,
        "critique",
    ],
)
def test_a_state_for_other_fields_is_refused_naming_both_shapes(tmp_path: Path, fields: Any):
    path = save_state(tmp_path / "state.json", card={"fields": fields})

    with pytest.raises(StateMismatchError) as caught:
        load_program(path)

    assert str(fields) in str(caught.value)
    assert str(describe_fields(Critic())) in str(caught.value)


def test_a_state_with_another_predictor_is_refused_naming_both(tmp_path: Path):
    path = save_state(tmp_path / "state.json", {"extra": {"demos": []}})

    with pytest.raises(StateMismatchError, match=r"\['predict', 'extra'\].*\['predict'\]"):
        load_program(path)


@pytest.mark.parametrize("predict", [None, 3, [], {}, {"demos": 3}, {"signature": {"fields": []}}])
def test_a_mangled_predictor_is_refused(tmp_path: Path, predict: Any):
    path = save_state(tmp_path / "state.json", {"predict": predict})

    with pytest.raises(StateMismatchError):
        load_program(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\x80\x04pickle", b"[1, 2]", b"{}", b'{"metadata": 3}', b"null"])
def test_what_is_no_state_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "state.json").write_bytes(content)

    with pytest.raises(StateMismatchError, match=r"is not JSON|has no card"):
        load_program(tmp_path / "state.json")


def test_a_card_without_a_program_is_refused(tmp_path: Path):
    path = save_state(tmp_path / "state.json", card={"program": ["critic"]})

    with pytest.raises(StateMismatchError, match="does not name its program"):
        load_program(path)


def test_a_card_that_names_an_unknown_program_is_refused(tmp_path: Path):
    path = save_state(tmp_path / "state.json", card={"program": "os.system"})

    with pytest.raises(ProgramNotFoundError, match=r"no program 'os\.system', for which '.*state\.json' was saved"):
        load_program(path)


def test_deeply_nested_json_is_refused(tmp_path: Path):
    (tmp_path / "state.json").write_text('{"metadata":' + "[" * 200_000)

    with pytest.raises(StateMismatchError):
        load_program(tmp_path / "state.json")


def test_a_huge_file_is_refused_unread(tmp_path: Path):
    with (tmp_path / "state.json").open("wb") as file:
        file.truncate(LARGEST_STATE_BYTES + 1)

    with pytest.raises(StateMismatchError, match="larger than any state"):
        load_program(tmp_path / "state.json")


@pytest.mark.parametrize("variant", ["../reviser/default", "../../state", "..", "/etc/passwd", "a/b", "a\\b", "", "."])
def test_a_variant_cannot_leave_its_folder(tmp_path: Path, variant: str):
    save_state(tmp_path / "state.json")
    (tmp_path / "optimized" / "critic" / "a").mkdir(parents=True)
    for place in ("optimized/reviser/default.json", "optimized/critic/a/b.json", "optimized/critic/..json"):
        save_state(tmp_path / place)

    with pytest.raises(ProgramNotFoundError):
        load_program("critic", variant)


def test_an_edited_state_is_refused_naming_both_hashes(tmp_path: Path):
    save_program(build_compiled(), tmp_path / "state.json")
    known = read_card(tmp_path / "state.json")["state_sha256"]
    text = (tmp_path / "state.json").read_text("utf-8")
    (tmp_path / "state.json").write_text(text.replace("Find faults.", "Find virtues."), encoding="utf-8")

    with pytest.raises(StateMismatchError, match="not what was saved") as caught:
        load_program(tmp_path / "state.json")

    told = re.findall("'([0-9a-f]{12})'", str(caught.value))
    assert len(set(told)) == 2 and told[1] == known[:12]
    assert "save a change with save_program" in str(caught.value)


@pytest.mark.parametrize("hashed", [None, 3, "", "a\nb", "0" * 10_000, ["0"] * 1000])
def test_a_card_whose_hash_is_none_is_refused_in_a_short_line(tmp_path: Path, hashed: Any):
    path = save_state(tmp_path / "state.json", card={"state_sha256": hashed})

    with pytest.raises(StateMismatchError, match="its card says") as caught:
        load_program(path)

    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_a_state_from_before_its_hash_was_kept_is_refused(tmp_path: Path):
    path = save_state(tmp_path / "state.json")
    state = json.loads(path.read_text("utf-8"))
    del state["metadata"]["matrix_dspy"]["state_sha256"]
    path.write_text(json.dumps(state), encoding="utf-8")

    with pytest.raises(StateMismatchError, match="its card says None; compile it again"):
        load_program(path)


def test_a_field_described_in_other_words_is_refused_naming_both(tmp_path: Path):
    path = save_state(tmp_path / "state.json")
    text = path.read_text("utf-8").replace("the answer to criticise", "the answer to praise")
    path.write_text(text, encoding="utf-8")

    with pytest.raises(StateMismatchError, match=r"field 2 as .*'the answer to praise'.*'the answer to criticise'"):
        load_program(path)


@pytest.mark.parametrize("n", [0, 2, 4])
def test_a_field_too_few_or_too_many_is_refused_naming_the_first(tmp_path: Path, n: int):
    path = save_state(tmp_path / "state.json")
    state = json.loads(path.read_text("utf-8"))
    fields = state["predict"]["signature"]["fields"]
    state["predict"]["signature"]["fields"] = [*fields, {"prefix": "More:", "description": "more"}][:n]
    path.write_text(json.dumps(state), encoding="utf-8")

    with pytest.raises(StateMismatchError, match=f"shows field {min(n, 3) + 1} as .*None"):
        load_program(path)


def test_half_a_character_cannot_stand_in_for_a_question_mark(tmp_path: Path):
    program = build_compiled()
    program.predict.demos = [dspy.Example(DEMO, response="5?")]
    save_program(program, tmp_path / "state.json")
    text = (tmp_path / "state.json").read_text("utf-8")
    (tmp_path / "state.json").write_text(text.replace("5?", "5\\ud800"), encoding="utf-8")

    with pytest.raises(StateMismatchError, match="is not JSON as save_program writes it"):
        load_program(tmp_path / "state.json")


def test_the_order_of_keys_that_a_prompt_shows_is_part_of_what_was_saved(tmp_path: Path):
    program = build_program("reception_router")
    program.predictors()[0].demos = [
        dspy.Example(members=["1: a baker"], events=["0: a fire"], deliveries=[Delivery(event=0, members=[1])])
    ]
    save_program(program, tmp_path / "state.json")
    state = json.loads((tmp_path / "state.json").read_text("utf-8"))
    demo = state["predict"]["demos"][0]
    turned = [dict(reversed(delivery.items())) for delivery in demo["deliveries"]]

    state["predict"]["demos"] = [dict(reversed(demo.items()))]
    (tmp_path / "state.json").write_text(json.dumps(state), encoding="utf-8")
    assert hash_prompt(load_program(tmp_path / "state.json")) == hash_prompt(program)

    state["predict"]["demos"] = [{**demo, "deliveries": turned}]
    (tmp_path / "state.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(StateMismatchError, match="not what was saved"):
        load_program(tmp_path / "state.json")


def test_a_key_that_stands_twice_is_refused(tmp_path: Path):
    path = save_state(tmp_path / "state.json")
    text = path.read_text("utf-8")
    path.write_text(text.replace('"instructions":', '"instructions": "Shown to a reader.", "instructions":'))

    with pytest.raises(StateMismatchError, match="is not JSON as save_program writes it"):
        load_program(path)


@pytest.mark.parametrize("place", ["demos", "fields", "card", "keys"])
def test_millions_of_values_are_refused_before_anything_is_made_of_them(tmp_path: Path, place: str):
    many = ",".join(["1"] * (LARGEST_STATE_BYTES // 2 - 5_000))
    texts = {
        "demos": ('"demos": []', f'"demos": [{many}]'),
        "fields": ('"signature": {', f'"signature": {{"fields": [{many}], '),
        "card": ('"program": "critic"', f'"program": [{many}]'),
        "keys": ('"traces": []', ",".join(f'"{key}": []' for key in range(500_000))),
    }
    program = build_compiled()
    program.predict.demos = []
    save_program(program, tmp_path / "state.json")
    text = (tmp_path / "state.json").read_text("utf-8").replace('"fields": [', '"others": [', place == "fields")
    (tmp_path / "state.json").write_text(text.replace(*texts[place], 1), encoding="utf-8")

    with pytest.raises(StateMismatchError, match="holds more than any state"):
        load_program(tmp_path / "state.json")


def test_a_text_that_no_file_holds_is_not_saved(tmp_path: Path):
    program = build_compiled()
    program.predict.demos = [dspy.Example(DEMO, response="\ud800")]

    with pytest.raises(RunError, match="could not save the state"):
        save_program(program, tmp_path / "state.json")

    assert list(tmp_path.iterdir()) == []


def test_only_variants_that_can_be_loaded_are_listed(tmp_path: Path):
    for name in ("mine", "a b", "-x", "a\nb", ".hidden", "v1.2"):
        save_program(build_compiled(), tmp_path / "optimized" / "critic" / f"{name}.json")

    listed = list_variants("critic")

    assert {"mine", "v1.2"} <= set(listed)
    assert {load_program("critic", name) and name for name in listed} == set(listed)


def test_an_unknown_program_is_refused_with_a_near_name():
    with pytest.raises(
        ProgramNotFoundError, match="no program 'instruction_writter'; did you mean 'instruction_writer'"
    ):
        load_program("instruction_writter")


@pytest.mark.parametrize("name", ["../critic", "critic/", "", "Critic"])
def test_a_name_that_is_no_program_is_refused(name: str):
    with pytest.raises(ProgramNotFoundError):
        load_program(name)


def test_an_unknown_variant_is_refused_with_a_near_name(tmp_path: Path):
    save_program(build_compiled(), tmp_path / "optimized" / "critic" / "gepa-2.json")

    with pytest.raises(ProgramNotFoundError, match="no variant 'gepa-3'; did you mean 'gepa-2'"):
        load_program("critic", "gepa-3")


def test_a_path_to_nothing_is_refused(tmp_path: Path):
    with pytest.raises(ProgramNotFoundError, match="no state file"):
        load_program(tmp_path / "none.json")


def test_the_states_in_the_present_folder_come_before_the_packages_own(tmp_path: Path):
    as_shipped = hash_prompt(load_program("critic"))

    save_program(build_compiled(), tmp_path / "optimized" / "critic" / "default.json")

    assert hash_prompt(load_program("critic")) == hash_prompt(build_compiled()) != as_shipped


def test_variants_of_the_present_folder_are_listed(tmp_path: Path):
    save_program(build_compiled(), tmp_path / "optimized" / "critic" / "mine.json")

    assert "mine" in list_variants("critic")
    assert "mine" not in list_variants("reviser")


def test_what_is_shipped_for_a_program_loads():
    for name in list_programs():
        for variant in list_variants(name):
            assert name_program(load_program(name, variant)) == name


@pytest.mark.parametrize("name", list_programs())
def test_a_program_says_what_it_is_for(name: str):
    program = build_program(name)

    assert type(program).__doc__
    assert describe_fields(program)[-1].startswith("output ")
