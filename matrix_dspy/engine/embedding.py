"""Texts to unit vectors, so that "similar" means a dot product.

The default needs no model and no download: hashed word and character n-grams with TF-IDF weights, half of the vector
their main directions in a reference corpus (truncated SVD), half a fixed random sketch that keeps words the corpus
never saw. With the extra `embed`, any sentence-transformers model on disk takes its place.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from matrix_dspy.errors import ConfigError, EngineError, MissingExtraError, boundary

Vectors = np.ndarray
"""(n_texts, n_dims) float32, rows of unit length (zero for a text without words)."""


_N_EXACT = 2500
"""Texts: so many are two seconds of work on one core, and it grows with the third power."""


class Embedder(Protocol):
    """Turns texts into vectors; the same text gives the same vector in every run."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (n_texts, n_dims) float32 vectors of unit length."""
        ...


class TfidfEmbedder:
    """Hashed n-grams, TF-IDF weighted, reduced to `2 * n_dims` numbers; made by `fit`."""

    n_features = 2**16
    n_dims = 192

    def __init__(self, corpus: Sequence[str], seed: int = 0) -> None:
        """Learn weights and main directions from `corpus`; deterministic for a given corpus and seed."""
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

        shared: dict[str, Any] = {"n_features": self.n_features, "alternate_sign": False, "norm": None}
        self._words = HashingVectorizer(ngram_range=(1, 2), stop_words="english", **shared)
        self._characters = HashingVectorizer(analyzer="char_wb", ngram_range=(4, 5), **shared)
        counts = self._count(list(corpus) or [""])
        self._weights = TfidfTransformer(sublinear_tf=True).fit(counts)
        weighted: Any = self._weights.transform(counts)
        n_topics = min(self.n_dims, weighted.shape[0] - 1)
        self._topics: np.ndarray | None = None
        """(n_features, n_topics), laid out for the product in `embed`."""
        if n_topics >= 2:
            self._topics = np.ascontiguousarray(_find_topics(weighted, n_topics, seed))
        self._lexical = _build_sketch(self.n_features, self.n_dims, seed)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (n_texts, n_dims) float32 vectors of unit length."""
        if not texts:
            return np.zeros((0, self.embed(["any"]).shape[1]), dtype=np.float32)
        weighted: Any = self._weights.transform(self._count(list(texts)))
        parts = [_unit((weighted @ self._lexical).toarray())]
        if self._topics is not None:
            parts.append(_unit(weighted @ self._topics))
        # rounded, so that the order of additions in a linear algebra library cannot change a ranking
        return np.round(_unit(np.hstack(parts)), 5).astype(np.float32)

    def _count(self, texts: list[str]) -> Any:
        words: Any = self._words.transform(texts)
        characters: Any = self._characters.transform(texts)
        return words + 0.25 * characters  # characters catch inflections; four of them weigh as much as a word


class SentenceEmbedder:
    """A sentence-transformers model from a local path."""

    def __init__(self, path: str) -> None:
        if not Path(path).exists():
            raise ConfigError(f"no embedding model at {path!r}; give the path of a sentence-transformers folder")
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingExtraError(
                "sentence-transformers is not installed; pip install 'matrix-dspy[embed]'"
            ) from error
        with boundary(EngineError, f"load the embedding model {path!r}"):
            self._model = SentenceTransformer(path, local_files_only=True)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (n_texts, n_dims) float32 vectors of unit length."""
        vectors = self._model.encode(list(texts), batch_size=64, show_progress_bar=False, convert_to_numpy=True)
        return _unit(np.asarray(vectors, dtype=np.float32))


def build_embedder(name: str, corpus: Sequence[str], seed: int = 0) -> Embedder:
    """Return the embedder that `name` asks for, fitted on `corpus` where it needs fitting.

    Raises:
        ConfigError: `name` is neither `tfidf` nor `sentence-transformers:PATH`.
    """
    kind, _, path = name.partition(":")
    if kind == "tfidf":
        return TfidfEmbedder(corpus, seed)
    if kind == "sentence-transformers" and path:
        return SentenceEmbedder(path)
    raise ConfigError(f"unknown embedder {name!r}; write 'tfidf' or 'sentence-transformers:PATH'")


def _find_topics(weighted: Any, n_topics: int, seed: int) -> np.ndarray:
    """Return (n_features, at most `n_topics`): the main directions of `weighted`, a sparse row a text.

    Up to `_N_EXACT` texts they follow exactly from the texts' dot products, in a fifth of the time and less; beyond,
    randomly started iterations come close. One thread, so that they do not depend on the number of cores; on a busy
    machine the threads of linear algebra mostly wait for one another.
    """
    from threadpoolctl import threadpool_limits

    n_texts = weighted.shape[0]
    with threadpool_limits(1):
        if n_texts <= _N_EXACT:
            from scipy.linalg import eigh

            squares, texts = eigh((weighted @ weighted.T).toarray(), subset_by_index=(n_texts - n_topics, n_texts - 1))
            real = squares > squares[-1] * 1e-9  # equal texts span fewer directions than there are texts
            return weighted.T @ (texts[:, real] / np.sqrt(squares[real]))
        from sklearn.decomposition import TruncatedSVD

        with np.errstate(divide="ignore", invalid="ignore"):  # a corpus of equal texts has no variance to explain
            svd: Any = TruncatedSVD(n_components=n_topics, random_state=seed).fit(weighted)
        return svd.components_.T


def _build_sketch(n_features: int, n_dims: int, seed: int) -> Any:
    """Return a sparse (n_features, n_dims) matrix that adds each feature to one random place with a random sign.

    Such a count sketch keeps dot products on average, and costs one multiplication a feature.
    """
    from scipy.sparse import csr_matrix

    generator = np.random.default_rng(seed)
    signs = generator.choice(np.array([-1.0, 1.0]), n_features)
    places = generator.integers(0, n_dims, n_features)
    return csr_matrix((signs, (np.arange(n_features), places)), shape=(n_features, n_dims))


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-12)
