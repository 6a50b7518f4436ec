"""The exact audit: case T6 of the papers' sheet, Proposition 1 and what it leaves out, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.test_enumerable import Constant, FrozenProbe, config, odd_world
from vantage import Poise, cli
from vantage.audit import plan
from vantage.audit.exact import compared, exact, moments
from vantage.estimators.base import Estimator
from vantage.estimators.grpo import Grpo
from vantage.update import PolicyUpdate

CHAIN = torch.tensor([v * 6 + s for v in range(3) for s in range(3)])
"""Of the head [3, 3 + 1 + 2] the part that the sheet has: logits after nothing, a and b."""


def update(estimator: Estimator) -> PolicyUpdate:
    return PolicyUpdate(odd_world().policy(), estimator, config(forward="prepass"))


def test_the_covariance_of_cross_rollout_baselines_is_that_of_the_sheet() -> None:
    found = moments(odd_world(), update(FrozenProbe(cross=True)), 2, CHAIN)
    assert found.within == pytest.approx(0.370202808557684, abs=1e-12)
    assert found.between == pytest.approx(0.0011951061535967, abs=1e-12)
    assert found.siblings == pytest.approx(0.0117163220630981, abs=1e-12)
    assert found.step(2) == pytest.approx(0.192154671463988, abs=1e-12)
    assert found.predicted(2, 2) == pytest.approx(0.186296510432439, abs=1e-12)


def test_a_baseline_of_the_prompt_follows_proposition_1() -> None:
    single, pair = (moments(odd_world(), update(Constant()), m) for m in (1, 2))
    assert pair.siblings == pytest.approx(0, abs=1e-15)
    assert pair.step(8) == pytest.approx(single.predicted(2, 8), abs=1e-15)
    assert pair.step(8) > single.step(8)


def test_the_self_rollout_probe_is_found_and_the_cross_rollout_one_is_not() -> None:
    reference = moments(odd_world(), update(Constant()), 1, CHAIN)
    own, cross = (moments(odd_world(), update(FrozenProbe(cross=c)), 2, CHAIN) for c in (False, True))
    found = compared(own, reference, 64, {2: own})["bias"]
    assert found["found"]
    cosine = 0.7946  # the sheet's, of the biased estimator with the gradient
    assert found["share"]["mean"] == pytest.approx((1 - cosine**2) ** 0.5 / cosine, abs=1e-3)
    silent = compared(cross, reference, 64, {2: cross})["bias"]
    assert not silent["found"]
    assert silent["scale"]["mean"] == pytest.approx(1, abs=1e-12)


def test_the_real_probe_too_and_groups_shorten_the_gradient() -> None:
    algos = {
        "cross": Poise(alpha=0.1, bootstrap=0),
        "own": Poise(features="own", alpha=0.1, bootstrap=0),
        "mean": Grpo(scale="none"),
    }
    asked = plan("enumerable", algos, rollouts_per_step=16, fill_steps=2, aggregation="seq-mean-token-sum-norm")
    found = exact(asked)["algorithms"]
    assert found["own"]["bias"]["share"]["mean"] > 0.005
    assert found["cross"]["bias"]["share"]["mean"] == 0
    assert found["mean"]["bias"]["share"]["mean"] == 0
    assert found["mean"]["bias"]["scale"]["mean"] == pytest.approx(0.5)


def test_the_command_says_it_in_words_and_writes_numbers_and_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a"
    line = ["audit", "enumerable", "--algos", "rloo,dr_grpo", "--rollouts-per-step", "8", "--out", str(out)]
    assert cli.main(line) == 0
    said = capsys.readouterr().out
    assert "rloo     no bias (exactly)\n" in said
    assert "dr_grpo  no bias (exactly); the gradient comes out 0.5 times as long\n" in said
    found = json.loads((out / "audit.json").read_text())
    assert found["exact"]
    assert found["algorithms"]["rloo"]["noise"]["at_equal_rollouts"]["mean"] == 1
    page = (out / "report.html").read_text()
    assert "no bias (exactly)" in page
    assert (out / "plots" / "noise.png").is_file()
    assert (out / "plots" / "noise.svg").is_file()
