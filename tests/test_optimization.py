"""Learning-rate schedules and gradient clipping."""

from __future__ import annotations

import pytest
import torch

from vantage.optimization import clip_gradient, make_optimizer, scheduled


def test_schedules_at_their_ends_and_in_the_middle():
    assert [scheduled(2.0, "constant", 4, i, 10) for i in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert scheduled(2.0, "linear", 0, 5, 10) == 1.0
    assert scheduled(2.0, "linear", 2, 2, 10) == 2.0
    assert scheduled(2.0, "linear", 2, 10, 10) == 0.0
    assert scheduled(2.0, "cosine", 0, 5, 10) == pytest.approx(1.0)
    assert scheduled(2.0, "cosine", 0, 10, 10) == pytest.approx(0.0)
    assert scheduled(2.0, "cosine", 0, 2, 8) == pytest.approx(1 + 2**-0.5)


def test_gradients_are_scaled_to_the_norm_or_left_alone():
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradient(layer.parameters(), 0.0) == 5.0
    assert layer.weight.grad.tolist() == [[3.0, 4.0]]
    assert clip_gradient(layer.parameters(), 1.0) == 5.0
    assert layer.weight.grad.flatten().tolist() == pytest.approx([0.6, 0.8], abs=1e-5)


def test_vectors_do_not_decay():
    groups = make_optimizer(torch.nn.Linear(2, 3), weight_decay=0.1).param_groups
    assert [(g["weight_decay"], [p.ndim for p in g["params"]]) for g in groups] == [(0.1, [2]), (0.0, [1])]
