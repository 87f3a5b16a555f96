"""What every command says and reads: messages beside the result, pairs of NAME=VALUE, the program's own name."""

import logging
import shlex
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import typer

T = TypeVar("T")


def tell(words: str) -> None:
    """Say something beside the result, in the form of the log."""
    logging.getLogger("matrix_dspy").warning(words)


def set_up_log(form: str) -> None:
    """Send messages to standard error in the form asked for, plain or json."""
    from matrix_dspy.bulk.progress import set_up_log as set_up
    from matrix_dspy.errors import ConfigError

    if form not in ("plain", "json"):
        raise ConfigError(f"no log form {form!r}; write --log plain or --log json")
    set_up(is_json=form == "json")


def name_program() -> str:
    """Return what the user has called."""
    return "python cli.py" if sys.argv[0].endswith("cli.py") else "matrix-dspy"


def suggest(*words: str | Path) -> str:
    """Return a command to run next."""
    return f"{name_program()} {shlex.join(map(str, words))}"


def read_pairs(columns: Sequence[str] | None) -> dict[str, str]:
    """Read --column name=realname options."""
    from matrix_dspy.errors import ConfigError

    pairs = [text.partition("=") for text in columns or []]
    for field, equals, column in pairs:
        if not (field and equals and column):
            raise ConfigError(f"cannot read --column {field + equals + column!r}; write --column name=realname")
    return {field: column for field, _, column in pairs}


def run_resumable(work: Coroutine[Any, Any, T]) -> T:
    """Run work that the same command goes on with; Ctrl-C ends it with exit code 130 and a sentence."""
    from matrix_dspy.bulk.program import run_async

    try:
        return run_async(work)
    except KeyboardInterrupt:
        tell("interrupted; nothing is lost, the same command goes on")
        raise typer.Exit(130) from None
