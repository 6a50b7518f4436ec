"""From a model's name to a policy: the embedded one, a fresh one, a folder, a run directory, or an id on the Hub."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from vantage import tiny
from vantage.errors import UserError
from vantage.models.holding import ADAPTER_FILE, ModelOptions, load_adapters, with_adapters
from vantage.policy import Policy


def choose_device(wanted: str) -> torch.device:
    """`auto` takes a CUDA device where there is one; raises `UserError` for one that is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device is cuda, but torch sees no CUDA device here; use --device cpu, or see `vantage doctor`"
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def load_policy(
    model: str,
    device: torch.device,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 0,
    seed: int = 0,
    options: ModelOptions | None = None,
    dealt_out: bool = False,
) -> Policy:
    """Load model and tokenizer; raises `UserError` in one line if they can not be had.

    One that will be `dealt_out` over processes waits on the CPU for that, since it may not fit the device.
    """
    options = options or ModelOptions()
    network, tokenizer = load_model(model, seed, options.weight_type(device), options.attention)
    if options.lora is not None:
        network = with_adapters(network, options.lora, seed)
    policy = Policy(
        network if dealt_out else network.to(device), tokenizer, temperature=temperature, chunk_tokens=chunk_tokens,
        compute=options.compute_type(device), recompute=options.gradient_checkpointing,
    )  # fmt: skip
    policy.goes_to = device if dealt_out else None
    if tokenizer.eos_token_id is None and not end_token_ids(policy):
        raise UserError(f"--model {model}: neither tokenizer nor generation config names an end token")
    return policy


def load_model(
    model: str, seed: int = 0, dtype: torch.dtype = torch.float32, attention: str = "auto"
) -> tuple[Any, Any]:
    """The transformers model, its weights in `dtype`, and tokenizer that a `--model` value means."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    if model.startswith("init:"):
        if model != "init:tiny":
            raise UserError(f"--model is {model!r}, the only fresh architecture is init:tiny")
        return tiny.fresh(seed)
    path = model_path(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        chosen: dict[str, Any] = {"dtype": dtype}
        chosen |= {} if attention == "auto" else {"attn_implementation": attention}
        adapted = (Path(path) / ADAPTER_FILE).is_file()
        network = load_adapters(Path(path), chosen) if adapted else AutoModelForCausalLM.from_pretrained(path, **chosen)
    except ImportError as error:  # flash attention that is not installed
        raise UserError(f"--attention {attention}: {' '.join(str(error).split())[:200]}") from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if "couldn't connect" in str(error):
            near = difflib.get_close_matches(path, map(str, Path(path).parent.glob("*")), n=1)
            hint = (
                f"; did you mean the folder {near[0]!r}?"
                if near
                else "; give a folder, or get it where there is a network"
            )
            raise UserError(
                f"--model {model}: it is no folder here, not in the cache, and the Hub can not be reached{hint}"
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--model {model}: can not be loaded as a causal language model ({reason})") from error
    return network, tokenizer


def model_path(model: str) -> str:
    """The folder or Hub id behind a `--model` value; a run directory means its newest model."""
    if model == "tiny" or model.startswith("tiny:"):
        return str(tiny.folder(model))
    path = Path(model)
    if (path / "config.json").is_file() or (path / ADAPTER_FILE).is_file():
        return str(path)
    if (path / "metrics.jsonl").is_file() or (path / "checkpoints").is_dir():
        return str(run_model(path))
    if path.is_dir():
        raise UserError(f"--model {model}: this folder holds no model (no config.json) and no run (no metrics.jsonl)")
    if path.exists() or model.count("/") != 1 or model.startswith((".", "/", "~")):
        beside = [str(found) for found in path.parent.glob("*") if (found / "config.json").is_file()]
        near = difflib.get_close_matches(model, ["tiny", "tiny:programs", "init:tiny", *beside], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; give `tiny`, a model folder, a run directory or a Hub id"
        raise UserError(f"--model {model}: there is no such folder{hint}")
    if runs := [str(found.parent) for found in path.parent.glob("*/metrics.jsonl")]:  # no need to ask the Hub for that
        near = difflib.get_close_matches(model, runs, n=1, cutoff=0.0)
        raise UserError(f"--model {model}: {path.parent} has no such run; did you mean {near[0]!r}?")
    return model


def run_model(run: Path) -> Path:
    """The final model of a run, else that of its newest checkpoint."""
    from vantage.checkpoint import newest

    if (run / "model" / "config.json").is_file():
        return run / "model"
    checkpoint = newest(run / "checkpoints")
    if checkpoint is None:
        raise UserError(f"--model {run}: this run has neither a final model nor a checkpoint yet")
    return checkpoint / "model"


def end_token_ids(policy: Policy) -> tuple[int, ...]:
    """Every token id that ends a response: the generation config's and the tokenizer's."""
    generation: Any = getattr(policy.model, "generation_config", None)
    configured = getattr(generation, "eos_token_id", None)
    found = configured if isinstance(configured, list) else [configured]
    ids = {int(i) for i in [*found, policy.tokenizer.eos_token_id] if i is not None}
    return tuple(sorted(ids))


def think_end_ids(policy: Policy, tag: str = "</think>") -> tuple[int, ...]:
    """Token ids of the closing thinking tag."""
    return tuple(policy.tokenizer.encode(tag, add_special_tokens=False))
