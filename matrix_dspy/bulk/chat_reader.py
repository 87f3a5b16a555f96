"""Read an answer in DSPy's field markers, as `dspy.ChatAdapter.parse` would, at a tenth of its cost.

The adapter builds the signature's dictionaries and a validator anew for every value. Here they are built once; what is
not plainly in order is left to the adapter, so that the fields are the same. One case is better on purpose: before a
header that is indented DSPy 3.4.1 leaves half of the header in the value.
"""

import json
import re
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import dspy
from dspy.adapters.utils import parse_value
from pydantic import TypeAdapter

_HEADER = re.compile(r"\[\[ ## (\w+) ## \]\]")
_WHOLE_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
LONGEST_REPAIR, MOST_BRACKETS = 100_000, 400
"""Characters, and opening brackets, beyond which an answer is not mended."""
_TRUTHS = {"True": True, "true": True, "False": False, "false": False}

Read = Callable[[str], Any]


class ChatReader:
    """Reads the output fields of one signature out of texts."""

    def __init__(self, signature: type[dspy.Signature]) -> None:
        self._reads: dict[str, Read] = {
            name: _build_read(field.annotation) for name, field in signature.output_fields.items()
        }

    def __call__(self, text: str) -> dict[str, Any] | None:
        """Return the fields as the adapter would; None where the adapter must be asked.

        Raises:
            TangledError: a value is no JSON and too tangled for repair.
        """
        sections: list[tuple[str | None, list[str]]] = [(None, [])]
        for line in text.splitlines():
            if "[[ ##" in line and (found := _HEADER.match(bare := line.strip())):
                rest = bare[found.end() :].strip()
                sections.append((found[1], [rest] if rest else []))
            else:
                sections[-1][1].append(line)
        fields: dict[str, Any] = {}
        try:
            for name, lines in sections:
                if name is not None and name not in fields and (read := self._reads.get(name)) is not None:
                    fields[name] = read("\n".join(lines).strip())
        except TangledError:
            raise
        except Exception:
            return None
        return {name: fields[name] for name in self._reads} if len(fields) == len(self._reads) else None


class TangledError(ValueError):
    """A text is so tangled that mending it could take minutes."""


def check_tangle(text: str) -> None:
    """Raise TangledError for text that `json_repair`, which is quadratic or worse, must not be given."""
    if len(text) > LONGEST_REPAIR or sum(text.count(mark) for mark in "{[(") > MOST_BRACKETS:
        raise TangledError("it is no readable JSON, and too tangled to mend")


def _mend(value: str, annotation: Any) -> Any:
    """Read a value by DSPy's rule, which mends what it can."""
    check_tangle(value)
    return parse_value(value, annotation)


def _build_read(annotation: Any) -> Read:
    if annotation is str:
        return str
    if annotation is bool:
        return lambda value: _TRUTHS[value] if value in _TRUTHS else _mend(value, bool)
    if annotation is int:
        return lambda value: int(value) if _WHOLE_NUMBER.fullmatch(value) else _mend(value, int)
    if get_origin(annotation) is Literal:
        words = frozenset(choice for choice in get_args(annotation) if isinstance(choice, str))
        return lambda value: value if value in words else _mend(value, annotation)
    codec = (
        TypeAdapter(annotation)
        if get_origin(annotation) in (list, dict) or hasattr(annotation, "model_fields")
        else None
    )

    def read(value: str) -> Any:
        if codec is None or value[:1] not in ("[", "{"):
            return _mend(value, annotation)
        try:
            plain = json.loads(value)
        except ValueError:
            return _mend(value, annotation)
        return codec.validate_python(plain)

    return read
