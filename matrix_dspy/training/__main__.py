"""What `accelerate launch -m matrix_dspy.training OUT` runs in every process: train what stands in OUT.

`--held PID` says that the process PID holds the folder, with which this one is to end; without it, the first process
takes it.
"""

import json
import os
import sys
from pathlib import Path

from matrix_dspy.bulk.folder import take_lock
from matrix_dspy.bulk.tables import write_text
from matrix_dspy.errors import MatrixError
from matrix_dspy.training.interrupting import end_with, say_aloud


def main(arguments: list[str]) -> int:
    """Train, and leave the error of the first process that fails in `failed.json`."""
    if not arguments:
        sys.stderr.write("usage: python -m matrix_dspy.training OUT\n")
        return 2
    from matrix_dspy.training.fitting import fit
    from matrix_dspy.training.tuning import FAILED

    if "--held" in arguments:
        end_with(os.getppid(), int(arguments[-1]))
    out = Path(arguments[0])
    is_first = os.environ.get("RANK", "0") == "0"
    lock = take_lock(out) if is_first and "--held" not in arguments else None
    try:
        fit(out, say_aloud if is_first else _say_nothing)
    except (MatrixError, KeyboardInterrupt) as error:
        failure = {"kind": type(error).__name__, "words": str(error)}
        write_text(json.dumps(failure), out / FAILED)
        sys.stderr.write(f"{error}\n")
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    finally:
        if lock is not None:
            lock.release()
    return 0


def _say_nothing(_: str) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
