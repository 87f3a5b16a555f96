"""A model's folder: what lies in it, what it is built on, and a hash that tells two models apart.

Nothing is loaded and nothing downloaded.
"""

import hashlib
import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from matrix_dspy.errors import ConfigError, TableError, boundary

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
ADAPTER_FILE = "adapter_config.json"
_OWN_FILES = ("config.json", "generation_config.json", ADAPTER_FILE, "tokenizer*", "*.safetensors", "*.bin", "*.jinja")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def find_folders(name: str, adapter: Path | None = None) -> tuple[Path, Path | None]:
    """Return the folder of the model and that of the adapter on top of it, if any.

    `name` is a model's folder, a hub name that was downloaded before, or the folder of an adapter that names its base.

    Raises:
        ConfigError: a folder is not there or holds no weights, or an adapter's base model is not on this machine.
    """
    folder = _find_model(name)
    if folder is None:
        raise ConfigError(f"no model folder {name!r}; give the folder of a model, with its config.json and weights")
    if is_adapter(folder):
        if adapter is not None:
            raise ConfigError(
                f"{name!r} is an adapter itself; give the folder of its base model, and adapter= beside it"
            )
        base, adapter = _read_base(folder), folder
        folder = _find_base(base, folder)
        if folder is None:
            raise ConfigError(
                f"the base model {base!r} of the adapter in {name!r} is not on this machine; "
                f"name it with 'transformers:BASE?adapter={name}'"
            )
    if adapter is not None and not (adapter / ADAPTER_FILE).exists():
        raise ConfigError(f"no adapter in {str(adapter)!r}; give a PEFT folder, with its {ADAPTER_FILE}")
    if not (folder / "config.json").exists():
        raise ConfigError(f"no model in {str(folder)!r}: the folder has no config.json")
    if not has_weights(folder):
        raise ConfigError(f"no model in {str(folder)!r}: the folder has no weights, neither safetensors nor bin")
    if (folder / ADAPTER_FILE).exists():
        raise ConfigError(f"{str(folder)!r} holds a model and an adapter; move one of them elsewhere")
    return folder, adapter


def has_weights(folder: Path) -> bool:
    """Whether there are weights of a whole model that transformers reads."""
    found = (path.name for pattern in WEIGHTS for path in folder.glob(pattern))
    return any(not name.startswith("adapter_model") for name in found)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter and no model."""
    return (folder / ADAPTER_FILE).exists() and not has_weights(folder)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer of its own."""
    return (folder / "tokenizer_config.json").exists()


def hash_model(folder: Path) -> str:
    """Return the hash of a model's own files: weights, adapter, config, tokenizer and template.

    Raises:
        TableError: one cannot be read.
    """
    digest = hashlib.sha256()
    files = sorted({file for pattern in _OWN_FILES for file in folder.glob(pattern) if file.is_file()})
    for file in files:
        with boundary(TableError, f"read {str(file)!r}"), file.open("rb") as opened:
            digest.update(f"{file.name}\0".encode())
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def hash_models(spec: str) -> str:
    """Return the hash of the models in local folders that an engine's spec names, "" where it names none.

    An adapter's base model counts, since other weights below it answer otherwise.

    Raises:
        ConfigError: an adapter does not name its base.
        TableError: a file cannot be read.
    """
    way, _, rest = spec.partition(":")
    if way not in ("vllm", "transformers"):
        return ""
    name, _, query = rest.partition("?")
    given = [name, *(unquote(part.partition("=")[2]) for part in query.split("&"))]
    named = [path for text in given if text and (path := Path(text).expanduser()).is_dir()]
    bases = [_find_base(_read_base(folder), folder) for folder in named if is_adapter(folder) and folder == named[0]]
    found = [*named, *filter(None, bases)]
    return hashlib.sha256("".join(map(hash_model, found)).encode()).hexdigest() if found else ""


def _find_base(base: str, adapter: Path) -> Path | None:
    """Return the folder of an adapter's base model: where its name says, else beside the adapter."""
    beside = adapter.parent / base
    return _find_model(base) or (beside if beside.is_dir() else None)


def _find_model(name: str) -> Path | None:
    """Return the folder of a model, or of a hub's model that is on this machine already."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not _HUB_NAME.fullmatch(name):
        return None
    hub: Any = import_module("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # all that says that it is not there
        return None


def _read_base(adapter: Path) -> str:
    """Return the name of the model that an adapter was trained on."""
    with boundary(ConfigError, f"read {str(adapter / ADAPTER_FILE)!r}"):
        base = json.loads((adapter / ADAPTER_FILE).read_text("utf-8")).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ConfigError(
            f"the adapter in {str(adapter)!r} does not name its base model; "
            f"give it with 'transformers:BASE?adapter={adapter}'"
        )
    return base
