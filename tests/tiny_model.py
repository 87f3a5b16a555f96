"""The shipped tiny model, by the name that tests know it under."""

from matrix_dspy.training.tiny import CHAT_TEMPLATE, build_tiny_model, build_tiny_tokenizer

__all__ = ["CHAT_TEMPLATE", "build_tiny_model", "build_tiny_tokenizer"]
