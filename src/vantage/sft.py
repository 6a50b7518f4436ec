"""Supervised warm start: maximise the log-likelihood of a world's own solutions; `vantage sft`."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vantage.batch import Batch, plan_microbatches
from vantage.errors import UserError
from vantage.models.holding import ModelOptions
from vantage.optimization import clip_gradient, make_optimizer, scheduled, set_learning_rate
from vantage.policy import Policy
from vantage.prompting import encode_prompt
from vantage.randomness import Stream, key, permutation
from vantage.tracking import versions

if TYPE_CHECKING:
    from vantage.config import SftConfig
    from vantage.tasks.base import Task

TOKENS_PER_MICROBATCH = 16384


def run_sft(config: SftConfig) -> Path:
    """Train, evaluate, and save a model folder; returns it. Raises `UserError`."""
    from vantage.evaluation.scoring import evaluate
    from vantage.models.loading import choose_device, end_token_ids, load_policy
    from vantage.rollout.engine import Sampling
    from vantage.rollout.transformers_engine import TransformersEngine
    from vantage.tasks import get_task
    from vantage.workload import Workload

    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is not an empty folder")
    task = get_task(config.task)
    if task.solution(task.train[0]) is None:
        raise UserError(f"--task {task.name}: this task knows no solutions to learn from")
    work = Workload.of(task) if config.eval_problems else None
    options = ModelOptions(trained=True)
    policy = load_policy(config.model, choose_device(config.device), seed=config.seed, options=options)
    end_ids = end_token_ids(policy)
    examples = supervised_set(policy, task, config, end_ids[0])
    started = time.perf_counter()
    train(policy, examples, config)
    network: Any = policy.model
    network.save_pretrained(out)
    policy.tokenizer.save_pretrained(out)
    seconds = time.perf_counter() - started
    card: dict[str, object] = {
        "task": config.task,
        "steps": config.steps,
        "examples": config.examples,
        "slips": config.slips,
        "seed": config.seed,
    }
    if work is not None:
        engine = TransformersEngine(policy, end_ids)
        sampling = Sampling(task.max_new_tokens or 512, stop=tuple(task.stop))
        found = evaluate(
            policy, engine, task.evaluation(config.eval_problems), work.rewards, sampling,
            reward_range=work.reward_range, seed=config.seed,
        )  # fmt: skip
        mean, low, high = found.accuracy()
        card |= {"accuracy": mean, "accuracy_low": low, "accuracy_high": high}
        print(
            f"accuracy {mean:.3f} [{low:.3f}, {high:.3f}] on {config.eval_problems} held-out problems of {config.task}"
        )
    (out / "sft.json").write_text(json.dumps(card | {"versions": versions()}, indent=1) + "\n")
    print(f"{config.steps} steps in {seconds:.0f} s; model in {out}")
    return out


def supervised_set(policy: Policy, task: Task, config: SftConfig, end_id: int) -> list[tuple[list[int], list[int]]]:
    """Token ids of prompts and demonstrations of the first training problems, the end token included."""
    found = []
    for i in range(config.examples):
        problem = task.train[i % len(task.train)]
        text = task.demonstration(problem, config.slips, random.Random(key(config.seed, Stream.SFT, i)))
        if text is None:
            raise UserError(f"--task {task.name}: this task knows no solutions to learn from")
        response = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        found.append((encode_prompt(policy.tokenizer, problem.prompt), [*response, end_id]))
    return found


def train(policy: Policy, examples: Sequence[tuple[list[int], list[int]]], config: SftConfig) -> None:
    """AdamW with warm-up and cosine decay on the mean token log-likelihood of the solutions."""
    optimizer = make_optimizer(policy.model, weight_decay=0.01, betas=(0.9, 0.98))
    peak = config.learning_rate or (3e-3 if config.model == "init:tiny" else 1e-5)
    for step in range(config.steps):
        loss = likelihood_step(policy, draw(examples, config.batch_size, config.seed, step))
        set_learning_rate(optimizer, scheduled(peak, "cosine", config.warmup_steps, step, config.steps))
        clip_gradient(policy.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0 or step + 1 == config.steps:
            print(f"step {step + 1}/{config.steps}  loss {loss:.4f}", flush=True)


def draw(examples: Sequence[tuple[list[int], list[int]]], count: int, seed: int, step: int) -> Batch:
    """The step's mini-batch: consecutive places of seeded permutations, one for each epoch."""
    rows, order, current = [], permutation(seed, Stream.SFT, 0, len(examples)), 0
    for place in range(step * count, (step + 1) * count):
        epoch, offset = divmod(place, len(examples))
        if epoch != current:
            order, current = permutation(seed, Stream.SFT, epoch, len(examples)), epoch
        rows.append(examples[int(order[offset])])
    nothing = torch.zeros(len(rows), dtype=torch.float64)
    return Batch(
        step=step,
        prompt_ids=[p for p, _ in rows],
        response_ids=[r for _, r in rows],
        group_B=torch.arange(len(rows)),
        outcome_B=nothing,
        reward_B=nothing,
        scorable_B=torch.ones(len(rows), dtype=torch.bool),
        domains=["default"] * len(rows),
    )


def likelihood_step(policy: Policy, batch: Batch) -> float:
    """Accumulate the gradient of the mean negative log-likelihood per token; returns it in nats."""
    tokens, total = int(batch.length_B.sum()), 0.0
    for rows in plan_microbatches(batch.tokens(), batch.groups(), TOKENS_PER_MICROBATCH).micro:
        loss = -policy.forward(batch.select(rows)).logp_MT.sum() / tokens
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total
