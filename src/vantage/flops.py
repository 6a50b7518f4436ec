"""How much of a device's arithmetic does training use? Floating-point operations of an update, and what the device could do.

MFU (model FLOPs utilisation; Chowdhery et al., arXiv 2204.02311 app. B) counts what the model needs, not what is computed
again to save memory: 6 operations a weight and token for forward and backward, and attention's 12·L·H·D·S a token, halved as
attention is causal. The head runs on response tokens only. Weights that are not trained (under adapters) take 4 instead of 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vantage.batch import Batch
    from vantage.policy import Policy

PEAKS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12,
}  # fmt: skip
"""Dense bfloat16 operations a second, as the vendor's data sheets have them; the first name that a device's contains counts."""


def update_flops(
    config: Any, weights: int, prompt_lengths: Sequence[int], response_lengths: Sequence[int], frozen: bool = False
) -> float:
    """Operations of forward and backward over rollouts.

    `config` is the language model's configuration in transformers, `weights` the number of its weights, tied ones once;
    `frozen`: whether these are not trained themselves.
    """
    layers, heads = int(config.num_hidden_layers), int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    table = int(config.vocab_size) * int(config.hidden_size)
    trunk = weights - table * (1 if config.tie_word_embeddings else 2)
    total, each = 0.0, 4.0 if frozen else 6.0
    for prompt, response in zip(prompt_lengths, response_lengths, strict=True):
        length = prompt + response
        total += each * (trunk * length + table * response) + 6.0 * layers * heads * width * length**2
    return total


def peak_flops(device: Any) -> float | None:
    """What a CUDA device computes in bfloat16 in a second; None where that is not known."""
    import torch

    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def utilisation(policy: Policy, batch: Batch, seconds: float) -> float | None:
    """MFU of an update from a batch that took so long; None on devices whose peak is not known."""
    from vantage.models.holding import is_adapted, sharded

    able = peak_flops(policy.device)
    if able is None or seconds <= 0 or sharded(policy.model):
        return None
    weights = sum(p.numel() for p in policy.model.parameters())
    prompts = [len(ids) for ids in batch.prompt_ids]
    return update_flops(policy.text_config, weights, prompts, batch.length_B.tolist(), is_adapted(policy.model)) / (
        able * seconds
    )
