"""A small critic that can say scores, for tests of what follows from them."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.helpers import small_policy
from vantage.genac.actor import ActorFacts
from vantage.genac.critic import critic_of
from vantage.genac.prompt import StateView, template_for
from vantage.genac.sft import Schooling, school

QUICK = {
    "critic": "copy",
    "sft_steps": 1,
    "sft_examples": 8,
    "sft_batch": 4,
    "pretrain_steps": 1,
    "success_problems": 4,
}
"""Options with which a run with GenAC takes seconds on a model of a few thousand parameters."""


def save_schooled_critic(folder: Path) -> Path:
    """One that answers nearly every prompt with some score in brackets."""
    policy = small_policy(dtype=torch.float32)
    tokenizer, template = policy.tokenizer, template_for(policy.tokenizer)
    pairs = []
    for i in range(55):
        view = StateView(f"{i}+{3 * i}=", f"{7 * i}\n"[: i % 4], i % 4, 8)
        prompt = template.encode(tokenizer, view, ActorFacts("a", 1, rate=i / 55))
        pairs.append((prompt, tokenizer(f"[{i % 11}]", add_special_tokens=False)["input_ids"]))
    school(policy, pairs, Schooling(70, 11, 2e-2))
    critic_of(policy, template, 6).save(folder, {"stage": "sft", "critic_tokens": 6})
    return folder
