import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matrix_dspy.engine import embedding
from matrix_dspy.engine.embedding import SentenceEmbedder, TfidfEmbedder, build_embedder
from matrix_dspy.errors import ConfigError, EngineError

TOPICS = {
    "bread": ["the baker kneads bread dough", "bread dough rises", "the baker sells rye bread", "a baker of dough"],
    "boats": [
        "a boat leaves the harbour",
        "wind in the sails of a boat",
        "sails in the harbour",
        "the boat sails home",
    ],
    "money": ["the bank raises interest", "a loan with interest", "the bank refuses a loan", "interest of a bank"],
}
CORPUS = [f"{text} in the {season}" for texts in TOPICS.values() for text in texts for season in ("summer", "winter")]


def similarity(embedder: TfidfEmbedder, one: str, other: str) -> float:
    first, second = embedder.embed([one, other])
    return float(first @ second)


@pytest.fixture(scope="module")
def embedder() -> TfidfEmbedder:
    return TfidfEmbedder(CORPUS)


def test_vectors_are_of_unit_length_and_single_precision(embedder: TfidfEmbedder):
    vectors = embedder.embed(CORPUS)

    assert vectors.dtype == np.float32
    assert vectors.shape[0] == len(CORPUS)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_no_texts_are_no_vectors(embedder: TfidfEmbedder):
    assert embedder.embed([]).shape == (0, embedder.embed(["x"]).shape[1])


def test_an_empty_text_is_the_zero_vector_and_spoils_no_other(embedder: TfidfEmbedder):
    vectors = embedder.embed(["", "the baker", " \n "])

    assert np.isfinite(vectors).all()
    assert np.linalg.norm(vectors, axis=1).tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-5)


def test_a_text_has_the_same_vector_alone_and_among_others(embedder: TfidfEmbedder):
    alone = embedder.embed(["a boat leaves the harbour"])[0]

    among = embedder.embed([*CORPUS, "a boat leaves the harbour"])[-1]

    assert np.array_equal(alone, among)


def test_similar_texts_are_nearer_than_others(embedder: TfidfEmbedder):
    vectors = embedder.embed([text for texts in TOPICS.values() for text in texts])
    topics = np.repeat(np.arange(len(TOPICS)), 4)
    cosines = vectors @ vectors.T
    same = (topics[:, None] == topics[None, :]) & ~np.eye(len(topics), dtype=bool)

    assert cosines[same].mean() > cosines[topics[:, None] != topics[None, :]].mean() + 0.1


def test_a_paraphrase_is_nearer_than_a_stranger(embedder: TfidfEmbedder):
    near = similarity(embedder, "the bank raises interest on loans", "interest on a loan was raised by the bank")

    assert near > 0.4
    assert near > similarity(embedder, "the bank raises interest on loans", "wind fills the sails of a boat") + 0.3


def test_words_never_seen_are_still_similar_to_themselves(embedder: TfidfEmbedder):
    near = similarity(embedder, "a quokka hops", "the quokka of Rottnest")

    assert near > 0.15
    assert near > similarity(embedder, "a quokka hops", "an axolotl swims") + 0.1


CHILD = """
import sys
from matrix_dspy.engine.embedding import TfidfEmbedder
texts = sys.argv[1:]
sys.stdout.buffer.write(TfidfEmbedder(texts, seed=3).embed(texts).tobytes())
"""


def test_vectors_are_the_same_in_every_process():
    here = TfidfEmbedder(CORPUS, seed=3).embed(CORPUS).tobytes()

    there = subprocess.run([sys.executable, "-c", CHILD, *CORPUS], capture_output=True, check=True).stdout

    assert there == here


def test_another_seed_gives_other_vectors():
    assert not np.array_equal(TfidfEmbedder(CORPUS, 1).embed(CORPUS), TfidfEmbedder(CORPUS, 2).embed(CORPUS))


def test_topics_are_the_main_directions_that_numpy_finds():
    embedder = TfidfEmbedder(CORPUS)
    weighted: Any = embedder._weights.transform(embedder._count(CORPUS))
    _, lengths, directions = np.linalg.svd(weighted.toarray(), full_matrices=False)
    real = lengths[: len(CORPUS) - 1] > 1e-6
    wanted = directions[: len(CORPUS) - 1][real]

    found = embedder._topics

    assert found is not None and found.shape[1] == real.sum()
    assert np.allclose(found.T @ found, np.eye(found.shape[1]), atol=1e-6)
    assert np.allclose(np.abs(np.sum(found.T[::-1] * wanted, axis=1))[:5], 1, atol=1e-6)
    assert np.allclose(found @ (found.T @ weighted.toarray().T), weighted.toarray().T, atol=1e-6)


def test_a_large_corpus_is_fitted_by_iterations_that_come_near(monkeypatch: pytest.MonkeyPatch):
    exact = TfidfEmbedder(CORPUS).embed(CORPUS)
    monkeypatch.setattr(embedding, "_N_EXACT", len(CORPUS) - 1)

    near = TfidfEmbedder(CORPUS).embed(CORPUS)

    assert np.allclose(exact @ exact.T, near @ near.T, atol=0.02)


@pytest.mark.parametrize(
    "corpus", [[], [""], [""] * 5, ["", ""], ["one text"], ["one text", "two texts"], ["same"] * 5, ["the"]]
)
def test_the_smallest_corpora_are_enough(corpus: list[str]):
    embedder = TfidfEmbedder(corpus)

    vectors = embedder.embed(["one text", "one text", "quite another thing"])

    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.999 > 0.9 > vectors[0] @ vectors[2]


@pytest.mark.parametrize("name", ["word2vec", "sentence-transformers", "sentence-transformers:", ""])
def test_an_unknown_embedder_is_refused_with_the_known_forms(name: str):
    with pytest.raises(ConfigError, match="write 'tfidf' or 'sentence-transformers:PATH'"):
        build_embedder(name, CORPUS)


def test_the_default_is_built_by_name():
    assert np.array_equal(build_embedder("tfidf", CORPUS, 1).embed(CORPUS), TfidfEmbedder(CORPUS, 1).embed(CORPUS))


def test_a_model_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no embedding model at"):
        build_embedder(f"sentence-transformers:{tmp_path / 'none'}", CORPUS)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real sentence-transformers model of twelve words, saved to disk."""
    transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    names = ["[UNK]", "the", "a", "baker", "bread", "dough", "sailor", "boat", "sail", "bank", "loan", "money"]
    tokenizer = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    weights = np.random.default_rng(0).normal(size=(len(names), 16)).astype(np.float32) * 3
    folder = tmp_path_factory.mktemp("model")
    transformers.SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)]).save(str(folder))
    return folder


def test_a_model_on_disk_gives_unit_vectors(model_folder: Path):
    embedder = build_embedder(f"sentence-transformers:{model_folder}", CORPUS)

    vectors = embedder.embed(["the baker bread", "baker the bread", "sailor boat"])

    assert isinstance(embedder, SentenceEmbedder)
    assert (vectors.shape, vectors.dtype) == ((3, 16), np.float32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] == pytest.approx(1.0, abs=1e-5)
    assert vectors[0] @ vectors[2] < 0.9


def test_a_folder_that_holds_no_model_is_a_clear_error(tmp_path: Path):
    pytest.importorskip("sentence_transformers")
    (tmp_path / "modules.json").write_text("not json")

    with pytest.raises(EngineError, match="could not load the embedding model"):
        SentenceEmbedder(str(tmp_path))
