import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_dspy.curation.base import Candidate, Drop
from matrix_dspy.curation.language import LanguageFilter, find_language, take_prose
from matrix_dspy.errors import ConfigError

ENGLISH = [
    "Write a short note to my landlord about the broken heating in the kitchen.",
    "How do I prune an old apple tree without hurting it?",
    "Our village wants a market on the first Saturday of every month.",
    "Explain to my daughter why the moon follows us when we drive home.",
]
FOREIGN = {
    "German": "Schreib mir bitte einen kurzen Brief an meinen Vermieter wegen der kaputten Heizung in der Küche.",
    "French": "Explique-moi comment tailler un vieux pommier sans lui faire de mal, s'il te plaît.",
    "Spanish": "Quiero saber cómo podar un manzano viejo sin hacerle daño antes de que llegue el invierno.",
    "Italian": "Vorrei sapere come si pota un vecchio melo senza fargli male prima che arrivi l'inverno.",
    "Portuguese": "Gostaria de saber como podar uma macieira velha sem lhe fazer mal antes de chegar o inverno.",
    "Dutch": "Schrijf alsjeblieft een korte brief aan mijn huisbaas over de kapotte verwarming in de keuken.",
    "Polish": "Napisz proszę krótki list do mojego gospodarza w sprawie zepsutego ogrzewania w kuchni.",
    "Turkish": "Mutfaktaki bozuk kalorifer hakkında ev sahibime kısa bir mektup yazar mısın lütfen?",
    "Russian": "Напиши, пожалуйста, короткое письмо хозяину квартиры о сломанном отоплении на кухне.",
    "Greek": "Γράψε μου σε παρακαλώ ένα σύντομο γράμμα στον ιδιοκτήτη για τη χαλασμένη θέρμανση.",
    "Chinese": "请帮我给房东写一封短信，说明厨房的暖气坏了，希望他尽快派人来修理。",
    "Japanese": "台所の暖房が壊れたことについて、大家さんに短い手紙を書いてください。",
    "Korean": "부엌 난방이 고장 났다는 내용으로 집주인에게 짧은 편지를 써 주세요.",
    "Arabic": "اكتب لي من فضلك رسالة قصيرة إلى صاحب البيت عن التدفئة المعطلة في المطبخ.",
    "Hindi": "कृपया रसोई के खराब हीटर के बारे में मेरे मकान मालिक को एक छोटा पत्र लिखिए।",
    "Finnish": "Kirjoita minulle lyhyt kirje vuokraisännälle keittiön rikkinäisestä lämmityksestä.",
}
KEPT = [
    "Plan my week.",
    "Guten Morgen",
    "Who is Angela Merkel?",
    "Write a haiku about Kyoto",
    "Visualize pandas dataframe in gradio",
    "Write me a testbench for a multiplier in cocotb",
    "How to create media entity in Drupal?",
    "Is Roger Federer a better tennis player than Rafael Nadal?",
    "Translate 'Guten Morgen, wie geht es dir heute?' into English.",
    'What does the proverb "Quien mucho abarca poco aprieta" mean, and when would one say it?',
    "Say in French that the shop closes at six and that dogs may not come in.",
    "Put this German notice into plain English:\nWegen Umbaus bleibt unser Laden bis Ende des Monats geschlossen. Die "
    "Ware wird in dieser Zeit am Hintereingang ausgegeben. Wir danken für Ihre Geduld und freuen uns auf Sie.",
    "My cousin wrote this and I must translate it by noon:\nJe ne peux pas venir samedi parce que ma fille est malade. "
    "Est-ce que nous pouvons remettre le repas à la semaine prochaine? Je suis vraiment désolée pour tout le monde.",
    "Why does this loop never end?\n```python\nwhile schlange:\n    element = schlange.pop(0)\n"
    "    verarbeite(element)\n    schlange.append(nachfolger_von(element))\n```",
    '{"abfahrt": "08:15", "linie": 4, "gleise": [1, 2, 3], "ist_verspätet": false, "preis_in_euro": 3.2}',
    "https://example.org/die/lange/adresse/eines/deutschen/artikels/ueber/alte/apfelbaeume",
    "Solve $$\\int_0^1 x^2 \\, dx + \\sum_{n=1}^{\\infty} \\frac{1}{n^2}$$ and show each step of it.",
    "rechnung_nr = lies(datei); betrag_neu = rechnung_nr * 2; drucke(betrag_neu);",
    "q " * 300,
    "",
    "... !!! 12 + 30 = 42",
]


@pytest.fixture(scope="module")
def english() -> LanguageFilter:
    return LanguageFilter("English")


def judge(each: LanguageFilter, text: str) -> Drop | None:
    return each.judge(Candidate("row-1", text))


# ---- names of languages


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("English", "ENGLISH"),
        ("german", "GERMAN"),
        ("de", "GERMAN"),
        ("deu", "GERMAN"),
        ("pt-BR", "PORTUGUESE"),
        ("zh_Hans_CN", "CHINESE"),
        ("Portuguese (Brazil)", "PORTUGUESE"),
        ("Brazilian Portuguese", "PORTUGUESE"),
        ("Mandarin", "CHINESE"),
        ("Farsi", "PERSIAN"),
        ("Norwegian", "BOKMAL"),
        ("nn", "BOKMAL"),
        ("Croatian", "BOSNIAN"),
        ("Malay", "INDONESIAN"),
        ("Deutsch", "GERMAN"),
        (" Thai language ", "THAI"),
    ],
)
def test_a_language_goes_by_its_name_or_its_code(name: str, language: str):
    assert find_language(name) == language


def test_a_misspelt_language_is_answered_with_the_nearest_one():
    with pytest.raises(ConfigError, match="no language 'Germn'; did you mean 'German'"):
        LanguageFilter("Germn")


def test_a_name_like_none_is_answered_with_all_languages_once():
    with pytest.raises(ConfigError) as caught:
        LanguageFilter("")

    assert str(caught.value).count("German") == 1
    assert "Yoruba, Zulu" in str(caught.value)


def test_a_language_that_cannot_be_recognised_says_to_switch_the_filter_off():
    with pytest.raises(ConfigError, match="'Kannada' cannot be recognised; switch the filter 'language' off"):
        LanguageFilter("Kannada")


# ---- instructions


@pytest.mark.parametrize("text", [*ENGLISH, *KEPT])
def test_english_and_what_cannot_be_told_is_kept(english: LanguageFilter, text: str):
    assert judge(english, text) is None


@pytest.mark.parametrize(("language", "text"), FOREIGN.items())
def test_a_text_in_another_language_is_dropped_with_its_name(english: LanguageFilter, language: str, text: str):
    drop = judge(english, text)

    assert drop is not None
    assert drop.reason == "language"
    assert drop.detail.startswith(f"it is in {language} (")
    assert drop.detail.endswith("not in English")


@pytest.mark.parametrize("language", FOREIGN)
def test_a_text_in_the_wanted_language_is_kept_and_english_dropped(language: str):
    each = LanguageFilter(language)

    assert judge(each, FOREIGN[language]) is None
    assert judge(each, " ".join(ENGLISH)) is not None


def test_names_and_ui_words_in_english_do_not_make_a_german_text_english():
    text = "Öffne bei Google Docs das Menü File, wähle Share und schick den Link an das ganze Marketing Team in Köln."

    assert judge(LanguageFilter("de"), text) is None


def test_neighbours_that_cannot_be_told_apart_stand_for_each_other():
    nynorsk = "Eg veit ikkje korleis eg skal skrive dette brevet til huseigaren min om den øydelagde omnen."

    assert judge(LanguageFilter("Norwegian"), nynorsk) is None
    assert judge(LanguageFilter("Nynorsk"), nynorsk) is None


def test_a_mix_of_many_languages_is_dropped(english: LanguageFilter):
    drop = judge(english, " ".join(FOREIGN[language] for language in ("German", "French", "Polish", "Turkish")))

    assert drop is not None
    assert drop.detail == "it mixes German, French, Polish, Turkish; English was wanted"


def test_words_thrown_together_from_many_languages_are_dropped(english: LanguageFilter):
    parts = [FOREIGN[language].split() for language in ("Polish", "Turkish", "Finnish", "Portuguese")]
    text = " ".join(word for group in zip(*parts, strict=False) for word in group)

    assert judge(english, text) is not None


def test_a_request_that_names_another_language_than_that_of_its_rest_is_dropped(english: LanguageFilter):
    text = f"Here is what I have for you. {FOREIGN['German']} {FOREIGN['German'].replace('kurzen', 'langen')} French?"

    drop = judge(english, text)

    assert drop is not None
    assert "German" in drop.detail


@settings(max_examples=30, deadline=None)
@given(st.permutations(ENGLISH), st.permutations(["German", "French", "Polish"]), st.integers(0, 12))
def test_the_greater_part_decides_wherever_it_stands(own: list[str], others: list[str], place: int):
    each = LanguageFilter("English")
    few, many = own[:], [FOREIGN[name] for name in others]

    few.insert(place % 5, many[0])
    many.insert(place % 4, own[0])

    assert judge(each, " ".join(few)) is None
    assert judge(each, " ".join(many)) is not None


def test_threads_that_ask_at_once_get_the_same_answers():
    texts = [*ENGLISH, *FOREIGN.values()] * 3
    each = LanguageFilter("English")
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda text: judge(each, text), texts))

    assert together == [judge(each, text) for text in texts]


def test_models_load_when_first_needed_and_large_ones_only_of_languages_in_doubt():
    script = (
        "import sys, matrix_dspy.curation.language as language\n"
        "from matrix_dspy.curation.base import Candidate\n"
        "assert 'lingua' not in sys.modules\n"
        "each = language.LanguageFilter('English')\n"
        "assert not language._detectors\n"
        f"assert each.judge(Candidate('a', {ENGLISH[0]!r})) is None\n"
        "assert list(language._detectors) == [()]\n"
        f"assert each.judge(Candidate('a', {FOREIGN['German']!r})) is not None\n"
        "assert len({name for names in language._detectors for name in names}) <= 5\n"
    )

    subprocess.run([sys.executable, "-c", script], check=True)


# ---- responses


@pytest.mark.parametrize(
    ("instruction", "response"),
    [
        ("How do I prune an old apple tree?", ENGLISH[0]),
        ("Answer only in Korean, please: who may fix my heating?", FOREIGN["Korean"]),
        ("Say in German that the heating in the kitchen is broken.", FOREIGN["German"]),
        ("How would a Russian ask for it?", FOREIGN["Russian"]),
        ("Write it in a different language of your choice.", FOREIGN["Polish"]),
        ("Translate my note for the landlord.", FOREIGN["Turkish"]),
        (f'Make this friendlier: "{FOREIGN["French"]}"', FOREIGN["French"]),
        ("Write the letter in Nepali.", FOREIGN["Hindi"]),
        ("Write the letter entirely in Nepali.", FOREIGN["Hindi"]),
        ("Use only German ingredients for the cake.", ENGLISH[1]),
        ("Write only in English, no other language is allowed.", ENGLISH[1]),
        ("Write a note in Spanish.", ENGLISH[0]),
        ("What is 12 + 30?", "42"),
    ],
)
def test_responses_that_fit_what_was_asked_are_kept(english: LanguageFilter, instruction: str, response: str):
    assert english.judge_response(instruction, response) is None


@pytest.mark.parametrize(
    ("instruction", "response", "detail"),
    [
        ("How do I prune an old apple tree?", FOREIGN["German"], "it is in German"),
        ("Say in German that the heating is broken.", FOREIGN["Polish"], "not in English or German"),
        ("Answer only in Korean, please.", ENGLISH[0], "it is in English, not in Korean"),
        ("Your entire response should be in Hindi.", ENGLISH[0], "it is in English, not in Hindi"),
        ("Write it using only the Swahili language.", ENGLISH[0], "it is in English, not in Swahili"),
        ("Tell it in Finnish about frost, no other language is allowed.", ENGLISH[2], "not in Finnish"),
        ("Write the letter entirely in Nepali.", ENGLISH[0], "it is in English, not in the language asked for"),
        ("Write only in English, no other language is allowed.", FOREIGN["Greek"], "it is in Greek"),
    ],
)
def test_responses_in_a_language_nobody_asked_for_are_dropped(
    english: LanguageFilter, instruction: str, response: str, detail: str
):
    drop = english.judge_response(instruction, response)

    assert drop is not None
    assert detail in drop.detail


# ---- prose


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        ("Mend `x = 1` and **this** one.", "Mend and this one."),
        ("Look at https://example.org/a and say more", "Look at and say more"),
        ("First line\n```\ncode here\n```\nlast line", "First line\nlast line"),
        ("First line\n```\ncode that was never closed", "First line"),
        ('She asked me: "Kommst du?" and I had no answer.', "She asked me: and I had no answer."),
        ('"Only a quotation"', '"Only a quotation"'),
        ("It took 3000. Then we went.", "It took. Then we went."),
        ("x = y + 1;\nfoo(bar);", ""),
    ],
)
def test_prose_is_what_is_left_without_code_links_and_quotations(text: str, prose: str):
    assert " ".join(take_prose(text).split()) == " ".join(prose.split())


@given(st.text(max_size=300))
def test_any_text_has_prose_no_longer_than_itself(text: str):
    assert len(take_prose(text)) <= len(text) + 1


# ---- real prompts and replies


def read_real(*parts: str) -> list[dict]:
    if not (folder := os.environ.get("MATRIX_DSPY_DATA")):
        pytest.skip("MATRIX_DSPY_DATA names no folder of real prompts")
    return [json.loads(line) for line in Path(folder, *parts).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["ifeval_en_input_data", "arena_hard_v0.1_question"])
def test_no_real_english_prompt_is_dropped(english: LanguageFilter, name: str):
    rows = read_real("benchmarks", f"{name}.jsonl")[::4]

    assert [row["prompt"] for row in rows if judge(english, row["prompt"])] == []


@pytest.mark.parametrize("model", ["7b", "0.5b"])
def test_real_replies_in_english_to_prompts_that_demand_another_script_are_dropped(english: LanguageFilter, model: str):
    scripts = (
        "Kannada",
        "Punjabi",
        "Marathi",
        "Persian",
        "Korean",
        "Russian",
        "Hindi",
        "Bulgarian",
        "Gujarati",
        "Nepali",
    )
    rows = [
        row
        for row in read_real("outputs", f"ifeval_en_qwen2.5-{model}-instruct_strict.jsonl")
        if "language:response_language" in str(row["instruction_id_list"]) and any(s in row["prompt"] for s in scripts)
    ]

    for row in rows:
        letters = [letter for letter in row["response"] if letter.isalpha()]
        is_latin = sum(letter.isascii() for letter in letters) > 0.9 * len(letters)
        assert not is_latin or english.judge_response(row["prompt"], row["response"]), row["prompt"]
    assert len(rows) >= 10
