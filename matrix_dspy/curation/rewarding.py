"""What scores responses from 0 to 1: a reward model of one's own or on a server, or a judge that was calibrated.

All scorers stand behind one async protocol. What is no number is None and counted, never a score. A score depends on
the instruction and the responses it is asked for with, and on nothing that happens to be scored at the same time.
"""

import asyncio
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from yarl import URL

from matrix_dspy.engine.base import Completion, DownError, Engine, Request, TransientError
from matrix_dspy.engine.endpoint import EndpointEngine
from matrix_dspy.errors import ConfigError, EngineError, MissingExtraError, StateMismatchError, boundary, did_you_mean
from matrix_dspy.loading import PROGRAMS, find_variant, read_card
from matrix_dspy.text import clean_text

log = logging.getLogger("matrix_dspy")

FORMS = "the folder of a sequence classifier, or the address of a vLLM server, 'http://host:port' with '#model' or not"
LEVELS = (1, 2, 3, 4, 5)
LEAST_PAIRS = 100
"""Held-out labelled pairs a calibrated judge was measured on (METHOD 3.6)."""
N_DIGITS = 6
"""Digits kept of a score."""
LONGEST_TOKENS = 2**20
"""Beyond this a tokenizer's own limit means that it knows none."""


class Scorer(Protocol):
    """Scores responses; an async context manager, used inside one event loop."""

    name: str
    """What the scores come from, for tables and reports; without address and folder."""
    noise: float
    """Standard deviation of repeated scores of the same response."""
    unscored: Counter[str]
    """Responses without a score, by reason."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def score(self, instruction: str, responses: Sequence[str]) -> list[float | None]:
        """Return a score from 0 to 1 for each response, higher is better; None where there is none.

        Raises:
            EngineError: the scorer as a whole cannot be used.
        """
        ...


def build_scorer(spec: str, *, device: str | None = None, batch_size: int = 16, **limits: Any) -> Scorer:
    """Build the scorer that `spec` names; nothing is loaded or opened before it is entered.

    `limits` are the arguments of `Engine` (concurrency, timeout_s, patience_s), for a server alone.

    Raises:
        ConfigError: `spec` has none of the known forms.
    """
    spec = spec.strip()
    if spec.startswith(("http://", "https://")):
        return PoolingReward(spec, **limits)
    if spec and "://" not in spec:
        return TransformersReward(spec, device=device, batch_size=batch_size)
    raise ConfigError(f"unknown reward model {spec!r}; write {FORMS}")


@dataclass(slots=True)
class _Job:
    """One caller's texts, and where it waits for their scores."""

    instruction: str
    responses: Sequence[str]
    answer: asyncio.Future[list[float | str]]


class TransformersReward:
    """A sequence classifier from a local folder, run by transformers in a thread of its own (extra `train`).

    One label is read as a logit, of two the second one's probability counts. Instruction and response go through the
    tokenizer's chat template; without one they are encoded as a pair. A text longer than the model can read has no
    score: what was cut off might be what mattered.

    A batch holds the responses of one call, so that a score does not depend on who else asks. With `is_shared`, texts
    of several callers fill a batch together; that is faster for calls with one response each, but the last digits
    (in half precision the second) then depend on the company.
    """

    noise = 0.0

    def __init__(
        self, path: str | Path, *, device: str | None = None, batch_size: int = 16, is_shared: bool = False
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; at least 1 is needed")
        self.path = Path(path)
        self.name = self.path.name
        self.device = device
        self.batch_size = batch_size
        self.is_shared = is_shared
        self.unscored: Counter[str] = Counter()
        self._model: _Classifier | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reward")
        self._waiting: list[_Job] = []
        self._draining: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._model is None:
            self._model = await self._in_thread(_Classifier, self.path, self.device)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.gather(self._draining, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)
        self._model = None

    async def score(self, instruction: str, responses: Sequence[str]) -> list[float | None]:
        """Return a score from 0 to 1 for each response; None where there is none."""
        if not responses:
            return []
        assert self._model is not None, "the scorer is used inside `async with`"
        job = _Job(instruction, responses, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        if self._draining is None or self._draining.done():
            self._draining = asyncio.create_task(self._drain())
        return [_keep(found, self.unscored) for found in await job.answer]

    async def _drain(self) -> None:
        while self._waiting:
            n = len(self._waiting) if self.is_shared else 1
            jobs, self._waiting = self._waiting[:n], self._waiting[n:]
            try:
                found = await self._in_thread(self._run, jobs)
            except asyncio.CancelledError:
                for job in (*jobs, *self._waiting):
                    job.answer.cancel()
                raise
            except Exception as error:
                for job in jobs:
                    if not job.answer.done():
                        job.answer.set_exception(error)
                continue
            for job, values in zip(jobs, found, strict=True):
                if not job.answer.done():
                    job.answer.set_result(values)

    def _run(self, jobs: list[_Job]) -> list[list[float | str]]:
        assert self._model is not None
        pairs = [(job.instruction, response) for job in jobs for response in job.responses]
        with boundary(EngineError, f"score with the reward model {str(self.path)!r}"):
            values = iter(self._model.score(pairs, self.batch_size))
        return [[next(values) for _ in job.responses] for job in jobs]

    async def _in_thread(self, do: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, do, *arguments)


class _Classifier:
    """A loaded model with its tokenizer."""

    def __init__(self, path: Path, device: str | None) -> None:
        if not (path / "config.json").is_file():
            raise ConfigError(f"no reward model at {str(path)!r}; write {FORMS}")
        try:
            import torch
            from transformers import AutoModelForSequenceClassification, AutoTokenizer
        except ImportError as error:
            raise MissingExtraError("transformers is not installed; pip install 'matrix-dspy[train]'") from error
        self._torch = torch
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32 if self.device == "cpu" else "auto"
        with boundary(EngineError, f"load the reward model {str(path)!r}"):
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                str(path), local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
            )
            self._model, info = loaded
            self._model.to(self.device).eval()
        if missing := sorted(info["missing_keys"]):
            raise ConfigError(
                f"{str(path)!r} is no reward model: it has no weights for {missing[0]!r}, and random ones would score "
                "at random; give the folder of a trained sequence classifier"
            )
        self.n_labels = int(self._model.config.num_labels)
        if self.n_labels > 2:
            raise ConfigError(f"{str(path)!r} has {self.n_labels} labels; a reward model has one or two")
        self._longest = self._find_longest()
        self._can_pad = self._set_padding()
        self._special = sorted({*self._tokenizer.all_special_tokens} - {""}, key=lambda token: (-len(token), token))

    def score(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[float | str]:
        """Return for each instruction and response a score, or why there is none."""
        encoded = [self._encode(*pair) for pair in pairs]
        found: list[float | str] = ["too long"] * len(pairs)
        fitting = [i for i, ids in enumerate(encoded) if len(ids["input_ids"]) <= self._longest]
        fitting.sort(key=lambda i: (len(encoded[i]["input_ids"]), pairs[i]))  # the least padding
        size = batch_size if self._can_pad else 1
        for start in range(0, len(fitting), size):
            batch = fitting[start : start + size]
            for i, value in zip(batch, self._run([encoded[i] for i in batch]), strict=True):
                found[i] = value
        return found

    def _run(self, encoded: list[dict[str, list[int]]]) -> list[float]:
        torch = self._torch
        inputs = self._tokenizer.pad(encoded, return_tensors="pt") if self._can_pad else _tensors(torch, encoded)
        with torch.inference_mode():
            logits = self._model(**{name: value.to(self.device) for name, value in inputs.items()}).logits.float()
            values = logits.sigmoid()[:, 0] if self.n_labels == 1 else logits.softmax(-1)[:, 1]
        return values.tolist()

    def _encode(self, instruction: str, response: str) -> dict[str, list[int]]:
        instruction, response = self._disarm(instruction), self._disarm(response)
        if self._tokenizer.chat_template:
            messages = [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]
            text = self._tokenizer.apply_chat_template(messages, tokenize=False)
            return dict(self._tokenizer(text, add_special_tokens=False))
        return dict(self._tokenizer(instruction, response))

    def _disarm(self, text: str) -> str:
        """Take out what the tokenizer would obey: the marks of turns and ends."""
        text = clean_text(text)
        for token in self._special:
            text = text.replace(token, " ")
        return text

    def _find_longest(self) -> int:
        config = self._model.config
        limits = (self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
        known = [int(limit) for limit in limits if limit and 0 < limit < LONGEST_TOKENS]
        return min(known, default=LONGEST_TOKENS)

    def _set_padding(self) -> bool:
        """Choose the token batches are padded with; False where there is none, and texts go one by one."""
        tokenizer = self._tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token is None:
            return False
        self._model.config.pad_token_id = tokenizer.pad_token_id
        return True


def _tensors(torch: Any, encoded: list[dict[str, list[int]]]) -> dict[str, Any]:
    return {name: torch.tensor([each[name] for each in encoded]) for name in encoded[0]}


class PoolingEngine(EndpointEngine):
    """A reward model on a vLLM server (`vllm serve MODEL --runner pooling`), asked at `/classify` or `/score`.

    A request is the messages of one conversation; the one text of its completion is the score as a number, or `nan`.
    Being an engine, it has their limit, retries and patience, and its answers can be journaled like any other.
    """

    supports_n = False

    def __init__(self, url: str, model: str = "", **limits: Any) -> None:
        url = url.rstrip("/")
        super().__init__(url if url.endswith("/v1") else f"{url}/v1", model, **limits)
        self._has_template = True

    async def open(self) -> None:
        await super().open()
        self._aim()

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        body, had_template = self._build_body(request), self._has_template
        raw, status, wait = await self._post(body)
        words = raw[:10_000].decode(errors="replace").lower()
        if had_template and status in (400, 422) and "chat template" in words:
            self._has_template = False
            self._aim()
            return await self.attempt(request, n_asked)
        if (status == 404 and "model" not in words) or status in (405, 501):
            raise DownError(f"{self.shown} has no {self._target.path}; serve a reward model with --runner pooling")
        if status != 200:
            self._raise_status(status, raw, wait)
        return Completion((repr(self._read(raw)),), ("stop",), model=self.model)

    def _aim(self) -> None:
        """A model without a chat template is a cross-encoder, which takes pairs of texts."""
        root = self.url.removesuffix("/v1")
        self._target = URL(f"{root}/classify" if self._has_template else f"{root}/score")

    def _build_body(self, request: Request) -> bytes:
        body: dict[str, Any] = {"model": self.model, "use_activation": True}
        if self._has_template:
            body["messages"] = request.messages
        else:
            body["text_1"], body["text_2"] = (message["content"] for message in request.messages)
        return json.dumps(body).encode()

    def _read(self, raw: bytes) -> float:
        """Return the score in an answer of `/classify` or `/score`, or NaN.

        Raises:
            TransientError: the answer is no such JSON.
            DownError: the model is no reward model, or its scores are not from 0 to 1.
        """
        try:
            (data,) = json.loads(raw)["data"]  # bare NaN and Infinity pass, as some servers write them
            values = data["probs"] if "probs" in data else [data["score"]]
            numbers = [math.nan if value is None else float(value) for value in values]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            shown = " ".join(raw[:200].decode(errors="replace").split())[:60]
            raise TransientError(f"the server's answer holds no score (it begins {shown!r})") from error
        if not 1 <= len(numbers) <= 2:
            raise DownError(f"model {self.model!r} has {len(numbers)} classes; a reward model has one or two")
        value = numbers[-1]
        if math.isfinite(value) and not 0 <= value <= 1:
            raise DownError(
                f"model {self.model!r} answers {value:.4g}, not a score from 0 to 1; serve it with "
                '--hf-overrides \'{"problem_type": "single_label_classification"}\''
            )
        return value


class PoolingReward:
    """Scores by a reward model on a server; `spec` is its address, with `#model` where it serves several."""

    noise = 0.0

    def __init__(self, spec: str, **limits: Any) -> None:
        url, _, model = spec.partition("#")
        self.engine: Engine = PoolingEngine(url, model, **limits)
        self.name = model
        self.unscored: Counter[str] = Counter()
        self._has_warned = False

    async def __aenter__(self) -> Self:
        await self.engine.__aenter__()
        self.name = self.engine.model
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.engine.__aexit__(kind, error, trace)

    async def score(self, instruction: str, responses: Sequence[str]) -> list[float | None]:
        """Return a score from 0 to 1 for each response; None where there is none.

        Raises:
            EngineError: the server is gone, refuses the key or serves no reward model.
        """
        requests = [build_request(instruction, response) for response in responses]
        completions = await asyncio.gather(*map(self.engine.complete, requests))
        return [self._read(completion) for completion in completions]

    def _read(self, completion: Completion) -> float | None:
        if completion.down is not None:
            raise EngineError(f"the reward model cannot be used: {completion.down}")
        if completion.error is None:
            return _keep(float(completion.texts[0]), self.unscored)
        if not self._has_warned:
            self._has_warned = True
            log.warning("a response has no reward: %s; said once, all are counted", completion.error)
        return _keep("refused", self.unscored)


def build_request(instruction: str, response: str) -> Request:
    """Return what a `PoolingEngine` is asked for the score of a response."""
    return Request(
        (
            {"role": "user", "content": clean_text(instruction)},
            {"role": "assistant", "content": clean_text(response)},
        )
    )


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far the scores of a judge of responses may be trusted, and what they mean."""

    program: str
    model: str
    probability: tuple[float, ...]
    """For each level from 1 to 5, the probability that the response is right; never falling (isotonic)."""
    level_noise: float
    """Standard deviation of repeated levels of the same response."""
    n_pairs: int
    """Held-out labelled pairs of which the judge scored both sides."""
    agreement: float | None
    """Share of these pairs it sets in the labelled order; a tie counts one half."""
    order_flips: float = 0.0
    """Share of pairs whose order changes the verdict; none for a judge that sees one response at a time."""
    is_calibrated: bool = True
    """False where the judge was forced without enough behind it."""

    @property
    def noise(self) -> float:
        """Repeat noise of the probabilities: that of the levels times the root mean square of the table's steps."""
        steps = [(high - low) ** 2 for low, high in zip(self.probability, self.probability[1:], strict=False)]
        return self.level_noise * math.sqrt(math.fsum(steps) / len(steps))

    def map_level(self, level: int | None) -> float | None:
        """Return the probability of being right at a judge's level; None for what is no level."""
        return self.probability[level - 1] if level in LEVELS else None


def load_calibration(
    model: str, *, program: str = "response_judge", variant: str = "default", force: bool = False
) -> Calibration:
    """Return what the card of a judge says of how it scores on `model`.

    With `force` a judge that was not measured enough is taken all the same, and its calibration says so.

    Raises:
        ConfigError: the judge is not calibrated on `model`.
        StateMismatchError: its card cannot be read.
    """
    if program not in PROGRAMS:
        raise ConfigError(f"no program {program!r}; {did_you_mean(program, list(PROGRAMS))}")
    path = find_variant(program, variant)
    return read_calibration(read_card(path) if path is not None else None, model, program=program, force=force)


def read_calibration(
    card: dict[str, Any] | None, model: str, *, program: str = "response_judge", force: bool = False
) -> Calibration:
    """Return the calibration in a card, as `load_calibration` does."""
    measured = _get(_get(card or {}, "agreement"), model)
    fault = _find_fault(measured, model, program)
    if fault and not force:
        raise ConfigError(
            f"{fault}; `compile judge --lm ...` with {model!r} makes one, or add --set selection.force=true and"
            " the report says so"
        )
    table = _read_table(measured.get("probability")) if measured else None
    pairs, noise = _get(measured, "pairs"), _get(measured, "repeat_noise")
    return Calibration(
        program=program,
        model=model,
        probability=table or tuple((level - 1) / 4 for level in LEVELS),
        level_noise=_read_number(noise.get("sd")) or 0.0,
        n_pairs=int(_read_number(pairs.get("n")) or 0),
        agreement=_read_number(_get(pairs, "agreement").get("value")),
        order_flips=_read_number(_get(pairs, "order_flips").get("value")) or 0.0,
        is_calibrated=not fault,
    )


def _find_fault(measured: dict[str, Any], model: str, program: str) -> str:
    """Say why a judge does not count as calibrated (METHOD 3.6); nothing where it does."""
    if not measured:
        return f"{program!r} has no calibration on {model!r}"
    n_pairs = int(_read_number(_get(measured, "pairs").get("n")) or 0)
    if n_pairs < LEAST_PAIRS:
        return f"the calibration of {program!r} on {model!r} has {n_pairs} held-out pairs, {LEAST_PAIRS} are needed"
    table = _read_table(measured.get("probability"))
    if table is None:
        return f"the calibration of {program!r} on {model!r} has no table of five probabilities that never fall"
    if table[0] == table[-1]:
        return f"{program!r} on {model!r} does not tell right from wrong: all its levels mean {table[0]:.2f}"
    noise = _get(measured, "repeat_noise")
    if not (_read_number(noise.get("n")) or 0) or _read_number(noise.get("sd")) is None:
        return f"the repeat noise of {program!r} on {model!r} is not known"
    return ""


def _get(block: Any, name: str) -> dict[str, Any]:
    """Return a block within a card; empty where there is none."""
    found = block.get(name) if isinstance(block, dict) else None
    if found is not None and not isinstance(found, dict):
        raise StateMismatchError(f"{name!r} in the judge's card is no block of figures; compile the judge again")
    return found or {}


def _read_table(found: Any) -> tuple[float, ...] | None:
    if not isinstance(found, list) or len(found) != len(LEVELS):
        return None
    numbers = [_read_number(value) for value in found]
    table = tuple(number for number in numbers if number is not None and number <= 1)
    return table if len(table) == len(LEVELS) and list(table) == sorted(table) else None


def _read_number(value: Any) -> float | None:
    """Return a number of a card, 0 or more; None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and value >= 0 else None


def _keep(found: float | str, unscored: Counter[str]) -> float | None:
    """Return a score, rounded; count what is none."""
    if isinstance(found, str) or not math.isfinite(found):
        unscored[found if isinstance(found, str) else "not a number"] += 1
        return None
    return round(min(1.0, max(0.0, found)), N_DIGITS)
