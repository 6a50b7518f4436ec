"""How is a gradient of any size kept in a few thousand numbers? Random signs, then sums over buckets, layer by layer.

Every parameter is added, with a seeded random sign, to one of its layer's buckets (a sketch after Charikar, Chen and
Farach-Colton, 2002): number i of a tensor goes to bucket i modulo an odd number, so that rows and columns of weights spread
over the buckets. Inner products and squared norms are right in expectation over the signs, with a relative standard deviation
of about √(2/buckets) for squared norms. A layer that is not larger than its share of the buckets is kept as it is, so small
models are exact.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

CHUNK = 2**22
"""Parameters whose signs exist at once where they are not kept."""
KEPT = 2**25
"""Models of up to so many parameters keep their signs."""


def layer_of(name: str) -> str:
    """Which layer a parameter belongs to: `embeddings`, `block 0`, …, `head`, or `rest`."""
    block = re.search(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.", name)
    if block:
        return f"block {int(block.group(1))}"
    if "embed" in name or re.search(r"(?:^|\.)w[tp]e\.", name):
        return "embeddings"
    return "head" if "head" in name else "rest"


def shares(sizes: Mapping[str, int], dimensions: int) -> dict[str, int]:
    """Buckets of each layer: its size where that is less than an equal share, the rest shared by the others."""
    found, left, waiting = {}, dimensions, sorted(sizes, key=lambda name: sizes[name])
    for index, name in enumerate(waiting):
        found[name] = min(sizes[name], max(1, left // (len(waiting) - index)))
        left -= found[name]
    return {name: found[name] for name in sizes}


class Projection:
    """Maps the gradients in a model's `.grad` to a vector [D] of at most `dimensions` numbers; 0 keeps all of them."""

    def __init__(self, model: nn.Module, dimensions: int, seed: int = 0) -> None:
        self.seed = seed
        self.parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        sizes: dict[str, int] = {}
        for name, parameter in self.parameters:
            sizes[layer_of(name)] = sizes.get(layer_of(name), 0) + parameter.numel()
        self.total = sum(sizes.values())
        wanted = shares(sizes, dimensions) if dimensions else dict(sizes)
        self.whole = {name: wanted[name] == sizes[name] for name in sizes}
        self.spans: dict[str, tuple[int, int]] = {}
        start = 0
        for name, width in wanted.items():
            self.spans[name] = (start, start + width)
            start += width
        self.size = start
        self._kept: dict[int, Tensor] = {}

    def __call__(self) -> Tensor:
        """The gradient as it is now [D], float32 (float64 for a model in float64), on the CPU."""
        first = self.parameters[0][1]
        kind = torch.float64 if first.dtype == torch.float64 else torch.float32
        found = torch.zeros(self.size, dtype=kind, device=first.device)
        filled = {name: start for name, (start, _) in self.spans.items()}
        for index, (name, parameter) in enumerate(self.parameters):
            layer = layer_of(name)
            if self.whole[layer]:
                start, filled[layer] = filled[layer], filled[layer] + parameter.numel()
                if parameter.grad is not None:
                    found[start : start + parameter.numel()] = parameter.grad.flatten().to(kind)
            elif parameter.grad is not None:
                self._add(found, index, parameter.grad.flatten().to(kind), self.spans[layer])
        return found.cpu()

    def _add(self, found: Tensor, index: int, gradient: Tensor, span: tuple[int, int]) -> None:
        start, width = span[0], span[1] - span[0]
        width -= 1 - width % 2  # odd
        for chunk, part in enumerate(torch.split(gradient, CHUNK)):
            signed = part * self._sign(index, chunk, len(part), gradient.device)
            rows = -(-len(part) // width)
            found[start : start + width] += (
                nn.functional.pad(signed, (0, rows * width - len(part))).view(rows, width).sum(0)
            )

    def _sign(self, index: int, chunk: int, count: int, device: torch.device) -> Tensor:
        name = index * 2**20 + chunk
        if name in self._kept:
            return self._kept[name]
        draw = torch.Generator(device=device).manual_seed((self.seed * 2**40 + name) % 2**63)
        sign = torch.randint(0, 2, (count,), generator=draw, device=device, dtype=torch.int8) * 2 - 1
        if self.total <= KEPT:
            self._kept[name] = sign
        return sign
