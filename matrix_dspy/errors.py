"""Every error a user of the library can meet, each with one sentence that names the value and what to do.

    MatrixError
     ├─ ConfigError           (ValueError)    a knob is wrong, or two disagree
     ├─ ProgramNotFoundError  (LookupError)   no such program or variant
     ├─ StateMismatchError    (ValueError)    a compiled state does not fit its program
     ├─ TableError            (ValueError)    a file or table lacks what is needed of it
     ├─ RunError              (RuntimeError)  a run folder cannot be used as asked
     ├─ EngineError           (RuntimeError)  the engine failed, not one row of it
     ├─ LimitError            (RuntimeError)  a limit was reached; the run can be resumed
     └─ MissingExtraError     (ImportError)   an optional dependency is not installed

Inner code raises plain Python errors; `boundary` names what escapes at an edge of the system.
Rows never raise: a bad row goes to the `rejected` table with its reason.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches

_NO_SPACE = "No space left on device"


class MatrixError(Exception):
    """Anything the command line prints without a traceback."""


class ConfigError(MatrixError, ValueError):
    """A knob is wrong, or two disagree."""


class ProgramNotFoundError(MatrixError, LookupError):
    """There is no such program or variant."""


class StateMismatchError(MatrixError, ValueError):
    """A compiled state does not fit its program."""


class TableError(MatrixError, ValueError):
    """A file or table lacks what is needed of it."""


class RunError(MatrixError, RuntimeError):
    """A run folder cannot be used as asked."""


class EngineError(MatrixError, RuntimeError):
    """The engine failed, not one row of it."""


class LimitError(MatrixError, RuntimeError):
    """A limit the user set was reached; the run can be resumed."""


class MissingExtraError(MatrixError, ImportError):
    """An optional dependency is not installed."""


@contextmanager
def boundary(kind: type[MatrixError], doing: str) -> Iterator[None]:
    """Name whatever ordinary error escapes the block as `kind`; an error that already has a name passes unchanged."""
    try:
        yield
    except MatrixError:
        raise
    except OSError as error:
        raise kind(f"could not {doing}: {describe_os_error(error)}") from error
    except Exception as error:
        # some libraries wrap what the operating system said
        words = describe_os_error(OSError(errno.ENOSPC, _NO_SPACE)) if _NO_SPACE in str(error) else str(error)
        raise kind(f"could not {doing}: {words}") from error


def describe_os_error(error: OSError) -> str:
    """Say in words what the operating system answered, and what to do about a full disk."""
    words = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{words.lower()}; free some space and run the same command again, what was written is kept"
    return words.lower()


def did_you_mean(word: str, known: list[str]) -> str:
    """Return the tail of an error message: the nearest known words, or all of them."""
    near = get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(known))}"
