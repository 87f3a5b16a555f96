import random

from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.population.pseudonyms import FIRST_NAMES, LAST_NAMES, choose_pseudonyms
from matrix_dspy.text import words
from matrix_dspy.types import Profile


def make_profile(number: int, name: str, handles: tuple[str, ...] = ()) -> Profile:
    return Profile(
        profile_id=f"profile-{number:05d}", name=name, description="x", handles=handles, origin="a file", licence="CC0"
    )


def make_profiles(n: int, seed: int = 0) -> list[Profile]:
    """People whose names are made of the very words that pseudonyms are made of."""
    generator = random.Random(seed)
    return [
        make_profile(number, f"{generator.choice(FIRST_NAMES)} {generator.choice(LAST_NAMES)}") for number in range(n)
    ]


def test_a_thousand_people_get_a_thousand_different_names():
    chosen = choose_pseudonyms(make_profiles(1000), 0)

    assert len({name.lower() for name in chosen}) == 1000


def test_no_pseudonym_is_the_name_of_any_original():
    profiles = make_profiles(1000)

    assert not {profile.name for profile in profiles} & set(choose_pseudonyms(profiles, 0))


def test_no_pseudonym_shares_a_word_with_the_name_it_replaces():
    profiles = make_profiles(1000)

    for profile, name in zip(profiles, choose_pseudonyms(profiles, 0), strict=True):
        assert not set(words(profile.name)) & set(words(name))


@given(st.integers(0, 10**6))
def test_no_pseudonym_shares_a_word_with_a_user_name(seed: int):
    handles = tuple(f"@{first.lower()}" for first in FIRST_NAMES[::2])

    (name,) = choose_pseudonyms([make_profile(1, "Somebody", handles)], seed)

    assert name.split()[0] not in FIRST_NAMES[::2]


def test_the_same_seed_gives_the_same_names():
    assert choose_pseudonyms(make_profiles(50), 3) == choose_pseudonyms(make_profiles(50), 3)


def test_another_seed_gives_other_names():
    one, other = choose_pseudonyms(make_profiles(50), 3), choose_pseudonyms(make_profiles(50), 4)

    assert sum(a == b for a, b in zip(one, other, strict=True)) < 5


def test_names_never_run_out_for_more_people_than_there_are_combinations():
    n = 3000
    profiles = [make_profile(number, f"Person {number}") for number in range(n)]

    assert len(set(choose_pseudonyms(profiles, 0))) == n
