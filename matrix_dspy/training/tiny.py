"""A chat model of 140,000 random parameters: real weights on disk, a trained tokenizer, nothing it says means anything.

    python cli.py train tiny-model DIR

TRL, transformers and vLLM on a CPU all take it. Its chat template marks what an assistant says, so that
assistant-only losses work; heads of 32 numbers are the smallest that vLLM takes on a CPU. The same arguments give the
same model.
"""

import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END, PAD = "<|im_end|>", "<|endoftext|>"
_SPECIAL = [PAD, "<|im_start|>", END]


def build_tiny_model(
    folder: Path,
    *,
    n_layers: int = 2,
    hidden: int = 64,
    heads: int = 2,
    template: str | None = CHAT_TEMPLATE,
    pad_token: str | None = PAD,
    seed: int = 0,
    texts: Iterable[str] | None = None,
    vocab: int = 1024,
    context: int = 2048,
    spread: float = 0.02,
) -> Path:
    """Write a tiny Llama and its tokenizer into `folder` and return it.

    `texts` train the tokenizer of at most `vocab` tokens; unset, a few sources of the standard library do. `context` is
    the longest prompt and answer together, in tokens. `spread` is the standard deviation of the weights: with 0.02, the
    usual one, an untrained model says its last token again and again; with 0.2 what it says depends on all before.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    tokenizer = build_tiny_tokenizer(template=template, pad_token=pad_token, texts=texts, vocab=vocab, context=context)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=n_layers,
        num_attention_heads=heads,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        max_position_embeddings=context,
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_tiny_tokenizer(
    *,
    template: str | None = CHAT_TEMPLATE,
    pad_token: str | None = PAD,
    texts: Iterable[str] | None = None,
    vocab: int = 1024,
    context: int = 2048,
) -> Any:
    """Return a byte-level BPE tokenizer that ends an assistant's turn with `END`."""
    import tokenizers
    import transformers

    core = tokenizers.Tokenizer.from_str(_train_on_sources(vocab) if texts is None else _train(texts, vocab))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token=pad_token, model_max_length=context
    )
    tokenizer.chat_template = template
    return tokenizer


@lru_cache(maxsize=2)
def _train_on_sources(vocab: int) -> str:
    return _train(_read_sources(), vocab)


def _train(texts: Iterable[str], vocab: int) -> str:
    import tokenizers

    levels, decoders = tokenizers.pre_tokenizers, tokenizers.decoders
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer, core.decoder = levels.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab, show_progress=False, initial_alphabet=levels.ByteLevel.alphabet(), special_tokens=_SPECIAL
    )
    core.train_from_iterator(texts, trainer)
    return core.to_str()


def _read_sources(n_files: int = 12) -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.glob("*.py"))[:n_files]:
        yield path.read_text(encoding="utf-8", errors="ignore")
