"""Every knob of a training, with a sentence under each; presets in recipes/training are the papers' and our own.

Nothing heavy is imported here: a preset is read and checked before torch is.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from matrix_dspy.config import RECIPES, Section, load_section

Stage = Literal["sft", "dpo"]
Method = Literal["full", "lora", "qlora"]
Attention = Literal["auto", "sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"]
PRESETS = RECIPES / "training"
OPERATION = frozenset({"preset", "report_to", "keep_checkpoints", "save_steps"})
"""Keys that may change between starts of one training, since nothing of the model follows from them."""
_MOST = 2**31 - 1
"""What the libraries below take for a count."""


class SFTSection(Section):
    """What holds for supervised fine-tuning alone."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """Highest learning rate. Paper: 2e-5."""
    packing: bool = False
    """Whether several rows share one sequence of `max_length`, each seeing itself only; steps then hold more rows."""


class DPOSection(Section):
    """What holds for direct preference optimisation alone."""

    learning_rate: float = Field(default=5e-7, gt=0)
    """Highest learning rate; 2e-5 is what the paper prints for both stages."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is held to where it started. Paper: 0.1."""
    precompute_reference: bool = False
    """Whether the reference model's figures are computed before training, so that it need not stay in memory."""


class LoraSection(Section):
    """Adapters of methods lora and qlora."""

    r: int = Field(default=16, ge=1, le=_MOST)
    """Rank. [MATRIX]: 8."""
    alpha: int = Field(default=32, ge=1, le=_MOST)
    """Scale of the adapter's output is alpha / r. [MATRIX]: 16."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of inputs to the adapter that is dropped. [MATRIX]: 0.05."""
    target_modules: tuple[str, ...] = Field(default=("all-linear",), min_length=1)
    """Names of the layers that get one; all-linear is every linear layer but the output."""


class TrainingConfig(Section):
    """How a model is trained; the defaults are preset `paper` (METHOD 4)."""

    preset: str = "paper"
    """Name of the preset this came from."""
    method: Method = "full"
    """All parameters, LoRA adapters, or LoRA adapters on a base of 4 bits (qlora, needs a GPU and bitsandbytes)."""
    epochs: float = Field(default=2.0, gt=0, le=1e6)
    """Passes over the data. Paper: 2; [MATRIX]: 3."""
    max_steps: int | None = Field(default=None, ge=1, le=_MOST)
    """Steps at the most; unset, and where `epochs` is through before, the data says how many there are."""
    max_length: int = Field(default=4096, ge=8, le=_MOST)
    """Longest row in tokens, chat template included. Paper: 4,096; [MATRIX]: 1,024."""
    too_long: Literal["drop", "cut"] = "drop"
    """What happens to rows longer than that: left out, or cut off at the end; both are counted and said."""
    batch: int = Field(default=1, ge=1, le=_MOST)
    """Rows a device takes at once. Paper: 1."""
    accumulation: int = Field(default=8, ge=1, le=_MOST)
    """Batches whose gradients make one step. Paper: 8."""
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """How the learning rate falls. Paper: cosine."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises. [MATRIX]: 0.03."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Pull of the weights to zero. Paper: 0."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Length that gradients are cut to."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the order of rows, of new adapters and of dropout."""
    eval_share: float = Field(default=0.02, ge=0, le=0.5)
    """Share of the rows that is held out, chosen by a hash of the row's id; 0 holds out none."""
    eval_steps: int | None = Field(default=None, ge=1, le=_MOST)
    """Steps between two evaluations; unset is a tenth of the run."""
    save_steps: int | None = Field(default=None, ge=1, le=_MOST)
    """Steps between two checkpoints; unset is a tenth of the run."""
    keep_checkpoints: int = Field(default=2, ge=2, le=_MOST)
    """Newest checkpoints that are kept; the last but one is there for when the last is not whole."""
    sample_steps: int | None = Field(default=None, ge=1, le=_MOST)
    """Steps between two looks at answers of the model in training; unset is as often as it is evaluated."""
    n_samples: int = Field(default=4, ge=0, le=_MOST)
    """Held-out prompts answered at every such look; 0 looks at none."""
    sample_tokens: int = Field(default=128, ge=1, le=_MOST)
    """Longest such answer, in tokens."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of the arithmetic; auto is bf16 on a GPU that has it, else fp32."""
    tf32: bool = True
    """Whether a GPU that has it may multiply fp32 matrices in tf32."""
    gradient_checkpointing: bool = True
    """Whether activations are computed twice rather than kept, about a fifth slower with far less memory."""
    attention: Attention = "auto"
    """Attention kernel; auto is FlashAttention 3 or 2 where installed and a GPU is there, else PyTorch's own (sdpa)."""
    compile: bool = False
    """Whether the model is compiled by PyTorch, which pays off on long runs on a GPU."""
    pad_token: str = ""
    """Token that fills up short rows; unset is the tokenizer's own, or a spare special token of its vocabulary."""
    chat_template: str = ""
    """Jinja file with the chat template, for a model that has none or another; it is saved with the model."""
    report_to: Literal["none", "tensorboard", "trackio"] = "none"
    """Where figures go beside metrics.jsonl; both write to this machine only."""
    sft: SFTSection = SFTSection()
    dpo: DPOSection = DPOSection()
    lora: LoraSection = LoraSection()

    def learning_rate(self, stage: Stage) -> float:
        """Return the highest learning rate of a stage."""
        return self.sft.learning_rate if stage == "sft" else self.dpo.learning_rate

    def is_packed(self, stage: Stage) -> bool:
        """Whether several rows share a sequence; pairs never do."""
        return stage == "sft" and self.sft.packing

    def effective_batch(self, n_processes: int) -> int:
        """Return how many rows (packed: sequences) make one step on all devices together."""
        return self.batch * self.accumulation * n_processes

    def describe(self, stage: Stage) -> dict[str, Any]:
        """Return all settings that hold for a stage, as plain values; another stage's and unused ones are left out."""
        values = self.model_dump(mode="json")
        del values["dpo" if stage == "sft" else "sft"]
        if self.method == "full":
            del values["lora"]
        return values


def load_training(name: str = "paper", changes: Mapping[str, Any] | None = None) -> TrainingConfig:
    """Load a preset by name or a TOML file by path and apply changes given as `key` or `section.key` to value.

    Raises:
        ConfigError: no such preset, unknown key, or a value out of bounds.
    """
    stem = name.rpartition("/")[2].removesuffix(".toml")
    return load_section(TrainingConfig, name, PRESETS, "training preset", {"preset": stem, **(changes or {})})
