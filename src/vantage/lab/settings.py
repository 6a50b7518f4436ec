"""What can be asked of `vantage lab`, and by which names? Flags with their quick and full defaults; no torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vantage.config import check_numbers
from vantage.errors import UserError
from vantage.plugins import did_you_mean
from vantage.prompting import Chat

BUILT_IN = {
    "constant": "mean reward of the rollouts that all estimators learn from",
    "batch_mean": "mean reward of the other rollouts in the batch (REINFORCE++)",
    "leave_one_out": "mean reward of the prompt's other rollouts (RLOO)",
    "poise": "POISE's probe on the features of the prompt's other rollouts",
    "poise_self": "the same probe on the rollout's own features, which have seen how it goes on",
    "poise_prompt": "the same probe with the prompt's states alone",
    "poise_token": "a probe at every prefix",
    "sequence": "a critic of the policy's size that reads the prompt (SPPO)",
    "ppo_copy": "PPO's critic: a copy of the policy with a value head",
    "ppo_head": "PPO's critic: a head on the policy's states",
    "vineppo": "mean of K fresh continuations (vineppo:9 says how many)",
    "genac": "a critic language model: the embedded one, or genac:FOLDER",
    "vimpo": "the value that policy and reference imply together; needs a reference that differs",
    "features": "ridge regression on the features that came with --rollouts-from",
}
"""Names of estimators, and what each of them is."""
ALWAYS = (
    "constant", "batch_mean", "leave_one_out", "poise", "poise_self", "poise_prompt", "poise_token", "sequence", "ppo_copy",
    "ppo_head", "vineppo",
)  # fmt: skip
"""What `--estimators all` begins with; genac, vimpo and features join where they can be had."""
FEATURES = ("prompt", "response", "entropy", "length", "full")
REGRESSORS = ("ridge", "ridge-0.01", "ridge-100", "lasso", "mlp-1x64", "mlp-2x64")
QUICK = {
    "prompts": 24, "continuations": 16, "train_rollouts": 512, "shift_prompts": 8, "pools": 6, "resamples": 200,
}  # fmt: skip
FULL = {
    "prompts": 100, "continuations": 64, "train_rollouts": 2048, "shift_prompts": 60, "pools": 32, "resamples": 1000,
}  # fmt: skip
RESULT = "lab.json"


@dataclass(frozen=True)
class LabConfig:
    """How good is any estimate of V(s)? The same states of a policy, the same Monte-Carlo truth, for all estimators."""

    model: str
    """Policy (as `vantage train --model` takes it) or run directory."""
    task: str | None = None
    """Problems and verifier, as in `vantage train`. Default: the run's, else sums."""
    estimators: str = "all"
    """Names with commas between them, `FILE.py:CLASS` for your own, or `all`; docs/lab.md lists them."""
    quick: bool = False
    """Few prompts, states and continuations: a first look in 3 minutes of one core."""
    prompts: int | None = None
    """Held-out prompts. Default: 100, quick 24."""
    rollouts: int = 2
    """Responses to each of them."""
    states: int = 4
    """States of a response at most: the prompt and starts of steps, evenly."""
    continuations: int | None = None
    """Continuations of each state: the truth. Default: 64, quick 16."""
    train_rollouts: int | None = None
    """Rollouts on training prompts that every estimator learns from. Default: 2048, quick 512."""
    train_rollouts_per_prompt: int = 2
    """Of them, how many answer the same prompt."""
    shifts: str | None = None
    """Tasks of the same verifier for out-of-distribution tests, with commas, or `none`. Default: the task's other splits."""
    shift_prompts: int | None = None
    """Prompts of each shift. Default: 60, quick 8."""
    pools: int | None = None
    """States whose next steps are ranked; 0 for none. Default: 32, quick 6."""
    candidates: int = 16
    """Different next steps of each such state at most."""
    rollouts_from: str | None = None
    """Rollouts from elsewhere: JSONL or Parquet with prompt, response, reward; docs/lab.md has more columns."""
    reference: str | None = None
    """Reference model for `vimpo`. Default: what the run began with."""
    ablate: bool = False
    """Also a grid of probes: layers × windows × features × regressors, with heat maps."""
    layers: tuple[int, ...] | None = None
    """Layers of the grid, as transformers' hidden_states counts. Default: all, or 8 of them evenly."""
    windows: tuple[int, ...] = (1, 5, 10, 15)
    """Windows of the grid: last tokens of prompt and response whose states are averaged."""
    regressors: tuple[str, ...] = REGRESSORS
    """Regressors of the grid: ridge (penalty by leave-one-out), ridge-PENALTY, lasso, mlp-LAYERSxWIDTH."""
    reward: tuple[str, ...] = ()
    """Reward functions FILE.py:FUNCTION or verifiers by name, instead of the task's own."""
    resamples: int | None = None
    """Bootstrap samples of prompts for intervals. Default: 1000, quick 200."""
    temperature: float = 1.0
    """Sampling temperature of rollouts and continuations."""
    max_new_tokens: int | None = None
    """Longest response in tokens, for all. Default: the largest of the task's and its shifts', else 512."""
    chat_template: Literal["auto", "never"] = "auto"
    """Whether plain-text prompts become a user turn where the tokenizer has a chat template."""
    enable_thinking: bool | None = None
    """What the chat template's switch for thinking is set to. Default: what the template does by itself."""
    seed: int = 0
    """Every draw depends on it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the policy lives."""
    generation_batch: int = 512
    """Responses that are decoded side by side."""
    cache: str | None = None
    """Folder with truth of earlier labs to use and add to. Default: OUT/truth."""
    out: str = "lab"
    """Folder for lab.json, states.jsonl, report.html, plots and the truth."""

    def __post_init__(self) -> None:
        check_numbers(
            self,
            ("prompts", "rollouts", "states", "train_rollouts", "train_rollouts_per_prompt", "shift_prompts",
             "candidates", "resamples", "temperature", "max_new_tokens", "generation_batch"),
            ("pools",),
        )  # fmt: skip
        if self.continuations is not None and self.continuations < 2:
            raise UserError(f"--continuations is {self.continuations}: truth and its noise need at least 2, better 64")
        if self.prompts is not None and self.prompts < 8:
            raise UserError(f"--prompts is {self.prompts}: intervals are over prompts and need at least 8")
        if self.candidates < 2:
            raise UserError(f"--candidates is {self.candidates}: ranking needs at least 2")
        if self.train_rollouts is not None and self.train_rollouts < 32:
            raise UserError(f"--train-rollouts is {self.train_rollouts}: nothing is learned from fewer than 32")
        if wrong := [window for window in self.windows if window < 1]:
            raise UserError(f"--windows has {wrong[0]}, each must be at least 1")
        for name in self.regressors:
            check_regressor(name)
        names(self.estimators)

    @property
    def chat(self) -> Chat:
        """How prompts pass through the chat template."""
        return Chat(self.chat_template, self.enable_thinking)

    def resolved(self) -> LabConfig:
        """With the defaults of quick or full."""
        own = QUICK if self.quick else FULL
        given: dict[str, Any] = {name: value for name, value in own.items() if getattr(self, name) is None}
        return replace(self, **given)


def names(text: str) -> list[str]:
    """The estimators of `a,b,FILE.py:CLASS`; raises `UserError` for one that there is not, and for one that comes twice."""
    if text == "all":
        return [text]
    found = [name.strip() for name in text.split(",")]
    for name in found:
        known = name.partition(":")[0]
        if ".py:" in name or (known in BUILT_IN and (known == name or known in ("vineppo", "genac"))):
            continue
        hint = did_you_mean(name, [*BUILT_IN, "all"]) or f"; there are: {', '.join(BUILT_IN)}, FILE.py:CLASS"
        raise UserError(f"--estimators: there is no estimator {name!r}{hint}")
    for name in found:
        text = name.partition(":")[2]
        if name.startswith("vineppo:") and not (text.isdigit() and int(text) > 0):
            raise UserError(f"--estimators {name}: vineppo:K needs a number of continuations, such as vineppo:9")
    if twice := next((name for name in found if found.count(name) > 1), None):
        raise UserError(f"--estimators: {twice!r} comes twice")
    return found


def check_regressor(name: str) -> tuple[str, float, int]:
    """Kind of a regressor, its penalty or depth, and its width; raises `UserError`."""
    kind, _, rest = name.partition("-")
    try:
        if name in ("ridge", "lasso"):
            return kind, 0.0, 0
        if kind == "ridge" and float(rest) > 0:
            return kind, float(rest), 0
        if kind == "mlp":
            depth, _, width = rest.partition("x")
            if int(depth) > 0 and int(width) > 0:
                return kind, float(int(depth)), int(width)
    except ValueError:
        pass
    hint = did_you_mean(name, REGRESSORS) or "; there are: ridge, ridge-PENALTY, lasso, mlp-LAYERSxWIDTH"
    raise UserError(f"--regressors: there is no regressor {name!r}{hint}")


def check_out(out: str) -> Path:
    """The folder for the results; raises `UserError` where it holds something else, or a finished lab."""
    path = Path(out)
    if (path / RESULT).exists():
        raise UserError(
            f"--out {out}: holds a finished lab; give another folder, and --cache {path / 'truth'} to use its truth again"
        )
    if path.exists() and (not path.is_dir() or any(found.name != "truth" for found in path.iterdir())):
        raise UserError(f"--out {out}: exists and is not an empty folder")
    return path
