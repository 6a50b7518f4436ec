"""The sequence critic: a prompt in, a probability out, fitted by cross-entropy."""

from __future__ import annotations

import copy
import math
import random

import pytest
import torch

from tests.critics.made import POLICY
from vantage.critics.sequence import SequenceCritic


def prompts_and_targets(count: int = 64):
    """Prompts of different lengths; success where the first token is an even number."""
    draw = random.Random(0)
    prompts = [[draw.randrange(3, 40) for _ in range(draw.randint(1, 6))] for _ in range(count)]
    return prompts, [float(p[0] % 2 == 0) for p in prompts]


def fitted(budget: int = 8192, **options):
    critic = SequenceCritic.of(POLICY, budget)
    critic.model.trunk.load_state_dict(copy.deepcopy(POLICY.head.trunk.state_dict()))
    prompts, targets = prompts_and_targets()
    return critic, critic.fit(prompts, targets, **({"epochs": 12, "batch_size": 16, "learning_rate": 1e-2} | options))


def test_it_begins_at_the_mean_target_and_separates_what_can_be_told_apart():
    prompts, targets = prompts_and_targets()
    critic, losses = fitted(learning_rate=1e-12, epochs=1)
    rate = sum(targets) / len(targets)
    assert critic.predict(prompts).tolist() == pytest.approx([rate] * len(prompts), abs=1e-6)
    assert losses[0] == pytest.approx(-rate * math.log(rate) - (1 - rate) * math.log(1 - rate), abs=1e-6)
    critic, losses = fitted()
    assert losses[-1] < 0.3 < losses[0]
    found = critic.predict(prompts)
    assert ((found > 0.5).double() == torch.tensor(targets, dtype=torch.float64)).double().mean() > 0.9
    assert ((found > 0) & (found < 1)).all()


def test_a_prompts_probability_depends_on_the_prompt_alone():
    critic, _ = fitted(epochs=2)
    prompts, _ = prompts_and_targets()
    alone = torch.cat([critic.predict([p]) for p in prompts])
    torch.testing.assert_close(critic.predict(prompts), alone, atol=1e-9, rtol=0)
    assert alone.std() > 0.01


def test_micro_batches_and_repetition_change_nothing():
    whole, cut, again = fitted(epochs=2), fitted(12, epochs=2), fitted(epochs=2)
    assert again[1] == whole[1]
    assert cut[1] == pytest.approx(whole[1], abs=1e-6)
    assert fitted(epochs=2, seed=1)[1] != whole[1]


def test_targets_that_are_no_probabilities_are_refused():
    critic = SequenceCritic.of(POLICY)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        critic.fit([[5], [6]], [0.0, 1.5])
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        critic.fit([[5], [6]], [0.0, float("nan")])
    with pytest.raises(ValueError, match="one each"):
        critic.fit([[5], [6]], [0.0])
