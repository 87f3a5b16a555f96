"""What holds on a GPU, and on a base of few bits, on a machine that has neither GPU nor bitsandbytes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from matrix_dspy.errors import ConfigError
from matrix_dspy.training import fitting
from matrix_dspy.training.fitting import choose_attention, count_numbers, is_bf16
from matrix_dspy.training.settings import Stage
from matrix_dspy.training.tuning import train
from tests.training.material import fast


class Params4bit(torch.nn.Parameter):
    """What bitsandbytes keeps weights in: two of them in a byte."""


def load_as_quantised(name: str, *others: Any, **settings: Any) -> Any:
    """Load a model and mark it as transformers does; of 8 bits, since it needs the library to count those of 4."""
    model = load_model(name, *others, **settings)
    model.is_loaded_in_8bit = True
    return model


load_model = fitting.load_model


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_adapters_on_a_base_of_few_bits_are_trained_in_fp32(
    stage: Stage, tiny: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from safetensors.torch import load_file

    monkeypatch.setattr(fitting, "load_model", load_as_quantised)
    source = request.getfixturevalue("conversations" if stage == "sft" else "pairs")
    config = fast("lora", lora__r=4, max_steps=3, eval_share=0, save_steps=2)
    lines: list[str] = []

    train(config, source, str(tiny), tmp_path / "out", stage=stage, say=lines.append)

    for folder in ("adapter", "checkpoints/checkpoint-2"):
        weights = load_file(tmp_path / "out" / folder / "adapter_model.safetensors")
        assert {each.dtype for each in weights.values()} == {torch.float32}


def test_packed_numbers_are_counted_one_by_one():
    plain = torch.nn.Parameter(torch.zeros(6, 4))
    packed = Params4bit(torch.zeros(12, 1, dtype=torch.uint8), requires_grad=False)
    wide = Params4bit(torch.zeros(6, 1, dtype=torch.bfloat16), requires_grad=False)

    assert [count_numbers(each) for each in (plain, packed, wide)] == [24, 24, 24]


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU of 2018, which has both kernels installed and works out bf16 by other means."""

    def is_supported(including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(fitting, "find_spec", lambda name: name)


@pytest.mark.usefixtures("old_gpu")
def test_an_old_gpu_is_given_neither_bf16_nor_flash_attention():
    assert not is_bf16(fast())
    assert choose_attention(fast()) == "sdpa"
    with pytest.raises(ConfigError, match="'bf16' needs a GPU that has it"):
        is_bf16(fast(precision="bf16"))
    with pytest.raises(ConfigError, match=r"needs a GPU of compute capability 8\.0, and this one has 7\.5; use sdpa"):
        choose_attention(fast(attention="flash_attention_2"))


@pytest.mark.usefixtures("old_gpu")
@pytest.mark.parametrize(
    ("capability", "kernel"), [((8, 6), "flash_attention_2"), ((9, 0), "flash_attention_3"), ((7, 5), "sdpa")]
)
def test_a_gpu_is_given_the_newest_kernel_it_has(
    capability: tuple[int, int], kernel: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    assert choose_attention(fast()) == kernel
    if capability == (8, 6):
        with pytest.raises(ConfigError, match=r"capability 9\.0, and this one has 8\.6"):
            choose_attention(fast(attention="flash_attention_3"))
