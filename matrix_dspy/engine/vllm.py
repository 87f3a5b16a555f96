"""A model run by vLLM inside this process: no server, no HTTP, the same completions.

A spec is a model and options of vLLM's own: `vllm:MODEL?max_model_len=8192&tensor_parallel_size=2`. vLLM is imported
when the engine is opened, which takes seconds; then it starts worker processes, which takes half a minute or more.
Batching, the queue and the prefix cache are vLLM's; the calls in flight are `concurrency`, as for any engine.
Written for vLLM 0.32.
"""

import asyncio
import dataclasses
import itertools
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from matrix_dspy.engine.base import (
    Completion,
    DownError,
    Engine,
    RefusedError,
    Request,
    Sampling,
    TransientError,
)
from matrix_dspy.errors import ConfigError, EngineError, MissingExtraError, did_you_mean

PREFIX = "vllm:"
SHUTDOWN_S = 1.0
"""Longest wait for the workers to end before they are killed; left alone they take 8 (vLLM 0.32), for nothing."""
_QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # it is stdout otherwise
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""What keeps the lines of vLLM and its workers out of ours, unless the user has set it."""
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_OPTIONAL = ("top_p", "top_k", "min_p", "repetition_penalty")
_COUNTER = re.compile(r"^vllm:prefix_cache_(hits|queries)_total(?:\{.*\})? (\S+)", re.MULTILINE)


class VllmEngine(Engine):
    """One model in vLLM's `AsyncLLM`, on the GPUs of this machine or on its CPU.

    `options` are fields of vLLM's `AsyncEngineArgs`; what they leave open is chosen by the platform. `data_parallel` is
    how many copies of the model share the calls.
    """

    supports_response_schema = True
    supports_n = True

    def __init__(
        self, name: str, options: dict[str, Any] | None = None, *, data_parallel: int = 1, **limits: Any
    ) -> None:
        super().__init__(**limits)
        self.name = name
        """A folder, or a name on the Hugging Face hub."""
        self.model = _read_model(name)
        self.options = dict(options or {})
        if data_parallel < 1:
            raise ConfigError(f"data_parallel must be at least 1, not {data_parallel}")
        if data_parallel > 1 and self.options.setdefault("data_parallel_size", data_parallel) != data_parallel:
            asked = self.options["data_parallel_size"]
            raise ConfigError(f"data_parallel_size={asked} in the spec and {data_parallel} beside it; give it once")
        self.llm: Any = None
        """vLLM's own `AsyncLLM`, while the engine is open."""
        self._vllm: Any = None
        self._defaults: dict[str, Any] = {}
        """What the model's own generation config sets; a served vLLM starts from it too."""
        self._numbers = itertools.count()

    @classmethod
    def from_spec(cls, spec: str, **limits: Any) -> Self:
        """Build the engine that `vllm:MODEL?key=value&...` names; values are JSON, or else text.

        Raises:
            ConfigError: there is no model in `spec`, or an option is no `key=value` or given twice.
        """
        name, _, query = spec.strip().removeprefix(PREFIX).partition("?")
        if not name or not spec.strip().startswith(PREFIX):
            raise ConfigError(f"no model in {spec!r}; write 'vllm:org/model' or 'vllm:path/to/model'")
        return cls(name, _read_options(query), **limits)

    async def open(self) -> None:
        """Load the model; raises EngineError when it cannot be had and ConfigError for an option vLLM does not know."""
        _check_model(self.name)
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        for variable, value in _QUIET.items():
            os.environ.setdefault(variable, value)
        with _silence_warnings():
            self._vllm = _Vllm()
            check_options(self.options, [field.name for field in dataclasses.fields(self._vllm.AsyncEngineArgs)])
            try:
                await self._start()
            except Exception as error:
                await self.close()
                await asyncio.sleep(0)  # where an interrupt ended the start, the interrupt is what happened
                raise EngineError(f"vLLM cannot start {self.name!r}: {_say_start(error)}") from error
            except BaseException:
                await self.close()
                raise

    async def close(self) -> None:
        if self.llm is not None:
            self.llm.shutdown(timeout=SHUTDOWN_S)
            self.llm = None

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        assert self.llm is not None, "the engine is used inside `async with`"
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self.timeout_s):
                output = await self._generate(request)
        except TimeoutError as error:
            raise TransientError(f"no answer within {self.timeout_s:g} s", is_timeout=True) from error
        except self._vllm.EngineDeadError as error:
            raise DownError(
                f"vLLM has died under {self.model!r}, its own lines say why; the same command goes on from here"
            ) from error
        except Exception as error:
            if (named := self._name(error, request.sampling)) is None:
                raise
            raise named from error
        return _read_output(output, request.sampling.logprobs, time.perf_counter() - started)

    async def read_prefix_cache(self) -> tuple[int, int] | None:
        """Return (prompt tokens found in the prefix cache, prompt tokens looked up) since the engine was opened."""
        if self.llm is None:
            return None
        metrics: Any = import_module("prometheus_client")
        return parse_prefix_cache(metrics.generate_latest().decode())

    async def _start(self) -> None:
        folder = Path(self.name).expanduser()
        name = str(folder) if folder.exists() else self.name
        arguments = self._vllm.AsyncEngineArgs(model=name, **self._choose_options())
        self.llm = self._vllm.AsyncLLM.from_engine_args(arguments)
        self._defaults = self.llm.model_config.get_diff_sampling_param()
        self._defaults.pop("max_tokens", None)
        await self._render(Request([{"role": "user", "content": "hello"}]))  # finds out whether there is a template

    async def _generate(self, request: Request) -> Any:
        """Return vLLM's final output for a request."""
        prompt = await self._render(request)
        priority = request.sampling.priority if self.options.get("scheduling_policy") == "priority" else None
        parameters = self._build_parameters(request.sampling, len(prompt["prompt_token_ids"]))
        outputs = self.llm.generate(prompt, parameters, f"call-{next(self._numbers)}", priority=priority or 0)
        return [output async for output in outputs][-1]

    async def _render(self, request: Request) -> Any:
        """Return the prompt's tokens, by the model's chat template."""
        renderer = self.llm.renderer
        switches = {"add_generation_prompt": True} | (request.sampling.chat_template_kwargs or {})
        chat = self._vllm.ChatParams(chat_template_kwargs=switches)
        # vLLM stops counting at the limit; without one the refusal can say how long the prompt is
        unbounded = dataclasses.replace(renderer.default_chat_tok_params, max_total_tokens=None)
        _, (prompt,) = await renderer.render_chat_async([list(request.messages)], chat, unbounded)
        return prompt

    def _build_parameters(self, sampling: Sampling, n_prompt: int) -> Any:
        context = self.llm.model_config.max_model_len
        if n_prompt >= context:
            raise ValueError(f"the prompt has {n_prompt} tokens and the model's context holds {context}")
        drawn = {name: value for name in _OPTIONAL if (value := getattr(sampling, name)) is not None}
        if sampling.response_schema is not None:
            drawn["structured_outputs"] = self._vllm.StructuredOutputsParams(json=sampling.response_schema)
        return self._vllm.SamplingParams(
            **self._defaults
            | drawn
            | {
                "n": sampling.n,
                "temperature": sampling.temperature,
                "max_tokens": min(sampling.max_tokens, context - n_prompt),
                "stop": list(sampling.stop),
                "seed": sampling.seed if self.send_seeds else None,
                "logprobs": sampling.logprobs or None,
                "output_kind": self._vllm.RequestOutputKind.FINAL_ONLY,
            }
        )

    def _name(self, error: Exception, sampling: Sampling) -> Exception | None:
        """Sort an exception of vLLM's into one of those that `complete` understands; None is a bug."""
        cause = error.__cause__ if isinstance(error, self._vllm.EngineGenerateError) and error.__cause__ else error
        if isinstance(cause, ValueError | TypeError | OverflowError | self._vllm.VLLMClientError):
            return RefusedError(_say_refusal(cause, sampling))
        if isinstance(error, self._vllm.VLLMError):
            is_overload = isinstance(cause, self._vllm.GracefulHTTPError)  # a queue the user bounded is full
            return TransientError(f"vLLM could not answer: {_squeeze(cause)}", is_overload=is_overload)
        return None

    def _choose_options(self) -> dict[str, Any]:
        """Return the options with what the platform needs where the user is silent."""
        options: dict[str, Any] = {
            "structured_outputs_config": {
                "backend": "xgrammar",
                "disable_any_whitespace": True,  # a weak model else fills its limit with legal blanks
            },
            "use_tqdm_on_load": False,
        }
        if self._vllm.is_cpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
            options |= {
                "dtype": "float32",
                "enforce_eager": True,
                # with chunks a seeded request dies: "CPU Generator does not use offset" (vLLM 0.32)
                "enable_chunked_prefill": False,
            }
        options |= self.options
        if isinstance(options["structured_outputs_config"], dict):
            options["structured_outputs_config"] = self._vllm.StructuredOutputsConfig(
                **options["structured_outputs_config"]
            )
        return options


class _Vllm:
    """What is used of vLLM, imported once."""

    def __init__(self) -> None:
        try:
            import_module("vllm")
        except ModuleNotFoundError as error:
            if error.name != "vllm":
                raise EngineError(f"vLLM is installed and does not import: {error}") from error
            raise MissingExtraError("vLLM is not installed; pip install 'matrix-dspy[vllm]'") from error
        except ImportError as error:
            raise EngineError(f"vLLM is installed and does not import: {_squeeze(error)}") from error
        sampling, errors = import_module("vllm.sampling_params"), import_module("vllm.exceptions")
        deaths = import_module("vllm.v1.engine.exceptions")
        self.is_cpu: bool = import_module("vllm.platforms").current_platform.is_cpu()
        self.AsyncLLM: Any = import_module("vllm.v1.engine.async_llm").AsyncLLM
        self.AsyncEngineArgs: Any = import_module("vllm.engine.arg_utils").AsyncEngineArgs
        self.StructuredOutputsConfig: Any = import_module("vllm.config").StructuredOutputsConfig
        self.ChatParams: Any = import_module("vllm.renderers").ChatParams
        self.SamplingParams: Any = sampling.SamplingParams
        self.StructuredOutputsParams: Any = sampling.StructuredOutputsParams
        self.RequestOutputKind: Any = sampling.RequestOutputKind
        self.VLLMError: Any = errors.VLLMError
        self.VLLMClientError: Any = errors.VLLMClientError
        self.GracefulHTTPError: Any = errors.GracefulHTTPError
        self.EngineDeadError: Any = deaths.EngineDeadError
        self.EngineGenerateError: Any = deaths.EngineGenerateError
        # set up by other libraries in this process, past vLLM's own level
        logging.getLogger("transformers").setLevel(logging.ERROR)


@contextmanager
def _silence_warnings() -> Iterator[None]:
    """Keep Python's warnings out of stderr, here and in the processes that are started meanwhile."""
    given = os.environ.get("PYTHONWARNINGS")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        if given is None:
            del os.environ["PYTHONWARNINGS"]


def parse_prefix_cache(metrics: str) -> tuple[int, int] | None:
    """Return (hit tokens, queried tokens) of a vLLM's `/metrics` text, summed over its engines; None without them."""
    counts: dict[str, float] = {}
    for name, value in _COUNTER.findall(metrics):
        counts[name] = counts.get(name, 0.0) + float(value)
    if len(counts) < 2:
        return None
    return int(counts["hits"]), int(counts["queries"])


def check_options(options: Iterable[str], known: list[str]) -> None:
    """Refuse options that vLLM does not have.

    Raises:
        ConfigError: names the first such option and the nearest one there is.
    """
    for key in options:
        if key not in known:
            raise ConfigError(f"vLLM has no engine option {key!r}; {_suggest(key, known)}")


def _suggest(key: str, known: list[str]) -> str:
    """Name the nearest option; there are too many to list."""
    words = did_you_mean(key, known)
    return words if words.startswith("did you mean") else "see the engine arguments in vLLM's documentation"


def _read_options(query: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in query.split("&") if query else ():
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise ConfigError(f"vLLM option {part!r} will not do; write key=value")
        if key in options or key == "model":
            raise ConfigError(f"vLLM option {key!r} is given twice; give it once")
        options[key] = _read_value(unquote(value))
    return options


def _read_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _read_model(name: str) -> str:
    """Return the name users know: of a folder its last part, of a hub's model all."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() or not _HUB_NAME.fullmatch(name) else name


def _check_model(name: str) -> None:
    path = Path(name).expanduser()
    if path.is_dir() and not any((path / file).exists() for file in ("config.json", "params.json")):
        raise EngineError(f"no model in {name!r}: the folder has no config.json")
    if not path.exists() and not _HUB_NAME.fullmatch(name):
        raise EngineError(f"no model folder {name!r}; give a folder that exists or a hub name such as org/model")


def _read_output(output: Any, n_top: int, seconds: float) -> Completion:
    answers = sorted(output.outputs, key=lambda answer: answer.index)
    if any(answer.finish_reason in ("abort", "error") for answer in answers):
        raise TransientError("vLLM gave the request up")
    return Completion(
        texts=tuple(answer.text for answer in answers),
        finish_reasons=tuple("length" if answer.finish_reason == "length" else "stop" for answer in answers),
        prompt_tokens=len(output.prompt_token_ids),
        completion_tokens=sum(len(answer.token_ids) for answer in answers),
        seconds=seconds,
        logprobs=tuple(_read_logprobs(answer, n_top) for answer in answers) if n_top else None,
        cached_tokens=output.num_cached_tokens or 0,
    )


def _read_logprobs(answer: Any, n_top: int) -> list[dict[str, Any]]:
    """Return each token of an answer with its log-probability and those of the `n_top` likeliest in its place."""
    places: list[dict[str, Any]] = []
    for token_id, place in zip(answer.token_ids, answer.logprobs, strict=True):
        # vLLM adds the drawn token when it is not among the likeliest
        top = sorted(place.values(), key=lambda each: each.rank)[:n_top]
        places.append(_write_logprob(place[token_id]) | {"top_logprobs": [_write_logprob(each) for each in top]})
    return places


def _write_logprob(each: Any) -> dict[str, Any]:
    # JSON knows no infinity; a served vLLM writes the same floor
    return {"token": each.decoded_token or "", "logprob": max(each.logprob, -9999.0)}


def _say_refusal(error: BaseException, sampling: Sampling) -> str:
    words = _squeeze(error)
    # vLLM names the parameter in every refusal but those of a grammar
    is_schema = sampling.response_schema is not None and getattr(error, "parameter", "") is None
    return f"vLLM refuses the schema: {words}" if is_schema else f"vLLM refuses the request: {words}"


def _say_start(error: Exception) -> str:
    """Return the one useful sentence of a start that failed."""
    words = _squeeze(error)
    if "engine core" in words.lower():
        return "its engine did not come up; its own lines above say why"
    _, _, said = words.partition("Value error, ")  # pydantic's frame around it
    return (said or words).partition(" [type=")[0]


def _squeeze(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
