from pathlib import Path

from matrix_dspy.training.tuning import train
from tests.training.material import UNMARKED, fast


def test_the_card_names_no_folder_of_this_machine(tiny: Path, conversations: Path, tmp_path: Path):
    template = tmp_path / "atelier" / "own.jinja"
    template.parent.mkdir()
    template.write_text(UNMARKED)
    lines: list[str] = []

    config = fast(chat_template=str(template), max_steps=1, eval_share=0)
    done = train(config, conversations, str(tiny), tmp_path / "out", stage="sft", say=lines.append)

    card = (done.path / "README.md").read_text()
    assert "own.jinja" in card
    assert "atelier" not in card and str(tiny.parent) not in card
