"""What runs are made of: a frozen dataclass for each of train, eval and sft; field docstrings are the command line's help."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vantage.errors import UserError
from vantage.estimators.base import Algorithm
from vantage.estimators.poise import Poise
from vantage.prompting import Chat
from vantage.runfiles import first_model
from vantage.settings.fieldtypes import flag as flag
from vantage.tiny import policy_for

ROOM_FOR_PROMPT = 2048
"""Prompt tokens that the default of `tokens_per_microbatch` reckons with."""
Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
PolicyLoss = Literal["clip", "gspo", "cispo"]
KlEstimator = Literal["k1", "k2", "k3", "exact"]
LOSS_CLIP = {"gspo": (3e-4, 4e-4), "cispo": (1.0, 4.0)}
"""Clip ranges of the papers of policy losses that need others than the algorithm's."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run. `None` means: what the algorithm, the task or the model proposes; `resolve` fills it in."""

    model: str = "tiny"
    """Policy: `tiny` (the embedded one of the task's world), `tiny:WORLD`, a folder, or a model id on the Hub."""
    task: str = "sums"
    """Problems and verifier: a built-in name (see `vantage tasks`), jsonl:PATH, parquet:PATH, hub:NAME or FILE.py:CLASS."""
    algo: Algorithm = field(default_factory=Poise)
    """Algorithm, that is: the value estimate; its own options appear as --NAME.OPTION."""
    reward: tuple[str, ...] = ()
    """Reward functions FILE.py:FUNCTION (as TRL calls them), instead of the task's own."""
    reward_weights: tuple[float, ...] = ()
    """A weight for each reward function; 1 each if not given."""
    reward_range: tuple[float, float] | None = None
    """Smallest and largest total reward; value estimates are clipped to it. Default: the task's."""
    reward_noise: float = 0.0
    """Probability with which a reward is flipped within its range (robustness experiments); metrics see the clean one."""
    reward_noise_level: Literal["rollout", "group"] = "rollout"
    """Whether noise flips single rollouts or all rollouts of a prompt together."""
    reward_timeout: float = 300.0
    """Seconds that a call of a reward function may take; what takes longer makes its rollouts unscorable."""
    prompt_column: str = "prompt"
    """Column of the dataset that holds the prompt."""
    answer_column: str | None = None
    """Column that reward functions get as `answer`; COLUMN.KEY reaches into a column. Default: `answer`, or verl's."""
    prompt_template: str | None = None
    """Text around a plain-text prompt, which replaces {prompt} in it; other columns can be named too."""
    system_prompt: str | None = None
    """Text of a system message before every prompt."""
    domain_column: str | None = None
    """Column that names a problem's domain; POISE keeps a probe for each. Default: `domain`, else `data_source`, if there."""
    chat_template: Literal["auto", "never"] = "auto"
    """Whether plain-text prompts become a user turn where the tokenizer has a chat template."""
    enable_thinking: bool | None = None
    """What the chat template's switch for thinking is set to, where it has one. Default: what the template does by itself."""

    steps: int = 150
    """Training steps; one step is one batch of rollouts."""
    seed: int = 0
    """Everything random depends on it, on the step, the prompt and the rollout, and on nothing else."""
    rollouts_per_step: int = 256
    """Rollouts in a step."""
    rollouts_per_prompt: int | None = None
    """Rollouts of the same prompt. Default: the algorithm's."""
    prompts_per_step: int | None = None
    """Prompts in a step, instead of --rollouts-per-step."""
    budget_tokens: int | None = None
    """Training ends with the step in which this many tokens have been generated, those for values too, if --steps does not
    end it before."""
    budget_seconds: float | None = None
    """Training ends with the step in which this many seconds were spent on steps (evaluations do not count)."""
    group_filter: Literal["none", "equal"] | None = None
    """`equal` throws away prompt groups whose outcomes are all equal, and generates others until the step is full (DAPO's
    dynamic sampling). Default: the algorithm's."""
    filter_rounds: int = 10
    """Rounds of generation at most in a step with a group filter; what is short then is trained on as it is."""

    max_new_tokens: int | None = None
    """Longest response in tokens. Default: the task's, else 512."""
    temperature: float = 1.0
    """Sampling temperature; log-probs, entropies and gradients are of the distribution at this temperature."""
    top_p: float = 1.0
    """Nucleus sampling; 1 is off. Below 1 the importance ratio is no longer exact."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0 is off."""
    stop: tuple[str, ...] | None = None
    """Strings that end a response. Default: the task's."""
    generation_batch: int = 512
    """Rollouts that are decoded side by side."""
    generation_cache: Literal["auto", "dynamic", "static"] = "auto"
    """Keys and values of rollouts: `dynamic` grow with them; `static` are taken at once, with CUDA graphs where there is CUDA.
    auto: static on GPUs for models with plain attention, else dynamic. Rollouts are the same."""

    learning_rate: float | None = None
    """Peak learning rate of AdamW. Default: 1.5e-4 for `tiny` of any world and what began as it, 1e-6 for every other model."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Course of the learning rate after the warm-up: it stays, or falls to 0 along a line or half a cosine."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's moments."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """AdamW with float32 moments (8 bytes a trained weight), or with 8-bit ones (2 bytes), which need the extra `lowbit`."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 is off."""

    epochs: int = 1
    """Passes over each batch of rollouts."""
    minibatches: int = 1
    """Optimizer steps in a pass; prompt groups stay whole."""
    clip_low: float | None = None
    """The importance ratio is clipped below at 1 − this. Default: the algorithm's."""
    clip_high: float | None = None
    """The importance ratio is clipped above at 1 + this. Default: the algorithm's."""
    dual_clip: float | None = None
    """Where the advantage is negative, the loss is capped at this many times −advantage; 0 is off. Default: the algorithm's."""
    policy_loss: PolicyLoss = "clip"
    """`clip`: PPO's clipped ratio of each token; `gspo`: of each sequence; `cispo`: capped ratio as a constant weight."""
    aggregation: Aggregation | None = None
    """How token losses become one number; see docs/objectives.md for which of them keep a baseline unbiased."""
    mask_truncated: bool = False
    """Leave responses that ran into the length limit out of the loss; they still count in their group's statistics."""
    overlong_buffer: int | None = None
    """Over so many last tokens of the response budget, what the policy is paid falls along a line by --overlong-penalty
    (DAPO's soft overlong punishment); 0 is off. Default: the algorithm's."""
    overlong_penalty: float = 1.0
    """What a response that uses the whole budget loses; value estimates and metrics keep the raw outcome."""
    kl_coef: float = 0.0
    """Weight of the KL divergence to the reference in the loss; 0 loads no reference."""
    kl_estimator: KlEstimator = "k3"
    """How that divergence is taken at each token: from the sampled token (k1, k2, k3) or over the vocabulary (exact)."""
    kl_weighting: Literal["ratio", "none"] = "ratio"
    """`ratio` multiplies k1, k2 and k3 by the importance ratio, which makes their gradient that of KL(policy ‖ reference)."""
    reference: str | None = None
    """Model that the policy is compared with, as --model takes it. Default: the policy as it was before training."""
    reference_refresh: int = 0
    """Steps after which the reference becomes the policy of that moment, again and again; 0 keeps it frozen."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    forward: Literal["auto", "fused", "prepass"] = "auto"
    """Whether one forward pass feeds both estimator and loss, or a pass without gradient comes first."""
    tokens_per_microbatch: int | None = None
    """Padded tokens in a forward pass; prompt groups stay together. 0: as many as there is memory for. Default: 0 on a GPU,
    else two of the longest rollouts, at least 4096."""
    logit_chunk_tokens: int = 0
    """Tokens whose logits exist at once; 0 chooses by vocabulary size."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates rollouts: transformers, on the policy's own weights, or vLLM, in process or as a server."""
    mismatch_correction: Literal["none", "token", "sequence"] | None = None
    """Truncated importance weights for what the engine's log-probs differ from the policy's: of each token, or of the whole
    response. Default: token with --engine vllm, else none."""
    mismatch_cap: float = 2.0
    """Largest such weight."""
    vllm_url: str | None = None
    """Address of a `vllm serve` of this run's own, such as http://HOST:8000. Default: vLLM in process."""
    vllm_critic_url: str | None = None
    """Address of another one for GenAC's critic. Default: vLLM in process."""
    vllm_sync_dir: str | None = None
    """Folder through which a server gets new weights, one that both read. Default: memory (/dev/shm), else a temporary one."""
    vllm_server_timeout: float = 240.0
    """Seconds that a server may take to answer after a start or a restart."""
    vllm_gpu_memory_utilization: float = 0.3
    """Share of the device's memory that vLLM in process takes for weights and cache."""
    vllm_tensor_parallel_size: int = 1
    """Devices that vLLM in process spreads the model over."""
    vllm_max_model_len: int | None = None
    """Longest prompt and response together in vLLM in process. Default: the model's own limit."""
    vllm_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of vLLM's weights and arithmetic, of a server's too. auto: that of the policy's arithmetic."""
    vllm_enforce_eager: bool = False
    """Start vLLM in process without CUDA graphs: sooner there, slower after."""
    vllm_enable_sleep_mode: bool = True
    """Put vLLM in process to sleep while the policy trains, so that its memory is free; on GPUs only."""
    vllm_tolerance: float | None = None
    """Mean difference of log-probs of known tokens, in nats, above which weights did not arrive. Default: by --vllm.dtype."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the policy lives."""
    sharding: Literal["auto", "none", "fsdp2"] = "auto"
    """With several processes: `none` has whole models on each, `fsdp2` deals out weights, gradients and optimizer state
    of policy, reference and critic. auto: fsdp2 under `accelerate launch --use_fsdp`, else none."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the models; weights that are trained stay float32. auto: bf16 on GPUs that have it, else fp32."""
    attention: str = "auto"
    """transformers' name of an attention: sdpa, eager, flash_attention_2, ...; auto leaves the choice to it."""
    gradient_checkpointing: bool = False
    """Run the blocks again in the backward pass: about a third more arithmetic for far less memory."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank and nothing else; 0 trains all weights."""
    lora_alpha: float | None = None
    """Adapters count alpha / rank times. Default: twice the rank."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Modules that get an adapter, by the ends of their names; all-linear: every linear layer but the head."""

    eval_task: str | None = None
    """Tasks to evaluate on, with commas between them. Default: held-out problems of --task."""
    eval_every: int = 25
    """Steps between evaluations; 0 evaluates only before and after."""
    eval_problems: int = 1000
    """Held-out problems in an evaluation; 0 switches evaluation off."""
    checkpoint_every: int = 50
    """Steps between checkpoints; 0 writes only on interruption and at the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept; 0 keeps all."""
    samples_every: int = 10
    """Steps between samples written to samples.jsonl; 0 is off."""
    samples_count: int = 8
    """Rollouts written each time."""

    report_to: tuple[str, ...] = ()
    """Trackers that get metrics and samples too: wandb, tensorboard, trackio (several: with commas) or FILE.py:CLASS."""
    out: str | None = None
    """Run directory. Default: a fresh folder below runs/."""
    resume: str = "never"
    """never, auto (go on where the run in --out stopped; start if there is none) or the path of a checkpoint."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def data_options(self) -> dict[str, Any]:
        """What `get_task` is to know of the data, besides prompt and domain column."""
        given = {name: getattr(self, name) for name in ("answer_column", "prompt_template", "system_prompt")}
        apart = self.eval_task is not None and self.task not in self.eval_task.split(",")
        return {name: value for name, value in given.items() if value is not None} | {"hold_out": not apart}

    @property
    def chat(self) -> Chat:
        """How prompts pass through the chat template."""
        return Chat(self.chat_template, self.enable_thinking)

    @property
    def group_size(self) -> int:
        """Rollouts per prompt, the algorithm's default filled in."""
        return self.rollouts_per_prompt if self.rollouts_per_prompt is not None else self.algo.rollouts_default

    @property
    def prompts(self) -> int:
        """Prompts per step: given, or rollouts per step over rollouts per prompt, rounded down."""
        if self.prompts_per_step is not None:
            return self.prompts_per_step
        return self.rollouts_per_step // self.group_size


POSITIVE = (
    "steps", "rollouts_per_step", "rollouts_per_prompt", "prompts_per_step", "max_new_tokens", "generation_batch",
    "learning_rate", "epochs", "minibatches", "samples_count", "budget_tokens",
    "budget_seconds", "filter_rounds", "reward_timeout", "mismatch_cap", "vllm_server_timeout", "vllm_max_model_len",
    "vllm_gpu_memory_utilization", "vllm_tensor_parallel_size", "vllm_tolerance",
)  # fmt: skip
NOT_NEGATIVE = (
    "temperature", "top_k", "warmup_steps", "weight_decay", "max_grad_norm", "clip_low", "clip_high", "dual_clip",
    "entropy_coef", "logit_chunk_tokens", "tokens_per_microbatch", "eval_every", "eval_problems", "checkpoint_every",
    "keep_checkpoints",
    "lora_rank", "samples_every", "reward_noise", "overlong_buffer", "overlong_penalty", "kl_coef", "reference_refresh",
)  # fmt: skip


def check_numbers(config: Any, positive: Collection[str], not_negative: Collection[str]) -> None:
    """Raise `UserError` for a number outside of its range, and for one that is not finite."""
    for name in (f.name for f in dataclasses.fields(config)):
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{flag(name)} is {number}, it must be a finite number")
    for name, value in ((name, getattr(config, name)) for name in (*positive, *not_negative)):
        if value is not None and not (value > 0 if name in positive else value >= 0):
            right = "be greater than 0" if name in positive else "not be negative"
            raise UserError(f"{flag(name)} is {value}, it must {right}")
    top_p = getattr(config, "top_p", None)
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"--top-p is {top_p}, it must be in (0, 1]")


def check(config: TrainConfig) -> None:
    """Raise `UserError` for a value that can not be meant; every message names the flag, the value and what is right."""
    check_numbers(config, POSITIVE, NOT_NEGATIVE)
    if config.temperature == 0:
        raise UserError("--temperature is 0: training needs random rollouts, a value such as 1.0")
    if config.reward_noise > 1:
        raise UserError(f"--reward-noise is {config.reward_noise}, it is a probability and must be in [0, 1]")
    if config.reward_range is not None and not config.reward_range[0] < config.reward_range[1]:
        raise UserError(f"--reward-range is {config.reward_range}, the first number must be the smaller one")
    if not all(0 <= beta < 1 for beta in config.adam_betas):
        raise UserError(f"--adam-betas is {config.adam_betas}, both must be in [0, 1)")
    if config.dual_clip is not None and 0 < config.dual_clip <= 1:
        raise UserError(f"--dual-clip is {config.dual_clip}, it must be greater than 1 (or 0 for off)")
    if config.kl_coef == 0 and not config.algo.compares:
        if config.reference is not None:
            raise UserError(f"--reference is {config.reference}, but nothing holds the policy to it; give --kl-coef")
        if config.reference_refresh:
            raise UserError(
                f"--reference-refresh is {config.reference_refresh}, but there is no reference; give --kl-coef"
            )
    longest = config.max_new_tokens
    if longest is not None and (config.overlong_buffer or 0) >= longest:
        raise UserError(
            f"--overlong-buffer is {config.overlong_buffer}, it must be less than --max-new-tokens {longest}"
        )
    check_group(config)
    check_lora(config)
    check_engine(config)
    config.algo.check(config)


def check_lora(config: TrainConfig) -> None:
    """Options of adapters that are not there are a mistake."""
    if config.lora_rank == 0 and config.lora_alpha is not None:
        raise UserError(f"--lora.alpha is {config.lora_alpha}, but there are no adapters; give --lora.rank")
    if config.lora_rank == 0 and tuple(config.lora_targets) != ("all-linear",):
        raise UserError("--lora.targets is given, but there are no adapters; give --lora.rank")
    if config.lora_alpha is not None and not config.lora_alpha > 0:
        raise UserError(f"--lora.alpha is {config.lora_alpha}, it must be greater than 0")
    if not config.lora_targets:
        raise UserError("--lora.targets needs at least one name, or all-linear")


def check_engine(config: TrainConfig) -> None:
    """Options of a vLLM that is not used are a mistake."""
    if config.engine != "vllm":
        for f in dataclasses.fields(config):
            if f.name.startswith("vllm_") and getattr(config, f.name) != f.default:
                raise UserError(
                    f"{flag(f.name)} is {getattr(config, f.name)}, but --engine is {config.engine}; give vllm"
                )
    if config.vllm_gpu_memory_utilization > 1:
        raise UserError(f"--vllm.gpu-memory-utilization is {config.vllm_gpu_memory_utilization}, it must be in (0, 1]")
    if config.vllm_sync_dir is not None and not Path(config.vllm_sync_dir).is_dir():
        raise UserError(f"--vllm.sync-dir {config.vllm_sync_dir}: there is no such folder; make it")
    if config.mismatch_correction not in (None, "none") and config.mismatch_cap < 1:
        raise UserError(f"--mismatch-cap is {config.mismatch_cap}, weights are near 1: it must be at least 1")


def check_group(config: TrainConfig) -> None:
    """Rollouts per prompt, prompts per step and mini-batches must fit each other and the algorithm."""
    least, group = config.algo.rollouts_min, config.group_size
    if group < least:
        raise UserError(
            f"--rollouts-per-prompt is {group}, {config.algo.name} compares rollouts of a prompt: at least {least}"
        )
    if config.prompts < 1:
        raise UserError(
            f"--rollouts-per-step is {config.rollouts_per_step}, less than one group of {group} rollouts per prompt"
        )
    if config.minibatches > config.prompts:
        raise UserError(f"--minibatches is {config.minibatches}, more than the {config.prompts} prompts of a step")


def default_rate(config: TrainConfig) -> float:
    """The learning rate where none is given; adapters take ten times that of the weights."""
    rate = 1.5e-4 if first_model(config.model).partition(":")[0] == "tiny" else 1e-6
    return round(10 * rate, 12) if config.lora_rank else rate


def default_microbatch(longest: int) -> int:
    """Tokens of a forward pass where memory is not looked at; `longest` is that of a response."""
    return max(4096, 2 * (longest + ROOM_FOR_PROMPT))


def resolve(
    config: TrainConfig,
    *,
    max_new_tokens: int | None,
    stop: tuple[str, ...],
    reward_range: tuple[float, float],
) -> TrainConfig:
    """Fill in what was left to the algorithm, the task (the arguments) and the model. Raises `UserError`."""
    own = config.algo.defaults
    longest = config.max_new_tokens or max_new_tokens or 512
    clip_low, clip_high = LOSS_CLIP.get(config.policy_loss, (own.clip_low, own.clip_high))
    aggregation = "seq-mean-token-mean" if config.policy_loss == "gspo" else own.aggregation

    def given(value: Any, default: Any) -> Any:
        return default if value is None else value

    resolved = dataclasses.replace(
        config,
        model=policy_for(config.model, config.task),
        rollouts_per_prompt=config.group_size,
        rollouts_per_step=config.prompts * config.group_size,
        max_new_tokens=longest,
        tokens_per_microbatch=given(config.tokens_per_microbatch, default_microbatch(longest)),
        stop=given(config.stop, stop),
        reward_range=given(config.reward_range, reward_range),
        learning_rate=given(config.learning_rate, default_rate(config)),
        clip_low=given(config.clip_low, clip_low),
        clip_high=given(config.clip_high, clip_high),
        dual_clip=given(config.dual_clip, own.dual_clip or 0.0),
        aggregation=given(config.aggregation, aggregation),
        overlong_buffer=given(config.overlong_buffer, round(own.overlong_share * longest)),
        group_filter=given(config.group_filter, own.group_filter),
        mismatch_correction=given(config.mismatch_correction, "token" if config.engine == "vllm" else "none"),
    )
    if resolved.group_filter == "equal" and resolved.group_size < 2:
        raise UserError("--group-filter equal needs groups: --rollouts-per-prompt of at least 2")
    return resolved


@dataclass(frozen=True)
class EvalConfig:
    """An evaluation on held-out problems: avg@k, pass@k, majority@k with confidence intervals."""

    model: str
    """Model (as `vantage train --model` takes it) or run directory."""
    task: str | None = None
    """Problems and verifier, as in `vantage train`; several with commas between them. Default: the preset's, else sums."""
    against: str | None = None
    """Another model, such as the one before training: the same problems and seeds, and the paired difference."""
    preset: Literal["poise", "vimpo", "genac"] | None = None
    """A paper's protocol: benchmarks, responses to a problem, temperature, top-p and length; other flags override it."""
    problems: int = 1000
    """Held-out problems of each task, or all where it has fewer."""
    rows: Literal["held-out", "all"] = "held-out"
    """Of data files and Hub datasets, whether the tenth that training on them holds out or all rows are evaluated on."""
    k: int | None = None
    """Responses to each problem. Default: the preset's, else 32."""
    pass_k: tuple[int, ...] | None = None
    """The k of pass@k, pass^k and majority@k, each at most the number of responses. Default: 1, 2, 4, ... and that number."""
    interval: Literal["normal", "bootstrap"] = "normal"
    """How 95 % intervals are made; problems are the unit of both, and responses to one problem count as one observation."""
    temperature: float | None = None
    """Sampling temperature; 0 takes the likeliest token. Default: the preset's, else 0.6."""
    top_p: float | None = None
    """Nucleus sampling; 1 is off. Default: the preset's, else 0.95."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0 is off."""
    max_new_tokens: int | None = None
    """Longest response in tokens. Default: the preset's, else the task's, else 512."""
    seed: int = 0
    """Every draw depends on it, on the problem and the response's number, and on nothing else."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the policy lives."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Weights and arithmetic. auto: bf16 on GPUs that have it, else fp32."""
    attention: str = "auto"
    """transformers' name of an attention: sdpa, eager, flash_attention_2, ...; auto leaves the choice to it."""
    generation_batch: int = 512
    """Responses that are decoded side by side."""
    reward: tuple[str, ...] = ()
    """Reward functions FILE.py:FUNCTION (as TRL calls them) or verifiers by name, instead of the tasks' own."""
    prompt_column: str = "prompt"
    """Column of the dataset that holds the prompt."""
    answer_column: str | None = None
    """Column that reward functions get as `answer`; COLUMN.KEY reaches into a column. Default: `answer`, or verl's."""
    prompt_template: str | None = None
    """Text around the prompt, which replaces {prompt} in it; other columns can be named too."""
    system_prompt: str | None = None
    """Text of a system message before every prompt."""
    chat_template: Literal["auto", "never"] = "auto"
    """Whether plain-text prompts become a user turn where the tokenizer has a chat template."""
    enable_thinking: bool | None = None
    """What the chat template's switch for thinking is set to, where it has one. Default: what the template does by itself."""
    out: str | None = None
    """Folder for the results as JSON and the responses as JSON lines. Default: the table on the screen only."""

    @property
    def chat(self) -> Chat:
        """How prompts pass through the chat template."""
        return Chat(self.chat_template, self.enable_thinking)

    def __post_init__(self) -> None:
        check_numbers(self, ("problems", "k", "max_new_tokens", "generation_batch"), ("temperature", "top_k"))
        for k in self.pass_k or ():
            if k < 1:
                raise UserError(f"--pass-k is {k}, it must be greater than 0")


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """A supervised warm start on a task's own solutions."""

    model: str = "init:tiny"
    """Where to start: `init:tiny` (the embedded architecture with random weights), a folder or a model id on the Hub."""
    task: str = "sums"
    """Task whose solutions are learned, as in `vantage train`."""
    out: str
    """Folder for the model."""
    examples: int = 20000
    """Solutions in the supervised set; more than the task has repeat."""
    slips: float = 0.0
    """Probability with which each step of a demonstration goes wrong, where the task knows how: the policy starts unsure."""
    steps: int = 420
    """Optimizer steps."""
    batch_size: int = 96
    """Solutions in a step."""
    learning_rate: float | None = None
    """Peak learning rate of AdamW; it falls along a cosine. Default: 3e-3 for `init:tiny`, 1e-5 for every other model."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises linearly from 0."""
    seed: int = 0
    """Everything random depends on it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the policy lives."""
    eval_problems: int = 1000
    """Held-out problems in the evaluation at the end; 0 is none."""

    def __post_init__(self) -> None:
        check_numbers(
            self, ("examples", "steps", "batch_size", "learning_rate"), ("warmup_steps", "eval_problems", "slips")
        )
