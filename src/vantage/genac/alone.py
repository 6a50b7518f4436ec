"""A stage of the critic without a run around it: the supervised one, or learning from the outcomes of a policy at rest."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from vantage.collect import Collector
from vantage.config import TrainConfig, resolve
from vantage.distributed.world import World, join_world, local_device
from vantage.estimators.base import Estimate, Services, Setup
from vantage.estimators.genac import Genac
from vantage.genac.estimator import GenacEstimator
from vantage.models.holding import ModelOptions
from vantage.models.loading import choose_device, end_token_ids, load_policy
from vantage.rollout.factory import make_engine
from vantage.tracking import finite
from vantage.workload import PromptStream, Workload

SHOWN = ("brier", "brier_constant", "brier_rival", "parse_rate", "pearson", "auc", "panel_brier", "critic_reward")


@dataclass
class Bench:
    """A policy at rest and an estimator with its critic."""

    config: TrainConfig
    options: Genac
    services: Services
    estimator: GenacEstimator
    collector: Collector
    world: World


def bench(config: TrainConfig, options: Genac, world: World | None = None) -> Bench:
    """Load the policy and make the estimator as a run with this configuration would; raises `UserError`."""
    world = world or join_world()
    work = Workload.of(
        config.task, config.reward, config.reward_weights, config.prompt_column, config.domain_column,
        timeout=config.reward_timeout,
    )  # fmt: skip
    config = resolve(
        replace(config, algo=options), max_new_tokens=work.task.max_new_tokens, stop=tuple(work.task.stop),
        reward_range=work.reward_range,
    )  # fmt: skip
    policy = load_policy(
        config.model, local_device(choose_device(config.device)), temperature=config.temperature,
        chunk_tokens=config.logit_chunk_tokens, seed=config.seed, options=ModelOptions.of(config),
    )  # fmt: skip
    end_ids = end_token_ids(policy)
    engine = make_engine(policy, end_ids, config, world)
    collector = Collector(policy, engine, work, config, world)
    services = Services(policy, engine, collector.sampling, work, config)
    setup = Setup(
        policy.num_layers, policy.hidden_size, config.group_size, config.reward_range or work.reward_range, (), end_ids,
        config.max_new_tokens or 1, world, services,
    )  # fmt: skip
    return Bench(config, options, services, GenacEstimator(options, setup), collector, world)


def school_alone(config: TrainConfig) -> int:
    """`vantage critic sft`: lessons, the supervised stage, and the critic in --out."""
    assert isinstance(config.algo, Genac)
    made = bench(config, config.algo)
    made.estimator.course.stage = "sft"  # even one that has been taught before
    tokens = made.estimator.first_success_rate() + made.estimator.attend_school()
    _save(made, config, {"stage": "sft", "tokens_generated": tokens})
    return 0


def pretrain(config: TrainConfig) -> int:
    """`vantage critic pretrain`: --steps batches of rollouts by a policy that rests; the gates are not asked."""
    assert isinstance(config.algo, Genac)
    options = replace(config.algo, sft_steps=0, gates="off", pretrain_steps=config.steps)
    made = bench(config, options)
    estimator, stream, position = made.estimator, PromptStream(made.services.workload.task.train, config.seed), 0
    rows = []
    for step in range(1, config.steps + 1):
        collected = made.collector(step, stream, position)
        position += collected.consumed
        if not collected.groups:
            continue
        queried = estimator.query(collected)
        nothing = collected.batch.response_mask_BT.double()
        learned = estimator.learn(collected.batch, {}, Estimate(nothing, nothing))
        row = {"step": step, **collected.metrics, **queried.metrics, **learned}
        rows.append(row)
        if made.world.main and (step % 10 == 0 or step in (1, config.steps)):
            known = ((name, row.get(f"genac/{name}")) for name in SHOWN)
            numbers = "  ".join(f"{name} {value:.4f}" for name, value in known if value is not None)
            print(f"step {step}/{config.steps}  {numbers}", file=sys.stderr, flush=True)
    last = {k: v for k, v in rows[-1].items() if k.startswith("genac/")} if rows else {}
    _save(made, config, {"measured": finite(last)})
    if made.world.main:
        text = "".join(json.dumps(finite(row)) + "\n" for row in rows)
        (Path(config.out or "") / "metrics.jsonl").write_text(text)
    return 0


def _save(made: Bench, config: TrainConfig, more: dict[str, object]) -> None:
    if made.world.main:
        out = Path(config.out or "")
        made.estimator.save_pretrained(out, **more)
        print(f"critic in {out}; use it: vantage train --algo genac --genac.critic {out}")
    made.world.wait()
