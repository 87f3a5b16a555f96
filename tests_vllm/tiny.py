"""A chat model of 300,000 random parameters: real weights on disk, a trained tokenizer, nothing it says means anything.

    python -m tests_vllm.tiny DIR

Its context is long enough for every prompt of the pipeline. The chat template writes the switch `mood`, when it is
given, into the prompt, so that a test can see it arrive.
"""

import sys
import sysconfig
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

CONTEXT = 16_384
VOCABULARY = 2048
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_TEMPLATE = (
    "{% if mood %}<|im_start|>mood\n{{ mood }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny Llama with a chat template into `folder` and return it."""
    torch, transformers = import_module("torch"), import_module("transformers")
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # heads of 32, the smallest that vLLM takes on a CPU
        num_key_value_heads=1,
        tie_word_embeddings=True,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_tokenizer() -> Any:
    """Train a byte-level BPE on the standard library's sources."""
    tokenizers, transformers = import_module("tokenizers"), import_module("transformers")
    levels, decoders = tokenizers.pre_tokenizers, tokenizers.decoders
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer, core.decoder = levels.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        initial_alphabet=levels.ByteLevel.alphabet(),
        special_tokens=_SPECIAL,
    )
    core.train_from_iterator(_read_texts(), trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=CONTEXT
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _read_texts(n_files: int = 40) -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.glob("*.py"))[:n_files]:
        yield path.read_text(encoding="utf-8", errors="ignore")


if __name__ == "__main__":
    build_tiny_model(Path(sys.argv[1]))
