"""Agents into groups of similar profiles: constrained k-means with sizes from 1 to a maximum (METHOD 2.3).

Source: arXiv 2410.14251 §3.2; start, assignment and iteration limit are this project's.
"""

import numpy as np

from matrix_dspy.errors import ConfigError

MAX_ITERATIONS = 50
EXACT_UP_TO = 3000
"""Agents up to which sizes are held by an exact assignment (0.3 s an iteration at 1,000 agents); above, greedily."""


def count_groups(n_agents: int, n_groups: int | None, max_size: int) -> int:
    """Return how many groups to form: what was asked for, or one for every five agents.

    Raises:
        ConfigError: there are more groups than agents, or too few to hold them.
    """
    wanted = n_groups if n_groups is not None else max(1, round(n_agents / 5), -(-n_agents // max_size))
    if wanted > n_agents:
        raise ConfigError(f"{wanted} groups cannot be formed from {n_agents} agents; give fewer groups or more agents")
    if wanted * max_size < n_agents:
        raise ConfigError(
            f"{wanted} groups of at most {max_size} cannot hold {n_agents} agents; "
            f"give at least {-(-n_agents // max_size)}"
        )
    return wanted


def cluster(vectors: np.ndarray, n_groups: int, max_size: int, seed: int) -> np.ndarray:
    """Divide rows of `vectors`, (n, n_dims) of unit length, into groups; returns (n,) group numbers.

    Every group gets between 1 and `max_size` rows. The same vectors and seed give the same groups.
    """
    generator = np.random.default_rng(seed)
    points = np.asarray(vectors, dtype=np.float64)
    centres = _choose_start(points, n_groups, generator)
    assign = _assign_exactly if len(points) <= EXACT_UP_TO else _assign_greedily
    labels = np.full(len(points), -1)
    for _ in range(MAX_ITERATIONS):
        costs = ((points**2).sum(1)[:, None] - 2 * points @ centres.T + (centres**2).sum(1)[None]).clip(0)
        new = assign(costs, max_size)
        if np.array_equal(new, labels):
            break
        labels = new
        centres = np.stack([points[labels == group].mean(axis=0) for group in range(n_groups)])
    return labels


def _choose_start(points: np.ndarray, n_groups: int, generator: np.random.Generator) -> np.ndarray:
    """Choose starting centres by k-means++: far points are likelier."""
    chosen = [int(generator.integers(len(points)))]
    nearest = ((points - points[chosen[0]]) ** 2).sum(1)
    while len(chosen) < n_groups:
        weights = nearest.copy()
        weights[chosen] = 0.0
        if weights.sum() <= 0:
            weights = np.ones(len(points))
            weights[chosen] = 0.0
        pick = int(np.searchsorted(np.cumsum(weights), generator.random() * weights.sum(), side="right"))
        pick = min(pick, len(points) - 1)
        chosen.append(pick)
        nearest = np.minimum(nearest, ((points - points[pick]) ** 2).sum(1))
    return points[chosen].copy()


def _assign_exactly(costs: np.ndarray, max_size: int) -> np.ndarray:
    """Assign at the least total cost, as an assignment of rows to places.

    Every group has `max_size` places; the first of each is made so cheap that all of these are taken, which is the
    lower bound of one. That is the min-cost flow with bounds [1, max_size] in another form.
    """
    from scipy.optimize import linear_sum_assignment

    n_rows, n_groups = costs.shape
    n_places = min(max_size, n_rows - n_groups + 1)
    places = np.repeat(costs, n_places, axis=1)
    places[:, ::n_places] -= (costs.max() + 1.0) * n_rows
    _, taken = linear_sum_assignment(places)
    return taken // n_places


def _assign_greedily(costs: np.ndarray, max_size: int) -> np.ndarray:
    """Assign each row to its nearest group with room, rows that lose most by waiting first, then fill empty groups."""
    n_rows, n_groups = costs.shape
    order = np.argsort(costs, axis=1, kind="stable")
    two = np.take_along_axis(costs, order[:, : min(2, n_groups)], axis=1)
    regret = two[:, -1] - two[:, 0]
    room = np.full(n_groups, max_size)
    labels = np.empty(n_rows, dtype=np.int64)
    for row in np.argsort(-regret, kind="stable"):
        choices = order[row]
        labels[row] = choices[np.argmax(room[choices] > 0)]
        room[labels[row]] -= 1
    sizes = np.bincount(labels, minlength=n_groups)
    for group in np.flatnonzero(sizes == 0):
        movable = np.flatnonzero(sizes[labels] > 1)
        row = movable[np.argmin(costs[movable, group] - costs[movable, labels[movable]])]
        sizes[labels[row]] -= 1
        labels[row] = group
        sizes[group] = 1
    return labels
