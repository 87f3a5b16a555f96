import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from matrix_dspy.bulk.folder import take_lock
from matrix_dspy.errors import ConfigError, MissingExtraError, RunError
from matrix_dspy.training.folder import find_checkpoints
from matrix_dspy.training.tiny import CHAT_TEMPLATE, build_tiny_model
from matrix_dspy.training.tuning import Trained, check_model, find_launch, read_trained, train
from tests.delivery.runs import write_run
from tests.starter import ROOT
from tests.training.material import (
    FAST,
    build_conversations,
    fast,
    read_left_out,
    read_metrics,
    turn,
    write_rows,
)

Say = Callable[[str], None]
RESUMED = {"epochs": 6, "save_steps": 4, "eval_steps": 6, "n_samples": 2}
"""54 steps."""


def say_nothing(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def tuned(tiny: Path, conversations: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """SFT in six epochs with checkpoints and evaluations on the way."""
    out = tmp_path_factory.mktemp("tuned") / "sft"
    return train(fast(**RESUMED), conversations, str(tiny), out, stage="sft", say=say_nothing)


@pytest.fixture(scope="module")
def preferred(tuned: Trained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """DPO of the model above on a run of rehearsed pairs."""
    place = tmp_path_factory.mktemp("preferred")
    said = [(f"Which colour has item {number}?", f"Item {number} is blue.") for number in range(30)]
    run = write_run(place / "run", said, kind="dpo", model="rehearsal")
    return train(fast(epochs=3), run, str(tuned.path), place / "dpo", stage="dpo", say=say_nothing)


@pytest.fixture(scope="module")
def adapted(tiny: Path, conversations: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """LoRA on the attention's layers."""
    config = fast("lora", lora__target_modules=["q_proj", "v_proj"], lora__r=4, sft__learning_rate=1e-2)
    out = tmp_path_factory.mktemp("adapted") / "lora"
    return train(config, conversations, str(tiny), out, stage="sft", say=say_nothing)


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def read_weights(folder: Path) -> dict[str, Any]:
    return load(folder).state_dict()


def are_equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(bool((first[key] == second[key]).all()) for key in first)


def test_the_loss_falls_and_the_model_answers_as_it_was_taught(tuned: Trained):
    losses = [line["loss"] for line in read_metrics(tuned.path)]

    assert losses[0] > 6.5
    assert losses[-1] < 2
    assert tuned.result["held_out_last"]["eval_loss"] < tuned.result["held_out_first"]["eval_loss"]
    replies = [json.loads(line) for line in (tuned.path / "samples.jsonl").read_text().splitlines()]
    assert [line["reply"][:4] for line in replies[-2:]] == ["Yes,", "Yes,"]


def test_every_step_has_a_line_of_figures(tuned: Trained):
    lines = [json.loads(line) for line in (tuned.path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]

    assert [line["step"] for line in steps] == list(range(1, tuned.result["step"] + 1))
    assert all({"loss", "lr", "grad_norm", "epoch", "tokens", "tokens_per_s"} <= line.keys() for line in steps)
    assert steps[-1]["tokens"] == tuned.result["tokens"] == 6 * tuned.prepared.n_tokens
    assert [line["step"] for line in lines if "eval_loss" in line] == [6, 12, 18, 24, 30, 36, 42, 48, 54]
    assert (tuned.path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_chosen_side_comes_to_be_preferred(preferred: Trained):
    steps = read_metrics(preferred.path)

    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert steps[-1]["rewards/accuracies"] == 1.0
    assert steps[-1]["rewards/margins"] > steps[0]["rewards/margins"] + 0.1
    assert preferred.result["held_out_last"]["eval_rewards/accuracies"] == 1.0


def test_precomputed_reference_figures_change_nothing(preferred: Trained, tuned: Trained, tmp_path: Path):
    config = fast(epochs=3, dpo__precompute_reference=True, max_steps=2)
    source = Path(preferred.prepared.source.path)

    done = train(config, source, str(tuned.path), tmp_path / "out", stage="dpo", say=say_nothing)

    (first, second), both = read_metrics(done.path), read_metrics(preferred.path)
    assert first["loss"] == pytest.approx(both[0]["loss"], rel=1e-5)
    assert second["rewards/margins"] == pytest.approx(both[1]["rewards/margins"], abs=1e-4)


def test_an_adapter_is_small_and_the_model_it_is_merged_into_loads(adapted: Trained, tiny: Path):
    import torch
    from peft import PeftModel

    assert 0 < adapted.result["n_trained"] < 0.05 * adapted.result["n_parameters"]
    ids = torch.arange(20)[None]
    with torch.no_grad():
        merged = load(adapted.path)(ids).logits
        beside: Any = PeftModel.from_pretrained(load(tiny), str(adapted.path / "adapter"))
        assert torch.allclose(merged, beside(ids).logits, atol=1e-4)
        assert not torch.allclose(merged, load(tiny)(ids).logits, atol=1e-2)
    assert adapted.result["last"]["loss"] < adapted.result["first"]["loss"]


def test_pairs_can_be_trained_with_an_adapter_on_a_tuned_model(adapted: Trained, pairs: Path, tmp_path: Path):
    config = fast("lora", dpo__learning_rate=1e-2, epochs=1)

    done = train(config, pairs, str(adapted.path), tmp_path / "out", stage="dpo", say=say_nothing)

    assert done.result["first"]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert done.result["last"]["loss"] < 0.6


def test_a_killed_training_goes_on_with_the_same_losses(
    tuned: Trained, tiny: Path, conversations: Path, tmp_path: Path
):
    out = tmp_path / "out"
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from tests.training.material import fast\n"
        "from matrix_dspy.training.tuning import train\n"
        f"train(fast(**{RESUMED!r}), Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), stage='sft')\n"
    )
    command = [sys.executable, "-c", script, str(conversations), str(tiny), str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and not any(step >= 8 for step, _ in find_checkpoints(out)):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    step, newest = find_checkpoints(out)[-1]
    assert step < 54
    # as if it had been killed while it wrote the next two
    (newest.parent / f"checkpoint-{step + 4}").mkdir(exist_ok=True)
    (newest.parent / f"checkpoint-{step + 4}" / "model.safetensors").write_bytes(b"half")
    torn = out / "metrics.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"step": 99, "lo')
    lines: list[str] = []

    done = train(fast(**RESUMED), conversations, str(tiny), out, stage="sft", say=lines.append)

    assert f"goes on from step {step}" in lines
    assert f"checkpoint-{step + 4} is not whole and was removed" in lines
    assert done.result["steps_of_last_start"] == 54 - step
    assert read_metrics(out) == read_metrics(tuned.path)
    assert read_metrics(out, is_eval=True) == read_metrics(tuned.path, is_eval=True)
    assert (out / "samples.jsonl").read_bytes() == (tuned.path / "samples.jsonl").read_bytes()
    assert are_equal(read_weights(out), read_weights(tuned.path))


def test_an_interrupt_saves_the_step_at_hand_and_nothing_is_lost(
    tuned: Trained, tiny: Path, conversations: Path, tmp_path: Path
):
    out = tmp_path / "out"
    lines: list[str] = []

    def interrupt_once(line: str) -> None:
        lines.append(line)
        if line.startswith("step 6: held-out"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(fast(**RESUMED), conversations, str(tiny), out, stage="sft", say=interrupt_once)
    stopped = find_checkpoints(out)[-1][0]
    done = train(fast(**RESUMED), conversations, str(tiny), out, stage="sft", say=say_nothing)

    assert stopped == 7
    assert lines[-1] == "stopped at step 7; the same command goes on from there"
    assert done.result["steps_of_last_start"] == 54 - 7
    assert read_metrics(out) == read_metrics(tuned.path)


def test_a_training_killed_after_its_last_step_saves_the_same_model(adapted: Trained, tiny: Path, conversations: Path):
    weights, metrics = read_weights(adapted.path), read_metrics(adapted.path)
    (adapted.path / "trained.json").unlink()
    (adapted.path / "model.safetensors").unlink()
    config = fast("lora", lora__target_modules=["q_proj", "v_proj"], lora__r=4, sft__learning_rate=1e-2)

    done = train(config, conversations, str(tiny), adapted.path, stage="sft", say=say_nothing)

    assert done.result["steps_of_last_start"] == 0
    assert read_metrics(adapted.path) == metrics
    assert are_equal(read_weights(adapted.path), weights)


def test_a_finished_training_is_left_as_it_is(tuned: Trained, tiny: Path, conversations: Path):
    before = {path: path.stat().st_mtime_ns for path in tuned.path.iterdir() if path.name != ".lock"}

    again = train(fast(**RESUMED), conversations, str(tiny), tuned.path, stage="sft", say=say_nothing)

    assert again.was_finished
    assert "is finished already" in again.lines[0]
    assert again == replace(read_trained(tuned.path), was_finished=True)
    assert before == {path: path.stat().st_mtime_ns for path in tuned.path.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"batch": 2}, "batch = 4, not 2"), ({"sft__learning_rate": 1e-4}, r"sft.learning_rate = 0.003, not 0.0001")],
)
def test_another_setting_in_the_same_folder_is_named(
    tuned: Trained, tiny: Path, conversations: Path, changes: dict[str, Any], words: str
):
    with pytest.raises(ConfigError, match=f"holds a training with {words}; .*--fresh"):
        train(fast(**RESUMED | changes), conversations, str(tiny), tuned.path, stage="sft", say=say_nothing)


def test_other_data_and_another_model_are_other_trainings(tuned: Trained, tiny: Path, tmp_path: Path):
    other = write_rows(tmp_path / "other.jsonl", build_conversations(20))

    with pytest.raises(ConfigError, match="holds a training with data = "):
        train(fast(**RESUMED), other, str(tiny), tuned.path, stage="sft", say=say_nothing)
    with pytest.raises(ConfigError, match="holds a training with model = "):
        source = Path(tuned.prepared.source.path)
        train(fast(**RESUMED), source, str(tuned.path), tuned.path, stage="sft", say=say_nothing)


def test_how_often_is_saved_may_change(tuned: Trained, tiny: Path, conversations: Path):
    config = fast(**RESUMED | {"save_steps": 10, "keep_checkpoints": 5})

    assert train(config, conversations, str(tiny), tuned.path, stage="sft", say=say_nothing).was_finished


def test_a_folder_of_something_else_is_refused(tiny: Path, conversations: Path, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("mine")

    with pytest.raises(RunError, match=r"holds something else \('thesis.tex'\)"):
        train(fast(), conversations, str(tiny), tmp_path, stage="sft", say=say_nothing)


def test_two_trainings_do_not_share_a_folder(tiny: Path, conversations: Path, tmp_path: Path):
    lock = take_lock(tmp_path)

    with pytest.raises(RunError, match="another process is working on"):
        train(fast(), conversations, str(tiny), tmp_path, stage="sft", say=say_nothing)

    lock.release()


def test_a_loss_that_is_no_number_stops_with_the_last_good_checkpoint(tiny: Path, conversations: Path, tmp_path: Path):
    import torch

    config = fast(sft__learning_rate=1e30, save_steps=1, warmup=0.5, eval_share=0)

    with pytest.raises(RunError, match=r"is (nan|inf) at step \d+ .*last good checkpoint is .*sft.learning_rate"):
        train(config, conversations, str(tiny), tmp_path / "out", stage="sft", say=say_nothing)

    (*_, (step, checkpoint)) = find_checkpoints(tmp_path / "out")
    assert all(bool(torch.isfinite(each).all()) for each in read_weights(checkpoint).values())
    assert max(line["step"] for line in read_metrics(tmp_path / "out")) >= step
    with pytest.raises(RunError, match="is not finished"):
        read_trained(tmp_path / "out")


def test_rows_packed_together_cost_what_they_cost_alone(tiny: Path, tmp_path: Path):
    source = write_rows(tmp_path / "rows.jsonl", build_conversations(30))
    changes = {"max_steps": 1, "eval_share": 0, "max_length": 2048, "warmup": 0}

    packed, alone = (
        train(config, source, str(tiny), tmp_path / name, stage="sft", say=say_nothing).result
        for name, config in (
            ("packed", fast(**changes, sft__packing=True, batch=1)),
            ("alone", fast(**changes, batch=30)),
        )
    )

    assert packed["tokens"] == alone["tokens"]
    assert packed["first"]["loss"] == pytest.approx(alone["first"]["loss"], rel=1e-5)
    assert packed["first"]["grad_norm"] == pytest.approx(alone["first"]["grad_norm"], rel=1e-3)


def test_a_model_whose_attention_sees_beyond_its_row_is_not_packed(tiny: Path):
    import torch
    from accelerate import Accelerator
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from matrix_dspy.training.fitting import check_packing

    class Leaky(torch.nn.Module):
        """A model that takes what is packed for one row."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = load(tiny)
            self.config = self.inner.config

        def get_input_embeddings(self) -> Any:
            return self.inner.get_input_embeddings()

        @property
        def device(self) -> Any:
            return self.inner.device

        def forward(self, input_ids: Any, **_: Any) -> Any:
            return self.inner(input_ids)

    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    accelerator = Accelerator(cpu=True)
    sound, leaky = (
        SimpleNamespace(model=model, data_collator=collator, accelerator=accelerator) for model in (load(tiny), Leaky())
    )

    check_packing(sound, "tiny")
    with pytest.raises(ConfigError, match=r"would see each other in 'tiny' .* set sft.packing=false"):
        check_packing(leaky, "tiny")


def test_full_memory_and_a_full_disk_say_what_to_do(tmp_path: Path):
    import torch

    from matrix_dspy.training.fitting import explain_faults
    from matrix_dspy.training.preparing import Prepared, Source

    told = tmp_path, fast(), Prepared(Source("a", "a", "sft", ""), 1, 0, 1, 1, 900, 1024, 0, {}, -1.0)

    with (
        pytest.raises(RunError, match=r"out of memory with batch = 4 and max_length = 1,024; set batch=1 and accum"),
        explain_faults(*told),
    ):
        torch.empty(1 << 55, dtype=torch.uint8)
    if Path("/dev/full").exists():
        with pytest.raises(RunError, match=r"no space left on device; free some space"), explain_faults(*told):
            torch.save(torch.zeros(1 << 18), "/dev/full")
    with pytest.raises(RuntimeError, match="something else"), explain_faults(*told):
        raise RuntimeError("something else")


def test_what_an_orphan_still_trains_is_left_to_it(tuned: Trained, tiny: Path, conversations: Path, tmp_path: Path):
    out = shutil.copytree(tuned.path, tmp_path / "out")
    (out / "trained.json").unlink()
    lock = take_lock(out / "checkpoints")

    with pytest.raises(RunError, match=r"another process is working on .*checkpoints"):
        train(fast(**RESUMED), conversations, str(tiny), out, stage="sft", say=say_nothing)

    lock.release()


def test_a_model_without_template_takes_one_and_keeps_it(conversations: Path, tmp_path: Path):
    bare = build_tiny_model(tmp_path / "bare", template=None, pad_token=None)
    template = tmp_path / "chat.jinja"
    template.write_text(CHAT_TEMPLATE)
    out = tmp_path / "out"
    lines: list[str] = []

    with pytest.raises(ConfigError, match=r"has no chat template; give one with --chat-template FILE"):
        train(fast(max_steps=1), conversations, str(bare), tmp_path / "none", stage="sft", say=say_nothing)
    with pytest.raises(ConfigError, match=r"has no chat template"):
        check_model(str(bare), fast())
    train(fast(max_steps=1, chat_template=str(template)), conversations, str(bare), out, stage="sft", say=lines.append)

    assert (out / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert json.loads((out / "tokenizer_config.json").read_text())["pad_token"] == "<|endoftext|>"
    assert any("has no pad token; pads with '<|endoftext|>'" in line for line in lines)


def test_weights_are_saved_in_the_type_they_came_in(tiny: Path, conversations: Path, tmp_path: Path):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    half = tmp_path / "half"
    load(tiny).to(torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(half)

    done = train(fast(max_steps=2), conversations, str(half), tmp_path / "out", stage="sft", say=say_nothing)

    assert {each.dtype for each in load_file(done.path / "model.safetensors").values()} == {torch.bfloat16}
    assert load(done.path).dtype == torch.bfloat16
    checkpoint = find_checkpoints(done.path)[-1][1]
    assert {each.dtype for each in load_file(checkpoint / "model.safetensors").values()} == {torch.float32}


def test_rows_longer_than_the_models_context_are_left_out_and_it_is_said(conversations: Path, tmp_path: Path):
    short = build_tiny_model(tmp_path / "short", context=80)
    rows = [*build_conversations(20), {"id": "long", "messages": [turn("user", "?"), turn("assistant", "word " * 100)]}]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    lines: list[str] = []

    done = train(fast(max_steps=1), source, str(short), tmp_path / "out", stage="sft", say=lines.append)

    assert done.prepared.limit == 80
    assert "rows may have 80 tokens, the model's own limit, not 256" in lines
    assert read_left_out(done.path) == {"long": "too long"}
    assert "left out: 1 too long; see" in "\n".join(done.lines)


def test_the_card_says_what_was_trained_on_what(tuned: Trained):
    from huggingface_hub import ModelCard

    card = (tuned.path / "README.md").read_text()
    front = ModelCard(card).data.to_dict()

    assert front["library_name"] == "transformers"
    assert (front["base_model"], front["datasets"]) == ("tiny", ["chats"])
    assert {"trl", "sft"} <= set(front["tags"])
    assert tuned.prepared.source.sha256 in card
    assert "Effective batch: **4** (4 rows x 1 accumulated x 1 processes)" in card
    assert "| sft.learning\\_rate | 0.003 |" in card
    assert f"| rows trained on | {tuned.prepared.n_train} |" in card
    for package in ("torch", "transformers", "trl", "peft"):
        assert f"{package} " in card
    assert "ehearsed" not in card


def test_the_card_of_a_chain_names_every_stage_and_that_data_was_rehearsed(preferred: Trained, tuned: Trained):
    card = (preferred.path / "README.md").read_text()

    assert "**Rehearsed data: proof of plumbing only.**" in card
    assert "| dpo | sft | run | dpo |" in card
    assert f"| sft | tiny | chats | messages | `{tuned.prepared.source.sha256[:16]}` |" in card
    assert "note:     rehearsed data: proof of plumbing only" in preferred.lines


def test_train_json_has_everything_that_a_training_is(tuned: Trained):
    record = json.loads((tuned.path / "train.json").read_text())

    assert record["identity"]["data"] == tuned.prepared.source.sha256
    assert len(record["model"]["sha256"]) == 64
    assert record["settings"]["sft"]["learning_rate"] == FAST["sft.learning_rate"]
    assert {"torch", "trl", "transformers"} <= record["versions"].keys()
    assert (record["seed"], record["effective_batch"]) == (0, 4)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"method": "qlora"}, ConfigError, "method = 'qlora' needs a GPU"),
        ({"precision": "bf16"}, ConfigError, "precision = 'bf16' needs a GPU"),
        ({"attention": "flash_attention_2"}, ConfigError, "attention = 'flash_attention_2' needs a GPU"),
    ],
)
def test_what_the_machine_cannot_do_is_said_first(
    tiny: Path, conversations: Path, tmp_path: Path, changes: dict[str, Any], kind: type[Exception], words: str
):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(kind, match=words):
        train(fast(**changes), conversations, str(tiny), tmp_path / "out", stage="sft", say=say_nothing)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("/nowhere/model", r"no model '/nowhere/model'; give a model's folder, or OWNER/NAME"),
        ("adapter", r"holds an adapter only; give the folder of the model it is merged into"),
        ("empty", r"holds no model \(config.json\)"),
    ],
)
def test_a_model_that_is_none_is_said(adapted: Trained, conversations: Path, tmp_path: Path, model: str, words: str):
    (tmp_path / "empty").mkdir()
    name = {"adapter": str(adapted.path / "adapter"), "empty": str(tmp_path / "empty")}.get(model, model)

    with pytest.raises(ConfigError, match=words):
        train(fast(), conversations, name, tmp_path / "out", stage="sft", say=say_nothing)


def test_a_launch_that_is_unknown_is_said(tmp_path: Path):
    with pytest.raises(ConfigError, match="no launch configuration 'zero9'; did you mean 'zero2'"):
        find_launch("zero9")


def test_sharding_without_a_gpu_is_refused_rather_than_left_out():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="--launch fsdp shares a model out over GPUs, and there is none"):
        find_launch("fsdp")


def test_zero2_needs_deepspeed():
    from importlib.util import find_spec

    if find_spec("deepspeed"):
        pytest.skip("DeepSpeed is installed")
    with pytest.raises(MissingExtraError, match="deepspeed is not installed"):
        find_launch("zero2")
