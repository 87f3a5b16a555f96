"""One tiny model and small data sets for all tests of training, and one thread, so that busy machines do not stall."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from matrix_dspy.training.tiny import build_tiny_model
from tests.training.material import build_conversations, build_pairs, write_rows


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="package")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "chats.jsonl", build_conversations(40))


@pytest.fixture(scope="package")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", build_pairs(40))
