"""The one file that turns an engine into a `dspy.LM`, so that optimizers, evaluators and any DSPy module run on it.

DSPy 3.4 asks an engine object `complete(Request) -> Response`, plainly from many threads and as a coroutine from
`acall`. Both faces hand the request to the loop the engine lives in: the caller's own when the engine is open there,
else one background loop per LM. Retries and limits are the engine's; DSPy's are switched off.
"""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import dspy
from dspy.lm15 import InvalidRequestError, Message, Response, ServerError, Usage

from matrix_dspy.engine.base import Completion, Engine, Request, Sampling
from matrix_dspy.engine.spec import build_engine

_PARAMS = frozenset({"temperature", "max_tokens", "top_p", "top_k", "seed", "stop", "response_format"})


def build_lm(
    engine: Engine | str,
    *,
    is_open: bool = False,
    temperature: float = 0.7,
    top_p: float | None = None,
    max_tokens: int = 1024,
    kind: type[dspy.LM] = dspy.LM,
) -> dspy.LM:
    """Return a `dspy.LM`, or a subclass of it, on an engine or on what is written after `--lm`.

    With `is_open` the engine was opened in the running loop and stays there; otherwise it is opened in a loop of the
    LM's own on first use and closed when the process ends.
    """
    engine = build_engine(engine) if isinstance(engine, str) else engine
    home = _Home(engine, asyncio.get_running_loop() if is_open else None)
    return kind(
        engine.model or type(engine).__name__,
        temperature=temperature,
        max_tokens=max_tokens,
        top_p=top_p,
        cache=False,
        num_retries=0,
        engine=_SyncFace(home),
        async_engine=_AsyncFace(home),
    )


class _Home:
    """Where the engine lives: the loop its connections belong to."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop | None) -> None:
        self.engine = engine
        self._loop = loop
        self._lock = threading.Lock()

    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, name="matrix-dspy-lm", daemon=True).start()
                try:
                    asyncio.run_coroutine_threadsafe(self.engine.open(), loop).result()
                except BaseException:
                    loop.call_soon_threadsafe(loop.stop)  # the next call tries to open again
                    raise
                self._loop = loop
            return self._loop

    async def complete(self, request: Any) -> Response:
        completion = await self.engine.complete(_read_request(request))
        return _write_response(completion, self.engine.model)


class _Face:
    supported_params = _PARAMS

    def __init__(self, home: _Home) -> None:
        self.home = home

    @property
    def supports_response_schema(self) -> bool:
        """Asked anew for every call: an endpoint learns it when it is opened."""
        return self.home.engine.supports_response_schema

    def dump_state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing is ever stored."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Face":
        return self


class _SyncFace(_Face):
    def complete(self, request: Any) -> Response:
        loop = self.home.loop()
        return asyncio.run_coroutine_threadsafe(self.home.complete(request), loop).result()


class _AsyncFace(_Face):
    async def complete(self, request: Any) -> Response:
        loop = self.home.loop()
        work: Coroutine[Any, Any, Response] = self.home.complete(request)
        if loop is asyncio.get_running_loop():
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


def _read_request(request: Any) -> Request:
    """Translate DSPy's request; `request.config` holds only what was set."""
    system = request.system or ""
    if not isinstance(system, str):
        system = "\n".join(part.text for part in system)
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": message.role, "content": _read_text(message)} for message in request.messages]
    config = request.config
    stop = config.stop or ()
    response_format = getattr(config, "response_format", None)
    schema = response_format.get("schema") if isinstance(response_format, dict) else None
    return Request(
        messages,
        Sampling(
            temperature=0.7 if config.temperature is None else config.temperature,
            top_p=config.top_p,
            top_k=getattr(config, "top_k", None),
            max_tokens=config.max_tokens or 1024,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            seed=getattr(config, "seed", None),
            response_schema=schema,
        ),
    )


def _read_text(message: Any) -> str:
    """Return the text of a message; of one with blocks of other kinds what text it has."""
    if message.text is not None:
        return message.text
    return "\n".join(part.text for part in message.parts if getattr(part, "text", None))


def _write_response(completion: Completion, model: str) -> Response:
    if completion.down is not None:
        raise ServerError(completion.down)
    if completion.error is not None:
        raise InvalidRequestError(completion.error)
    reason = completion.finish_reasons[0]
    return Response(
        id=None,
        model=model,
        message=Message.assistant(completion.texts[0]),
        finish_reason="length" if reason == "length" else "stop",  # DSPy knows five words, servers more
        usage=Usage(
            input_tokens=completion.prompt_tokens,
            output_tokens=completion.completion_tokens,
            total_tokens=completion.prompt_tokens + completion.completion_tokens,
        ),
    )
