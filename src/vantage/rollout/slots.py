"""Decoding in memory that is taken once, so that a CUDA graph can replay a token's forward pass without Python.

Keys and values of every layer lie in one tensor of rows × columns; a token is written into the next column. Rows are run
in a few sizes (`row_sizes`) and columns in spans (`column_spans`), each combination one graph, recorded when it has been
run a few times. Queries of grouped heads attend as rows of one query block, so keys are not repeated for them. On a
CPU the same code runs without graphs. N branches, B rows that are run (the next size), C columns that are run, V vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from vantage.models.holding import sharded
from vantage.policy import Policy
from vantage.rollout.decoding import GrowingCache

ATTENTION = "vantage_slots"
FIRST_SPAN = 256
"""Columns of the shortest span; each further one is twice as long."""
ALIGNED = 8
"""Columns come in multiples of this, as fused kernels want their masks."""
RECORD_AFTER = 3
"""Passes over the same rows and columns before a graph is recorded: the first ones also warm up what a graph needs."""
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far the first logits may be from those of a growing cache, as a share of the largest one."""


class SlotLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values [rows, heads, columns, D], and the part that is in use."""

    def __init__(self, keys: Tensor, values: Tensor, column_1: Tensor) -> None:
        super().__init__()
        self.whole_keys, self.whole_values, self.column_1 = keys, values, column_1
        self.keys, self.values, self.is_initialized = keys, values, True

    def use(self, rows: int, columns: int) -> None:
        """Run this many rows and columns from now on."""
        self.keys, self.values = self.whole_keys[:rows, :, :columns], self.whole_values[:rows, :, :columns]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token's keys and values into the next column."""
        self.keys.index_copy_(2, self.column_1, key_states.to(self.keys.dtype))
        self.values.index_copy_(2, self.column_1, value_states.to(self.values.dtype))
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Columns before the next token's; positions and mask are given, so nothing depends on it."""
        return int(self.keys.shape[2]) - 1


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of one query token a row, in the form of transformers' attention functions."""
    unknown = [k for k in ("softcap", "s_aux", "position_bias", "sliding_window") if options.get(k) is not None]
    if unknown or options.get("dropout"):
        raise NotImplementedError(f"attention with {unknown or 'dropout'}")
    rows, heads, _, width = query.shape
    packed = query.view(rows, key.shape[1], heads // key.shape[1], width)
    out = torch.nn.functional.scaled_dot_product_attention(packed, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, 1, heads, value.shape[-1]), None


@functools.cache
def _register() -> None:
    """Let transformers know of `attend`; its registry is slow to import."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)


def suits(policy: Policy) -> bool:
    """Whether every layer of the model attends to everything before, by scaled dot products."""
    config = policy.text_config
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    plain = kinds == {"full_attention"} and not (
        getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None)
    )
    return plain and getattr(config, "_attn_implementation", None) == "sdpa" and not sharded(policy.model)


def row_sizes(most: int) -> list[int]:
    """`most`, then about 3/4, 1/2, 3/8, … of it, ascending: in between, a batch runs at most a third of idle rows."""
    found, size = {most}, most
    while size > 1:
        found |= {-(-3 * size // 4), -(-size // 2)}
        size = -(-size // 2)
    return sorted(found)


def column_spans(most: int) -> list[int]:
    """256, 512, … and `most`."""
    found, span = [most], FIRST_SPAN
    while span < most:
        found.append(span)
        span *= 2
    return sorted(found)


class SlotDecoder:
    """Memory and graphs for batches of up to `rows` branches and `columns` tokens; serves one batch after the other."""

    def __init__(self, policy: Policy, rows: int, columns: int) -> None:
        _register()
        self.policy, self.device = policy, policy.device
        columns = -(-columns // ALIGNED) * ALIGNED
        self.sizes, self.spans = row_sizes(rows), column_spans(columns)
        self.token_B1 = torch.zeros((rows, 1), dtype=torch.long, device=self.device)
        self.position_B1 = torch.zeros_like(self.token_B1)
        self.column_1 = torch.zeros(1, dtype=torch.long, device=self.device)
        self.mask_B11C = torch.zeros((rows, 1, 1, columns), dtype=torch.bool, device=self.device)
        self.layers: list[SlotLayer] = []
        self.rows = self.column = 0
        self.graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.runs: dict[tuple[int, int], int] = {}
        self.recording = self.device.type == "cuda"
        self.pool: Any = None

    def begin(self, prompts: GrowingCache) -> None:
        """Take over a batch behind its prompts; the other cache keeps what it has."""
        layers = prompts.cache.layers
        if not self.layers:
            self.layers = [self._layer(layer) for layer in layers]
            self.cache = Cache(layers=list(self.layers))
        self.rows, self.column = len(prompts.position_N), prompts.mask_NS.shape[1]
        self.mask_B11C.zero_()
        self.mask_B11C[: self.rows, 0, 0, : self.column] = prompts.mask_NS.bool()
        self.mask_B11C[self.rows :, :, :, 0] = True  # idle rows attend to something
        self.position_B1.zero_()
        self.position_B1[: self.rows, 0] = prompts.position_N
        for slot, layer in zip(self.layers, layers):
            slot.whole_keys[: self.rows, :, : self.column] = layer.keys
            slot.whole_values[: self.rows, :, : self.column] = layer.values

    def _layer(self, layer: Any) -> SlotLayer:
        rows, columns = len(self.token_B1), self.mask_B11C.shape[-1]
        shapes = ((rows, t.shape[1], columns, t.shape[3]) for t in (layer.keys, layer.values))
        # zeros: a masked column counts 0 times what lies there, which must be a number
        keys, values = (torch.zeros(s, dtype=layer.values.dtype, device=self.device) for s in shapes)
        return SlotLayer(keys, values, self.column_1)

    def select(self, parent_M: Tensor) -> None:
        """See `Decoding`."""
        count, used = len(parent_M), self.column
        for slot in self.layers:
            for whole in (slot.whole_keys, slot.whole_values):
                whole[:count, :, :used] = whole[parent_M, :, :used]
        self.mask_B11C[:count] = self.mask_B11C[parent_M]
        self.position_B1[:count] = self.position_B1[parent_M]
        self.rows = count

    def step(self, token_N: Tensor) -> Tensor:
        """See `Decoding`."""
        rows = next(size for size in self.sizes if size >= self.rows)
        columns = next(span for span in self.spans if span > self.column)
        self.token_B1[: self.rows, 0] = token_N
        self.position_B1[: self.rows] += 1
        self.column_1.fill_(self.column)
        self.mask_B11C[: self.rows, :, :, self.column] = True
        self.column += 1
        return self._run((rows, columns))[: self.rows]

    def rewind(self) -> None:
        """Take the last token back."""
        self.column -= 1
        self.position_B1[: self.rows] -= 1
        self.mask_B11C[: self.rows, :, :, self.column] = False

    def _run(self, shape: tuple[int, int]) -> Tensor:
        if shape in self.graphs:
            graph, logits_BV = self.graphs[shape]
            graph.replay()
            return logits_BV
        self.runs[shape] = self.runs.get(shape, 0) + 1
        if self.recording and self.runs[shape] > RECORD_AFTER:
            try:
                return self._record(shape)
            except RuntimeError as error:  # a model that asks for values: it goes on without graphs
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                self.recording = False
                torch.cuda.synchronize(self.device)
                warnings.warn(f"no CUDA graphs for this model ({str(error)[:120]}): decoding is slower", stacklevel=2)
        return self._forward(shape)

    def _record(self, shape: tuple[int, int]) -> Tensor:
        """Record the pass, run it, and see that it computes what was recorded (the first one of all)."""
        expected_BV = None if self.graphs else self._forward(shape)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            logits_BV = self._forward(shape)
        graph.replay()  # recording computes nothing
        if expected_BV is not None and not _near(logits_BV[: self.rows], expected_BV[: self.rows]):
            raise RuntimeError("a recorded pass gives other numbers")
        self.pool = graph.pool()
        self.graphs[shape] = graph, logits_BV
        return logits_BV

    def _forward(self, shape: tuple[int, int]) -> Tensor:
        rows, columns = shape
        for slot in self.layers:
            slot.use(rows, columns)
        with self._attention():
            return self.policy.next_logits(
                self.token_B1[:rows], self.mask_B11C[:rows, :, :, :columns], self.position_B1[:rows], self.cache
            )

    @contextlib.contextmanager
    def _attention(self) -> Iterator[None]:
        """The running model's attention is this module's inside."""
        model: Any = self.policy.model if self.policy.generator is None else self.policy.generator
        config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
        before = config._attn_implementation
        config._attn_implementation_internal = ATTENTION
        try:
            yield
        finally:
            config._attn_implementation_internal = before


def agrees(decoder: SlotDecoder, growing: GrowingCache, logits_NV: Tensor) -> bool:
    """Whether a batch that `begin` has just taken over goes on as in its growing cache, which is used up; tried with one token.

    A model may do with cache or attention what this module does not know of.
    """
    token_N = logits_NV.argmax(-1)
    expected_NV = growing.step(token_N)
    try:
        found_NV = decoder.step(token_N)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, AttributeError, ValueError):
        return False
    decoder.rewind()
    return _near(found_NV, expected_NV)


def _near(found_NV: Tensor, expected_NV: Tensor) -> bool:
    reach = TOLERANCE.get(expected_NV.dtype, 0.1) * float(expected_NV.abs().max())
    return float((found_NV - expected_NV).abs().max()) <= reach
