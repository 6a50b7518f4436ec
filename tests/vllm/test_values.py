"""Generated values come from vLLM as rollouts do: continuations from the policy's engine, critiques from the critic's."""

from __future__ import annotations

import pytest

from vantage import Genac, TrainConfig, Trainer, Vineppo


@pytest.mark.parametrize("algo", [Vineppo(continuations=3), Genac(success_problems=16)], ids=lambda algo: algo.name)
def test_continuations_and_critiques_are_generated_by_vllm(algo, tmp_path):
    trainer = Trainer(
        TrainConfig(
            engine="vllm", algo=algo, out=str(tmp_path / "run"), steps=2, rollouts_per_step=32, eval_problems=8, eval_every=0,
            samples_every=0, checkpoint_every=0, device="cpu",
        )
    )  # fmt: skip
    engines = [trainer.engine] + ([trainer.estimator.critic.engine] if algo.name == "genac" else [])
    assert [type(engine).__name__ for engine in engines] == ["VllmEngine"] * len(engines)
    rows = []
    step = trainer.train_step
    trainer.train_step = lambda number: rows.append(found := step(number)) or found
    trainer.train()
    for row in (found.row for found in rows):
        assert row["tokens/value_extra"] > row["tokens/generated"]
        assert 0 < row["value/mae"] < 0.6  # half of the rewards are 1, so a value that is always wrong would be near 1
        assert row["policy/mismatch_kl"] < 1e-10
        assert row.get("genac/parse_rate", 1.0) > 0.9
