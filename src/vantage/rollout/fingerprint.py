"""A number that tells weights apart, however they are laid out: the same for a model's tensors and for their concatenations.

An engine keeps weights in other shapes than the trainer (query, key and value in one matrix, vocabularies padded with
zeros), so a hash of bytes could not be compared. This one is a sum over all numbers of a mixed-up form of their bits: neither
order nor shape matters, zeros count for nothing, and a change of one bit of one number changes it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

CHUNK = 1 << 24
"""Numbers that are looked at together: 128 MB of 64-bit integers."""
_FACTORS = (0x9E3779B97F4A7C15 - (1 << 64), 0xBF58476D1CE4E5B9 - (1 << 64))
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Sixteen hexadecimal digits for the numbers in all tensors together, as they are stored."""
    total = 0
    for tensor in tensors:
        bits = tensor.detach().contiguous().reshape(-1).view(_BITS[tensor.element_size()])
        for start in range(0, bits.numel(), CHUNK):
            mixed = bits[start : start + CHUNK].to(torch.int64) * _FACTORS[0]
            mixed ^= mixed >> 29
            mixed *= _FACTORS[1]
            mixed ^= mixed >> 32
            total += int(mixed.sum())
    return f"{total % (1 << 64):016x}"
