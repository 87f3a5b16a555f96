"""Any hosted or local provider by LiteLLM's own names (`openai/…`, `anthropic/…`, `ollama/…`).

LiteLLM costs 2 s of import and 2 to 6 ms a call, so it is imported only here and only when such a name is used.
Keys are read by LiteLLM from the providers' usual environment variables.
"""

import time
from importlib import import_module
from typing import Any

from matrix_dspy.engine.base import Completion, DownError, Engine, RefusedError, Request, TransientError, read_reasoning
from matrix_dspy.errors import EngineError


class ProviderEngine(Engine):
    """One model of one provider, through LiteLLM."""

    def __init__(self, model: str, *, api_base: str | None = None, **limits: Any) -> None:
        super().__init__(**limits)
        self.model = model
        self.api_base = api_base
        """Another address for the provider's protocol; None is the provider's own."""
        self._litellm: Any = None

    async def open(self) -> None:
        litellm: Any = import_module("litellm")
        litellm.telemetry = False
        litellm.suppress_debug_info = True
        litellm.drop_params = True
        try:
            litellm.get_llm_provider(self.model)
        except Exception as error:
            raise EngineError(f"LiteLLM knows no provider for {self.model!r}; write provider/model") from error
        missing = litellm.validate_environment(self.model)["missing_keys"]
        if missing and self.api_base is None:
            raise EngineError(f"{self.model!r} needs a key; set the environment variable {' or '.join(missing)}")
        self._litellm = litellm
        self.supports_response_schema = bool(litellm.supports_response_schema(model=self.model))

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        started = time.perf_counter()
        try:
            reply = await self._litellm.acompletion(**self._arguments(request))
        except Exception as error:
            raise self._name(error) from error
        texts = tuple(choice.message.content or "" for choice in reply.choices)
        if not texts:
            raise TransientError("the provider's answer holds no text")
        reasons = tuple(str(choice.finish_reason or "stop") for choice in reply.choices)
        usage = getattr(reply, "usage", None)
        counts = (usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else (0, 0)
        logprobs = tuple(_read_logprobs(choice) for choice in reply.choices)
        known = logprobs if any(logprobs) else None
        thought = tuple(
            read_reasoning({"reasoning": getattr(choice.message, "reasoning_content", "")}) for choice in reply.choices
        )
        seconds = time.perf_counter() - started
        return Completion(texts, reasons, *counts, seconds, known, reasonings=thought if any(thought) else ())

    def _arguments(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        arguments: dict[str, Any] = {
            "model": self.model,
            "messages": list(request.messages),
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "timeout": self.timeout_s,
            "num_retries": 0,
            "max_retries": 0,
        }
        optional = {
            "top_p": sampling.top_p,
            "stop": list(sampling.stop) or None,
            "seed": sampling.seed if self.send_seeds else None,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "logprobs": True if sampling.logprobs else None,
            "top_logprobs": sampling.logprobs or None,
            "n": sampling.n if sampling.n != 1 else None,
            "api_base": self.api_base,
        }
        arguments |= {name: value for name, value in optional.items() if value is not None}
        if sampling.response_schema is not None:
            schema = {"name": "answer", "strict": True, "schema": sampling.response_schema}
            arguments["response_format"] = {"type": "json_schema", "json_schema": schema}
        return arguments

    def _name(self, error: Exception) -> Exception:
        """Sort LiteLLM's exception into one of the three that `complete` understands."""
        known = self._litellm.exceptions
        words = " ".join(str(error).split())[:300]
        if isinstance(error, known.AuthenticationError | known.PermissionDeniedError):
            return DownError(f"{self.model}: the provider refuses the key; set its environment variable ({words})")
        if isinstance(error, known.NotFoundError):
            return DownError(f"{self.model}: the provider does not know this model ({words})")
        if isinstance(error, known.Timeout):
            return TransientError(f"{self.model}: {words}", is_timeout=True)
        if isinstance(error, known.RateLimitError | known.ServiceUnavailableError):
            return TransientError(f"{self.model}: {words}", retry_after=_retry_after(error), is_overload=True)
        if isinstance(error, known.APIConnectionError):
            return TransientError(f"{self.model}: {words}", is_lost=True)
        if isinstance(error, known.BadRequestError | known.UnprocessableEntityError):
            return RefusedError(f"the provider answers: {words}")
        return TransientError(f"{self.model}: {words}")


def _read_logprobs(choice: Any) -> list[dict[str, Any]] | None:
    content = getattr(getattr(choice, "logprobs", None), "content", None)
    return [token.model_dump() for token in content] if content else None


def _retry_after(error: Exception) -> float | None:
    headers: Any = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        return max(0.0, float(headers.get("retry-after")))
    except (TypeError, ValueError):
        return None
