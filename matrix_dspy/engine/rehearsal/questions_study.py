"""Questions of a course of study: proofs, science, research."""

import math

from matrix_dspy.engine.rehearsal.family import Family, Numbers, Steps, register_in, show

FAMILIES: list[Family] = []
family = register_in(FAMILIES)


# proofs


@family(
    "proofs",
    1,
    "show that the first n odd numbers add up to n², and give the sum for n = {a}, the number of {things} in the last "
    "pattern {place}.",
    "prove by induction that 1 + 3 + 5 + ... up to the n-th odd number is a square; check it at n = {a} for {person}.",
    a=(6, 80),
)
def _odd(n: Numbers) -> Steps:
    return [
        "For n = 1 the sum is 1 = 1²",
        "If the first n odd numbers make n², the next one, 2n + 1, makes n² + 2n + 1 = (n + 1)²",
        f"So for n = {show(n['a'])} the sum is {show(n['a'])}² = {show(n['a'] ** 2)}",
    ], show(n["a"] ** 2)


@family(
    "proofs",
    2,
    "prove that n³ - n can be divided by 6 for every whole n, and name the quotient for n = {a}. {person} doubts it.",
    "why is n³ - n always a multiple of 6? Give a full proof, then the multiple for n = {a}, as asked {place}.",
    a=(5, 60),
)
def _six(n: Numbers) -> Steps:
    value = n["a"] ** 3 - n["a"]
    return [
        "n³ - n = (n - 1) × n × (n + 1), three numbers in a row",
        "One of them at least is even and exactly one is a multiple of 3, so the product is one of 6",
        f"For n = {show(n['a'])}: {show(value)} ÷ 6 = {show(value / 6)}",
    ], show(value / 6)


@family(
    "proofs",
    1,
    "prove that among {a} people {place} some share a birth month, and find the largest number that must share one.",
    "{a} {things} are put into 12 boxes by {person}. Prove that one box holds many, and say how many at least.",
    a=(25, 400),
)
def _pigeons(n: Numbers) -> Steps:
    least = math.ceil(n["a"] / 12)
    return [
        f"If every one of the 12 held at most {least - 1}, there would be at most 12 × {least - 1} = "
        f"{12 * (least - 1)}",
        f"That is less than {show(n['a'])}, a contradiction",
    ], f"at least {least}"


@family(
    "proofs",
    2,
    "two numbers are positive and add up to {a}. Prove that their product is largest when they are equal, and give "
    "that product; {person} needs it for {object}.",
    "a rectangle {place} has a fence of {a} m on two neighbouring sides together. Prove which shape has the largest "
    "area, and state that area.",
    a=(10, 300, 2),
)
def _largest(n: Numbers) -> Steps:
    half = n["a"] / 2
    return [
        f"Write them as {show(half)} + t and {show(half)} - t",
        f"Their product is {show(half)}² - t², never more than {show(half)}², and equal only for t = 0",
        f"{show(half)}² = {show(half * half)}",
    ], show(half * half)


@family(
    "proofs",
    3,
    "prove that a tree on {a} nodes has one edge fewer than nodes, and deduce how many edges a forest of {b} trees on "
    "the same nodes has. It is about the cabling {place}.",
    "for the network behind {object}: show that a forest with {a} nodes and {b} components has a fixed number of "
    "edges, "
    "by induction on the nodes, and state it.",
    a=(20, 500),
    b=(2, 15),
)
def _forest(n: Numbers) -> Steps:
    return [
        "A single node has no edge; a larger tree has a leaf, and removing it removes one node and one edge",
        "So by induction a tree on n nodes has n - 1 edges",
        f"Over {show(n['b'])} trees each loses one: {show(n['a'])} - {show(n['b'])} = {show(n['a'] - n['b'])}",
    ], f"{show(n['a'] - n['b'])} edges"


@family(
    "proofs",
    0,
    "why is the sum of {a} and any even number even again if {a} is even? Show it with {things}, and give {a} "
    "plus {b}.",
    "show {person} that two even numbers such as {a} and {b} always make an even sum, and write that sum down.",
    a=(12, 98, 2),
    b=(4, 60, 2),
)
def _even(n: Numbers) -> Steps:
    return [
        "An even number is twice some whole number: 2k and 2m",
        "2k + 2m = 2 × (k + m) is again twice a whole number",
        f"{show(n['a'])} + {show(n['b'])} = {show(n['a'] + n['b'])}",
    ], show(n["a"] + n["b"])


# science


@family(
    "science",
    1,
    "a kettle of {a} watts runs {b} minutes a day {place}. What does it cost in {c} days at {d} cents a kilowatt hour?",
    "{person} leaves {tool} on, {a} watts for {b} minutes daily; with {d} cents a kilowatt hour, how many dollars are "
    "that in {c} days?",
    a=(400, 3000, 100),
    b=(5, 90),
    c=(7, 90),
    d=(15, 48),
)
def _energy(n: Numbers) -> Steps:
    energy = n["a"] / 1000 * n["b"] / 60 * n["c"]
    cost = energy * n["d"] / 100
    return [
        f"A day: {show(n['a'] / 1000)} kW × {show(n['b'])} ÷ 60 h",
        f"In {show(n['c'])} days: {show(energy, 3)} kWh",
        f"{show(energy, 3)} × {show(n['d'] / 100)} = {show(cost, 2)} dollars",
    ], f"{show(cost, 2)} dollars"


@family(
    "science",
    2,
    "a substance loses half of itself every {a} hours. Of {b} mg, how much is left after {c} hours, and when does it "
    "matter for {object}?",
    "with a half-life of {a} hours, which share of {b} mg remains {c} hours later? {person} needs it in mg.",
    a=(3, 30),
    b=(40, 800, 10),
    c=(5, 90),
)
def _half_life(n: Numbers) -> Steps:
    left = n["b"] * 0.5 ** (n["c"] / n["a"])
    return [
        f"{show(n['c'])} hours are {show(n['c'])} ÷ {show(n['a'])} = {show(n['c'] / n['a'], 3)} half-lives",
        f"0.5 to that power is {show(left / n['b'])}",
        f"{show(n['b'])} × {show(left / n['b'])} = {show(left, 2)} mg",
    ], f"{show(left, 2)} mg"


@family(
    "science",
    1,
    "between flash and thunder {place} I counted {a} seconds. How far off was it if sound makes {b} metres a second?",
    "a shout comes back from the wall behind {object} after {a} seconds; sound travels {b} metres a second. How "
    "far did "
    "it go in all?",
    a=(2, 25),
    b=(330, 346),
)
def _thunder(n: Numbers) -> Steps:
    way = n["a"] * n["b"]
    return [
        f"Way = speed × time = {show(n['b'])} × {show(n['a'])} = {show(way)} metres",
        f"That is {show(way / 1000, 2)} km",
    ], f"{show(way)} metres"


@family(
    "science",
    2,
    "{a} litres of water at {b} degrees are mixed with {c} litres at {d} degrees to soak {things}. Which temperature "
    "results, without losses?",
    "how warm does the tub {place} get if {a} litres of {b} degrees meet {c} litres of {d} degrees and nothing "
    "is lost?",
    a=(2, 40),
    b=(8, 25),
    c=(2, 40),
    d=(50, 95),
)
def _warmth(n: Numbers) -> Steps:
    warmth = (n["a"] * n["b"] + n["c"] * n["d"]) / (n["a"] + n["c"])
    return [
        "What the warm water gives off, the cold takes up, so the mean by volume counts",
        f"({show(n['a'])} × {show(n['b'])} + {show(n['c'])} × {show(n['d'])}) ÷ {show(n['a'] + n['c'])} = "
        f"{show(warmth, 1)} degrees",
    ], f"{show(warmth, 1)} degrees"


# research


@family(
    "research",
    3,
    "a field study {place} measures a mean of {a} with standard deviation {b} on {c} plots. Derive the 95 percent "
    "interval and argue whether {d} is compatible with it.",
    "our data on {object} have mean {a}, standard deviation {b}, sample size {c}. Which 95 percent interval follows, "
    "and what position on a true value of {d} can be defended?",
    a=(20, 90),
    b=(4, 20),
    c=(25, 400),
    d=(20, 90),
)
def _interval(n: Numbers) -> Steps:
    half = 1.96 * n["b"] / math.sqrt(n["c"])
    low, high = n["a"] - half, n["a"] + half
    fits = (
        "lies inside, so it cannot be ruled out" if low <= n["d"] <= high else "lies outside, which speaks against it"
    )
    return [
        f"Standard error: {show(n['b'])} ÷ √{show(n['c'])} = {show(n['b'] / math.sqrt(n['c']), 3)}",
        f"1.96 times that is {show(half, 2)}",
        f"{show(n['d'])} {fits}",
    ], f"{show(low, 2)} to {show(high, 2)}"


@family(
    "research",
    3,
    "a new method {place} raises output from {a} to {b} units a day but costs {c} dollars a day more; a unit earns {d} "
    "dollars. Argue whether it pays, with the daily gain, and name what would overturn this.",
    "should a lab give {c} dollars a day for {tool} if it lifts {things} from {a} to {b} a day and each is worth {d} "
    "dollars? Take a position and give the gain.",
    a=(20, 90),
    b=(25, 140),
    c=(40, 400, 10),
    d=(2, 15),
)
def _gain(n: Numbers) -> Steps | None:
    if n["b"] <= n["a"]:
        return None
    gain = (n["b"] - n["a"]) * n["d"] - n["c"]
    return [
        f"More a day: {show(n['b'])} - {show(n['a'])} = {show(n['b'] - n['a'])}",
        f"Worth {show(n['b'] - n['a'])} × {show(n['d'])} = {show((n['b'] - n['a']) * n['d'])} dollars",
        f"Less the cost: {show((n['b'] - n['a']) * n['d'])} - {show(n['c'])} = {show(gain)} dollars a day, "
        f"so it {'pays' if gain > 0 else 'does not pay'}",
    ], f"{show(gain)} dollars a day"
