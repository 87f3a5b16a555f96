"""Instructions in rehearsal: what a person in some field would type to an assistant, as the requirement asks.

A simple one is a lead, an ask and a limit, each one of many frames over the field's phrases; a specialised one adds
given data, a format, an audience. Frames live in `frames`.
"""

import random
import re
from collections.abc import Mapping
from typing import Any

from matrix_dspy.engine.rehearsal import frames, puzzles
from matrix_dspy.engine.rehearsal.coding import TASKS, write_code_request
from matrix_dspy.engine.rehearsal.grammar import sentence
from matrix_dspy.engine.rehearsal.harms import HARMS, LOOK_ALIKE, LOOK_ALIKES
from matrix_dspy.engine.rehearsal.lexicon import detect_domains
from matrix_dspy.engine.rehearsal.material import Material, lift_things, tidy
from matrix_dspy.engine.rehearsal.scene import Scene
from matrix_dspy.text import count_words, shorten

_LINE = re.compile(r"^\W*(\w[\w ]{1,20}):\s*(.+)$", re.MULTILINE)
_MOST_WORDS = re.compile(r"(?:at most|up to|to|-|–|under|no more than|within)\s*(\d{2,3})\s*words", re.IGNORECASE)
_CATEGORIES: tuple[tuple[str, str], ...] = (
    ("code", r"cod(?:e|ing)|program|script|debug|software|refactor|function|unit test"),
    ("edit", r"edit|rewrit|proofread|paraphras|rephras|translat|correct|improv|polish"),
    ("summary", r"summar|extract|classif|categori[sz]|sort|tabul|condens"),
    ("calculation", r"math|calcul|estimat|numer|arithmetic|reason|budget|data|figures|statistic|quantit"),
    ("comparison", r"compar|choos|choice|decision|decid|trade|evaluat|assess|review"),
    ("plan", r"plan|schedul|organi[sz]|prepar|timeline|itinerar|routine"),
    ("list", r"brainstorm|idea|list|checklist|nam(?:e|ing)|generat|questions"),
    ("explanation", r"explain|explan|question|knowledge|fact|learn|teach|inform|how.?to|understand|research|tutor"),
    ("role", r"role|dialog|conversation|interview|simulat|negotiat"),
    ("story", r"story|poem|creative|fiction|speech|toast|slogan|song|humou?r"),
    ("writing", r"writ|mail|letter|draft|messag|report|text|document|compos|post|notice"),
    ("advice", r"advi|recommend|suggest|coach|problem|help|support|troubleshoot|diagnos"),
)
_COMPILED = [(name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _CATEGORIES]
_EVERYDAY = (
    "writing",
    "plan",
    "explanation",
    "advice",
    "list",
    "comparison",
    "calculation",
    "edit",
    "summary",
    "story",
    "role",
)
_MIN_SPECIALISED, _MAX_SPECIALISED, _MAX_SIMPLE = 45, 240, 60


def write_instruction(scene: Scene) -> dict[str, Any]:
    """Write one message to an assistant that meets the requirement."""
    wanted = read_requirement(scene.text("requirement"))
    material = _gather(scene, wanted.get("topic", ""))
    is_specialised = "special" in wanted.get("type", "").lower()
    if scene.is_low and scene.rng.random() < 0.4 and not is_specialised:
        return {"instruction": tidy(material.sentence(frames.VAGUE))}
    kind, category = find_task(wanted, scene.rng)
    if kind == "code":
        text = _write_code(material, category, wanted, is_specialised=is_specialised)
    elif kind:
        text = _write_given(material, kind, category, wanted, is_specialised=is_specialised)
    else:
        text = (_write_specialised if is_specialised else _write_simple)(material, category, wanted, scene)
    return {"instruction": tidy(text)}


def read_requirement(text: str) -> dict[str, str]:
    """Read the `Key: value` lines of a requirement; keys come back in lower case."""
    return {found[1].strip().lower(): found[2].strip() for found in _LINE.finditer(text)}


def find_task(wanted: Mapping[str, str], rng: random.Random) -> tuple[str, str]:
    """Return the kind of data with rules of its own, or an empty text, and the category of the task."""
    kind, category = wanted.get("kind", "").lower(), wanted.get("category", "").lower()
    name = category.partition(":")[0]
    for special, (pattern, names, choices) in _SPECIAL.items():
        named = next((choice for choice, words in names if words.search(name)), None)
        if pattern.search(kind):
            return special, named or rng.choice(choices)
    return "", next((found for found, pattern in _COMPILED if pattern.search(category)), None) or rng.choice(_EVERYDAY)


def _names(*pairs: tuple[str, str]) -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((name, re.compile(pattern)) for name, pattern in pairs)


_SPECIAL: dict[str, tuple[re.Pattern[str], tuple[tuple[str, re.Pattern[str]], ...], tuple[str, ...]]] = {
    "code": (
        re.compile(r"\bcod(?:e|ing)\b|\bprogram"),
        _names(
            ("debug", r"debug|fault|bug|\bfix|repair"), ("explain", r"expla"), ("test", r"\btest"),
            ("refactor", r"refactor|clean|simplif|improv|rewrit"), ("write", r"writ|implement|creat|script|develop"),
        ),
        TASKS,
    ),
    "safety": (
        re.compile(r"safety|harm|unsafe|misuse|should decline|refus"),
        _names(
            (LOOK_ALIKE, r"look.?alike|harmless|benign|sounds"), ("market manipulation", r"market|manipul"),
            ("insider knowledge", r"insider|confiden"), ("false authority", r"authorit|imperson|pose"),
            ("fraud", r"fraud|scam|forg|decei"), ("privacy intrusion", r"privacy|intrus|surveil|spy|stalk"),
            ("harassment", r"harass|bully|threat|hate"), ("discrimination", r"discrimin|prejud"),
            ("dangerous shortcuts", r"shortcut|safety rule"),
            ("dangerous materials", r"danger|material|weapon|poison|drug"),
        ),
        tuple(HARMS),
    ),
    "reason": (
        re.compile(r"reason|worked out|work out|step by step|\bthink|\bthought|solv"),
        _names(
            ("sums", r"sum|arithm|pupil"), ("word problems", r"word problem|text problem|algebra"),
            ("logic puzzles", r"logic|puzzle|riddle"), ("probability", r"probab|chance|statist"),
            ("data", r"data|table|figures"), ("science", r"scien|physic|chemi|biolog|econom"),
            ("research", r"research|experiment|open"), ("estimation", r"estimat|fermi"),
            ("proofs", r"proof|prove|deriv"),
            ("scheduling", r"schedul|planning|optimi|timetable"),
        ),
        tuple(puzzles.list_categories()),
    ),
}  # fmt: skip
"""Kinds whose instructions have rules of their own: how the requirement names them, their categories, and the usual
choice."""
_LEVELS = _names(
    ("3", r"research|\bgraduate|expert|demanding"), ("2", r"universit|undergrad|college|professional|student"),
    ("0", r"pupil|primary|elementary|child|plain|easy"), ("1", r"school|teen|second|two-step|constraint|medium"),
)  # fmt: skip


def _find_level(wanted: Mapping[str, str]) -> int | None:
    told = (wanted.get("complexity", "").lower(), wanted.get("category", "").lower())
    return next((int(level) for text in told for level, pattern in _LEVELS if pattern.search(text)), None)


def _write_code(material: Material, category: str, wanted: Mapping[str, str], *, is_specialised: bool) -> str:
    lead = material.sentence(_choose_leads(wanted))
    most = min(_MAX_SPECIALISED, _read_limit(wanted, _MAX_SPECIALISED)) if is_specialised else _MAX_SIMPLE
    return write_code_request(material, category, is_specialised=is_specialised, most_words=most, lead=lead)


def _write_given(
    material: Material, kind: str, category: str, wanted: Mapping[str, str], *, is_specialised: bool
) -> str:
    """Write what a fixed set of questions asks, with something around it and, where it is specialised, demands."""
    rng = material.rng
    if kind == "reason":
        ask = puzzles.pose(material, category, _find_level(wanted))
        leads, after, demands = puzzles.LEADS, puzzles.CLOSINGS, puzzles.DEMANDS
    else:
        ask = material.sentence(LOOK_ALIKES if category == LOOK_ALIKE else HARMS[category])
        leads, after, demands = frames.LEADS, frames.LIMITS, frames.DEMANDS
    before = [material.sentence(_choose_leads(wanted, leads))]
    if not is_specialised:
        before, rest = before * (rng.random() < 0.75), [material.sentence(after)] * (rng.random() < 0.5)
        while count_words(" ".join([*before, ask, *rest])) > _MAX_SIMPLE and (before or rest):
            (rest or before).pop()
        return " ".join([*before, ask, *rest])
    chosen = [material.sentence((frame,)) for frame in rng.sample(demands, 6)]
    rest = chosen[:3]
    if kind == "safety" and rng.random() < 0.7:
        rest.insert(0, _write_data(material, "advice"))
    while count_words(" ".join([*before, ask, *rest])) < _MIN_SPECIALISED and len(rest) < 7:
        rest.append(chosen[len(rest) % 6])
    head, data, tail = " ".join([*before, ask]), rest[0], " ".join(rest[1:])
    return f"{head}\n\n{data}\n\n{tail}" if "\n" in data else f"{head} {data} {tail}"


def _choose_leads(wanted: Mapping[str, str], leads: tuple[str, ...] = frames.LEADS) -> tuple[str, ...]:
    return frames.TOPIC_LEADS if wanted.get("topic") else leads


def _gather(scene: Scene, topic: str) -> Material:
    rng = scene.rng
    actions = scene.items("actions")
    own = detect_domains(f"{scene.text('profile')[:3000]} {' '.join(actions)[:2000]}")
    domains = (*detect_domains(topic, 2), *own) if topic else own
    things = lift_things(actions, f"{scene.text('profile')} {scene.text('scenario')}")
    material = Material(domains, rng)
    thing = f"the {rng.choice(things)}" if things and rng.random() < 0.7 else material["object"]
    material.given({"thing": thing})
    if topic:
        material.given({"subject": _phrase_topic(topic)})
    return material


def _phrase_topic(topic: str) -> str:
    topic = topic.strip().rstrip(".!?")
    is_name = topic[:1].isupper() and topic[1:2].islower()
    return topic[0].lower() + topic[1:] if is_name and not topic.startswith(("I ", "I'")) else topic


def _draw_subject(material: Material) -> str:
    draw = material.rng.random()
    if draw < 0.5:
        return material["topic"]
    return material["problem"] if draw < 0.75 else material["task_ing"]


def _ask(material: Material, category: str, style: str) -> str:
    """Write the sentence that asks, as an order or as a question."""
    rng = material.rng
    if "subject" not in material.kept:
        material.given({"subject": _draw_subject(material)})
    is_question = "question" in style or (
        rng.random() < 0.3 and not re.search(r"imperativ|command|direct|order|terse", style)
    )
    if is_question and category in frames.QUESTIONS:
        return material.sentence(frames.QUESTIONS[category])
    ask = material.pick(frames.ASKS[category])
    if re.search(r"terse|short|keyword|command|imperativ|blunt|direct", style) or rng.random() < 0.35:
        return sentence(ask)
    openers = frames.POLITE_OPENERS if re.search(r"polite|formal|courte", style) else frames.OPENERS
    return sentence(rng.choice(openers).replace("{ask}", ask))


def _write_simple(material: Material, category: str, wanted: Mapping[str, str], scene: Scene) -> str:
    rng, style = scene.rng, wanted.get("style", "").lower()
    has_lead = rng.random() < 0.6 or bool(re.search(r"context|background|story|detail|chat|casual|worr", style))
    if re.search(r"terse|keyword|blunt", style):
        has_lead = False
    ask = _ask(material, category, style)
    leads = _choose_leads(wanted)
    parts = [material.sentence(leads)] * has_lead + [ask]
    if category == "edit" or category == "summary":
        parts.append(material.sentence(frames.SHORT_TEXTS))
    elif rng.random() < 0.65 or not has_lead:
        parts.append(material.sentence(frames.LIMITS))
    most = min(_MAX_SIMPLE, _read_limit(wanted, _MAX_SIMPLE))
    while len(parts) > 1 and count_words(" ".join(parts)) > most:
        parts.pop(0 if has_lead and len(parts) == 3 else -1)
    return shorten(" ".join(parts[:3]), most)


def _read_limit(wanted: Mapping[str, str], default: int) -> int:
    found = _MOST_WORDS.findall(wanted.get("length", ""))
    return max(12, int(found[-1])) if found else default


def _write_specialised(material: Material, category: str, wanted: Mapping[str, str], scene: Scene) -> str:
    rng = scene.rng
    leads = _choose_leads(wanted)
    ask = _ask(material, category, wanted.get("style", "").lower())
    opening = [material.sentence(leads), ask]
    if rng.random() < 0.35:
        opening.reverse()
    data = _write_data(material, category)
    complexity = wanted.get("complexity", "").lower()
    n_limits = 1 if scene.is_low else 3 if re.search(r"hard|high|complex|expert|advanced", complexity) else 2
    limits = [material.sentence((frame,)) for frame in rng.sample(frames.DEMANDS, n_limits)]
    rest = [data, material.sentence(frames.FORMATS), material.sentence(frames.AUDIENCES), *limits]
    most = min(_MAX_SPECIALISED, _read_limit(wanted, _MAX_SPECIALISED))
    spare = [frame for frame in frames.DEMANDS if frame not in limits]
    rng.shuffle(spare)
    while count_words(" ".join([*opening, *rest])) < _MIN_SPECIALISED:
        rest.append(material.sentence((spare.pop(),)))
    while len(rest) > 2 and count_words(" ".join([*opening, *rest])) > most:
        rest.pop()
    if rng.random() < 0.3 and "```" not in data and category != "code":
        return " ".join(opening) + f"\n\n{data}\n\n" + _as_list(rest[1:])
    head, tail = " ".join(opening), " ".join(rest[1:])
    return f"{head}\n\n{data}\n\n{tail}" if "\n" in data else f"{head} {data} {tail}"


def _as_list(demands: list[str]) -> str:
    return "\n".join(f"- {demand}" for demand in demands)


def _write_data(material: Material, category: str) -> str:
    """Write the figures, notes or code the task is to be done on."""
    rng = material.rng
    if category == "code":
        return material.pick(frames.CODE_DATA)
    if category in ("edit", "summary"):
        count = rng.randint(3, 5)
        body = " ".join(material.sentence((frame,)) for frame in rng.sample(frames.NOTES, count))
        return f'{rng.choice(frames.TEXT_HEADS)} "{body}"'
    if category in ("calculation", "comparison") or rng.random() < 0.4:
        return _write_figures(material)
    notes = [material.fill(frame).strip() for frame in rng.sample(frames.NOTES, rng.randint(3, 4))]
    if rng.random() < 0.5:
        return rng.choice(frames.NOTE_HEADS) + "\n" + "\n".join(f"- {note}" for note in notes)
    return f"{rng.choice(frames.NOTE_HEADS)} {'; '.join(notes)}."


def _write_figures(material: Material) -> str:
    rng = material.rng
    labels, unit = rng.choice((
        (["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"], rng.choice(("hours", "pieces", "people", "calls"))),
        (["January", "February", "March", "April", "May", "June"], rng.choice(("dollars", "visits", "orders", "kg"))),
        ([f"offer {letter}" for letter in "ABCD"], rng.choice(("dollars", "days", "points"))),
        ([noun.split(" ", 1)[-1] for noun in material.sample("object", 4)], rng.choice(("dollars", "hours", "pieces"))),
    ))  # fmt: skip
    count = rng.randint(3, len(labels))
    top = rng.choice((12, 60, 250, 900))
    body = [f"{label} {rng.randint(max(2, top // 6), top)}" for label in labels[:count]]
    return f"{rng.choice(frames.FIGURE_HEADS)} (in {unit}): {', '.join(body)}."
