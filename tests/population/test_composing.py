import os
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from matrix_dspy.errors import ConfigError, TableError
from matrix_dspy.population.composing import (
    DESCRIPTION_WORDS,
    LEXICON,
    POST_WORDS,
    compose_profiles,
    write_profiles,
)
from matrix_dspy.population.frames import DESCRIPTIONS, POSTS, SENTENCES
from matrix_dspy.population.reading import read_profiles
from matrix_dspy.text import clean_text, count_words, words
from matrix_dspy.types import Profile

SHIPPED = Path(__file__).parents[2] / "data" / "profiles" / "composed.jsonl"
LENGTHS = {
    "keywords": 20,
    "tasks": 14,
    "objects": 12,
    "problems": 12,
    "people": 10,
    "places": 6,
    "tools": 8,
    "goals": 8,
    "topics": 12,
    "facts": 8,
}


@pytest.fixture(scope="module")
def profiles() -> list[Profile]:
    return compose_profiles(1000, 0)


def load_domains(name: str) -> dict[str, dict[str, list[str]]]:
    return tomllib.loads((LEXICON / f"{name}.toml").read_text(encoding="utf-8"))["domains"]


def list_posts(profiles: list[Profile]) -> list[str]:
    return [post for profile in profiles for post in profile.history]


def test_the_same_seed_composes_the_same_people():
    assert compose_profiles(20, 7) == compose_profiles(20, 7)


def test_another_seed_composes_other_people():
    names = {profile.name for profile in compose_profiles(20, 7)}

    assert len(names & {profile.name for profile in compose_profiles(20, 8)}) < 3


def test_a_person_does_not_depend_on_how_many_there_are(profiles: list[Profile]):
    assert compose_profiles(30, 0) == profiles[:30]


@pytest.mark.parametrize("n", [0, -3])
def test_a_number_below_one_is_refused(n: int):
    with pytest.raises(ConfigError, match=repr(n)):
        compose_profiles(n, 0)


def test_the_shipped_file_is_the_first_thousand_people_of_seed_nought(profiles: list[Profile], tmp_path: Path):
    write_profiles(profiles, tmp_path / "composed.jsonl")

    assert (tmp_path / "composed.jsonl").read_bytes() == SHIPPED.read_bytes()


def test_what_is_written_is_read_back_unchanged(profiles: list[Profile]):
    read, rejected = read_profiles(SHIPPED)

    assert rejected == []
    assert [row.model_dump(exclude={"profile_id"}) for row in read] == [
        row.model_dump(exclude={"profile_id"}) for row in profiles
    ]


def test_a_folder_that_cannot_be_written_is_named(profiles: list[Profile], tmp_path: Path):
    (tmp_path / "taken").write_text("a file")

    with pytest.raises(TableError, match="taken"):
        write_profiles(profiles[:1], tmp_path / "taken" / "composed.jsonl")


def test_names_are_nearly_all_distinct(profiles: list[Profile]):
    assert len({profile.name for profile in profiles}) > 970


def test_ids_are_distinct(profiles: list[Profile]):
    assert len({profile.profile_id for profile in profiles}) == len(profiles)


def test_descriptions_are_all_distinct(profiles: list[Profile]):
    assert len({profile.description for profile in profiles}) == len(profiles)


def test_posts_are_nearly_all_distinct(profiles: list[Profile]):
    posts = list_posts(profiles)

    assert len(posts) == 5 * len(profiles)
    assert len(set(posts)) / len(posts) > 0.98


def test_no_opening_of_four_words_is_worn_out(profiles: list[Profile]):
    posts = list_posts(profiles)
    openings = Counter(" ".join(post.split()[:4]) for post in posts)

    assert openings.most_common(1)[0][1] / len(posts) < 0.03
    assert len(openings) > 500


def test_lengths_keep_to_their_limits(profiles: list[Profile]):
    for profile in profiles:
        assert DESCRIPTION_WORDS[0] <= count_words(profile.description) <= DESCRIPTION_WORDS[1], profile.description
        for post in profile.history:
            assert POST_WORDS[0] <= count_words(post) <= POST_WORDS[1], post


def test_texts_read_as_sentences(profiles: list[Profile]):
    wrong = re.compile(
        r"[{}\[\]|]|  |\bthe the\b|\ba (?:a|an|the)\b|\ban? an?\b|\ba (?=[aeio](?!ne\b|ne-|we))|[.?!] [a-z]"
    )
    for profile in profiles:
        for text in (profile.description, *profile.history):
            assert not wrong.search(text), text
            assert text[0].isupper() or text[0].isdigit(), text


def test_a_description_names_its_person_and_job(profiles: list[Profile]):
    for profile in profiles:
        assert profile.name in profile.description
        assert dict(profile.facts)["occupation"].lower() in profile.description.lower()


def test_a_description_in_the_third_person_stays_there(profiles: list[Profile]):
    third = [profile for profile in profiles if not re.search(r"\b(?:I|me|My)\b", profile.description)]

    assert len(third) > 300
    for profile in third:
        assert not re.search(r"\b(?:my|our|we|myself)\b", profile.description), profile.description


def test_texts_pass_cleaning_unchanged(profiles: list[Profile]):
    for profile in profiles:
        for text in (profile.name, profile.description, *profile.history):
            assert clean_text(text) == text


def test_everybody_is_grown_up_and_marked_as_invented(profiles: list[Profile]):
    assert all(profile.is_invented and profile.licence == "Apache-2.0" for profile in profiles)
    assert all(18 <= int(dict(profile.facts)["age"]) <= 76 for profile in profiles)


def test_occupations_and_sexes_follow_the_statistics(profiles: list[Profile]):
    facts = [dict(profile.facts) for profile in profiles]
    women = sum(fact["sex"] == "female" for fact in facts)
    nurses = [fact["sex"] for fact in facts if fact["occupation"] == "registered nurse"]

    assert 0.43 < women / len(facts) < 0.55
    assert len({fact["occupation"] for fact in facts}) > 200
    assert nurses.count("female") / len(nurses) > 0.7


def test_a_third_has_a_user_name(profiles: list[Profile]):
    assert 0.28 < sum(bool(profile.handles) for profile in profiles) / len(profiles) < 0.40


def test_some_posts_hold_addresses_and_all_of_them_are_reserved(profiles: list[Profile]):
    posts = list_posts(profiles)
    found = [post for post in posts if re.search(r"@|https?://|\+1 ", post)]

    assert 0.08 < len(found) / len(profiles) < 0.20
    for post in found:
        assert re.search(r"@example\.org|https://[\w-]+\.example\.org/|\+1 \d{3}-555-01\d\d", post), post


def test_there_are_frames_enough():
    assert len(DESCRIPTIONS) >= 12
    assert sum(len(frames) for frames in POSTS.values()) >= 50
    assert sum(len(frames) for frames in SENTENCES.values()) >= 60


@pytest.mark.parametrize("name", ["work", "life"])
def test_every_domain_has_words_enough(name: str):
    domains = load_domains(name)

    assert len(domains) >= 20
    for key, domain in domains.items():
        for field, least in LENGTHS.items():
            assert len(domain[field]) >= least, (key, field)
            assert len(set(domain[field])) == len(domain[field]), (key, field)


@pytest.mark.parametrize("name", ["work", "life"])
def test_every_list_has_phrases_for_the_third_person(name: str):
    for key, domain in load_domains(name).items():
        for field in ("tasks", "objects", "problems", "people", "places", "tools", "goals", "topics"):
            third = [phrase for phrase in domain[field] if not re.search(r"\b(?:I|me|my|our|we)\b", phrase)]
            assert len(third) >= 3, (key, field)


@pytest.mark.parametrize("name", ["work", "life"])
def test_phrases_have_the_shape_their_use_needs(name: str):
    article = re.compile(r"(?:an?|the|my|our|every|his|her) ")
    for domain in load_domains(name).values():
        assert all(re.fullmatch(r"[a-z]+", word) for word in domain["keywords"]), domain["keywords"]
        assert all(fact.endswith(".") and fact[0].isupper() for fact in domain["facts"])
        assert all(not task.startswith("to ") and not task.endswith(".") for task in domain["tasks"] + domain["goals"])
        if name == "work":
            assert all(article.match(phrase) for phrase in domain["objects"] + domain["people"] + domain["tools"])


def test_the_work_domains_serve_every_major_group():
    served = {soc for domain in load_domains("work").values() for soc in domain["soc"]}

    assert served == {str(major) for major in range(11, 54, 2)}


def test_no_sentence_is_taken_from_the_task_statements(profiles: list[Profile]):
    folder = os.environ.get("MATRIX_DSPY_DATA")
    if not folder:
        pytest.skip("MATRIX_DSPY_DATA is not set; it names the folder of shared data")
    statements = (Path(folder) / "personas" / "full_onet_data.tsv").read_text(encoding="utf-8", errors="replace")
    known = {run for line in statements.splitlines() for run in list_runs(words(line))}
    phrases = [
        phrase
        for name in ("work", "life")
        for domain in load_domains(name).values()
        for field in LENGTHS
        for phrase in domain[field]
    ]
    texts = [text for profile in profiles for text in (profile.description, *profile.history)]

    taken = {run for text in phrases + texts for run in list_runs(words(text)) if run in known}

    assert not taken


def list_runs(tokens: list[str]) -> list[tuple[str, ...]]:
    """Return every run of eight words."""
    return [tuple(tokens[i : i + 8]) for i in range(len(tokens) - 7)]
