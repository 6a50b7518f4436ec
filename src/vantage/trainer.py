"""The loop: rollout → reward → update → learn. It knows no algorithm by name.

from vantage import Poise, TrainConfig, Trainer
Trainer(TrainConfig(model="Qwen/Qwen3-0.6B", algo=Poise(layer=15)), train_data=dataset, reward_funcs=[f]).train()
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vantage.collect import Collected, Collector
from vantage.config import TrainConfig, resolve
from vantage.distributed.sharding import Sharding
from vantage.distributed.world import ProcessLost, World, join_world, local_device, lost_in_between
from vantage.errors import UserError
from vantage.estimators.base import Services, Setup
from vantage.evaluation.scoring import Benchmark, Evaluation, eval_metrics, evaluate_all, training_benchmarks
from vantage.flops import utilisation
from vantage.interrupts import Abandoned, Interrupted, Interrupts
from vantage.logbook import estimate_metrics, peak_memory_gb, sample_rows, weights_digest
from vantage.models.holding import ModelOptions
from vantage.models.loading import choose_device, end_token_ids, load_policy, think_end_ids
from vantage.models.reference import AdapterOff, make_reference, refresh
from vantage.preflight import Finding, before_training, first_rollouts, first_step, longest_prompt
from vantage.rollout.engine import EngineLost, Sampling
from vantage.rollout.factory import make_engine
from vantage.rundir import RunDirectory
from vantage.settings.configfile import config_to_dict
from vantage.sizing import size_for
from vantage.summary import Summary
from vantage.trackers import check as check_trackers
from vantage.trackers.reporting import Reporting
from vantage.tracking import ProgressLine
from vantage.update import PolicyUpdate, UpdateResult
from vantage.workload import PromptStream, Workload

if TYPE_CHECKING:
    from vantage.policy import Policy
    from vantage.tasks.base import Task

__all__ = ["Abandoned", "Interrupted", "Trainer"]

RewardFunctions = Callable[..., Any] | Sequence[Callable[..., Any]] | None


@dataclass(frozen=True)
class Step:
    """Everything that one step made."""

    collected: Collected
    update: UpdateResult | None
    """None where the group filter left nothing to train on."""
    row: dict[str, float]


@dataclass(frozen=True)
class Progress:
    """How far a run has come; every checkpoint holds it."""

    step: int = 0
    prompts: int = 0
    """Taken from the stream of prompts."""
    tokens: int = 0
    """Generated for rollouts and for values, on all processes."""
    seconds: float = 0.0
    """Spent on steps; evaluations and checkpoints not counted."""

    def spent(self, config: TrainConfig) -> float:
        """Share of the budget of tokens or seconds that is used up; 0 without one."""
        return max(
            self.tokens / config.budget_tokens if config.budget_tokens else 0.0,
            self.seconds / config.budget_seconds if config.budget_seconds else 0.0,
        )

    def share(self, config: TrainConfig) -> float:
        """How much of the run is done, in [0, 1]."""
        return min(1.0, max(self.step / config.steps, self.spent(config)))


class Trainer:
    """Trains a policy as a `TrainConfig` says.

    `train_data` and `eval_data` (a datasets.Dataset or a sequence of mappings with a `prompt` column) and `reward_funcs`
    (callables as TRL takes them) replace what `config.task` and `config.reward` name, and `policy` (loaded already) what
    `config.model` names. Raises `UserError` for a
    mistake in configuration or data, before anything is written. Under `torchrun` or `accelerate launch` every process
    makes its Trainer, and they train one policy together.
    """

    def __init__(
        self,
        config: TrainConfig,
        train_data: Any = None,
        eval_data: Any = None,
        reward_funcs: RewardFunctions = None,
        task: Task | None = None,
        world: World | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.world = world or join_world()
        spare = config.prompts_per_step is None and config.rollouts_per_step % config.group_size > 0
        self.rounded_from = config.rollouts_per_step if spare else None
        self.work = self._workload(config, task, train_data, eval_data, reward_funcs)
        self.run = RunDirectory.plan_together(self._resolved(config), self.world)
        self.config = self.run.config
        trackers = check_trackers(self.config.report_to)  # every process finds the same mistake
        self.reporting = Reporting(trackers if self.world.main else (), self.run.path)
        self.benchmarks = self._benchmarks()
        self._load(policy)
        sized = self._sized(self.config, unsized=config.tokens_per_microbatch is None)
        self._build(sized)
        self.stream = PromptStream(self.work.task.train, self.config.seed)
        self.progress = Progress()
        self.whole = True
        """Whether policy and estimator are as the last finished step left them, not halfway through the next one."""
        self.checkpointed = -1
        self.checkpoint_seconds = 0.0
        self.work.rewards.check(self.work.task.train[0].columns)
        self.findings = [*self.sizing, *before_training(self.policy, self.work, sized)]
        """What the user should know before the first step."""
        self.check_equal_weights()

    def _workload(
        self, config: TrainConfig, task: Task | None, train_data: Any, eval_data: Any, reward_funcs: RewardFunctions
    ) -> Workload:
        """Problems and rewards: what was given, else what the configuration names."""
        functions = [reward_funcs] if callable(reward_funcs) else reward_funcs
        given = task if task is not None else self._data(config, train_data, eval_data)
        return Workload.of(
            given, config.reward, config.reward_weights, config.prompt_column, config.domain_column, functions,
            config.reward_timeout, **config.data_options,
        )  # fmt: skip

    def _resolved(self, config: TrainConfig) -> TrainConfig:
        """The configuration with what the task decides where nothing was said."""
        return resolve(
            config,
            max_new_tokens=self.work.task.max_new_tokens,
            stop=tuple(self.work.task.stop),
            reward_range=self.work.reward_range,
        )

    def _benchmarks(self) -> list[Benchmark]:
        """What accuracy is measured on before, during and after training."""
        config = self.config
        if not len(self.work.task.train):  # read first: of a benchmark that is not to be trained on, its task says so
            raise UserError(f"--task {config.task}: it has no problems to train on")
        sampling = Sampling(
            config.max_new_tokens or 0, config.temperature, config.top_p, config.top_k, config.stop or ()
        )
        options = {**config.data_options, "prompt_column": config.prompt_column, "domain_column": config.domain_column}
        return training_benchmarks(
            self.work, sampling, config.reward_range or self.work.reward_range, config.eval_problems,
            config.eval_task, config.reward, **options,
        )  # fmt: skip

    def _load(self, policy: Policy | None) -> None:
        """The policy, and the reference where something compares with it."""
        config = self.config
        device = local_device(choose_device(config.device))
        self.sharding = Sharding.of(config, self.world, device)
        self.policy = policy or load_policy(
            config.model,
            device,
            temperature=config.temperature,
            chunk_tokens=config.logit_chunk_tokens,
            seed=config.seed,
            options=ModelOptions.of(config),
            dealt_out=self.sharding is not None,
        )
        wanted = config.kl_coef > 0 or config.algo.compares
        self.reference = make_reference(self.policy, config.reference) if wanted else None
        if config.reference_refresh and isinstance(self.reference, AdapterOff):
            raise UserError(
                "--reference-refresh: the reference of a policy with adapters is its base, which stays as it is"
            )

    def _build(self, config: TrainConfig) -> None:
        """Engine, collector, estimator and update around the policy."""
        end_ids = end_token_ids(self.policy)
        self.engine = make_engine(self.policy, end_ids, config, self.world)
        self.collector = Collector(self.policy, self.engine, self.work, config, self.world)
        self.estimator = config.algo.build(
            Setup(
                num_layers=self.policy.num_layers,
                hidden_size=self.policy.hidden_size,
                rollouts_per_prompt=config.group_size,
                reward_range=config.reward_range or self.work.reward_range,
                think_end_ids=think_end_ids(self.policy),
                end_ids=end_ids,
                max_new_tokens=config.max_new_tokens or 1,
                world=self.world,
                services=Services(self.policy, self.engine, self.collector.sampling, self.work, config, self.sharding),
            )
        )
        if self.sharding is not None:  # critics are copies of the whole policy
            self.sharding.policy(self.policy, f"--model {config.model}", trained=True)
            if self.reference is not None:
                self.sharding.reference(self.reference, self.policy, f"--reference {config.reference or config.model}")
        self.update = PolicyUpdate(self.policy, self.estimator, config, self.reference, self.world)

    def _sized(self, config: TrainConfig, *, unsized: bool) -> TrainConfig:
        """Micro-batches from the memory that is free, where nothing else is said on a GPU, or 0; the same on all processes."""
        self.sizing: list[Finding] = []
        if config.tokens_per_microbatch and not (unsized and self.policy.device.type == "cuda"):
            return config
        prompt, dealt_out = longest_prompt(self.policy, self.work.task, config), self.sharding is not None
        tokens, note = size_for(self.policy, config, prompt, self.world.size, dealt_out)
        if note:
            self.sizing.append(Finding("note", note))
        return replace(config, tokens_per_microbatch=-int(self.world.largest(-tokens)))

    @property
    def step(self) -> int:
        """Steps that are finished."""
        return self.progress.step

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the budget is used up."""
        return self.progress.share(self.config) >= 1

    def check_equal_weights(self) -> None:
        """Raise `UserError` if the processes' policies have drifted apart, or began with different models."""
        if self.sharding is not None:  # each weight is there once; see there for the beginning
            return
        digests = self.world.exchange(weights_digest(self.policy.model)) if self.world.size > 1 else []
        if len(set(digests)) > 1:
            raise UserError(f"--model {self.config.model}: the processes hold different weights after step {self.step}")

    @staticmethod
    def _data(config: TrainConfig, train_data: Any, eval_data: Any) -> str | Task:
        if train_data is None:
            return config.task
        from vantage.tasks.files import from_dataset

        return from_dataset(
            train_data, evaluation=eval_data, prompt_column=config.prompt_column, domain_column=config.domain_column,
            **config.data_options,
        )  # fmt: skip

    def train(self) -> Summary:
        """Run all steps; returns accuracy before and after, and where everything lies.

        Raises `Interrupted` after SIGINT or SIGTERM, once the running step is finished and a checkpoint written, and
        `Abandoned` when another process, or the engine, is lost.
        """
        started = time.perf_counter()
        self.progress = self.run.open(self)
        try:
            with (
                Interrupts(loud=self.world.main) as interrupts,
                ProgressLine(self.config.steps, self.step, silent=not self.world.main) as progress,
            ):
                self._announce(progress)
                self.reporting.say = progress.say
                self.reporting.start(config_to_dict(self.config), self.run.path.name)
                if self.step == 0:
                    self._record({"step": 0, **self._evaluate(progress)})
                self._loop(progress, interrupts)
            self.reporting.finish()  # what trackers print comes before the summary
            return self._finish(time.perf_counter() - started)
        except (ProcessLost, EngineLost) as lost:
            raise self._abandoned(lost) from lost
        except RuntimeError as error:
            if self.sharding is None or not lost_in_between(error):
                raise
            gone = ProcessLost(f"process {self.world.rank} of {self.world.size} lost the connection to another one")
            raise self._abandoned(gone) from error
        finally:
            self.engine.close()
            self.estimator.close()
            self.reporting.finish()

    def _loop(self, progress: ProgressLine, interrupts: Interrupts) -> None:
        """Steps until the end or a signal, which any process may have caught."""
        started, before = time.perf_counter(), self.progress.share(self.config)
        while not self.finished and not (caught := int(self.world.largest(interrupts.caught or 0))):
            self._refresh_reference()
            step = self.train_step(self.step + 1)
            row = step.row | self._after_step(step)
            self._record(row)
            self.whole = True
            self._checkpoint_if_due()
            done = self.progress.share(self.config)
            progress.show(row, (time.perf_counter() - started) * (1 - done) / (done - before))
            for note in step.collected.notes:
                progress.say(f"reward: {note}")
            if self.step == 1:
                self._look_at_first_step(step, progress)
        if not self.finished:
            self.checkpoint()
            raise Interrupted(caught, self.step, self.config.steps, self.run.path)

    def _refresh_reference(self) -> None:
        """Before the steps N + 1, 2 N + 1, ...: the reference becomes the policy."""
        every = self.config.reference_refresh
        if self.reference is not None and every and self.step and self.step % every == 0:
            refresh(self.reference, self.policy)

    def train_step(self, number: int) -> Step:
        """Rollout, reward, update, learn: one step, with its row for metrics.jsonl."""
        start = time.perf_counter()
        before = self.progress
        with self.policy.gathered():
            collected = self.collector(number, self.stream, before.prompts)
        row: dict[str, float] = {"step": number, **collected.metrics}
        update = self._learn_from(collected, row) if collected.groups else None
        if update is None:
            row |= {"tokens/trained": 0.0, "policy/skipped_updates": 1.0}
        seconds = self.world.from_main(time.perf_counter() - start)
        self.progress = Progress(
            number, before.prompts + collected.consumed,
            before.tokens + int(row["tokens/generated"] + row["tokens/value_extra"]), before.seconds + seconds,
        )  # fmt: skip
        row["tokens/total"], row["time/total"] = float(self.progress.tokens), self.progress.seconds
        # A step's row is written before its checkpoint (or a kill between them would lose it), so the row has the
        # seconds of the checkpoint before.
        row["time/checkpoint"], self.checkpoint_seconds = self.checkpoint_seconds, 0.0
        row["time/step"] = seconds + row["time/checkpoint"]
        row["throughput/tokens_per_second"] = row["tokens/generated"] / row["time/step"]
        row["mem/peak_gb"] = self.world.largest(peak_memory_gb(self.policy.device))
        return Step(collected, update, row)

    def _learn_from(self, collected: Collected, row: dict[str, float]) -> UpdateResult:
        """Ask the estimator, update the policy, then the estimator; their metrics go into the row."""
        self.update.spent = self.progress.spent(self.config)
        done = self.update.updates_done
        start = time.perf_counter()
        with self.policy.gathered() if self.estimator.needs.generates else contextlib.nullcontext():
            queried = self.estimator.query(collected)
        self.engine.sleep()
        querying = time.perf_counter() - start
        collected.notes.extend(note for note in queried.notes if note not in collected.notes)
        batch = replace(collected.batch, queried=queried.reads)
        try:
            update = self.update.run(batch)
        finally:
            self.whole = self.update.updates_done == done
        learning = time.perf_counter()
        self.whole = False
        learned = self.estimator.learn(batch, update.reads, update.estimate)
        seconds = {"value": 0.0, **update.seconds, "value_update": time.perf_counter() - learning}
        seconds["value"] += querying
        row |= {**update.metrics, **queried.metrics, **learned, **estimate_metrics(collected, update, self.world)}
        row |= {f"time/{phase}": spent for phase, spent in seconds.items()}
        used = utilisation(self.policy, batch, sum(update.seconds.values()))
        row |= {} if used is None else {"throughput/mfu": used}
        return update

    def _record(self, row: dict[str, float]) -> None:
        if self.world.main:
            self.run.metrics.append([row])
            self.reporting.log(row)

    def _abandoned(self, lost: ProcessLost | EngineLost) -> Abandoned:
        """Save what is whole, and say how to go on."""
        if self.world.main and self.whole and self.step > 0 and self.sharding is None:
            self.checkpoint(alone=True)
        return Abandoned(str(lost), self.step + 1, self.run.path)

    def checkpoint(self, alone: bool = False) -> None:
        """Write a checkpoint of this step, unless there is one; `alone` where the other processes are gone."""
        if self.checkpointed == self.step:
            return
        if not alone:
            self.check_equal_weights()
        start = time.perf_counter()
        if self.world.main or self.sharding is not None:
            self.run.save_checkpoint(self)
        self.checkpointed = self.step
        self.checkpoint_seconds = time.perf_counter() - start

    def _after_step(self, step: Step) -> dict[str, float]:
        """Evaluation and samples where they are due."""
        config, last = self.config, self.finished
        due = config.samples_every and (self.step % config.samples_every == 0 or self.step == 1 or last)
        if due and step.update is not None:
            rows = sample_rows(step.collected, step.update, config.samples_count, self.world)
            if self.world.main:
                self.run.samples.append(rows)
                self.reporting.samples(rows)
        if last or (config.eval_every and self.step % config.eval_every == 0):
            return self._evaluate()
        return {}

    def _checkpoint_if_due(self) -> None:
        due = self.config.checkpoint_every and self.step % self.config.checkpoint_every == 0
        if due or self.finished:
            self.checkpoint()

    def evaluate(self) -> dict[str, Evaluation]:
        """Score held-out problems with the current policy, one response each at the training temperature, by benchmark."""
        self.engine.update_weights()
        with self.policy.gathered():
            return evaluate_all(
                self.policy, self.engine, self.benchmarks, seed=self.config.seed, chat=self.config.chat,
                world=self.world,
            )  # fmt: skip

    def _evaluate(self, progress: ProgressLine | None = None) -> dict[str, float]:
        if not self.benchmarks:
            return {}
        start = time.perf_counter()
        found = self.evaluate()
        if progress is not None:
            first = self.benchmarks[0]
            low, high = first.reward_range
            one = found[first.name]
            outcome = (low + (high - low) * one.score_PK[:, 0]).tolist()
            texts = [responses[0] for responses in one.responses]
            self._say(progress, first_rollouts(texts, outcome, one.truncated, self.work, self.config))
        return eval_metrics(found) | {"time/eval": time.perf_counter() - start}

    def _look_at_first_step(self, step: Step, progress: ProgressLine) -> None:
        """The same looks at the first rollouts of training, where no evaluation has shown any."""
        found = first_step(step.row, self.config)
        if not self.benchmarks:
            collected = step.collected
            outcome, truncated = collected.batch.outcome_B.tolist(), step.row["completion/truncated"]
            found += first_rollouts(collected.texts, outcome, truncated, self.work, self.config, collected.notes)
        self._say(progress, found)

    def _say(self, progress: ProgressLine, findings: Sequence[Finding]) -> None:
        for finding in findings:
            progress.say(str(finding))

    def _announce(self, progress: ProgressLine) -> None:
        config = self.config
        asked = config.rollouts_per_step
        together = f", {self.world.size} processes" if self.world.size > 1 else ""
        progress.say(
            f"{config.algo.name} on {config.task} with {config.model}: {config.prompts} prompts × {config.group_size} "
            f"rollouts a step ({asked}), {config.steps} steps, {self.policy.device}{together}; "
            f"run directory {self.run.path}"
        )
        if self.rounded_from is not None:
            progress.say(f"{self.rounded_from} rollouts are not whole groups of {config.group_size}: {asked} are used")
        if self.step:
            progress.say(f"resumed after step {self.step}")
        else:
            self._say(progress, self.findings)

    def _finish(self, seconds: float) -> Summary:
        summary: Summary | None = None
        self.run.save_model(self)
        if self.world.main:
            summary = self.run.finish(seconds)
            print(summary.text())
        summary = self.world.from_main(summary)
        assert summary is not None
        return summary
