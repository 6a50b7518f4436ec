"""A run on `sums` whose rollouts are vLLM's: it learns, through the death of its engine."""

from __future__ import annotations

import json

from tests.vllm.test_local import kill
from vantage import TrainConfig, Trainer


def test_a_short_run_on_sums_learns_though_its_engine_is_killed(tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    config = TrainConfig(
        engine="vllm", out=str(out), steps=20, eval_every=0, eval_problems=1000, samples_every=0, checkpoint_every=0
    )
    trainer = Trainer(config)
    step = Trainer.train_step

    def deadly(self, number):
        if number == 5:
            kill(self.engine)
        return step(self, number)

    monkeypatch.setattr(Trainer, "train_step", deadly)
    summary = trainer.train()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][1:]
    assert len(rows) == 20
    reward = [row["reward/mean"] for row in rows]
    held_out = summary.after.mean - summary.before.mean  # without learning 0 ± 0.022
    on_the_way = sum(reward[-8:]) / 8 - sum(reward[:4]) / 4  # 0 ± 0.019
    assert (held_out + on_the_way) / 2 > 0.03  # 0 ± 0.015; 16 steps gave 0.08
    assert all(row["policy/mismatch_kl"] < 1e-10 for row in rows)
    assert all(abs(row["policy/mismatch_weight_mean"] - 1) < 1e-4 for row in rows)
    said = [line for line in capfd.readouterr().err.splitlines() if "started again" in line]
    assert said == ["vantage: vLLM in process: its process has died; it is started again"]
