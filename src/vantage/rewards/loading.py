"""Where `--reward` becomes a reward function."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from vantage.errors import UserError
from vantage.plugins import did_you_mean, load_object, load_plugin, plugin_names
from vantage.rewards.verifiers import verifier_names, verifier_reward
from vantage.rewards.verl import COMPUTE_SCORE, from_verl_reward, is_verl_function

if TYPE_CHECKING:
    from vantage.rewards.functions import RewardFunction


def from_spec(spec: str) -> RewardFunction:
    """The reward function that `FILE.py:FUNCTION`, a verifier's name or an installed plugin's name names.

    Verifiers are those of `vantage.rewards.verifiers` (`math`, `code`, ...), plugins entry points `vantage.rewards`.
    `verl:FILE.py` is the `compute_score` of one of verl's files, `verl:FILE.py:FUNCTION` another function of that kind; such a
    function is also recognised without the prefix.

    Raises:
        UserError: there is no such thing, or it can not be called as a reward function.
    """
    plugins = plugin_names("vantage.rewards")
    found: Any
    if spec.startswith("verl:"):
        path, _, name = spec.removeprefix("verl:").partition(".py:")
        found = from_verl_reward(path if path.endswith(".py") else f"{path}.py", name or COMPUTE_SCORE)
    elif spec in verifier_names():
        found = verifier_reward(spec)
    elif spec in plugins:
        found = load_plugin("vantage.rewards", spec, "--reward")
    elif ".py:" not in spec:
        known = [*verifier_names(), *plugins]
        hint = did_you_mean(spec, known) or f", and no verifier: {', '.join(known)}"
        raise UserError(f"--reward: {spec!r} is not of the form FILE.py:FUNCTION{hint}")
    else:
        found = load_object(spec, "--reward")
    if inspect.isclass(found):
        raise UserError(f"--reward {spec}: this is a class; name a function, or an instance made in the file")
    if not callable(found):
        raise UserError(f"--reward {spec}: this is a {type(found).__name__}, it must be a function")
    return adapted(found)


def adapted(function: RewardFunction) -> RewardFunction:
    """A function as it is, or under our contract where it has verl's."""
    return from_verl_reward(function) if is_verl_function(function) else function
