"""A model run by transformers inside this process: slower than vLLM, and it runs where vLLM does not.

A spec is a folder and options: `transformers:DIR?batch=16&dtype=bfloat16`. The folder holds a model, or a PEFT adapter
whose base model is found beside it. torch and transformers are imported when the engine is opened; nothing is ever
downloaded and no code from a model's folder is run. One thread does all the work, a token for every row of the batch
at a time; requests join the batch as others leave it. Written for transformers 5.19 and peft 0.21.
"""

import asyncio
import gc
import logging
import re
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from matrix_dspy.engine.base import (
    Completion,
    DownError,
    Engine,
    Message,
    RefusedError,
    Request,
    Sampling,
    TransientError,
)
from matrix_dspy.engine.model_files import find_folders, has_tokenizer
from matrix_dspy.errors import ConfigError, EngineError, MissingExtraError, boundary, did_you_mean

PREFIX = "transformers:"
DTYPES = ("auto", "float32", "bfloat16", "float16")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_FIXED_SWITCHES = frozenset(
    {"conversation", "chat_template", "tokenize", "padding", "truncation", "max_length", "return_tensors"}
    | {"return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"}
)
"""Arguments of `apply_chat_template` that a request must not set: they change what comes back, not what is asked."""
_RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (0.0, float("inf"), "0 or more"),
    "top_p": (1e-9, 1.0, "above 0 and at most 1"),
    "top_k": (-1, float("inf"), "1 or more, or 0 for all"),
    "min_p": (0.0, 1.0, "from 0 to 1"),
    "repetition_penalty": (1e-9, float("inf"), "above 0"),
    "max_tokens": (1, float("inf"), "1 or more"),
    "n": (1, float("inf"), "1 or more"),
    "logprobs": (0, float("inf"), "0 or more"),
}


@dataclass(frozen=True, slots=True)
class Options:
    """What may follow the folder in a spec."""

    dtype: str = "auto"
    """Numbers the weights are held in: bfloat16 on a GPU and float32 on a CPU, unless it is given."""
    device: str = ""
    """Where the model is put, such as `cuda:1`; unset is a GPU where there is one, else the CPU."""
    batch: int = 32
    """Answers that are worked on at once."""
    max_model_len: int | None = None
    """Most tokens of a prompt and its answer together; unset is what the model was made for."""
    chat_template: Path | None = None
    """A file with the chat template, in place of the model's own."""
    adapter: Path | None = None
    """The folder of a PEFT adapter to put on top of the model."""


@dataclass(slots=True, eq=False)
class _Call:
    """A request on its way: the rows that answer it, and who waits for them."""

    rows: list[Any] = field(default_factory=list)
    future: "Future[None]" = field(default_factory=Future)

    def is_waited_for(self) -> bool:
        return not self.future.done()

    def settle(self, error: Exception | None = None) -> None:
        """Wake whoever waits, unless they went away."""
        with suppress(InvalidStateError):
            self.future.set_exception(error) if error else self.future.set_result(None)


class TransformersEngine(Engine):
    """One causal language model of transformers, on one GPU or on the CPU.

    A request with a seed has the same text in whatever company it is answered, in float32 on a CPU; in bfloat16 a near
    tie may fall the other way now and then. Schemas are not held: programs say in words what they want.
    """

    supports_n = True

    def __init__(self, name: str, options: Options | None = None, **limits: Any) -> None:
        super().__init__(**limits)
        self.name = name
        """The folder of a model, or of a PEFT adapter."""
        self.options = options or Options()
        self.model = _read_name(name)
        if self.options.adapter is not None:
            self.model = f"{self.model}+{_read_name(str(self.options.adapter))}"
        self.context = 0
        """Most tokens of a prompt and its answer together; known once the engine was opened."""
        self._tokenizer: Any = None
        self._n_tokenizer: int | None = None
        """Longest text that the tokenizer was made for, in tokens; a number without meaning where nobody set it."""
        self._defaults: dict[str, Any] = {}
        """What the model's own generation config sets, as vLLM reads it."""
        self._worker: _Worker | None = None

    @classmethod
    def from_spec(cls, spec: str, **limits: Any) -> Self:
        """Build the engine that `transformers:DIR?key=value&...` names.

        Raises:
            ConfigError: there is no folder in `spec`, or an option is unknown, has no such value or is given twice.
        """
        name, _, query = spec.strip().removeprefix(PREFIX).partition("?")
        if not name or not spec.strip().startswith(PREFIX):
            raise ConfigError(f"no model in {spec!r}; write 'transformers:path/to/model'")
        return cls(name, read_options(query), **limits)

    async def open(self) -> None:
        """Load the model.

        Raises:
            ConfigError: there is no such model, it is none that can be talked to, or an option does not fit it.
            MissingExtraError: torch, transformers or (for an adapter) peft is not installed.
            EngineError: the model does not fit into the memory of its device.
        """
        self._worker = await asyncio.to_thread(self._load)
        self._worker.start()

    async def close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await asyncio.to_thread(worker.stop)
            del worker
            if (torch := import_module("torch")).cuda.is_available():  # another process may need the room
                gc.collect()
                torch.cuda.empty_cache()

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        assert self._worker is not None, "the engine is used inside `async with`"
        started = time.perf_counter()
        prompt = self._render(request)
        call = self._build_call(prompt, request.sampling)
        self._worker.add(call)
        try:
            async with asyncio.timeout(self.timeout_s):
                await asyncio.wrap_future(call.future)
        except TimeoutError as error:
            raise TransientError(f"no answer within {self.timeout_s:g} s", is_timeout=True) from error
        rows = call.rows
        return Completion(
            texts=tuple(row.text for row in rows),
            finish_reasons=tuple(row.reason for row in rows),
            prompt_tokens=len(prompt),
            completion_tokens=sum(len(row.tokens) for row in rows),
            seconds=time.perf_counter() - started,
            logprobs=tuple(row.places for row in rows) if request.sampling.logprobs else None,
        )

    def _load(self) -> "_Worker":
        folder, adapter = find_folders(self.name, self.options.adapter)
        template = _read_template(self.options.chat_template)
        tokenizer = load_tokenizer(adapter if adapter is not None and has_tokenizer(adapter) else folder)
        if template is not None:
            tokenizer.chat_template = template
        self._tokenizer = tokenizer
        self._n_tokenizer = tokenizer.model_max_length
        tokenizer.model_max_length = sys.maxsize  # else it warns of a long prompt, which is refused in any case
        if not tokenizer.chat_template:
            raise ConfigError(
                f"the model in {self.name!r} has no chat template; "
                f"give one with 'transformers:{self.name}?chat_template=FILE'"
            )
        self._check_template()
        model = load_model(folder, adapter, dtype=self.options.dtype, device=self.options.device)
        self.context = self._read_context(model.config)
        said = model.generation_config.to_diff_dict() if model.generation_config else {}
        self._defaults = {name: said[name] for name in _DIALS if said.get(name) is not None}
        ends = said.get("eos_token_id")
        ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
        decoding: Any = import_module("matrix_dspy.engine.decoding")
        return _Worker(decoding.Decoder(model, tokenizer, ends=ends, n_rows=self.options.batch), self.model)

    def _check_template(self) -> None:
        """Find out with a short message whether the template is one."""
        try:
            self._apply_template([{"role": "user", "content": "hello"}], {})
        except Exception as error:
            raise ConfigError(
                f"the chat template of {self.name!r} will not do: {_squeeze(error)}; "
                "give another with the option chat_template=FILE"
            ) from error

    def _apply_template(self, messages: Sequence[Message], switches: dict[str, Any]) -> list[int]:
        given = {"add_generation_prompt": True} | switches
        found = self._tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True, **given)
        return list(found["input_ids"])

    def _render(self, request: Request) -> list[int]:
        """Return the prompt's tokens, by the model's chat template."""
        switches = request.sampling.chat_template_kwargs or {}
        if fixed := sorted(_FIXED_SWITCHES & set(switches)):
            raise RefusedError(f"chat_template_kwargs cannot set {fixed[0]!r}")
        try:
            prompt = self._apply_template([_flatten(message) for message in request.messages], switches)
        except RefusedError:
            raise
        except Exception as error:  # a template may raise whatever it likes
            raise RefusedError(f"the chat template refuses the messages: {_squeeze(error)}") from error
        if len(prompt) >= self.context:
            raise RefusedError(f"the prompt has {len(prompt)} tokens and the model's context holds {self.context}")
        if not prompt:
            raise RefusedError("the prompt has no tokens")
        return prompt

    def _build_call(self, prompt: list[int], sampling: Sampling) -> _Call:
        decoding: Any = import_module("matrix_dspy.engine.decoding")
        _check_sampling(sampling)
        set_by_user = {name: value for name in _DIALS if (value := getattr(sampling, name)) is not None}
        drawn = self._defaults | set_by_user
        drawn["top_k"] = max(int(drawn.get("top_k", 0)), 0)
        seed = sampling.seed if self.send_seeds else None
        call = _Call()
        call.rows = [
            decoding.Row(
                prompt=prompt,
                dials=decoding.Dials(**drawn),
                n_most=min(sampling.max_tokens, self.context - len(prompt)),
                seed=f"{secrets.token_hex(8) if seed is None else seed}/{number}",
                stops=tuple(stop for stop in sampling.stop if stop),
                n_logprobs=sampling.logprobs,
                is_wanted=call.is_waited_for,
            )
            for number in range(sampling.n)
        ]
        return call

    def _read_context(self, config: Any) -> int:
        said = (getattr(config.get_text_config(decoder=True), "max_position_embeddings", None), self._n_tokenizer)
        made_for = min((each for each in said if each and each < sys.maxsize), default=None)
        asked = self.options.max_model_len
        if made_for and asked and asked > made_for:
            raise ConfigError(f"max_model_len={asked} is more than the {made_for} tokens that {self.name!r} holds")
        if found := asked or made_for:
            return int(found)
        raise ConfigError(f"the model in {self.name!r} does not say how long its context is; give max_model_len=N")


_DIALS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class _Worker:
    """The thread in which the model runs, and the calls it has not answered yet."""

    def __init__(self, decoder: Any, model: str) -> None:
        self._decoder = decoder
        self._model = model
        self._new: list[_Call] = []
        self._calls: dict[int, _Call] = {}
        """Calls by the id of each of their rows."""
        self._changed = threading.Condition()
        self._gone: str | None = None
        """Why no more calls are answered."""
        self._thread = threading.Thread(target=self._work, name="matrix-dspy-transformers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, call: _Call) -> None:
        """Put a call in the queue."""
        with self._changed:
            if self._gone is not None:
                raise DownError(self._gone)
            self._new.append(call)
            self._changed.notify()

    def stop(self) -> None:
        """End the thread after the token it is at; calls without an answer are told so."""
        with self._changed:
            self._gone = self._gone or "the engine was closed before the answer was there"
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        try:
            while self._take():
                for row in self._decoder.step():
                    self._note(row)
                self._calls = {place: call for place, call in self._calls.items() if call.is_waited_for()}
        except Exception as error:
            log.debug("a step of %s failed", self._model, exc_info=True)
            self._gone = f"transformers has failed under {self._model!r}: {_squeeze(error)}"
        with self._changed:
            left = [*self._calls.values(), *self._new]
            self._calls, self._new = {}, []
        for call in left:
            call.settle(DownError(self._gone or ""))

    def _take(self) -> bool:
        """Pass new calls on to the decoder, waiting for one if it has nothing to do; False when the end has come."""
        with self._changed:
            while not (self._gone or self._new or self._decoder.has_work):
                self._changed.wait()
            if self._gone:
                return False
            new, self._new = self._new, []
        for call in new:
            self._calls |= {id(row): call for row in call.rows}
            self._decoder.waiting.extend(call.rows)
        return True

    def _note(self, row: Any) -> None:
        call = self._calls.pop(id(row), None)
        if call is None:
            return
        if row.fault:
            call.settle(RefusedError(row.fault))
        elif all(each.is_done for each in call.rows):
            call.settle()


log = logging.getLogger("matrix_dspy")


def read_options(query: str) -> Options:
    """Read `key=value&...`; values may be percent-encoded.

    Raises:
        ConfigError: an option is unknown, has no such value or is given twice.
    """
    given: dict[str, Any] = {}
    known = [each.name for each in fields(Options)]
    for part in query.split("&") if query else ():
        key, equals, text = part.partition("=")
        if not key or not equals:
            raise ConfigError(f"transformers option {part!r} will not do; write key=value")
        if key not in known:
            raise ConfigError(f"transformers has no option {key!r}; {did_you_mean(key, known)}")
        if key in given:
            raise ConfigError(f"transformers option {key!r} is given twice; give it once")
        given[key] = _read_value(key, unquote(text))
    return Options(**given)


def _read_value(key: str, text: str) -> Any:
    if key in ("batch", "max_model_len"):
        if not text.isdecimal() or int(text) < 1:
            raise ConfigError(f"{key}={text} will not do; give a whole number from 1 up")
        return int(text)
    if key == "dtype" and text not in DTYPES:
        raise ConfigError(f"no dtype {text!r}; {did_you_mean(text, list(DTYPES))}")
    if not text:
        raise ConfigError(f"transformers option {key!r} is empty; give a value or leave it out")
    return Path(text).expanduser() if key in ("chat_template", "adapter") else text


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a folder.

    Raises:
        ConfigError: there is none that can be read.
        MissingExtraError: transformers is not installed.
    """
    transformers = _import("transformers")
    with _quiet(transformers), boundary(ConfigError, f"read the tokenizer in {str(folder)!r}"):
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_model(folder: Path, adapter: Path | None = None, *, dtype: str = "auto", device: str = "") -> Any:
    """Return the causal LM in a folder, in evaluation mode on its device, an adapter merged into its weights.

    Raises:
        ConfigError: it is no causal LM, weights are missing, or there is no such device.
        MissingExtraError: torch, transformers or (for an adapter) peft is not installed.
        EngineError: it does not fit into the memory of the device.
    """
    torch, transformers = _import("torch"), _import("transformers")
    where = _choose_device(torch, device)
    if dtype == "auto":
        dtype = "float32" if where.type == "cpu" else "bfloat16"
    try:
        with _quiet(transformers):
            model = _read_model(transformers, folder, getattr(torch, dtype))
            if adapter is not None:
                model = _put_on(model, adapter)
            return model.to(where).eval()
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"the model in {str(folder)!r} does not fit into the memory of {where}; free some or use another device"
        ) from error


def _read_model(transformers: Any, folder: Path, dtype: Any) -> Any:
    with boundary(ConfigError, f"load the model in {str(folder)!r}"):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        made = config.architectures or []
        if any("SequenceClassification" in each for each in made):
            raise ConfigError(f"{str(folder)!r} holds a {made[0]}, which writes no text; give a causal language model")
        try:
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:
            raise ConfigError(f"could not load the model in {str(folder)!r}: {_squeeze(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise ConfigError(
            f"the weights in {str(folder)!r} lack {len(missing)} of the model's parameters, {missing[0]!r} for one; "
            "save the model again"
        )
    if not model._supports_default_dynamic_cache():
        raise ConfigError(f"a {type(model).__name__} is not run here; serve the model in {str(folder)!r} with vLLM")
    return model


def _put_on(model: Any, adapter: Path) -> Any:
    """Return the model with an adapter merged into its weights."""
    peft = _import("peft")
    with boundary(ConfigError, f"put the adapter in {str(adapter)!r} on the model"):
        tuned = peft.PeftModel.from_pretrained(model, str(adapter), is_trainable=False, local_files_only=True)
        return merge_adapter(tuned)


def merge_adapter(tuned: Any) -> Any:
    """Return the model under an adapter with the adapter merged into its weights.

    Where input and output embeddings are one matrix and the adapter changes one of the two, they become two: merging
    into the one would change the other as well.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch.nn import Parameter

    model = tuned.get_base_model()
    given, output = model.get_input_embeddings(), model.get_output_embeddings()
    if model.config.tie_word_embeddings and any(isinstance(layer, BaseTunerLayer) for layer in (given, output)):
        layer: Any = output.get_base_layer() if isinstance(output, BaseTunerLayer) else output
        layer.weight = Parameter(layer.weight.detach().clone())
        model.config.tie_word_embeddings = False
    return tuned.merge_and_unload()


def _choose_device(torch: Any, name: str) -> Any:
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:
        raise ConfigError(f"no device {name!r} here; give 'cpu', or 'cuda' on a machine with a GPU") from error
    return device


def _read_template(path: Path | None) -> str | None:
    if path is None:
        return None
    with boundary(ConfigError, f"read the chat template {str(path)!r}"):
        return path.read_text("utf-8")


def _read_name(name: str) -> str:
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() or not _HUB_NAME.fullmatch(name) else name


def _flatten(message: Message) -> Message:
    """Return a message whose content is a string; templates differ in what else they take."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    texts = [part.get("text") for part in content if part.get("type") == "text"]
    if len(texts) != len(content):
        raise RefusedError("the messages hold more than text, which the model does not read")
    return message | {"content": "".join(map(str, texts))}


def _check_sampling(sampling: Sampling) -> None:
    for name, (least, most, words) in _RANGES.items():
        value = getattr(sampling, name)
        if value is not None and not least <= value <= most:
            raise RefusedError(f"{name} must be {words}, not {value}")


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise MissingExtraError(f"{name} is not installed; pip install 'matrix-dspy[train]'") from error
        raise EngineError(f"{name} is installed and does not import: {_squeeze(error)}") from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep the progress bars and warnings of transformers out of stderr while a model is loaded."""
    said = transformers.utils.logging
    had_bars, level = said.is_progress_bar_enabled(), said.get_verbosity()
    said.disable_progress_bar()
    said.set_verbosity_error()
    try:
        yield
    finally:
        said.set_verbosity(level)
        if had_bars:
            said.enable_progress_bar()


def _squeeze(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
