"""Questions on chance and figures: probability, estimates, data."""

import math

from matrix_dspy.engine.rehearsal.family import Family, Numbers, Steps, register_in, show, show_percent

FAMILIES: list[Family] = []
family = register_in(FAMILIES)


# probability


@family(
    "probability",
    2,
    "among {a} {things} are {b} bad ones. I draw {c} without looking. What is the chance of at least one bad one?",
    "{person} tests {c} of {a} delivered {things}, of which {b} are faulty; how likely is it that a fault shows?",
    a=(12, 60),
    b=(2, 9),
    c=(2, 6),
)
def _at_least_one(n: Numbers) -> Steps | None:
    a, b, c = int(n["a"]), int(n["b"]), int(n["c"])
    if a - b < c:
        return None
    none = math.comb(a - b, c) / math.comb(a, c)
    return [
        f"Ways without a bad one: C({a - b}, {c}) = {show(math.comb(a - b, c))}",
        f"All ways: C({a}, {c}) = {show(math.comb(a, c))}",
        f"Chance of none: {show(none)}; 1 - {show(none)} = {show(1 - none)}",
    ], show_percent(1 - none)


@family(
    "probability",
    1,
    "I throw two ordinary dice for {object}. With what probability is the sum {a}?",
    "{person} bets {money} on a {a} as the total of two fair dice; how likely is that?",
    a=(2, 12),
)
def _dice(n: Numbers) -> Steps:
    ways = 6 - abs(7 - int(n["a"]))
    return [
        f"The sum {show(n['a'])} comes about in {ways} of the 6 × 6 = 36 ways",
        f"{ways} ÷ 36 = {show(ways / 36)}",
    ], show_percent(ways / 36)


@family(
    "probability",
    1,
    "each of {a} machines {place} fails on a given day with {b} percent, independently. How likely is a day without "
    "any failure?",
    "{a} {things} arrive by post, every one gets lost with a chance of {b} percent; what is the probability that all "
    "arrive?",
    a=(2, 14),
    b=(2, 25),
)
def _all_well(n: Numbers) -> Steps:
    each = 1 - n["b"] / 100
    return [
        f"One goes well with 1 - {show(n['b'] / 100)} = {show(each)}",
        f"All {show(n['a'])} go well with {show(each)} to the power {show(n['a'])} = {show(each ** n['a'])}",
    ], show_percent(each ** n["a"])


@family(
    "probability",
    2,
    "{a} percent of all {things} have a crack. A test finds {b} percent of the cracked ones and wrongly reports {c} "
    "percent of the sound ones. A piece is reported: how likely is it cracked?",
    "a fault affects {a} percent {place}; the detector catches {b} percent of faults and raises false alarms in {c} "
    "percent of good cases. Given an alarm, what is the probability of a fault?",
    a=(1, 20),
    b=(75, 99),
    c=(1, 15),
)
def _bayes(n: Numbers) -> Steps:
    hit, false = n["a"] / 100 * n["b"] / 100, (1 - n["a"] / 100) * n["c"] / 100
    return [
        f"True reports: {show(n['a'] / 100)} × {show(n['b'] / 100)} = {show(hit, 5)}",
        f"False reports: {show(1 - n['a'] / 100)} × {show(n['c'] / 100)} = {show(false, 5)}",
        f"{show(hit, 5)} ÷ ({show(hit, 5)} + {show(false, 5)}) = {show(hit / (hit + false))}",
    ], show_percent(hit / (hit + false))


@family(
    "probability",
    1,
    "a raffle {place} sells {a} tickets at {b} dollars; there is one prize of {c} dollars. What does a ticket lose on "
    "average?",
    "with {a} lots at {b} dollars each and a single win of {c} dollars, what is the expected loss per lot for "
    "{person}?",
    a=(100, 900, 10),
    b=(2, 10),
    c=(100, 900, 50),
)
def _raffle(n: Numbers) -> Steps | None:
    if n["c"] >= n["a"] * n["b"]:
        return None
    win = n["c"] / n["a"]
    return [
        f"Expected win: {show(n['c'])} ÷ {show(n['a'])} = {show(win)} dollars",
        f"{show(n['b'])} - {show(win)} = {show(n['b'] - win)} dollars",
    ], f"{show(n['b'] - win, 2)} dollars"


@family(
    "probability",
    3,
    "a treatment works with {a} percent. In a trial of {b} patients, what is the probability of exactly {c} "
    "successes under independence, and is the mean above it?",
    "derive the chance that exactly {c} of {b} independent sensors {place} respond when each does so with {a} percent, "
    "and state the expected number.",
    a=(10, 90, 5),
    b=(6, 20),
    c=(2, 15),
)
def _binomial(n: Numbers) -> Steps | None:
    p, trials, hits = n["a"] / 100, int(n["b"]), int(n["c"])
    if hits > trials:
        return None
    chance = math.comb(trials, hits) * p**hits * (1 - p) ** (trials - hits)
    if chance < 0.0005:
        return None
    return [
        f"C({trials}, {hits}) = {show(math.comb(trials, hits))}",
        f"Times {show(p)}^{hits} × {show(1 - p)}^{trials - hits} = {show(chance, 5)}",
        f"The expected number is {trials} × {show(p)} = {show(trials * p)}",
    ], show_percent(chance)


# estimation


@family(
    "estimation",
    1,
    "roughly how many {things} does a town of {a} people use a year if one person in {b} needs {c} a month?",
    "estimate the yearly demand for {things} among {a} inhabitants, every {b}th of whom takes {c} a month.",
    a=(4000, 90000, 1000),
    b=(4, 25),
    c=(2, 9),
)
def _demand(n: Numbers) -> Steps:
    users = n["a"] / n["b"]
    return [
        f"Users: {show(n['a'])} ÷ {show(n['b'])} = {show(users, 0)}",
        f"A month: {show(users, 0)} × {show(n['c'])} = {show(users * n['c'], 0)}",
        f"A year: {show(users * n['c'], 0)} × 12 = {show(users * n['c'] * 12, 0)}",
    ], f"about {show(users * n['c'] * 12, 0)}"


@family(
    "estimation",
    1,
    "a tap {place} loses {a} drops a minute, and {b} drops make a millilitre. How many litres run off in {c} days?",
    "if {a} drops fall each minute and {b} of them are one millilitre, estimate the litres lost while {person} is away "
    "for {c} days.",
    a=(10, 90),
    b=(15, 25),
    c=(5, 90),
)
def _drops(n: Numbers) -> Steps:
    day = n["a"] * 60 * 24 / n["b"] / 1000
    return [
        f"A day has 60 × 24 = 1440 minutes, so {show(n['a'])} × 1440 = {show(n['a'] * 1440)} drops",
        f"{show(n['a'] * 1440)} ÷ {show(n['b'])} ÷ 1000 = {show(day, 3)} litres a day",
        f"{show(day, 3)} × {show(n['c'])} = {show(day * n['c'], 1)} litres",
    ], f"about {show(day * n['c'], 1)} litres"


@family(
    "estimation",
    1,
    "how many litres of paint do {a} coats on a wall {b} m long and {c} m high take, if one litre covers {d} square "
    "metres? The wall stands {place}.",
    "estimate the paint for {object}: {a} coats, {b} m by {c} m, {d} square metres to the litre.",
    a=(2, 4),
    b=(4, 40),
    c=(2, 9),
    d=(6, 14),
)
def _paint(n: Numbers) -> Steps:
    area = n["b"] * n["c"]
    return [
        f"Area: {show(n['b'])} × {show(n['c'])} = {show(area)} square metres",
        f"With coats: {show(area)} × {show(n['a'])} = {show(area * n['a'])}",
        f"{show(area * n['a'])} ÷ {show(n['d'])} = {show(area * n['a'] / n['d'], 1)} litres",
    ], f"{show(area * n['a'] / n['d'], 1)} litres"


@family(
    "estimation",
    2,
    "{a} cameras record {b} hours a day at {c} megabits a second. How many terabytes pile up in {d} days {place}?",
    "work out the storage in terabytes for {a} streams of {c} megabits a second, {b} hours daily, kept {d} days, so "
    "that {person} can order disks.",
    a=(2, 40),
    b=(6, 24),
    c=(2, 12),
    d=(7, 90),
)
def _storage(n: Numbers) -> Steps:
    seconds = n["b"] * 3600 * n["d"]
    bits = n["a"] * n["c"] * 1e6 * seconds
    return [
        f"Recorded time: {show(n['b'])} × 3600 × {show(n['d'])} = {show(seconds)} seconds",
        f"Megabits: {show(n['a'])} × {show(n['c'])} × {show(seconds)} = {show(bits / 1e6)}",
        f"Divided by 8 and by a million: {show(bits / 8e12, 2)} terabytes",
    ], f"{show(bits / 8e12, 2)} terabytes"


@family(
    "research",
    3,
    "a survey {place} should know a share of about one half to within {a} percentage points, with 95 percent "
    "confidence. The population has {b} members: how large must the sample be, with the finite correction?",
    "derive the sample size for a proportion near one half, margin {a} percentage points at 95 percent, drawn from a "
    "register of {b} {things}, finite population correction included.",
    a=(2, 8),
    b=(800, 40000, 100),
)
def _sample_size(n: Numbers) -> Steps:
    plain = 1.96**2 * 0.25 / (n["a"] / 100) ** 2
    size = plain / (1 + (plain - 1) / n["b"])
    return [
        f"Without correction: 1.96² × 0.25 ÷ {show(n['a'] / 100)}² = {show(plain, 1)}",
        f"With it: {show(plain, 1)} ÷ (1 + ({show(plain, 1)} - 1) ÷ {show(n['b'])}) = {show(size, 1)}",
        "Rounded up to the next whole number",
    ], show(math.ceil(size))


@family(
    "research",
    3,
    "plan an experiment on {object}: two groups, standard deviation {a}, smallest difference worth finding {b}, power "
    "80 percent, two-sided 5 percent. How many subjects does each group need?",
    "for a research proposal {place} I need the size of each of two groups that shows a difference of {b} at a "
    "standard "
    "deviation of {a}, with 80 percent power at the 5 percent level, two-sided.",
    a=(8, 40),
    b=(3, 20),
)
def _power(n: Numbers) -> Steps | None:
    size = 2 * (1.96 + 0.84) ** 2 * n["a"] ** 2 / n["b"] ** 2
    if not 5 < size < 2000:
        return None
    return [
        f"n = 2 × (1.96 + 0.84)² × {show(n['a'])}² ÷ {show(n['b'])}²",
        f"2 × 7.84 × {show(n['a'] ** 2)} ÷ {show(n['b'] ** 2)} = {show(size, 2)}",
        "Rounded up to a whole subject",
    ], f"{math.ceil(size)} in each group"


@family(
    "research",
    3,
    "requests reach a single server {place} at {a} an hour and it can serve {b} an hour, both memoryless. What is the "
    "mean time in the system in minutes, and where does it stem from?",
    "model the queue for {object} as M/M/1 with {a} arrivals and {b} services an hour; derive the mean time a customer "
    "spends there, in minutes.",
    a=(5, 50),
    b=(10, 70),
)
def _queue(n: Numbers) -> Steps | None:
    if n["b"] <= n["a"]:
        return None
    minutes = 60 / (n["b"] - n["a"])
    return [
        f"Load: {show(n['a'])} ÷ {show(n['b'])} = {show(n['a'] / n['b'])}, below 1, so the queue is stable",
        f"Mean time in the system: 1 ÷ ({show(n['b'])} - {show(n['a'])}) hours",
        f"60 ÷ {show(n['b'] - n['a'])} = {show(minutes, 2)} minutes",
    ], f"{show(minutes, 2)} minutes"


# data


@family(
    "data",
    0,
    "{person} counted {a}, {b}, {c}, {d} and {e} {things} from Monday to Friday. What is the mean, and on which "
    "side of "
    "it does the median lie?",
    "the last five results {place} were {a}, {b}, {c}, {d} and {e}; give the mean and compare it with the middle "
    "value.",
    a=(4, 60),
    b=(4, 60),
    c=(4, 60),
    d=(4, 60),
    e=(4, 60),
)
def _mean(n: Numbers) -> Steps:
    values = sorted(n[name] for name in "abcde")
    mean, median = sum(values) / 5, values[2]
    side = "below" if median < mean else "above" if median > mean else "exactly on"
    return [
        f"The sum is {show(sum(values))}, so the mean is {show(sum(values))} ÷ 5 = {show(mean, 2)}",
        f"In order they are {', '.join(map(show, values))}, with {show(median)} in the middle",
        f"The median lies {side} the mean",
    ], show(mean, 2)


@family(
    "data",
    1,
    "our figures for {object}: {a} in spring, {b} in summer, {c} in autumn. By how many percent did each season differ "
    "from the one before, and what was the whole change?",
    "{place} they noted {a}, then {b}, then {c} {things}. Which percentage separates the last from the first, and how "
    "does it come about?",
    a=(40, 400),
    b=(40, 400),
    c=(40, 400),
)
def _change_in_percent(n: Numbers) -> Steps:
    one, two, whole = (100 * (n[y] / n[x] - 1) for x, y in ("ab", "bc", "ac"))
    return [
        f"From {show(n['a'])} to {show(n['b'])}: {show(one, 1)} %",
        f"From {show(n['b'])} to {show(n['c'])}: {show(two, 1)} %",
        f"Over both: {show(n['c'])} ÷ {show(n['a'])} - 1 = {show(whole, 1)} %, which is not the sum of the two",
    ], f"{show(whole, 1)} %"


@family(
    "data",
    2,
    "of {a} people who got the new form {b} answered, of {c} with the old one {d}. Is the difference {place} more than "
    "chance at the 5 percent level? Give the z value.",
    "{person} tried two versions of {object}: {b} of {a} liked the first, {d} of {c} the second. Work out z for "
    "the two "
    "shares and draw the conclusion.",
    a=(80, 600, 10),
    b=(20, 300),
    c=(80, 600, 10),
    d=(20, 300),
)
def _two_shares(n: Numbers) -> Steps | None:
    if n["b"] >= 0.9 * n["a"] or n["d"] >= 0.9 * n["c"]:
        return None
    one, two = n["b"] / n["a"], n["d"] / n["c"]
    both = (n["b"] + n["d"]) / (n["a"] + n["c"])
    spread = math.sqrt(both * (1 - both) * (1 / n["a"] + 1 / n["c"]))
    z = (one - two) / spread
    return [
        f"Shares: {show(one, 3)} and {show(two, 3)}, together {show(both, 3)}",
        f"Standard error: {show(spread)}",
        f"z = {show(one - two)} ÷ {show(spread)} = {show(z, 2)}, {'beyond' if abs(z) > 1.96 else 'within'} 1.96",
    ], f"z = {show(z, 2)}"
