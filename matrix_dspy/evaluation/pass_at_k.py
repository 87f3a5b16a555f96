"""pass@k: the chance that at least one of k answers to a problem is right, from n answers of which c are.

The unbiased estimator of arXiv 2107.03374 §2.1, 1 - C(n-c, k) / C(n, k) a problem; its interval is over problems.
"""

import math
from collections.abc import Mapping, Sequence

from matrix_dspy.errors import ConfigError, TableError
from matrix_dspy.evaluation.intervals import N_RESAMPLES, SHARE, Interval, bootstrap_mean, wilson


def estimate_pass_at_k(n_samples: int, n_right: int, k: int) -> float:
    """Return the chance that k of `n_samples` answers, drawn without putting back, hold one of the right ones.

    Raises:
        ConfigError: k is below 1 or above the number of answers.
        TableError: the counts cannot be.
    """
    if k < 1 or k > n_samples:
        raise ConfigError(f"pass@{k} cannot be told from {n_samples} answers; ask for 1 <= k <= {n_samples}")
    if not 0 <= n_right <= n_samples:
        raise TableError(f"{n_right} of {n_samples} answers cannot be right; count them again")
    # whole numbers throughout: no product of rounded factors
    return 1 - math.comb(n_samples - n_right, k) / math.comb(n_samples, k)


def measure_pass_at_k(
    verdicts: Mapping[str, Sequence[bool]], ks: Sequence[int] = (1,), *, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> dict[int, Interval]:
    """Return pass@k as a share for each k, the mean over problems.

    `verdicts` holds for each problem whether each of its answers is right. Where each problem counts 0 or 1 (as with
    one answer a problem) the interval is Wilson's, else a bootstrap over problems.

    Raises:
        ConfigError: a problem has fewer answers than k.
        TableError: there are no problems.
    """
    if not verdicts:
        raise TableError("no problems were scored; generate and run answers first")
    fewest = min(verdicts, key=lambda name: len(verdicts[name]))
    found: dict[int, Interval] = {}
    for k in ks:
        if k < 1 or k > len(verdicts[fewest]):
            raise ConfigError(
                f"pass@{k} cannot be told: the problem {fewest!r} has {len(verdicts[fewest])} answers; "
                "draw more answers a problem or ask for a smaller k of at least 1"
            )
        shares = [estimate_pass_at_k(len(each), sum(map(bool, each)), k) for each in verdicts.values()]
        if all(share in (0.0, 1.0) for share in shares):
            found[k] = wilson(sum(shares), len(shares))
        else:
            found[k] = bootstrap_mean(shares, bounds=SHARE, seed=seed, n_resamples=n_resamples)
    return found
