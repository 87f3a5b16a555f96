"""Small Python answers that parse and whose tests pass, for requests about programming."""

import random
import re

_TEMPLATES: tuple[tuple[str, str], ...] = (
    (r"total|\bsum\b|per day|each day|adds? up the am", '''from collections import defaultdict


def {verb}_{noun}(rows: list[tuple[str, float]]) -> dict[str, float]:
    """Return the total of the amounts for each {key}."""
    totals: dict[str, float] = defaultdict(float)
    for {key}, amount in rows:
        totals[{key}] += amount
    return dict(totals)


assert {verb}_{noun}([("a", {x}), ("b", {y}), ("a", 1)]) == {{"a": {x} + 1, "b": {y}}}
assert {verb}_{noun}([]) == {{}}'''),
    (r"largest|biggest|highest|smallest", '''import heapq


def largest_{noun}(lines: list[str], count: int = {k}) -> list[float]:
    """Return the `count` largest values of lines like `name;value`, largest first."""
    values = [float(line.rsplit(";", 1)[1]) for line in lines if line.strip()]
    return heapq.nlargest(count, values)


assert largest_{noun}(["a;{x}", "", "b;{big}"], 1) == [{big}.0]
assert largest_{noun}([]) == []'''),
    (r"repeat|duplicat|twice|unique", '''from collections import Counter


def find_repeated_{noun}(entries: list[str]) -> list[str]:
    """Return the entries that occur more than once, in alphabetical order."""
    counts = Counter(entry.strip().lower() for entry in entries)
    return sorted(entry for entry, count in counts.items() if count > 1)


assert find_repeated_{noun}(["{noun}", "other", "{noun} "]) == ["{noun}"]
assert find_repeated_{noun}(["x"]) == []'''),
    (r"\bclass\b|track of|inventory", '''class {title}Log:
    """Keeps count of what came in and what went out."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {{}}

    def add(self, name: str, count: int = 1) -> None:
        """Record an arrival."""
        self.counts[name] = self.counts.get(name, 0) + count

    def remove(self, name: str, count: int = 1) -> None:
        """Record a departure; raises ValueError when there is not enough."""
        if self.counts.get(name, 0) < count:
            raise ValueError(f"only {{self.counts.get(name, 0)}} of {{name}} left")
        self.counts[name] -= count


log = {title}Log()
log.add("{noun}", {x})
log.remove("{noun}")
assert log.counts["{noun}"] == {x} - 1'''),
    (r"average|mean\b|reading|flag", '''def flag_{noun}(readings: list[float], window: int = {k}, share=0.{x}):
    """Return the places of readings that exceed the mean of the last ones by `share`."""
    flagged = []
    for place in range(window, len(readings)):
        mean = sum(readings[place - window : place]) / window
        if readings[place] > mean * (1 + share):
            flagged.append(place)
    return flagged


assert flag_{noun}([{y}.0] * {k} + [{big}00.0]) == [{k}]
assert flag_{noun}([1.0]) == []'''),
    (r"\bsort|\bdue date|order by", '''from datetime import date


def sort_{noun}_by_due_date(items: list[dict]) -> list[dict]:
    """Sort items by their `due` date; items without one come last."""
    return sorted(items, key=lambda item: (item.get("due") is None, item.get("due") or date.max))


early, late = {{"due": date(2024, 3, {d})}}, {{"due": date(2024, 9, {d})}}
assert sort_{noun}_by_due_date([{{}}, late, early]) == [early, late, {{}}]'''),
    (r"\bsplit|even groups|divide|batch", '''def split_{noun}(items: list, count: int = {k}) -> list[list]:
    """Deal items into `count` groups whose sizes differ by one at most."""
    if count < 1:
        raise ValueError("count must be at least 1")
    return [items[start::count] for start in range(count)]


groups = split_{noun}(list(range({big})))
assert sum(map(len, groups)) == {big}
assert max(map(len, groups)) - min(map(len, groups)) <= 1'''),
    (r"times? such|minutes|parse|clock", '''def {verb}_{noun}_minutes(times: list[str]) -> int:
    """Add up durations such as `1:30` and return the minutes."""
    total = 0
    for text in times:
        hours, _, minutes = text.strip().partition(":")
        total += 60 * int(hours) + int(minutes or 0)
    return total


assert {verb}_{noun}_minutes(["1:{x}", "0:{y}"]) == 60 + {x} + {y}
assert {verb}_{noun}_minutes([]) == 0'''),
    (r"discount|price", '''def discount_{noun}(prices: dict[str, float], percent: float = {x}) -> dict[str, float]:
    """Return every price lowered by `percent`, rounded to cents."""
    if not 0 <= percent <= 100:
        raise ValueError("percent must lie between 0 and 100")
    return {{name: round(price * (1 - percent / 100), 2) for name, price in prices.items()}}


assert discount_{noun}({{"a": {big}.0}}, 50) == {{"a": {big} / 2}}
assert discount_{noun}({{}}) == {{}}'''),
    (r"", '''def {verb}_{noun}(items: list[str]) -> dict[str, int]:
    """Count how often each item occurs, ignoring case and blanks."""
    counts: dict[str, int] = {{}}
    for item in items:
        name = item.strip().lower()
        if name:
            counts[name] = counts.get(name, 0) + 1
    return counts


assert {verb}_{noun}(["A", "a ", "{noun}"]) == {{"a": 2, "{noun}": 1}}
assert {verb}_{noun}([""]) == {{}}'''),
)  # fmt: skip
_COMPILED = [(re.compile(pattern, re.IGNORECASE), template) for pattern, template in _TEMPLATES]
_ASK = re.compile(r"\b(?:function|script|class|code|loop|program)\b")
_VERBS = ("collect", "count", "gather", "tally")


def write_code(request: str, noun: str, rng: random.Random) -> str:
    """Return Python source for `request`, about `noun`."""
    name = re.sub(r"[^a-z]+", "_", noun.lower()).strip("_") or "items"
    found = _ASK.search(request)
    asked = request[found.start() : found.end() + 250] if found else request
    # the words nearest to the ask decide; the last template fits anything
    places = [(found.start(), i) for i, (pattern, _) in enumerate(_COMPILED[:-1]) if (found := pattern.search(asked))]
    template = _COMPILED[min(places)[1] if places else -1][1]
    values = {
        "noun": name,
        "title": name.title().replace("_", ""),
        "verb": rng.choice(_VERBS),
        "key": rng.choice(("day", "name", "label")),
        "x": rng.randint(11, 49),
        "y": rng.randint(11, 59),
        "big": rng.randint(60, 90) * 2,
        "k": rng.randint(2, 6),
        "d": rng.randint(1, 28),
    }
    return template.format(**values)
