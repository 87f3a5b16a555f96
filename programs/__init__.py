"""DSPy programs: one typed signature, one decision, one call each. They know only `dspy`."""
