"""Train a model on a data set, in this process or in several: the functions behind `train sft` and `train dpo`.

In: a run folder or a file, a model, an empty folder. Out: a folder with the tuned model, its card, figures and
checkpoints. The same call goes on where a killed one stopped, and does nothing once it is finished.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from matrix_dspy import errors
from matrix_dspy.bulk.folder import take_lock
from matrix_dspy.bulk.tables import remove_leftovers
from matrix_dspy.config import RECIPES
from matrix_dspy.engine.model_files import hash_model
from matrix_dspy.errors import ConfigError, MatrixError, MissingExtraError, RunError, boundary, did_you_mean
from matrix_dspy.text import one_line
from matrix_dspy.training.folder import (
    TRAINED,
    build_identity,
    has_begun,
    list_versions,
    read_record,
    refuse_other,
    write_record,
)
from matrix_dspy.training.interrupting import interruptible
from matrix_dspy.training.preparing import Prepared, prepare, read_source
from matrix_dspy.training.settings import Stage, TrainingConfig

Say = Callable[[str], None]
LAUNCHES = RECIPES / "accelerate"
FAILED = "failed.json"
_LONGEST_STOP_S = "900"
"""Seconds that a step and a checkpoint may take after a request to stop; PyTorch 2.13 would kill them after 30."""
_NEEDED = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_SILENT = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training made."""

    path: Path
    stage: Stage
    prepared: Prepared
    result: dict[str, Any]
    """What `trained.json` says: steps, figures of the first and last step, tokens a second, hardware."""
    was_finished: bool = False
    """Whether nothing was left to do."""

    @property
    def effective_batch(self) -> int:
        """Rows (packed: sequences) to a step."""
        return self.result["effective_batch"]

    @property
    def lines(self) -> list[str]:
        """What to tell the user."""
        first, last, prepared = self.result["first"], self.result["last"], self.prepared
        lines = [] if not self.was_finished else [f"{self.path} is finished already; --fresh starts a new folder"]
        lines.append(f"rows:     {prepared.n_train:,} trained on, {prepared.n_eval:,} held out")
        if prepared.left_out:
            counts = ", ".join(f"{count:,} {reason}" for reason, count in prepared.left_out.items())
            lines.append(f"left out: {counts}; see {self.path / 'left_out.jsonl'}")
        if prepared.n_cut:
            lines.append(f"cut:      {prepared.n_cut:,} rows to {prepared.limit:,} tokens")
        steps = f"{self.result['step']:,} steps of {self.effective_batch:,} rows"
        lines.append(f"loss:     {first.get('loss', 0):.4f} -> {last.get('loss', 0):.4f} in {steps}")
        if "rewards/accuracies" in last:
            accuracies = f"{first['rewards/accuracies']:.2f} -> {last['rewards/accuracies']:.2f}"
            lines.append(f"chosen:   preferred in {accuracies} of the pairs of a step")
        if held_out := self.result["held_out_last"]:
            lines.append(f"held out: loss {held_out['eval_loss']:.4f}")
        if self.result["tokens_per_s"]:
            lines.append(f"speed:    {self.result['tokens_per_s']:,.0f} tokens/s on {self.result['hardware']}")
        if prepared.source.is_rehearsed:
            lines.append("note:     rehearsed data: proof of plumbing only")
        lines.append(f"model:    {self.path} (card: {self.path / 'README.md'})")
        return lines


def train(config: TrainingConfig, source: Path, model: str, out: Path, *, stage: Stage, say: Say = print) -> Trained:
    """Train `model` on the data set `source` in this process, and save it in the folder `out`.

    `model` is a folder, or else a name that transformers fetches. A run of the same arguments that was killed is gone
    on with from its last whole checkpoint, with the same losses as if it never had been; a finished one is returned.

    Raises:
        ConfigError: the data is of the wrong kind, the model has no chat template, nothing is left to train on, the
            machine cannot do what is asked, or `out` holds a training with another setting.
        TableError: the data cannot be read.
        RunError: `out` is in use or holds something else, memory ran out, or the loss is no number any more.
        MissingExtraError: a library is not installed.
        KeyboardInterrupt: it was asked to stop; a checkpoint is saved.
    """
    check_extra()
    out = Path(out)
    with _offline(model), _hold(out):
        if (finished := _start(config, source, model, out, stage, say, 1, "")) is not None:
            return finished
        from matrix_dspy.training.fitting import fit

        fit(out, say)
    return read_trained(out)


def launch(
    config: TrainingConfig,
    source: Path,
    model: str,
    out: Path,
    *,
    stage: Stage,
    how: str,
    n_processes: int,
    say: Say = print,
) -> Trained:
    """Train as `train` does, in `n_processes` processes that `accelerate launch` starts.

    `how` is ddp, zero2, fsdp or the path of an accelerate configuration.

    Raises:
        as `train`; RunError also when a process ends without saying why.
    """
    check_extra()
    out, configuration = Path(out), find_launch(how)
    with _offline(model), _hold(out):
        if (finished := _start(config, source, model, out, stage, say, n_processes, how)) is not None:
            return finished
        (out / FAILED).unlink(missing_ok=True)
        _run_processes(out, configuration, n_processes, say)
    return read_trained(out)


def count_devices() -> int:
    """Return how many GPUs this machine has; 1 where it has none."""
    check_extra()
    import torch

    return max(1, torch.cuda.device_count())


def check_model(model: str, config: TrainingConfig) -> None:
    """Make sure that a model can be trained here with these settings, before data is made for it.

    Raises:
        ConfigError: there is no such model, it has no chat template or pad token, or the machine cannot do it.
        MissingExtraError: a library is not installed.
    """
    check_extra()
    from matrix_dspy.training.fitting import check_machine

    _check_model(model)
    check_machine(config)
    with _offline(model):
        _load_encoder(config, model, _read_template(config))


def find_launch(how: str) -> Path:
    """Return the accelerate configuration of a name, or the file of that path.

    Raises:
        ConfigError: there is none, or it needs GPUs that are not there.
        MissingExtraError: DeepSpeed is needed and not installed.
    """
    path = Path(how) if "/" in how or how.endswith((".yaml", ".yml")) else LAUNCHES / f"{how}.yaml"
    if not path.is_file():
        known = sorted(each.stem for each in LAUNCHES.glob("*.yaml"))
        raise ConfigError(f"no launch configuration {how!r}; {did_you_mean(how, known)}, or give a file")
    with boundary(ConfigError, f"read {str(path)!r}"):
        text = path.read_text(encoding="utf-8")
    import torch

    has_gpu = torch.cuda.is_available()
    if "DEEPSPEED" in text and find_spec("deepspeed") is None:
        other = "fsdp" if has_gpu else "ddp"
        raise MissingExtraError(f"deepspeed is not installed; pip install deepspeed, or use --launch {other}")
    if ("DEEPSPEED" in text or "FSDP" in text) and not has_gpu:
        # accelerate 1.15 would leave the sharding out and say nothing
        raise ConfigError(f"--launch {how} shares a model out over GPUs, and there is none; use --launch ddp")
    return path


def check_launch(how: str | None) -> None:
    """Make sure that a training can be started in this way, or in one process where `how` is None.

    Raises:
        ConfigError: it cannot.
        MissingExtraError: a library is not installed.
    """
    check_extra()
    if how is not None:
        find_launch(how)
        return
    from matrix_dspy.training.fitting import check_alone

    check_alone()


def read_trained(out: Path) -> Trained:
    """Return what a finished training made.

    Raises:
        RunError: it is not finished, or cannot be read.
    """
    record = read_record(out)
    if record is None or not (out / TRAINED).is_file():
        raise RunError(f"the training in {str(out)!r} is not finished; run its command again")
    with boundary(RunError, f"read {str(out / TRAINED)!r}"):
        result = orjson.loads((out / TRAINED).read_bytes())
    return Trained(out, record["stage"], Prepared.from_json(record["prepared"]), result)


def check_extra() -> None:
    """Refuse to go on without the libraries of the extra `train`."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"{missing[0]} is not installed; pip install 'matrix-dspy[train]'")


@contextmanager
def _offline(model: str) -> Iterator[None]:
    """Keep the libraries off the network, unless the model is to be fetched by its name."""
    settings = _SILENT | (dict.fromkeys(_OFFLINE, "1") if Path(model).exists() else {})
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _hold(out: Path) -> Iterator[None]:
    """Make the folder and hold it for this process."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{str(out)!r} is a file; give another folder with --out")
    with boundary(RunError, f"open the folder {str(out)!r}"):
        out.mkdir(parents=True, exist_ok=True)
    lock = take_lock(out)
    try:
        remove_leftovers(out)
        yield
    finally:
        lock.release()


def _start(
    config: TrainingConfig,
    source: Path,
    model: str,
    out: Path,
    stage: Stage,
    say: Say,
    n_processes: int,
    how: str,
) -> Trained | None:
    """Fill the folder where it is new, and make sure that it is this training's; return a finished one."""
    _check_model(model)
    record = read_record(out)
    found = read_source(Path(source), stage)
    is_local = Path(model).exists()
    digest = hash_model(Path(model)) if is_local else model
    template = _read_template(config)
    launched = {"n_processes": n_processes, "launch": Path(how).name, "template": _hash_text(template)}
    settings = config.describe(stage)
    identity = build_identity(stage, settings, found[1].sha256, digest, **launched)
    if record is not None and record["identity"] != identity and not has_begun(out):
        record = None  # nothing was trained with those settings
    else:
        refuse_other(out, record, identity)
    if record is not None and (out / TRAINED).is_file():
        return replace(read_trained(out), was_finished=True)
    from matrix_dspy.training.fitting import check_alone, check_machine

    check_machine(config)
    if not how:
        check_alone()
    if record is None:
        prepared = _prepare(config, stage, found, model, out, template)
        record = {
            "stage": stage,
            "identity": identity,
            "settings": config.model_dump(mode="json"),
            "effective_batch": config.effective_batch(n_processes),
            "seed": config.seed,
            "model": _describe_model(model, digest, is_local=is_local),
            "chat_template": template,
            "prepared": prepared.to_json(),
            "versions": list_versions(),
        }
    else:
        # what may change between starts
        record |= {"settings": config.model_dump(mode="json"), "versions": list_versions()}
        del record["contract"]
        prepared = Prepared.from_json(record["prepared"])
    write_record(out, record)
    _tell(prepared, config, n_processes, say)
    return None


def _check_model(model: str) -> None:
    folder = Path(model)
    if folder.is_file():
        raise ConfigError(f"{model!r} is a file; give the folder of a model")
    if folder.is_dir() and not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ConfigError(f"{model!r} holds an adapter only; give the folder of the model it is merged into")
        raise ConfigError(f"{model!r} holds no model (config.json); give a model's folder")
    if not folder.exists() and (model.startswith((".", "/", "~")) or model.count("/") != 1):
        raise ConfigError(f"no model {model!r}; give a model's folder, or OWNER/NAME of one to fetch")


def _read_template(config: TrainingConfig) -> str:
    if not config.chat_template:
        return ""
    from matrix_dspy.training.encoding import read_template

    return read_template(config.chat_template)


def _load_encoder(config: TrainingConfig, model: str, template: str) -> tuple[Any, str]:
    """Return what encodes conversations for a model, and a sentence about its pad token where one was chosen."""
    from matrix_dspy.training.encoding import ChatEncoder, load_tokenizer, set_pad_token

    tokenizer = load_tokenizer(model, is_local=Path(model).exists())
    if template:
        tokenizer.chat_template = template
    encoder = ChatEncoder(tokenizer, model)
    # its sentence goes into the card, which names no folders
    return encoder, set_pad_token(tokenizer, config.pad_token, Path(model).name, encoder.end_of_turn)


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest() if text else ""


def _prepare(
    config: TrainingConfig,
    stage: Stage,
    found: tuple[Any, Any],
    model: str,
    out: Path,
    template: str,
) -> Prepared:
    from transformers import AutoConfig

    encoder, padding = _load_encoder(config, model, template)
    notes = [f"loss on assistant turns, found by {encoder.way}"]
    if padding:
        notes.append(padding)
    if encoder.end_of_turn is None:
        notes.append("the chat template ends no turn with a token of its own, so the model may not learn to stop")
    limit = config.max_length
    try:
        described = AutoConfig.from_pretrained(model, local_files_only=Path(model).exists()).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        words = one_line(str(error))[:200]
        raise ConfigError(f"could not read the config of {model!r} ({words}); give a model's folder") from error
    context = getattr(described, "max_position_embeddings", None)
    if isinstance(context, int) and 0 < context < limit:
        notes.append(f"rows may have {context:,} tokens, the model's own limit, not {limit:,}")
        limit = context
    prepared = prepare(config, stage, found, encoder, out, limit)
    return replace(prepared, notes=(*notes, *prepared.notes))


def _describe_model(model: str, digest: str, *, is_local: bool) -> dict[str, Any]:
    from matrix_dspy.training.card import find_stages

    name = Path(model).resolve().name if is_local else model
    path = str(Path(model).resolve()) if is_local else model
    return {
        "name": name,
        "path": path,
        "is_local": is_local,
        "sha256": digest if is_local else "",
        "stages": find_stages(Path(model)) if is_local else [],
    }


def _tell(prepared: Prepared, config: TrainingConfig, n_processes: int, say: Say) -> None:
    """Say what is trained on, before minutes go by."""
    source = prepared.source
    say(f"{source.n_rows:,} rows of {source.name} ({source.kind}): {prepared.n_train:,} to train on")
    for reason, count in prepared.left_out.items():
        say(f"left out: {count:,} ({reason})")
    if prepared.n_cut:
        say(f"cut to {prepared.limit:,} tokens: {prepared.n_cut:,}")
    for note in prepared.notes:
        say(note)
    say(
        f"effective batch {config.effective_batch(n_processes):,}: {config.batch} x {config.accumulation} accumulated "
        f"x {n_processes} processes"
    )
    if source.is_rehearsed:
        say("rehearsed data: proof of plumbing only")


def _run_processes(out: Path, configuration: Path, n_processes: int, say: Say) -> None:
    """Run `accelerate launch` and hand its lines on; an error of a process is raised here as its own."""
    import torch

    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(configuration)]
    command += ["--num_processes", str(n_processes), "--main_process_port", "0"]
    command += ["-m", "matrix_dspy.training", str(out), "--held", str(os.getpid())]
    log = out / "train.log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(RECIPES.parents[1]), *sys.path])}
    if not torch.cuda.is_available():
        # the flag --cpu would start one process only (accelerate 1.15)
        environment["ACCELERATE_USE_CPU"] = "true"
    # holds where a stop is asked for: after a process that failed, PyTorch still kills the others within 30 seconds
    environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _LONGEST_STOP_S)
    with log.open("wb") as errors_file, interruptible():
        # in a session of its own, so that Ctrl-C reaches this process only and each of the others once
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors_file, env=environment, start_new_session=True
        )
        try:
            code = _follow(process, say)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            with suppress(KeyboardInterrupt):
                _follow(process, say)
            raise
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code:
        _raise_failure(out, log, code)


def _follow(process: subprocess.Popen[bytes], say: Say) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        say(line.decode(errors="replace").rstrip())
    return process.wait()


def _raise_failure(out: Path, log: Path, code: int) -> None:
    if (out / FAILED).is_file():
        failure = json.loads((out / FAILED).read_text(encoding="utf-8"))
        if failure["kind"] == "KeyboardInterrupt":
            raise KeyboardInterrupt
        kind = getattr(errors, failure["kind"], RunError)
        raise kind(failure["words"]) if issubclass(kind, MatrixError) else RunError(failure["words"])
    raise RunError(f"a process of the training ended with {code}; see {str(log)!r}, then run the same command again")
