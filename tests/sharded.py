"""Two steps of every algorithm without a run directory; as a script: one of the processes that models are dealt out over.

python -m tests.sharded MODEL OUT, under a launcher's environment; tests/test_sharding.py starts it and reads what it leaves.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.genac.made import QUICK
from tests.odd import odd_length as odd
from tests.test_distributed import CASES, made
from vantage.config import TrainConfig
from vantage.dealt import is_dealt, local
from vantage.distributed import leave
from vantage.estimators import get_algorithm
from vantage.trainer import Trainer

EXACT = {"kl_coef": 0.5, "kl_estimator": "exact"}
MORE = {
    "kl exact, states of the reference kept": {"algo": "grpo", "minibatches": 3, **EXACT},
    "kl exact to a refreshed reference": {"algo": "rloo", "reference_refresh": 1, **EXACT},
    "adapters, kl exact to the base": {"algo": "rloo", "lora_rank": 2, **EXACT},
    "adapters, recomputed blocks": {"algo": "vimpo", "lora_rank": 2, "gradient_checkpointing": True},
    "recomputed blocks": {"algo": "poise", "gradient_checkpointing": True, "tokens_per_microbatch": 60},
    "a critic of adapters": {"algo": "ppo", "lora_rank": 2, "options": {"whiten": "none"}},
    "genac, expected scores": {"algo": "genac", "options": QUICK | {"reading": "expected", "samples": 2}},
}
NAMES = [*CASES, *MORE]
PLAIN = {"steps": 2, "eval_problems": 0, "samples_every": 0, "learning_rate": 1e-3, "lr_schedule": "constant"}
RUN = {"steps": 3, "eval_problems": 0, "samples_every": 0, "checkpoint_every": 1, "keep_checkpoints": 0}
"""Of the runs with a directory."""


def settings(name: str, model: Path, out: Path, sharding: str) -> TrainConfig:
    """A case's configuration."""
    if name in CASES:
        return replace(made(name, model, out), **PLAIN, sharding=sharding)
    changes = dict(MORE[name])
    algo = get_algorithm(changes.pop("algo"))(**changes.pop("options", {}))
    return TrainConfig(
        model=str(model), out=str(out), task="sums", algo=algo, rollouts_per_step=24, max_new_tokens=8,
        sharding=sharding, **PLAIN, **changes,
    )  # fmt: skip


def stepped(config: TrainConfig) -> tuple[Trainer, list[dict]]:
    """The trainer after two steps, and their rows."""
    trainer = Trainer(config, reward_funcs=odd)
    trainer.whole = True
    rows = []
    for number in (1, 2):
        trainer._refresh_reference()
        rows.append(trainer.train_step(number).row)
    return trainer, rows


def whole_weights(trainer: Trainer) -> dict[str, Tensor]:
    """The policy's weights, by name; empty where another process has them."""
    with trainer.policy.whole() as model:
        return {} if model is None else {k: v.detach().clone() for k, v in model.state_dict().items()}


def held(trainer: Trainer) -> dict[str, list[int]]:
    """Numbers that this process holds, and those that there are: of parameters and of optimizer state."""
    found = {}
    parameters = list(trainer.policy.model.parameters())
    moments = [v for entries in trainer.update.optimizer.state.values() for k, v in entries.items() if k != "step"]
    for kind, tensors in (("parameters", parameters), ("moments", moments)):
        assert all(map(is_dealt, tensors))
        found[kind] = [sum(local(t).numel() for t in tensors), sum(t.numel() for t in tensors)]
        storage = [local(t).untyped_storage().nbytes() // t.element_size() for t in tensors]
        assert sum(storage) <= found[kind][0] * 1.1, "more memory is held than the rows need"
    return found


def run(algo: str, model: Path, out: Path, **changes: object) -> None:
    """A run with a directory."""
    base = settings("rloo", model, out, "fsdp2")
    options = {"critic_minibatches": 2} if algo == "ppo" else QUICK if algo == "genac" else {}
    config = replace(base, algo=get_algorithm(algo)(**options), **(RUN | changes))
    Trainer(config, reward_funcs=odd).train()


def main(model: Path, out: Path) -> None:
    """What every process does."""
    for number, name in enumerate(NAMES):
        start = time.perf_counter()
        trainer, rows = stepped(settings(name, model, out / "none", "fsdp2"))
        weights = whole_weights(trainer)
        if trainer.world.main:
            save_file(
                {k: v.contiguous() for k, v in weights.items() if "lm_head" not in k}, out / f"{number}.safetensors"
            )
            (out / f"{number}.json").write_text(json.dumps(rows))
            print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
        if name == "rloo":
            (out / f"held-{trainer.world.rank}.json").write_text(json.dumps(held(trainer)))
    for algo in ("ppo", "genac"):
        run(algo, model, out / algo)
        # The same again from the checkpoint of the first step, in another folder.
        run(algo, model, out / f"{algo}-again", resume=str(out / algo / "checkpoints" / "step-000001"))
    run("rloo", model, out / "lora", lora_rank=2, steps=1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave(0)
