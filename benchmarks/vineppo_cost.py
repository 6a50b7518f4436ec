"""What VinePPO's continuations cost and how sharp its values are on `sums`: by K, by the cap M, and with reuse.

    python benchmarks/vineppo_cost.py [--rollouts 64] [--batches 3] [--quick] [--out FILE]

The same stored rollouts of the start policy get values twice under every setting, each time with other draws. Told are:
tokens generated for values over tokens of the rollouts; rows of the model's batch that were computed for them (rollouts that
have said the same so far share one), each over one for every token; CPU seconds over those of generating the rollouts; samples
behind a value; and the noise: the mean of (V − V′)²/2 over all tokens, the variance of a value that another draw would change,
and the same of the advantages before whitening. Writes results/vineppo_cost.json, which docs/vineppo.md quotes.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

from common import write
from vantage import TrainConfig, Trainer, Vineppo
from vantage.estimators.vineppo import step_advantages

SETTINGS = {
    **{f"K={k}": {"continuations": k} for k in (1, 3, 9, 16)},
    **{f"K=9, M={m}": {"continuations": 9, "cap": m} for m in (0, 1, 2)},
    "K=3, reuse": {"continuations": 3, "reuse": True},
    "K=9, reuse": {"continuations": 9, "reuse": True},
}


class Rows:
    """Counts the rows that a policy computes one token for."""

    def __init__(self, policy: Any) -> None:
        self.count, self._plain = 0, policy.next_logits
        policy.next_logits = self

    def __call__(self, ids_RS: Any, *rest: Any) -> Any:
        if ids_RS.shape[1] == 1:
            self.count += len(ids_RS)
        return self._plain(ids_RS, *rest)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few rollouts, one batch, three settings")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    rollouts, batches = (8, 1) if arguments.quick else (arguments.rollouts, arguments.batches)
    names = list(SETTINGS) if not arguments.quick else ["K=1", "K=3", "K=3, reuse"]
    config = TrainConfig(algo=Vineppo(), rollouts_per_step=rollouts, eval_problems=0, out="unused", device="cpu")
    trainer = Trainer(config)
    rows = Rows(trainer.policy)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for step in range(1, batches + 1):
        before = time.process_time()
        collected = trainer.collector(step, trainer.stream, (step - 1) * rollouts)
        generating, generated = time.process_time() - before, collected.metrics["tokens/generated"]
        for name in names:
            estimator = dataclasses.replace(Vineppo(), **SETTINGS[name]).build(trainer.estimator.setup)  # type: ignore[attr-defined]
            drawn, seconds, computed, extra = [], [], [], []
            for again in (0, 1000):
                other = dataclasses.replace(collected, batch=dataclasses.replace(collected.batch, step=step + again))
                rows.count, start = 0, time.process_time()
                drawn.append(estimator.query(other))
                seconds.append(time.process_time() - start)
                computed.append(rows.count)
                extra.append(drawn[-1].metrics["tokens/value_extra"])
            mask_BT, reward_B = collected.batch.response_mask_BT, collected.batch.reward_B
            values = [d.reads["value_MT"].nan_to_num() for d in drawn]
            advantages = [step_advantages(d.reads["pay_MT"], d.reads["segment_MT"], reward_B) for d in drawn]
            found[name].append(
                {
                    "tokens": statistics.mean(extra) / generated,
                    "rows_computed": statistics.mean(computed) / generated,
                    "cpu_seconds": statistics.mean(seconds) / generating,
                    "states_per_response": drawn[0].metrics["vineppo/states_per_response"],
                    "samples_per_value": statistics.mean(d.metrics["vineppo/samples_per_value"] for d in drawn),
                    "value_noise": float((values[0] - values[1])[mask_BT].square().mean()) / 2,
                    "advantage_noise": float((advantages[0] - advantages[1])[mask_BT].square().mean()) / 2,
                    "advantage_square": float(advantages[0][mask_BT].square().mean()),
                }
            )
    table = {name: {key: statistics.mean(row[key] for row in some) for key in some[0]} for name, some in found.items()}
    result = {"quick": arguments.quick, "rollouts": rollouts, "batches": batches, "settings": table, "raw": found}
    if not arguments.quick or arguments.out is not None:
        print(write("vineppo_cost", result, arguments.out))
    for name, row in table.items():
        print(f"{name:12}", "  ".join(f"{key} {value:.3g}" for key, value in row.items()))


if __name__ == "__main__":
    main()
