"""What is audited, and how large is it? A frozen request that is checked before torch is imported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vantage.config import TrainConfig, flag
from vantage.errors import UserError
from vantage.estimators import algorithm_names, get_algorithm
from vantage.estimators.base import Algorithm
from vantage.settings.configfile import name_of

EXACT = "enumerable"
"""The MODEL that stands for the enumerable world."""
DEFAULT_ALGOS = ("rloo", "grpo", "dr_grpo", "dapo", "reinforce", "poise", "poise_token", "vimpo", "ppo")
"""Without the two whose values are generated: they cost several times as much as all others together."""
EXACT_ALGOS = ("rloo", "grpo", "dr_grpo", "dapo", "reinforce", "poise", "poise_token", "vimpo")
"""Those that need neither text nor an engine."""
EXACT_GROUP = 2
EXACT_GROUP_MAX = 4
DECIDED_HERE = (
    "algo", "out", "resume", "rollouts_per_prompt", "prompts_per_step", "forward", "steps", "epochs", "minibatches",
    "reward_noise", "reward_noise_level", "eval_problems",
)  # fmt: skip
"""Fields of `TrainConfig` that an audit sets for each algorithm, or that mean nothing where a policy stands still."""


@dataclass(frozen=True)
class Audit:
    """What was asked for; `plan` makes and checks it."""

    model: str
    algorithms: Mapping[str, Algorithm]
    """By the name that the report gives them."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrainConfig` that hold for all of them."""
    out: Path = Path("runs/audit")
    rollouts_per_step: int = 256
    blocks: int = 16
    fill_steps: int = 10
    dimensions: int = 8192
    tolerance: float = 0.01
    confidence: float = 0.95
    rollouts_per_prompt: int | None = None
    """Instead of each algorithm's own."""

    @property
    def exact(self) -> bool:
        """Whether expectations are sums over every response."""
        return self.model == EXACT

    def members(self, name: str) -> int:
        """Rollouts of a prompt that an algorithm takes."""
        own = EXACT_GROUP if self.exact else self.algorithms[name].rollouts_default
        return max(self.algorithms[name].rollouts_min, self.rollouts_per_prompt or own)

    @property
    def largest(self) -> int:
        """Most rollouts of a prompt that an algorithm takes, and at least two."""
        return max(2, *(self.members(name) for name in self.algorithms))

    @property
    def prompts(self) -> int:
        """Prompts of a block: as many as the algorithm with the largest groups has in a step."""
        return self.rollouts_per_step // self.largest

    @property
    def drawn(self) -> int:
        """Rollouts drawn of each prompt of a block: two of the largest groups, so that each has another to be told from."""
        return 2 * self.largest

    def config(self, name: str) -> TrainConfig:
        """The configuration that one algorithm runs under."""
        return TrainConfig(**self.shared(self.algorithms[name], self.members(name)))

    def shared(self, algo: Algorithm, members: int, **changes: Any) -> dict[str, Any]:
        """Arguments of `TrainConfig` with nothing in it that writes, evaluates or trains twice."""
        return {
            **self.settings, "model": self.model, "algo": algo, "rollouts_per_prompt": members,
            "rollouts_per_step": self.rollouts_per_step, "steps": 10**6, "eval_problems": 0, "forward": "prepass",
            "out": str(self.out / "no-run"), **changes,
        }  # fmt: skip


def plan(
    model: str,
    algos: Sequence[str | Algorithm] | Mapping[str, str | Algorithm] | None = None,
    *,
    quick: bool = False,
    out: str | Path | None = None,
    **request: Any,
) -> Audit:
    """Check what is asked for, without torch and without writing anything.

    Args:
        model: A policy as `vantage train --model` takes it, a run directory (whose task and sampling are taken over),
            or `enumerable`.
        algos: As `--algo` takes them, or algorithms with options; a mapping gives each a name of its own.
        quick: A few small blocks: shows that everything runs, and finds large biases only.
        out: Folder of the audit.
        request: Fields of `Audit` and of `TrainConfig`.

    Raises:
        UserError: a mistake, in one line that names the flag.
    """
    if not model:
        raise UserError("MODEL is empty; give tiny, a model, a run directory, or enumerable")
    own = {name: request.pop(name) for name in list(request) if name in OWN_FIELDS}
    for name in DECIDED_HERE:
        if name in request:
            raise UserError(f"{flag(name)} is set by the audit; leave it out")
    small = {"rollouts_per_step": 64, "blocks": 6, "fill_steps": 3} if quick else {}
    sizes = {**small, **{name: value for name, value in own.items() if value is not None}}
    settings = {**inherited(model), **request}
    named = _named(algos if algos is not None else EXACT_ALGOS if model == EXACT else DEFAULT_ALGOS)
    folder = Path(out) if out is not None else Path("runs") / f"audit-{_safe(model)}"
    found = Audit(model, named, settings, folder, **sizes)
    _check(found)
    return found


OWN_FIELDS = (
    "rollouts_per_step",
    "blocks",
    "fill_steps",
    "dimensions",
    "tolerance",
    "confidence",
    "rollouts_per_prompt",
)


def inherited(model: str) -> dict[str, Any]:
    """Task and sampling of a run directory; nothing for another model."""
    if not (Path(model) / "config.yaml").is_file():
        return {}
    from vantage.runfiles import read_config

    found, taken = read_config(Path(model)), {}
    for name in (
        "task", "reward", "reward_weights", "reward_range", "prompt_column", "answer_column", "prompt_template",
        "system_prompt", "domain_column", "chat_template", "enable_thinking", "max_new_tokens", "temperature", "top_p",
        "top_k", "stop",
    ):  # fmt: skip
        if found.get(name) is not None:
            value = found[name]
            taken[name] = tuple(value) if isinstance(value, list) else value
    return taken


def _safe(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text.strip("/.").rpartition("/")[2])[:40] or "model"


def _named(algos: Sequence[str | Algorithm] | Mapping[str, str | Algorithm]) -> dict[str, Algorithm]:
    pairs = list(algos.items()) if isinstance(algos, Mapping) else [(None, algo) for algo in algos]
    if not pairs:
        raise UserError("--algos is empty; list algorithms with commas in between, such as --algos rloo,poise")
    found: dict[str, Algorithm] = {}
    for label, algo in pairs:
        made = algo if isinstance(algo, Algorithm) else _of(algo)
        name = label or made.name
        if name in found:
            raise UserError(f"--algos lists {name} twice; give it once, or two names to two variants from Python")
        found[name] = made
    return found


def _of(spec: str) -> Algorithm:
    try:
        found = get_algorithm(spec)
        name_of(found)
    except UserError as error:
        raise UserError(str(error).replace("--algo", "--algos", 1)) from error
    return found()


def _check(audit: Audit) -> None:
    for name in ("rollouts_per_step", "blocks", "fill_steps", "rollouts_per_prompt"):
        value = getattr(audit, name)
        if value is not None and value < 1:
            raise UserError(f"{flag(name)} is {value}, it must be greater than 0")
    if audit.dimensions < 0:
        raise UserError(f"--dimensions is {audit.dimensions}, it must be 0 (no projection) or more")
    if not audit.exact and audit.blocks < 4:
        raise UserError(
            f"--blocks is {audit.blocks}; intervals are taken from the spread over blocks, which takes 4 or more"
        )
    for name in ("tolerance", "confidence"):
        if not (math.isfinite(getattr(audit, name)) and 0 < getattr(audit, name) < 1):
            raise UserError(f"{flag(name)} is {getattr(audit, name)}, it must be between 0 and 1")
    if audit.out.exists() and not audit.out.is_dir():
        raise UserError(f"--out {audit.out}: this is a file; give a folder")
    if audit.exact:
        _check_exact(audit)
        return
    for name in audit.algorithms:
        audit.config(name)
        if audit.rollouts_per_step % (audit.members(name) * (audit.prompts or 1)):
            sizes = sorted({audit.members(other) for other in audit.algorithms})
            common = math.lcm(*sizes) * audit.largest // math.gcd(math.lcm(*sizes), audit.largest)
            raise UserError(
                f"--rollouts-per-step is {audit.rollouts_per_step}, which whole groups of {', '.join(map(str, sizes))} can not "
                f"fill alike; give a multiple of {common}"
            )


def _check_exact(audit: Audit) -> None:
    for name, algo in audit.algorithms.items():
        if algo.name in algorithm_names() and algo.name not in EXACT_ALGOS:
            raise UserError(
                f"--algos: {algo.name} needs text, an engine or a critic, which the enumerable world has not; it takes "
                f"{', '.join(EXACT_ALGOS)}"
            )
        if audit.members(name) > EXACT_GROUP_MAX:
            raise UserError(
                f"--rollouts-per-prompt is {audit.members(name)}; more than {EXACT_GROUP_MAX} are too many to enumerate"
            )
    if audit.settings.get("task", "sums") != "sums":
        raise UserError(f"--task is {audit.settings['task']}; the enumerable world has a task of its own, leave it out")
