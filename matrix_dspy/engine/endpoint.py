"""Any OpenAI-compatible server (vLLM first) over aiohttp, with a keep-alive pool as wide as the concurrency.

The key, where the server wants one, is read from the environment variable MATRIX_DSPY_API_KEY and kept in memory only.
"""

import asyncio
import json
import logging
import math
import os
import time
from typing import Any

import aiohttp
import orjson
from yarl import URL

from matrix_dspy.engine.base import (
    GATEWAY_STATUS,
    OVERLOAD_STATUS,
    RETRIED_STATUS,
    Completion,
    DownError,
    Engine,
    RefusedError,
    Request,
    TransientError,
    read_reasoning,
)
from matrix_dspy.errors import EngineError
from matrix_dspy.text import hide_secrets

log = logging.getLogger("matrix_dspy")

API_KEY_VARIABLE = "MATRIX_DSPY_API_KEY"
CONNECT_TIMEOUT_S = 10.0
STALL_S = 30.0
"""Longest silence in the middle of an answer that has begun."""
SCHEMA_SERVERS = frozenset({"vllm", "sglang"})
"""Servers, as `owned_by` in their list of models, that hold a model to a JSON schema."""
_OPTIONAL = ("top_p", "top_k", "min_p", "repetition_penalty", "chat_template_kwargs", "priority")
_PROBE_TIMEOUT = aiohttp.ClientTimeout(total=10.0)


class EndpointEngine(Engine):
    """Chat completions at `<url>/chat/completions`; the model's name is asked of `<url>/models` when not given."""

    supports_n = True

    def __init__(self, url: str, model: str = "", **limits: Any) -> None:
        super().__init__(**limits)
        self.url = url.rstrip("/")
        self.shown = hide_secrets(self.url)
        """The address as messages show it."""
        self.model = model
        self._target = URL("")
        self._session: aiohttp.ClientSession | None = None
        self._other_models: set[str] = set()

    async def open(self) -> None:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(API_KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=self.timeout_s, connect=CONNECT_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
        )
        try:
            self.model = await self._choose_model()
            self._target = URL(self.url + "/chat/completions")
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def probe(self) -> bool:
        assert self._session is not None
        try:
            async with self._session.get(self.url + "/models", timeout=_PROBE_TIMEOUT) as reply:
                await reply.read()
                return reply.status < 500
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        started = time.perf_counter()
        raw, status, wait = await self._post(self._body(request))
        if status == 400 and _is_limit_too_high(raw):
            # the server fills what is left of the context when no limit is given
            raw, status, wait = await self._post(self._body(request, has_limit=False))
        if status != 200:
            self._raise_status(status, raw, wait)
        completion = read_completion(raw, time.perf_counter() - started)
        if completion.model and completion.model != self.model:
            self._note_model(completion.model)
        return completion

    async def read_prefix_cache(self) -> tuple[int, int] | None:
        """Return (prompt tokens found in the prefix cache, prompt tokens looked up) since the server started.

        None where the server has no `/metrics` of vLLM's.
        """
        from matrix_dspy.engine.vllm import parse_prefix_cache

        assert self._session is not None
        try:
            async with self._session.get(URL(self.url).join(URL("/metrics")), timeout=_PROBE_TIMEOUT) as reply:
                return parse_prefix_cache(await reply.text()) if reply.status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError, UnicodeDecodeError):
            return None

    async def _post(self, body: bytes) -> tuple[bytes, int, str | None]:
        """Send a body and return the answer's bytes, its status and its `Retry-After`."""
        assert self._session is not None, "the engine is used inside `async with`"
        try:
            async with self._session.post(self._target, data=body) as reply:
                return await _read_body(reply), reply.status, reply.headers.get("Retry-After")
        except aiohttp.ConnectionTimeoutError as error:
            raise TransientError(f"{self.shown} takes no connections", is_lost=True) from error
        except TimeoutError as error:
            raise TransientError(f"no answer within {self.timeout_s:g} s", is_timeout=True) from error
        except (aiohttp.ClientError, OSError) as error:
            is_lost = not isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError)
            raise TransientError(f"{self.shown} does not answer ({_name_failure(error)})", is_lost=is_lost) from error

    def _body(self, request: Request, *, has_limit: bool = True) -> bytes:
        sampling = request.sampling
        body: dict[str, Any] = {"model": self.model, "messages": request.encoded, "temperature": sampling.temperature}
        if has_limit:
            body["max_tokens"] = sampling.max_tokens
        if sampling.stop:
            body["stop"] = sampling.stop
        if sampling.seed is not None and self.send_seeds:
            body["seed"] = sampling.seed
        if sampling.n != 1:
            body["n"] = sampling.n
        for name in _OPTIONAL:
            if (value := getattr(sampling, name)) is not None:
                body[name] = value
        if sampling.logprobs:
            body["logprobs"], body["top_logprobs"] = True, sampling.logprobs
        if sampling.response_schema is not None:
            schema = {"name": "answer", "strict": True, "schema": sampling.response_schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return orjson.dumps(body)

    def _note_model(self, model: str) -> None:
        """Warn once when the answers name another model; a longer name of the same one (a date) is none."""
        is_same = self.model in model or model in self.model
        if not is_same and model not in self._other_models:
            self._other_models.add(model)
            log.warning("%s answers as model %r, not as %r; check what it serves", self.shown, model[:80], self.model)

    def _raise_status(self, status: int, raw: bytes, wait: str | None) -> None:
        said = _server_words(raw)
        if status in RETRIED_STATUS or status >= 500:
            raise TransientError(
                f"{self.shown} answers {status}{said}",
                retry_after=_read_seconds(wait),
                is_overload=status in OVERLOAD_STATUS,
                is_gateway=status in GATEWAY_STATUS,
            )
        if status in (401, 403):
            raise DownError(
                f"{self.shown} refuses the key ({status}{said}); set the environment variable {API_KEY_VARIABLE}"
            )
        if status == 404:
            raise DownError(f"{self.shown} does not serve model {self.model!r} (404{said}); see {self.shown}/models")
        if status < 400 or status == 405:
            raise DownError(f"{self.shown} answers {status}, not as a model server; does the address end in /v1?")
        raise RefusedError(f"the server answers {status}{said}")

    async def _choose_model(self) -> str:
        """Return the wanted model, or the first one served; say what is wrong with the server if anything is."""
        assert self._session is not None
        hint = "start a server there or name another model"
        try:
            async with self._session.get(self.url + "/models") as reply:
                raw, status = await reply.read(), reply.status
        except TimeoutError as error:
            raise EngineError(f"{self.shown} accepts connections but does not answer; {hint}") from error
        except aiohttp.InvalidURL as error:
            raise EngineError(f"{self.shown!r} is not an address; write --lm http://host:port/v1") from error
        except aiohttp.ClientError as error:
            raise EngineError(f"no server answers at {self.shown} ({_name_failure(error)}); {hint}") from error
        if status in (401, 403):
            raise EngineError(
                f"{self.shown} refuses the key ({status}); set the environment variable {API_KEY_VARIABLE}"
            )
        if status in (404, 405, 500, 501) and self.model:  # a server need not list what it serves
            return self.model
        if status != 200:
            raise EngineError(f"{self.shown}/models answers {status}{_server_words(raw)}; does the address end in /v1?")
        self.supports_response_schema = _read_owner(raw) in SCHEMA_SERVERS
        served = _read_models(raw)
        if served is None:
            raise EngineError(f"{self.shown} answers, but not as a model server ({_first_words(raw)}); {hint}")
        if not served:
            raise EngineError(f"{self.shown} serves no model; load one, or name it as {self.shown}#model-name")
        if self.model and self.model not in served:
            raise EngineError(f"{self.shown} does not serve model {self.model!r}; it serves {', '.join(served[:5])}")
        return self.model or served[0]


async def _read_body(reply: aiohttp.ClientResponse) -> bytes:
    """Read an answer to its end; one that stops in the middle is given up long before the whole is."""
    content = reply.content
    if content.is_eof():
        return content.read_nowait(-1)
    chunks: list[bytes] = []
    try:
        while chunk := await asyncio.wait_for(content.readany(), STALL_S):
            chunks.append(chunk)
    except TimeoutError as error:
        raise TransientError(f"the answer stopped in the middle for {STALL_S:g} s", is_timeout=True) from error
    return b"".join(chunks)


def read_completion(raw: bytes, seconds: float) -> Completion:
    """Turn a chat completion's JSON into a Completion.

    Raises:
        TransientError: the body is not such JSON; a proxy's page or a cut-off answer may be right next time.
    """
    try:
        reply = _load(raw)
        choices = reply["choices"]
        if len(choices) > 1:
            choices = sorted(choices, key=lambda choice: choice.get("index") or 0)
        texts = tuple([choice["message"].get("content") or "" for choice in choices])
        reasons = tuple([str(choice.get("finish_reason") or "stop") for choice in choices])
        usage = reply.get("usage") or {}
        counts = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        cached = _count(usage.get("prompt_tokens_details") or {}, "cached_tokens")
        logprobs = tuple([_read_tokens(choice["logprobs"]) if choice.get("logprobs") else None for choice in choices])
        reasonings = tuple([read_reasoning(choice["message"]) for choice in choices])
        model = str(reply.get("model") or "")
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise TransientError(f"the server's answer is no chat completion ({_first_words(raw)})") from error
    if not texts or not all(isinstance(text, str) for text in texts):
        raise TransientError(f"the server's answer holds no text ({_first_words(raw)})")
    known = logprobs if any(logprobs) else None
    thought = reasonings if any(reasonings) else ()
    return Completion(texts, reasons, *counts, seconds, known, cached_tokens=cached, model=model, reasonings=thought)


def _read_tokens(logprobs: Any) -> list[dict[str, Any]] | None:
    """Return the tokens of an answer with their log-probabilities; None where they are not in OpenAI's form."""
    try:
        return [
            {
                "token": str(token["token"]),
                "logprob": _read_number(token),
                "top_logprobs": [
                    {"token": str(other["token"]), "logprob": _read_number(other)}
                    for other in token.get("top_logprobs") or ()
                ],
            }
            for token in logprobs["content"]
        ]
    except (TypeError, KeyError, AttributeError, ValueError, RecursionError):
        return None


def _read_number(token: dict[str, Any]) -> float | None:
    value = token.get("logprob")
    return None if value is None else float(value)


def _load(raw: bytes) -> Any:
    """Read JSON, also with half a surrogate pair in it, which some servers write for a cut-off emoji."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        if b"\\ud" not in raw.lower():
            raise
        mended = json.dumps(json.loads(raw), ensure_ascii=False).encode("utf-16", "surrogatepass")
        return json.loads(mended.decode("utf-16", "replace"))


def _count(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name) or 0
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"{name} is {value!r}")
    return value


def _is_limit_too_high(raw: bytes) -> bool:
    """Whether a 400 says that the answer may not be as long as asked for (vLLM, OpenAI)."""
    words = _server_words(raw)
    return "max_tokens" in words or "max_completion_tokens" in words


def _read_models(raw: bytes) -> list[str] | None:
    try:
        return [str(model["id"]) for model in orjson.loads(raw)["data"]]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


def _read_owner(raw: bytes) -> str:
    """Return what kind of server this is, as it says in its list of models."""
    try:
        return str(orjson.loads(raw)["data"][0]["owned_by"]).lower()
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return ""


def _read_seconds(header: str | None) -> float | None:
    """Read `Retry-After`; the date form is not used by model servers and counts as absent."""
    try:
        seconds = float(header) if header is not None else None
    except ValueError:
        return None
    return max(0.0, seconds) if seconds is not None and math.isfinite(seconds) else None


def _server_words(raw: bytes) -> str:
    """Return what the server says of an error, as `: words`, or nothing."""
    try:
        error = orjson.loads(raw)["error"]
        words = error["message"] if isinstance(error, dict) else error
    except (orjson.JSONDecodeError, KeyError, TypeError):
        try:
            words = orjson.loads(raw)["message"]  # vLLM before 0.10 and others
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
