"""What every program here is: one predictor over one signature, called once a row."""

from typing import Any, ClassVar

import dspy


class Program(dspy.Module):
    """A module with a single predictor called `predict`; subclasses name the signature."""

    signature: ClassVar[type[dspy.Signature]]
    adapter: ClassVar[dspy.Adapter | None] = None
    """How prompts are laid out; None is DSPy's chat adapter with its field headers."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(self.signature)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        if self.adapter is None:
            return self.predict(**inputs)
        with dspy.context(adapter=self.adapter):
            return self.predict(**inputs)

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        if self.adapter is None:
            return await self.predict.acall(**inputs)
        with dspy.context(adapter=self.adapter):
            return await self.predict.acall(**inputs)
