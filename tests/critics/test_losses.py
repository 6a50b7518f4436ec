"""Value losses against the sheet's T8, by hand, and by their gradients."""

from __future__ import annotations

import math

import pytest
import torch

from vantage.critics.losses import clipped_squared_error, squared_error, two_bin_cross_entropy


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_t8_clipped_value_loss():
    value, old, target = f64(0.9, 0.4, 0.9, 0.1), f64(0.5, 0.5, 0.5, 0.5), f64(1.0, 1.0, 0.0, 0.0)
    found = clipped_squared_error(value, old, target, 0.2)
    assert found.tolist() == pytest.approx([0.045, 0.18, 0.405, 0.045], abs=1e-12)
    assert squared_error(value, target).tolist() == pytest.approx([0.005, 0.18, 0.405, 0.005], abs=1e-12)


def test_beyond_its_reach_a_value_has_no_pull_towards_the_target_but_one_away_from_it_has():
    value = f64(0.9, 0.9, 0.6).requires_grad_()
    clipped_squared_error(value, f64(0.5, 0.5, 0.5), f64(1.0, 0.0, 1.0), 0.2).sum().backward()
    assert value.grad.tolist() == pytest.approx([0.0, 0.9, -0.4])


def test_cross_entropy_is_that_of_two_bins_and_least_where_the_mean_is_the_target():
    logit, share = f64(-1.0, 0.3, 2.0), f64(0.0, 0.25, 1.0)
    bins = torch.stack([torch.zeros(3, dtype=torch.float64), logit], 1)
    expected = torch.nn.functional.cross_entropy(bins, torch.stack([1 - share, share], 1), reduction="none")
    torch.testing.assert_close(two_bin_cross_entropy(logit, share), expected)
    at = f64(math.log(0.25 / 0.75)).requires_grad_()
    two_bin_cross_entropy(at, f64(0.25)).sum().backward()
    assert float(at.grad) == pytest.approx(0, abs=1e-15)
