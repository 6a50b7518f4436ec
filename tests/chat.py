"""A chat-template model of a few thousand parameters that says `Answer: D` with a random digit D, and data for it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from tests.helpers import SMALL
from vantage import tiny

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
"""With a switch for thinking, as Qwen3's has."""


CHAIN = ">Answer: "
"""What follows on what: each character on the one before, then a digit, then the end."""


def make_chat_model(folder: Path) -> Path:
    """Write the model. Its blocks add nothing yet, so that the next token depends on the last one alone."""
    model, tokenizer = tiny.fresh(0, **SMALL, tie_word_embeddings=False)
    tokenizer.chat_template = TEMPLATE
    digits = tokenizer("0123456789")["input_ids"]
    chain = tokenizer(CHAIN)["input_ids"]
    follows = [([before], [after]) for before, after in pairwise(chain)]
    follows += [([chain[-1]], digits), (digits, [tokenizer.eos_token_id])]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        states, head = model.model.embed_tokens.weight, model.lm_head.weight
        head.mul_(0.1)
        for direction, (before, after) in zip(torch.eye(states.shape[1]), follows, strict=False):
            states[before] = direction
            head[after] = head[after] + 2 * direction
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One JSON object a line; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def questions(count: int, start: int = 0) -> Sequence[tuple[str, str]]:
    """Prompts with answers of one digit."""
    return [(f"What is {i % 7} + {i % 3}? ({i})", str(i % 7 + i % 3)) for i in range(start, start + count)]
