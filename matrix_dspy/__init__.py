"""A simulated society turned into post-training data, every step a DSPy program.

The public face: `load_program`, `save_program`, `list_programs`, `run_program`, `run_table`, `compile_program` with its
`Plan`, and `build_lm`; everything is imported when first used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# LiteLLM and DSPy's price lookup each fetch a table over the network on first use unless told not to.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from matrix_dspy.bulk.program import run_program, run_table
    from matrix_dspy.engine.lm import build_lm
    from matrix_dspy.loading import list_programs, load_program, save_program
    from matrix_dspy.optimization.compiling import Plan, compile_program

_HOMES = {
    "load_program": "matrix_dspy.loading",
    "save_program": "matrix_dspy.loading",
    "list_programs": "matrix_dspy.loading",
    "run_program": "matrix_dspy.bulk.program",
    "run_table": "matrix_dspy.bulk.program",
    "build_lm": "matrix_dspy.engine.lm",
    "compile_program": "matrix_dspy.optimization.compiling",
    "Plan": "matrix_dspy.optimization.compiling",
}

__all__ = [
    "Plan",
    "__version__",
    "build_lm",
    "compile_program",
    "list_programs",
    "load_program",
    "run_program",
    "run_table",
    "save_program",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in ("programs", "errors", "types"):
        return import_module(f"matrix_dspy.{name}")
    raise AttributeError(f"module 'matrix_dspy' has no attribute {name!r}")
