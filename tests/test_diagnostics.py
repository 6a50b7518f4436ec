"""Value metrics on small numbers (sheet C8, T9) and where nothing varies."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers import random_batch
from vantage.diagnostics import first_value, largest_advantage, value_metrics, zero_advantage_groups
from vantage.estimators.base import Estimate


def test_case_c8():
    outcome = torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 0])
    value = torch.tensor([0.8, 0.3, 0.6, 0.9, 0.2, 0.1, 0.5, 0.4], dtype=torch.float64)
    found = value_metrics(value, outcome)
    assert found["value/variance_reduction"] == pytest.approx(0.6225)
    assert found["value/mae"] == pytest.approx(0.275)
    assert found["value/pearson"] == pytest.approx(0.854242196177)
    assert found["value/brier_skill"] == pytest.approx(0.62)


def test_an_offset_costs_explained_variance_but_not_variance_reduction():
    outcome = torch.tensor([1.0, 0, 1, 0])
    found = value_metrics(outcome * 0.5 + 0.5, outcome)
    assert found["value/variance_reduction"] == pytest.approx(0.75)
    assert found["value/explained_variance"] == pytest.approx(1 - 0.125 / 0.25)


def test_rows_without_value_or_outcome_are_left_out():
    value = torch.tensor([0.8, float("nan"), 0.3])
    assert value_metrics(value, torch.tensor([1.0, 1.0, float("nan")]))["value/mae"] == pytest.approx(0.2)
    assert value_metrics(value[1:2], torch.tensor([1.0])) == {}


def test_where_nothing_varies_there_is_no_correlation():
    found = value_metrics(torch.tensor([0.2, 0.4]), torch.tensor([1.0, 1.0]))
    assert math.isnan(found["value/pearson"])
    assert math.isnan(found["value/variance_reduction"])
    assert found["value/mae"] == pytest.approx(0.7)


def test_the_first_value_of_an_empty_response_is_unknown():
    mask = torch.tensor([[True, True], [False, False]])
    found = first_value(Estimate(torch.zeros(2, 2), torch.tensor([[0.3, 0.1], [0.0, 0.0]])), mask)
    assert found[0].item() == pytest.approx(0.3)
    assert math.isnan(found[1].item())


def test_a_group_counts_as_zero_only_if_every_advantage_in_it_is_zero():
    batch = random_batch(groups=3, group=2)
    advantage_B = torch.tensor([0.0, 0, 0, 0.2, -0.1, 0.1])
    estimate = Estimate(advantage_B[:, None] * batch.response_mask_BT, torch.zeros(batch.response_mask_BT.shape))
    assert zero_advantage_groups(largest_advantage(estimate), batch.group_B) == pytest.approx(1 / 3)
