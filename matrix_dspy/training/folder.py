"""A training's folder: what it is (`train.json`), how far it got (`checkpoints/`, `metrics.jsonl`), how it ended.

`train.json` is compared on every later start: settings of the operation may change, any other change stops with the
key's name, once there is a step to lose. A checkpoint counts once `complete.json` lies in it, which is written last;
what a killed process left half written is removed. `trained.json` is the last thing of all that is written: with it,
the training is finished.
"""

import json
import shutil
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson

from matrix_dspy import __version__
from matrix_dspy.bulk.tables import write_text
from matrix_dspy.errors import ConfigError, RunError, boundary
from matrix_dspy.training.settings import OPERATION

RECORD = "train.json"
TRAINED = "trained.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
CONTRACT = 1
"""Version of the folder's layout."""
_COMPLETE = "complete.json"
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "deepspeed", "flash_attn")


def write_record(out: Path, record: dict[str, Any]) -> None:
    """Write `train.json`."""
    write_text(json.dumps({"contract": CONTRACT, **record}, indent=2, ensure_ascii=False) + "\n", out / RECORD)


def read_record(out: Path) -> dict[str, Any] | None:
    """Return what `train.json` says; None where there is none.

    Raises:
        RunError: it is broken, or another version wrote it.
    """
    path = out / RECORD
    if not path.is_file():
        return None
    with boundary(RunError, f"read {str(path)!r}"):
        record = orjson.loads(path.read_bytes())
    if not isinstance(record, dict) or record.get("contract") != CONTRACT:
        raise RunError(f"{str(path)!r} was written by another version of matrix_dspy; give another folder with --out")
    return record


def refuse_other(out: Path, record: dict[str, Any] | None, identity: dict[str, Any]) -> None:
    """Make sure that a folder is free or holds this very training.

    Raises:
        ConfigError: it holds another training; the message names the key that differs.
        RunError: it holds something else.
    """
    if record is None:
        strange = {entry.name for entry in out.iterdir()} - {".lock", "left_out.jsonl", "rows.parquet", "train.log"}
        if strange:
            raise RunError(f"{str(out)!r} holds something else ({min(strange)!r}); give another folder with --out")
        return
    before, now = _flatten(record["identity"]), _flatten(identity)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{str(out)!r} holds a training with {key} = {before.get(key)!r}, not {now.get(key)!r}; "
                "give another folder with --out, or start anew with --fresh"
            )


def has_begun(out: Path) -> bool:
    """Whether there is anything that a training with other settings would lose: a figure, a checkpoint, a model."""
    metrics = out / METRICS
    has_metrics = metrics.is_file() and metrics.stat().st_size > 0
    return has_metrics or (out / TRAINED).is_file() or bool(find_checkpoints(out))


def build_identity(stage: str, settings: dict[str, Any], data_sha256: str, model: str, **others: Any) -> dict[str, Any]:
    """Return everything a training is, and nothing of how the work is done; `model` is the hash of its files."""
    kept = {key: value for key, value in settings.items() if key not in OPERATION}
    # where a file lies is an address; what it holds is in `others`
    kept["chat_template"] = Path(kept["chat_template"]).name
    return {"stage": stage, "model": model, "data": data_sha256, **kept, **others}


def _flatten(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return flat


def list_versions() -> dict[str, str]:
    """Return the versions of what a training rests on, as far as it is installed."""
    import platform

    found = {"matrix_dspy": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def mark_complete(checkpoint: Path) -> None:
    """Say that a checkpoint is whole: the names and sizes of its files, flushed to disk after them."""
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in _list_files(checkpoint)}
    write_text(json.dumps(sizes, indent=1, sort_keys=True), checkpoint / _COMPLETE)


def _list_files(folder: Path) -> Iterable[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _COMPLETE)


def is_complete(checkpoint: Path) -> bool:
    """Whether all that a checkpoint is said to hold is there."""
    try:
        sizes = orjson.loads((checkpoint / _COMPLETE).read_bytes())
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def find_checkpoints(out: Path) -> list[tuple[int, Path]]:
    """Return the steps and folders of the checkpoints that are whole, the newest last."""
    found = [(read_step(path), path) for path in (out / CHECKPOINTS).glob("checkpoint-*") if is_complete(path)]
    return sorted((step, path) for step, path in found if step is not None)


def read_step(checkpoint: Path) -> int | None:
    """Return the step that a checkpoint's folder is named for."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else None


def remove_broken(out: Path) -> list[str]:
    """Remove what a killed process had begun to save, and return the names."""
    broken = [path for path in sorted((out / CHECKPOINTS).glob("checkpoint-*")) if not is_complete(path)]
    for path in broken:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in broken]


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Append one JSON object, flushed to the operating system."""
    with path.open("ab") as file:
        file.write(orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY))


def read_lines(path: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """Return the JSON objects of a file up to a step, without a torn last line."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                values = orjson.loads(line)
            except ValueError:
                continue
            if isinstance(values, dict) and (last_step is None or values.get("step", 0) <= last_step):
                lines.append(values)
    return lines


def rewind(out: Path, step: int) -> list[dict[str, Any]]:
    """Take out of `metrics.jsonl` and `samples.jsonl` what came after a step; return the metrics that stay."""
    for name in (METRICS, SAMPLES):
        kept = read_lines(out / name, step)
        text = b"".join(orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE) for values in kept)
        write_text(text.decode(), out / name)
    return read_lines(out / METRICS)
