"""Fits from moments equal fits from rows, however the rows were cut into steps."""

from __future__ import annotations

import pytest
import torch

from vantage.probes.linear import fit_probe, fit_probe_to_moments
from vantage.probes.moments import Moments


def data(rows: int = 90, offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn((rows, 6), generator=draw, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1, 2.0, 1.0, 3.0])
    x[:, 4] = 0.25  # a constant column
    y = (x @ torch.tensor([0.3, -0.1, 2.0, 0.0, 1.0, 0.05], dtype=torch.float64)).sigmoid()
    return x + offset, y


def test_moments_by_hand():
    found = Moments.of(torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.tensor([0.0, 1.0]))
    assert found.count == 2
    assert found.mean_P.tolist() == [2.0, 1.0]
    assert found.target == 0.5
    assert found.scatter_PP.tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert found.cross_P.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("cuts", [[90], [1, 89], [40, 20, 30]])
def test_merged_moments_are_those_of_all_rows(cuts, offset):
    x, y = data(offset=offset)
    merged = Moments.merged([Moments.of(a, b) for a, b in zip(x.split(cuts), y.split(cuts))])
    whole = Moments.of(x, y)
    assert merged.count == 90
    torch.testing.assert_close(merged.mean_P, whole.mean_P, rtol=1e-12, atol=0)
    assert merged.target == pytest.approx(whole.target, rel=1e-12)
    torch.testing.assert_close(merged.scatter_PP, whole.scatter_PP, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(merged.cross_P, whole.cross_P, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("alpha", [0.01, 100.0, "auto"])
def test_a_probe_fitted_to_moments_is_the_probe_fitted_to_rows(alpha):
    x, y = data()
    asked = []

    def rows():
        asked.append(1)
        return x, y

    moments = Moments.merged([Moments.of(a, b) for a, b in zip(x.split(30), y.split(30))])
    found = fit_probe_to_moments(moments, rows, columns={"all": (0, 6)}, alpha=alpha, step=4)
    expected = fit_probe(x, y, alpha=alpha, step=4)
    torch.testing.assert_close(found.raw(x), expected.raw(x), rtol=0, atol=1e-10)
    assert found.ridge.alpha == expected.ridge.alpha
    assert found.ridge.condition == pytest.approx(expected.ridge.condition, rel=1e-6)
    assert bool(asked) == (alpha == "auto")
    assert found.step == 4
