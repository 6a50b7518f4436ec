"""Does this model with this configuration fit on this machine, and if not, what has to change? Rows for `vantage doctor`."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vantage.config import TrainConfig, resolve
from vantage.doctor import Row, memory
from vantage.errors import UserError
from vantage.memory.estimates import Estimator, Settings, gigabytes, make_fit
from vantage.plugins import one_line

if TYPE_CHECKING:
    import torch

    from vantage.tasks.base import Task

SPARE = {"cuda": 1.1, "cpu": 1.3}
"""An allocator holds more than what lives: the estimate times this must be free. Measured on a CPU (glibc): up to 1.5 on
small models, where blocks are small, less on large ones."""
ASSUMED_PROMPT = 512
"""Prompt tokens that are reckoned with where the tokenizer or the problems can not be had."""


def memory_rows(config: TrainConfig, prompt_tokens: int | None = None, processes: int = 1) -> list[Row]:
    """What training as `config` says takes, next to what is free; with the flags that make it fit where it does not.

    `prompt_tokens` is the longest prompt (default: of the task's first 256). With several `processes` it is what each of them
    takes: on GPUs each has a device to itself, on a CPU all share its memory. Nothing is downloaded but the model's
    configuration and tokenizer. Raises `UserError` for a model or task that can not be had, and for one process that shares.
    """
    from vantage.distributed.sharding import check_optimizer
    from vantage.models.loading import choose_device
    from vantage.tasks import get_task

    if config.sharding == "fsdp2":
        if processes < 2:
            raise UserError("--sharding fsdp2 deals out models over several processes: give --processes N, 2 or more")
        check_optimizer(config)
    task = get_task(
        config.task, prompt_column=config.prompt_column, domain_column=config.domain_column, **config.data_options
    )
    config = resolve(config, max_new_tokens=task.max_new_tokens, stop=tuple(task.stop), reward_range=task.reward_range)
    estimator = estimator_of(config)
    where = choose_device(config.device)
    device = where.type
    assumed = ""
    if prompt_tokens is None:
        found = longest_prompt(config, task)
        prompt_tokens = found or ASSUMED_PROMPT
        assumed = "" if found else " (assumed: no tokenizer reads the task's)"
    settings = settings_of(config, prompt_tokens, where, processes, config.sharding == "fsdp2")
    name = f"memory for {config.model}"
    free = free_bytes(device)
    try:
        need = estimator(settings)
    except ValueError as error:
        return [Row(name, "missing", one_line(error), "watch mem/peak_gb in metrics.jsonl", needed=False)]
    lengths = f"prompts of {prompt_tokens} tokens{assumed}, responses of {settings.new_tokens}"
    parts = {
        "weights": need.weights, "gradients": need.gradients, "optimizer": need.optimizer, "reference": need.reference,
        "critic": need.critic, "activations": need.activations, "generation": need.rollout,
        "the policy put together for generation": need.together,
    }  # fmt: skip
    listed = ", ".join(f"{part} {gigabytes(size)}" for part, size in parts.items() if size)
    rows = [Row("model", "ok", f"{config.model}: {need.parameters / 1e6:,.1f} million parameters; {listed}; {lengths}")]
    phase = max(need.phases, key=need.phases.__getitem__)
    took = f"{gigabytes(need.peak)} at the peak ({phase})" + (
        f" in each of {processes} processes" if processes > 1 else ""
    )
    if free is None:
        return [*rows, Row(name, "ok", f"{took}; the system does not tell how much is free")]
    room = free / SPARE[device] / (processes if device == "cpu" else 1)
    wanted = need.peak * free / room
    detail = f"{took}, {gigabytes(wanted)} with the allocator's share; {gigabytes(free)} free on {device}"
    if need.peak <= room:
        return [*rows, Row(name, "ok", detail)]
    return [*rows, Row(name, "problem", detail, advice(estimator, settings, room))]


def estimator_of(config: TrainConfig) -> Estimator:
    """The estimator for a run's policy, reference and critic; raises `UserError` for a model that can not be had."""
    others = {"reference": config.reference, "critic": config.algo.trained_beside()[1]}
    found = {role: model_configuration(name) for role, name in others.items() if name}
    return Estimator(model_configuration(config.model), found)


def settings_of(
    config: TrainConfig, prompt_tokens: int, device: torch.device, processes: int = 1, sharded: bool = False
) -> Settings:
    """What memory depends on in a resolved configuration, on a device of one of so many processes."""
    from vantage.config import default_microbatch
    from vantage.models.holding import ModelOptions

    kind = str(ModelOptions.of(config).compute_type(device)).removeprefix("torch.")
    tokens = config.tokens_per_microbatch or default_microbatch(config.max_new_tokens or 512)
    config = dataclasses.replace(config, tokens_per_microbatch=tokens)
    on_cpu = device.type == "cpu"
    return Settings.of(config, prompt_tokens, processes, precision=kind, on_cpu=on_cpu, sharded=sharded)


def advice(estimator: Estimator, settings: Settings, free: float) -> str:
    """The flags that make it fit, or what else could be done."""
    flags = make_fit(estimator, settings, free, frozenset(field.name for field in dataclasses.fields(TrainConfig)))
    if flags:
        return "add " + " ".join(flags)
    return (
        "no flag makes it fit: adapters (--lora.rank 32), a smaller model, a shorter --max-new-tokens, a device with more "
        "memory, or models dealt out over several (--sharding fsdp2 --processes N)"
    )


def model_configuration(model: str) -> Any:
    """The transformers configuration behind a `--model` value; raises `UserError`."""
    from transformers import AutoConfig

    from vantage import tiny
    from vantage.models.holding import ADAPTER_FILE
    from vantage.models.loading import model_path

    if model == "init:tiny":
        return tiny.config()
    path = model_path(model)
    try:
        if (Path(path) / ADAPTER_FILE).is_file():
            path = json.loads((Path(path) / ADAPTER_FILE).read_text())["base_model_name_or_path"]
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--model {model}: its configuration can not be had ({one_line(error)})") from error


def longest_prompt(config: TrainConfig, task: Task, looked_at: int = 256) -> int | None:
    """Tokens of the longest of the task's first prompts; None without a tokenizer that reads them."""
    from transformers import AutoTokenizer

    from vantage import tiny
    from vantage.models.loading import model_path
    from vantage.prompting import encode_prompt

    try:
        fresh = config.model == "init:tiny"
        tokenizer = tiny.tokenizer() if fresh else AutoTokenizer.from_pretrained(model_path(config.model))
    except (OSError, ValueError, KeyError):
        return None
    problems = islice(iter(task.train), looked_at)
    try:
        return max(len(encode_prompt(tokenizer, problem.prompt, config.chat)) for problem in problems)
    except UserError:  # an empty tokenizer, or no chat template for conversations
        return None


def free_bytes(device: str) -> int | None:
    """What could be taken on the device, what torch holds there unused included; None where the system does not say."""
    import torch

    if device != "cuda":
        return memory()[1]
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return int(torch.cuda.mem_get_info()[0]) + unused
