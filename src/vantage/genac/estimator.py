"""GenAC as an estimator: when is the critic asked, what becomes of its answers, and when may the policy move?

The equations and the options are in `vantage.estimators.genac`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vantage.batch import Batch
from vantage.collect import Collected
from vantage.errors import UserError
from vantage.estimators.base import Estimate, Estimator, Needs, Queried, Reads, Setup, State
from vantage.evaluation.scoring import evaluate
from vantage.genac.actor import ActorFacts
from vantage.genac.asking import Asked, measured, segments_of, shares
from vantage.genac.critic import filled
from vantage.genac.lessons import lessons, source_of, teach
from vantage.genac.panel import Candidate, Judged, Panel, choose_panel
from vantage.genac.parsing import critic_reward
from vantage.genac.reinforce import CriticTrainer, Example, outcome_class, weights
from vantage.genac.saving import packed, unpack
from vantage.genac.stages import ORDER, Course
from vantage.genac.start import begin
from vantage.genac.states import states_of
from vantage.models.holding import ModelOptions
from vantage.randomness import Stream, key, permutation
from vantage.rollout.factory import make_engine
from vantage.segment_credit import gae, over_tokens, segment_numbers, whiten_tokens, with_final_action
from vantage.segments import Splitter, split

if TYPE_CHECKING:
    from pathlib import Path

    from vantage.estimators.genac import Genac


class GenacEstimator(Estimator):
    """The critic at work; see the module."""

    needs = Needs(generates=True)

    def __init__(self, options: Genac, setup: Setup) -> None:
        self.options, self.setup, self.world = options, setup, setup.world
        self.services = setup.working()
        task = self.services.workload.task
        given = {} if options.min_segment_tokens is None else {"min_segment_tokens": options.min_segment_tokens}
        self.splitter = Splitter.of_task(
            task, kind=options.segmentation, tokens=options.segment_tokens, threshold=options.lowprob,
            max_segment_tokens=options.max_segment_tokens, max_segments=options.max_segments, flags="--genac.", **given,
        )  # fmt: skip
        config = self.services.config
        self.begun = begin(
            options.critic, model=config.model, task=config.task, policy=self.services.policy,
            device=self.services.policy.device, template=options.template, icc=options.icc,
            critic_tokens=options.critic_tokens, generation_batch=config.generation_batch,
            chunk_tokens=config.logit_chunk_tokens,
            hold=replace(ModelOptions.of(config), lora=None),
            make=partial(make_engine, config=config, world=self.world, role="critic"),
        )  # fmt: skip
        self.critic = self.begun.critic
        if self.services.sharding is not None:
            self.services.sharding.policy(self.critic.policy, "--genac.critic", trained=True)
        self.dealt_out = self.services.sharding is not None
        self.trainer = CriticTrainer(
            self.critic.policy, learning_rate=options.critic_learning_rate or self.begun.learning_rate,
            weight_decay=options.critic_weight_decay, max_grad_norm=options.critic_max_grad_norm,
            aggregation=options.critic_loss, tokens_per_microbatch=config.tokens_per_microbatch or 4096, world=self.world,
        )  # fmt: skip
        name = options.actor_name or config.model
        size = sum(p.numel() for p in self.services.policy.model.parameters())
        self.actor = ActorFacts(name, size, options.momentum)
        self.course = Course(options, setup, self.begun.source, self.begun.schooled, self._say)
        self.panel: Panel | None = None
        self.panel_chosen = False
        self.taught: frozenset[str] = frozenset()
        """Problems of this run's lessons, which the panel must not have."""
        self.asked: Asked | None = None

    # --- before the update --------------------------------------------------------------------------------------------

    def query(self, collected: Collected) -> Queried:
        """Ask the critic about the states of the step's rollouts; decide whether the policy may move in this step."""
        first_tokens = self.first_success_rate() + self.attend_school()
        self.critic.engine.update_weights()
        with self.critic.policy.gathered():
            return self._query(collected, first_tokens)

    def _query(self, collected: Collected, first_tokens: int) -> Queried:
        asked, judged, metrics = self._ask(collected)
        metrics["tokens/value_extra"] += first_tokens
        self.asked = asked
        rival = self.course.against_rival(collected.batch, asked)
        metrics |= {} if rival is None else {"genac/brier_rival": rival[1]}
        self.course.advance(judged, rival)
        failures = 1 - metrics["genac/parse_rate"]
        held = self.course.stage == "joint" and failures > self.options.max_failures
        self.update_policy = self.course.stage == "joint" and not held
        metrics |= {"genac/held": float(held), **self._measure_panel(collected, asked, metrics)}
        self.critic.engine.sleep()
        return Queried(self._reads(collected, asked), metrics)

    def first_success_rate(self) -> int:
        """Measure ρ on rollouts of their own where there is none yet; returns the tokens that took, on all processes."""
        if self.actor.rate is not None or self.options.success_problems == 0:
            return 0
        work, config = self.services.workload, self.services.config
        train = work.task.train
        order = permutation(config.seed, Stream.CRITIC, 0, len(train))[: self.options.success_problems]
        found = evaluate(
            self.services.policy, self.services.engine, [train[int(i)] for i in order], work.rewards, self.services.sampling,
            reward_range=self.setup.reward_range, seed=key(config.seed, Stream.CRITIC, 1),
            chat=config.chat, world=self.world,
        )  # fmt: skip
        known = [x for x in found.score_PK[:, 0].tolist() if math.isfinite(x)]
        self.actor.observe(sum(known) / len(known) if known else math.nan)
        return round(found.length_mean * len(order))

    def attend_school(self) -> int:
        """The supervised stage, where the critic still needs it; returns the tokens generated for it, on all processes."""
        if self.course.stage != "sft":
            return 0
        self.course.stage = "pretrain"
        options, services = self.options, self.services
        if not source_of(options, services):
            self._say(
                f"the critic is {self.begun.source} and begins untaught: {services.workload.task.name} has no critiques of its "
                "own; --genac.traces or --genac.teacher would give it some"
            )
            return 0
        traces, tokens, said = lessons(options, services, self.critic, self.actor, self.splitter, self.world)
        for text in said:
            self._say(text)
        self.taught = frozenset(trace.problem for trace in traces)
        self._say(f"the critic is {self.begun.source}; it learns from {len(traces)} traces how to reason")
        config = services.config
        teach(options, self.critic, traces, config.seed, self.world, self._say, config.tokens_per_microbatch)
        return tokens

    def _ask(self, collected: Collected) -> tuple[Asked, Judged, dict[str, float]]:
        batch, services, options = collected.batch, self.services, self.options
        tokenizer = services.policy.tokenizer
        cuts = [split(r.response_ids, self.splitter, tokenizer, r.logp) for r in collected.rollouts]
        states = states_of(
            [p.prompt for p in collected.problems], batch.prompt_ids, batch.response_ids, cuts, batch.group_B.tolist(),
            tokenizer, services.sampling.max_new_tokens, options.final_action,
        )  # fmt: skip
        most = self.setup.rollouts_per_prompt
        keys = [
            [
                key(services.config.seed, Stream.CRITIC, batch.step, name, j)
                for j in range(max(options.samples, min(n, most)))
            ]
            for name, n in zip(states.names(), states.unique.multiplicity)
        ]
        opinions = self.critic.ask(states.views, keys, self.actor, soft=options.reading == "expected")
        low, high = self.setup.reward_range
        share_B = shares(batch, low, high)
        success = (collected.metrics["reward/mean"] - low) / (high - low)
        asked = Asked(states, opinions, share_B, states.targets(share_B), success)
        judged, metrics = measured(asked, self.world)
        metrics["genac/shown_rate"] = math.nan if self.actor.rate is None else self.actor.rate
        return asked, judged, metrics

    def _say(self, text: str) -> None:
        if self.world.main:
            print(f"genac: {text}", file=sys.stderr, flush=True)

    def _measure_panel(self, collected: Collected, asked: Asked, metrics: dict[str, float]) -> dict[str, float]:
        """Choose the panel in the first step; ask the critic about it where that is due."""
        options, seed, step = self.options, self.services.config.seed, collected.batch.step
        if not self.panel_chosen:
            self.panel_chosen = True
            found = [c for part in self.world.exchange(self._candidates(asked)) for c in part]
            self.panel = choose_panel(
                found, options.panel_share, options.panel_states, self.actor.rate,
                lambda group: key(seed, Stream.CRITIC, 2, group),
            )  # fmt: skip
        elif options.panel_every == 0 or step % options.panel_every:
            return {}
        if self.panel is None or options.panel_every == 0:
            return {}
        measures, tokens = self.panel.measure(self.critic, self.actor, seed, step, self.world)
        metrics["tokens/value_extra"] += tokens
        return {f"genac/panel_{name}": value for name, value in measures.items()}

    def _candidates(self, asked: Asked) -> list[Candidate]:
        rows: dict[int, Candidate] = {}
        for view, group, target in zip(asked.states.views, asked.states.groups, asked.targets):
            if view.problem not in self.taught:
                rows.setdefault(group, Candidate(group, view.problem, [])).rows.append((view, target))
        return list(rows.values())

    def _reads(self, collected: Collected, asked: Asked) -> dict[str, Tensor]:
        """Value and number of the segment of every token, and the value before the last one: [B, T], [B, T], [B]."""
        states, values = asked.states, [opinion.value for opinion in asked.opinions]
        prior = 0.5 if self.actor.rate is None else self.actor.rate
        low, high = self.setup.reward_range
        rows = [
            [low + (high - low) * v for v in filled([values[u] for u in index], prior)] for index in states.unique.index
        ]
        counts = [len(cut) for cut in states.segments]
        width = collected.batch.response_mask_BT.shape[1]
        number_BT = segment_numbers(states.segments, width)
        last = [row[-1] if row and states.final_action else math.nan for row in rows]
        return {
            "value_MT": over_tokens([row[:n] for row, n in zip(rows, counts)], number_BT),
            "segment_MT": number_BT,
            "last": torch.tensor(last, dtype=torch.float64),
        }

    # --- advantages ---------------------------------------------------------------------------------------------------

    def advantages(self, batch: Batch, reads: Reads) -> Estimate:
        """GAE over segments, the same for all tokens of one; whitened over the step's tokens unless that is off."""
        options, mask_BT = self.options, batch.response_mask_BT
        value_BT, number_BT, last_B = (batch.queried[name] for name in ("value_MT", "segment_MT", "last"))
        cuts = segments_of(number_BT, batch.length_B.tolist())
        rewards = batch.reward_B.tolist()
        rows = [[float(value_BT[b, start]) for start in cut.starts] for b, cut in enumerate(cuts)]
        found = [gae(row, rewards[b], options.gae_lambda, options.gamma) for b, row in enumerate(rows)]
        advantage_BT = over_tokens(found, number_BT)
        if options.final_action:
            advantage_BT = with_final_action(advantage_BT, cuts, rewards, last_B.tolist())
        known_BT = mask_BT & batch.scorable_B[:, None]
        advantage_BT = torch.where(known_BT, advantage_BT, 0.0)
        if options.whiten:
            advantage_BT = whiten_tokens(advantage_BT, known_BT, self.world)
        return Estimate(advantage_BT, torch.where(mask_BT, value_BT, 0.0))

    # --- after the update ---------------------------------------------------------------------------------------------

    def learn(self, batch: Batch, reads: Reads, estimate: Estimate) -> Mapping[str, float]:
        """REINFORCE on the step's completions, then the success rate takes in the step."""
        assert self.asked is not None, "learn comes after query"
        examples = self._examples(self.asked, batch.step)
        weight = weights(
            [e.reward for e in examples], self.options.baseline, [outcome_class(e.target) for e in examples],
            world=self.world,
        )  # fmt: skip
        learned = self.trainer.step(examples, weight)
        self.course.learned(batch, self.asked, self._held_out())
        rewards = [r for part in self.world.exchange([e.reward for e in examples]) for r in part]
        self.actor.observe(self.asked.success)
        self.asked = None
        return {
            "genac/critic_reward": math.fsum(rewards) / len(rewards) if rewards else math.nan,
            "genac/critic_loss": learned.loss,
            "genac/critic_grad_norm": learned.grad_norm,
            "genac/critic_entropy": learned.entropy,
            "genac/critic_skipped": float(not learned.stepped),
            "genac/stage": float(ORDER.index(self.course.stage)),
        }

    def _examples(self, asked: Asked, step: int) -> list[Example]:
        """Completions to learn from: states of the panel's problems and those without a target are left out."""
        held_out = self._held_out()
        rows = [
            (name, opinion, target)
            for name, view, opinion, target in zip(
                asked.states.names(), asked.states.views, asked.opinions, asked.targets
            )
            if math.isfinite(target) and view.problem not in held_out
        ]
        chance = self._chance(len(rows))
        return [
            Example(opinion.prompt_ids, rollout.response_ids, critic_reward(target, value), target, 1 / chance)
            for name, opinion, target in rows
            if chance == 1 or self._drawn(step, name) < chance
            for rollout, value in zip(opinion.rollouts, opinion.values)
        ]

    def _held_out(self) -> frozenset[str]:
        return frozenset() if self.panel is None else self.panel.held_out

    def _chance(self, states: int) -> float:
        """With which probability a state is learned from in this step."""
        total = sum(self.world.exchange(states))
        return min(1.0, self.options.train_states / total) if self.options.train_states and total else 1.0

    def _drawn(self, step: int, name: int) -> float:
        return key(self.services.config.seed, Stream.CRITIC, 3, step, name) / 2**64

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """Critic and optimizer as tensors; success rate, stage and panel as plain values."""
        course = self.course.state_dict()
        values = {
            **course.values,
            "actor": self.actor.state(),
            "panel": None if self.panel is None else self.panel.state(),
            "panel_chosen": self.panel_chosen,
            "template": self.critic.template.digest,
        }
        return State({**packed(self.critic.policy.model, self.trainer.optimizer), **course.tensors}, values)

    def load_state_dict(self, state: State) -> None:
        """Restore everything; a critic of another shape or another template is refused."""
        if state.values.get("template") != self.critic.template.digest:
            raise UserError(
                "--genac.template: the checkpoint's critic reads another prompt; resume with the one it had"
            )
        unpack(state.tensors, self.critic.policy.model, self.trainer.optimizer)
        self.course.load_state_dict(state)
        self.actor.load(state.values["actor"])
        found = state.values["panel"]
        self.panel = None if found is None else Panel.of_state(found)
        self.panel_chosen = bool(state.values["panel_chosen"])

    def close(self) -> None:
        """End the critic's engine."""
        self.critic.engine.close()

    def save_pretrained(self, folder: Path, **more: object) -> None:
        """The critic for `--genac.critic FOLDER`, `vantage critic` and plain transformers; `more` goes into its card."""
        self.critic.save(folder, {**self.begun.card(self.course.stage, self.actor), **more})
