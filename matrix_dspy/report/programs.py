"""The programs as a reader sees them: a line each, or one in full."""

import inspect
from collections.abc import Iterator

from matrix_dspy.loading import (
    build_program,
    describe_fields,
    hash_prompt,
    list_programs,
    list_variants,
    load_program,
    read_signature,
)


def list_program_lines() -> Iterator[str]:
    """Yield a line a program: name, variants and what it does."""
    for name in list_programs():
        variants = ", ".join(list_variants(name)) or "as written"
        yield f"{name:18} {variants:12} {inspect.getdoc(type(build_program(name))) or ''}"


def describe_program(name: str) -> Iterator[str]:
    """Yield a program's fields, variants, prompt hash and instruction."""
    program = load_program(name)
    yield f"{name}: {inspect.getdoc(type(program)) or ''}"
    yield f"variants: {', '.join(list_variants(name)) or 'none; it is loaded as written'}"
    yield f"prompt:   {hash_prompt(program)[:16]}"
    yield from (f"  {field}" for field in describe_fields(program))
    yield ""
    yield read_signature(program).instructions.strip() or "(no instruction: the input is the user's turn)"
