"""What does a training step really take? Run as a script: measures generation and update of a random model on the CPU.

Argument: a JSON list of settings with `model` (settings of the transformers configuration `kind`), `rows`, `prompt`, `new`
and `budget`. Prints, for each, the growth of the process's resident memory at the peak of each phase, as JSON. Large
blocks go straight back to the system (MALLOC_MMAP_THRESHOLD_ in the environment), so that the resident set is what lives.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import torch
import transformers

from vantage.batch import Batch
from vantage.config import TrainConfig
from vantage.estimators.base import Setup
from vantage.estimators.rloo import Rloo
from vantage.policy import Policy
from vantage.rollout.engine import Request, Sampling
from vantage.rollout.transformers_engine import TransformersEngine
from vantage.update import PolicyUpdate


def resident(field: str = "VmRSS") -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def reset() -> None:
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


class Tokenizer:
    pad_token_id = 0
    eos_token_id = None


def batch_of(settings: dict[str, Any], vocabulary: int) -> Batch:
    rows, group = settings["rows"], 2
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(vocabulary, (rows // group, settings["prompt"]), generator=draw).tolist()
    outcome = torch.tensor([float(i % 2) for i in range(rows)], dtype=torch.float64)
    return Batch(
        step=1,
        prompt_ids=[prompt for prompt in prompts for _ in range(group)],
        response_ids=torch.randint(vocabulary, (rows, settings["new"]), generator=draw).tolist(),
        group_B=torch.arange(rows // group).repeat_interleave(group),
        outcome_B=outcome,
        reward_B=outcome,
        scorable_B=torch.ones(rows, dtype=torch.bool),
        domains=["default"] * rows,
    )


def step(settings: dict[str, Any], report: dict[str, int]) -> None:
    before = resident()
    kind = getattr(transformers, settings["kind"])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind(**settings["model"]))
    vocabulary = model.config.vocab_size
    policy = Policy(model, Tokenizer())
    config = TrainConfig(
        algo=Rloo(), rollouts_per_prompt=2, rollouts_per_step=settings["rows"], max_new_tokens=settings["new"],
        tokens_per_microbatch=settings["budget"], learning_rate=1e-6, aggregation="token-mean", clip_low=0.2,
        clip_high=0.2, dual_clip=0.0,
    )  # fmt: skip
    estimator = config.algo.build(Setup(policy.num_layers, policy.hidden_size, 2, (0.0, 1.0)))
    update = PolicyUpdate(policy, estimator, config)
    batch = batch_of(settings, vocabulary)
    update.run(batch.select(range(2)))  # the optimizer's moments are there from the first step on
    reset()
    update.run(batch)
    report["update"] = resident("VmHWM") - before
    reset()
    engine = TransformersEngine(policy, [], settings["rows"])
    requests = [Request(batch.prompt_ids[i], (2 * i, 2 * i + 1)) for i in range(0, settings["rows"], 2)]
    engine.generate(requests, Sampling(settings["new"]))
    report["rollout"] = resident("VmHWM") - before


if __name__ == "__main__":
    torch.set_num_threads(1)
    measured: list[dict[str, int]] = []
    for settings in json.loads(sys.argv[1]):
        small = {"intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
        step(
            {**settings, "rows": 4, "new": 4, "model": {**settings["model"], **small}}, {}
        )  # kernels and threads are there
        found: dict[str, int] = {}
        step(settings, found)
        measured.append(found)
    print(json.dumps(measured))
