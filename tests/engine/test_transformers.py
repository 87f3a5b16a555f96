"""A tiny model run by transformers, held against transformers' own `generate`."""

import asyncio
import json
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from matrix_dspy import load_program, run_program
from matrix_dspy.engine.base import Completion, Request, Sampling, TransientError
from matrix_dspy.engine.spec import build_engine
from matrix_dspy.engine.transformers import Options, TransformersEngine, load_model, load_tokenizer
from matrix_dspy.errors import ConfigError, MissingExtraError
from matrix_dspy.training.tiny import CHAT_TEMPLATE, build_tiny_model

torch = pytest.importorskip("torch", reason="the extra train is not installed")
transformers = pytest.importorskip("transformers", reason="the extra train is not installed")

WORDS = ["a", "river", "of", "small", "words", "runs", "past", "the", "old", "house", "and", "nobody", "counts"]
CONTEXT = 512

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny", context=CONTEXT, spread=0.2)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of the model's folder, to be spoilt."""
    return shutil.copytree(folder, tmp_path / "copied")


def talk(number: int) -> list[dict[str, str]]:
    """Return messages whose length differs from number to number."""
    words = random.Random(number).choices(WORDS, k=1 + number * 7 % 40)
    return [{"role": "user", "content": " ".join(words)}]


def ask_for(number: int, **sampling: Any) -> Request:
    return Request(talk(number), Sampling(**{"max_tokens": 12, "temperature": 1.0} | sampling))


def ask(engine: TransformersEngine, requests: Sequence[Request]) -> list[Completion]:
    """Open the engine, complete all requests at once and close it."""

    async def work() -> list[Completion]:
        async with engine:
            return await asyncio.gather(*map(engine.complete, requests))

    return asyncio.run(work())


def ask_folder(folder: Path, *requests: Request, **options: Any) -> list[Completion]:
    return ask(TransformersEngine(str(folder), Options(**options), concurrency=256), requests)


def generate(folder: Path, messages: list[dict[str, str]], model: Any = None, **how: Any) -> str:
    """Answer greedily with transformers alone, one prompt at a time."""
    model, tokenizer = model or load_model(folder), load_tokenizer(folder)
    given = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    said = model.generate(**given, do_sample=False, **{"max_new_tokens": 12} | how)[0, given["input_ids"].shape[1] :]
    return tokenizer.decode(said, skip_special_tokens=True).rstrip("\ufffd")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def open_spec(spec: str) -> None:
    ask(TransformersEngine.from_spec(spec), [])


def test_greedy_answers_are_those_of_generate(folder: Path):
    # near ties would make this a lottery: none of these prompts has one
    completions = ask_folder(folder, *(ask_for(number, temperature=0.0) for number in range(12)), batch=5)

    model = load_model(folder)
    assert [completion.texts[0] for completion in completions] == [
        generate(folder, talk(number), model) for number in range(12)
    ]
    assert {completion.finish_reasons for completion in completions} <= {("length",), ("stop",)}


def test_a_seed_gives_the_same_text_in_batches_of_any_size(folder: Path):
    # lengths differ, so that rows leave and join all the time
    requests = [ask_for(number, seed=number, n=1 + number % 3, max_tokens=4 + number % 9) for number in range(24)]

    one, few, many = (ask_folder(folder, *requests, batch=batch) for batch in (1, 5, 64))

    texts = [completion.texts for completion in one]
    assert texts == [completion.texts for completion in few]
    assert texts == [completion.texts for completion in reversed(ask_folder(folder, *reversed(requests), batch=7))]
    assert texts == [completion.texts for completion in many]
    assert [len(set(each)) for each in texts] == [1 + number % 3 for number in range(24)]


def test_other_seeds_and_none_give_other_texts(folder: Path):
    requests = [ask_for(3, seed=seed) for seed in (1, 2, 1, None, None)]

    first, other, again, free, freer = (completion.texts for completion in ask_folder(folder, *requests))

    assert first == again
    assert len({first, other, free, freer}) == 4


def test_an_engine_can_keep_seeds_to_itself(folder: Path):
    engine = TransformersEngine(str(folder), send_seeds=False)

    assert len({completion.texts for completion in ask(engine, [ask_for(3, seed=1)] * 3)}) == 3


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}, {"temperature": 1e-7}])
def test_narrow_sampling_is_greedy(folder: Path, narrow: dict[str, Any]):
    greedy, narrowed = ask_folder(folder, ask_for(5, temperature=0.0), ask_for(5, **{"temperature": 1.5} | narrow))

    assert narrowed.texts == greedy.texts


def test_rows_of_one_batch_keep_their_own_dials(folder: Path):
    dials: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.2, "seed": 1},
        {"top_k": 3, "seed": 2},
        {"top_p": 0.3, "seed": 3, "repetition_penalty": 1.4},
        {"min_p": 0.4, "seed": 4, "max_tokens": 3},
        {"top_k": 9, "top_p": 0.8, "seed": 5, "logprobs": 2},
    ]
    requests = [ask_for(number, **dial) for number, dial in enumerate(dials)]

    together = ask_folder(folder, *requests, batch=6)

    alone = ask_folder(folder, *requests, batch=1)
    assert [each.texts for each in together] == [each.texts for each in alone]
    assert [each.completion_tokens for each in together] == [12, 12, 12, 12, 3, 12]


def test_a_repetition_penalty_is_that_of_generate(folder: Path):
    numbers = range(4)

    completions = ask_folder(
        folder, *(ask_for(number, temperature=0.0, max_tokens=30, repetition_penalty=1.5) for number in numbers)
    )

    free, held = (
        [generate(folder, talk(number), max_new_tokens=30, repetition_penalty=penalty) for number in numbers]
        for penalty in (1.0, 1.5)
    )
    assert [completion.texts[0] for completion in completions] == held != free


def test_a_stop_string_ends_the_text_and_is_not_in_it(folder: Path):
    whole = ask_folder(folder, ask_for(2, seed=4, max_tokens=30))[0].texts[0]
    stops = (whole[21:24], whole[9:13])

    (completion,) = ask_folder(folder, ask_for(2, seed=4, max_tokens=30, stop=stops))

    assert completion.texts == (whole[: min(map(whole.index, stops))],)
    assert completion.finish_reasons == ("stop",)
    assert completion.completion_tokens < 30


def test_a_stop_string_beyond_the_answer_changes_nothing(folder: Path):
    free, held = ask_folder(folder, ask_for(2, seed=4), ask_for(2, seed=4, stop=("nowhere in it", "")))

    assert (held.texts, held.finish_reasons) == (free.texts, ("length",))


def test_counts_and_reasons_are_those_of_the_answers(folder: Path):
    (completion,) = ask_folder(folder, ask_for(1, n=3, max_tokens=5, seed=0))

    template = load_tokenizer(folder).apply_chat_template(talk(1), add_generation_prompt=True, return_dict=True)
    assert completion.prompt_tokens == len(template["input_ids"])
    assert (len(completion.texts), completion.completion_tokens) == (3, 15)
    assert completion.finish_reasons == ("length",) * 3
    assert completion.seconds > 0 and completion.logprobs is None


def test_an_end_token_of_the_generation_config_ends_the_text(copied: Path):
    ends = range(600, 900)
    edit_json(copied / "generation_config.json", eos_token_id=[2, *ends])

    completions = ask_folder(copied, *(ask_for(number, seed=number, max_tokens=90, logprobs=1) for number in range(8)))

    tokenizer = load_tokenizer(copied)
    words = {tokenizer.decode([end]) for end in ends} | {"<|im_end|>"}
    assert {completion.finish_reasons for completion in completions} == {("stop",)}
    for completion in completions:
        assert completion.logprobs is not None
        *before, last = (place["token"] for place in completion.logprobs[0])
        assert last in words and not words & set(before)
        assert len(before) == completion.completion_tokens - 1


def test_the_models_own_sampling_holds_where_a_request_is_silent(copied: Path):
    edit_json(copied / "generation_config.json", do_sample=True, top_k=1)

    silent, wide, greedy = ask_folder(copied, ask_for(1), ask_for(1, top_k=0), ask_for(1, temperature=0.0))

    assert silent.texts == greedy.texts != wide.texts


def test_logprobs_are_the_models_own(folder: Path):
    (completion,) = ask_folder(folder, ask_for(7, n=2, seed=1, temperature=2.0, top_k=50, logprobs=3, max_tokens=6))

    assert completion.logprobs is not None
    places = completion.logprobs[1]
    assert len(places) == 6 and all(len(place["top_logprobs"]) == 3 for place in places)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    prompt = tokenizer.apply_chat_template(talk(7), add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.inference_mode():
        logs = model(prompt["input_ids"]).logits[0, -1].log_softmax(-1)
    top = logs.topk(3)
    first = places[0]["top_logprobs"]
    assert [each["token"] for each in first] == [tokenizer.decode([token]) for token in top.indices.tolist()]
    assert [each["logprob"] for each in first] == pytest.approx(top.values.tolist(), abs=1e-4)
    by_token = {tokenizer.decode([token]): logs[token].item() for token in range(len(logs))}
    assert places[0]["logprob"] == pytest.approx(by_token[places[0]["token"]], abs=1e-4)


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(folder: Path):
    long = Request([{"role": "user", "content": "word " * (2 * CONTEXT)}])

    refused, fine = ask_folder(folder, long, ask_for(1))

    assert refused.error is not None and f"context holds {CONTEXT}" in refused.error
    n_said = int(refused.error.split("the prompt has ")[1].split()[0])
    assert n_said > 2 * CONTEXT
    assert fine.is_ok


def test_a_long_limit_is_cut_to_what_the_context_leaves(folder: Path):
    (completion,) = ask_folder(folder, ask_for(5, max_tokens=10**6, seed=0), max_model_len=140)

    assert completion.prompt_tokens + completion.completion_tokens == 140
    assert completion.finish_reasons == ("length",)


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"temperature": -1.0}, "temperature must be 0 or more, not -1.0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_k": -2}, "top_k must be 1 or more"),
        ({"min_p": 1.5}, "min_p must be from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more"),
        ({"temperature": float("nan")}, "temperature must be 0 or more, not nan"),
        ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs cannot set 'tokenize'"),
    ],
)
def test_sampling_that_will_not_do_is_refused(folder: Path, sampling: dict[str, Any], words: str):
    refused, fine = ask_folder(folder, ask_for(1, **sampling), ask_for(1))

    assert refused.error is not None and words in refused.error
    assert fine.is_ok


def test_a_conversation_and_switches_reach_the_template(copied: Path):
    (copied / "chat_template.jinja").write_text("{% if mood %}be {{ mood }}\n{% endif %}" + CHAT_TEMPLATE)
    turns = [("system", "be brief"), ("user", "one"), ("assistant", "two"), ("user", "three")]
    messages = [{"role": role, "content": words} for role, words in turns]
    parts = [{"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}]
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": "data:"}]}]
    moody = Sampling(max_tokens=2, chat_template_kwargs={"mood": "calm today"})

    whole, start, calm, split, joined, seen = ask_folder(
        copied,
        Request(messages, Sampling(max_tokens=2)),
        Request(messages[:2], Sampling(max_tokens=2)),
        Request(messages[:2], moody),
        Request(parts, Sampling(max_tokens=2)),
        Request([{"role": "user", "content": "one two"}], Sampling(max_tokens=2)),
        Request(image),
    )

    assert whole.prompt_tokens > start.prompt_tokens
    assert calm.prompt_tokens > start.prompt_tokens
    assert split.prompt_tokens == joined.prompt_tokens
    assert seen.error == "the messages hold more than text, which the model does not read"


def test_a_template_that_refuses_the_messages_refuses_one_request(copied: Path):
    (copied / "chat_template.jinja").write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
        + CHAT_TEMPLATE
    )

    refused, fine = ask_folder(copied, Request([{"role": "system", "content": "x"}]), ask_for(1))

    assert refused.error == "the chat template refuses the messages: no system role here"
    assert fine.is_ok


def test_a_program_runs_on_it_row_by_row(copied: Path):
    edit_json(copied / "generation_config.json", eos_token_id=[2, *range(900, 950)])
    frame = pl.DataFrame({"instruction": [" ".join(random.Random(n).choices(WORDS, k=4)) for n in range(60)]})
    responder = load_program("responder")

    first, again = (
        run_program(responder, frame, lm=f"transformers:{copied}?batch={batch}", concurrency=64, max_tokens=300, seed=3)
        for batch in (16, 64)
    )

    assert first["error"].null_count() > 40, first["error"].unique().to_list()
    assert first["response"].to_list() == again["response"].to_list()
    assert first["response"].n_unique() > 40
    assert first["model"].unique().to_list() == ["copied"]


def test_calls_that_wait_when_it_is_closed_are_told_so(folder: Path):
    async def work() -> list[Completion]:
        engine = TransformersEngine(str(folder), Options(batch=2), concurrency=64)
        async with engine:
            calls = [asyncio.create_task(engine.complete(ask_for(n, max_tokens=400))) for n in range(12)]
            await asyncio.sleep(0.1)
        return await asyncio.gather(*calls)

    downs = {completion.down for completion in asyncio.run(work())}

    assert "the engine was closed before the answer was there" in downs


def test_calls_that_are_given_up_leave_the_batch(folder: Path):
    async def work() -> tuple[bool, Completion]:
        async with TransformersEngine(str(folder), Options(batch=4), concurrency=64) as engine:
            calls = [asyncio.create_task(engine.complete(ask_for(n, max_tokens=480))) for n in range(12)]
            await asyncio.sleep(0.1)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            after = await engine.complete(ask_for(1, max_tokens=2))
            assert engine._worker is not None
            return engine._worker._decoder.has_work, after

    has_work, after = asyncio.run(work())

    assert after.is_ok and not has_work


def test_an_answer_over_its_time_may_be_tried_again(folder: Path):
    async def work() -> Completion:
        async with TransformersEngine(str(folder), timeout_s=0.02) as engine:
            return await engine.attempt(ask_for(1, max_tokens=480), 0)

    with pytest.raises(TransientError, match=r"no answer within 0\.02 s") as caught:
        asyncio.run(work())

    assert caught.value.may_be_request


def test_it_can_be_opened_again(folder: Path):
    engine = TransformersEngine(str(folder))

    first, second = (ask(engine, [ask_for(1, seed=1)])[0].texts for _ in range(2))

    assert first == second


def test_weights_that_are_no_numbers_are_said(copied: Path):
    model = load_model(copied)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(copied)

    (completion,) = ask_folder(copied, ask_for(1, logprobs=1))

    assert completion.error == "the model gives no numbers for the next token, but infinities or NaN"


def test_a_model_that_fails_is_down_and_stays_so(copied: Path):
    # its tokenizer knows tokens that it does not
    build_tiny_model(copied, vocab=300, context=CONTEXT)
    build_tiny_model(copied.parent / "large", context=CONTEXT)
    shutil.copyfile(copied.parent / "large" / "tokenizer.json", copied / "tokenizer.json")

    async def work() -> list[Completion]:
        async with TransformersEngine(str(copied)) as engine:
            return [await engine.complete(ask_for(number)) for number in (1, 2)]

    reasons = {completion.down for completion in asyncio.run(work())}

    assert reasons == {"transformers has failed under 'copied': index out of range in self"}


def test_nothing_is_asked_of_the_network(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: Any) -> None:
        raise AssertionError(f"a connection to {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    assert ask_folder(folder, ask_for(1))[0].is_ok
    with pytest.raises(ConfigError, match="no model folder 'nobody/no-such-model'"):
        open_spec("transformers:nobody/no-such-model")


def build_other(folder: Path, copied: Path, name: str) -> Any:
    """Replace the model by a tiny one of another architecture, whose memory is not keys and values of all tokens."""
    sizes: dict[str, Any] = {
        "vocab_size": 1024,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "bos_token_id": None,
        "initializer_range": 0.2,
    }
    configs: dict[str, Callable[[], Any]] = {
        "sliding": lambda: transformers.MistralConfig(num_hidden_layers=2, sliding_window=8, **sizes),
        "mixed": lambda: transformers.Gemma2Config(num_hidden_layers=2, head_dim=32, sliding_window=8, **sizes),
        "recurrent": lambda: transformers.Lfm2Config(
            num_hidden_layers=2, layer_types=["conv", "full_attention"], conv_L_cache=3, **sizes
        ),
    }
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configs[name]())
    (copied / "model.safetensors").unlink()
    model.save_pretrained(copied)
    return load_model(copied)


@pytest.mark.parametrize("name", ["sliding", "mixed", "recurrent"])
def test_models_that_remember_otherwise_answer_the_same(folder: Path, copied: Path, name: str):
    model = build_other(folder, copied, name)

    completions = ask_folder(copied, *(ask_for(number, temperature=0.0) for number in range(9)), batch=4)

    assert [completion.texts[0] for completion in completions] == [
        generate(copied, talk(number), model) for number in range(9)
    ]


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of random numbers on the tiny model."""
    peft = pytest.importorskip("peft", reason="the extra train is not installed")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(load_model(folder), config)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.5)
    out = tmp_path_factory.mktemp("adapters") / "tuned"
    tuned.save_pretrained(out)
    edit_json(out / "adapter_config.json", base_model_name_or_path=str(folder))
    return out


def test_an_adapter_is_run_on_its_base(folder: Path, adapter: Path):
    requests = [ask_for(number, temperature=0.0) for number in range(4)]

    alone = ask(TransformersEngine.from_spec(f"transformers:{adapter}"), requests)
    on_top = ask(engine := TransformersEngine.from_spec(f"transformers:{folder}?adapter={adapter}"), requests)

    import peft

    tuned = peft.PeftModel.from_pretrained(load_model(folder), str(adapter))
    wanted = [generate(folder, talk(number), tuned) for number in range(4)]
    assert [completion.texts[0] for completion in alone] == wanted
    assert [completion.texts[0] for completion in on_top] == wanted
    assert wanted != [completion.texts[0] for completion in ask_folder(folder, *requests)]
    assert engine.model == "tiny+tuned"


def test_an_adapter_without_its_base_says_how_to_name_it(adapter: Path, tmp_path: Path):
    moved = shutil.copytree(adapter, tmp_path / "moved")
    edit_json(moved / "adapter_config.json", base_model_name_or_path="/no/such/base")

    with pytest.raises(ConfigError, match=r"base model '/no/such/base' .*; name it with 'transformers:BASE\?adapter="):
        open_spec(f"transformers:{moved}")
    with pytest.raises(ConfigError, match="is an adapter itself"):
        open_spec(f"transformers:{moved}?adapter={adapter}")
    edit_json(moved / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ConfigError, match="does not name its base model"):
        open_spec(f"transformers:{moved}")


def test_a_model_with_an_adapter_beside_it_is_one_too_many(copied: Path, adapter: Path):
    shutil.copytree(adapter, copied, dirs_exist_ok=True)

    with pytest.raises(ConfigError, match="holds a model and an adapter"):
        open_spec(f"transformers:{copied}")


def test_a_model_without_a_chat_template_can_be_given_one(copied: Path, folder: Path, tmp_path: Path):
    (copied / "chat_template.jinja").rename(tmp_path / "given.jinja")

    with pytest.raises(ConfigError, match=r"has no chat template; give one with 'transformers:.*\?chat_template=FILE'"):
        open_spec(f"transformers:{copied}")
    given, own = (
        ask(TransformersEngine.from_spec(spec), [ask_for(1, seed=1)])[0].texts
        for spec in (f"transformers:{copied}?chat_template={tmp_path / 'given.jinja'}", f"transformers:{folder}")
    )
    assert given == own


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "could not read the chat template '.*': no such file or directory"),
        ("{% if %}", "the chat template of '.*' will not do: .*; give another"),
        ("{{ messages[0].content.__class__.__mro__ }}", "will not do: .*unsafe"),
    ],
)
def test_a_template_that_will_not_do_is_said(folder: Path, tmp_path: Path, text: str | None, words: str):
    path = tmp_path / "template.jinja"
    if text is not None:
        path.write_text(text)

    with pytest.raises(ConfigError, match=words):
        open_spec(f"transformers:{folder}?chat_template={path}")


def test_folders_that_hold_no_model_are_said(copied: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no model folder '/no/such/model'; give the folder of a model"):
        open_spec("transformers:/no/such/model")
    with pytest.raises(ConfigError, match=r"the folder has no config\.json"):
        open_spec(f"transformers:{tmp_path / 'empty'}")
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"could not load the model in .*copied"):
        open_spec(f"transformers:{copied}")
    weights.unlink()
    with pytest.raises(ConfigError, match="the folder has no weights"):
        open_spec(f"transformers:{copied}")
    (copied / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"could not read the tokenizer in .*copied"):
        weights.write_bytes(b"")
        open_spec(f"transformers:{copied}")


def test_weights_that_lack_a_layer_are_said(copied: Path):
    edit_json(copied / "config.json", num_hidden_layers=3)

    with pytest.raises(ConfigError, match=r"lack 9 of the model's parameters, 'model\.layers\.2"):
        open_spec(f"transformers:{copied}")


def test_a_model_that_writes_no_text_is_said(copied: Path):
    edit_json(copied / "config.json", architectures=["LlamaForSequenceClassification"])

    with pytest.raises(ConfigError, match="holds a LlamaForSequenceClassification, which writes no text"):
        open_spec(f"transformers:{copied}")


def test_a_models_own_code_is_not_run(copied: Path):
    (copied / "modelling.py").write_text(f"open({str(copied / 'was_run')!r}, 'w')\n")
    edit_json(copied / "config.json", model_type="own", auto_map={"AutoConfig": "modelling.Own"})

    with pytest.raises(ConfigError, match="could not"):
        open_spec(f"transformers:{copied}")

    assert not (copied / "was_run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("batches=3", "no option 'batches'; did you mean 'batch'"),
        ("batch", "transformers option 'batch' will not do; write key=value"),
        ("batch=0", "batch=0 will not do; give a whole number from 1 up"),
        ("max_model_len=many", "max_model_len=many will not do"),
        ("batch=1&batch=2", "'batch' is given twice"),
        ("dtype=float31", "no dtype 'float31'; did you mean 'float32'"),
        ("adapter=", "transformers option 'adapter' is empty"),
    ],
)
def test_an_option_that_will_not_do_says_what_to_write(options: str, words: str):
    with pytest.raises(ConfigError, match=words):
        TransformersEngine.from_spec(f"transformers:some/folder?{options}")


def test_options_that_do_not_fit_the_model_or_the_machine_are_said(folder: Path):
    with pytest.raises(ConfigError, match=f"max_model_len=9999 is more than the {CONTEXT} tokens"):
        open_spec(f"transformers:{folder}?max_model_len=9999")
    with pytest.raises(ConfigError, match="no device 'abacus' here"):
        open_spec(f"transformers:{folder}?device=abacus")
    with pytest.raises(ConfigError, match=r"no adapter in '/no/adapter'; give a PEFT folder"):
        open_spec(f"transformers:{folder}?adapter=/no/adapter")


def test_a_spec_is_a_folder_and_options():
    engine = build_engine("transformers:~/models/tiny?dtype=bfloat16&device=cuda%3A1&batch=8", concurrency=7)

    assert isinstance(engine, TransformersEngine)
    assert (engine.name, engine.model, engine.concurrency) == ("~/models/tiny", "tiny", 7)
    assert engine.options == Options(dtype="bfloat16", device="cuda:1", batch=8)
    with pytest.raises(ConfigError, match="no model in 'transformers:'"):
        build_engine("transformers:")


def test_bfloat16_is_run_too(folder: Path):
    requests = [ask_for(number, seed=number, top_p=0.9) for number in range(6)]

    completions = ask_folder(folder, *requests, dtype="bfloat16")

    assert all(completion.completion_tokens == 12 for completion in completions)


def test_a_missing_library_is_said_with_the_command_that_installs_it(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)

    with pytest.raises(MissingExtraError, match=r"transformers is not installed; pip install 'matrix-dspy\[train\]'"):
        open_spec(f"transformers:{folder}")


def test_naming_an_engine_imports_no_torch(folder: Path):
    code = (
        "import sys; from matrix_dspy.engine.spec import build_engine; build_engine(sys.argv[1]); "
        "sys.exit(any(name.partition('.')[0] in ('vllm', 'torch', 'transformers') for name in sys.modules))"
    )

    assert subprocess.run([sys.executable, "-c", code, f"transformers:{folder}"], check=False).returncode == 0
