"""The loop: rollout → reward → update → learn. It knows no algorithm by name.

from vantage import Poise, TrainConfig, Trainer
Trainer(TrainConfig(model="Qwen/Qwen3-0.6B", algo=Poise(layer=15)), train_data=dataset, reward_funcs=[f]).train()
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vantage.collect import Collected, Collector
from vantage.config import TrainConfig, resolve
from vantage.diagnostics import first_value, value_metrics, zero_advantage_groups
from vantage.estimators.base import Setup
from vantage.evaluation import Evaluation, evaluate
from vantage.interrupts import Interrupted, Interrupts
from vantage.loading import choose_device, end_token_ids, load_policy, think_end_ids
from vantage.prompting import encode_prompt
from vantage.rollout.transformers_engine import TransformersEngine
from vantage.rundir import RunDirectory
from vantage.summary import Summary
from vantage.tracking import ProgressLine
from vantage.update import PolicyUpdate, UpdateResult
from vantage.workload import PromptStream, Workload

if TYPE_CHECKING:
    from vantage.tasks.base import Problem, Task

__all__ = ["Interrupted", "Trainer"]


@dataclass(frozen=True)
class Step:
    """Everything that one step made."""

    collected: Collected
    update: UpdateResult
    row: dict[str, float]


class Trainer:
    """Trains a policy as a `TrainConfig` says.

    `train_data` and `eval_data` (a datasets.Dataset or a sequence of mappings with a `prompt` column) and `reward_funcs`
    (callables as TRL takes them) replace what `config.task` and `config.reward` name. Raises `UserError` for a
    mistake in configuration or data, before anything is written.
    """

    def __init__(
        self,
        config: TrainConfig,
        train_data: Any = None,
        eval_data: Any = None,
        reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        task: Task | None = None,
    ) -> None:
        functions = [reward_funcs] if callable(reward_funcs) else reward_funcs
        given = task if task is not None else self._data(config, train_data, eval_data)
        self.work = Workload.of(
            given, config.reward, config.reward_weights, config.prompt_column, config.domain_column, functions
        )
        spare = config.prompts_per_step is None and config.rollouts_per_step % config.group_size > 0
        self.rounded_from = config.rollouts_per_step if spare else None
        self.config = resolve(
            config,
            max_new_tokens=self.work.task.max_new_tokens,
            stop=tuple(self.work.task.stop),
            reward_range=self.work.reward_range,
        )
        self.run = RunDirectory.plan(self.config)
        self.config = self.run.config
        config = self.config
        self.eval_problems = list(self.work.task.evaluation(config.eval_problems)) if config.eval_problems else []
        self.policy = load_policy(
            config.model,
            choose_device(config.device),
            temperature=config.temperature,
            chunk_tokens=config.logit_chunk_tokens,
            seed=config.seed,
        )
        end_ids = end_token_ids(self.policy)
        self.estimator = config.algo.build(
            Setup(
                num_layers=self.policy.num_layers,
                hidden_size=self.policy.hidden_size,
                rollouts_per_prompt=config.group_size,
                reward_range=config.reward_range or self.work.reward_range,
                think_end_ids=think_end_ids(self.policy),
                end_ids=end_ids,
            )
        )
        self.engine = TransformersEngine(self.policy, end_ids, config.generation_batch)
        self.collector = Collector(self.policy, self.engine, self.work, config)
        self.update = PolicyUpdate(self.policy, self.estimator, config)
        self.stream = PromptStream(self.work.task.train, config.seed)
        self.step = 0
        self.checkpointed = -1
        self.checkpoint_seconds = 0.0
        self._check_first_prompts()

    @staticmethod
    def _data(config: TrainConfig, train_data: Any, eval_data: Any) -> str | Task:
        if train_data is None:
            return config.task
        from vantage.tasks.files import from_dataset

        return from_dataset(
            train_data, evaluation=eval_data, prompt_column=config.prompt_column, domain_column=config.domain_column
        )

    def _check_first_prompts(self) -> None:
        """What is wrong with prompts or columns is the user's to mend, before a run exists."""
        first = [self.work.task.train[i] for i in range(min(4, len(self.work.task.train)))]
        for problem in first:
            encode_prompt(self.policy.tokenizer, problem.prompt, self.config.chat_template)
        self.work.rewards.check(first[0].columns)

    def train(self) -> Summary:
        """Run all steps; returns accuracy before and after, and where everything lies.

        Raises `Interrupted` after SIGINT or SIGTERM, once the running step is finished and a checkpoint written.
        """
        config = self.config
        self.step = self.run.open(self)
        started, first = time.perf_counter(), self.step
        with Interrupts() as interrupts, ProgressLine(config.steps, self.step) as progress:
            self._announce(progress)
            if self.step == 0:
                self.run.metrics.append([{"step": 0, **self._evaluate()}])
            while self.step < config.steps and not interrupts.caught:
                self.step += 1
                step = self.train_step(self.step)
                row = step.row | self._after_step(step)
                self.run.metrics.append([row])
                self._checkpoint_if_due()
                elapsed = time.perf_counter() - started
                progress.show(row, elapsed / (self.step - first) * (config.steps - self.step))
                for note in step.collected.notes:
                    progress.say(f"reward: {note}")
            if self.step < config.steps:
                self.checkpoint()
                raise Interrupted(interrupts.caught or 0, self.step, config.steps, self.run.path)
        return self._finish(time.perf_counter() - started)

    def train_step(self, number: int) -> Step:
        """Rollout, reward, update, learn: one step, with its row for metrics.jsonl."""
        start = time.perf_counter()
        config = self.config
        problems = self.stream.take((number - 1) * config.prompts, config.prompts)
        collected = self.collector(number, problems)
        update = self.update.run(collected.batch)
        learning = time.perf_counter()
        learned = self.estimator.learn(collected.batch, update.reads, update.estimate)
        seconds = {**update.seconds, "value_update": time.perf_counter() - learning}
        row: dict[str, float] = {"step": number, **collected.metrics, **update.metrics, **learned}
        row["groups/zero_advantage"] = zero_advantage_groups(update.estimate, collected.batch)
        values_B = first_value(update.estimate, collected.batch.response_mask_BT)
        row |= value_metrics(values_B, collected.batch.outcome_B)
        row |= {f"time/{phase}": spent for phase, spent in {"value": 0.0, **seconds}.items()}
        # A step's row is written before its checkpoint (or a kill between them would lose it), so the row has the
        # seconds of the checkpoint before.
        row["time/checkpoint"], self.checkpoint_seconds = self.checkpoint_seconds, 0.0
        row["time/step"] = time.perf_counter() - start + row["time/checkpoint"]
        row["throughput/tokens_per_second"] = row["tokens/generated"] / row["time/step"]
        row["mem/peak_gb"] = peak_memory_gb(self.policy.device)
        return Step(collected, update, row)

    def checkpoint(self) -> None:
        """Write a checkpoint of this step, unless there is one."""
        if self.checkpointed != self.step:
            start = time.perf_counter()
            self.run.save_checkpoint(self)
            self.checkpointed = self.step
            self.checkpoint_seconds = time.perf_counter() - start

    def _after_step(self, step: Step) -> dict[str, float]:
        """Evaluation and samples where they are due."""
        config, last = self.config, self.step == self.config.steps
        if config.samples_every and (self.step % config.samples_every == 0 or self.step == 1 or last):
            self.run.samples.append(sample_rows(step, config.samples_count))
        if last or (config.eval_every and self.step % config.eval_every == 0):
            return self._evaluate()
        return {}

    def _checkpoint_if_due(self) -> None:
        due = self.config.checkpoint_every and self.step % self.config.checkpoint_every == 0
        if due or self.step == self.config.steps:
            self.checkpoint()

    def evaluate(self) -> Evaluation:
        """Score the held-out problems with the current policy, one response each at the training temperature."""
        return evaluate(
            self.policy, self.engine, self.eval_problems, self.work.rewards, self.collector.sampling,
            reward_range=self.config.reward_range or self.work.reward_range,
            seed=self.config.seed, chat_template=self.config.chat_template,
        )  # fmt: skip

    def _evaluate(self) -> dict[str, float]:
        if not self.eval_problems:
            return {}
        start = time.perf_counter()
        found = self.evaluate().metrics()
        return found | {"time/eval": time.perf_counter() - start}

    def _announce(self, progress: ProgressLine) -> None:
        config = self.config
        asked = config.rollouts_per_step
        progress.say(
            f"{config.algo.name} on {config.task} with {config.model}: {config.prompts} prompts × {config.group_size} "
            f"rollouts a step ({asked}), {config.steps} steps, {self.policy.device}; run directory {self.run.path}"
        )
        if self.rounded_from is not None:
            progress.say(f"{self.rounded_from} rollouts are not whole groups of {config.group_size}: {asked} are used")
        if self.step:
            progress.say(f"resumed after step {self.step}")

    def _finish(self, seconds: float) -> Summary:
        self.run.save_model(self)
        summary = self.run.finish(seconds)
        print(summary.text())
        return summary


def sample_rows(step: Step, count: int) -> list[dict[str, Any]]:
    """Rows for samples.jsonl: rollouts of the step's first prompts."""
    collected, batch, estimate = step.collected, step.collected.batch, step.update.estimate
    values_B = first_value(estimate, batch.response_mask_BT)
    advantages_B = estimate.advantage_BT[:, 0] if estimate.advantage_BT.shape[1] else estimate.advantage_BT.sum(1)
    rows = []
    for i in range(min(count, batch.size)):
        problem: Problem = collected.problems[i]
        rows.append(
            {
                "step": batch.step,
                "prompt": problem.prompt,
                "response": collected.texts[i],
                "reward": float(batch.reward_B[i]),
                "value": float(values_B[i]),
                "advantage": float(advantages_B[i]),
                "length": len(batch.response_ids[i]),
                "finish_reason": collected.rollouts[i].finish_reason,
            }
        )
    return rows


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory so far: allocated on a CUDA device, else the process's resident set; in GB (10⁹ bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
