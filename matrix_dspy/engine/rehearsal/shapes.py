"""Small Python functions in several states: right, with a fault, clumsy; with what they do and tests that hold.

Marks such as `<fn>` stand for names and numbers. Read backwards, a state finds them in a given piece of code again, so
that the answer to "what is wrong here" can be the same function, mended.
"""

import functools
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One change that breaks a function."""

    right: str
    wrong: str
    symptom: str
    """What its user sees."""
    cause: str
    """What is wrong, as an explanation."""


@dataclass(frozen=True)
class Shape:
    """A function that may be about anything."""

    does: tuple[str, ...]
    """What it does, as it goes on after "a function that"."""
    source: str
    faults: tuple[Fault, ...]
    clumsy: str
    """The same, badly written."""
    tests: str
    steps: tuple[str, ...]
    """How it works, sentence by sentence."""


@dataclass(frozen=True)
class Found:
    """A piece of code that was recognised."""

    shape: Shape
    fault: Fault | None
    """None where the code is right."""
    is_clumsy: bool
    names: Mapping[str, str]


_NUMBERS = frozenset("kxy")
_BRACES = str.maketrans("", "", "{}")
_MARK = re.compile(r"<([a-z]+)>")
_ROWS = ("rows", "entries", "records", "items", "lines", "pairs", "batch", "found", "listed", "collected")
_ONES = ("row", "entry", "record", "item", "each", "one", "current", "piece")
_RESULTS = ("result", "out", "totals", "kept", "answer", "gathered", "made", "output")

SHAPES: tuple[Shape, ...] = (
    Shape(
        (
            "takes a list of (name, amount) pairs and returns the total for every name",
            "adds up the amounts of (name, amount) pairs by name and returns a dict",
        ),
        """def <fn>(<rows>):
    <out> = {}
    for name, amount in <rows>:
        <out>[name] = <out>.get(name, 0) + amount
    return <out>""",
        (
            Fault(
                "<out>.get(name, 0) + amount",
                "amount",
                "only the last amount of each name is left",
                "the new amount overwrites the old one instead of being added to it",
            ),
            Fault(
                "    return <out>",
                "        return <out>",
                "it knows only the first name and ignores the rest",
                "`return` stands inside the loop, so the function ends after the first pair",
            ),
        ),
        """def <fn>(<rows>):
    names = []
    for i in range(len(<rows>)):
        if <rows>[i][0] not in names:
            names.append(<rows>[i][0])
    <out> = {}
    for j in range(len(names)):
        t = 0
        for i in range(len(<rows>)):
            if <rows>[i][0] == names[j]:
                t = t + <rows>[i][1]
        <out>[names[j]] = t
    return <out>""",
        """assert <fn>([("a", <x>), ("b", <y>), ("a", 1)]) == {"a": <x> + 1, "b": <y>}
assert <fn>([]) == {}""",
        (
            "It goes through the pairs once.",
            "A name that is new starts at 0.",
            "The dict keeps the order of first mention.",
        ),
    ),
    Shape(
        (
            "returns the <k> largest values of a list, largest first",
            "picks the top <k> numbers out of a list in falling order",
        ),
        """def <fn>(<rows>, count=<k>):
    <out> = sorted(<rows>, reverse=True)
    return <out>[:count]""",
        (
            Fault(
                "(<rows>, reverse=True)",
                "(<rows>)",
                "I get the smallest values",
                "`sorted` puts the smallest first unless told to reverse",
            ),
            Fault("[:count]", "[:count - 1]", "one value is always missing", "the slice ends one place too early"),
        ),
        """def <fn>(<rows>, count=<k>):
    <out> = []
    copy = []
    for v in <rows>:
        copy.append(v)
    while len(<out>) < count and len(copy) > 0:
        best = copy[0]
        for v in copy:
            if v > best:
                best = v
        <out>.append(best)
        copy.remove(best)
    return <out>""",
        """assert <fn>([<x>, 1000, 1, <y>], 1) == [1000]
assert <fn>([3, 1, 2], 2) == [3, 2]
assert <fn>([]) == []""",
        (
            "A sorted copy is made, so the list itself stays as it was.",
            "The slice takes the first `count` places, or fewer if there are not enough.",
        ),
    ),
    Shape(
        (
            "returns the entries that occur more than once, each once, in order",
            "finds duplicates in a list of strings and reports every one a single time",
        ),
        """def <fn>(<rows>):
    seen, <out> = set(), []
    for <one> in <rows>:
        if <one> in seen and <one> not in <out>:
            <out>.append(<one>)
        seen.add(<one>)
    return <out>""",
        (
            Fault(
                " and <one> not in <out>",
                "",
                "something that stands there three times is reported twice",
                "nothing checks whether it was reported before",
            ),
            Fault(
                "        if <one> in seen and <one> not in <out>:\n            <out>.append(<one>)\n        "
                "seen.add(<one>)",
                "        seen.add(<one>)\n        if <one> in seen and <one> not in <out>:\n            "
                "<out>.append(<one>)",
                "everything is reported as a duplicate",
                "each entry is put into `seen` before it is looked up there",
            ),
        ),
        """def <fn>(<rows>):
    <out> = []
    for i in range(len(<rows>)):
        for j in range(len(<rows>)):
            if i < j and <rows>[i] == <rows>[j]:
                if not <rows>[i] in <out>:
                    <out>.append(<rows>[i])
    return <out>""",
        """assert <fn>(["a", "b", "a", "a"]) == ["a"]
assert <fn>(["x", "y"]) == []
assert <fn>([]) == []""",
        (
            "`seen` holds what came before, and a look-up in a set takes the same time however large it is.",
            "An entry is reported at its second occurrence only.",
        ),
    ),
    Shape(
        ("returns the moving average of a list over <k> values", "averages every run of <k> neighbouring readings"),
        """def <fn>(<rows>, width=<k>):
    <out> = []
    for start in range(len(<rows>) - width + 1):
        window = <rows>[start : start + width]
        <out>.append(sum(window) / width)
    return <out>""",
        (
            Fault(" - width + 1)", " - width)", "the last average is missing", "the range ends one start too early"),
            Fault(
                "start : start + width",
                "start : width",
                "the averages fall towards zero",
                "the slice ends at `width` instead of `start + width`",
            ),
        ),
        """def <fn>(<rows>, width=<k>):
    <out> = []
    i = 0
    while i < len(<rows>):
        if i + width <= len(<rows>):
            s = 0
            j = i
            while j < i + width:
                s = s + <rows>[j]
                j = j + 1
            <out>.append(s / width)
        i = i + 1
    return <out>""",
        """assert <fn>([<x>, <x>, <x>], 2) == [<x>, <x>]
assert <fn>([1, 2, 3, 6], 2) == [1.5, 2.5, 4.5]
assert <fn>([1], 2) == []""",
        ("A list of n values has n - width + 1 runs.", "Every run is cut out as a slice and averaged."),
    ),
    Shape(
        (
            "returns the median of a list of numbers",
            "finds the middle value of some numbers, or the mean of the two middle ones",
        ),
        """def <fn>(<rows>):
    <out> = sorted(<rows>)
    middle = len(<out>) // 2
    if len(<out>) % 2:
        return <out>[middle]
    return (<out>[middle - 1] + <out>[middle]) / 2""",
        (
            Fault(
                "sorted(<rows>)",
                "list(<rows>)",
                "the result depends on the order of the input",
                "the numbers must be sorted before there is a middle",
            ),
            Fault(
                "    return (<out>[middle - 1] + <out>[middle]) / 2",
                "    return <out>[middle]",
                "for four numbers it gives the third instead of a mean",
                "an even number of values has two in the middle",
            ),
        ),
        """def <fn>(<rows>):
    <out> = <rows>[:]
    for i in range(len(<out>)):
        for j in range(len(<out>) - 1):
            if <out>[j] > <out>[j + 1]:
                t = <out>[j]
                <out>[j] = <out>[j + 1]
                <out>[j + 1] = t
    if len(<out>) % 2 == 1:
        return <out>[len(<out>) // 2]
    else:
        return (<out>[len(<out>) // 2 - 1] + <out>[len(<out>) // 2]) / 2""",
        """assert <fn>([<y>, 1, 1000]) == <y>
assert <fn>([4, 1, 3, 2]) == 2.5
assert <fn>([<x>]) == <x>""",
        (
            "The values are sorted into a new list.",
            "With an odd number the middle one is the result, with an even number the mean of two.",
        ),
    ),
    Shape(
        (
            "adds up durations such as '1:30' and returns minutes",
            "turns a list of h:mm texts into one number of minutes",
        ),
        """def <fn>(<rows>):
    <out> = 0
    for <one> in <rows>:
        hours, _, minutes = <one>.strip().partition(":")
        <out> += int(hours) * 60 + int(minutes or 0)
    return <out>""",
        (
            Fault("int(hours) * 60", "int(hours) * 100", "an hour counts too much", "an hour has 60 minutes, not 100"),
            Fault(
                "int(minutes or 0)",
                "int(minutes)",
                "'2' without a colon stops it with a ValueError",
                "`int('')` fails where no minutes are given",
            ),
        ),
        """def <fn>(<rows>):
    <out> = 0
    for i in range(0, len(<rows>)):
        t = <rows>[i].strip()
        if ":" in t:
            p = t.split(":")
            h = p[0]
            m = p[1]
            <out> = <out> + int(h) * 60
            <out> = <out> + int(m)
        else:
            <out> = <out> + int(t) * 60
    return <out>""",
        """assert <fn>(["1:<x>", "0:<y>"]) == 60 + <x> + <y>
assert <fn>(["2"]) == 120
assert <fn>([]) == 0""",
        (
            "`partition` parts each text at the colon and always gives three pieces.",
            "Hours count sixty; missing minutes count nothing.",
        ),
    ),
    Shape(
        (
            "cuts a list into batches of at most <k> items",
            "splits a long list into pieces of <k>, the last one shorter if need be",
        ),
        """def <fn>(<rows>, size=<k>):
    <out> = []
    for start in range(0, len(<rows>), size):
        <out>.append(<rows>[start : start + size])
    return <out>""",
        (
            Fault(
                "[start : start + size]",
                "[start : start + size - 1]",
                "every batch lacks its last item",
                "a slice leaves out its end already, so nothing is to be taken off",
            ),
            Fault(
                "range(0, len(<rows>), size)",
                "range(0, len(<rows>) - size, size)",
                "the last batch never comes",
                "the range must run to the end of the list",
            ),
        ),
        """def <fn>(<rows>, size=<k>):
    <out> = []
    part = []
    for i in range(len(<rows>)):
        part.append(<rows>[i])
        if len(part) == size:
            <out>.append(part)
            part = []
    if len(part) != 0:
        <out>.append(part)
    return <out>""",
        """assert <fn>([1, 2, 3], 2) == [[1, 2], [3]]
assert sum(<fn>(list(range(<x>)), 7), []) == list(range(<x>))
assert <fn>([]) == []""",
        (
            "The starts are `size` places apart.",
            "A slice beyond the end is simply shorter, so the rest needs no extra care.",
        ),
    ),
    Shape(
        (
            "keeps every value of a list between <x> and <y> more than that by clamping",
            "clamps numbers to a range that begins at <x> and is <y> wide",
        ),
        """def <fn>(<rows>, low=<x>, width=<y>):
    high = low + width
    return [min(max(<one>, low), high) for <one> in <rows>]""",
        (
            Fault(
                "min(max(<one>, low), high)",
                "max(min(<one>, low), high)",
                "everything comes out as the upper limit",
                "`min` and `max` have been exchanged",
            ),
            Fault(
                "high = low + width",
                "high = width",
                "the upper limit is too small",
                "the width has to be added to the lower limit",
            ),
        ),
        """def <fn>(<rows>, low=<x>, width=<y>):
    r = []
    for <one> in <rows>:
        if <one> < low:
            r.append(low)
        else:
            if <one> > low + width:
                r.append(low + width)
            else:
                r.append(<one>)
    return r""",
        """assert <fn>([-5, 1, 999], 0, 10) == [0, 1, 10]
assert <fn>([<x>, 999], <x>, <y>) == [<x>, <x> + <y>]
assert <fn>([]) == []""",
        (
            "`max` lifts what is too small and `min` lowers what is too large.",
            "A new list comes back; the old one is not touched.",
        ),
    ),
    Shape(
        (
            "counts words without regard to case and punctuation",
            "returns how often every word of a text occurs, in lower case",
        ),
        """def <fn>(text):
    <out> = {}
    for <one> in text.lower().split():
        <one> = <one>.strip(".,;:!?")
        if <one>:
            <out>[<one>] = <out>.get(<one>, 0) + 1
    return <out>""",
        (
            Fault(
                "text.lower().split()",
                "text.split()",
                "'The' and 'the' are counted apart",
                "the text is not put into lower case",
            ),
            Fault(
                "text.lower().split()",
                'text.lower().split(" ")',
                "words on two lines are glued together",
                "`split(' ')` parts at blanks only, `split()` at line ends too",
            ),
        ),
        """def <fn>(text):
    <out> = {}
    words = text.split()
    for i in range(len(words)):
        w = words[i].lower()
        while len(w) > 0 and w[0] in ".,;:!?":
            w = w[1:]
        while len(w) > 0 and w[-1] in ".,;:!?":
            w = w[:-1]
        if w != "":
            if w in <out>.keys():
                <out>[w] = <out>[w] + 1
            else:
                <out>[w] = 1
    return <out>""",
        """assert <fn>("Oil, oil\\nand grease.") == {"oil": 2, "and": 1, "grease": 1}
assert <fn>("") == {}""",
        (
            "The text is lowered and parted at any white space.",
            "Marks at the ends of a word are taken off before it is counted.",
        ),
    ),
    Shape(
        ("flattens a list of lists by one level", "joins several lists into one and keeps their order"),
        """def <fn>(<rows>):
    <out> = []
    for <one> in <rows>:
        <out>.extend(<one>)
    return <out>""",
        (
            Fault(
                "<out>.extend(<one>)",
                "<out>.append(<one>)",
                "the inner lists are still there",
                "`append` adds the list itself, `extend` adds what is in it",
            ),
            Fault(
                "<out>.extend(<one>)",
                "<out> = <one>",
                "only the last inner list comes back",
                "each round replaces the result instead of adding to it",
            ),
        ),
        """def <fn>(<rows>):
    <out> = []
    for i in range(len(<rows>)):
        for j in range(len(<rows>[i])):
            <out> = <out> + [<rows>[i][j]]
    return <out>""",
        """assert <fn>([[1], [], [2, <x>]]) == [1, 2, <x>]
assert <fn>([]) == []""",
        ("Every inner list is added to the end of one result.", "Empty lists add nothing."),
    ),
    Shape(
        (
            "returns the running balance after every booking, starting from <x>",
            "takes bookings and an opening sum of <x> and lists the balance after each",
        ),
        """def <fn>(<rows>, opening=<x>):
    balance, <out> = opening, []
    for <one> in <rows>:
        balance += <one>
        <out>.append(balance)
    return <out>""",
        (
            Fault(
                "<out>.append(balance)",
                "<out>.append(<one>)",
                "it returns the bookings unchanged",
                "the booking is noted instead of the balance",
            ),
            Fault(
                "balance, <out> = opening, []",
                "balance, <out> = 0, []",
                "the opening sum is forgotten",
                "the balance starts at 0, whatever was given",
            ),
        ),
        """def <fn>(<rows>, opening=<x>):
    <out> = []
    for i in range(len(<rows>)):
        b = opening
        for j in range(i + 1):
            b = b + <rows>[j]
        <out>.append(b)
    return <out>""",
        """assert <fn>([5, -2], <x>) == [<x> + 5, <x> + 3]
assert <fn>([<y>], 0) == [<y>]
assert <fn>([]) == []""",
        ("One variable carries the balance on.", "After every booking its value is noted, so one pass is enough."),
    ),
    Shape(
        ("returns each value's share of the total in percent", "turns a dict of amounts into percentages of their sum"),
        """def <fn>(<rows>):
    total = sum(<rows>.values())
    if not total:
        return {name: 0.0 for name in <rows>}
    return {name: 100 * amount / total for name, amount in <rows>.items()}""",
        (
            Fault(
                "sum(<rows>.values())",
                "len(<rows>)",
                "the percentages add up to far more than 100",
                "it divides by the number of entries instead of by their sum",
            ),
            Fault(
                "    if not total:\n        return {name: 0.0 for name in <rows>}\n",
                "",
                "it stops with a ZeroDivisionError when all amounts are 0",
                "a total of 0 is not dealt with",
            ),
        ),
        """def <fn>(<rows>):
    total = 0
    for k in <rows>.keys():
        total = total + <rows>[k]
    d = {}
    for k in <rows>.keys():
        if total == 0:
            d[k] = 0.0
        else:
            d[k] = 100 * <rows>[k] / total
    return d""",
        """assert <fn>({"a": 1, "b": 3}) == {"a": 25.0, "b": 75.0}
assert <fn>({"a": 0}) == {"a": 0.0}
assert <fn>({}) == {}""",
        ("The sum is taken once, before the loop.", "A total of 0 has no shares, so all of them are 0."),
    ),
    Shape(
        (
            "finds the days missing between the first and the last of a sorted list of day numbers",
            "returns which numbers are left out of an unbroken count",
        ),
        """def <fn>(<rows>):
    if not <rows>:
        return []
    known = set(<rows>)
    return [<one> for <one> in range(min(<rows>), max(<rows>) + 1) if <one> not in known]""",
        (
            Fault(
                "if <one> not in known",
                "if <one> in known",
                "it returns what is there, not what is missing",
                "the condition is the wrong way round",
            ),
            Fault(
                "    if not <rows>:\n        return []\n",
                "",
                "an empty list stops it with a ValueError",
                "`min` of nothing is an error",
            ),
        ),
        """def <fn>(<rows>):
    <out> = []
    if len(<rows>) == 0:
        return <out>
    d = min(<rows>)
    while d != max(<rows>):
        f = False
        for r in <rows>:
            if r == d:
                f = True
        if f == False:
            <out>.append(d)
        d = d + 1
    return <out>""",
        """assert <fn>([<x>, <x> + 3]) == [<x> + 1, <x> + 2]
assert <fn>([4]) == []
assert <fn>([]) == []""",
        (
            "A set answers quickly whether a number is known.",
            "The range runs from the smallest to the largest number, both included.",
        ),
    ),
    Shape(
        (
            "reads lines like 'key = value' into a dict and skips comments",
            "parses settings, one 'key = value' a line, with # for comments",
        ),
        """def <fn>(text):
    <out> = {}
    for line in text.splitlines():
        line = line.strip()
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            <out>[key.strip()] = value.strip()
    return <out>""",
        (
            Fault(
                'line.partition("=")',
                'line.rpartition("=")',
                "a value that holds an = is torn apart",
                "`rpartition` parts at the last =, the key ends at the first",
            ),
            Fault(
                "<out>[key.strip()] = value.strip()",
                "<out>[key] = value",
                "the keys come with blanks at the end",
                "the blanks around = are never taken off",
            ),
        ),
        """def <fn>(text):
    <out> = {}
    l = text.splitlines()
    for i in range(len(l)):
        if l[i].strip() != "":
            if l[i].strip()[0] != "#":
                k = l[i].strip().split("=")[0].strip()
                v = "=".join(l[i].strip().split("=")[1:]).strip()
                <out>[k] = v
    return <out>""",
        """assert <fn>("a = <x>\\n# note\\nb = c=d") == {"a": "<x>", "b": "c=d"}
assert <fn>("") == {}""",
        (
            "Blank lines and comments are passed over.",
            "`partition` parts at the first =, so a value may hold more of them.",
        ),
    ),
    Shape(
        (
            "says whether two (start, end) bookings overlap",
            "checks if one interval of times meets another, touching ends not counted",
        ),
        """def <fn>(<rows>, other):
    start, end = <rows>
    return start < other[1] and other[0] < end""",
        (
            Fault(
                " and other[0] < end",
                " or other[0] < end",
                "almost everything counts as a clash",
                "both conditions must hold, so it takes `and`",
            ),
            Fault(
                "start < other[1]",
                "start <= other[1]",
                "bookings that only touch count as a clash",
                "a booking may begin when the other ends, so it takes `<`",
            ),
        ),
        """def <fn>(<rows>, other):
    a = <rows>[0]
    b = <rows>[1]
    c = other[0]
    d = other[1]
    if b <= c:
        return False
    elif d <= a:
        return False
    else:
        return True""",
        """assert <fn>((<x>, <x> + 9), (<x> + 3, <x> + 4))
assert not <fn>((1, 2), (2, 3))
assert not <fn>((2, 3), (1, 2))""",
        (
            "Two intervals meet when each begins before the other ends.",
            "With `<` instead of `<=` touching ends do not count.",
        ),
    ),
    Shape(
        (
            "takes <k> percent off all prices from <x> dollars on",
            "lowers prices of at least <x> dollars by <k> percent, rounded to cents",
        ),
        """def <fn>(<rows>, least=<x>, percent=<k>):
    <out> = {}
    for name, price in <rows>.items():
        cut = price * percent / 100 if price >= least else 0
        <out>[name] = round(price - cut, 2)
    return <out>""",
        (
            Fault(
                "price * percent / 100",
                "price * percent",
                "prices turn negative",
                "the percentage is never divided by 100",
            ),
            Fault(
                "price >= least",
                "price > least",
                "something that costs exactly the limit gets nothing off",
                "the limit itself belongs to it, so it takes `>=`",
            ),
        ),
        """def <fn>(<rows>, least=<x>, percent=<k>):
    <out> = {}
    for k in list(<rows>.keys()):
        p = <rows>[k]
        if p > least or p == least:
            q = p - p * percent / 100
            <out>[k] = round(q, 2)
        else:
            <out>[k] = round(p, 2)
    return <out>""",
        """assert <fn>({"a": 100.0, "b": 1.0}, 100, 50) == {"a": 50.0, "b": 1.0}
assert <fn>({}) == {}""",
        ("A price below the limit is cut by 0.", "The result is a new dict, rounded to cents."),
    ),
    Shape(
        ("groups words by their first letter", "sorts names into a dict from initial to list, without regard to case"),
        """def <fn>(<rows>):
    <out> = {}
    for <one> in sorted(<rows>, key=str.lower):
        <out>.setdefault(<one>[0].upper(), []).append(<one>)
    return <out>""",
        (
            Fault(
                "sorted(<rows>, key=str.lower)",
                "sorted(<rows>)",
                "lower-case names come after all others",
                "without a key, capitals sort before small letters",
            ),
            Fault(
                "<out>.setdefault(<one>[0].upper(), []).append(<one>)",
                "<out>[<one>[0].upper()] = [<one>]",
                "each letter holds one name only",
                "the list is made anew for every name",
            ),
        ),
        """def <fn>(<rows>):
    <out> = {}
    s = sorted(<rows>, key=lambda v: v.lower())
    for i in range(len(s)):
        c = s[i][0].upper()
        if c in <out>:
            l = <out>[c]
            l.append(s[i])
            <out>[c] = l
        else:
            <out>[c] = [s[i]]
    return <out>""",
        """assert <fn>(["oil", "Ash", "ant"]) == {"A": ["ant", "Ash"], "O": ["oil"]}
assert <fn>([]) == {}""",
        ("The names are sorted once, case aside.", "`setdefault` makes the list of a letter when it is met first."),
    ),
    Shape(
        (
            "finds a value in a sorted list by halving and returns its place or -1",
            "does a binary search and gives the position, -1 where the value is missing",
        ),
        """def <fn>(<rows>, wanted):
    low, high = 0, len(<rows>) - 1
    while low <= high:
        middle = (low + high) // 2
        if <rows>[middle] == wanted:
            return middle
        if <rows>[middle] < wanted:
            low = middle + 1
        else:
            high = middle - 1
    return -1""",
        (
            Fault(
                "while low <= high",
                "while low < high",
                "the last remaining value is never looked at",
                "the loop must still run when `low` and `high` meet",
            ),
            Fault(
                "if <rows>[middle] < wanted",
                "if <rows>[middle] > wanted",
                "it finds hardly anything",
                "it goes on in the wrong half",
            ),
        ),
        """def <fn>(<rows>, wanted):
    p = -1
    for i in range(len(<rows>)):
        if <rows>[i] == wanted:
            if p == -1:
                p = i
    return p""",
        """assert <fn>([1, <x>, 1000], <x>) == 1
assert <fn>([1, 3], 3) == 1
assert <fn>([1, 3], 2) == -1
assert <fn>([], 1) == -1""",
        ("Every round halves what is left to search.", "The search ends when `low` has passed `high`."),
    ),
)


def draw_names(fn: str, rng: random.Random) -> dict[str, str]:
    """Return a name or number for every mark."""
    return {
        "fn": fn,
        "rows": rng.choice(_ROWS),
        "one": rng.choice(_ONES),
        "out": rng.choice(_RESULTS),
        "k": str(rng.randint(2, 12)),
        "x": str(rng.randint(11, 59)),
        "y": str(rng.randint(11, 59)),
    }


def fill(text: str, names: Mapping[str, str]) -> str:
    """Put names and numbers in the place of the marks."""
    return _MARK.sub(lambda found: names[found[1]], text)


def break_source(shape: Shape, fault: Fault) -> str:
    """Return the function with a fault, its marks still in it."""
    return shape.source.replace(fault.right, fault.wrong, 1)


def find_code(block: str) -> Found | None:
    """Recognise a piece of code, whatever its names; braces, which prompts are stripped of, do not count."""
    bare = block.strip().translate(_BRACES)
    for shape, fault, is_clumsy, pattern in _compile():
        if found := pattern.fullmatch(bare):
            return Found(shape, fault, is_clumsy, found.groupdict())
    return None


def find_wish(request: str) -> tuple[Shape, dict[str, str]] | None:
    """Find the function a request describes, with the numbers it gives."""
    for shape, pattern in _compile_wishes():
        if found := pattern.search(request):
            return shape, found.groupdict()
    return None


@functools.cache
def _compile() -> list[tuple[Shape, Fault | None, bool, re.Pattern[str]]]:
    compiled: list[tuple[Shape, Fault | None, bool, re.Pattern[str]]] = []
    for shape in SHAPES:
        compiled.append((shape, None, False, _read_backwards(shape.source)))
        compiled.append((shape, None, True, _read_backwards(shape.clumsy)))
        compiled += [(shape, fault, False, _read_backwards(break_source(shape, fault))) for fault in shape.faults]
    return compiled


@functools.cache
def _compile_wishes() -> list[tuple[Shape, re.Pattern[str]]]:
    return [(shape, _read_backwards(does)) for shape in SHAPES for does in shape.does]


def _read_backwards(text: str) -> re.Pattern[str]:
    parts, seen = [], set[str]()
    for i, piece in enumerate(_MARK.split(text)):
        if i % 2 == 0:
            parts.append(re.escape(piece.translate(_BRACES)))
        elif piece in seen:
            parts.append(f"(?P={piece})")
        else:
            seen.add(piece)
            parts.append(rf"(?P<{piece}>\d+)" if piece in _NUMBERS else rf"(?P<{piece}>[A-Za-z_]\w*)")
    return re.compile("".join(parts))
