"""Any OpenAI-compatible server (vLLM first) over aiohttp, with a keep-alive pool as wide as the concurrency.

The key, where the server wants one, is read from the environment variable MATRIX_DSPY_API_KEY and kept in memory only.
"""

import asyncio
import os
import time
from typing import Any

import aiohttp
import orjson

from matrix_dspy.engine.base import (
    OVERLOAD_STATUS,
    RETRIED_STATUS,
    Completion,
    DownError,
    Engine,
    RefusedError,
    Request,
    TransientError,
)
from matrix_dspy.errors import EngineError

API_KEY_VARIABLE = "MATRIX_DSPY_API_KEY"
CONNECT_TIMEOUT_S = 10.0


class EndpointEngine(Engine):
    """Chat completions at `<url>/chat/completions`; the model's name is asked of `<url>/models` when not given."""

    supports_response_schema = True

    def __init__(self, url: str, model: str = "", **limits: Any) -> None:
        super().__init__(**limits)
        self.url = url.rstrip("/")
        self.model = model
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(API_KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=self.timeout_s, connect=CONNECT_TIMEOUT_S),
            headers=headers,
        )
        try:
            self.model = await self._choose_model()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        assert self._session is not None, "the engine is used inside `async with`"
        started = time.perf_counter()
        try:
            async with self._session.post(self.url + "/chat/completions", data=self._body(request)) as reply:
                raw, status, wait = await reply.read(), reply.status, reply.headers.get("Retry-After")
        except TimeoutError as error:
            raise TransientError(f"no answer within {self.timeout_s:g} s", is_overload=True) from error
        except aiohttp.ClientError as error:
            raise TransientError(f"{self.url} does not answer ({_name_failure(error)})") from error
        if status != 200:
            self._raise_status(status, raw, wait)
        return read_completion(raw, time.perf_counter() - started)

    def _body(self, request: Request) -> bytes:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "messages": request.messages,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
        }
        if sampling.top_p is not None:
            body["top_p"] = sampling.top_p
        if sampling.stop:
            body["stop"] = sampling.stop
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.n != 1:
            body["n"] = sampling.n
        if sampling.response_schema is not None:
            schema = {"name": "answer", "strict": True, "schema": sampling.response_schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return orjson.dumps(body)

    def _raise_status(self, status: int, raw: bytes, wait: str | None) -> None:
        said = _server_words(raw)
        if status in RETRIED_STATUS or status >= 500:
            raise TransientError(
                f"{self.url} answers {status}{said}",
                retry_after=_read_seconds(wait),
                is_overload=status in OVERLOAD_STATUS,
            )
        if status in (401, 403):
            raise DownError(
                f"{self.url} refuses the key ({status}{said}); set the environment variable {API_KEY_VARIABLE}"
            )
        if status == 404:
            raise DownError(f"{self.url} does not serve model {self.model!r} (404{said}); see {self.url}/models")
        if status < 400 or status == 405:
            raise DownError(f"{self.url} answers {status}, not as a model server; does the address end in /v1?")
        raise RefusedError(f"the server answers {status}{said}")

    async def _choose_model(self) -> str:
        """Return the wanted model, or the first one served; say what is wrong with the server if anything is."""
        assert self._session is not None
        hint = "start a server there or give another --lm"
        try:
            async with self._session.get(self.url + "/models") as reply:
                raw, status = await reply.read(), reply.status
        except TimeoutError as error:
            raise EngineError(f"{self.url} accepts connections but does not answer; {hint}") from error
        except aiohttp.InvalidURL as error:
            raise EngineError(f"{self.url!r} is not an address; write --lm http://host:port/v1") from error
        except aiohttp.ClientError as error:
            raise EngineError(f"no server answers at {self.url} ({_name_failure(error)}); {hint}") from error
        if status in (401, 403):
            raise EngineError(f"{self.url} refuses the key ({status}); set the environment variable {API_KEY_VARIABLE}")
        if status in (404, 405) and self.model:
            return self.model
        if status != 200:
            raise EngineError(f"{self.url}/models answers {status}{_server_words(raw)}; does the address end in /v1?")
        served = _read_models(raw)
        if served is None:
            raise EngineError(f"{self.url} answers, but not as a model server ({_first_words(raw)}); {hint}")
        if not served:
            raise EngineError(f"{self.url} serves no model; load one, or name it as {self.url}#model-name")
        if self.model and self.model not in served:
            raise EngineError(f"{self.url} does not serve model {self.model!r}; it serves {', '.join(served[:5])}")
        return self.model or served[0]


def read_completion(raw: bytes, seconds: float) -> Completion:
    """Turn a chat completion's JSON into a Completion.

    Raises:
        TransientError: the body is not such JSON; a proxy's page or a cut-off answer may be right next time.
    """
    try:
        reply = orjson.loads(raw)
        choices = sorted(reply["choices"], key=lambda choice: choice.get("index") or 0)
        texts = tuple(choice["message"].get("content") or "" for choice in choices)
        reasons = tuple(str(choice.get("finish_reason") or "stop") for choice in choices)
        usage = reply.get("usage") or {}
        counts = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise TransientError(f"the server's answer is no chat completion ({_first_words(raw)})") from error
    if not texts or not all(isinstance(text, str) for text in texts):
        raise TransientError(f"the server's answer holds no text ({_first_words(raw)})")
    logprobs = tuple(choice.get("logprobs") for choice in choices)
    return Completion(texts, reasons, *counts, seconds, logprobs if any(logprobs) else None)


def _read_models(raw: bytes) -> list[str] | None:
    try:
        return [str(model["id"]) for model in orjson.loads(raw)["data"]]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


def _read_seconds(header: str | None) -> float | None:
    """Read `Retry-After`; the date form is not used by model servers and counts as absent."""
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:
        return None


def _server_words(raw: bytes) -> str:
    """Return what the server says of an error, as `: words`, or nothing."""
    try:
        error = orjson.loads(raw)["error"]
        words = error["message"] if isinstance(error, dict) else error
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""
    return f": {_hide_key(' '.join(str(words).split()))[:300]}"


def _first_words(raw: bytes) -> str:
    text = _hide_key(" ".join(raw[:2000].decode(errors="replace").split()))
    return f"it begins {text[:60]!r}" if text else "it is empty"


def _hide_key(words: str) -> str:
    """Take the key out of what a server said: some repeat it in their errors."""
    key = os.environ.get(API_KEY_VARIABLE)
    return words.replace(key, "(the key)") if key else words


def _name_failure(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "unknown host"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connection refused" if isinstance(error.os_error, ConnectionRefusedError) else str(error.os_error)
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError | asyncio.IncompleteReadError):
        return "the connection was closed"
    return type(error).__name__
