"""What goes on while a model is trained: figures as they come, checkpoints marked whole, answers looked at, faults.

`Watch` is a callback of the Trainer's; `watched` makes a trainer class that tells it what every batch holds.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from matrix_dspy.training.folder import METRICS, SAMPLES, append_line, mark_complete
from matrix_dspy.training.settings import Stage, TrainingConfig

SAY_EVERY_S = 5.0
_NAMES = {"learning_rate": "lr"}
_DROPPED = ("total_flos", "num_tokens", "eval_num_tokens", "eval_runtime", "eval_samples_per_second")
_DROPPED_TOO = ("eval_steps_per_second", "num_input_tokens_seen")


class DivergedError(ArithmeticError):
    """The loss or a gradient is no number any more."""

    def __init__(self, what: str, value: float, step: int, epoch: float) -> None:
        super().__init__(f"the {what} is {value} at step {step}")
        self.what, self.value, self.step, self.epoch = what, value, step, epoch


class Watch(TrainerCallback):
    """Writes down how a training goes, and stops it where it must not go on."""

    def __init__(
        self,
        out: Path,
        config: TrainingConfig,
        samples: list[dict[str, Any]],
        say: Callable[[str], None],
        kept: list[dict[str, Any]],
    ) -> None:
        """`kept` are the figures of an earlier start that stay."""
        self.out, self.config, self.samples, self.say = out, config, samples, say
        self.trainer: Any = None
        self.is_stop_asked = False
        self.n_tokens = max((line["tokens"] for line in kept if "tokens" in line), default=0)
        self.seconds = 0.0
        """Spent in steps of this start, evaluation, samples and saving left out."""
        self.n_steps = self.n_timed = 0
        """Steps of this start, and tokens of those that `seconds` counts."""
        self._in_step: torch.Tensor | None = None
        self._is_finite: torch.Tensor | None = None
        self._started = self._step_s = self._said = 0.0
        self._step_tokens = 0

    def see(self, inputs: dict[str, Any], loss: torch.Tensor) -> None:
        """Take note of a batch and of its loss; nothing is waited for."""
        mask = inputs.get("attention_mask")
        # a batch without a mask is one packed sequence
        n_tokens = mask.sum() if mask is not None else torch.tensor(inputs["input_ids"].numel(), device=loss.device)
        finite = torch.isfinite(loss.detach()).all()
        self._in_step = n_tokens if self._in_step is None else self._in_step + n_tokens
        self._is_finite = finite if self._is_finite is None else self._is_finite & finite

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and evaluate as often as is asked for now: a checkpoint brings its own intervals back."""
        state.compute_steps(args, state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock of a step."""
        self._in_step = self._is_finite = None
        self._started = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep a loss that is no number out of the weights."""
        if self._is_finite is not None and not bool(self._is_finite):
            raise DivergedError("loss", math.nan, state.global_step + 1, state.epoch or 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Count the step's tokens on all devices, and stop after it where that was asked for."""
        accelerator = self.trainer.accelerator
        figures = torch.tensor([float(self._in_step or 0), float(self.is_stop_asked)], device=accelerator.device)
        if accelerator.num_processes > 1:
            figures = accelerator.reduce(figures, reduction="sum")
        n_tokens, n_asked = figures.tolist()
        self._step_s = time.perf_counter() - self._started
        self._step_tokens = int(n_tokens)
        self.n_tokens += self._step_tokens
        if self.n_steps:  # the first step warms up
            self.seconds += self._step_s
            self.n_timed += self._step_tokens
        self.n_steps += 1
        if n_asked:
            self.is_stop_asked = control.should_training_stop = control.should_save = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write a line of figures, and stop on a gradient that is no number."""
        logs = logs or {}
        if "train_runtime" in logs:
            return
        is_eval = any(name.startswith("eval_") for name in logs)
        figures: dict[str, Any] = {"step": state.global_step}
        for name, value in logs.items():
            if name not in _DROPPED and name not in _DROPPED_TOO:
                figures[_NAMES.get(name, name)] = value
        if not is_eval:
            figures |= {"tokens": self.n_tokens, "tokens_per_s": round(self._step_tokens / max(self._step_s, 1e-9), 1)}
        for name in ("loss", "grad_norm", "eval_loss"):
            value = figures.get(name)
            if isinstance(value, float) and not math.isfinite(value):
                raise DivergedError(name.replace("_", " "), value, state.global_step, state.epoch or 0.0)
        if state.is_world_process_zero:
            append_line(self.out / METRICS, figures)
            self._say(state, figures, is_eval)
        every = self.config.sample_steps
        if every and not is_eval and (state.global_step % every == 0 or state.global_step >= state.max_steps):
            self._look(state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at answers where that goes with evaluations."""
        if self.config.sample_steps is None:
            self._look(state)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint whole, once every process has written its part."""
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def _look(self, state: Any) -> None:
        if not self.samples:
            return
        replies = generate(self.trainer, [each["prompt_ids"] for each in self.samples], self.config.sample_tokens)
        if state.is_world_process_zero:
            for sample, reply in zip(self.samples, replies, strict=True):
                line = {"step": state.global_step, "id": sample["id"], "prompt": sample["prompt"], "reply": reply}
                append_line(self.out / SAMPLES, line)

    def _say(self, state: Any, figures: dict[str, Any], is_eval: bool) -> None:
        now = time.monotonic()
        if is_eval:
            self.say(f"step {state.global_step:,}: held-out loss {figures.get('eval_loss', math.nan):.4f}")
        elif now - self._said >= SAY_EVERY_S or state.global_step >= state.max_steps:
            self._said = now
            self.say(
                f"step {state.global_step:,} of {state.max_steps:,}: loss {figures['loss']:.4f}, "
                f"{figures['tokens_per_s']:,.0f} tokens/s"
            )


def watched(kind: type[Any], stage: Stage) -> type[Any]:
    """Return a trainer class that shows every batch to a `Watch` and leaves data, card and network alone."""

    class Watched(kind):
        watch: Watch

        def _run_epoch(self, *args: Any, **others: Any) -> None:
            # from a checkpoint of the last step in the middle of an epoch, transformers 5.19 would train one step more
            if self.state.global_step < self.state.max_steps:
                super()._run_epoch(*args, **others)

        def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
            loss = super().training_step(model, inputs, num_items_in_batch)
            self.watch.see(inputs, loss)
            return loss

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """Write no card: the folder has its own."""

        def _send_telemetry(self) -> None:
            """Tell nobody (TRL 1.16 would)."""

    if stage == "dpo":

        def _prepare_dataset(self: Any, dataset: Any, *_: Any) -> Any:
            return dataset  # TRL 1.16 would tokenize again what is tokens already

        def _precompute_ref_logps(self: Any, dataset: Any, *others: Any) -> Any:
            # TRL 1.16 writes them where only one process finds them, for rows that are in memory
            folder = Path(self.args.output_dir)
            dataset._get_cache_file_path = lambda name: str(folder / f"reference-{name}.arrow")
            return kind._precompute_ref_logps(self, dataset, *others)

        Watched._prepare_dataset = _prepare_dataset  # type: ignore[attr-defined]
        Watched._precompute_ref_logps = _precompute_ref_logps  # type: ignore[attr-defined]
    return Watched


def generate(trainer: Any, prompts: list[list[int]], n_tokens: int) -> list[str]:
    """Return greedy answers of a trainer's model, drawing on no random numbers.

    All processes of a training call it together: with FSDP each holds a part of the weights only. Prompt and answer
    stay within the model's context: answers are cut, and the beginnings of prompts that leave no room for one.
    """
    model, tokenizer = trainer.accelerator.unwrap_model(trainer.model_wrapped), trainer.processing_class
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context:
        prompts = [each[1 - context :] for each in prompts]
        n_tokens = min(n_tokens, context - max(map(len, prompts)))
    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    device = trainer.accelerator.device
    ids = torch.tensor([[pad] * (longest - len(each)) + each for each in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts], device=device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), trainer.accelerator.autocast():
            found = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=n_tokens, do_sample=False, use_cache=True
            )
    finally:
        model.train(was_training)
    return tokenizer.batch_decode(found[:, longest:], skip_special_tokens=True)
