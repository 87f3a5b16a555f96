"""Train a model as a folder's `train.json` says, from the last whole checkpoint on, and save what came of it.

In: a folder that `tuning` has filled (`train.json`, `rows.parquet`). Out: the model in that folder, with an adapter
beside it where one was trained, `metrics.jsonl`, `samples.jsonl`, `loss.png`, the card, and `trained.json` last of all.
Every process of a training runs this; the first alone writes.
"""

import contextlib
import errno
import json
import logging
import math
import os
import re
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PrinterCallback

from matrix_dspy.bulk.folder import take_lock
from matrix_dspy.bulk.tables import write_text
from matrix_dspy.engine.transformers import merge_adapter
from matrix_dspy.errors import ConfigError, MatrixError, MissingExtraError, RunError, boundary, describe_os_error
from matrix_dspy.text import one_line
from matrix_dspy.training.card import write_card, write_loss_plot
from matrix_dspy.training.encoding import ChatEncoder, load_tokenizer, set_pad_token
from matrix_dspy.training.folder import (
    ADAPTER,
    CHECKPOINTS,
    METRICS,
    TRAINED,
    find_checkpoints,
    read_lines,
    read_record,
    remove_broken,
    rewind,
)
from matrix_dspy.training.preparing import Prepared, read_rows
from matrix_dspy.training.settings import Stage, TrainingConfig
from matrix_dspy.training.watching import DivergedError, Watch, watched

Say = Callable[[str], None]
_FINAL = ".final"
_TENTH = 10
_FLASH = {"flash_attention_3": "flash_attn_interface", "flash_attention_2": "flash_attn"}
_OLDEST = {"flash_attention_3": (9, 0), "flash_attention_2": (8, 0)}
"""Compute capability from which a GPU has it."""
_NO_SPACE = re.compile(r"no space left|disk quota exceeded|inline_container|iostream error", re.IGNORECASE)
"""How PyTorch and safetensors say that the disk is full."""
_NO_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory", re.IGNORECASE)


def fit(out: Path, say: Say) -> None:
    """Train what stands in the folder `out` and save it; the caller holds the folder.

    Raises:
        ConfigError: a setting does not go with this machine or model.
        RunError: memory ran out, or the loss is no number any more.
        KeyboardInterrupt: the training was asked to stop and has saved a checkpoint.
    """
    record = read_record(out)
    if record is None:
        raise RunError(f"no training in {str(out)!r}; start one with train sft or train dpo")
    stage: Stage = record["stage"]
    config = TrainingConfig.model_validate(record["settings"])
    prepared = Prepared.from_json(record["prepared"])
    _quiet()
    with _alone(out), explain_faults(out, config, prepared), _stop_signals() as signals:
        trainer, watch = _build_trainer(out, record, stage, config, prepared, say)
        signals.append(watch)
        start = _find_start(out, trainer, watch, say)
        started = time.time()
        try:
            trainer.train(resume_from_checkpoint=start)
        except DivergedError as error:
            raise RunError(_describe_divergence(error, config, stage, out)) from error
        if trainer.state.global_step < trainer.state.max_steps:
            say(f"stopped at step {trainer.state.global_step:,}; the same command goes on from there")
            raise KeyboardInterrupt
        _save(out, trainer, record, config, stage)
        result = _describe_result(trainer, watch, record, time.time() - started)
    if trainer.is_world_process_zero():
        write_loss_plot(out, stage)
        write_card(out, record, result)
        write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", out / TRAINED)
    trainer.accelerator.wait_for_everyone()


def _quiet() -> None:
    """Keep the libraries' own lines and their network out of it."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("trl").setLevel(logging.ERROR)
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"torch|transformers|trl|peft|accelerate|datasets")


def has_gpu() -> bool:
    """Whether PyTorch sees a GPU."""
    return torch.cuda.is_available()


def choose_attention(config: TrainingConfig) -> str:
    """Return the name of the attention kernel.

    Raises:
        ConfigError: FlashAttention or flex_attention is asked for where there is no GPU that has it.
        MissingExtraError: it is not installed.
    """
    if config.attention in (*_FLASH, "flex_attention") and not has_gpu():
        raise ConfigError(f"attention = {config.attention!r} needs a GPU, and there is none; use sdpa")
    if config.attention in _FLASH:
        able, needed = torch.cuda.get_device_capability(), _OLDEST[config.attention]
        if able < needed:
            raise ConfigError(
                f"attention = {config.attention!r} needs a GPU of compute capability {needed[0]}.{needed[1]}, and this "
                f"one has {able[0]}.{able[1]}; use sdpa"
            )
        if find_spec(_FLASH[config.attention]) is None:
            raise MissingExtraError(f"{_FLASH[config.attention]} is not installed; install it, or set attention=sdpa")
    if config.attention != "auto":
        return config.attention
    if not (has_gpu() and is_bf16(config)):
        return "sdpa"
    able = torch.cuda.get_device_capability()
    usable = [name for name, package in _FLASH.items() if able >= _OLDEST[name] and find_spec(package)]
    return (usable or ["sdpa"])[0]


def is_bf16(config: TrainingConfig) -> bool:
    """Whether arithmetic is in bf16.

    Raises:
        ConfigError: it is asked for where there is no GPU that has it.
    """
    able = has_gpu() and torch.cuda.is_bf16_supported(including_emulation=False)
    if config.precision == "bf16" and not able:
        raise ConfigError("precision = 'bf16' needs a GPU that has it, and there is none; use auto")
    return able and config.precision != "fp32"


def check_machine(config: TrainingConfig) -> None:
    """Make sure that this machine can do what is asked.

    Raises:
        ConfigError: it cannot.
        MissingExtraError: something is not installed.
    """
    is_bf16(config)
    choose_attention(config)
    if config.method == "qlora":
        if not has_gpu():
            raise ConfigError("method = 'qlora' needs a GPU, and there is none; use the preset lora")
        if find_spec("bitsandbytes") is None:
            raise MissingExtraError("bitsandbytes is not installed; pip install bitsandbytes, or use the preset lora")
    if config.report_to != "none" and find_spec(config.report_to) is None:
        name = config.report_to
        raise MissingExtraError(f"{name} is not installed; pip install {name}, or set report_to=none")


def check_alone() -> None:
    """Make sure that one process has no more than one GPU to see; TRL would not train on several.

    Raises:
        ConfigError: it has.
    """
    n_gpus = torch.cuda.device_count()
    if n_gpus > 1:
        raise ConfigError(
            f"{n_gpus} GPUs are visible to one process; add --launch ddp --processes {n_gpus}, or make one visible "
            "with CUDA_VISIBLE_DEVICES=0"
        )


def load_model(name: str, config: TrainingConfig, *, is_local: bool) -> Any:
    """Load a model to be trained.

    Weights are fp32 where all of them are trained, since steps of 5e-7 vanish in bf16, and bf16 under adapters where
    arithmetic is.

    Raises:
        ConfigError: there is no such model, it is no language model, or its files are not whole.
    """
    from safetensors import SafetensorError

    settings: dict[str, Any] = {"attn_implementation": choose_attention(config), "local_files_only": is_local}
    settings["dtype"] = torch.bfloat16 if is_bf16(config) and config.method != "full" else torch.float32
    if config.method == "qlora":
        from transformers import BitsAndBytesConfig

        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if is_bf16(config) else torch.float32,
        )
        settings["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **settings)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if _NO_MEMORY.search(str(error)):
            raise
        words = one_line(str(error))[:300]
        raise ConfigError(f"could not load the model {name!r} ({words}); give a folder of a causal model") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):  # transformers puts random numbers in their place
        raise ConfigError(
            f"{len(missing):,} weights of {name!r} are not in its files (the first: {missing[0]}); give a whole model"
        )
    return model


def _build_trainer(
    out: Path, record: dict[str, Any], stage: Stage, config: TrainingConfig, prepared: Prepared, say: Say
) -> tuple[Any, Watch]:
    name, is_local = record["model"]["path"], record["model"]["is_local"]
    tokenizer = load_tokenizer(name, is_local=is_local)
    if record["chat_template"]:
        tokenizer.chat_template = record["chat_template"]
    encoder = ChatEncoder(tokenizer, name)
    set_pad_token(tokenizer, config.pad_token, name, encoder.end_of_turn)
    arguments = _build_arguments(out, stage, config, prepared)
    model = load_model(name, config, is_local=is_local)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise ConfigError(
            f"the tokenizer of {name!r} has {len(tokenizer):,} tokens and the model only "
            f"{model.get_input_embeddings().num_embeddings:,}; give the two that belong together"
        )
    _set_stops(model, tokenizer, encoder.end_of_turn)
    _make_savable(model, name)
    train = read_rows(out, stage, prepared.held_out_up_to, is_eval=False)
    held_out = read_rows(out, stage, prepared.held_out_up_to, is_eval=True) if prepared.n_eval else None
    watch = Watch(out, config, list(prepared.samples) if prepared.n_eval else [], say, [])
    with _explain_adapter(config, name):
        trainer = _pick_trainer(stage)(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=tokenizer,
            peft_config=_build_adapter(config),
            callbacks=[watch],
        )
    _train_in_fp32(trainer.model)
    if trainer.args.world_size != record["identity"]["n_processes"]:
        n_processes = record["identity"]["n_processes"]
        raise RunError(
            f"{trainer.args.world_size} processes came up and not {n_processes}; look at the launch configuration"
        )
    trainer.remove_callback(PrinterCallback)
    trainer.watch, watch.trainer = watch, trainer
    _set_intervals(trainer, config)
    if config.is_packed(stage):
        check_packing(trainer, name)
    return trainer, watch


def _train_in_fp32(model: Any) -> None:
    """Train in fp32: TRL 1.16 puts adapters on a base of 4 bits into bf16, where steps of 1e-5 vanish."""
    for each in model.parameters():
        if each.requires_grad:
            each.data = each.data.float()


def _pick_trainer(stage: Stage) -> Any:
    if stage == "sft":
        from trl.trainer.sft_trainer import SFTTrainer

        return watched(SFTTrainer, stage)
    from trl.trainer.dpo_trainer import DPOTrainer

    return watched(DPOTrainer, stage)


def _build_arguments(out: Path, stage: Stage, config: TrainingConfig, prepared: Prepared) -> Any:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.sft_config import SFTConfig

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(out / "tensorboard")
    os.environ["TRACKIO_DIR"] = str(out / "trackio")
    common: dict[str, Any] = {
        "output_dir": str(out / CHECKPOINTS),
        "seed": config.seed,
        "num_train_epochs": config.epochs,
        "max_length": prepared.limit,
        "per_device_train_batch_size": config.batch,
        "per_device_eval_batch_size": config.batch,
        "gradient_accumulation_steps": config.accumulation,
        "learning_rate": config.learning_rate(stage),
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "use_cpu": not has_gpu(),
        "bf16": is_bf16(config),
        "tf32": True if config.tf32 and has_gpu() and torch.cuda.get_device_capability() >= (8, 0) else None,
        "gradient_checkpointing": config.gradient_checkpointing,
        "torch_compile": config.compile,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if prepared.n_eval else "no",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": config.keep_checkpoints,
        "report_to": config.report_to,
        "project": "matrix_dspy",
        "disable_tqdm": True,
        "log_level": "error",
        "dataloader_pin_memory": has_gpu(),
    }
    if stage == "dpo":
        return DPOConfig(**common, beta=config.dpo.beta, precompute_ref_log_probs=config.dpo.precompute_reference)
    packing = config.sft.packing
    prepare = None if packing else {"skip_prepare_dataset": True}
    return SFTConfig(**common, packing=packing, eval_packing=False, dataset_kwargs=prepare)


def _build_adapter(config: TrainingConfig) -> Any:
    if config.method == "full":
        return None
    from peft import LoraConfig

    modules = config.lora.target_modules
    return LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules="all-linear" if modules == ("all-linear",) else list(modules),
        task_type="CAUSAL_LM",
    )


@contextlib.contextmanager
def _explain_adapter(config: TrainingConfig, name: str) -> Iterator[None]:
    """Say which setting it is that PEFT or TRL does not put an adapter on the model for."""
    try:
        yield
    except ValueError as error:
        if config.method == "full" or "target" not in str(error).lower():
            raise
        raise ConfigError(
            f"lora.target_modules = {list(config.lora.target_modules)} will not do for {name!r} "
            f"({one_line(str(error)).partition('. ')[0][:200]}); name linear layers of the model, or all-linear"
        ) from error


def _set_stops(model: Any, tokenizer: Any, end_of_turn: int | None) -> None:
    """Let generation end with the token that ends a turn, whatever the model's own end token is."""
    own = model.generation_config.eos_token_id
    stops = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, end_of_turn]
    stops = list(dict.fromkeys(token for token in stops if token is not None))
    model.generation_config.eos_token_id = stops[0] if len(stops) == 1 else stops


def _make_savable(model: Any, name: str) -> None:
    """Mend settings of generation that load and cannot be saved: numbers to draw by where drawing is not switched on.

    Raises:
        ConfigError: they cannot be saved all the same.
    """
    settings = model.generation_config
    if _find_fault(settings):
        settings.do_sample = True
    if fault := _find_fault(settings):
        raise ConfigError(f"generation_config.json of {name!r} cannot be saved as it is ({fault}); mend it")


def _find_fault(settings: Any) -> str:
    """Return why settings of generation cannot be saved; nothing where they can be."""
    try:
        settings.validate(strict=True)
    except ValueError as error:
        return one_line(str(error)).removeprefix("GenerationConfig is invalid: ")[:200]
    return ""


def _set_intervals(trainer: Any, config: TrainingConfig) -> None:
    """End after `max_steps` where epochs would not before, and evaluate and save ten times if nothing else is set."""
    n_batches = math.ceil(len(trainer.train_dataset) / (config.batch * trainer.args.world_size))
    n_steps = math.ceil(config.epochs * math.ceil(n_batches / config.accumulation))
    if config.max_steps is not None and config.max_steps < n_steps:
        trainer.args.max_steps = n_steps = config.max_steps
    tenth = math.ceil(n_steps / _TENTH)
    trainer.args.eval_steps = config.eval_steps or tenth
    trainer.args.save_steps = config.save_steps or tenth


def check_packing(trainer: Any, name: str) -> None:
    """Make sure that rows that share a sequence do not see each other.

    The second of two rows must come out the same whatever the first one says. FlashAttention is told where rows end;
    the other kernels get a mask from the positions, if the model's code makes one.
    """
    model = trainer.model
    if model.config._attn_implementation in _FLASH and next(model.parameters()).device.type == "cpu":
        return
    vocabulary, length = model.get_input_embeddings().num_embeddings, 16
    second = [(7 * place + 3) % vocabulary for place in range(length)]
    collate = trainer.data_collator
    found = []
    was_training = model.training
    model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        for shift in (1, 5):
            first = [(11 * place + shift) % vocabulary for place in range(length)]
            ids = [*first, *second]
            batch = collate([{"input_ids": ids, "labels": ids, "seq_lengths": [length, length]}])
            batch.pop("labels")
            batch = {key: each.to(model.device) if hasattr(each, "to") else each for key, each in batch.items()}
            found.append(model(**batch, use_cache=False).logits[0, length:].float())
    model.train(was_training)
    if not torch.allclose(found[0], found[1], rtol=1e-3, atol=1e-3 * found[0].abs().max().item()):
        kernel = model.config._attn_implementation
        raise ConfigError(
            f"rows packed together would see each other in {name!r} with attention {kernel!r}; set sft.packing=false"
        )


def _find_start(out: Path, trainer: Any, watch: Watch, say: Say) -> str | None:
    """Return the last whole checkpoint, with everything after it taken out."""
    if trainer.is_world_process_zero():
        for name in remove_broken(out):
            say(f"{name} is not whole and was removed")
    trainer.accelerator.wait_for_everyone()
    found = find_checkpoints(out)
    step = found[-1][0] if found else 0
    kept = read_lines(out / METRICS, step)
    watch.n_tokens = max((line["tokens"] for line in kept if "tokens" in line), default=0)
    if trainer.is_world_process_zero():
        rewind(out, step)
    trainer.accelerator.wait_for_everyone()
    if found:
        say(f"goes on from step {step:,}")
    return str(found[-1][1]) if found else None


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[Watch]]:
    """Take Ctrl-C and a request to end as one to stop after the step at hand; a second one stops at once."""
    watches: list[Watch] = []
    if threading.current_thread() is not threading.main_thread():
        yield watches
        return

    def stop(*_: Any) -> None:
        if not watches or watches[0].is_stop_asked:
            raise KeyboardInterrupt
        watches[0].is_stop_asked = True
        watches[0].say("stops after this step and saves it; once more to stop at once")

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield watches
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Make sure that no process of an earlier start is still at work, should its parent have been killed."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with boundary(RunError, f"open {str(out)!r}"):
        (out / CHECKPOINTS).mkdir(exist_ok=True)
    lock = take_lock(out / CHECKPOINTS)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def explain_faults(out: Path, config: TrainingConfig, prepared: Prepared) -> Iterator[None]:
    """Say what to do when memory or the disk is full.

    Raises:
        RunError: it is; anything else passes as it is.
    """
    try:
        yield
    except MatrixError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or _NO_MEMORY.search(str(error)):
            raise RunError(_advise_memory(config, prepared)) from error
        if _NO_SPACE.search(str(error)):
            error = OSError(errno.ENOSPC, "No space left on device")
        if isinstance(error, OSError):
            raise RunError(f"could not write {str(out)!r}: {describe_os_error(error)}") from error
        raise


def _advise_memory(config: TrainingConfig, prepared: Prepared) -> str:
    advice = []
    if config.batch > 1:
        double = config.accumulation * config.batch
        advice.append(f"set batch=1 and accumulation={double}, which is the same to the model")
    if not config.gradient_checkpointing:
        advice.append("set gradient_checkpointing=true")
    if min(prepared.limit, prepared.longest) > 512:
        advice.append(f"lower max_length (the longest row has {prepared.longest:,} tokens)")
    if config.method == "full":
        advice.append("use the preset lora, or spread it over GPUs with --launch zero2 or fsdp")
    return (
        f"out of memory with batch = {config.batch} and max_length = {prepared.limit:,}; "
        f"{', or '.join(advice) or 'use a smaller model'}"
    )


def _describe_divergence(error: DivergedError, config: TrainingConfig, stage: Stage, out: Path) -> str:
    found = find_checkpoints(out)
    kept = f"the last good checkpoint is {str(found[-1][1])!r}" if found else "no checkpoint was saved before it"
    advice = [f"lower {stage}.learning_rate = {config.learning_rate(stage):g}"]
    if error.step == 1 and error.what == "loss":  # nothing has been learnt yet
        advice = ["look whether the weights of the model are whole"]
    if config.precision != "fp32" and has_gpu():
        advice.append("set precision=fp32")
    return (
        f"the {error.what} is {error.value} at step {error.step:,} (epoch {error.epoch:.2f}), and {kept}; "
        f"{', or '.join(advice)}, or look for rows that are no language, in another folder"
    )


def _save(out: Path, trainer: Any, record: dict[str, Any], config: TrainingConfig, stage: Stage) -> None:
    """Save the model in the folder itself; of adapters also the adapter, in a folder of its own."""
    final = out / _FINAL
    is_first = trainer.is_world_process_zero()
    if is_first:
        shutil.rmtree(final, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(final), _internal_call=True)
    if not is_first:
        return
    dtype = _read_dtype(record)
    with boundary(RunError, f"save the model in {str(out)!r}"):
        (final / "training_args.bin").unlink(missing_ok=True)
        (final / "README.md").unlink(missing_ok=True)
        if config.method != "full":
            _merge(final, out, trainer, record, dtype)
        else:
            _cast(final, dtype)
        if not (final / "generation_config.json").is_file():
            trainer.accelerator.unwrap_model(trainer.model_wrapped).generation_config.save_pretrained(final)
        for file in sorted(final.iterdir(), key=lambda path: path.name == "config.json"):
            file.replace(out / file.name)
        final.rmdir()


def _read_dtype(record: dict[str, Any]) -> torch.dtype:
    """Return the type that the model's own weights are in."""
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(record["model"]["path"], local_files_only=record["model"]["is_local"])
    dtype = getattr(found, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _merge(final: Path, out: Path, trainer: Any, record: dict[str, Any], dtype: torch.dtype) -> None:
    """Put the adapter into its own folder, and the model with it merged in its place."""
    from peft import PeftModel

    adapter = out / ADAPTER
    shutil.rmtree(adapter, ignore_errors=True)
    adapter.mkdir()
    for file in final.iterdir():
        if file.name.startswith("adapter"):
            file.replace(adapter / file.name)
    model = record["model"]
    # merged into the base as it is on disk, not into the one of 4 bits or bf16 that was trained on
    base = AutoModelForCausalLM.from_pretrained(model["path"], dtype=torch.float32, local_files_only=model["is_local"])
    trained = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    base.generation_config = trained.generation_config
    base.config.pad_token_id = trained.config.pad_token_id
    merge_adapter(PeftModel.from_pretrained(base, str(adapter))).to(dtype).save_pretrained(final)


def _cast(folder: Path, dtype: torch.dtype) -> None:
    """Write weights that were trained in fp32 in the type the model came in, file by file."""
    if dtype == torch.float32:
        return
    from safetensors.torch import load_file, save_file

    for file in sorted(folder.glob("*.safetensors")):
        tensors = {key: each.to(dtype) if each.is_floating_point() else each for key, each in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        values = json.loads(index.read_text(encoding="utf-8"))
        values.get("metadata", {}).pop("total_size", None)
        write_text(json.dumps(values, indent=2), index)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    write_text(json.dumps(config, indent=2) + "\n", folder / "config.json")


def count_numbers(parameter: torch.Tensor) -> int:
    """Return how many numbers a parameter holds; bitsandbytes packs two of 4 bits into a byte."""
    is_packed = type(parameter).__name__ == "Params4bit"
    return parameter.numel() * (2 * parameter.element_size() if is_packed else 1)


def _describe_result(trainer: Any, watch: Watch, record: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return what is written to `trained.json`."""
    metrics = read_lines(Path(trainer.args.output_dir).parent / METRICS)
    steps = [line for line in metrics if "loss" in line]
    held_out = [line for line in metrics if "eval_loss" in line]
    parameters = list(trainer.model.parameters())
    device = trainer.accelerator.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "step": trainer.state.global_step,
        "effective_batch": record["effective_batch"],
        "n_processes": trainer.args.world_size,
        "distributed": trainer.accelerator.distributed_type.value,
        "n_parameters": sum(map(count_numbers, parameters)),
        "n_trained": sum(count_numbers(each) for each in parameters if each.requires_grad),
        "first": steps[0] if steps else {},
        "last": steps[-1] if steps else {},
        "held_out_first": held_out[0] if held_out else {},
        "held_out_last": held_out[-1] if held_out else {},
        "tokens": watch.n_tokens,
        "tokens_per_s": round(watch.n_timed / watch.seconds, 1) if watch.seconds else 0.0,
        "seconds": round(seconds, 1),
        "steps_of_last_start": watch.n_steps,
        "attention": trainer.model.config._attn_implementation,
        "precision": "bf16" if trainer.args.bf16 else "fp32",
        "hardware": f"{trainer.args.world_size} x {gpu}" if gpu else f"CPU, {torch.get_num_threads()} threads",
        "versions": record["versions"],
    }
