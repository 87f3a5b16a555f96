import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.population.identifiers import REMOVED, Identifiers
from matrix_dspy.types import Profile

GIVEAWAYS = [
    "Marguerite Quillfeather",
    "Marguerite",
    "MARGUERITE",
    "Quillfeather",
    "marguerite quillfeather",
    "honey_marge",
    "Honey_Marge",
    "@honey_marge",
    "marge@hives.example",
    "m.q+bees@mail.hives.co.uk",
    "https://hives.example/marge?x=1",
    "www.hives.example/marge",
    "hives.com",
    "@somebody_else",
    "+44 20 7946 0018",
    "(0207) 946 0018",
    "555-946-0018",
    "07946001812",
    "123456",
    "98765432",
]


def make_profile(name: str = "Marguerite Quillfeather", n_history: int = 1, handles: tuple[str, ...] = ()) -> Profile:
    return Profile(
        profile_id="profile-1",
        name=name,
        description="I keep bees.",
        history=("Sold honey.",) * n_history,
        handles=handles or ("@honey_marge",),
        origin="a file",
        licence="CC0",
    )


def answer(description: str, *history: str) -> dict[str, Any]:
    return {"anonymous_description": description, "anonymous_history": list(history)}


@pytest.mark.parametrize("giveaway", GIVEAWAYS)
def test_what_gives_a_person_away_is_taken_out_of_answers(giveaway: str):
    scrubbed = Identifiers(make_profile()).scrub(f"Write to {giveaway} about it.")

    assert giveaway not in scrubbed
    assert REMOVED in scrubbed
    assert scrubbed.startswith("Write to ")


@pytest.mark.parametrize("giveaway", GIVEAWAYS)
@pytest.mark.parametrize("place", ["description", "history"])
def test_what_gives_a_person_away_is_not_accepted_anywhere(giveaway: str, place: str):
    told = f"Ask {giveaway} for it."
    fields = answer(told, "Sold honey.") if place == "description" else answer("A beekeeper.", told)

    problem = Identifiers(make_profile()).check(fields)

    assert problem is not None
    assert giveaway not in problem


@pytest.mark.parametrize("giveaway", GIVEAWAYS)
def test_a_scrubbed_answer_is_not_accepted_either(giveaway: str):
    identifiers = Identifiers(make_profile())

    assert identifiers.check(answer(identifiers.scrub(f"Ask {giveaway} for it."), "Sold honey.")) is not None


@given(st.sampled_from(GIVEAWAYS), st.text(" .,;:!?\n'\"()-", max_size=3), st.text(" .,;!?\n'\")-", max_size=3))
def test_punctuation_around_a_giveaway_does_not_hide_it(giveaway: str, before: str, after: str):
    if giveaway[0] == "@" and before[-1:] in ("@", "."):
        before = ""

    scrubbed = Identifiers(make_profile()).scrub(f"see {before}{giveaway}{after} here")

    assert giveaway not in scrubbed


def test_a_clean_answer_passes():
    fields = answer("Ilka Ravn keeps bees in a small town; in 2019 she had 40 hives.", "She sold 12 jars at 8 euros.")

    assert Identifiers(make_profile()).check(fields) is None


def test_words_that_only_contain_a_part_of_the_name_are_no_giveaway():
    identifiers = Identifiers(make_profile("Ann Will"))

    assert identifiers.check(answer("She will annotate a manual annually.", "He wills it.")) is None


def test_a_name_that_is_a_common_word_counts_only_with_a_capital():
    identifiers = Identifiers(make_profile("Will Young"))

    assert identifiers.check(answer("She will see young people.", "x")) is None
    assert identifiers.check(answer("Then Young spoke.", "x")) is not None
    assert identifiers.check(answer("they met will young there", "x")) is not None


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD", "bare"])
def test_accents_do_not_hide_a_name(form: Any, written: Any):
    identifiers = Identifiers(make_profile(unicodedata.normalize(form, "Zoë Åkerström")))
    word = "Akerstrom" if written == "bare" else unicodedata.normalize(written, "Åkerström")

    scrubbed = identifiers.scrub(f"Then {word} left.")

    assert scrubbed == f"Then {REMOVED} left."


def test_a_name_written_with_json_escapes_is_found():
    escaped = json.dumps(["Then Åkerström left."])

    assert "kerstr" not in Identifiers(make_profile("Zoë Åkerström")).scrub(escaped)


def test_a_name_after_an_escaped_line_end_is_found():
    scrubbed = Identifiers(make_profile()).scrub(json.dumps(["Then\nMarguerite left.\tQuillfeather too."]))

    assert "Marguerite" not in scrubbed
    assert "Quillfeather" not in scrubbed


def test_parts_of_hyphenated_names_are_found():
    identifiers = Identifiers(make_profile("Anne-Marie O'Neill"))

    assert all(
        identifiers.check(answer(f"Then {part} left.", "x")) for part in ("Anne", "Marie", "Neill", "Anne-Marie")
    )


def test_an_empty_description_is_not_accepted():
    problem = Identifiers(make_profile()).check(answer("  ", "Sold honey."))

    assert problem == "the anonymous description is empty"


@pytest.mark.parametrize("n_given", [0, 1, 3])
def test_a_history_of_another_length_is_not_accepted(n_given: int):
    problem = Identifiers(make_profile(n_history=2)).check(answer("A beekeeper.", *["Sold honey."] * n_given))

    assert problem == f"the anonymous history has {n_given} items; the original has 2"


def test_a_nameless_profile_is_searched_for_contacts_all_the_same():
    identifiers = Identifiers(make_profile("", handles=("x",)))

    assert identifiers.check(answer("A beekeeper.", "Sold honey.")) is None
    assert identifiers.check(answer("Call 07946001812.", "Sold honey.")) is not None


def test_a_user_name_or_single_name_that_is_an_ordinary_word_does_not_block_the_word() -> None:
    will = Profile(
        profile_id="profile-1",
        name="Will",
        description="I work as a baker and will not stop.",
        handles=("@baker",),
        origin="a file",
        licence="CC0",
    )

    check = Identifiers(will).check

    assert check({"anonymous_description": "Nils works as a baker and will not stop.", "anonymous_history": []}) is None
    assert check({"anonymous_description": "Will works as a baker.", "anonymous_history": []}) is not None
    assert check({"anonymous_description": "Write to @baker.", "anonymous_history": []}) is not None
