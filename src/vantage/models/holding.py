"""How is a model held? Number type of weights and arithmetic, attention, recomputation, and adapters (LoRA).

A trained model keeps float32 weights and computes in bfloat16 under autocast: a step of 1e-6 is lost in a bfloat16 weight.
Where only adapters are trained, the base is never stepped and is held in the type of the arithmetic.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vantage.errors import UserError

if TYPE_CHECKING:
    from vantage.config import TrainConfig

Precision = Literal["auto", "fp32", "bf16"]
ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al., arXiv 2106.09685)."""

    rank: int
    alpha: float
    """The adapter's product is multiplied by alpha / rank."""
    targets: tuple[str, ...]
    """Names of modules, as peft matches them; `all-linear`: every linear layer but the head."""


@dataclass(frozen=True)
class ModelOptions:
    """How to hold a model; the default is for one that is only run."""

    precision: Precision = "auto"
    attention: str = "auto"
    trained: bool = False
    """Whether its weights will be trained, all of them or the adapters."""
    gradient_checkpointing: bool = False
    lora: Lora | None = None

    @staticmethod
    def of(config: TrainConfig) -> ModelOptions:
        """What the settings of a run say about its policy."""
        rank, alpha = config.lora_rank, config.lora_alpha
        lora = Lora(rank, 2.0 * rank if alpha is None else alpha, tuple(config.lora_targets)) if rank else None
        return ModelOptions(config.precision, config.attention, True, config.gradient_checkpointing, lora)

    def compute_type(self, device: torch.device) -> torch.dtype:
        """The type of the arithmetic: bfloat16 on CUDA devices that have it, float32 elsewhere, unless told."""
        if self.precision == "auto":
            fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if fast else torch.float32
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def weight_type(self, device: torch.device) -> torch.dtype:
        """The type of the weights that come from files: float32 where they are stepped themselves."""
        return torch.float32 if self.trained and self.lora is None else self.compute_type(device)


def with_adapters(network: Any, lora: Lora, seed: int = 0) -> Any:
    """Wrap a transformers model: its weights are frozen, adapters in float32 are added that begin as no change at all.

    Half of an adapter is drawn at random, which depends on `seed` alone. Raises `UserError`.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError("--lora.rank needs the package peft: pip install 'vantage-rl[peft]'") from error
    targets: str | list[str] = "all-linear" if lora.targets == ("all-linear",) else list(lora.targets)
    alpha: Any = lora.alpha  # peft's type says int, its arithmetic does not mind
    options = peft.LoraConfig(
        r=lora.rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return peft.get_peft_model(network, options)
    except ValueError as error:
        raise UserError(f"--lora.targets {' '.join(lora.targets)}: {' '.join(str(error).split())[:200]}") from error


@contextlib.contextmanager
def recomputed_blocks(blocks: nn.ModuleList) -> Iterator[None]:
    """Inside, every block keeps its input only, and runs again in the backward pass; hooks on it see the first run alone.

    transformers' own switch works in training mode only, which would switch dropout on.
    """
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def sharded(model: nn.Module) -> bool:
    """Whether each process holds only a part of the weights (FSDP2)."""
    return any(hasattr(module, "unshard") for module in model.modules())  # also while it is put together


def is_adapted(network: Any) -> bool:
    """Whether this is a peft model, which saves its adapters only."""
    return hasattr(network, "peft_config") and hasattr(network, "get_base_model")


def save_merged(network: Any, folder: Path) -> None:
    """Write a model for plain transformers; adapters are added into the weights of the file, and stay as they are here."""
    if not is_adapted(network):
        network.save_pretrained(folder)
        return
    base = network.get_base_model()
    network.merge_adapter()
    try:
        base.save_pretrained(folder, state_dict=_plain(base.state_dict()))
    finally:
        network.unmerge_adapter()


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names that they have without adapters."""
    return {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}


def load_adapters(folder: Path, options: dict[str, Any]) -> Any:
    """The model that a folder with adapters means, merged; raises what transformers and peft raise, and `UserError`."""
    import json

    from transformers import AutoModelForCausalLM

    try:
        import peft
    except ImportError as error:
        raise UserError(
            f"--model {folder}: these are adapters, which need peft: pip install 'vantage-rl[peft]'"
        ) from error
    base = json.loads((folder / ADAPTER_FILE).read_text())["base_model_name_or_path"]
    network = AutoModelForCausalLM.from_pretrained(base, **options)
    return peft.PeftModel.from_pretrained(network, str(folder)).merge_and_unload()
