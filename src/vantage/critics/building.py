"""Which critic do the options of PPO mean? Builds it for a run, and writes it when the run ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vantage.critics import files
from vantage.critics.model import ValueHead, ValueModel, copied_trunk, width_of
from vantage.critics.token import ModelCritic, StateCritic, TokenCritic
from vantage.critics.training import CriticSettings
from vantage.errors import UserError

if TYPE_CHECKING:
    from vantage.config import TrainConfig
    from vantage.estimators.base import Setup
    from vantage.estimators.ppo import Ppo

HEAD_MOVE = 0.04
"""How far an optimizer step may move a value of a head on the policy's states: AdamW moves each weight by about the learning
rate, and states have entries of about 1, so the rate is this over their width."""
HEAD_DEPTH = 0.75
"""Where in the policy a head reads by default: on `tiny` a ridge regression found most at three quarters of the depth."""
RATIO = 10.0
"""The critic's learning rate over the policy's (verl ships 1e-5 and 1e-6) …"""
HIGHEST_RATE = 3e-4
"""… up to this."""


def build_critic(options: Ppo, setup: Setup) -> TokenCritic:
    """The critic of a run, on the policy's device; raises `UserError` where it can not be had or does not fit."""
    services = setup.working()
    saved = None if options.critic in ("copy", "head") else files.find_critic(options.critic)
    if options.critic == "head" or (saved is not None and files.read_card(saved).kind == "head"):
        return _state_critic(options, setup, saved)
    if options.head_layer is not None:
        raise UserError("--ppo.head-layer is for --ppo.critic head; leave it out")
    policy = services.policy
    if options.critic == "copy":
        trunk, width = copied_trunk(policy), policy.hidden_size
    else:
        if saved is not None:
            _refuse_misfit(saved, options, setup)
        trunk = files.load_trunk(options.critic, policy.tokenizer)
        width = width_of(trunk)
    head = _new_head(options, setup, width) if saved is None else files.load_head(saved, files.read_card(saved))
    sharding = services.sharding
    model = ValueModel(trunk.to(policy.device) if sharding is None else trunk, head, policy.pad_id)
    model.compute = policy.compute
    _refuse_short(options, setup, model)
    settings = critic_settings(options, services.config)
    shards = None if sharding is None else sharding.critic(model, f"--ppo.critic {options.critic}")
    return ModelCritic(model, settings, setup.world, services.config.tokens_per_microbatch or 4096, shards)


def _state_critic(options: Ppo, setup: Setup, saved: Path | None) -> StateCritic:
    services, layer = setup.working(), options.head_layer
    if saved is not None:
        _refuse_misfit(saved, options, setup)
        card = files.read_card(saved)
        if (card.width, layer if layer is not None else card.layer) != (setup.hidden_size, card.layer):
            raise UserError(
                f"--ppo.critic {options.critic}: its head reads layer {card.layer} of width {card.width}, which is not what "
                "this policy and --ppo.head-layer have"
            )
        head, layer = files.load_head(saved, card), card.layer
    else:
        head = _new_head(options, setup, setup.hidden_size)
    layer = max(1, round(HEAD_DEPTH * setup.num_layers)) if layer is None else layer
    if not 0 <= layer <= setup.num_layers:
        raise UserError(f"--ppo.head-layer is {layer}, this model has layers 0 (embeddings) to {setup.num_layers}")
    settings = critic_settings(options, services.config, setup.hidden_size)
    return StateCritic(head.to(services.policy.device), layer, options.head_tokens, settings, setup.world)


def _new_head(options: Ppo, setup: Setup, width: int) -> ValueHead:
    return ValueHead(width, setup.reward_range, options.loss == "bce")


def critic_settings(options: Ppo, config: TrainConfig, head_width: int | None = None) -> CriticSettings:
    """How the critic is trained; `head_width` of states where it is a head on the policy's."""
    default = HEAD_MOVE / head_width if head_width else min(RATIO * (config.learning_rate or 1e-6), HIGHEST_RATE)
    return CriticSettings(
        learning_rate=options.critic_learning_rate or default,
        updates_total=config.steps * options.critic_epochs * options.critic_minibatches,
        schedule=options.critic_lr_schedule,
        warmup=options.critic_lr_warmup,
        weight_decay=options.critic_weight_decay,
        max_grad_norm=options.critic_max_grad_norm,
        epochs=options.critic_epochs,
        minibatches=options.critic_minibatches,
        loss=options.loss,
        clip=options.value_clip,
        whiten=options.whiten_values,
    )


def _card(options: Ppo, setup: Setup, critic: TokenCritic) -> files.Card:
    return _wanted(options, setup, critic.kind, len(critic.head.weight), critic.layers[0] if critic.layers else None)


def _wanted(options: Ppo, setup: Setup, kind: str, width: int, layer: int | None) -> files.Card:
    services, (low, high) = setup.working(), setup.reward_range
    tied = files.ties(services.policy.tokenizer, services.config, services.workload)
    return files.Card(kind, width, (float(low), float(high)), options.loss == "bce", layer, tied)


def _refuse_misfit(saved: Path, options: Ppo, setup: Setup) -> None:
    card = files.read_card(saved)
    files.refuse_misfit(saved, card, _wanted(options, setup, card.kind, card.width, card.layer))


def _refuse_short(options: Ppo, setup: Setup, model: ValueModel) -> None:
    """A critic that can not even read a response is a mistake that needs no rollout to be seen."""
    if model.positions is not None and model.positions <= setup.max_new_tokens:
        raise UserError(
            f"--ppo.critic {options.critic}: it has {model.positions} positions, too few for prompts and responses of up "
            f"to {setup.max_new_tokens} tokens; give another, or lower --max-new-tokens"
        )


def save(folder: Path, options: Ppo, setup: Setup, critic: TokenCritic) -> None:
    """Write a critic for `--ppo.critic` of another run; of one that is dealt out, the main process writes."""
    tokenizer, card = setup.working().policy.tokenizer, _card(options, setup, critic)
    if not isinstance(critic, ModelCritic):
        files.save_critic(folder, card, critic.head, None, tokenizer)
        return
    with critic.whole() as model:
        if model is not None:
            files.save_critic(folder, card, critic.head, model.trunk, tokenizer)
