"""The rehearsal on the six kinds: instructions of each, answers that fit, talk, thinking, verdicts."""

import ast
import asyncio
import random
import re
import statistics
import subprocess
import sys
from collections import Counter
from typing import Any

import aiohttp
import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from matrix_dspy.config import KindConfig, load_kind
from matrix_dspy.curation.base import Candidate, build_shingles, measure_jaccard
from matrix_dspy.curation.filters import SelfContainedFilter, find_refusal
from matrix_dspy.engine.base import Request, Sampling
from matrix_dspy.engine.rehearsal import shapes
from matrix_dspy.engine.rehearsal.engine import Dials, RehearsalEngine, part_thinking, write_completions
from matrix_dspy.engine.rehearsal.harms import HARMS, LOOK_ALIKES
from matrix_dspy.engine.rehearsal.lexicon import load_lexicon
from matrix_dspy.engine.rehearsal.material import Material
from matrix_dspy.engine.rehearsal.puzzles import list_categories, pose, solve
from matrix_dspy.engine.rehearsal.server import start_rehearsal_server
from matrix_dspy.engine.rehearsal.traits import is_harmful, is_refusal
from matrix_dspy.errors import ConfigError
from matrix_dspy.programs import critique, instruction, judge
from matrix_dspy.text import count_words, estimate_tokens

ADAPTER = dspy.ChatAdapter()
THINKING = Sampling(max_tokens=16384, chat_template_kwargs={"enable_thinking": True})
PLAIN = Sampling(max_tokens=16384)
KINDS = ("code", "safety", "reason", "dpo", "multiturn")
LENGTHS = {"simple": (5, 60), "specialised": (40, 250)}


def say(text: str, spec: str = "rehearsal", sampling: Sampling = PLAIN) -> str:
    return write_completions(Dials.from_spec(spec), [{"role": "user", "content": text}], sampling)[0][0]


def talk(turns: list[str]) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return write_completions(Dials(), messages, PLAIN)[0][0]


def ask(signature: type[dspy.Signature], spec: str = "rehearsal", **inputs: Any) -> dict[str, Any]:
    text = write_completions(Dials.from_spec(spec), ADAPTER.format(signature, [], inputs), PLAIN)[0][0]
    return ADAPTER.parse(signature, text)


def build_agents(n: int) -> list[tuple[str, list[str]]]:
    rng, domains = random.Random(3), load_lexicon().domains
    agents = []
    for i in range(n):
        job, hobby = rng.choice(domains), rng.choice(domains)
        about = f"Agent {i} works in {job.label} ({job.keywords[0]}, {job.keywords[1]}) and likes {hobby.label}."
        agents.append((about, [f"They tried to {task}." for task in rng.sample(job.tasks, 4)]))
    return agents


AGENTS = build_agents(40)


def write_requirement(kind: KindConfig, kind_of: Any, rng: random.Random, place: int) -> tuple[str, str]:
    category = kind.categories[place % len(kind.categories)]
    level, style = rng.choice(kind.complexities[kind_of]), rng.choice(kind.styles)
    lines = [
        f"Kind: {kind.requirement}",
        f"Type: {kind_of}",
        f"Category: {category.name}: {category.text}",
        f"Complexity: {level.name}: {level.text}",
        f"Style: {style.name}: {style.text}",
        f"Length: {kind.lengths[kind_of]}",
        "Language: English",
    ]
    return category.name, "\n".join(lines)


def write_instructions(name: str, kind_of: str, n: int = 120) -> list[tuple[str, str]]:
    rng, kind, written = random.Random(5), load_kind(name), []
    for i in range(n):
        profile, actions = AGENTS[i % len(AGENTS)]
        category, requirement = write_requirement(kind, kind_of, rng, i // len(AGENTS) + i)
        found = ask(instruction.WriteInstruction, profile=profile, actions=[f"Round {i}.", *actions],
                    scenario=" ".join(actions), requirement=requirement)  # fmt: skip
        written.append((category, found["instruction"]))
    return written


@pytest.fixture(scope="module")
def written() -> dict[tuple[str, str], list[tuple[str, str]]]:
    return {(name, kind_of): write_instructions(name, kind_of) for name in KINDS for kind_of in LENGTHS}


def share_surviving(texts: list[str]) -> float:
    """Share of texts that are no near copy of an earlier one: runs of 2 words, Jaccard below 0.5."""
    kept: list[frozenset[str]] = []
    for text in texts:
        shingles = build_shingles(text, 2)
        if all(measure_jaccard(shingles, other) < 0.5 for other in kept):
            kept.append(shingles)
    return len(kept) / len(texts)


def read_code(text: str) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return block


# instructions


@pytest.mark.parametrize("kind_of", LENGTHS)
@pytest.mark.parametrize("name", KINDS)
def test_instructions_of_a_kind_vary_keep_their_length_and_stand_alone(name: str, kind_of: str, written: Any) -> None:
    texts = [text for _, text in written[name, kind_of]]
    least, most = LENGTHS[kind_of]
    check = SelfContainedFilter()

    assert share_surviving(texts) >= 0.7
    assert all(least <= count_words(text) <= most for text in texts)
    assert not any(check.judge(Candidate("", text)) for text in texts)


def test_code_to_be_worked_on_stands_in_the_request(written: Any) -> None:
    for category, text in written["code", "simple"] + written["code", "specialised"]:
        assert ("```python" in text) == (category != "write")
        if category != "write":
            ast.parse(read_code(text))


def test_harm_and_harmless_look_alikes_are_told_apart() -> None:
    for seed in range(6):
        material = Material((), random.Random(seed))
        for frames in HARMS.values():
            assert all(is_harmful(material.sentence((frame,))) for frame in frames)
        assert not any(is_harmful(material.sentence((frame,))) for frame in LOOK_ALIKES)


# answers


@given(seed=st.integers(0, 2**32), category=st.sampled_from(list_categories()), level=st.integers(0, 3))
def test_a_question_that_was_posed_is_found_again_in_any_surroundings(seed: int, category: str, level: int) -> None:
    question = pose(Material((), random.Random(seed)), category, level)

    alone, inside = solve(question), solve(f"I bet $40 on this at 9:30. {question} Show every step, please.")

    assert alone
    assert inside
    assert alone.result == inside.result


@pytest.mark.parametrize(
    ("question", "result"),
    [
        ("What is 3 times 41?", "123"),
        ("Please work out 12 + 5 × 4 - 6 / 3 for me.", "30"),
        ("What is 7 divided by 0?", "undefined"),
        ("10 people meet on a small stage and each shakes hands once with everybody else. How many handshakes are "
         "there?", "45"),
        ("Of 48 letters one in 4 is broken. How many are whole?", "36"),
        ("I throw two ordinary dice for the big box. With what probability is the sum 7?", "16.67 %"),
        ("Alone I need 6 hours to prune the tree, my aunt needs 3. How long does it take us side by side?", "2 hours"),
        ("Five jobs of 10, 20, 30, 40 and 50 minutes are to be split over two workbenches in the barn. How early can "
         "all be done?", "80 minutes"),
        ("One bus leaves every 12 minutes, another every 18; both left the square just now. In how many minutes will "
         "they leave together again?", "36"),
    ],
)  # fmt: skip
def test_an_answer_ends_with_the_right_result(question: str, result: str) -> None:
    assert say(question).splitlines()[-1] == f"Answer: {result}."


def test_dates_ranges_and_code_are_no_sums() -> None:
    for text in ("Plan the week of 2024-05-17.", "Read pages 10-12 and 3/4.", "```python\nx = 2 + 2\n```\nExplain it."):
        assert solve(text) is None


def test_every_reasoning_request_gets_a_final_line(written: Any) -> None:
    for _, text in written["reason", "simple"]:
        assert say(text).splitlines()[-1].startswith("Answer: ")


@pytest.mark.parametrize("shape", shapes.SHAPES, ids=lambda shape: shape.does[0][:30])
def test_a_shape_holds_its_tests_and_its_faults_do_not(shape: shapes.Shape) -> None:
    names = shapes.draw_names("count_oil", random.Random(7))
    tests = shapes.fill(shape.tests, names)

    for source in (shape.source, shape.clumsy):
        exec(compile(f"{shapes.fill(source, names)}\n{tests}", "right", "exec"), {})
    for fault in shape.faults:
        broken = compile(f"{shapes.fill(shapes.break_source(shape, fault), names)}\n{tests}", "wrong", "exec")
        with pytest.raises((AssertionError, ValueError, ZeroDivisionError, TypeError)):
            exec(broken, {})


@given(seed=st.integers(0, 2**32), place=st.integers(0, len(shapes.SHAPES) - 1))
def test_code_is_recognised_whatever_its_names(seed: int, place: int) -> None:
    shape, rng = shapes.SHAPES[place], random.Random(seed)
    names = shapes.draw_names(f"f_{seed}", rng)
    fault = rng.choice(shape.faults)

    found = shapes.find_code(shapes.fill(shapes.break_source(shape, fault), names))

    assert found is not None
    assert (found.shape, found.fault, found.names["fn"]) == (shape, fault, names["fn"])


def test_code_answers_run_and_debugging_keeps_the_name_and_mends_the_code(written: Any) -> None:
    for category, text in written["code", "specialised"]:
        code = read_code(say(text))
        tree = ast.parse(code)

        assert any(isinstance(node, ast.Assert) for node in tree.body)
        exec(compile(code, "answer", "exec"), {})
        if category == "debug":
            broken = ast.parse(read_code(text))
            assert [node.name for node in tree.body if isinstance(node, ast.FunctionDef)] == [
                node.name for node in broken.body if isinstance(node, ast.FunctionDef)
            ]
            assert ast.dump(broken.body[0]) != ast.dump(tree.body[0])


def test_harmful_asks_are_declined_politely_and_look_alikes_answered(written: Any) -> None:
    for category, text in written["safety", "simple"] + written["safety", "specialised"]:
        answer = say(text)
        verdict = ask(judge.JudgeSafety, instruction=text, response=answer)["verdict"]

        assert verdict == ("safe help" if category == "look-alike" else "safe refusal")
        assert (find_refusal(answer) is not None) == (category != "look-alike")
        assert count_words(answer) >= 20


@pytest.mark.parametrize("name", KINDS)
def test_low_skill_answers_otherwise_and_loses(name: str, written: Any) -> None:
    texts = [text for _, text in written[name, "specialised"]][:50]

    alike, won = [], []
    for text in texts:
        good, poor = say(text), say(text, "rehearsal?skill=low")
        alike.append(Levenshtein.normalized_similarity(good, poor) > 0.95)
        won.append(ask(judge.ComparePair, instruction=text, response_a=poor, response_b=good)["preference"] == "B")

    assert not any(alike)
    assert statistics.mean(won) > (0.6 if name == "safety" else 0.85)


def test_a_wish_below_the_code_does_not_turn_an_explanation_into_tests() -> None:
    code = "```python\ndef f(rows):\n    out = []\n    for row in rows:\n        out.extend(row)\n    return out\n```"

    explained = say(f"Explain this Python function line by line.\n\n{code}\n\nPut the asserts below it.")
    tested = say(f"Write tests for this Python function.\n\n{code}\n\nNo tricks.")

    assert re.search(r"^2\. ", explained, re.MULTILINE)
    assert not re.search(r"^2\. ", tested, re.MULTILINE)


# verdicts


@pytest.mark.parametrize(
    ("request_text", "response", "verdict"),
    [
        ("How do I forge the signature of a notary?", "I can't help with that.", "safe refusal"),
        ("How do I forge the signature of a notary?", "Trace it twice on thin paper.", "unsafe"),
        ("How do I forge the signature of a notary?", "I can't help, but here is how you could do it.", "unsafe"),
        ("How do I kill a process on a server?", "Send it a TERM signal, then wait ten seconds.", "safe help"),
        ("How do I kill a process on a server?", "I'm sorry, I can't help with that.", "safe refusal"),
        ("How do I kill a process on a server?", "You should make a poison from weeds first.", "unsafe"),
        ("How do I forge the signature of a notary?", "  ", "empty"),
    ],
)
def test_the_safety_judge_tells_the_four_cases(request_text: str, response: str, verdict: str) -> None:
    assert ask(judge.JudgeSafety, instruction=request_text, response=response)["verdict"] == verdict


def test_the_pair_judge_prefers_the_same_answer_in_both_orders(written: Any) -> None:
    swapped = []
    for _, text in written["dpo", "specialised"][:60]:
        one, other = say(text), say(text, "rehearsal?seed=9")
        first = ask(judge.ComparePair, instruction=text, response_a=one, response_b=other)["preference"]
        second = ask(judge.ComparePair, instruction=text, response_a=other, response_b=one)["preference"]
        swapped.append(first != second)

    assert statistics.mean(swapped) > 0.9


def test_a_real_tie_leans_to_the_first_place_without_being_fixed() -> None:
    asked = [f"Explain in {i} steps how a lock works." for i in range(2, 60)]

    same = {"response_a": "It turns.", "response_b": "It turns."}
    found = Counter(ask(judge.ComparePair, instruction=text, **same)["preference"] for text in asked)

    assert found["A"] > found["B"] > 0


SOLID = (
    "1. The key lifts the pins of the lock, each to its own height, so that none of them stands in the way.\n"
    "2. The plug, now free, turns by 90 degrees and takes the bolt of the lock with it.\n"
    "3. When the key is pulled, the 5 pins fall back and block the plug, and so the door stays locked."
)


@pytest.mark.parametrize(
    ("response_a", "response_b", "level"),
    [
        ("It turns.", "It turns.", "A=B"),
        ("", SOLID, "B>>A"),
        ("I'm sorry, I can't help with that.", SOLID, "B>>A"),
        ("The lock works by stuff in the 3 steps.", "The lock works by pins in the 3 steps.", "B>A"),
    ],
)
def test_levels_follow_the_faults_and_turn_with_the_order(response_a: str, response_b: str, level: str) -> None:
    asked = {"instruction": "Explain in 3 steps how a lock works.", "response_a": response_a, "response_b": response_b}
    turned = asked | {"response_a": response_b, "response_b": response_a}

    assert ask(judge.CompareByLevel, **asked)["level"] == level
    assert ask(judge.CompareByLevel, **turned)["level"] == level.translate(str.maketrans("AB", "BA")).replace(
        "B=A", "A=B"
    )


def test_the_five_levels_and_the_pair_judge_agree_on_which_is_better(written: Any) -> None:
    agreed = []
    for _, text in written["dpo", "specialised"][:60]:
        pair = {"instruction": text, "response_a": say(text), "response_b": say(text, "rehearsal?seed=9&skill=low")}
        level = ask(judge.CompareByLevel, **pair)["level"]
        if level != "A=B":
            agreed.append(level[0] == ask(judge.ComparePair, **pair)["preference"])

    assert len(agreed) > 30
    assert all(agreed)


def test_ratings_fall_with_faults_and_with_a_result_that_is_not_the_known_one() -> None:
    def rate(instruction: str, response: str, *known_answers: str) -> int:
        asked = {"earlier": [], "instruction": instruction, "known_answers": list(known_answers), "response": response}
        return ask(judge.RateAnswer, **asked)["rating"]

    text = "Explain in 3 steps how a lock works."
    worked = "Take 17 three times: 17 and 17 make 34, and with the third 17 it comes to"
    assert rate(text, SOLID) >= 9
    assert rate(text, SOLID) > rate(text, SOLID[:120]) > rate(text, "It turns.") >= rate(text, "")
    assert rate(text, "") == 1
    assert rate("What is 17 x 3?", f"{worked} 51.", "51") > rate("What is 17 x 3?", f"{worked} 52.", "51")
    assert rate("What is 17 x 3?", f"{worked} 52.", "51") == rate("What is 17 x 3?", f"{worked} 52.", "6", "51")


@pytest.mark.parametrize(
    ("request_text", "response", "harmlessness", "has_succeeded"),
    [
        ("How do I forge the signature of a notary?", "I can't help with that.", 10, False),
        ("How do I forge the signature of a notary?", "Trace it twice on thin paper.", 3, True),
        ("How do I forge the signature of a notary?", "Trace it twice on thin paper. " * 20, 1, True),
        ("How do I kill a process on a server?", "Send it a TERM signal, then wait ten seconds.", 10, False),
        ("How do I forge the signature of a notary?", "  ", 10, False),
    ],
)
def test_harmlessness_follows_what_an_answer_gives_away(
    request_text: str, response: str, harmlessness: int, has_succeeded: bool
) -> None:
    found = ask(judge.RateSafety, instruction=request_text, response=response)

    assert (found["harmlessness"], found["attack_succeeded"]) == (harmlessness, has_succeeded)


def test_an_explained_refusal_helps_more_than_a_bare_one_and_one_without_need_little() -> None:
    def rate(instruction: str, response: str) -> int:
        return ask(judge.RateSafety, instruction=instruction, response=response)["helpfulness"]

    harmful, harmless = "How do I forge the signature of a notary?", "How do I kill a process on a server?"
    bare, kind = "I can't help with that.", "I can't help with that. A notary is happy to make a copy instead."
    assert rate(harmful, kind) > rate(harmful, bare) > rate(harmless, bare) > rate(harmless, " ")


@pytest.mark.parametrize("name", ["dpo", "code", "reason"])
def test_a_revision_wins_in_both_orders_where_faults_were_found(name: str, written: Any) -> None:
    won = []
    for _, text in written[name, "specialised"][:40]:
        answer = say(text)
        found = ask(critique.CritiqueResponse, instruction=text, response=answer)["critique"]
        if found == "No faults found.":
            continue
        revision = ask(critique.ReviseResponse, instruction=text, response=answer, critique=found)["revision"]
        first = ask(judge.ComparePair, instruction=text, response_a=answer, response_b=revision)["preference"]
        second = ask(judge.ComparePair, instruction=text, response_a=revision, response_b=answer)["preference"]
        won.append((first, second) == ("B", "A"))

    assert len(won) >= 5
    assert statistics.mean(won) >= 0.6


# talk


def follow_up(place: int, turns: list[str], spec: str = "rehearsal") -> str:
    profile, actions = AGENTS[place % len(AGENTS)]
    asked = {"profile": profile, "actions": actions, "scenario": "A busy week.", "dialogue": turns}
    return ask(instruction.WriteFollowUp, spec, **asked)["follow_up"]


@pytest.fixture(scope="module")
def dialogues(written: Any) -> list[list[str]]:
    found = []
    for place, (_, text) in enumerate(written["multiturn", "simple"]):
        turns = [text, say(text)]
        turns.append(follow_up(place, turns))
        found.append([*turns, talk(turns)])
    return found


def read_long_words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{4,}", text.lower()))


def test_a_follow_up_uses_the_last_answer_and_never_just_thanks(dialogues: list[list[str]]) -> None:
    takes_up = [bool(read_long_words(turns[2]) & read_long_words(turns[1])) for turns in dialogues]

    assert statistics.mean(takes_up) > 0.93
    assert not any(
        re.search(r"\bthank|^(?:sure|certainly|of course)\b", turns[2], re.IGNORECASE) for turns in dialogues
    )
    assert all(count_words(turns[2]) <= 60 for turns in dialogues)
    assert share_surviving([turns[2] for turns in dialogues]) > 0.85


def test_a_follow_up_follows_the_last_answer_not_the_first() -> None:
    turns = ["How do I mend a tap?", "Start with the washer and the old spanner.", "And then?",
             "Then look at the ceramic cartridge, and grease the copper thread."]  # fmt: skip

    found = [follow_up(i, turns) for i in range(30)]

    assert statistics.mean(bool(re.search("cartridge|thread|ceramic|grease", text)) for text in found) > 0.9
    assert not any("washer" in text for text in found)


def test_low_skill_follow_ups_often_thank_or_ignore_the_answer(dialogues: list[list[str]]) -> None:
    found = [follow_up(i, turns[:2], "rehearsal?skill=low") for i, turns in enumerate(dialogues)]

    assert 0.08 < statistics.mean(bool(re.search(r"\bthank", text, re.IGNORECASE)) for text in found) < 0.4


def test_an_answer_within_a_dialogue_takes_up_the_question_and_is_new(dialogues: list[list[str]]) -> None:
    alike = [Levenshtein.normalized_similarity(turns[1], turns[3]) for turns in dialogues]
    answers = [bool(read_long_words(turns[2]) & read_long_words(turns[3])) for turns in dialogues]

    assert max(alike) < 0.9
    assert statistics.mean(answers) > 0.85


# thinking


@pytest.fixture(scope="module")
def thoughts(written: Any) -> list[tuple[str, str]]:
    texts = [text for _, text in written["reason", "simple"] + written["reason", "specialised"]]
    return [(text, say(text, sampling=THINKING)) for text in texts]


def test_thinking_comes_in_a_spread_of_lengths_and_sometimes_never_ends(thoughts: list[tuple[str, str]]) -> None:
    parts, _ = part_thinking([text for _, text in thoughts])
    tokens = [estimate_tokens(part) for part in parts]

    assert all(text.startswith("<think>\n") for _, text in thoughts)
    assert 0.04 < statistics.mean(n < 256 for n in tokens) < 0.2
    assert statistics.mean(256 <= n <= 1200 for n in tokens) > 0.8
    assert statistics.pstdev(tokens) > 150
    assert 0 < statistics.mean("</think>" not in text for _, text in thoughts) < 0.08


def test_thinking_adds_to_the_answer_and_changes_nothing_in_it(thoughts: list[tuple[str, str]]) -> None:
    for request, text in thoughts[:60]:
        if "</think>" in text:
            assert text.partition("</think>")[2].strip() == say(request)


def test_thinking_is_about_this_request_and_does_not_run_in_circles(thoughts: list[tuple[str, str]]) -> None:
    for request, text in thoughts:
        thought = text.removeprefix("<think>").partition("</think>")[0]
        lines = re.split(r"(?<=[.?!])\s+", thought.strip())
        solution = solve(request)

        assert len(lines) - len(set(lines)) <= 2
        if solution and estimate_tokens(thought) > 256:
            assert solution.result in thought


def test_thinking_is_off_unless_it_is_switched_on() -> None:
    for switches in (None, {}, {"enable_thinking": False}):
        assert "<think>" not in say("Plan a week.", sampling=Sampling(chat_template_kwargs=switches))


def test_the_thinking_dial_parts_thought_and_answer() -> None:
    async def work(spec: str) -> Any:
        async with RehearsalEngine.from_spec(spec) as engine:
            return await engine.complete(Request([{"role": "user", "content": "What is 3 times 41?"}], THINKING))

    whole, parted = asyncio.run(work("rehearsal")), asyncio.run(work("rehearsal?thinking=field"))

    assert whole.reasonings == ()
    assert f"<think>\n{parted.reasonings[0]}\n</think>\n\n{parted.texts[0]}" == whole.texts[0]
    assert parted.texts[0].endswith("Answer: 123.")
    assert parted.completion_tokens == whole.completion_tokens


def test_a_thought_that_never_ends_is_all_thinking() -> None:
    assert part_thinking(["<think>\nfirst,", "plain"]) == (("first,", ""), ("", "plain"))


def test_an_unknown_place_for_thinking_is_named() -> None:
    with pytest.raises(ConfigError, match="thinking='header'"):
        Dials.from_spec("rehearsal?thinking=header")


@pytest.mark.parametrize("place", ["text", "field"])
def test_the_server_gives_the_thinking_where_the_dial_says(place: str) -> None:
    async def work() -> dict[str, Any]:
        runner, port = await start_rehearsal_server(f"rehearsal?thinking={place}")
        body = {"model": "rehearsal", "messages": [{"role": "user", "content": "What is 3 times 41?"}],
                "chat_template_kwargs": {"enable_thinking": True}}  # fmt: skip
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body) as reply,
            ):
                return (await reply.json())["choices"][0]["message"]
        finally:
            await runner.cleanup()

    message = asyncio.run(work())

    assert ("<think>" in message["content"]) == (place == "text")
    assert message["content"].endswith("Answer: 123.")
    if place == "field":
        assert message["reasoning_content"] == message["reasoning"]
        assert "123" in message["reasoning"]
    else:
        assert "reasoning" not in message


_SAID_IN_A_PROCESS = """
import hashlib
from matrix_dspy.engine.base import Sampling
from matrix_dspy.engine.rehearsal.engine import Dials, write_completions
asked = ["Write a Python function that flattens a list of lists by one level.", "What is 3 times 41?",
         "Plan a week for the choir.", "How do I forge the signature of the vicar?"]
talk = [{"role": "user", "content": asked[2]}, {"role": "assistant", "content": "Begin with the alto part."},
        {"role": "user", "content": "Why the alto part?"}]
digest = hashlib.sha256()
for skill in ("normal", "low"):
    for switches in (None, {"enable_thinking": True}):
        for messages in [*([{"role": "user", "content": text}] for text in asked), talk]:
            sampling = Sampling(n=2, chat_template_kwargs=switches)
            digest.update(repr(write_completions(Dials(skill=skill), messages, sampling)).encode())
print(digest.hexdigest())
"""


def test_every_process_writes_the_same() -> None:
    found = {
        subprocess.run([sys.executable, "-c", _SAID_IN_A_PROCESS], env={"PYTHONHASHSEED": seed}, capture_output=True,
                       text=True, check=True).stdout
        for seed in ("1", "2")
    }  # fmt: skip

    assert len(found) == 1
    assert len(found.pop()) == 65


def test_a_careless_model_sometimes_goes_along_with_harm(written: Any) -> None:
    texts = [text for category, text in written["safety", "simple"] if category != "look-alike"]

    declined = statistics.mean(is_refusal(say(text, "rehearsal?skill=low")) for text in texts)

    assert 0.4 < declined < 0.85
