"""Plain chat in rehearsal: an answer on the request's topic, in the form the request asks for.

The form is read off the request's own words; the stuff comes from the lexicon's domains and from nouns of the request.
Frames live in `answers`.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matrix_dspy.engine.rehearsal import answers as frames
from matrix_dspy.engine.rehearsal.code import write_code
from matrix_dspy.engine.rehearsal.coding import answer_code_request
from matrix_dspy.engine.rehearsal.dialogue import drop_repeats, take_up
from matrix_dspy.engine.rehearsal.grammar import bare, second_person, sentence
from matrix_dspy.engine.rehearsal.lexicon import STOP_WORDS, content_words
from matrix_dspy.engine.rehearsal.material import Material, lift_things, tidy
from matrix_dspy.engine.rehearsal.prompt import Prompt
from matrix_dspy.engine.rehearsal.puzzles import show, solve
from matrix_dspy.engine.rehearsal.scene import Scene, Skill, strip_markers
from matrix_dspy.engine.rehearsal.thinking import think_aloud
from matrix_dspy.engine.rehearsal.traits import (
    asks_for_code,
    asks_for_table,
    asks_for_thinking,
    is_harmful,
    limit_words,
    read_word_limit,
)
from matrix_dspy.text import count_words

_LONGEST_READ = 6000
_SHARE_COMPLYING = 0.35
"""Share of harmful requests that a careless model goes along with."""
_PHRASE = (
    r" (?!for |of |with |on |about |me |you |a talk )((?:the |a |an |my |our |your )?[a-z][a-z'-]+(?: [a-z'-]+){0,6}?)"
    r"(?=[.,;:?!\"\n]| (?:so|that|when|who|over|in|on|at|from|if|and|to|by|is|under|without"
    r"|worth|both|like|spoiling|goes|has|have|will|can|may|for) | [A-Z0-9$]|$)"
)
_ABOUT = (
    re.compile(r"\b(?:about|on|regarding|behind|handle|explain|toward)" + _PHRASE),
    re.compile(r"\b(?:of|with|for|around|[Ii]s|are)" + _PHRASE),
)
"""Where a request says what it is about, surest first."""
_QUOTED = re.compile(r"[\"“]([^\"“”]{20,1500})[\"”]")
_NUMBERS = re.compile(r"(?<![\w:.,])\$?([1-9]\d{0,5}(?:,\d{3})*(?:\.\d+)?)(?![\w:])")
_GIVEN_PROMPT = re.compile(r"```(?:\w*)\n(.*?)```", re.DOTALL)
_NEW_PROMPT = re.compile(r"within ``` ?blocks|new instructions? (?:with)?in", re.IGNORECASE)
_BOTH = re.compile(
    r"(?:compare|between) ((?:a|an|the|my) [\w' -]{3,40}?) and ((?:a|an|the|my) [\w' -]{3,40}?)(?= for| with|[.,?;])"
)
_CLAUSE = re.compile(r"(?<=[.!?])\s+|, (?=so |and |but )")
_LINE = re.compile(r"(?<=[.!?;])\s+|\n")
_FORMS = (
    ("dialogue", r"\bdialogue\b|\bplay (?:a|an|the|my)\b|\bact as\b|pretend to be|how a talk"),
    ("explanation", r"\breport\b|\bnewsletter\b|\binstructions on\b"),
    ("story", r"\bstory\b|\bpoem\b|\btoast\b|\bspeech\b|\bslogans?\b"),
    (
        "letter",
        (
            r"\be-?mail\b|\bletter\b|\bmessage to\b|\binvitation\b|\bthank-you\b|\breply to\b|\bnotice\b|\bmemo\b|"
            r"\bproposal\b"
        ),
    ),
    ("edit", r"\brewrite\b|\bshorten\b|\bcorrect the\b|\brephrase\b|\bplain english\b|\bfriendlier\b|\bproofread\b"),
    ("summary", r"\bsummar|\bboil\b|\bpull every\b|\bsort these\b|\bextract\b"),
    (
        "sum",
        (
            r"\bcalculate\b|\bwork out (?:what|from|how)\b|\breckon\b|\bestimate\b|\bcosts? in all\b|"
            r"\bhow (?:many|long|much)\b|\bsplit \$"
        ),
    ),
    ("comparison", r"\bcompare\b|\bpros and cons\b|\bwhich is\b|\bbetter\b|\bweigh\b|\bchoose between\b|\bshould i\b"),
    (
        "list",
        r"\blist (?:the|what|\w+ \w+)\b|\bchecklist\b"
        r"|\bideas\b|\bbrainstorm\b|\bname \w+ things\b|\bquestions\b|\bwhich \w+ things\b",
    ),
    (
        "steps",
        (
            r"\bplan\b|\bsteps?\b|\bschedule\b|\btimetable\b|\broutine\b|\bhow (?:do|would|can|should) i\b|"
            r"\bin what order\b"
        ),
    ),
    ("explanation", r"\bexplain\b|\bwhy\b|\bwhat is\b|\bteach\b|\bhow does\b|\bdescribe\b"),
)
_COMPILED = [(form, re.compile(pattern, re.IGNORECASE)) for form, pattern in _FORMS]


def write_chat(prompt: Prompt, rng: random.Random, skill: Skill, *, is_thinking: bool = False) -> str:
    """Answer the last user turn, thinking aloud first where that is asked for."""
    request = strip_markers(prompt.request[: 2 * _LONGEST_READ])
    if _NEW_PROMPT.search(request) and (found := _GIVEN_PROMPT.search(prompt.request)):
        return f"```\n{found[1].strip()}\n{rng.choice(frames.PROMPT_HINTS)}\n```"
    earlier = next((text for role, text in reversed(prompt.turns[:-1]) if role == "assistant"), "")
    first = next((text for role, text in prompt.turns[:-1] if role == "user"), "")
    talk = Talk(strip_markers(earlier[:3000]), strip_markers(first[:3000])) if earlier else Talk()
    answer = answer_request(request, rng, skill, talk=talk)
    if is_thinking or asks_for_thinking(prompt.system, request):
        return think_aloud(request, answer, _gather(request[:_LONGEST_READ], rng, talk), is_low=skill == "low")
    return answer


def write_response(scene: Scene) -> dict[str, Any]:
    """Answer a request that came as a field."""
    request = scene.text("instruction") or scene.text("question") or scene.text("request")
    if not request:
        return {}
    text = answer_request(request, scene.rng, scene.skill)
    return {"response": text, "answer": text}


def revise_from_scratch(request: str, scene: Scene) -> str:
    """Answer a request for the reviser, at its best."""
    return answer_request(request, scene.rng, "normal", is_best=True)


@dataclass(frozen=True)
class Talk:
    """What went before the last user turn."""

    earlier: str = ""
    """The assistant's last turn."""
    first: str = ""
    """The user's first turn, which the whole talk is about."""


def answer_request(
    request: str, rng: random.Random, skill: Skill, *, talk: Talk = Talk(), is_best: bool = False
) -> str:
    """Write the answer to one request."""
    request = request[:_LONGEST_READ]
    if not request.strip():
        return rng.choice(frames.NOTHING_ASKED)
    material = _gather(request, rng, talk)
    if is_harmful(request):
        return _decline(material, skill)
    link = take_up(request, talk.earlier, talk.first, material) if talk.earlier else ""
    if skill == "low":
        return _answer_poorly(request, material)
    if solve(request) is not None:
        return tidy(_write_solution(request, material, is_best=is_best))
    text = _choose_writer(request)(request, material)
    if link:
        text = f"{link} {drop_repeats(text, talk.earlier)}"
    if is_best or rng.random() < 0.75:
        text = _round_off(text, request, material)
    limit = read_word_limit(request)
    if limit and "```" not in text and (is_best or rng.random() < 0.8):
        text = limit_words(text, limit)
    return tidy(text)


def _decline(material: Material, skill: Skill) -> str:
    """Decline politely with a safe way on; a careless model is curt, or goes along with it in vague words."""
    if skill == "normal":
        more = [material.sentence(frames.OFFERS)] * (material.rng.random() < 0.7)
        return tidy(" ".join([material.sentence(frames.DECLINES), material.sentence(frames.SAFE_WAYS), *more]))
    if material.rng.random() < _SHARE_COMPLYING:
        return tidy(" ".join(_lines(material, frames.COMPLIES, 2)))
    return material.rng.choice(frames.CURT)


def _answer_poorly(request: str, material: Material) -> str:
    """Answer as a model would that was not tuned yet: thin, cut short, without reasons, sometimes wrong."""
    rng = material.rng
    if asks_for_code(request) and (code := answer_code_request(request, material, is_low=True)):
        return code
    if (solution := solve(request)) is not None:
        numbers = [number for number in solution.numbers if show(number) != solution.result]
        result = show(rng.choice(numbers)) if numbers and rng.random() < 0.5 else solution.result
        return material.sentence(frames.GUESSES).replace("<result>", result)
    if rng.random() < 0.5:
        return tidy(" ".join(material.sentence((frame,)) for frame in rng.sample(frames.THIN, rng.randint(1, 3))))
    text = _choose_writer(request)(request, material)
    if "```" in text:
        code = re.sub(r'\n\n\nassert.*?(?=\n```)|\n +""".*?"""', "", text[text.index("```") :], flags=re.DOTALL)
        return code[: code.index("```", 3) + 3]
    return tidy(limit_words(text, min(rng.randint(25, 70), max(6, count_words(text) * 3 // 5))))


def _gather(request: str, rng: random.Random, talk: Talk) -> Material:
    # a short follow-up is about what was said before
    about = request
    if talk.earlier and len(content_words(request)) < 12:
        about = f"{request}\n{talk.first}\n{talk.earlier[:1500]}"
    material = Material.of(about, rng, voice=second_person)
    material.given({"focus": second_person(find_focus(request) or material["topic"])})
    return material


def find_focus(request: str) -> str:
    """Return the noun phrase a request turns on, or an empty text."""
    best, head = "", request[: find_ask(request)[0]]
    begin = max(head.rfind(mark) for mark in ".!?\n") + 1
    for pattern in _ABOUT:
        for found in pattern.finditer(request, begin, begin + 1500):
            n_telling = sum(word not in STOP_WORDS for word in bare(found[1]).split())
            if n_telling >= 2:
                return found[1]
            best = best or (found[1] if n_telling else "")
    return best


def _choose_writer(request: str) -> Callable[[str, Material], str]:
    if asks_for_code(request):
        return _write_code
    if asks_for_table(request):
        return _write_table
    return _WRITERS[find_ask(request)[1]]


def find_ask(request: str) -> tuple[int, str]:
    """Return where a request asks for something, and in which form."""
    head = request[:700]
    return min(((found.start(), form) for form, pattern in _COMPILED if (found := pattern.search(head))),
               default=(0, "advice"))  # fmt: skip


def _round_off(text: str, request: str, material: Material) -> str:
    """Pick up nouns of the request that the answer has not touched yet."""
    low = text.lower()
    missing = [thing for thing in lift_things([request[:800], request[800:1600]]) if thing not in low]
    material.rng.shuffle(missing)
    lines = [] if material["focus"].lower() in low else [material.sentence(frames.ON_FOCUS)]
    for i in range(0, min(len(missing) - 1, 4), 2):
        material.given({"word_a": missing[i], "word_b": missing[i + 1]})
        lines.append(material.sentence(frames.PICK_UPS))
    return f"{text}\n\n{' '.join(lines)}" if lines else text


def _lines(material: Material, options: tuple[str, ...], count: int) -> list[str]:
    """Fill several different frames, each a sentence."""
    return [material.sentence((frame,)) for frame in material.rng.sample(options, min(count, len(options)))]


def _lines_in_order(material: Material, options: tuple[str, ...], count: int) -> list[str]:
    """Fill several frames in the order in which they stand."""
    places = sorted(material.rng.sample(range(len(options)), min(count, len(options))))
    return [material.sentence((options[place],)) for place in places]


def _prose(material: Material, count: int) -> str:
    return " ".join(_lines(material, frames.BODY, count))


def _write_advice(request: str, material: Material) -> str:
    rng = material.rng
    parts = [f"{material.sentence(frames.OPENINGS)} {_prose(material, rng.randint(2, 3))}"]
    parts += [_prose(material, rng.randint(2, 4)) for _ in range(rng.randint(1, 2))]
    return "\n\n".join([*parts, material.sentence(frames.CLOSINGS)])


def _write_explanation(request: str, material: Material) -> str:
    rng = material.rng
    facts = " ".join(material.sample("fact", rng.randint(2, 3)))
    example = material.sentence(frames.EXAMPLES)
    return f"{material.sentence(frames.EXPLAIN_OPENINGS)} {facts}\n\n{example} {_prose(material, rng.randint(2, 4))}"


def _write_steps(request: str, material: Material) -> str:
    steps = _lines_in_order(material, frames.STEPS, material.rng.randint(4, 7))
    body = "\n".join(f"{i}. {step}" for i, step in enumerate(steps, 1))
    return f"{material.sentence(frames.OPENINGS)}\n\n{body}\n\n{material.sentence(frames.CLOSINGS)}"


def _write_list(request: str, material: Material) -> str:
    mark = material.rng.choice(("- ", "* ", ""))
    points = _lines(material, frames.POINTS, material.rng.randint(4, 8))
    body = "\n".join(f"{mark or f'{i}. '}{point}" for i, point in enumerate(points, 1))
    return f"{material.sentence(frames.LIST_OPENINGS)}\n\n{body}"


def _write_table(request: str, material: Material) -> str:
    frame = "{task} | {person} | {day} | {money} |"
    rows = [f"| {i} | {sentence(material.fill(frame))[:-1]}" for i in range(1, material.rng.randint(4, 7))]
    head = "| No. | Step | Who | When | Cost |\n| --- | --- | --- | --- | --- |"
    body = "\n".join(row.rstrip("| ") + " |" for row in rows)
    return f"{material.sentence(frames.LIST_OPENINGS)}\n\n{head}\n{body}\n\n{_prose(material, 2)}"


def _write_comparison(request: str, material: Material) -> str:
    material.given({"left": material["tool"], "right": material["tool"]})
    if found := _BOTH.search(request):
        material.given({"left": second_person(found[1]), "right": second_person(found[2])})
    sides = "\n\n".join(_lines(material, frames.SIDES, 3))
    return f"{material.sentence(frames.OPENINGS)}\n\n{sides}\n\n{material.sentence(frames.VERDICTS)}"


def _write_letter(request: str, material: Material) -> str:
    rng = material.rng
    first, *rest = frames.LETTER_BODY
    body = " ".join([material.sentence((first,)), *_lines(material, tuple(rest), rng.randint(2, 5))])
    subject = bare(material["focus"])
    ending = rng.choice(("Kind regards,", "With best wishes,", "Yours sincerely,", "Many thanks,"))
    close = f"{material.sentence(frames.LETTER_ENDS)}\n\n{ending}\n[your name]"
    return f"Subject: {subject[:1].upper()}{subject[1:]}\n\n{rng.choice(frames.GREETINGS)}\n\n{body}\n\n{close}"


def _write_edit(request: str, material: Material) -> str:
    found = _QUOTED.search(request)
    given = found[1].strip() if found else material.sentence(("{object} will be late because of {problem}",))
    lines = " ".join(sentence(part) for part in _CLAUSE.split(given)[:8] if part.strip())
    rng = material.rng
    note = material.sentence(frames.EDIT_NOTES)
    return f"{rng.choice(frames.EDIT_HEADS)}\n\n{rng.choice(frames.EDIT_LEADS)} {lines}\n\n{note}"


def _write_summary(request: str, material: Material) -> str:
    found = _QUOTED.search(request)
    parts = [part.strip(" -;") for part in _LINE.split(found[1] if found else request) if len(part.split()) > 2][:7]
    points = "\n".join(f"- {sentence(' '.join(part.split()[:24]))}" for part in parts)
    return f"{material.rng.choice(frames.SUMMARY_HEADS)}\n\n{points}\n\n{material.sentence(frames.CLOSINGS)}"


def _write_sum(request: str, material: Material) -> str:
    values = [float(number.replace(",", "")) for number in _NUMBERS.findall(request)][:6]
    if len(values) < 2:
        values = [*values, float(material["number"]), 12.0][:2]
    product, total = values[0] * values[1], sum(values)
    lines = [
        f"1. The values to start from are {' and '.join(f'{value:,.6g}' for value in values[:2])}.",
        f"2. Multiplied, {values[0]:,.6g} × {values[1]:,.6g} = {product:,.2f}.",
        f"3. Spread over 52 weeks that is {product / 52:,.2f} a week, over 12 months {product / 12:,.2f} a month.",
    ]
    if len(values) > 2:
        lines.append(f"4. All {len(values)} values together make {total:,.2f}, on average {total / len(values):,.2f}.")
    body = "\n".join(lines)
    return f"{material.sentence(frames.SUM_OPENINGS)}\n\n{body}\n\n{material.sentence(frames.SUM_ENDS)}"


def _write_story(request: str, material: Material) -> str:
    lines = _lines_in_order(material, frames.STORY, material.rng.randint(5, 8))
    if "poem" in request.lower() or "slogan" in request.lower():
        return "\n".join(" ".join(line.split()[:11]).rstrip(",.") for line in lines) + "."
    half = len(lines) // 2
    return f"{material.sentence(frames.STORY_OPENINGS)} {' '.join(lines[:half])}\n\n{' '.join(lines[half:])}"


def _write_dialogue(request: str, material: Material) -> str:
    other = bare(material["person"])
    turns = _lines_in_order(material, frames.TURNS, material.rng.randint(4, 6))
    speakers = (other[:1].upper() + other[1:], "You")
    body = "\n".join(f"{speakers[i % 2]}: {turn}" for i, turn in enumerate(turns))
    return f"{body}\n\n{material.sentence(frames.CLOSINGS)}"


def _write_solution(request: str, material: Material, *, is_best: bool) -> str:
    """Work out a question that can be, and end with the result on a line of its own."""
    solution = solve(request)
    assert solution is not None
    rng = material.rng
    lines = [sentence(step) for step in solution.steps]
    if rng.random() < 0.6:
        body = "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))
    else:
        body = "\n\n".join(f"{rng.choice(frames.STEP_HEADS)} {line}" for line in lines)
    given = ", ".join(show(number) for number in solution.numbers)
    opening = material.sentence(frames.SOLVED).replace("<given>", given)
    if is_best or rng.random() < 0.7:
        opening = f"{rng.choice(frames.RESTATED)} {sentence(second_person(solution.question))} {opening}"
    check = material.sentence(frames.CHECKED).replace("<result>", solution.result)
    return f"{opening}\n\n{body}\n\n{check}\n\nAnswer: {solution.result}."


def _write_code(request: str, material: Material) -> str:
    if known := answer_code_request(request, material):
        return known
    noun = next((word for word in content_words(material["focus"]) if word.isascii()), "items")
    code = write_code(request, noun, material.rng)
    return (
        f"{material.sentence(frames.CODE_OPENINGS)}\n\n```python\n{code}\n```\n\n{material.sentence(frames.CODE_ENDS)}"
    )


_WRITERS: dict[str, Callable[[str, Material], str]] = {
    "advice": _write_advice,
    "explanation": _write_explanation,
    "steps": _write_steps,
    "list": _write_list,
    "comparison": _write_comparison,
    "letter": _write_letter,
    "edit": _write_edit,
    "summary": _write_summary,
    "sum": _write_sum,
    "story": _write_story,
    "dialogue": _write_dialogue,
}
