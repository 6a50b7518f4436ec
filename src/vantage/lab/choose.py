"""Which estimators take part? From names to objects, with what each of them needs, or why it can not be had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vantage.critics.building import HIGHEST_RATE, RATIO
from vantage.errors import UserError
from vantage.estimators.base import Algorithm
from vantage.estimators.poise_token import PoiseToken
from vantage.estimators.ppo import Ppo
from vantage.genac.start import embedded_critic
from vantage.lab.algorithms import AlgorithmValues, PoisePrompt, PoiseSelf, PoiseValues
from vantage.lab.baselines import BatchMean, Constant, GivenFeatures, LeaveOneOut
from vantage.lab.critics import RATES, Continuations, Generative, Implied, SequenceValues
from vantage.lab.protocol import ValueEstimator, load_estimator
from vantage.lab.settings import ALWAYS, names
from vantage.plugins import load_object

if TYPE_CHECKING:
    from vantage.lab.bench import Bench

STANDING = 10_000.0
"""Memory of the token probe, in steps: the policy stands still, so nothing needs to fade."""


@dataclass(frozen=True)
class Origin:
    """What is known of a run beside its policy."""

    reference: str | None = None
    """What it began with, or what --reference says."""
    beta: float | None = None
    """β, where VIMPO trained it."""
    critic: str | None = None
    """The generative critic that it has trained."""


def chosen(spec: str, bench: Bench, origin: Origin, features: bool) -> list[tuple[str, ValueEstimator]]:
    """The estimators that `--estimators` means, with their names; raises `UserError`."""
    wanted = names(spec)
    if wanted == ["all"]:
        wanted = list(ALWAYS)
        if generative(bench, origin) is not None:
            wanted.append("genac")
        if origin.reference is not None:
            wanted.append("vimpo")
        if features:
            wanted.append("features")
    return [(name, _made(name, bench, origin)) for name in wanted]


def generative(bench: Bench, origin: Origin) -> str | None:
    """The critic that comes with a policy: its run's own, else the embedded one of what it, or its run, began with."""
    if origin.critic is not None:
        return origin.critic
    begun = (bench.train.model, origin.reference or bench.train.model)
    found = (embedded_critic(model, bench.train.task) for model in begun)
    return next((str(folder) for folder in found if folder is not None), None)


def _made(name: str, bench: Bench, origin: Origin) -> ValueEstimator:
    quick = bench.config.quick
    kind, _, rest = name.partition(":")
    simple: dict[str, type[ValueEstimator]] = {
        "constant": Constant, "batch_mean": BatchMean, "leave_one_out": LeaveOneOut, "features": GivenFeatures,
        "poise": PoiseValues, "poise_self": PoiseSelf, "poise_prompt": PoisePrompt,
    }  # fmt: skip
    if ".py:" in name:
        found = load_object(name, "--estimators")
        if isinstance(found, type) and issubclass(found, Algorithm):
            return AlgorithmValues([found()])
        return load_estimator(name)
    if kind in simple:
        return simple[kind]()
    rate = min(RATIO * (bench.train.learning_rate or 1e-6), HIGHEST_RATE)
    if kind == "poise_token":
        return AlgorithmValues([PoiseToken(bootstrap=0, memory=STANDING)])
    if kind == "sequence":
        return SequenceValues(rate, epochs=(4,) if quick else (2, 6))
    if kind == "ppo_copy":
        rates = (1.0,) if quick else RATES
        return AlgorithmValues(
            [Ppo(critic="copy", critic_learning_rate=rate * r) for r in rates], passes=2 if quick else 4
        )
    if kind == "ppo_head":
        return AlgorithmValues([Ppo(critic="head")], passes=2 if quick else 8)
    if kind == "vineppo":
        return Continuations(int(rest) if rest else 4 if quick else 9)
    if kind == "genac":
        return Generative(rest or generative(bench, origin))
    if origin.reference is None:
        raise UserError(
            "--estimators vimpo: its value lies between policy and reference, and there is none here; give --reference MODEL"
        )
    return Implied(origin.reference, origin.beta)
