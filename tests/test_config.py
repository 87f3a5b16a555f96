from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from matrix_dspy.config import (
    SAMPLING,
    Config,
    SamplingConfig,
    list_kinds,
    list_recipes,
    load_kind,
    load_recipe,
    parse_setting,
)
from matrix_dspy.errors import ConfigError
from matrix_dspy.loading import list_programs


@pytest.mark.parametrize("name", list_recipes())
def test_every_shipped_recipe_loads_and_knows_its_name(name: str):
    assert load_recipe(name).recipe == name


def test_the_recipes_for_trying_and_for_the_paper_are_shipped():
    assert {"tiny", "small", "paper"} <= set(list_recipes())


def test_the_paper_recipe_has_the_papers_numbers():
    paper = load_recipe("paper")

    assert paper.population.n_agents == 1000
    assert paper.simulation.n_groups in (None, 200)
    assert paper.simulation.max_group_size == 10


@pytest.mark.parametrize("name", list_kinds())
def test_every_shipped_kind_loads_and_knows_its_name(name: str):
    kind = load_kind(name)

    assert kind.name == name
    assert set(kind.lengths) == set(kind.complexities) == {"simple", "specialised"}


def test_a_recipe_nobody_ships_is_refused_with_a_near_name():
    with pytest.raises(ConfigError, match="no recipe 'tyny'; did you mean 'tiny'"):
        load_recipe("tyny")


def test_a_kind_nobody_ships_is_refused_with_what_there_is():
    with pytest.raises(ConfigError, match=r"no kind 'zzz'; choose one of .*sft"):
        load_kind("zzz")


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("simulation.lokahead", "simulation.lookahead"),
        ("operation.timeout", "operation.timeout_s"),
        ("population.agents", "population.n_agents"),
        ("sede", "seed"),
    ],
)
def test_an_unknown_key_is_refused_with_a_near_word(key: str, near: str):
    with pytest.raises(ConfigError) as caught:
        load_recipe("tiny", {key: 1})

    assert repr(key) in str(caught.value)
    assert f"did you mean {near!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n", 0),
        ("seed", -1),
        ("population.n_agents", 0),
        ("population.memory_tokens", 199),
        ("simulation.communication", "telepathy"),
        ("simulation.max_group_size", 0),
        ("simulation.lookahead", -1),
        ("synthesis.type", "hard"),
        ("synthesis.relevance_weight", 1.1),
        ("synthesis.oversample", 0.9),
        ("synthesis.group_share", 0.0),
        ("curation.near_duplicate", 0.0),
        ("curation.leak_words", 3),
        ("operation.concurrency", 0),
        ("operation.concurrency", 65537),
        ("operation.timeout_s", float("nan")),
        ("operation.patience_s", float("inf")),
        ("sampling.critic.temperature", 2.5),
        ("sampling.critic.top_p", 0.0),
        ("sampling.critic.max_tokens", 0),
        ("n", "many"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_key_and_value(key: str, value: Any):
    with pytest.raises(ConfigError) as caught:
        load_recipe("tiny", {key: value})

    assert str(caught.value).startswith(f"{key} = {value!r} does not do: ")


def test_changes_reach_the_named_key_and_no_other():
    before = load_recipe("tiny")

    after = load_recipe("tiny", {"n": 7, "simulation.lookahead": 0, "sampling.actor.temperature": 0.1})

    assert (after.n, after.simulation.lookahead) == (7, 0)
    assert after.sampling_of("actor").temperature == 0.1
    assert after.simulation.model_copy(update={"lookahead": before.simulation.lookahead}) == before.simulation
    assert after.synthesis == before.synthesis


def test_a_key_below_a_plain_value_is_refused():
    with pytest.raises(ConfigError, match=r"'n' is not a section; cannot set 'n\.size'"):
        load_recipe("tiny", {"n.size": 3})


def test_a_config_cannot_be_changed_afterwards():
    config = Config()

    with pytest.raises(ValidationError):
        config.n = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("n=3", "n", 3),
        ("operation.timeout_s=1.5", "operation.timeout_s", 1.5),
        ("operation.keep_prompts=true", "operation.keep_prompts", True),
        ('synthesis.need="a bank"', "synthesis.need", "a bank"),
        ("synthesis.need=help for a bank", "synthesis.need", "help for a bank"),
        ("synthesis.need=a=b", "synthesis.need", "a=b"),
        ("synthesis.need=", "synthesis.need", ""),
        (" n = 3", "n", 3),
        ('population.columns={name = "realname"}', "population.columns", {"name": "realname"}),
    ],
)
def test_a_setting_is_read_as_toml_or_else_as_text(text: str, key: str, value: Any):
    assert parse_setting(text) == (key, value)


@pytest.mark.parametrize("text", ["n", "=3", "", " = 3"])
def test_a_setting_without_key_or_equals_sign_is_refused(text: str):
    with pytest.raises(ConfigError, match=r"write --set section\.key=value"):
        parse_setting(text)


def test_ones_own_recipe_is_loaded_by_path(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text("n = 12\n[population]\nn_agents = 3\n", encoding="utf-8-sig")

    config = load_recipe(str(path))

    assert (config.recipe, config.n, config.population.n_agents) == ("mine", 12, 3)


def test_ones_own_kind_is_loaded_by_path(tmp_path: Path):
    shipped = (Path(load_recipe.__code__.co_filename).parent / "recipes" / "kinds" / "sft.toml").read_text("utf-8")
    path = tmp_path / "bank.toml"
    path.write_text(shipped.replace('name = "sft"', 'name = "bank"', 1), encoding="utf-8")

    assert load_kind(str(path)).name == "bank"


def test_a_path_to_nothing_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no recipe file .*; check the path"):
        load_recipe(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("content", [b"n = ", b"n = 1\nn = 2\n", b"\xff\xfe\x00"])
def test_a_broken_file_is_refused_as_no_toml(tmp_path: Path, content: bytes):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match="is not TOML"):
        load_recipe(str(path))


def test_a_kind_without_categories_is_refused(tmp_path: Path):
    path = tmp_path / "empty.toml"
    path.write_text('name="x"\ndescribe="x"\nrequirement="x"\ncategories=[]\nstyles=[]\n[lengths]\n[complexities]\n')

    with pytest.raises(ConfigError, match="categories"):
        load_kind(str(path))


def test_every_program_has_its_own_sampling():
    assert set(SAMPLING) == set(list_programs())


def test_an_unknown_program_is_sampled_by_the_general_defaults():
    assert Config().sampling_of("somebody elses") == SamplingConfig()


def test_every_knob_says_in_a_sentence_what_it_is():
    sections: list[type[BaseModel]] = [Config, SamplingConfig]
    sections += [type(value) for value in dict(Config()).values() if isinstance(value, BaseModel)]

    unsaid = [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if not field.description and not isinstance(field.default, BaseModel)
    ]

    assert len(sections) > 5
    assert unsaid == []
