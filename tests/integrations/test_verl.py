"""verl's registry: what its seam carries gives our numbers, the rest is refused by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from vantage.errors import UserError
from vantage.estimators.base import Algorithm, Estimator, Queried, Setup
from vantage.estimators.grpo import Grpo
from vantage.estimators.reinforce import Reinforce
from vantage.integrations import verl as adapter

MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]])
INDEX = np.array(["a", "b", "a", "b"], dtype=object)
"""Siblings are not neighbours: verl balances lengths over its workers."""
REWARD = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.25, 0.0], [0.0, 0.0, 0.0], [0.0, 0.75, 0.0]])


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A verl whose registry works as verl's own: a name is taken once."""
    found: dict[str, Any] = {}

    def register_adv_est(name: str) -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:
            if name in found and found[name] != function:
                raise ValueError(f"{name} is taken")
            found[name] = function
            return function

        return decorate

    core = ModuleType("verl.trainer.ppo.core_algos")
    core.register_adv_est, core.ADV_ESTIMATOR_REGISTRY = register_adv_est, found  # type: ignore[attr-defined]
    for name in ("verl", "verl.trainer", "verl.trainer.ppo"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, core.__name__, core)
    return found


def call(function: Any, **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    settings = {"token_level_rewards": REWARD, "response_mask": MASK, "index": INDEX, "config": {}}
    return function(**(settings | changes))


def test_rloo_gives_each_token_the_reward_minus_the_siblings_mean(registry: dict[str, Any]) -> None:
    assert adapter.register("rloo") == ["vantage_rloo"]
    advantages, returns = call(registry["vantage_rloo"])
    expected = torch.tensor([[1.0, 1.0, 1.0], [-0.5, -0.5, 0.0], [-1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    torch.testing.assert_close(advantages, expected)
    assert advantages.dtype == torch.float32
    torch.testing.assert_close(
        returns, torch.tensor([[1.0, 1.0, 1.0], [0.25, 0.25, 0.0], [0.0, 0.0, 0.0], [0.75, 0.75, 0.0]])
    )


def test_grpo_and_dr_grpo_by_hand(registry: dict[str, Any]) -> None:
    adapter.register("grpo", "dr_grpo")
    centred = torch.tensor([0.5, -0.25, -0.5, 0.25])
    std = torch.tensor([0.5**0.5, 0.125**0.5, 0.5**0.5, 0.125**0.5])
    grpo, _ = call(registry["vantage_grpo"])
    torch.testing.assert_close(grpo[:, 0], centred / (std + 1e-4))
    dr_grpo, _ = call(registry["vantage_dr_grpo"])
    torch.testing.assert_close(dr_grpo[:, 0], centred)


def test_reinforce_counts_responses_by_their_tokens_and_needs_no_siblings(registry: dict[str, Any]) -> None:
    adapter.register(Reinforce(over="tokens"))
    advantages, _ = call(registry["vantage_reinforce"], index=None)
    reward, length = torch.tensor([1.0, 0.25, 0.0, 0.75]), torch.tensor([3.0, 2.0, 1.0, 2.0])
    mean = (reward * length).sum() / 8
    std = ((reward - mean) ** 2 * length).sum().div(8).sqrt()
    torch.testing.assert_close(advantages[:, 0], (reward - mean) / std)


def test_a_mask_with_holes_places_advantages_inside_of_it(registry: dict[str, Any]) -> None:
    adapter.register("rloo")
    holes = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 0, 0], [1, 1, 0]])
    advantages, _ = call(registry["vantage_rloo"], response_mask=holes)
    torch.testing.assert_close(advantages != 0, holes.bool())
    assert advantages[0].tolist() == [1.0, 0.0, 1.0]


def test_an_unscorable_rollout_has_no_advantage_and_counts_for_nobody(registry: dict[str, Any]) -> None:
    adapter.register("rloo")
    rewards = REWARD.clone()
    rewards[1, 0] = float("nan")
    advantages, returns = call(registry["vantage_rloo"], token_level_rewards=rewards)
    assert advantages[1].tolist() == advantages[3].tolist() == [0.0, 0.0, 0.0]
    assert returns.isfinite().all()


def test_options_are_kept_and_registering_again_changes_nothing(registry: dict[str, Any]) -> None:
    adapter.register(Grpo(scale="none"))
    first = registry["vantage_grpo"]
    adapter.register(Grpo(scale="none"))
    assert registry["vantage_grpo"] is first
    assert call(first)[0][:, 0].tolist() == [0.5, -0.25, -0.5, 0.25]
    with pytest.raises(ValueError, match="is taken"):
        adapter.register(Grpo(scale="group"))
    assert adapter.register(Grpo(scale="group"), prefix="other_") == ["other_grpo"]


def test_importing_the_plugin_registers_all_that_the_seam_carries(
    registry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "vantage.integrations.verl_plugin", raising=False)
    plugin = importlib.import_module("vantage.integrations.verl_plugin")
    assert plugin.REGISTERED == list(registry) == [f"vantage_{name}" for name in adapter.NAMES]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "poise",
            r"missing hidden states of the policy; what the policy's forward pass yields \(entropies, hidden states\); "
            "a call after each update",
        ),
        ("vimpo", "missing .*log-probs of a reference model.*; a loss term of the estimator's own"),
        ("dapo", r"missing dynamic sampling \(groups of equal reward are replaced\)"),
    ],
)
def test_what_verl_can_not_carry_is_refused_by_name(registry: dict[str, Any], name: str, words: str) -> None:
    with pytest.raises(UserError, match=f"{name} inside verl's registry of advantage estimators: {words}"):
        adapter.register(name)
    assert registry == {}


@pytest.mark.parametrize("at_once", [True, False])
def test_an_estimator_that_generates_is_refused_in_words(registry: dict[str, Any], at_once: bool) -> None:
    class Asking(Estimator):
        def __init__(self, setup: Setup) -> None:
            if at_once:
                setup.working()

        def query(self, collected: Any) -> Queried:
            return Queried()

    class Asks(Algorithm):
        name = "asks"

        def build(self, setup: Setup) -> Estimator:
            return Asking(setup)

    words = "asks inside verl's .*: missing generation and models of the estimator's own before each update"
    with pytest.raises(UserError, match=words):
        adapter.register(Asks())


def test_groups_that_are_too_small_or_unknown_are_a_mistake_that_names_the_setting(registry: dict[str, Any]) -> None:
    adapter.register("rloo")
    with pytest.raises(UserError, match=r"actor_rollout_ref.rollout.n is 1: rloo compares at least 2"):
        call(registry["vantage_rloo"], index=["a", "b", "c", "d"])
    with pytest.raises(UserError, match="verl gave no `index`"):
        call(registry["vantage_rloo"], index=None)


def test_without_verl_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verl", None)
    with pytest.raises(UserError, match="needs the package verl"):
        adapter.register("rloo")


def test_the_real_registry_takes_ours_and_its_own_rloo_agrees() -> None:
    core = pytest.importorskip("verl.trainer.ppo.core_algos")
    adapter.register("rloo", "grpo")
    ours, _ = call(core.get_adv_estimator_fn("vantage_rloo"))
    theirs, _ = core.get_adv_estimator_fn("rloo")(
        token_level_rewards=REWARD, response_mask=MASK, index=INDEX, config=None
    )
    torch.testing.assert_close(ours, theirs)
    ours, _ = call(core.get_adv_estimator_fn("vantage_grpo"))
    theirs, _ = core.get_adv_estimator_fn("grpo")(
        token_level_rewards=REWARD, response_mask=MASK, index=INDEX, epsilon=1e-4
    )
    torch.testing.assert_close(ours, theirs)
