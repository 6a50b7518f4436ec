"""A policy without weights: the parts of a training step, run on the meta device to see what memory they take."""

from __future__ import annotations

import contextlib
import copy
import functools
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, DynamicCache

from vantage.heads import Head, find_blocks
from vantage.memory import Settings, dtype_of, tensors_of
from vantage.memory_trace import FusedAttention, peak_of
from vantage.policy import Policy, Source
from vantage.rollout.sampling import sample


class ShapePolicy(Policy):
    """The policy's own forward and scoring code over a model that has shapes only."""

    def __init__(self, model_config: Any, precision: str) -> None:
        """Without the numerical check of `find_head`, which needs weights: trunk and head are taken as separate."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(model_config), dtype=dtype_of(precision))
        trunk: Any = getattr(model, getattr(model, "base_model_prefix", ""), None)
        self.model, self.tokenizer, self.temperature, self.chunk_tokens = model, None, 1.0, 0
        self.dtype = dtype_of(precision)
        self.compute, self.recompute = torch.float32, False  # no autocast: everything has the type itself
        text: Any = model.config
        text = text.get_text_config() if hasattr(text, "get_text_config") else text
        self.head = Head(model, trunk, lambda logits: logits, int(text.vocab_size), find_blocks(model))
        model.eval()

    @property
    def parameters(self) -> int:
        """Their number; tied ones count once."""
        return sum(p.numel() for p in self.model.parameters())

    def update_bytes(self, settings: Settings) -> int:
        """Peak of forward and backward over one micro-batch of the longest rollouts, beyond weights and gradients."""
        self.chunk_tokens = settings.chunk_tokens
        for parameter in self.model.parameters():
            parameter.grad = torch.empty_like(parameter)
        blocks = [(block, block.forward) for block in self.head.blocks]
        try:
            if settings.checkpointing:
                for block, forward in blocks:
                    block.forward = functools.partial(
                        checkpoint, forward, use_reentrant=False, preserve_rng_state=False, context_fn=_recomputing
                    )
            return peak_of(lambda: self._update(settings), tensors_of(self.model))
        finally:
            for block, forward in blocks:
                block.forward = forward
            self.model.zero_grad(set_to_none=True)

    def _update(self, settings: Settings) -> None:
        rows, length = settings.rows, settings.rollout_tokens
        ids_MS = self._zeros(rows, length)
        last_MSD, logits_MSV = self.head.run(ids_MS)
        source_MSX = last_MSD if logits_MSV is None else logits_MSV
        assert source_MSX is not None
        count = rows * settings.new_tokens
        states = Source(self.head, source_MSX[self._zeros(count), self._zeros(count)], logits_MSV is None)
        logp_N, _ = self._score(states, self._zeros(count), False, None)
        logp_N.sum().backward()  # type: ignore[no-untyped-call]

    def rollout_bytes(self, settings: Settings) -> tuple[int, int]:
        """Peak of generation beyond the weights, and the key-value cache's part of it."""
        with torch.no_grad():
            known = tensors_of(self.model)
            prefill = peak_of(lambda: self._prefill(settings), known)
            shapes = self._cache_shapes()
            cache = sum(2 * self._cache_entry(settings, shape).nbytes for shape in shapes)
            return max(prefill, peak_of(lambda: self._last_token(settings, shapes), known)), cache

    def _prefill(self, settings: Settings) -> None:
        """All prompts of a generation batch at once, then the cache repeated for their rollouts."""
        prompts = max(1, settings.generation_rows // settings.rollouts_per_prompt)
        cache = DynamicCache(config=self.text_config)
        position_PS = self._zeros(prompts, settings.prompt_tokens)
        logits_PV = self.next_logits(self._zeros(prompts, settings.prompt_tokens), None, position_PS, cache)
        if settings.rollouts_per_prompt > 1:
            cache.batch_select_indices(self._zeros(settings.generation_rows))
        _sample(logits_PV[self._zeros(settings.generation_rows)], settings)

    def _cache_shapes(self) -> list[tuple[int, ...]]:
        """Shape of the keys that one row of one token leaves in each layer; layers without keys are left out."""
        cache = DynamicCache(config=self.text_config)

        def one_token() -> None:
            self.next_logits(self._zeros(1, 1), None, self._zeros(1, 1), cache)

        peak_of(one_token, tensors_of(self.model))
        return [tuple(layer.keys.shape) for layer in cache.layers if getattr(layer, "keys", None) is not None]

    def _cache_entry(self, settings: Settings, shape: tuple[int, ...]) -> torch.Tensor:
        """Keys, or values, of a whole generation batch at its end, in one layer."""
        _, heads, _, width = shape
        full = (settings.generation_rows, heads, settings.rollout_tokens - 1, width)
        return torch.empty(full, dtype=self.dtype, device="meta")

    def _last_token(self, settings: Settings, shapes: list[tuple[int, ...]]) -> None:
        """The last decoding step, where the cache is longest."""
        cache = DynamicCache(config=self.text_config)
        for index, shape in enumerate(shapes):
            cache.update(self._cache_entry(settings, shape), self._cache_entry(settings, shape), index)
        rows = settings.generation_rows
        _sample(self.next_logits(self._zeros(rows, 1), None, self._zeros(rows, 1), cache), settings)

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.long, device="meta")


def _recomputing() -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
    """The backward pass leaves the mode that replaces attention, so what is computed again there enters it again."""
    return contextlib.nullcontext(), FusedAttention()


def _sample(logits_RV: torch.Tensor, settings: Settings) -> None:
    uniform_R = torch.empty(len(logits_RV), dtype=torch.float64, device="meta")
    sample(logits_RV, uniform_R, 1.0, settings.top_p, settings.top_k)
