"""Guards against known faults of DSPy 3.4.1, each with a test that shows when a new version mends it."""

from typing import Any

import dspy


class TraceableChatAdapter(dspy.ChatAdapter):
    """A chat adapter without a second call in JSON, whose parse errors GEPA can learn from.

    DSPy's `bootstrap_trace` divides two lists when an answer holds some of its sections, and the example vanishes; an
    error without a partial result goes the other way, as a format failure with feedback.
    """

    def __init__(self) -> None:
        super().__init__(use_json_adapter_fallback=False)

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        try:
            return super().parse(signature, completion)
        except dspy.AdapterParseError as error:
            error.parsed_result = None
            raise


def build_adapter() -> dspy.Adapter:
    """Return the adapter that compile runs prompt with; its prompts are the chat adapter's own."""
    return TraceableChatAdapter()


def limit_metric_calls(budget: int, n_val: int, minibatch: int) -> int:
    """Return what to give GEPA as `max_metric_calls` so that it ends within `budget`.

    GEPA looks at its budget only between steps, and a step may cost the whole validation set and two minibatches.
    """
    return budget - n_val - 2 * minibatch
