"""The embedded policy: a Qwen3-architecture model of 0.8 million parameters with a character tokenizer.

`fresh()` builds it with random weights; `vantage sft --model init:tiny` warm-starts it, for one embedded world each; the
shipped weights lie in `assets/` and load with plain transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vantage.errors import UserError
from vantage.plugins import did_you_mean

ASSET = Path(__file__).parent / "assets" / "tiny"
WORLDS = {"sums": ASSET, **{world: ASSET.parent / f"tiny-{world}" for world in ("programs", "tools", "instructions")}}
"""Embedded worlds and the folders of their warm-started policies."""
SPECIAL = ("<pad>", "<eos>", "<unk>")
CHARACTERS = "\n" + "".join(chr(c) for c in range(32, 127))
"""Printable ASCII and the newline: enough for every embedded world."""


def policy_for(model: str, task: str) -> str:
    """What `--model` means next to a `--task`: `tiny` is the embedded policy of the task's own world."""
    world = task.partition(":")[0]
    return f"tiny:{world}" if model == "tiny" and world in WORLDS and WORLDS[world] != ASSET else model


def folder(model: str) -> Path:
    """The shipped weights of `tiny` or `tiny:WORLD`; raises `UserError` for a world that has none."""
    world = model.partition(":")[2] or "sums"
    if world not in WORLDS:
        hint = did_you_mean(world, list(WORLDS)) or f"; there are: {', '.join(f'tiny:{w}' for w in WORLDS)}"
        raise UserError(f"--model {model}: there is no embedded policy for {world!r}{hint}")
    return WORLDS[world]


def tokenizer() -> Any:
    """One token a character; what is outside of the alphabet becomes `<unk>`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *CHARACTERS))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def config(**changes: Any) -> Any:
    """The architecture; tests make smaller ones by `changes`."""
    from transformers import Qwen3Config

    settings = {
        "vocab_size": len(SPECIAL) + len(CHARACTERS),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "use_cache": True,
        "initializer_range": 0.06,
    }
    return Qwen3Config(**(settings | changes))


def fresh(seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    """A model with random weights, and its tokenizer."""
    import torch
    from transformers import Qwen3ForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config(**changes))
    return model, tokenizer()
