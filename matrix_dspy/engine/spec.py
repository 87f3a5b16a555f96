"""From what a user writes after `--lm` to an engine."""

from pathlib import Path
from typing import Any

from matrix_dspy.engine.base import Engine
from matrix_dspy.errors import ConfigError

FORMS = (
    "'rehearsal' (with dials: 'rehearsal?latency=0.2'), 'http://host:port/v1' or 'http://host:port/v1#model', "
    "'vllm:org/model', 'transformers:path/to/model', or a LiteLLM name such as 'openai/gpt-4o-mini'"
)


def build_engine(spec: str, *, data_parallel: int = 1, **limits: Any) -> Engine:
    """Build the engine that `spec` names; nothing is imported or opened that it does not need.

    `limits` are the arguments of `Engine`; `data_parallel` is for in-process vLLM alone.

    Raises:
        ConfigError: `spec` has none of the known forms.
    """
    spec = spec.strip()
    if spec == "rehearsal" or spec.startswith("rehearsal?"):
        from matrix_dspy.engine.rehearsal.engine import RehearsalEngine

        return RehearsalEngine.from_spec(spec, **limits)
    if spec.startswith(("http://", "https://")):
        from matrix_dspy.engine.endpoint import EndpointEngine

        url, _, model = spec.partition("#")
        return EndpointEngine(url, model, **limits)
    if spec.startswith("vllm:"):
        from matrix_dspy.engine.vllm import VllmEngine

        return VllmEngine.from_spec(spec, data_parallel=data_parallel, **limits)
    if spec.startswith("transformers:"):
        from matrix_dspy.engine.transformers import TransformersEngine

        return TransformersEngine.from_spec(spec, **limits)
    if spec and Path(spec).expanduser().is_dir():
        from matrix_dspy.engine.serving import find_spec

        return build_engine(find_spec(spec), data_parallel=data_parallel, **limits)
    provider, _, model = spec.partition("/")
    if provider and model and "://" not in spec and " " not in spec:
        from matrix_dspy.engine.provider import ProviderEngine

        return ProviderEngine(spec, **limits)
    raise ConfigError(f"unknown LM {spec!r}; write {FORMS}")
