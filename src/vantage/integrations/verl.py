"""Vantage's estimators in verl's registry, as far as verl's seam carries them.

    VERL_USE_EXTERNAL_MODULES=vantage.integrations.verl_plugin python -m verl.trainer.main_ppo \\
        algorithm.adv_estimator=vantage_rloo ...

or, in a script of one's own, `register()` before the trainer is made. verl calls an estimator with the rewards of tokens, the
response mask, the prompt of each rollout (`index`) and its configuration, and takes advantages and returns back. That is
enough for estimators of rewards alone. It passes neither hidden states nor entropies, keeps no state of an estimator in its
checkpoints, and calls nothing after the update, so what needs these is refused by name. Checked against verl 0.9.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vantage.errors import UserError
from vantage.estimators.base import Algorithm, Setup
from vantage.integrations.common import algorithm, build, response_batch

NAMES = ("rloo", "grpo", "dr_grpo", "reinforce")
"""What the seam carries, of what ships with Vantage."""
HOST = "verl's registry of advantage estimators"

AdvantageFunction = Callable[..., tuple[Tensor, Tensor]]


def register(*specs: str | Algorithm, prefix: str = "vantage_") -> list[str]:
    """Register estimators and return the names for `algorithm.adv_estimator`.

    Without arguments: all of `NAMES`, with their default options. An algorithm's options may be given as an object, or as a
    name that `--algo` takes (FILE.py:CLASS included). Registering the same twice changes nothing.

    Raises:
        UserError: verl is not installed, or its seam can not carry an estimator (the message names what is missing).
    """
    try:
        core: Any = importlib.import_module("verl.trainer.ppo.core_algos")
    except ImportError as error:
        raise UserError(
            f"vantage.integrations.verl needs the package verl ({error}); see https://verl.readthedocs.io for its installation"
        ) from error
    made = [(prefix + algo.name, algo) for algo in map(algorithm, specs or NAMES)]
    for name, algo in made:
        known = getattr(core, "ADV_ESTIMATOR_REGISTRY", {}).get(name)
        if getattr(known, "algorithm", None) != algo:
            core.register_adv_est(name)(advantage_function(algo))
    return [name for name, _ in made]


def advantage_function(spec: str | Algorithm) -> AdvantageFunction:
    """An estimator as verl calls one; raises `UserError` for one that verl's seam can not carry."""
    algo = algorithm(spec)
    # How many rollouts a prompt has is known only when a batch comes; what the estimator needs does not depend on it.
    build(algo, _setup(max(2, algo.rollouts_min)), host=HOST)

    def advantages(
        token_level_rewards: Tensor, response_mask: Tensor, index: Iterable[Hashable] | None = None, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Advantages and returns [B, T] from rewards [B, T], the mask [B, T] and the prompt of each rollout [B].

        A response's reward is the sum of its tokens' rewards; NaN makes it unscorable (advantage 0). Returns are the
        rewards to come.
        """
        mask_BT = response_mask.bool().cpu()
        group_B = _numbered(range(len(mask_BT)) if index is None else list(index))
        sizes = torch.bincount(group_B)
        if index is None and algo.rollouts_min > 1:
            raise UserError(
                f"{algo.name} inside {HOST}: verl gave no `index` (uid), so rollouts of a prompt are unknown"
            )
        if int(sizes.max()) < algo.rollouts_min:
            raise UserError(
                f"actor_rollout_ref.rollout.n is {int(sizes.max())}: {algo.name} compares at least {algo.rollouts_min} "
                "rollouts of a prompt"
            )
        rewards_BT = token_level_rewards.detach().double().cpu()
        reward_B = torch.where(mask_BT, rewards_BT, 0.0).sum(1)
        batch = response_batch(0, reward_B, group_B, mask_BT.sum(1).tolist())
        estimate = build(algo, _setup(int(sizes.min())), host=HOST).advantages(batch, {})
        found_BT = _placed(estimate.advantage_BT, mask_BT)
        returns_BT = torch.where(mask_BT, rewards_BT.nan_to_num(), 0.0).flip(1).cumsum(1).flip(1) * mask_BT
        return found_BT.to(token_level_rewards), returns_BT.to(token_level_rewards)

    advantages.algorithm = algo  # type: ignore[attr-defined]
    advantages.__name__ = f"vantage_{algo.name}"
    return advantages


def _setup(rollouts_per_prompt: int) -> Setup:
    """An estimator of rewards alone reads nothing of the model's shape."""
    return Setup(num_layers=1, hidden_size=1, rollouts_per_prompt=rollouts_per_prompt, reward_range=(0.0, 1.0))


def _numbered(prompts: Sequence[Hashable]) -> Tensor:
    """Equal prompts, equal number, in order of first appearance [B]; siblings need not be neighbours."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(prompt, len(numbers)) for prompt in prompts], dtype=torch.long)


def _placed(advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Advantages of the n-th response token at the n-th position inside of the mask [B, T]; 0 elsewhere."""
    place_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    if advantage_BT.shape[1] == 0:
        return torch.zeros(mask_BT.shape, dtype=advantage_BT.dtype)
    return torch.where(mask_BT, advantage_BT.gather(1, place_BT.clamp(max=advantage_BT.shape[1] - 1)), 0.0)
