"""Two steps of every algorithm without a run directory; as a script: one of the processes that models are dealt out over.

python -m tests.sharded updates|runs MODEL CRITIC OUT, under a launcher's environment: tests/distributed/test_sharding.py starts
it and reads what it leaves in OUT. CRITIC is one of GenAC's that can say scores.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.genac.made import QUICK
from tests.odd import odd_length as odd
from vantage.checkpoint import optimizer_state
from vantage.config import TrainConfig
from vantage.distributed.dealt import is_dealt, local
from vantage.distributed.world import leave
from vantage.estimators import REGISTRY, get_algorithm
from vantage.policy import Policy
from vantage.rollout.handover import fingerprint_of
from vantage.trainer import Trainer

SETTINGS = {
    "task": "sums", "steps": 3, "rollouts_per_step": 24, "max_new_tokens": 8, "eval_problems": 0, "samples_every": 0,
    "learning_rate": 1e-3, "lr_schedule": "constant", "checkpoint_every": 1, "keep_checkpoints": 0,
}  # fmt: skip
EXACT = {"kl_coef": 0.5, "kl_estimator": "exact"}
JOINT = {"pretrain_steps": 0, "gates": "off", "max_failures": 1.0}
CASES = {
    **{name: {} for name in REGISTRY},
    "genac": {"algo": "genac", "options": QUICK},
    "genac, a critic that moves the policy": {
        "algo": "genac", "options": JOINT | {"critic": "CRITIC", "reading": "expected", "samples": 2},
    },
    "genac, beside a discriminative critic": {
        "algo": "genac", "options": QUICK | {"critic": "CRITIC", "pretrain_steps": 3, "rival_steps": 2},
    },
    "poise from the second step on": {"algo": "poise", "options": {"bootstrap": 0}},
    "ppo of a head on the policy": {"algo": "ppo", "options": {"critic": "head", "lam_actor": 0.9}, "learning_rate": 1e-4},
    "ppo, pretrained": {"algo": "ppo", "options": {"value_warmup_steps": 1, "critic_epochs": 2, "whiten_values": True}},
    "more processes than groups in some mini-batches": {"algo": "grpo", "minibatches": 3, "epochs": 2},
    "small micro-batches, recomputed blocks": {
        "algo": "dr_grpo", "aggregation": "token-mean", "tokens_per_microbatch": 40, "gradient_checkpointing": True,
    },
    "exact kl": {"algo": "rloo", **EXACT},
    "exact kl, states of the reference kept": {"algo": "grpo", "minibatches": 3, **EXACT},
    "exact kl to a refreshed reference": {"algo": "rloo", "reference_refresh": 1, **EXACT},
    "adapters, exact kl to the base": {"algo": "rloo", "lora_rank": 2, **EXACT},
    "adapters, recomputed blocks": {"algo": "vimpo", "lora_rank": 2, "gradient_checkpointing": True},
    "a critic of adapters": {"algo": "ppo", "lora_rank": 2, "options": {"whiten": "none"}},
}  # fmt: skip
RESUMED = ("ppo", "genac, a critic that moves the policy")


def made(case: str, model: Path, critic: Path, out: Path, **changes: object) -> TrainConfig:
    """A case's configuration."""
    own = dict(CASES[case])
    options = {k: str(critic) if v == "CRITIC" else v for k, v in own.pop("options", {}).items()}
    algo = get_algorithm(own.pop("algo", case))(**options)
    return TrainConfig(model=str(model), out=str(out), algo=algo, **{**SETTINGS, **own, **changes})


def stepped(config: TrainConfig) -> tuple[Trainer, list[dict]]:
    """The trainer after two steps, and their rows."""
    trainer = Trainer(config, reward_funcs=odd)
    rows = []
    for number in (1, 2):
        trainer._refresh_reference()
        rows.append(trainer.train_step(number).row)
    return trainer, rows


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """All that was trained or learned, whole, by name."""
    found = {f"policy.{name}": value for name, value in trainer.policy.model.named_parameters()}
    found |= {f"estimator.{name}": value for name, value in trainer.estimator.state_dict().tensors.items()}
    whole = {name: value.full_tensor() if is_dealt(value) else value for name, value in found.items()}
    return {name: value.detach().clone().contiguous() for name, value in whole.items()}


def held(trainer: Trainer) -> dict[str, list[int]]:
    """Numbers that this process holds in memory, and those that there are: of parameters and of the optimizer's moments."""
    found = {}
    state = optimizer_state(trainer.update.optimizer, trainer.policy.model).tensors
    kinds = {"parameters": list(trainer.policy.model.parameters()), "moments": [v for v in state.values() if v.dim()]}
    for kind, tensors in kinds.items():
        storages = {local(t).untyped_storage().data_ptr(): local(t).untyped_storage() for t in tensors}
        found[kind] = [sum(s.nbytes() for s in storages.values()) // 4, sum(t.numel() for t in tensors)]
    return found


def run(config: TrainConfig) -> Trainer:
    """All steps with a run directory, a checkpoint behind each, without evaluation and report."""
    trainer = Trainer(config, reward_funcs=odd)
    trainer.progress = trainer.run.open(trainer)
    while not trainer.finished:
        trainer.train_step(trainer.step + 1)
        trainer.checkpoint()
    trainer.run.save_model(trainer)
    return trainer


def updates(model: Path, critic: Path, out: Path) -> None:
    """Two steps of every case, and what this process holds."""
    idle = 0
    real = Policy.idle

    def counted(*arguments: object, **keywords: object) -> None:
        nonlocal idle
        idle += 1
        real(*arguments, **keywords)

    Policy.idle = counted
    for number, case in enumerate(CASES):
        trainer, rows = stepped(made(case, model, critic, out / "none", sharding="fsdp2"))
        found = weights(trainer)
        if trainer.world.main:
            save_file(found, out / f"{number}.safetensors")
            (out / f"{number}.json").write_text(json.dumps(rows))
        if case in ("rloo", "adapters, exact kl to the base"):
            outside = fingerprint_of(trainer.policy, torch.float32)
            with trainer.policy.gathered():  # what an engine is given is the same, without the other processes
                assert fingerprint_of(trainer.policy, torch.float32) == outside
        if case == "rloo":
            (out / f"held-{trainer.world.rank}.json").write_text(json.dumps(held(trainer)))
    (out / f"idle-{trainer.world.rank}.json").write_text(json.dumps(idle))


def runs(model: Path, critic: Path, out: Path) -> None:
    """Runs with checkpoints; the same again from the first one; one more from the first one of a process alone."""
    for case in RESUMED:
        first = made(case, model, critic, out / case, sharding="fsdp2")
        run(first)
        again = {"out": str(out / f"{case} again"), "resume": str(out / case / "checkpoints" / "step-000001")}
        run(replace(first, **again))
    alone = out / "alone" / "checkpoints" / "step-000001"
    run(made("ppo", model, critic, out / "grown", sharding="fsdp2", resume=str(alone)))
    run(made("adapters, exact kl to the base", model, critic, out / "adapters", sharding="fsdp2", steps=1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"updates": updates, "runs": runs}[sys.argv[1]](*map(Path, sys.argv[2:]))
    leave(0)
