from pathlib import Path

import pytest

from matrix_dspy.errors import ConfigError
from matrix_dspy.training.settings import load_training


def test_the_paper_preset_has_the_numbers_of_method_4():
    paper = load_training("paper")

    assert (paper.method, paper.epochs, paper.max_length, paper.batch, paper.accumulation) == ("full", 2, 4096, 1, 8)
    assert (paper.schedule, paper.warmup, paper.weight_decay, paper.seed) == ("cosine", 0.03, 0, 0)
    assert (paper.sft.learning_rate, paper.dpo.learning_rate, paper.dpo.beta) == (2e-5, 5e-7, 0.1)


def test_as_printed_differs_from_paper_in_the_rate_of_dpo_only():
    paper, printed = load_training("paper").model_dump(), load_training("paper-as-printed").model_dump()

    assert printed["dpo"].pop("learning_rate") == 2e-5
    assert paper["dpo"].pop("learning_rate") == 5e-7
    assert printed | {"preset": "paper"} == paper


def test_qlora_is_what_matrix_trains_with():
    qlora = load_training("qlora")

    assert (qlora.method, qlora.epochs, qlora.max_length, qlora.sft.learning_rate) == ("qlora", 3, 1024, 2e-5)
    assert (qlora.lora.r, qlora.lora.alpha, qlora.lora.dropout) == (8, 16, 0.05)


def test_lora_takes_ten_times_the_rate_of_full_training_in_dpo():
    assert load_training("lora").dpo.learning_rate == 5e-6
    assert load_training("lora").method == "lora"


def test_the_defaults_are_the_paper_preset():
    assert type(load_training("paper"))() == load_training("paper")


def test_a_preset_of_ones_own_is_read_from_its_file(tmp_path: Path):
    (tmp_path / "mine.toml").write_text("epochs = 1\n[sft]\nlearning_rate = 1e-4\n")

    mine = load_training(str(tmp_path / "mine.toml"), {"batch": 2})

    assert (mine.preset, mine.epochs, mine.sft.learning_rate, mine.batch) == ("mine", 1, 1e-4, 2)


def test_the_effective_batch_counts_accumulation_and_processes():
    assert load_training("paper", {"batch": 2}).effective_batch(4) == 64


def test_another_stages_settings_are_no_part_of_a_training():
    described = load_training("paper").describe("sft")

    assert "dpo" not in described
    assert "lora" not in described
    assert described["sft"]["learning_rate"] == 2e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"batch": 0}, "batch = 0"),
        ({"dpo.beta": -1}, "dpo.beta = -1"),
        ({"method": "dora"}, "method = 'dora'"),
        ({"sft.learning_rate": float("nan")}, "sft.learning_rate = nan"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        load_training("paper", changes)
