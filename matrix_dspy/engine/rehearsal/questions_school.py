"""Questions a pupil can work out: sums, word problems, logic puzzles, timetables."""

import itertools
import math

from matrix_dspy.engine.rehearsal.family import Family, Numbers, Steps, register_in, show, show_percent

FAMILIES: list[Family] = []
family = register_in(FAMILIES)


# pupil's sums


@family(
    "sums",
    0,
    "{person} carries {a} crates with {b} {things} each and {c} loose ones. How many {things} are that in all?",
    "{place} there are {a} shelves, every one holding {b} {things}, and another {c} lie on the floor; count the "
    "{things}.",
    "if one row has {b} {things}, what do {a} rows plus {c} more {things} come to?",
    "multiply {a} by {b}, then add {c}, because so many {things} came late; what number do you get?",
    a=(3, 24),
    b=(6, 48),
    c=(3, 95),
)
def _boxes(n: Numbers) -> Steps:
    whole = n["a"] * n["b"]
    steps = [
        f"{show(n['a'])} × {show(n['b'])} = {show(whole)}",
        f"{show(whole)} + {show(n['c'])} = {show(whole + n['c'])}",
    ]
    return steps, show(whole + n["c"])


@family(
    "sums",
    0,
    "add up {a}, {b} and {c} {things} and take away the {d} that {person} lost. How many remain?",
    "{person} had {a} {things}, got {b} on {day} and {c} on the day after, then gave {d} away; what is left?",
    "from {a} plus {b} plus {c} {things} {d} were sold {place}. What number is still there?",
    a=(25, 480),
    b=(15, 390),
    c=(10, 250),
    d=(8, 240),
)
def _total(n: Numbers) -> Steps | None:
    whole = n["a"] + n["b"] + n["c"]
    if n["d"] >= whole:
        return None
    steps = [
        f"{show(n['a'])} + {show(n['b'])} + {show(n['c'])} = {show(whole)}",
        f"{show(whole)} - {show(n['d'])} = {show(whole - n['d'])}",
    ]
    return steps, show(whole - n["d"])


@family(
    "sums",
    0,
    "{person} packs {a} {things} into bags of {b}. How many bags get full, and how many {things} are left over?",
    "share {a} {things} fairly among {b} children: how many does each get, and what remains?",
    "divide {a} by {b} with remainder; the {a} stand for {things} and {person} wants to know both numbers.",
    a=(40, 900),
    b=(3, 24),
)
def _share(n: Numbers) -> Steps | None:
    full, rest = divmod(int(n["a"]), int(n["b"]))
    if not rest:
        return None
    steps = [
        f"{show(n['b'])} × {full} = {show(n['b'] * full)}, which fits into {show(n['a'])}",
        f"{show(n['a'])} - {show(n['b'] * full)} = {rest} left over",
    ]
    return steps, f"{full}, remainder {rest}"


@family(
    "sums",
    0,
    "{person} pays with a {a} dollar note for {b} {things} at {c} dollars apiece; how much change is due?",
    "one of the {things} costs {c} dollars. I buy {b} and hand over {a} dollars {place}. What do I get back?",
    a=(50, 500, 50),
    b=(2, 14),
    c=(2, 33),
)
def _change(n: Numbers) -> Steps | None:
    cost = n["b"] * n["c"]
    if not 0 < n["a"] - cost < 50:
        return None
    steps = [
        f"{show(n['b'])} × {show(n['c'])} = {show(cost)} dollars to pay",
        f"{show(n['a'])} - {show(cost)} = {show(n['a'] - cost)} dollars back",
    ]
    return steps, f"{show(n['a'] - cost)} dollars"


@family(
    "sums",
    0,
    "of {a} {things} one in {b} is broken. How many are whole?",
    "every {b}th of the {a} {things} belongs to {person}; how many belong to others?",
    "what is left of {a} {things} when a {b}th part has been used {place}?",
    a=(48, 960),
    b=(4, 12),
)
def _part_of(n: Numbers) -> Steps | None:
    if n["a"] % n["b"]:
        return None
    part = n["a"] / n["b"]
    return [
        f"{show(n['a'])} ÷ {show(n['b'])} = {show(part)}",
        f"{show(n['a'])} - {show(part)} = {show(n['a'] - part)}",
    ], show(n["a"] - part)


# word problems


@family(
    "word problems",
    1,
    "two vans start towards each other from depots {a} km apart, one at {b} km/h with {object}, the other at {c} km/h "
    "with {tool}. After how many minutes do they meet?",
    "{person} cycles at {b} km/h towards me while I drive at {c} km/h; {a} km lie between us. How many minutes until "
    "we meet?",
    a=(20, 240),
    b=(12, 48),
    c=(30, 90),
)
def _meeting(n: Numbers) -> Steps:
    speed = n["b"] + n["c"]
    minutes = n["a"] / speed * 60
    return [
        f"Together they close {show(n['b'])} + {show(n['c'])} = {show(speed)} km every hour",
        f"{show(n['a'])} ÷ {show(speed)} = {show(n['a'] / speed)} hours",
        f"{show(n['a'])} ÷ {show(speed)} × 60 = {show(minutes, 1)} minutes",
    ], f"{show(minutes, 1)} minutes"


@family(
    "word problems",
    1,
    "the price of {object} is {a} dollars; it falls by {b} percent, and then {c} percent tax is added. What do I pay?",
    "{person} grants {b} percent off a bill of {a} dollars for {things}, after which {c} percent tax comes on top. "
    "Work out the final amount.",
    a=(40, 1900, 10),
    b=(5, 40, 5),
    c=(5, 24),
)
def _discount(n: Numbers) -> Steps:
    lower = n["a"] * (1 - n["b"] / 100)
    final = lower * (1 + n["c"] / 100)
    return [
        f"{show(n['a'])} × {show(1 - n['b'] / 100)} = {show(lower, 2)} dollars after the discount",
        f"{show(lower, 2)} × {show(1 + n['c'] / 100)} = {show(final, 2)} dollars with tax",
    ], f"{show(final, 2)} dollars"


@family(
    "word problems",
    1,
    "I mix {a} litres of a {b} percent solution with {c} litres of a {d} percent one to clean {object}. How strong is "
    "the mixture?",
    "{a} litres at {b} percent and {c} litres at {d} percent go into one tank {place}; which percentage results?",
    a=(2, 30),
    b=(3, 35),
    c=(2, 30),
    d=(40, 90),
)
def _mixture(n: Numbers) -> Steps:
    pure = n["a"] * n["b"] / 100 + n["c"] * n["d"] / 100
    whole = n["a"] + n["c"]
    return [
        f"Pure part: {show(n['a'])} × {show(n['b'] / 100)} + {show(n['c'])} × {show(n['d'] / 100)} = {show(pure)} "
        f"litres",
        f"Whole: {show(n['a'])} + {show(n['c'])} = {show(whole)} litres",
        f"{show(pure)} ÷ {show(whole)} = {show_percent(pure / whole)}",
    ], show_percent(pure / whole)


@family(
    "word problems",
    1,
    "alone I need {a} hours to {task}, {person} needs {b}. How long does it take us side by side?",
    "one pump empties the tank {place} in {a} hours, a second in {b} hours; how long do both take together?",
    a=(2, 16),
    b=(3, 20),
)
def _together(n: Numbers) -> Steps:
    hours = n["a"] * n["b"] / (n["a"] + n["b"])
    return [
        f"In one hour 1/{show(n['a'])} + 1/{show(n['b'])} of the work gets done",
        f"The whole takes {show(n['a'])} × {show(n['b'])} ÷ ({show(n['a'])} + {show(n['b'])}) = {show(hours, 2)} hours",
        f"That is {show(hours * 60, 0)} minutes",
    ], f"{show(hours, 2)} hours"


@family(
    "word problems",
    1,
    "offer one for {things}: {a} dollars fixed plus {b} a piece. Offer two: {c} dollars fixed plus {d} a piece. From "
    "how many pieces on is the first cheaper?",
    "to {task} I can hire {tool} for {a} dollars and {b} dollars a day, or another for {c} dollars and {d} dollars a "
    "day. After how many whole days does the first cost less?",
    a=(60, 400, 10),
    b=(2, 15),
    c=(10, 90, 10),
    d=(8, 30),
)
def _offers(n: Numbers) -> Steps | None:
    if n["a"] <= n["c"] or n["d"] <= n["b"]:
        return None
    even = (n["a"] - n["c"]) / (n["d"] - n["b"])
    first = math.floor(even) + 1
    return [
        f"The fixed parts differ by {show(n['a'])} - {show(n['c'])} = {show(n['a'] - n['c'])} dollars",
        f"Each one more saves {show(n['d'])} - {show(n['b'])} = {show(n['d'] - n['b'])} dollars",
        f"{show(n['a'] - n['c'])} ÷ {show(n['d'] - n['b'])} = {show(even, 2)}, so both are level there",
    ], f"{first} or more"


@family(
    "word problems",
    1,
    "my savings for {object} are {a} dollars and grow by {b} percent a year. What have I got after {c} years?",
    "{place} the stock of {things} is {a} and rises {b} percent every year; how large is it {c} years from now?",
    a=(200, 9000, 100),
    b=(2, 12),
    c=(2, 8),
)
def _growth(n: Numbers) -> Steps:
    factor = (1 + n["b"] / 100) ** n["c"]
    return [
        f"Each year multiplies by {show(1 + n['b'] / 100)}",
        f"{show(1 + n['b'] / 100)} to the power {show(n['c'])} = {show(factor)}",
        f"{show(n['a'])} × {show(factor)} = {show(n['a'] * factor, 2)}",
    ], show(n["a"] * factor, 2)


@family(
    "word problems",
    1,
    "in {a} weeks I averaged {b} {things} a week. How many must I reach next week for an average of {c}?",
    "{person} has a mean of {b} points from {a} rounds and wants {c} after one more; which score does that take?",
    a=(3, 12),
    b=(20, 70),
    c=(22, 80),
)
def _average(n: Numbers) -> Steps | None:
    need = n["c"] * (n["a"] + 1) - n["a"] * n["b"]
    if not n["c"] > n["b"] or need > 400:
        return None
    return [
        f"So far: {show(n['a'])} × {show(n['b'])} = {show(n['a'] * n['b'])}",
        f"Wanted: {show(n['a'] + 1)} × {show(n['c'])} = {show(n['c'] * (n['a'] + 1))}",
        f"{show(n['c'] * (n['a'] + 1))} - {show(n['a'] * n['b'])} = {show(need)}",
    ], show(need)


# logic puzzles


@family(
    "logic puzzles",
    1,
    "{place} stand tables with four legs and stools with three: {a} seats and tops in all, {b} legs. How many stools "
    "are there?",
    "a yard holds carts on four wheels and tricycles on three; {person} counts {a} vehicles and {b} wheels. How many "
    "tricycles?",
    a=(8, 60),
    b=(30, 230),
)
def _legs(n: Numbers) -> Steps | None:
    three = 4 * n["a"] - n["b"]
    if not 0 < three < n["a"]:
        return None
    return [
        f"If all had four: 4 × {show(n['a'])} = {show(4 * n['a'])}",
        f"That is {show(4 * n['a'])} - {show(n['b'])} = {show(three)} too many, and each one with three takes one away",
    ], show(three)


@family(
    "logic puzzles",
    1,
    "a drawer holds {a} red, {b} blue and {c} grey {things}. How many must I take in the dark to be sure of {d} of one "
    "colour?",
    "{person} mixed {a} old, {b} new and {c} borrowed {things} in one sack; how many draws without looking guarantee "
    "{d} of the same sort?",
    a=(3, 20),
    b=(3, 20),
    c=(3, 20),
    d=(2, 8),
)
def _drawer(n: Numbers) -> Steps | None:
    most = [min(n[name], n["d"] - 1) for name in "abc"]
    if n["d"] > max(n["a"], n["b"], n["c"]):
        return None
    return [
        f"In the worst case one draws at most {show(n['d'] - 1)} of each sort first: "
        f"{' + '.join(map(show, most))} = {show(sum(most))}",
        f"The next one completes {show(n['d'])} of one sort: {show(sum(most))} + 1",
    ], show(sum(most) + 1)


@family(
    "logic puzzles",
    0,
    "{a} people meet {place} and each shakes hands once with everybody else. How many handshakes are there?",
    "in a game of {a} players everyone exchanges one of the {things} with every other player once; how many exchanges?",
    a=(5, 40),
)
def _handshakes(n: Numbers) -> Steps:
    pairs = n["a"] * (n["a"] - 1) / 2
    return [
        f"Each of the {show(n['a'])} meets {show(n['a'] - 1)} others: {show(n['a'])} × {show(n['a'] - 1)} = "
        f"{show(2 * pairs)}",
        f"Every pair was counted twice: {show(2 * pairs)} ÷ 2 = {show(pairs)}",
    ], show(pairs)


@family(
    "logic puzzles",
    2,
    "one of {a} equal-looking coins in {object} is lighter than the rest. How many weighings on a balance are always "
    "enough to find it?",
    "among {a} sealed {things} a single one weighs less; with a pair of scales and no weights, what is the smallest "
    "number of weighings that surely finds it?",
    a=(5, 700),
)
def _coins(n: Numbers) -> Steps:
    count, reach = 0, 1
    while reach < n["a"]:
        count, reach = count + 1, reach * 3
    return [
        "A weighing has three outcomes, so k weighings tell at most 3^k cases apart",
        f"3^{count - 1} = {show(reach / 3)} is less than {show(n['a'])}, and 3^{count} = {show(reach)} is enough",
    ], show(count)


@family(
    "logic puzzles",
    2,
    "{a} lamps {place} are off. On walk k, for k from 1 to {a}, {person} switches every k-th lamp. How many are on in "
    "the end?",
    "of {a} closed lockers every k-th is opened or shut on round k, for all k up to {a}; how many stand open at last?",
    a=(20, 2000),
)
def _lockers(n: Numbers) -> Steps:
    root = math.isqrt(int(n["a"]))
    return [
        "A place is switched once for each of its divisors, so it changes in the end only if that number is odd",
        "Only squares have an odd number of divisors",
        f"{root}² = {root * root} is the largest square up to {show(n['a'])}",
    ], show(root)


@family(
    "logic puzzles",
    1,
    "{person} is {a} years older than I am, and in {b} years exactly twice my age. How old is the older one of us now?",
    "a father is {a} years older than his son, and {b} years from now exactly double his age; what is the father's "
    "age today?",
    a=(18, 40),
    b=(2, 15),
)
def _ages(n: Numbers) -> Steps | None:
    younger = n["a"] - n["b"]
    if younger < 1:
        return None
    return [
        f"Call the younger age y; then y + {show(n['a'])} + {show(n['b'])} = 2 × (y + {show(n['b'])})",
        f"So y = {show(n['a'])} - {show(n['b'])} = {show(younger)}",
        f"{show(younger)} + {show(n['a'])} = {show(younger + n['a'])}",
    ], show(younger + n["a"])


# scheduling


@family(
    "scheduling",
    2,
    "five jobs of {a}, {b}, {c}, {d} and {e} minutes are to be split over two workbenches {place}. How early can all "
    "be done?",
    "{person} and I share tasks of {a}, {b}, {c}, {d} and {e} minutes on {object}; what is the shortest time until "
    "everything is finished?",
    a=(5, 60),
    b=(5, 60),
    c=(5, 60),
    d=(5, 60),
    e=(5, 60),
)
def _benches(n: Numbers) -> Steps:
    jobs = [n[name] for name in "abcde"]
    whole = sum(jobs)
    sides = (sum(part) for size in range(6) for part in itertools.combinations(jobs, size))
    best = min(max(side, whole - side) for side in sides)
    return [
        f"All together take {show(whole)} minutes, so at least {show(whole / 2)} are needed",
        f"Of the splits the evenest gives {show(best)} and {show(whole - best)} minutes",
    ], f"{show(best)} minutes"


@family(
    "scheduling",
    1,
    "four customers wait {place}; they need {a}, {b}, {c} and {d} minutes. In which order is the total waiting time "
    "smallest, and how long is it?",
    "{person} has repairs of {a}, {b}, {c} and {d} minutes and one pair of hands. Order them so that the waiting times "
    "before each add up to the least, and give the sum.",
    a=(3, 60),
    b=(3, 60),
    c=(3, 60),
    d=(3, 60),
)
def _waiting(n: Numbers) -> Steps:
    jobs = sorted(n[name] for name in "abcd")
    waits = [sum(jobs[:i]) for i in range(4)]
    return [
        f"The shortest goes first: {', '.join(map(show, jobs))}",
        f"The waits before each are {', '.join(map(show, waits))}",
        f"Together {show(sum(waits))} minutes",
    ], f"{show(sum(waits))} minutes"


@family(
    "scheduling",
    1,
    "step A takes {a} days, then B ({b} days) and C ({c} days) run side by side, and D ({d} days) needs both. When is "
    "{object} finished at the earliest?",
    "to {task} I first need {a} days; two helpers then work {b} and {c} days in parallel, and the last part of "
    "{d} days "
    "waits for both. How many days in all?",
    a=(2, 14),
    b=(3, 20),
    c=(3, 20),
    d=(2, 12),
)
def _path(n: Numbers) -> Steps:
    longest = max(n["b"], n["c"])
    whole = n["a"] + longest + n["d"]
    return [
        f"The longer of the two middle parts counts: {show(longest)} days",
        f"{show(n['a'])} + {show(longest)} + {show(n['d'])} = {show(whole)} days",
    ], f"{show(whole)} days"


@family(
    "scheduling",
    0,
    "one bus leaves every {a} minutes, another every {b}; both left {place} just now. In how many minutes will they "
    "leave together again?",
    "{object} is checked every {a} days and {tool} every {b} days, both today. How many days until the checks fall on "
    "one day again?",
    a=(4, 36),
    b=(5, 45),
)
def _again(n: Numbers) -> Steps | None:
    a, b = int(n["a"]), int(n["b"])
    if a == b or b % a == 0 or a % b == 0:
        return None
    return [
        f"Wanted is the least common multiple of {a} and {b}",
        f"Their greatest common divisor is {math.gcd(a, b)}",
        f"{a} × {b} ÷ {math.gcd(a, b)} = {show(math.lcm(a, b))}",
    ], show(math.lcm(a, b))


@family(
    "scheduling",
    1,
    "{a} teams play a tournament {place}, everyone against everyone once, on {b} pitches, {c} minutes a game. How many "
    "minutes does it take at least?",
    "plan a round robin of {a} players on {b} boards with games of {c} minutes: what is the least time if all boards "
    "are used as well as the rounds allow?",
    a=(4, 16, 2),
    b=(2, 6),
    c=(8, 40),
)
def _tournament(n: Numbers) -> Steps | None:
    rounds, games = n["a"] - 1, n["a"] / 2
    if n["b"] > games or games % n["b"]:
        return None
    slots = rounds * games / n["b"]
    return [
        f"Games: {show(n['a'])} × {show(rounds)} ÷ 2 = {show(rounds * games)}",
        f"With {show(n['b'])} at a time that makes {show(slots)} slots",
        f"{show(slots)} × {show(n['c'])} = {show(slots * n['c'])} minutes",
    ], f"{show(slots * n['c'])} minutes"


@family(
    "scheduling",
    3,
    "jobs with processing times {a}, {b} and {c} hours and weights {d}, {e} and {f} run on one machine {place}. Prove "
    "which order minimises the weighted sum of completion times, and compute it.",
    "for the paper on {object}: three tasks take {a}, {b} and {c} hours and have weights {d}, {e} and {f}. Derive the "
    "optimal order on one processor and its weighted completion time.",
    a=(2, 12),
    b=(2, 12),
    c=(2, 12),
    d=(1, 9),
    e=(1, 9),
    f=(1, 9),
)
def _smith(n: Numbers) -> Steps:
    jobs = sorted(((n["a"], n["d"]), (n["b"], n["e"]), (n["c"], n["f"])), key=lambda job: (job[0] / job[1], job))
    ends = list(itertools.accumulate(hours for hours, _ in jobs))
    cost = sum(end * weight for end, (_, weight) in zip(ends, jobs, strict=True))
    order = ", then ".join(f"{show(hours)} hours" for hours, _ in jobs)
    return [
        "Swapping two neighbours changes the cost by the difference of p1 × w2 and p2 × w1, so the ratio of time to "
        "weight must rise along the order",
        f"That gives {order}",
        f"Completion at {', '.join(map(show, ends))}; weighted sum {show(cost)}",
    ], show(cost)
