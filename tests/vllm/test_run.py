"""A run on `sums` whose rollouts are vLLM's: it learns, through the death of its engine."""

from __future__ import annotations

import json

from tests.vllm.test_local import kill
from vantage import TrainConfig, Trainer
from vantage.estimators.vineppo import Vineppo


def test_a_short_run_on_sums_learns_though_its_engine_is_killed(tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    config = TrainConfig(
        engine="vllm", out=str(out), steps=10, rollouts_per_step=192, eval_every=0, eval_problems=0, samples_every=0,
        checkpoint_every=0, learning_rate=4e-4, lr_schedule="constant",
    )  # fmt: skip
    trainer = Trainer(config)
    step = Trainer.train_step

    def deadly(self, number):
        if number == 6:
            kill(self.engine)
        return step(self, number)

    monkeypatch.setattr(Trainer, "train_step", deadly)
    trainer.train()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][1:]
    reward = [row["reward/mean"] for row in rows]
    assert len(rows) == 10
    assert sum(reward[-3:]) / 3 > sum(reward[:3]) / 3 + 0.05
    assert all(row["policy/mismatch_kl"] < 1e-8 for row in rows)
    assert all(abs(row["policy/mismatch_weight_mean"] - 1) < 1e-4 for row in rows)
    said = [line for line in capfd.readouterr().err.splitlines() if "started again" in line]
    assert said == ["vantage: vLLM in process: its process has died; it is started again"]


def test_continuations_of_vineppo_come_from_vllm_too(tmp_path):
    out = tmp_path / "run"
    config = TrainConfig(
        engine="vllm", out=str(out), steps=1, rollouts_per_step=16, eval_every=0, eval_problems=0, samples_every=0,
        checkpoint_every=0, algo=Vineppo(),
    )  # fmt: skip
    Trainer(config).train()
    (row,) = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][1:]
    assert row["tokens/value_extra"] > row["tokens/generated"]
