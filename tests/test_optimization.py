"""Learning-rate schedules, gradient clipping, and moments of 8 bits."""

from __future__ import annotations

import sys

import pytest
import torch

from vantage.checkpoint import load_optimizer, load_state, optimizer_state, save_state
from vantage.errors import UserError
from vantage.optimization import clip_gradient, make_optimizer, scheduled, set_learning_rate


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


def layer_of(seed: int) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(64, 96)


def stepped(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer, steps: range) -> None:
    set_learning_rate(optimizer, 1e-2)
    for step in steps:
        layer.weight.grad = torch.randn((96, 64), generator=torch.Generator().manual_seed(step))
        layer.bias.grad = torch.ones(96) * (step + 1)
        optimizer.step()


def test_moments_of_8_bits_go_through_a_checkpoint(tmp_path, monkeypatch):
    pytest.importorskip("torchao")
    monkeypatch.setattr(torch, "compile", lambda work, **options: work)  # the same arithmetic, without a compiler
    layer = layer_of(0)
    optimizer = make_optimizer(layer, weight_decay=0.1, kind="adamw-8bit")
    stepped(layer, optimizer, range(3))
    state = optimizer_state(optimizer, layer)
    assert state.tensors["weight|exp_avg.codes"].dtype == torch.uint8
    assert state.tensors["bias|exp_avg"].dtype == torch.float32  # too few numbers for a table
    save_state(tmp_path / "optimizer", state)
    other = layer_of(1)
    other.load_state_dict(layer.state_dict())
    resumed = make_optimizer(other, weight_decay=0.1, kind="adamw-8bit")
    load_optimizer(resumed, other, load_state(tmp_path / "optimizer", "the optimizer"))
    stepped(layer, optimizer, range(3, 6))
    stepped(other, resumed, range(3, 6))
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)
    plain = layer_of(0)
    stepped(plain, make_optimizer(plain, weight_decay=0.1), range(6))
    assert torch.allclose(plain.weight, layer.weight, atol=1e-2)
    with pytest.raises(KeyError, match="8 bits"):
        load_optimizer(make_optimizer(plain, weight_decay=0.1), plain, state)


def test_the_package_of_8_bit_moments_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(UserError, match=r"adamw-8bit needs the package torchao: pip install 'vantage-rl\[lowbit\]'"):
        make_optimizer(layer_of(0), weight_decay=0.0, kind="adamw-8bit")
