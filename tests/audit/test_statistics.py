"""Products across blocks, the jackknife's coverage in simulations, and the two terms of Proposition 1."""

from __future__ import annotations

import numpy as np
import pytest

from vantage.audit.outlook import deviation, outlook
from vantage.audit.statistics import Gradients, across, bias_of, compared, interval, left_out, products
from vantage.audit.words import percent, rounded, verdict

SPANS = {"one": (0, 40), "two": (40, 60)}
SIZE = 60


def test_products_leave_out_those_of_a_block_with_itself() -> None:
    gram = np.array([[9.0, 1, 2], [3, 9, 4], [5, 6, 9]])
    assert across(gram).tolist() == [21 / 6, (4 + 6) / 2, (2 + 5) / 2, (1 + 3) / 2]
    assert left_out(np.array([1.0, 2, 6])).tolist() == [3, 4, 3.5, 1.5]
    with pytest.raises(ValueError, match="three are the least"):
        across(gram[:2, :2])


def test_the_interval_of_a_mean_is_students() -> None:
    found = interval(left_out(np.array([1.0, 2, 3, 6])))
    half = 3.182446 * np.std([1, 2, 3, 6], ddof=1) / 2
    assert (found.mean, found.high) == (3, pytest.approx(3 + half, abs=1e-5))


def gradients(mean: np.ndarray, square: float = 1.0) -> Gradients:
    shape = (len(mean), len(SPANS))
    return Gradients(mean.astype(np.float32), np.full(shape, square), np.full(shape, square / 2), 2, 4, 30.0)


def simulated(
    draw: np.random.Generator, off: float, blocks: int = 12, noise: float = 0.15
) -> tuple[Gradients, Gradients]:
    """A reference and an estimator that is off by a share `off` of the gradient, with paired noise of few directions."""
    truth, aside = np.zeros(SIZE), np.zeros(SIZE)
    truth[0], aside[1] = 1.0, off
    spread = noise * np.sqrt(np.arange(SIZE, 0, -1) / SIZE)
    reference = truth + draw.normal(size=(blocks, SIZE)) * spread
    return gradients(reference + aside + 0.5 * draw.normal(size=(blocks, SIZE)) * spread), gradients(reference)


def bias(pair: tuple[Gradients, Gradients]):
    cuts = list(SPANS.values())
    (ours, theirs) = (side.mean_KD for side in pair)
    return bias_of(*(products(a, b, cuts).sum(0) for a, b in ((ours, ours), (ours, theirs), (theirs, theirs))))


def test_without_a_bias_hardly_one_is_called_found_and_a_planted_one_is_nearly_always() -> None:
    draw, runs = np.random.default_rng(0), 300
    silent = [bias(simulated(draw, 0.0)) for _ in range(runs)]
    assert all(found.resolved for found in silent)
    assert sum(found.found for found in silent) <= 0.05 * runs
    planted = [bias(simulated(draw, 0.4)) for _ in range(runs)]
    assert sum(found.found for found in planted) > 0.95 * runs
    covered = sum(found.share.low <= 0.4 <= found.share.high for found in planted)
    assert covered > 0.92 * runs


def test_what_was_not_found_is_bounded() -> None:
    found = bias(simulated(np.random.default_rng(1), 0.0, blocks=40))
    assert not found.found
    assert 0 < found.unseen < 0.2


def test_a_gradient_that_noise_hides_gives_no_verdict() -> None:
    ours, theirs = simulated(np.random.default_rng(2), 0.3, noise=30.0)
    entry = compared(ours, theirs, SPANS, 64)
    assert entry["bias"] == {"share": None, "scale": None, "found": False, "resolved": False}
    assert entry["noise"] is None
    assert verdict(entry, 0.01, 0.95, exact=False).startswith("nothing can be said")


def test_the_deviation_of_products_is_that_of_the_estimate() -> None:
    draw = np.random.default_rng(5)
    runs = [(block @ block.T) for block in (draw.normal(size=(6, SIZE)) for _ in range(400))]
    measured = np.std([across(gram)[0] for gram in runs])
    assert np.sqrt(np.mean([deviation(gram) ** 2 for gram in runs])) == pytest.approx(measured, rel=0.1)


def test_the_outlook_tells_how_many_blocks_a_statement_takes() -> None:
    """From six blocks, most of which tell nothing; then audits of the size that they ask for."""
    draw, share, noise = np.random.default_rng(6), 0.3, 0.8
    asked, resolved = [], 0
    for _ in range(100):
        ours, theirs = simulated(draw, 0.0, blocks=6, noise=noise)
        resolved += bias((ours, theirs)).resolved
        said = outlook(ours, theirs, [share], 128)
        if said is not None and said["sure"]:
            (one,) = said["statements"]
            assert one["rollouts"] == 128 * one["blocks"]
            asked.append(one["blocks"])
    assert resolved < 20
    assert len(asked) > 60
    audits = [bias(simulated(draw, 0.0, blocks=int(np.median(asked)), noise=noise)) for _ in range(60)]
    stated = np.mean([found.resolved and found.share.high <= share for found in audits])
    assert 0.6 < stated < 0.99  # five in six are meant


def test_the_outlook_goes_with_the_square_of_the_share_and_takes_a_known_factor() -> None:
    ours, theirs = simulated(np.random.default_rng(7), 0.0, noise=2.0)
    half = Gradients(ours.mean_KD / 2, ours.square_KL, ours.within_KL, 2, 4)
    found = outlook(half, theirs, [0.1, 0.01], 1, scale=0.5)
    assert found == outlook(ours, theirs, [0.1, 0.01], 1, scale=1.0)
    assert found is not None
    coarse, fine = (one["blocks"] for one in found["statements"])
    assert fine / coarse == pytest.approx(100, rel=0.05)


def test_a_gradient_that_seems_to_be_none_gives_a_bound_from_below_and_one_that_is_none_gives_nothing() -> None:
    off = np.random.default_rng(8).normal(size=(6, SIZE))
    alternating = gradients(np.array([1.0, -1, 1, -1, 1, -1])[:, None] * np.ones(SIZE) + 0.5 * off)
    found = outlook(alternating, alternating, [0.1], 1)
    assert found is None or not found["sure"]
    assert outlook(gradients(np.zeros((6, SIZE))), gradients(off), [0.1], 1) is None


def test_a_verdict_that_says_nothing_says_what_it_would_take() -> None:
    statements = [{"share": 0.1, "blocks": 34, "rollouts": 4352}, {"share": 0.01, "blocks": 3299, "rollouts": 422272}]
    open_ = {"share": None, "scale": None, "found": False, "resolved": False}
    entry = {"bias": open_, "outlook": {"sure": True, "statements": statements}}
    assert verdict(entry, 0.01, 0.95, exact=False) == (
        "nothing can be said yet: these rollouts do not tell the gradient from its noise; to find or exclude a bias takes "
        "roughly 4,400 rollouts (--blocks 34) for one of 10 %, 420,000 rollouts (--blocks 3299) for one of 1.0 %"
    )
    entry["outlook"]["sure"] = False
    assert "takes more than 4,400 rollouts" in verdict(entry, 0.01, 0.95, exact=False)
    about = {"mean": 0.02, "low": 0.0, "high": 0.3}
    bounded = {"share": about, "scale": {"mean": 1, "low": 0.9, "high": 1.1}, "found": False, "resolved": True}
    entry = {"bias": bounded, "outlook": {"sure": True, "statements": statements[1:]}}
    assert verdict(entry, 0.01, 0.95, exact=False) == (
        "no bias found; one of more than 30 % of the gradient's norm is excluded with 95% confidence; to find or exclude "
        "a bias takes about 420,000 rollouts (--blocks 3299) for one of 1.0 %"
    )
    assert [rounded(n) for n in (7, 99, 128, 4352, 4_249_000)] == ["7", "99", "130", "4,400", "4,200,000"]


def test_a_factor_is_no_bias_and_cancels_in_the_variance() -> None:
    _, theirs = simulated(np.random.default_rng(3), 0.0)
    half = Gradients(theirs.mean_KD / 2, theirs.square_KL / 4, theirs.within_KL / 4, 2, 4, 30.0, 30.0)  # type: ignore[operator]
    entry = compared(half, theirs, SPANS, 64)
    assert entry["bias"]["share"]["high"] == pytest.approx(0, abs=1e-3)
    assert entry["bias"]["scale"]["mean"] == pytest.approx(0.5, abs=1e-6)
    assert entry["noise"]["at_equal_rollouts"]["mean"] == pytest.approx(1, abs=1e-5)
    assert entry["noise"]["at_equal_tokens"]["mean"] == pytest.approx(2, abs=1e-5)
    assert verdict(entry, 0.01, 0.95, False) == (
        "no bias found at 1.0 % of the gradient's norm (95% confidence); the gradient comes out 0.5 times as long (0.5 to 0.5)"
    )


def test_the_two_terms_of_proposition_1_are_told_apart() -> None:
    """Prompts with means of variance 3 a number, rollouts with 5 around them; parts of 4 prompts × 2 rollouts."""
    draw, blocks, bundles, columns = np.random.default_rng(4), 40, 8, 4
    prompt = 5 + draw.normal(size=(blocks, bundles, 1, 4, SIZE)) * np.sqrt(3)
    part = (prompt + draw.normal(size=(blocks, bundles, columns, 4, SIZE)) * np.sqrt(5 / 2)).mean(3)
    cuts = [slice(*cut) for cut in SPANS.values()]
    square = np.stack([(part[..., cut] ** 2).sum(-1).mean((1, 2)) for cut in cuts], 1)
    within = np.stack([part[..., cut].var(2, ddof=1).sum(-1).mean(1) for cut in cuts], 1)
    ours = Gradients(part.mean((1, 2)).astype(np.float32), square, within, 2, 4, 30.0)
    noise = compared(ours, ours, SPANS, 64)["noise"]
    assert noise["within"]["mean"] == pytest.approx(5 * SIZE, rel=0.03)
    assert noise["between"]["mean"] == pytest.approx(3 * SIZE, rel=0.1)
    assert noise["step"]["mean"] == pytest.approx((5 + 2 * 3) * SIZE / 64, rel=0.05)
    four = next(point for point in noise["predicted"] if point["members"] == 4)
    assert four["mean"] == pytest.approx((5 + 4 * 3) / (5 + 2 * 3), rel=0.05)
    assert four["low"] < four["mean"] < four["high"]


def test_percentages_are_short() -> None:
    assert [percent(x) for x in (0.0, 0.0004, 0.0042, 0.031, 0.62)] == ["0.0 %", "0.04 %", "0.4 %", "3.1 %", "62 %"]
