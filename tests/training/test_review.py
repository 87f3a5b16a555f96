"""What a user who knows TRL would look at first: the same losses as TRL's own, and templates as families write them."""

import json
from pathlib import Path
from typing import Any

import pytest

from matrix_dspy.errors import RunError, TableError
from matrix_dspy.training.encoding import ChatEncoder, Encoded, Unfit
from matrix_dspy.training.folder import find_checkpoints, mark_complete, remove_broken
from matrix_dspy.training.preparing import read_source
from matrix_dspy.training.tiny import CHAT_TEMPLATE, build_tiny_model, build_tiny_tokenizer
from matrix_dspy.training.tuning import train
from matrix_dspy.types import Message
from tests.conftest import run_cli
from tests.training.material import build_pairs, fast, read_metrics, turn, write_rows

TURNS = (("One?", "First."), ("Two?", "Second, and last."))
ROLE_IN_MARKS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}<|role|>assistant<|text|>"
    "{{ m['content'] }}<|end|>{% endgeneration %}{% else %}<|role|>{{ m['role'] }}<|text|>{{ m['content'] }}<|end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|role|>assistant{% endif %}"
)
END_OF_ALL_IN_MARKS = (
    "{% for m in messages %}<|role|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|end|>{% endgeneration %}{% else %}{{ m['content'] }}<|end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|role|>assistant\n{% else %}{% generation %}{{ eos_token }}{% endgeneration %}"
    "{% endif %}"
)
BLANK_LINE = (
    "{{ bos_token }}{% for m in messages %}<|role|>{{ m['role'] }}<|text|>\n\n{{ m['content'] | trim }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|role|>assistant<|text|>\n\n{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant speak here') }}{% endif %}{% endfor %}"
)
BLANK_AT_END = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    "{% else %}\n{% endif %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
OTHER_ROLE = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "<|role|>{{ role }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|role|>model\n{% endif %}"
)
LEARNT = {
    "the role inside the marks": (ROLE_IN_MARKS, "<|text|>{}<|end|>"),
    "the end of all inside marks": (END_OF_ALL_IN_MARKS, "{}<|end|>"),
    "a blank line before an answer": (BLANK_LINE, "{}<|end|>"),
    "brackets": (BRACKETS, " {}<|stop|>"),
    "a blank at the prompt's end": (BLANK_AT_END, "{}<|stop|>"),
    "another role's name": (OTHER_ROLE, "{}<|end|>"),
}


def build_tokenizer(template: str) -> Any:
    """Return a tokenizer whose token for the end of a text is not the one that ends turns, and that begins with one."""
    tokenizer = build_tiny_tokenizer(template=template)
    tokenizer.add_special_tokens({"bos_token": "<|begin|>", "eos_token": "<|stop|>"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|role|>", "<|text|>", "<|end|>"]})
    return tokenizer


def chat(*said: tuple[str, str]) -> list[Message]:
    return [
        Message(role=role, content=words)
        for pair in said
        for role, words in zip(("user", "assistant"), pair, strict=True)
    ]


def encode(encoder: ChatEncoder, turns: list[Message]) -> Encoded:
    (found,) = encoder.encode([turns])
    assert isinstance(found, Encoded), found
    return found


def decode_learnt(encoder: ChatEncoder, found: Encoded) -> list[str]:
    return [encoder.tokenizer.decode(found.ids[first:end]) for first, end in found.turns]


@pytest.mark.parametrize("name", LEARNT)
def test_answers_and_the_ends_of_their_turns_are_learnt_and_nothing_else(name: str):
    template, form = LEARNT[name]
    encoder = ChatEncoder(build_tokenizer(template), "tiny")

    found = encode(encoder, chat(*TURNS))

    assert decode_learnt(encoder, found) == [form.format(answer) for _, answer in TURNS]
    assert found.ids.count(encoder.tokenizer.bos_token_id) == template.count("bos_token")


@pytest.mark.parametrize("name", LEARNT)
def test_an_answer_is_learnt_after_the_very_tokens_it_is_asked_for_with(name: str):
    tokenizer = build_tokenizer(LEARNT[name][0])
    encoder = ChatEncoder(tokenizer, "tiny")

    found = encode(encoder, chat(*TURNS))

    asked = tokenizer.apply_chat_template([turn("user", "One?")], add_generation_prompt=True, return_dict=True)
    assert found.ids[: found.turns[0][0]] == asked["input_ids"]
    assert encoder.encode_prompt(chat(*TURNS)[:1]) == asked["input_ids"]


@pytest.mark.parametrize(
    ("name", "end"),
    [("phi3", "<|end|>"), ("deepseek_r1_distill", "<\uff5cend\u2581of\u2581sentence\uff5c>"), ("glm4moe", "<|user|>")],
)
def test_trls_training_versions_are_taken_where_the_template_does_not_do(name: str, end: str):
    import trl

    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = build_tiny_tokenizer(template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": [end, "<\uff5cAssistant\uff5c>", "<|assistant|>"]})
    encoder = ChatEncoder(tokenizer, name)

    plain, thinking = encoder.encode([chat(*TURNS), chat(("Two?", "<think>\nHm.\n</think>\n\n2"))])

    assert isinstance(plain, Encoded) and isinstance(thinking, Encoded)
    answers = [text.rpartition("</think>")[2].strip() for text in decode_learnt(encoder, plain)]
    assert answers == [f"{answer}{end}" for _, answer in TURNS]
    assert "Hm." in decode_learnt(encoder, thinking)[0] and "Assistant" not in decode_learnt(encoder, thinking)[0]


def test_a_family_without_system_turns_leaves_them_out_and_keeps_the_others():
    encoder = ChatEncoder(build_tokenizer(BRACKETS), "tiny")

    kept, refused = encoder.encode([chat(*TURNS), [Message(role="system", content="Be brief."), *chat(*TURNS)]])

    assert isinstance(kept, Encoded)
    assert isinstance(refused, Unfit) and "only user and assistant speak here" in refused.detail


def train_bare(kind: Any, settings: Any, model: Path, rows: list[dict[str, Any]], out: Path, **own: Any) -> list[Any]:
    """Train as a plain TRL script does, and return the logs of its steps."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arguments = settings(
        output_dir=str(out),
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        num_train_epochs=1,
        logging_steps=1,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        gradient_checkpointing=False,
        log_level="error",
        max_length=256,
        **own,
    )
    trainer = kind(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.fixture(scope="module")
def no_line_ends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template has no line end behind turns, which TRL would learn in DPO and this package does not."""
    template = CHAT_TEMPLATE.replace("{% endgeneration %}\n", "{% endgeneration %}")
    return build_tiny_model(tmp_path_factory.mktemp("models") / "plain", template=template)


def test_the_figures_of_sft_are_those_of_a_plain_trl_script(no_line_ends: Path, tmp_path: Path):
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows = [
        {"id": f"r{n}", "messages": [turn("user", f"Say {n}."), turn("assistant", "so " * (1 + 7 * n % 23)), *more]}
        for n in range(20)
        for more in [[turn("user", "More?"), turn("assistant", f"No, {n}.")] if n % 3 else []]
    ]
    config = fast(batch=2, accumulation=4, epochs=1, eval_share=0)

    ours = train(config, write_rows(tmp_path / "r.jsonl", rows), str(no_line_ends), tmp_path / "out", stage="sft")

    plain = [{"messages": row["messages"]} for row in rows]
    own = {"assistant_only_loss": True, "learning_rate": 3e-3}
    theirs = train_bare(SFTTrainer, SFTConfig, no_line_ends, plain, tmp_path / "bare", **own)
    steps = read_metrics(ours.path)
    assert len(steps) == len(theirs) == 3
    for mine, other in zip(steps, theirs, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert mine["lr"] == pytest.approx(other["learning_rate"])


def test_the_figures_of_dpo_are_those_of_a_plain_trl_script(no_line_ends: Path, tmp_path: Path):
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    rows = build_pairs(20)
    config = fast(batch=2, accumulation=4, epochs=1, eval_share=0)

    ours = train(config, write_rows(tmp_path / "p.jsonl", rows), str(no_line_ends), tmp_path / "out", stage="dpo")

    plain = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    own = {"beta": 0.1, "learning_rate": 1e-3}
    theirs = train_bare(DPOTrainer, DPOConfig, no_line_ends, plain, tmp_path / "bare", **own)
    steps = read_metrics(ours.path)
    assert len(steps) == len(theirs) == 3
    for mine, other in zip(steps, theirs, strict=True):
        for name in ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"):
            assert mine[name] == pytest.approx(other[name], rel=1e-4, abs=1e-4)


def test_generation_ends_with_the_turn_where_the_end_of_a_text_is_another_token(tmp_path: Path):
    import torch
    import transformers

    tokenizer = build_tokenizer(BLANK_LINE)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"id": f"r{n}", "messages": chat_of(f"item {n}", "Yes, blue.")} for n in range(40)]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    settings = fast(max_steps=60, epochs=20, eval_share=0, n_samples=0)

    out = train(settings, source, str(tmp_path / "model"), tmp_path / "out", stage="sft").path

    tuned: Any = transformers.AutoModelForCausalLM.from_pretrained(out)
    saved: Any = transformers.AutoTokenizer.from_pretrained(out)
    asked = saved.apply_chat_template(
        [turn("user", "item 5")], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    reply = tuned.generate(**asked, max_new_tokens=40, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert saved.decode(reply) == "Yes, blue.<|end|>"
    assert str(tmp_path) not in (out / "README.md").read_text()


def chat_of(asked: str, answered: str) -> list[dict[str, str]]:
    return [turn("user", asked), turn("assistant", answered)]


def test_weights_that_are_no_numbers_are_not_laid_to_the_learning_rate(tiny: Path, conversations: Path, tmp_path: Path):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(tiny, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    next(each for name, each in weights.items() if "mlp" in name)[0, 0] = float("inf")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(RunError, match=r"at step 1 .*look whether the weights of the model are whole") as error:
        train(fast(max_steps=2), conversations, str(broken), tmp_path / "out", stage="sft")
    assert "learning_rate" not in str(error.value)


def test_what_a_killed_process_had_begun_to_write_is_no_obstacle(tiny: Path, conversations: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".train.json.4711.tmp").write_text("{")

    done = train(fast(max_steps=1), conversations, str(tiny), out, stage="sft")

    assert done.result["step"] == 1
    assert not list(out.glob(".*.tmp"))
    assert not any(line.startswith("speed") for line in done.lines)  # one step is no measure
    assert json.loads((out / "trained.json").read_text())["tokens_per_s"] == 0


def test_processes_without_a_launch_are_refused_rather_than_forgotten(tiny: Path, conversations: Path, tmp_path: Path):
    told = ("--model", str(tiny), "--out", str(tmp_path / "out"), "--processes", "2")

    ended = run_cli("train", "sft", str(conversations), *told)

    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "--processes 2 says nothing without --launch" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_columns_that_say_nothing_are_listed_with_the_command_that_takes_their_names(tmp_path: Path):
    source = write_rows(tmp_path / "rows.jsonl", [{"frage": "One?", "antwort": "First."}])

    with pytest.raises(TableError, match=r"it has columns 'frage', 'antwort'; write it in TRL's columns with export"):
        read_source(source, "sft")


def test_beta_seed_decay_and_clipping_reach_the_trainer(tiny: Path, pairs: Path, tmp_path: Path):
    changes: dict[str, dict[str, Any]] = {
        "as it is": {},
        "beta": {"dpo__beta": 0.5},
        "seed": {"seed": 1},
        "decay": {"weight_decay": 20.0},
        "clipped": {"max_grad_norm": 1e-9},
    }
    settings = {"max_steps": 3, "eval_share": 0, "warmup": 0}

    found = {
        name: read_metrics(
            train(fast(**settings, **change), pairs, str(tiny), tmp_path / name, stage="dpo").path,
        )
        for name, change in changes.items()
    }

    last = {name: steps[-1] for name, steps in found.items()}
    plain = last["as it is"]
    # a margin grows with beta times what the weights moved by
    assert last["beta"]["rewards/margins"] > 2 * plain["rewards/margins"] > 0
    assert found["seed"][0]["logps/chosen"] != found["as it is"][0]["logps/chosen"]
    assert abs(last["clipped"]["rewards/margins"]) < 0.1 * plain["rewards/margins"]
    assert abs(last["decay"]["logps/chosen"] - plain["logps/chosen"]) > 1e-3


def test_a_checkpoint_that_lost_a_part_of_a_file_is_not_whole(tmp_path: Path):
    folder = tmp_path / "checkpoints" / "checkpoint-3"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    assert find_checkpoints(tmp_path) == []
    mark_complete(folder)
    assert find_checkpoints(tmp_path) == [(3, folder)]

    (folder / "model.safetensors").write_bytes(b"weig")

    assert find_checkpoints(tmp_path) == []
    assert remove_broken(tmp_path) == ["checkpoint-3"] and not folder.exists()


def test_a_merged_model_ends_its_turns_as_the_adapter_was_taught(tmp_path: Path, conversations: Path):
    from transformers import AutoTokenizer

    model = build_tiny_model(tmp_path / "model")
    for name in ("config.json", "generation_config.json"):
        values = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(values | {"eos_token_id": 7}))

    out = train(fast("lora", max_steps=1, n_samples=0), conversations, str(model), tmp_path / "out", stage="sft").path

    end = AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("<|im_end|>")
    assert sorted(json.loads((out / "generation_config.json").read_text())["eos_token_id"]) == sorted([7, end])
