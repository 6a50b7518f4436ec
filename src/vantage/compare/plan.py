"""What is compared, and which runs does that take? Algorithms × seeds under one budget; tuning runs have seeds of their own."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vantage.config import TrainConfig, flag, resolve
from vantage.errors import UserError
from vantage.estimators import get_algorithm
from vantage.estimators.base import Algorithm
from vantage.settings.configfile import name_of
from vantage.trackers import check as check_trackers
from vantage.workload import Workload

DEFAULT_STEPS = 60
NO_STEP_LIMIT = 1_000_000
"""Steps of a run that tokens or seconds end."""
FIRST_TUNING_SEED = 1000
BUDGETS = ("steps", "budget_tokens", "budget_seconds")
DECIDED_HERE = ("algo", "out", "resume")
"""Fields of `TrainConfig` that a comparison sets for each of its runs."""
OWN_DEFAULTS: Mapping[str, Any] = {"eval_every": 10, "keep_checkpoints": 1}
"""Where a comparison differs from `vantage train`: denser curves, and not two checkpoints of every run."""


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""

    algorithm: str
    seed: int
    config: TrainConfig
    path: Path
    tuning: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    """What its process gets besides our environment: its GPU or its threads, where several run side by side."""

    @property
    def name(self) -> str:
        """What messages call it: `poise seed 0`, `poise seed 1000 at learning rate 5e-05`."""
        rate = f" at learning rate {self.config.learning_rate:g}" if self.tuning else ""
        return f"{self.algorithm} seed {self.seed}{rate}"


@dataclass(frozen=True)
class Comparison:
    """What was asked for; `plan` makes and checks it."""

    algorithms: tuple[Algorithm, ...]
    base: TrainConfig
    """Everything that all runs share; its algorithm, seed and folder mean nothing but the first seed."""
    out: Path
    seeds: int = 3
    learning_rates: tuple[float, ...] = ()
    """The tuning grid in ascending order; empty without tuning."""
    tune_seeds: int = 1
    target: float | None = None
    jobs: int | None = None
    """Runs side by side; None: one for each GPU, else one."""
    labels: tuple[str, ...] = ()
    """What each algorithm is called, where its own name would not tell it from another."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the algorithms are called, in the order in which they were listed."""
        return self.labels or tuple(algorithm.name for algorithm in self.algorithms)

    @property
    def named(self) -> dict[str, Algorithm]:
        """The algorithms by what they are called."""
        return dict(zip(self.names, self.algorithms))

    @property
    def budget(self) -> tuple[str, float]:
        """`("steps", 60)`, `("tokens", 1000000)` or `("seconds", 600.0)`."""
        if self.base.budget_tokens is not None:
            return "tokens", self.base.budget_tokens
        if self.base.budget_seconds is not None:
            return "seconds", self.base.budget_seconds
        return "steps", self.base.steps

    @property
    def reporting_seeds(self) -> range:
        """Seeds of the runs that are reported."""
        return range(self.base.seed, self.base.seed + self.seeds)

    @property
    def tuning_seeds(self) -> range:
        """Seeds of the runs that choose a learning rate, none of them a reporting seed; empty without tuning."""
        if not self.learning_rates:
            return range(0)
        count, reported = self.tune_seeds, self.reporting_seeds
        overlap = reported.stop > FIRST_TUNING_SEED and reported.start < FIRST_TUNING_SEED + count
        start = reported.stop if overlap else FIRST_TUNING_SEED
        return range(start, start + count)

    def tuning_cells(self) -> list[Cell]:
        """Every learning rate of the grid for every algorithm on the tuning seeds; empty without tuning."""
        cells = []
        for seed in self.tuning_seeds:
            for rate in self.learning_rates:
                for name in self.names:
                    path = self.out / "tuning" / f"{name}-lr{rate:g}-seed{seed}"
                    cells.append(self._cell(name, seed, path, rate, tuning=True))
        return cells

    def cells(self, chosen: Mapping[str, float] | None = None) -> list[Cell]:
        """The runs that are reported, seed by seed, so that whatever changes on the machine meets all algorithms alike.

        `chosen` has the learning rate of each algorithm after tuning; an algorithm that it lacks has no runs.
        """
        rates = dict.fromkeys(self.names, self.base.learning_rate) if chosen is None else dict(chosen)
        return [
            self._cell(name, seed, self.out / "cells" / f"{name}-seed{seed}", rates[name])
            for seed in self.reporting_seeds
            for name in self.names
            if name in rates
        ]

    def _cell(self, name: str, seed: int, path: Path, rate: float | None, tuning: bool = False) -> Cell:
        config = dataclasses.replace(
            self.base, algo=self.named[name], seed=seed, learning_rate=rate, out=str(path), resume="auto"
        )
        return Cell(name, seed, config, path, tuning)


def plan(
    algos: Sequence[str | Algorithm] | Mapping[str, str | Algorithm],
    *,
    seeds: int = 3,
    steps: int | None = None,
    budget_tokens: int | None = None,
    budget_seconds: float | None = None,
    tune: bool = False,
    learning_rates: Sequence[float] | None = None,
    tune_seeds: int | None = None,
    target: float | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> Comparison:
    """Check what is asked for, without torch and without writing anything.

    Args:
        algos: What `--algo` takes, or algorithms with their options; a mapping gives each a name of its own, so that
            variants of one algorithm can be compared.
        seeds: Reported runs of each algorithm: seeds `seed`, `seed + 1`, …
        steps: Budget in training steps; 60 if no budget is given.
        budget_tokens: Budget in generated tokens, instead.
        budget_seconds: Budget in seconds of training, instead.
        tune: Choose the learning rate of each algorithm over a grid first.
        learning_rates: The grid. Default: a third of the usual rate, the usual rate, three times the usual rate.
        tune_seeds: Runs for each learning rate; 1 if not given.
        target: Accuracy for "time to target".
        jobs: Runs side by side. Default: one for each GPU, else one.
        out: Folder of the comparison. Default: one below runs/ named for task and algorithms.
        settings: Fields of `TrainConfig` that all runs share.

    Raises:
        UserError: a mistake, in one line that names the flag.
    """
    labelled = isinstance(algos, Mapping)
    algorithms = tuple(_algorithm(algo) for algo in (algos.values() if isinstance(algos, Mapping) else algos))
    labels = _labels(algos) if isinstance(algos, Mapping) else tuple(a.name for a in algorithms)
    _check_names(labels)
    _check_counts(seeds=seeds, tune_seeds=1 if tune_seeds is None else tune_seeds, jobs=1 if jobs is None else jobs)
    budget = _budget({"steps": steps, "budget_tokens": budget_tokens, "budget_seconds": budget_seconds})
    for name in DECIDED_HERE:
        if name in settings:
            raise UserError(f"{flag(name)} is set by the comparison for each of its runs; leave it out")
    shared = {**OWN_DEFAULTS, **settings, **budget}
    each = [TrainConfig(**shared, algo=algorithm) for algorithm in algorithms]
    _check_rollouts(dict(zip(labels, each)))
    base = each[0]
    check_trackers(base.report_to)
    if base.eval_problems == 0:
        raise UserError("--eval-problems is 0: a comparison needs accuracy on held-out problems; leave it out")
    if target is not None and not 0 < target <= 1:
        raise UserError(f"--target is {target}, it is an accuracy and must be in (0, 1]")
    grid = _grid(base, tune, learning_rates, tune_seeds)
    folder = Path(out) if out is not None else _default_folder(base.task, labels)
    return Comparison(algorithms, base, folder, seeds, grid, tune_seeds or 1, target, jobs, labels if labelled else ())


def _labels(names: Iterable[str]) -> tuple[str, ...]:
    """Names that folders can have; raises `UserError` for others."""
    found = tuple(names)
    if wrong := [name for name in found if not re.fullmatch(r"[\w][\w.+=-]*", name)]:
        raise UserError(f"--algos: {wrong[0]!r} can not name a folder; use letters, digits and . + = - _")
    return found


def _algorithm(algo: str | Algorithm) -> Algorithm:
    if isinstance(algo, Algorithm):
        return algo
    return algorithm_class(algo)()


def algorithm_class(spec: str) -> type[Algorithm]:
    """As `get_algorithm`, with messages about `--algos`."""
    try:
        found = get_algorithm(spec)
        name_of(found)
    except UserError as error:
        raise UserError(str(error).replace("--algo", "--algos", 1)) from error
    return found


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise UserError("--algos is empty; list algorithms with commas in between, such as --algos poise,grpo")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--algos lists {name} {names.count(name)} times; its runs would share their folders")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{flag(name)} is {count}, it must be greater than 0")


def _budget(given: Mapping[str, Any]) -> dict[str, Any]:
    """The one budget as fields of `TrainConfig`."""
    found = {name: value for name, value in given.items() if value is not None}
    if len(found) > 1:
        raise UserError(f"{' and '.join(map(flag, found))} are {len(found)} budgets; give one of them")
    return {"steps": NO_STEP_LIMIT if found else DEFAULT_STEPS, **found}


def _check_rollouts(configs: Mapping[str, TrainConfig]) -> None:
    """A step must have as many rollouts for every algorithm."""
    first = next(iter(configs.values()))
    used = {name: config.prompts * config.group_size for name, config in configs.items()}
    if len(set(used.values())) == 1:
        return
    each = ", ".join(f"{name} {count}" for name, count in used.items())
    if first.prompts_per_step is not None:
        raise UserError(
            f"--prompts-per-step {first.prompts_per_step} gives a step different numbers of rollouts ({each}); "
            "give --rollouts-per-step instead"
        )
    common = math.lcm(*(config.group_size for config in configs.values()))
    raise UserError(
        f"--rollouts-per-step is {first.rollouts_per_step}, which whole groups can not fill alike ({each}); "
        f"give a multiple of {common}"
    )


def _grid(
    base: TrainConfig, tune: bool, learning_rates: Sequence[float] | None, tune_seeds: int | None
) -> tuple[float, ...]:
    """The tuning grid, ascending; empty without tuning."""
    if not tune:
        for name, value in (("learning_rates", learning_rates), ("tune_seeds", tune_seeds)):
            if value is not None:
                raise UserError(f"{flag(name)} is a setting of the tuning; add --tune or leave it out")
        return ()
    if base.learning_rate is not None:
        raise UserError(
            f"--learning-rate is {base.learning_rate:g}, but --tune chooses it; "
            "give the rates to try as --learning-rates X,Y,Z"
        )
    if learning_rates is None:
        usual = usual_rate(base)
        return tuple(float(f"{usual * factor:.3g}") for factor in (1 / 3, 1, 3))
    for rate in learning_rates:
        if not (math.isfinite(rate) and rate > 0):
            raise UserError(f"--learning-rates has {rate:g}, every learning rate must be a number greater than 0")
    grid = tuple(sorted(set(learning_rates)))
    if len({f"{rate:g}" for rate in grid}) < len(grid):
        raise UserError("--learning-rates has values that agree in six digits; give different ones")
    if len(grid) < 2:
        raise UserError("--learning-rates has one value, which is nothing to choose from; give two or more")
    return grid


def usual_rate(config: TrainConfig) -> float:
    """The learning rate that a run of this model has if none is given."""
    resolved = resolve(config, max_new_tokens=None, stop=(), reward_range=(0.0, 1.0))
    assert resolved.learning_rate is not None  # resolve fills it in
    return resolved.learning_rate


def _default_folder(task: str, names: Sequence[str]) -> Path:
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in task)[:40]
    return Path("runs") / "-".join(["compare", safe, *names])


def workload(config: TrainConfig) -> Workload:
    """Task and rewards of the runs; raises `UserError` for what is not there."""
    return Workload.of(
        config.task, config.reward, config.reward_weights, config.prompt_column, config.domain_column,
        **config.data_options,
    )  # fmt: skip


def resolved(cell: Cell, work: Workload) -> TrainConfig:
    """The configuration as the run itself writes it down."""
    return resolve(
        cell.config,
        max_new_tokens=work.task.max_new_tokens,
        stop=tuple(work.task.stop),
        reward_range=work.reward_range,
    )
