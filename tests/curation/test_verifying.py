import asyncio
import gzip
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.curation.sandbox import Limits, isolation, run_many
from matrix_dspy.curation.verifying import (
    CodeVerifier,
    NumberVerifier,
    Verifier,
    build_humaneval_program,
    build_mbpp_program,
    check_humaneval,
    check_mbpp,
    check_number,
    find_final_number,
    find_instruction_tests,
    find_numbers,
    is_same_number,
)

needs_sandbox = pytest.mark.skipif(not isolation().seccomp, reason="system calls cannot be filtered here")
LIMITS = Limits(timeout_s=20, cpu_s=10)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("It makes 42.", "42"),
        ("12 and then 7", "7"),
        ("#### 1,234", "1234"),
        ("She has 5.\n#### -17\n", "-17"),
        (r"so \boxed{3} of 10 in 2024", "3"),
        (r"\boxed{\frac{3}{4}}", "3/4"),
        (r"\boxed{-\dfrac{1}{2}}", "-1/2"),
        (r"first \boxed{1}, then \boxed{2{,}500}", "2500"),
        (r"\boxed{12\%}", "12"),
        ("The answer is 18 (see step 3).", "18"),
        ("**Answer:** 18 apples, for 3 people", "18"),
        ("The total is therefore $1,050.50 for 4 nights", "1050.5"),
        ("3/4 of it", "3/4"),
        ("2 1/2 cups", "5/2"),
        ("1.5e3 metres", "1500"),
        ("about 6.02 × 10^23", "602000000000000000000000"),
        ("2 x 10^-3", "1/500"),
        ("12\u202f345\xa0678 people", "12345678"),
        ("of 3 100 dollar notes", "100"),
        ("1.234,56 euros", "1234.56"),
        ("$-3.50", "-3.5"),
        ("-$3.50", "-3.5"),
        ("−7 degrees", "-7"),
        (".5 litres", "1/2"),
        ("42km", "42"),
        ("it costs 15%", "15"),
        ("one two three", None),
        ("H2O and B12", None),
        ("1/0", None),
        ("", None),
        ("10-12 days", "12"),
        ("The answer is 15 + 5 = 20 dollars.", "20"),
        ("She makes a total of 9 * 2 = $18.", "18"),
        ("So he will be 5+3=8 in 3 years", "8"),
        ("Answer: 12 = 3 * 4", "12"),
        ("So x = 4 = 2 * 2", "4"),
        ("The answer is not 5 but 6.", "6"),
        ("The total cost of the 3 shirts is $45.", "45"),
        ("He has a total of 12 marbles and gives half away, leaving 6.", "6"),
        ("With a total of 10 hours at $20 per hour, she earns $200.", "200"),
        ("The total is $30, so each of the 3 friends pays $10", "10"),
        ("As a result of 2 price cuts, the price is $60.", "60"),
        ("The answer is 20. It took 3 days.", "20"),
        ("Half of them go: 16 - 8 = 8. So 3 each are left", "3"),
        ("The total is 7/2 = 3.5 miles a day for 2 days", "3.5"),
    ],
)
def test_the_final_number_is_found(text: str, value: str | None):
    number = find_final_number(text)

    assert (number.value if number else None) == (Fraction(value) if value else None)


def test_the_results_of_gsm8ks_own_solutions_are_found(shared_data: Path):
    """Without their marks; of the few that are missed most end in something else than the result."""
    n_found = n = 0
    for line in (shared_data / "benchmarks" / "gsm8k_test.jsonl").read_text("utf-8").splitlines():
        solution, _, result = json.loads(line)["answer"].rpartition("####")
        wanted, found = find_final_number(f"#### {result}"), find_final_number(re.sub("<<.*?>>", "", solution).strip())
        assert wanted is not None
        n += 1
        n_found += found is not None and is_same_number(wanted, found)

    assert n == 1319
    assert n_found >= 1305


@pytest.mark.parametrize(
    ("expected", "response", "score"),
    [
        ("#### 18", "He makes 18 dollars a day.", 1.0),
        ("18", "$18.00", 1.0),
        ("18", "18.4", 0.0),
        ("18", "17.999999", 0.0),
        ("1234", "1,234", 1.0),
        ("25%", "0.25", 1.0),
        ("25", "25 %", 1.0),
        ("0.25", "25 percent", 1.0),
        ("0.25", "1/4", 1.0),
        ("1/3", "0.33", 1.0),
        ("1/3", "0.3", 0.0),
        ("1/3", "0.34", 0.0),
        ("3.14", "3.14159", 1.0),
        ("3.14", "3.15", 0.0),
        ("2.5", "3", 0.0),
        ("-4", "4", 0.0),
        ("7", "no idea", 0.0),
        ("none", "7", None),
    ],
)
def test_numbers_are_compared_as_a_marker_would(expected: str, response: str, score: float | None):
    assert check_number(expected, response) == score


@given(
    st.fractions(-(10**9), 10**9, max_denominator=1),
    st.sampled_from(["{:,}", "{}", "{}.00", "${:,}", "{:,} km", "{:.3e}"]),
)
def test_a_whole_number_is_known_in_every_dress(number: Fraction, dress: str):
    value = int(number)
    if dress == "{:.3e}":
        value = int(float(f"{value:.3e}"))

    text = dress.format(value).replace("$-", "-$")

    assert check_number(str(value), f"After 3 steps I get {text}.") == 1.0
    assert check_number(str(value + 1), f"After 3 steps I get {text}.") == 0.0


@given(st.integers(-999, 999), st.integers(1, 99))
def test_fractions_keep_their_exact_value(top: int, bottom: int):
    wanted = Fraction(top, bottom)
    latex = rf"\boxed{{{'-' * (top < 0)}\frac{{{abs(top)}}}{{{bottom}}}}}"

    assert [number.value for number in find_numbers(f"= {top}/{bottom}")] == [wanted]
    assert check_number(f"{top}/{bottom}", latex) == 1.0


@given(st.text("0123456789.,/%$€-+eE×^{}\\ #()boxedfrac\n", max_size=200))
def test_no_text_upsets_the_reader_of_numbers(text: str):
    number = find_final_number(text)

    assert number is None or isinstance(number.value, Fraction)


def test_long_runs_of_signs_are_read_to_their_end():
    for part in ("1", "1,", "1 ", "(", "-", "\\boxed{", "\\frac{1", "answer ", "answer is ", "1.111", "1e", "#### "):
        assert find_final_number(part * 5_000) is None or part.strip("(-")


def test_a_number_that_nobody_knows_is_not_judged():
    verifier: Verifier = NumberVerifier({"How many?": "#### 4"})

    assert verifier.verify("How many?", "I count 4.") == 1.0
    assert verifier.verify("How many?", "I count 5.") == 0.0
    assert verifier.verify("How few?", "I count 4.") is None


def test_reference_answers_of_real_sums_agree_with_themselves(shared_data: Path):
    lines = (shared_data / "benchmarks" / "gsm8k_test.jsonl").read_text("utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    finals = [answer.rpartition("####")[2].strip() for answer in answers]

    assert len(finals) == 1319
    assert all(
        check_number(answer, f"So in the end it is {final}.") == 1.0
        for answer, final in zip(answers, finals, strict=True)
    )
    assert all(
        check_number(answer, f"So it is {final}1.") == 0.0 for answer, final in zip(answers, finals, strict=True)
    )


def test_tests_in_an_instruction_are_found():
    instruction = "Write add. It must pass:\n\n    assert add(1, 2) == 3\n- `assert add(0, 0) == 0`\n"

    assert find_instruction_tests("Write add, and assert that it works.") == []
    assert find_instruction_tests("Pass these:\nassert add(1, 2) == 3\n`assert add(0, 0) == 0`") == [
        "assert add(1, 2) == 3",
        "assert add(0, 0) == 0",
    ]
    assert find_instruction_tests("```python\nassert f(1)\nassert f(\n```") == ["assert f(1)"]
    assert find_instruction_tests(instruction)[0] == "assert add(1, 2) == 3"


@needs_sandbox
def test_code_is_scored_by_the_share_of_tests_it_passes():
    ask = "Write add.\nassert add(1, 2) == 3\nassert add(2, 2) == 4\nassert add(0, 1) == 1\nassert add(0, 0) == 0"
    verifier: Verifier = CodeVerifier(limits=LIMITS)

    def reply(body: str) -> str:
        return f"Like this:\n\n```python\ndef add(a, b):\n    return {body}\n```\n\n```python\nprint(add(3, 4))\n```"

    assert verifier.verify(ask, reply("a + b")) == 1.0
    assert verifier.verify(ask, reply("a * b")) == 0.5
    assert verifier.verify(ask, reply("undefined")) == 0.0
    assert verifier.verify("Write add.", reply("a + b")) is None
    assert verifier.verify(ask, "I would rather not.") is None
    assert verifier.verify(ask, "```python\nimport nowhere_to_be_found\ndef add(a, b): ...\n```") is None
    assert verifier.verify("Write add.", "```python\ndef add(a, b): return a - b\nassert add(1, 1) == 2\n```") == 0.0
    given_tests = CodeVerifier({"Write add.": ("assert add(5, 5) == 10",)}, LIMITS)
    assert given_tests.verify("Write add.", reply("a + b")) == 1.0
    assert asyncio.run(given_tests.verify_async("Write add.", reply("a - b"))) == 0.0


@needs_sandbox
def test_code_that_never_ends_or_cheats_scores_nothing():
    tests = {"Do it.": ("assert f() == 1", "assert f() == 2")}
    verifier = CodeVerifier(tests, Limits(timeout_s=2, cpu_s=1))

    assert verifier.verify("Do it.", "```python\ndef f():\n    while True: pass\n```") == 0.0
    assert verifier.verify("Do it.", "```python\nimport os\ndef f(): os._exit(0)\n```") == 0.0


def read_problems(shared_data: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    with gzip.open(shared_data / "benchmarks" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        humaneval = [json.loads(line) for line in file]
    mbpp = [json.loads(line) for line in (shared_data / "benchmarks" / "mbpp.jsonl").read_text("utf-8").splitlines()]
    return humaneval, mbpp


@needs_sandbox
def test_the_solutions_of_benchmarks_pass_and_broken_ones_fail(shared_data: Path):
    humaneval, mbpp = read_problems(shared_data)
    # 32 and 38 have helpers in the prompt, 367 and 927 a set-up that uses the code
    humaneval = [humaneval[i] for i in (0, 32, 38, 99, 163)]
    mbpp = [problem for problem in mbpp if problem["task_id"] in (1, 200, 367, 927, 974)]
    programs = [
        *(build_humaneval_program(each, each["canonical_solution"]) for each in humaneval),
        *(
            build_humaneval_program(each, f"```python\n{each['prompt']}{each['canonical_solution']}\n```")
            for each in humaneval
        ),
        *(build_mbpp_program(each, each["code"]) for each in mbpp),
        *(build_humaneval_program(each, "    return 'nothing of the kind'\n") for each in humaneval),
        *(build_mbpp_program(each, f"{each['code']}\nraise ValueError") for each in mbpp),
    ]

    results = asyncio.run(run_many(programs, LIMITS))

    assert [result.outcome for result in results] == ["passed"] * 15 + ["failed"] * 10


@needs_sandbox
def test_one_problem_is_checked_by_one_call(shared_data: Path):
    humaneval, mbpp = read_problems(shared_data)

    assert check_humaneval(humaneval[2], humaneval[2]["canonical_solution"], LIMITS).outcome == "passed"
    assert check_humaneval(humaneval[2], "    return -1\n", LIMITS).exception == "AssertionError"
    assert check_mbpp(mbpp[1], f"Sure:\n```python\n{mbpp[1]['code']}\n```", LIMITS).share_passed == 1.0
