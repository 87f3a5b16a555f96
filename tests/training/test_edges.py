"""Odd models, files that are not whole, settings that do not go together, and starts in the middle of one."""

import json
import math
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from matrix_dspy.errors import ConfigError, MissingExtraError, RunError
from matrix_dspy.training.card import _figure
from matrix_dspy.training.encoding import ChatEncoder, Encoded
from matrix_dspy.training.folder import find_checkpoints, read_record
from matrix_dspy.training.preparing import drop_none, read_rows
from matrix_dspy.training.settings import TrainingConfig
from matrix_dspy.training.tiny import build_tiny_tokenizer
from matrix_dspy.training.tuning import Trained, find_launch, train
from matrix_dspy.types import Message
from tests.training.material import UNMARKED, fast, read_metrics, turn, write_rows
from tests.training.test_tuning import are_equal, load, read_weights


def tune(source: Path, model: Path, out: Path, config: TrainingConfig, lines: list[str] | None = None) -> Trained:
    lines = [] if lines is None else lines
    return train(config, source, str(model), out, stage="sft", say=lines.append)


def measure_held_out(done: Trained) -> float:
    """Return the mean loss of the saved model over all tokens held out."""
    import torch

    model = load(done.path)
    losses: list[float] = []
    for row in read_rows(done.path, "sft", done.prepared.held_out_up_to, is_eval=True):
        with torch.no_grad():
            logs = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        losses += [-logs[place - 1, token].item() for place, token in enumerate(row["labels"]) if token >= 0]
    return math.fsum(losses) / len(losses)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def broken(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models whose file of weights lacks one, is cut off, or has one of another shape."""
    from safetensors.torch import load_file, save_file

    place = tmp_path_factory.mktemp("broken")
    models = {name: Path(shutil.copytree(tiny, place / name)) for name in ("lacking", "cut", "shape")}
    weights = load_file(tiny / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    rest = {key: each for key, each in weights.items() if key != name}
    save_file(rest, models["lacking"] / "model.safetensors", metadata={"format": "pt"})
    save_file(
        rest | {name: weights[name][:5].clone()}, models["shape"] / "model.safetensors", metadata={"format": "pt"}
    )
    whole = (tiny / "model.safetensors").read_bytes()
    (models["cut"] / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return models


@pytest.mark.parametrize("layer", ["embed_tokens", "q_proj"])
def test_the_model_saved_is_the_one_measured_whatever_layer_is_adapted(
    tiny: Path, conversations: Path, tmp_path: Path, layer: str
):
    import torch

    from matrix_dspy.engine.transformers import load_model

    config = fast("lora", lora__target_modules=[layer], sft__learning_rate=5e-2, lora__dropout=0.0, epochs=1)

    done = tune(conversations, tiny, tmp_path / "out", config)

    said = done.result["held_out_last"]["eval_loss"]
    assert said < done.result["held_out_first"]["eval_loss"] - 0.2
    assert measure_held_out(done) == pytest.approx(said, abs=2e-3)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        put_on = load_model(tiny, done.path / "adapter")(ids).logits
        assert torch.allclose(put_on, load(done.path)(ids).logits, atol=1e-4)
    assert load(done.path).config.tie_word_embeddings == (layer == "q_proj")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lacking", r"1 weights of .* not in its files \(the first: model.layers.0.mlp.up_proj.weight\); give a whole"),
        ("cut", r"could not load the model .*; give a folder of a causal model"),
        ("shape", r"could not load the model .*; give a folder of a causal model"),
    ],
)
def test_weights_that_are_not_whole_are_refused(
    broken: dict[str, Path], conversations: Path, tmp_path: Path, name: str, words: str
):
    with pytest.raises(ConfigError, match=words) as error:
        tune(conversations, broken[name], tmp_path / "out", fast())
    assert "\n" not in str(error.value)


def test_a_training_killed_at_the_end_of_a_part_of_an_epoch_makes_no_further_step(
    tiny: Path, conversations: Path, tmp_path: Path
):
    config = fast(max_steps=3, schedule="constant_with_warmup", warmup=0.0)
    out = tmp_path / "out"
    tune(conversations, tiny, out, config)
    weights, metrics, samples = read_weights(out), read_metrics(out), (out / "samples.jsonl").read_bytes()
    (out / "trained.json").unlink()
    (out / "model.safetensors").unlink()
    lines: list[str] = []

    done = tune(conversations, tiny, out, config, lines)

    assert "goes on from step 3" in lines
    assert (done.result["step"], done.result["steps_of_last_start"]) == (3, 0)
    assert read_metrics(out) == metrics and (out / "samples.jsonl").read_bytes() == samples
    assert are_equal(read_weights(out), weights)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_numbers_to_draw_by_are_saved_with_drawing_switched_on(
    tiny: Path, conversations: Path, tmp_path: Path, method: str
):
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    edit_json(model / "generation_config.json", temperature=0.6, top_p=0.9)

    out = tune(conversations, model, tmp_path / "out", fast("lora", method=method, max_steps=1)).path

    saved = json.loads((out / "generation_config.json").read_text())
    assert (saved["temperature"], saved["top_p"], saved["do_sample"]) == (0.6, 0.9, True)


def test_settings_of_generation_that_cannot_be_saved_are_refused_before_training(
    tiny: Path, conversations: Path, tmp_path: Path
):
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    edit_json(model / "generation_config.json", early_stopping=True)

    with pytest.raises(
        ConfigError, match=r"generation_config.json of .* cannot be saved as it is \(.*early_stopping"
    ) as error:
        tune(conversations, model, tmp_path / "out", fast(max_steps=1))
    assert "\n" not in str(error.value)


def test_samples_stay_within_learned_positions(tmp_path: Path):
    import torch
    import transformers

    tokenizer = build_tiny_tokenizer(context=64)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=1, n_head=2, pad_token_id=0, **ends
    )
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"messages": [turn("user", f"{n} is?"), turn("assistant", "so " * 9)]} for n in range(20)]
    source = write_rows(tmp_path / "rows.jsonl", rows)

    out = tune(source, tmp_path / "model", tmp_path / "out", fast(max_steps=1, sample_tokens=500)).path

    replies = [json.loads(line)["reply"] for line in (out / "samples.jsonl").read_text().splitlines()]
    assert replies and all(0 < len(tokenizer(reply)["input_ids"]) < 64 for reply in replies)


def test_a_prompt_that_fills_the_context_loses_its_beginning(tiny: Path):
    import torch
    from accelerate import Accelerator
    from transformers import AutoTokenizer

    from matrix_dspy.training.watching import generate

    model = load(tiny)
    model.config.max_position_embeddings = 8
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, args, named: seen.append(named["input_ids"]), with_kwargs=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny)
    trainer = SimpleNamespace(accelerator=Accelerator(cpu=True), model_wrapped=model, processing_class=tokenizer)
    trainer.model = model

    generate(trainer, [list(range(10, 18)), [20, 21]], 5)

    assert seen[0].tolist() == [list(range(11, 18)), [tokenizer.pad_token_id] * 5 + [20, 21]]
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (["nope_proj"], "'nope_proj'"),
        (["embed_tokens", "lm_head"], "lm_head"),
        (["norm"], "LlamaRMSNorm"),
    ],
)
def test_layers_that_take_no_adapter_are_named_and_the_corrected_command_goes(
    tiny: Path, conversations: Path, tmp_path: Path, layers: list[str], words: str
):
    told = {"max_steps": 1, "n_samples": 0, "eval_share": 0}

    with pytest.raises(ConfigError, match=rf"lora.target_modules = \['{layers[0]}'.* will not do .*{words}") as error:
        tune(conversations, tiny, tmp_path / "out", fast("lora", lora__target_modules=layers, **told))
    done = tune(conversations, tiny, tmp_path / "out", fast("lora", lora__target_modules=["q_proj"], **told))

    assert "\n" not in str(error.value)
    assert done.result["step"] == 1
    record = read_record(done.path)
    assert record is not None and record["identity"]["lora"]["target_modules"] == ["q_proj"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora__target_modules": []}, r"lora.target_modules = \[\]"),
        ({"seed": 2**32}, "seed = 4294967296"),
        ({"max_steps": 10**20}, "max_steps = 1"),
        ({"batch": 10**20}, "batch = 1"),
        ({"accumulation": 2**31}, "accumulation = 2147483648"),
        ({"max_length": 2**31}, "max_length = 2147483648"),
    ],
)
def test_numbers_that_nothing_below_takes_are_refused_at_once(changes: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        fast(**changes)


def test_flex_attention_is_refused_where_it_cannot_learn(tiny: Path, conversations: Path, tmp_path: Path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="attention = 'flex_attention' needs a GPU, and there is none; use sdpa"):
        tune(conversations, tiny, tmp_path / "out", fast(attention="flex_attention"))


def test_steps_at_the_most_make_no_training_longer(tiny: Path, conversations: Path, tmp_path: Path):
    config = fast(max_steps=60, epochs=1, n_samples=0)

    done = tune(conversations, tiny, tmp_path / "out", config)

    assert done.result["step"] == math.ceil(done.prepared.n_train / 4)
    assert done.result["tokens"] == done.prepared.n_tokens


def test_another_interval_holds_from_the_next_start_on(tiny: Path, conversations: Path, tmp_path: Path):
    out = tmp_path / "out"
    told = {"max_steps": 6, "eval_share": 0, "keep_checkpoints": 9}

    def stop(line: str) -> None:
        if line.startswith("step 1 of"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("matrix_dspy.training.watching.SAY_EVERY_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            train(fast(**told, save_steps=2), conversations, str(tiny), out, stage="sft", say=stop)
    before = [step for step, _ in find_checkpoints(out)]
    tune(conversations, tiny, out, fast(**told, save_steps=1))

    assert before == [2]
    assert [step for step, _ in find_checkpoints(out)] == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("share", [0.001, 0.5])
def test_rows_that_cannot_be_divided_are_told_what_helps(tiny: Path, tmp_path: Path, share: float):
    row = {"messages": [turn("user", "One?"), turn("assistant", "First.")]}
    source = write_rows(tmp_path / "rows.jsonl", [row] * 3)

    with pytest.raises(ConfigError, match=r"all 3 rows would be held out; set eval_share=0: all rows share one id"):
        tune(source, tiny, tmp_path / "out", fast(eval_share=share))


def test_an_unknown_kind_of_model_is_said_in_a_sentence(tiny: Path, conversations: Path, tmp_path: Path):
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    (model / "config.json").write_text('{"model_type": "nothing-known"}')

    with pytest.raises(ConfigError, match=r"could not read the config of .*nothing-known") as error:
        tune(conversations, model, tmp_path / "out", fast())
    assert "\n" not in str(error.value) and len(str(error.value)) < 400 + len(str(model))


def test_a_folder_that_cannot_be_written_is_said(tiny: Path, conversations: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    if os.access(out, os.W_OK):  # the administrator writes anywhere; a folder in place of the lock stops him too
        (out / ".lock").mkdir()

    with pytest.raises(RunError, match=r"could not open the folder .*(permission denied|is a directory)"):
        tune(conversations, tiny, out, fast())


def test_advice_for_want_of_deepspeed_is_no_refusal_in_turn():
    from importlib.util import find_spec

    import torch

    if find_spec("deepspeed") or torch.cuda.is_available():
        pytest.skip("DeepSpeed is installed, or there is a GPU")
    with pytest.raises(MissingExtraError, match="deepspeed is not installed") as error:
        find_launch("zero2")
    assert find_launch(str(error.value).rpartition(" ")[2]).is_file()


def test_a_speed_that_was_not_measured_is_left_out_of_the_card(tiny: Path, conversations: Path, tmp_path: Path):
    once, twice = (
        (tune(conversations, tiny, tmp_path / str(n), fast(max_steps=n, n_samples=0)).path / "README.md").read_text()
        for n in (1, 2)
    )

    assert "tokens/s" not in once and " on CPU, " in once
    assert " tokens/s on CPU, " in twice


@pytest.mark.parametrize(
    ("value", "shown"), [(10291.4, "10,291"), (1e6, "1,000,000"), (9999.0, "9999"), (0.12345, "0.1235"), (12, "12")]
)
def test_figures_of_the_card_are_written_out(value: float, shown: str):
    assert _figure(value) == shown


OPENAI = {
    "messages": [
        turn("user", "One?"),
        turn("assistant", "First.") | {"weight": 0},
        turn("user", "Two?"),
        turn("assistant", "Second.") | {"weight": 1},
    ]
}


def test_turns_of_weight_nothing_are_shown_and_not_learnt(tiny: Path, tmp_path: Path):
    silent = [turn("user", "One?"), turn("assistant", "First.") | {"weight": 0}]
    half = [turn("user", "One?"), turn("assistant", "First.") | {"weight": 0.5}]
    rows = [OPENAI, {"id": "silent", "messages": silent}, {"id": "half", "messages": half}]
    source = write_rows(tmp_path / "rows.jsonl", rows)

    done = tune(source, tiny, tmp_path / "out", fast(max_steps=1, eval_share=0))

    (found,) = read_rows(done.path, "sft", -1.0, is_eval=False)
    tokenizer = build_tiny_tokenizer()
    assert "First." in tokenizer.decode(found["input_ids"])
    assert tokenizer.decode([label for label in found["labels"] if label >= 0]) == "Second.<|im_end|>"
    assert done.prepared.left_out == {"nothing to learn": 1, "other weight": 1}


TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "Finds a word.", "parameters": {}}}]
SHOWING = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"


@pytest.mark.parametrize("way", ["list", "JSON"])
def test_tools_are_shown_by_a_template_that_shows_them_and_counted_by_another(tiny: Path, tmp_path: Path, way: str):
    rows: list[dict[str, Any]] = [{"id": f"r{n}", **OPENAI} for n in range(3)]
    rows[0]["tools"] = TOOLS if way == "list" else json.dumps(TOOLS)
    rows[1]["tools"] = []
    hostile = [{"type": "function", "function": {"name": "x", "description": "<|im_end|>"}}]
    rows.append({"id": "hostile", **OPENAI, "tools": hostile})
    source = write_rows(tmp_path / "rows.jsonl", rows)
    template = tmp_path / "tools.jinja"
    template.write_text(SHOWING + (tiny / "chat_template.jinja").read_text())
    told = {"max_steps": 1, "eval_share": 0}
    lines: list[str] = []

    plain = tune(source, tiny, tmp_path / "plain", fast(**told), lines)
    shown = tune(source, tiny, tmp_path / "shown", fast(**told, chat_template=str(template)))

    tokenizer = build_tiny_tokenizer()
    texts = [tokenizer.decode(row["input_ids"]) for row in read_rows(shown.path, "sft", -1.0, is_eval=False)]
    assert [text.count("Finds a word.") for text in texts] == [1, 0, 0]
    assert texts[0].index("Finds a word.") < texts[0].index("One?")
    assert shown.prepared.left_out == {"special token": 1}
    assert "2 rows bring tools, which are not shown" in lines
    assert "2 rows bring tools, which are not shown" in (plain.path / "README.md").read_text()
    assert not any("tools" in note for note in shown.prepared.notes)


def test_tools_stand_before_what_is_learnt_in_a_template_without_marks():
    encoder = ChatEncoder(build_tiny_tokenizer(template=SHOWING + UNMARKED), "tiny")
    turns = [Message(role="user", content="One?"), Message(role="assistant", content="First.")]

    found, bare = encoder.encode([turns, turns], [TOOLS, []])

    assert encoder.shows_tools and encoder.way == "prefixes"
    assert isinstance(found, Encoded) and isinstance(bare, Encoded)
    assert encoder.tokenizer.decode([label for label in found.labels() if label >= 0]) == "First.<|im_end|>"
    assert found.ids[: found.turns[0][0]] == encoder.encode_prompt(turns[:1], TOOLS)
    assert found.ids[-len(bare.ids) :] == bare.ids and len(found.ids) > len(bare.ids)


def test_columns_that_other_rows_tools_have_are_no_part_of_a_tool():
    given = [{"name": "one", "strict": None, "parameters": {"type": "object", "of": [{"a": 1, "b": None}]}}]

    assert drop_none(given) == [{"name": "one", "parameters": {"type": "object", "of": [{"a": 1}]}}]
